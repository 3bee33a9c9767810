"""The notebook: whole, without outputs, and run from its first cell to its last on the shipped family."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PLACE = Path(__file__).resolve().parent.parent / "notebooks" / "vaccel.ipynb"


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The notebook with what its cells printed and showed."""
    folder, patch = tmp_path_factory.mktemp("notebook"), pytest.MonkeyPatch()
    for name, value in {"MODEL": "demo", "STEPS": "8", "CALIBRATE": "1"}.items():
        patch.setenv(f"VACCEL_NOTEBOOK_{name}", value)
    for name in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        patch.setenv(name, str(folder / name.lower()))
    notebook = nbformat.read(PLACE, as_version=4)
    notebook.metadata.kernelspec.name = "this"
    kernel = folder / "kernels" / "this"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(
        json.dumps({"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                             "display_name": "this", "language": "python"})
    )  # fmt: skip
    patch.setenv("JUPYTER_PATH", str(folder))
    try:
        yield NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    finally:
        patch.undo()


def printed(notebook) -> str:
    return "".join(o.text for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "stream")


@pytest.mark.fast
def test_it_is_kept_without_outputs():
    notebook = nbformat.read(PLACE, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_it_runs(ran):
    said = printed(ran)
    assert "WanPipeline" in said
    assert re.search(r"\d times as fast", said)
    assert "bit for bit the full run: True" in said


def test_it_shows_clips_and_the_trace(ran):
    shown = [o.data for cell in ran.cells for o in cell.get("outputs", ()) if o.output_type == "display_data"]
    html = [d["text/html"] for d in shown if "text/html" in d]
    assert [page.count("<figure") for page in html] == [3, 0, 3, 2]
    assert [page.count("data:image/png;base64,") for page in html] == [3, 0, 3, 2]
    assert html[1].count("<svg") == 1


def test_a_fidelity_is_asked_for(ran):
    assert "35" in printed(ran).partition("times as fast")[2], "Auto says what was asked of it"
