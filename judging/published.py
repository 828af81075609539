"""The figures of the published tables: read from what runs wrote, kept as JSON, put into pages between markers."""
import csv
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from judging.report import COLUMNS
from priors.table import PRIORS
from running.cli import UserError

# the columns of tables, those of a run in the order of their table, and the format of their numbers
FORMS = {"PSNR": ".2f", "SSIM": ".3f", "codes in use": ".1%", "perplexity": ".1f", "bits/image": ".1f",
         "bits of independent codes": ".1f", "minutes": ".1f", "weights": ",.0f", "KID of real images": ".1f",
         "KID of reconstructions": ".1f", "KID of samples": ".1f", "Fréchet of real images": ".1f",
         "Fréchet of reconstructions": ".1f", "Fréchet of samples": ".1f", "precision": ".3f", "recall": ".3f",
         "class": ".1%", "nearest, samples": ".1f", "nearest, real": ".1f", "AUROC": ".3f", "time (s)": ".3g",
         "over a forward pass": ".2f", "times as fast as the plain loop": ".1f", "images/s": ".0f",
         "of a matrix product": ".0%"}
SPEEDS = {"seconds": "time (s)", "over_forward": "over a forward pass", "images_per_second": "images/s",
          "times_faster_than_plain_loop": "times as fast as the plain loop", "share": "of a matrix product"}
MARKED = re.compile(r"(<!-- results (\S+) \|(.*?) -->\n).*?(<!-- end -->)", re.S)

Figures = dict[str, dict[str, list[float]]]  # rows by label; of each a list by column: value, and standard error


def outcomes(evaluation: dict[str, Any]) -> dict[str, list[float]]:
    """What evaluation.json says of a run, by column of FORMS: a value, and where it is known its standard error."""
    rows = evaluation.get("rows", {})
    priors = [row for name, row in rows.items() if name in PRIORS]
    sources = {"real images": rows.get("real images", {}), "reconstructions": rows.get("VQ-VAE reconstructions", {}),
               "samples": min(priors, key=lambda row: row.get("bits_per_image", math.inf), default={})}
    found = {f"{head} of {of}": [row[key], *([row[f"{key}_error"]] if f"{key}_error" in row else [])]
             for of, row in sources.items() for head, key in (("KID", "kid"), ("Fréchet", "frechet")) if key in row}
    for head, of, key in (("PSNR", "reconstructions", "psnr"), ("SSIM", "reconstructions", "ssim"),
                          ("bits/image", "samples", "bits_per_image"), ("precision", "samples", "precision"),
                          ("recall", "samples", "recall"), ("class", "samples", "class_accuracy"),
                          ("nearest, samples", "samples", "nearest"), ("nearest, real", "real images", "nearest")):
        if key in sources[of]:
            found[head] = [sources[of][key]]
    if "perplexity" in evaluation:
        found |= {"perplexity": [evaluation["perplexity"]],
                  "codes in use": [evaluation["codes_used"] / evaluation["codes"]]}
    if independent := rows.get("per-position marginal"):
        found["bits of independent codes"] = [independent["bits_per_image"]]
    return {head: values for head, values in found.items() if head in FORMS}


def _reports(text: str) -> Figures:
    """The rows of ablation.json."""
    return {name: {COLUMNS[key].head: [value, *([row[f"{key}_error"]] if f"{key}_error" in row else [])]
                   for key, value in row.items() if key in COLUMNS} for name, row in json.loads(text)["rows"].items()}


def _speeds(text: str) -> Figures:
    """The rows of benchmark.json."""
    return {row["what"]: {SPEEDS[head]: [value["median"]] for head, value in row.items() if head in SPEEDS}
            for row in json.loads(text)["rows"]}


def _scores(text: str) -> Figures:
    """The rows of auroc.csv."""
    return {row["score"]: {"AUROC": [float(row["auroc"])]} for row in csv.DictReader(text.splitlines())}


# what is read of a run's directory, by the name of the file: its rows; "" is the row of the run itself
REPORTS: dict[str, Callable[[str], Figures]] = {
    "evaluation.json": lambda text: {"": outcomes(json.loads(text))}, "ablation.json": _reports,
    "benchmark.json": _speeds, "auroc.csv": _scores}


def read(directory: Path, report: str) -> Figures:
    """The rows of a run's report."""
    return REPORTS[report]((directory / report).read_text(encoding="utf-8"))


def told(head: str, seeds: list[list[float]]) -> str:
    """A cell: the value with its standard error, or of several seeds the mean with the lowest and the highest."""
    form = FORMS.get(head) or next((column.form for column in COLUMNS.values() if column.head == head), ".3g")
    value, *error = seeds[0] if len(seeds) == 1 else [statistics.mean(first for first, *_ in seeds)]
    text = format(value, form) + (f" ±{error[0]:{form}}" if error else "")
    if len(seeds) > 1:
        values = [first for first, *_ in seeds]
        text += f" ({min(values):{form}} to {max(values):{form}})"
    return text


def cells(runs: Iterable[Figures]) -> dict[str, dict[str, str]]:
    """The rows of a table as text; runs: of one setting, with as many seeds."""
    first, *others = runs
    return {label: {head: told(head, [values, *(other[label][head] for other in others)])
                    for head, values in row.items() if all(head in other[label] for other in others)}
            for label, row in first.items()}


def fill(page: str, tables: dict[str, dict[str, Any]]) -> str:
    """A page with its tables written anew. A table stands between the lines `<!-- results NAME | head | head -->`,
    which says its columns, and `<!-- end -->`. UserError where it has no such column.
    """
    def table(found: re.Match) -> str:
        opening, name, heads, end = found.groups()
        if name not in tables:
            return f"{opening}Not measured yet: `python results.py {name}`.\n{end}"
        heads, stored = [head.strip() for head in heads.split("|")], tables[name]
        rows = stored["rows"]
        if unknown := set(heads) - {head for row in rows.values() for head in row}:
            raise UserError(f"the table {name} has no column {', '.join(sorted(unknown))}, which a page asks for")
        lines = [["", *heads], ["---"] * (len(heads) + 1),
                 *([label, *(row.get(head, "") for head in heads)] for label, row in rows.items())]
        source = f"By `python results.py {name}` at {stored['commit']}, {stored['date']}, on {stored['machine']}.\n"
        return opening + source + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n" + end
    return MARKED.sub(table, page)
