"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import ast
import difflib
import inspect
import types
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

DTYPES = ("float32", "bfloat16", "float16")

Pipeline = Annotated[
    str, typer.Argument(help="Pipeline folder or hub name; the shipped moving-shapes family by default.")
]
Small = Annotated[str | None, typer.Option(help="Folder of the small transformer (or of a pipeline that holds it).")]
Steps = Annotated[int, typer.Option(help="Sampling steps of the full model.", min=1, max=4096)]
Seeds = Annotated[list[int], typer.Option("--seed", help="Seed of the noise. Repeat for more.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt. Repeat for more.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="File with one prompt a line.", exists=True)]
Call = Annotated[
    list[str] | None,
    typer.Option("--call", help="Argument of the pipeline's call as name=value, such as height=480. Repeat for more."),
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


def one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ``typer.BadParameter`` for a value of ``option`` that is not among the known ones."""
    if value not in known:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)


def assignment(text: str) -> tuple[str, Any]:
    """(name, value) of an option such as "height=480"; a value that is no Python literal is a string.

    Raises ``typer.BadParameter`` for a text without "=".
    """
    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"{text!r} is not name=value", param_hint="--call")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return name, value


#: What the commands set themselves, and how it is asked for.
RESERVED = {
    "prompt": "--prompt", "num_inference_steps": "--steps", "generator": "--seed", "output_type": "", "return_dict": "",
    "callback_on_step_end": "", "callback_on_step_end_tensor_inputs": "", "callback": "",
}  # fmt: skip


def check_call(pipe: Any, call: dict[str, Any]) -> None:
    """Raises ``typer.BadParameter`` for arguments that the pipeline's call does not take, or not of this kind."""
    signature = inspect.signature(type(pipe).__call__).parameters
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
    try:
        hints = typing.get_type_hints(type(pipe).__call__)
    except Exception:  # annotations that cannot be resolved say nothing
        hints = {}
    for name, value in call.items():
        if name in RESERVED:
            instead = f": use {RESERVED[name]}" if RESERVED[name] else ""
            raise typer.BadParameter(f"{name} is set by the command itself{instead}", param_hint="--call")
        if (name not in signature and not open_ended) or name == "self":
            near = difflib.get_close_matches(name, signature, 1)
            guess = f", did you mean {near[0]}?" if near else ""
            raise typer.BadParameter(f"{type(pipe).__name__} takes no {name}{guess}", param_hint="--call")
        kinds = _kinds(hints.get(name))
        if kinds and not _is(value, kinds):
            wanted = " or ".join(sorted("nothing" if k is type(None) else k.__name__ for k in kinds))
            raise typer.BadParameter(f"{name} must be {wanted}, got {value!r}", param_hint="--call")


def _kinds(hint: Any) -> set[type]:
    """The plain kinds that an annotation allows; empty where it says nothing that could be checked."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        every = [_kinds(member) for member in typing.get_args(hint)]
        return set().union(*every) if all(every) else set()
    kind = typing.get_origin(hint) or hint
    return {kind} if kind in (int, float, str, bool, list, dict, tuple, type(None)) else set()


def _is(value: Any, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)


def prompts_of(options: list[str] | None, file: Path | None, default: list[str] | None) -> list[str]:
    """The prompts of ``--prompt`` and of the file of ``--prompts``, or else the default ones.

    Raises ``typer.BadParameter`` where there are none.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read as text: {error}", param_hint="--prompts") from None
    prompts = [p for p in [*(options or ()), *lines] if p.strip()]
    prompts = prompts or list(default or ())
    if not prompts:
        raise typer.BadParameter("give at least one prompt", param_hint="--prompt")
    return prompts
