"""A file imports from no floor above its own: the architecture, checked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vaccel

ROOT = Path(vaccel.__file__).parent
FLOORS = [
    ("reference", "ops", "schedules"),
    ("actions", "trace", "readings", "buffers", "artifacts", "flow", "gram", "calibration"),
    ("methods", "families"),
    ("views", "models", "modulations", "engine", "memory", "graphs", "attention", "fingerprints", "states",
     "past", "trajectory", "experts", "expert_files", "expert_weights"),
    ("integrations", "api", "denoiser"),
    ("calibrate", "distill", "evaluate", "demo", "doctor", "cli", "__main__"),
]  # fmt: skip
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
# The trace turns into a schedule on request, by an import inside the function.
ALLOWED = {("trace", "methods")}


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
    room = path.relative_to(ROOT).with_suffix("").parts[0]
    if room == "__init__":
        return
    assert room in FLOOR, f"{path} belongs to no floor"
    for other in imports(path):
        if (room, other) not in ALLOWED:
            assert FLOOR[other] <= FLOOR[room], f"{room} imports from {other}, above it"


def test_methods_know_no_model_library_or_device():
    for path in (ROOT / "methods").glob("*.py"):
        text = path.read_text()
        for word in ("diffusers", "cuda", "Transformer3D"):
            assert word not in text, f"{path.name} mentions {word}"
    engine = (ROOT / "engine.py").read_text()
    for name in ("DirectionMagnitude", "SRDiffusion", "TeaCache", "Schedule", "DualExpert", "diffusers"):
        assert name not in engine
