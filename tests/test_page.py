"""report.html: every part of a run is on it, it needs nothing else, and nothing in a name or file becomes markup."""
import base64
import json
import os
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from judging import markup, page

PICTURES = ["dataset.png", "vqvae_curves.png", "pixelcnn_curves.png", "reconstructions/epoch_001.png",
            "samples_by_class.png", "evaluation.png", "ablation.png", "nearest.png", "codebook.png",
            "latents.png"]
ROWS = {"real images": {"frechet": 1.25, "nearest": 4.5},
        "VQ-VAE reconstructions": {"mse": 0.00333, "psnr": 24.78, "ssim": 0.9421, "frechet": 3.26},
        "pixelcnn": {"bits_per_image": 98.31, "frechet": 11.28, "class_accuracy": 0.954}}
EMPTY = {"meta", "img", "br"}


class Read(HTMLParser):
    """A page's elements, as (tag, attributes), its text, and whether every element is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def shown(run):
    """The page of a run's directory, written anew."""
    assert page.write_page(str(run)) == run / "report.html"
    return Read((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def full(trained, tmp_path):
    """A run's directory with all that the page shows; the pictures differ in their size."""
    run = shutil.copytree(trained, tmp_path / "run")
    for number, name in enumerate(PICTURES):
        (run / name).parent.mkdir(exist_ok=True)
        Image.new("L", (30 + number, 20)).save(run / name)
    facts = {"images_per_row": 60, "constants": {"TOP_P": 0.9, "SEED": 3}, "doubts": ["KID is <not> to be read"]}
    (run / "evaluation.json").write_text(json.dumps(
        {**facts, "best": "pixelcnn", "codes": 16, "codes_used": 12, "perplexity": 9.87, "rows": ROWS}))
    (run / "ablation.json").write_text(json.dumps({**facts, "rows": {"pixelcnn, argmax": {"distinct": 0.125}}}))
    return run


def test_every_part_is_there(full):
    found = shown(full)
    assert [attrs["id"] for tag, attrs in found.elements if tag == "section"] == [
        "settings", "training", "reconstructions", "samples", "measures", "ablation", "nearest-training-images",
        "codebook"]
    assert [attrs["href"][1:] for tag, attrs in found.elements if tag == "a"] == [
        attrs["id"] for tag, attrs in found.elements if tag == "section"]
    images = [attrs for tag, attrs in found.elements if tag == "img"]
    assert sorted(int(attrs["width"]) for attrs in images) == [30 + number for number in range(len(PICTURES))]
    assert all(attrs["alt"] for attrs in images)
    for words in ("glyphs", "CODE_DIM", "EMA_DECAY", "24.78", "0.9421", "98.3", "95.4%", "11.28", "12.5%", "12 of 16",
                  "perplexity is 9.9", "New images of pixelcnn", "TOP_P 0.9", "SEED 3", "after epoch 1"):
        assert words in found.text, words
    assert found.text.count("KID is <not> to be read") == 2
    left_out = "finished decoder, transformer, masked prior, VAE (the baseline)"
    assert f"not trained in this run, or left out: {left_out}" in found.text
    for file in (*PICTURES, "evaluation.json", "ablation.json"):
        assert f"no {file}" not in found.text
    assert not (full / "report.html.tmp").exists()


def test_it_needs_no_other_file_and_no_connection(full):
    found, text = shown(full), (full / "report.html").read_text(encoding="utf-8")
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert not {tag for tag, _ in found.elements} & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attrs in found.elements:
        assert not any(name.startswith("on") or name in ("srcset", "style") for name in attrs)
        assert attrs.get("href", "#").startswith("#")
        assert attrs.get("src", "data:image/").startswith("data:image/")
    [source] = [attrs["src"] for tag, attrs in found.elements if attrs.get("width") == "30"]
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == (full / "dataset.png").read_bytes()


def test_names_and_paths_are_text(full, tmp_path):
    """Of the data set, the run's directory, rows and constants; also bytes of a name that are no text."""
    nasty = "<script>alert('1')</script> & \"b\""
    content = torch.load(full / "vqvae.pt", weights_only=True)
    content["data"]["dataset"] = content["training"]["constants"]["DATASET"] = f"x/{nasty}"
    torch.save(content, full / "vqvae.pt")
    stored = json.loads((full / "evaluation.json").read_text())
    stored["rows"][nasty + "\udcff"] = {"frechet": 1.0}
    stored["best"] = stored["constants"]["SEED"] = nasty
    (full / "evaluation.json").write_text(json.dumps(stored))
    (full / "nearest.png").unlink()
    moved = full.rename(tmp_path / nasty.replace("/", "|"))
    found = shown(moved)
    assert "script" not in {tag for tag, _ in found.elements}
    assert found.text.count("<script>alert('1')<") >= 5 and "&amp;lt;" not in (moved / "report.html").read_text()
    assert f"x/{nasty}: images" in found.text and f"{nasty}?" in found.text


def test_what_is_missing_is_named_with_its_command(tmp_path):
    text = shown(tmp_path).text
    for name in ("dataset.png", "reconstructions/epoch_001.png", "samples_by_class.png", "nearest.png", "codebook.png",
                 "latents.png"):
        assert f"no {name}: " in text, name
    for name, script in (("evaluation", "evaluate"), ("ablation", "ablation")):
        assert f"no {name}.json: run python {script}.py --output-dir {tmp_path}" in text
    assert "not trained in this run, or left out: VQ-VAE, finished decoder" in text


def test_what_is_damaged_is_named(full):
    (full / "nearest.png").write_bytes((full / "nearest.png").read_bytes()[:40])
    (full / "codebook.png").write_bytes(b"<svg onload='alert(1)'>")
    (full / "pixelcnn.pt").write_bytes(b"no checkpoint")
    text = shown(full).text
    assert "nearest.png is damaged: " in text and "codebook.png is damaged: " in text
    assert "left out: " in text and "pixelcnn.pt is no file of torch" in text
    for content in (b"", b"[]", b"{}", b'{"rows": 1}', b'{"rows": {"a": 1}}', b'{"rows": {"a": {"mse": "x"}}}',
                    b'{"rows": {}, "perplexity": "x"}', b'{"rows": {}, "constants": 1}', b'{"rows": {}, "doubts": 1}',
                    b"\xff"):
        (full / "evaluation.json").write_bytes(content)
        assert page.read_rows(full / "evaluation.json") is None, content
    assert "evaluation.json cannot be read: run python evaluate.py" in shown(full).text


def test_older_measures_are_marked(full):
    assert "was written before" not in shown(full).text
    written = (full / "ablation.json").stat().st_mtime
    os.utime(full / "evaluation.json", (written + 20, written + 20))
    os.utime(full / "pixelcnn.pt", (written + 10, written + 10))
    text = shown(full).text
    assert text.count("was written before") == 1 and "ablation.json was written before pixelcnn.pt: run" in text


def test_a_large_picture_is_reduced(full, monkeypatch):
    monkeypatch.setattr(markup, "LARGEST", 10_000)
    noise = np.random.default_rng(0).integers(0, 256, (100, 2 * markup.WIDEST, 3), np.uint8)
    Image.fromarray(noise).save(full / "nearest.png")
    [image] = [attrs for tag, attrs in shown(full).elements if attrs.get("src", "").startswith("data:image/jpeg")]
    assert (image["width"], image["height"]) == (str(markup.WIDEST), "50")
    assert len(image["src"]) < (full / "nearest.png").stat().st_size / 4


def test_the_last_epoch_is_shown(full):
    for number in (2, 9, 999, 1000):
        shutil.copy(full / "reconstructions/epoch_001.png", full / f"reconstructions/epoch_{number:03d}.png")
    assert "after epoch 1000 of" in shown(full).text
