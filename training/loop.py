"""What the trainings share: sums over a split, the order of the data, the schedule, and a run that can be continued.

A run's state is complete: weights, optimiser, epoch and step, running sums, history and random generators are in one
checkpoint, so a training that was killed and started again ends as if it had never stopped.
"""
import argparse
import copy
import math
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import torch
from filelock import BaseFileLock
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import dataset
from loading.reading import Reading
from running import devices, figures
from running.cli import Stopped, UserError, flag, out_of_memory
from running.files import lock_run, write_csv
from running.progress import Bar
from training import checkpoint

# Constants that may change when a run resumes; any other one makes it another run
FREE = {"DATASET", "DATA_DIR", "OUTPUT_DIR", "EPOCHS", "LEARNING_RATE", "DEVICE", "COMPILE", "PRECISION",
        "TENSORBOARD", "SAVE_EVERY", "SAMPLE_EVERY", "RESUME", "OVERWRITE"}
# What runs before 2026-11-29 could have and this code has not, by the value that means the same as now
GONE = {"NORMALISE": "layer", "ORTHOGONAL": 0.0, "AVERAGE": 0.0, "ADVERSARIAL": 0.0, "PERCEPTUAL": 0.0,
        "LEVELS": 1, "LEVEL": "all"}
# What a message calls the content of a checkpoint that a run cannot do without
CONTENT = {"vqvae": "vqvae.pt", "sizes": "the sizes of the encoder and decoder of vqvae.pt",
           "images": "DATASET (--dataset): the training images or their labels",
           "class_names": "DATASET (--dataset): the classes", "grid": "the size of the grids of codes"}
WARMUP = 0.03      # share of the steps over which the learning rate rises
COOLDOWN = 0.4     # share of the steps at the end over which it falls to 0
CHECK_EVERY = 10   # steps between looks at the loss: each look waits for the device
PICTURED = 32      # validation images in the picture of an epoch
PLOT_EVERY = 30    # seconds between plots of the curves, which take a second
COMPILE_FROM = 20_000  # steps of a run from which compiling, a minute or so, pays off on CUDA


def configure(config: type, args: argparse.Namespace, **more: Any) -> Any:
    """A network's configuration: what is in `more`, and the rest from the constants of the fields' names.

    UserError, which names the constants, where they make no network.
    """
    given = {field.name: getattr(args, field.name.upper()) for field in fields(config) if field.name not in more}
    try:
        return config(**given, **more)
    except ValueError as error:
        words = re.findall(r"\w+", str(error))
        names = [f"{name.upper()} ({flag(name.upper())})" for name in given if name in words]
        raise UserError(f"{' and '.join(names)}: {error}") from None


def filled(args: argparse.Namespace, **auto: Any) -> argparse.Namespace:
    """The constants, with these values in the place of "auto"."""
    return argparse.Namespace(**{name: auto[name] if value == "auto" and name in auto else value
                                 for name, value in vars(args).items()})


def images_a_step(pixels: int) -> int:
    """BATCH_SIZE of "auto" for images of so many pixels."""
    return 32 if pixels <= 48**2 else 16 if pixels <= 96**2 else 8


def begin(args: argparse.Namespace, reading: Reading) -> tuple[BaseFileLock, dataset.Data]:
    """Hold the run's directory until the returned lock is released, seed, and load the data set."""
    lock = lock_run(args.OUTPUT_DIR, hold=devices.is_main())
    torch.manual_seed(args.SEED)
    with devices.first_on_machine():
        return lock, dataset.load(args.DATASET, args.DATA_DIR, args.LIMIT, reading, args.OUTPUT_DIR)


# ---------------------------------------------------------------------------------------------------------
# Sums over a split


def add_to(totals: dict[str, Tensor], count: int, terms: dict[str, Tensor]) -> None:
    """Add a batch of `count` items to sums. A scalar is a mean over the items, any other tensor is a sum already."""
    one = torch.ones((), device=next(iter(terms.values())).device)
    for name, value in {"count": one, **terms}.items():
        value = value.detach() * (count if value.dim() == 0 else min(count, 1))
        totals[name] = totals[name] + value if name in totals else value


