"""Checkpoints: written whole or not at all, and read as untrusted data.

A checkpoint is a dict of tensors, numbers, texts, lists and dicts, saved by `torch.save` and loaded with
`weights_only=True`, so nothing in a file can run. One directory is one run: `vqvae.pt`, its finished decoder in
`decoder.pt`, and a file for each prior over its codes, `transformer.pt`, `pixelcnn.pt` and `masked.pt`.
"""
import argparse
import hashlib
import io
import shlex
import zipfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loading.reading import Reading
from running.cli import UserError
from running.files import atomic
from running.rules import RULES, Rule

FORMAT = "vqvae-pixelcnn"
VERSION = 1
IMAGES = ("dataset", "data_dir", "limit", "channels", "height", "width")  # what a checkpoint says of the images
READING = Reading._fields
DEFAULT_PRIOR = "transformer"  # PRIOR of train_pixelcnn.py
# Sizes that checkpoints before 2026-11-29 state, by the only value that this code has
GONE = {"normalise": "layer", "levels": 1, "coarse_codes": 0}


def fingerprint(state: dict[str, Tensor]) -> str:
    """A digest of tensors by name: two networks whose weights have the same one give the same codes."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().view(-1).numpy())
    return digest.hexdigest()


def weights_dir(args: argparse.Namespace) -> str:
    """The directory that a script reads weights from, beside which nothing is written: PRETRAINED, or OUTPUT_DIR."""
    return args.PRETRAINED or args.OUTPUT_DIR


def path_of(output_dir: str, stage: str) -> Path:
    """Where a stage's checkpoint lies in a run's directory."""
    return Path(output_dir) / f"{stage}.pt"


def command(output_dir: str, stage: str, *more: str) -> str:
    """What a user types to make a stage's checkpoint, in backticks; more: further words of it."""
    script = [f"train_{stage}.py"] if stage in ("vqvae", "vae", "decoder") else ["train_pixelcnn.py"]
    if script == ["train_pixelcnn.py"] and stage != DEFAULT_PRIOR:
        script += ["--prior", stage]
    return f"`{shlex.join(['python', *script, '--output-dir', str(output_dir), *more])}`"


def save(output_dir: str, stage: str, config: dict, model: dict[str, Tensor], **more: Any) -> Path:
    """Write a stage's checkpoint: the network's config and weights, and what else the next stage needs."""
    path = path_of(output_dir, stage)
    content = {"format": FORMAT, "version": VERSION, "stage": stage, "config": config, "model": model, **more}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic(path) as file:
        file.write(buffer.getbuffer())
    return path


def _foreign(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}, no checkpoint of this project: fetch it again from where it came, or choose "
                     f"another directory")


def load(output_dir: str, stage: str) -> dict[str, Any]:
    """Read a stage's checkpoint. UserError, in one line, if it is missing or anything but a whole checkpoint.

    Sizes are checked against the file before memory is allocated. Weights that share.py stored as float16 come as the
    float32 that the networks have.
    """
    path = path_of(output_dir, stage)
    if not path.exists():
        raise UserError(f"{path} does not exist: make it with {command(output_dir, stage)}")
    if not path.is_file():
        raise _foreign(path, "is no file")
    with open(path, "rb") as file:  # no permission is not damage: OSError
        start = file.read(40)
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:  # nothing packed, nothing larger than the file, no bit flipped
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) \
                    or sum(entry.file_size for entry in entries) > size or archive.testzip() is not None:
                raise ValueError
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever the bytes of a foreign file make the readers raise
        kinds = {b"version https://git-lfs": "is a pointer of Git LFS, not the weights (`git lfs pull` fetches these)",
                 b"\x80": "is a pickle, or weights in torch's format before 1.6",
                 b"PK": "is damaged, or holds more than tensors, numbers and texts (a pickled module, perhaps)"}
        raise _foreign(path, next((kind for magic, kind in kinds.items() if start.startswith(magic)),
                                  "is no file of torch")) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise _foreign(path, "holds weights of another project")
    if content.get("version") != VERSION:
        raise UserError(f"{path} is of version {content.get('version')!r}, this code reads version {VERSION}: "
                        f"train again, or use the code that wrote it")
    if content.get("stage") != stage:
        raise UserError(f"{path} is the checkpoint of the stage {content.get('stage')!r}, not of {stage!r}: "
                        f"put it back as {content.get('stage')}.pt")
    try:
        content["data"]["reading"] = Reading._field_defaults | content["data"]["reading"]  # an older one says less
        for names, place in ((IMAGES, content["data"]), (READING, content["data"]["reading"])):
            for name in names:
                place[name] = RULES[name.upper()].parse(place[name])
        if set(content["data"]["reading"]) != set(READING):
            raise KeyError
        if not all(type(name) is str for name in content["data"]["class_names"]):
            raise TypeError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path} does not say what images it was trained on: train again") from None
    if isinstance(content.get("model"), dict):
        content["model"] = {name: weight.float() if getattr(weight, "dtype", None) == torch.float16 else weight
                            for name, weight in content["model"].items()}
    return content


