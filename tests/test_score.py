"""score.py: surprise, ranks and AUROC against the obvious sums, what is drawn again, and what the script writes."""
import csv
import shutil

import numpy as np
import pytest
import torch
from conftest import SMALL_PIXELCNN, SMALL_VQVAE, let_classes_matter
from images import noise, write, write_many
from PIL import Image

import dataset
import score
from judging import expected, metrics, testset
from loading.reading import Reading
from priors import codes, runs
from priors.draws import Draw
from training import checkpoint

FEW = ["--num-images", 2, "--limit", 20, "--device", "cpu"]
GRIDS = torch.randint(0, 16, (3, 7, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def run(trained, tmp_path):
    for name in ("vqvae.pt", "pixelcnn.pt"):
        shutil.copy(trained / name, tmp_path)
    return tmp_path


@pytest.fixture
def networks(trained):
    return load(trained)


def load(run):
    stored = checkpoint.load(str(run), "vqvae")
    prior, model = runs.load_prior(str(run), stored)
    return score.Networks(runs.build(stored), model, expected.class_shares(prior), torch.device("cpu"), 7)


def column(rows, name):
    return [row[name] for row in rows]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_auroc_and_ranks_count_pairs():
    generator = torch.Generator().manual_seed(0)
    values, reference = (torch.randint(0, 9, (count,), generator=generator) for count in (37, 52))  # many are equal
    below = (values[:, None] > reference).double() + (values[:, None] == reference).double() / 2
    torch.testing.assert_close(metrics.ranks(values, reference), below.mean(1))
    assert metrics.auroc(values, reference) == pytest.approx(below.mean().item())
    assert metrics.auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    assert metrics.auroc(reference, reference) == pytest.approx(0.5)


def test_surprise_is_minus_log2_of_the_probability_and_sums_to_the_likelihood(networks):
    grids, labels = GRIDS, torch.full((3,), networks.prior.num_classes)
    bits = codes.surprise(networks.prior, grids, labels)
    with torch.no_grad():
        probabilities = networks.prior(grids, labels).softmax(1).gather(1, grids[:, None])[:, 0]
    torch.testing.assert_close(bits, -probabilities.log2(), atol=1e-4, rtol=1e-4)
    nats = codes.nll_sums(networks.prior, grids, labels, [torch.arange(3)])["nll"].item() / 3 * 49
    assert bits.sum((1, 2)).mean().item() == pytest.approx(nats / np.log(2), rel=1e-5)


def test_surprise_without_a_class_is_of_the_mean_over_the_classes(run):
    let_classes_matter(run)
    prior = load(run).prior
    grids = GRIDS
    weights = torch.tensor([0, 1, 2, 3, 4, 1, 1, 1, 1, 1], dtype=torch.float64) / 15
    found, likeliest = expected.classless_surprise(prior, weights, grids)
    given = torch.stack([codes.surprise(prior, grids, torch.full((3,), label)) for label in range(10)])
    for count in (1, 20, 49):  # of the first codes
        likelihoods = weights[:, None] * 2 ** -given.flatten(2)[:, :, :count].double().sum(2)
        sums = found.flatten(1)[:, :count].double().sum(1)
        torch.testing.assert_close(sums, -likelihoods.sum(0).log2(), atol=1e-3, rtol=1e-5)
        assert ((given.flatten(2)[:, :, :count].sum(2).mean(0) - sums).abs() > 0.02).any()  # not the mean of the bits
    assert torch.equal(likeliest, likelihoods.argmax(0)) and (likeliest > 0).all()
    found, likeliest = expected.classless_surprise(prior, None, grids)
    assert torch.equal(found, codes.surprise(prior, grids, torch.full((3,), 10))) and likeliest.tolist() == [10] * 3


def test_which_classes_count(trained, monkeypatch):
    """As many as were learnt; none where there are too many, or where the prior never saw a label."""
    prior = checkpoint.load(str(trained), "pixelcnn")
    counts = prior["data"]["class_counts"] = [0, *range(1, 10)]
    assert expected.class_shares(prior).tolist() == pytest.approx([count / 45 for count in counts])
    prior["training"]["constants"]["CLASS_DROPOUT"] = 1.0
    assert expected.class_shares(prior) is None and not expected.lacks_for_scores(prior)
    prior["training"]["constants"]["CLASS_DROPOUT"] = 0.0
    assert not expected.lacks_for_scores(prior)
    monkeypatch.setattr(expected, "MOST_CLASSES", 9)
    assert expected.class_shares(prior) is None
    assert "CLASS_DROPOUT of 0, so it cannot score without a class" in expected.lacks_for_scores(prior)


@pytest.mark.parametrize("height, width, quarters", [(28, 28, (1, 2, 3)), (28, 24, (2,))])
def test_turned_bits(networks, height, width, quarters):
    images = torch.from_numpy(np.stack([noise(height, width, seed=i) for i in range(5)]))[:, None]
    bits, *turned = (score.code(networks, images.rot90(turn, (2, 3)), "").surprise.sum((1, 2))
                     for turn in (0, *quarters))
    wanted = bits - torch.stack(turned).min(0).values
    torch.testing.assert_close(score.turned_bits(networks, images, bits), wanted, atol=1e-3, rtol=1e-4)


def test_coding_in_batches_is_coding_one_by_one(networks):
    images = torch.from_numpy(np.stack([noise(28, 28, seed=20 + i) for i in range(9)]))[:, None]
    whole = score.code(networks, images, "")  # batches of 7 and 2
    for i in range(9):
        one = score.code(networks, images[i:i + 1], "")
        torch.testing.assert_close(one.surprise[0], whole.surprise[i], atol=1e-4, rtol=1e-4)
        original = dataset.to_float(images[i:i + 1])
        copy = networks.vqvae(original).images.clamp(0, 1)
        assert one.mse.item() == pytest.approx((copy - original).square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("window, wanted", [(1, [8.0, 9.0]), (2, [6.0, 9.0]), (9, [4.0, 9.0])])
def test_window_bits(window, wanted):
    surprises = torch.stack([torch.arange(9.0).view(3, 3), torch.full((3, 3), 9.0)])
    torch.testing.assert_close(score.window_bits(surprises, window), torch.tensor(wanted))


def test_the_columns_of_an_image():
    surprises = torch.tensor([[[1.0, 2, 0], [0, 5, 7]], [[0, 0, 0], [9, 0, 0]]])
    grids = torch.tensor([[[0, 0, 0], [0, 0, 1]], [[2, 2, 2], [1, 1, 0]]])
    usual = score.Expected(torch.tensor([8.0, 10, 20, 30]), threshold=4.0, code_bits=torch.tensor([1.0, 2, 3]))
    coded = score.Coded(grids, surprises, torch.zeros(2), torch.tensor([0.1, 0.2]))
    found = score.score(coded, usual, (5, 11), 1, 4)
    wanted = {"bits": [15, 9], "bits_per_pixel": [15 / 55, 9 / 55], "rank": [0.5, 0.25],
              "ratio_bits": [15 - 7, 9 - 14], "window_bits": [7, 9],
              "unlikely_bits": [12, 9], "unlikely_codes": [2, 1], "mse": [0.1, 0.2],
              "row": [4, 4], "column": [10, 2]}  # the third column of codes is cut: 8 + 2 is its last pixel
    assert {name: pytest.approx(column.tolist()) for name, column in found.items()} == wanted


def test_what_is_expected_of_validation_images():
    """The threshold is the quantile of all codes' surprise; each of the 3 codes has one added to its count."""
    grids = torch.zeros(1, 1, 101, dtype=torch.int64)
    grids[..., 90:] = 2
    coded = score.Coded(grids, torch.arange(101.0).view(1, 1, 101), torch.zeros(1), torch.zeros(1))
    usual = expected.expect(coded, 3, 0.95)
    assert usual.threshold == pytest.approx(95) and usual.bits.tolist() == [5050]
    assert (2**-usual.code_bits).tolist() == pytest.approx([91 / 104, 1 / 104, 12 / 104])


def test_a_restoration_draws_the_unlikely_codes_and_no_other(networks):
    grids = torch.randint(0, 16, (5, 7, 7), generator=torch.Generator().manual_seed(1))
    unlikely = torch.rand(5, 7, 7, generator=torch.Generator().manual_seed(2)) < 0.3
    labels = torch.arange(5)
    restored = score.restore(networks.prior, grids, labels, unlikely, 0, 2, Draw())
    assert torch.equal(restored[~unlikely], grids[~unlikely])
    assert (restored[unlikely] != grids[unlikely]).float().mean() > 0.5
    assert torch.equal(restored, score.restore(networks.prior, grids, labels, unlikely, 0, 5, Draw()))


def test_the_test_split_against_noise(done, run):
    root = write_many(run / "noise", 9, 28, 28)
    done("score", "--output-dir", run, *FEW)
    alone = table(run / "scores.csv")
    assert len(alone) == 20 and not (run / "auroc.csv").exists() and len(list(run.glob("score_*.png"))) == 2
    outcome = done("score", "--output-dir", run, *FEW, "--against", root, "--batch-size", 5)
    assert "AUROC of telling" in outcome.out
    rows = table(run / "scores.csv")
    assert [row["set"] for row in rows] == ["DATASET"] * 20 + ["AGAINST"] * 9
    assert [row["path"] for row in rows[:20]] == [""] * 20
    assert sorted(row["path"] for row in rows[20:]) == [str(root / f"{i:04d}.png") for i in range(9)]
    assert [int(row["image"]) for row in rows] == list(range(29))
    for row, before in zip(rows, alone):
        assert float(row["bits"]) == pytest.approx(float(before["bits"]), rel=1e-4)
    bits, ranks = ([float(row[name]) for row in rows] for name in ("bits", "rank"))
    assert sorted(ranks) == [ranks[i] for i in np.argsort(bits)] and 0 <= min(ranks) < max(ranks) <= 1
    areas = {row["score"]: float(row["auroc"]) for row in table(run / "auroc.csv")}
    below = np.mean([bit > other for bit in bits[20:] for other in bits[:20]])
    assert set(areas) == set(score.SCORES) - {"turned_bits"} and areas["mse"] == 1
    assert areas["bits"] == pytest.approx(below, abs=1e-4)
    least = {i for start, end in ((0, 20), (20, 29)) for i in np.argsort(bits[start:end])[-2:] + start}
    assert {path.name for path in run.glob("score_*.png")} == {f"score_{i}.png" for i in least}
    with Image.open(run / f"score_{max(least)}.png") as picture, Image.open(run / "scores.png") as strips:
        assert picture.size[0] > 1000 and strips.size[0] > 1000
    outcome = done("score", "--output-dir", run, *FEW, "--against", root, "--turns", "--num-images", 1)
    assert {row["score"] for row in table(run / "auroc.csv")} == set(score.SCORES)
    for name in ("DATASET", "AGAINST"):
        likelier = sum(row["set"] == name and float(row["turned_bits"]) > 0 for row in table(run / "scores.csv"))
        assert f"{likelier} of them are likelier turned than as they are" in outcome.out
    done("score", "--output-dir", run, *FEW, "--num-images", 1)
    assert not (run / "auroc.csv").exists()  # it is of an earlier call


def test_images_of_a_file_and_of_a_folder_brought_to_the_size(script, done, run):
    """Those of a file are brought to the training's size; a folder's are compared as they are, or as flags say."""
    image, root = write(run / "one.png", noise(40, 31, 3)), write_many(run / "larger", 3, 32, 20)
    flags = ["--output-dir", run, *FEW, "--num-images", 1, "--dataset"]
    assert script("score", *flags, image, "--image-size", "auto").status == 1
    rows = []
    for more in ([], ["--image-size", "28x28", "--channels", 1]):
        outcome = done("score", *flags, image, *more)
        assert f"{image}: of 31x40 pixels (width x height) and RGB, scaled and cropped to 28x28 pixels" in outcome.out
        rows += table(run / "scores.csv")
    assert rows[0] == rows[1] and rows[0]["path"] == str(image) and (run / "score_0.png").exists()
    assert float(rows[0]["bits_per_pixel"]) == pytest.approx(float(rows[0]["bits"]) / 28 ** 2, rel=1e-4)
    outcome = script("score", *flags, root)
    assert outcome.status == 1 and "its images have 1 channels and 32x20 pixels" in outcome.err
    done("score", *flags, root, "--image-size", 28)


def test_a_folder_that_was_learnt_wherever_it_is_now(done, tmp_path):
    """A few coloured images are resized before they are made grey, as in the training: the pixels are the same."""
    root, data = write_many(tmp_path / "images", 60, 24, 32), ["--data-dir", tmp_path / "data"]
    write_many(root, 2, 24, 32, channels=3)
    out, few = ["--output-dir", tmp_path / "run"], ["--batch-size", 10]
    size = ["--image-size", "12x16"]
    done("train_vqvae", *SMALL_VQVAE, *few, *out, *data, *size, "--dataset", root)
    done("train_pixelcnn", *SMALL_PIXELCNN, *few, *out, "--sample-every", 0)
    stored = checkpoint.load(str(tmp_path / "run"), "vqvae")
    assert stored["data"]["channels"] == 1
    tables, moved = [], tmp_path / "moved"
    for place in (root, moved):
        outcome = done("score", *out, "--num-images", 1, "--dataset", place)
        assert ("taking its test split" in outcome.out) == (place == moved), outcome.err
        tables.append(table(tmp_path / "run" / "scores.csv"))
        assert 0 < len(tables[-1]) < 60 and all(path.startswith(str(place)) for path in column(tables[-1], "path"))
        if place == root:
            shutil.move(root, moved)
    reading = Reading(**stored["data"]["reading"])
    for path, image in zip(column(tables[1], "path"), dataset.load(str(moved), str(tmp_path), 0, reading).test.images):
        assert torch.equal(testset.read_file(path, stored)[0], image)
    assert column(tables[0], "bits") == column(tables[1], "bits")