@torch.no_grad()
def sum_over(terms_of: Callable[..., dict[str, Tensor]], model: nn.Module, batch_size: int,
             *tensors: Tensor) -> dict[str, Tensor]:
    """The sums of `terms_of(model, rows of each of the tensors)` over a whole split; each process does its share."""
    model.eval()
    totals: dict[str, Tensor] = {}
    indices = devices.parts(torch.arange(len(tensors[0])), batch_size)
    device = next(model.parameters()).device
    for rows in dataset.batches(indices or [torch.zeros(1, dtype=torch.int64)], device, *tensors):
        add_to(totals, len(rows[0]) if indices else 0, terms_of(model, *rows))  # without rows: one of weight 0
    return over_processes(totals)


def over_processes(totals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all processes."""
    return {name: devices.all_sum(total.clone()) for name, total in totals.items()}


def means(totals: dict[str, Tensor]) -> dict[str, float]:
    """The means per item of all sums that are scalars."""
    return {name: total.item() / totals["count"].item() for name, total in totals.items()
            if total.dim() == 0 and name != "count"}


# ---------------------------------------------------------------------------------------------------------
# A training


class Run:
    """One training of a stage in a run's directory:

        run = Run(...)
        stepped = run.prepare()
        while run.epoch < args.EPOCHS:
            for rows in run.batches(...):
                run.step(loss of stepped(rows), ...)
            run.end_epoch(metrics of the training split, of the validation split)
        run.finish(metrics of the test split)

    network, optimizer: what is trained; both continue where an earlier start left off. count: training images.
    monitor: the column of the history, lower is better, that chooses the best weights. panels: the curves to plot.
    line: what is said of a split's metrics, a format string. content: what the checkpoint shall hold for the later
    stages; a run is not continued if it differs.
    """

    def __init__(self, args: argparse.Namespace, stage: str, network: nn.Module, optimizer: torch.optim.Optimizer,
                 count: int, monitor: str, panels: dict[str, list[str]], line: str, **content: Any):
        if args.BATCH_SIZE > count:
            raise UserError(f"BATCH_SIZE (--batch-size) of {args.BATCH_SIZE} is more than the {count} training images")
        self.args, self.stage, self.network, self.optimizer = args, stage, network, optimizer
        self.count, self.monitor, self.panels, self.line, self.content = count, monitor, panels, line, content
        self.steps = math.ceil(count / args.BATCH_SIZE)  # an epoch
        if count // self.steps < devices.world():
            raise UserError(f"BATCH_SIZE (--batch-size) of {args.BATCH_SIZE} leaves some of the {devices.world()} "
                            f"processes without an image")
        self.device = next(network.parameters()).device
        self.epoch = self.done = 0                       # finished epochs, finished steps of the next one
        self.batch = 0                                   # items of the present batch, over all processes
        self.totals: dict[str, Tensor] = {}              # running sums of this epoch's metrics
        self.history: list[dict[str, Any]] = []
        self.best = self._weights()
        self.stopped_by = 0                              # the number of the signal
        self.saved_at = self.plotted_at = self.began = time.monotonic()
        self.minutes: list[float] = []                   # that the training had taken at the end of every epoch
        self.losses: list[Tensor] = []                   # since the last look at them
        self.handlers: dict[int, Any] = {}               # of signals, before the run took them
        self.respelt = False                             # whether the data set has another path than before
        self.resumed = self._resume() if args.RESUME == "auto" else False
        steps_done = torch.tensor(self.epoch * self.steps + self.done, device=self.device)
        if devices.all_sum(steps_done.clone()) != steps_done * devices.world():
            raise UserError("OUTPUT_DIR (--output-dir) holds another checkpoint for some of the processes: "
                            "all machines must see the same directory")
        if args.RESUME == "never" and not args.OVERWRITE and self.path.exists() \
                and checkpoint.load(args.OUTPUT_DIR, stage).get("training", {}).get("finished"):
            raise UserError(f"{self.path} is a finished run: choose another --output-dir, or add --overwrite to "
                            f"replace it")

    @property
    def path(self) -> Path:
        return checkpoint.path_of(self.args.OUTPUT_DIR, self.stage)

    @property
    def minutes_so_far(self) -> float:
        """That the training has taken, with those before it was continued."""
        return (time.monotonic() - self.began) / 60

    @property
    def progress(self) -> float:
        """The share of the training that is done when the present step is."""
        return (self.epoch * self.steps + self.done + 1) / (self.args.EPOCHS * self.steps)

    # ---- the loop

    def prepare(self) -> nn.Module:
        """The network as a step calls it: compiled if COMPILE says so, and with gradients of all processes."""
        args, left = self.args, (self.args.EPOCHS - self.epoch) * self.steps - self.done
        if left > 0 and devices.is_main():
            dtype = str(devices.precision(self.device, args.PRECISION)).removeprefix("torch.")
            print(f"training for {left} steps of {args.BATCH_SIZE} ({args.EPOCHS} epochs of {self.steps} steps) in "
                  f"{dtype}")
        if args.COMPILE == "yes" or (args.COMPILE == "auto" and self.device.type == "cuda"
                                     and args.EPOCHS * self.steps > COMPILE_FROM):
            self.network.compile()
        return DistributedDataParallel(self.network) if devices.world() > 1 else self.network

    def autocast(self) -> torch.autocast:
        """See `devices.autocast`."""
        return devices.autocast(self.device, self.args.PRECISION)

    def batches(self, *tensors: Tensor) -> Iterator[list[Tensor]]:
        """The rest of this epoch's batches: of each, this process's rows of each of the tensors, on the network's
        device. Sets the learning rate, shows progress, and saves when it is time.

        Every item comes once an epoch, in an order fixed by SEED and the epoch; batches differ in size by one at most.
        """
        generator = torch.Generator().manual_seed((self.args.SEED * 1_000_003 + self.epoch) % 2**63)
        order = torch.randperm(self.count, generator=generator).tensor_split(self.steps)
        shares = (devices.share(index) for index in order[self.done:])  # read ahead of the steps
        self.handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        self.network.train()
        self.bar = Bar(desc=f"epoch {self.epoch + 1}/{self.args.EPOCHS}", total=self.steps, initial=self.done,
                       unit="step", disable=not devices.is_main())
        with self.bar, closing(dataset.batches(shares, self.device, *tensors)) as batches:
            for rows in batches:
                self._set_learning_rate()
                self.batch = len(order[self.done])
                yield rows
                self.done += 1
                stop, due = self._interrupted()
                if stop or due:
                    self.save()
                if stop:
                    self._exit(stop)

    def step(self, loss: Tensor, count: int, terms: dict[str, Tensor]) -> None:
        """An optimiser step. loss: the mean over this process's `count` items. terms: what to keep of it, as for
        `add_to`. UserError at the first loss that is not finite, at the latest after CHECK_EVERY steps.
        """
        self.optimizer.zero_grad()
        # every item counts the same, also where the processes' shares differ by one
        (loss * count * devices.world() / self.batch).backward()
        self.optimizer.step()
        self.losses.append(loss.detach())
        add_to(self.totals, count, terms)
        self.bar.update()
        if self.done % CHECK_EVERY == 0 or self.done + 1 == self.steps:
            self._check_losses(last=self.done)
            self.bar.set_postfix({name: f"{value:.4g}" for name, value in means(self.totals).items()}, refresh=False)

    def end_epoch(self, train: dict[str, float], validation: dict[str, float],
                  draw: Callable[[], None] | None = None) -> None:
        """Finish an epoch with the metrics of both splits: keep the best weights, save, write history and curves.

        draw: makes a picture of the epoch. It is called last, by the main process; if memory does not suffice for it,
        a line says so and the training goes on.
        """
        row = {"epoch": self.epoch + 1, **{f"train_{name}": value for name, value in train.items()},
               **{f"validation_{name}": value for name, value in validation.items()}}
        self.history.append(row)
        self.minutes.append(self.minutes_so_far)
        if row[self.monitor] <= min(past[self.monitor] for past in self.history):
            self.best = self._weights()
        self.epoch, self.done, self.totals = self.epoch + 1, 0, {}
        if devices.is_main():
            print(f"epoch {self.epoch}/{self.args.EPOCHS}: train {self.line.format_map(train)} (over the epoch); "
                  f"validation {self.line.format_map(validation)} (at its end)")
            self._write_history()
        self.save()
        if devices.is_main():
            self._draw_curves()
            if draw:
                attempt(draw, f"the picture of epoch {self.epoch}")
        devices.wait()  # the main process may have been drawing
        stop, _ = self._interrupted()
        if stop:
            self._exit(stop)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def finish(self, test: dict[str, float], more: str = "") -> None:
        """Say what the weights that were kept attain on the test split."""
        if self.respelt:
            self.save()  # for the later stages
        if devices.is_main():
            values = [row[self.monitor] for row in self.history]
            print(f"test: {self.line.format_map(test)}{more} (weights of epoch "
                  f"{len(values) - values[::-1].index(min(values))}, the best on the validation split)")
            print(f"wrote {self.path}, and its history, curves and pictures beside it")

    # ---- parts of it

    def _set_learning_rate(self) -> None:
        """To its place on the schedule; the optimiser was made with its highest."""
        share = min(self.progress / WARMUP, 1.0, max(0.0, 1 - self.progress) / COOLDOWN)
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimizer.defaults["lr"] * share

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
        if self.done % CHECK_EVERY:  # asking the others waits for the device
            return 0, False
        asked = [self.stopped_by == signal.SIGINT, self.stopped_by == signal.SIGTERM, due and devices.is_main()]
        asked = torch.tensor(asked, dtype=torch.int64, device=self.device)
        interrupt, terminate, due = devices.all_sum(asked).tolist()
        return signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0, bool(due)

    def _exit(self, number: int) -> NoReturn:
        where = f"epoch {self.epoch + 1}, step {self.done}" if self.done else f"the end of epoch {self.epoch}"
        raise Stopped(number, f" at {where}: saved {self.path}, the same command continues")

    def _write_history(self) -> None:
        write_csv(Path(self.args.OUTPUT_DIR) / f"{self.stage}_history.csv", self.history, "\r\n")
        if self.args.TENSORBOARD:
            write_tensorboard(Path(self.args.OUTPUT_DIR) / "tensorboard" / self.stage, self.history[-1])

    def _draw_curves(self) -> None:
        if self.epoch >= self.args.EPOCHS or time.monotonic() - self.plotted_at > PLOT_EVERY:
            figures.save_curves(self.history, self.panels, Path(self.args.OUTPUT_DIR) / f"{self.stage}_curves.png")
            self.plotted_at = time.monotonic()

    # ---- saving and continuing

    def save(self) -> None:
        """Write the checkpoint: the best weights so far for the later stages, and all that continuing needs."""
        if self.losses:
            self._check_losses(last=self.done - 1)
        if not all(weight.isfinite().all() for weight in self.network.state_dict().values()):
            raise UserError(f"the weights are not finite after step {self.epoch * self.steps + self.done}: "
                            f"try a lower {flag('LEARNING_RATE')}; {self.path} was not overwritten")
        totals = over_processes(self.totals)
        if devices.is_main():
            self._write(totals)
        devices.wait()
        self.saved_at = time.monotonic()

    def _write(self, totals: dict[str, Tensor]) -> None:
        random = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":  # asking for it would start a GPU that the run does not use
            random["cuda"] = torch.cuda.get_rng_state()
        state = {"model": self.network.state_dict(), "optimizer": self.optimizer.state_dict()["state"],
                 "epoch": self.epoch, "step": self.done, "totals": totals, "history": self.history, "random": random,
                 "minutes": [*self.minutes, self.minutes_so_far],
                 "constants": vars(self.args), "count": self.count, "finished": self.epoch >= self.args.EPOCHS}
        best = self.best if self.history else self._weights()  # before an epoch has ended, the present ones
        checkpoint.save(self.args.OUTPUT_DIR, self.stage, asdict(self.network.config), best, training=state,
                        **self.content)

    def _weights(self) -> dict[str, Tensor]:
        """A copy of the present weights."""
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _resume(self) -> bool:
        """Continue from the checkpoint, if there is one. UserError if it is of a run with other constants."""
        if not self.path.exists():
            return False
        stored = checkpoint.load(self.args.OUTPUT_DIR, self.stage)
        again = "choose another --output-dir, or start over with --resume never --overwrite"
        if checkpoint.is_shared(stored):
            raise UserError(f"{self.path} is of share.py: weights alone, which cannot be continued: {again}")
        try:
            state = stored["training"]
            for name, same in GONE.items():
                if name not in vars(self.args) and (before := state["constants"].get(name, same)) != same:
                    raise UserError(f"the run in {self.args.OUTPUT_DIR} has {name} = {before!r}, which this code has "
                                    f"no longer since 2026-11-29: {again}")
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
            # what an older checkpoint lacks counts as equal
            before = {**self.content, **self.content["data"], **stored, **stored["data"]}
            for name, value in {**self.content, **self.content["data"]}.items():
                known = {**value, **before[name]} if isinstance(value, dict) else before[name]
                if name not in ("data", "data_dir", "dataset") and known != value:  # a path may be spelt anew
                    raise UserError(f"{CONTENT.get(name, name)} changed since the run in {self.args.OUTPUT_DIR} "
                                    f"started: {again}")
            for weights in (stored["model"], state["model"]):
                checkpoint.build({**stored, "model": weights}, lambda _: copy.deepcopy(self.network),
                                 type(self.network.config))
            self.network.load_state_dict(state["model"])
            continue_optimizer(self.optimizer, state["optimizer"])
            self.best = {name: tensor.to(self.device) for name, tensor in stored["model"].items()}
            self.respelt = any(stored["data"][name] != self.content["data"][name] for name in ("dataset", "data_dir"))
            self.epoch, self.done, self.history = state["epoch"], state["step"], state["history"]
            *self.minutes, before = state.get("minutes", [0.0])
            self.began -= 60 * before
            # the stored sums are over all processes: the main one alone keeps them, so that they count once
            self.totals = {name: total.to(self.device) * devices.is_main() for name, total in state["totals"].items()}
            torch.set_rng_state(state["random"]["cpu"])
            if self.device.type == "cuda" and "cuda" in state["random"]:
                torch.cuda.set_rng_state(state["random"]["cuda"])
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError):
            raise UserError(f"{self.path} cannot be continued from, its training state is not of this code: {again}"
                            ) from None
        if devices.is_main():
            where = f"after epoch {self.epoch}" + (f", step {self.done}" if self.done else "")
            print(f"continuing {self.path} {where} of {self.args.EPOCHS}" if self.epoch < self.args.EPOCHS else
                  f"{self.path} is finished, {self.epoch} epochs: raise EPOCHS to train on, or {again}")
        return True


def continue_optimizer(optimizer: torch.optim.Optimizer, state: dict[int, dict[str, Tensor]]) -> None:
    """Give an optimiser the state that it was saved with. ValueError or IndexError if that is of other weights."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, moments in state.items():
        if any(moment.dim() and moment.shape != weights[number].shape for moment in moments.values()):
            raise ValueError("the optimiser's state is of other weights")
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def write_tensorboard(directory: Path, row: dict[str, Any]) -> None:
    """Add a row of the history to TensorBoard's event files."""
    from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(directory)) as writer:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, row["epoch"])


@torch.no_grad()
def save_reconstructions(model: nn.Module, images: Tensor, batch_size: int, path: Path) -> None:
    """Write a grid of some of the uint8 images with their reconstructions by a (VQ-)VAE below them, sixteen a row."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:PICTURED]
    model.eval()
    pairs = []
    for (part,) in dataset.batches(chosen.split(batch_size), next(model.parameters()).device, images):
        originals = dataset.to_float(part)
        pairs.append((originals.cpu(), model(originals).images.cpu()))
    figures.save_pairs(*map(torch.cat, zip(*pairs)), path, columns=16)


def attempt(draw: Callable[[], None], what: str) -> None:
    """Draw a picture; where memory does not suffice, say so in a line."""
    try:
        draw()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        print(f"too little memory for {what}: it is left out", file=sys.stderr)
