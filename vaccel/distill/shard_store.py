"""The folder of shards that ``vaccel.distill.prepare`` writes, which an interrupted call can resume."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ..experts.files import naming
from ..planning import artifacts
from .recorded_arguments import Recording
from .shards import INDEX, SHARED, Sample, ShardFile, Tensors, read_index, read_shared, write_shard

#: Seconds after which samples that fill no shard yet are written all the same, for a kill to take fewer.
WRITE_AFTER = 120.0


class ShardStore:
    """The folder of shards: the samples that are written, and those that wait for their shard."""

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder, self.header, self.size = folder, header, header["shard_size"]
        self.structure: dict[str, Any] | None = None
        self.latents: list[int] = []  # shape of a sample's
        self.tensors: Tensors = {}
        self.captions: list[str] = []  # of all samples, those in ``pending`` last
        self.pending: list[Sample] = []
        self._files: dict[int, ShardFile] = {}
        self._written = time.monotonic()
        if (folder / INDEX).exists():
            self._resume()
        self.saved = len(self)
        self._first = {c: i for i, c in reversed([*enumerate(self.captions)])}  # a sample of every caption

    def __len__(self) -> int:
        return len(self.captions)

    def _resume(self) -> None:
        """Resumes an earlier call's folder; a shard that is not full will be filled."""
        old = read_index(self.folder)
        plain = json.loads(json.dumps(self.header))
        if different := [k for k, v in plain.items() if old.get(k) != v]:
            raise ValueError(f"{self.folder} holds data with another {', '.join(different)}; choose another folder")
        self.structure, self.latents, self.captions = old["arguments"], old["latents"], old["captions"]
        self.tensors = read_shared(self.folder, self.structure)
        for shard in old["shards"]:
            ShardFile(self.folder / shard["file"]).check(shard["count"], self.latents, self.structure["rows"])
        number, rows = divmod(old["count"], self.size)
        if rows:
            self.pending = [self._file(number).sample(row) for row in range(rows)]
            del self._files[number]  # it will be replaced

    def data(self) -> dict[str, Any]:
        """The contents of the index for the samples so far."""
        count = len(self)
        files = [
            {"file": _shard_name(start // self.size), "count": min(self.size, count - start)}
            for start in range(0, count, self.size)
        ]
        structure = {"latents": self.latents, "arguments": self.structure}
        return {**self.header, "count": count, "shards": files, **structure, "captions": self.captions}

    def _file(self, number: int) -> ShardFile:
        if number not in self._files:
            self._files[number] = ShardFile(self.folder / _shard_name(number))
        return self._files[number]

    def check(self, number: int, caption: str) -> None:
        """Raises ``ValueError`` where an already prepared clip now has another caption."""
        if (known := self.captions[number]) != caption:
            raise ValueError(
                f"{self.folder} holds other clips: clip {number} is {known!r} there, {caption!r} here; choose another "
                "folder"
            )

    def condition(self, caption: str) -> Tensors | None:
        """The recorded rows of a caption that was seen before."""
        if caption not in self._first:
            return None
        number, row = divmod(self._first[caption], self.size)
        waiting = number == len(self) // self.size
        return self.pending[row]["cond"] if waiting else self._file(number).condition(row)

    def admit(self, caption: str, recording: Recording) -> Tensors:
        """The rows of a new caption.

        Raises ``ValueError`` where an argument that all samples share differs from the other samples'.
        """
        if self.structure is None:
            self.structure, self.tensors, self.latents = recording.structure, recording.tensors, recording.latents
        elif different := recording.difference(self.structure, self.tensors):
            raise ValueError(
                f"the pipeline's argument {different} for {caption!r} is not the one for other captions, and it is not "
                "one row a sample: these captions cannot be trained on together"
            )
        return recording.rows

    def add(self, caption: str, sample: Sample) -> None:
        """Adds a sample, and writes the shard once it is full."""
        if [*sample["latents"].shape] != self.latents:
            raise ValueError(
                f"the clip of {caption!r} gives latents {[*sample['latents'].shape]}, the pipeline's call makes "
                f"{self.latents}: frames, height and width of clips and call must be the same"
            )
        self._first.setdefault(caption, len(self))
        self.pending.append(sample)
        self.captions.append(caption)  # last: if interrupted before this, the sample does not count
        if len(self.pending) == self.size or time.monotonic() - self._written > WRITE_AFTER:
            self.flush()

    def flush(self) -> None:
        """Writes the pending samples, as a shorter shard where they do not fill one."""
        if len(self) == self.saved:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.saved:
            with naming(self.folder / SHARED):
                artifacts.save_tensors(self.folder / SHARED, self.tensors)
        data = self.data()
        write_shard(self.folder / data["shards"][-1]["file"], self.pending[: data["shards"][-1]["count"]])
        with naming(self.folder / INDEX):
            artifacts.write(self.folder / INDEX, data)
        self.saved, self._written = len(self), time.monotonic()
        if self.saved % self.size == 0:
            self.pending = []


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
