"""Fixtures that the tests share: scripts run in this process, and one small trained run."""
import importlib
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from running import cli  # noqa: E402  (needs the path above)

os.environ["OMP_NUM_THREADS"] = "1"  # test files run side by side, one on a core
torch.set_num_threads(1)

SMALL = ["--limit", "300", "--epochs", "1", "--batch-size", "50", "--device", "cpu"]
SMALL_VQVAE = [*SMALL, "--hidden", "16", "--residual-hidden", "8", "--num-codes", "16", "--code-dim", "8",
               "--learning-rate", "5e-4"]  # in so few steps images would else have hardly any codes but one
SMALL_PIXELCNN = [*SMALL, "--prior", "pixelcnn", "--hidden", "16", "--layers", "2"]
SMALL_AGAIN = [*SMALL_VQVAE, "--epochs", "2"]  # continues the small finished run


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process is left with one of them at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_notebook", "test_evaluate", "test_faults"))


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def script(capfd):
    """script("generate", "--seed", "1") runs a script as the command line would; returns status, stdout, stderr."""
    def run(name: str, *flags: object) -> Outcome:
        module = importlib.import_module(name)
        capfd.readouterr()
        argv, sys.argv = sys.argv, [f"{name}.py", *map(str, flags)]
        try:
            cli.run(module.main, vars(module))
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.argv = argv
        return Outcome(status, *capfd.readouterr())
    return run


@pytest.fixture
def done(script):
    """done("generate", "--seed", "1") runs a script as `script` does, and fails where the script does."""
    def run(name: str, *flags: object) -> Outcome:
        outcome = script(name, *flags)
        assert outcome.status == 0, outcome.err
        return outcome
    return run


@pytest.fixture
def torchvision_datasets():
    """torchvision's module of data sets; skips where it does not fit the installed torch: nothing else needs it."""
    try:
        import torchvision.datasets
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs a torchvision that fits the installed torch ({error})")
    return torchvision.datasets


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A directory with the glyphs drawn once for all tests."""
    import dataset
    path = tmp_path_factory.getbasetemp().parent / "glyphs"  # of all processes that run tests
    dataset.load("glyphs", str(path))
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, data_dir):
    """The directory of a small finished run: copy it before changing anything in it."""
    import train_pixelcnn
    import train_vqvae
    output = tmp_path_factory.mktemp("trained")
    where = ["--output-dir", str(output)]
    train_vqvae.main(cli.parse(vars(train_vqvae), [*SMALL_VQVAE, *where, "--data-dir", str(data_dir)]))
    train_pixelcnn.main(cli.parse(vars(train_pixelcnn), [*SMALL_PIXELCNN, *where]))
    return output


@pytest.fixture(scope="session")
def shared(tmp_path_factory, trained):
    """The directory of the small finished run's weights alone, as float16: copy it before changing anything in it."""
    import share
    place = tmp_path_factory.mktemp("shared")
    share.main(cli.parse(vars(share), ["--output-dir", str(trained), "--shared-dir", str(place), "--device", "cpu"]))
    return place


@pytest.fixture
def copied(trained, tmp_path, monkeypatch):
    """A copy of the small finished run, to change."""
    from running import figures
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)  # a second each
    return shutil.copytree(trained, tmp_path / "copied")


def let_classes_matter(run: Path) -> None:
    """Give the PixelCNN of a run a large condition on the class, which changes every draw: it is hardly trained."""
    content = torch.load(run / "pixelcnn.pt", weights_only=True)
    weight = content["model"]["condition.weight"]
    weight.copy_(2 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    torch.save(content, run / "pixelcnn.pt")


def continued(script, data_dir, output, *flags) -> Outcome:
    """Train the small finished run for an epoch more."""
    return script("train_vqvae", *SMALL_AGAIN, "--data-dir", data_dir, "--output-dir", output, *flags)


@pytest.fixture(scope="session")
def cases(tmp_path_factory, trained, data_dir):
    """By name a training that has run undisturbed, and that can be run again and disturbed: see faults.Case."""
    from faults import Case

    class Cases(dict):
        def __missing__(self, stage: str) -> Case:  # made when it is first asked for: each takes seconds
            self[stage] = Case(stage, tmp_path_factory.mktemp("case"), trained, data_dir)
            return self[stage]
    return Cases()
