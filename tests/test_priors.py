"""The priors with attention: causality at every place, what a place can see, and any size of grid."""
from dataclasses import asdict

import pytest
import torch
from torch.nn import functional as F

from modules import PixelCNN, PixelCNNConfig
from priors.attention import fourier
from priors.masked import Masked, MaskedConfig
from priors.table import PRIORS, last_layer, start_from_codebook
from priors.transformer import Transformer, TransformerConfig

MAKE = {
    "pixelcnn": lambda: PixelCNN(PixelCNNConfig(num_codes=7, num_classes=2, hidden=8, layers=6, kernel_size=3)),
    "transformer": lambda: Transformer(TransformerConfig(num_codes=7, num_classes=2, hidden=8, layers=2, kernel_size=3,
                                                         heads=2)),
    "masked": lambda: Masked(MaskedConfig(num_codes=7, num_classes=2, hidden=8, layers=2, kernel_size=3, heads=2)),
}
CAUSAL = [prior for prior in PRIORS if prior != "masked"]  # what that one sees is tested in test_masked.py


def randomised(prior):
    torch.manual_seed(0)
    model = MAKE[prior]().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize("size", [(4, 5), (1, 6), (6, 1), (1, 1)])
@pytest.mark.parametrize("prior", CAUSAL)
@torch.no_grad()
def test_causal_at_every_position(prior, size):
    """Another code at a place moves all logits after it, and none at it or before."""
    model = randomised(prior)
    codes, labels = torch.randint(7, (1, *size)), torch.tensor([1])
    before = model(codes, labels)
    for place in range(size[0] * size[1]):
        changed = codes.clone().flatten(1)
        changed[0, place] = (changed[0, place] + 1) % 7
        moved = (model(changed.view_as(codes), labels) - before).abs().amax((0, 1)).flatten() > 0
        assert not moved[:place + 1].any()
        assert moved[place + 1:].all()


@pytest.mark.parametrize("prior", CAUSAL)
def test_gradients_reach_earlier_codes_alone(prior):
    """The same by the backward pass: no gradient from a place's logits to the embedding of itself or a later code."""
    model = randomised(prior)
    codes = torch.arange(6).view(1, 2, 3)  # all different, so that the rows of the embedding tell the places apart
    for place in range(6):
        model.zero_grad()
        model(codes, torch.tensor([0])).flatten(2)[0, :, place].square().sum().backward()
        reached = model.embedding.weight.grad.abs().amax(1) > 0
        assert reached.tolist() == [earlier < place for earlier in range(7)]


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_dropout_is_of_training_alone(prior):
    model = randomised(prior)
    network, config = PRIORS[prior][:2]
    dropped = network(config(**asdict(model.config) | {"dropout": 0.5}))
    dropped.load_state_dict(model.state_dict())
    codes, labels = torch.randint(7, (2, 3, 4)), torch.tensor([0, 1])
    assert torch.equal(dropped.eval()(codes, labels), model(codes, labels))
    first, second = (dropped.train()(codes, labels) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("prior", PRIORS)
@torch.no_grad()
def test_the_class_reaches_every_place(prior):
    model = randomised(prior)
    codes = torch.randint(7, (1, 3, 3))
    outputs = [model(codes, torch.tensor([label])) for label in range(3)]  # the last one: no class
    for one, other in zip(outputs, outputs[1:]):
        assert ((one - other).abs().amax((0, 1)) > 1e-4).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_codes_start_as_near_one_another_as_their_vectors(prior):
    torch.manual_seed(0)
    model, vectors = MAKE[prior](), torch.randn(7, 32)
    vectors[1] = vectors[0] + 0.01
    weights = [model.embedding.weight[:7], last_layer(model).weight]  # beside them: a hidden code
    scales = [weight.std().item() for weight in weights]
    start_from_codebook(model, vectors)
    for weight, scale in zip(weights, scales):
        assert weight.std().item() == pytest.approx(scale, rel=1e-4)
        near, far = torch.cdist(weight.flatten(1), weight.flatten(1))[0, 1:3]
        assert near < 0.1 * far


def test_places_are_told_apart_whatever_the_size_of_the_grid():
    small, large = fourier(3, 4, torch.device("cpu")), fourier(40, 50, torch.device("cpu"))
    torch.testing.assert_close(small.view(3, 4, -1), large.view(40, 50, -1)[:3, :4])
    assert torch.cdist(large, large).fill_diagonal_(1).min() > 0.01


@pytest.mark.parametrize("prior", ["transformer", "masked"])
def test_heads_that_do_not_divide_the_channels_are_refused(prior):
    sizes = {"num_codes": 5, "num_classes": 0, "hidden": 8, "layers": 1, "kernel_size": 3, "heads": 3}
    with pytest.raises(ValueError, match="3 does not divide 8"):
        PRIORS[prior].config(**sizes)


@pytest.mark.parametrize("prior", CAUSAL)
def test_a_prior_learns_what_it_is_shown(prior):
    """Two grids, one for each class: after a few steps either class gives its own with little doubt."""
    torch.manual_seed(0)
    model, codes, labels = MAKE[prior](), torch.randint(7, (2, 3, 3)), torch.tensor([0, 1])
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(codes, labels), codes).backward()
        optimizer.step()
    assert F.cross_entropy(model(codes, labels), codes) < 0.05
