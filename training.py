"""What both trainings share: the order of the data, the schedule, and a run that can be stopped and continued.

A run's state is complete: weights, optimiser, epoch and step, running metrics, history and random generators
lie in one checkpoint, so a training that was killed and started again ends as if it had never stopped.
"""
import argparse
import csv
import io
import math
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from inspect import unwrap
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm import tqdm

import checkpoint
import dataset
import devices
import figures
from cli import Stopped, UserError, flag
from files import atomic

# Constants that a run may be continued with another value of; any other one makes it another run
FREE = {"EPOCHS", "LEARNING_RATE", "DEVICE", "COMPILE", "TENSORBOARD", "SAVE_EVERY", "SAMPLE_EVERY", "DATA_DIR",
        "OUTPUT_DIR", "RESUME", "OVERWRITE"}
# What a message calls the content of a checkpoint that a run cannot do without
CONTENT = {"vqvae": "vqvae.pt", "sizes": "the sizes of the encoder and decoder of vqvae.pt",
           "images": "DATASET (--dataset): the training images or their labels",
           "class_names": "DATASET (--dataset): the classes", "grid": "the size of the grids of codes"}
WARMUP = 0.03      # share of the steps over which the learning rate rises; it then falls to 0 along a cosine
CHECK_EVERY = 10   # steps between looks at the loss: each look waits for the device
PLOT_EVERY = 30    # seconds between plots of the curves, which take a second
COMPILE_FROM = 20_000  # steps of a run from which compiling, a minute or so, pays off on CUDA


