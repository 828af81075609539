"""Grids of codes: from images and back, measures, their likelihood under a prior, and codes drawn without one."""
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
def encode(model: VQVAE, images: Tensor, change: Callable[[Tensor], Tensor] = lambda images: images) -> Tensor:
    """Codes (N, grid height, grid width) of uint8 images (N, C, H, W), on the host, in the smallest integers that hold
    them.

    change: what is done to every batch of images before it is encoded.
    """
    dtype = torch.uint8 if model.config.num_codes <= 256 else torch.int16
    height, width = images.shape[2:]
    indices = torch.arange(len(images)).split(max(1, PIXELS // (height * width)))
    parts = dataset.batches(indices, next(model.parameters()).device, images)
    codes = torch.empty((len(images), *model.grid(height, width)), dtype=dtype)
    for index, (part,) in zip(Bar(indices, desc="encoding", disable=not devices.is_main()), parts):
        codes[index] = model.encode(dataset.to_float(change(part))).to("cpu", dtype)
    return codes


def augmented_codes(model: VQVAE, images: Tensor, how: str, seed: int, epoch: int) -> Tensor:
    """The codes of uint8 images as `dataset.augment` changes them, by a chance of seed and epoch alone."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return encode(model, images, lambda batch: dataset.augment(batch, how, generator))


@torch.no_grad()
def to_images(model: VQVAE, codes: Tensor, height: int, width: int) -> Tensor:
    """The images (N, C, height, width) in [0, 1] of codes, on the host."""
    parts = codes.split(max(1, PIXELS // (height * width)))
    return torch.cat([model.decode(part, height, width).cpu() for part in parts])


def warn_if_unused(metrics: dict[str, float]) -> None:
    """Say how much of the codebook is in use, where that is less than half. metrics: of the test split."""
    used = metrics["codes_used"]
    if used < 0.5 and devices.is_main():
        print(f"only {used:.0%} of the codebook is in use: try --codebook ema, or a higher --revive-below",
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
def surprise(model: nn.Module, codes: Tensor, labels: Tensor) -> Tensor:
    """-log2 p(code | codes before it, class), in bits, of every code of grids (B, H, W): float32 (B, H, W).

    model: a prior in eval mode that predicts codes in raster order. labels: (B,), `num_classes` for no class.
    """
    codes = codes.long()
    return F.cross_entropy(model(codes, labels).float(), codes, reduction="none") / math.log(2)


@torch.no_grad()
def nll_sums(model: nn.Module, codes: Tensor, labels: Tensor, indices: Sequence[Tensor]) -> dict[str, Tensor]:
    """How many of codes (N, H, W) the indices name, and their sum of negative log-likelihoods in nats per code."""
    model.eval()
    device = next(model.parameters()).device
    totals = {"count": torch.zeros((), device=device), "nll": torch.zeros((), device=device)}
    for part, label in dataset.batches(indices, device, codes, labels):
        totals["count"] += len(part)
        totals["nll"] += cross_entropy(model(part.long(), label), part.long()) * len(part)
    return totals


@torch.no_grad()
def hidden_sums(model: Masked, codes: Tensor, labels: Tensor, indices: Sequence[Tensor]) -> dict[str, Tensor]:
    """Sums for `masked.summarise` of a masked prior in eval mode over the codes (N, H, W) that the indices name."""
    hidden = masked.fixed_masks(len(codes), *codes.shape[1:])
    parts = dataset.batches(indices, next(model.parameters()).device, codes, labels, hidden)
    return {"hidden": sum(masked.terms(model, part.long(), *more)["hidden"] for part, *more in parts)}


@torch.no_grad()
def completion_bits(model: nn.Module, codes: Tensor, labels: Tensor, given: Tensor, steps: int) -> Tensor:
    """What the codes (B, H, W) that are not given take in bits (B,), as a completion would draw them; given: (H, W).

    A masked prior has each from the given codes and those of earlier rounds, of which there are `steps`; any other
    prior from the codes before it in raster order, given or not.
    """
    if isinstance(model, Masked):
        return masked.nats_in_rounds(model, codes, labels, given.expand_as(codes), steps) / math.log(2)
    return surprise(model, codes, labels)[:, ~given].sum(1)


def marginals(codes: Tensor, num_codes: int) -> dict[str, Tensor]:
    """What independent codes are drawn from: for each prior by name the probabilities (H, W, K) of every code at every
    position, from training codes (N, H, W). One is added to every count, so that no code has probability 0.
    """
    count, height, width = codes.shape
    offsets = torch.arange(height * width) * num_codes
    counts = sum(torch.bincount((part.flatten(1).long() + offsets).flatten(), minlength=height * width * num_codes)
                 for part in codes.split(4096)).view(height, width, num_codes).double()
    whole = counts.sum((0, 1)) + 1
    return {"per-position marginal": (counts + 1) / (count + num_codes),
            "marginal": (whole / whole.sum()).expand_as(counts),
            "uniform codes": torch.full_like(counts, 1 / num_codes)}


def bits_per_image(probabilities: Tensor, codes: Tensor) -> float:
    """Mean bits that an image's codes (N, H, W) take under independent probabilities (H, W, K)."""
    bits = -probabilities.flatten(0, 1).log2()
    return bits[torch.arange(len(bits)), codes.flatten(1).long()].sum(1).mean().item()


def draw_independent(probabilities: Tensor, count: int, seed: int) -> Tensor:
    """The codes (count, H, W) of images drawn from independent probabilities (H, W, K)."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.multinomial(probabilities.flatten(0, 1), count, replacement=True, generator=generator)
    return codes.T.reshape(count, *probabilities.shape[:2])


def distinct(codes: Tensor) -> float:
    """The share of distinct ones among the codes (N, H, W) of images: 1 if no two are the same."""
    return len(codes.flatten(1).unique(dim=0)) / len(codes)
