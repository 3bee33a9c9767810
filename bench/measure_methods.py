"""Every method beside diffusers' caches and fewer steps on the demo family.

``python bench/measure_methods.py`` writes bench/results/<device>/methods.json: speedup (each run timed beside a full
run made just before it), forwards, PSNR, SSIM, caption accuracy, DirectionMagnitude's ablations and the observations of
its section 4.1 (OpenReview egUfF6cesw).  Held-out captions; the calibrations in use were made on others.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import results
from rich.progress import Progress

from vaccel import demo
from vaccel.demo.checker import check
from vaccel.demo.shapes import held_out_captions
from vaccel.evaluate import compare, parse_contender, write_report
from vaccel.evaluate.observations import observe

CONTENDERS = (
    *(f"DirectionMagnitude(threshold={t})" for t in (0.001, 0.002, 0.005, 0.010)),
    "DirectionMagnitude(threshold=0.005, cfg_reuse=False)",
    "DirectionMagnitude(threshold=0.005, magnitude='cached')",
    "DirectionMagnitude(threshold=0.005, magnitude='projection')",
    *(f"SRDiffusion(threshold={t})" for t in (0.002, 0.010, 0.030)),
    "SRDiffusion(threshold=0.010, rendering=TeaCache(artifact='teacache_small.json', threshold=0.1))",
    *(f"TeaCache(artifact='teacache.json', threshold={t})" for t in (0.05, 0.1, 0.2, 0.4)),
    *(f"diffusers.FirstBlockCache(threshold={t})" for t in (0.05, 0.1, 0.2)),
    *(f"diffusers.MagCache(threshold={t})" for t in (0.06, 0.24)),
    *(f"diffusers.TaylorSeer(cache_interval={n})" for n in (2, 3, 4)),
    *(f"diffusers.SeaCache(threshold={t})" for t in (0.15, 0.25, 0.5)),
    *(f"steps({n})" for n in (25, 20, 16, 13)),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--report", type=Path, default=Path("out/methods"), help="folder of the page to look at")
    arguments = parser.parse_args()
    family = demo.load()
    prompts = held_out_captions(arguments.prompts)
    call = {**family.call, "num_inference_steps": arguments.steps}
    contenders = [parse_contender(text, family.folder) for text in CONTENDERS]
    with Progress() as bar:
        task = bar.add_task("comparing", total=1)
        comparison = compare(
            family.pipe,
            contenders,
            prompts,
            small=family.small,
            call=call,
            checker=lambda clip, prompt: {"caption": float(check(clip, prompt).correct)},
            progress=lambda done, total, what: bar.update(task, completed=done, total=total, description=what[:60]),
        )
    seen = observe(family.pipe, family.small, prompts[:4], call)
    write_report(comparison, arguments.report, title="methods on the demo family", facts={}, seen=seen)
    payload = comparison.to_json() | {"prompts": prompts, "observations": seen.middle()}
    payload["rows"] = [{k: v for k, v in row.items() if k != "timeline"} for row in payload["rows"]]
    print(results.write("methods", payload))


if __name__ == "__main__":
    main()
