"""The images that a script works on after the training: loaded, checked against the VQ-VAE, and chosen."""
import argparse
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dataset
from dataset import Data
from loading import arrays, decode, folder
from loading.reading import Fit, Reading
from running.cli import UserError
from training import checkpoint


class Found(NamedTuple):
    images: Tensor        # (N, C, H, W) uint8
    files: Sequence[str]  # the path of each image's file; empty where images are of no files
    of_split: bool        # whether they are a test split


def load(args: argparse.Namespace, stored: dict[str, Any], reading: Reading | None = None) -> Data:
    """The data set that DATASET, DATA_DIR and LIMIT name, with test images of the size that the VQ-VAE was trained on.

    stored: the VQ-VAE's checkpoint. reading: how files become images; None: as in the training.
    UserError if there is no such data set or its images do not fit.
    """
    reading = reading or Reading(**stored["data"]["reading"])
    data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading)
    checkpoint.check_images(stored, data.test.images)
    return data


def find(args: argparse.Namespace, stored: dict[str, Any], channels: int | str, any_size: bool = True) -> Found:
    """The images of DATASET: a test split, or all images of a file or of a folder that the VQ-VAE was not trained on,
    brought to IMAGE_SIZE and these channels: 1, 3 or "auto". UserError if there are none, or they do not fit.

    IMAGE_SIZE of None: of a folder as in the training, of a file see `read_file`.
    any_size: whether images of a file or such a folder fit whatever their size and channels; a test split never does.
    """
    path, learnt = Path(args.DATASET), Path(stored["data"]["dataset"])
    reading = Reading(**stored["data"]["reading"])
    if args.IMAGE_SIZE:
        reading = reading._replace(image_size=args.IMAGE_SIZE)
    named = args.DATASET in dataset.NAMES
    is_array = arrays.are_at(args.DATASET)
    moved = path.is_dir() and not named and not is_array and path.resolve() != learnt.resolve()
    if path.is_file() and not is_array:
        images = read_own(args, stored, args.IMAGE_SIZE, channels)
        found = Found(images, [args.DATASET] * len(images), of_split=False)
    elif moved and not holds_training_images(args, stored):
        foreign = reading._replace(channels=channels, value_range=stored["data"].get("value_range", "auto"))
        try:
            whole = folder.load(args.DATASET, args.DATA_DIR, foreign)
        except UserError:  # it need not have classes and splits; any other error is raised again
            whole = folder.load(args.DATASET, args.DATA_DIR, foreign._replace(classes="none"))
        images = whole.images[:args.LIMIT or None]
        found = Found(images, [str(path / name) for name in whole.files[:len(images)]], of_split=False)
    else:
        if moved:
            print(f"{args.DATASET} holds the training images of this run: taking its test split")
        data = load(args, stored, reading)
        return Found(data.test.images, [str(path / name) for name in data.test_files], of_split=True)
    if not any_size:
        remedy = ": add --image-size {height}x{width} --channels {channels}".format_map(stored["data"])
        checkpoint.check_images(stored, images, remedy)
    if moved:
        print(f"DATASET (--dataset): {args.DATASET} does not hold the training images of this run, those of {learnt}: "
              f"taking all {len(images)} images", file=sys.stderr)
    return found


def read_own(args: argparse.Namespace, stored: dict[str, Any], image_size: str | None = None,
             channels: int | str = "auto") -> Tensor:
    """The images of the file DATASET, by `read_file`. A line says what the VQ-VAE has learnt, if about.txt beside its
    weights tells that.
    """
    about = Path(checkpoint.weights_dir(args), "about.txt")
    if about.is_file():
        print(f"the VQ-VAE has learnt {' '.join(about.read_text(errors='replace').split())}; CROP (--crop) and INVERT "
              f"(--invert) bring an image nearer to that")
    return read_file(args.DATASET, stored, image_size, channels, args.CROP, args.INVERT)


def read_file(path: str, stored: dict[str, Any], image_size: str | None = None, channels: int | str = "auto",
              crop: str = "", invert: bool = False) -> Tensor:
    """The images (N, C, H, W) of one file, brought to image_size and channels, by default those of the training, with a
    line that says so; their values are scaled as those of the training.

    crop: left, top and size of the square to take, in the file's own pixels. invert: light becomes dark.
    UserError if the file cannot be decoded, or the square is not inside.
    """
    data = stored["data"]
    own = Reading(**data["reading"])._replace(image_size="auto", channels="auto",
                                              value_range=data.get("value_range", "auto"))
    wanted = own._replace(image_size="{height}x{width}".format_map(data) if image_size is None else image_size,
                          channels=data["channels"] if channels == "auto" else channels)
    before = decode.read(path, own)
    height, width = before.shape[2:]
    if crop or invert:
        left, top, size = map(int, crop.split()) if crop else (0, 0, 0)
        if left + size > width or top + size > height:
            raise UserError(f"CROP (--crop) of {crop!r} is not inside {path}, which is {width} wide and {height} high")
        part = before[..., top:top + size, left:left + size] if crop else before
        part = (255 - part if invert else part).permute(0, 2, 3, 1).numpy()
        fit = Fit(*wanted.size) if wanted.size else None
        parts = [decode.fitted(Image.fromarray(image.squeeze()), wanted, fit) for image in part]
        images = torch.from_numpy(np.stack([np.atleast_3d(image) for image in parts])).permute(0, 3, 1, 2)
    else:
        images = decode.read(path, wanted)
    if images.shape != before.shape:
        kinds = ["{1}x{0} pixels (width x height) and {2}".format(*sides, "grey" if count == 1 else "RGB")
                 for _, count, *sides in (before.shape, images.shape)]
        print(f"{path}: of {kinds[0]}, scaled and cropped to {kinds[1]}")
    shape = decode.peek(path, own)
    if shape and "alpha" in shape.marks:
        print(f"{path}: transparency became {'black' if invert else 'white'}")
    return images


def holds_training_images(args: argparse.Namespace, stored: dict[str, Any]) -> bool:
    """Whether a folder holds the images of the training under another path: it was moved, or is a copy."""
    reading = Reading(**stored["data"]["reading"])
    try:
        with redirect_stderr(io.StringIO()):  # the images are loaded again, which says it all
            data = dataset.load(args.DATASET, args.DATA_DIR, stored["data"]["limit"], reading)
    except UserError:  # not even a data set by the rules of the training
        return False
    return dataset.digest(data.train) == stored.get("images")


def check_enough(images: Tensor, wanted: int) -> None:
    """UserError if there are fewer test images than NUM_IMAGES wants."""
    if wanted > len(images):
        raise UserError(f"NUM_IMAGES (--num-images) of {wanted} is more than the {len(images)} test images")


def choose(images: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images drawn without replacement, or of all of them in random order if there are fewer."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
