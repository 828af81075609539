"""Constants become flags; what a flag may not be is said in one line that names the constant."""
import ast
import importlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SMALL_VQVAE

from running import cli, progress
from running.rules import RULES, Rule

SCRIPTS = [path.stem for path in sorted(ROOT.glob("*.py")) if path.stem not in ("dataset", "modules")]


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


@pytest.mark.parametrize("name", SCRIPTS)
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


WRONG = {int: ["many", [16], 1.5, None, True], float: ["many", [0.1], None, False], bool: ["yes", 1, None],
         str: [["a", 1], 1.5, None, b"a"]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_wrong_constant_at_the_top_is_one_line_that_names_it(name, capsys):
    script = vars(importlib.import_module(name))
    for constant, (source, remark, place) in cli.constants(Path(script["__file__"])).items():
        rule = RULES.get(constant) or Rule(type(ast.literal_eval(source)))
        for value in WRONG[rule.kind]:
            if value is None and "None" in remark or isinstance(value, list) and rule.join and rule.pattern == ".+":
                continue
            with pytest.raises(SystemExit) as stop:
                cli.parse(script | {constant: value}, [])
            err = capsys.readouterr().err
            assert stop.value.code == 2 and err.count("\n") == 1 and "Traceback" not in err
            assert f"{constant} ({cli.flag(constant)}) must " in err and f"{place}, {constant} = {source}" in err


@pytest.mark.parametrize("line, value", [
    ("IMAGE_SIZE = (64, 48)", "64x48"), ("IMAGE_SIZE = [64]", "64"), ("IMAGE_SIZE = 64", "64"),
    ("VALUE_RANGE = (0, 4095)", "0 4095"), ("DATASET = Path('small')", "small"), ("EPOCHS: int = 3", 3),
    ("EPOCHS = 3.0", 3), ("BATCH_SIZE = np.int64(16)", 16), ("BATCH_SIZE = 2 * 8", 16), ("LEARNING_RATE = 1", 1.0),
    ("LEARNING_RATE = np.float32(0.5)", 0.5), ("SEED = '7'", 7)])
def test_what_plainly_means_a_right_value_is_taken(line, value, tmp_path):
    """A script with the line, parsed before it runs, when only literals are known, and as it runs."""
    (tmp_path / "script.py").write_text(f"{line}  # a remark\n")
    name = re.match("[A-Z_]+", line)[0]
    script = {"__file__": str(tmp_path / "script.py"), "__doc__": ""}
    early = getattr(cli.parse(script, []), name)
    exec(line, {"Path": Path, "np": np}, script)
    late = getattr(cli.parse(script, []), name)
    assert (late, type(late)) == (value, type(value)) and early in (value, cli.UNKNOWN)
    assert getattr(cli.parse(script, [cli.flag(name), str(value)]), name) == value


def test_a_word_is_allowed_where_the_remark_explains_it():
    for name in SCRIPTS:
        for constant, (source, remark, _) in cli.constants(ROOT / f"{name}.py").items():
            assert source != "None" or "None" in remark, constant
            words = RULES[constant].words if constant in RULES else ()
            assert ast.literal_eval(source) not in words or source.replace("'", '"') in remark, constant


@pytest.mark.parametrize("streams", ["closed", "a pipe that ends", "full"])
def test_a_stream_that_takes_nothing_stops_nothing(streams, tmp_path, data_dir, trained):
    """A training goes on and saves, a script that writes pictures ends with status 0."""
    shutil.copy(trained / "vqvae.pt", tmp_path)
    command = ["random_sample.py", "--output-dir", tmp_path]
    if streams == "a pipe that ends":
        (tmp_path / "vqvae.pt").unlink()
        command = ["train_vqvae.py", *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path]
    end = {"closed": ">&- 2>&-", "a pipe that ends": "2>&1 | head -n 1", "full": ">/dev/full 2>&1"}[streams]
    done = subprocess.run(["bash", "-o", "pipefail", "-c",
                           f"{shlex.join(map(str, [sys.executable, *command]))} {end}"], cwd=ROOT)
    wrote = "vqvae_curves.png" if streams == "a pipe that ends" else "random_samples.png"
    assert done.returncode == 0 and (tmp_path / "vqvae.pt").exists() and (tmp_path / wrote).exists()


def test_progress_is_a_line_now_and_then_where_stderr_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.05)
    for _ in progress.Bar(range(40), desc="encoding"):
        time.sleep(0.005)
    err = capsys.readouterr().err
    assert "\r" not in err and 1 <= err.count("\n") <= 8 and "encoding: " in err and " of 40 in " in err
    monkeypatch.setattr(progress, "EVERY", 60)
    for _ in progress.Bar(range(40), desc="encoding"):
        pass
    assert capsys.readouterr().err == ""


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
    told = {name: constant[:2] for name, constant in looked.items() if name not in ("DATASET", "OUTPUT_DIR")}
    assert told == {name: trained[name][:2] for name in told} and len(told) > 8


@pytest.mark.parametrize("flags, advice", [
    ([], "a smaller --batch-size"), (["--batch-size", "1"], "a smaller --image-size or --hidden")])
def test_advice_where_memory_runs_out_names_a_flag_that_helps(capsys, monkeypatch, flags, advice):
    def fail(_args):
        raise RuntimeError("CUDA out of memory")
    monkeypatch.setattr("sys.argv", ["train_vqvae.py", *flags])
    with pytest.raises(SystemExit):
        cli.run(fail, vars(importlib.import_module("train_vqvae")))
    assert capsys.readouterr().err == f"train_vqvae.py: error: out of memory: try {advice}\n"
