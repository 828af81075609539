"""share.py: weights alone, without paths, in half the size, from which every script draws what it drew from the run.

And PRETRAINED, with which a script reads weights and writes nothing beside them.
"""
import csv
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import SMALL_PIXELCNN, SMALL_VQVAE
from images import noise, write, write_many
from PIL import Image

import dataset
import share
from judging import testset
from priors import codes, runs
from running import cli
from running.cli import UserError
from training import checkpoint

FEW = ["--num-samples", 20, "--classifier-epochs", 1, "--batch-size", 25]
# every script that reads PRETRAINED, with flags that make it quick
READERS = {"generate": ["--num-samples", 3], "complete": ["--num-images", 2, "--num-completions", 1],
           "reconstruct": ["--num-images", 2], "random_sample": ["--num-samples", 2],
           "score": ["--num-images", 2, "--limit", 20], "evaluate": FEW,
           "ablation": [*FEW, "--temperatures", "1", "--guidances", "1"]}


@pytest.fixture(scope="module")
def exact(tmp_path_factory, trained):
    """The weights of the small finished run as float32."""
    place = tmp_path_factory.mktemp("exact")
    share.main(cli.parse(vars(share), ["--output-dir", str(trained), "--shared-dir", str(place), "--no-half"]))
    return place


def listing(directory):
    return {path.relative_to(directory): path.stat().st_mtime_ns for path in directory.rglob("*")}


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_files_shrink_and_say_so(script, trained, exact, tmp_path):
    place = tmp_path / "shared"
    outcome = script("share", "--output-dir", trained, "--shared-dir", place)
    lines = [line for line in outcome.out.splitlines() if line.startswith("wrote ")]
    assert outcome.status == 0 and len(lines) == 2 and all(" MB, " in line for line in lines), outcome.err
    assert sorted(path.name for path in place.iterdir()) == ["pixelcnn.pt", "vqvae.pt"]
    for name in ("vqvae.pt", "pixelcnn.pt"):
        whole, float32, half = (directory / name for directory in (trained, exact, place))
        assert half.stat().st_size < 0.75 * float32.stat().st_size < 0.5 * whole.stat().st_size
        stored = torch.load(half, weights_only=True)["model"]
        assert all(weight.dtype == torch.float16 for weight in stored.values())


def test_no_path_of_this_machine_is_left(done, trained, shared, tmp_path, monkeypatch):
    """Neither that of a folder of images nor those of the run and its data, in any string of the files."""
    root, out = write_many(tmp_path / "secret" / "faces", 60, 12, 16, 3), tmp_path / "secret" / "run"
    flags = ["--output-dir", out, "--batch-size", 10]
    monkeypatch.chdir(tmp_path)
    done("train_vqvae", *SMALL_VQVAE, *flags, "--dataset", root, "--data-dir", tmp_path / "secret" / "data")
    done("train_pixelcnn", *SMALL_PIXELCNN, *flags, "--sample-every", 0)
    done("train_vae", *flags, "--epochs", 1, "--limit", 300, "--latent-dim", 4)
    done("share", "--output-dir", out, "--shared-dir", "given")
    assert sorted(path.name for path in (tmp_path / "given").iterdir()) == ["pixelcnn.pt", "vae.pt", "vqvae.pt"]
    for directory in (tmp_path / "given", shared):
        for path in directory.glob("*.pt"):
            with zipfile.ZipFile(path) as archive:
                content = b"".join(archive.read(entry) for entry in archive.infolist())
            assert b"class_names" in content and b"LEARNING_RATE" in content  # strings lie there as they are
            for word in (b"secret", str(tmp_path.parent).encode(), str(trained.parent).encode()):
                assert word not in content, (path, word)
    stored = checkpoint.load("given", "pixelcnn")
    assert stored["data"]["dataset"] == checkpoint.constants(stored)["DATASET"] == "faces"
    assert stored["data"]["data_dir"] == "data"


@pytest.mark.parametrize("name, expected", [
    ("mnist", "mnist"), ("/data/of/me/faces/", "faces"), ("./mnist", "./mnist"), ("/data/mnist", "./mnist"),
    ("../faces", "faces")])
def test_a_folder_keeps_its_last_name_and_is_taken_for_no_data_set(name, expected):
    assert share.name_alone(name) == expected


def test_what_other_scripts_read_stays(trained, shared):
    for stage in ("vqvae", "pixelcnn"):
        whole, alone = (checkpoint.load(str(run), stage) for run in (trained, shared))
        assert alone["config"] == whole["config"] and alone["images"] == whole["images"]
        assert alone["data"] == whole["data"] | {"data_dir": "data"}
        assert alone["training"]["history"] == whole["training"]["history"]
        assert set(alone["training"]) == {"constants", "history", "finished"} and alone["training"]["finished"]
        assert checkpoint.constants(alone) == {name: value for name, value in checkpoint.constants(whole).items()
                                               if name not in ("DATA_DIR", "OUTPUT_DIR")}
    assert runs.class_dropout(alone) == 0.1
    assert runs.validation_nll(alone) == runs.validation_nll(whole) < 10


