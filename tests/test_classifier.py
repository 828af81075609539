"""The classifier behind the tables: images of any size, shifts that lose nothing, and learning without classes."""
import math

import pytest
import torch
from torch.nn import functional as F

import dataset
from judging import classifier, metrics


@pytest.mark.parametrize("count, shape", [(16, (1, 28, 28)), (5, (3, 7, 30)), (2, (1, 3, 2)), (1, (3, 1, 1))])
def test_any_batch_is_altered_in_all_ways_in_turn(shape, count):
    images, ways = classifier._altered(torch.rand(count, *shape))
    assert images.shape == (count, *shape) and images.isfinite().all()
    turns = 4 if shape[1] == shape[2] else 2
    assert (ways % turns).tolist() == [i % turns for i in range(count)]
    assert ways.max() < 4 * turns and (count < 16 or len(set(ways.tolist())) == 4 * turns)


def test_an_undamaged_image_is_turned_by_as_many_quarters_as_its_class_says():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 8, 8)
    altered, ways = classifier._altered(images)
    for i in range(4):
        assert ways[i] == i and torch.equal(altered[i], torch.rot90(images[i], i, (1, 2)))
    flat, ways = classifier._altered(torch.rand(8, 1, 4, 6))
    assert ways.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


@torch.no_grad()
def test_as_much_damage_is_left_after_a_reduction():
    """Damage of the same chance to an image, and to its enlargement before averaging over squares of 3x3."""
    images = torch.rand(64, 3, 32, 32)
    large = F.interpolate(images, scale_factor=3)
    for damage in (classifier._noisy, classifier._blurred):
        changes = []
        for reduce, originals in ((1, images), (3, large)):
            torch.manual_seed(0)
            changes.append((F.avg_pool2d(damage(originals, reduce), reduce) - images).std().item())
        assert changes[1] == pytest.approx(changes[0], rel=0.05)


def test_mixed_tiles_are_of_the_images_or_of_another_at_the_same_place():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 16, 16)
    mixed = classifier._mixed(images)
    own, other = (mixed == images).all(1), (mixed == images.roll(1, 0)).all(1)
    assert (own ^ other).all() and 0.2 < own.float().mean() < 0.8


def test_blur_against_the_sum_over_neighbours():
    image = torch.rand(1, 2, 9, 7)
    rows, columns = torch.meshgrid(torch.arange(-6, 7), torch.arange(-6, 7), indexing="ij")
    weights = torch.exp(-(rows**2 + columns**2) / (2 * 2.0**2))
    expected = sum(weights[y + 6, x + 6] * image[:, :, min(max(4 + y, 0), 8), min(max(3 + x, 0), 6)]
                   for y in range(-6, 7) for x in range(-6, 7)) / weights.sum()
    torch.testing.assert_close(classifier.blur(image, 2.0)[:, :, 4, 3], expected)


@torch.no_grad()
def test_without_classes_the_distance_rises_with_the_damage(data_dir, monkeypatch):
    """Blur, noise and mixing of glyphs that it was not trained on, in the features of a short training."""
    monkeypatch.setattr(classifier, "STEPS", 60)
    monkeypatch.setattr(classifier, "BATCH_SIZE", 32)
    data = dataset.load("glyphs", str(data_dir), 2000)
    network = classifier.train_self(data.train.images, torch.device("cpu"))
    assert not network.training and network.config.num_classes == 16
    images = dataset.to_float(data.test.images[:300])
    real = network.features(images)
    torch.manual_seed(0)
    for damages in ([classifier.blur(images, deviation) for deviation in (0.5, 1, 2, 4)],
                    [images + strength * torch.randn_like(images) for strength in (0.05, 0.1, 0.3)],
                    [torch.where(torch.rand(300, 1, 1, 1) < share, images.rot90(1, (2, 3)), images)
                     for share in (0.1, 0.3, 1)]):
        distances = [metrics.frechet_distance(real, network.features(damaged)) for damaged in damages]
        assert distances == sorted(distances) and math.isfinite(distances[-1])


@pytest.mark.parametrize("shape, reduce", [((1, 28, 28), 1), ((3, 7, 30), 1), ((1, 3, 2), 1), ((3, 96, 40), 1),
                                           ((3, 97, 40), 2), ((3, 256, 40), 3)])
def test_the_classifier_takes_images_of_any_size_and_reduces_large_ones(shape, reduce):
    network = classifier._new(torch.zeros(1, *shape, dtype=torch.uint8), 4, torch.device("cpu")).eval()
    assert network.config.reduce == reduce and network(torch.rand(2, *shape)).shape == (2, 4)
    assert network.features(torch.rand(2, *shape)).shape == (2, 128)


def test_shifts_are_small_and_lose_nothing_of_a_plain_background():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 28, 28)
    image[:, :, 10:18, 12:20] = torch.rand(8, 8)
    seen = set()
    for _ in range(200):
        shifted = classifier._shifted(image)
        assert shifted.shape == image.shape and shifted.sum() == pytest.approx(image.sum().item(), rel=1e-5)
        seen.add(tuple((shifted[0, 0] > 0).nonzero().amin(0).tolist()))
    assert seen == {(10 + y, 12 + x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("images, epochs", [(57_000, 3), (19_000, 3), (4_879, 12), (1, 440)])
def test_a_small_data_set_is_passed_over_more_often(images, epochs):
    assert classifier.choose_epochs(images) == epochs
