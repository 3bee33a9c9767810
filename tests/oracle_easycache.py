"""A plain loop of EasyCache (arXiv 2507.02860), written from a reading of the method alone; nothing of vaccel.

The idea: a step's output v is about as sensitive to its input x now as it was a moment ago, so a change of the input
says how much the output would change.  While the changes foreseen since the last computed step add up to little, the
difference v - x of that step stands in for the model.

What is measured.  x_i is the latent that the model is given at step i, without channels of conditions beside it;
v_i is the model's output on the conditional branch, before guidance.  |a| is the mean of absolute values of one
sample, in double precision (the L1 norm: whether it is summed or averaged cancels out in every quotient below).

    rate       k_i = |v_i - v_j| / |x_i - x_j|       renewed at computed steps only, kept on skipped ones
    foreseen   e_i = k * |x_i - x_{i-1}| / |v_*|     at every step that could be skipped, with the latest k
    summed     E_i = E_{i-1} + e_i                   0 after every computed step, whatever made it computed

What happens at step i of n, in this order:

1. |x_i - x_{i-1}| is taken, so the input of every step is kept, of skipped ones too.
2. Steps before ``warmup`` and the last ``last`` steps are computed, without a test; so is a step before which there
   is no k.  A rate needs two computed steps: steps 0 and 1 are computed even with ``warmup=0``.
3. Otherwise e_i is added to E and E is tested.  E < threshold: the step is skipped.  E >= threshold, or E is not a
   number (0 / 0: the input or the output stood still), in any sample: the step is computed, for the whole batch.
4. A skipped step takes x_i + (v - x of the last computed step).  Each branch has its own v - x; both are skipped
   together, the unconditional one never votes.  k, both differences and the last computed point stay.
5. A computed step evaluates both branches, stores both differences, renews k and sets E to 0.
6. Guidance and the solver follow, as they would without a cache.

Where the paper and the released code differ, each by one parameter whose default is the paper's rule:

- ``rate_from``, the point j in the rate.  "previous": the step before, j = i - 1, as the formula has it; where that
  step was skipped, its v is the stand-in.  "computed": the last computed step before i, for x and for v (release).
- ``relative_to``, the output v_* in e_i.  "previous": v_{i-1}, the stand-in where that step was skipped.
  "computed": v of the last computed step (release).

``RELEASE`` holds both of the release's choices.  The two agree until a step has been skipped.  The paper is known here
from its formulas as others quote them, not from its full text; that the output of a skipped step in them is the
stand-in is our reading of "t - 1".  In all else they agree: L1, comparison, when E starts again, the last step
computed.  Those formulas have one output and no guidance; two branches are handled as in the release's code for Wan.

Ours, in neither: values per sample, and the most cautious sample decides (the release averages over a whole batch).
Also, nothing outlives a run (the release keeps its state on the model, so that a second video starts from the first
one's; with a warm-up of two steps or more that changes nothing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

RELEASE = {"rate_from": "computed", "relative_to": "computed"}
CHOICES = ("previous", "computed")

Metrics = dict[str, list[list[float] | None]]


class Point(NamedTuple):
    """A step's input and its output on the conditional branch."""

    x: Tensor
    v: Tensor


def size(a: Tensor) -> Tensor:
    """The mean absolute value of every sample, in double precision: shape (samples,)."""
    return a.double().abs().flatten(1).mean(1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return size(a.double() - b.double())


def listed(values: Tensor | None) -> list[float] | None:
    return None if values is None else values.tolist()


@torch.no_grad()
def easycache(
    model: Callable[[Tensor, Any, Any], Tensor],
    solver_step: Callable[[Tensor, int, Tensor], Tensor],
    x: Tensor,
    timesteps: Sequence[Any] | Tensor,
    *,
    cond: Any,
    uncond: Any = None,
    guidance: float = 1.0,
    threshold: float = 0.05,
    warmup: int = 10,
    last: int = 1,
    rate_from: str = "previous",
    relative_to: str = "previous",
) -> tuple[Tensor, str, Metrics]:
    """Sample from ``x``, shape (samples, ...), in any float dtype.

    Args:
        model: ``model(x, t, condition) -> v``, of x's shape.
        solver_step: ``solver_step(v, i, x) -> x`` of the next step, with the guided ``v``.
        uncond: condition of the other branch; ``None`` for a run without guidance.
        threshold: as a share, not in per cent.
        warmup, last: how many steps at the start and at the end are computed without a test.

    Returns:
        The final x; a letter per step, ``F`` computed, ``r`` reused; lists over the steps of values per sample, each
        ``None`` where there is no value: ``error``, E as it was tested, before it was set to 0; ``k``, the rate known
        at the step's end, so the test of step i used ``k[i - 1]``; ``input_change``, |x_i - x_{i-1}|.
    """
    assert {rate_from, relative_to} <= set(CHOICES)
    conditions = {"cond": cond} if uncond is None else {"cond": cond, "uncond": uncond}
    differences: dict[str, Tensor] = {}
    previous = computed = rate = None
    error = nothing = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    letters, metrics = [], {"error": [], "k": [], "input_change": []}
    for i, t in enumerate(timesteps):
        change = None if previous is None else distance(x, previous.x)
        tested = None
        if warmup <= i < len(timesteps) - last and rate is not None:
            base = previous if relative_to == "previous" else computed
            tested = error + rate * change / size(base.v)
        if tested is not None and bool((tested < threshold).all()):
            out = {name: x + difference for name, difference in differences.items()}
            error = tested
            letters.append("r")
        else:
            out = {name: model(x, t, condition) for name, condition in conditions.items()}
            differences = {name: v - x for name, v in out.items()}
            base = previous if rate_from == "previous" else computed
            if base is not None:
                rate = distance(out["cond"], base.v) / distance(x, base.x)
            computed = Point(x.clone(), out["cond"].clone())
            error = nothing
            letters.append("F")
        previous = Point(x.clone(), out["cond"].clone())
        for name, values in (("error", tested), ("k", rate), ("input_change", change)):
            metrics[name].append(listed(values))
        v = out["cond"] if uncond is None else out["uncond"] + guidance * (out["cond"] - out["uncond"])
        x = solver_step(v, i, x)
    return x, "".join(letters), metrics
