"""loading/tables.py: a table beside the images gives their classes, where it names nearly all of them."""
import csv
import json

import pytest
from images import noise, write

import dataset
from loading.reading import Reading

CLASSES = ["cat", "dog"]


def folder(tmp_path, count=40, place=""):
    """A folder of images, of which the even ones are cats."""
    for i in range(count):
        (tmp_path / "images" / place).mkdir(parents=True, exist_ok=True)
        write(tmp_path / "images" / place / f"{i:03}.png", noise(8, 8))
    return tmp_path / "images"


def table(path, names, columns=("file_name", "label"), labels=None, more=()):
    rows = [dict(zip(columns, (name, (labels or CLASSES)[i % len(labels or CLASSES)]))) | dict.fromkeys(more, i)
            for i, name in enumerate(names)]
    with open(path, "w", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)


def load(root, tmp_path, **reading):
    return dataset.load(str(root), str(tmp_path / "data"), 0, Reading(**reading))


@pytest.mark.parametrize("name, form, columns, more", [
    ("metadata.csv", "{:03}.png", ("file_name", "label"), ()), ("train.csv", "{:03}", ("id", "class"), ("age", "site")),
    ("metadata.jsonl", "{:03}.png", ("file_name", "label"), ("text",)), ("labels.tsv", "{:03}.png", ("image", "y"), ()),
    ("a.csv", "{:03}.png", ("path", "diagnosis"), ())])
def test_a_table_gives_the_classes(tmp_path, name, form, columns, more):
    root = folder(tmp_path)
    table(root / name, [form.format(i) for i in range(39)], columns, more=more)  # one image is not named
    data = load(root, tmp_path)
    assert data.class_names == CLASSES and sum(len(split.images) for split in data[:3]) == 39
    told = f"classes from {name} (files by {columns[0]!r}, classes by {columns[1]!r})"
    assert any(told in note for note in data.notes)
    odd = {f"{i:03}.png" for i in range(1, 40, 2)}
    assert [label == 1 for label in data.test.labels.tolist()] == [file in odd for file in data.test_files]
    assert load(root, tmp_path, classes="none").class_names == []


def test_a_table_of_each_split_and_paths_below_it(tmp_path):
    for side in ("train", "test"):
        root = folder(tmp_path, 20, f"{side}/images")
        table(root / side / "metadata.csv", [f"images/{i:03}.png" for i in range(20)])
    data = load(root, tmp_path)
    assert data.class_names == CLASSES and len(data.test.images) == 20 and set(data.test.labels.tolist()) == {0, 1}


def test_a_changed_table_is_read_again(tmp_path):
    root = folder(tmp_path)
    table(root / "labels.csv", [f"{i:03}.png" for i in range(40)])
    assert load(root, tmp_path).class_names == CLASSES
    table(root / "labels.csv", [f"{i:03}.png" for i in range(40)], labels=["left", "right"])
    assert load(root, tmp_path).class_names == ["left", "right"]


@pytest.mark.parametrize("what", ["few", "no label", "all different", "damaged", "class folders"])
def test_a_table_that_is_no_table_of_classes_is_ignored(tmp_path, what):
    root = folder(tmp_path, place="a" if what == "class folders" else "")
    names = [f"{i:03}.png" for i in range(20 if what == "few" else 40)]
    columns = ("file_name", "width") if what == "no label" else ("file_name", "label")
    table(root / "metadata.csv", names, columns, [str(i) for i in range(40)] if what == "all different" else None,
          ("height",))
    if what == "damaged":
        (root / "metadata.csv").write_bytes(b"\xff\x00" * 50)
    if what == "class folders":
        folder(tmp_path, place="b")
    assert load(root, tmp_path).class_names == (["a", "b"] if what == "class folders" else [])
