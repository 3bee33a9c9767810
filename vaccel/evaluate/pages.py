"""What the pages of results are made with: templates, plots that may fail, and JSON."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2

from ..planning import files


def rendered(template: str, **values: Any) -> str:
    """A template beside this file, filled in; texts are escaped."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(template).render(**values)


def drawn(draw: Callable[..., str], *what: Any) -> str:
    """A plot; none where it cannot be drawn, which is no reason to lose the page."""
    try:
        return draw(*what)
    except Exception as error:
        warnings.warn(f"a plot is left out of the report ({draw.__name__}): {error!r}", stacklevel=2)
        return ""


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes the results; JSON has no NaN, which becomes null."""
    files.write_text(path, json.dumps(_no_nan(data), indent=1))


def _no_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _no_nan(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_no_nan(v) for v in value]
    return None if isinstance(value, float) and value != value else value
