"""Fast paths of training. Each stands for a plain line of modules.py, and a test holds it to that line."""
from typing import Any

import torch
from torch import Tensor, nn

from modules import GatedBlock


class Gate(torch.autograd.Function):
    """`modules.gate` with a backward pass that goes over memory fewer times.

    A training step of a PixelCNN takes 4 to 6% less time with it than with the plain line (medians of turns in one
    process, one core of an AMD EPYC, 6 and 15 layers).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        # tanh(a) = 2 sigmoid(2a) - 1, which takes a fourth of its time on a CPU
        a, b = (2 * a).sigmoid_().mul_(2).sub_(1), b.sigmoid()
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        a, b = ctx.saved_tensors
        return torch.cat([torch.ops.aten.tanh_backward(grad * b, a), torch.ops.aten.sigmoid_backward(grad * a, b)], 1)


def gate(x: Tensor) -> Tensor:
    """tanh of the first half of the channels times sigmoid of the second: (B, 2C, H, W) to (B, C, H, W)."""
    return Gate.apply(x)


def speed_up(network: nn.Module) -> None:
    """Let the gated blocks of a network use the fast gate."""
    for block in network.modules():
        if isinstance(block, GatedBlock):
            block.gate = gate
