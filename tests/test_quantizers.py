"""The quantizers against an independent implementation (vector-quantize-pytorch), and through a training."""
import math

import pytest
import torch
from conftest import SMALL_PIXELCNN, SMALL_VQVAE
from torch.nn import functional as F

from modules import VectorQuantizer, VQVAEConfig, rotate
from priors import runs
from training import quantizers
from training.quantizers import BinaryQuantizer, FiniteScalarQuantizer, LinearQuantizer, code_dim, levels

oracle = pytest.importorskip("vector_quantize_pytorch")
Z_E = (3, 4, 5)  # images, grid height and width


def config(quantizer, num_codes, gradient="straight"):
    return VQVAEConfig(1, num_codes=num_codes, code_dim=code_dim(quantizer, num_codes), quantizer=quantizer,
                       gradient=gradient)


def latents(channels, scale=1.5):
    torch.manual_seed(0)
    return scale * torch.randn(Z_E[0], channels, *Z_E[1:])


def test_vq_gives_the_codes_and_losses_of_the_oracle():
    ours = VectorQuantizer(20, 8, codebook="gradient").eval()
    theirs = oracle.VectorQuantize(8, codebook_size=20, learnable_codebook=True, ema_update=False,
                                   accept_image_fmap=True)
    theirs.eval()._codebook.embed.data.copy_(ours.codebook.data[None])
    z_e = latents(8)
    found = ours.quantize(z_e)
    z_q, codes, _ = theirs(found.z_e)
    assert torch.equal(found.codes, codes) and len(codes.unique()) > 5
    torch.testing.assert_close(found.z_q, z_q)
    torch.testing.assert_close(found.commitment_loss, F.mse_loss(found.z_e, z_q.detach()))


@pytest.mark.parametrize("num_codes", [15, 64, 240, 512, 1000])
def test_fsq_gives_the_codes_and_the_gradient_of_the_oracle(num_codes):
    z_e = latents(len(levels(num_codes))).requires_grad_()
    ours, theirs = FiniteScalarQuantizer(config("fsq", num_codes)), oracle.FSQ(levels(num_codes))
    found = ours(z_e)
    z_q, codes = theirs(z_e)
    assert torch.equal(found.codes, codes.long()) and len(codes.unique()) > 7
    torch.testing.assert_close(found.z_q, z_q)
    torch.testing.assert_close(ours.look_up(found.codes), theirs.indices_to_codes(codes))
    weights = torch.randn(z_q.shape)
    for gradient, expected in zip(*(torch.autograd.grad((part * weights).sum(), z_e) for part in (found.z_q, z_q))):
        torch.testing.assert_close(gradient, expected)
    assert found.codebook_loss == found.commitment_loss == 0


@pytest.mark.parametrize("num_codes, expected", [(240, [8, 6, 5]), (1000, [8, 5, 5, 5]), (4375, [7, 5, 5, 5, 5]),
                                                 (15360, [8, 8, 8, 6, 5]), (128, [8, 4, 4]), (512, [8, 8, 8])])
def test_the_levels_of_fsq_are_those_of_the_paper(num_codes, expected):
    assert levels(num_codes) == expected and math.prod(expected) == num_codes


def test_bsq_gives_the_codes_and_losses_of_the_oracle():
    z_e = latents(7).requires_grad_()
    ours = BinaryQuantizer(config("bsq", 128)).train()
    theirs = oracle.LFQ(dim=7, spherical=True, entropy_loss_weight=quantizers.ENTROPY_WEIGHT,
                        commitment_loss_weight=1.0).train()
    found = ours(z_e)
    (z_q, codes, _), parts = theirs(z_e, inv_temperature=quantizers.SHARPNESS, return_loss_breakdown=True)
    assert torch.equal(found.codes, codes.long()) and len(codes.unique()) > 20
    torch.testing.assert_close(found.z_q, z_q)
    torch.testing.assert_close(found.commitment_loss, parts.commitment)
    entropies = parts.per_sample_entropy - parts.batch_entropy  # whose logarithms stop at 1e-5
    torch.testing.assert_close(found.codebook_loss, quantizers.ENTROPY_WEIGHT * entropies, atol=1e-3, rtol=1e-3)
    assert torch.autograd.grad(found.codebook_loss, z_e)[0].abs().sum() > 0


