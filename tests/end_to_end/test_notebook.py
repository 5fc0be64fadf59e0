"""The notebook of the docs runs, and its saved outputs are those of a run.

Its outputs are those of `jupyter execute --inplace docs/notebook.ipynb`, but for what libraries said on standard error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from ray_cluster import start_cluster

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "notebook.ipynb"


def shown(notebook: Any) -> list[list[str]]:
    """Return the output types of each cell's result."""
    outputs = [cell.get("outputs", []) for cell in notebook.cells]
    return [
        [kind for one in cell if one.output_type == "execute_result" for kind in sorted(one.data)] for cell in outputs
    ]


def plain(notebook: Any, number: int) -> str:
    """Return the result of a code cell as text."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return next(str(one.data["text/plain"]) for one in cells[number].outputs if one.output_type == "execute_result")


@pytest.mark.nightly
@pytest.mark.ray
def test_notebook_runs_and_shows_its_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = nbformat.read(NOTEBOOK, 4)
    run = nbformat.read(NOTEBOOK, 4)
    with start_cluster(num_cpus=2) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        NotebookClient(run, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert shown(run) == shown(kept)
    names, exit_code = plain(run, 0), plain(run, 1)
    assert names == plain(kept, 0) and exit_code == "0"
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["notebook"]
    assert "4 rows: 4 done" in plain(run, 2)
    said = [one.data["text/plain"] for one in run.cells[4].outputs if one.output_type == "display_data"]
    assert said[0].startswith("sweep notebook: 4 trials, 4 remaining"), "Tune has cleared what was shown before"
