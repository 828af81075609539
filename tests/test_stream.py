"""priors/stream.py: codes come back from their stream, which is as long as the prior says."""
import math
import sys

import numpy as np
import pytest
import torch
from test_sampler import random_model

from priors import stream
from priors.codes import nll_sums
from running.cli import UserError


@pytest.mark.parametrize("prior", ["pixelcnn", "transformer"])
def test_codes_come_back_and_take_the_bits_of_the_prior(prior, monkeypatch):
    monkeypatch.setattr(stream, "BATCH", 7)
    model = random_model(9, 2, 8, 3, 3, prior=prior)
    codes = torch.randint(9, (20, 6, 5))
    packed = stream.pack(model, codes)
    assert torch.equal(stream.unpack(model, packed, 20, (6, 5)), codes)
    labels = torch.full((20,), 2)
    nats = nll_sums(model, codes, labels, torch.arange(20).split(20))["nll"].item() * codes[0].numel()
    assert packed.dtype == np.uint32 and abs(32 * len(packed) - nats / math.log(2)) < 64


def test_another_prior_reads_other_codes():
    codes = torch.randint(9, (4, 6, 5))
    packed = stream.pack(random_model(9, 0, 8, 3, 3), codes)
    assert not torch.equal(stream.unpack(random_model(9, 0, 8, 3, 3, seed=1), packed, 4, (6, 5)), codes)


def test_without_the_package_a_line_says_so(monkeypatch):
    codes = torch.zeros(1, 2, 2, dtype=torch.int64)
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(UserError, match="pip install constriction"):
        stream.pack(random_model(9, 0, 8, 3, 3), codes)
