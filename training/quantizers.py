"""Other ways to quantize than the learnt codebook of modules.py: as classes that differ from it where the papers do.

Each maps `z_e` onto the nearest row of a codebook, as `VectorQuantizer` does. What differs is how `z_e` is bounded,
what the codebook is, and what is minimised.

Papers, cited by number in the code:
[1] Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023, arXiv:2309.15505
[2] Zhao et al., Image and Video Tokenization with Binary Spherical Quantization, 2024, arXiv:2406.07548
[3] Yu et al., Language Model Beats Diffusion: Tokenizer is Key to Visual Generation, 2023, arXiv:2310.05737 (LFQ)
[4] Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, 2024,
    arXiv:2411.02038 (SimVQ)
"""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules import VQVAE, Quantized, VectorQuantizer, VQVAEConfig
from running.cli import UserError

SHARPNESS = 100.0      # inverse temperature of the soft codes in the entropies of [2] and [3]
ENTROPY_WEIGHT = 0.1   # of these entropies, beside the squared error over the variance of the pixels


class WithoutAverages(VectorQuantizer):
    """No moving averages, no k-means, no revival: if anything moves the codebook, it is the optimiser."""

    def __init__(self, config: VQVAEConfig):
        nn.Module.__init__(self)  # a subclass has another codebook than the parent
        self.ema, self.gradient = False, config.gradient

    def start(self, z_e: Tensor) -> Quantized:
        return self.quantize(z_e)

    def forward(self, z_e: Tensor) -> Quantized:
        return self.quantize(z_e)


