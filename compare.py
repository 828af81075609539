"""Compare runs: what was set differently, what came of it, their curves, reconstructions and samples.

    python compare.py first second third
    python compare.py folder_of_runs

Reads what the trainings and evaluate.py left in every directory, and trains nothing. Runs that differ in SEED alone
also get a row of their mean, with the lowest and the highest value. Runs of other images are compared apart. Writes to
OUTPUT_DIR: compare.csv, the table; compare.png, the curves over steps and over minutes; compare_images.png,
reconstructions of the same test images and samples of the same numbers; compare.html, all of it on one page.
"""
import running.start  # noqa: F401

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dataset
from judging import testset
from judging.markup import missing, picture, table, text, write
from judging.page import load_stages, read_rows
from judging.published import FORMS, outcomes
from judging.report import aligned
from priors import runs
from priors.codes import to_images
from priors.draws import Draw
from priors.samples import draw_images
from priors.table import PRIORS
from running import devices, figures
from running.cli import ROOT, UserError
from running.cli import run as run_script
from running.files import write_csv
from training import checkpoint
from training.loop import FREE

RUNS = "output"           # directories of runs, or of folders of runs; may stand without its flag, before all others
OUTPUT_DIR = "output"     # where the comparison is written
EVALUATE = False          # first call evaluate.py, with its defaults, for the runs that have no evaluation.json
NUM_IMAGES = 10           # reconstructions and samples of a run in compare_images.png
SEED = 0                  # of the samples there
DEVICE = "auto"           # "auto": CUDA, then Apple's MPS, then the CPU; or "cpu", "cuda", "cuda:1", "mps"

PANELS = {"PSNR (dB) of the validation split": "validation_psnr",
          "bits per image of the validation split": "validation_bits_per_image"}
EVALUATED = "SSIM", "KID of reconstructions", "KID of samples", "recall", "class"  # by evaluate.py, on the test split
UNTOLD = FREE - {"EPOCHS", "LEARNING_RATE", "PRECISION"}  # constants that change nothing of what comes out


class Result(NamedTuple):
    """A run, read."""

    path: Path
    name: str                          # of its directory; with more of its path where another run has the same
    stages: dict[str, dict[str, Any]]  # checkpoints
    evaluation: dict[str, Any]         # of evaluate.py; empty if it has not run

    @property
    def images(self) -> tuple:
        """What tells the images of two runs apart."""
        data = self.stages["vqvae"]["data"]
        return self.stages["vqvae"].get("images"), data["channels"], data["height"], data["width"]

    @property
    def has_prior(self) -> bool:
        return any(prior in self.stages for prior in PRIORS)

    @property
    def settings(self) -> dict[str, Any]:
        return {f"{stage}: {name}": value for stage, stored in self.stages.items()
                for name, value in checkpoint.constants(stored).items() if name not in UNTOLD}


def find(words: Sequence[str]) -> list[Result]:
    """The runs in these directories. UserError if there is none."""
    paths = [path for word in words for path in ([Path(word)] if checkpoint.path_of(word, "vqvae").exists() else
                                                 sorted(file.parent for file in Path(word).glob("*/vqvae.pt")))]
    results, whole = [], {path.resolve(): path for path in paths}  # each once, however it is spelt
    for place, path in whole.items():
        stages, left_out = load_stages(str(path))
        for line in left_out:
            print(f"{path}: {line}", file=sys.stderr)
        if "vqvae" in stages:
            alone = sum(other.name == place.name for other in whole) == 1
            name = place.name if alone else os.path.relpath(place, os.path.commonpath(whole))
            name = name.encode(errors="replace").decode()  # a plot takes no bytes that are no text
            results.append(Result(path, name, stages, read_rows(path / "evaluation.json") or {}))
    if not results:
        raise UserError(f"RUNS (--runs): there is no vqvae.pt in {', '.join(words)}, nor in a folder there")
    return results


def outcome(result: Result) -> dict[str, float]:
    """What came of a run, by the head of its column."""
    found = {}
    for stage, stored in result.stages.items():
        history = stored.get("training", {}).get("history", [])
        for head, column in (("PSNR", "psnr"), ("perplexity", "perplexity"), ("bits/image", "bits_per_image")):
            if stage in ("vqvae", *PRIORS) and history and f"validation_{column}" in history[0]:
                loss = "validation_mse" if stage == "vqvae" else "validation_nll"
                value = min(history, key=lambda row: row[loss])[f"validation_{column}"]
                found[head] = min(value, found.get(head, value))  # of several priors the best
    evaluated = outcomes(result.evaluation)
    found |= {head: evaluated[head][0] for head in EVALUATED if head in evaluated}
    minutes = [stored.get("training", {}).get("minutes", [None])[-1] for stored in result.stages.values()]
    if None not in minutes:  # an older checkpoint does not say
        found["minutes"] = sum(minutes)
    found["weights"] = sum(tensor.numel() for stored in result.stages.values() for tensor in stored["model"].values())
    return found


def make_rows(results: list[Result]) -> dict[str, dict[str, str]]:
    """A row for each run, and one for the mean of those that differ in SEED alone: settings that differ, outcomes."""
    settings = [result.settings for result in results]
    names = sorted({name for found in settings for name in found
                    if len({repr(other.get(name)) for other in settings}) > 1})
    rows, alike = {}, {}
    for result, found in zip(results, settings):
        told = {name: str(found.get(name, "-")) for name in names}
        measured = outcome(result)
        rows[str(result.path)] = told | {head: format(value, FORMS[head]) for head, value in measured.items()}
        key = tuple(value for name, value in told.items() if not name.endswith(": SEED"))
        alike.setdefault(key, []).append((result.name, told, measured))
    for members in alike.values():
        if len(members) > 1:
            (_, told, first), *_ = members
            values = {head: [found[head] for *_, found in members if head in found] for head in first}
            rows[f"mean of {', '.join(name for name, *_ in members)}"] = told | {
                name: "all" for name in told if name.endswith(": SEED")} | {
                head: "{:{f}} ({:{f}} to {:{f}})".format(sum(part) / len(part), min(part), max(part), f=FORMS[head])
                for head, part in values.items()}
    return rows