def test_values_that_float16_does_not_hold_stay_float32():
    small, large = torch.full((3, 3), 1e-9), torch.tensor([1.0, 1e6])
    for weight in (small, large):
        assert share.rounded(weight) is weight and share.packed(weight) is weight
    plain = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert share.packed(share.rounded(plain)).dtype == torch.float16
    torch.testing.assert_close(share.rounded(plain), plain, rtol=2**-11, atol=0)


@torch.no_grad()
def test_both_precisions_give_the_figures_of_the_run(done, trained, shared, exact, data_dir, tmp_path):
    """And the samples of float32 weights are those of the run."""
    test = dataset.load("glyphs", str(data_dir), 300).test
    found, images = [], []
    for run in (trained, exact, shared):
        stored = checkpoint.load(str(run), "vqvae")
        vqvae, (_, model) = runs.build(stored), runs.load_prior(str(run), stored)
        assert all(weight.dtype == torch.float32 for weight in (*vqvae.parameters(), *model.parameters()))
        grids = codes.encode(vqvae, test.images)
        error = (codes.to_images(vqvae, grids.long(), 28, 28) - dataset.to_float(test.images)).square().mean()
        nats = codes.nll_sums(model, grids, test.labels, [torch.arange(len(grids))])["nll"] / len(grids)
        found.append((grids, error.item(), nats.item()))
        out = tmp_path / run.name
        done("generate", "--pretrained", run, "--output-dir", out, "--num-samples", 12)
        images.append([(out / f"sample_{i}.png").read_bytes() for i in range(12)])
    (grids, error, nats), exactly, rounded = found
    assert torch.equal(exactly[0], grids) and exactly[1:] == (error, nats)
    assert (rounded[0] == grids).float().mean() > 0.99
    assert rounded[1:] == (pytest.approx(error, rel=2e-3), pytest.approx(nats, rel=2e-3))
    assert images[0] == images[1] and len(set(images[0])) > 1


def test_a_masked_prior_still_belongs_to_its_codes(done, copied, tmp_path):
    done("train_pixelcnn", *SMALL_PIXELCNN, "--prior", "masked", "--output-dir", copied)
    place = tmp_path / "shared"
    outcome = done("share", "--output-dir", copied, "--shared-dir", place)
    assert not outcome.err.count("score.py"), outcome.err
    assert {path.stem for path in place.iterdir()} == {"vqvae", "pixelcnn", "masked"}
    for prior in ("pixelcnn", "masked"):
        done("generate", "--pretrained", place, "--output-dir", tmp_path / "out", "--prior", prior, "--num-samples", 2)
    assert "expected" in checkpoint.load(str(place), "pixelcnn")
    assert "expected" not in checkpoint.load(str(place), "masked")


def test_sharing_again(script, done, shared, trained, copied, tmp_path):
    """Of shared weights too; what the run has not is removed, and only if it may be. Trainings are not."""
    place = tmp_path / "again"
    flags = ["--output-dir", shared, "--shared-dir", place]
    done("share", *flags)
    for name in ("vqvae.pt", "pixelcnn.pt"):
        assert (place / name).read_bytes() == (shared / name).read_bytes()
    other = torch.load(shared / "pixelcnn.pt", weights_only=True)
    torch.save(other | {"stage": "transformer"}, place / "transformer.pt")
    before = listing(place)
    outcome = script("share", *flags)
    assert outcome.status == 1 and "add --overwrite" in outcome.err and listing(place) == before
    shutil.copy(trained / "pixelcnn.pt", place / "pixelcnn.pt")
    before = listing(place)
    outcome = script("share", *flags, "--overwrite")
    assert outcome.status == 1 and "pixelcnn.pt is of a training" in outcome.err and listing(place) == before
    (place / "pixelcnn.pt").unlink()
    done("share", *flags, "--overwrite")
    assert sorted(path.name for path in place.iterdir()) == ["pixelcnn.pt", "vqvae.pt"]


