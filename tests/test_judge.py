"""What sets of images are compared with: which images a figure shows, and the nearest training images."""
import torch

import dataset
from judging import judge


def test_the_columns_of_a_figure_are_the_classes_in_turn():
    labels = torch.tensor([2, 0, 0, 1, 2, 0, 1])
    assert judge.class_by_class(labels[:6]).tolist() == [1, 3, 0, 2, 4, 5]


def test_one_pass_finds_the_nearest_training_images_of_every_set(data_dir):
    data = dataset.load("glyphs", str(data_dir), 300)
    train, test = dataset.to_float(data.train.images), dataset.to_float(data.test.images)
    sets = {"few": test[:9], "noise": torch.rand(40, 1, 28, 28), "copies": train[[5, 250, 5]]}
    found = judge.nearest_training_images(sets, data.train.images, 70)
    assert list(found) == list(sets) and found["copies"].indices.tolist() == [5, 250, 5]
    for name, images in sets.items():
        exact = (images.double()[:, None] - train).square().sum((2, 3, 4)).sqrt()
        torch.testing.assert_close(found[name].distances.double(), exact.min(1).values, atol=2e-2, rtol=1e-3)
        assert torch.equal(found[name].indices, exact.argmin(1))
        [alone] = judge.nearest_training_images({name: images}, data.train.images, 70).values()
        assert torch.equal(alone.distances, found[name].distances)  # rounding does not depend on the other sets
