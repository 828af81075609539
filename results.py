"""Remake the published tables: run what they are made of, and write their figures into the pages.

    python results.py
    python results.py weights faces

Without names it lists the tables, what each costs, and when it was measured. A table is data, in TABLES below: runs,
and of each the commands that differ from the defaults. Tables share runs. A command that has ended is not run again,
and a training that was killed goes on, so the same call continues. The figures go to docs/results.json, with the commit
and the machine, and from there between the markers of README.md, docs/RESULTS.md and pretrained/README.md.
"""
import running.start  # noqa: F401

import argparse
import datetime
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from judging import published
from judging.report import aligned
from running import devices
from running.cli import ROOT, UserError
from running.cli import run as run_script
from running.files import atomic
from training import checkpoint

TABLES = ""               # the tables to remake; may stand without its flag, before all others; "": list them
DATA_DIR = "data"         # where the folders celeba, brain_mri, cifar10 and emoji are, and MNIST as torchvision has it
RUNS_DIR = "output/results"  # where the runs are kept, by commit

PAGES = "README.md", "docs/RESULTS.md", "pretrained/README.md"
STORE = ROOT / "docs" / "results.json"


class Table(NamedTuple):
    """A published table."""

    question: str
    minutes: int             # about, on two cores
    runs: dict[str, str]     # by what a row is called: its run, a key of COMMANDS
    report: str = "evaluation.json"  # the file that is read of each run
    seeds: int = 1
    beside: dict[str, dict[str, str]] = {}  # rows that others published, by label and column


SHIPPED = {"glyphs": "glyphs", "mnist": "mnist", "cifar10": "{data}/cifar10", "faces": "{data}/celeba",
           "faces128": "{data}/celeba", "mri": "{data}/brain_mri"}
IMAGES = {"faces": "{data}/celeba --image-size 64", "cifar10": "{data}/cifar10"}
QUANTIZERS = {"VQ": "", "VQ, rotation trick": "--gradient rotation", "FSQ": "--quantizer fsq",
              "BSQ": "--quantizer bsq", "SimVQ": "--quantizer simvq"}

# The commands of every run, each a script and its flags. {data}: DATA_DIR; {seed}: from 0 on
COMMANDS = {
    **{f"weights {name}": [f"evaluate --pretrained {ROOT}/pretrained/{name} --dataset {dataset} --data-dir {{data}}"]
       for name, dataset in SHIPPED.items()},
    "sampling faces": [f"ablation --pretrained {ROOT}/pretrained/faces --dataset {{data}}/celeba "
                       "--temperatures '0.8 0.9 1'"],
    "sampling mnist": [f"ablation --pretrained {ROOT}/pretrained/mnist --dataset mnist --data-dir {{data}} "
                       "--prior transformer --guidances '1 1.25 1.5 2'"],
    "decoder of vqvae.pt": ["copy faces", "evaluate --dataset {data}/celeba"],
    "decoder finished": ["copy faces", "train_decoder --dataset {data}/celeba --seed {seed}",
                         "evaluate --dataset {data}/celeba"],
    "scores": ["train_vqvae --dataset {data}/brain_mri/notumor --image-size 64", "train_pixelcnn --epochs 10",
               "score --against {data}/brain_mri/glioma --image-size 64 --channels 3 --limit 500"],
    "speed": ["benchmark"],
    **{f"{images} {name} {codes}": [
        f"train_vqvae --dataset {dataset} --num-codes {codes} --epochs 2 --seed {{seed}} {flags}",
        "train_pixelcnn --epochs 1 --seed {seed}", "evaluate"]
       for images, dataset in IMAGES.items() for codes in (512, 4096) for name, flags in QUANTIZERS.items()}}

