"""The images that a script works on after the training: loaded, checked against the VQ-VAE, and chosen."""
import argparse
from typing import Any

import torch
from torch import Tensor

import checkpoint
import dataset
from cli import UserError
from dataset import Data
from decode import Reading


def load(args: argparse.Namespace, stored: dict[str, Any], reading: Reading | None = None) -> Data:
    """The data set that DATASET, DATA_DIR and LIMIT name, with test images of the size that the VQ-VAE was trained on.

    stored: the VQ-VAE's checkpoint. reading: how files become images; None: as in the training.
    UserError if there is no such data set or its images do not fit.
    """
    reading = reading or Reading(**stored["data"]["reading"])
    data = dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading)
    checkpoint.check_images(stored, data.test.images)
    return data


def check_enough(images: Tensor, wanted: int) -> None:
    """UserError if there are fewer test images than NUM_IMAGES wants."""
    if wanted > len(images):
        raise UserError(f"NUM_IMAGES (--num-images) of {wanted} is more than the {len(images)} test images")


def choose(images: Tensor, count: int, seed: int) -> Tensor:
    """Indices of `count` images drawn without replacement, or of all of them in random order if there are fewer."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
