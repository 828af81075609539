"""Images in .npy and .npz files: arrays (N, H, W), (N, H, W, C) or (N, C, H, W), with or without labels and splits.

An array belongs to the split that its name, or the name of its file, says: train_images, x_test, val.npy. Labels are
the 1-D integer array of the same split and length. Samples of more than 8 bits are scaled between two values, those of
VALUE_RANGE or percentiles of all. Files are read in parts, so that no array is held in memory as it lies.
"""
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from loading.decode import fitted, luminance
from loading.layout import SPLITS, TEST_SHARE, natural
from loading.reading import Fit, Reading
from loading.wide import FirstPass, binned_ends, to_bytes
from running.cli import UserError, flag
from running.progress import Bar

SUFFIXES = (".npy", ".npz")
PART = 2**24  # bytes that are read at once, about
LABELS = ("label", "target", "class")  # what the name of labels may hold, where several arrays might be these


class Array(NamedTuple):
    name: str                  # with that of its file
    split: str                 # "train", "validation", "test", or "" where no name says so
    shape: tuple[int, ...]
    dtype: np.dtype
    parts: Callable[[], Iterator[np.ndarray]]  # reads the array from its start, some rows at a time

    @property
    def channels_last(self) -> bool:
        return len(self.shape) == 3 or self.shape[3] in (1, 3)

    @property
    def size(self) -> tuple[int, int, int]:
        """Height, width and channels of its images."""
        return (*self.shape[1:], 1)[:3] if self.channels_last else (*self.shape[2:], self.shape[1])


def are_at(name: str) -> bool:
    """Whether a data set's name is that of an array file, or of a folder that holds these."""
    path = Path(name)
    return path.suffix.lower() in SUFFIXES if path.is_file() else any(files_in(path))


def files_in(folder: Path) -> list[Path]:
    """The array files of a folder, not of those below it."""
    return sorted((path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES and path.is_file()),
                  key=lambda path: natural(path.name))


def load(name: str, reading: Reading, limit: int = 0) -> tuple[dict[str, tuple[Tensor, Tensor]], list[str], list[str],
                                                                str]:
    """The splits of the arrays at `name`, by "train", "validation" and "test", each images (N, C, H, W) uint8 and
    labels (N,) int64; the class names; lines on how the arrays were interpreted; and the values that become black and
    white, "auto" where all arrays are uint8. Without a test split a tenth of the images, by chance, is that.

    limit: take the first N images of every array. UserError where there are no images or no training split, where
    images differ in size, or labels in number.
    """
    path = Path(name)
    arrays = [array for file in ([path] if path.is_file() else files_in(path)) for array in read(file)]
    images = [array for array in arrays if is_images(array, name)]
    sizes = {array.size for array in images} if not reading.size else {(0, 0, 0)}
    if not images or len(sizes) > 1:
        shapes = ", ".join(f"{array.name} {array.shape} {array.dtype}" for array in arrays) or "no array"
        raise UserError(f"DATASET (--dataset): {name} needs arrays of images (N, H, W), (N, H, W, C) or (N, C, H, W), "
                        f"all of one size, unless {flag('IMAGE_SIZE')} gives it; it holds {shapes}")
    by_split = [array.split for array in images]
    if by_split != [""] and ("" in by_split or "train" not in by_split or len(set(by_split)) < len(by_split)):
        raise UserError(f"DATASET (--dataset): {name} needs one array of images, or one for each split with train, val "
                        f"or test in its name; it holds {', '.join(array.name for array in images)}")
    low_high = value_range(images, reading)
    notes = [f"{array.name}: {'x'.join(map(str, array.shape))} {array.dtype}, the {array.split or 'only'} images"
             for array in images]
    if low_high:
        notes.append(f"{low_high[0]:g} becomes black and {low_high[1]:g} white ({flag('VALUE_RANGE')} sets others)")
    labels = {array.name: find_labels(array, arrays, name) if reading.classes != "none" else None for array in images}
    values = sorted({int(value) for found in labels.values() if found is not None for value in found})
    if any(found is None for found in labels.values()):
        values = []
    splits = {}
    for array in images:
        count = min(array.shape[0], limit or array.shape[0])
        pixels = to_pixels(array, count, reading, low_high)
        numbers = np.searchsorted(values, labels[array.name][:count]) if values else np.zeros(count, np.int64)
        splits[array.split or "train"] = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(numbers)
    if reading.channels == "auto" and all(is_grey(part) for part, _ in splits.values()):
        splits = {split: (part[:, :1], numbers) for split, (part, numbers) in splits.items()}
    if "test" not in splits:
        part, numbers = splits["train"]
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(0))
        held, rest = (rows.sort().values for rows in order.tensor_split([max(1, int(TEST_SHARE * len(part)))]))
        splits |= {"train": (part[rest], numbers[rest]), "test": (part[held], numbers[held])}
        notes.append("no test split is given: a tenth is held out by chance")
    return splits, list(map(str, values)), notes, f"{low_high[0]:.9g} {low_high[1]:.9g}" if low_high else "auto"


def read(path: Path) -> list[Array]:
    """The arrays of a file, none of them read yet. UserError if it is damaged or holds objects."""
    with readable(path):
        if path.suffix.lower() == ".npy":
            return [describe(path, path.stem, path.stem, lambda: open(path, "rb"))]
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
        return [describe(path, f"{path.stem}_{name[:-4]}", name[:-4],
                         lambda name=name: zipfile.ZipFile(path).open(name)) for name in names]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """UserError, in here, for what a damaged file makes the readers raise."""
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"DATASET (--dataset): {path} cannot be read: {str(error)[:200]}") from None


