"""How a code is drawn from logits: chance by seed and number, temperature, the likeliest codes, guidance.

Papers, cited by number in the code:
[1] Holtzman et al., The Curious Case of Neural Text Degeneration, 2019, arXiv:1904.09751
[2] Ho and Salimans, Classifier-Free Diffusion Guidance, 2022, arXiv:2207.12598
"""
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

STEPS = 16  # rounds in which a masked prior draws a grid, where nothing else is said: the default of the scripts


class Draw(NamedTuple):
    """How codes are drawn: the constants of the same names in generate.py."""

    temperature: float = 1.0  # divides the logits; 0: always the likeliest code
    top_k: int = 0            # among the k likeliest; 0: all
    top_p: float = 1.0        # among the fewest codes whose probabilities reach p together
    guidance: float = 1.0     # s of `guide`; 1: none
    steps: int = STEPS        # rounds in which a masked prior draws a grid; 0: one for each code


def uniforms(seed: int, first: int, count: int, height: int, width: int) -> Tensor:
    """(count, height, width) numbers in [0, 1): the chance of samples `first` to `first + count` - 1.

    Each sample has a generator of its own, so it does not depend on the batch in which it is drawn.
    """
    rows = [np.random.default_rng((seed, i)).random(height * width, np.float32) for i in range(first, first + count)]
    return torch.from_numpy(np.stack(rows)).view(count, height, width)


def draw(logits: Tensor, uniform: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Codes (B,) drawn from logits (B, K) by inverting the cumulative distribution at uniform (B,) in [0, 1).

    temperature: divides the logits; 0 takes the likeliest code. top_k: draw among the k likeliest; 0: all.
    top_p: draw among the fewest codes whose probabilities reach p together [1].
    """
    if temperature == 0:
        return logits.argmax(1)
    if temperature != 1:  # the largest is 0 and 1e-30 is not 0 in float32, so nothing overflows
        logits = (logits - logits.amax(1, keepdim=True)) / max(temperature, 1e-30)
    if 0 < top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -torch.inf)
    probabilities = logits.softmax(1)
    if top_p < 1:
        ordered, order = probabilities.sort(1, descending=True)
        ordered = ordered.masked_fill(ordered.cumsum(1) - ordered >= top_p, 0)
        probabilities = torch.zeros_like(ordered).scatter_(1, order, ordered)
    return invert(probabilities, uniform)


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Codes (B,) at which the cumulative sums of probabilities (B, K), of any total, pass uniform (B,) in [0, 1)."""
    cumulative = probabilities.cumsum(1)
    # just below 1, so that rounding cannot reach past the last code of any probability
    target = uniform.clamp_max(1 - 2**-23)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance, s = 1 + w of [2], eq. 6: logits u + s (c - u).

    conditional: c, logits (B, K) given the class; unconditional: u, given none. Codes then have probabilities in
    proportion to p(code | class)^s p(code)^(1 - s): with s above 1, what tells the class from the others counts more.
    """
    return unconditional + guidance * (conditional - unconditional)
