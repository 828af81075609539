"""training/loop.py: the order of the batches, sums over a split, and which runs are continued."""
import shutil
import subprocess
import sys

import faults
import pytest
import torch
from conftest import ROOT, SMALL_PIXELCNN, SMALL_VQVAE, continued

import dataset
import train_pixelcnn
import train_vqvae
from modules import VQVAE, VQVAEConfig
from priors.table import nll_terms, summarise_nll
from priors.transformer import Transformer, TransformerConfig
from running import cli, figures
from training import checkpoint, loop
from training.loop import Run


def test_a_continued_epoch_gets_the_rest_of_the_batches(tmp_path):
    args = cli.parse(vars(train_vqvae), ["--epochs", "3", "--batch-size", "3", "--output-dir", str(tmp_path)])
    model = VQVAE(VQVAEConfig(1, 8, 1, 4, 4, 8, 4))

    def batches(step):
        run = Run(args, "vqvae", model, torch.optim.Adam(model.parameters()), 20, "mse", {}, "", data={})
        run.done = step
        return [(run.done, run.batch, rows.tolist()) for (rows,) in run.batches(torch.arange(20))]
    whole = batches(0)
    assert [step for step, _, _ in whole] == list(range(7))  # a step is counted when it is done, not when it is read
    assert sorted(sum((rows for _, _, rows in whole), [])) == list(range(20))
    assert all(count == len(rows) for _, count, rows in whole)
    for step in (1, 6, 7):
        assert batches(step) == whole[step:]


@pytest.mark.parametrize("count, positions, augment, epochs", [
    (57_000, 49, "none", 3), (5_000, 49, "none", 7), (500, 49, "none", 10), (500, 49, "shift", 62),
    (8_524, 256, "none", 5), (4_879, 1024, "none", 3), (500, 1024, "none", 10), (500, 1024, "flip", 20)])
def test_the_length_of_a_prior_follows_from_grids_and_images(count, positions, augment, epochs):
    args = cli.parse(vars(train_pixelcnn), ["--augment", augment])
    assert train_pixelcnn.fit_to(args, count, positions).EPOCHS == epochs


@pytest.mark.parametrize("channels, height, width, downsample, num_codes", [
    (1, 28, 28, 4, 128), (3, 64, 64, 4, 512), (3, 96, 96, 8, 1024), (3, 128, 128, 8, 1024), (1, 128, 128, 4, 512),
    (1, 256, 128, 8, 1024), (3, 256, 256, 16, 1024), (3, 512, 512, 16, 1024)])
def test_the_codes_of_an_image_are_512_at_most_and_of_a_grey_one_1024(channels, height, width, downsample, num_codes):
    args = train_vqvae.fit_to(cli.parse(vars(train_vqvae), []), 5000, channels, height, width)
    assert (args.DOWNSAMPLE, args.NUM_CODES, args.CODE_DIM) == (downsample, num_codes, 32)
    given = train_vqvae.fit_to(cli.parse(vars(train_vqvae), ["--downsample", "2", "--quantizer", "fsq"]), 5000,
                               channels, height, width)
    assert given.DOWNSAMPLE == 2 and given.CODE_DIM == 3


def test_sums_over_a_split_give_the_mean_over_codes():
    """Batches of unequal size must not weigh their grids differently."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(7, 3, 8, 2, 3, 2))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    codes, labels = torch.randint(7, (5, 2, 4)), torch.tensor([0, 1, 2, 0, 1])
    result = summarise_nll(loop.sum_over(nll_terms, model, 2, codes.byte(), labels), 8)
    chances = model(codes, labels).softmax(1).gather(1, codes[:, None])
    assert result["nll"] == pytest.approx(-chances.log().mean().item(), rel=1e-5)
    assert result["bits_per_image"] == pytest.approx(-chances.log2().sum().item() / 5, rel=1e-5)


def test_a_training_repeats_itself(script, data_dir, tmp_path):
    histories = []
    for name in ("a", "b"):
        assert script("train_vqvae", *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path / name).status == 0
        histories.append((tmp_path / name / "vqvae_history.csv").read_text())
    assert histories[0] == histories[1]


def test_training_on_glyphs_does_not_import_torchvision(tmp_path, data_dir):
    code = """
import sys, train_vqvae
from running import cli
sys.argv[0] = "train_vqvae.py"
cli.run(train_vqvae.main, vars(train_vqvae))
print("torchvision" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, *SMALL_VQVAE, "--data-dir", data_dir, "--output-dir", tmp_path],
                          cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


# ---- continuing


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(script, copied, data_dir, monkeypatch):
    before = (copied / "vqvae.pt").read_bytes()
    step = loop.Run.step
    monkeypatch.setattr(loop.Run, "step", lambda run, loss, *args: step(
        run, loss * float("nan") if run.done == 3 else loss, *args))
    outcome = continued(script, data_dir, copied)
    assert outcome.status == 1
    assert outcome.err.split("\r")[-1].strip() == (
        f"train_vqvae.py: error: the loss is not finite at step 10 (epoch 2); {copied / 'vqvae.pt'} keeps the last "
        f"good state: try a lower --learning-rate")
    assert (copied / "vqvae.pt").read_bytes() == before


