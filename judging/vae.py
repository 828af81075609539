"""A plain VAE [1] as the baseline of a VQ-VAE with its prior: the same encoder and decoder, but one Gaussian latent z.

Linear layers map the encoder's output to the mean and log-variance of z, and z to the decoder's input. The prior is
standard normal. The likelihood is Gaussian with one variance for all pixels, at its optimum for the batch, the mean
squared error [2]. The rate KL(q(z | image) || p(z)) compares with the bits of an image's codes under a prior over them.

Papers, cited by number in the code:
[1] Kingma and Welling, Auto-Encoding Variational Bayes, 2013, arXiv:1312.6114
[2] Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders, 2021, arXiv:2006.13202
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from modules import grid_size, make_decoder, make_encoder, pad

ROUNDING = 1 / (12 * 255**2)  # variance of rounding to 8 bits: no likelihood is narrower


class Output(NamedTuple):
    """A batch through the whole VAE."""

    images: Tensor           # (B, C, H, W), the size of the input; not clipped to [0, 1]
    mean: Tensor             # (B, latent_dim) of q(z | image)
    log_variance: Tensor     # (B, latent_dim) of q(z | image)


@dataclass
class VAEConfig:
    """The sizes of a VAE, from which a checkpoint rebuilds it; up to code_dim they are those of the VQ-VAE."""

    channels: int
    hidden: int
    residual_blocks: int
    residual_hidden: int
    downsample: int
    code_dim: int      # channels of the map between the encoder and the latent
    latent_dim: int    # size of z
    height: int        # of the images
    width: int
    architecture: str = "paper"


class VAE(nn.Module):
    """The VAE of [1] for images (B, channels, height, width) with pixels in [0, 1].

    As in the VQ-VAE, images are padded to a multiple of `downsample` and the output is cropped.
    """

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.map = config.code_dim, *grid_size(config.height, config.width, config.downsample)
        self.encoder = make_encoder(config)
        self.to_latent = nn.Linear(math.prod(self.map), 2 * config.latent_dim)
        self.from_latent = nn.Linear(config.latent_dim, math.prod(self.map))
        self.decoder = make_decoder(config)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (B, latent_dim) of q(z | image)."""
        features = self.encoder(pad(images, self.config.downsample))
        return self.to_latent(features.flatten(1)).float().chunk(2, 1)

    def decode(self, z: Tensor) -> Tensor:
        """z (B, latent_dim) to images (B, channels, height, width) clipped to [0, 1]."""
        return self._paint(z).clamp(0, 1)

    def forward(self, images: Tensor, noise: Tensor | None = None) -> Output:
        """noise: (B, latent_dim) standard normal, with which z is drawn ([1], eq. 10); None: z is the mean."""
        mean, log_variance = self.encode(images)
        z = mean if noise is None else mean + (log_variance / 2).exp() * noise
        return Output(self._paint(z), mean, log_variance)

    def _paint(self, z: Tensor) -> Tensor:
        features = self.from_latent(z).view(len(z), *self.map)
        return self.decoder(features)[:, :, :self.config.height, :self.config.width]


def kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over the latent ([1], appendix B): (B, latent_dim) to (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def distortion(mse: Tensor, variance: Tensor, pixels: int) -> Tensor:
    """-log p(image | z) in nats per image under a Gaussian of that variance for every pixel; both are scalars, and mse
    is the mean over images of that many pixels.
    """
    variance = variance.clamp_min(ROUNDING)
    return pixels / 2 * (mse / variance + (2 * math.pi * variance).log())
