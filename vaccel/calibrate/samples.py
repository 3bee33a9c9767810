"""Shared by all calibrations: jobs of a prompt and a seed, an artifact that they are added to, several processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..planning import artifacts

#: (units of work done, their total, what is being done)
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, what: str) -> None:
    """Reports no progress."""


class Samples:
    """The samples of an artifact, including those of an earlier calibration with the same header.

    Under ``torchrun`` every process measures its share and writes its own part; ``merge`` joins them.

    Raises ``ValueError`` when ``path`` holds a calibration of something else.
    """

    def __init__(self, path: Path, header: dict[str, Any]):
        self.path, self.header = path, header
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.own = path if self.world == 1 else self._part(self.rank)
        self.data: dict[str, dict[str, Any]] = {}
        for file in {path, self.own}:
            if file.exists():
                self.data |= self._checked(file)

    def jobs(self, prompts: list[str], seeds: list[int]) -> list[tuple[str, str, int]]:
        """(key, prompt, seed) of this process's samples."""
        jobs = [(f"{hash_of(p)[:12]}-{s}", p, s) for p in prompts for s in seeds]
        return jobs[self.rank :: self.world]

    def fill(
        self,
        prompts: list[str],
        seeds: list[int],
        measure: Callable[[str, int], dict[str, Any]],
        fields: Callable[[dict[str, Any]], dict[str, Any]],
        progress: Progress,
    ) -> dict[str, Any]:
        """The artifact with ``measure(prompt, seed)`` of every sample, and ``fields(samples)`` of all of them."""
        jobs = self.jobs(prompts, seeds)
        for done, (key, prompt, seed) in enumerate(jobs):
            progress(done, len(jobs), prompt)
            if key not in self.data:
                self.data[key] = measure(prompt, seed)
                self.save(fields=fields(self.data))
        progress(len(jobs), len(jobs), "done")
        return self.merge(lambda every: {"fields": fields(every)})

    def save(self, **fields: Any) -> None:
        """Writes all samples so far and the given fields."""
        artifacts.write(self.own, self.artifact(**fields))

    def artifact(self, **fields: Any) -> dict[str, Any]:
        """The artifact of all samples so far and the given fields."""
        ordered = {key: self.data[key] for key in sorted(self.data)}
        return {**self.header, "prompts": hash_of("\n".join(ordered)), "samples": ordered, **fields}

    def merge(self, make: Callable[[dict[str, Any]], dict[str, Any]] = lambda samples: {}) -> dict[str, Any]:
        """The complete artifact, once every process is done; ``make`` returns the fields that depend on all samples."""
        if self.world > 1:
            self._barrier()
            parts = [self._part(r) for r in range(self.world)]
            if self.rank == 0:
                for part in parts:
                    self.data |= self._checked(part) if part.exists() else {}
                artifacts.write(self.path, self.artifact(**make(self.data)))
                for part in parts:
                    part.unlink(missing_ok=True)
            self._barrier()
        else:
            self.save(**make(self.data))
        return artifacts.read(self.path, self.header["method"])

    def _checked(self, file: Path) -> dict[str, Any]:
        old = artifacts.read(file, self.header["method"])
        plain = json.loads(json.dumps(self.header))
        if different := [k for k, v in plain.items() if old.get(k) != v]:
            raise ValueError(f"{file} is a calibration with another {', '.join(different)}; choose another file")
        return old["samples"]

    def _part(self, rank: int) -> Path:
        return self.path.with_name(f"{self.path.name}.part{rank}")

    @staticmethod
    def _barrier() -> None:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo")
        dist.barrier()


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


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
