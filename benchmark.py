"""Measure the speed of sampling and of training steps; print a table and write it as `benchmark.json`.

Every figure is the median over repeats, after a warm-up, with the smallest and the largest value beside it. Functions
that are compared run in turn in one process, and a ratio is the median of the ratios of each turn. Sampling is compared
with one forward pass over the same grids, which has all the multiplications that a sampler needs, and with the plain
loop, a forward pass for every code. Training is compared with the rate of a large matrix product.
"""
import running.start  # noqa: F401

import argparse
import copy
import json
import statistics
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
from priors.draws import uniforms
from priors.sampler import make_sampler
from priors.table import PRIORS
from running import devices
from running.cli import run as run_script
from running.files import atomic
from training.optimizers import AdamW

OUTPUT_DIR = "output"     # where benchmark.json is written
REPEATS = 5               # timed repetitions, after one to warm up
GRIDS = "8 16 32"         # sizes of the square grids to sample, in codes
BATCHES = "1 16 64"       # how many grids at once
PLAIN_CODES = 2           # codes that the plain loop draws; its time for a whole grid is extrapolated from them
COMPILED = True           # also measure compiled training steps, which compile for a minute or two first
PRECISION = "auto"        # of training steps, and of the product: as that of train_vqvae.py
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"
SEED = 0                  # of weights and data, which do not affect the figures

SIZES = {"num_codes": 512, "num_classes": 10, "hidden": 64, "layers": 15, "kernel_size": 3}
LARGE_PRIORS = {"pixelcnn": SIZES,  # the transformer: as train_pixelcnn.py makes it for grids of more than 64 codes
                "transformer": SIZES | {"hidden": 96, "layers": 4, "heads": 4}}
MNIST_PRIORS = {"pixelcnn": SIZES | {"num_codes": 128, "layers": 6},  # as the README trains them
                "transformer": SIZES | {"num_codes": 128, "layers": 4, "heads": 4}}
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

    def ratio(self, above: str, below: str, factor: float = 1.0) -> dict[str, float]:
        return spread([factor * a / b for a, b in zip(self.times[above], self.times[below])])


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def show(figure: dict[str, float], unit: str = "", scale: float = 1.0) -> str:
    median, low, high = (f"{figure[key] * scale:.3g}" for key in ("median", "low", "high"))
    return f"{median}{unit} ({low} to {high})"


def sampling(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every sampler, compared with one forward pass over the same grids and with the plain loop."""
    sizes, batches = ([int(number) for number in text.split()] for text in (args.GRIDS, args.BATCHES))
    races = [(name, large, batch, size) for name, large in LARGE_PRIORS.items() for size in sizes for batch in batches]
    races += [(name, small, 64, 7) for name, small in MNIST_PRIORS.items()]
    return [race(PRIORS[name].network(PRIORS[name].config(**network)), name, batch, size, device, args)
            for name, network, batch, size in races]


def race(model: nn.Module, name: str, batch: int, size: int, device: torch.device,
         args: argparse.Namespace) -> dict[str, Any]:
    """A row of the table of samplers, for `batch` square grids of `size` codes a side. name: of the prior."""
    what = f"{name}, {batch} x {size}x{size}"
    model.to(device, memory_format=torch.channels_last).eval()
    uniform = uniforms(args.SEED, 0, batch, size, size).to(device)
    labels = torch.arange(batch, device=device) % model.num_classes
    draw = partial(make_sampler(model, batch, size), labels, uniform)
    codes = draw()

    @torch.inference_mode()
    def forward() -> None:
        model(codes, labels)

    def whole(first: Tensor, labels: Tensor) -> Tensor:  # the network sees whole grids
        codes[:, :1, :args.PLAIN_CODES] = first
        return model(codes, labels)

    @torch.inference_mode()
    def plain() -> None:
        sample(whole, labels, 1, args.PLAIN_CODES)

    turns = Turns(device, args.REPEATS, sampler=draw, forward=forward, plain=plain)
    row = {"what": what, "seconds": spread(turns.times["sampler"]), "over_forward": turns.ratio("sampler", "forward"),
           "times_faster_than_plain_loop": turns.ratio("plain", "sampler", size * size / args.PLAIN_CODES)}
    print(f"{what:32} {show(row['seconds'], ' s'):28} {show(row['over_forward'], 'x a forward pass'):42} "
          f"{show(row['times_faster_than_plain_loop'], 'x the plain loop')}", flush=True)
    return row


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


def training(device: torch.device, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Training steps of VQ-VAE and PixelCNN in images/s, and their FLOP/s as a share of those of a matrix product."""
    dtype = devices.precision(device, args.PRECISION)
    left, right = (torch.randn(MATRIX, MATRIX, device=device, dtype=dtype) for _ in range(2))
    images = torch.rand(256, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    codes = torch.randint(SIZES["num_codes"], (128, 8, 8), device=device)
    labels = torch.randint(SIZES["num_classes"], (128,), device=device)

    def vqvae_loss(network: VQVAE) -> Tensor:
        output = network(images)
        return F.mse_loss(output.images, images) + 0.25 * output.quantized.commitment_loss

    def pixelcnn_loss(network: PixelCNN) -> Tensor:
        return cross_entropy(network(codes, labels), codes)

    rows = []
    for stage, network, loss_of, count in (("vqvae", VQVAE(VQVAEConfig(**STANDARD)), vqvae_loss, len(images)),
                                           ("pixelcnn", PixelCNN(PixelCNNConfig(**SIZES)), pixelcnn_loss, len(codes))):
        network.to(device, memory_format=torch.channels_last).train()
        steps = {"step, eager": training_step(network, partial(loss_of, network), device, args.PRECISION)}
        if args.COMPILED:
            compiled = copy.deepcopy(network)
            compiled.compile()
            steps["step, compiled"] = training_step(compiled, partial(loss_of, compiled), device, args.PRECISION)
        turns = Turns(device, args.REPEATS, product=lambda: left @ right, **steps)
        with FlopCounterMode(display=False) as counter:
            loss_of(network).backward()
        share = counter.get_total_flops() / (2 * MATRIX**3)
        for name in steps:
            speed = spread([count / seconds for seconds in turns.times[name]])
            rows.append({"what": f"{stage} {name}", "seconds": spread(turns.times[name]), "images_per_second": speed,
                         "share": turns.ratio("product", name, share)})
            print(f"{rows[-1]['what']:34} {show(speed, ' images/s'):30} {show(rows[-1]['share'], '%', 100)} of the "
                  f"matrix product's rate", flush=True)
    return rows


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    torch.manual_seed(args.SEED)
    machine = devices.describe(device)
    print(f"{machine}; medians of {args.REPEATS} (smallest to largest)")
    rows = [*sampling(device, args), *training(device, args)]
    path = Path(args.OUTPUT_DIR) / "benchmark.json"
    with atomic(path) as file:
        file.write(json.dumps({"machine": machine, "repeats": args.REPEATS, "rows": rows}, indent=1).encode())
    print(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, globals())
