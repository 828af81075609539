"""The VAE baseline: its mathematics against torch's own, its shapes, its training, and what train_vae.py writes."""
import csv
import math
import shutil
from dataclasses import asdict

import pytest
import torch
from conftest import SMALL
from PIL import Image
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import dataset
import train_vae
from judging.vae import VAE, VAEConfig, distortion, kl
from modules import VQVAE, VQVAEConfig
from training import checkpoint

SMALL_VAE = [*SMALL, "--latent-dim", "8"]


def small_vae(**changes):
    config = dict(channels=1, hidden=16, residual_blocks=1, residual_hidden=8, downsample=4, code_dim=6, latent_dim=5,
                  height=28, width=28)
    torch.manual_seed(0)
    return VAE(VAEConfig(**(config | changes)))


@pytest.mark.parametrize("channels, height, width, downsample", [(1, 28, 28, 4), (3, 21, 34, 8), (1, 5, 3, 2)])
def test_any_size(channels, height, width, downsample):
    model = small_vae(channels=channels, height=height, width=width, downsample=downsample)
    images = torch.rand(2, channels, height, width)
    output = model(images, torch.randn(2, 5))
    assert output.images.shape == images.shape
    assert output.mean.shape == output.log_variance.shape == (2, 5)
    decoded = model.decode(torch.randn(2, 5) * 50)
    assert decoded.shape == images.shape and decoded.min() >= 0 and decoded.max() <= 1
    again = VAE(VAEConfig(**asdict(model.config)))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(images).images, model(images).images)


def test_z_is_the_mean_or_drawn_about_it():
    model = small_vae()
    images = torch.rand(3, 1, 28, 28)
    mean, log_variance = model.encode(images)
    noise = torch.randn(3, 5)
    drawn = Normal(mean, (log_variance / 2).exp())
    torch.testing.assert_close(model(images).images.clamp(0, 1), model.decode(mean))
    torch.testing.assert_close(model(images, noise).images.clamp(0, 1), model.decode(drawn.mean + drawn.stddev * noise))


def test_same_encoder_and_decoder_as_the_vqvae():
    model = small_vae()
    vqvae = VQVAE(VQVAEConfig(**{name: getattr(model.config, name) for name in train_vae.SIZES}, num_codes=4))
    shapes = [{name: weight.shape for name, weight in network.state_dict().items()
               if name.startswith(("encoder.", "decoder."))} for network in (model, vqvae)]
    assert shapes[0] == shapes[1] and len(shapes[0]) > 10


def test_kl_is_that_of_torch():
    mean, log_variance = torch.randn(7, 5), torch.randn(7, 5)
    reference = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(kl(mean, log_variance), reference)
    assert kl(torch.zeros(1, 5), torch.zeros(1, 5)) == 0


def test_distortion_is_the_negative_log_likelihood_and_the_batch_has_its_best_variance():
    images, copies = torch.rand(4, 1, 6, 6), torch.rand(4, 1, 6, 6)
    mse = F.mse_loss(copies, images)

    def reference(variance):
        return -Normal(copies, variance.sqrt()).log_prob(images).sum((1, 2, 3)).mean()
    for variance in (mse, mse * 2, mse / 2):
        torch.testing.assert_close(distortion(mse, variance, 36), reference(variance))
        assert reference(variance) >= reference(mse)


def test_training_raises_the_bound_and_uses_the_latent(done, trained, tmp_path, data_dir):
    shutil.copy(trained / "vqvae.pt", tmp_path)
    flags = ["--limit", 400, "--batch-size", 20, "--device", "cpu", "--output-dir", tmp_path, "--epochs", 8]
    done("train_vae", *flags)
    with open(tmp_path / "vae_history.csv") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert rows[-1]["validation_loss"] < rows[0]["validation_loss"] - 100
    assert rows[-1]["validation_mse"] < 0.7 * rows[0]["validation_mse"]
    assert rows[-1]["validation_kl_bits"] > 5
    last = rows[-1]
    bound = 784 / 2 * (1 + math.log(2 * math.pi * last["validation_mse"])) + last["validation_kl_bits"] * math.log(2)
    assert last["validation_loss"] == pytest.approx(bound, rel=1e-4)
    model = checkpoint.build(checkpoint.load(str(tmp_path), "vae"), VAE, VAEConfig)
    images = dataset.to_float(dataset.load("glyphs", str(data_dir)).test.images[:100])
    with torch.no_grad():
        copies = model.decode(model.encode(images[:50])[0])
    errors = [F.mse_loss(copies, other) for other in images.split(50)]
    assert errors[0] < 0.7 * errors[1]


def test_what_it_writes_and_that_other_sizes_do_not_continue_it(script, done, trained, tmp_path):
    for name in ("vqvae.pt", "pixelcnn.pt"):
        shutil.copy(trained / name, tmp_path)
    outcome = done("train_vae", *SMALL_VAE, "--output-dir", tmp_path)
    assert outcome.out.splitlines()[-1].startswith(f"wrote {tmp_path}/vae.pt")
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        ".lock", "vqvae.pt", "pixelcnn.pt", "vae.pt", "vae_history.csv", "vae_curves.png", "vae_comparison.png",
        "vae_reconstructions/epoch_001.png", "vae_samples/epoch_001.png"}
    with_samples = Image.open(tmp_path / "vae_comparison.png").size
    (tmp_path / "pixelcnn.pt").unlink()
    again = script("train_vae", *SMALL_VAE, "--output-dir", tmp_path)
    assert again.status == 0 and "is finished, 1 epochs" in again.out
    assert "no samples of the VQ-VAE in vae_comparison.png: " in again.out
    assert "transformer.pt does not exist" in again.out
    without = Image.open(tmp_path / "vae_comparison.png").size
    assert without[0] == with_samples[0] and without[1] < with_samples[1]
    before = (tmp_path / "vae.pt").read_bytes()
    outcome = script("train_vae", *SMALL, "--latent-dim", 9, "--output-dir", tmp_path)
    assert outcome.status == 1 and "LATENT_DIM (--latent-dim) is 9, but the run in" in outcome.err
    content = torch.load(tmp_path / "vqvae.pt", weights_only=True)
    other = VQVAE(VQVAEConfig(**(content["config"] | {"hidden": 12})))
    torch.save(content | {"config": asdict(other.config), "model": other.state_dict()}, tmp_path / "vqvae.pt")
    outcome = script("train_vae", *SMALL_VAE, "--output-dir", tmp_path)
    assert outcome.status == 1 and "sizes of the encoder and decoder of vqvae.pt changed since" in outcome.err
    assert (tmp_path / "vae.pt").read_bytes() == before
