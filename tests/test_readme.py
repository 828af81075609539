"""The README's promises: every command in it exists and parses, its constants have the defaults that it says."""
import ast
import importlib
import re
import shlex

import pytest
from conftest import ROOT

import cli

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
COMMANDS = [command.split("  #")[0].strip() for block in BLOCKS for line in block.splitlines()
            for command in line.split("&&") if command.strip()]


def test_the_two_lines_are_there():
    assert "pip install -r requirements.txt && python train_vqvae.py && python train_pixelcnn.py && " \
           "python generate.py" in README
    assert "pip install -r requirements.txt && python -m pytest" in README


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_parses(command):
    words = shlex.split(command)
    if words[0] in ("pip", "git", "cd"):
        assert "requirements.txt" not in words or (ROOT / "requirements.txt").exists()
        return
    if words[0] == "torchrun":
        words = ["python", *words[words.index(next(word for word in words if word.endswith(".py"))):]]
    assert words[0] == "python"
    if words[1] == "-m":
        assert words[2] == "pytest" and all((ROOT / word.split("::")[0]).exists() for word in words[3:]
                                            if word.startswith("tests"))
        return
    assert (ROOT / words[1]).exists()
    cli.parse(vars(importlib.import_module(words[1].removesuffix(".py"))), words[2:])


def test_the_table_of_constants_has_the_defaults():
    """Rows are `| NAME | default | meaning |` under a heading that names the script."""
    found = {}
    for section in re.split(r"^#+ ", README, flags=re.M):
        for name, default in re.findall(r"^\| `([A-Z_]+)` \| `([^`]+)` \|", section, re.M):
            found.setdefault(re.search(r"`(\w+)\.py`", section.splitlines()[0]).group(1), {})[name] = default
    assert found
    for script, rows in found.items():
        module = importlib.import_module(script)
        for name, default in rows.items():
            assert getattr(module, name) == ast.literal_eval(default), (script, name)


@pytest.mark.parametrize("page", ["README.md", "pretrained/README.md", "docs/RESULTS.md", "docs/DEVELOPMENT.md"])
def test_every_file_that_a_page_shows_is_there(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).is_file(), target


def test_every_picture_is_shown():
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/RESULTS.md"))
    assert [path.name for path in (ROOT / "pictures").iterdir() if f"pictures/{path.name}" not in pages] == []
