"""Cases that take minutes together: run in processes, each found result kept, so that an interrupted run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any


def run_kept(
    cases: Mapping[str, Sequence[Hashable]], examined: Callable[..., dict[str, Any]], folder: Path, *, processes: int,
    fresh: bool, initializer: Callable[[], None], told: Callable[[dict[str, Any]], str],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """What is found of every case, by its key: a file's name, and the arguments that ``examined`` takes.

    Args:
        folder: where results are kept.
        fresh: whether those that are there are forgotten.
        told: the line that is printed of a result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {} if fresh else {path.stem: path for path in folder.glob("*.json")}
    done = {key: json.loads(kept[key].read_text()) for key in cases if key in kept}
    todo = [key for key in cases if key not in done]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=initializer) as pool:
        futures = {pool.submit(examined, *cases[key]): key for key in todo}
        for number, future in enumerate(as_completed(futures), 1):
            key = futures[future]
            done[key] = future.result()
            (folder / f"{key}.json").write_text(json.dumps(done[key]))
            print(f"{number}/{len(todo)}  {told(done[key])}  ({done[key]['seconds']} s)", flush=True)
    return done
