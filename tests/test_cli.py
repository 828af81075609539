"""Constants become flags; what a flag may not be is said in one line that names the constant."""
import ast
import importlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from running import cli


def parse(name, *flags):
    return cli.parse(vars(importlib.import_module(name)), list(flags))


def test_a_flag_overrides_its_constant_and_keeps_its_type():
    args = parse("train_vqvae", "--num-codes", "256", "--learning-rate", "1", "--tensorboard", "--dataset", "mnist")
    assert (args.NUM_CODES, args.LEARNING_RATE, args.TENSORBOARD, args.DATASET) == (256, 1.0, True, "mnist")
    assert type(args.LEARNING_RATE) is float
    assert parse("train_vqvae", "--no-tensorboard").TENSORBOARD is False


def test_without_flags_the_constants_stand():
    module = importlib.import_module("train_vqvae")
    args = parse("train_vqvae")
    found = cli.constants(Path(module.__file__))
    assert {"NUM_CODES", "NIFTI_AXIS", "RESUME"} <= set(found)  # its own, and those of the files that it imports from
    for name, constant in found.items():
        assert getattr(args, name) == ast.literal_eval(constant.source) == getattr(module, name), name


def test_none_stays_none_until_the_checkpoint_fills_it():
    assert parse("train_pixelcnn").DATASET is None
    assert parse("train_pixelcnn", "--limit", "7").LIMIT == 7


@pytest.mark.parametrize("name", [path.stem for path in ROOT.glob("*.py") if path.stem not in ("dataset", "modules")])
def test_help_and_a_wrong_flag_are_answered_before_torch_is_imported(name):
    def run(flag):
        done = subprocess.run([sys.executable, "-X", "importtime", f"{name}.py", flag], cwd=ROOT, text=True,
                              capture_output=True)
        lines = done.stderr.splitlines()
        imported = {line.split("|")[-1].strip() for line in lines if line.startswith("import time:")}
        assert "running.cli" in imported and not {"torch", "numpy"} & imported
        return done.returncode, done.stdout, [line for line in lines if not line.startswith("import time:")]
    status, out, err = run("--help")
    assert status == 0 and "--output-dir" in out and not err
    status, out, err = run("--nosuch=1")
    assert (status, out) == (2, "")
    assert err == [f"{name}.py: error: unrecognized arguments: --nosuch=1 (--help lists every flag)"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_signal_while_torch_is_imported_is_one_line(tmp_path):
    process = subprocess.Popen([sys.executable, "train_vqvae.py", "--output-dir", tmp_path], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    caught = 0
    while not caught >> signal.SIGTERM - 1 & 1:  # Python itself handles SIGINT, but not SIGTERM
        assert process.poll() is None
        time.sleep(0.01)
        [line] = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line]
        caught = int(line.split()[1], 16)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "train_vqvae.py: stopped by SIGINT\n")


def test_a_wrong_constant_in_the_script_is_found_too(capsys, monkeypatch):
    monkeypatch.setattr(importlib.import_module("train_vqvae"), "NUM_CODES", 1)
    with pytest.raises(SystemExit) as stop:
        parse("train_vqvae")
    assert stop.value.code == 2 and "NUM_CODES" in capsys.readouterr().err


def test_errors_that_are_no_bugs_get_one_line(capsys, monkeypatch):
    script = vars(importlib.import_module("generate"))
    monkeypatch.setattr("sys.argv", ["generate.py"])
    for error, status, says in [(cli.UserError("no such thing"), 1, "no such thing"), (cli.Stopped(2), 130, "SIGINT"),
                                (OSError(28, "No space left on device", "x.pt"), 1, "No space left on device: x.pt"),
                                (RuntimeError("CUDA out of memory"), 1, "out of memory"),
                                (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), 1, "out of memory")]:
        def fail(_args, error=error):
            raise error
        with pytest.raises(SystemExit) as stop:
            cli.run(fail, script)
        err = capsys.readouterr().err
        assert stop.value.code == status and says in err and err.count("\n") == 1


def test_bugs_keep_their_traceback(monkeypatch):
    monkeypatch.setattr("sys.argv", ["generate.py"])
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 / 0, vars(importlib.import_module("generate")))


def test_look_has_the_constants_of_the_training_that_it_looks_for():
    looked, trained = (cli.constants(ROOT / name) for name in ("loading/look.py", "train_vqvae.py"))
    told = {name: constant for name, constant in looked.items() if name not in ("DATASET", "OUTPUT_DIR")}
    assert told == {name: trained[name] for name in told} and len(told) > 8


@pytest.mark.parametrize("flags, advice", [
    ([], "a smaller --batch-size"), (["--batch-size", "1"], "a smaller --image-size or --hidden")])
def test_advice_where_memory_runs_out_names_a_flag_that_helps(capsys, monkeypatch, flags, advice):
    def fail(_args):
        raise RuntimeError("CUDA out of memory")
    monkeypatch.setattr("sys.argv", ["train_vqvae.py", *flags])
    with pytest.raises(SystemExit):
        cli.run(fail, vars(importlib.import_module("train_vqvae")))
    assert capsys.readouterr().err == f"train_vqvae.py: error: out of memory: try {advice}\n"