class FixedCodebook(WithoutAverages):
    """A codebook (K, D) that nothing moves. A subclass says which code is the nearest: `index` of z_e (N, D)."""

    def __init__(self, config: VQVAEConfig, codebook: Tensor):
        super().__init__(config)
        self.register_buffer("codebook", codebook)

    def nearest(self, z_e: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.index(z_e)
        return codes, (self.codebook[codes] - z_e).square().sum(1)


def levels(num_codes: int) -> list[int]:
    """How many values each channel of FSQ may take, so that there are K combinations: 3 to 8 each, large ones first.

    For the K of [1], table 1, they are those of that table. UserError if K is no such product.
    """
    found, left = [], num_codes
    while left > 1:
        fitting = [level for level in range(8, 2, -1) if left % level == 0 and left // level != 2]
        if not fitting:
            raise UserError(f"NUM_CODES (--num-codes) must be a product of numbers from 3 to 8 for fsq, "
                            f"not {num_codes}")
        found.append(fitting[0])
        left //= fitting[0]
    return found


class FiniteScalarQuantizer(FixedCodebook):
    """FSQ: every channel is bounded and rounded to one of a few values ([1], section 3.1 and appendix A.1).

        z_q = round(f(z_e)) / (L // 2),  f(z) = tanh(z + shift) (L - 1) / 2 - offset

    The codebook is the grid of all combinations: nothing is learnt, and there is no loss but that of the pixels.
    """

    def __init__(self, config: VQVAEConfig):
        self.levels = levels(config.num_codes)
        sizes, basis = self.sizes(None)
        places = torch.arange(config.num_codes)[:, None] // basis % sizes
        super().__init__(config, (places - sizes // 2) / (sizes // 2))

    def sizes(self, device: torch.device | None) -> tuple[Tensor, Tensor]:
        """The number of values of each channel, and what one step of it adds to the code: both (D,)."""
        sizes = torch.tensor(self.levels, device=device)
        return sizes, sizes.cumprod(0) // sizes

    def normalise(self, z_e: Tensor) -> Tensor:
        """Latents (B, D, H, W) bounded, (B, H, W, D), not yet rounded."""
        sizes, _ = self.sizes(z_e.device)
        half = (sizes - 1) * (1 + 1e-3) / 2  # the outermost values are reached where |tanh| is a little below 1
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)
        shift = (offset / half).atanh()
        return ((z_e.permute(0, 2, 3, 1) + shift).tanh() * half - offset) / (sizes // 2)

    def index(self, z_e: Tensor) -> Tensor:
        sizes, basis = self.sizes(z_e.device)
        places = (z_e * (sizes // 2)).round().long() + sizes // 2
        return (places * basis).sum(1)

    def losses(self, z_e: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        return z_e.new_zeros(()), z_e.new_zeros(())


def bits(num_codes: int) -> int:
    """log2 K. UserError if that is not whole."""
    if num_codes & (num_codes - 1):
        raise UserError(f"NUM_CODES (--num-codes) must be a power of 2 for bsq, not {num_codes}")
    return num_codes.bit_length() - 1


class BinaryQuantizer(FixedCodebook):
    """BSQ: z_e on the unit sphere, and the sign of every channel ([2], section 3): K = 2^D.

        u = z_e / |z_e|,  z_q = sign(u) / sqrt(D),  loss E[H(p(c|u))] - H(E[p(c|u)])

    p(c|u) is the softmax over all codes of 2 SHARPNESS u.c, as in LFQ ([3], eq. 5 and 6), which has it without the
    sphere: every choice should be certain, and all codes in even use. It is a product over the channels. So the first
    entropy is a sum over the channels, and the mean of p over the batch is one matrix product of the probabilities of
    the first and of the last channels.
    """

    def __init__(self, config: VQVAEConfig):
        dim = bits(config.num_codes)
        ones = torch.arange(config.num_codes)[:, None] // 2 ** torch.arange(dim - 1, -1, -1) % 2
        super().__init__(config, (2 * ones - 1) / math.sqrt(dim))

    def normalise(self, z_e: Tensor) -> Tensor:
        return F.normalize(z_e.permute(0, 2, 3, 1), dim=-1)

    def index(self, z_e: Tensor) -> Tensor:
        return ((z_e > 0) * 2 ** torch.arange(z_e.shape[1] - 1, -1, -1, device=z_e.device)).sum(1)

    def losses(self, z_e: Tensor, z_q: Tensor) -> tuple[Tensor, Tensor]:
        logits = z_e.flatten(0, 2) * (4 * SHARPNESS / math.sqrt(z_e.shape[-1]))
        plus = logits.sigmoid()  # of every channel, the probability of the larger value
        certain = F.binary_cross_entropy_with_logits(logits, plus, reduction="none").sum(1).mean()
        half = z_e.shape[-1] // 2
        first, last = (joint(part) for part in (plus[:, :half], plus[:, half:]))
        even = torch.special.entr((first.T @ last / len(plus)).clamp_min(1e-12)).sum()
        return ENTROPY_WEIGHT * (certain - even), F.mse_loss(z_e, z_q.detach())


def joint(plus: Tensor) -> Tensor:
    """Probabilities (N, 2^D) of all combinations, from those (N, D) that each of D independent bits is 1."""
    result = torch.ones_like(plus[:, :1])
    for one in plus.unbind(1):
        result = (result[:, :, None] * torch.stack([1 - one, one], 1)[:, None]).flatten(1)
    return result


class LinearQuantizer(WithoutAverages):
    """SimVQ: a codebook C W of fixed random rows C under one learnt linear map W ([4], section 4). Every step moves all
    codes together, so that none is left behind; it is learnt by the gradient of the codebook loss.
    """

    def __init__(self, config: VQVAEConfig):
        super().__init__(config)
        self.register_buffer("rows", torch.randn(config.num_codes, config.code_dim))
        self.map = nn.Parameter(torch.eye(config.code_dim))

    @property
    def codebook(self) -> Tensor:
        with torch.autocast(self.rows.device.type, enabled=False):  # distances need float32
            return self.rows @ self.map


QUANTIZERS = {"fsq": FiniteScalarQuantizer, "bsq": BinaryQuantizer, "simvq": LinearQuantizer}  # by QUANTIZER


def code_dim(quantizer: str, num_codes: int) -> int:
    """CODE_DIM of "auto". UserError if a quantizer of this name cannot have so many codes."""
    if quantizer == "fsq":
        return len(levels(num_codes))
    return bits(num_codes) if quantizer == "bsq" else 32


def make_vqvae(config: VQVAEConfig) -> VQVAE:
    """The VQ-VAE of these sizes, with the quantizer that they name. UserError where it cannot have them."""
    if config.quantizer == "vq":
        return VQVAE(config)
    dim = code_dim(config.quantizer, config.num_codes)
    if config.quantizer != "simvq" and config.code_dim != dim:
        raise UserError(f"CODE_DIM (--code-dim) must be {dim} for {config.quantizer} of {config.num_codes} codes, not "
                        f"{config.code_dim}: leave it at auto")
    return VQVAE(config, QUANTIZERS[config.quantizer](config))
