"""AdamW and Muon against what they stand for."""
import copy

import pytest
import torch
from torch import nn

from training.optimizers import COEFFICIENTS, ITERATIONS, AdamW, Muon, orthogonalise


def plainly(matrix):
    """The iteration as [1] has it, on the whole matrix."""
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm()
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(16, 16), (16, 200), (200, 16), (40, 41)])
def test_orthogonalise_is_the_plain_iteration_and_keeps_singular_vectors(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrix, result = matrices[1], orthogonalise(matrices)[1]
    plain = plainly(matrix) if shape[0] <= shape[1] else plainly(matrix.T).T
    torch.testing.assert_close(result, plain, rtol=1e-6, atol=1e-6)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ result @ v.T
    torch.testing.assert_close(values, values.diagonal().diag(), rtol=0, atol=1e-5)
    if shape[0] != shape[1]:  # of a square matrix the smallest singular value may be about 0, and stays there
        assert 0.6 < values.diagonal().min() and values.diagonal().max() < 1.3


def test_the_weights_that_are_no_kernels_move_as_under_adam():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for shape in ((5,), (3, 40, 3, 3), (40, 15))]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    muon, adam = Muon(weights, 0.01), AdamW(twins, 0.01)
    for _ in range(5):
        for weight, twin in zip(weights, twins):
            weight.grad = torch.randn_like(weight)
            twin.grad = weight.grad.clone()
        muon.step()
        adam.step()
    for weight, twin in zip(weights, twins):
        torch.testing.assert_close(weight, twin)


@pytest.mark.parametrize("shape", [(32, 16, 3, 3), (16, 64, 1, 1), (48, 16)])
def test_a_kernel_moves_by_the_orthogonalised_momentum(shape):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape)) for _ in range(2)]  # of one shape: they are updated together
    before, optimizer = [weight.detach().clone() for weight in weights], Muon(weights, 0.01, momentum=0.9)
    for weight in weights:
        weight.grad = torch.randn(shape)
    optimizer.step()
    for weight, start in zip(weights, before):
        moving = 0.1 * weight.grad
        update = (0.1 * weight.grad + 0.9 * moving).flatten(1)
        expected = start - 0.01 * 0.2 * max(update.shape) ** 0.5 * orthogonalise(update[None]).view(shape)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-3, atol=1e-4)


def test_adam_has_the_tables_that_it_is_given_and_weights_decay_as_under_adamw():
    torch.manual_seed(0)
    table, matrix = (nn.Parameter(torch.randn(20, 16)) for _ in range(2))
    twin, start = nn.Parameter(table.detach().clone()), matrix.detach().clone()
    muon = Muon([table, matrix], 0.01, betas=(0.9, 0.99), weight_decay=0.5, adam=[table])
    adamw = AdamW([twin], 0.01, (0.9, 0.99), weight_decay=0.5)
    for _ in range(3):
        table.grad, matrix.grad = torch.randn(20, 16), torch.zeros(20, 16)
        twin.grad = table.grad.clone()
        muon.step()
        adamw.step()
    torch.testing.assert_close(table, twin)
    torch.testing.assert_close(matrix.detach(), start * (1 - 0.01 * 0.5) ** 3)


def test_memory_format_does_not_matter():
    torch.manual_seed(0)
    moved = []
    grad, start = torch.randn(16, 16, 3, 3), torch.randn(16, 16, 3, 3)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        weight = nn.Parameter(start.clone().to(memory_format=memory_format))
        weight.grad = grad.clone().to(memory_format=memory_format)
        Muon([weight], 0.1).step()
        moved.append(weight.detach().contiguous())
    torch.testing.assert_close(*moved, rtol=1e-3, atol=1e-4)


def test_it_continues_from_its_state():
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(16, 16, 3, 3)), nn.Parameter(torch.randn(4))]
    whole = Muon(weights, 0.01)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    whole.step()
    copies = [nn.Parameter(weight.detach().clone()) for weight in weights]
    again = Muon(copies, 0.01)
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    for weight, twin in zip(weights, copies):
        weight.grad = torch.randn_like(weight)
        twin.grad = weight.grad.clone()
    whole.step()
    again.step()
    assert all(torch.equal(weight, twin) for weight, twin in zip(weights, copies))


def test_adamw_is_torchs_own():
    """To the bit, also when continued from its state."""
    def train(optimizer_of):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(3, 4, 3)
        optimizer = optimizer_of(network)
        for step in range(6):
            if step == 3:
                state, optimizer = optimizer.state_dict(), optimizer_of(network)
                optimizer.load_state_dict(state)
            optimizer.zero_grad()
            network(torch.randn(2, 3, 5, 5)).square().mean().backward()
            optimizer.step()
        return torch.cat([weight.detach().flatten() for weight in network.parameters()])

    sizes = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.1}
    ours = train(lambda network: AdamW(network.parameters(), **sizes))
    assert ours.equal(train(lambda network: torch.optim.AdamW(network.parameters(), fused=True, **sizes)))
    ours = train(lambda network: AdamW(network.parameters(), 0.01))
    assert ours.equal(train(lambda network: torch.optim.Adam(network.parameters(), 0.01, fused=True)))
