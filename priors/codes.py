"""Grids of codes: from images and back, measures, their likelihood under a prior, and codes drawn without one.

The codes of images are a list: a grid (N, grid height, grid width) for each level of the VQ-VAE, coarse first.
"""
import math
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dataset
from modules import VQVAE
from priors import masked
from priors.masked import Masked
from running import devices
from running.progress import Bar

PIXELS = 2**19  # that go through the encoder or the decoder at once


@torch.no_grad()
def encode(model: VQVAE, images: Tensor, change: Callable[[Tensor], Tensor] = lambda images: images) -> list[Tensor]:
    """The codes of uint8 images (N, C, H, W), on the host, in the smallest integers that hold them.

    change: what is done to every batch of images before it is encoded.
    """
    dtype = torch.uint8 if model.config.num_codes <= 256 else torch.int16
    height, width = images.shape[2:]
    indices = torch.arange(len(images)).split(max(1, PIXELS // (height * width)))
    parts = dataset.batches(indices, next(model.parameters()).device, images)
    codes = [torch.empty((len(images), *grid), dtype=dtype) for grid in model.grids(height, width)]
    for index, (part,) in zip(Bar(indices, desc="encoding", disable=not devices.is_main()), parts):
        for level, grids in zip(codes, model.encode(dataset.to_float(change(part)))):
            level[index] = grids.to("cpu", dtype)
    return codes


def augmented_codes(model: VQVAE, images: Tensor, how: str, seed: int, epoch: int) -> list[Tensor]:
    """The codes of uint8 images as `dataset.augment` changes them, by a chance of seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return encode(model, images, lambda batch: dataset.augment(batch, how, generator))


@torch.no_grad()
def to_images(model: VQVAE, codes: list[Tensor], height: int, width: int) -> Tensor:
    """The images (N, C, height, width) in [0, 1] of codes, on the host."""
    parts = zip(*(level.split(max(1, PIXELS // (height * width))) for level in codes))
    return torch.cat([model.decode(part, height, width).cpu() for part in parts])


def warn_if_unused(metrics: dict[str, float]) -> None:
    """Say how much of a codebook is in use, where that is less than half. metrics: of the test split."""
    used = min(metrics["codes_used"], metrics.get("coarse_codes_used", 1))
    if used < 0.5 and devices.is_main():
        print(f"only {used:.0%} of a codebook is in use: try --codebook ema, or a higher --revive-below",
              file=sys.stderr)


def psnr(mse: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over pixels in [0, 1]; at most 120."""
    return -10 * math.log10(max(mse, 1e-12))


def perplexity(counts: Tensor) -> float:
    """exp(entropy) of the code frequencies: the number of codes in even use, from 1 to K. counts: (K,)."""
    counts = counts.cpu().double()
    frequency = counts / counts.sum().clamp_min(1)
    return torch.special.entr(frequency).sum().exp().item()


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """Mean negative log-likelihood in nats per code, a scalar. logits: (B, K, H, W); codes: (B, H, W)."""
    # as rows of K, which channels-last logits are already: a softmax over dimension 1 would copy them
    return F.cross_entropy(logits.permute(0, 2, 3, 1).flatten(0, 2), codes.flatten())


@torch.no_grad()
def surprise(model: nn.Module, codes: Tensor, labels: Tensor, *coarse: Tensor) -> Tensor:
    """-log2 p(code | codes before it, class), in bits, of every code of grids (B, H, W): float32 (B, H, W).

    model: a prior in eval mode that predicts codes in raster order, given the coarse codes (B, H / 2, W / 2) if there
    are any. labels: (B,), `num_classes` for no class.
    """
    codes = codes.long()
    return F.cross_entropy(model(codes, labels, *coarse).float(), codes, reduction="none") / math.log(2)


@torch.no_grad()
def nll_sums(model: nn.Module, codes: Tensor, labels: Tensor, indices: Sequence[Tensor],
             *coarse: Tensor) -> dict[str, Tensor]:
    """How many of codes (N, H, W) the indices name, and their sum of negative log-likelihoods in nats per code, given
    the coarse codes (N, H / 2, W / 2) if there are any.
    """
    model.eval()
    device = next(model.parameters()).device
    totals = {"count": torch.zeros((), device=device), "nll": torch.zeros((), device=device)}
    for part, label, *given in dataset.batches(indices, device, codes, labels, *coarse):
        totals["count"] += len(part)
        part, given = part.long(), [grid.long() for grid in given]
        totals["nll"] += cross_entropy(model(part, label, *given), part) * len(part)
    return totals


@torch.no_grad()
def hidden_sums(model: Masked, codes: Tensor, labels: Tensor, indices: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sums for `masked.summarise` of a masked prior in eval mode over the codes (N, H, W) that the indices name."""
    hidden = masked.fixed_masks(len(codes), *codes.shape[1:])
    parts = dataset.batches(indices, next(model.parameters()).device, codes, labels, hidden)
    return {"hidden": sum(masked.terms(model, part.long(), *more)["hidden"] for part, *more in parts)}


@torch.no_grad()
def completion_bits(model: nn.Module, codes: Tensor, labels: Tensor, given: Tensor, steps: int,
                    *coarse: Tensor) -> Tensor:
    """What the codes (B, H, W) that are not given take in bits (B,), as a completion would draw them; given: (H, W);
    coarse: codes (B, H / 2, W / 2) that the model is conditioned on, if it is.

    A masked prior has each from the given codes and those of earlier rounds, of which there are `steps`; any other
    prior from the codes before it in raster order, given or not.
    """
    if isinstance(model, Masked):
        return masked.nats_in_rounds(model, codes, labels, given.expand_as(codes), steps) / math.log(2)
    return surprise(model, codes, labels, *coarse)[:, ~given].sum(1)


def marginals(codes: list[Tensor], num_codes: int) -> dict[str, list[Tensor]]:
    """What independent codes are drawn from: for each prior by name, and each level, the probabilities (H, W, K) of
    every code at every position, from training codes. One is added to every count, so that no code has probability 0.
    """
    found: dict[str, list[Tensor]] = {"per-position marginal": [], "marginal": [], "uniform codes": []}
    for level in codes:
        count, height, width = level.shape
        offsets = torch.arange(height * width) * num_codes
        counts = sum(torch.bincount((part.flatten(1).long() + offsets).flatten(), minlength=height * width * num_codes)
                     for part in level.split(4096)).view(height, width, num_codes).double()
        whole = counts.sum((0, 1)) + 1
        found["per-position marginal"].append((counts + 1) / (count + num_codes))
        found["marginal"].append((whole / whole.sum()).expand_as(counts))
        found["uniform codes"].append(torch.full_like(counts, 1 / num_codes))
    return found


def bits_per_image(probabilities: list[Tensor], codes: list[Tensor]) -> float:
    """Mean bits that an image's codes take under independent probabilities (H, W, K) for every level."""
    total = 0.0
    for chances, level in zip(probabilities, codes):
        bits = -chances.flatten(0, 1).log2()
        total += bits[torch.arange(len(bits)), level.flatten(1).long()].sum(1).mean().item()
    return total


def draw_independent(probabilities: list[Tensor], count: int, seed: int) -> list[Tensor]:
    """The codes of `count` images drawn from independent probabilities (H, W, K) for every level."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.multinomial(level.flatten(0, 1), count, replacement=True, generator=generator)
             for level in probabilities]
    return [codes.T.reshape(count, *level.shape[:2]) for codes, level in zip(drawn, probabilities)]


def distinct(codes: list[Tensor]) -> float:
    """The share of distinct ones among the codes of N images: 1 if no two are the same."""
    whole = torch.cat([level.flatten(1) for level in codes], 1)
    return len(whole.unique(dim=0)) / len(whole)
