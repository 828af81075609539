"""A table of labels beside the images: metadata.csv or train.csv, with a column of file names and one of labels, or
Hugging Face's metadata.jsonl.
"""
import csv
import json
import os
from collections import Counter
from typing import Any, NamedTuple

from running.cli import flag

SUFFIXES = (".csv", ".tsv", ".jsonl")
LABELS = ("label", "labels", "class", "class_name", "category", "target", "y")  # what the column may be called
ENOUGH = 0.95  # share of the images that the tables must name


class Labels(NamedTuple):
    by_path: dict[str, str]  # the label of every image that is named
    told: str                # a line


def find(root: str, names: list[str]) -> list[str]:
    """The paths of all tables in a folder and in those directly below it that hold images. names: the images."""
    folders = ["", *sorted({name.split("/")[0] for name in names if "/" in name})]
    return [os.path.join(folder, file) for folder in folders for file in sorted(os.listdir(os.path.join(root, folder)))
            if file.lower().endswith(SUFFIXES) and not file.startswith(".")]


def read(root: str, names: list[str]) -> Labels | None:
    """The labels of images, of these paths below root, if tables name nearly all of them; else None."""
    by_path, told = {}, []
    for table in find(root, names):
        folder = f"{os.path.dirname(table)}/" if os.path.dirname(table) else ""
        labels, columns = match(rows_of(os.path.join(root, table)), [name for name in names if name.startswith(folder)],
                                folder)
        if labels:
            by_path |= labels
            told.append(f"{table} (files by {columns[0]!r}, classes by {columns[1]!r})")
    if len(by_path) < ENOUGH * len(names) or 2 * len(set(by_path.values())) > len(by_path):
        return None
    return Labels(by_path, f"classes from {' and '.join(told)}; {flag('CLASSES')} none ignores them")


def rows_of(path: str) -> list[dict[str, Any]]:
    """The rows of a table; none where it cannot be read."""
    try:
        with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
            if path.lower().endswith(".jsonl"):
                return [row for row in map(json.loads, filter(str.strip, file)) if isinstance(row, dict)]
            return list(csv.DictReader(file, delimiter="\t" if path.lower().endswith(".tsv") else ","))
    except (OSError, ValueError, csv.Error):
        return []


def match(rows: list[dict[str, Any]], names: list[str], folder: str) -> tuple[dict[str, str], tuple[str, str]]:
    """The label of each image that rows name, and the columns of names and of labels; {} where there are none.

    A name is the path below the table's folder, the file's name, or that without its suffix, if one image alone has it.
    """
    keys = [(name, key) for name in names for key in dict.fromkeys((
        name.removeprefix(folder), os.path.basename(name), os.path.splitext(os.path.basename(name))[0]))]
    shared = Counter(key for _, key in keys)
    files = {key: name for name, key in keys if shared[key] == 1}
    columns = [column for column in (rows[0] if rows else ()) if isinstance(column, str)]
    by_column = {column: [files.get(str(row.get(column))) for row in rows] for column in columns}
    named = max(columns, key=lambda column: sum(file is not None for file in by_column[column]), default="")
    others = [column for column in columns if column != named]
    labels = [column for column in others if column.strip().lower() in LABELS] or others
    if len(labels) != 1:
        return {}, ("", "")
    found = {file: str(row.get(labels[0])) for file, row in zip(by_column[named], rows) if file is not None}
    return found, (named, labels[0])
