"""The command line: ``vaccel generate | compare | calibrate | distill | doctor``."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Diffusion video generation several times faster, faithful to the model.")
console = Console()

Pipeline = Annotated[
    str, typer.Argument(help="Pipeline folder or hub name; the shipped moving-shapes family if left out.")
]
Small = Annotated[str | None, typer.Option(help="Folder of the small transformer (or of a pipeline that holds it).")]
Method = Annotated[
    list[str] | None,
    typer.Option("--method", "-m", help="As it would be called: 'DirectionMagnitude(threshold=0.005)', "
                 "'diffusers.SeaCache(threshold=0.25)', 'steps(25)'. Repeat for more."),
]  # fmt: skip
Steps = Annotated[int, typer.Option(help="Sampling steps of the full model.", min=1)]
Seeds = Annotated[list[int], typer.Option("--seed", help="Seed of the noise. Repeat for more.")]
Prompts = Annotated[list[str] | None, typer.Option("--prompt", "-p", help="A prompt. Repeat for more.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="File with one prompt a line.", exists=True)]
Call = Annotated[
    list[str] | None,
    typer.Option("--call", help="Argument of the pipeline's call as name=value, such as height=480. Repeat for more."),
]
DTYPES = ("float32", "bfloat16", "float16")
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


class _Loaded:
    """A pipeline, its small model, the arguments of its call and a checker of its clips, as far as there are such.

    On the GPU where there is one, unless ``device`` says otherwise.
    """

    def __init__(self, name: str, small: str | None, call: list[str] | None, dtype: str, device: str | None = None):
        import torch

        _one_of("--dtype", dtype, DTYPES)
        kind = getattr(torch, dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.checker = None
        if name == "demo":
            from vaccel import demo

            family = demo.load(dtype=kind)
            self.pipe, self.small, self.call = family.pipe, family.small, family.call
            self.folder, self.checker = family.folder, _caption_score
        else:
            from diffusers import DiffusionPipeline

            self.pipe = DiffusionPipeline.from_pretrained(name, dtype=kind)
            self.pipe.set_progress_bar_config(disable=True)
            self.small, self.call, self.folder = None, {}, Path.cwd()
        if small is not None:
            transformer = type(self.pipe.transformer)
            sub = {"subfolder": "transformer"} if (Path(small) / "transformer").is_dir() else {}
            self.small = transformer.from_pretrained(small, dtype=kind, **sub).eval()
        self.pipe.to(device)
        if self.small is not None:
            self.small.to(device)
        self.call |= dict(_assignment(text) for text in call or ())


def _caption_score(clip: Any, prompt: str) -> dict[str, float]:
    from vaccel.demo.checker import check

    return {"caption": float(check(clip, prompt).correct)}


def _one_of(option: str, value: str, known: tuple[str, ...]) -> None:
    """Refuses a value that is none of those known."""
    if value not in known:
        raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=option)


def _assignment(text: str) -> tuple[str, Any]:
    import ast

    name, found, value = text.partition("=")
    if not found:
        raise typer.BadParameter(f"{text!r} is not name=value", param_hint="--call")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _prompts(given: list[str] | None, file: Path | None, default: list[str] | None) -> list[str]:
    prompts = list(given or ()) + ([p for p in file.read_text().splitlines() if p.strip()] if file else [])
    prompts = prompts or list(default or ())
    if not prompts:
        raise typer.BadParameter("give at least one prompt", param_hint="--prompt")
    return prompts


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console)


def _refuse(error: Exception) -> None:
    """A clear line instead of a traceback."""
    console.print(f"[red]error:[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2)


@contextlib.contextmanager
def _clear_refusals(interrupted: str) -> Iterator[None]:
    """A clear line instead of a traceback; after Ctrl-C what is kept, and exit status 130."""
    try:
        yield
    except KeyboardInterrupt:
        console.print(f"stopped; {interrupted}")
        raise typer.Exit(130) from None
    except (ValueError, OSError, FloatingPointError) as error:
        _refuse(error)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """What is installed, built and usable here."""
    from vaccel.cli.doctor import diagnose

    found = diagnose()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in found.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                shown = {None: "not installed", True: "yes", False: "no"}.get(inner, inner)
                table.add_row(f"[bold]{key}[/bold] {name}", str(shown))
        else:
            table.add_row(f"[bold]{key}[/bold]", str(value))
    console.print(table)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What the clip shows.")],
    pipeline: Annotated[str, typer.Option(help="Pipeline folder or hub name; 'demo' is the shipped family.")] = "demo",
    method: Annotated[str | None, typer.Option("--method", "-m", help="As it would be called.")] = None,
    out: Annotated[Path, typer.Option(help="File to write: .mp4, .gif or .png (animated).")] = Path("clip.mp4"),
    small: Small = None,
    steps: Steps = 50,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    call: Call = None,
    fps: Annotated[int, typer.Option(min=1, help="Frames a second.")] = 12,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the transformers.")] = False,
    dtype: Dtype = "float32",
) -> None:  # fmt: skip
    """Write one clip and print the timeline of what was computed (without --method, by the full model)."""
    import time

    import numpy as np
    import torch

    from vaccel.evaluate import parse_contender
    from vaccel.evaluate.clips import write_video

    if out.suffix not in (".mp4", ".gif", ".png", ".webp"):
        raise typer.BadParameter("write to .mp4, .gif, .png or .webp", param_hint="--out")
    try:
        loaded = _Loaded(pipeline, small, call, dtype)
        contender = parse_contender(method, loaded.folder) if method else None
        arguments = {"num_inference_steps": steps, **loaded.call, "generator": torch.Generator().manual_seed(seed)}
        if contender is not None and contender.num_steps:
            arguments["num_inference_steps"] = contender.num_steps
        start = time.perf_counter()
        with console.status("sampling"):
            if contender is None:
                frames, handle = loaded.pipe(prompt, **arguments).frames, None
            else:
                with contender.applied(loaded.pipe, loaded.small, compile=compile) as handle:
                    frames = loaded.pipe(prompt, **arguments).frames
    except (ValueError, OSError) as error:
        _refuse(error)
    seconds = time.perf_counter() - start
    out.parent.mkdir(parents=True, exist_ok=True)
    write_video(out, np.asarray(frames[0], dtype=np.float32), fps)
    console.print(f"{out}  {seconds:.2f} s")
    if handle is not None:
        console.print(str(handle.trace), highlight=False)


@app.command()
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
    dtype: Dtype = "float32",
) -> None:
    """Compare methods with the full model: wall time, forwards, memory, fidelity; an HTML report and JSON."""
    from vaccel.demo.shapes import held_out_captions
    from vaccel.evaluate import compare as run_comparison
    from vaccel.evaluate import parse_contender, write_report
    from vaccel.evaluate.observations import observe as run_observations

    try:
        loaded = _Loaded(pipeline, small, call, dtype)
        chosen = _prompts(prompt, prompts, held_out_captions(count) if pipeline == "demo" else None)
        specs = method or (_default_methods(loaded.folder) if pipeline == "demo" else None)
        if not specs:
            raise typer.BadParameter("give at least one method", param_hint="--method")
        contenders = [parse_contender(text, loaded.folder) for text in specs]
        out.mkdir(parents=True, exist_ok=True)
        arguments = {"num_inference_steps": steps, **loaded.call}
        if loaded.checker is not None and not all(map(_in_grammar, chosen)):
            loaded.checker = None  # a prompt outside the grammar says nothing a checker could measure
        with _bar() as bar:
            task = bar.add_task("starting", total=1)

            def progress(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what[:70])

            result = run_comparison(
                loaded.pipe, contenders, chosen, small=loaded.small, seeds=seed, call=arguments,
                checker=loaded.checker, progress=progress, log=out / "rows.jsonl",
            )  # fmt: skip
            seen = None
            if observe and loaded.small is not None and result.complete:
                bar.update(task, description="observing direction and magnitude")
                seen = run_observations(loaded.pipe, loaded.small, chosen[:4], arguments)
    except (ValueError, OSError) as error:
        _refuse(error)
    page = write_report(result, out, title=f"vaccel compare: {pipeline}", facts=_facts(), seen=seen)
    console.print(_summary_table(result))
    if not result.complete:
        console.print("[yellow]stopped before the end; the report holds what was done[/yellow]")
    console.print(f"report: {page}")


def _default_methods(folder: Path) -> list[str]:
    from vaccel.demo import family

    named = {m: re.findall(r"(?:artifact|folder)='([^']+)'", m) for m in family.METHODS}
    return [m for m, paths in named.items() if all((folder / p).exists() for p in paths)]


def _in_grammar(prompt: str) -> bool:
    from vaccel.demo.shapes import Scene

    try:
        Scene.parse(prompt)
    except ValueError:
        return False
    return True


def _facts() -> dict[str, Any]:
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


def _summary_table(result: Any) -> Table:
    summary = result.summary()
    names = list(result.full_checks)
    table = Table("method", "speedup", "large", "small", "PSNR", "worst", "SSIM", *names, box=None)
    table.add_row("full model", "1.00", "", "", "", "", "", *(f"{v:.0%}" for v in result.full_checks.values()))
    for e in summary:
        table.add_row(
            e["contender"], f"{e['speedup']:.2f}", f"{e['forwards']['large']:.0f}", f"{e['forwards']['small']:.0f}",
            f"{e['psnr']:.1f}", f"{e['psnr_worst']:.1f}", f"{e['ssim']:.3f}", *(f"{e['checks'][n]:.0%}" for n in names),
        )  # fmt: skip
    return table


def _add_groups() -> None:
    """Commands in files of their own, which need this one."""
    from vaccel.cli.calibrate import app as calibrate_app
    from vaccel.cli.distill import app as distill_app

    app.add_typer(calibrate_app, name="calibrate")
    app.add_typer(distill_app, name="distill")


_add_groups()

if __name__ == "__main__":
    app()
