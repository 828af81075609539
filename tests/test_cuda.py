"""What runs only on a GPU, at toy sizes: `python -m pytest -m cuda`. Each test skips where there is no GPU.

TEST_CUDA_DEVICE=cpu runs them on the CPU, to check the tests themselves; "cuda:1" takes another GPU. The tests without
the mark `cuda` need no GPU: they run the networks on tensors that say they are on one and hold no numbers, with the
rules of CUDA for devices and autocast.
"""
import importlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import faults
import pytest
import torch
from conftest import ROOT, SMALL, SMALL_VQVAE
from PIL import Image
from test_masked import random_model as random_masked
from test_sampler import kept, plain, random_model  # noqa: F401  (a fixture)
from torch._subclasses.fake_tensor import FakeTensorMode

import dataset
import train_vqvae
from modules import ARCHITECTURES, VQVAE, VectorQuantizer, VQVAEConfig, nearest_codes
from priors import runs
from priors import sampler as sampler_module
from priors.attention import attend
from priors.draws import Draw, uniforms
from priors.masked import nats_in_rounds
from priors.sampler import draw_grids, make_sampler
from priors.table import PRIORS
from running import devices, figures
from running.cli import UserError, parse
from training import checkpoint, loop
from training.optimizers import AdamW, Muon
from training.quantizers import make_vqvae

IN_RASTER_ORDER = ["pixelcnn", "transformer"]
FEW = ["--hidden", "16", "--layers", "2"]  # sizes of a prior
on_gpu = pytest.mark.cuda


@pytest.fixture(scope="module")
def device():
    name = os.environ.get("TEST_CUDA_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU (TEST_CUDA_DEVICE=cpu runs it on the CPU)")
    return devices.pick(name)


@pytest.fixture
def on_cuda(device):
    if device.type != "cuda":
        pytest.skip("has no meaning on the CPU")
    return device


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in float32: cuDNN rounds their inputs to TF32 otherwise, 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def no_plots(monkeypatch):
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)  # a second each


def train(name, device, output, *flags):
    """Run a training script on the device in this process."""
    module = importlib.import_module(name)
    module.main(parse(vars(module), [*map(str, flags), "--device", str(device), "--output-dir", str(output)]))


@pytest.fixture(scope="module")
def run(device, data_dir, tmp_path_factory):
    """The directory of a run of the device, with a VAE and every prior; copy it before changing anything in it."""
    output = tmp_path_factory.mktemp("cuda")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "save_curves", lambda *_: None)
        train("train_vqvae", device, output, *SMALL_VQVAE, "--data-dir", data_dir, "--epochs", 3)
        train("train_vae", device, output, *SMALL, "--latent-dim", 4)
        for prior in PRIORS:
            train("train_pixelcnn", device, output, *SMALL, *FEW, "--prior", prior, "--epochs", 3, "--dropout", 0.1,
                  "--sample-every", 3)
    return output


def history(output, stage, column):
    return [row[column] for row in checkpoint.load(str(output), stage)["training"]["history"]]


# ---- single operations


@on_gpu
def test_the_nearest_codes_are_those_of_float64(device):
    """TF32, or bfloat16 under autocast, would choose another code for one vector in a thousand or in a hundred."""
    generator = torch.Generator().manual_seed(0)
    z_e, codebook = (torch.randn(count, 64, generator=generator).to(device) for count in (20_000, 512))
    codes, distances = nearest_codes(z_e, codebook)
    exact = torch.cdist(z_e.double(), codebook.double()).square()
    torch.testing.assert_close(distances.double(), exact.min(1).values, atol=1e-3, rtol=0)
    torch.testing.assert_close(exact.gather(1, codes[:, None])[:, 0], exact.min(1).values, atol=1e-3, rtol=0)
    assert (codes == exact.argmin(1)).float().mean() > 0.9999
    quantizer = VectorQuantizer(512, 64).to(device).eval()
    latents = z_e.view(2, 100, 100, 64).permute(0, 3, 1, 2)
    with devices.autocast(device, "auto"):
        under = quantizer(latents).codes
    assert torch.equal(under, quantizer(latents).codes)


