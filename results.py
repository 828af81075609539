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
from typing import Any, NamedTuple

from judging import published
from judging.report import aligned
from running import devices
from running.cli import ROOT, Stopped, UserError, constants, flag
from running.cli import run as run_script
from running.files import atomic
from training import checkpoint

TABLES = ""               # the tables to remake; may stand without its flag, before all others; "": list them
DATA_DIR = "data"         # where the folders celeba, brain_mri and cifar10 are, and MNIST as torchvision has it
OUTPUT_DIR = "output/results"  # where the runs are kept, by commit

PAGES = "README.md", "docs/RESULTS.md", "pretrained/README.md"
STORE = ROOT / "docs" / "results.json"


class Table(NamedTuple):
    """A published table."""

    question: str
    minutes: int             # about, on two cores
    runs: dict[str, str]     # by what a row is called: its run, a key of COMMANDS
    report: str = "evaluation.json"  # the file that is read of each run
    seeds: int = 1


SHIPPED = {"glyphs": "glyphs", "mnist": "mnist", "cifar10": "{data}/cifar10", "faces": "{data}/celeba",
           "faces128": "{data}/celeba", "mri": "{data}/brain_mri"}
IMAGES = {"faces": "{data}/celeba --image-size 64", "cifar10": "{data}/cifar10"}
QUANTIZERS = {"VQ": "", "VQ, rotation trick": "--gradient rotation", "FSQ": "--quantizer fsq",
              "BSQ": "--quantizer bsq", "SimVQ": "--quantizer simvq"}

# The commands of every run, each a script and its flags, of which --data-dir and --output-dir are added.
# {data}: DATA_DIR; {shipped}: pretrained/; {seed}: from 0 on.
COMMANDS = {
    **{f"weights {name}": [f"evaluate --pretrained {{shipped}}/{name} --dataset {dataset}"]
       for name, dataset in SHIPPED.items()},
    "sampling faces": ["ablation --pretrained {shipped}/faces --dataset {data}/celeba --temperatures '0.8 0.9 1'"],
    "sampling mnist": ["ablation --pretrained {shipped}/mnist --dataset mnist --prior transformer"],
    "decoder of vqvae.pt": ["copy {shipped}/faces", "evaluate --dataset {data}/celeba"],
    "decoder finished": ["copy {shipped}/faces", "train_decoder --dataset {data}/celeba --seed {seed}",
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


def call(script: str, flags: list[str]) -> None:
    """Run a script. UserError if it fails; a signal is passed on, so that a training saves before it ends."""
    child = subprocess.Popen([sys.executable, ROOT / f"{script}.py", *flags])
    try:
        status = child.wait()
    except Stopped:
        child.terminate()
        child.wait()
        raise
    if status:
        raise UserError(f"{script}.py has failed, as its last line says: the same call goes on from there")


def run_commands(run: str, seed: int, args: argparse.Namespace, commit: str) -> tuple[Path, dict[str, str]]:
    """Run the commands of a run that have not ended yet. Returns its directory, and when and where the last one ended.
    UserError where one fails.
    """
    named = {"data": Path(args.DATA_DIR).resolve(), "shipped": ROOT / "pretrained", "seed": seed}
    commands = [command.format_map({name: shlex.quote(str(value)) for name, value in named.items()})
                for command in COMMANDS[run]]
    name = run + f" seed {seed}" * ("{seed}" in "".join(COMMANDS[run]))
    directory = Path(args.OUTPUT_DIR).resolve() / commit / name.replace(" ", "-").replace(",", "")
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "ended.json"
    ended = json.loads(log.read_text(encoding="utf-8")) if log.exists() else {"commands": []}
    if ended["commands"] != commands[:len(ended["commands"])]:
        raise UserError(f"{directory} is of other commands, such as of another DATA_DIR: choose another OUTPUT_DIR "
                        f"({flag('OUTPUT_DIR')})")
    for command in commands[len(ended["commands"]):]:
        print(f"{directory.name}: {command}", flush=True)
        script, *flags = shlex.split(command)
        if script == "copy":
            for stage in ("vqvae", "transformer"):
                shutil.copy(checkpoint.path_of(flags[0], stage), directory)
        else:
            data_dir = ["--data-dir", str(named["data"])] * ("DATA_DIR" in constants(ROOT / f"{script}.py"))
            call(script, [*flags, *data_dir, "--output-dir", str(directory)])
        ended = {"commands": [*ended["commands"], command], "date": str(datetime.date.today()),
                 "machine": devices.describe(devices.pick("auto"))}
        with atomic(log) as file:
            file.write(json.dumps(ended).encode())
    return directory, {name: ended[name] for name in ("date", "machine")}


def measure(name: str, args: argparse.Namespace, commit: str) -> dict[str, Any]:
    """A table: its rows as text by label and column, and where they come from."""
    table, rows = PUBLISHED[name], {}
    for label, run in table.runs.items():
        found = []
        for seed in range(table.seeds if "{seed}" in "".join(COMMANDS[run]) else 1):
            directory, source = run_commands(run, seed, args, commit)
            found.append(published.read(directory, table.report))
        rows |= {" ".join(filter(None, (label, own))): row for own, row in published.cells(found).items()}
    return {"commit": commit, **source, "rows": rows}


def write(name: str, table: dict[str, Any]) -> None:
    """Keep a table, and put it into the pages."""
    tables = {**json.loads(STORE.read_text(encoding="utf-8")), name: table}
    pages = {page: published.fill((ROOT / page).read_text(encoding="utf-8"), tables) for page in PAGES}
    for path, text in {STORE: json.dumps(tables, indent=1, ensure_ascii=False) + "\n", **pages}.items():
        with atomic(ROOT / path) as file:
            file.write(text.encode())


def commit_of_code() -> str:
    """The last commit that changed code or shipped weights. UserError where they are not as that commit has them."""
    def git(*words: str) -> str:
        command = "git", "-C", ROOT, *words, "--", "*.py", "pretrained/*.pt", ":!tests"
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    if not (commit := git("log", "-1", "--format=%h")) or git("status", "--porcelain"):
        raise UserError("a figure is told with its commit: run this in a clone, and commit the code first")
    return commit


def main(args: argparse.Namespace) -> None:
    names = args.TABLES.split()
    if unknown := set(names) - PUBLISHED.keys():
        raise UserError(f"TABLES (--tables): there is no table {', '.join(sorted(unknown))}, but "
                        f"{', '.join(PUBLISHED)}")
    if not names:
        tables = json.loads(STORE.read_text(encoding="utf-8"))
        print(aligned([["table", "minutes", "measured"],
                       *([f"{name}: {table.question}", str(table.minutes), tables.get(name, {}).get("date", "never")]
                         for name, table in PUBLISHED.items())]))
    for name in names:
        write(name, measure(name, args, commit_of_code()))
        print(f"{name}: wrote {STORE.relative_to(ROOT)} and {', '.join(PAGES)}")


if __name__ == "__main__":
    run_script(main, globals())
