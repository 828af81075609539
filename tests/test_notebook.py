"""tutorial.ipynb runs from top to bottom, and what it shows is right; the committed copy holds its outputs.

`python tests/test_notebook.py` runs it and writes it with the new outputs.
"""
import json
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = ROOT / "tutorial.ipynb"
MOST_BYTES = 1_200_000  # of the committed file, so that web pages show it
FACTS = """
import json
print(json.dumps({
    "equation": torch.equal(distances.argmin(-1), grids), "used": int((counts > 0).sum()), "near": near.item(),
    "bits": bits, "distinct": codes.distinct(new), "upright": upright.mean().item(), "turned": turned.mean().item()}))
"""


def execute(notebook: NotebookNode, directory: Path) -> None:
    """Run the cells in a new kernel whose working directory is `directory`; their outputs go into `notebook`.

    Raises nbclient's CellExecutionError at the first cell that fails.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "IPYTHONDIR": str(directory / "ipython")}  # no settings of the user
    NotebookClient(notebook, timeout=1200, kernel_name="python3", record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(directory)}}).execute(env=environment)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook: NotebookNode) -> list[int]:
    """How many pictures each code cell shows."""
    return [sum("image/png" in output.get("data", {}) for output in cell.outputs) for cell in code_cells(notebook)]


def test_runs_from_top_to_bottom_and_what_it_says_is_so(tmp_path):
    before = {path.name for path in ROOT.iterdir()}
    notebook, committed = (nbformat.read(NOTEBOOK, as_version=4) for _ in range(2))
    notebook.cells.append(nbformat.v4.new_code_cell(FACTS))
    execute(notebook, tmp_path)
    assert {path.name for path in ROOT.iterdir()} <= before | {"__pycache__"}
    *cells, facts = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert pictures(notebook) == [*pictures(committed), 0], "the committed outputs are old: see docs/DEVELOPMENT.md"
    facts = json.loads(facts.outputs[0].text)
    assert facts["equation"] and facts["used"] > 100 and facts["near"] > 0.9
    assert facts["distinct"] == 1
    assert facts["bits"]["uniform codes"] == pytest.approx(343)
    assert list(facts["bits"].values()) == sorted(facts["bits"].values(), reverse=True)
    assert facts["bits"]["prior"] < 120
    assert facts["turned"] > 1.2 * facts["upright"]


def test_the_committed_notebook_holds_its_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run from top to bottom"
    assert sum(pictures(notebook)) >= 12
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type in ("stream", "display_data", "execute_result")
            assert output.get("name") != "stderr", "progress bars are no output to keep"
            text = output.get("text", "") + str({kind: content for kind, content in output.get("data", {}).items()
                                                 if kind != "image/png"})
            assert not re.search(r"(?<![\w.])(/|[A-Z]:\\)\w", text), f"a path of a machine: {text}"
    assert NOTEBOOK.stat().st_size <= MOST_BYTES


def renew() -> None:
    """Run the notebook and write it with what it gave, but for stderr, which has progress bars."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        execute(notebook, Path(directory))
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata.language_info = {"name": "python"}  # not the version that ran it
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    renew()
