"""Measure the speed of sampling, training, quantizing, encoding and starting; print a table and write it as JSON.

Every figure is the median over repeats, after a warm-up, with the smallest and the largest value beside it. Functions
that are compared run in turn in one process, and a ratio is the median of the ratios of each turn. Sampling is compared
with one forward pass over the same grids, which has all the multiplications that a sampler needs, and sampling with
guidance with sampling without. Training is compared with the rate of a large matrix product.
"""
import running.start  # noqa: F401

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from modules import VQVAE, PixelCNN, PixelCNNConfig, VQVAEConfig, sample
from priors.codes import cross_entropy
from priors.draws import Draw, uniforms
from priors.levels import TwoLevelVQVAE
from priors.sampler import make_sampler
from priors.table import PRIORS
from running import devices
from running.cli import run as run_script
from running.files import atomic
from training.optimizers import AdamW

OUTPUT_DIR = "output"     # where benchmark.json is written
REPEATS = 5               # turns that are counted, after one that is not
GRIDS = "8 16 32"         # sizes of the square grids to sample, in codes
BATCHES = "1 16 64"       # how many grids at once
PER_CODE_GRIDS = "8 16 32 64"  # sizes of the grids for the cost of a code
PER_CODE_BATCH = 16       # grids at once for the cost of a code
PLAIN_CODES = 2           # codes that the plain loop draws; its time for a whole grid is extrapolated from them
COMPILED = True           # also measure compiled training steps, which compile for a minute or two first
PRECISION = "auto"        # of training steps, and of the product: as that of train_vqvae.py
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
SEED = 0                  # of weights and data, which do not affect the figures

PRIOR = {"num_codes": 512, "num_classes": 10, "hidden": 64, "layers": 15, "kernel_size": 3}
LARGE_PRIORS = {"pixelcnn": PRIOR,  # the transformer: as train_pixelcnn.py makes it for grids of more than 64 codes
                "transformer": PRIOR | {"hidden": 96, "layers": 4, "heads": 4}}
MNIST_PRIORS = {"pixelcnn": {"hidden": 64, "layers": 6, "kernel_size": 3},  # as the README trains them
                "transformer": {"hidden": 64, "layers": 4, "kernel_size": 3, "heads": 4}}
STANDARD = {"channels": 3, "hidden": 128, "residual_blocks": 2, "residual_hidden": 32, "downsample": 4,
            "num_codes": 512, "code_dim": 64}
MATRIX = 2048             # rows and columns of the matrix product


class Turns:
    """Functions timed in turn, A B C A B C ..., so that a drift of the machine's speed affects all of them alike."""

    def __init__(self, device: torch.device, repeats: int, **functions: Callable[[], Any]):
        self.times: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(repeats + 1):
            for name, function in functions.items():
                self._wait(device)
                start = time.perf_counter()
                function()
                self._wait(device)
                if turn:
                    self.times[name].append(time.perf_counter() - start)

    @staticmethod
    def _wait(device: torch.device) -> None:
        if device.type != "cpu":
            getattr(torch, device.type).synchronize()

    def seconds(self, name: str) -> dict[str, float]:
        return spread(self.times[name])

    def ratio(self, above: str, below: str, factor: float = 1.0) -> dict[str, float]:
        return spread([factor * a / b for a, b in zip(self.times[above], self.times[below])])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(figure: dict[str, float], unit: str = "", scale: float = 1.0) -> str:
    median, low, high = (f"{figure[key] * scale:.3g}" for key in ("median", "low", "high"))
    return f"{median}{unit} ({low} to {high})"


def make(name: str, **sizes: int) -> nn.Module:
    """An untrained prior."""
    return PRIORS[name].network(PRIORS[name].config(**sizes))


