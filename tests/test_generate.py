"""generate.py: which classes it draws, what it leaves in its directory, and how it continues."""
import json
import os
import shutil
import signal

import pytest
import torch
from conftest import let_classes_matter
from PIL import Image

import generate
from priors import runs
from running import figures
from running.cli import UserError
from training import checkpoint


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def samples(directory):
    return {path.name: path.read_bytes() for path in directory.glob("sample_*.png")}


def prior(names, counts=None):
    return {"data": {"class_names": names, **({"class_counts": counts} if counts else {})}}


def test_classes_by_name_by_number_all_or_none():
    animals = prior(["cat", "dog", "emu"])
    assert runs.choose_classes("all", animals) == ([0, 1, 2], "all classes in turn")
    assert runs.choose_classes("none", animals) == ([3], "without a class")
    assert runs.choose_classes("dog", animals) == runs.choose_classes("1", animals)
    assert runs.choose_classes("dog", animals) == ([1], "of class 1 (dog)")
    assert runs.choose_classes("1", prior(["1", "2", "10"]))[0] == [0]  # a name comes before a number
    assert runs.choose_classes("all", prior([])) == ([0], "")
    for asked in ("3", "-1", "Dog", "4.0"):
        with pytest.raises(UserError, match=r"no class .*there are 0 to 2 \(cat, dog, emu\)"):
            runs.choose_classes(asked, animals)
    with pytest.raises(UserError, match="there are none"):
        runs.choose_classes("0", prior([]))


def test_a_class_without_a_training_image_is_named_and_left_out():
    classes, told = runs.choose_classes("all", prior(["cat", "dog", "emu"], [5, 0, 2]))
    assert classes == [0, 2] and "dog" in told and "without a training image" in told
    assert runs.choose_classes("dog", prior(["cat", "dog", "emu"], [5, 0, 2]))[0] == [1]


def test_training_stores_how_many_images_each_class_has(trained):
    stored = checkpoint.load(str(trained), "pixelcnn")
    assert len(stored["data"]["class_counts"]) == 10 and sum(stored["data"]["class_counts"]) == 285


def test_the_same_command_continues_where_it_was_stopped(script, run, monkeypatch):
    flags = ["--output-dir", run, "--num-samples", 10, "--batch-size", 3]
    assert script("generate", *flags).status == 0
    whole = samples(run)
    shutil.rmtree(run / "samples", ignore_errors=True)
    for path in run.glob("sample_*.png"):
        path.unlink()
    save, saved = figures.save_image, []

    def save_and_stop(image, path):
        save(image, path)
        saved.append(path)
        if len(saved) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(figures, "save_image", save_and_stop)
        outcome = script("generate", *flags)
    assert outcome.status == 143
    assert outcome.err.splitlines()[-1] == f"generate.py: stopped by SIGTERM: 5 of 10 samples are in {run}, " \
                                           "the same command continues"
    assert len(samples(run)) == 5
    drawn = []
    monkeypatch.setattr(figures, "save_image", lambda image, path: (save(image, path), drawn.append(path.name)))
    assert script("generate", *flags).status == 0
    assert samples(run) == whole
    assert len(drawn) == 7  # the batch that was not whole, and those after it


def test_no_sample_of_another_call_stays(script, run):
    flags = ["--output-dir", run]
    assert script("generate", *flags, "--num-samples", 9).status == 0
    first = samples(run)
    assert script("generate", *flags, "--num-samples", 4).status == 0
    assert samples(run) == {name: first[name] for name in (f"sample_{i}.png" for i in range(4))}
    assert script("generate", *flags, "--num-samples", 2, "--seed", 1).status == 0
    assert len(samples(run)) == 2 and samples(run)["sample_0.png"] != first["sample_0.png"]
    (run / "samples.json").write_text("{")
    assert script("generate", *flags, "--num-samples", 1).status == 0
    assert samples(run) == {"sample_0.png": first["sample_0.png"]}