def describe(path: Path, words: str, name: str, start: Callable[[], BinaryIO]) -> Array:
    """An array of a file. words: what may name its split. start: opens it at its header."""
    with start() as file:
        shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects, which could run code")
    row = dtype.itemsize * int(np.prod(shape[1:]))  # bytes

    def parts() -> Iterator[np.ndarray]:
        with readable(path), start() as file:
            header(file)
            rows = max(1, PART // max(1, row))
            if fortran:  # its rows are spread over the file
                whole = np.frombuffer(file.read(), dtype).reshape(shape, order="F")
                yield from (whole[first:first + rows] for first in range(0, shape[0], rows))
                return
            for first in range(0, shape[0], rows):
                count = min(rows, shape[0] - first)
                content = file.read(count * row)
                if len(content) < count * row:
                    raise ValueError(f"it ends before its array {name}")
                yield np.frombuffer(content, dtype).reshape(count, *shape[1:])

    return Array(f"{path.name}: {name}" if path.suffix.lower() == ".npz" else path.name, split_of(words), shape, dtype,
                 parts)


def split_of(words: str) -> str:
    """The split that a name says, "" for none or more than one."""
    found = {split for split, names in SPLITS.items() if any(map(names.fullmatch, re.split("[^A-Za-z]+", words)))}
    return found.pop() if len(found) == 1 else ""


def header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it lies in Fortran order, and type of the array that begins here in a file."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in readers:
        raise ValueError(f"its format {version} is not known")
    return readers[version](file)


def is_images(array: Array, name: str) -> bool:
    """Whether an array has images. UserError where its axes have more than one meaning."""
    shape = array.shape
    if array.dtype.kind not in "biuf" or len(shape) not in (3, 4) or 0 in shape:
        return False
    if len(shape) == 3 and shape[2] in (1, 3):
        raise UserError(f"DATASET (--dataset): {array.name} of {name} has the shape {shape}, which looks like one "
                        f"picture: images are (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if len(shape) == 4 and shape[1] in (1, 3) and shape[3] in (1, 3):
        raise UserError(f"DATASET (--dataset): {array.name} of {name} has the shape {shape}, whose channels may be the "
                        f"second or the last axis: save the images larger, or without the axis of one channel")
    return len(shape) == 3 or shape[1] in (1, 3) or shape[3] in (1, 3)


def find_labels(images: Array, arrays: list[Array], name: str) -> np.ndarray | None:
    """The labels (N,) of the images: the 1-D integer array of their split and number; None if there is none."""
    found = [array for array in arrays if array.dtype.kind in "iu" and array.split == images.split
             and array.shape in ((images.shape[0],), (images.shape[0], 1))]
    if len(found) > 1:
        found = [array for array in found if any(word in array.name.lower() for word in LABELS)] or found
    if len(found) > 1:
        raise UserError(f"DATASET (--dataset): {' and '.join(array.name for array in found)} of {name} may both be the "
                        f"labels of {images.name}: leave one, or add `{flag('CLASSES')} none`")
    wrong = [array for array in arrays if array.split == images.split and len(array.shape) == 1
             and array.dtype.kind in "iu" and any(word in array.name.lower() for word in LABELS)]
    if wrong and not found:
        raise UserError(f"DATASET (--dataset): {wrong[0].name} of {name} has {wrong[0].shape[0]} labels for the "
                        f"{images.shape[0]} images of {images.name}: add `{flag('CLASSES')} none` to use none")
    return np.concatenate([part.reshape(-1) for part in found[0].parts()]) if found else None


def value_range(images: list[Array], reading: Reading) -> tuple[float, float] | None:
    """What becomes black and white in arrays that are not uint8 or bool: VALUE_RANGE, or the percentiles NIFTI_LOW and
    NIFTI_HIGH of all their values; None where there are no such arrays.
    """
    wide = [array for array in images if array.dtype != np.uint8 and array.dtype.kind != "b"]
    if not wide or reading.ends:
        return reading.ends if wide else None
    first = FirstPass(None)
    for array in wide:
        for part in array.parts():
            first.count(part)
    return (0.0, 0.0) if first.counts is None else binned_ends(first.counts, reading)


def to_pixels(array: Array, count: int, reading: Reading, low_high: tuple[float, float] | None) -> np.ndarray:
    """The first images of an array as (count, H, W, C) uint8, of the size and the channels that reading asks for."""
    height, width, channels = array.size
    wanted = channels if reading.channels == "auto" else reading.channels
    pixels = np.empty((count, *(reading.size or (height, width)), wanted), np.uint8)
    first = 0
    with Bar(desc=f"reading {array.name}", total=count, unit="image") as bar:
        for part in array.parts():
            part = part[:count - first].reshape(-1, *array.shape[1:])
            if not len(part):
                break
            part = part if array.channels_last else part.transpose(0, 2, 3, 1)
            part = part.reshape(len(part), height, width, channels)
            if array.dtype.kind == "b":
                part = part * np.uint8(255)
            elif array.dtype != np.uint8:
                part = to_bytes(part, *low_high)
            if channels == 3 and wanted == 1:
                part = luminance(part)[..., None]
            if reading.size:
                fit = Fit(*reading.size)
                part = np.stack([fitted(Image.fromarray(image.squeeze()), reading, fit).reshape(*reading.size, -1)
                                 for image in np.ascontiguousarray(part)])
            pixels[first:first + len(part)] = part
            first += len(part)
            bar.update(len(part))
    return pixels


def is_grey(images: Tensor) -> bool:
    """Whether the three channels of all images are the same."""
    return images.shape[1] == 3 and all((part == part[:, :1]).all() for part in images.split(1024))
