"""The command line: ``vaccel generate | compare | calibrate | distill | doctor``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

app = typer.Typer(no_args_is_help=True, help="Diffusion video generation several times faster, faithful to the model.")
calibrate_app = typer.Typer(no_args_is_help=True, help="Measure what a method needs to know of a model.")
app.add_typer(calibrate_app, name="calibrate")
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
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]


class _Loaded:
    """A pipeline, its small model, the arguments of its call and a checker of its clips, as far as there are such."""

    def __init__(self, name: str, small: str | None, call: list[str] | None, dtype: str):
        import torch

        kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        if dtype not in kinds:
            raise typer.BadParameter(f"{dtype!r} is not one of {', '.join(kinds)}", param_hint="--dtype")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.checker = None
        if name == "demo":
            from vaccel import demo

            family = demo.load(dtype=kinds[dtype])
            self.pipe, self.small, self.call = family.pipe, family.small, family.call
            self.folder, self.checker = family.folder, _caption_score
        else:
            from diffusers import DiffusionPipeline

            self.pipe = DiffusionPipeline.from_pretrained(name, dtype=kinds[dtype])
            self.pipe.set_progress_bar_config(disable=True)
            self.small, self.call, self.folder = None, {}, Path.cwd()
        if small is not None:
            transformer = type(self.pipe.transformer)
            sub = {"subfolder": "transformer"} if (Path(small) / "transformer").is_dir() else {}
            self.small = transformer.from_pretrained(small, dtype=kinds[dtype], **sub).eval()
        self.pipe.to(device)
        if self.small is not None:
            self.small.to(device)
        self.call |= dict(_assignment(text) for text in call or ())


def _caption_score(clip: Any, prompt: str) -> dict[str, float]:
    from vaccel.demo.checker import check

    return {"caption": float(check(clip, prompt).correct)}


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
    console.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
    raise typer.Exit(2)


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """What is installed, built and usable here."""
    from vaccel.doctor import diagnose

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

    named = {m: re.findall(r"artifact='([^']+)'", m) for m in family.METHODS}
    return [m for m, files in named.items() if all((folder / f).is_file() for f in files)]


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


Artifact = Annotated[Path, typer.Option(help="Artifact to write or go on with.")]


def _calibrated(
    pipeline: str, small: str | None, call: list[str] | None, dtype: str, steps: int, out: Path,
    prompt: list[str] | None, prompts: Path | None, measure: Callable[..., dict[str, Any]], *, of_small: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What ``measure(loaded, prompts, path, call=..., progress=...)`` returns, with progress and clear refusals."""
    from vaccel.demo import family

    try:
        loaded = _Loaded(pipeline, small, call, dtype)
        if of_small:
            if loaded.small is None:
                raise typer.BadParameter("there is no small model: pass --small", param_hint="--of-small")
            loaded.pipe.transformer = loaded.small
        chosen = _prompts(prompt, prompts, family.calibration_captions(8) if pipeline == "demo" else None)
        with _bar() as bar:
            task = bar.add_task("starting", total=1)
            return measure(
                loaded, chosen, out, call={"num_inference_steps": steps, **loaded.call},
                progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what[:70]),
            )  # fmt: skip
    except (ValueError, OSError) as error:
        _refuse(error)
    except KeyboardInterrupt:
        console.print(f"stopped; {out} keeps what was measured, the same command goes on")
        raise typer.Exit(130) from None


