"""Two levels of codes through the scripts: what they write, what they measure, what they say where a level lacks."""
import csv
import json
import math
import shutil

import pytest
import torch
from conftest import SMALL_PIXELCNN, SMALL_VQVAE
from PIL import Image

import complete
import dataset
from priors import runs, sampler
from priors.codes import encode
from priors.table import LIKELIHOOD
from running import figures
from training import checkpoint, loop

FEW = ["--num-samples", 20, "--classifier-epochs", 1, "--batch-size", 25, "--device", "cpu"]
GRIDS = [(4, 4), (8, 8)]  # of 28x28 pixels, padded to 32x32


@pytest.fixture
def run(two_levels, tmp_path, monkeypatch):
    """A copy of the small run of two levels, to change."""
    monkeypatch.setattr(figures, "save_curves", lambda *_: None)  # a second each
    return shutil.copytree(two_levels, tmp_path / "run")


def rows_of(run, name):
    with open(run / name, newline="") as file:
        return list(csv.DictReader(file))


def test_a_training_writes_both_priors_and_measures_both_codebooks(two_levels):
    [row] = rows_of(two_levels, "vqvae_history.csv")
    for split in ("train", "validation"):
        for prefix in ("", "coarse_"):
            assert 1 <= float(row[f"{split}_{prefix}perplexity"]) <= 16
            assert 0 < float(row[f"{split}_{prefix}codes_used"]) <= 1
    stored, vqvae = runs.load_vqvae(str(two_levels))
    assert vqvae.grids(28, 28) == GRIDS
    for stage, grid, coarse_codes in (("pixelcnn_coarse", [4, 4], 0), ("pixelcnn", [8, 8], 16)):
        prior = checkpoint.load(str(two_levels), stage)
        assert prior["grid"] == grid and runs.build(prior).config.coarse_codes == coarse_codes
        [row] = rows_of(two_levels, f"{stage}_history.csv")
        bits = float(row["validation_nll"]) * grid[0] * grid[1] / math.log(2)
        assert float(row["validation_bits_per_image"]) == pytest.approx(bits)
    assert [path.name for path in (two_levels / "samples").iterdir()] == ["pixelcnn_epoch_001.png"]
    Image.open(two_levels / "samples" / "pixelcnn_epoch_001.png").verify()


def test_the_same_seed_gives_the_same_images_whatever_the_batch(script, run):
    def images(*flags):
        assert script("generate", "--output-dir", run, "--num-samples", 5, *flags).status == 0
        return [(run / f"sample_{i}.png").read_bytes() for i in range(5)]

    first = images()
    assert len(set(first)) == 5
    assert images("--batch-size", 2, "--top-k", 0) == first
    assert images("--seed", 1) != first
    weights = json.loads((run / "samples.json").read_text())["weights"]
    content = torch.load(run / "pixelcnn_coarse.pt", weights_only=True)
    content["model"]["head.3.bias"] += torch.linspace(-3, 3, 16)
    torch.save(content, run / "pixelcnn_coarse.pt")
    assert images() != first  # none of the samples of another coarse prior is kept
    assert json.loads((run / "samples.json").read_text())["weights"] != weights


@pytest.mark.parametrize("source", ["uniform", "gaussian"])
def test_random_samples_depend_on_their_seed_and_number_alone(script, run, source):
    def images(*flags):
        assert script("random_sample", "--output-dir", run, "--source", source, *flags).status == 0
        return [(run / f"random_sample_{i}.png").read_bytes() for i in range(5)]

    first = images("--num-samples", 5)
    assert len(set(first)) == 5
    assert images("--num-samples", 7, "--batch-size", 2) == first


def test_reconstruct_shows_the_maps_of_both_levels(script, run, monkeypatch):
    shown = []
    save = figures.save_latents
    monkeypatch.setattr(figures, "save_latents", lambda images, copies, levels, *more: (
        shown.extend(levels), save(images, copies, levels, *more)))
    assert script("reconstruct", "--output-dir", run, "--num-images", 2).status == 0
    assert [level.codes.shape for level in shown] == [(2, *grid) for grid in GRIDS]
    with Image.open(run / "latents.png") as picture:
        width, height = picture.size
    assert width / height > 8 / 2.5  # eight columns and two rows


