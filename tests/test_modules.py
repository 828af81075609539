"""The quantizer, the VQ-VAE and the PixelCNN against what their papers say."""
from dataclasses import asdict

import pytest
import torch
from plain import sample
from torch import nn
from torch.nn import functional as F

import dataset
import modules
from modules import (
    VQVAE,
    CausalConv2d,
    GatedBlock,
    PixelCNN,
    PixelCNNConfig,
    VectorQuantizer,
    VQVAEConfig,
    nearest_codes,
)
from priors.codes import perplexity
from priors.draws import guide


def test_the_sizes_have_defaults():
    """For who tries modules.py alone."""
    images = torch.rand(2, 3, 16, 16)
    assert VQVAE(VQVAEConfig(channels=3))(images).images.shape == images.shape


def small_vqvae(**changes):
    config = dict(channels=1, hidden=16, residual_blocks=1, residual_hidden=8, downsample=4, num_codes=12, code_dim=6)
    return VQVAE(VQVAEConfig(**(config | changes)))


# ---- quantizer


@pytest.mark.parametrize("chunk", [2**24, 40])
def test_nearest_codes_against_brute_force(monkeypatch, chunk):
    monkeypatch.setattr(modules, "NEAREST_CHUNK", chunk)
    z_e, codebook = torch.randn(37, 5), torch.randn(11, 5)
    squared = (z_e[:, None] - codebook[None]).square().sum(2)
    codes, distances = nearest_codes(z_e, codebook)
    assert torch.equal(codes, squared.argmin(1))
    torch.testing.assert_close(distances, squared.min(1).values, atol=1e-5, rtol=1e-4)


