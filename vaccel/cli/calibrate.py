"""``vaccel calibrate``: measure what a method needs to know about a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..deprecated import note
from .console import Bar, clear_errors, say
from .loading import Loaded
from .options import Call, Dtype, Pipeline, PromptFile, Prompts, Seeds, Small, Steps, one_of, prompts_of

app = typer.Typer(no_args_is_help=True, help="Measure what a method needs to know about a model.")

#: Frames a second that clips are compared at.
FPS = 12
Artifact = Annotated[Path, typer.Option(help="Artifact to write, or to resume.")]


def _calibrated(
    pipeline: str, small: str | None, call: list[str] | None, dtype: str, steps: int, out: Path,
    prompt: list[str] | None, prompts: Path | None, measure: Callable[..., dict[str, Any]], *, of_small: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Loads the pipeline and returns ``measure(loaded, prompts, path, call=..., progress=...)``, showing progress."""
    from ..demo import family
    from ..planning import files

    with clear_errors(f"{out} keeps what was measured, the same command resumes it"):
        files.check(out)
        loaded = Loaded(pipeline, small, call, dtype)
        if of_small:
            if loaded.small is None:
                raise typer.BadParameter("there is no small model: pass --small", param_hint="--of-small")
            loaded.pipe.transformer = loaded.small
        chosen = prompts_of(prompt, prompts, family.calibration_captions(8) if pipeline == "demo" else None)
        with Bar() as bar:
            call = {"num_inference_steps": steps, **loaded.call}
            return measure(loaded, chosen, out, call=call, progress=bar.update)


@app.command("teacache")
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
    from ..calibrate import calibrate_teacache as run

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(loaded.pipe, chosen, path, seeds=seed, retention=retention, **options)

    data = _calibrated(pipeline, small, call, dtype, steps, out, prompt, prompts, measure, of_small=of_small)
    say(f"{out}: {len(data['samples'])} samples, coefficients {data['fields']['coefficients']}")


@app.command("lemica")
def calibrate_lemica(
    pipeline: Pipeline = "demo",
    out: Artifact = Path("lemica.json"),
    prompt: Prompts = None,
    prompts: PromptFile = None,
    seed: Seeds = [0],  # noqa: B006
    steps: Steps = 50,
    call: Call = None,
    reuse: Annotated[str, typer.Option(help="What skipped steps reuse: 'blocks' or 'residual'.")] = "blocks",
    max_gap: Annotated[int, typer.Option(help="Longest stretch from one computed step to the next.")] = 7,
    compare_in: Annotated[str, typer.Option("--compare", help="Compare 'latents' or 'pixels'.")] = "latents",
    tails: Annotated[str, typer.Option(help="After a stretch: 'exact', 'coarse', 'small' or 'none'.")] = "exact",
    stride: Annotated[int, typer.Option(help="With coarse tails: compute every so many steps.")] = 2,
    batch: Annotated[int, typer.Option(help="Stretches measured in one forward, where memory allows.")] = 1,
    min_budget: Annotated[
        int | None,
        typer.Option(help="Fewest computed steps of later schedules; edges that none can need are not measured."),
    ] = None,
    hopeless: Annotated[int | None, typer.Option(hidden=True)] = None,
    small: Small = None,
    dtype: Dtype = "float32",
    forecast: Annotated[
        Path | None,
        typer.Option("--from", help="Forecast artifact to work the errors out from, without a run.", exists=True),
    ] = None,
) -> None:
    """Measure the final error of every stretch of skipped steps. Resumable after Ctrl-C; also runs under torchrun.

    With --from they follow from a Forecast calibration in closed form, without running the model.
    """
    from ..calibrate import calibrate_lemica as run

    if forecast is not None:
        return _lemica_from(forecast, out, reuse, max_gap)
    if hopeless is not None:
        say(note("vaccel calibrate lemica", "--hopeless"), "yellow")
        min_budget = hopeless

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(
            loaded.pipe, chosen, path, seeds=seed, small=loaded.small, reuse=reuse, max_gap=max_gap,
            compare=compare_in, tails=tails, stride=stride, batch=batch, min_budget=min_budget, **options,
        )  # fmt: skip

    one_of("--reuse", reuse, ("blocks", "residual"))
    one_of("--compare", compare_in, ("latents", "pixels"))
    one_of("--tails", tails, ("exact", "coarse", "small", "none"))
    data = _calibrated(pipeline, small, call, dtype, steps, out, prompt, prompts, measure)
    measured = next(iter(data["samples"].values()))["errors"]
    forwards = sum(s["forwards"] for s in data["samples"].values())
    say(f"{out}: {len(data['samples'])} samples, {len(measured)} edges each, {forwards} forwards")


def _lemica_from(forecast: Path, out: Path, reuse: str, max_gap: int) -> None:
    from ..calibrate import lemica_from_forecast
    from ..calibrate.lemica_from import REUSES
    from ..planning import files

    one_of("--reuse", reuse, REUSES)
    with clear_errors("nothing was written", then="vaccel calibrate forecast PIPELINE --out FILE"):
        files.check(out)
        if out.exists() and out.resolve() == forecast.resolve():
            raise typer.BadParameter("is the artifact that is read", param_hint="--out")
        data = lemica_from_forecast(forecast, out, reuse=reuse, max_gap=max_gap)
    say(f"{out}: {len(data['samples']['closed form']['errors'])} edges by {forecast}, no forwards")


