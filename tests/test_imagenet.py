"""training/imagenet.py: the features are those of one image, whatever its batch, and damage takes them further away."""
import pytest
import torch
from torch.nn import functional as F

from judging.metrics import kernel_distance
from training import imagenet

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=[imagenet.MEASURES, imagenet.TEACHES])
def network(request):
    for name in imagenet.packages(request.param):
        pytest.importorskip(name.replace("-", "_"))
    return imagenet.load(request.param, "", CPU)


def test_features_are_of_one_image(network):
    images = torch.rand(9, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    found = imagenet.pooled(network, images)
    assert found.shape == (9, 1280) and found.isfinite().all()
    torch.testing.assert_close(imagenet.pooled(network, images[1:2]), found[1:2], rtol=1e-3, atol=1e-4)
    grey = images[:2, :1]
    torch.testing.assert_close(imagenet.pooled(network, grey), imagenet.pooled(network, grey.expand(-1, 3, -1, -1)))


def test_damage_takes_images_further_away(network, data_dir):
    """As sets in pooled features, and one by one in the perceptual loss."""
    import dataset
    images = dataset.to_float(dataset.load("glyphs", str(data_dir)).test.images[:80])
    real, others = images[:40], images[40:]
    noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(0))

    def sets(parts):
        return [kernel_distance(imagenet.pooled(network, real), imagenet.pooled(network, part))[0] for part in parts]

    def pairs(parts):
        return [imagenet.perceptual_loss(network, others, part).item() for part in parts]

    for distances in (sets, pairs):
        none, little, more, blurred = distances([others, (others + 0.1 * noise).clamp(0, 1),
                                                 (others + 0.3 * noise).clamp(0, 1), F.avg_pool2d(others, 5, 1, 2)])
        assert abs(none) < little < more and abs(none) < blurred


def test_the_perceptual_loss_is_its_formula_and_moves_only_the_copies(network):
    images, copies = (torch.rand(2, 1, 64, 72, requires_grad=True) for _ in range(2))
    loss = imagenet.perceptual_loss(network, images, copies)
    loss.backward()
    assert images.grad is None and copies.grad.abs().sum() > 0
    expected = []
    for a, b in zip(imagenet._depths(network, images), imagenet._depths(network, copies), strict=True):
        a, b = (x / x.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12) for x in (a, b))
        expected.append((a - b).square().sum(1).mean().item())
    assert len(expected) == 5 and loss.item() == pytest.approx(sum(expected) / 5, rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert imagenet.perceptual_loss(network, images, copies).dtype == torch.float32
    whole = network.extract_features(imagenet.prepare(images))  # the same network, to its last layer
    last = network._swish(network._bn1(network._conv_head(imagenet._depths(network, images)[-1])))
    torch.testing.assert_close(last, whole)


@pytest.mark.parametrize("side", [28, 64, 128])
def test_jitter_shows_the_same_part_of_both_at_a_size_and_place_of_its_own(side):
    torch.manual_seed(0)
    images = torch.rand(2, 3, side, side + 8)
    sizes = set()
    for _ in range(20):
        seen, copies = imagenet.jitter(images, images)
        assert torch.equal(seen, copies) and min(seen.shape[2:]) >= imagenet.LEAST
        sizes.add(seen.shape[2:])
    assert len(sizes) > 10
    state = torch.get_rng_state()
    first = imagenet.jitter(images, images)[0]
    torch.set_rng_state(state)  # as a training does that continues
    assert torch.equal(imagenet.jitter(images, images)[0], first)
    copies = images.clone().requires_grad_()
    imagenet.jitter(images, copies)[1].sum().backward()
    assert copies.grad.abs().sum() > 0
