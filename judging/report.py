"""What evaluate.py and ablation.py report: rows of measures as a table, as JSON, and as a figure of strips."""
import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from judging.metrics import Images
from running import figures
from running.files import atomic

# a measure's name to the head of its column and the format of its numbers
COLUMNS = {"bits_per_image": ("bits/image", ".1f"), "bits_per_hidden_code": ("bits/hidden", ".2f"),
           "mse": ("MSE", ".5f"), "psnr": ("PSNR", ".2f"),
           "ssim": ("SSIM", ".4f"), "frechet": ("Frechet", ".2f"), "precision": ("precision", ".3f"),
           "recall": ("recall", ".3f"), "class_accuracy": ("class", ".1%"), "distinct": ("distinct", ".1%"),
           "seconds": ("seconds", ".1f"),
           "nearest": ("nearest", ".2f"), "fid": ("FID", ".2f"), "inception_score": ("IS", ".2f")}
# the measures that the figure names
IN_FIGURE = ("bits_per_image", "bits_per_hidden_code", "frechet", "class_accuracy", "distinct")


class Row(NamedTuple):
    """A row of a report: a set of images and what was measured of it, by the names in COLUMNS."""

    images: Images
    measures: dict[str, float]


class Progress:
    """A line that names the part of a script that runs, and estimates the time until all of its parts are done.

    costs: how long each part takes, by name, relative to the others; how fast they go is taken from those done.
    """

    def __init__(self, costs: dict[str, float]):
        self.costs = costs
        self.bar = tqdm(total=sum(costs.values()), smoothing=0, leave=False, disable=None,
                        bar_format="{desc}: {percentage:.0f}% of the whole, {elapsed} gone, about {remaining} left")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def run(self, name: str, make: Callable[[], Any]) -> Any:
        """Do a part and return what it makes."""
        self.bar.set_description_str(f"{list(self.costs).index(name) + 1} of {len(self.costs)}, {name}")
        made = make()
        self.bar.update(self.costs[name])
        return made

    def rows(self, plan: dict[str, Callable[[], Row]]) -> dict[str, Row]:
        """The rows of a plan, made one after the other."""
        return {name: self.run(name, make) for name, make in plan.items()}


def write_report(rows: dict[str, Row], shown: Tensor, args: argparse.Namespace, stem: str, title: str,
                 **facts: Any) -> None:
    """Print rows as a table, and write `stem`.json and `stem`.png into OUTPUT_DIR.

    shown: indices of the images of a row to show. facts: what the JSON says beside the constants and the rows.
    """
    measures = {name: row.measures for name, row in rows.items()}
    print(table(measures))
    output = Path(args.OUTPUT_DIR)
    with atomic(output / f"{stem}.json") as file:
        file.write(json.dumps({**facts, "constants": vars(args), "rows": measures}, indent=1).encode())
    figures.save_strips({caption(name, row.measures): row.images(shown) for name, row in rows.items()}, title,
                        output / f"{stem}.png")
    print(f"wrote {output / stem}.json and {output / stem}.png")


def table(rows: dict[str, dict[str, float]]) -> str:
    """Rows as aligned text, with the columns that any of them has."""
    present = [name for name in COLUMNS if any(name in row for row in rows.values())]
    lines = [["", *(COLUMNS[name][0] for name in present)]]
    lines += [[title, *(format(row[name], COLUMNS[name][1]) if name in row else "-" for name in present)]
              for title, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)


def caption(name: str, measures: dict[str, float]) -> str:
    """A row's name, and below it its most telling measures."""
    told = [f"{COLUMNS[key][0]} {measures[key]:{COLUMNS[key][1]}}" for key in IN_FIGURE if key in measures]
    return f"{name}\n{', '.join(told)}"
