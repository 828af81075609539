"""The scripts as a user runs them: one after the other, what they write, and that it is the same again."""
import csv
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, SMALL_PIXELCNN, SMALL_VQVAE
from PIL import Image

from running import cli, figures
from running.rules import RULES

SCRIPTS = ["train_vqvae", "train_pixelcnn", "train_decoder", "train_vae", "generate", "complete", "reconstruct",
           "random_sample", "evaluate", "ablation", "score", "share"]


def test_one_after_the_other_as_a_user_would(tmp_path, data_dir):
    """In processes of their own, from another directory, with relative paths."""
    shutil.copytree(data_dir, tmp_path / "data")

    def run(name, *flags):
        done = subprocess.run([sys.executable, str(ROOT / f"{name}.py"), *flags], cwd=tmp_path, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert run("train_vqvae", *SMALL_VQVAE)[-1].startswith("wrote output/vqvae.pt")
    assert run("train_pixelcnn", *SMALL_PIXELCNN, "--sample-every", "1")[-1].startswith("wrote output/pixelcnn.pt")
    assert "samples.png" in run("generate", "--num-samples", "12")[-1]
    assert "reconstructions.png" in run("reconstruct")[-1]
    assert "random_samples.png" in run("random_sample")[-1]
    output = tmp_path / "output"
    expected = {"vqvae.pt", "vqvae_history.csv", "vqvae_curves.png", "pixelcnn.pt", "pixelcnn_history.csv",
                "pixelcnn_curves.png", "samples.png", "samples.json", "reconstructions.png", "random_samples.png",
                "reconstructions", "latents.png", "samples", "dataset.png", ".lock",
                *(f"sample_{i}.png" for i in range(12)),
                *(f"reconstructed_image_{i}.png" for i in range(10)), *(f"random_sample_{i}.png" for i in range(25))}
    assert {path.name for path in output.iterdir()} == expected
    for path in output.rglob("*.png"):
        Image.open(path).verify()
    assert Image.open(output / "sample_0.png").size == (28, 28)
    assert Image.open(output / "reconstructed_image_0.png").size[0] > 2 * 28
    with open(output / "vqvae_history.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 1 and rows[0]["epoch"] == "1"
    assert {f"{split}_{name}" for split in ("train", "validation") for name in
            ("mse", "psnr", "codebook_loss", "commitment_loss", "perplexity", "codes_used")} < set(rows[0])


def test_the_same_seed_gives_the_same_images_whatever_the_batch(script, trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

    def images(*flags):
        assert script("generate", "--output-dir", tmp_path, "--num-samples", 7, *flags).status == 0
        return [(tmp_path / f"sample_{i}.png").read_bytes() for i in range(7)]

    first = images()
    assert images("--batch-size", 3) == first
    assert images("--seed", 1) != first
    assert len(set(first)) > 1
    coldest = images("--temperature", 0, "--class-label", 3)
    assert len(set(coldest)) == 1 and coldest[0] not in first
    assert images("--temperature", 0, "--class-label", "none")[0] == images("--top-k", 1, "--class-label", "none")[0]


@pytest.mark.parametrize("source", ["uniform", "gaussian"])
def test_random_samples_of_either_source(script, trained, tmp_path, source):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert script("random_sample", "--output-dir", tmp_path, "--source", source, "--num-samples", 3).status == 0
    assert Image.open(tmp_path / "random_sample_2.png").size == (28, 28)


@pytest.mark.parametrize("source", ["uniform", "gaussian"])
def test_random_samples_depend_on_their_seed_and_number_alone(script, trained, tmp_path, source):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)

    def images(*flags):
        assert script("random_sample", "--output-dir", tmp_path, "--source", source, *flags).status == 0
        return [(tmp_path / f"random_sample_{i}.png").read_bytes() for i in range(7)]

    first = images("--num-samples", 7)
    assert len(set(first)) == 7
    assert images("--num-samples", 9, "--batch-size", 2) == first
    assert images("--num-samples", 7, "--seed", 1) != first


def test_grids_show_the_first_images_and_say_so(script, trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(figures, "GRID_IMAGES", 4)
    outcome = script("random_sample", "--output-dir", tmp_path, "--num-samples", 9, "--batch-size", 3)
    assert outcome.out.endswith("random_samples.png of the first 4\n")
    assert Image.open(tmp_path / "random_samples.png").size == (2 * 282 + 2, 2 * 282 + 2)
    outcome = script("reconstruct", "--output-dir", tmp_path, "--num-images", 5)
    assert "reconstructions.png of the first 2, originals over" in outcome.out and "mean of 5:" in outcome.out
    assert Image.open(tmp_path / "reconstructions.png").size == (2 * 282 + 2, 2 * 282 + 2)


def test_reconstruction_metrics_are_printed_per_image_and_on_average(script, trained):
    outcome = script("reconstruct", "--output-dir", trained, "--num-images", 3)
    lines = outcome.out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["image 0", "image 1", "image 2", "mean of 3"]
    values = [[float(word) for word in line.replace(",", "").split() if word[0].isdigit() and "." in word]
              for line in lines[:4]]
    for column in range(3):
        assert sum(row[column] for row in values[:3]) / 3 == pytest.approx(values[3][column], abs=0.01)


def test_training_with_every_option(script, data_dir, tmp_path):
    """The other codebook, the other sizes, TensorBoard, and a single class dropout."""
    assert script("train_vqvae", *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path,
                  "--codebook", "gradient", "--downsample", 8, "--tensorboard", "--save-every", 0.001).status == 0
    assert script("train_pixelcnn", *SMALL_PIXELCNN, "--output-dir", tmp_path, "--kernel-size", 5, "--class-dropout", 1,
                  "--limit", 200, "--tensorboard").status == 0
    assert list((tmp_path / "tensorboard" / "vqvae").glob("events*"))
    assert list((tmp_path / "tensorboard" / "pixelcnn").glob("events*"))
    assert script("generate", "--output-dir", tmp_path, "--num-samples", 2).status == 0


def test_a_run_may_hold_several_priors(script, trained, tmp_path):
    """The one of best validation loss is drawn from; a name chooses; one that learnt other codes is passed over."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    here = ["--output-dir", tmp_path]

    def drawn_from(*flags):
        outcome = script("generate", *here, "--num-samples", 2, *flags)
        assert outcome.status == 0
        return outcome.out.split(" samples of ")[1].split(".pt")[0]

    assert script("train_pixelcnn", *SMALL_PIXELCNN, *here, "--prior", "transformer", "--sample-every", 1,
                  "--learning-rate", 1e-6).status == 0
    assert (tmp_path / "samples" / "transformer_epoch_001.png").exists()
    losses = {}
    for prior in ("pixelcnn", "transformer"):
        with open(tmp_path / f"{prior}_history.csv", newline="") as file:
            losses[prior] = min(float(row["validation_nll"]) for row in csv.DictReader(file))
    assert losses["transformer"] > losses["pixelcnn"]
    assert drawn_from() == "pixelcnn"
    assert drawn_from("--prior", "transformer") == "transformer"
    content = torch.load(tmp_path / "pixelcnn.pt", weights_only=True)
    torch.save(content | {"vqvae": "0" * 64}, tmp_path / "pixelcnn.pt")
    assert drawn_from() == "transformer"


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_lists_every_constant_with_its_remark_and_default(script, name):
    outcome = script(name, "--help")
    assert outcome.status == 0
    text = " ".join(outcome.out.split())
    found = cli.constants(ROOT / f"{name}.py")
    assert len(found) >= 5
    for constant, (source, remark, _) in found.items():
        assert cli.flag(constant) in text
        assert len(remark) > 10 and " ".join(remark.split()) in text.replace("- ", "-"), constant
        assert constant in RULES, f"{constant} has no rule"
