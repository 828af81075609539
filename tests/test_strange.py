"""strange.py: what is done to an image, and what the script writes."""
import argparse

import numpy as np
import pytest
import torch
from images import noise
from PIL import Image

import strange


def changed(image, name, seed=0):
    return strange.change(image, name, 0.2, torch.Generator().manual_seed(seed))


def test_turned_and_mirrored():
    image = torch.from_numpy(noise(9, 9, 3)).permute(2, 0, 1)
    assert torch.equal(changed(image, "unchanged")[0], image)
    assert torch.equal(changed(image, "turned")[0][:, 0], image[:, :, -1])  # the last column is the first row
    assert torch.equal(changed(image, "upside_down")[0], image.flip(1, 2))
    assert torch.equal(changed(image, "mirrored")[0], image.flip(2))


@pytest.mark.parametrize("name, value", [("erased", 20), ("added", 255)])
@pytest.mark.parametrize("channels, height, width, side", [(1, 28, 28, 6), (3, 11, 16, 2), (1, 2, 2, 1)])
def test_a_square_lies_within_the_image_where_its_name_says(name, value, channels, height, width, side):
    image = torch.full((channels, height, width), 20, dtype=torch.uint8)
    image[:, height // 2, width // 2] = 200
    for seed in range(9):
        new, where = changed(image, name, seed)
        _, _, row, _, column = where.split("_")
        row, column = int(row), int(column)
        square = torch.zeros_like(image, dtype=torch.bool)
        square[:, row:row + side, column:column + side] = True
        assert square.sum() == channels * side**2
        assert torch.equal(new, torch.where(square, torch.tensor(value, dtype=torch.uint8), image))
        assert name == "added" or square[0, height // 2, width // 2]  # there was something else


def test_an_image_of_one_value_can_be_erased():
    image = torch.full((1, 8, 8), 7, dtype=torch.uint8)
    assert torch.equal(changed(image, "erased")[0], image)


def test_the_script(script, trained, tmp_path):
    flags = ["--output-dir", trained, "--strange-dir", tmp_path / "strange", "--num-images", 12]
    outcome = script("strange", *flags)
    assert outcome.status == 0, outcome.err
    folders = {path.name: sorted(path.iterdir()) for path in (tmp_path / "strange").iterdir()}
    assert set(folders) == {"unchanged", "turned", "upside_down", "mirrored", "erased", "added"}
    assert all(len(files) == 12 for files in folders.values())
    numbers = {name: {path.name[:5] for path in files} for name, files in folders.items()}
    assert not numbers["unchanged"] & numbers["added"] and numbers["turned"] == numbers["added"]
    turned, down = (np.asarray(Image.open(folders[name][0])) for name in ("turned", "upside_down"))
    assert np.array_equal(np.rot90(turned), down) and turned.shape == (28, 28)
    before = [path.read_bytes() for path in folders["erased"]]
    outcome = script("strange", *flags)
    assert outcome.status == 1 and "is not empty: remove it, or name another directory" in outcome.err
    assert [path.read_bytes() for path in folders["erased"]] == before
    out = tmp_path / "out"
    score = script("score", "--pretrained", trained, "--output-dir", out, "--dataset", tmp_path / "strange/unchanged",
                   "--against", tmp_path / "strange/added", "--num-images", 1)
    assert score.status == 0 and "AUROC of telling" in score.out, score.err


def test_at_most_half_of_the_test_split(script, trained, tmp_path, monkeypatch):
    flags = ["--output-dir", trained, "--strange-dir", tmp_path / "strange"]
    outcome = script("strange", *flags, "--limit", 5)
    assert outcome.status == 0 and len(list((tmp_path / "strange/mirrored").iterdir())) == 2
    one = argparse.Namespace(test=argparse.Namespace(images=torch.zeros(1, 1, 28, 28, dtype=torch.uint8)))
    monkeypatch.setattr("testset.load", lambda args, stored: one)
    outcome = script("strange", "--output-dir", trained, "--strange-dir", tmp_path / "one")
    assert outcome.status == 1 and "has one image: two are needed" in outcome.err
