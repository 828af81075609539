"""Independent codes: their probabilities and bits by hand, and draws that follow the probabilities."""
import math

import pytest
import torch

from priors.codes import bits_per_image, distinct, draw_independent, marginals


def test_marginals_by_hand():
    """Three grids of two places, K = 3: codes 0 2, 0 1, 0 2, and one more of every code."""
    codes = torch.tensor([[[0, 2]], [[0, 1]], [[0, 2]]], dtype=torch.uint8)
    found = marginals(codes, 3)
    assert list(found) == ["per-position marginal", "marginal", "uniform codes"]
    torch.testing.assert_close(found["per-position marginal"][0].float(), torch.tensor([[4, 1, 1], [1, 2, 3]]) / 6)
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