def test_what_is_kept_for_scores_is_renewed(done, shared, data_dir, tmp_path):
    """By score.py and share.py, from the data set, where it is of an earlier version."""
    run, data, tables = shutil.copytree(shared, tmp_path / "run"), ["--data-dir", data_dir], []
    content = torch.load(run / "pixelcnn.pt", weights_only=True)
    kept, content["expected"] = content["expected"], {"bits": torch.ones(3)}
    torch.save(content, run / "pixelcnn.pt")
    outcome = done("share", "--output-dir", run, "--shared-dir", run / "again", *data)
    assert "score.py will ask for the data set" not in outcome.err
    torch.testing.assert_close(checkpoint.load(str(run / "again"), "pixelcnn")["expected"], kept)
    for place in (run, shared):
        done("score", "--pretrained", place, "--output-dir", tmp_path / "out", *data, "--limit", 5, "--num-images", 1)
        tables.append((tmp_path / "out" / "scores.csv").read_text())
    assert tables[0] == tables[1]


def test_a_training_does_not_continue_weights_alone_but_another_prior_learns(script, done, shared, data_dir, tmp_path):
    run = shutil.copytree(shared, tmp_path / "run")
    where = ["--data-dir", data_dir, "--output-dir", run]
    before = {path.name: path.read_bytes() for path in run.glob("*.pt")}
    for name, flags in (("train_vqvae", [*SMALL_VQVAE, "--epochs", 2]), ("train_pixelcnn", SMALL_PIXELCNN)):
        for more in ([], ["--resume", "never"]):
            outcome = script(name, *flags, *where, *more)
            line = outcome.err.split("\r")[-1]
            assert outcome.status == 1 and line.count("\n") == 1 and "--overwrite" in line
            assert more or "weights alone, which cannot be continued" in line
            assert {path.name: path.read_bytes() for path in run.glob("*.pt")} == before
    done("train_pixelcnn", *SMALL_PIXELCNN, "--prior", "transformer", *where, "--sample-every", 0)
    for prior in ("transformer", "pixelcnn"):
        done("generate", "--output-dir", run, "--prior", prior, "--num-samples", 2)


@pytest.mark.parametrize("name", READERS)
def test_nothing_is_written_beside_the_weights(done, shared, data_dir, tmp_path, monkeypatch, name):
    """From a directory where there is nothing else, into one that is not there yet."""
    weights = shutil.copytree(shared, tmp_path / "clone" / "pretrained" / "glyphs")
    monkeypatch.chdir(tmp_path / "clone")
    before = listing(weights)
    data = ["--data-dir", data_dir] if name not in ("generate", "random_sample") else []
    done(name, "--pretrained", "pretrained/glyphs", *READERS[name], *data, "--device", "cpu")
    assert listing(weights) == before and sorted(path.name for path in tmp_path.iterdir()) == ["clone"]
    assert sorted(path.name for path in (tmp_path / "clone").iterdir()) == ["output", "pretrained"]
    assert any((tmp_path / "clone" / "output").iterdir())
    if name in ("evaluate", "ablation"):
        page = (tmp_path / "clone" / "output" / "report.html").read_text()
        assert "CODE_DIM" in page and "--output-dir output --pretrained pretrained/glyphs" in page
        assert str(tmp_path) not in page


def test_files_of_others_are_not_removed(script, done, shared, tmp_path):
    """OUTPUT_DIR need not be a run's: only names that the scripts give are taken for theirs."""
    for name in ("score_plot.png", "random_sample_mine.png", "completion_a_b.png", "reconstructed_image_.png"):
        write(tmp_path / name, noise(5, 5))
    (tmp_path / "sample_7.png").write_bytes(b"a user's own")
    before = listing(tmp_path)
    where = ["--pretrained", shared, "--output-dir", tmp_path]
    outcome = script("generate", *where, "--num-samples", 1)
    assert outcome.status == 1 and "holds sample_7.png, not written by this script" in outcome.err
    assert listing(tmp_path) == before
    picture = write(tmp_path / "picture.png", noise(9, 9))
    for name in ("random_sample", "reconstruct", "complete", "score"):
        done(name, *where, *(["--dataset", picture] if name != "random_sample" else []))
    assert before.items() <= listing(tmp_path).items()


@pytest.mark.parametrize("mode, size, said", [
    ("L", (28, 28), ""), ("L", (40, 20), "of 40x20 pixels (width x height) and grey, scaled and cropped to 28x28"),
    ("RGB", (28, 28), "of 28x28 pixels (width x height) and RGB, scaled"),
    ("RGBA", (1000, 700), "of 1000x700 pixels (width x height) and RGB, scaled"),
    ("P", (9, 31), "of 9x31 pixels (width x height) and RGB, scaled"),
    ("I;16", (50, 50), "of 50x50 pixels (width x height) and grey, scaled")])