class AdamW(torch.optim.AdamW):
    """torch's own, fused where the device has that; without weight decay it is Adam."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, betas: tuple[float, float] = (0.9, 0.999),
                 weight_decay: float = 0.0):
        weights = list(weights)
        super().__init__(weights, lr, betas, weight_decay=weight_decay, fused=weights[0].device.type != "mps")

    # torch wraps these in what imports torch._dynamo, over a second at every start, though nothing here is compiled
    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class Run:
    """One training of a stage in a run's directory. Make it, loop `while run.epoch < EPOCHS`, and in there
    over `batches`, call `add` after every step and `end_epoch` after every epoch.

    network, optimizer: what is trained; both are put where an earlier start left off. count: training images.
    monitor: the column of the history, lower is better, that chooses the best weights.
    content: what the checkpoint shall hold for the later stages; a run is not continued if it differs.
    """

    def __init__(self, args: argparse.Namespace, stage: str, network: nn.Module, optimizer: torch.optim.Optimizer,
                 count: int, monitor: str, panels: dict[str, list[str]], **content: Any):
        if args.BATCH_SIZE > count:
            raise UserError(f"BATCH_SIZE (--batch-size) of {args.BATCH_SIZE} is more than the {count} training images")
        self.args, self.stage, self.network, self.optimizer = args, stage, network, optimizer
        self.count, self.monitor, self.panels, self.content = count, monitor, panels, content
        self.steps = math.ceil(count / args.BATCH_SIZE)  # an epoch
        if count // self.steps < devices.world():
            raise UserError(f"BATCH_SIZE (--batch-size) of {args.BATCH_SIZE} leaves some of the {devices.world()} "
                            f"processes without an image")
        self.epoch = self.step = 0                       # finished epochs, finished steps of the next one
        self.totals: dict[str, Tensor] = {}              # running sums of this epoch's metrics
        self.history: list[dict[str, Any]] = []
        self.best = self._weights()
        self.stopped_by = 0                              # the number of the signal
        self.saved_at = self.plotted_at = time.monotonic()
        self.losses: list[Tensor] = []                   # since the last look at them
        self.handlers: dict[int, Any] = {}               # of signals, before the run took them
        self.resumed = self._resume() if args.RESUME == "auto" else False
        done = torch.tensor(self.epoch * self.steps + self.step, device=next(network.parameters()).device)
        if devices.all_sum(done.clone()) != done * devices.world():
            raise UserError("OUTPUT_DIR (--output-dir) holds another checkpoint for some of the processes: "
                            "all machines must see the same directory")
        if args.RESUME == "never" and not args.OVERWRITE and self.path.exists() \
                and checkpoint.load(args.OUTPUT_DIR, stage).get("training", {}).get("finished"):
            raise UserError(f"{self.path} is a finished run: choose another --output-dir, or add --overwrite to "
                            f"replace it")

    @property
    def path(self) -> Path:
        return checkpoint.path_of(self.args.OUTPUT_DIR, self.stage)

    # ---- the loop

    def batches(self, *tensors: Tensor) -> Iterator[tuple[int, list[Tensor]]]:
        """The rest of this epoch's batches: how many items each has, and this process's share of them, a row of each
        of the tensors per item, on the network's device. Sets the learning rate, and saves when it is time.

        Every item comes once an epoch, in an order fixed by SEED and the epoch; batches differ in size by one at most.
        """
        generator = torch.Generator().manual_seed((self.args.SEED * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.count, generator=generator).tensor_split(self.steps)
        shares = (devices.share(index) for index in order[self.step:])  # read ahead of the steps
        device = next(self.network.parameters()).device
        self.handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        with closing(dataset.batches(shares, device, *tensors)) as batches:
            for rows in batches:
                self._set_learning_rate()
                yield len(order[self.step]), rows
                self.step += 1
                stop, due = self._interrupted()
                if stop or due:
                    self.save()
                if stop:
                    self._exit(stop)

    def progress(self) -> tqdm:
        """A bar of this epoch's steps, which the main process alone shows."""
        return tqdm(desc=f"epoch {self.epoch + 1}/{self.args.EPOCHS}", total=self.steps, initial=self.step, unit="step",
                    leave=False, disable=not devices.is_main())

    def add(self, loss: Tensor, count: int, **sums: Tensor) -> dict[str, float] | None:
        """Take note of a step: its loss, how many of the batch's items this process had, and sums to keep.

        Returns the epoch's running sums over this process, each divided by the number of items so far, or None
        between looks. UserError at the first loss that is not finite.
        """
        self.losses.append(loss.detach())
        for name, value in {"count": torch.tensor(float(count), device=loss.device), **sums}.items():
            value = value.detach()
            self.totals[name] = self.totals[name] + value if name in self.totals else value.clone()
        if self.step % CHECK_EVERY and self.step + 1 < self.steps:
            return None
        self._check_losses(last=self.step)
        seen = self.totals["count"].item()
        return {name: total.item() / seen for name, total in self.totals.items() if total.dim() == 0}

    def end_epoch(self, row: dict[str, Any]) -> None:
        """Finish an epoch with its metrics: keep the best weights, write history and curves, save."""
        devices.wait()  # the main process may have been drawing
        self.history.append({"epoch": self.epoch + 1, **row})
        values = [past[self.monitor] for past in self.history]
        if values[-1] <= min(values):
            self.best = self._weights()
        self.epoch, self.step, self.totals = self.epoch + 1, 0, {}
        if devices.is_main():
            self._write_history()
        self.save()
        stop, _ = self._interrupted()
        if stop:
            self._exit(stop)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    # ---- parts of it

    def _set_learning_rate(self) -> None:
        progress = (self.epoch * self.steps + self.step + 1) / (self.args.EPOCHS * self.steps)
        rising = min(1.0, progress / WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.LEARNING_RATE * rising * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    def _check_losses(self, last: int) -> None:
        finite = torch.stack(self.losses).isfinite()
        first = last + 1 - len(self.losses)
        self.losses = []
        broken = devices.all_sum((~finite).float())
        if broken.any():
            step = self.epoch * self.steps + first + int(broken.nonzero()[0]) + 1
            kept = f"{self.path} keeps the last good state" if self.path.exists() else "nothing was saved yet"
            raise UserError(f"the loss is not finite at step {step} (epoch {self.epoch + 1}); {kept}: "
                            f"try a lower {flag('LEARNING_RATE')}")

    def _on_signal(self, number: int, _frame: Any) -> None:
        if self.stopped_by and devices.world() == 1:  # asked twice: at once; torchrun repeats what it was sent
            raise Stopped(number, f" at once: {self.path} keeps what was saved before")
        self.stopped_by = number

    def _interrupted(self) -> tuple[int, bool]:
        """The signal that any process was sent, 0 for none, and whether a checkpoint is due: the same for all."""
        due = time.monotonic() - self.saved_at > self.args.SAVE_EVERY
        if devices.world() == 1:
            return self.stopped_by, due
        if self.step % CHECK_EVERY:  # asking the others waits for the device
            return 0, False
        asked = [self.stopped_by == signal.SIGINT, self.stopped_by == signal.SIGTERM, due and devices.is_main()]
        device = next(self.network.parameters()).device
        interrupt, terminate, due = devices.all_sum(torch.tensor(asked, dtype=torch.int64, device=device)).tolist()
        return signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0, bool(due)

    def _exit(self, number: int) -> NoReturn:
        where = f"epoch {self.epoch + 1}, step {self.step}" if self.step else f"the end of epoch {self.epoch}"
        raise Stopped(number, f" at {where}: saved {self.path}, the same command continues")

    def _write_history(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(self.history[0]))
        writer.writeheader()
        writer.writerows(self.history)
        with atomic(Path(self.args.OUTPUT_DIR) / f"{self.stage}_history.csv") as file:
            file.write(text.getvalue().encode())
        if self.epoch == self.args.EPOCHS or time.monotonic() - self.plotted_at > PLOT_EVERY:
            figures.save_curves(self.history, self.panels, Path(self.args.OUTPUT_DIR) / f"{self.stage}_curves.png")
            self.plotted_at = time.monotonic()
        if self.args.TENSORBOARD:
            write_tensorboard(Path(self.args.OUTPUT_DIR) / "tensorboard" / self.stage, self.history[-1])

    # ---- saving and continuing

    def save(self) -> None:
        """Write the checkpoint: the best weights so far for the later stages, and all that continuing needs."""
        if self.losses:
            self._check_losses(last=self.step - 1)
        if not all(weight.isfinite().all() for weight in self.network.state_dict().values()):
            raise UserError(f"the weights are not finite after step {self.epoch * self.steps + self.step}: "
                            f"try a lower {flag('LEARNING_RATE')}; {self.path} was not overwritten")
        totals = {name: devices.all_sum(total.clone()) for name, total in self.totals.items()}
        if devices.is_main():
            self._write(totals)
        devices.wait()
        self.saved_at = time.monotonic()

    def _write(self, totals: dict[str, Tensor]) -> None:
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()["state"],
                 "epoch": self.epoch, "step": self.step, "totals": totals, "history": self.history, "random": random,
                 "constants": vars(self.args), "count": self.count, "finished": self.epoch >= self.args.EPOCHS}
        best = self.best if self.history else self._weights()  # before an epoch has ended, the present ones
        checkpoint.save(self.args.OUTPUT_DIR, self.stage, self.network.config, best, training=state, **self.content)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the network's present weights."""
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _resume(self) -> bool:
        """Continue from the checkpoint, if there is one. UserError if it is of a run with other constants."""
        if not self.path.exists():
            return False
        stored = checkpoint.load(self.args.OUTPUT_DIR, self.stage)
        again = "choose another --output-dir, or start over with --resume never --overwrite"
        try:
            state = stored["training"]
            for name, value in vars(self.args).items():
                before = state["constants"].get(name, value)
                if value == before or name in {"RESUME", "OVERWRITE", "OUTPUT_DIR"}:
                    continue
                if name not in FREE:
                    raise UserError(f"{name} ({flag(name)}) is {value!r}, but the run in {self.args.OUTPUT_DIR} has "
                                    f"{before!r}: {again}")
                if devices.is_main():
                    print(f"continuing with {name} = {value!r}, before {before!r}")
            if state["count"] != self.count:
                raise UserError(f"there are {self.count} training images now, {state['count']} when the run in "
                                f"{self.args.OUTPUT_DIR} started: {again}")
            before = {**stored, **stored["data"]}
            for name, value in {**self.content, **self.content["data"]}.items():
                if name not in ("data", "data_dir") and before[name] != value:
                    raise UserError(f"{CONTENT.get(name, name)} changed since the run in {self.args.OUTPUT_DIR} "
                                    f"started: {again}")
            checkpoint.build(stored)
            checkpoint.build({**stored, "model": state["model"]})
            self.network.load_state_dict(state["model"])
            self._continue_optimizer(state["optimizer"])
            device = next(self.network.parameters()).device
            self.best = {name: tensor.to(device) for name, tensor in stored["model"].items()}
            self.epoch, self.step, self.history = state["epoch"], state["step"], state["history"]
            # sums over all processes, of whatever number: the main one goes on with them
            self.totals = {name: total.to(device) * devices.is_main() for name, total in state["totals"].items()}
            torch.set_rng_state(state["random"]["cpu"])
            if device.type == "cuda" and "cuda" in state["random"]:
                torch.cuda.set_rng_state(state["random"]["cuda"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{self.path} cannot be continued from, its training state is not of this code: {again}"
                            ) from None
        if devices.is_main():
            where = f"after epoch {self.epoch}" + (f", step {self.step}" if self.step else "")
            print(f"continuing {self.path} {where} of {self.args.EPOCHS}" if self.epoch < self.args.EPOCHS else
                  f"{self.path} is finished, {self.epoch} epochs: raise EPOCHS to train on, or {again}")
        return True

    def _continue_optimizer(self, state: dict[int, dict[str, Tensor]]) -> None:
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        for number, moments in state.items():
            if any(moment.dim() and moment.shape != weights[number].shape for moment in moments.values()):
                raise ValueError("the optimiser's state is of other weights")
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


def write_tensorboard(directory: Path, row: dict[str, Any]) -> None:
    """Add a row of the history to TensorBoard's event files."""
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(directory)) as writer:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, row["epoch"])


def should_compile(args: argparse.Namespace, device: torch.device, steps: int) -> bool:
    """Whether to compile the network: as COMPILE says, or for long runs on CUDA. steps: an epoch."""
    return args.COMPILE == "yes" or (args.COMPILE == "auto" and device.type == "cuda"
                                     and args.EPOCHS * steps > COMPILE_FROM)
