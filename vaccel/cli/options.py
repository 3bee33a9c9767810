"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from .completion import among

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
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.", autocompletion=among(DTYPES))]


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
    """Raises ``typer.BadParameter`` for arguments that the pipeline's call does not take or the command itself sets."""
    from ..integrations.diffusers import call_arguments

    for name in call:
        if name in RESERVED:
            instead = f": use {RESERVED[name]}" if RESERVED[name] else ""
            raise typer.BadParameter(f"{name} is set by the command itself{instead}", param_hint="--call")
    try:
        call_arguments.check_call(pipe, call)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--call") from None


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
