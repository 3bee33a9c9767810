"""Shared by all calibrations: jobs of a prompt and a seed, an artifact that they are added to, several processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..planning import artifacts, files, joining
from ..planning.joining import hash_of
from ..planning.schema import step_count

#: (units of work done, their total, what is being done)
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """Reports no progress."""


class Samples:
    """The samples of an artifact, including those of other calibrations with the same header.

    The file is the truth: what this process measures is joined to it (``artifacts.write``), and what others have added
    meanwhile is taken over.  Under ``torchrun`` every process measures its share and writes a part of its own;
    ``merge`` joins them.  Parts that a run of several processes has left behind are joined by whoever comes next.

    Attributes:
        data: the samples by key.
        others: what else the file holds that is made of all samples, such as Forecast's "products".

    Raises ``ValueError`` when ``path`` holds a calibration of something else, or there are no prompts; ``OSError``
    where it cannot be written.
    """

    def __init__(self, path: Path, header: dict[str, Any], prompts: list[str], seeds: Iterable[int] | None):
        self.path, self.header = path, header
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.own = path if self.world == 1 else artifacts.part_of(path, self.rank)
        every = {f"{hash_of(p)[:12]}-{s}": (p, s) for p, s in runs_of(prompts, seeds)}
        if not every:
            raise ValueError("a calibration needs a prompt and a seed at least")
        #: (key, prompt, seed) of this process's samples.
        self.jobs = [(key, *job) for key, job in every.items()][self.rank :: self.world]
        files.check(path)
        files.settle(path)
        self.data: dict[str, dict[str, Any]] = {}
        self.others: dict[str, Any] = {}
        for file in (path, self.own):
            if file.exists():
                self._adopt(file)
        if self.world == 1:
            self._absorb()

    def fill(self, measure: Callable[[str, int], dict[str, Any]], progress: Progress) -> dict[str, Any]:
        """The artifact with ``measure(prompt, seed)`` of every sample."""
        for done, (key, prompt, seed) in enumerate(self.jobs):
            progress(done, len(self.jobs), prompt)
            if key not in self.data:
                self.data[key] = measure(prompt, seed)
                self.save()
        progress(len(self.jobs), len(self.jobs), "done")
        return self.merge()

    def save(self, **fields: Any) -> None:
        """Joins all samples so far and the given fields to the file."""
        artifacts.write(self.own, self.artifact(**fields))
        self._adopt(self.own)

    def artifact(self, **fields: Any) -> dict[str, Any]:
        """The artifact of all samples so far and the given fields."""
        if self.own == self.path:
            return {**self.header, "prompts": "", "samples": dict(self.data), **self.others, **fields}
        measured = {key: self.data[key] for key, *_ in self.jobs if key in self.data}
        return {**self.header, "prompts": "", "samples": measured, "part": True}

    def merge(self, **fields: Any) -> dict[str, Any]:
        """The complete artifact, once every process is done."""
        if self.world > 1:
            self._barrier()
            if self.rank == 0:
                self.own = self.path
                self._absorb()
                self._adopt(self.path)
                self.save(**fields)
            self._barrier()
        elif fields or not self.path.exists():
            self.save(**fields)
        return artifacts.read(self.path, self.header["method"])

    def _absorb(self) -> None:
        """Joins the parts that there are."""
        for part in artifacts.parts_of(self.path):
            self._checked(part)
            artifacts.absorb(self.path, part, self.header["method"])
            self._adopt(self.path)

    def _adopt(self, file: Path) -> None:
        """Takes over what a file holds."""
        held = self._checked(file)
        self.data |= held["samples"]
        if file == self.path:
            self.others = {name: held[name] for name in ("products", "times") if name in held}

    def _checked(self, file: Path) -> dict[str, Any]:
        held = artifacts.read(file, self.header["method"])
        if different := joining.differences(held, self.header):
            raise ValueError(f"{file} is a calibration with another {', '.join(different)}; choose another file")
        return held

    @staticmethod
    def _barrier() -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")
        dist.barrier()


def runs_of(prompts: Iterable[str], seeds: Iterable[int] | None) -> list[tuple[str, int]]:
    """Every prompt with every seed; with None each with one of its own, which follows from the prompt.

    Runs from the same noise are alike in more than the model: what they reach says too little of others.
    """
    if seeds is None:
        return [(prompt, int(hash_of(prompt)[:6], 16)) for prompt in prompts]
    seeds = list(seeds)
    return [(prompt, seed) for prompt in prompts for seed in seeds]


def steps_of(call: dict[str, Any], least: int = 2) -> int:
    """The number of steps of a pipeline's call.  Raises ``ValueError`` for one that nothing can be measured with."""
    steps = step_count(call.get("num_inference_steps"), "num_inference_steps")
    if steps < least:
        raise ValueError(f"num_inference_steps must be at least {least} for this calibration, got {steps}")
    return steps


def sample(pipe: Any, prompt: str, seed: int, call: dict[str, Any], copies: int = 1, output: str = "latent") -> Any:
    """The pipeline's output for a prompt, ``copies`` times from the same noise in one batch."""
    generators = [torch.Generator().manual_seed(seed) for _ in range(copies)]
    arguments = {**call, "generator": generators if copies > 1 else generators[0]}
    with torch.no_grad():
        texts = [prompt] * copies if copies > 1 else prompt  # not every pipeline takes a number of clips for one prompt
        return pipe(texts, **{**arguments, "output_type": output, "return_dict": False})[0]


@contextlib.contextmanager
def prompts_encoded_once(pipe: Any) -> Iterator[None]:
    """Caches the pipeline's prompt embeddings within the context."""
    encode, kept = pipe.encode_prompt, {}

    def remembered(*args: Any, **kwargs: Any) -> Any:
        key = repr((args, sorted(kwargs.items())))
        if any(isinstance(a, torch.Tensor) for a in (*args, *kwargs.values())):
            return encode(*args, **kwargs)
        if key not in kept:
            kept[key] = encode(*args, **kwargs)
        return kept[key]

    pipe.encode_prompt = remembered
    try:
        yield
    finally:
        del pipe.encode_prompt
