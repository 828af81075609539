"""Runs that are killed, stopped or starved of disk: nothing saved is lost, and continuing changes nothing.

`python -m pytest tests/test_faults.py` is the short form; `-m long` kills each training twenty times.
"""
import ctypes
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import faults
import pytest
import torch
from conftest import SMALL_AGAIN, SMALL_PIXELCNN
from faults import CASES, Case

import dataset
import train_pixelcnn
from running import figures
from training import checkpoint

SAVES = 33  # of a training that saves at each of its 30 steps and after each epoch


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


@pytest.mark.parametrize("name", CASES)
def test_killed_at_random_moments(cases, name):
    kill_at_random_moments(cases[name], kills=2, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_killed_at_twenty_random_moments(cases, name):
    inside = kill_at_random_moments(cases[name], kills=20, seed=2)
    print(f"{name}: survived 20 of 20 kills, {inside} of them inside a save")
    assert inside > 0


# ---- told to stop


@pytest.mark.parametrize("stage, number, status", [
    ("vqvae", signal.SIGTERM, 143), ("vqvae", signal.SIGINT, 130), ("pixelcnn", signal.SIGTERM, 143),
    ("vae", signal.SIGTERM, 143), ("masked", signal.SIGTERM, 143)])
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


def test_dropout_goes_on_as_it_was(cases):
    case = cases["pixelcnn"]
    (whole, log), (halted, halted_log) = case.new(), case.new()
    flags = ["--prior", "transformer", "--dropout", 0.3, "--epochs", 2]
    assert faults.run(case.script, [*case.of(whole), *flags], log) == 0, log.read_text()
    assert faults.run(case.script, [*case.of(halted), *flags], halted_log, number=signal.SIGTERM, step=14) == 143
    assert faults.run(case.script, [*case.of(halted), *flags], halted_log) == 0, halted_log.read_text()
    assert faults.compare(whole, halted, "transformer") == []


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
