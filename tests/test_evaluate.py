"""evaluate.py and ablation.py on the small run: every row, figures that can be found otherwise, and what is written."""
import json
import shutil
import sys
import types

import pytest
import torch
from conftest import SMALL, SMALL_PIXELCNN, SMALL_VQVAE, let_classes_matter
from PIL import Image
from torch import nn

import dataset
import evaluate
import train_pixelcnn
import train_vae
import train_vqvae
from judging import classifier, judge, published, report
from judging.classifier import Classifier, ClassifierConfig
from priors import runs
from priors.table import nll_terms, summarise_nll
from running import cli
from training import checkpoint, imagenet, loop

FEW = ["--num-samples", 40, "--classifier-epochs", 1, "--batch-size", 25, "--device", "cpu", "--features", "classes"]


@pytest.fixture(scope="module")
def run(trained, tmp_path_factory):
    """A copy of the small run, with a VAE and one more prior."""
    output = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    where = [*SMALL, "--output-dir", str(output)]
    train_vae.main(cli.parse(vars(train_vae), [*where, "--latent-dim", "4"]))
    sizes = ["--prior", "transformer", "--hidden", "8", "--layers", "2", "--sample-every", "0"]
    train_pixelcnn.main(cli.parse(vars(train_pixelcnn), [*where, *sizes]))
    return output


@pytest.fixture
def alone(trained, tmp_path):
    """The VQ-VAE and the PixelCNN of the small run, with which no classifier lies yet."""
    for name in ("vqvae.pt", "pixelcnn.pt"):
        shutil.copy(trained / name, tmp_path)
    return tmp_path


def change(path, **changes):
    """Change entries of a checkpoint."""
    torch.save(torch.load(path, weights_only=True) | changes, path)


def rows_of(run, stem="evaluation"):
    return json.loads((run / f"{stem}.json").read_text())["rows"]


@torch.no_grad()
def test_every_row_and_column(done, run, monkeypatch):
    """Only the main process measures: the others have gone by then, so nothing may wait for them."""
    with monkeypatch.context() as patch:
        patch.setattr("running.devices.all_sum", lambda tensor: pytest.fail("waits for the other processes"))
        outcome = done("evaluate", "--output-dir", run, *FEW)
    assert outcome.out.startswith("classifier: names ")
    content = json.loads((run / "evaluation.json").read_text())
    rows = content["rows"]
    priors, independent = ["pixelcnn", "transformer"], ["per-position marginal", "marginal", "uniform codes"]
    judged = {"frechet", "kid", "kid_error", "precision", "recall", "nearest"}
    copied = {*judged, "class_accuracy", "mse", "psnr", "ssim"}
    drawn = {*judged, "bits_per_image"}
    assert {name: set(row) for name, row in rows.items()} == {
        "real images": {*judged, "class_accuracy"}, "VQ-VAE reconstructions": copied, "VAE reconstructions": copied,
        **dict.fromkeys(priors, {*drawn, "class_accuracy"}), **dict.fromkeys(["VAE samples", *independent], drawn)}
    assert report.table(rows) in outcome.out
    assert content["images_per_row"] == 40 and content["classifier_accuracy"] == rows["real images"]["class_accuracy"]
    # what other scripts say of the same models on the same test split
    stored = checkpoint.load(str(run), "vqvae")
    vqvae, data = runs.build(stored), dataset.load("glyphs", stored["data"]["data_dir"], 300)
    codes = train_pixelcnn.encode(vqvae, data.test.images)
    for name in priors:
        model = runs.build(checkpoint.load(str(run), name))
        sums = loop.sum_over(nll_terms, model, 50, codes, data.test.labels)
        expected = summarise_nll(sums, codes[0].numel())["bits_per_image"]
        assert rows[name]["bits_per_image"] == pytest.approx(expected, rel=1e-5)
    assert rows["uniform codes"]["bits_per_image"] == pytest.approx(codes[0].numel() * 4)
    expected = train_vqvae.summarise(loop.sum_over(train_vqvae.terms, vqvae, 50, data.test.images))
    assert content["perplexity"] == pytest.approx(expected["perplexity"], rel=1e-5)
    assert content["codes_used"] / content["codes"] == pytest.approx(expected["codes_used"])
    assert rows["VQ-VAE reconstructions"]["mse"] == pytest.approx(expected["mse"], rel=0.02)  # that one does not clip
    for name in ("evaluation.png", "nearest.png", "samples_by_class.png", "codebook.png"):
        Image.open(run / name).verify()
    text = (run / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}</th>" in text for name in rows) and "no evaluation.json" not in text
    [row] = published.read(run, "evaluation.json").values()
    assert set(row) == set(published.FORMS) - {"minutes", "weights", "AUROC", *published.SPEEDS.values()}
    assert row["bits of independent codes"] == [rows["per-position marginal"]["bits_per_image"]]
    assert f"New images of {content['best']}" in text and rows[content["best"]]["bits_per_image"] > 0


