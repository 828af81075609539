"""devices.py: several processes compute what one would, to rounding, and end together."""
import os
import shutil
import signal
import subprocess
import sys
import time

import faults
import pytest
import torch
from conftest import ROOT, SMALL_VQVAE
from faults import EPOCHS

from running import devices
from training import checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize("able", [True, False])
def test_a_step_computes_in_bfloat16_where_that_is_fast_or_asked_for(able, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able, raising=False)
    x, found = torch.rand(2, 3), {}
    for wanted in ("auto", "float32", "bfloat16"):
        with devices.autocast(CPU, wanted):
            found[wanted] = (x @ x.T).dtype
    assert found == {"auto": torch.bfloat16 if able else torch.float32, "float32": torch.float32,
                     "bfloat16": torch.bfloat16}
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")  # an older torch
    assert devices.precision(CPU, "auto") == torch.float32
    assert devices.precision(torch.device("mps"), "auto") == torch.float32


def test_trainings_in_both_precisions(script, data_dir, tmp_path):
    """They learn the same to 2%, a run may change between them, and what is measured is of float32 weights."""
    def train(directory, precision, epochs):
        flags = [*SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path / directory, "--epochs", epochs]
        outcome = script("train_vqvae", *flags, "--precision", precision)
        assert outcome.status == 0, outcome.err
        stored = checkpoint.load(str(tmp_path / directory), "vqvae")
        assert all(weight.dtype != torch.bfloat16 for weight in stored["model"].values())
        return [row["validation_mse"] for row in stored["training"]["history"]]
    exact, rounded = train("a", "float32", 2), train("b", "bfloat16", 2)
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.02)
    assert train("b", "float32", 3)[:2] == rounded


@pytest.mark.parametrize("name, tolerance, more", [
    ("vqvae", 1e-4, ["--optimizer", "adam"]), ("vqvae", 1e-2, ["--revive-below", 0]), ("pixelcnn", 1e-4, []),
    ("vae", 1e-3, []), ("masked", 1e-4, ["--optimizer", "adam"]), ("decoder", 1e-2, [])])
def test_two_processes_are_one_and_others_continue_what_two_began(cases, name, tolerance, more):
    """20 steps of a batch of 19 or 20 images, split 10 to 9; the second time stopped at step 10.

    Under Adam codes are revived. Muon scales all directions of a gradient to one size, those of rounding errors too, so
    that these grow with every step.
    """
    case = cases[name]
    stage = case.stage
    # a seed with which no vector lies halfway between two codes to within rounding: it would choose either of them
    flags = [*case.flags, "--limit", 410, "--batch-size", 20, "--epochs", 1, "--seed", 4, "--precision", "float32",
             *more]
    (alone, log), (shared, _), (stopped, _) = case.new(), case.new(), case.new()
    assert faults.run(case.script, [*flags, "--output-dir", alone], log) == 0
    assert checkpoint.load(alone, stage)["training"]["count"] == 390
    assert [faults.finish(process) for process in faults.together(
        2, case.script, [*flags, "--output-dir", shared], log)] == [0, 0]
    assert faults.compare(alone, shared, stage, tolerance=tolerance) == []
    assert not list(shared.rglob("*.tmp"))
    processes = faults.together(2, case.script, [*flags, "--output-dir", stopped], log, signalled=1,
                                number=signal.SIGTERM, step=7)
    assert [faults.finish(process) for process in processes] == [143, 143]
    assert checkpoint.load(stopped, stage)["training"]["step"] == 10
    for count in (1, 3):
        output = shutil.copytree(stopped, stopped.with_name(f"{stopped.name}-{count}"))
        processes = faults.together(count, case.script, [*flags, "--output-dir", output], log)
        assert [faults.finish(process) for process in processes] == [0] * count
        assert faults.compare(alone, output, stage, tolerance=tolerance) == []


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
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*torchrun, ROOT / "train_vqvae.py", *map(str, case.of(output))], env=environment,
                           capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count(f"epoch {EPOCHS}/{EPOCHS}") == 1  # one of them tells
    ended = subprocess.run([*torchrun, ROOT / "train_vqvae.py", *map(str, case.of(output)), "--num-codes", "20"],
                           env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1 and "NUM_CODES (--num-codes) is 20" in ended.stderr