def test_guidance_is_one_of_the_settings(script, run, tmp_path):
    """The samples of another s are removed; with the same one, they depend on seed and number, not on the batch."""
    let_classes_matter(run)

    def drawn(guidance, *more):
        assert script("generate", "--output-dir", run, "--num-samples", 4, "--guidance", guidance, *more).status == 0
        return samples(run)

    found = {guidance: drawn(guidance) for guidance in (1, 2, 0)}
    assert all(len(set(names.values())) == 4 for names in found.values())
    assert not set(found[1].items()) & set(found[2].items()) and not set(found[0].items()) & set(found[1].items())
    assert json.loads((run / "samples.json").read_text())["GUIDANCE"] == 0
    assert drawn(0) == drawn(1, "--class-label", "none") == found[0]
    assert drawn(2, "--batch-size", 3, "--samples-dir", tmp_path / "there") == found[0]
    assert samples(tmp_path / "there") == found[2]


def test_guidance_is_for_draws_of_a_class(script, run):
    """What "auto" means, with a class and without, and of a prior that did not learn to draw without one."""
    def told(*flags):
        assert script("generate", "--output-dir", run, "--num-samples", 1, *flags).status == 0
        settings = json.loads((run / "samples.json").read_text())
        return settings["GUIDANCE"], settings["TOP_P"]

    assert told() == told("--class-label", 1) == (1.25, 1)
    assert told("--class-label", "none") == told("--guidance", 1) == (1, 0.95)
    assert told("--guidance", 2) == (2, 1) and told("--top-p", 0.8) == (1.25, 0.8)
    content = torch.load(run / "pixelcnn.pt", weights_only=True)
    content["training"]["constants"]["CLASS_DROPOUT"] = 0.0
    torch.save(content, run / "pixelcnn.pt")
    assert told() == (1, 0.95)


def test_another_directory_for_the_samples_leaves_the_run_untouched(script, run, tmp_path):
    before = sorted(run.rglob("*"))
    outcome = script("generate", "--output-dir", run, "--samples-dir", tmp_path / "there", "--num-samples", 3)
    assert outcome.status == 0 and sorted(run.rglob("*")) == before
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        "sample_0.png", "sample_1.png", "sample_2.png", "samples.png", "samples.json"}


def test_images_of_others_are_not_replaced(script, run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sample_7.png").write_bytes(b"a user's own")
    outcome = script("generate", "--output-dir", run, "--samples-dir", tmp_path / "mine", "--num-samples", 1)
    assert outcome.status == 1 and "holds sample_7.png, not written by this script" in outcome.err
    (tmp_path / "mine" / "samples.json").write_text('{"mine": 1}')
    outcome = script("generate", "--output-dir", run, "--samples-dir", tmp_path / "mine", "--num-samples", 1)
    assert outcome.status == 1 and "not written by this script" in outcome.err
    assert (tmp_path / "mine" / "sample_7.png").read_bytes() == b"a user's own"


def test_the_grid_shows_the_classes_in_columns(script, run):
    assert script("generate", "--output-dir", run, "--num-samples", 20).status == 0
    with Image.open(run / "samples.png") as grid:
        assert grid.size[0] > 4 * grid.size[1]  # ten columns, two rows


def test_codes_are_decoded_a_batch_at_a_time(script, run, monkeypatch):
    most = []
    monkeypatch.setattr(generate, "to_images", lambda vqvae, codes, *size: (
        most.append(len(codes)), torch.zeros(len(codes), 1, *size))[1])
    assert script("generate", "--output-dir", run, "--num-samples", 50, "--batch-size", 8).status == 0
    assert max(most) == 8 and len(most) == 7


def test_a_grey_sample_of_a_colour_run_stays_in_the_grid(script, run, monkeypatch):
    """A sample that is all white is read back with three channels, as its neighbours are."""
    for path in run.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        content["data"]["channels"] = 3
        torch.save(content, path)
    drawn = iter((torch.ones(1, 3, 8, 8), torch.rand(1, 3, 8, 8)))
    monkeypatch.setattr(generate, "to_images", lambda *_: next(drawn))
    outcome = script("generate", "--output-dir", run, "--num-samples", 2, "--batch-size", 1)
    assert outcome.status == 0, outcome.err
    with Image.open(run / "samples.png") as grid:
        assert grid.mode == "RGB"
