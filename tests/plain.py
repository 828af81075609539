"""The slow, obvious way to draw a grid, to which the samplers are held: a whole forward pass for every code."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from priors.draws import guide, invert


@torch.no_grad()
def sample(model: nn.Module, labels: Tensor, uniform: Tensor, known: Tensor | None = None,
           draw: Callable = lambda logits, uniform: invert(logits.softmax(1), uniform),
           guidance: float = 1.0) -> Tensor:
    """Grids of codes (B, H, W) in raster order, by the chance uniform (B, H, W) in [0, 1).

    labels: (B,) classes, `num_classes` for none. known: (B, H, W) codes to keep, -1 where one is to be drawn. draw: the
    rule that chooses codes (B,) from logits (B, K) and chance (B,). guidance: s of `guide`; 1: none.
    """
    codes = torch.zeros(uniform.shape, dtype=torch.int64, device=uniform.device)
    for row in range(uniform.shape[1]):
        for column in range(uniform.shape[2]):
            logits = model(codes, labels)[:, :, row, column]
            if guidance != 1:
                no_class = torch.full_like(labels, model.num_classes)
                logits = guide(logits, model(codes, no_class)[:, :, row, column], guidance)
            drawn = draw(logits, uniform[:, row, column])
            kept = drawn if known is None else known[:, row, column]
            codes[:, row, column] = torch.where(kept >= 0, kept, drawn)
    return codes
