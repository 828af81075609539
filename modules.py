"""The networks: a VQ-VAE that turns images into grids of codes, and a PixelCNN that models those grids.

The encoder halves the image a few times. Every vector of its output `z_e` is replaced by the nearest row of a codebook
(`z_q`; the row's index is the code), and the decoder makes the image from `z_q`. The gated PixelCNN then learns
p(codes) = prod_i p(code_i | codes before it in raster order, class), and `sample` draws new grids from it.

Papers, cited by number in the code:
[1] van den Oord et al., Neural Discrete Representation Learning, 2017, arXiv:1711.00937
[2] van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016, arXiv:1606.05328
[3] Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007
[4] Zeghidour et al., SoundStream, 2021, arXiv:2107.03312 (dead codes replaced by current encoder outputs)
[5] Yu et al., Vector-Quantized Image Modeling with Improved VQGAN, 2021, arXiv:2110.04627 (normalised z_e)
[6] Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598 (labels hidden in training)
[7] Fifty et al., Restructuring Vector Quantization with the Rotation Trick, 2024, arXiv:2410.06424
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DOWNSAMPLES = (2, 4, 8, 16)    # pixels that a code may stand for along each side
ARCHITECTURES = ("space-to-depth", "paper")  # of encoder and decoder
CODEBOOKS = ("ema", "gradient")  # ways in which a codebook may learn
NEAREST_CHUNK = 2**20  # most entries of the distance matrix held at a time: 4 MiB stay in a CPU's cache
REVIVED_USAGE = 5      # a revived code starts with this many times revive_below of an even share


# ---------------------------------------------------------------------------------------------------------
# Quantizer


def nearest_codes(z_e: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest codebook row of every latent vector by squared distance ([1], eq. 1).

    z_e: (N, D); codebook: (K, D). Returns codes (N,) int64 in [0, K) and the squared distances (N,) to them.
    """
    # |z - e|^2 = |z|^2 + |e|^2 - 2 z.e, and |z|^2 is the same for every code: one product and one argmin
    code_norms = codebook.square().sum(1)
    chunk = max(1, NEAREST_CHUNK // len(codebook))
    parts = [torch.addmm(code_norms, part, codebook.T, alpha=-2).min(1) for part in z_e.split(chunk)]
    codes = torch.cat([part.indices for part in parts])
    distances = torch.cat([part.values for part in parts]) + z_e.square().sum(1)
    return codes, distances.clamp_min(0)


def rotate(z_e: Tensor, z_q: Tensor) -> Tensor:
    """z_q (..., D), with a gradient for z_e (..., D) that is turned as z_q is turned against it ([7], section 4.2).

    z_q = s R z_e, where the scale s and the rotation R are constants, R x = x - 2 w (w.x) + 2 q (u.x), with u, q and w
    the directions of z_e, z_q and u + q.
    """
    u, q = (F.normalize(part.detach(), dim=-1) for part in (z_e, z_q))
    w = F.normalize(u + q, dim=-1)
    scale = z_q.detach().norm(dim=-1, keepdim=True) / z_e.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return scale * (z_e - 2 * (z_e * w).sum(-1, keepdim=True) * w + 2 * (z_e * u).sum(-1, keepdim=True) * q)


def draw_rows(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """(count, D) rows drawn with replacement in proportion to their weights (N,), by inverting the cumulative sum."""
    sums = (weights.to(torch.float32 if weights.device.type == "mps" else torch.float64) + 1e-12).cumsum(0)
    points = torch.rand(count, dtype=sums.dtype, device=rows.device) * sums[-1]
    return rows[torch.searchsorted(sums, points).clamp_max(len(rows) - 1)]


class Quantized(NamedTuple):
    """What the quantizer makes of a batch; every loss is a mean over the elements of `z_e`."""

    z_q: Tensor              # (B, D, H, W) the nearest codes, with a gradient that is passed on to z_e
    codes: Tensor            # (B, H, W) int64 indices into the codebook
    codebook_loss: Tensor    # ||sg[z_e] - e||^2; moves the codebook, and only where it is learnt by gradient
    commitment_loss: Tensor  # ||z_e - sg[e]||^2; moves the encoder, not yet multiplied by beta; see also `VQVAE`
    counts: Tensor           # (K,) how often each code was chosen in this batch
    z_e: Tensor              # (B, D, H, W) what was quantized: the encoder's output, normalised
    distances: Tensor        # (B, H, W) squared, from z_e to the codes


class VectorQuantizer(nn.Module):
    """Nearest-code quantizer with straight-through gradients ([1], section 3.1) and a codebook that stays in use.

    Three measures against codebook collapse:
    - Every `z_e` is normalised over its channels [5], so that it cannot lower the commitment loss by shrinking.
    - The codebook starts on encoder outputs (`start`).
    - In training, a code whose moving usage falls below `revive_below` of an even share moves onto a current encoder
      output [4], drawn in proportion to its squared distance from its code, as in k-means++ [3]. It starts with low
      usage, so that it is soon replaced again if it stays unused.

    num_codes: K. code_dim: D. codebook: "ema" moves each code to the moving average of the vectors that chose it ([1],
    appendix A.1), "gradient" leaves it to the optimiser and the codebook loss. gradient: "straight" or "rotation" [7].
    """

    def __init__(self, num_codes: int, code_dim: int, codebook: str = "ema", ema_decay: float = 0.97,
                 revive_below: float = 0.02, gradient: str = "straight"):
        super().__init__()
        self.ema, self.ema_decay, self.revive_below = codebook == "ema", ema_decay, revive_below
        self.gradient = gradient
        self.codebook = nn.Parameter(torch.randn(num_codes, code_dim), requires_grad=not self.ema)
        # N_i and m_i in [1], eq. 6 and 7: moving counts and sums of z_e, in units of an even share of the batch
        self.register_buffer("usage", torch.ones(num_codes))
        self.register_buffer("sums", self.codebook.detach().clone())
        # devices.join replaces both where several processes share a batch: sums and draws are then of all of it
        self.all_sum = lambda tensor: tensor
        self.draw_rows = draw_rows

    def normalise(self, z_e: Tensor) -> Tensor:
        """Latents (B, D, H, W) as (B, H, W, D), every vector of mean 0 and variance 1 (layer norm, no parameters)."""
        return F.layer_norm(z_e.permute(0, 2, 3, 1), z_e.shape[1:2])

    def look_up(self, codes: Tensor) -> Tensor:
        """The codebook's rows for codes (B, H, W), as the decoder takes them: (B, D, H, W)."""
        return F.embedding(codes, self.codebook).permute(0, 3, 1, 2)

    def forward(self, z_e: Tensor) -> Quantized:
        """Quantize z_e (B, D, H, W) as the encoder put it out; in training mode, move the codebook too."""
        quantized = self.quantize(z_e)
        if self.training:
            self._update(quantized)
        return quantized

    def quantize(self, z_e: Tensor) -> Quantized:
        """Quantize z_e (B, D, H, W) as the encoder put it out; the codebook stays as it is."""
        z_e = self.normalise(z_e.float())
        flat = z_e.detach().flatten(0, 2)
        with torch.no_grad(), torch.autocast(z_e.device.type, enabled=False):  # distances need float32
            codes, distances = self.nearest(flat)
            counts = codes.new_zeros(len(self.codebook)).index_add_(0, codes, torch.ones_like(codes))
        z_q = F.embedding(codes.view(z_e.shape[:3]), self.codebook)
        passed = rotate(z_e, z_q) if self.gradient == "rotation" else z_e + (z_q - z_e).detach()
        return Quantized(passed.permute(0, 3, 1, 2), codes.view(z_e.shape[:3]), *self.losses(z_e, z_q), counts,
                         z_e.permute(0, 3, 1, 2), distances.view(z_e.shape[:3]))

    def nearest(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (N,) of z_e (N, D), and the squared distances (N,) to them."""
        return nearest_codes(z_e, self.codebook)

    def losses(self, z_e: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        """The codebook loss and the commitment loss of z_e and its codes z_q, both (B, H, W, D)."""
        return F.mse_loss(z_q, z_e.detach()), F.mse_loss(z_e, z_q.detach())

    @torch.no_grad()
    def start(self, z_e: Tensor) -> Quantized:
        """Put the codebook onto encoder outputs z_e (B, D, H, W) by k-means++ [3]. Returns z_e quantized with it."""
        flat = self.normalise(z_e).flatten(0, 2)
        num_codes = len(self.codebook)
        drawn = self.draw_rows(flat, torch.ones_like(flat[:, 0]), 1)
        while len(drawn) < num_codes:  # each round doubles the codes, drawing by distance from those there are
            _, distances = nearest_codes(flat, drawn)
            drawn = torch.cat([drawn, self.draw_rows(flat, distances, min(len(drawn), num_codes - len(drawn)))])
        self._place(torch.ones(num_codes, 1, dtype=torch.bool, device=flat.device), drawn)
        return self.quantize(z_e)

    @torch.no_grad()
    def _update(self, batch: Quantized) -> None:
        """Move usage, and in EMA mode the codebook, towards this batch ([1], eq. 6 to 8); revive dead codes."""
        flat = batch.z_e.permute(0, 2, 3, 1).flatten(0, 2)
        counts = self.all_sum(batch.counts.clone())
        even_share = counts.sum() / len(self.codebook)
        self.usage.lerp_(counts / even_share, 1 - self.ema_decay)
        if self.ema:
            batch_sums = self.all_sum(torch.zeros_like(self.sums).index_add_(0, batch.codes.flatten(), flat))
            self.sums.lerp_(batch_sums / even_share, 1 - self.ema_decay)
            usage = self.usage.unsqueeze(1)  # where it underflows to 0, the code stays where it is
            self.codebook.copy_(torch.where(usage > 1e-8, self.sums / usage, self.codebook))
        if self.revive_below > 0:
            dead = (self.usage < self.revive_below).unsqueeze(1)
            self._place(dead, self.draw_rows(flat, batch.distances.flatten(), len(self.codebook)))

    def _place(self, which: Tensor, vectors: Tensor) -> None:
        """Move the codes that `which` (K, 1) marks onto their rows of vectors (K, D), with a revived code's usage."""
        start = min(1.0, REVIVED_USAGE * self.revive_below) or 1.0
        self.codebook.copy_(torch.where(which, vectors, self.codebook))
        self.sums.copy_(torch.where(which, vectors * start, self.sums))
        self.usage.copy_(torch.where(which.squeeze(1), start, self.usage))


# ---------------------------------------------------------------------------------------------------------
# VQ-VAE


class ResidualBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))) ([1], section 4.1)."""

    def __init__(self, hidden: int, residual_hidden: int):
        super().__init__()
        self.conv3 = nn.Conv2d(hidden, residual_hidden, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(residual_hidden, hidden, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(F.relu_(self.conv3(F.relu(x)))).add_(x)


class NormedBlock(nn.Module):
    """x + conv3x3(relu(conv3x3(relu(norm(x))))), which starts as the identity."""

    def __init__(self, hidden: int):
        super().__init__()
        self.norm = group_norm(hidden)
        self.conv_1 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv_2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)
        nn.init.zeros_(self.conv_2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_2(F.relu_(self.conv_1(F.relu_(self.norm(x))))).add_(x)


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def make_encoder(config: "VQVAEConfig") -> nn.Sequential:
    """Images (B, channels, H, W), H and W multiples of downsample, to (B, code_dim, H / downsample, W / downsample).

    "paper": a strided convolution for every halving ([1], section 4.1). "space-to-depth": the pixels that a code stands
    for become channels at once, so that all convolutions work at the size of the grid of codes.
    """
    hidden, side = config.hidden, config.downsample
    if config.architecture == "space-to-depth":
        return nn.Sequential(
            nn.PixelUnshuffle(side), nn.Conv2d(config.channels * side**2, hidden, 3, padding=1),
            *(NormedBlock(hidden) for _ in range(config.residual_blocks)),
            group_norm(hidden), nn.ReLU(inplace=True), nn.Conv2d(hidden, config.code_dim, 1))
    layers, wide = [], config.channels
    for narrow in [hidden // 2] * DOWNSAMPLES.index(side) + [hidden]:
        layers += [nn.Conv2d(wide, narrow, 4, stride=2, padding=1), nn.ReLU(inplace=True)]
        wide = narrow
    layers += [nn.Conv2d(hidden, hidden, 3, padding=1)]
    layers += [ResidualBlock(hidden, config.residual_hidden) for _ in range(config.residual_blocks)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.Conv2d(hidden, config.code_dim, 1))


def make_decoder(config: "VQVAEConfig") -> nn.Sequential:
    """The way back from `make_encoder` of the same sizes."""
    hidden, side = config.hidden, config.downsample
    if config.architecture == "space-to-depth":
        return nn.Sequential(
            nn.Conv2d(config.code_dim, hidden, 3, padding=1),
            *(NormedBlock(hidden) for _ in range(config.residual_blocks)),
            group_norm(hidden), nn.ReLU(inplace=True),
            nn.Conv2d(hidden, config.channels * side**2, 3, padding=1), nn.PixelShuffle(side))
    layers, wide = [nn.Conv2d(config.code_dim, hidden, 3, padding=1)], hidden
    layers += [ResidualBlock(hidden, config.residual_hidden) for _ in range(config.residual_blocks)]
    for narrow in [hidden // 2] * DOWNSAMPLES.index(side) + [config.channels]:
        layers += [nn.ReLU(inplace=True), nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1)]
        wide = narrow
    return nn.Sequential(*layers)


def grid_size(height: int, width: int, downsample: int) -> tuple[int, int]:
    """Height and width of the encoder's output for images of this height and width."""
    return -(-height // downsample), -(-width // downsample)


def pad(images: Tensor, multiple: int) -> Tensor:
    """Images (B, C, H, W) with their right and bottom edges repeated up to the next multiple of either side."""
    height, width = images.shape[2:]
    right, bottom = -width % multiple, -height % multiple
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if right or bottom else images


class Reconstruction(NamedTuple):
    """A batch through the whole VQ-VAE."""
    images: Tensor  # (B, C, H, W), the size of the input; not clipped to [0, 1]
    quantized: Quantized


@dataclass
class VQVAEConfig:
    """The sizes of a VQ-VAE, from which a checkpoint rebuilds it. ValueError where they make no network."""

    channels: int                # of the images: 1 or 3
    hidden: int = 64             # channels of encoder and decoder
    residual_blocks: int = 2     # in the encoder, and as many in the decoder
    residual_hidden: int = 32    # channels inside a residual block of the paper
    downsample: int = 4          # pixels that a code stands for along each side
    num_codes: int = 512         # K
    code_dim: int = 32           # D
    codebook: str = "ema"        # how the codebook learns
    ema_decay: float = 0.97      # of the moving averages, per step
    revive_below: float = 0.02   # share of an even usage below which a code is revived; 0: never
    architecture: str = "paper"  # of encoder and decoder
    quantizer: str = "vq"        # the one below; others: see training/quantizers.py
    gradient: str = "straight"   # how the gradient of z_q is passed on to z_e

    def __post_init__(self) -> None:
        for name, values in (("architecture", ARCHITECTURES), ("downsample", DOWNSAMPLES), ("codebook", CODEBOOKS)):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(str, values))}, not {getattr(self, name)!r}")