@torch.no_grad()
def test_evaluate_adds_the_bits_of_both_levels(script, run):
    outcome = script("evaluate", "--output-dir", run, *FEW)
    assert outcome.status == 0, outcome.err
    assert "codebook of the coarse level: " in outcome.out
    content = json.loads((run / "evaluation.json").read_text())
    stored = checkpoint.load(str(run), "vqvae")
    data = dataset.load("glyphs", stored["data"]["data_dir"], 300)
    coarse, fine = encode(runs.build(stored), data.test.images)
    expected = 0.0
    for stage, codes, given in (("pixelcnn_coarse", coarse, []), ("pixelcnn", fine, [coarse])):
        model = runs.build(checkpoint.load(str(run), stage))
        sums = loop.sum_over(LIKELIHOOD.terms, model, 50, codes, data.test.labels, *given)
        expected += LIKELIHOOD.summarise(sums, codes[0].numel())["bits_per_image"]
    assert content["rows"]["pixelcnn"]["bits_per_image"] == pytest.approx(expected, rel=1e-5)
    assert content["rows"]["uniform codes"]["bits_per_image"] == pytest.approx((16 + 64) * 4)
    for prefix, codes in (("coarse_", coarse), ("", fine)):
        assert content[f"{prefix}codes"] == 16 and content[f"{prefix}codes_used"] == len(codes.unique())


def test_ablation_knows_both_levels(script, run):
    outcome = script("ablation", "--output-dir", run, *FEW, "--temperatures", "1", "--guidances", "1 2")
    assert outcome.status == 0, outcome.err
    rows = json.loads((run / "ablation.json").read_text())["rows"]
    assert rows["uniform codes"]["distinct"] == 1 and rows["pixelcnn, argmax"]["distinct"] * 20 <= 10
    assert "pixelcnn, top p 1, s = 2" in rows
    content = torch.load(run / "pixelcnn_coarse.pt", weights_only=True)
    content["training"]["constants"]["CLASS_DROPOUT"] = 0.0
    torch.save(content, run / "pixelcnn_coarse.pt")
    outcome = script("generate", "--output-dir", run, "--guidance", 2)
    assert outcome.status == 1 and "and pixelcnn_coarse.pt had 0" in outcome.err


# ---- complete.py


