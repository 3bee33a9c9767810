"""8-bit attention on the moving shapes, emulated: ``python bench/measure_attention.py``.

What a trial reads (relative L2 error of a model's output at its first computed step) beside what becomes of the clip
(PSNR in dB to the full run with exact attention, on held-out captions), for queries and keys of 8 bits down to 3, with
and without keys' mean subtracted; what bfloat16 alone costs by the same two measures; and SRDiffusion's layers
(arXiv 2505.19151): the small model, TeaCache in its stage, 8-bit attention in both.  The attention is
``emulated_attention.py``'s: its errors are measured, its speed is that of no kernel and is not.

Writes bench/results/cpu/attention.json.
"""

from __future__ import annotations

import contextlib
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import emulated_attention
import results
import torch
import typer

import vaccel
from vaccel.calibrate.samples import sample
from vaccel.demo import family, shapes
from vaccel.evaluate import parse_contender
from vaccel.integrations.diffusers.attention import BOUND

#: (bits of queries and keys, whether keys' mean is subtracted)
GRAINS = [(8, True), (8, False), (7, True), (6, True), (5, True), (4, True), (3, True)]
SRDIFFUSION = {
    "SRDiffusion": "SRDiffusion(threshold=0.002)",
    "SRDiffusion + TeaCache": "SRDiffusion(threshold=0.002, rendering=TeaCache(artifact='teacache_small.json', "
    "threshold=0.1))",
}
ANY = 1e6  # a bound that nothing passes: what a refused backend would have done is measured too


class Bench:
    """The family and its full runs by (caption, steps)."""

    def __init__(self, captions: int):
        self.loaded, self.captions = family.load(), shapes.held_out_captions(captions)
        self._full: dict[tuple[int, int], torch.Tensor] = {}

    def clip(self, pipe: Any, caption: int, steps: int) -> torch.Tensor:
        call = {**self.loaded.call, "num_inference_steps": steps}
        return sample(pipe, self.captions[caption], caption, call, output="pt").double()

    def full(self, caption: int, steps: int) -> torch.Tensor:
        if (caption, steps) not in self._full:
            self._full[caption, steps] = self.clip(self.loaded.pipe, caption, steps)
        return self._full[caption, steps]

    def runs(self, method: Any, steps: int, grain: tuple[int, bool] | None) -> dict[str, Any]:
        """A method on all captions: PSNR to the full run, what the trials said, the clips."""
        found: dict[str, Any] = {"psnr": [], "errors": {}, "timelines": [], "clips": []}
        given: dict[str, Any] = {"small": self.loaded.small if method.needs_small else None}
        if grain is not None:
            given["attention"] = "sageattention", ANY
        truth = [self.full(caption, steps) for caption in range(len(self.captions))]  # before it is accelerated
        with _emulated(grain):
            for caption in range(len(self.captions)):  # a handle each: a trial on every caption
                with vaccel.accelerate(self.loaded.pipe, method, **given) as handle:
                    clip = self.clip(self.loaded.pipe, caption, steps)
                    found["psnr"].append(psnr(clip, truth[caption]))
                    found["clips"].append(clip)
                    found["timelines"].append(handle.trace.timeline())
                    for verdict in handle._attention.verdicts if grain is not None else []:
                        found["errors"].setdefault(verdict.label, []).append(verdict.error)
        return found


@contextlib.contextmanager
def _emulated(grain: tuple[int, bool] | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if grain is not None:
            stack.enter_context(emulated_attention.standing_in(emulated_attention.backend(*grain)))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def psnr(clip: torch.Tensor, other: torch.Tensor) -> float:
    """In dB; the values are in [0, 1]."""
    return round(-10 * torch.log10((clip - other).square().mean().clamp_min(1e-12)).item(), 2)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Means, the worst, and the largest error that a trial read, of what ``runs`` gives."""
    row = {"psnr": round(statistics.mean(found["psnr"]), 2), "psnr_worst": min(found["psnr"])}
    if found["errors"]:
        row["errors"] = {label: float(f"{max(errors):.3g}") for label, errors in found["errors"].items()}
    return row


def sweep(bench: Bench, steps: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every grain in a run that computes all steps: the trial's reading beside the clip's PSNR."""
    rows = []
    for bits, smooth in GRAINS:
        found = bench.runs(vaccel.Schedule(range(steps), num_steps=steps), steps, (bits, smooth))
        row = {"bits": bits, "smooth": smooth, **summary(found)}
        row["accepted"] = row["errors"]["transformer"] <= BOUND
        rows.append(row)
        say(str(row))
    return rows


def rounding(bench: Bench, steps: int) -> dict[str, Any]:
    """What computing in bfloat16 costs by the same measures, attention and all else."""
    loaded, found = family.load(dtype=torch.bfloat16), []
    pipe, exact = loaded.pipe, bench.loaded.pipe.transformer
    errors: list[float] = []

    def compare(module: Any, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if not errors or len(errors) < len(found) + 1:  # the first call of each run
            wide = {k: v.float() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
                    for k, v in kwargs.items()}  # fmt: skip
            truth = exact(**wide)[0]
            errors.append(float((output[0].float() - truth).norm() / truth.norm()))

    hook = pipe.transformer.register_forward_hook(compare, with_kwargs=True)
    for caption in range(len(bench.captions)):
        found.append(psnr(bench.clip(pipe, caption, steps), bench.full(caption, steps)))
    hook.remove()
    return {"error": float(f"{max(errors):.3g}"), "psnr": round(statistics.mean(found), 2)}


def layers(bench: Bench, steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """SRDiffusion with and without 8-bit attention: PSNR to the full run, and of each pair to one another."""
    rows: dict[str, Any] = {}
    for label, text in SRDIFFUSION.items():
        method = parse_contender(text, bench.loaded.folder).method
        exact = bench.runs(method, steps, None)
        eight = bench.runs(method, steps, GRAINS[0])
        beside = [psnr(a, b) for a, b in zip(eight["clips"], exact["clips"], strict=True)]
        rows[label] = {
            "method": text, "exact": summary(exact), "8-bit": summary(eight),
            "psnr_8-bit_to_exact": round(statistics.mean(beside), 2),
            "timelines": {"exact": exact["timelines"], "8-bit": eight["timelines"]},
        }  # fmt: skip
        say(f"{label}: {rows[label]}")
    return rows


def main(
    captions: Annotated[int, typer.Option(help="Held-out captions.")] = 3,
    sweep_steps: Annotated[int, typer.Option(help="Steps of the runs that compute all of them.")] = 30,
    steps: Annotated[int, typer.Option(help="Steps of SRDiffusion's runs.")] = 50,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 1,
) -> None:
    """Measures and writes the JSON."""
    torch.set_num_threads(threads)
    bench = Bench(captions)

    def say(line: str) -> None:
        print(line, flush=True)

    with torch.no_grad():
        payload = {"bound": BOUND, "bfloat16": rounding(bench, sweep_steps), "sweep": sweep(bench, sweep_steps, say)}
        say(str(payload["bfloat16"]))
        payload["srdiffusion"] = layers(bench, steps, say)
    payload |= {"prompts": bench.captions, "sweep_steps": sweep_steps, "steps": steps}
    print(results.write("attention", payload))


if __name__ == "__main__":
    typer.run(main)
