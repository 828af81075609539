"""Runs that are killed, stopped, starved of disk or doubled: nothing saved is lost, and continuing changes nothing.

`python -m pytest tests/test_faults.py` is the short form; `-m long` kills each training twenty times.
"""
import ctypes
import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import faults
import pytest
import torch
from conftest import SMALL_PIXELCNN

import checkpoint
import dataset
import figures
import files
import train_pixelcnn
import training

STAGES = ["vqvae", "pixelcnn"]  # vae goes the same ways but for its draws of z: it is stopped, shared and continued
SIZES = {"vqvae": ["--hidden", "16", "--residual-hidden", "8", "--num-codes", "16", "--code-dim", "8",
                   "--revive-below", "0.4"], "pixelcnn": ["--hidden", "16", "--layers", "2"],
         "vae": ["--latent-dim", "8"]}
EPOCHS = 3
SAVES = 33  # of a training that saves at each of its 30 steps and after each epoch


class Case:
    """A training of one stage that has run undisturbed, and the same one to disturb, as often as one likes."""

    def __init__(self, stage: str, base: Path, trained: Path, data_dir: Path):
        self.stage, self.script, self.base, self.trained = stage, f"train_{stage}", base, trained
        where = ["--data-dir", data_dir] if stage == "vqvae" else []
        self.flags = ["--limit", 200, "--batch-size", 19, "--epochs", EPOCHS, "--device", "cpu", *where, *SIZES[stage]]
        self.whole, self.made = self.directory("whole"), 0
        assert faults.run(self.script, self.of(self.whole), base / "whole.log") == 0, (base / "whole.log").read_text()

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
        assert faults.run(self.script, self.of(output), log) == 0, log.read_text()
        assert faults.compare(self.whole, output, self.stage) == []
        name = f"{self.stage}_history.csv"
        assert (output / name).read_bytes() == (self.whole / name).read_bytes()
        assert not list(output.rglob("*.tmp"))


@pytest.fixture(scope="module")
def cases(tmp_path_factory, trained, data_dir):
    return {stage: Case(stage, tmp_path_factory.mktemp(stage), trained, data_dir) for stage in [*STAGES, "vae"]}


# ---- killed