def test_the_classifier_is_trained_once_for_the_same_images_and_epochs(trained, data_dir, tmp_path, monkeypatch,
                                                                       capsys):
    """A file of another kind is trained anew; one from before it had `reduce` is read."""
    stored = checkpoint.load(str(trained), "vqvae")
    whole, fewer = (dataset.load("glyphs", str(data_dir), limit) for limit in (300, 200))
    path, train, trainings = tmp_path / "classifier.pt", classifier.train_classifier, []
    monkeypatch.setattr(classifier, "train_classifier", lambda *args: trainings.append(1) or train(*args))

    def trains(data, epochs=1):
        before = len(trainings)
        model = judge.load_classifier(str(tmp_path), stored, data, epochs, torch.device("cpu"))
        assert not model.training
        return len(trainings) > before

    assert [trains(whole), trains(whole), trains(fewer), trains(fewer, epochs=2)] == [True, False, True, True]
    change(path, basis={"images": dataset.digest(whole.train), "self": 2})
    assert trains(whole)
    content = torch.load(path, weights_only=True)
    del content["config"]["reduce"]
    torch.save(content, path)
    assert not trains(whole)
    path.write_bytes(path.read_bytes()[:-1000])
    assert trains(whole) and "classifier.pt cannot be read: training it anew" in capsys.readouterr().out
    assert checkpoint.build(checkpoint.load(str(tmp_path), "classifier"), Classifier, ClassifierConfig)


def test_ablation_argmax_collapses_to_one_image_a_class(done, run):
    flags = ["--output-dir", run, *FEW, "--prior", "pixelcnn", "--temperatures", "0.5 2", "--top-ps", "0.5",
             "--guidances", "1 2.5"]
    found = []
    for _ in range(2):
        done("ablation", *flags, "--top-p", 1)
        found.append(rows_of(run, "ablation"))
    rows, again = found
    assert rows == again
    assert list(rows) == ["real images", "the encoder's codes", "pixelcnn, T = 0.5", "pixelcnn, T = 2",
                          "pixelcnn, argmax", "pixelcnn, top p 0.5", "pixelcnn, top p 1, s = 1",
                          "pixelcnn, top p 1, s = 2.5", "per-position marginal", "marginal", "uniform codes"]
    told = published.read(run, "ablation.json")["pixelcnn, argmax"]
    assert told["distinct"] == [rows["pixelcnn, argmax"]["distinct"]]
    assert rows["pixelcnn, argmax"]["distinct"] * 40 <= 10
    assert rows["uniform codes"]["distinct"] == 1
    assert rows["pixelcnn, argmax"]["distinct"] < rows["pixelcnn, T = 0.5"]["distinct"] <= 1
    assert "class_accuracy" in rows["pixelcnn, argmax"] and "class_accuracy" not in rows["marginal"]
    assert "class_accuracy" in rows["pixelcnn, top p 1, s = 2.5"]
    assert rows["pixelcnn, top p 1, s = 2.5"] != rows["pixelcnn, top p 1, s = 1"]
    Image.open(run / "ablation.png").verify()


@pytest.fixture(scope="module")
def folder_run(tmp_path_factory):
    """A run on a flat folder of images, which have no class."""
    place = tmp_path_factory.mktemp("flat")
    (place / "images").mkdir()
    for i, image in enumerate(dataset.draw_glyphs(120, 0).images):
        Image.fromarray(image[0].numpy()).save(place / "images" / f"{i}.png")
    output = ["--output-dir", str(place / "run")]
    train_vqvae.main(cli.parse(vars(train_vqvae), [*SMALL_VQVAE, *output, "--dataset", str(place / "images"),
                                                   "--data-dir", str(place / "data")]))
    train_pixelcnn.main(cli.parse(vars(train_pixelcnn), [*SMALL_PIXELCNN, *output, "--hidden", "8"]))
    return place / "run"


@pytest.fixture
def brightness(monkeypatch):
    """In the place of features of the network trained on ImageNet: an image's brightness, for distances by hand."""
    monkeypatch.setattr(imagenet, "load", lambda size, asked, device: nn.Identity())
    monkeypatch.setattr(imagenet, "pooled", lambda network, images: images.mean((1, 2, 3))[:, None].expand(-1, 2))


def test_distances_in_features_of_a_pretrained_network_beside_the_classifier(done, run, brightness):
    done("ablation", "--output-dir", run, *FEW)
    plain = rows_of(run, "ablation")
    done("ablation", "--output-dir", run, *FEW, "--features", "imagenet")
    rows = rows_of(run, "ablation")
    assert {name: row.get("class_accuracy") for name, row in rows.items()} == {
        name: row.get("class_accuracy") for name, row in plain.items()}
    assert all(0 <= row["frechet"] < 0.1 and abs(row["kid"]) < 300 for row in rows.values())