def test_a_picture_of_any_size_and_mode(shared, tmp_path, capfd, mode, size, said):
    """It is brought to the size and the channels of the training, with a line that says so."""
    if mode == "I;16":
        picture = Image.fromarray(np.arange(2500, dtype=np.uint16).reshape(50, 50) * 20)
    else:
        picture = Image.fromarray(noise(size[1], size[0], 1 if mode == "L" else 3)).convert(mode)
    path, stored = str(write(tmp_path / "picture.png", picture)), checkpoint.load(str(shared), "vqvae")
    assert testset.read_file(path, stored).shape == (1, 1, 28, 28)
    told = capfd.readouterr().out
    assert told.startswith(f"{path}: {said}" if said else "")
    assert ("transparency became white" in told) == (mode == "RGBA")
    stored["data"] |= {"channels": 3, "height": 20, "width": 16}  # of a training in colour
    assert testset.read_file(path, stored).shape == (1, 3, 20, 16)


def test_a_part_of_a_picture_and_its_inverse(shared, tmp_path):
    pixels, stored = noise(60, 80), checkpoint.load(str(shared), "vqvae")
    path = str(write(tmp_path / "picture.png", pixels))
    part = testset.read_file(path, stored, crop="30 20 28")[0, 0].numpy()
    assert np.array_equal(part, pixels[20:48, 30:58])
    assert np.array_equal(testset.read_file(path, stored, crop="30 20 28", invert=True)[0, 0].numpy(), 255 - part)
    whole = testset.read_file(path, stored)[0, 0].int()
    assert (testset.read_file(path, stored, invert=True)[0, 0].int() - (255 - whole)).abs().max() <= 1
    stored["data"] |= {"channels": 3, "height": 20, "width": 16}
    assert testset.read_file(path, stored, crop="0 0 60").shape == (1, 3, 20, 16)
    with pytest.raises(UserError, match="is not inside"):
        testset.read_file(path, stored, crop="30 40 28")


def test_scores_are_those_of_the_run(done, trained, shared, exact, tmp_path, monkeypatch):
    """Ranks and threshold too, though the validation images are not there."""
    picture = write(tmp_path / "picture.png", noise(28, 28))
    dim = write(tmp_path / "dim.png", np.full((28, 28), 9, np.uint8))
    rows, lines = [], []
    for run in (trained, exact, shared):
        with monkeypatch.context() as patch:
            if run != trained:
                patch.setattr(dataset, "load", None)
            outcome = done("score", "--pretrained", run, "--output-dir", tmp_path / "out", "--dataset", picture,
                           "--against", dim, "--num-images", 1)
        rows.append(table(tmp_path / "out" / "scores.csv"))
        lines.append([line for line in outcome.out.splitlines() if line.startswith("unlikely codes")])
    assert rows[0] == rows[1] and lines[0] == lines[1]
    for before, after in zip(rows[0], rows[2]):
        assert float(after["bits"]) == pytest.approx(float(before["bits"]), rel=0.02)
        assert float(after["rank"]) == pytest.approx(float(before["rank"]), abs=0.1)


def test_without_the_data_set_the_run_is_shared_and_score_asks_for_it(script, done, copied, data_dir, tmp_path):
    """What is kept of an earlier version is left out. With DATA_DIR the data set is found where it lies now."""
    whole = {name: torch.load(copied / name, weights_only=True) for name in ("vqvae.pt", "pixelcnn.pt")}
    for name, content in whole.items():
        gone = content["data"] | {"dataset": str(tmp_path / "gone")}
        torch.save(content | {"data": gone, "expected": {"bits": torch.ones(3)}}, copied / name)
    flags = ["--output-dir", copied, "--shared-dir", tmp_path / "shared"]
    outcome = done("share", *flags)
    assert "score.py will ask for the data set" in outcome.err
    assert "expected" not in checkpoint.load(str(tmp_path / "shared"), "pixelcnn")
    picture = write(tmp_path / "picture.png", noise(28, 28))
    where = ["--pretrained", tmp_path / "shared", "--output-dir", tmp_path / "out", "--dataset", picture]
    outcome = script("score", *where)
    assert outcome.status == 1 and "compared with the validation images of the training" in outcome.err
    done("reconstruct", *where)
    for name, content in whole.items():
        torch.save(content | {"data": content["data"] | {"data_dir": str(tmp_path / "nowhere")}}, copied / name)
    outcome = done("share", *flags, "--overwrite", "--data-dir", data_dir)
    assert not (tmp_path / "nowhere").exists()
    done("score", *where)


def test_the_samples_file_names_the_weights(done, shared, trained, tmp_path):
    """Samples of other weights do not stay."""
    for weights in (shared, trained):
        done("generate", "--pretrained", weights, "--output-dir", tmp_path, "--num-samples", 2)
        stored = checkpoint.load(str(weights), "pixelcnn")
        settings = json.loads((tmp_path / "samples.json").read_text())
        assert settings["weights"].split()[1] == checkpoint.fingerprint(stored["model"])
