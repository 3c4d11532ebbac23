"""Runs the notebooks and stores what they print and show in them: `python docs/run_notebooks.py [NAME ...]`.

With the outputs goes a digest of the code that made them, by which the tests notice a notebook whose code was changed
and that was not run again.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
KEY = "rs_biformer"
_WARNING = re.compile(r"^.*Warning: .*\n  .*\n", re.MULTILINE)
_SECONDS = 1800  # of a cell


def digest(sources: Iterable[str]) -> str:
    """Of the code of a notebook, cell by cell: the text between the code may change without another run."""
    return hashlib.sha256(json.dumps(list(sources)).encode()).hexdigest()


def code(notebook: nbformat.NotebookNode) -> list[str]:
    """The source of each cell of code."""
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def told(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """An output without what is of the machine: two lines for each warning, the text of what is HTML as well."""
    if "text/html" in output.get("data", {}):
        output.data.pop("text/plain", None)
    if output.get("name") == "stderr":
        output.text = _WARNING.sub("", output.text).lstrip("\n")
    return output


def run(path: Path) -> None:
    """Run a notebook from top to bottom in a new kernel and store its outputs; one that fails stays as it was."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3", record_timing=False).execute()
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in map(told, cell.outputs) if output.get("text") != ""]
    # Of the kernel only what does not change with every Python.
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata[KEY] = {"outputs_of": digest(code(notebook))}
    nbformat.write(notebook, path)


def main() -> None:
    """Those that are named, or all."""
    for path in [NOTEBOOKS / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(path.name, flush=True)
        run(path)


if __name__ == "__main__":
    main()
