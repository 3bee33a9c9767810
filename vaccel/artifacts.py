"""Calibration artifacts: JSON that says what was measured, on which model, and how."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import nn

SCHEMA = 1


def fingerprint(model: nn.Module) -> dict[str, str]:
    """Class and configuration hash of a diffusers model: what a calibration is bound to."""
    config = {k: v for k, v in dict(model.config).items() if not k.startswith("_")}
    text = json.dumps(config, sort_keys=True, default=str)
    return {"class": type(model).__name__, "config": hashlib.sha256(text.encode()).hexdigest()[:16]}


def scheduler_description(scheduler: Any) -> dict[str, Any]:
    config = {k: v for k, v in dict(scheduler.config).items() if not k.startswith("_")}
    return {"class": type(scheduler).__name__, "config": json.loads(json.dumps(config, default=str))}


def read(path: Path, method: str) -> dict[str, Any]:
    """An artifact of ``method``.  Raises ``ValueError`` for a file that is not one, and says why."""
    try:
        data = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not a calibration artifact: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or data.get("method") != method:
        raise ValueError(f"{path} is not a {method} artifact of schema {SCHEMA}")
    return data


def write(path: Path, data: dict[str, Any]) -> None:
    """Replaces the artifact in one move: an interrupted write leaves the last one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(data, indent=1))
    partial.replace(path)