def test_autocast_changes_no_code():
    quantizer = VectorQuantizer(256, 32).eval()
    z_e = torch.randn(4, 32, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        codes = quantizer(z_e).codes
    assert torch.equal(codes, quantizer(z_e).codes)


def test_perplexity_is_the_number_of_codes_in_even_use():
    assert perplexity(torch.tensor([5, 5, 0, 5, 5])) == pytest.approx(4)
    assert perplexity(torch.tensor([0, 9, 0])) == pytest.approx(1)


def test_straight_through_gradient_is_that_of_the_decoder_input():
    quantizer = VectorQuantizer(7, 4).eval()
    quantizer.normalise = lambda z_e: z_e.permute(0, 2, 3, 1)  # the identity but for the layout
    z_e = torch.randn(2, 4, 3, 3, requires_grad=True)
    z_q = quantizer(z_e).z_q
    z_q.retain_grad()
    (torch.randn_like(z_q) * z_q.sin()).sum().backward()
    assert z_q.grad.abs().sum() > 0
    torch.testing.assert_close(z_e.grad, z_q.grad)


def test_quantized_vectors_are_the_nearest_codes():
    quantizer = VectorQuantizer(7, 4).eval()
    z_e = torch.randn(2, 4, 3, 5)
    out = quantizer(z_e)
    torch.testing.assert_close(out.z_q, quantizer.look_up(out.codes))
    assert out.codes.shape == (2, 3, 5) and out.counts.sum() == 30
    normal = quantizer.normalise(z_e)
    torch.testing.assert_close(normal.mean(3), torch.zeros(2, 3, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(normal.var(3, correction=0), torch.ones(2, 3, 5), atol=1e-3, rtol=0)


def test_ema_update_by_hand():
    quantizer = VectorQuantizer(2, 2, ema_decay=0.9, revive_below=0.0)
    quantizer.normalise = lambda z_e: z_e.permute(0, 2, 3, 1)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    quantizer.codebook.copy_(start)
    quantizer.sums.copy_(start)                                   # N = (1, 1) and m = e, in shares of 2 vectors a code
    vectors = torch.tensor([[2.0, 1.0], [1.5, 0.0], [0.5, 2.0], [-3.0, 1.0]])  # three choose code 0, one code 1
    quantizer(vectors.T.reshape(1, 2, 2, 2))
    counts = torch.tensor([0.9 * 1 + 0.1 * 3 / 2, 0.9 * 1 + 0.1 * 1 / 2])       # [1], eq. 6
    sums = torch.stack([0.9 * start[0] + 0.1 * vectors[:3].sum(0) / 2, 0.9 * start[1] + 0.1 * vectors[3] / 2])  # eq. 7
    torch.testing.assert_close(quantizer.usage, counts)
    torch.testing.assert_close(quantizer.codebook, sums / counts[:, None])      # eq. 8


def test_a_code_that_nothing_chooses_stays_where_it_is():
    quantizer = VectorQuantizer(2, 2, ema_decay=0.5, revive_below=0.0)
    quantizer.normalise = lambda z_e: z_e.permute(0, 2, 3, 1)
    start = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    quantizer.codebook.copy_(start)
    quantizer.sums.copy_(start)
    for _ in range(300):                                          # usage 2^-300 is 0 in float32
        quantizer(torch.tensor([2.0, 0.0]).view(1, 2, 1, 1))
    torch.testing.assert_close(quantizer.codebook, torch.tensor([[2.0, 0.0], [-1.0, 0.0]]))


def test_evaluation_leaves_the_codebook_alone():
    quantizer = VectorQuantizer(5, 4).eval()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 4, 3, 3))
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_losses_move_what_they_should_and_nothing_else(codebook):
    quantizer = VectorQuantizer(5, 4, codebook)
    z_e = torch.randn(2, 4, 3, 3, requires_grad=True)
    out = quantizer(z_e)
    assert torch.autograd.grad(out.commitment_loss, z_e, retain_graph=True)[0].abs().sum() > 0
    if codebook == "ema":
        assert not quantizer.codebook.requires_grad and not out.codebook_loss.requires_grad
        return
    on_z_e, on_codebook = torch.autograd.grad(out.codebook_loss, (z_e, quantizer.codebook), allow_unused=True,
                                              retain_graph=True)
    assert on_z_e is None and on_codebook.abs().sum() > 0
    for loss in (out.commitment_loss, out.z_q.sum()):
        assert torch.autograd.grad(loss, quantizer.codebook, allow_unused=True, retain_graph=True)[0] is None


def test_the_codebook_starts_from_encoder_outputs():
    quantizer = VectorQuantizer(20, 4)
    z_e = torch.randn(3, 4, 5, 5)
    quantizer.start(z_e)
    outputs = quantizer.normalise(z_e).flatten(0, 2)
    assert (quantizer.codebook[:, None] == outputs[None]).all(2).any(1).all()
    assert len(quantizer.codebook.unique(dim=0)) > 15  # a draw may come twice; such a code is revived later


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_dead_codes_are_revived_from_current_encoder_outputs(codebook):
    quantizer = VectorQuantizer(6, 4, codebook)
    z_e = torch.randn(4, 4, 5, 5)
    quantizer.start(z_e)
    with torch.no_grad():
        quantizer.codebook[2:4] = 1e3  # nothing is near them
        quantizer.sums[2:4] = 1e3 * quantizer.usage[2:4, None]
    for _ in range(200):
        quantizer(z_e)
    counts = quantizer.eval()(z_e).counts
    assert (counts > 0).all()


def test_the_default_keeps_its_codebook_alive(data_dir):
    """At a learning rate of 2e-3, at which a codebook without its cures collapses within these steps."""
    torch.manual_seed(0)
    images = dataset.load("glyphs", str(data_dir), limit=2000).train.images
    model = VQVAE(VQVAEConfig(1, 32, 1, 16, 4, 64, 32))
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
    model.quantizer.start(model.latents(dataset.to_float(images[:128])))
    for _ in range(150):
        batch = dataset.to_float(images[torch.randint(len(images), (64,))])
        output = model(batch)
        loss = F.mse_loss(output.images, batch) / 0.05 + 0.25 * output.quantized.commitment_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        batch = dataset.to_float(images)
        output = model.eval()(batch)
    counts = output.quantized.counts
    assert (counts > 0).float().mean() >= 0.95 and perplexity(counts) > 20
    assert F.mse_loss(output.images, batch) < 0.5 * batch.var()


# ---- VQ-VAE


@pytest.mark.parametrize("architecture", modules.ARCHITECTURES)
@pytest.mark.parametrize("downsample", [2, 4, 8])
@pytest.mark.parametrize("channels, height, width", [(1, 28, 28), (3, 32, 32), (1, 1, 1), (3, 17, 31), (1, 5, 40)])
def test_every_size_comes_back_as_it_went_in(downsample, channels, height, width, architecture):
    model = small_vqvae(channels=channels, downsample=downsample, architecture=architecture).eval()
    images = torch.rand(2, channels, height, width)
    output = model(images)
    assert output.images.shape == images.shape
    codes = model.encode(images)
    assert torch.equal(codes, output.quantized.codes)
    assert codes.shape[1:] == model.grid(height, width) == (-(-height // downsample), -(-width // downsample))
    torch.testing.assert_close(model.decode(codes, height, width), output.images.clamp(0, 1))


@pytest.mark.parametrize("architecture", modules.ARCHITECTURES)
def test_it_is_encoder_quantizer_decoder(architecture):
    torch.manual_seed(0)
    model = small_vqvae(architecture=architecture)
    images = torch.rand(3, 1, 9, 13)
    expected = model.eval().quantizer(model.encoder(F.pad(images, (0, 3, 0, 3), mode="replicate")))
    assert torch.equal(model.encode(images), expected.codes)
    assert torch.equal(model(images).images, model.decoder(expected.z_q)[:, :, :9, :13])


def test_encoding_moves_no_codebook():
    model = small_vqvae().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.encode(torch.rand(2, 1, 16, 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(torch.rand(2, 1, 16, 16))
    assert not torch.equal(model.quantizer.usage, torch.ones(12))


def test_networks_are_rebuilt_from_their_configuration():
    for network in (small_vqvae(codebook="gradient"), PixelCNN(PixelCNNConfig(7, 3, 8, 2, 3))):
        again = type(network)(type(network.config)(**asdict(network.config)))
        again.load_state_dict(network.state_dict())
        assert again.config == network.config


# ---- PixelCNN

CONFIGS = [(3, 1), (3, 4), (5, 3)]  # kernel size, layers


def randomised(kernel_size, layers, num_classes=2, num_codes=7):
    """A PixelCNN whose weights are all random, large enough that every dependence shows."""
    torch.manual_seed(0)
    model = PixelCNN(PixelCNNConfig(num_codes, num_classes, 8, layers, kernel_size)).double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


def stacks(model, codes, labels):
    """The outputs of the vertical and the horizontal stack, and the logits."""
    kept = []
    hook = model.blocks[-1].register_forward_hook(lambda *parts: kept.append(parts[2]))
    logits = model(codes, labels)
    hook.remove()
    return *kept[0], logits


@pytest.mark.parametrize("kernel_size, layers", CONFIGS)
def test_causal_at_every_position_and_in_both_stacks(kernel_size, layers):
    height, width = 4, 5
    model = randomised(kernel_size, layers)
    codes, labels = torch.randint(7, (1, height, width)), torch.tensor([1])
    before = stacks(model, codes, labels)
    for place in range(height * width):
        row, column = divmod(place, width)
        changed = codes.clone()
        changed[0, row, column] = (changed[0, row, column] + 1) % 7
        moved = [(new - old).abs().amax((0, 1)) > 0 for new, old in zip(stacks(model, changed, labels), before)]
        vertical, horizontal, logits = moved
        assert not vertical[:row + 1].any()                  # rows below alone
        for stack in (horizontal, logits):
            assert not stack.flatten()[:place + 1].any()     # later codes alone
            assert stack.flatten()[place + 1:].any() or place == height * width - 1


@pytest.mark.parametrize("kernel_size, layers", [(3, 7), (5, 4)])
def test_no_blind_spot(kernel_size, layers):
    """With enough layers every earlier code, however far to the right above, reaches every later logit."""
    height, width = 4, 6
    model = randomised(kernel_size, layers)
    codes, labels = torch.randint(7, (1, height, width)), torch.tensor([0])
    before = model(codes, labels)
    for place in range(height * width):
        changed = codes.clone().flatten(1)
        changed[0, place] = (changed[0, place] + 1) % 7
        moved = (model(changed.view_as(codes), labels) - before).abs().amax((0, 1)).flatten() > 0
        assert moved[place + 1:].all()


@pytest.mark.parametrize("mask", ["A", "B"])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stack", ["vertical", "horizontal"])
def test_causal_convolution_is_the_masked_one(stack, kernel_size, mask):
    """The cropped kernel against an ordinary convolution with the zeros written into it."""
    conv = CausalConv2d(3, 4, kernel_size, stack, mask)
    full = torch.zeros(4, 3, kernel_size, kernel_size)
    length, reach = conv.weight.shape[2 if stack == "vertical" else 3], kernel_size // 2
    assert length == reach + (mask == "B")
    if stack == "vertical":
        full[:, :, :length] = conv.weight
    else:
        full[:, :, reach, :length] = conv.weight[:, :, 0]
    x = torch.randn(2, 3, 6, 5)
    torch.testing.assert_close(conv(x), F.conv2d(x, full, conv.bias, padding=reach))


def test_gate_and_its_gradient_are_those_of_tanh_and_sigmoid():
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64, requires_grad=True)
    signal, valve = x.chunk(2, 1)
    plain = signal.tanh() * valve.sigmoid()
    torch.testing.assert_close(modules.gate(x), plain)
    assert torch.autograd.gradcheck(modules.gate, x)


def test_both_stacks_stay_in_float32_under_autocast():
    block = GatedBlock(4, 3, "B")
    stack = torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert [part.dtype for part in block(stack, stack, torch.zeros(2, 16, 1, 1))] == [torch.float32] * 2


def test_the_class_matters_once_it_is_learnt():
    model = randomised(3, 2)
    codes = torch.randint(7, (1, 3, 3))
    outputs = [model(codes, torch.tensor([label])) for label in range(3)]  # the last one: no class
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(outputs, outputs[1:]))


def test_guidance_weighs_what_the_class_tells():
    """p(code | class)^s p(code)^(1 - s), normalised: 0 is no class, 1 the class, and 3 goes beyond it."""
    given, free = torch.randn(2, 5, 7, dtype=torch.float64) * 3
    for s in (0, 1, 1.5, 3):
        expected = given.softmax(1) ** s * free.softmax(1) ** (1 - s)
        torch.testing.assert_close(guide(given, free, s).softmax(1), expected / expected.sum(1, keepdim=True))


def test_a_guided_draw_is_that_of_a_network_with_guided_logits():
    torch.manual_seed(0)
    model = PixelCNN(PixelCNNConfig(12, 3, 8, 2, 3)).eval()
    nn.init.normal_(model.condition.weight)
    labels, uniform = torch.arange(6) % 3, torch.rand(6, 3, 4)

    def guided(codes, labels):
        return 3 * model(codes, labels) - 2 * model(codes, torch.full_like(labels, 3))
    codes = sample(model, labels, uniform, guidance=3)
    assert torch.equal(codes, sample(guided, labels, uniform))
    assert not torch.equal(codes, sample(model, labels, uniform))


def test_the_vqvae_is_laid_out_as_ever():
    """Layer by layer, and so the same names and, for the same seed, the same weights: old checkpoints and runs hold."""
    def block():
        return modules.ResidualBlock(16, 8)
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(),
                            nn.Conv2d(16, 16, 3, padding=1), block(), block(), nn.ReLU(), nn.Conv2d(16, 6, 1))
    quantizer = VectorQuantizer(12, 6)
    decoder = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), block(), block(), nn.ReLU(),
                            nn.ConvTranspose2d(16, 8, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1))
    expected = nn.ModuleDict({"encoder": encoder, "quantizer": quantizer, "decoder": decoder}).state_dict()
    torch.manual_seed(3)
    state = small_vqvae(residual_blocks=2).state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in state)
