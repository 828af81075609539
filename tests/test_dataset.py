"""Data sets: the same every time, split without overlap, and refused in one line."""
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import dataset
from running.cli import UserError

MNIST = os.path.join(os.path.dirname(__file__), "..", "..", "shared", "data")


def rows(split):
    return {image.numpy().tobytes() for image in split.images}


def test_glyphs_are_deterministic_in_the_seed():
    first, again, other = (dataset.draw_glyphs(40, seed) for seed in (3, 3, 4))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (40, 1, 28, 28) and first.images.dtype == torch.uint8


def test_glyphs_are_all_different_and_no_image_is_in_two_splits(data_dir):
    data = dataset.load("glyphs", str(data_dir))
    parts = [rows(split) for split in data[:3]]
    assert [len(part) for part in parts] == [19_000, 1_000, 2_000]  # as many as images: none comes twice
    assert len(set.union(*parts)) == 22_000
    for split in data[:3]:
        assert split.labels.bincount(minlength=10).min() > 0.07 * len(split.labels)
        assert split.images.flatten(1).max(1).values.min() > 90     # something is drawn in every one
    assert data.class_names == [str(digit) for digit in range(10)]


def test_no_glyph_is_cut_off(data_dir):
    images = dataset.load("glyphs", str(data_dir)).train.images[:, 0]
    border = torch.cat([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert (border.max(1).values > 60).float().mean() < 0.01


def test_validation_is_a_fixed_twentieth_and_limit_takes_the_first(data_dir):
    data = dataset.load("glyphs", str(data_dir), limit=200)
    assert [len(split.images) for split in data[:3]] == [190, 10, 200]
    assert torch.equal(data.validation.images, dataset.load("glyphs", str(data_dir), limit=200).validation.images)
    with np.load(next(data_dir.glob("glyphs-*.npz"))) as cache:
        first = {image.tobytes() for image in cache["train_images"][:200]}
    assert rows(data.train) | rows(data.validation) == first


def test_the_cache_is_used_and_a_damaged_one_is_drawn_anew(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "GLYPHS", {"train": 30, "test": 10})
    drawn = dataset.load("glyphs", str(tmp_path))
    monkeypatch.setattr(dataset, "draw_glyphs", None)
    assert torch.equal(dataset.load("glyphs", str(tmp_path)).train.images, drawn.train.images)
    monkeypatch.undo()
    monkeypatch.setattr(dataset, "GLYPHS", {"train": 30, "test": 10})
    cache = next(tmp_path.glob("*.npz"))
    cache.write_bytes(cache.read_bytes()[:-100])
    assert torch.equal(dataset.load("glyphs", str(tmp_path)).train.images, drawn.train.images)
    assert "drawing the glyphs anew" in capsys.readouterr().err


def test_two_processes_draw_the_glyphs_once(tmp_path):
    code = """
import pathlib, sys, time, dataset
def draw(count, seed):
    (pathlib.Path(sys.argv[1]) / f"drawn {count}").touch(exist_ok=False)
    time.sleep(2)
    return real(count, seed)
real, dataset.draw_glyphs, dataset.GLYPHS = dataset.draw_glyphs, draw, {"train": 30, "test": 10}
dataset.load("glyphs", sys.argv[1])
"""
    top = os.path.dirname(dataset.__file__)
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=top, stderr=subprocess.PIPE, text=True)
            for _ in range(2)]
    complaints = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], complaints
    assert sorted(complaints) in (["", ""], ["", "waiting for another process that draws the glyphs\n"])


