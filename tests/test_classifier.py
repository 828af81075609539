"""The classifier behind the tables: images of any size, and shifts that lose nothing."""
import pytest
import torch

from judging import classifier
from judging.classifier import Classifier, ClassifierConfig


@pytest.mark.parametrize("shape, reduce", [((1, 28, 28), 1), ((3, 7, 30), 1), ((1, 3, 2), 1), ((3, 96, 40), 1),
                                           ((3, 97, 40), 2), ((3, 256, 40), 3)])
def test_the_classifier_takes_images_of_any_size_and_reduces_large_ones(shape, reduce):
    assert classifier.reduction(torch.zeros(1, *shape, dtype=torch.uint8)) == reduce
    network = Classifier(ClassifierConfig(*shape, 4, reduce=reduce)).eval()
    assert network(torch.rand(2, *shape)).shape == (2, 4)
    assert network.features(torch.rand(2, *shape)).shape == (2, 128)


def test_shifts_are_small_and_lose_nothing_of_a_plain_background():
    torch.manual_seed(0)
    image = torch.zeros(1, 1, 28, 28)
    image[:, :, 10:18, 12:20] = torch.rand(8, 8)
    seen = set()
    for _ in range(200):
        shifted = classifier.shifted(image)
        assert shifted.shape == image.shape and shifted.sum() == pytest.approx(image.sum().item(), rel=1e-5)
        seen.add(tuple((shifted[0, 0] > 0).nonzero().amin(0).tolist()))
    assert seen == {(10 + y, 12 + x) for y in range(-2, 3) for x in range(-2, 3)}


@pytest.mark.parametrize("images, epochs", [(57_000, 3), (19_000, 3), (4_879, 12), (1, 440)])
def test_a_small_data_set_is_passed_over_more_often(images, epochs):
    assert classifier.choose_epochs(images) == epochs
