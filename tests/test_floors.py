"""A file imports from no floor above its own: the architecture, checked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vaccel

ROOT = Path(vaccel.__file__).parent
FLOORS = [
    ("reference", "ops", "extras", "built", "capture", "deprecated", "out_of_memory", "parallel"),
    ("certify", "proving"),
    ("actions", "cache", "signals"),
    ("models", "planning"),
    ("methods",),
    ("engine",),
    ("experts",),
    ("integrations",),
    ("api", "denoiser", "continuous", "joint_forward"),
    (
        "calibrate",
        "distill",
        "evaluate",
        "explain",
        "exports",
        "batch",
        "cluster",
        "demo",
        "app",
        "serving",
        "cli",
        "__main__",
    ),
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def imports(path: Path) -> set[str]:
    """The rooms of vaccel that a file imports."""
    parts = ("vaccel", *path.relative_to(ROOT).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = list(parts[: -node.level]) if node.level else []
        base += (node.module or "").split(".") if node.module else []
        targets = [base] if len(base) > 1 else [[*base, alias.name] for alias in node.names]
        found |= {t[1] for t in targets if len(t) > 1 and t[0] == "vaccel"}
    return found & FLOOR.keys()


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    if own == "__init__":
        return
    assert own in FLOOR, f"{path} belongs to no floor"
    for other in imports(path):
        assert FLOOR[other] <= FLOOR[own], f"{own} imports from {other}, above it"


def test_methods_know_no_model_library_or_device():
    for path in (ROOT / "methods").glob("*.py"):
        text = path.read_text()
        for word in ("diffusers", "cuda", "Transformer3D"):
            assert word not in text, f"{path.name} mentions {word}"
    for path in (ROOT / "engine").glob("*.py"):
        for name in ("DirectionMagnitude", "SRDiffusion", "TeaCache", "DualExpert", "diffusers"):
            assert name not in path.read_text(), f"{path.name} mentions {name}"


def test_the_engine_has_heard_of_no_method_action_store_or_signal():
    from vaccel.actions import ACTIONS
    from vaccel.cache import STORES
    from vaccel.methods.base import _METHODS
    from vaccel.signals import SIGNALS

    registered = [*ACTIONS.values(), *STORES.values(), *SIGNALS.values(), *_METHODS.values()]
    names = {kind.__name__ for kind in registered} - {"Method", "Expert", "Output", "Small", "Full", "Latents"}
    for path in (ROOT / "engine").glob("*.py"):
        if path.name == "trace.py":  # which turns into a schedule on request
            continue
        words = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        assert not words & names, f"{path.name} names {words & names}"


def test_one_file_an_action_a_store_a_signal():
    for room, base, registry in (
        ("actions", "base", "ACTIONS"),
        ("cache", "store", "STORES"),
        ("signals", "signal", "SIGNALS"),
    ):
        kinds = getattr(__import__(f"vaccel.{room}.{base}", fromlist=[registry]), registry).values()
        homes = [kind.__module__ for kind in kinds]
        assert len(set(homes)) == len(homes) > 5
        assert all(home.startswith(f"vaccel.{room}.") for home in homes)