@on_gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_attention_with_shared_keys_is_the_formula(device, dtype, tolerance, causal):
    """The heads read the same keys by a stride of 0, which each of torch's kernels must get right, backward too."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(3, 49, channels, generator=generator) for channels in (64, 16, 16, 64)]
    *inputs, pull = [part.to(device, dtype) for part in made]
    inputs = [part.requires_grad_() for part in inputs]
    found = attend(*inputs, heads=4, causal=causal)
    gradients = torch.autograd.grad(found, inputs, pull)
    query, keys, values = copies = [part.detach().double().requires_grad_() for part in inputs]
    logits = torch.einsum("bqhc,bkc->bhqk", query.unflatten(2, (4, 16)), keys) / 4
    if causal:
        logits = logits.masked_fill(torch.ones(49, 49, device=device).triu(1).bool(), -torch.inf)
    expected = torch.einsum("bhqk,bkc->bqhc", logits.softmax(3), values).flatten(2)
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
    for gradient, other in zip(gradients, torch.autograd.grad(expected, copies, pull.double())):
        torch.testing.assert_close(gradient.double(), other, atol=4 * tolerance, rtol=tolerance)


@on_gpu
@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_optimisers_do_on_the_device_what_they_do_on_the_cpu(device, kind):
    """Kernels with their channels last, of 3x3 and 1x1, in float32."""
    torch.manual_seed(0)
    starts = [torch.randn(shape) for shape in ((32, 16, 3, 3), (32, 32, 1, 1), (1, 32, 3, 3), (32,))]
    grads = [[torch.randn_like(start) for start in starts] for _ in range(3)]
    ends = []
    for place in (torch.device("cpu"), device):
        weights = [torch.nn.Parameter(start.to(place, memory_format=torch.channels_last if start.dim() == 4
                                               else torch.contiguous_format, copy=True)) for start in starts]
        optimizer = kind(weights, 0.01)
        for step, parts in enumerate(grads):
            for weight, grad in zip(weights, parts):
                weight.grad = torch.empty_like(weight).copy_(grad)
            if step == 1:  # as a run that is continued: by way of the host
                state = {number: {name: value.cpu() for name, value in moments.items()}
                         for number, moments in optimizer.state_dict()["state"].items()}
                optimizer = kind(weights, 0.01)
                loop.continue_optimizer(optimizer, state)
            optimizer.step()
        ends.append([weight.detach().cpu() for weight in weights])
    for first, second in zip(*ends):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@on_gpu
def test_rows_that_stay_on_the_host_come_as_they_are(device, monkeypatch):
    """Through pinned memory, read by a thread; beside a tensor that is on the device."""
    monkeypatch.setattr(dataset, "DEVICE_SHARE", 0)
    images = torch.randint(256, (60, 3, 8, 8), dtype=torch.uint8)
    if device.type == "cuda":
        assert dataset.place(images, device).device.type == "cpu"
    order = torch.randperm(60).split(7)
    for index, (part, label) in zip(order, dataset.batches(order, device, images, torch.arange(60, device=device)),
                                    strict=True):
        assert part.device == label.device == device
        assert torch.equal(part.cpu(), images[index]) and torch.equal(label.cpu(), index)


# ---- sampling


@on_gpu
@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("prior", IN_RASTER_ORDER)
def test_samplers_draw_the_codes_of_the_plain_loop(device, exact, prior, guidance, kept):  # noqa: F811
    """Codes are equal, logits to 1e-4. A PixelCNN's row is a CUDA graph: for its logits it runs without one as well."""
    model = random_model(9, 3, 16, 3, 5, prior=prior).to(device)
    options = {"temperature": 0.9, "top_k": 7, "top_p": 0.95, "guidance": guidance}
    sampler = make_sampler(model, 4, 6, Draw(**options))
    if device.type == "cuda":
        assert (sampler.graph is not None) if prior == "pixelcnn" else not getattr(sampler, "graph", None)
    for seed, height in ((0, 4), (1, 4), (2, 8)):  # nothing of one call may be left for the next
        torch.manual_seed(seed)
        labels, uniform = torch.randint(4, (3,)), uniforms(seed, 0, 3, height, 6)
        known = torch.where(torch.rand(uniform.shape) < 0.3, torch.randint(9, uniform.shape), -1) if seed else None
        moved = None if known is None else known.to(device)
        codes, logits = plain(model, labels.to(device), uniform.to(device), moved, **options)
        assert torch.equal(sampler(labels, uniform, known), codes)
        if prior == "pixelcnn":
            graph, sampler.graph = sampler.graph, None
        kept.clear()
        assert torch.equal(sampler(labels, uniform, known), codes)
        fast_logits = torch.stack([step[:3] for step in kept], 2).view_as(logits)
        torch.testing.assert_close(fast_logits, logits, atol=1e-4, rtol=1e-4)
        if prior == "pixelcnn":
            sampler.graph = graph