def curves(results: list[Result]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Lines (x, y) by panel and run: over steps, and over minutes where the checkpoint has them."""
    panels = {}
    for title, column in PANELS.items():
        for result in results:
            for stage in ("vqvae", *PRIORS):
                state = result.stages.get(stage, {}).get("training", {})
                history = [row for row in state.get("history", []) if column in row]
                if not history:
                    continue
                steps = -(-state.get("count", 0) // checkpoint.constants(result.stages[stage]).get("BATCH_SIZE", 1))
                name = result.name if stage == "vqvae" else f"{result.name}, {stage}"
                values = [row[column] for row in history]
                panels.setdefault(f"{title}, over steps", {})[name] = [row["epoch"] * steps for row in history], values
                if len(minutes := state.get("minutes", [])[:-1]) == len(values):
                    panels.setdefault(f"{title}, over minutes", {})[name] = minutes, values
    return panels


@torch.no_grad()
def make_strips(results: list[Result], args: argparse.Namespace, device: torch.device) -> dict[str, Tensor]:
    """Strips of images by label: test images, their reconstructions by every run, and samples of every run. What lacks
    its data set or a prior that fits is left out, with a line that says so.
    """
    strips, samples, originals = {}, {}, None
    stored = results[0].stages["vqvae"]
    constants = argparse.Namespace(DATASET=None, DATA_DIR=None, LIMIT=None)
    try:
        test = testset.load(checkpoint.fill(constants, stored), stored).test.images
        originals = test[testset.choose(test, args.NUM_IMAGES, args.SEED)]
        strips["test images"] = dataset.to_float(originals)
    except UserError as error:
        print(f"no reconstructions: {error}", file=sys.stderr)
    for result in results:
        stored, vqvae = runs.load_vqvae(str(result.path))
        vqvae.to(device)
        size = stored["data"]["height"], stored["data"]["width"]
        if originals is not None:
            codes = vqvae.encode(dataset.to_float(originals).to(device))
            strips[f"reconstructions: {result.name}"] = to_images(vqvae, codes, *size)
        if result.has_prior:
            try:
                prior, model = runs.load_prior(str(result.path), stored)
            except UserError as error:
                print(f"no samples: {error}", file=sys.stderr)
                continue
            guidance, top_p = runs.choose_guidance("auto", "auto", prior)
            samples[f"samples: {result.name}"] = draw_images(
                model.to(device), vqvae, args.NUM_IMAGES, size, args.SEED, args.NUM_IMAGES,
                Draw(top_p=top_p, guidance=guidance))
    return strips | samples


def main(args: argparse.Namespace) -> None:
    device = devices.pick(args.DEVICE)
    try:
        results = find(shlex.split(args.RUNS))
    except ValueError as error:
        raise UserError(f"RUNS (--runs): {error}") from None
    if args.EVALUATE:
        for result in results:
            if not result.evaluation and result.has_prior:
                subprocess.run([sys.executable, ROOT / "evaluate.py", "--output-dir", result.path], check=False)
        results = [result._replace(evaluation=read_rows(result.path / "evaluation.json") or {}) for result in results]
    kinds: dict[tuple, list[Result]] = {}
    for result in results:
        kinds.setdefault(result.images, []).append(result)
    if len(kinds) > 1:
        print(f"the runs are of {len(kinds)} sets of images, which are not compared with each other: "
              + "; ".join(", ".join(str(result.path) for result in part) for part in kinds.values()))
    output, body, lines = Path(args.OUTPUT_DIR), ["<h1>Runs</h1>"], []
    for number, part in enumerate(kinds.values()):
        suffix = f"_{number + 1}" if number else ""
        rows, data = make_rows(part), part[0].stages["vqvae"]["data"]
        columns = list(dict.fromkeys(name for row in rows.values() for name in row))
        heads = [*(name for name in columns if name not in FORMS), *(name for name in FORMS if name in columns)]
        table_rows = [{"run": title} | {name: row.get(name, "") for name in heads} for title, row in rows.items()]
        print(aligned([list(table_rows[0]), *(list(row.values()) for row in table_rows)]))
        lines += table_rows
        figures.save_lines(curves(part), output / f"compare{suffix}.png")
        pictured = output / f"compare_images{suffix}.png"
        pictured.unlink(missing_ok=True)  # of an earlier call
        if strips := make_strips(part, args, device):
            figures.save_strips(strips, "The same test images and the same numbers of samples", pictured)
        body += [f"<h2>{text(Path(data['dataset']).name)}: {len(part)} run{'s' * (len(part) > 1)}</h2>",
                 table("", rows, heads),
                 picture(output / f"compare{suffix}.png", "Curves of the validation split.", ""),
                 picture(pictured, "Reconstructions of the same test images, and samples of the same numbers.",
                         "these runs have no prior, and their data set is not there")]
        without = [result.name for result in part if not result.evaluation]
        body += [missing(f"no evaluation.json in {', '.join(without)}: add `--evaluate`")] if without else []
    write_csv(output / "compare.csv", lines)
    write(output / "compare.html", "Runs", body)
    print(f"wrote {output / 'compare.csv'}, {output / 'compare.png'}, {output / 'compare_images.png'} and "
          f"{output / 'compare.html'}: all of it on one page")


if __name__ == "__main__":
    run_script(main, globals())
