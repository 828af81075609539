"""Two grids of codes for an image, a coarse one and a fine one that says what the coarse one leaves open [1].

p(codes) = p(coarse) p(fine | coarse): the VQ-VAE has two codebooks, and each grid a prior of its own.

Papers, cited by number in the code:
[1] Razavi et al., Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019, arXiv:1906.00446
"""
import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules import (
    VQVAE,
    PixelCNN,
    PixelCNNConfig,
    Quantized,
    ResidualBlock,
    VectorQuantizer,
    VQVAEConfig,
    grid_size,
    pad,
)
from running import devices
from running.cli import UserError

LEVELS = (1, 2)  # grids of codes that an image may have
NAMES = ("coarse", "fine")
# what a training of the VQ-VAE also tells of the coarse level
PANELS = {"codebook perplexity, coarse level": ["train_coarse_perplexity", "validation_coarse_perplexity"]}
LINE = "; coarse level: perplexity {coarse_perplexity:.1f}, codes used {coarse_codes_used:.1%}"


def prefixes(levels: int) -> Sequence[str]:
    """What the metrics of every level begin with, coarse first."""
    return ("coarse_", "")[-levels:]


def to_train(stored: dict[str, Any], args: argparse.Namespace) -> list[int]:
    """The levels whose prior LEVEL names, coarse first: [0] of a VQ-VAE, of which `stored` is the checkpoint, with one.

    UserError if PRIOR or LEVEL does not fit it.
    """
    names = NAMES[-stored["config"]["levels"]:]
    if args.LEVEL not in ("all", *names):
        raise UserError(f"LEVEL (--level) is {args.LEVEL!r}, but vqvae.pt has one level of codes: leave it at all")
    if args.PRIOR == "masked" and len(names) > 1:
        raise UserError('PRIOR (--prior) of "masked" takes one level of codes, and vqvae.pt has two: choose another')
    if len(names) > 1 and devices.is_main():
        print(f"{args.PRIOR}: the prior of the {' codes, then that of the '.join(names)} codes" if args.LEVEL == "all"
              else f"{args.PRIOR}: the prior of the {args.LEVEL} codes")
    return [level for level, name in enumerate(names) if args.LEVEL in ("all", name)]


def with_given(codes: list[Tensor], level: int) -> list[Tensor]:
    """Of the codes of every level those of one, and then those of the level before it, which its prior is given."""
    return codes[max(0, level - 1):level + 1][::-1]


def make_vqvae(config: VQVAEConfig) -> VQVAE:
    """The VQ-VAE of these sizes, with as many levels as they say. ValueError where they make no network."""
    if config.levels not in LEVELS:
        raise ValueError(f"levels must be one of {', '.join(map(str, LEVELS))}, not {config.levels}")
    return VQVAE(config) if config.levels == 1 else TwoLevelVQVAE(config)


def grid_sizes(height: int, width: int, downsample: int, levels: int) -> list[tuple[int, int]]:
    """Height and width of every level's grid of codes, coarse first, for images of this height and width. A code of the
    last level stands for `downsample` pixels along each side, one of a level before it for 2x2 codes of the next.
    """
    rows, columns = grid_size(height, width, downsample * 2**(levels - 1))
    return [(rows * 2**level, columns * 2**level) for level in range(levels)]


class FineQuantizer(VectorQuantizer):
    """Quantizes differences, which are small and must stay so: nothing is normalised."""

    def normalise(self, z_e: Tensor) -> Tensor:
        return z_e.permute(0, 2, 3, 1)


class TwoLevelVQVAE(VQVAE):
    """A VQ-VAE of two levels ([1], section 3.1 and figure 2).

    The normalised output z of the encoder is itself compressed by a smaller VQ-VAE, `coarse`, to a grid of half the
    size along each side. The fine level quantizes what its output leaves of z, z - given, and the decoder takes `given`
    beside z_q. Images are padded to a multiple of 2 * downsample. [1] has another linear map of both in the place of
    the difference, and no loss for `given`. Here its error, ||given - sg[z]||^2, is part of the coarse level's
    commitment loss. Without it the fine codes soon hold all, and the coarse ones, though in use, nothing: on faces,
    those of another image changed the reconstruction by 0.01 dB.
    """

    def __init__(self, config: VQVAEConfig):
        super().__init__(config, FineQuantizer, given=config.code_dim)
        self.coarse = VQVAE(replace(config, channels=config.code_dim, downsample=2, levels=1))

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        return [self.coarse.quantizer, self.quantizer]

    def grids(self, height: int, width: int) -> list[tuple[int, int]]:
        return grid_sizes(height, width, self.config.downsample, 2)

    def quantize(self, images: Tensor, how: Callable[[VectorQuantizer, Tensor], Quantized] = VectorQuantizer.quantize
                 ) -> tuple[list[Quantized], Tensor]:
        z_e = self.encoder(pad(images, 2 * self.config.downsample))
        z = self.coarse.quantizer.normalise(z_e.float()).permute(0, 3, 1, 2)
        [coarse], z_q = self.coarse.quantize(z, how)
        given = self.coarse.decoder(z_q)
        error = F.mse_loss(given.float(), z.detach())
        coarse = coarse._replace(commitment_loss=coarse.commitment_loss + error)
        fine = how(self.quantizer, z - given)
        return [coarse, fine], torch.cat([fine.z_q, given], 1)

    def look_up(self, codes: list[Tensor]) -> Tensor:
        coarse, fine = codes
        return torch.cat([self.quantizer.look_up(fine), self.coarse.decoder(self.coarse.look_up([coarse]))], 1)


# ---------------------------------------------------------------------------------------------------------
# The prior of the fine grid


class CoarseCodes(nn.Module):
    """What a prior over a fine grid sees of the coarse grid: features for every position of the fine one ([1],
    section 3.2). The coarse codes are all given, so that no convolution here is causal. A coarse code's four fine
    positions have features of their own.
    """

    def __init__(self, num_codes: int, hidden: int, blocks: int = 2):
        super().__init__()
        self.embedding = nn.Embedding(num_codes, hidden)
        self.layers = nn.Sequential(*(ResidualBlock(hidden, hidden) for _ in range(blocks)), nn.ReLU(),
                                    nn.Conv2d(hidden, 4 * hidden, 1), nn.PixelShuffle(2))

    def forward(self, codes: Tensor) -> Tensor:
        """Coarse codes (B, H, W) to features (B, hidden, 2H, 2W)."""
        return self.layers(self.embedding(codes).permute(0, 3, 1, 2))


class FinePixelCNN(PixelCNN):
    """A PixelCNN over a fine grid: the coarse grid is one more term of the gates, by a 1x1 convolution a layer."""

    def __init__(self, config: PixelCNNConfig):
        super().__init__(config)
        self.coarse = CoarseCodes(config.coarse_codes, config.hidden)
        self.from_coarse = nn.Conv2d(config.hidden, config.layers * 4 * config.hidden, 1, bias=False)

    def conditions(self, labels: Tensor, coarse: Tensor) -> Tensor:
        """coarse: (B, H / 2, W / 2) int64. Returns (B, layers * 4C, H, W)."""
        condition = super().conditions(labels)
        return condition + self.from_coarse(self.coarse(coarse)).to(condition.dtype)


def make_pixelcnn(config: PixelCNNConfig) -> PixelCNN:
    """A PixelCNN over the only grid, the coarse one, or the fine one given the coarse one."""
    return FinePixelCNN(config) if config.coarse_codes else PixelCNN(config)
