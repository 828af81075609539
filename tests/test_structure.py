"""What the files import and what the pages name: modules.py reads alone, scripts are imported by nobody, no circles."""
import ast
import re
import sys

import pytest
from conftest import ROOT

SOURCES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.glob("*.py"))}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def imported(tree: ast.AST) -> set[str]:
    """The first names of the modules that a file imports, at its top level or inside a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            names.add(node.module.split(".")[0])
    return names


def is_script(tree: ast.Module) -> bool:
    """Whether a file hands its main function to cli.run where it is run."""
    return any(isinstance(node, ast.Call) and [ast.unparse(argument) for argument in node.args] == ["main", "globals()"]
               for node in ast.walk(tree))


IMPORTS = {name: imported(tree) for name, tree in SOURCES.items()}
SCRIPTS = {name for name, tree in SOURCES.items() if is_script(tree)}


def test_modules_reads_alone():
    assert IMPORTS["modules"] <= {"torch"} | set(sys.stdlib_module_names)


def test_no_file_imports_a_script():
    assert {"train_vqvae", "train_pixelcnn", "generate"} <= SCRIPTS
    assert {name: found for name in SOURCES if (found := IMPORTS[name] & SCRIPTS)} == {}


def test_imports_form_no_circle():
    left = {name: IMPORTS[name] & SOURCES.keys() for name in SOURCES}
    while ready := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in ready}
    assert not left, f"these files import each other, or a file that does: {', '.join(left)}"


def test_requirements_are_what_the_files_import():
    """Nothing is imported that requirements.txt does not name (pillow is PIL, scikit-image is skimage)."""
    named = set(re.findall(r"^([a-zA-Z-]+)", (ROOT / "requirements.txt").read_text(), re.M))
    named |= {"PIL"} if "pillow" in named else set()
    named |= {"skimage"} if "scikit-image" in named else set()
    for name, found in IMPORTS.items():
        unknown = found - named - SOURCES.keys() - set(sys.stdlib_module_names)
        assert not unknown, f"{name}.py imports {', '.join(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_and_picture_that_a_page_names_is_there(page):
    """Pictures and links from the page's own place, files in backticks from the root or tests/."""
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    for name in re.findall(r"`((?:\w+/)*[\w.]+\.(?:py|ipynb|md|txt|toml|ini))`", text):
        if not any((place / name).exists() for place in (ROOT, ROOT / "tests", ROOT / "docs")):
            missing.append(name)
    assert not missing, f"{page.name} names {', '.join(missing)}"


def test_one_file_alone_runs_another():
    assert [path.name for path in sorted(ROOT.glob("*.py")) if "runpy" in path.read_text(encoding="utf-8")] == [
        "dataset.py"]  # as `python dataset.py` it looks at a data set; imported it runs nothing


def test_the_map_names_every_file():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    section = page.split("## The files")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)\.py` \| (.+) \|$", section, re.M)
    assert sorted(name for name, _ in rows) == sorted(SOURCES), "the map has a row for each file at the top level"
