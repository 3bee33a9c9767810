"""What of the native parts was left out when vaccel was built, and why."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def left_out(part: str) -> str:
    """Why a part, such as "vaccel._native", was left out; "" where it was built, or nothing says so."""
    try:
        why = json.loads((FOLDER / "_build.json").read_text())["left_out"].get(part, "")
        return f"left out when vaccel was built: {why}" if why else ""
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return ""
