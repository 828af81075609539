"""What evaluate.py and ablation.py measure, against closed forms, slow references and sums by hand."""
import math

import pytest
import torch

import classifier
import metrics
from classifier import Classifier, ClassifierConfig
from codes import bits_per_image, distinct, draw_independent, marginals

# ---- Frechet distance


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


def test_frechet_distance_of_diagonal_covariances():
    """sum (m_a - m_b)^2 + (s_a - s_b)^2 over the axes, for means m and deviations s."""
    deviations = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.1]], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0, -1.0], [1.0, 1.0, 4.0]], dtype=torch.float64)
    a, b = (with_moments(50, mean, deviation.square().diag(), seed)
            for seed, (mean, deviation) in enumerate(zip(means, deviations)))
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_distance_of_any_covariances(seed):
    """Against the square root of A B itself, from the eigenvalues of a matrix that is not symmetric."""
    torch.manual_seed(seed)
    size = 2 + seed
    roots = torch.randn(2, size, size, dtype=torch.float64)
    one, other = roots @ roots.mT + 0.1 * torch.eye(size, dtype=torch.float64)
    mean = torch.randn(size, dtype=torch.float64)
    trace = torch.linalg.eigvals(one @ other).real.sqrt().sum()
    expected = mean.square().sum() + one.trace() + other.trace() - 2 * trace
    a, b = with_moments(40, torch.zeros_like(mean), one, seed), with_moments(60, mean, other, seed + 1)
    assert metrics.frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert metrics.frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-6)


def test_frechet_distance_where_a_feature_is_always_the_same():
    a = torch.randn(30, 3)
    a[:, 1] = 5
    assert math.isfinite(metrics.frechet_distance(a, a * 0))


# ---- precision and recall


def plain_precision_recall(real, fake):
    """By the definition, point by point."""
    def radii(points):
        return [sorted((p - q).norm().item() for j, q in enumerate(points) if j != i)[metrics.NEIGHBOURS - 1]
                for i, p in enumerate(points)]

    def share(points, centres):
        reach = radii(centres)
        return sum(any((p - c).norm().item() <= r for c, r in zip(centres, reach)) for p in points) / len(points)
    return share(fake, real), share(real, fake)


@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_against_the_definition(seed, monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK", 100)  # so that both matrices come in parts
    generator = torch.Generator().manual_seed(seed)
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


# ---- priors that know less


def test_marginals_by_hand():
    """Three grids of two places, K = 3: codes 0 2, 0 1, 0 2, and one more of every code."""
    codes = torch.tensor([[[0, 2]], [[0, 1]], [[0, 2]]], dtype=torch.uint8)
    found = marginals(codes, 3)
    assert list(found) == ["per-position marginal", "marginal", "uniform codes"]
    torch.testing.assert_close(found["per-position marginal"][0].float(),
                               torch.tensor([[4, 1, 1], [1, 2, 3]]) / 6)
    torch.testing.assert_close(found["marginal"][0].float(), torch.tensor([[4, 2, 3], [4, 2, 3]]) / 9)
    torch.testing.assert_close(found["uniform codes"][0].float(), torch.full((2, 3), 1 / 3))
    test = torch.tensor([[[0, 2]], [[1, 0]]], dtype=torch.uint8)  # the second was never seen and has its chance
    bits = [-math.log2(4 / 6 * 3 / 6), -math.log2(1 / 6 * 1 / 6)]
    assert bits_per_image(found["per-position marginal"], test) == pytest.approx(sum(bits) / 2)
    bits = [-math.log2(4 / 9 * 3 / 9), -math.log2(2 / 9 * 4 / 9)]
    assert bits_per_image(found["marginal"], test) == pytest.approx(sum(bits) / 2)
    assert bits_per_image(found["uniform codes"], test) == pytest.approx(2 * math.log2(3))


def test_independent_codes_follow_their_probabilities_at_every_place():
    probabilities = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0))
    probabilities /= probabilities.sum(2, keepdim=True)
    count = 20_000
    codes = draw_independent(probabilities, count, seed=1)
    assert codes.shape == (count, 2, 3) and torch.equal(codes, draw_independent(probabilities, count, seed=1))
    drawn = torch.nn.functional.one_hot(codes, 4).float().mean(0)
    assert ((drawn - probabilities).abs() < 5 * (probabilities * (1 - probabilities) / count).sqrt()).all()


def test_distinct_is_the_share_of_different_grids():
    codes = torch.tensor([[[0, 1]], [[1, 0]], [[0, 1]], [[0, 1]]])
    assert distinct(codes) == 0.5 and distinct(codes[:2]) == 1


# ---- the classifier, and FID


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


def test_the_table_is_aligned_and_leaves_out_columns_without_a_figure():
    rows = {"a": {"frechet": 1.0}, "long name": {"frechet": 123.456, "class_accuracy": 0.5}}
    lines = metrics.table(rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split() for line in lines] == [["Frechet", "class"], ["a", "1.00", "-"],
                                                ["long", "name", "123.46", "50.0%"]]
