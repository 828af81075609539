"""What the files import and what the pages name: modules.py reads alone, folders import one way, no circles."""
import ast
import re
import sys

import pytest
from conftest import ROOT

FOLDERS = ("running", "loading", "training", "priors", "judging")
# A file imports from its own step or those before it. dataset.py stands with loading/: loading/look.py is its script.
STEPS = (("modules",), ("running",), ("loading", "dataset"), ("training",), ("priors",), ("judging",))
LIBRARIES = {"modules", "dataset"}  # at the top level; all else there is a script
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
         for folder in (ROOT, *(ROOT / name for name in FOLDERS)) for path in sorted(folder.glob("*.py"))
         if path.name != "__init__.py"}
SOURCES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
PAGES = [ROOT / "README.md", ROOT / "pretrained" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
STDLIB = set(sys.stdlib_module_names)


def imported(tree: ast.AST) -> set[str]:
    """The modules that a file imports, at its top level or inside a function: "training.loop", "torch", ..."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & SOURCES.keys()
            names |= inside or {node.module}
    return {name if name in SOURCES else name.split(".")[0] for name in names}


def as_library(tree: ast.Module) -> ast.Module:
    """A file without what runs only where it is the script."""
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    return ast.Module(body, [])


def is_script(tree: ast.Module) -> bool:
    """Whether a file hands its main function to `run` of running/cli.py."""
    return any(isinstance(node, ast.Call) and [ast.unparse(argument) for argument in node.args] == ["main", "globals()"]
               for node in ast.walk(tree))


def step(name: str) -> int:
    """The number of a file's step; that of scripts is the last."""
    first = name.split(".")[0]
    return next((number for number, names in enumerate(STEPS) if first in names), len(STEPS))


IMPORTS = {name: imported(tree) for name, tree in SOURCES.items()}
NEEDS = {name: imported(as_library(tree)) & SOURCES.keys() for name, tree in SOURCES.items()}
SCRIPTS = {name for name in SOURCES if "." not in name} - LIBRARIES


def test_modules_reads_alone():
    assert IMPORTS["modules"] <= {"torch"} | STDLIB


def test_the_top_level_holds_scripts():
    """Each ends in a call of cli.run, and imports running.start before all else."""
    assert {"train_vqvae", "train_pixelcnn", "generate"} <= SCRIPTS
    assert [name for name in sorted(SCRIPTS) if not is_script(SOURCES[name])] == []
    for name in sorted(SCRIPTS):
        first = next(node for node in SOURCES[name].body if isinstance(node, (ast.Import, ast.ImportFrom)))
        assert ast.unparse(first) == "import running.start", name


def test_no_file_imports_a_script():
    assert {name: found for name in SOURCES if (found := IMPORTS[name] & SCRIPTS)} == {}


def test_folders_import_one_way():
    late = {name: sorted(found) for name in SOURCES
            if (found := {other for other in NEEDS[name] if step(other) > step(name)})}
    assert late == {}


def test_imports_form_no_circle():
    left = dict(NEEDS)
    while ready := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in ready}
    assert not left, f"these files import each other, or a file that does: {', '.join(left)}"


def test_requirements_are_what_the_files_import():
    """Nothing is imported that requirements.txt does not name (pillow is PIL, scikit-image is skimage, - is _)."""
    named = set(re.findall(r"^([a-zA-Z0-9-]+)", (ROOT / "requirements.txt").read_text(), re.M))
    named |= {"PIL"} if "pillow" in named else set()
    named |= {"skimage"} if "scikit-image" in named else set()
    named |= {name.replace("-", "_") for name in named}
    for name, found in IMPORTS.items():
        unknown = found - named - SOURCES.keys() - STDLIB
        assert not unknown, f"{name} imports {', '.join(unknown)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_picture_that_a_page_names_is_there(page):
    """Pictures and links from the page's own place, files in backticks from the root."""
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    if page.name != "LOG.md":  # which keeps the names of its time
        named = re.findall(r"`((?:\w+/)*[\w.]+\.(?:py|ipynb|md|txt|toml|ini))`", text)
        missing += [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names {', '.join(missing)}"


def test_the_maps_name_every_file():
    """In the README a line for each file of the top level and for each folder, in docs/DEVELOPMENT.md for its files."""
    found, folder = [], ""
    for page, title in (("README.md", "The files"), ("docs/DEVELOPMENT.md", "The folders")):
        text = (ROOT / page).read_text(encoding="utf-8")
        block = re.search(rf"^## {title}\n.*?^```text\n(.*?)^```", text, re.M | re.S)[1]
        for indent, name, _ in re.findall(r"^( *)(\S+) +(\S.*)$", block, re.M):
            folder = name if name.endswith("/") else folder
            found.append(folder * bool(indent) + name)
    assert sorted(name for name in found if name.endswith("/")) == sorted(2 * [f"{name}/" for name in FOLDERS])
    assert sorted(name for name in found if name.endswith(".py")) == sorted(
        str(path.relative_to(ROOT)) for path in FILES.values())


def test_every_folder_says_what_it_is():
    assert [name for name in FOLDERS if not ast.get_docstring(
        ast.parse((ROOT / name / "__init__.py").read_text(encoding="utf-8")))] == []
