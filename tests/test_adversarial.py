"""training/adversarial.py: its losses and gradients against plain formulas, and trainings with and without it."""
import argparse
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL_VQVAE
from faults import SHARP
from torch import nn
from torch.nn import functional as F

from modules import ARCHITECTURES, VQVAE, VQVAEConfig
from running import figures
from training import adversarial, checkpoint
from training.adversarial import Discriminator, Sharpness, feature_matching, hinge_loss


class Lpips(nn.Module):
    """Stands in for torchmetrics' class and for its network: the squared difference of some features."""

    def __init__(self, kind: str):
        super().__init__()
        self.net = self
        self.layer = nn.Conv2d(3, 4, 3, stride=2)
        self.kind = kind

    def modules(self):  # not itself again and again
        return iter([self.layer])

    def to(self, device):
        self.layer.to(device)
        return self

    def requires_grad_(self, required):
        self.layer.requires_grad_(required)
        return self

    def forward(self, images, copies, normalize):
        assert normalize and self.kind == "vgg" and min(images.shape[2:]) >= 32
        return (self.layer(images) - self.layer(copies)).square().mean((1, 2, 3), keepdim=True)


@pytest.fixture
def no_lpips(monkeypatch):
    monkeypatch.setattr(adversarial, "load_lpips", lambda _: None)
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)  # a second each


@pytest.fixture
def some_lpips(monkeypatch):
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)
    import torchmetrics.image.lpip
    monkeypatch.setattr(torchmetrics.image.lpip, "LearnedPerceptualImagePatchSimilarity", Lpips)


def sharpness(model: VQVAE, size: int = 24, **constants: object) -> Sharpness:
    defaults = {"ADVERSARIAL": 0.5, "PERCEPTUAL": 0.25, "ADVERSARIAL_START": 0.5, "COMPILE": "auto", "SEED": 0,
                "RESUME": "never"}
    return Sharpness(argparse.Namespace(**defaults | constants), model, size, size)


def small_model(architecture: str = "paper") -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAEConfig(3, 8, 1, 4, 4, 8, 4, architecture=architecture))


# ---- the parts


def test_the_hinge_loss_is_its_formula():
    real, fake = torch.randn(2, 5, 1, 3, 3) * 2
    plain = [max(0, 1 - x) for x in real.flatten().tolist()], [max(0, 1 + x) for x in fake.flatten().tolist()]
    assert hinge_loss(real, fake).item() == pytest.approx(sum(sum(part) / 45 for part in plain) / 2, rel=1e-6)


def test_feature_matching_compares_all_layers_but_the_logits_and_moves_only_the_copies():
    real, fake = ([torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 5, 2, 2, requires_grad=True),
                   torch.randn(2, 1, 2, 2, requires_grad=True)] for _ in range(2))
    loss = feature_matching(real, fake)
    plain = [sum(abs(a - b) for a, b in zip(x.flatten().tolist(), y.flatten().tolist())) / x.numel()
             for x, y in zip(real[:2], fake[:2])]
    assert loss.item() == pytest.approx(sum(plain) / 2, rel=1e-6)
    loss.backward()
    assert [x.grad is None for x in real + fake] == [True, True, True, False, False, True]


