"""The validation images' codes under a prior, which score.py compares others with: measured, or kept by share.py.

The surprise of a code is -log2 p(code | codes before it), in bits, without a class: see `classless_surprise`.
"""
import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import dataset
from judging import testset
from modules import VQVAE
from priors import runs
from priors.codes import marginals, surprise
from running.cli import UserError
from running.progress import Bar

SHARES = np.linspace(0, 1, 1001)  # of which the quantiles are kept
MOST_CLASSES = 16                 # up to which the likelihood is the mean over the classes
VERSION = 3                       # change it with anything that changes what `keep` returns for the same images


class Networks(NamedTuple):
    vqvae: VQVAE
    prior: nn.Module
    classes: Tensor | None  # (C,) the weight of each class: see `class_shares`
    device: torch.device
    batch_size: int


class Coded(NamedTuple):
    """What the networks make of N images, on the host."""

    codes: Tensor     # (N, grid height, grid width), int64
    surprise: Tensor  # of each code, in bits: the same shape
    labels: Tensor    # (N,) the likeliest class of each image, `num_classes` for none
    mse: Tensor       # (N,) error of the reconstructions, of pixels in [0, 1]


class Expected(NamedTuple):
    """What other images are compared with, of N validation images."""

    bits: Tensor       # (N,)
    threshold: float   # bits above which a code is unlikely
    code_bits: Tensor  # (K,) of each code by its frequency alone, wherever it stands


@torch.no_grad()
def code(networks: Networks, images: Tensor, description: str, turn: int = 0) -> Coded:
    """Surprise and error of uint8 images (N, C, H, W), turned by so many quarters. description: of the progress bar."""
    found = []
    indices = torch.arange(len(images)).split(networks.batch_size)
    bar = Bar(dataset.batches(indices, networks.device, images), desc=description, total=len(indices))
    for [part] in bar:
        originals = dataset.to_float(part).rot90(turn, (2, 3))
        codes = networks.vqvae.encode(originals)
        copies = networks.vqvae.decode(codes, *originals.shape[2:])
        errors = (copies - originals).square().mean((1, 2, 3))
        found.append((codes.cpu(), *classless_surprise(networks.prior, networks.classes, codes), errors.cpu()))
    return Coded(*map(torch.cat, zip(*found)))


def classless_surprise(prior: nn.Module, classes: Tensor | None, codes: Tensor) -> tuple[Tensor, Tensor]:
    """-log2 p(code | codes before it), in bits, of every code of grids (B, H, W), float32 (B, H, W), and the likeliest
    class (B,) of each grid. Both on the host.

    classes: the weights (C,) of the classes: p(codes) is the mean of p(codes | class) by these, and p(code | codes
    before it) the ratio of two such means. None: the prior's own probabilities without a class, which it learnt in few
    of its steps; then the class is `num_classes`.
    """
    if classes is None:
        labels = torch.full((len(codes),), prior.num_classes, device=codes.device)
        return surprise(prior, codes, labels).cpu(), labels.cpu()
    given = torch.stack([surprise(prior, codes, torch.full((len(codes),), label, device=codes.device)).cpu()
                         for label in range(len(classes))])
    nats = given.flatten(2).double().cumsum(2) * math.log(2)  # of the codes so far, given each class
    joint = classes.log()[:, None, None] - nats
    bits = -joint.logsumexp(0) / math.log(2)
    return bits.diff(dim=1, prepend=bits.new_zeros(len(codes), 1)).view(codes.shape).float(), joint[:, :, -1].argmax(0)


def class_shares(prior: dict[str, Any]) -> Tensor | None:
    """The share (C,), float64, of each class in the training of a prior, of which this is the checkpoint. None if the
    prior scores without a class: it learnt none, more than MOST_CLASSES, or with a CLASS_DROPOUT of 1.
    """
    names = prior["data"]["class_names"]
    if not 0 < len(names) <= MOST_CLASSES or runs.class_dropout(prior) == 1:
        return None
    counts = torch.tensor(runs.class_counts(prior), dtype=torch.float64)
    return counts / counts.sum()


def lacks_for_scores(prior: dict[str, Any]) -> str:
    """Why a prior, of which this is the checkpoint, cannot score an image; "" if it can."""
    if prior["stage"] == "masked":
        return "masked.pt has no likelihood to score by"
    if prior["data"]["class_names"] and class_shares(prior) is None and runs.class_dropout(prior) == 0:
        return f"{prior['stage']}.pt had a CLASS_DROPOUT of 0, so it cannot score without a class"
    return ""


def validation_images(args: argparse.Namespace, stored: dict[str, Any]) -> Tensor:
    """The validation split of the VQ-VAE's training, which is also its prior's: from the data set that it names, or
    from DATASET if that is its folder in another place. UserError if it cannot be loaded.
    """
    moved = Path(args.DATASET).is_dir() and testset.holds_training_images(args, stored)
    learnt = {"DATASET": args.DATASET if moved else stored["data"]["dataset"], "LIMIT": stored["data"]["limit"]}
    try:
        return testset.load(argparse.Namespace(**vars(args) | learnt), stored).validation.images
    except UserError as error:
        raise UserError(f"an image is compared with the validation images of the training, which need its data set: "
                        f"{error}") from None


def code_bits(codes: Tensor, num_codes: int) -> Tensor:
    """Bits (K,) of each code if codes are independent and as frequent as in these (N, H, W)."""
    return -marginals(codes, num_codes)["marginal"][0, 0].log2().float()


def expect(coded: Coded, num_codes: int, quantile: float) -> Expected:
    """The bits of validation images, the threshold, a quantile of the surprise of all their codes, and `code_bits`."""
    # numpy's quantile, as torch's takes at most 2^24 numbers
    return Expected(coded.surprise.sum((1, 2)), float(np.quantile(coded.surprise.numpy(), quantile)),
                    code_bits(coded.codes, num_codes))


def keep(coded: Coded, num_codes: int) -> dict[str, Any]:
    """What `recall` needs in the place of the validation images: the bits (N,) of each, in rising order, the quantiles
    (1001,) of the surprise of all their codes, and the `code_bits` (K,); and VERSION.
    """
    quantiles = np.quantile(coded.surprise.numpy(), SHARES).astype(np.float32)
    return {"score_version": VERSION, "bits": coded.surprise.sum((1, 2)).sort().values,
            "surprise": torch.from_numpy(quantiles), "code_bits": code_bits(coded.codes, num_codes)}


def is_kept(prior: dict[str, Any]) -> bool:
    """Whether a prior's checkpoint has what `keep` returns in this version."""
    kept = prior.get("expected")
    version = kept.get("score_version") if isinstance(kept, dict) else None
    return type(version) is int and version == VERSION


def recall(prior: dict[str, Any], quantile: float) -> Expected:
    """What `expect` gave, to the nearest of 1001 quantiles, from a prior's checkpoint that keeps it; UserError if that
    is damaged.
    """
    shapes = {"bits": (-1,), "surprise": SHARES.shape, "code_bits": (prior["config"]["num_codes"],)}
    try:
        found = [prior["expected"][name].view(shape) for name, shape in shapes.items()]
        if not len(found[0]) or not all(part.dtype == torch.float32 and part.isfinite().all() for part in found):
            raise ValueError
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"what {prior['stage']}.pt keeps of the validation images is damaged: share the run again"
                        ) from None
    bits, quantiles, by_frequency = found
    return Expected(bits, float(np.interp(quantile, SHARES, quantiles.numpy())), by_frequency)
