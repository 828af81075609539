"""loading/arrays.py: arrays of every shape and type become the images that a plain statement of the rule gives."""
import numpy as np
import pytest
import torch

import dataset
from loading.reading import Reading
from running.cli import UserError

RNG = np.random.default_rng(0)
TYPES = ["uint8", "bool", "int8", "uint16", ">u2", "int32", "int64", "float16", "float32", "float64"]


def draw(shape, kind="uint8"):
    kind = np.dtype(kind)
    if kind.kind == "f":
        return RNG.normal(0, 3, shape).astype(kind)
    low, high = (0, 2) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    return RNG.integers(low, high, shape, dtype=kind.newbyteorder("=")).astype(kind)


def plain(array, ends):
    """(N, C, H, W) uint8: the rule, said for a whole array in memory."""
    array = array[..., None] if array.ndim == 3 else array
    array = array if array.shape[3] in (1, 3) else array.transpose(0, 2, 3, 1)
    if array.dtype == bool:
        array = array * 255
    elif array.dtype != np.uint8:
        low, high = ends
        array = np.rint(255 * np.clip((array.astype(np.float64) - low) / (high - low), 0, 1))
    return torch.from_numpy(array.astype(np.uint8)).permute(0, 3, 1, 2)


def together(data):
    """All images of a data set in the order of a code that each carries: of none is known where it went."""
    images = torch.cat([data.train.images, data.validation.images, data.test.images])
    return sorted(image.numpy().tobytes() for image in images)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(30, 8, 9), (30, 8, 9, 1), (30, 8, 9, 3), (30, 1, 8, 9), (30, 3, 8, 9)])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_every_shape_and_type(tmp_path, suffix, shape, kind):
    array, path = draw(shape, kind), tmp_path / f"images{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez_compressed(path, images=array)
    ends = tuple(round(end, 1) for end in np.quantile(array.astype(float), (0.1, 0.9)).tolist())
    data = dataset.load(str(path), "data", 0, Reading(value_range="{} {}".format(*ends)))
    assert together(data) == sorted(image.numpy().tobytes() for image in plain(array, ends))
    assert (len(data.train.images), len(data.validation.images), len(data.test.images)) == (26, 1, 3)
    assert data.class_names == []


@pytest.mark.parametrize("kind", ["uint16", "float32"])
def test_wide_values_are_scaled_between_percentiles_of_all(tmp_path, kind):
    array = (1000 * RNG.normal(3, 0.5, (200, 16, 16)).clip(0)).astype(kind)
    np.save(tmp_path / "x.npy", array)
    data = dataset.load(str(tmp_path / "x.npy"), "data")
    ends = np.percentile(array, (0.5, 99.5))
    np.testing.assert_allclose([float(end) for end in data.value_range.split()], ends, rtol=2e-3)
    images = np.sort(torch.cat([part.images for part in data[:3]]).numpy(), None).astype(int)
    assert abs(images - np.sort(plain(array, ends).numpy(), None).astype(int)).max() <= 1
    assert any("becomes black" in note for note in data.notes)


def test_splits_and_labels_by_their_names(tmp_path):
    """As MedMNIST has them; and in files of their own, labels beside."""
    arrays = {"train_images": draw((40, 8, 8)), "train_labels": RNG.integers(3, 6, (40, 1)),
              "val_images": draw((8, 8, 8)), "val_labels": RNG.integers(3, 6, (8, 1)),
              "test_images": draw((10, 8, 8)), "test_labels": RNG.integers(3, 6, (10, 1)).astype(np.uint8)}
    np.savez(tmp_path / "set.npz", **arrays)
    (tmp_path / "files").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "files" / f"{name}.npy", np.asfortranarray(array))
    for name in ("set.npz", "files"):
        data = dataset.load(str(tmp_path / name), "data")
        for split, short in (("train", "train"), ("validation", "val"), ("test", "test")):
            found = getattr(data, split)
            assert torch.equal(found.images[:, 0], torch.from_numpy(arrays[f"{short}_images"]))
            assert torch.equal(found.labels, torch.from_numpy(arrays[f"{short}_labels"][:, 0].astype(np.int64) - 3))
        assert data.class_names == ["3", "4", "5"]
        assert dataset.load(str(tmp_path / name), "data", 5).train.images.shape[0] == 5
        assert dataset.load(str(tmp_path / name), "data", 0, Reading(classes="none")).class_names == []


def test_size_and_channels_are_brought_to_what_is_asked_for(tmp_path):
    grey = np.repeat(draw((20, 8, 12, 1)), 3, 3)
    np.savez(tmp_path / "x.npz", train=draw((20, 16, 16, 3)), test=draw((4, 3, 9, 9)))
    np.save(tmp_path / "grey.npy", grey)
    data = dataset.load(str(tmp_path / "x.npz"), "data", 0, Reading(image_size="6x10", channels=1))
    assert data.train.images.shape[1:] == data.test.images.shape[1:] == (1, 6, 10)
    assert dataset.load(str(tmp_path / "x.npz"), "data", 0, Reading(image_size="8")).test.images.shape == (4, 3, 8, 8)
    assert together(dataset.load(str(tmp_path / "grey.npy"), "data")) == sorted(
        image.numpy().tobytes() for image in plain(grey[..., :1], None))


@pytest.mark.parametrize("arrays, says", [
    ({"images": np.array([{}], object)}, "holds Python objects"),
    ({"images": draw((20, 64, 3))}, "looks like one picture"),
    ({"images": draw((20, 3, 64, 3))}, "channels may be the second or the last axis"),
    ({"a": draw((20, 8, 8)), "b": draw((20, 8, 8))}, "needs one array of images, or one for each split"),
    ({"test": draw((20, 8, 8))}, "needs one array of images, or one for each split"),
    ({"train": draw((20, 8, 8)), "test": draw((20, 9, 9))}, "all of one size"),
    ({"images": draw((20, 8, 8)), "a": np.zeros(20, int), "b": np.zeros(20, int)}, "may both be the labels"),
    ({"images": draw((20, 8, 8)), "labels": np.zeros(19, int)}, "has 19 labels for the 20 images"),
    ({"table": draw((20, 8))}, "needs arrays of images"), ({"images": draw((1, 8, 8))}, "at least 2")])
def test_what_cannot_be_images_is_one_line(tmp_path, arrays, says):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=says):
        dataset.load(str(tmp_path / "x.npz"), "data")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.7])
def test_a_damaged_file_is_one_line(tmp_path, suffix, share):
    path = tmp_path / f"x{suffix}"
    np.save(path, draw((99, 8, 8))) if suffix == ".npy" else np.savez(path, x=draw((99, 8, 8)))
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(UserError):
        dataset.load(str(path), "data")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_flipped_bit_is_one_line(tmp_path, save):
    save(tmp_path / "x.npz", x=draw((99, 20, 20)))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match="x.npz cannot be read"):
        dataset.load(str(tmp_path / "x.npz"), "data")
