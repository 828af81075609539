"""What validation images are like under a prior, which score.py compares others with: measured, or kept by share.py.

The surprise of a code is -log2 p(code | codes before it), in bits and without a class.
"""
import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import dataset
import testset
from cli import UserError
from codes import marginals, surprise
from decode import Reading
from modules import VQVAE

SHARES = np.linspace(0, 1, 1001)  # of which the quantiles are kept


class Networks(NamedTuple):
    vqvae: VQVAE
    prior: nn.Module
    device: torch.device
    batch_size: int


class Coded(NamedTuple):
    """What the networks make of N images, on the host."""

    codes: Tensor     # (N, grid height, grid width), int64
    surprise: Tensor  # of each code, in bits: the same shape
    mse: Tensor       # (N,) error of the reconstructions, of pixels in [0, 1]


class Expected(NamedTuple):
    """What the validation images are like."""

    bits: Tensor       # (N,)
    threshold: float   # bits above which a code is unlikely
    code_bits: Tensor  # (K,) of each code by its frequency alone, wherever it stands


@torch.no_grad()
def code(networks: Networks, images: Tensor, description: str) -> Coded:
    """Surprise and error of uint8 images (N, C, H, W). description: of the progress bar."""
    grids, surprises, errors = [], [], []
    indices = torch.arange(len(images)).split(networks.batch_size)
    bar = tqdm(dataset.batches(indices, networks.device, images), desc=description, total=len(indices), leave=False)
    for [part] in bar:
        originals = dataset.to_float(part)
        [codes] = levels = networks.vqvae.encode(originals)
        copies = networks.vqvae.decode(levels, *originals.shape[2:])
        grids.append(codes.cpu())
        surprises.append(surprise(networks.prior, codes, no_class(networks.prior, codes)).cpu())
        errors.append((copies - originals).square().mean((1, 2, 3)).cpu())
    return Coded(torch.cat(grids), torch.cat(surprises), torch.cat(errors))


def no_class(prior: nn.Module, codes: Tensor) -> Tensor:
    """The labels (B,) that say "no class" to a prior, for grids of codes (B, H, W)."""
    return torch.full((len(codes),), prior.num_classes, device=codes.device)


def lacks_for_scores(prior: dict[str, Any]) -> str:
    """Why a prior over one level of codes, of which this is the checkpoint, cannot score an image; "" if it can."""
    if prior["stage"] == "masked":
        return "masked.pt has no likelihood to score by"
    if prior["data"]["class_names"] and checkpoint.class_dropout(prior) == 0:
        return f"{prior['stage']}.pt had a CLASS_DROPOUT of 0, so it cannot score without a class"
    return ""


def validation_images(args: argparse.Namespace, stored: dict[str, Any]) -> Tensor:
    """The validation split of the VQ-VAE's training, which is also its prior's: from the data set that it names, or
    from DATASET if that is its folder in another place. UserError if they are not to be had.
    """
    learnt, moved = stored["data"]["dataset"], testset.holds_training_images
    names = {"DATASET": args.DATASET if Path(args.DATASET).is_dir() and moved(args, stored) else learnt,
             "LIMIT": stored["data"]["limit"]}
    reading = Reading(**stored["data"]["reading"])._replace(channels=stored["data"]["channels"])
    try:
        return testset.load(argparse.Namespace(**vars(args) | names), stored, reading).validation.images
    except UserError as error:
        raise UserError(f"an image is compared with the validation images of the training, which need its data set: "
                        f"{error}") from None


def code_bits(codes: Tensor, num_codes: int) -> Tensor:
    """What each of K codes takes in bits (K,) if codes are independent and as frequent as in these (N, H, W)."""
    [probabilities] = marginals([codes], num_codes)["marginal"]
    return -probabilities[0, 0].log2().float()


def expect(coded: Coded, num_codes: int, quantile: float) -> Expected:
    """What the validation images are like; quantile: of the surprise of all their codes, which gives the threshold."""
    # by numpy, as torch's takes at most 2^24 numbers
    return Expected(coded.surprise.sum((1, 2)), float(np.quantile(coded.surprise.numpy(), quantile)),
                    code_bits(coded.codes, num_codes))


def keep(coded: Coded, num_codes: int) -> dict[str, Tensor]:
    """What `recall` needs in the place of the validation images: the bits (N,) of each, in rising order, the quantiles
    (1001,) of the surprise of all their codes, and the `code_bits` (K,).
    """
    surprises = coded.surprise.numpy()
    return {"bits": coded.surprise.sum((1, 2)).sort().values,
            "surprise": torch.from_numpy(np.quantile(surprises, SHARES).astype(np.float32)),
            "code_bits": code_bits(coded.codes, num_codes)}


def recall(prior: dict[str, Any], quantile: float) -> Expected | None:
    """What `expect` gave, to the nearest of 1001 quantiles, from a prior's checkpoint; None if that does not keep it.

    UserError if that is damaged.
    """
    kept = prior.get("expected")
    if kept is None:
        return None
    try:
        bits, quantiles, by_frequency = kept["bits"], kept["surprise"], kept["code_bits"]
        if bits.dim() != 1 or not len(bits) or quantiles.shape != SHARES.shape \
                or by_frequency.shape != (prior["config"]["num_codes"],) \
                or not all(part.is_floating_point() and part.isfinite().all()
                           for part in (bits, quantiles, by_frequency)):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"what {prior['stage']}.pt keeps of the validation images is damaged: share the run again"
                        ) from None
    return Expected(bits, float(np.interp(quantile, SHARES, quantiles.numpy())), by_frequency)
