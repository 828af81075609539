"""What evaluate.py and ablation.py report: rows of measures as a table, as JSON, and as a figure of strips."""
import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from judging.metrics import Images
from running import figures
from running.files import atomic
from running.progress import Bar


class Column(NamedTuple):
    """How a measure is shown."""

    head: str
    form: str         # the format of its numbers
    better: str       # "lower" or "higher" values; "" where neither is
    note: str         # what it measures, for report.html


COLUMNS = {
    "bits_per_image": Column("bits/image", ".1f", "lower", "of the test split's codes under the prior, given the class "
                             "where it learnt classes; of the VAE, the divergence of its posterior from its prior"),
    "bits_per_hidden_code": Column("bits/hidden", ".2f", "lower", "of a masked prior, which has no exact likelihood: "
                                   "the mean bits of a hidden code of the test split given the rest, where a mask "
                                   "hides 64% of the codes on average; not to be compared with bits/image"),
    "mse": Column("MSE", ".5f", "lower", "mean squared error of pixels clipped to [0, 1], over the test split"),
    "psnr": Column("PSNR", ".2f", "higher", "of the mean MSE, in dB"),
    "ssim": Column("SSIM", ".4f", "higher", "structural similarity, mean over the first 1,000 test images"),
    "kid": Column("KID", ".2f", "lower", "kernel distance to the test images, times 1,000, in features of "
                  "EfficientNet-Lite1, trained on ImageNet (FEATURES imagenet), or of a classifier of these classes: "
                  "about 0 for images of the same distribution, however few they are; no KID of a paper, which is of "
                  "another network"),
    "kid_error": Column("+-", ".2f", "", "standard error of the kernel distance"),
    "frechet": Column("Fréchet", ".2f", "lower", "distance of Gaussians fitted to the same features: the fewer the "
                      "images, the larger, so that of the real images, half as many, is about twice too large; no FID "
                      "of a paper"),
    "precision": Column("precision", ".3f", "higher", "share of the images on the manifold of the test images, in the "
                        "same features"),
    "recall": Column("recall", ".3f", "higher", "share of the test images on the manifold of these images: low where "
                     "variety is lost"),
    "class_accuracy": Column("class", ".1%", "higher", "share that the classifier gives the class asked for"),
    "distinct": Column("distinct", ".1%", "higher", "share of different grids of codes"),
    "seconds": Column("seconds", ".1f", "lower", "time of drawing the row's grids"),
    "nearest": Column("nearest", ".2f", "", "mean distance of the first 1,000 to the nearest training image: far "
                      "below that of reconstructions of test images means memorised samples"),
    "fid": Column("FID", ".2f", "lower", "Fréchet distance in the features of an Inception network"),
    "inception_score": Column("IS", ".2f", "higher", "Inception score"),
}
# the measures that the figure names
IN_FIGURE = ("bits_per_image", "bits_per_hidden_code", "kid", "class_accuracy", "distinct")


class Row(NamedTuple):
    """A row of a report: a set of images and what was measured of it, by the names in COLUMNS."""

    images: Images
    measures: dict[str, float]


def make_rows(plan: dict[str, Callable[[], Row]]) -> dict[str, Row]:
    """The rows of a plan, made one after the other; a progress line names the one that is made."""
    bar = Bar(plan.items(), bar_format="{desc}, {elapsed} since the start")
    rows = {}
    for number, (name, make) in enumerate(bar, start=1):
        bar.set_description_str(f"row {number} of {len(plan)}, {name}")
        rows[name] = make()
    return rows


def find_doubts(rows: dict[str, dict[str, float]], without_prior: Iterable[str]) -> list[str]:
    """Why a distance of these rows is not to be read, a sentence each.

    rows: the real images, one half against the other, then the VQ-VAE's reconstructions, then others. without_prior:
    the names of those that no prior made.
    """
    (_, floor), (copies, near), *others = rows.items()
    samples = [name for name, row in others if "mse" not in row]
    doubts = []
    for key, least, why in (("kid", 2 * max(floor["kid"], 2 * floor["kid_error"]), f" +- {floor['kid_error']:.2f}"),
                            ("frechet", floor["frechet"], ", as it grows where images are few")):
        head, form, nearest = COLUMNS[key].head, COLUMNS[key].form, min(samples, key=lambda name: rows[name][key])
        if before := [name for name in without_prior if rows[name][key] < near[key]]:
            doubts.append(f"{head} puts {before[0]}, which no prior made ({rows[before[0]][key]:{form}}), before "
                          f"{copies} ({near[key]:{form}}): do not read it; the features do not see these images, or "
                          f"the reconstructions are poor")
        elif rows[nearest][key] < least:
            doubts.append(f"{head} of one half of the real images against the other is {floor[key]:{form}}{why}, and "
                          f"of {nearest} {rows[nearest][key]:{form}}: too near to rank rows")
    return doubts


def write_report(rows: dict[str, Row], shown: Tensor, args: argparse.Namespace, stem: str, title: str,
                 without_prior: Iterable[str], **facts: Any) -> None:
    """Print rows as a table, and write `stem`.json and `stem`.png into OUTPUT_DIR.

    shown: indices of the images of a row to show. without_prior: see `find_doubts`. facts: what the JSON says beside
    the constants and the rows.
    """
    measures = {name: row.measures for name, row in rows.items()}
    facts["doubts"] = find_doubts(measures, without_prior)
    print("\n".join([table(measures), *facts["doubts"]]))
    output = Path(args.OUTPUT_DIR)
    with atomic(output / f"{stem}.json") as file:
        file.write(json.dumps({**facts, "constants": vars(args), "rows": measures}, indent=1).encode())
    figures.save_strips({caption(name, row.measures): row.images(shown) for name, row in rows.items()}, title,
                        output / f"{stem}.png")
    print(f"wrote {output / stem}.json and {output / stem}.png")


def present(rows: dict[str, dict[str, float]]) -> dict[str, Column]:
    """The columns that any row has, by name."""
    return {name: column for name, column in COLUMNS.items() if any(name in row for row in rows.values())}


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows as aligned text, with the columns that any of them has."""
    columns = present(rows)
    lines = [["", *(column.head for column in columns.values())]]
    lines += [[title, *(format(row[name], column.form) if name in row else "-" for name, column in columns.items())]
              for title, row in rows.items()]
    return aligned(lines)


def aligned(lines: list[list[str]]) -> str:
    """Lines of as many cells each as text, the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def caption(name: str, measures: dict[str, float]) -> str:
    """A row's name, and below it its most telling measures."""
    told = [f"{COLUMNS[key].head} {measures[key]:{COLUMNS[key].form}}" for key in IN_FIGURE if key in measures]
    return f"{name}\n{', '.join(told)}"
