"""Optional: the samplers' steps in C, for a few grids on a CPU.

A few grids wait for small operators, about five a layer and code. step.c goes from one draw to the next in one call,
with the same logits but for rounding. The machine's C compiler builds it once, into the user's cache folder. Where that
fails, torch goes on as before and nothing is said; `CC=none` in the environment has the same effect.
"""
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

INPUTS = 16     # a larger batch keeps the operators of torch busy
PANEL = 16      # columns of a panel of weights, as in step.c
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math",
         "-ffinite-math-only", "-shared", "-fPIC"]
VECTORS = {"AVX2": ["-mavx2", "-mfma"], "AVX512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512vl"]}


@functools.cache
def library() -> ctypes.CDLL | None:
    """step.c as a library, built if it is not in the user's cache folder; None where it can't be built or read."""
    source = Path(__file__).with_name("step.c")
    flags = FLAGS + VECTORS.get(torch.backends.cpu.get_cpu_capability(), [])
    try:
        compiler = shlex.split(os.environ.get("CC") or "cc")
        made_of = repr((compiler, flags, platform.platform(), source.read_bytes()))
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vqvae"
        path = cache / f"step-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"
        if not path.exists():
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as folder:  # two processes may build it at once
                built = Path(folder) / path.name
                subprocess.run([*compiler, *flags, str(source), "-o", str(built), "-lm"], check=True, timeout=60,
                               capture_output=True)
                built.replace(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError):  # no compiler, no home, no right to write
        return None


def pays(inputs: int, device: torch.device) -> bool:
    """Whether a sampler takes its steps in C, where so many inputs go through the network at once."""
    return device.type == "cpu" and inputs <= INPUTS and library() is not None


class Function:
    """A function of step.c with its first arguments given, whose memory it keeps: whole numbers, others, contiguous
    tensors, and lists of tensors.
    """

    def __init__(self, name: str, *given: Any):
        self.function, self.kept = getattr(library(), name), given
        self.function.restype = None
        self.given = tuple(map(as_c, given))

    def __call__(self, *more: Any) -> None:
        self.function(*self.given, *map(as_c, more))


def as_c(value: Any) -> Any:
    """An argument of a function of step.c."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, list):
        return (ctypes.c_void_p * len(value))(*(part.data_ptr() for part in value))
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_long(value)


def pixelcnn(layers: Sequence[Sequence[Tensor]], head: Sequence[tuple[Tensor, Tensor]], logits: Tensor,
             reach: int) -> Function:
    """PixelCNNSampler's `_step` in C: a function of the column, which fills logits (B, K).

    layers: of each the taps, the matrix `out`, the features from the vertical stack (B, width, 2 C) and the input
    (B, width + 2 reach, C). head: bias and matrix of both layers.
    """
    net = []
    for taps, out, features, row in layers:
        net += [pack(torch.zeros(taps.shape[1]), taps), pack(torch.zeros(out.shape[1]), out), features, row]
    (inputs, width, _), hidden = features.shape, len(out)
    return Function("pixelcnn", inputs, hidden, len(layers), logits.shape[1], width, reach,
                    [*net, *(pack(*layer) for layer in head)], torch.zeros(4 * inputs * hidden), logits)


def transformer(blocks: Sequence[Sequence[tuple[Tensor, Tensor]]], lengths: Sequence[Tensor],
                head: tuple[Tensor, Tensor], logits: Tensor, places: int) -> Function:
    """TransformerSampler's `_step` in C: a function of the input x (B, C) and its place, which fills logits (B, K).

    blocks: of each bias and matrix of `query_key_value`, `out`, `widen` and `narrow`. lengths: of each the lengths
    (heads, 1) that its queries get. head: bias and matrix. places: of a grid.
    """
    inputs, hidden, heads = logits.shape[0], head[1].shape[0], len(lengths[0])
    size, net = hidden // heads, []
    for block, length in zip(blocks, lengths):
        keys, values = (pack(torch.zeros(columns), torch.zeros(rows, columns)).repeat(inputs, 1, 1)
                        for rows, columns in ((size, places), (places, size)))
        net += [*(pack(*layer) for layer in block), length, keys, values]
    scratch = torch.zeros(inputs * (6 * hidden + 2 * size) + heads * places)
    return Function("transformer", inputs, hidden, len(blocks), logits.shape[1], heads, places, [*net, pack(*head)],
                    scratch, logits)


def choose(logits: Tensor, guidance: float, temperature: float, uniform: Tensor, known: Tensor,
           codes: Tensor) -> Function:
    """Sampler's `_draw` in C, without top_k and top_p: a function of the column, which fills that of codes (B, width).

    logits: (B, K), or with guidance (2 B, K). uniform, known: (B, width).
    """
    return Function("choose", codes.shape[0], logits.shape[1], codes.shape[1], float(guidance), float(temperature),
                    uniform, known, logits, torch.zeros(logits.shape[1]), codes)


def pack(bias: Tensor, weight: Tensor) -> Tensor:
    """Panels (ceil(N / 16), 1 + K, 16) of weight (K, N) under bias, which is (N,), or (B, N) with equal rows."""
    rows = torch.cat([bias.view(-1, weight.shape[1])[:1], weight])
    return F.pad(rows, (0, -weight.shape[1] % PANEL)).unflatten(1, (-1, PANEL)).transpose(0, 1).contiguous()