@pytest.mark.parametrize("gradient", ["straight", "rotation"])
def test_simvq_gives_the_codes_losses_and_gradients_of_the_oracle(gradient):
    ours = LinearQuantizer(config("simvq", 30, gradient))
    theirs = oracle.SimVQ(32, 30, rotation_trick=gradient == "rotation", input_to_quantize_commit_loss_weight=0.25)
    theirs.frozen_codebook.copy_(ours.rows)
    torch.nn.init.normal_(ours.map, std=0.3)
    theirs.code_transform.weight.data.copy_(ours.map.T)
    z_e = latents(32).requires_grad_()
    found = ours(z_e)
    z_q, codes, loss = theirs(found.z_e.permute(0, 2, 3, 1))
    assert torch.equal(found.codes, codes) and len(codes.unique()) > 5
    torch.testing.assert_close(found.z_q.permute(0, 2, 3, 1), z_q)
    torch.testing.assert_close(found.codebook_loss + 0.25 * found.commitment_loss, loss)
    weights = torch.randn(z_q.shape)
    gradients = [torch.autograd.grad((part * weights).sum(), z_e, retain_graph=True)[0]
                 for part in (found.z_q.permute(0, 2, 3, 1), z_q)]
    torch.testing.assert_close(*gradients)
    [ours_map] = torch.autograd.grad(found.codebook_loss, ours.map)
    torch.testing.assert_close(ours_map.T, *torch.autograd.grad(loss, theirs.code_transform.weight))


def test_the_rotation_turns_the_gradient_as_it_turns_z_e():
    """By the rotation's own matrix: it maps z_e onto z_q, and the gradient is multiplied by its transpose."""
    torch.manual_seed(0)
    z_e, z_q, weights = (torch.randn(6, 5, dtype=torch.float64) for _ in range(3))
    z_e.requires_grad_()
    passed = rotate(z_e, z_q)
    torch.testing.assert_close(passed, z_q)
    [gradient] = torch.autograd.grad((passed * weights).sum(), z_e)
    for row in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda z: rotate(z, z_q[row]), z_e[row].detach())
        scale = z_q[row].norm() / z_e[row].norm()
        torch.testing.assert_close(jacobian @ jacobian.T, scale**2 * torch.eye(5, dtype=torch.float64))
        torch.testing.assert_close(gradient[row], jacobian.T @ weights[row])


@pytest.mark.parametrize("flags", [["--quantizer", "fsq"], ["--quantizer", "bsq"], ["--quantizer", "simvq"],
                                   ["--gradient", "rotation"]], ids=lambda flags: flags[1])
def test_a_quantizer_goes_through_every_script(done, data_dir, tmp_path, monkeypatch, flags):
    """Trained, continued, drawn from, scored, shared, and drawn from what was shared: the same images."""
    monkeypatch.setattr("running.figures.save_curves", lambda *_: None)
    run, place = tmp_path / "run", tmp_path / "place"
    train = ["train_vqvae", *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", run, "--code-dim", "auto", *flags]
    done(*train)
    outcome = done(*train, "--epochs", 2)
    assert "after epoch 1 of 2" in outcome.out
    done("train_pixelcnn", *SMALL_PIXELCNN, "--output-dir", run)
    for name, *more in (["reconstruct", "--num-images", 2], ["random_sample", "--num-samples", 2],
                        ["random_sample", "--num-samples", 2, "--source", "gaussian"], ["complete", "--num-images", 1],
                        ["score", "--num-images", 1], ["share", "--shared-dir", place, "--no-half"]):
        done(name, "--output-dir", run, *more)
    images = []
    for weights in (run, place):
        done("generate", "--pretrained", weights, "--output-dir", tmp_path, "--num-samples", 2)
        images.append([(tmp_path / f"sample_{i}.png").read_bytes() for i in range(2)])
    stored, vqvae = runs.load_vqvae(str(run))
    used = vqvae.quantizer
    assert type(used) is quantizers.QUANTIZERS.get(stored["config"]["quantizer"], VectorQuantizer)
    assert used.gradient == stored["config"]["gradient"] and images[0] == images[1]


@pytest.mark.parametrize("flags, line", [
    (["--quantizer", "fsq", "--num-codes", 22], "NUM_CODES (--num-codes) must be a product of numbers from 3 to 8"),
    (["--quantizer", "bsq", "--num-codes", 20], "NUM_CODES (--num-codes) must be a power of 2 for bsq, not 20"),
    (["--quantizer", "fsq", "--num-codes", 64, "--code-dim", 5], "CODE_DIM (--code-dim) must be 2 for fsq of 64 codes"),
])
def test_sizes_that_a_quantizer_cannot_have_are_one_line(script, data_dir, tmp_path, flags, line):
    outcome = script("train_vqvae", *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path, *flags)
    assert outcome.status == 1 and outcome.err.count("\n") == 1 and line in outcome.err
