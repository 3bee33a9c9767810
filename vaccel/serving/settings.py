"""What a host's configuration asks for, checked before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from ..methods import Auto, Forecast, LeMiCa, Method, method_from_json
from ..methods.auto import VISIBLE
from ..planning import artifacts, schema

#: Bytes of a calibration that a host's configuration may name, and of a method written out in it.
LARGEST_ARTIFACT, LARGEST_METHOD = 256 * 2**20, 2**20
TAKES = "it takes artifact and budget, budget alone, psnr, speedup, or method; and allow_mismatch, strict"

Number = Annotated[float, Meta(gt=0, le=1e4)]


class Fields(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The fields of a configuration, as the host has them."""

    artifact: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    budget: Annotated[int, Meta(ge=2, le=schema.MOST_STEPS)] | None = None
    psnr: Number | None = None
    speedup: Number | None = None
    method: dict[str, Any] | None = None
    allow_mismatch: bool = False
    strict: bool = False


@dataclasses.dataclass(frozen=True)
class Settings:
    """A configuration that was found good.

    Attributes:
        method: what decides.
        strict: whether a generation that cannot be accelerated fails; else it is computed in full, with a warning.
    """

    method: Method
    strict: bool


def settings(given: Any) -> Settings:
    """The settings in a host's configuration, a mapping or None for the default.

    ``artifact`` is the path of a calibration (`vaccel calibrate forecast` or `lemica`), of which ``budget`` steps are
    computed, or as many as ``psnr`` (dB) or ``speedup`` take.  Without one, paths and weights are those that ship with
    the package.  ``method`` is a method's JSON (``Method.to_json``).  An empty configuration is
    ``Auto(psnr=VISIBLE)``, as ``vaccel.accelerate`` has it.

    Raises ``ValueError``, in one line that names the field, for anything else.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"vaccel's cache_config must be an object, got {type(given).__name__}; {TAKES}")
    try:
        fields = msgspec.convert(dict(given or {}), Fields)
    except msgspec.ValidationError as error:
        raise ValueError(f"vaccel's cache_config: {_line(error)}; {TAKES}") from None
    except (RecursionError, OverflowError, TypeError) as error:
        raise ValueError(f"vaccel's cache_config: {type(error).__name__} on reading it; {TAKES}") from None
    try:
        return Settings(_method(fields), fields.strict)
    except (ValueError, OSError, RecursionError, OverflowError) as error:
        raise ValueError(f"vaccel's cache_config: {_line(error)}") from None


def _method(fields: Fields) -> Method:
    aims = {"psnr": fields.psnr, "speedup": fields.speedup}
    asked = {name: value for name, value in aims.items() if value is not None}
    if fields.method is not None:
        if asked or fields.artifact is not None or fields.budget is not None or fields.allow_mismatch:
            raise ValueError("method says everything by itself: leave out the other fields but strict")
        schema.check_nesting(fields.method)
        if len(json.dumps(fields.method, default=_no_json)) > LARGEST_METHOD:
            raise ValueError(f"method has more than {LARGEST_METHOD} bytes: use artifact")
        return method_from_json(fields.method)
    if fields.budget is not None and asked:
        raise ValueError(f"budget says how many steps are computed, and so does {' and '.join(asked)}: choose one")
    if fields.artifact is None:
        if fields.allow_mismatch:
            raise ValueError("allow_mismatch is of an artifact, and there is none")
        return Forecast.prior(fields.budget) if fields.budget is not None else Auto(**(asked or {"psnr": VISIBLE}))
    path = _file(fields.artifact)
    if asked:
        return Auto(**asked, artifacts=(str(path),), allow_mismatch=fields.allow_mismatch)
    if fields.budget is None:
        raise ValueError("artifact goes with a budget, a psnr or a speedup")
    kind = LeMiCa if artifacts.kind_of(path) == LeMiCa.id else Forecast
    return kind.load(path, fields.budget, allow_mismatch=fields.allow_mismatch)


def _line(error: Exception) -> str:
    """What an error says, in one line that a log can take; it may repeat what the host has said."""
    said = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    return f"{said[:400]}..." if len(said) > 400 else said or type(error).__name__


def _no_json(value: Any) -> Any:
    raise ValueError(f"method must be plain JSON, and holds a {type(value).__name__}")


def _file(name: str) -> Path:
    """A file that may be read.  Raises ``ValueError``."""
    if "\0" in name:
        raise ValueError("artifact is no path")
    path = Path(name)
    if not path.is_file():  # nor a folder, a pipe or a device
        raise ValueError(f"artifact {name!r:.200} is no file here; a worker reads it, so it must lie on its machine")
    size = os.stat(path).st_size
    if size > LARGEST_ARTIFACT:
        raise ValueError(f"artifact {name!r:.200} has {size} bytes: no calibration has more than {LARGEST_ARTIFACT}")
    return path