@calibrate_app.command("teacache")
def calibrate_teacache(
    pipeline: Pipeline = "demo",
    out: Artifact = Path("teacache.json"),
    prompt: Prompts = None,
    prompts: PromptFile = None,
    seed: Seeds = [0],  # noqa: B006
    steps: Steps = 50,
    call: Call = None,
    retention: Annotated[bool, typer.Option(help="Fit for the retention mode (projected embedding).")] = False,
    small: Small = None,
    of_small: Annotated[bool, typer.Option("--of-small", help="Fit for the small model instead.")] = False,
    dtype: Dtype = "float32",
) -> None:
    """Fit TeaCache's coefficients by full runs of a model. Resumable: run it again after Ctrl-C."""
    from vaccel.calibrate import calibrate_teacache as run

    def measure(loaded: _Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(loaded.pipe, chosen, path, seeds=seed, retention=retention, **options)

    data = _calibrated(pipeline, small, call, dtype, steps, out, prompt, prompts, measure, of_small=of_small)
    console.print(f"{out}: {len(data['samples'])} samples, coefficients {data['fields']['coefficients']}")


@calibrate_app.command("lemica")
def calibrate_lemica(
    pipeline: Pipeline = "demo",
    out: Artifact = Path("lemica.json"),
    prompt: Prompts = None,
    prompts: PromptFile = None,
    seed: Seeds = [0],  # noqa: B006
    steps: Steps = 50,
    call: Call = None,
    reuse: Annotated[str, typer.Option(help="What skipped steps reuse: 'blocks' or 'output'.")] = "blocks",
    max_gap: Annotated[int, typer.Option(help="Longest stretch from one computed step to the next.")] = 7,
    compare_in: Annotated[str, typer.Option("--compare", help="Compare 'latents' or 'pixels'.")] = "latents",
    tails: Annotated[str, typer.Option(help="After a stretch: 'exact', 'coarse', 'small' or 'none'.")] = "exact",
    stride: Annotated[int, typer.Option(help="With coarse tails: compute every so many steps.")] = 2,
    batch: Annotated[int, typer.Option(help="Stretches measured in one forward, where memory allows.")] = 1,
    hopeless: Annotated[
        int | None, typer.Option(help="Smallest budget that will be asked for: stretches too bad for it are left out.")
    ] = None,
    small: Small = None,
    dtype: Dtype = "float32",
) -> None:
    """Measure what every skipped stretch costs at the end. Resumable: run it again after Ctrl-C, or by torchrun."""
    from vaccel.calibrate import calibrate_lemica as run

    def measure(loaded: _Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(
            loaded.pipe, chosen, path, seeds=seed, small=loaded.small, reuse=reuse, max_gap=max_gap,
            compare=compare_in, tails=tails, stride=stride, batch=batch, hopeless=hopeless, **options,
        )  # fmt: skip

    for name, value, known in [
        ("--reuse", reuse, ("blocks", "output")), ("--compare", compare_in, ("latents", "pixels")),
        ("--tails", tails, ("exact", "coarse", "small", "none")),
    ]:  # fmt: skip
        if value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=name)
    data = _calibrated(pipeline, small, call, dtype, steps, out, prompt, prompts, measure)
    measured = next(iter(data["samples"].values()))["errors"]
    forwards = sum(s["forwards"] for s in data["samples"].values())
    console.print(f"{out}: {len(data['samples'])} samples, {len(measured)} edges each, {forwards} forwards")


@calibrate_app.command("mixcache")
def calibrate_mixcache(
    pipeline: Pipeline = "demo",
    out: Artifact = Path("mixcache.json"),
    prompt: Prompts = None,
    prompts: PromptFile = None,
    seed: Seeds = [0],  # noqa: B006
    steps: Steps = 50,
    call: Call = None,
    candidate: Annotated[
        list[int] | None,
        typer.Option(help="Block to resume after. Repeat for more; quarters of the depth if left out."),
    ] = None,
    dtype: Dtype = "float32",
) -> None:
    """Profile how much each level of caching harms. Resumable: run it again after Ctrl-C, or by torchrun."""
    from vaccel.calibrate import calibrate_mixcache as run

    def measure(loaded: _Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(loaded.pipe, chosen, path, seeds=seed, candidates=tuple(candidate) if candidate else None, **options)

    found = _calibrated(pipeline, None, call, dtype, steps, out, prompt, prompts, measure)["fields"]
    console.print(f"{out}: theta {found['theta']:.3g}, d1 {found['d1']:.3g}, d2 {found['d2']:.3g}, blocks "
                  f"{found['candidates']}, impacts of step {found['step_impact']:.3g}, cfg "
                  f"{found.get('cfg_impact', 0):.3g}")  # fmt: skip


def _add_distill() -> None:
    """In a file of its own, which needs this one."""
    from vaccel.distill.command import app as distill_app

    app.add_typer(distill_app, name="distill")


_add_distill()

if __name__ == "__main__":
    app()
