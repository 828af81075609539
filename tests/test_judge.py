"""What sets of images are compared with: which images a figure shows, and the nearest training images."""
import pytest
import torch

import dataset
from judging import judge


def test_the_columns_of_a_figure_are_the_classes_in_turn():
    labels = torch.tensor([2, 0, 0, 1, 2, 0, 1])
    assert judge.class_by_class(labels[:6]).tolist() == [1, 3, 0, 2, 4, 5]


@pytest.fixture(scope="module")
def glyphs(data_dir):
    return dataset.load("glyphs", str(data_dir), 300)


def nearest_of_one_set(images, train, batch_size):
    """A pass over the training images for one set."""
    best, where = torch.full((len(images),), torch.inf), torch.zeros(len(images), dtype=torch.int64)
    for index in torch.arange(len(train)).split(batch_size):
        distance, row = torch.cdist(images.flatten(1), dataset.to_float(train[index]).flatten(1)).min(1)
        where = torch.where(distance < best, row + index[0], where)
        best = torch.minimum(best, distance)
    return best, where


def test_one_pass_finds_what_a_pass_for_each_set_finds(glyphs):
    train, test = glyphs.train.images, dataset.to_float(glyphs.test.images)
    sets = {"few": test[:9], "noise": torch.rand(40, 1, 28, 28), "copies": dataset.to_float(train[[5, 250, 5]])}
    found = judge.nearest_training_images(sets, train, 70)
    assert list(found) == list(sets)
    for name, images in sets.items():
        distances, indices = nearest_of_one_set(images, train, 70)
        assert torch.equal(found[name].distances, distances) and torch.equal(found[name].indices, indices)
    assert found["copies"].indices.tolist() == [5, 250, 5]


def test_nearest_training_images_against_all_distances(glyphs):
    images, train = dataset.to_float(glyphs.test.images[:9]), dataset.to_float(glyphs.train.images)
    [(distances, where)] = judge.nearest_training_images({"a": images}, glyphs.train.images, 7).values()
    exact = (images[:, None] - train).square().sum((2, 3, 4)).sqrt()
    torch.testing.assert_close(distances, exact.min(1).values, atol=1e-3, rtol=1e-3)
    assert torch.equal(where, exact.argmin(1))
