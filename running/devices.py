"""Where the work runs: the device of this process, the other processes under torchrun, and a pool on all cores.

In one process every function here does nothing or next to it, so the scripts read the same either way.
"""
import atexit
import datetime
import multiprocessing
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from modules import VQVAE
from running.cli import UserError

PATIENCE = datetime.timedelta(seconds=50)  # how long a process waits in a step for another one that may have died
DOWNLOAD = datetime.timedelta(hours=2)     # and where another one may be busy: with a download, a picture, a slow disk

_waiting: "dist.ProcessGroup | None" = None  # for `wait`, on CPUs and with the patience of DOWNLOAD


def pick(name: str) -> torch.device:
    """The device that DEVICE names; "auto": CUDA, then Apple's MPS, then the CPU. UserError if it is not there.

    Under torchrun it also joins the other processes, and "auto" and "cuda" give each process a GPU of its own.
    """
    global _waiting
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
    except ValueError:
        raise UserError(f"LOCAL_RANK is {os.environ['LOCAL_RANK']!r} in the environment: torchrun makes it a number"
                        ) from None
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    name = f"cuda:{local_rank}" if name == "cuda" else name
    if name.startswith("cuda") and (not torch.cuda.is_available() or int(name[5:]) >= torch.cuda.device_count()):
        raise UserError(f"DEVICE (--device): there is no {name}: torch sees {torch.cuda.device_count()} CUDA devices; "
                        f"`--device auto` takes what is there")
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("DEVICE (--device): there is no mps here; `--device auto` takes what is there")
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)
            _waiting = dist.new_group(backend="gloo", timeout=DOWNLOAD)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"cannot join the other processes ({str(error).splitlines()[0]}): start with torchrun, or "
                            f"take WORLD_SIZE out of the environment") from None
    return device


def precision(device: torch.device, wanted: str) -> torch.dtype:
    """What a training step computes in: "float32", "bfloat16", or "auto": bfloat16 where the device is made for it.

    Those are GPUs since Ampere, as cuDNN has no convolutions in it for older ones, and CPUs with AVX512_BF16. UserError
    where bfloat16 is wanted of an older GPU; other CPUs imitate it.
    """
    if device.type == "cuda":
        able = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        able = device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    if wanted == "bfloat16" and device.type == "cuda" and not able:
        raise UserError("PRECISION (--precision): this GPU does not compute in bfloat16: choose float32")
    return torch.bfloat16 if wanted == "bfloat16" or wanted == "auto" and able else torch.float32


def autocast(device: torch.device, wanted: str) -> torch.autocast:
    """A context in which networks compute in this `precision`.

    Matrix products that it leaves in float32 are not rounded to TF32: the distances of the quantizer are small
    differences, and a sample would depend on its batch.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device, wanted) == torch.bfloat16)


def describe(device: torch.device = torch.device("cpu")) -> str:
    """The machine, beside the figures that were measured on it."""
    system = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", system.read_text()) if system.exists() else None
    name = model[1] if model else platform.processor() or platform.machine()
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else \
        f"{torch.get_num_threads()} threads of {name}"
    return f"{place}, {platform.system()}, torch {torch.__version__}"


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that writes and shows progress."""
    return rank() == 0


def wait() -> None:
    """Wait until every process is here, however long the others are busy; one that died is noticed at once."""
    if dist.is_initialized():
        dist.barrier(_waiting)


@contextmanager
def first_on_machine() -> Iterator[None]:
    """Let one process of each machine go first with what it downloads or caches; the others find it there."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        wait()
    yield
    if first:
        wait()
    wait()


def all_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def join(model: VQVAE) -> None:
    """Let the quantizers of all processes, each with its part of a batch, move as one does with the whole batch."""
    if world() > 1:
        model.quantizer.all_sum, model.quantizer.draw_rows = all_sum, draw_rows


def draw_rows(rows: Tensor, weights: Tensor, count: int) -> Tensor:
    """`modules.draw_rows` over the parts of all processes, with the same result in each.

    Inverse-CDF sampling over the whole batch; the process that holds a drawn row contributes it.
    """
    sums = (weights.double() + 1e-12).cumsum(0)
    masses = torch.zeros(world(), dtype=sums.dtype, device=rows.device)
    masses[rank()] = sums[-1]
    ends = all_sum(masses).cumsum(0)
    points = torch.rand(count, dtype=sums.dtype, device=rows.device) * ends[-1]
    owners = torch.searchsorted(ends[:-1], points, right=True)
    inside = (points - (ends - masses)[rank()]).contiguous()
    drawn = rows[torch.searchsorted(sums, inside).clamp_max(len(rows) - 1)]
    return all_sum(drawn * (owners == rank()).unsqueeze(1))


def share(items: Tensor) -> Tensor:
    """This process's part of items: a run of neighbours, so that the parts in order of rank are the whole."""
    return items.tensor_split(world())[rank()]


def own_chance(seed: int) -> None:
    """Give each of several processes random numbers of its own, such as those of dropout; one process keeps its own."""
    if world() > 1:
        torch.manual_seed((seed * world() + rank()) % 2**63)


def parts(items: Tensor, size: int) -> list[Tensor]:
    """This process's share of items in parts of at most `size`; none where there are fewer items than processes."""
    mine = share(items)
    return list(mine.split(size)) if len(mine) else []


@contextmanager
def processes(tasks: int) -> Iterator[ProcessPoolExecutor]:
    """Processes on all cores for so many tasks, which leave signals to this one and end with it. Tasks not started
    when the block ends are cancelled.
    """
    method = "fork" if sys.platform == "linux" else "spawn"  # forking spares every process the import of torch
    pool = ProcessPoolExecutor(min(cores(), tasks), multiprocessing.get_context(method), _start_process)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """The cores that this process may use, as many as a pool may have on any system at most."""
    return min(60, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _start_process() -> None:
    """Leave signals to the parent, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
