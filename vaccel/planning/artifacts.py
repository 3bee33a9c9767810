"""Files written whole or not at all: calibration artifacts (JSON with a digest) and tensors.

An artifact records what was measured, on which model, and how.  Its digest guards against accidents and careless edits:
anybody can compute one, so it is no signature.  It is read through a declared schema (``schema``): what
``read`` returns has every field that its readers index, of the type and length they need, under its current name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from . import files, joining, schema
from .file_state import state
from .packing import pack, unpack
from .schema.errors import shown

__all__ = [
    "SCHEMA",
    "Fitted",
    "absorb",
    "fitted",
    "pack",
    "part_of",
    "parts_of",
    "read",
    "read_sealed",
    "replace",
    "save_tensors",
    "unpack",
    "write",
]

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


def kind_of(path: str | Path) -> str:
    """The id of the method that an artifact is of; "" where it names none.  The artifact itself is not checked.

    Raises ``ValueError`` for a file that is no JSON, ``FileNotFoundError`` where there is none.
    """
    data = _parsed(path)
    found = data.get("method") if isinstance(data, dict) else None
    return found if _is_name(found) else ""


def _parsed(path: str | Path) -> Any:
    state(path)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), parse_int=_whole_number)
        schema.check_nesting(data)
    except (ValueError, IsADirectoryError) as error:  # of JSON, of the encoding, of its numbers, of its depth
        raise ValueError(f"{path} is not a calibration artifact, or was cut short: {error}") from None
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is not a calibration artifact: {type(error).__name__} on reading it") from None
    return data


def _sealed(path: str | Path, method: str) -> tuple[dict[str, Any], str]:
    """As ``read_sealed``, before the fields are checked."""
    data = _parsed(path)
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
    """An integer of JSON, refused where it is too large for 64 bits."""
    number = int(text) if len(text) <= 20 else 2**63
    if abs(number) >= 2**63:
        raise ValueError(f"it has a whole number of {len(text.lstrip('-'))} digits")
    return number


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and 0 < len(value) <= 40


def write(path: str | Path, data: dict[str, Any]) -> None:
    """Seals an artifact and adds it to the file, whole or not at all.

    A file that holds a calibration of the same thing keeps its samples: those of ``data`` are joined to them
    (``joining``), so that several writers of a file lose nothing and count nothing twice.  Anything else is replaced.

    Raises ``ValueError`` where the file holds a calibration of something else or a damaged one, ``OSError`` where it
    cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(_whole(path)):
        _write(path, data)


def replace(path: str | Path, data: dict[str, Any]) -> None:
    """Seals an artifact and puts it in the place of whatever is there."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(_whole(path)):
        _replace(path, data)


def absorb(path: Path, part: Path, method: str) -> None:
    """Moves the samples of a part (``part_of``) into the artifact.  Raises as ``write`` does."""
    with files.locked(_whole(path)):
        if part.exists():
            _write(path, read(part, method))
            part.unlink(missing_ok=True)
        files.sweep(part)


def part_of(path: Path, rank: int) -> Path:
    """Where one of several processes keeps its own samples until they are joined."""
    return path.with_name(f"{path.name}.part{rank}")


def parts_of(path: Path) -> list[Path]:
    """The parts that there are."""
    named = re.compile(re.escape(path.name) + r"\.part\d+")
    if not path.parent.is_dir():
        return []
    return sorted(p for p in path.parent.iterdir() if named.fullmatch(p.name))


def _whole(path: Path) -> Path:
    """The artifact that a part is one of: they share a lock."""
    return path.with_name(re.sub(r"\.part\d+$", "", path.name))


def _write(path: Path, data: dict[str, Any]) -> None:
    if joining.joins(data):
        try:
            old = read(path, data["method"]) if path.exists() else None
            data = joining.joined(old, data, part=_whole(path) != path)
        except ValueError as error:
            raise ValueError(error if str(path) in str(error) else f"{path} is {error}; choose another file") from None
    _replace(path, data)


def _replace(path: Path, data: dict[str, Any]) -> None:
    data = {name: value for name, value in data.items() if name != "digest"}
    files.write_text(path, json.dumps({**data, "digest": _digest(data)}, indent=1))


def save_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file and replaces the last one in one move: an interrupted write leaves that one whole.

    Tensors may be strided and share memory, which the format itself does not allow.
    """
    with files.replacing(path, folder=True) as partial:  # safetensors has a temporary file of its own, beside it
        partial.touch()
        mode = partial.stat().st_mode  # as the umask has it; safetensors' own files are for their owner alone
        save_file(_savable(tensors), partial, metadata=metadata)
        partial.chmod(mode)


def fitted(artifact: dict[str, Any]) -> Fitted:
    """The model and the scheduler that an artifact's method is bound to."""
    scheduler = artifact["scheduler"]
    settings = ((f"scheduler's {k}", json.dumps(v)) for k, v in sorted(scheduler["config"].items()))
    model = (("model", artifact["model"]["class"]), ("model's configuration", artifact["model"]["config"]))
    model += tuple((f"model's {name}", value) for name, value in artifact.get("weights", {}).items())
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
