"""Runs the notebooks and writes them back with the figures they promise and nothing else: `python notebooks/run.py [FILE…]`.

Kept: pictures, printed text, plain values. Left out: scripts, widget state, timings, and whatever names a machine.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
KEPT = ("image/png", "text/plain")


def execute(notebook: nbformat.NotebookNode, timeout: float = 240.0) -> nbformat.NotebookNode:
    """The notebook after running every cell in a fresh kernel with one torch thread; CellExecutionError where a cell fails."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    env.pop("MPLBACKEND", None)
    client = NotebookClient(
        notebook, timeout=timeout, kernel_name="python3", record_timing=False, store_widget_state=False
    )
    return client.execute(env=env)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy with the promised outputs only."""
    out = nbformat.from_dict(notebook)
    out.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in out.cells:
        cell.metadata = {"tags": cell.metadata.tags} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _kept(output)) is not None]
    return out


def _kept(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    data = {kind: output.data[kind] for kind in KEPT if kind in output.get("data", {})}
    if "image/png" not in data and len(output.get("data", {})) != len(data):
        return None  # the text stands in for a script or a widget
    output.data, output.metadata = data, {k: v for k, v in output.metadata.items() if k in data}
    return output


def main(paths: list[str]) -> None:
    for path in [Path(p) for p in paths] or sorted(HERE.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        nbformat.write(tidy(execute(notebook)), path)
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
