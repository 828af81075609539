"""compare.py: what differs and what came of it, by hand; what it shows; runs of other images; what lacks."""
import csv
import json
import os
import shutil

import pytest
import torch
from PIL import Image


def change(run, stage, edit):
    content = torch.load(run / f"{stage}.pt", weights_only=True)
    edit(content)
    torch.save(content, run / f"{stage}.pt")


def rows_of(path):
    with open(path, newline="") as file:
        return {row["run"]: row for row in csv.DictReader(file)}


@pytest.fixture
def three(trained, tmp_path):
    """Copies of the small finished run that say to be of two seeds and another learning rate."""
    places = [shutil.copytree(trained, tmp_path / "runs" / name) for name in ("first", "second", "third")]

    def seed(content):
        content["training"]["constants"]["SEED"] = 1
        for row in content["training"]["history"]:
            row["validation_psnr"] += 2
    change(places[1], "vqvae", seed)
    change(places[2], "vqvae", lambda content: content["training"]["constants"].update(LEARNING_RATE=0.25))
    measures = {"kid": 50.0, "recall": 0.25, "class_accuracy": 0.5}
    rows = {"VQ-VAE reconstructions": {"ssim": 0.875, "kid": 20.0}, "pixelcnn": measures}
    content = {"rows": rows, "best": "pixelcnn"}
    (places[2] / "evaluation.json").write_text(json.dumps(content))
    return places


def test_the_table_says_what_differs_and_what_came_of_it(done, three, tmp_path):
    outcome = done("compare", "--runs", three[0].parent, "--output-dir", tmp_path, "--num-images", 3)
    rows = rows_of(tmp_path / "compare.csv")
    first, second, third = (rows[str(place)] for place in three)
    stored = torch.load(three[0] / "vqvae.pt", weights_only=True)
    psnr = min(stored["training"]["history"], key=lambda row: row["validation_mse"])["validation_psnr"]
    assert first["PSNR"] == f"{psnr:.2f}" and second["PSNR"] == f"{psnr + 2:.2f}"
    settings = [name for name in first if ": " in name]
    assert settings == ["vqvae: LEARNING_RATE", "vqvae: SEED"]
    assert third["vqvae: LEARNING_RATE"] == "0.25" and second["vqvae: SEED"] == "1"
    mean = rows["mean of first, second"]
    assert mean["PSNR"] == f"{psnr + 1:.2f} ({psnr:.2f} to {psnr + 2:.2f})" and mean["vqvae: SEED"] == "all"
    assert (third["KID of reconstructions"], third["KID of samples"], third["class"]) == ("20.0", "50.0", "50.0%")
    assert first["KID of samples"] == "" and float(first["minutes"]) >= 0
    weights = sum(tensor.numel() for stage in ("vqvae", "pixelcnn") for tensor in
                  torch.load(three[0] / f"{stage}.pt", weights_only=True)["model"].values())
    assert first["weights"] == f"{weights:,}"
    assert all(name in outcome.out for name in rows)
    for name in ("compare.png", "compare_images.png"):
        Image.open(tmp_path / name).verify()
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert page.count("data:image/") == 2 and "mean of first, second" in page
    assert "no evaluation.json in first, second" in page


def test_runs_of_other_images_are_told_apart(done, three, tmp_path):
    change(three[2], "vqvae", lambda content: content.update(images="other"))
    outcome = done("compare", "--runs", f"{three[0]} {three[2]}", "--output-dir", tmp_path)
    assert "the runs are of 2 sets of images" in outcome.out
    assert (tmp_path / "compare_2.png").exists() and (tmp_path / "compare_images_2.png").exists()
    assert (tmp_path / "compare.html").read_text(encoding="utf-8").count("<h2>") == 2


def test_without_the_data_set_a_line_says_so(script, three, tmp_path, monkeypatch):
    change(three[0], "vqvae", lambda content: content["data"].update(dataset=str(tmp_path / "gone")))
    outcome = script("compare", "--runs", three[0], "--output-dir", tmp_path)
    assert outcome.status == 0 and outcome.err.count("\n") == 1 and "no reconstructions: " in outcome.err


def test_a_directory_without_a_run_is_one_line(script, tmp_path):
    outcome = script("compare", "--runs", tmp_path)
    assert outcome.status == 1 and "there is no vqvae.pt in" in outcome.err and outcome.err.count("\n") == 1


def test_evaluate_is_called_for_runs_without_it(done, three, tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr("compare.subprocess.run", lambda command, **_: called.append(str(command[-1])))
    done("compare", "--runs", three[0].parent, "--output-dir", tmp_path, "--evaluate")
    assert called == [str(place) for place in three[:2]]


def test_runs_of_one_name_are_told_apart_by_their_paths(done, three, tmp_path):
    twin = three[2].rename(tmp_path / three[0].name)
    done("compare", "--runs", f"{three[0]} {twin}", "--output-dir", tmp_path)
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert f"no evaluation.json in {three[0].relative_to(tmp_path)}:" in page
    assert set(rows_of(tmp_path / "compare.csv")) == {str(three[0]), str(twin)}


def test_runs_of_which_nothing_can_be_shown_are_still_a_table(script, three, tmp_path):
    change(three[0], "vqvae", lambda content: content["data"].update(dataset=str(tmp_path / "gone")))
    (three[0] / "pixelcnn.pt").unlink()
    outcome = script("compare", "--runs", three[0], "--output-dir", tmp_path)
    assert outcome.status == 0 and str(three[0]) in rows_of(tmp_path / "compare.csv")
    assert not (tmp_path / "compare_images.png").exists()
    page = (tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "these runs have no prior, and their data set is not there" in page


def test_a_prior_of_other_codes_is_left_out_in_a_line(script, three, tmp_path):
    change(three[0], "pixelcnn", lambda content: content.update(vqvae="0" * 64))
    outcome = script("compare", "--runs", three[0], "--output-dir", tmp_path)
    assert outcome.status == 0 and "no samples: pixelcnn.pt learnt the codes of another" in outcome.err


def test_a_name_that_is_no_text(script, three, tmp_path):
    odd = three[0].rename(tmp_path / os.fsdecode(b"\xff"))
    outcome = script("compare", "--runs", odd, "--output-dir", tmp_path)
    assert outcome.status == 0, outcome.err
    assert b"\xff" in (tmp_path / "compare.csv").read_bytes()
