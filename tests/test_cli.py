"""Constants become flags; what a flag may not be is said in one line that names the constant."""
import importlib

import pytest

import cli


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
    for name, (value, _) in cli.constants(vars(module)).items():
        assert getattr(args, name) == (str(value) if name == "IMAGE_SIZE" else value), name


def test_none_stays_none_until_the_checkpoint_fills_it():
    assert parse("train_pixelcnn").DATASET is None
    assert parse("train_pixelcnn", "--limit", "7").LIMIT == 7


@pytest.mark.parametrize("flags, says", [
    (["--num-codes", "1"], "NUM_CODES"), (["--num-codes", "many"], "NUM_CODES"), (["--num-codes", "2.5"], "NUM_CODES"),
    (["--learning-rate", "0"], "LEARNING_RATE"), (["--learning-rate", "nan"], "LEARNING_RATE"),
    (["--learning-rate", "inf"], "LEARNING_RATE"), (["--codebook", "magic"], "CODEBOOK"),
    (["--downsample", "3"], "DOWNSAMPLE"), (["--device", "toaster"], "DEVICE"), (["--epochs", "-1"], "EPOCHS"),
    (["--dataset", ""], "DATASET"), (["--nosuch", "1"], "--nosuch"), (["--num-code", "8"], "--num-code"),
    (["--epochs"], "--epochs"), (["stray"], "stray"),
])
def test_a_wrong_flag_is_a_usage_error_of_one_line(capsys, flags, says):
    with pytest.raises(SystemExit) as stop:
        parse("train_vqvae", *flags)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and says in err and err.count("\n") == 1


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
    looked, trained = (cli.constants(vars(importlib.import_module(name))) for name in ("look", "train_vqvae"))
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
