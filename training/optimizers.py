"""The optimisers: torch's AdamW, and Muon for the kernels of a network with Adam for its other weights.

Muon is momentum with an orthogonalised update: the update of a kernel, as a matrix of outputs times inputs, is replaced
by a matrix with the same singular vectors, whose singular values are all about 1. So it moves as far in the directions
that few images ask for as in those that all images share.

Papers, cited by number in the code:
[1] Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024, kellerjordan.github.io/posts/muon
[2] Liu et al., Muon is Scalable for LLM Training, 2025, arXiv:2502.16982 (the scale of the update)
[3] Kingma and Ba, Adam: A Method for Stochastic Optimization, 2014, arXiv:1412.6980
"""
from collections.abc import Iterable

import torch
from torch import Tensor, nn

NARROWEST = 16  # a kernel with fewer inputs or outputs is left to Adam
ITERATIONS = 5
BETAS = (0.9, 0.999)  # of Adam
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the polynomial in [1], which brings singular values near 1 fast


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U V^T for each U S V^T of matrices (N, rows, columns), by the Newton-Schulz iteration of [1]:
    X <- (a + b X X^T + c (X X^T)^2) X.
    """
    a, b, c = COEFFICIENTS
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    # all factors are polynomials of X X^T, the smaller product: they are multiplied first, and with X once
    gram, product = x @ x.mT, None
    for iteration in range(ITERATIONS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor if product is None else factor @ product
        if iteration + 1 < ITERATIONS:
            gram = factor @ gram @ factor
    x = product @ x
    return x.mT if tall else x


class AdamW(torch.optim.AdamW):
    """torch's own, fused where the device has that; without weight decay it is Adam."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = BETAS,
                 weight_decay: float = 0.0):
        weights = list(weights)
        super().__init__(weights, lr, betas, weight_decay=weight_decay, fused=weights[0].device.type != "mps")


class Muon(torch.optim.Optimizer):
    """Muon for the kernels and matrices among the weights, Adam [3] for the others, with the same learning rate.

    momentum: of the kernels. betas: of Adam. weight_decay: as in AdamW. adam: weights that Adam shall have, too: tables
    of vectors, such as embeddings, and the matrix that makes logits, which are no maps from features to features [1].
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95,
                 betas: tuple[float, float] = BETAS, weight_decay: float = 0.0, adam: Iterable[nn.Parameter] = ()):
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay})
        self.adam = {id(weight) for weight in adam}

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}  # kernels by their shape: updated together
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                if group["weight_decay"]:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                if weight.dim() > 1 and min(weight.shape[:2]) >= NARROWEST and id(weight) not in self.adam:
                    alike.setdefault(weight.shape, []).append(weight)
                else:
                    self._adam(weight, self.state[weight], group["lr"], *group["betas"])
            for kernels in alike.values():
                self._muon(kernels, [self.state[kernel] for kernel in kernels], group["lr"], group["momentum"])

    @staticmethod
    def _muon(kernels: list[nn.Parameter], states: list[dict], lr: float, momentum: float) -> None:
        updates = []
        for kernel, state in zip(kernels, states):
            if not state:
                state["momentum"] = torch.zeros_like(kernel)
            state["momentum"].lerp_(kernel.grad, 1 - momentum)
            update = kernel.grad.lerp(state["momentum"], momentum)  # Nesterov's
            updates.append(update.movedim(1, -1))  # as channels-last memory has it: flattening copies nothing
        matrices = orthogonalise(torch.stack(updates).flatten(2))
        scale = 0.2 * max(matrices.shape[1:]) ** 0.5  # so that its mean square is that of Adam's updates [2]
        for kernel, matrix, update in zip(kernels, matrices, updates):
            kernel.add_(matrix.view(update.shape).movedim(-1, 1), alpha=-lr * scale)

    @staticmethod
    def _adam(weight: nn.Parameter, state: dict, lr: float, beta_1: float, beta_2: float) -> None:
        if not state:
            state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(weight), exp_avg_sq=torch.zeros_like(weight))
        state["step"] += 1
        state["exp_avg"].lerp_(weight.grad, 1 - beta_1)
        state["exp_avg_sq"].lerp_(weight.grad.square(), 1 - beta_2)
        step = state["step"].item()
        spread = (state["exp_avg_sq"] / (1 - beta_2**step)).sqrt_().add_(1e-8)
        weight.addcdiv_(state["exp_avg"], spread, value=-lr / (1 - beta_1**step))
