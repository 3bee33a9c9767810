"""What vaccel sees of a pipeline, without running it: by its class, or by a folder that holds one."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...methods.availability import available
from ...models import Family, family_of
from ...models.arguments import is_sample, parameters
from ...models.denoisers import denoises, timestep_argument


def inspected(source: str) -> dict[str, Any]:
    """Plain data about a pipeline: its denoisers, their blocks, how a step is located, guidance, methods.

    Args:
        source: the name of a pipeline class of diffusers, or a folder with a ``model_index.json``.

    Raises ``ValueError`` for a name that is neither.
    """
    kind, classes, folder = _pipeline(source)
    denoisers = [_denoiser(name, found, folder) for name, found in classes.items() if denoises(name, found)]
    if not denoisers:
        raise ValueError(f"{kind.__name__} has no module that takes a sample and a timestep: nothing to accelerate")
    main = family_of(classes[denoisers[0]["attribute"]])
    return {
        "pipeline": kind.__name__,
        "denoisers": denoisers,
        "steps": _located(kind, main),
        "guidance": _guidance(kind, main),
        "methods": available(
            blocks=main.described,
            embedding=type(main).modulation is not Family.modulation,
            trainable=type(main).encode is not Family.encode,
        ),
    }


def _pipeline(source: str) -> tuple[type, dict[str, type], Path | None]:
    """(class of the pipeline, classes of its modules by attribute, its folder)."""
    import diffusers

    folder = Path(source)
    for index in ("model_index.json", "modular_model_index.json"):
        if (folder / index).is_file():
            return _of_folder(folder, json.loads((folder / index).read_text()))
    if folder.exists():
        raise ValueError(f"{source} holds no pipeline: there is no model_index.json")
    kind = getattr(diffusers, source, None)
    if not isinstance(kind, type) or not hasattr(kind, "__call__"):  # noqa: B004  the class's own is asked for
        raise ValueError(f"{source!r} is neither a folder nor a pipeline class of diffusers {diffusers.__version__}")
    if issubclass(kind, diffusers.ModularPipeline):
        return kind, _of_blocks(kind), None
    takes = inspect.signature(kind.__init__).parameters
    found = {name: _class_in(parameter.annotation) for name, parameter in takes.items()}
    return kind, {name: c for name, c in found.items() if c is not None}, None


def _of_folder(folder: Path, index: dict[str, Any]) -> tuple[type, dict[str, type], Path]:
    import diffusers

    named = str(index.get("_class_name"))
    kind = getattr(diffusers, named, None)
    if not isinstance(kind, type):
        raise ValueError(f"{folder} is a {named}, which diffusers {diffusers.__version__} does not have")
    found = {}
    for name, entry in index.items():
        class_name = entry[1] if isinstance(entry, list) and len(entry) > 1 else None
        module = getattr(diffusers, str(class_name), None)
        if isinstance(module, type) and issubclass(module, nn.Module):
            found[name] = module
    return kind, found, folder


def _of_blocks(kind: type) -> dict[str, type]:
    """What a modular pipeline's default blocks expect."""
    import diffusers

    blocks = getattr(diffusers, str(getattr(kind, "default_blocks_name", None)), None)
    specs = blocks().expected_components if isinstance(blocks, type) else []
    return {s.name: s.type_hint for s in specs if isinstance(s.type_hint, type)}


def _class_in(annotation: Any) -> type | None:
    """The first class of a denoiser in an annotation, "A | B | None" in words too."""
    import diffusers

    if isinstance(annotation, type):
        return annotation if issubclass(annotation, nn.Module) else None
    for word in str(annotation).replace("|", " ").replace(",", " ").replace("[", " ").replace("]", " ").split():
        found = getattr(diffusers, word.split(".")[-1].strip("'\""), None)
        if isinstance(found, type) and issubclass(found, nn.Module):
            return found
    return None


def _denoiser(name: str, kind: type, folder: Path | None) -> dict[str, Any]:
    family, takes = family_of(kind), parameters(kind)
    config = folder / name / "config.json" if folder is not None else None
    counts = _counts(kind, config, family) if config is not None and config.is_file() and family.described else {}
    return {
        "attribute": name,
        "class": kind.__name__,
        "family": family.name if family.described else "none: seen from outside",
        "blocks": [{"list": one.attribute, "blocks": counts.get(one.attribute)} for one in family.blocks],
        "sample": family.sample or next((n for n in takes if is_sample(n)), "found by its shape"),
        "timestep": timestep_argument(kind),
        "condition": family.condition_of(kind),
    }


def _counts(kind: Any, config: Path, family: Family) -> dict[str, int]:
    with torch.device("meta"):
        model = kind.from_config(json.loads(config.read_text()))
    return {one.attribute: len(getattr(model, one.attribute)) for one in family.blocks}


def _located(kind: type, family: Family) -> list[str]:
    """The ways that may tell a call's step, in the order in which they are tried."""
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        source = ""
    ways = [] if family.converts_timesteps else ["the address of the call's timestep in the scheduler's"]
    if "_current_timestep = " in source:
        ways.append("the address of the pipeline's _current_timestep")
    return [*ways, "the scheduler's step_index, where it has one", "the value of the timestep"]


def _guidance(kind: type, family: Family) -> str:
    if hasattr(kind, "default_blocks_name"):
        return "a guider: a call for each of its predictions"
    told = {
        True: "one call for both branches, rows [unconditional; conditional]",
        False: "a call for each branch",
        None: "seen at the first call: both halves of its rows are the same latents where it has both branches",
    }
    return told[family.batched_guidance]
