"""ComfyUI's own EasyCache and LazyCache, as plain wrappers for its double: what ours is compared with.

Written anew from reading ``comfy_extras/nodes_easycache.py`` at commit a125cd84b054a57729b5eecab930ca9408719832.  Two
things are kinder than the file: of a batch of conditions each gets its own difference back (there all of them are added
to all rows), and change is measured on all elements of latents this small instead of on every eighth row and column.
"""

from __future__ import annotations

from typing import Any

import comfyui_double as comfy
import torch


class Rule:
    """How much the output is expected to have changed since it was computed: its rate times the input's change."""

    def __init__(self, threshold: float):
        self.threshold, self.error = threshold, 0.0
        self.x = self.output = self.size = self.rate = self.change = None

    def skips(self, x: torch.Tensor) -> bool:
        self.change = None if self.x is None else float((x - self.x).abs().mean())
        if self.change is None or self.size is None or self.rate is None:
            return False
        self.error += self.rate * self.change / self.size
        if self.error < self.threshold:
            return True
        self.error = 0.0
        return False

    def computed(self, x: torch.Tensor, output: torch.Tensor) -> None:
        if self.size is not None and self.change:
            self.rate = float((output - self.output).abs().mean()) / self.change
        self.x, self.output, self.size = x.clone(), output.clone(), float(output.abs().mean())


class OwnCache:
    """One of both on a clone of a model; ``timeline`` tells of the last run.

    Args:
        lazy: around the guided prediction of x_0 (LazyCache) in the place of the network (EasyCache).
    """

    def __init__(self, patcher: Any, threshold: float, *, lazy: bool, start: float = 0.15, end: float = 0.95):
        self.threshold, self.start, self.end, self.lazy = threshold, start, end, lazy
        self.patcher, self.timeline = patcher.clone(), ""
        self.patcher.add_wrapper_with_key(comfy.OUTER_SAMPLE, "own", self.sampling)
        kind = comfy.PREDICT_NOISE if lazy else comfy.DIFFUSION_MODEL
        self.patcher.add_wrapper_with_key(kind, "own", self.predicting if lazy else self.network)
        if not lazy:
            self.patcher.add_wrapper_with_key(comfy.CALC_COND_BATCH, "own", self.call_begins)

    def sampling(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        levels = executor.class_obj.model_patcher.model.model_sampling
        self.first, self.last = levels.percent_to_sigma(self.start), levels.percent_to_sigma(self.end)
        self.rule, self.differences, self.leader, self.skipping = Rule(self.threshold), {}, None, False
        self.letters: list[str] = []
        made = executor(*args, **kwargs)
        self.timeline = "".join(self.letters)
        return made

    def call_begins(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        self.skipping = False
        self.letters.append("F")
        return executor(*args, **kwargs)

    def predicting(self, executor: Any, x: torch.Tensor, timestep: torch.Tensor, *args: Any) -> torch.Tensor:
        self.letters.append("F")
        sigma = float(timestep[0])
        if sigma <= self.last:
            return executor(x, timestep, *args)
        if sigma <= self.first and self.rule.skips(x):
            self.letters[-1] = "r"
            return x + self.differences["all"]
        output = executor(x, timestep, *args)
        self.differences["all"] = output - x
        self.rule.computed(x, output)
        return output

    def network(self, executor: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        x, options = args[0], next(a for a in args if isinstance(a, dict))
        sigma, uuids = float(options["sigmas"][0]), options["uuids"]
        if sigma <= self.last:
            return executor(*args, **kwargs)
        size = len(x) // len(uuids)

        def of(rows: torch.Tensor, uuid: Any) -> torch.Tensor:
            place = uuids.index(uuid)
            return rows[place * size : (place + 1) * size]

        if sigma <= self.first:
            self.leader = self.leader or uuids[0]
            if not self.skipping and self.leader in uuids and self.rule.skips(of(x, self.leader)):
                self.skipping = True
            if self.skipping:
                self.letters[-1] = "r"
                return torch.cat([of(x, uuid) + self.differences[uuid] for uuid in uuids])
        output = executor(*args, **kwargs)
        self.differences |= {uuid: of(output - x, uuid) for uuid in uuids}
        if self.leader in uuids:
            self.rule.computed(of(x, self.leader), of(output, self.leader))
        return output


def tuned(patcher: Any, computed: int, run: Any, *, lazy: bool, tries: int = 9) -> tuple[OwnCache, Any]:
    """The threshold with which a run computes so many calls, or the next more that it can, by bisection.

    Args:
        run: patched model -> what it has sampled.

    Returns (the cache, what it has sampled).
    """
    low, high, best = 0.0, 1.0, None
    for _ in range(tries):
        middle = (low + high) / 2
        cache = OwnCache(patcher, middle, lazy=lazy)
        made = run(cache.patcher)
        count = cache.timeline.count("F")
        if count >= computed and (best is None or count < best[0]):
            best = count, cache, made
        if count == computed:
            break
        low, high = (middle, high) if count > computed else (low, middle)
    return best[1:]
