"""results.py: the pages hold what it wrote and no other figure, its commands parse, and it goes on after a failure."""
import argparse
import importlib
import json
import os
import re
import shlex
import signal
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

import results
from judging import published
from judging.report import COLUMNS
from running import cli
from running.cli import Stopped, UserError

TABLES = json.loads(results.STORE.read_text(encoding="utf-8"))
# a number with a unit, or with decimals: what somebody has measured
FIGURE = re.compile(r"\d ?(?:dB|bits|KID|minutes?|seconds?|ms|s|h|MB|GB|MiB|times|images/s)\b|\d+\.\d+|\d ?%")
ALLOWED = re.compile(r"Python \d\.\d+|arXiv:[\d.]+|6 GB")  # of others, and of the installation


@pytest.mark.parametrize("page", results.PAGES)
def test_a_page_holds_what_was_measured(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert published.fill(text, TABLES) == text
    assert published.MARKED.search(text)


@pytest.mark.parametrize("page", ["README.md", "docs/RESULTS.md"])
def test_no_figure_stands_outside_the_markers(page):
    text = published.MARKED.sub("", (ROOT / page).read_text(encoding="utf-8"))
    text = ALLOWED.sub("", re.sub(r"^```.*?^```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.M | re.S))
    assert [line for line in text.splitlines() if FIGURE.search(line)] == []


def test_every_table_stands_in_a_page_with_columns_that_its_report_has():
    """What a real evaluation.json and ablation.json give is in tests/test_evaluate.py."""
    heads = {"evaluation.json": set(published.FORMS), "ablation.json": {column.head for column in COLUMNS.values()},
             "benchmark.json": set(published.SPEEDS.values()), "auroc.csv": {"AUROC"}}
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in results.PAGES)
    found = {(name, head.strip()) for _, name, columns, _ in published.MARKED.findall(text)
             for head in columns.split("|")}
    assert {name for name, _ in found} == results.PUBLISHED.keys()
    assert {(name, head) for name, head in found if head not in heads[results.PUBLISHED[name].report]} == set()


def test_results_are_short():
    assert len((ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8").splitlines()) <= 300


def test_every_table_is_of_runs_whose_commands_parse():
    used = {run for table in results.PUBLISHED.values() for run in table.runs.values()}
    assert used == results.COMMANDS.keys() and TABLES.keys() <= results.PUBLISHED.keys()
    for command in {command for commands in results.COMMANDS.values() for command in commands}:
        script, *flags = shlex.split(command.format(data="data", seed=0, shipped=ROOT / "pretrained"))
        if script == "copy":
            assert (Path(flags[0]) / "vqvae.pt").exists()
        else:
            cli.parse(vars(importlib.import_module(script)), flags)


def test_cells_by_hand():
    runs = [{"": {"PSNR": [20.0], "KID of samples": [50.0, 1.5], "class": [0.5]}},
            {"": {"PSNR": [22.0], "KID of samples": [53.0, 1.25], "class": [0.75]}}]
    assert published.cells(runs[:1]) == {"": {"PSNR": "20.00", "KID of samples": "50.0 ±1.5", "class": "50.0%"}}
    assert published.cells(runs) == {"": {"PSNR": "21.00 (20.00 to 22.00)", "KID of samples": "51.5 (50.0 to 53.0)",
                                          "class": "62.5% (50.0% to 75.0%)"}}


def test_outcomes_of_an_evaluation_by_hand():
    rows = {"real images": {"kid": 0.5, "kid_error": 0.25, "nearest": 7.0},
            "VQ-VAE reconstructions": {"psnr": 25.0, "ssim": 0.75, "kid": 20.0},
            "pixelcnn": {"kid": 90.0, "bits_per_image": 100.0},
            "transformer": {"kid": 50.0, "recall": 0.5, "bits_per_image": 99.0},
            "per-position marginal": {"bits_per_image": 200.0, "kid": 900.0}}
    found = published.outcomes({"rows": rows, "codes": 8, "codes_used": 6, "perplexity": 5.0})
    assert found == {
        "KID of real images": [0.5, 0.25], "KID of reconstructions": [20.0], "KID of samples": [50.0],
        "PSNR": [25.0], "SSIM": [0.75], "bits/image": [99.0], "recall": [0.5], "nearest, real": [7.0],
        "codes in use": [0.75], "perplexity": [5.0], "bits of independent codes": [200.0]}
    assert published.outcomes({}) == {}


def test_a_page_is_filled_between_its_markers_alone():
    page = "before\n<!-- results digits | PSNR | class -->\nold 1.0\n<!-- end -->\nafter\n"
    rows = {"a": {"PSNR": "1.00", "SSIM": "0.5"}}
    stored = {"commit": "abc", "date": "today", "machine": "two threads", "rows": rows}
    with pytest.raises(UserError, match="has no column class"):
        published.fill(page, {"digits": stored})
    rows["b"] = {"class": "9%"}
    filled = published.fill(page, {"digits": stored})
    assert filled == ("before\n<!-- results digits | PSNR | class -->\nBy `python results.py digits` at abc, today, on "
                      "two threads.\n\n|  | PSNR | class |\n| --- | --- | --- |\n| a | 1.00 |  |\n| b |  | 9% |\n"
                      "<!-- end -->\nafter\n")
    assert published.fill(filled, {"digits": stored}) == filled


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A table of two seeds, with scripts and a page of its own."""
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "STORE", tmp_path / "results.json")
    monkeypatch.setattr(results, "PAGES", ("page.md",))
    monkeypatch.setattr(results, "commit_of_code", lambda: "abc")
    monkeypatch.setitem(results.COMMANDS, "small", ["train --seed {seed}", "measure"])
    monkeypatch.setitem(results.PUBLISHED, "small", results.Table("", 1, {"a row": "small"}, seeds=2))
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "page.md").write_text("<!-- results small | PSNR -->\n<!-- end -->\n")
    (tmp_path / "train.py").write_text("import sys; open(sys.argv[-1] + '/trained.txt', 'a').write('once ')")
    return tmp_path


def test_a_call_that_failed_goes_on_and_the_page_has_the_mean(script, done, small):
    (small / "measure.py").write_text("raise SystemExit(1)")
    outcome = script("results", "--tables", "small", "--output-dir", small / "runs")
    assert outcome.status == 1 and "measure.py has failed" in outcome.err
    measure = ("import sys, json; place = sys.argv[-1]; json.dump({'rows': {'VQ-VAE reconstructions': "
               "{'psnr': 20.0 + 2 * place.endswith('1')}}}, open(place + '/evaluation.json', 'w'))")
    (small / "measure.py").write_text(measure)
    done("results", "--tables", "small", "--output-dir", small / "runs")
    assert [path.read_text() for path in sorted(small.glob("runs/abc/*/trained.txt"))] == ["once ", "once "]
    page = (small / "page.md").read_text()
    assert "| a row | 21.00 (20.00 to 22.00) |\n<!--" in page and " at abc, " in page
    assert published.fill(page, json.loads((small / "results.json").read_text())) == page


def test_runs_of_other_commands_are_not_taken(script, small, monkeypatch):
    (small / "measure.py").write_text("raise SystemExit(1)")
    script("results", "--tables", "small", "--output-dir", small / "runs")
    monkeypatch.setitem(results.COMMANDS, "small", ["train --dataset {data} --seed {seed}"])
    outcome = script("results", "--tables", "small", "--output-dir", small / "runs")
    assert outcome.status == 1 and "is of other commands, such as of another DATA_DIR" in outcome.err


def test_a_signal_reaches_the_training(small):
    (small / "train.py").write_text(
        "import signal, sys, time\n"
        "def stop(*_): open(sys.argv[-1] + '/saved.txt', 'w'); sys.exit(1)\n"
        "signal.signal(signal.SIGTERM, stop); open(sys.argv[-1] + '/ready.txt', 'w')\n"
        "while True: time.sleep(0.01)\n")

    def interrupt():
        while not list(small.glob("runs/abc/*/ready.txt")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.signal(signal.SIGINT, cli._stop)
    with pytest.raises(Stopped):
        results.measure("small", argparse.Namespace(DATA_DIR="a b", OUTPUT_DIR=str(small / "runs")), "abc")
    signal.signal(signal.SIGINT, before)
    assert list(small.glob("runs/abc/*/saved.txt"))


def test_the_list_and_a_table_that_there_is_not(script):
    listed = script("results").out
    assert all(f"{name}: " in listed for name in results.PUBLISHED)
    assert "there is no table nope, but weights" in script("results", "--tables", "weights nope").err
