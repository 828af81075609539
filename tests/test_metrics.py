"""Measures of features and of images, against closed forms and slow references."""
import math

import numpy as np
import pytest
import torch

from judging import metrics


def test_frechet_distance_is_zero_from_a_set_to_itself():
    features = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    assert metrics.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(features, features + 2) == pytest.approx(12 * 4, rel=1e-5)  # the means alone


def with_moments(count, mean, covariance, seed):
    """(count, F) float64 points whose sample mean and covariance are exactly these."""
    points = torch.randn(count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points -= points.mean(0)
    points = torch.linalg.solve_triangular(torch.linalg.cholesky(points.T.cov()), points.T, upper=False).T
    return points @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_any_covariances():
    """Against the square root of A B itself, from the eigenvalues of a matrix that is not symmetric."""
    torch.manual_seed(0)
    roots = torch.randn(2, 5, 5, dtype=torch.float64)
    one, other = roots @ roots.mT + 0.1 * torch.eye(5, dtype=torch.float64)
    mean = torch.randn(5, dtype=torch.float64)
    trace = torch.linalg.eigvals(one @ other).real.sqrt().sum()
    expected = mean.square().sum() + one.trace() + other.trace() - 2 * trace
    a, b = with_moments(40, torch.zeros_like(mean), one, 0), with_moments(60, mean, other, 1)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_distance_where_a_feature_is_always_the_same():
    a = torch.randn(30, 3)
    a[:, 1] = 5
    assert math.isfinite(metrics.frechet_distance(a, a * 0))


def plain_precision_recall(real, fake):
    """By the definition, point by point."""
    def radii(points):
        return [sorted((p - q).norm().item() for j, q in enumerate(points) if j != i)[metrics.NEIGHBOURS - 1]
                for i, p in enumerate(points)]

    def share(points, centres):
        reach = radii(centres)
        return sum(any((p - c).norm().item() <= r for c, r in zip(centres, reach)) for p in points) / len(points)
    return share(fake, real), share(real, fake)


def test_precision_and_recall_against_the_definition(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 100)  # so that both matrices come in parts
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(23, 3, generator=generator), torch.randn(31, 3, generator=generator) * 1.5 + 0.5
    assert metrics.precision_recall(real, fake) == pytest.approx(plain_precision_recall(real, fake))


def test_precision_and_recall_of_clusters():
    """Samples of one of two clusters are all good and cover one half; with a third cluster a third of them is bad."""
    generator = torch.Generator().manual_seed(0)
    clusters = torch.randn(3, 100, 2, generator=generator) + torch.tensor([[0.0, 0], [50, 0], [0, 50]])[:, None]
    real = clusters[:2].flatten(0, 1)
    assert metrics.precision_recall(real, real) == (1, 1)
    assert metrics.precision_recall(real, clusters[0]) == (1, 0.5)
    precision, recall = metrics.precision_recall(real, clusters.flatten(0, 1))
    assert (precision, recall) == (pytest.approx(2 / 3), 1)
    assert metrics.precision_recall(real, clusters[2]) == (0, 0)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5), (10, 40), (11, 11), (40, 40)])
def test_similarity_at_every_size(height, width):
    image = np.random.default_rng(0).random((1, height, width)).astype(np.float32)
    assert metrics.similarity(image, image) == pytest.approx(1)
    assert metrics.similarity(image, 1 - image) < 0.9

def test_the_kernel_distance_is_the_unbiased_estimate():
    """As the sum over pairs says it; about 0 for one distribution, with an error that says so."""
    a, b = (torch.randn(count, 5, generator=torch.Generator().manual_seed(count)) for count in (12, 9))

    def kernel(x, y):
        return (float(x.double() @ y.double()) / 5 + 1) ** 3

    expected = sum(kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (12 * 11) \
        + sum(kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (9 * 8) \
        - 2 * sum(kernel(x, y) for x in a for y in b) / (12 * 9)
    assert metrics.kernel_distance(a, b)[0] == pytest.approx(1000 * expected, rel=1e-5)
    many = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    distance, error = metrics.kernel_distance(many[:1000], many[1000:])
    assert abs(distance) < 4 * error and 0 < error < 10
    assert metrics.kernel_distance(many[:1000], many[1000:] + 1)[0] > 50 * error
    distances = [metrics.kernel_distance(many[i:i + 50], many[i + 50:i + 100])[0] for i in range(0, 2000, 100)]
    assert min(distances) < 0 < max(distances)  # unbiased: not pulled above 0 by few points
