"""Codes as an arithmetic-coded stream: the likelier a code under the prior, without a class, the fewer bits it takes.

A stream is read with the very probabilities that wrote it, so by the same prior, on the same kind of CPU, with the same
torch and number of threads. The sum of the codes is kept beside it, which tells whether they came back.
"""
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from priors.sampler import make_sampler
from running.cli import UserError
from running.progress import Bar

BATCH = 64  # images at once: it changes the probabilities in their last digits


def _through(model: nn.Module, count: int, grid: tuple[int, int],
             take: Callable[[Tensor, int, np.ndarray], np.ndarray]) -> Tensor:
    """Codes (count, height, width), each position of a batch as `take` says: of the images (B,) of a batch, the
    position in raster order and the probabilities (B, K), the codes (B,).
    """
    grids = []
    for part in Bar(torch.arange(count).split(BATCH), desc="coding"):
        sampler, positions = make_sampler(model, len(part), grid[1]), iter(range(math.prod(grid)))
        sampler.choose = lambda logits, _, part=part, positions=positions: torch.from_numpy(
            take(part, next(positions), logits.softmax(1).numpy()).astype(np.int64))
        grids.append(sampler(torch.full((len(part),), model.num_classes), torch.zeros(len(part), *grid)))
    return torch.cat(grids)


def _coding() -> tuple:
    """The package that codes, and its family of distributions. UserError without it."""
    try:
        import constriction
    except ImportError:
        raise UserError("STREAM (--stream) needs the package constriction: pip install constriction") from None
    return constriction.stream.queue, constriction.stream.model.Categorical(perfect=False)


def pack(model: nn.Module, codes: Tensor) -> np.ndarray:
    """Codes (N, height, width) as a stream, (words,) uint32, by a prior in eval mode on the CPU."""
    queue, family = _coding()
    encoder, flat = queue.RangeEncoder(), codes.flatten(1).to(torch.int32)

    def write(part: Tensor, position: int, probabilities: np.ndarray) -> np.ndarray:
        encoder.encode(symbols := flat[part, position].numpy(), family, probabilities)
        return symbols

    _through(model, len(codes), codes.shape[1:], write)
    return encoder.get_compressed()


def unpack(model: nn.Module, stream: np.ndarray, count: int, grid: tuple[int, int]) -> Tensor:
    """The codes (count, height, width) of a stream. Codes of another prior or machine come back wrong."""
    queue, family = _coding()
    decoder = queue.RangeDecoder(stream)
    return _through(model, count, grid, lambda _part, _position, probabilities: decoder.decode(family, probabilities))
