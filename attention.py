"""What the priors with attention share: the places of a grid as numbers, and a check of their sizes.

Paper, cited by number in the code:
[1] Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762
"""
import torch
from torch import Tensor

FREQUENCIES = 8  # of the sines of a position's row and column


def fourier(height: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines of every position's row and column ([1], section 3.5), in raster order.

    Returns (height * width, 4 * FREQUENCIES) in [-1, 1]. They depend on row and column alone, not on the grid's size.
    """
    rates = 1000 ** (-torch.arange(FREQUENCIES, device=device) / FREQUENCIES)
    rows, columns = (torch.arange(side, device=device)[:, None] * rates for side in (height, width))
    angles = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], 2).flatten(0, 1)
    return torch.cat([angles.sin(), angles.cos()], 1)


def check_heads(hidden: int, heads: int) -> None:
    """ValueError unless the channels can be split evenly among the heads."""
    if hidden % heads:
        raise ValueError(f"heads must divide hidden, and {heads} does not divide {hidden}")