def test_augmented_images_are_mirrored_and_shifted_copies():
    """Against every copy that there can be, made plainly; each of them comes."""
    tiny = torch.arange(25, dtype=torch.uint8).view(1, 1, 5, 5).expand(50, -1, -1, -1)
    assert not torch.equal(dataset.augment(tiny, "shift", torch.Generator()), tiny)  # by a pixel, however small
    image = torch.randint(256, (2, 32, 48), dtype=torch.uint8)
    images = image.expand(400, -1, -1, -1)
    padded = F.pad(image.float(), (3, 3, 2, 2), mode="replicate").byte()  # a 16th of either side
    shifted = [padded[:, top:top + 32, left:left + 48] for top in range(5) for left in range(7)]
    for how, copies in {"none": [image], "flip": [image, image.flip(2)], "shift": shifted,
                        "flip shift": shifted + [copy.flip(2) for copy in shifted]}.items():
        drawn = dataset.augment(images, how, torch.Generator().manual_seed(0))
        again = dataset.augment(images, how, torch.Generator().manual_seed(0))
        assert drawn.shape == images.shape and drawn.dtype == torch.uint8 and torch.equal(drawn, again)
        equal = (drawn[:, None] == torch.stack(copies)[None]).flatten(2).all(2)  # (400, copies)
        assert equal.any(1).all() and equal.any(0).float().mean() > 0.9, how


def test_to_float_scales_to_one():
    assert torch.equal(dataset.to_float(torch.tensor([0, 255, 51], dtype=torch.uint8)), torch.tensor([0, 1, 0.2]))


@pytest.mark.skipif(not os.path.isdir(os.path.join(MNIST, "MNIST")), reason="needs a copy of MNIST beside the project")
def test_a_present_mnist_is_read_without_a_connection(torchvision_datasets):
    data = dataset.load("mnist", MNIST)
    assert [tuple(split.images.shape) for split in data[:3]] == [(57_000, 1, 28, 28), (3_000, 1, 28, 28),
                                                                 (10_000, 1, 28, 28)]
    assert data.test.labels[:4].tolist() == [7, 2, 1, 0] and len(data.class_names) == 10


# What torchvision's readers keep in memory where it is no tensor (6, 28, 28): an array's shape, and the labels' name
KEPT = {"usps": ((6, 16, 16), "targets"), "cifar10": ((6, 32, 32, 3), "targets"), "svhn": ((6, 3, 32, 32), "labels"),
        "cifar100": ((6, 32, 32, 3), "targets"), "stl10": ((6, 3, 96, 96), "labels")}


@pytest.mark.parametrize("name", dataset.TORCHVISION)
def test_every_torchvision_set_comes_out_the_same_way(name, monkeypatch, tmp_path, torchvision_datasets):
    shape, labels = KEPT.get(name, ((6, 28, 28), "targets"))
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    asked = []

    def reader(root, download, **arguments):
        asked.append((root, download, arguments))
        if not download:
            raise RuntimeError("Dataset not found.")  # then it must be asked to download
        array = pixels if name in KEPT else torch.from_numpy(pixels)
        return types.SimpleNamespace(data=array, **{labels: list(range(6))})

    assert hasattr(torchvision_datasets, dataset.TORCHVISION[name][0])
    monkeypatch.setattr(torchvision_datasets, dataset.TORCHVISION[name][0], reader)
    train, test, names = dataset.from_torchvision(name, str(tmp_path))
    assert [download for _, download, _ in asked] == [False, True] * 2 and asked[1][2] != asked[3][2]
    channels = 1 if len(shape) == 3 else 3
    assert train.images.shape[1] == channels and train.images.dtype == torch.uint8 and train.images.is_contiguous()
    expected = pixels[0].T if name == "emnist" else pixels[0].transpose(2, 0, 1) if shape[-1] == 3 else pixels[0]
    assert np.array_equal(train.images[0].numpy().reshape(expected.shape), expected)
    assert test.labels.tolist() == list(range(6)) and len(names) == 6


def test_no_connection_is_one_line_that_names_glyphs(monkeypatch, tmp_path, torchvision_datasets):

    def reader(root, download, **arguments):
        raise RuntimeError("Dataset not found.") if not download else OSError("<urlopen error\nno route>")
    monkeypatch.setattr(torchvision_datasets, "CIFAR10", reader)
    with pytest.raises(UserError, match="glyphs") as error:
        dataset.load("cifar10", str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, limit, says", [("nosuch", 0, "nosuch"), ("glyphs", 1, "LIMIT")])
def test_bad_input_is_named(data_dir, name, limit, says):
    with pytest.raises(UserError, match=says):
        dataset.load(name, str(data_dir), limit)
