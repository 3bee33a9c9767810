"""The file of ``vaccel distill diagnose``: loss and gradient of consistency models over the noise levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import schema
from .schema.training_data import Diagnosis


def read(path: str | Path) -> dict[str, dict[str, Any]]:
    """The curves of a diagnosis by name, each with "points", "sigma", "loss", "gradient" and "boundary".

    Raises ``ValueError`` that names the file, and the field that is not as declared; ``FileNotFoundError`` where there
    is no file.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        schema.check_nesting(data)
    except (ValueError, RecursionError, MemoryError, IsADirectoryError) as error:
        raise ValueError(
            f"{path} is not what `vaccel distill diagnose` writes, or was cut short: {error or type(error).__name__}"
        ) from None
    try:
        schema.check_as(data, Diagnosis)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; run `vaccel distill diagnose` again") from None
    return data["curves"]