@on_gpu
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("steps", [0, 3])
def test_rounds_on_the_device_are_those_on_the_cpu(device, exact, steps, guidance):
    model = random_masked()
    labels, uniform = torch.tensor([0, 1, 2, 0, 1]), uniforms(0, 0, 5, 4, 4)
    known = torch.where(torch.rand(5, 4, 4) < 0.3, torch.randint(7, (5, 4, 4)), -1)
    drawn = [make_sampler(model.to(place), 5, 4, Draw(guidance=guidance, steps=steps))(labels, uniform, known).cpu()
             for place in (torch.device("cpu"), device)]
    assert torch.equal(*drawn) and torch.equal(drawn[0][known >= 0], known[known >= 0])
    nats = [nats_in_rounds(model.to(place), drawn[0].to(place), labels.to(place), (known >= 0).to(place), steps).cpu()
            for place in (torch.device("cpu"), device)]
    torch.testing.assert_close(*nats, atol=1e-3, rtol=1e-4)


@on_gpu
@pytest.mark.parametrize("prior", IN_RASTER_ORDER)
def test_a_sample_depends_on_its_number_alone(device, exact, prior):
    model, labels = random_model(9, 3, 8, 3, 3, prior=prior).to(device), torch.arange(7) % 3
    drawn = [torch.cat(list(draw_grids(model, labels, (4, 4), 5, size))) for size in (7, 3, 2)]
    assert all(torch.equal(other, drawn[0]) for other in drawn[1:])


# ---- trainings


@on_gpu
def test_every_stage_learns_and_its_checkpoint_loads_on_the_cpu(device, run):
    columns = {"vqvae": "mse", "vae": "loss", "masked": "hidden_nll"} | dict.fromkeys(IN_RASTER_ORDER, "nll")
    for stage, column in columns.items():
        values = history(run, stage, f"validation_{column}")
        assert len(values) < 2 or values[-1] < values[0], (stage, values)
        content = torch.load(run / f"{stage}.pt", weights_only=True)  # where the tensors were saved
        assert {part.device.type for part in content["model"].values()} == {device.type}
        assert {part.dtype for part in content["model"].values()} == {torch.float32}
        assert {part.device.type for part in runs.build(checkpoint.load(str(run), stage)).parameters()} == {"cpu"}


@on_gpu
def test_a_decoder_is_finished(device, run, tmp_path, no_plots):
    shutil.copy(run / "vqvae.pt", tmp_path)
    train("train_decoder", device, tmp_path, *SMALL, "--epochs", 3)
    values = history(tmp_path, "decoder", "validation_loss")
    assert values[-1] < values[0]


@on_gpu
def test_a_step_computes_in_bfloat16_where_the_gpu_can(on_cuda):
    network = VQVAE(VQVAEConfig(3, 16, 1, 8, 4, 16, 8)).to(on_cuda)
    with devices.autocast(on_cuda, "auto"):
        output = network(torch.rand(2, 3, 16, 16, device=on_cuda))
    able = torch.cuda.get_device_capability(on_cuda) >= (8, 0)
    assert output.images.dtype == (torch.bfloat16 if able else torch.float32)


@on_gpu
@pytest.mark.parametrize("stage", ["vqvae", "vae", *PRIORS])
def test_compiled_steps_learn_as_plain_ones(device, data_dir, run, tmp_path, no_plots, stage):
    """To 5%: a compiled step rounds at other places, in bfloat16."""
    flags = {"vqvae": [*SMALL_VQVAE, "--data-dir", data_dir], "vae": [*SMALL, "--latent-dim", 4]}
    script = "train_pixelcnn" if stage in PRIORS else f"train_{stage}"
    columns = {"vqvae": "mse", "vae": "mse", "masked": "hidden_nll"}
    column = f"validation_{columns.get(stage, 'nll')}"
    ends = []
    for compiled in ("no", "yes"):
        output = tmp_path / compiled
        output.mkdir()
        if stage != "vqvae":
            shutil.copy(run / "vqvae.pt", output)
        train(script, device, output, *flags.get(stage, [*SMALL, *FEW, "--prior", stage]), "--compile", compiled)
        ends.append(history(output, stage, column)[-1])
    assert ends[1] == pytest.approx(ends[0], rel=0.05)


def deterministic() -> None:
    """Called first in a process: sums in a fixed order, where torch has such a way of computing them."""
    torch.use_deterministic_algorithms(True, warn_only=True)


@on_gpu
@pytest.mark.parametrize("stage, flags", [("vqvae", []), ("transformer", ["--dropout", "0.2"]),
                                          ("pixelcnn", ["--dropout", "0.2"]), ("masked", ["--dropout", "0.2"])])