@pytest.mark.parametrize("height, width", [(1, 1), (2, 5), (28, 28), (33, 64)])
def test_a_discriminator_takes_images_of_any_size_and_sees_one_at_a_time(height, width):
    torch.manual_seed(0)
    judge, images = Discriminator(3, height, width), torch.rand(4, 3, height, width)
    *features, logits = judge(images)
    assert logits.shape[:2] == (4, 1) and all(feature.shape[0] == 4 for feature in features)
    assert torch.allclose(judge(images[1:2])[-1], logits[1:2], atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gradients_are_those_of_the_plain_formula(no_lpips, architecture):
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
    losses = {"adversarial": -fake[-1].mean(), "perceptual": feature_matching(real, fake)}
    length = {name: torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm()
              for name, loss in {"error": error, **losses}.items()}
    scales = {name: (length["error"] / (length[name] + adversarial.DELTA)).detach() for name in losses}
    for name in losses:
        assert terms[f"{name}_loss"].item() == pytest.approx(losses[name].item(), rel=1e-5)
        assert terms[f"{name}_weight"].item() == pytest.approx(scales[name].item(), rel=1e-4)
    plain = error + 0.5 * scales["adversarial"] * losses["adversarial"] \
        + 0.25 * scales["perceptual"] * losses["perceptual"]
    expected = [*torch.autograd.grad(plain, networks[:-len(list(judge.parameters()))], retain_graph=True)]
    own = hinge_loss(real[-1], judge(copies.detach())[-1])
    expected += torch.autograd.grad(own, list(judge.parameters()))
    assert terms["discriminator_loss"].item() == pytest.approx(own.item(), rel=1e-5)
    for gradient, right in zip(found, expected, strict=True):
        assert torch.allclose(gradient, right, rtol=1e-3, atol=1e-6)


def test_a_step_adds_nothing_at_first_then_the_discriminator_learns_alone_then_it_counts(no_lpips):
    model = small_model()
    sharp, images = sharpness(model), torch.rand(2, 3, 24, 24)
    for progress, learns, counts in ((0.39, False, False), (0.45, True, False), (0.55, True, True)):
        copies = model(images).images.detach().requires_grad_()
        error = F.mse_loss(F.conv2d(copies, torch.eye(3)[:, :, None, None]), images)
        sharp.last = copies
        added, terms = sharp(error, images, copies, progress, share=1.0)
        assert (terms["discriminator_loss"] > 0) == learns == added.requires_grad
        assert (terms["adversarial_weight"] > 0) == (terms["perceptual_weight"] > 0) == counts
        moves = torch.autograd.grad(added, copies, allow_unused=True)[0] is not None if learns else False
        assert moves == counts


def test_lpips_needs_no_discriminator_is_frozen_and_takes_small_grey_images(some_lpips):
    model = VQVAE(VQVAEConfig(1, 8, 1, 4, 4, 8, 4))
    sharp, images = sharpness(model, 10, ADVERSARIAL=0.0), torch.rand(2, 1, 10, 10)
    assert sharp.kept == {"companions": {}, "perceptual": "lpips"}
    copies = model(images).images
    added, terms = sharp(F.mse_loss(copies, images), images, copies, progress=0.6, share=1.0)
    added.backward()
    assert terms.keys() == {"perceptual_loss", "perceptual_weight"} and terms["perceptual_loss"] > 0
    assert all(weight.grad is not None for weight in model.decoder.parameters())
    assert sharp.lpips(images, images) == 0


def test_torchmetrics_has_lpips_as_it_is_called_here(monkeypatch):
    """The real class, over a VGG whose weights were drawn instead of downloaded."""
    models = pytest.importorskip("torchvision.models")
    pytest.importorskip("torchmetrics")
    drawn = SimpleNamespace(features=models.vgg.make_layers(models.vgg.cfgs["D"]))
    monkeypatch.setattr(models, "vgg16", lambda **_: drawn)
    lpips = adversarial.load_lpips(torch.device("cpu"))
    images = torch.rand(2, 3, 16, 16)
    copies = (images + 0.1).requires_grad_()
    loss = lpips(images, copies)
    loss.backward()
    assert loss > 0 and copies.grad.abs().max() > 0
    assert not any(weight.requires_grad for weight in drawn.features.parameters())
    assert lpips(images, images) == 0


# ---- trainings


def train(script, data_dir, output, *more):
    return script("train_vqvae", *SMALL_VQVAE, "--epochs", 2, "--data-dir", data_dir, "--output-dir", output, *more)


def test_up_to_its_start_a_training_is_the_one_without_it_and_the_last_weights_are_kept(
        script, data_dir, tmp_path, no_lpips):
    plain, sharp = tmp_path / "plain", tmp_path / "sharp"
    assert train(script, data_dir, plain).status == 0
    outcome = train(script, data_dir, sharp, "--adversarial", 0.5, "--adversarial-start", 0.5)
    assert outcome.status == 0, outcome.err
    assert "(weights of epoch 2, the last; with ADVERSARIAL or PERCEPTUAL none is chosen)" in outcome.out
    stored = checkpoint.load(sharp, "vqvae")
    first, second = stored["training"]["history"]
    without = checkpoint.load(plain, "vqvae")["training"]["history"]
    assert {name: value for name, value in first.items() if name in without[0]} == without[0]
    assert first["train_adversarial_weight"] == 0 and second["train_adversarial_weight"] > 0
    assert second["validation_mse"] != without[1]["validation_mse"]
    assert all(torch.equal(weight, stored["training"]["model"][name]) for name, weight in stored["model"].items())
    assert not any("discriminator" in name for name in stored["model"])
    assert script("random_sample", "--output-dir", sharp, "--num-samples", 4).status == 0


@pytest.mark.parametrize("why", ["not installed", "no connection"])
def test_where_lpips_cannot_be_had_a_line_says_so_and_features_stand_in(script, data_dir, tmp_path, monkeypatch, why):
    def fail(_kind):
        raise OSError("<urlopen error\nno network>")
    if why == "not installed":
        monkeypatch.setitem(sys.modules, "torchmetrics.image.lpip", None)
    else:
        import torchmetrics.image.lpip
        monkeypatch.setattr(torchmetrics.image.lpip, "LearnedPerceptualImagePatchSimilarity", fail)
    outcome = train(script, data_dir, tmp_path, "--perceptual", 0.5)
    assert outcome.status == 0, outcome.err
    assert outcome.err.count("LPIPS cannot be had") == 1
    assert why == "not installed" or "(<urlopen error no network>)" in outcome.err
    stored = checkpoint.load(tmp_path, "vqvae")
    assert stored["perceptual"] == "features" and stored["training"]["companions"].keys() == {"discriminator"}
    assert stored["training"]["history"][1]["train_perceptual_weight"] > 0


def test_a_run_is_not_continued_with_another_perceptual_loss(script, data_dir, tmp_path, some_lpips, monkeypatch):
    outcome = train(script, data_dir, tmp_path, "--perceptual", 0.5)
    assert outcome.status == 0 and "LPIPS cannot" not in outcome.err
    assert train(script, data_dir, tmp_path, "--perceptual", 0.5, "--epochs", 3).status == 0
    monkeypatch.setattr(adversarial, "load_lpips", lambda _: None)
    outcome = train(script, data_dir, tmp_path, "--perceptual", 0.5, "--epochs", 4)
    assert outcome.status == 1 and "PERCEPTUAL (--perceptual): whether LPIPS can be had changed" in outcome.err


def test_a_run_that_began_without_lpips_goes_on_without_it(script, data_dir, tmp_path, no_lpips, monkeypatch):
    assert train(script, data_dir, tmp_path, "--perceptual", 0.5).status == 0

    def fail(_):
        raise AssertionError("LPIPS was loaded")
    monkeypatch.setattr(adversarial, "load_lpips", fail)
    outcome = train(script, data_dir, tmp_path, "--perceptual", 0.5, "--epochs", 3)
    assert outcome.status == 0 and "of 3" in outcome.out, outcome.err


def test_a_discriminator_that_is_not_finite_or_not_of_this_run_is_one_line(script, data_dir, tmp_path, no_lpips,
                                                                         monkeypatch):
    assert train(script, data_dir, tmp_path, *SHARP).status == 0
    path = tmp_path / "vqvae.pt"
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(adversarial, "hinge_loss", lambda real, fake: hinge_loss(real, fake) * float("nan"))
        outcome = train(script, data_dir, tmp_path, *SHARP, "--epochs", 3)
    assert outcome.status == 1 and "the loss is not finite at step 13" in outcome.err.split("\r")[-1]
    assert path.read_bytes() == before
    moments = {"exp_avg": torch.zeros(3)}
    for place, other in (("model", {}), ("optimizer", {0: moments}), ("optimizer", {99: moments})):
        content = torch.load(path, weights_only=True)
        content["training"]["companions"]["discriminator"][place] = other
        torch.save(content, path)
        outcome = train(script, data_dir, tmp_path, *SHARP, "--epochs", 3)
        assert outcome.status == 1 and "cannot be continued from" in outcome.err
        path.write_bytes(before)
