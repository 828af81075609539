"""The pages' promises: every command parses, every picture is shown, and the README is short enough to be read."""
import importlib
import re
import shlex

import pytest
from conftest import ROOT

from running import cli

PAGES = ("README.md", "docs/DATA.md", "docs/RUNS.md", "docs/DEVELOPMENT.md", "pretrained/README.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """The blocks of shell commands of a page."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


COMMANDS = {command.strip() for page in PAGES for block in blocks(page) for line in block.splitlines()
            for command in line.split("&&") if command.strip()}


def test_the_two_lines_are_there():
    """.ci/run takes the lines of the section that begin with pip, one in a block of its own each."""
    section = README.split("\n## Start\n")[1]
    after = re.search(r"^## (.)", section, re.M)
    assert after[1] != "S", ".ci/run reads on to the next section whose first letter is not S"
    assert re.findall(r"^```sh\n(.*?)^```", section[:after.start()], re.M | re.S) == [
        "pip install -r requirements.txt && python train_vqvae.py && python train_pixelcnn.py && python generate.py\n",
        "pip install -r requirements.txt && python -m pytest\n"]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_parses(command):
    words = shlex.split(command)
    if words[0] == "pip":
        assert (ROOT / words[-1]).exists()
        return
    if words[0] == "ruff":
        return
    if words[0] == "torchrun":
        words = ["python", *words[words.index(next(word for word in words if word.endswith(".py"))):]]
    assert words[0] == "python"
    if words[1] == "-m":
        assert words[2] == "pytest" and all((ROOT / word).exists() for word in words[3:] if word.startswith("tests"))
        return
    assert (ROOT / words[1]).exists()
    if words[1].startswith("tests/"):
        return
    name, flags = words[1].removesuffix(".py"), words[2:]
    if name == "dataset":  # its constants are elsewhere, and a data set may stand before its flags
        name, flags = "loading.look", ["--dataset", *flags]
    cli.parse(vars(importlib.import_module(name)), flags)


def test_the_lines_for_own_code_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    [code] = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
    exec(code, found := {})
    assert found["copies"].shape == (2, 3, 64, 64) and found["new"].shape == (4, 3, 64, 64)
    z_q = found["vqvae"].quantizer.look_up(found["codes"])
    assert found["decoder"].module()(z_q).clamp(0, 1).equal(found["copies"])


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 220


def test_every_picture_is_shown():
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/RESULTS.md"))
    assert [path.name for path in (ROOT / "pictures").iterdir() if f"pictures/{path.name}" not in pages] == []