def test_a_killed_training_continues_to_the_same_end(device, data_dir, run, tmp_path, stage, flags):
    """Equal to the bit, under torch's deterministic algorithms: weights, optimiser, sums and the generators of the CPU
    and of the GPU (revived codes, dropout) are all continued. Without these algorithms the end is close, not equal: the
    sums of `index_add_` (the moving averages of the codebook) and gradients by cuDNN are added up in any order.
    """
    script = "train_vqvae" if stage == "vqvae" else "train_pixelcnn"
    sizes = [*faults.SIZES["vqvae"], "--data-dir", data_dir] if stage == "vqvae" else [*FEW, "--prior", stage]
    context = multiprocessing.get_context("spawn")  # a process that was forked cannot use the GPU of its parent

    def end(output, step=None):
        words = [*sizes, *flags, "--limit", 200, "--batch-size", 19, "--epochs", 2, "--save-every", 1e-6, "--device",
                 device, "--output-dir", output]
        process = context.Process(target=faults._child, args=(
            script, list(map(str, words)), tmp_path / "log", signal.SIGKILL, None, step, None, 0.0,
            {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}, deterministic))
        process.start()
        return faults.finish(process)

    outputs = [tmp_path / name for name in ("whole", "killed")]
    for output in outputs:
        output.mkdir()
        if stage != "vqvae":
            shutil.copy(run / "vqvae.pt", output)
    assert end(outputs[0]) == 0, (tmp_path / "log").read_text()
    assert end(outputs[1], step=15) == -signal.SIGKILL
    assert checkpoint.load(str(outputs[1]), stage)["training"]["step"] == 4  # of the second epoch of 10 steps
    assert end(outputs[1]) == 0, (tmp_path / "log").read_text()
    assert faults.compare(*outputs, stage) == []


@on_gpu
@pytest.mark.parametrize("prior", ["pixelcnn", "transformer"])
def test_a_run_changes_its_device(script, device, run, tmp_path, no_plots, prior):
    """With Adam, whose counts of steps lie on the GPU there, and with Muon."""
    for name in ("vqvae", prior):
        shutil.copy(run / f"{name}.pt", tmp_path)
    for epochs, place in ((4, "cpu"), (5, device)):
        outcome = script("train_pixelcnn", *SMALL, *FEW, "--prior", prior, "--dropout", 0.1, "--sample-every", 3,
                         "--output-dir", tmp_path, "--epochs", epochs, "--device", place)
        assert outcome.status == 0, outcome.err
    assert history(tmp_path, prior, "epoch") == [1, 2, 3, 4, 5]


# ---- scripts