def test_what_may_change_is_said_and_what_may_not_is_refused_by_name(script, copied, data_dir, tmp_path):
    before = (copied / "vqvae.pt").read_bytes()
    for name, value in (("NUM_CODES", 32), ("SEED", 1), ("BATCH_SIZE", 40), ("LIMIT", 299), ("CODEBOOK", "gradient")):
        flag = "--" + name.lower().replace("_", "-")
        outcome = continued(script, data_dir, copied, flag, value)
        assert outcome.status == 1 and outcome.err.startswith(f"train_vqvae.py: error: {name} ({flag}) is {value!r}")
    assert (copied / "vqvae.pt").read_bytes() == before
    moved = shutil.copytree(data_dir, tmp_path / "moved")
    outcome = continued(script, moved, copied, "--learning-rate", 0.001)
    assert outcome.status == 0
    for said in ("EPOCHS = 2, before 1", "LEARNING_RATE = 0.001, before", "DATA_DIR = ", "after epoch 1 of 2"):
        assert said in outcome.out
    assert len(checkpoint.load(copied, "vqvae")["training"]["history"]) == 2


def test_other_images_of_the_same_number_are_another_run(script, copied, data_dir, monkeypatch):
    load = dataset.load

    def one_pixel_changed(*args):
        data = load(*args)
        data.train.images[0, 0, 0, 0] ^= 1
        return data
    monkeypatch.setattr(dataset, "load", one_pixel_changed)
    for outcome in (continued(script, data_dir, copied), script(
            "train_pixelcnn", "--limit", 300, "--batch-size", 50, *faults.SIZES["pixelcnn"], "--output-dir", copied)):
        assert outcome.status == 1 and "DATASET (--dataset): the training images or their labels changed" in outcome.err


def test_resume_never_and_overwrite(script, copied, data_dir):
    before = (copied / "vqvae.pt").read_bytes()
    refused = continued(script, data_dir, copied, "--resume", "never")
    assert refused.status == 1 and "is a finished run" in refused.err and "--overwrite" in refused.err
    assert (copied / "vqvae.pt").read_bytes() == before
    replaced = continued(script, data_dir, copied, "--resume", "never", "--overwrite")
    assert replaced.status == 0 and "continuing" not in replaced.out
    again = ["--limit", 300, "--batch-size", 50, *faults.SIZES["pixelcnn"], "--epochs", 2]
    for name, flags in (("generate", []), ("train_pixelcnn", again)):
        outcome = script(name, *flags, "--output-dir", copied)  # the prior is that of the vqvae.pt that was replaced
        assert outcome.status == 1 and "vqvae.pt" in outcome.err and "--resume never --overwrite" in outcome.err


def test_a_run_that_does_not_say_a_constant_is_continued_with_the_present_one(script, copied, data_dir):
    content = torch.load(copied / "vqvae.pt", weights_only=True)
    for name in ("OPTIMIZER", "VALUE_RANGE"):
        content["training"]["constants"].pop(name)
    content["data"]["reading"].pop("value_range")
    torch.save(content, copied / "vqvae.pt")
    outcome = continued(script, data_dir, copied)
    assert outcome.status == 0 and "after epoch 1 of 2" in outcome.out, outcome.err


@pytest.mark.parametrize("name", loop.GONE)
def test_a_run_with_what_is_gone_is_refused_unless_it_was_off(script, copied, data_dir, name):
    content = torch.load(copied / "vqvae.pt", weights_only=True)
    for value, status in ((0.5, 1), (loop.GONE[name], 0)):
        content["training"]["constants"][name] = value
        torch.save(content, copied / "vqvae.pt")
        outcome = continued(script, data_dir, copied)
        assert outcome.status == status and status == outcome.err.count(
            f"{name} = 0.5, which this code has no longer since 2026-11-29: choose another --output-dir"), outcome.err


@pytest.mark.parametrize("stage, drawing, flags", [("vqvae", "save_pairs", SMALL_VQVAE),
                                                   ("pixelcnn", "save_grid", ["--sample-every", "1"])])
def test_a_picture_for_which_memory_does_not_suffice_is_a_line_and_the_epoch_is_kept(
        script, trained, tmp_path, data_dir, monkeypatch, stage, drawing, flags):
    def fail(*_, **__):
        assert checkpoint.load(str(tmp_path), stage)["training"]["epoch"] == 1  # saved before anything is drawn
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000 bytes")
    monkeypatch.setattr(figures, drawing, fail)
    if stage == "pixelcnn":
        shutil.copy(trained / "vqvae.pt", tmp_path)
        flags = [*SMALL_PIXELCNN, *flags]
    where = ["--output-dir", tmp_path, *(["--data-dir", data_dir] if stage == "vqvae" else [])]
    outcome = script(f"train_{stage}", *flags, *where)
    assert outcome.status == 0, outcome.err
    assert "too little memory for the picture of epoch 1: it is left out" in outcome.err
    assert checkpoint.load(str(tmp_path), stage)["training"]["finished"]