def test_what_is_given_is_kept_on_both_grids(script, run, monkeypatch):
    known, drawn = [], []
    draw_grids = sampler.draw_grids

    def recorded(*args, **options):
        known.extend(options["known"])
        for codes in draw_grids(*args, **options):
            drawn.append(codes)
            yield codes
    monkeypatch.setattr(complete, "draw_grids", recorded)
    assert script("complete", "--output-dir", run, "--num-images", 2, "--num-completions", 2).status == 0
    coarse, fine = (torch.cat(level) for level in zip(*drawn))
    for codes, given, grid in ((coarse, known[0], (4, 4)), (fine, known[1], (8, 8))):
        assert codes.shape == (4, *grid) and torch.equal(codes[given >= 0], given[given >= 0])
        assert (given >= 0)[:, :grid[0] // 2].all() and (given < 0)[:, grid[0] // 2:].all()


def test_hidden_pixels_have_no_say(script, run, monkeypatch):
    load, outputs = dataset.load, []

    def changed_below(*args):
        data = load(*args)
        images = data.test.images.clone()
        images[:, :, 16:] = 255 - images[:, :, 16:]  # below the two rows of coarse codes that are given
        return data._replace(test=data.test._replace(images=images))
    for loads in (load, changed_below):
        monkeypatch.setattr(dataset, "load", loads)
        assert script("complete", "--output-dir", run, "--num-images", 2, "--num-completions", 1).status == 0
        outputs.append([(run / f"completion_{i}_0.png").read_bytes() for i in range(2)])
    assert outputs[0] == outputs[1]


# ---- a level that lacks, another VQ-VAE, an older checkpoint


@pytest.mark.parametrize("name", ["generate", "complete", "ablation"])
@pytest.mark.parametrize("lacking, remedy", [("pixelcnn_coarse", " --level coarse"), ("pixelcnn", "")])
def test_a_level_without_a_prior_is_one_line_that_says_how_to_train_it(script, run, name, lacking, remedy):
    (run / f"{lacking}.pt").unlink()
    outcome = script(name, "--output-dir", run)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    command = f"python train_pixelcnn.py --prior pixelcnn{remedy} --output-dir"
    assert f"{lacking}.pt does not exist: make it with `{command}" in outcome.err


@pytest.mark.parametrize("name, flags, line", [
    ("train_pixelcnn", ["--prior", "masked"], 'PRIOR (--prior) of "masked" takes one level of codes'),
    ("score", [], "score.py takes one level of codes")])
def test_what_takes_one_level_says_so(script, run, name, flags, line):
    outcome = script(name, "--output-dir", run, *flags)
    assert outcome.status == 1 and outcome.err.count("\n") == 1 and line in outcome.err


def test_evaluate_leaves_out_a_prior_that_lacks_a_level(script, run):
    (run / "pixelcnn_coarse.pt").unlink()
    outcome = script("evaluate", "--output-dir", run, *FEW)
    assert outcome.status == 0 and "left out: " in outcome.err and "--level coarse" in outcome.err
    assert "pixelcnn" not in json.loads((run / "evaluation.json").read_text())["rows"]


def test_a_prior_of_one_level_is_not_taken_for_that_of_another(script, run, trained):
    shutil.copy(trained / "pixelcnn.pt", run / "pixelcnn.pt")
    outcome = script("generate", "--output-dir", run)
    assert outcome.status == 1 and "pixelcnn.pt learnt the codes of another vqvae.pt" in outcome.err
    shutil.copy(run / "pixelcnn_coarse.pt", run / "pixelcnn.pt")
    outcome = script("generate", "--output-dir", run)
    assert outcome.status == 1 and "is the checkpoint of the stage 'pixelcnn_coarse', not of 'pixelcnn'" in outcome.err


def test_every_prior_and_augmentation(script, run):
    for prior in ("transformer",):
        outcome = script("train_pixelcnn", *SMALL_PIXELCNN, "--output-dir", run, "--prior", prior, "--augment", "shift",
                         "--sample-every", 0)
        assert outcome.status == 0, outcome.err
        assert script("generate", "--output-dir", run, "--prior", prior, "--num-samples", 2).status == 0
    outcome = script("generate", "--output-dir", run, "--num-samples", 2)
    assert outcome.status == 0, outcome.err

    def bits(prior):
        return sum(float(rows_of(run, f"{stage}_history.csv")[0]["validation_bits_per_image"])
                   for stage in runs.prior_stages(prior, 2))
    assert f"samples of {min(('pixelcnn', 'transformer'), key=bits)}.pt" in outcome.out


def test_a_checkpoint_of_before_there_were_levels_is_read_as_one_level(script, trained, tmp_path):
    for name in ("vqvae.pt", "pixelcnn.pt"):
        content = torch.load(trained / name, weights_only=True)
        for place, key in ((content["config"], "levels"), (content["config"], "coarse_codes"),
                           (content["training"]["constants"], "LEVELS"), (content["training"]["constants"], "LEVEL")):
            place.pop(key, None)
        torch.save(content, tmp_path / name)
    images = []
    for run in (trained, tmp_path):
        outcome = script("generate", "--output-dir", run, "--num-samples", 2, "--samples-dir", tmp_path / "samples")
        assert outcome.status == 0, outcome.err
        images.append([(tmp_path / "samples" / f"sample_{i}.png").read_bytes() for i in range(2)])
    assert images[0] == images[1]
    data = checkpoint.load(str(trained), "vqvae")["data"]["data_dir"]
    for name, flags in (("train_vqvae", [*SMALL_VQVAE, "--data-dir", data]), ("train_pixelcnn", SMALL_PIXELCNN)):
        outcome = script(name, *flags, "--output-dir", tmp_path)
        assert outcome.status == 0 and "is finished, 1 epochs" in outcome.out and "continuing" not in outcome.out