class VQVAE(nn.Module):
    """The VQ-VAE of [1] for images (B, C, H, W) with pixels in [0, 1], of any height and width.

    Images are padded at the right and bottom to a multiple of `downsample` and the output is cropped. The decoder's
    output is linear: a sigmoid saturates on black backgrounds. quantizer: in the place of a `VectorQuantizer`.
    """

    def __init__(self, config: VQVAEConfig, quantizer: VectorQuantizer | None = None):
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config)
        self.quantizer = quantizer or VectorQuantizer(config.num_codes, config.code_dim, config.codebook,
                                                      config.ema_decay, config.revive_below, config.gradient)
        self.decoder = make_decoder(config)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the grid of codes of images of this height and width."""
        return grid_size(height, width, self.config.downsample)

    def latents(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to what the quantizer takes: (B, D, grid height, grid width)."""
        return self.encoder(pad(images, self.config.downsample))

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to codes (B, grid height, grid width) int64."""
        return self.quantizer.quantize(self.latents(images)).codes

    def decode(self, codes: Tensor, height: int, width: int) -> Tensor:
        """Codes as `encode` gives them to images (B, C, height, width) clipped to [0, 1]."""
        return self.decoder(self.quantizer.look_up(codes))[:, :, :height, :width].clamp(0, 1)

    def forward(self, images: Tensor) -> Reconstruction:
        quantized = self.quantizer(self.latents(images))
        return Reconstruction(self.decoder(quantized.z_q)[:, :, :images.shape[2], :images.shape[3]], quantized)


# ---------------------------------------------------------------------------------------------------------
# PixelCNN


class CausalConv2d(nn.Conv2d):
    """A masked convolution that stores and multiplies only what its mask lets through ([2], section 2).

    For kernel size 3 and the position marked x, the masks of the two stacks are (1: seen)

        vertical A   vertical B      horizontal A   horizontal B
          1 1 1        1 1 1            0 0 0          0 0 0
          0 x 0        1 x 1            1 x 0          1 x 0
          0 0 0        0 0 0            0 0 0          0 0 0
        (x: 0)       (x: 1)           (x: 0)         (x: 1)

    Type A, the first layer, sees the codes themselves and must leave out x (the vertical stack: x's whole
    row). Type B, every later layer, sees features: a vertical feature at x knows only rows above x, so its
    own row is allowed, and a horizontal one only what is left of x or above. Either way nothing at or after x
    is seen, and together the stacks see all that is before it: no blind spot.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, stack: str, mask: str):
        length = (reach := kernel_size // 2) + (mask == "B")
        after = length - 1 - reach  # 0 for type B; -1 for type A crops what it leaves out
        if stack == "vertical":
            super().__init__(inputs, outputs, (length, kernel_size), padding=(0, reach))
            self.sides = (0, 0, reach, after)  # left, right, top, bottom
        else:
            super().__init__(inputs, outputs, (1, length))
            self.sides = (reach, after, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inputs, H, W). Returns (B, outputs, H, W)."""
        return super().forward(F.pad(x, self.sides))


def gate(x: Tensor) -> Tensor:
    """tanh(a) * sigmoid(b) of the two halves a, b of the channels ([2], eq. 2): (B, 2C, H, W) to (B, C, H, W)."""
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()


class GatedBlock(nn.Module):
    """One layer of both stacks ([2], figure 2): the horizontal stack is fed from the vertical, never back."""

    def __init__(self, hidden: int, kernel_size: int, mask: str, dropout: float = 0.0):
        super().__init__()
        self.residual, self.dropout = mask == "B", dropout
        self.vertical = CausalConv2d(hidden, 2 * hidden, kernel_size, "vertical", mask)
        self.horizontal = CausalConv2d(hidden, 2 * hidden, kernel_size, "horizontal", mask)
        self.across = nn.Conv2d(2 * hidden, 2 * hidden, 1, bias=False)  # vertical to horizontal
        self.out = nn.Conv2d(hidden, hidden, 1, bias=False)

    def forward(self, v: Tensor, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """v, h: (B, C, H, W), the stacks; condition: (B, 4C, 1, 1), added before the gates. Returns v, h."""
        v_condition, h_condition = condition.chunk(2, 1)
        v_features = self.vertical(v).to(condition.dtype).add_(v_condition)
        h_features = self.horizontal(h).to(condition.dtype).add_(self.across(v_features)).add_(h_condition)
        v_new, h_new = (F.dropout(gate(x), self.dropout, self.training) for x in (v_features, h_features))
        h_new = self.out(h_new).to(condition.dtype)
        return (v_new.add_(v), h_new.add_(h)) if self.residual else (v_new, h_new)


def check_kernel_size(kernel_size: int) -> None:
    """ValueError unless masked convolutions can have this kernel size."""
    if kernel_size % 2 == 0 or kernel_size < 3:
        raise ValueError(f"kernel_size must be odd and at least 3, not {kernel_size}")


@dataclass
class PixelCNNConfig:
    """The sizes of a PixelCNN, from which a checkpoint rebuilds it. ValueError where they make no network."""

    num_codes: int     # K
    num_classes: int   # 0: there are no classes
    hidden: int        # channels of either stack
    layers: int
    kernel_size: int   # of the masked convolutions, odd
    dropout: float = 0.0  # share of the gates' outputs that a training step sets to 0

    def __post_init__(self) -> None:
        check_kernel_size(self.kernel_size)


class PixelCNN(nn.Module):
    """Gated PixelCNN [2] over grids of codes, of any height and width, conditioned on a class or on none.

    Class `num_classes` means "no class". Training shows it in place of some labels [6], so that one model draws from
    p(codes | class) and from p(codes).
    """

    def __init__(self, config: PixelCNNConfig):
        super().__init__()
        self.config = config
        hidden, layers = config.hidden, config.layers
        self.num_classes = config.num_classes
        self.embedding = nn.Embedding(config.num_codes, hidden)
        self.blocks = nn.ModuleList(GatedBlock(hidden, config.kernel_size, "B" if i else "A", config.dropout)
                                    for i in range(layers))
        self.condition = nn.Embedding(self.num_classes + 1, layers * 4 * hidden)
        nn.init.zeros_(self.condition.weight)
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(hidden, 2 * hidden, 1), nn.ReLU(),
                                  nn.Conv2d(2 * hidden, config.num_codes, 1))

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Logits of every code given the codes before it: codes (B, H, W) int64, labels (B,) int64 in
        [0, num_classes]. Returns (B, K, H, W); the logits at a position depend on earlier codes only.
        """
        v = h = self.embedding(codes).permute(0, 3, 1, 2)
        conditions = self.condition(labels)[:, :, None, None].chunk(len(self.blocks), 1)
        for block, condition in zip(self.blocks, conditions):
            v, h = block(v, h, condition)
        return self.head(h)


# ---------------------------------------------------------------------------------------------------------
# Sampling


@torch.no_grad()
def sample(model: nn.Module, labels: Tensor, height: int, width: int) -> Tensor:
    """Codes (B, height, width) drawn from a prior in raster order for classes `labels` (B,), with a whole forward pass
    for every code; priors/sampler.py computes every activation once.
    """
    codes = torch.zeros(len(labels), height, width, dtype=torch.int64, device=labels.device)
    for row in range(height):
        for column in range(width):
            logits = model(codes, labels)[:, :, row, column]
            codes[:, row, column] = torch.multinomial(logits.softmax(1), 1)[:, 0]
    return codes
