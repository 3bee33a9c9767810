"""``vaccel calibrate``: measure what a method needs to know about a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ..deprecated import note
from .cluster import Cluster, Gpus, Ray, Workers, anywhere, crew_of, threads
from .console import Bar, clear_errors, say
from .loading import Loaded
from .options import Call, Dtype, Pipeline, PromptFile, Prompts, Seeds, Small, Steps, one_of, prompts_of

app = typer.Typer(no_args_is_help=True, help="Measure what a method needs to know about a model.")

Artifact = Annotated[Path, typer.Option(help="Artifact to write, or to resume.")]


class Asked(NamedTuple):
    """What every calibration is asked for."""

    pipeline: str
    small: str | None
    call: list[str] | None
    dtype: str
    steps: int
    out: Path
    prompt: list[str] | None
    prompts: Path | None
    seeds: list[int] | None
    cluster: Cluster


#: (pipeline, prompts, path, call=..., progress=...) -> the artifact's data.
Measure = Callable[..., dict[str, Any]]


def _calibrated(asked: Asked, method: str, options: dict[str, Any], measure: Measure) -> dict[str, Any]:
    """Calibrates, showing progress: in this process by ``measure``, by workers with the same ``options``."""
    from ..planning import files

    out = asked.out
    with clear_errors(f"{out} keeps what was measured, the same command resumes it"):
        files.check(out)
        if asked.cluster.checked().address is not None:
            return _on_ray(asked, method, options)
        loaded = Loaded(asked.pipeline, asked.small, asked.call, asked.dtype)
        with Bar() as bar:
            call = {"num_inference_steps": asked.steps, **loaded.call}
            return measure(loaded, _prompts(asked), out, call=call, progress=bar.update)


def _prompts(asked: Asked) -> list[str]:
    from ..demo import family

    default = family.calibration_captions(8) if asked.pipeline == "demo" else None
    return prompts_of(asked.prompt, asked.prompts, default)


def _on_ray(asked: Asked, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The samples by workers, the fit here."""
    from ..calibrate.samples import runs_of
    from ..cluster.messages import MOST_SAMPLE, Setup
    from ..cluster.recording import record

    prompts = _prompts(asked)
    wanted = len(runs_of(prompts, asked.seeds))

    def setup(share: int) -> Setup:
        return Setup(method, anywhere(asked.pipeline), asked.steps, anywhere(asked.small), asked.call or [],
                     asked.dtype, threads(), share, options)  # fmt: skip

    with Bar() as bar:

        def looking(what: str) -> None:
            bar.update(0, wanted, what)

        with crew_of(asked.cluster, setup, wanted, looking, MOST_SAMPLE) as crew:
            return record(crew, method, prompts, asked.seeds, asked.out, options, bar.update)


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
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Fit TeaCache's coefficients by full runs of a model. Resumable: run it again after Ctrl-C."""
    from ..calibrate import calibrate_teacache as run

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        if of_small:
            if loaded.small is None:
                raise typer.BadParameter("there is no small model: pass --small", param_hint="--of-small")
            loaded.pipe.transformer = loaded.small
        return run(loaded.pipe, chosen, path, seeds=seed, retention=retention, **options)

    cluster = Cluster(ray, workers, gpus_per_worker)
    asked = Asked(pipeline, small, call, dtype, steps, out, prompt, prompts, seed, cluster)
    data = _calibrated(asked, "teacache", {"retention": retention, "of_small": of_small}, measure)
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
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
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

    settings = {"reuse": reuse, "max_gap": max_gap, "compare": compare_in, "tails": tails, "stride": stride,
                "batch": batch, "min_budget": min_budget}  # fmt: skip

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(loaded.pipe, chosen, path, seeds=seed, small=loaded.small, **settings, **options)

    one_of("--reuse", reuse, ("blocks", "residual"))
    one_of("--compare", compare_in, ("latents", "pixels"))
    one_of("--tails", tails, ("exact", "coarse", "small", "none"))
    cluster = Cluster(ray, workers, gpus_per_worker)
    asked = Asked(pipeline, small, call, dtype, steps, out, prompt, prompts, seed, cluster)
    data = _calibrated(asked, "lemica", settings, measure)
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
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Measure weights, error growth and PSNR by budget. Resumable after Ctrl-C; also runs under torchrun."""
    from ..calibrate import calibrate_forecast as run
    from ..calibrate.first_order import named
    from ..calibrate.forecast import BUDGETS
    from ..calibrate.refining import refine as search
    from ..evaluate import fidelity

    further = _further(metrics)
    settings = {"bands": bands, "tails": tails, "tail_samples": tail_samples, "trials": BUDGETS if trials else (),
                "keep": keep, "first_order": first_order}  # fmt: skip

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        if solver is not None:
            loaded.pipe.scheduler = named(solver, loaded.pipe.scheduler)
        made = run(
            loaded.pipe, chosen, path, seeds=seed or None, **settings, metrics=fidelity.beside(further), **options
        )
        if refine:
            made = search(loaded.pipe, path, chosen, refine, seeds=seed or None, **options)
        return made

    one_of("--keep", keep, ("device", "host"))
    cluster = Cluster(ray, workers, gpus_per_worker)
    if refine and ray is not None:
        raise typer.BadParameter("is one search by one process: run it without --ray afterwards", param_hint="--refine")
    asked = Asked(pipeline, None, call, dtype, steps, out, prompt, prompts, seed or None, cluster)
    told = {**settings, "trials": list(settings["trials"]), "metrics": further, "solver": solver}
    data = _calibrated(asked, "forecast", told, measure)
    forwards = sum(s["forwards"] for s in data["samples"].values())
    say(f"{out}: {len(data['samples'])} samples, {forwards} forwards")


def _further(names: str | None) -> list[str]:
    """Names of metrics that a calibration takes, each of which can be measured here."""
    from ..evaluate import fidelity

    if names is None:
        return []
    with clear_errors("nothing was written", then="vaccel doctor"):
        return list(fidelity.beside(names.split(",")))


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
    ray: Ray = None,
    workers: Workers = None,
    gpus_per_worker: Gpus = None,
) -> None:
    """Measure the impact of each level of caching. Resumable after Ctrl-C; also runs under torchrun."""
    from ..calibrate import calibrate_mixcache as run

    def measure(loaded: Loaded, chosen: list[str], path: Path, **options: Any) -> dict[str, Any]:
        return run(loaded.pipe, chosen, path, seeds=seed, candidates=tuple(candidate) if candidate else None, **options)

    cluster = Cluster(ray, workers, gpus_per_worker)
    asked = Asked(pipeline, None, call, dtype, steps, out, prompt, prompts, seed, cluster)
    found = _calibrated(asked, "mixcache", {"candidates": candidate or None}, measure)["fields"]
    say(f"{out}: theta {found['theta']:.3g}, d1 {found['d1']:.3g}, d2 {found['d2']:.3g}, blocks "
                  f"{found['candidates']}, impacts of step {found['step_impact']:.3g}, cfg "
                  f"{found.get('cfg_impact', 0):.3g}")  # fmt: skip
