"""The folder that ComfyUI lists: its nodes without ComfyUI, and the workflow beside them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import comfyui_double as comfy
import pytest
import torch
from comfyui_tiny import model, run

from vaccel.integrations.comfyui import Choice, patched

FOLDER = Path(__file__).resolve().parent.parent / "integrations" / "comfyui"


@pytest.fixture(scope="module")
def nodes():
    """Loaded as ComfyUI does it, under a name of its own."""
    spec = importlib.util.spec_from_file_location(
        "custom_node_vaccel", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_comfyui_asks_of_a_node(nodes):
    assert nodes.NODE_CLASS_MAPPINGS.keys() == nodes.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for kind in nodes.NODE_CLASS_MAPPINGS.values():
        inputs = kind.INPUT_TYPES()
        json.dumps(inputs)  # the browser is told of them
        assert callable(getattr(kind(), kind.FUNCTION))
        assert all(isinstance(name, str) for name in kind.RETURN_TYPES)


@comfy.needs_k_diffusion
def test_the_nodes_in_a_row(nodes):
    accelerate, trace = (nodes.NODE_CLASS_MAPPINGS[name]() for name in ("VaccelAccelerate", "VaccelTrace"))
    plain, latent = model(), {"samples": torch.zeros(1)}
    (fast,) = accelerate.accelerate(plain, "Forecast", "computed calls", 7.0, 0.0, 1.0, "")
    assert torch.equal(run(fast), run(patched(plain, Choice("Forecast", "computed calls", 7.0))))
    shown = trace.show(fast.clone(), latent)
    assert shown["result"][0] is latent
    assert shown["ui"]["text"] == (shown["result"][1],)
    assert "computed 7 of 14 calls, 14 of 28 forwards" in shown["result"][1]
    assert "predicted: " in shown["result"][1]
    assert "does not come from" in trace.show(plain, latent)["result"][1]
    assert trace.IS_CHANGED(model=fast, latent=latent) != trace.IS_CHANGED(model=fast, latent=latent)


def test_a_wrong_setting_is_said_at_the_node(nodes):
    valid = nodes.NODE_CLASS_MAPPINGS["VaccelAccelerate"].VALIDATE_INPUTS
    assert valid("Auto", "speed", 2.0, 0.0, 1.0) is True
    assert valid("Auto", "speed", None, 0.0, 1.0) is True  # it comes over a link
    assert "Auto takes" in valid("Auto", "threshold", 2.0, 0.0, 1.0)
    assert "1 to 50" in valid("Forecast", "speed", 0.2, 0.0, 1.0)


def test_nothing_of_comfyui_is_imported():
    code = (
        "import sys; import vaccel.integrations.comfyui; "
        "assert not [m for m in sys.modules if m.split('.')[0] in ('comfy', 'diffusers', 'transformers')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_workflow_is_whole(nodes):
    workflow = json.loads((FOLDER / "example_workflows" / "vaccel.json").read_text())
    known = {node["id"]: node for node in workflow["nodes"]}
    for number, source, out, target, into, kind in workflow["links"]:
        assert known[source]["outputs"][out]["type"] == kind
        assert number in known[source]["outputs"][out]["links"]
        assert known[target]["inputs"][into]["type"] in (kind, "*")
        assert known[target]["inputs"][into]["link"] == number
    ours = [node for node in known.values() if node["type"] in nodes.NODE_CLASS_MAPPINGS]
    assert len(ours) == 2
    for node in ours:
        kind = nodes.NODE_CLASS_MAPPINGS[node["type"]]
        inputs = {**kind.INPUT_TYPES()["required"], **kind.INPUT_TYPES().get("optional", {})}
        slots = [name for name, given in inputs.items() if given[0] in ("MODEL", "LATENT")]
        assert [each["name"] for each in node["inputs"]] == slots
        assert [each["type"] for each in node["outputs"]] == list(kind.RETURN_TYPES)
        widgets = dict(zip([name for name in inputs if name not in slots], node["widgets_values"], strict=True))
        if widgets:
            assert kind.VALIDATE_INPUTS(**widgets) is True
