"""Files written whole or not at all: calibration artifacts (JSON with a digest) and tensors.

An artifact records what was measured, on which model, and how.  It is read through a declared schema (``schema``): what
``read`` returns has every field that its readers index, of the type and length they need, under its current name.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from . import schema
from .schema.errors import shown

SCHEMA = 2
#: (name, value) pairs, plain data: the model and scheduler of a calibration, as a calibrated method carries them.
Fitted = tuple[tuple[str, Any], ...]


def read(path: str | Path, method: str) -> dict[str, Any]:
    """An artifact of ``method``.  Raises as ``read_sealed`` does."""
    return read_sealed(path, method)[0]


def read_sealed(path: str | Path, method: str) -> tuple[dict[str, Any], str]:
    """An artifact of ``method``, and the digest that it is sealed with.

    Raises ``ValueError`` that says why for a file that is no artifact, was cut short or was edited, and one that
    names the field where a field is not as declared; ``FileNotFoundError`` where there is no file.
    """
    try:
        data, seal = _sealed(path, method)
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is not a calibration artifact: {type(error).__name__} on reading it") from None
    try:
        schema.check(schema.translate(data, method), method)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return data, seal


def _sealed(path: str | Path, method: str) -> tuple[dict[str, Any], str]:
    """As ``read_sealed``, before the fields are checked."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), parse_int=_whole_number)
        schema.check_nesting(data)
    except (ValueError, IsADirectoryError) as error:  # of JSON, of the encoding, of its numbers, of its depth
        raise ValueError(f"{path} is not a calibration artifact, or was cut short: {error}") from None
    if not isinstance(data, dict) or data.get("method") != method:
        found = data.get("method") if isinstance(data, dict) else None
        raise ValueError(f"{path} is not a {method} artifact" + (f" but one of {found}" if _is_name(found) else ""))
    if data.get("schema") != SCHEMA:
        found = shown(data.get("schema"))
        raise ValueError(f"{path} is of schema {found}, this vaccel reads schema {SCHEMA}: calibrate anew")
    seal = data.pop("digest", None)
    if seal != _digest(data):
        raise ValueError(f"{path} was changed after the calibration wrote it: what it says was not measured")
    return data, seal


def _whole_number(text: str) -> int:
    """An integer of JSON, refused where it is too large for a floating-point number."""
    if len(text) > 300:
        raise ValueError(f"it has a whole number of {len(text)} digits")
    return int(text)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 40


def write(path: str | Path, data: dict[str, Any]) -> None:
    """Seals the artifact and replaces the file in one move: an interrupted write leaves the last one whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({**data, "digest": _digest(data)}, indent=1))
    partial.replace(path)


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file and replaces the last one in one move: an interrupted write leaves that one whole.

    Tensors may be strided and share memory, which the format itself does not allow.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    try:
        partial.touch()
        mode = partial.stat().st_mode  # as the umask has it; safetensors' own files are for their owner alone
        save_file(_savable(tensors), partial, metadata=metadata)
        partial.chmod(mode)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def pack(values: np.ndarray) -> str:
    """fp64 numbers as text: their bytes, exactly."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


def unpack(text: str) -> np.ndarray:
    """The numbers that ``pack`` was called with, flat."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)


def fitted(artifact: dict[str, Any]) -> Fitted:
    """The model and the scheduler that an artifact's method is bound to."""
    scheduler = artifact["scheduler"]
    settings = ((f"scheduler's {k}", json.dumps(v)) for k, v in sorted(scheduler["config"].items()))
    model = (("model", artifact["model"]["class"]), ("model's configuration", artifact["model"]["config"]))
    return (*model, ("scheduler", scheduler["class"]), *settings)


def _digest(data: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def _savable(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors, contiguous and each with memory of its own, as the format wants them."""
    seen, out = set(), {}
    for name, tensor in state.items():
        tensor = tensor.detach().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        out[name] = tensor
    return out