@app.command("forecast")
def calibrate_forecast(
    pipeline: Pipeline = "demo",
    out: Artifact = Path("forecast.json"),
    prompt: Prompts = None,
    prompts: PromptFile = None,
    seed: Annotated[
        list[int] | None, typer.Option("--seed", help="Seed of the noise; by default one of its own for every prompt.")
    ] = None,
    steps: Steps = 50,
    call: Call = None,
    bands: Annotated[int, typer.Option(help="2 to separate low from high spatial frequencies.")] = 1,
    tails: Annotated[int, typer.Option(help="Steps at which error growth is measured; 0 for the prior's.")] = 10,
    tail_samples: Annotated[int | None, typer.Option(help="Samples to measure it on; all by default.")] = None,
    trials: Annotated[bool, typer.Option(help="Trial runs that relate errors to PSNR (for Auto(psnr=...)).")] = True,
    keep: Annotated[str, typer.Option(help="Where a run's velocities are kept: 'device' or 'host'.")] = "device",
    first_order: Annotated[
        bool, typer.Option(help="Record every sample with a first-order solver too, to serve other solvers as well.")
    ] = True,
    refine: Annotated[
        float, typer.Option(help="Minutes to search for better paths by trying them; 0 for none.", min=0)
    ] = 0,
    metrics: Annotated[
        str | None, typer.Option(help="Further metrics of the trial runs than PSNR, such as vmaf,flicker,ssim.")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="Another scheduler class of diffusers, on the pipeline's own settings.")
    ] = None,
    dtype: Dtype = "float32",
) -> None:
    """Measure weights, error growth and PSNR by budget. Resumable after Ctrl-C; also runs under torchrun."""
    from ..calibrate import calibrate_forecast as run
    from ..calibrate.forecast import BUDGETS
    from ..calibrate.refining import refine as search

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        if solver is not None:
            loaded.pipe.scheduler = _solver(solver, loaded.pipe.scheduler)
        made = run(
            loaded.pipe, chosen, path, seeds=seed or None, bands=bands, tails=tails, tail_samples=tail_samples,
            trials=BUDGETS if trials else (), keep=keep, first_order=first_order, metrics=further, **options,
        )  # fmt: skip
        if refine:
            made = search(loaded.pipe, path, chosen, refine, seeds=seed or None, **options)
        return made

    one_of("--keep", keep, ("device", "host"))
    further = _further(metrics)
    data = _calibrated(pipeline, None, call, dtype, steps, out, prompt, prompts, measure)
    forwards = sum(s["forwards"] for s in data["samples"].values())
    say(f"{out}: {len(data['samples'])} samples, {forwards} forwards")


def _further(names: str | None) -> dict[str, Any]:
    """Metrics by these names, as a calibration takes them."""
    from ..evaluate import fidelity

    if names is None:
        return {}
    with clear_errors("nothing was written", then="vaccel doctor"):
        found = fidelity.chosen(names.split(","))
    return {
        metric.name: lambda full, made, measure=metric.measure: measure(full, made, FPS)
        for metric in found
        if metric.name not in fidelity.YARDSTICKS
    }


def _solver(name: str, known: Any) -> Any:
    """A scheduler of this class with the settings of the pipeline's own, whatever the shift of its levels is called."""
    import diffusers

    from ..calibrate.first_order import of_class

    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise typer.BadParameter(f"{name!r} is no scheduler class of diffusers", param_hint="--solver")
    return of_class(kind, known)


@app.command("merge")
def merge(
    calibrations: Annotated[list[Path], typer.Argument(help="Forecast artifacts of one model.")],
    out: Annotated[Path, typer.Option(help="Artifact to write.")] = Path("merged.json"),
) -> None:
    """Merge Forecast calibrations of one model, by several solvers or numbers of steps: one that serves all of them."""
    with clear_errors("nothing was written", then="vaccel calibrate forecast PIPELINE --out FILE"):
        from ..planning import artifacts, files
        from ..planning.calibration import calibration
        from ..planning.merging import merged

        files.check(out)
        data = merged([calibration(path) for path in calibrations])
        artifacts.replace(out, data)
    say(f"{out}: {len(calibrations)} calibrations at {data['num_steps']} levels")


@app.command("mixcache")
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
        typer.Option(help="Block to resume after. Repeat for more; quarters of the depth by default."),
    ] = None,
    dtype: Dtype = "float32",
) -> None:
    """Measure the impact of each level of caching. Resumable after Ctrl-C; also runs under torchrun."""
    from ..calibrate import calibrate_mixcache as run

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(loaded.pipe, chosen, path, seeds=seed, candidates=tuple(candidate) if candidate else None, **options)

    found = _calibrated(pipeline, None, call, dtype, steps, out, prompt, prompts, measure)["fields"]
    say(f"{out}: theta {found['theta']:.3g}, d1 {found['d1']:.3g}, d2 {found['d2']:.3g}, blocks "
                  f"{found['candidates']}, impacts of step {found['step_impact']:.3g}, cfg "
                  f"{found.get('cfg_impact', 0):.3g}")  # fmt: skip