def build(content: dict[str, Any], network_class: Callable[..., nn.Module], config_class: type) -> nn.Module:
    """The network of a checkpoint with its weights, in eval mode, on the CPU. config_class: the dataclass of its sizes.

    It is laid out without memory first, and takes the stored tensors only if every name and shape fits: sizes are
    checked against the tensors before memory is allocated.
    """
    stage = content["stage"]
    try:
        for name in GONE.keys() & content["config"].keys():
            if content["config"][name] != GONE[name]:
                raise UserError(f"the {stage} checkpoint has {name.upper()} {content['config'][name]!r}, which this "
                                f"code has no longer since 2026-11-29: train again")
        kinds = {field.name: field.type for field in fields(config_class)}
        config = {name: RULES.get(name.upper(), Rule(kinds[name])).parse(value)
                  for name, value in content["config"].items() if name not in GONE}
        with torch.device("meta"):
            network = network_class(config_class(**config))
        layout, state = network.state_dict(), content["model"]
        bad = layout.keys() ^ state.keys() or {
            name for name, tensor in layout.items()
            if (state[name].shape, state[name].dtype) != (tensor.shape, tensor.dtype)
            or state[name].untyped_storage().nbytes() < tensor.nbytes  # one number repeated to any size
            or not state[name].isfinite().all()}
        if bad:
            raise UserError(f"the {stage} checkpoint holds weights that are not finite or do not fit its sizes "
                            f"({min(bad)}): train again")
        network.load_state_dict(dict(state), assign=True)  # of a state_dict torch would note `assign` for later loads
        content["config"] = asdict(network.config)  # with what an older one does not say
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(f"the {stage} checkpoint describes no network of this code ({error}): train again") from None
    return network.eval()


def fill(args: argparse.Namespace, stored: dict[str, Any]) -> argparse.Namespace:
    """Replace the constants that are None by what the stage before was given; the rest of them stay None.

    So does IMAGE_SIZE, which is not the same for a folder and for a file: see `testset.find`.
    """
    known = {name.upper(): value for name, value in (stored["data"]["reading"] | stored["data"]).items()
             if name != "image_size"}
    return argparse.Namespace(**{name: known.get(name) if value is None else value
                                 for name, value in vars(args).items()})


def unfinished(stored: dict[str, Any]) -> bool:
    """Whether a checkpoint is of a training that was stopped before its end."""
    state = stored.get("training")
    return isinstance(state, dict) and state.get("finished") is False


def is_shared(stored: dict[str, Any]) -> bool:
    """Whether a checkpoint is one of share.py: weights alone, without what continuing a training needs."""
    return stored.get("shared") is True


def constants(stored: dict[str, Any]) -> dict[str, Any]:
    """The constants of a training, as its checkpoint keeps them; an older one may not."""
    state = stored.get("training")
    found = state.get("constants") if isinstance(state, dict) else None
    return found if isinstance(found, dict) else {}


def check_images(stored: dict[str, Any], images: Tensor, remedy: str = "") -> None:
    """UserError unless images (N, C, H, W) have the channels and size that the VQ-VAE was trained on.

    remedy: what to do about it, the end of the line.
    """
    expected = tuple(stored["data"][name] for name in ("channels", "height", "width"))
    if tuple(images.shape[1:]) != expected:
        raise UserError("DATASET (--dataset): its images have {} channels and {}x{} pixels, the VQ-VAE was trained "
                        "on {} channels and {}x{}{}".format(*images.shape[1:], *expected, remedy))
