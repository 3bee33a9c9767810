"""``vaccel compare``: methods beside the full model; an HTML report and JSON."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from .completion import after, methods
from .console import Bar, clear_errors, console, followed_by, interrupted, leave, names_a_command, say
from .loading import Loaded, contender
from .options import Call, Dtype, Pipeline, PromptFile, Prompts, Seeds, Small, Steps, prompts_of

Method = Annotated[
    list[str] | None,
    typer.Option("--method", "-m", help="As it would be called: 'DirectionMagnitude(threshold=0.005)', "
                 "'diffusers.SeaCache(threshold=0.25)', 'steps(25)'. Repeat for more.",
                 autocompletion=methods),
]  # fmt: skip

Metrics = Annotated[
    str | None,
    typer.Option(help="What to measure beside PSNR (of sounds: SNR), with commas between: ssim, vmaf, flicker, cvvdp "
                 "(pip install 'vaccel[quality]'), lpips (torchmetrics and AlexNet's weights). Default: all that can "
                 "be measured here, which `vaccel doctor` lists."),
]  # fmt: skip


def compare(
    pipeline: Pipeline = "demo",
    method: Method = None,
    prompt: Prompts = None,
    prompts: PromptFile = None,
    seed: Seeds = [0],  # noqa: B006 (typer copies it)
    small: Small = None,
    steps: Steps = 50,
    call: Call = None,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("out/compare"),
    count: Annotated[int, typer.Option(help="Held-out captions of the demo family, where no prompt is given.")] = 2,
    observe: Annotated[bool, typer.Option(help="Also measure the observations behind DirectionMagnitude.")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="Measure anew what the folder holds already.")] = False,
    metrics: Metrics = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second that clips are seen with.")] = 12,
    dtype: Dtype = "float32",
) -> None:
    """Compare methods with the full model: wall time, forwards, memory, fidelity; an HTML report and JSON.

    The same command goes on where one was stopped. Exit status: 1 where a contender failed or the end was not reached,
    2 for input that cannot be used.
    """
    from ..planning import files

    kept = f"{out} keeps what was measured, the same command goes on"
    with clear_errors(kept):
        files.check(out / "report.html")  # before what takes long to import

    from ..demo.shapes import held_out_captions
    from ..evaluate import compare as run_comparison
    from ..evaluate import write_report
    from ..evaluate.fidelity import chosen as measurable

    with clear_errors(kept):
        named = metrics.split(",") if metrics is not None else None
        with followed_by("vaccel doctor"):  # which lists what can be measured here
            measurable(named)  # before anything is loaded
        loaded = Loaded(pipeline, small, call, dtype)
        chosen = prompts_of(prompt, prompts, held_out_captions(count) if pipeline == "demo" else None)
        specs = method or (default_methods(loaded.folder) if pipeline == "demo" else None)
        if not specs:
            raise typer.BadParameter("give at least one method", param_hint="--method")
        contenders = [contender(text, loaded.folder, pipeline, steps) for text in specs]
        arguments = {"num_inference_steps": steps, **loaded.call}
        if loaded.checker is not None and not all(map(_in_grammar, chosen)):
            loaded.checker = None  # it understands captions of the demo's grammar only
        with Bar() as bar:
            result = run_comparison(
                loaded.pipe, contenders, chosen, small=loaded.small, seeds=seed, call=arguments,
                checker=loaded.checker, progress=bar.update, log=out / "rows.jsonl", restart=restart,
                metrics=named, fps=fps,
            )  # fmt: skip
            observing = observe and loaded.small is not None and result.complete
            seen = _observed(loaded, chosen[:4], arguments, result, bar) if observing else None
        page = write_report(result, out, title=f"vaccel compare: {pipeline}", facts=facts(), seen=seen)
    end(result, page, kept, lambda contender: after(contender, pipeline, steps))


def _observed(loaded: Loaded, prompts: list[str], call: dict[str, Any], result: Any, bar: Bar) -> Any:
    """The observations, or None where they cannot be made: the comparison is reported all the same."""
    from ..evaluate.observations import observe

    bar.update(1, 1, "observing direction and magnitude")
    try:
        return observe(loaded.pipe, loaded.small, prompts, call)
    except KeyboardInterrupt as error:
        result.complete, result.interrupted = False, error
    except Exception as error:
        result.notes.append(f"direction and magnitude were not observed: {error}")
    return None


def default_methods(folder: Path) -> list[str]:
    """The demo's methods whose artifacts are in ``folder``, as contenders are written."""
    from ..demo import family

    named = {m: re.findall(r"(?:artifact|folder)='([^']+)'", m) for m in family.METHODS}
    return [m for m, paths in named.items() if all((folder / p).exists() for p in paths)]


def _in_grammar(prompt: str) -> bool:
    """Whether the prompt is a caption of the demo family."""
    from ..demo.shapes import Scene

    try:
        Scene.parse(prompt)
    except ValueError:
        return False
    return True


def facts() -> dict[str, Any]:
    """Date, device, versions and command, for the report."""
    import datetime
    import platform

    import diffusers
    import torch

    import vaccel

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "vaccel": vaccel.__version__,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
        "command": " ".join(["vaccel", *sys.argv[1:]]),
    }


def end(result: Any, page: Path, kept: str, following: Callable[[str], str] | None = None) -> None:
    """Says what a comparison found and what went wrong, and ends the command where it is not complete.

    Args:
        result: a ``vaccel.evaluate.Comparison``, reported at ``page``.
        kept: what stays where it was stopped.
        following: what to type after a contender that failed.
    """
    console.print(summary_table(result))
    for failure in result.failures:
        where = f" on {failure.prompt!r}, seed {failure.seed}" if failure.prompt is not None else ""
        say(f"{failure.contender} failed{where}: {failure.error}", "red")
        if following is not None and not names_a_command(str(failure.error)):
            say(f"next: {following(failure.contender)}")
    for note in (*result.notes, *filter(None, [result.other_rows])):
        say(note, "yellow")
    say(f"report: {page}")
    if result.interrupted is not None:
        interrupted(result.interrupted, kept)
    if result.failures and not result.rows:
        leave(2)
    if not result.complete or result.notes:
        say("the comparison is not complete; the report holds what was done", "yellow")
        leave(1)


def summary_table(result: Any) -> Table:
    """A line a contender."""
    checks, columns = list(result.full_checks), result.columns()
    heads = [column.head.removesuffix(" dB") for column in columns]
    table = Table(
        Column("method", overflow="fold"), "speedup", "forwards", *heads, *(Column(n, no_wrap=True) for n in checks),
        box=None, padding=(0, 1, 0, 0), caption="in brackets the worst; forwards of the large / the small model",
        caption_justify="left",
    )  # fmt: skip
    table.add_row("full model", "1.00", "", *("" for _ in columns), *(f"{v:.0%}" for v in result.full_checks.values()))
    for e in result.summary():
        forwards = f"{e['forwards']['large']:.0f}" + (f" / {n:.0f}" if (n := e["forwards"]["small"]) else "")
        measured = [column.of_summary(e) for column in columns]
        table.add_row(
            e["contender"], f"{e['speedup']:.2f}", forwards, *measured, *(f"{e['checks'][n]:.0%}" for n in checks)
        )
    return table
