"""encode.py: codes as a file and back, and what is no such file."""
import csv
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import encode as encode_script
from priors import runs
from priors.codes import encode


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / f"{number}.png")
    return tmp_path / "mine"


def test_codes_of_a_folder_and_back(done, copied, folder, tmp_path):
    done("encode", "--output-dir", copied, "--dataset", folder)
    with np.load(copied / "codes.npz") as content:
        codes, names, size = (content[name] for name in ("codes", "files", "size"))
    assert sorted(names) == [str(folder / f"{number}.png") for number in range(3)] and size.tolist() == [28, 28]
    _, vqvae = runs.load_vqvae(str(copied))
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(name)) for name in names]))[:, None]
    assert torch.equal(torch.from_numpy(codes), encode(vqvae, pixels))
    done("encode", "--pretrained", copied, "--output-dir", tmp_path, "--codes", copied / "codes.npz")
    with torch.no_grad():
        expected = vqvae.decode(torch.from_numpy(codes).long(), 28, 28).mul(255).round().byte()
    for number in range(3):
        found = np.asarray(Image.open(tmp_path / f"decoded_{number}.png"))
        assert np.abs(found.astype(int) - expected[number, 0].numpy()).max() <= 1


def test_the_test_split_where_nothing_is_named(done, copied):
    outcome = done("encode", "--output-dir", copied)
    assert "the codes of 300 images, 7x7 each" in outcome.out


def test_a_stream_and_back(done, script, copied, folder):
    """The files' sizes are those of files that Pillow writes."""
    done("encode", "--output-dir", copied, "--dataset", folder)
    plain = dict(np.load(copied / "codes.npz"))
    outcome = done("encode", "--output-dir", copied, "--dataset", folder, "--stream")
    with np.load(copied / "codes.npz") as content:
        assert "codes" not in content and content["files"].tolist() == plain["files"].tolist()
        packed = content["stream"]
    with open(copied / "sizes.csv", newline="") as file:
        sizes = {name: float(size) for name, size in list(csv.reader(file))[1:]}
    assert sizes["stream by the prior"] == round(packed.nbytes / 3, 1) and "bytes an image" in outcome.out
    assert sizes["codes of equal length"] == 49 * 4 / 8
    lengths = []
    for path in folder.iterdir():
        Image.open(path).save(folder / "again.png", optimize=True)
        lengths.append((folder / "again.png").stat().st_size)
    assert sizes["PNG"] == pytest.approx(np.mean(lengths), abs=0.1)
    done("encode", "--output-dir", copied, "--codes", copied / "codes.npz")
    streamed = [np.asarray(Image.open(copied / f"decoded_{number}.png")) for number in range(3)]
    np.savez(copied / "plain.npz", **plain)
    done("encode", "--output-dir", copied, "--codes", copied / "plain.npz")
    assert np.array_equal(streamed, [np.asarray(Image.open(copied / f"decoded_{number}.png")) for number in range(3)])
    np.savez(copied / "codes.npz", stream=packed[::-1].copy(), sum=np.array(1), count=np.array(3), size=plain["size"])
    outcome = script("encode", "--output-dir", copied, "--codes", copied / "codes.npz")
    assert outcome.status == 1 and "was written by another prior" in outcome.err


def test_a_stream_of_images_of_no_files_and_what_has_no_likelihood(done, script, copied):
    done("encode", "--output-dir", copied)
    codes = np.load(copied / "codes.npz")["codes"]
    done("encode", "--output-dir", copied, "--stream")
    stored, vqvae = runs.load_vqvae(str(copied))
    prior = partial(runs.load_prior, str(copied), stored)
    found, height, width = encode_script.read(str(copied / "codes.npz"), vqvae, lambda: prior()[1])
    assert np.array_equal(found, codes) and (height, width) == (28, 28)
    content = torch.load(copied / "pixelcnn.pt", weights_only=True)
    content["training"]["constants"]["CLASS_DROPOUT"] = 0.0
    torch.save(content, copied / "pixelcnn.pt")
    outcome = script("encode", "--output-dir", copied, "--stream")
    assert outcome.status == 1 and "needs a prior that has learnt the likelihood" in outcome.err


@pytest.mark.parametrize("content, line", [
    ({"codes": np.zeros((2, 7, 7), int), "size": np.array([28, 32])}, "holds codes of another VQ-VAE"),
    ({"codes": np.full((2, 7, 7), 16), "size": np.array([28, 28])}, "holds codes of another VQ-VAE"),
    ({"codes": np.zeros((2, 7, 7)), "size": np.array([28, 28])}, "is no file of encode.py"),
    ({"images": np.zeros(3)}, "is no file of encode.py")])
def test_other_files_are_one_line(script, copied, tmp_path, content, line):
    np.savez(tmp_path / "other.npz", **content)
    outcome = script("encode", "--output-dir", copied, "--codes", tmp_path / "other.npz")
    assert outcome.status == 1 and outcome.err.count("\n") == 1 and line in outcome.err
