"""What a step costs beyond the model: Python and arithmetic of vaccel and its peers, on one tiny Wan transformer.

    pytest bench/bench_overhead.py --benchmark-json=out/overhead.json        # the standard table, one after another
    VACCEL_BENCH_WRITE=1 pytest bench/bench_overhead.py -k interleaved       # the comparison, and its JSON

On a machine with other work, ``--benchmark-timer=time.thread_time`` gives the standard table the comparison's clock.

Every contender is called as WanPipeline's loop calls its transformer, guidance off, so that each call bears its step's
decision.  What a call costs *over bare* is its time minus that of the parts of the model it still runs, measured
beside it on a transformer that has only those parts and is called the same way:

    nothing     an empty forward: what every call costs, cache context and ``Module.__call__`` included
    0 blocks    embeddings and head (a step that reuses the residual of the block stack)
    no proj     the same, its output projection replaced by a tensor that is there already
    1 block     embeddings, one block, head
    small       the small transformer (a rescaled step)
    bare        all blocks (4, or VACCEL_BENCH_BLOCKS): a computed step, and what every ratio is a ratio to

The decision is no part of the model: TeaCache's timestep embedding counts as overhead.  All share one set of weights.
Interleaved, a round goes through the contenders in random order and times each call beside one of its reference: the
difference of such a pair is what the call costs over bare.  The clock is the thread's own processor time, since all of
it runs in one thread: other processes then disturb less.  ``low`` is the same with tenth percentiles in place of
medians: what is left where nothing else pushes code and data out of the processor's caches.
"""

from __future__ import annotations

import functools
import gc
import os
import random
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_parts import gpu
from overhead_contenders import BLOCKS, CONTENDERS, DEVICE, LATENTS, TIMED, Contender, Loop
from results import write

ROUNDS = int(os.environ.get("VACCEL_BENCH_ROUNDS", "50"))
#: Pairs a round; a computed call is long beside what it costs over bare, and wants more of them.
PAIRS = {"skipped": 12, "computed": 36}
COMMAND = (
    "VACCEL_BENCH_WRITE=1 "
    + (f"VACCEL_BENCH_BLOCKS={os.environ['VACCEL_BENCH_BLOCKS']} " if "VACCEL_BENCH_BLOCKS" in os.environ else "")
    + "pytest bench/bench_overhead.py -k interleaved"
)


@functools.cache
def built(contender: Contender) -> Loop:
    """The contender, ready at a timed step, after a run in which it was seen to do what it says."""
    loop, seen = contender.build(), []
    small = list(loop.small.blocks) if loop.small is not None else []
    # Inside the blocks: a hook of diffusers replaces a block's forward and still counts as a call of the block.
    inside = [*(block.ffn for block in loop.transformer.blocks), *(block.ffn for block in small)]
    counting = [module.register_forward_pre_hook(lambda module, args: seen.append(module)) for module in inside]
    ran = contender.blocks + (len(small) if contender.letter == "m" else 0)
    for _ in TIMED:
        loop.prepare()
        seen.clear()
        loop()
        assert len(seen) == ran, f"{contender.id}: {len(seen)} blocks ran at step {loop.index}, expected {ran}"
    for hook in counting:
        hook.remove()
    if loop.handle is not None:
        timeline = loop.handle.trace.timeline()
        assert {timeline[i] for i in TIMED} == {contender.letter}, f"{contender.id}: {timeline}"
    loop.prepare()
    return loop


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """One thread, no gradients, no collection in the middle of a call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    with torch.no_grad():
        yield
    gc.enable()
    torch.set_num_threads(threads)


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: c.id)
def test_call(benchmark: Any, contender: Contender) -> None:
    loop = built(contender)
    benchmark.group = contender.kind
    benchmark.extra_info["reference"] = contender.reference
    benchmark.pedantic(loop, setup=loop.prepare, rounds=10 * len(TIMED), warmup_rounds=len(TIMED))


def _pair(loop: Loop, reference: Loop, first: bool) -> tuple[float, float]:
    """The next call of both, microseconds; ``first`` says whether the contender's comes first."""
    if first:
        return loop.timed(), reference.timed()
    other = reference.timed()
    return loop.timed(), other


def _spread(values: list[float]) -> float:
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def _low(values: list[float]) -> float:
    return statistics.quantiles(values, n=10)[0]


def _rows(samples: dict[str, list[float]], beside: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One row a contender: its calls, their differences from the reference's beside them, the ratio to bare."""
    bare = statistics.median(samples["reference: bare"])
    rows = []
    for c in CONTENDERS:
        median = statistics.median(samples[c.id])
        row = {"kind": c.kind, "name": c.name, "reference": c.reference, "blocks_run": c.blocks,
               "median_us": median, "iqr_us": _spread(samples[c.id])}  # fmt: skip
        if c.reference:
            low = _low(samples[c.id]) - _low(beside[c.id])
            over = [call - other for call, other in zip(samples[c.id], beside[c.id], strict=True)]
            row |= {"over_bare_us": statistics.median(over), "over_bare_iqr_us": _spread(over), "over_bare_low_us": low}
        row["ratio_to_bare"] = median / bare
        rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'':39} {'median':>7} {'iqr':>6} {'over bare':>9} {'iqr':>6} {'low':>6} {'ratio':>6}  over"]
    for row in rows:
        over = " " * 23
        if row["reference"]:
            over = f"{row['over_bare_us']:9.1f} {row['over_bare_iqr_us']:6.1f} {row['over_bare_low_us']:6.1f}"
        lines.append(
            f"{row['kind']:10} {row['name']:28} {row['median_us']:7.1f} {row['iqr_us']:6.1f} {over} "
            f"{row['ratio_to_bare']:6.3f}  {row['reference']}"
        )
    return "\n".join(lines)


def test_interleaved(capsys: Any) -> None:
    """All contenders in turn, so that whatever disturbs the machine disturbs them alike; microseconds."""
    loops = {contender.id: built(contender) for contender in CONTENDERS}
    order, rng = [contender for contender in CONTENDERS if contender.reference], random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in loops}
    beside: dict[str, list[float]] = {name: [] for name in loops}
    for round_ in range(ROUNDS + 1):
        rng.shuffle(order)
        for contender in order:
            reference = f"reference: {contender.reference}"
            for i in range(PAIRS[contender.kind]):
                call, other = _pair(loops[contender.id], loops[reference], first=i % 2 == 0)
                if round_:  # the first is for warming up
                    samples[contender.id].append(call)
                    samples[reference].append(other)
                    beside[contender.id].append(other)
        gc.collect()
    rows = _rows(samples, beside)
    with capsys.disabled():
        print("\n" + _table(rows))
    if os.environ.get("VACCEL_BENCH_WRITE") == "1":
        figures = {"rounds": ROUNDS, "pairs_a_round": PAIRS, "clock": "thread_time", "threads": 1, "blocks": BLOCKS}
        figures["latents"] = list(LATENTS.shape)
        name = "overhead" if BLOCKS == 4 else f"overhead_{BLOCKS}_blocks"
        folder = Path(os.environ["VACCEL_BENCH_OUT"]) if "VACCEL_BENCH_OUT" in os.environ else None
        device = DEVICE if DEVICE == "cpu" else gpu()
        write(name, {**figures, "contenders": rows}, device, command=COMMAND, folder=folder)
