"""The classifier behind the tables: images of any size, and shifts that lose nothing."""
import pytest
import torch

import classifier
from classifier import Classifier, ClassifierConfig


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 30), (1, 3, 2)])
def test_the_classifier_takes_images_of_any_size(shape):
    network = Classifier(ClassifierConfig(*shape, num_classes=4)).eval()
    assert network(torch.rand(2, *shape)).shape == (2, 4)
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
