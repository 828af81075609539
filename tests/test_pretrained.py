"""pretrained/: small enough to be cloned, without paths, and every script that needs no data set draws from it."""
import json

import pytest
from conftest import ROOT
from PIL import Image

from training import checkpoint

PLACE = ROOT / "pretrained"
RUNS = sorted(path.name for path in PLACE.iterdir() if path.is_dir())


def test_the_runs_are_those_that_the_page_names():
    page = (PLACE / "README.md").read_text(encoding="utf-8")
    assert RUNS == ["cifar10", "faces", "faces128", "glyphs", "mnist", "mri"]
    assert all(f"| `{name}` |" in page for name in RUNS)
    assert sum(path.stat().st_size for path in PLACE.rglob("*.pt")) < 25e6


@pytest.mark.parametrize("name", RUNS)
def test_samples_come_without_the_data_set(done, tmp_path, name):
    before = sorted((PLACE / name).iterdir())
    done("generate", "--pretrained", PLACE / name, "--output-dir", tmp_path, "--num-samples", 2)
    stored = checkpoint.load(PLACE / name, "vqvae")["data"]
    image = Image.open(tmp_path / "sample_1.png")
    assert (image.height, image.width) == (stored["height"], stored["width"])
    assert len(image.getcolors(1 << 16)) > 16  # no flat colour
    assert json.loads((tmp_path / "samples.json").read_text())["prior"] == "transformer"
    assert sorted((PLACE / name).iterdir()) == before


@pytest.mark.parametrize("name", ["faces", "mnist"])
@pytest.mark.parametrize("reader", ["reconstruct", "complete", "score"])
def test_a_picture_of_ones_own(done, tmp_path, name, reader):
    Image.radial_gradient("L").resize((90, 70)).save(tmp_path / "own.png")
    flags = ["--num-completions", 1] if reader == "complete" else []
    done(reader, "--pretrained", PLACE / name, "--output-dir", tmp_path / "out", "--dataset",
         tmp_path / "own.png", *flags)
    assert list((tmp_path / "out").glob("*.png"))
