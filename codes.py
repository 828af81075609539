"""Grids of codes: from images, their likelihood under a prior, and codes drawn without one."""
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

import dataset
import devices
from modules import VQVAE, cross_entropy


@torch.no_grad()
def encode(model: VQVAE, images: Tensor, at_once: int = 2**19) -> Tensor:
    """The codes (N, grid height, grid width) of uint8 images, on the host, in the smallest integers that hold them.

    at_once: how many pixels go through the encoder together.
    """
    dtype = torch.uint8 if model.config["num_codes"] <= 256 else torch.int16
    height, width = images.shape[2:]
    indices = torch.arange(len(images)).split(max(1, at_once // (height * width)))
    parts = dataset.batches(indices, next(model.parameters()).device, images)
    codes = torch.empty((len(images), *model.grid_size(height, width)), dtype=dtype)
    for index, (part,) in zip(tqdm(indices, desc="encoding", leave=False, disable=not devices.is_main()), parts):
        codes[index] = model.encode(dataset.to_float(part)).to("cpu", dtype)
    return codes


@torch.no_grad()
def nll_sums(model: nn.Module, codes: Tensor, labels: Tensor, indices: Sequence[Tensor]) -> dict[str, Tensor]:
    """How many of codes (N, H, W) the indices name, and their sum of negative log-likelihoods in nats per code."""
    model.eval()
    device = next(model.parameters()).device
    totals = {"count": torch.zeros((), device=device), "nll": torch.zeros((), device=device)}
    for part, label in dataset.batches(indices, device, codes, labels):
        totals["count"] += len(part)
        part = part.long()
        totals["nll"] += cross_entropy(model(part, label), part) * len(part)
    return totals


def marginals(codes: Tensor, num_codes: int) -> dict[str, Tensor]:
    """What independent codes are drawn from: for each prior by name, the probabilities (H, W, K) of every code at every
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
    """Mean bits that a grid of codes (N, H, W) takes under independent probabilities (H, W, K)."""
    bits = -probabilities.flatten(0, 1).log2()
    return bits[torch.arange(len(bits)), codes.flatten(1).long()].sum(1).mean().item()


def draw_independent(probabilities: Tensor, count: int, seed: int) -> Tensor:
    """Grids of codes (count, H, W) drawn from independent probabilities (H, W, K)."""
    generator = torch.Generator().manual_seed(seed)
    height, width = probabilities.shape[:2]
    drawn = torch.multinomial(probabilities.flatten(0, 1), count, replacement=True, generator=generator)
    return drawn.T.reshape(count, height, width)


def distinct(codes: Tensor) -> float:
    """The share of distinct grids among grids of codes (N, H, W): 1 if no two are the same."""
    return len(codes.flatten(1).unique(dim=0)) / len(codes)
