"""How good the shipped family is: ``python bench/measure_family.py`` writes bench/results/<device>/family.json.

Caption accuracy of the large and the small model over 64 held-out captions at 50 steps with guidance, of true clips
and of shuffled captions (what the checker itself is worth), and the cost of one forward of each model.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import results
import torch
from rich.progress import track

from vaccel import demo
from vaccel.demo import shapes
from vaccel.demo.checker import accuracy


def sample(pipe, captions: list[str], call: dict, steps: int, batch: int) -> list[np.ndarray]:
    """One clip a caption, seeded by its number."""
    clips = []
    for at in track(range(0, len(captions), batch), description="sampling"):
        chosen = captions[at : at + batch]
        generator = [torch.Generator().manual_seed(at + i) for i in range(len(chosen))]
        clips.extend(pipe(chosen, num_inference_steps=steps, generator=generator, **call).frames)
    return clips


@torch.no_grad()
def forward_seconds(models: dict, call: dict, rounds: int = 40) -> dict[str, list[float]]:
    """Seconds of single forwards at batch 1, the models taking turns."""
    frames, side = (call["num_frames"] - 1) // 4 + 1, call["height"] // 8
    inputs = {
        "hidden_states": torch.randn(1, 64, frames, side, side),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, call["max_sequence_length"], 64),
        "return_dict": False,
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 5):
        for name, model in models.items():
            start = time.perf_counter()
            model(**inputs)
            if round_number >= 5:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def checker_rates(count: int) -> dict[str, dict[str, float]]:
    """What the checker says of true clips, of their round trip through the VAE, and of shuffled captions."""
    generator = torch.Generator().manual_seed(5)
    captions, clips = shapes.draw_batch(count, generator, held_out=True)
    vae = demo.load().pipe.vae
    back = vae.decode(vae.encode(clips.permute(0, 4, 1, 2, 3) * 2 - 1).latent_dist.mode()).sample
    back = (back.permute(0, 2, 3, 4, 1) + 1) / 2
    return {
        "true": accuracy(clips, captions),
        "true_through_vae": accuracy(back, captions),
        "shuffled": accuracy(clips, captions[1:] + captions[:1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    family = demo.load()
    captions = shapes.held_out_captions(arguments.captions)
    large, small = family.pipe.transformer, family.small
    accuracies = {}
    for name, model in (("large", large), ("small", small)):
        family.pipe.transformer = model
        clips = sample(family.pipe, captions, family.call, arguments.steps, arguments.batch)
        accuracies[name] = accuracy(clips, captions)
        print(name, accuracies[name])
    seconds = forward_seconds({"large": large, "small": small}, family.call)
    ratios = [a / b for a, b in zip(seconds["large"], seconds["small"], strict=True)]
    payload = {
        "captions": len(captions),
        "steps": arguments.steps,
        "guidance_scale": family.call["guidance_scale"],
        "accuracy": accuracies,
        "checker": checker_rates(512),
        "forward_ms": {n: [round(1e3 * q, 3) for q in np.quantile(s, [0.25, 0.5, 0.75])] for n, s in seconds.items()},
        "cost_ratio": {"median": statistics.median(ratios), "quartiles": np.quantile(ratios, [0.25, 0.75]).tolist()},
        "parameters": {n: sum(p.numel() for p in m.parameters()) for n, m in (("large", large), ("small", small))},
    }
    print(results.write("family", payload))


if __name__ == "__main__":
    main()
