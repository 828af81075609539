"""The incremental sampler against the plain loop: a full forward pass for every code."""
import random

import pytest
import torch
from plain import sample

import modules
from modules import PixelCNN, PixelCNNConfig
from priors.draws import Draw, draw, guide, uniforms
from priors.sampler import Sampler, draw_grids, make_sampler
from priors.transformer import Transformer, TransformerConfig

PRIORS = ["pixelcnn", "transformer"]


def random_model(num_codes, num_classes, hidden, layers, kernel_size, seed=0, prior="pixelcnn"):
    torch.manual_seed(seed)
    sizes = num_codes, num_classes, hidden, layers, kernel_size
    model = PixelCNN(PixelCNNConfig(*sizes)) if prior == "pixelcnn" else Transformer(TransformerConfig(*sizes, 2))
    model.eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=1.0 if prior == "transformer" else 0.3)
    return model


@torch.no_grad()
def plain(model, labels, uniform, known=None, guidance=1.0, **options):
    """Codes of the plain loop, and the logits (B, K, H, W) that they were drawn from."""
    seen = []

    def record(logits, chance):
        seen.append(logits)
        return draw(logits, chance, **options)
    codes = sample(model, labels, uniform, known, record, guidance)
    return codes, torch.stack(seen, 2).unflatten(2, uniform.shape[1:])