def kill_at_random_moments(case: Case, kills: int, seed: int) -> int:
    """Kill a training at random moments, every other time of a save that takes long, and check that it continues.

    Returns how many of the kills left a half-written checkpoint behind.
    """
    chance, inside = random.Random(seed), 0
    every_step = ["--save-every", 1e-6]
    output, log = case.new()
    began = time.monotonic()
    assert faults.run(case.script, [*case.of(output), *every_step], log) == 0
    longest = time.monotonic() - began
    for i in range(kills):
        status = 0
        while status == 0:  # until the moment falls before the end
            output, log = case.new()
            moment = {"save": chance.randint(1, SAVES), "slow": 0.3, "after": chance.uniform(0, 0.4)} if i % 2 == 0 \
                else {"after": chance.uniform(0, longest)}
            status = faults.run(case.script, [*case.of(output), *every_step], log, **moment)
            longest *= 0.9
        assert status == -signal.SIGKILL
        inside += (output / f"{case.stage}.pt.tmp").exists()
        case.check_continues(output, log)
    return inside


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_random_moments(cases, stage):
    kill_at_random_moments(cases[stage], kills=2, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_twenty_random_moments(cases, stage):
    inside = kill_at_random_moments(cases[stage], kills=20, seed=2)
    print(f"{stage}: survived 20 of 20 kills, {inside} of them inside a save")
    assert inside > 0


# ---- told to stop


@pytest.mark.parametrize("stage, number, status", [
    ("vqvae", signal.SIGTERM, 143), ("vqvae", signal.SIGINT, 130), ("pixelcnn", signal.SIGTERM, 143),
    ("vae", signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_continues(cases, stage, number, status):
    case = cases[stage]
    output, log = case.new()
    assert faults.run(case.script, case.of(output), log, number=number, step=14) == status  # step 4 of epoch 2
    assert checkpoint.load(output, stage)["training"]["step"] == 4
    said = [line for line in log.read_text().splitlines() if "stopped by" in line]
    assert len(said) == 1 and f"stopped by {number.name} at epoch 2, step 4: saved" in said[0]
    assert "Traceback" not in log.read_text()
    case.check_continues(output, log)
    assert "continuing" in log.read_text()


def test_before_an_epoch_has_ended_the_checkpoint_has_the_present_weights(cases, script):
    case = cases["vqvae"]
    output, log = case.new()
    assert faults.run(case.script, case.of(output), log, number=signal.SIGTERM, step=4) == 143
    stored = checkpoint.load(output, "vqvae")
    assert stored["training"]["epoch"] == 0 and stored["training"]["step"] == 4
    assert all(torch.equal(weight, stored["training"]["model"][name]) for name, weight in stored["model"].items())
    outcome = script("train_pixelcnn", "--output-dir", output, *SMALL_PIXELCNN)
    assert outcome.status == 0 and "vqvae.pt is of a training that was stopped" in outcome.err
    case.check_continues(output, log)


def test_a_signal_while_the_epoch_is_evaluated_is_saved_too(script, trained, tmp_path, data_dir, monkeypatch):
    import train_vqvae
    sum_over = train_vqvae.sum_over

    def sum_and_signal(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return sum_over(*args)
    monkeypatch.setattr(train_vqvae, "sum_over", sum_and_signal)
    outcome = script("train_vqvae", *SMALL_AGAIN, "--data-dir", data_dir, "--output-dir", tmp_path)
    assert outcome.status == 143 and "at the end of epoch 1: saved" in outcome.err
    assert checkpoint.load(tmp_path, "vqvae")["training"]["epoch"] == 1


@pytest.mark.parametrize("name, module, function", [
    ("train_vqvae", dataset, "load"), ("train_pixelcnn", dataset, "load"), ("train_pixelcnn", train_pixelcnn, "encode"),
    ("generate", figures, "save_image"), ("reconstruct", dataset, "load"), ("random_sample", figures, "save_image")])
@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_outside_the_loop_is_one_line(script, trained, monkeypatch, name, module, function, number, status):
    monkeypatch.setattr(module, function, lambda *_: os.kill(os.getpid(), number))
    outcome = script(name, "--output-dir", trained, *(["--num-samples", 4] if name == "generate" else []))
    assert outcome.status == status
    *_, line = outcome.err.splitlines()
    assert line.startswith(f"{name}.py: stopped by {number.name}") and "Traceback" not in outcome.err
    assert line.endswith("the same command continues" if name == "generate" else number.name)


# ---- disks


class FullDisk:
    """A file on a disk with room for some bytes more."""

    def __init__(self, file, room: int):
        self.file, self.room = file, room

    def write(self, data) -> int:
        self.room -= memoryview(data).nbytes
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def continued(script, data_dir, output, *flags):
    """Train the small finished run for an epoch more."""
    return script("train_vqvae", *SMALL_AGAIN, "--data-dir", data_dir, "--output-dir", output, *flags)


SMALL_AGAIN = ["--limit", "300", "--epochs", "2", "--batch-size", "50", "--device", "cpu", "--hidden", "16",
               "--residual-hidden", "8", "--num-codes", "16", "--code-dim", "8"]


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)  # a second each
    return shutil.copytree(trained, tmp_path / "copied")


def test_a_full_disk_leaves_the_last_checkpoint(script, copied, data_dir, monkeypatch):
    before = (copied / "vqvae.pt").read_bytes()

    def open_on_full_disk(path, mode):
        file = open(path, mode)
        return FullDisk(file, 50_000) if "x" in mode and "vqvae.pt" in str(path) else file
    monkeypatch.setattr(files, "open", open_on_full_disk, raising=False)
    outcome = continued(script, data_dir, copied)
    assert outcome.status == 1
    line = outcome.err.split("\r")[-1].strip()
    assert line == f"train_vqvae.py: error: No space left on device: {copied / 'vqvae.pt'}"
    assert (copied / "vqvae.pt").read_bytes() == before and not list(copied.rglob("*.tmp"))
    monkeypatch.undo()
    assert continued(script, data_dir, copied).status == 0  # there is room again


def _quota() -> None:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))


@pytest.mark.skipif(sys.platform == "win32", reason="has no such quota")
def test_a_quota_leaves_the_last_checkpoint(copied, data_dir, tmp_path):
    before = (copied / "vqvae.pt").read_bytes()
    log = tmp_path / "log"
    flags = [*SMALL_AGAIN, "--data-dir", data_dir, "--output-dir", copied]
    status = faults.run("train_vqvae", flags, log, before=_quota)
    assert status == 1 and f"error: File too large: {copied}" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (copied / "vqvae.pt").read_bytes() == before and not list(copied.rglob("*.tmp"))


def _bound_by_permissions() -> None:
    """Root gives up its capabilities, above which permissions do not count; what root owns it still may read."""
    if os.geteuid() == 0:
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="has other permissions")
@pytest.mark.parametrize("kept", [[], [".lock"]])
def test_a_read_only_directory_is_one_line(trained, data_dir, tmp_path, kept):
    with tempfile.TemporaryDirectory() as place:  # pytest's own directories are closed to others
        output = Path(place) / "run"
        shutil.copytree(trained, output)
        data = shutil.copytree(data_dir, Path(place) / "data")
        for name in kept:
            (output / name).chmod(0o666)
        output.chmod(0o555)
        Path(place).chmod(0o755)
        before = (output / "vqvae.pt").read_bytes()
        status = faults.run("train_vqvae", [*SMALL_AGAIN, "--data-dir", data, "--output-dir", output], tmp_path / "log",
                            before=_bound_by_permissions)
        output.chmod(0o755)
        assert status == 1 and f"error: Permission denied: {output}" in (tmp_path / "log").read_text()
        assert (output / "vqvae.pt").read_bytes() == before


def test_a_vanished_data_set_is_one_line(script, copied, data_dir, monkeypatch, torchvision_datasets):
    monkeypatch.setattr(torchvision_datasets.MNIST, "__init__", lambda *_, **__: (_ for _ in ()).throw(
        RuntimeError("Dataset not found.")))
    before = (copied / "vqvae.pt").read_bytes()
    outcome = script("train_pixelcnn", "--dataset", "mnist", "--output-dir", copied)
    assert outcome.status == 1 and len(outcome.err.splitlines()) == 1 and "mnist is not in" in outcome.err
    assert (copied / "vqvae.pt").read_bytes() == before


# ---- two writers, NaN, constants


def test_the_second_of_two_writers_is_refused_while_the_first_lives(script, cases):
    case = cases["vqvae"]
    output, log = case.new()
    first = faults.launch(case.script, case.of(output), log, slow=0.5)
    while not (output / ".lock").exists():
        assert first.is_alive()
        time.sleep(0.02)
    time.sleep(0.2)
    for name in ("train_vqvae", "train_pixelcnn"):
        shutil.copy(case.whole / "vqvae.pt", output) if name == "train_pixelcnn" else None
        outcome = script(name, *(case.flags if name == "train_vqvae" else []), "--output-dir", output)
        assert outcome.status == 1
        assert outcome.err == f"{name}.py: error: another training is writing to {output}: wait for it, or choose " \
                              f"another --output-dir\n"
    first.kill()
    first.join()
    (output / "vqvae.pt").unlink()
    case.check_continues(output, log)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(script, copied, data_dir, monkeypatch):
    before = (copied / "vqvae.pt").read_bytes()
    step = training.Run.step
    monkeypatch.setattr(training.Run, "step", lambda run, loss, *args: step(
        run, loss * float("nan") if run.done == 3 else loss, *args))
    outcome = continued(script, data_dir, copied)
    assert outcome.status == 1
    assert outcome.err.split("\r")[-1].strip() == (
        f"train_vqvae.py: error: the loss is not finite at step 10 (epoch 2); {copied / 'vqvae.pt'} keeps the last "
        f"good state: try a lower --learning-rate")
    assert (copied / "vqvae.pt").read_bytes() == before


def test_what_may_change_is_said_and_what_may_not_is_refused_by_name(script, copied, data_dir, tmp_path):
    before = (copied / "vqvae.pt").read_bytes()
    for name, value in (("NUM_CODES", 32), ("SEED", 1), ("BATCH_SIZE", 40), ("LIMIT", 299), ("CODEBOOK", "gradient")):
        flag = "--" + name.lower().replace("_", "-")
        outcome = continued(script, data_dir, copied, flag, value)
        assert outcome.status == 1 and outcome.err.startswith(f"train_vqvae.py: error: {name} ({flag}) is {value!r}")
    assert (copied / "vqvae.pt").read_bytes() == before
    moved = shutil.copytree(data_dir, tmp_path / "moved")
    outcome = continued(script, moved, copied, "--learning-rate", 0.001)
    assert outcome.status == 0
    for said in ("EPOCHS = 2, before 1", "LEARNING_RATE = 0.001, before", "DATA_DIR = ", "after epoch 1 of 2"):
        assert said in outcome.out
    assert len(checkpoint.load(copied, "vqvae")["training"]["history"]) == 2


def test_other_images_of_the_same_number_are_another_run(script, copied, data_dir, monkeypatch):
    load = dataset.load

    def one_pixel_changed(*args):
        data = load(*args)
        data.train.images[0, 0, 0, 0] ^= 1
        return data
    monkeypatch.setattr(dataset, "load", one_pixel_changed)
    for outcome in (continued(script, data_dir, copied), script(
            "train_pixelcnn", "--limit", 300, "--batch-size", 50, *SIZES["pixelcnn"], "--output-dir", copied)):
        assert outcome.status == 1 and "DATASET (--dataset): the training images or their labels changed" in outcome.err


def test_resume_never_and_overwrite(script, copied, data_dir):
    before = (copied / "vqvae.pt").read_bytes()
    refused = continued(script, data_dir, copied, "--resume", "never")
    assert refused.status == 1 and "is a finished run" in refused.err and "--overwrite" in refused.err
    assert (copied / "vqvae.pt").read_bytes() == before
    replaced = continued(script, data_dir, copied, "--resume", "never", "--overwrite")
    assert replaced.status == 0 and "continuing" not in replaced.out
    for name, flags in (("generate", []), ("train_pixelcnn", ["--limit", 300, "--batch-size", 50, *SIZES["pixelcnn"],
                                                              "--epochs", 2])):
        outcome = script(name, *flags, "--output-dir", copied)  # the prior is that of the vqvae.pt that was replaced
        assert outcome.status == 1 and "vqvae.pt" in outcome.err and "--resume never --overwrite" in outcome.err


# ---- several processes


@pytest.mark.parametrize("stage", [*STAGES, "vae"])
def test_two_processes_are_one_and_others_continue_what_two_began(cases, stage):
    """20 steps of a batch of 19 or 20 images, split 10 to 9, with codes revived; the second time stopped at step 10."""
    case = cases[stage]
    # a seed with which no vector lies halfway between two codes to within rounding: it would choose either of them
    flags = [*case.flags, "--limit", 410, "--batch-size", 20, "--epochs", 1, "--seed", 1]
    (alone, log), (shared, _), (stopped, _) = case.new(), case.new(), case.new()
    assert faults.run(case.script, [*flags, "--output-dir", alone], log) == 0
    assert checkpoint.load(alone, stage)["training"]["optimizer"][0]["step"] == 20
    assert [faults.finish(process) for process in faults.together(
        2, case.script, [*flags, "--output-dir", shared], log)] == [0, 0]
    assert faults.compare(alone, shared, stage, tolerance=1e-4) == []
    assert not list(shared.rglob("*.tmp"))
    processes = faults.together(2, case.script, [*flags, "--output-dir", stopped], log, signalled=1,
                                number=signal.SIGTERM, step=7)
    assert [faults.finish(process) for process in processes] == [143, 143]
    assert checkpoint.load(stopped, stage)["training"]["step"] == 10
    for count in (1, 3):
        output = shutil.copytree(stopped, stopped.with_name(f"{stopped.name}-{count}"))
        processes = faults.together(count, case.script, [*flags, "--output-dir", output], log)
        assert [faults.finish(process) for process in processes] == [0] * count
        assert faults.compare(alone, output, stage, tolerance=1e-4) == []


def test_samples_do_not_depend_on_the_number_of_processes(trained, tmp_path):
    outputs = [shutil.copytree(trained, tmp_path / str(count)) for count in (1, 2, 3)]
    for count, output in enumerate(outputs, 1):
        shutil.rmtree(output / "samples", ignore_errors=True)
        flags = ["--num-samples", 5 if count == 3 else 21, "--batch-size", 8, "--output-dir", output]
        processes = faults.together(count, "generate", flags, tmp_path / "log")
        assert [faults.finish(process) for process in processes] == [0] * count
    for output in outputs[1:]:
        names = sorted(path.name for path in output.glob("sample_*.png"))
        assert len(names) == (5 if output == outputs[2] else 21)
        assert all((output / name).read_bytes() == (outputs[0] / name).read_bytes() for name in names)


@pytest.mark.parametrize("dies", [0, 1])
def test_a_process_that_dies_ends_the_run(cases, tmp_path, dies):
    case = cases["vqvae"]
    output, log = case.new()
    began = time.monotonic()
    processes = faults.together(2, case.script, case.of(output), log, signalled=dies, step=13)
    assert faults.finish(processes[dies]) == -signal.SIGKILL
    assert faults.finish(processes[1 - dies]) == 1
    assert time.monotonic() - began < 60
    said = log.with_suffix(f".{1 - dies}").read_text()
    assert "error: another process of this run has ended" in said and "Traceback" not in said
    assert checkpoint.load(output, "vqvae")["training"]["epoch"] == 1
    case_log = log.with_suffix(".again")
    assert faults.run(case.script, case.of(output), case_log) == 0


@pytest.mark.long
def test_torchrun(cases, tmp_path):
    case = cases["vqvae"]
    output, log = case.new()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(checkpoint.__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*torchrun, root / "train_vqvae.py", *map(str, case.of(output))], env=environment,
                           capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"epoch {EPOCHS}/{EPOCHS}") == 1  # one of them tells
    ended = subprocess.run([*torchrun, root / "train_vqvae.py", *map(str, case.of(output)), "--num-codes", "20"],
                           env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "NUM_CODES (--num-codes) is 20" in ended.stderr


def test_a_second_save_replaces_what_a_kill_left(tmp_path):
    (tmp_path / "vqvae.pt.tmp").write_bytes(b"half a checkpoint")
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    (tmp_path / "link.tmp").symlink_to(outside)
    for name in ("vqvae.pt", "link"):
        with files.atomic(tmp_path / name) as file:
            file.write(b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"
    assert outside.read_bytes() == b"precious" and not list(tmp_path.glob("*.tmp"))