def sampling(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every sampler, compared with one forward pass over the same grids and with the plain loop."""
    rows = []
    for name, sizes in LARGE_PRIORS.items():
        model = make(name, **sizes)
        rows += [race(model, f"{name}, {batch} x {size}x{size}", batch, size, device, args)
                 for size in map(int, args.GRIDS.split()) for batch in map(int, args.BATCHES.split())]
    for name, sizes in MNIST_PRIORS.items():
        model = make(name, **sizes, num_codes=128, num_classes=10)
        rows.append(race(model, f"{name}, 64 x 7x7", 64, 7, device, args))
        fine = make(name, **sizes, num_codes=128, num_classes=10, coarse_codes=128)
        rows.append(race(fine, f"{name}, given 4x4, 64 x 8x8", 64, 8, device, args))
    return rows


def race(model: nn.Module, what: str, batch: int, size: int, device: torch.device,
         args: argparse.Namespace) -> dict[str, Any]:
    """A row of the table of samplers, for `batch` square grids of `size` codes a side, given a coarse grid if the model
    is conditioned on one.
    """
    model.to(device, memory_format=torch.channels_last).eval()
    uniform = uniforms(args.SEED, 0, batch, size, size).to(device)
    labels = torch.arange(batch, device=device) % model.num_classes
    coarse = torch.randint(model.config.num_codes, (batch, size // 2, size // 2)).to(device) if model.coarse else None
    draw = partial(make_sampler(model, batch, size), labels, uniform, coarse=coarse)
    codes, given = draw(), [] if coarse is None else [coarse]

    @torch.inference_mode()
    def forward() -> None:
        model(codes, labels, *given)

    def whole(first: Tensor, labels: Tensor) -> Tensor:  # the network sees whole grids
        codes[:, :1, :args.PLAIN_CODES] = first
        return model(codes, labels, *given)

    @torch.inference_mode()
    def plain() -> None:
        sample(whole, labels, 1, args.PLAIN_CODES)

    turns = Turns(device, args.REPEATS, sampler=draw, forward=forward, plain=plain)
    row = {"what": what, "seconds": turns.seconds("sampler"), "over_forward": turns.ratio("sampler", "forward"),
           "times_faster_than_plain_loop": turns.ratio("plain", "sampler", size * size / args.PLAIN_CODES)}
    print(f"{what:32} {show(row['seconds'], ' s'):28} {show(row['over_forward'], 'x a forward pass'):42} "
          f"{show(row['times_faster_than_plain_loop'], 'x the plain loop')}", flush=True)
    return row


def guidance(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """What sampling takes with guidance, over sampling without, for each prior: the network sees every grid twice."""
    rows = []
    for name, sizes in MNIST_PRIORS.items():
        model = make(name, **sizes, num_codes=128, num_classes=10).to(device).eval()
        labels, uniform = torch.arange(64) % 10, uniforms(args.SEED, 0, 64, 7, 7)
        without, guided = (make_sampler(model, 64, 7, Draw(guidance=s)) for s in (1.0, 1.5))
        turns = Turns(device, args.REPEATS, without=lambda: without(labels, uniform),
                      guided=lambda: guided(labels, uniform))
        rows.append({"what": f"{name}, 64 x 7x7, guidance", "over_no_guidance": turns.ratio("guided", "without")})
        print(f"{rows[-1]['what']:34} {show(rows[-1]['over_no_guidance'], 'x a draw without')}", flush=True)
    return rows


def cost_per_code(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds that a step of the sampler takes at each grid size; a step draws one code in every grid."""
    model = PixelCNN(PixelCNNConfig(**PRIOR)).to(device).eval()
    sizes = [int(size) for size in args.PER_CODE_GRIDS.split()]
    labels = torch.arange(args.PER_CODE_BATCH) % PRIOR["num_classes"]

    def sample(size: int) -> Callable[[], Tensor]:
        sampler, uniform = make_sampler(model, len(labels), size), uniforms(args.SEED, 0, len(labels), size, size)
        return lambda: sampler(labels, uniform)

    turns = Turns(device, args.REPEATS, **{str(size): sample(size) for size in sizes})
    rows = []
    for size in sizes:
        figure = spread([1e6 * seconds / size**2 for seconds in turns.times[str(size)]])
        rows.append({"what": f"a code of {len(labels)} x {size}x{size}", "microseconds": figure})
        print(f"{rows[-1]['what']:24} {show(figure, ' us')}", flush=True)
    return rows


def training_step(network: nn.Module, loss: Callable[[], Tensor], device: torch.device,
                  precision: str) -> Callable[[], None]:
    """A training step as in the scripts: forward, backward, fused optimiser."""
    optimizer = AdamW((weight for weight in network.parameters() if weight.requires_grad), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        with devices.autocast(device, precision):
            value = loss()
        value.backward()
        optimizer.step()
    return step


def convolutions(network: nn.Module, loss: Callable[[], Tensor], device: torch.device,
                 precision: str) -> Callable[[], None]:
    """The convolutions of a training step alone, forward and backward: a step whose other operations take no time."""
    calls = []

    def note(convolution: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        calls.append((convolution, inputs[0].detach().requires_grad_(inputs[0].requires_grad), torch.rand_like(output)))

    hooks = [module.register_forward_hook(note) for module in network.modules()
             if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))]
    autocast = devices.autocast(device, precision)
    with autocast:
        loss()
    for hook in hooks:
        hook.remove()

    def convolve() -> None:
        for convolution, x, grad in calls:
            with autocast:
                output = convolution.forward(x)  # `forward` skips module hooks, which autograd.grad cannot handle
            torch.autograd.grad(output, [*([x] if x.requires_grad else []), *convolution.parameters()], grad)
    return convolve


def flops(work: Callable[[], Any]) -> int:
    """The floating-point operations of the convolutions and matrix products in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def training(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Training steps of VQ-VAE and PixelCNN in images/s, FLOP/s, and as a share of the rate of a matrix product.

    The same for their convolutions alone, whose share is close to the most that a whole step can reach.
    """
    dtype = devices.precision(device, args.PRECISION)
    left, right = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    images = torch.rand(256, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    codes = torch.randint(PRIOR["num_codes"], (128, 8, 8), device=device)
    labels = torch.randint(PRIOR["num_classes"], (128,), device=device)

    def vqvae_loss(network: VQVAE) -> Tensor:
        output = network(images)
        return F.mse_loss(output.images, images) + 0.25 * sum(level.commitment_loss for level in output.quantized)

    def pixelcnn_loss(network: PixelCNN) -> Tensor:
        return cross_entropy(network(codes, labels), codes)

    rows = []
    for stage, network, loss_of, count in (("vqvae", VQVAE(VQVAEConfig(**STANDARD)), vqvae_loss, len(images)),
                                           ("vqvae, two levels", TwoLevelVQVAE(VQVAEConfig(**STANDARD, levels=2)),
                                            vqvae_loss, len(images)),
                                           ("pixelcnn", PixelCNN(PixelCNNConfig(**PRIOR)), pixelcnn_loss, len(codes))):
        network.to(device, memory_format=torch.channels_last).train()
        loss = partial(loss_of, network)
        alone = convolutions(network, loss, device, args.PRECISION)
        works = {"step, eager": training_step(network, loss, device, args.PRECISION), "its convolutions": alone}
        if args.COMPILED:
            compiled = copy.deepcopy(network)
            compiled.compile()
            works["step, compiled"] = training_step(compiled, partial(loss_of, compiled), device, args.PRECISION)
        turns = Turns(device, args.REPEATS, product=lambda: left @ right, **works)
        whole, part = flops(lambda: loss().backward()), flops(alone)
        rows += [throughput(f"{stage} {name}", turns, name, part if work is alone else whole, count)
                 for name, work in works.items()]
    return rows


def throughput(what: str, turns: Turns, name: str, operations: int, count: int) -> dict[str, Any]:
    """A row of the table of training. operations: of one turn of `name`, in FLOP, over `count` images."""
    times = turns.times[name]
    row = {"what": what, "seconds": turns.seconds(name), "images_per_second": spread([count / t for t in times]),
           "gflops": spread([operations / t / 1e9 for t in times]),
           "share": turns.ratio("product", name, operations / (2 * MATRIX**3))}
    print(f"{what:34} {show(row['images_per_second'], ' images/s'):30} {show(row['gflops'], ' GFLOP/s'):28} "
          f"{show(row['share'], '%', 100)} of the matrix product's rate", flush=True)
    return row


def the_rest(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The quantizer alone, the encoding of a data set, and the start of a script."""
    model = VQVAE(VQVAEConfig(**STANDARD)).to(device, memory_format=torch.channels_last).eval()
    z_e = torch.randn(256, STANDARD["code_dim"], 8, 8, device=device)
    images = torch.randint(256, (2048, 3, 32, 32), dtype=torch.uint8, device=device)

    @torch.inference_mode()
    def encode() -> None:
        for part in images.split(512):
            model.encode(part.float().div_(255))

    @torch.inference_mode()
    def quantize() -> None:
        model.quantizer(z_e)

    def start() -> None:
        script = Path(__file__).with_name("generate.py")
        subprocess.run([sys.executable, str(script), "--help"], check=True, stdout=subprocess.DEVNULL)

    turns = Turns(device, args.REPEATS, quantize=quantize, encode=encode, start=start)
    rows = [{"what": "quantizer alone", "vectors_per_second": spread([256 * 64 / t for t in turns.times["quantize"]])},
            {"what": "encoding, 3x32x32", "images_per_second": spread([2048 / t for t in turns.times["encode"]])},
            {"what": "start of a script", "seconds": turns.seconds("start")}]
    print(f"{rows[0]['what']:24} {show(rows[0]['vectors_per_second'], ' vectors/s')}\n"
          f"{rows[1]['what']:24} {show(rows[1]['images_per_second'], ' images/s')}\n"
          f"{rows[2]['what']:24} {show(rows[2]['seconds'], ' s')}")
    return rows


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    torch.manual_seed(args.SEED)
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    machine = f"{platform.machine()} {platform.system()}, {device}, {place}, torch {torch.__version__}"
    print(f"{machine}; medians of {args.REPEATS} (smallest to largest)")
    rows = [*sampling(device, args), *guidance(device, args), *cost_per_code(device, args), *training(device, args),
            *the_rest(device, args)]
    path = Path(args.OUTPUT_DIR) / "benchmark.json"
    with atomic(path) as file:
        file.write(json.dumps({"machine": machine, "repeats": args.REPEATS, "rows": rows}, indent=1).encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, globals())