@on_gpu
def test_the_scripts_end_to_end(script, device, run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    here = ["--output-dir", tmp_path, "--device", device]
    judged = ["--num-samples", 60, "--classifier-epochs", 1, "--batch-size", 25]
    calls = [("reconstruct", "--num-images", 2), ("random_sample", "--num-samples", 3), ("evaluate", *judged),
             ("score", "--num-images", 2, "--limit", 20, "--prior", "transformer"),
             ("ablation", *judged, "--prior", "masked", "--step-counts", "2"),
             *(("generate", "--num-samples", 6, "--prior", prior, "--guidance", 1.5) for prior in PRIORS),
             *(("complete", "--num-images", 2, "--num-completions", 2, "--mask", "center", "--class-given", "--prior",
                prior) for prior in PRIORS)]
    for name, *flags in calls:
        outcome = script(name, *here, *flags)
        assert outcome.status == 0, (name, flags, outcome.err)
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert {*PRIORS, "VAE samples"} <= set(rows)
    for name in ("samples.png", "completions.png", "scores.png", "reconstructions.png", "random_samples.png"):
        assert Image.open(tmp_path / name).size[0] > 50
    # drawn on the CPU from what the GPU learnt
    assert script("generate", "--output-dir", tmp_path, "--device", "cpu", "--num-samples", 2, "--seed",
                  9).status == 0


@on_gpu
def test_one_process_under_torchrun(device, data_dir, run, tmp_path):
    """The group of processes, by NCCL on a GPU, is made and left; the process takes the GPU of its number."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    here = ["--output-dir", tmp_path, "--device", device.type]
    for name, *flags in (("train_vqvae", *SMALL_VQVAE, "--data-dir", data_dir),
                         ("train_pixelcnn", *SMALL, *FEW, "--prior", "pixelcnn"), ("generate", "--num-samples", 4)):
        ended = subprocess.run([*torchrun, ROOT / f"{name}.py", *map(str, [*flags, *here])], capture_output=True,
                               text=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "samples.png").exists()


@on_gpu
def test_out_of_memory_is_one_line(script, on_cuda, data_dir, tmp_path):
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(on_cuda).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(on_cuda) + 2**26) / total, on_cuda)
    try:
        outcome = script("train_vqvae", *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path,
                         "--hidden", 2048, "--device", on_cuda)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, on_cuda)
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1] == "train_vqvae.py: error: out of memory: try a smaller --batch-size"
    assert "Traceback" not in outcome.err


# ---- without a GPU


@pytest.fixture
def fake():
    """A GPU that computes nothing: an operation on tensors of two devices fails, and so does one that reads a value
    back, such as `item`. Autocast gives the types that it would.
    """
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    with FakeTensorMode():
        yield torch.device("cuda:0")
    torch.set_autocast_enabled("cuda", before[0])
    torch.set_autocast_dtype("cuda", before[1])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("quantizer, code_dim, gradient", [("vq", 8, "straight"), ("vq", 8, "rotation"),
                                                           ("fsq", 2, "straight"), ("bsq", 4, "straight"),
                                                           ("simvq", 8, "straight")])
def test_a_vqvae_keeps_to_its_device_and_its_quantizer_to_float32(fake, architecture, quantizer, code_dim, gradient):
    with fake:
        network = make_vqvae(VQVAEConfig(3, 16, 1, 8, 4, 16, code_dim, architecture=architecture, quantizer=quantizer,
                                         gradient=gradient))
    images = torch.rand(2, 3, 30, 32, device=fake)
    network.quantizer.start(network.latents(images))
    torch.set_autocast_enabled("cuda", True)
    output = network(images)  # moves and revives codes
    terms = train_vqvae.compare(images, output)
    assert output.images.dtype == torch.bfloat16
    assert {part.dtype for part in terms.values() if part.is_floating_point()} == {torch.float32}
    quantized = output.quantized
    assert all(part.dtype == torch.float32 for part in (quantized.z_e, quantized.z_q, quantized.distances))
    assert all(part.device == fake for part in (*network.state_dict().values(), *terms.values()))


@pytest.mark.parametrize("prior", PRIORS)
def test_a_prior_and_its_sampler_keep_to_their_device(fake, monkeypatch, prior):
    """The row that a CUDA graph captures is run once here as it is there: a capture cannot read anything back."""
    network, config = PRIORS[prior][:2]
    sizes = {"num_codes": 16, "num_classes": 3, "hidden": 16, "layers": 2, "kernel_size": 5}
    sizes |= {"transformer": {"heads": 2}, "masked": {"heads": 2}}.get(prior, {})
    with fake:
        model = network(config(**sizes))
    grids, labels = torch.zeros(2, 4, 6, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    torch.set_autocast_enabled("cuda", True)
    logits = model(grids.to(fake), labels.to(fake))
    assert logits.device == fake and logits.dtype == torch.bfloat16
    torch.set_autocast_enabled("cuda", False)
    if prior == "masked":  # its rounds read back how many codes they draw
        return
    rows = []

    def capture(sampler):
        sampler._next_row(rows_below=sampler.reach)
        rows.append(sampler.codes.device)
    monkeypatch.setattr(sampler_module.PixelCNNSampler, "_capture", capture)
    sampler = make_sampler(model.eval(), 3, 6, Draw(0.9, 3, 0.9, 1.5))
    assert rows == ([fake] if prior == "pixelcnn" else [])
    drawn = sampler(labels, torch.zeros(2, 4, 6), grids - 1)  # from the host
    assert drawn.device == fake and drawn.shape == (2, 4, 6)


def test_a_run_on_the_cpu_starts_no_gpu(copied, script, data_dir, monkeypatch):
    """Where there is one: it may be full, or another's."""
    def refuse(*_):
        raise AssertionError("the GPU was asked for")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_device", "get_device_capability"):
        monkeypatch.setattr(torch.cuda, name, refuse)
    flags = [*SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", copied, "--epochs", 2]
    assert script("train_vqvae", *flags).status == 0


@pytest.mark.parametrize("capability, able", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bfloat16_only_where_the_gpu_has_convolutions_in_it(monkeypatch, capability, able):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype, enabled: asked.append((kind, dtype, enabled)))
    cuda = torch.device("cuda:0")
    for wanted in ("auto", "float32"):
        devices.autocast(cuda, wanted)
    assert asked == [("cuda", torch.bfloat16, able), ("cuda", torch.bfloat16, False)]
    if able:
        assert devices.precision(cuda, "bfloat16") == torch.bfloat16
    else:
        with pytest.raises(UserError, match="choose float32"):
            devices.precision(cuda, "bfloat16")
