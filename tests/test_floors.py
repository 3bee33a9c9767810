"""A file imports from no floor above its own: the architecture, checked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vaccel

ROOT = Path(vaccel.__file__).parent
FLOORS = [
    ("reference", "ops"),
    ("actions", "planning", "cache", "signals", "engine/trace"),
    ("methods",),
    ("models",),
    ("engine", "experts"),
    ("integrations",),
    ("api", "denoiser"),
    ("calibrate", "distill", "evaluate", "demo", "cli", "__main__"),
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
#: Imports that go up, each with its reason; none may be added.
ALLOWED = {
    ("engine/trace", "methods"),  # the trace turns into a schedule on request, by an import inside the function
    ("cache", "models"),  # block states and the velocity history still ask a model for its shapes
    ("signals", "models"),  # and so does the change of the timestep's embedding
}


def imports(path: Path) -> set[str]:
    """The rooms of vaccel that a file imports, "engine/trace" by itself."""
    parts = ("vaccel", *path.relative_to(ROOT).with_suffix("").parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = list(parts[: -node.level]) if node.level else []
        base += (node.module or "").split(".") if node.module else []
        targets = [base] if len(base) > 2 else [[*base, alias.name] for alias in node.names]
        found |= {room(t[1:]) for t in targets if len(t) > 1 and t[0] == "vaccel"}
    return found & FLOOR.keys()


def room(parts: list[str] | tuple[str, ...]) -> str:
    """The room that a module lies in."""
    two = "/".join(parts[:2])
    return two if two in FLOOR else parts[0]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = room(path.relative_to(ROOT).with_suffix("").parts)
    if own == "__init__":
        return
    assert own in FLOOR, f"{path} belongs to no floor"
    for other in imports(path):
        if (own, other) not in ALLOWED:
            assert FLOOR[other] <= FLOOR[own], f"{own} imports from {other}, above it"


def test_methods_know_no_model_library_or_device():
    for path in (ROOT / "methods").glob("*.py"):
        text = path.read_text()
        for word in ("diffusers", "cuda", "Transformer3D"):
            assert word not in text, f"{path.name} mentions {word}"
    for path in (ROOT / "engine").glob("*.py"):
        for name in ("DirectionMagnitude", "SRDiffusion", "TeaCache", "DualExpert", "diffusers"):
            assert name not in path.read_text(), f"{path.name} mentions {name}"
