"""Trainings in processes of their own that can be killed, signalled, slowed and joined."""
import importlib
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch

from priors.table import PRIORS
from running import figures
from training import checkpoint

# The server has imported everything and forks in no time; nothing in it has started a thread
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["matplotlib.figure", "matplotlib.backends.backend_agg", "torch._dynamo", "train_vqvae",
                              "train_pixelcnn", "train_decoder", "train_vae", "generate"])
# vae goes the same ways but for its draws of z: it is stopped, shared and continued
STAGES = ["vqvae", "pixelcnn", "masked"]
CASES = [*STAGES, "decoder"]
SIZES = {"vqvae": ["--hidden", "32", "--residual-hidden", "16", "--num-codes", "16", "--code-dim", "16",
                   "--revive-below", "0.4"],
         "pixelcnn": ["--prior", "pixelcnn", "--hidden", "16", "--layers", "2"],
         "masked": ["--prior", "masked", "--hidden", "16", "--layers", "2"],
         "decoder": [], "vae": ["--latent-dim", "8"]}
EPOCHS = 3  # of a case


def _child(script: str, flags: list[str], log: Path, number: int, after: float | None, step: int | None,
           save: int | None, slow: float, environment: dict[str, str], before) -> None:
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    figures.save_curves = lambda *_: None  # seconds of each run, and nothing that a later one reads
    from running import cli
    from training import imagenet, loop
    imagenet.load = lambda *_: None  # a package that is optional, and slower
    imagenet.perceptual_loss = lambda _, images, copies: (images - copies).abs().mean()
    module = importlib.import_module(script)
    fsync, start, step_on, write = os.fsync, loop.Run.__init__, loop.Run.step, checkpoint.save
    taken = {"steps": 0, "saves": 0}

    def slow_fsync(descriptor):
        time.sleep(slow / 2)
        fsync(descriptor)
        time.sleep(slow / 2)

    def start_clock():
        clock = threading.Timer(after, os.kill, (os.getpid(), number))
        clock.daemon = True
        clock.start()

    def start_with_clock(run, *args, **content):
        start(run, *args, **content)
        start_clock()

    def count_step(run, *args):
        taken["steps"] += 1
        if taken["steps"] == step:
            os.kill(os.getpid(), number)
        return step_on(run, *args)

    def count_save(*args, **content):
        taken["saves"] += 1
        if taken["saves"] == save:
            os.fsync = slow_fsync
            start_clock()
        return write(*args, **content)

    if save is not None:
        checkpoint.save = count_save
    elif slow:
        os.fsync = slow_fsync
    if after is not None and save is None:
        loop.Run.__init__ = start_with_clock
    if step is not None:
        loop.Run.step = count_step
    if before:
        before()
    sys.argv = [f"{script}.py", *flags]
    cli.run(module.main, vars(module))


def launch(script: str, flags: list[object], log: Path, number: int = signal.SIGKILL, after: float | None = None,
           step: int | None = None, save: int | None = None, slow: float = 0.0,
           environment: dict[str, str] | None = None, before=None):
    """Start a script on one thread; it is sent the signal `number` some seconds `after` its Run is made or the save of
    that number has begun, or at a `step`.

    slow: seconds that every flush to disk takes, that save's alone if it is given. before: called in the process,
    first. Its output goes to `log`.
    """
    process = FORKS.Process(target=_child, args=(script, list(map(str, flags)), log, number, after, step, save,
                                                 slow, environment or {}, before))
    process.start()
    return process


def finish(process, seconds: float = 300) -> int:
    """Wait for a process and return its exit status, -9 where a SIGKILL ended it; fails if it takes longer."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"still running after {seconds} s")
    return process.exitcode


def run(script: str, flags: list[object], log: Path, **options) -> int:
    return finish(launch(script, flags, log, **options))


def together(count: int, script: str, flags: list[object], log: Path, signalled: int = 0, **options) -> list:
    """Start a script in `count` processes that share the work; options only for the one of rank `signalled`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count)}
    return [launch(script, flags, log.with_suffix(f".{rank}"), **(options if rank == signalled else {}),
                   environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]


def differences(first, second, tolerance: float = 0.0, where: str = "") -> list[str]:
    """Where two checkpoints or parts of them differ by more than the tolerance; paths and clocks do not count."""
    if isinstance(first, dict):
        if first.keys() != second.keys():
            return [f"{where}: {first.keys() ^ second.keys()}"]
        return [line for name in first if name not in ("constants", "data_dir", "minutes")
                for line in differences(first[name], second[name], tolerance, f"{where}.{name}")]
    if isinstance(first, (list, tuple)) and len(first) == len(second):
        return [line for i, pair in enumerate(zip(first, second))
                for line in differences(*pair, tolerance, f"{where}[{i}]")]
    if tolerance and isinstance(first, (torch.Tensor, float)):
        same = torch.allclose(*(torch.as_tensor(value).double() for value in (first, second)), atol=tolerance,
                              rtol=tolerance)
    elif isinstance(first, torch.Tensor):
        same = torch.equal(first, second)
    else:
        same = first == second
    return [] if same else [f"{where}: {first} and {second}"]


def compare(first: Path, second: Path, stage: str, tolerance: float = 0.0) -> list[str]:
    """What differs between the checkpoints of a stage in two directories."""
    contents = [checkpoint.load(str(path), stage) for path in (first, second)]
    return differences(*contents, tolerance)


class Case:
    """A training of one stage that has run undisturbed, and the same one to disturb, as often as one likes."""

    def __init__(self, stage: str, base: Path, trained: Path, data_dir: Path, *more: str):
        self.stage, self.base, self.trained = stage, base, trained
        self.script = "train_pixelcnn" if stage in PRIORS else f"train_{stage}"
        own = {"vqvae": ["--data-dir", data_dir], "pixelcnn": ["--augment", "shift"]}.get(stage, [])
        self.flags = ["--limit", 200, "--batch-size", 19, "--epochs", EPOCHS, "--device", "cpu", *own, *SIZES[stage],
                      *more]
        self.whole, self.made = self.directory("whole"), 0
        assert run(self.script, self.of(self.whole), base / "whole.log") == 0, (base / "whole.log").read_text()

    def directory(self, name: str) -> Path:
        """A run's directory as it is before this stage."""
        (self.base / name).mkdir()
        if self.stage != "vqvae":
            shutil.copy(self.trained / "vqvae.pt", self.base / name)
        return self.base / name

    def of(self, output: Path) -> list[object]:
        return [*self.flags, "--output-dir", output]

    def new(self) -> tuple[Path, Path]:
        """A fresh directory and a log beside it."""
        self.made += 1
        return self.directory(f"run{self.made}"), self.base / f"run{self.made}.log"

    def check_continues(self, output: Path, log: Path) -> None:
        """The same command ends with what the undisturbed training has, bit for bit."""
        assert run(self.script, self.of(output), log) == 0, log.read_text()
        assert compare(self.whole, output, self.stage) == []
        name = f"{self.stage}_history.csv"
        assert (output / name).read_bytes() == (self.whole / name).read_bytes()
        assert not list(output.rglob("*.tmp"))