def test_without_classes_all_columns_but_the_class_are_there(script, done, folder_run, brightness):
    for name, stem in (("evaluate", "evaluation"), ("ablation", "ablation")):
        outcome = done(name, "--output-dir", folder_run, *FEW[:-2])
        assert "names" not in outcome.out
        content = json.loads((folder_run / f"{stem}.json").read_text())
        assert content["constants"]["FEATURES"] == "imagenet" and content["classifier_accuracy"] is None
        rows = content["rows"]
        assert "pixelcnn, argmax" in rows or rows["pixelcnn"]["bits_per_image"] > 0
        assert not any("s = " in name for name in rows)
        assert all({"kid", "frechet", "precision", "recall"} <= set(row) for row in rows.values())
        assert not any("class_accuracy" in row for row in rows.values())
        assert all(line in outcome.out for line in content["doubts"])
        Image.open(folder_run / f"{stem}.png").verify()
    assert not (folder_run / "classifier.pt").exists()
    outcome = script("evaluate", "--output-dir", folder_run, *FEW)
    assert outcome.status == 1 and outcome.err.count("\n") == 1
    assert 'FEATURES (--features) is "classes", but the data set has fewer than two: use "imagenet"' in outcome.err


@pytest.mark.parametrize("name", imagenet.packages(imagenet.MEASURES))
def test_without_its_package_the_classes_are_compared_or_a_line_names_it(script, done, run, folder_run, monkeypatch,
                                                                         name):
    monkeypatch.setattr(imagenet, "find_spec", lambda module: module != name.replace("-", "_"))
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    outcome = done("evaluate", "--output-dir", run, *FEW[:-2])
    assert outcome.out.startswith('FEATURES "classes", as "imagenet" needs `pip install efficientnet-lite-pytorch')
    for where, features in ((folder_run, "auto"), (run, "imagenet")):
        outcome = script("evaluate", "--output-dir", where, *FEW[:-1], features)
        assert outcome.status == 1 and outcome.err.count("\n") == 1
        assert "FEATURES (--features) needs a package: `pip install efficientnet-lite-pytorch efficient" in outcome.err


def test_a_distance_that_is_not_to_be_read_is_told():
    def rows(**kid):
        return {name: {"kid": value, "kid_error": 1.0, "frechet": value} for name, value in kid.items()}
    good = rows(real=0.5, copies=20.0, vae=1.0, prior=40.0, uniform=900.0)
    good["vae"]["mse"] = 0.01  # reconstructions, too
    assert report.find_doubts(good, ["uniform"]) == []
    good["real"]["frechet"] = 45.0
    [doubt] = report.find_doubts(good, ["uniform"])
    assert doubt == ("Fréchet of one half of the real images against the other is 45.00, as it grows where images are "
                     "few, and of prior 40.00: too near to rank rows")
    doubts = report.find_doubts(rows(real=0.5, copies=390.8, prior=419.5, marginal=247.2, uniform=270.8),
                                ["marginal", "uniform"])
    assert [doubt.split(" puts ")[0] for doubt in doubts] == ["KID", "Fréchet"]
    assert "puts marginal, which no prior made (247.20), before copies (390.80): do not read it" in doubts[0]
    [doubt] = report.find_doubts(rows(real=-0.5, copies=0.5, prior=3.0, uniform=900.0), ["uniform"])
    assert doubt == ("KID of one half of the real images against the other is -0.50 +- 1.00, and of prior 3.00: too "
                     "near to rank rows")


def test_without_classes_there_is_no_guidance(script, done, folder_run):
    for name in ("generate", "complete", "evaluate"):
        outcome = script(name, "--output-dir", folder_run, "--guidance", 1.5)
        assert outcome.status == 1 and outcome.err.endswith(
            "GUIDANCE (--guidance) of 1.5 needs classes, and pixelcnn.pt learnt none: leave it at 1\n")
    done("generate", "--output-dir", folder_run, "--num-samples", 1)


def test_ablation_has_no_guided_rows_of_a_prior_that_learnt_no_classless_draws(done, alone):
    change(alone / "pixelcnn.pt", training={"constants": {"CLASS_DROPOUT": 0.0}})
    outcome = done("ablation", "--output-dir", alone, *FEW, "--guidances", "1 1.5", "--temperatures", "1")
    assert "no rows with guidance, it needs a prior trained with CLASS_DROPOUT" in outcome.out
    assert [name for name in rows_of(alone, "ablation") if "s = " in name] == ["pixelcnn, top p 1, s = 1"]