PUBLISHED = {
    "weights": Table("what the weights in pretrained/ reach", 40, {
        "glyphs 28x28": "weights glyphs", "MNIST 28x28": "weights mnist", "CIFAR-10 32x32": "weights cifar10",
        "CelebA faces 64x64": "weights faces", "CelebA faces 128x128": "weights faces128",
        "brain MRI 128x128": "weights mri"}),
    "faces": Table("faces of 64x64, by how they are sampled", 6, {"": "sampling faces"}, "ablation.json"),
    "mnist": Table("digits, by how they are sampled", 6, {"": "sampling mnist"}, "ablation.json"),
    "decoder": Table("faces of 64x64, by the decoder of vqvae.pt and by a finished one", 35, {
        "decoder of vqvae.pt": "decoder of vqvae.pt", "finished decoder": "decoder finished"}, seeds=3),
    "scores": Table("slices with tumours told from slices without, AUROC", 15, {"": "scores"}, "auroc.csv"),
    "speed": Table("samplers against the plain loop, training steps against a matrix product", 10, {"": "speed"},
                   "benchmark.json"),
    **{f"quantizers-{images}": Table(f"every quantizer on {images}, at equal steps", 200, {
        f"{name}, K = {codes}": f"{images} {name} {codes}" for codes in (512, 4096) for name in QUANTIZERS}, seeds=3)
       for images in IMAGES}}


def run_commands(run: str, seed: int, args: argparse.Namespace, commit: str) -> Path:
    """Run the commands of a run that have not ended yet. Returns its directory. UserError where one fails."""
    commands = [command.format(data=Path(args.DATA_DIR).resolve(), seed=seed) for command in COMMANDS[run]]
    name = run + f" seed {seed}" * ("{seed}" in "".join(COMMANDS[run]))
    directory = Path(args.RUNS_DIR).resolve() / commit / name.replace(" ", "-").replace(",", "")
    directory.mkdir(parents=True, exist_ok=True)
    ended = directory / "ended.txt"
    for command in commands[len(ended.read_text().splitlines()) if ended.exists() else 0:]:
        print(f"{directory.name}: {command}", flush=True)
        script, *flags = shlex.split(command)
        if script == "copy":
            for stage in ("vqvae", "transformer"):
                shutil.copy(checkpoint.path_of(ROOT / "pretrained" / flags[0], stage), directory)
        elif subprocess.run([sys.executable, ROOT / f"{script}.py", *flags, "--output-dir", directory]).returncode:
            raise UserError(f"{script}.py has failed, as its last line says: the same call goes on from there")
        with ended.open("a") as file:
            file.write(command + "\n")
    return directory


def measure(name: str, args: argparse.Namespace, commit: str) -> dict[str, dict[str, str]]:
    """The rows of a table as text, by label and column."""
    table, rows = PUBLISHED[name], {}
    for label, run in table.runs.items():
        seeds = range(table.seeds if "{seed}" in "".join(COMMANDS[run]) else 1)
        found = published.cells(published.read(run_commands(run, seed, args, commit), table.report) for seed in seeds)
        rows |= {" ".join(filter(None, (label, own))): row for own, row in found.items()}
    return rows | table.beside


def commit_of_code() -> str:
    """The last commit that changed the code. UserError where the code is not as that commit has it."""
    def git(*words: str) -> str:
        command = "git", "-C", ROOT, *words, "--", "*.py", ":!tests"
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not (commit := git("log", "-1", "--format=%h")) or git("status", "--porcelain"):
        raise UserError("a figure is told with its commit: run this in a clone, and commit the code first")
    return commit


def main(args: argparse.Namespace) -> None:
    tables = json.loads(STORE.read_text(encoding="utf-8"))
    if not (names := shlex.split(args.TABLES)):
        print(aligned([["table", "minutes", "measured"],
                       *([f"{name}: {table.question}", str(table.minutes), tables.get(name, {}).get("date", "never")]
                         for name, table in PUBLISHED.items())]))
    elif unknown := set(names) - PUBLISHED.keys():
        raise UserError(f"TABLES (--tables): there is no table {', '.join(sorted(unknown))}, but "
                        f"{', '.join(PUBLISHED)}")
    commit = commit_of_code() if names else ""
    for name in names:
        rows = measure(name, args, commit)
        tables[name] = {"commit": commit, "date": str(datetime.date.today()), "machine": devices.describe(),
                        "rows": rows}
        with atomic(STORE) as file:
            file.write((json.dumps(tables, indent=1, ensure_ascii=False) + "\n").encode())
        for page in PAGES:
            text = (ROOT / page).read_text(encoding="utf-8")
            with atomic(ROOT / page) as file:
                file.write(published.fill(text, tables).encode())
        print(f"{name}: wrote {STORE.relative_to(ROOT)} and {', '.join(PAGES)}")


if __name__ == "__main__":
    run_script(main, globals())