@pytest.fixture
def kept(monkeypatch):
    """The list to which samplers add the logits (batch_size, K) that they draw each code from."""
    seen, draw_column = [], Sampler._draw

    def record(sampler, column):
        logits = sampler.logits.clone()
        seen.append(logits if sampler.how.guidance == 1 else guide(*logits.chunk(2), sampler.how.guidance))
        return draw_column(sampler, column)
    monkeypatch.setattr(Sampler, "_draw", record)
    return seen


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("seed", range(8))
def test_same_codes_and_logits_as_the_plain_loop(seed, prior, kept):
    pick = random.Random(seed)
    num_codes, num_classes = pick.randint(2, 40), pick.choice([0, 1, 5])
    hidden, layers, kernel_size = pick.choice([4, 10, 16]), pick.randint(1, 5), pick.choice([3, 5, 7])
    model = random_model(num_codes, num_classes, hidden, layers, kernel_size, seed, prior)
    count, height, width = pick.randint(1, 4), pick.randint(1, 7), pick.randint(1, 7)
    options = {"temperature": pick.choice([0.0, 0.7, 1.0, 1.5]), "top_k": pick.choice([0, 1, 3]),
               "top_p": pick.choice([0.5, 0.9, 1.0])}
    labels = torch.randint(num_classes + 1, (count,))
    uniform = uniforms(seed, 0, count, height, width)
    known = torch.where(torch.rand(uniform.shape) < 0.3, torch.randint(num_codes, uniform.shape), -1) \
        if pick.random() < 0.5 else None
    options["guidance"] = [1.0, 0.0, 1.5, 3.0][seed % 4]
    codes, logits = plain(model, labels, uniform, known, **options)
    sampler = make_sampler(model, count + pick.randint(0, 2), width, Draw(**options))
    for _ in range(2):  # twice: nothing of one call may be left for the next
        kept.clear()
        assert torch.equal(sampler(labels, uniform, known), codes)
        fast = torch.stack([step[:count] for step in kept], 2).view_as(logits)
        torch.testing.assert_close(fast, logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prior", PRIORS)
def test_known_codes_are_kept_and_the_rest_follows_them(prior):
    model = random_model(9, 0, 8, 3, 3, prior=prior)
    uniform, labels = uniforms(0, 0, 40, 4, 4), torch.zeros(40, dtype=torch.int64)
    known = torch.full((40, 4, 4), -1)
    known[:, :2] = torch.randint(9, (40, 2, 4))
    codes = make_sampler(model, 40, 4)(labels, uniform, known)
    assert torch.equal(codes[:, :2], known[:, :2])
    assert not torch.equal(codes[:, 2:], make_sampler(model, 40, 4)(labels, uniform)[:, 2:])


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("prior", PRIORS)
def test_a_sample_depends_on_its_number_alone(prior, guidance):
    model = random_model(9, 3, 8, 3, 3, prior=prior)
    labels = torch.arange(7) % 3

    def drawn(seed, size):
        return torch.cat(list(draw_grids(model, labels, (4, 4), seed, size, Draw(guidance=guidance))))
    expected = sample(model, labels, uniforms(5, 0, 7, 4, 4), guidance=guidance)
    assert all(torch.equal(drawn(5, size), expected) for size in (7, 2, 3))
    assert not torch.equal(drawn(6, 7), expected)


@pytest.mark.parametrize("prior", PRIORS)
def test_the_network_sees_the_batch_twice_only_under_guidance(prior, monkeypatch):
    model, seen = random_model(9, 3, 8, 3, 3, prior=prior), []
    draw_column = Sampler._draw

    def note(sampler, column):
        seen.append(len(sampler.logits))
        return draw_column(sampler, column)

    monkeypatch.setattr(Sampler, "_draw", note)
    for guidance, batch in ((1.0, 5), (2.0, 10)):
        seen.clear()
        make_sampler(model, 5, 2, Draw(guidance=guidance))(torch.zeros(5, dtype=torch.int64), uniforms(0, 0, 5, 2, 2))
        assert seen == [batch] * 4


@pytest.mark.parametrize("prior", PRIORS)
def test_wrong_sizes_are_refused(prior):
    sampler = make_sampler(random_model(5, 0, 4, 1, 3, prior=prior), 2, 4)
    for shape in [(3, 4, 4), (2, 4, 5), (0, 4, 4)]:
        with pytest.raises(ValueError):
            sampler(torch.zeros(shape[0], dtype=torch.int64), torch.zeros(shape))


def test_samples_follow_the_exact_joint_distribution():
    """2x2 grids of 3 codes: 81 of them, each with an exact probability by the chain rule."""
    model = random_model(3, 1, 6, 2, 3)
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    with torch.no_grad():
        logs = model(grids, torch.zeros(len(grids), dtype=torch.int64)).log_softmax(1)
    exact = logs.gather(1, grids[:, None]).sum((1, 2, 3)).exp()
    assert exact.sum().item() == pytest.approx(1, abs=1e-5)
    count = 40_000
    labels, chance = torch.zeros(count, dtype=torch.int64), torch.rand(count, 2, 2)
    for drawn in (make_sampler(model, count, 2)(labels, chance), modules.sample(model, labels, 2, 2)):
        place = (drawn.flatten(1) * torch.tensor([27, 9, 3, 1])).sum(1)
        expected = exact * count
        chi_squared = ((torch.bincount(place, minlength=81) - expected) ** 2 / expected)[expected >= 5].sum()
        degrees = int((expected >= 5).sum()) - 1
        assert degrees > 20
        assert chi_squared < degrees + 4 * (2 * degrees) ** 0.5  # four standard deviations


# ---- draw


def test_draw_inverts_the_cumulative_distribution():
    logits = torch.tensor([[0.5, 0.0, 0.3, 0.2]]).log().expand(6, 4)
    uniform = torch.tensor([0.0, 0.49, 0.51, 0.79, 0.81, 1 - 2**-24])
    assert draw(logits, uniform).tolist() == [0, 0, 2, 2, 3, 3]  # never 1, which has no probability


def test_temperature_top_k_and_top_p():
    logits = torch.tensor([[0.5, 0.1, 0.25, 0.15]]).log().expand(1000, 4)
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert draw(logits, uniform, temperature=0).unique().tolist() == [0]
    assert draw(logits, uniform, top_k=2).unique().tolist() == [0, 2]
    assert draw(logits, uniform, top_p=0.74).unique().tolist() == [0, 2]
    assert draw(logits, uniform, top_p=0.76).unique().tolist() == [0, 2, 3]
    assert draw(logits, uniform, top_p=1e-6).unique().tolist() == [0]
    cold, plain_, hot = ((draw(logits, uniform, temperature=t) == 0).float().mean() for t in (0.5, 1.0, 2.0))
    assert cold > plain_ > hot


@pytest.mark.parametrize("temperature", [1e-30, 1e-42, 5e-324])
def test_the_coldest_temperature_takes_the_likeliest_code(temperature):
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)) * 1000
    assert torch.equal(draw(logits, torch.full((50,), 0.5), temperature=temperature), logits.argmax(1))


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_no_uniform_reaches_a_code_without_probability(top_p):
    logits = torch.full((3, 50), -torch.inf)
    logits[:, [3, 7, 20]] = torch.randn(3, 3)
    for value in (0.0, 0.5, 1 - 2**-24, 1 - 2**-23):
        assert set(draw(logits, torch.full((3,), value), top_p=top_p).tolist()) <= {3, 7, 20}
