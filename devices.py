"""Where the work runs: the device of this process, and the other processes under torchrun.

In one process every function here does nothing or next to it, so the scripts read the same either way.
"""
import datetime
import os

import torch
import torch.distributed as dist
from torch import Tensor

from cli import UserError

PATIENCE = datetime.timedelta(seconds=50)  # how long a process waits for another one that may have died


def pick(name: str) -> torch.device:
    """The device that DEVICE names; "auto": CUDA, then Apple's MPS, then the CPU. UserError if it is not there.

    Under torchrun it also joins the other processes, and "auto" and "cuda" give each process a GPU of its own.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
    if device.type == "cuda" and (not torch.cuda.is_available() or device.index >= torch.cuda.device_count()):
        raise UserError(f"DEVICE (--device): there is no {device}: torch sees {torch.cuda.device_count()} CUDA devices; "
                        f"`--device auto` takes what is there")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("DEVICE (--device): there is no mps here; `--device auto` takes what is there")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 in what autocast leaves in float32
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"cannot join the other processes ({str(error).splitlines()[0]}): start with torchrun") from None
    return device


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the one process that writes and shows progress."""
    return rank() == 0


def all_sum(tensor: Tensor) -> Tensor:
    """Sum a tensor over the processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def share(items: Tensor) -> Tensor:
    """This process's part of items: a run of neighbours, so that the parts in order of rank are the whole."""
    return items.tensor_split(world())[rank()]


def gather(items: Tensor, count: int) -> Tensor:
    """The whole of `count` items, of which each process holds its `share`, on every process."""
    whole = items.new_zeros(count, *items.shape[1:])
    whole[share(torch.arange(count)).to(items.device)] = items
    return all_sum(whole)
