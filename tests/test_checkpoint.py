"""checkpoint.py: a damaged or foreign file is refused in one line, or read as it was saved, nothing else."""
import io
import random
import zipfile

import pytest
import torch

from priors import runs
from running.cli import UserError
from training import checkpoint


def flat(content: object, where: str = ""):
    """Every value of a checkpoint with its place, tensors by type, shape and bytes."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from flat(value, f"{where}.{name!r}")
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from flat(value, f"{where}[{i}]")
    elif isinstance(content, torch.Tensor):
        yield where, content.dtype, content.shape, content.stride(), content.numpy().tobytes()
    else:
        yield where, repr(content)


@pytest.mark.parametrize("stage", ["vqvae", "pixelcnn"])
def test_fuzzed_checkpoints_are_refused_or_whole(trained, tmp_path, stage):
    """250 truncations and byte flips of either file, half of the flips where the archive keeps its own records."""
    path = tmp_path / f"{stage}.pt"
    data = (trained / path.name).read_bytes()
    saved = list(flat(checkpoint.load(str(trained), stage)))
    chance, refused, loaded = random.Random(stage), 0, 0
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        directory_at = archive.start_dir
        headers = [entry.header_offset + chance.randrange(64) for entry in archive.infolist() for _ in range(9)]
    for i in range(250):
        broken = bytearray(data)
        if i % 3 == 0:
            del broken[chance.randrange(len(data)):]
        else:
            at = chance.choice([chance.randrange(len(data)), chance.randrange(len(data)),
                                chance.randrange(directory_at, len(data)), chance.choice(headers)])
            broken[at] ^= chance.randrange(1, 256)
        path.write_bytes(broken)
        try:
            content = checkpoint.load(str(tmp_path), stage)
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            assert list(flat(content)) == saved
            loaded += 1
    print(f"{stage}: {refused} refused and {loaded} loaded whole of 250")
    assert refused + loaded == 250 and refused > 150


def test_a_storage_that_claims_more_than_its_record(trained, tmp_path):
    """Its pickle says 10**6 numbers, its record holds 16: reading on would give what lies behind it in memory."""
    whole = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT, "tensor": torch.arange(4.0)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "vqvae.pt", "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert content.count(b"K\x04") == 2  # of the storage, and of the tensor
                content = content.replace(b"K\x04", b"J" + (10**6).to_bytes(4, "little"))
            target.writestr(entry.filename, content)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(str(tmp_path), "vqvae")


def test_how_vectors_were_normalised_is_as_now_or_refused(trained):
    """Runs before 2026-11-29 could have it otherwise, and their configs say it."""
    whole = runs.build(checkpoint.load(str(trained), "vqvae")).state_dict()
    stored = checkpoint.load(str(trained), "vqvae")
    stored["config"]["normalise"] = "layer"
    assert all(torch.equal(weight, whole[name]) for name, weight in runs.build(stored).state_dict().items())
    assert "normalise" not in stored["config"]
    stored["config"]["normalise"] = "length"
    with pytest.raises(UserError, match="NORMALISE 'length', which this code has no longer since 2026-11-29"):
        runs.build(stored)