def test_evaluate_draws_with_guidance(done, alone):
    let_classes_matter(alone)
    contents = []
    for flags in ([], ["--guidance", 1]):
        done("evaluate", "--output-dir", alone, *FEW, *flags)
        contents.append(json.loads((alone / "evaluation.json").read_text()))
    rows, plain = (content["rows"] for content in contents)
    assert [name for name in rows if rows[name] != plain[name]] == ["pixelcnn"]
    assert [content["sampling"] for content in contents] == [
        f"pixelcnn with GUIDANCE {s:g} and TOP_P {p:g}" for s, p in ((1.25, 1), (1, 0.95))]


def test_what_does_not_fit_is_left_out_with_a_line(done, run, tmp_path, capfd):
    """A prior of another VQ-VAE's codes, a damaged one, and a VAE of other images, or damaged: no rows, no obstacle."""
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    change(tmp_path / "pixelcnn.pt", vqvae="0" * 64)
    change(tmp_path / "vae.pt", images="0" * 64)
    (tmp_path / "masked.pt").write_bytes(b"no checkpoint")
    outcome = done("evaluate", "--output-dir", tmp_path, *FEW)
    rows = rows_of(tmp_path)
    assert "transformer" in rows and not {"pixelcnn", "masked", "VAE samples"} & set(rows)
    for reason in ("pixelcnn.pt learnt the codes of another", "masked.pt is no file of torch",
                   "vae.pt learnt other images"):
        assert f"left out: {reason}" in " ".join(outcome.err.split()).replace(f"{tmp_path}/", "")
    (tmp_path / "vae.pt").write_bytes(b"no checkpoint")
    assert evaluate.find_vae(str(tmp_path), checkpoint.load(str(tmp_path), "vqvae")) is None
    assert "vae.pt is no file of torch" in capfd.readouterr().err


def test_no_prior_that_can_be_used_is_said_once(script, run, tmp_path):
    shutil.copytree(run, tmp_path, dirs_exist_ok=True)
    for name in ("pixelcnn.pt", "transformer.pt"):
        (tmp_path / name).write_bytes(b"no checkpoint")
    outcome = script("generate", "--output-dir", tmp_path)
    assert outcome.status == 1 and outcome.err.count("is no file of torch") == 2 and outcome.err.count("\n") == 3
    assert "is left: train one with `python train_pixelcnn.py" in outcome.err.splitlines()[-1]


class Fake:
    """In the place of torchmetrics' metrics: FID by the means of the pixels; the score is their number."""

    def __init__(self, **options):
        assert options in ({}, {"reset_real_features": False})
        self.real, self.fake = [], []

    def to(self, device):
        return self

    def update(self, pixels, real=False):
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        (self.real if real else self.fake).append(pixels.float())

    def compute(self):
        fake = torch.cat(self.fake)
        if not self.real:
            return torch.tensor(float(len(fake))), torch.tensor(0.0)
        return (torch.cat(self.real).mean() - fake.mean()).abs() + len(torch.cat(self.real))

    def reset(self):
        self.fake = []


def put_inception(monkeypatch, made):
    """Let torchmetrics hold `made` in the place of its metrics."""
    for module, name in (("fid", "FrechetInceptionDistance"), ("inception", "InceptionScore")):
        monkeypatch.setitem(sys.modules, f"torchmetrics.image.{module}", types.SimpleNamespace(**{name: made}))
    for name in ("torchmetrics", "torchmetrics.image"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))


def test_a_run_of_a_vqvae_alone_and_inception_adds_two_columns(done, alone, monkeypatch):
    put_inception(monkeypatch, Fake)
    (alone / "pixelcnn.pt").unlink()
    done("evaluate", "--output-dir", alone, *FEW, "--inception")
    rows = rows_of(alone)
    assert list(rows) == ["real images", "VQ-VAE reconstructions", "per-position marginal", "marginal", "uniform codes"]
    assert 20 <= rows["real images"]["fid"] < 40 and rows["real images"]["inception_score"] == 20  # a half and a half
    for name, row in rows.items():
        assert name == "real images" or (row["fid"] >= 40 and row["inception_score"] == 40)
    assert rows["uniform codes"]["fid"] != rows["marginal"]["fid"]


@pytest.mark.parametrize("error, says", [
    (ImportError("No module named 'torchmetrics'"), "INCEPTION (--inception) needs torchmetrics and torch-fidelity"),
    (OSError("<urlopen error\nno network>"), "or its weights cannot be loaded (<urlopen error no network>)"),
])
def test_inception_that_is_not_to_be_had(script, run, monkeypatch, error, says):
    def fail(**_):
        raise error
    put_inception(monkeypatch, fail)
    outcome = script("evaluate", "--output-dir", run, *FEW, "--inception")
    assert outcome.status == 1 and outcome.err.count("\n") == 1 and says in outcome.err
