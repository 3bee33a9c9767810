"""Training data of consistency distillation: clean latents and the transformer's other arguments, in shards.

The arguments are not made here but recorded: the pipeline runs for one step with a recorder in its transformer's place,
so what training passes is what the pipeline passes (embeddings, masks, rotary embeddings, guidance embeddings).
"""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import operator
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from safetensors.torch import load_file
from torch import nn

from ..calibrate.samples import Progress, silent
from ..models import Family, find, fingerprints
from ..models.family import Inputs
from ..planning import artifacts
from .shards import INDEX, METHOD, SHARED, Sample, ShardFile, Tensors, pack, write_shard

#: Arguments of a pipeline's call that a recording sets itself.
_SET = ("num_inference_steps", "generator", "output_type", "return_dict")
#: What a call or its hooks may leave behind in a transformer.
_LEFT = ("forward", "_compiled_call_impl", "_diffusers_hook")


def prepare(
    pipe: Any,
    clips: Iterable[tuple[str, torch.Tensor]],
    out: str | Path,
    *,
    call: dict[str, Any],
    negative_prompt: str | None = None,
    shard_size: int = 256,
    total: int | None = None,
    progress: Progress = silent,
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """Writes clips as training data into the folder ``out`` and returns the data of its ``index.json``.

    Interrupted (Ctrl-C or an error), it writes what it has as a shorter last shard; called again with the same settings
    and clips, it goes on from there, and the files are, byte for byte, those of a run that was never interrupted.  A
    caption's arguments are recorded once, however many clips it has.

    Args:
        pipe: a pipeline with one transformer of a known family, which takes only noise and text.
        clips: (caption, clip [frames, H, W, 3] in [0, 1]), the same ones in the same order each time.
        call: the arguments of the pipeline's call, prompts left out; frames, height and width are the clips'.  With
            guidance (``guidance_scale`` or ``true_cfg_scale`` above 1) the unconditional call is recorded as well.
        negative_prompt: of the unconditional call; Qwen-Image has no guidance without it.
        shard_size: samples a shard.
        total: how many clips to take at most; None: all of them.
        progress: told the samples done, those in all (0 where nobody knows) and the caption.
        dtype: of the stored latents, fp32 if not given.  Arguments are stored as the pipeline passes them.

    Raises ``ValueError`` for no clips, for clips that do not fit the call, for arguments that differ between samples
    though they are not one row a sample, and where ``out`` holds data of other settings or other clips.
    """
    if shard_size < 1 or (total is not None and total < 1):
        raise ValueError("shard_size and total must be at least 1")
    if getattr(pipe, "transformer_2", None) is not None:
        raise ValueError("pipelines with two transformers are experts already: distillation takes those with one")
    family = find(pipe.transformer)
    call = {k: v for k, v in call.items() if k not in _SET}
    dtype = dtype or torch.float32
    store = _Store(Path(out), _header(pipe, family, call, negative_prompt, shard_size, dtype))
    if total is not None and len(store) >= total:
        return store.data()
    goal = min(total or sys.maxsize, operator.length_hint(clips, total or 0))
    try:
        for number, (caption, clip) in enumerate(itertools.islice(clips, total)):
            if number < len(store):
                store.check(number, caption)
                continue
            progress(number, goal, caption)
            condition = store.condition(caption)
            if condition is None:
                condition = store.admit(caption, _record(pipe, family, caption, call, negative_prompt))
            store.add(caption, {"latents": _encode(pipe, family, clip, caption).to(dtype), "cond": condition})
    finally:
        store.flush()
    if not len(store):
        raise ValueError("there are no clips to prepare")
    progress(len(store), len(store), "done")
    return store.data()


def _header(
    pipe: Any, family: Family, call: dict[str, Any], negative: str | None, size: int, dtype: torch.dtype
) -> dict[str, Any]:
    """The settings: what all samples of a folder have in common."""
    return {
        "schema": artifacts.SCHEMA,
        "method": METHOD,
        "model": fingerprints.of_model(pipe.transformer),
        "base": str(pipe.config.get("_name_or_path") or ""),
        "family": family.name,
        "call": {k: v for k, v in call.items() if isinstance(v, (int, float, str, bool))},
        "negative_prompt": negative,
        "shard_size": size,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _encode(pipe: Any, family: Family, clip: torch.Tensor, caption: str) -> torch.Tensor:
    """A clip's latents [...] on the host."""
    if clip.ndim != 4 or clip.shape[-1] != 3 or not clip.is_floating_point():
        raise ValueError(f"a clip is [frames, H, W, 3] of floats, that of {caption!r} is {clip.dtype} {[*clip.shape]}")
    if float(clip.min()) < 0 or float(clip.max()) > 1:
        raise ValueError(f"clips lie in [0, 1], that of {caption!r} in [{float(clip.min())}, {float(clip.max())}]")
    return family.encode(pipe, clip[None])[0].cpu()


class _Recording(NamedTuple):
    """What the pipeline passes for one prompt, noise and timestep left out."""

    rows: Tensors  # the conditional call's arguments with one row a sample, [...] each
    structure: dict[str, Any]  # of the arguments; ``pack`` says how
    tensors: Tensors  # those of the arguments that all samples share
    latents: list[int]  # shape of a sample's latents

    def difference(self, structure: dict[str, Any], tensors: Tensors) -> str | None:
        """Name of an argument that all samples should share, and which is another one there."""
        for branch in ("cond", "uncond"):
            ours, theirs = self.structure[branch] or {}, structure[branch] or {}
            for name in sorted({*ours, *theirs}):
                if ours.get(name) != theirs.get(name):
                    return f"{branch}.{name}"
        for name in sorted(self.tensors):
            if not torch.equal(self.tensors[name], tensors[name]):
                return name
        # A mask that only some prompts need is no row of the others.
        return next((f"cond.{n}" for n in sorted({*self.structure["rows"]} ^ {*structure["rows"]})), None)


@torch.no_grad()
def _record(pipe: Any, family: Family, prompt: str, call: dict[str, Any], negative: str | None) -> _Recording:
    """Runs the pipeline for one step that computes nothing, and keeps the arguments of its calls."""
    calls: list[Inputs] = []
    texts = {"prompt": prompt} if negative is None else {"prompt": prompt, "negative_prompt": negative}
    generator = torch.Generator().manual_seed(0)  # the noise is nobody's; the global generator stays where it is
    # Schedulers stretch one step's sigmas, and Qwen-Image's guidance the norm of zeros, by 0 / 0: of no consequence.
    with _recorded(pipe, family, calls), np.errstate(invalid="ignore", divide="ignore"):
        pipe(**texts, **call, num_inference_steps=1, generator=generator, output_type="latent", return_dict=False)
    model = pipe.transformer
    cond, uncond = _branches(family, calls)
    rows, rest = _split(family, cond)
    tensors: Tensors = {}
    structure: dict[str, Any] = {
        "rows": sorted(rows),
        "cond": {name: pack(value, f"cond.{name}", tensors) for name, value in rest.items()},
        "uncond": None,
    }
    if uncond is not None:
        kept, rest = _split(family, uncond)
        packed = {name: pack(value, f"uncond.{name}", tensors) for name, value in (kept | rest).items()}
        structure["uncond"] = {n: {**tree, "rows": True} if n in kept else tree for n, tree in packed.items()}
    latents = [*family.latents(model, cond).shape[1:]]
    return _Recording({n: t[0].cpu().clone() for n, t in rows.items()}, structure, tensors, latents)


def _branches(family: Family, calls: list[Inputs]) -> tuple[Inputs, Inputs | None]:
    """The conditional and the unconditional call of one step for one prompt."""
    counts = [len(c["hidden_states"]) for c in calls]
    if family.batched_guidance and counts == [2]:
        return family.rows(calls[0], slice(1, 2)), family.rows(calls[0], slice(0, 1))
    if counts == [1] or (counts == [1, 1] and not family.batched_guidance):
        return calls[0], calls[1] if len(calls) == 2 else None
    raise ValueError(
        f"the pipeline called its transformer with {counts} rows for one prompt and one step: training data need one "
        "call for one sample, and one more or one more row for guidance"
    )


def _split(family: Family, inputs: Inputs) -> tuple[Inputs, Inputs]:
    """A call of one row: the arguments that have one row a sample, and the others."""
    given = {k: v for k, v in inputs.items() if k not in ("hidden_states", "timestep", "return_dict")}
    tensors = {k: v for k, v in given.items() if k in family.row_arguments and isinstance(v, torch.Tensor)}
    rows = {k: v for k, v in tensors.items() if v.ndim and len(v) == 1}
    return rows, {k: v for k, v in given.items() if k not in rows}


@contextlib.contextmanager
def _recorded(pipe: Any, family: Family, calls: list[Inputs]) -> Iterator[None]:
    """Calls of the pipeline's transformer go into ``calls`` while the context lasts, and give zeros."""
    model: nn.Module = pipe.transformer

    @functools.wraps(model.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = family.bind(model, args, kwargs)
        noisy = family.latents(model, inputs)
        if noisy.shape != inputs["hidden_states"].shape:
            raise ValueError(
                "the pipeline puts an image or a video beside the noise, which training data do not hold: use a "
                "pipeline that takes only text"
            )
        calls.append(dict(inputs))
        output = torch.zeros_like(noisy)
        return Transformer2DModelOutput(sample=output) if kwargs.get("return_dict", True) else (output,)

    before = {name: vars(model)[name] for name in _LEFT if name in vars(model)}
    # Set past the pipeline's __setattr__, which would rewrite its configuration.
    own = {name: vars(pipe)[name] for name in ("scheduler", "_progress_bar_config") if name in vars(pipe)}
    vars(pipe).update(scheduler=copy.deepcopy(pipe.scheduler), _progress_bar_config={"disable": True})
    vars(model).update(forward=forward, _compiled_call_impl=None)
    try:
        yield
    finally:
        if (now := vars(model).get("forward")) is not forward:  # offloading has hooked the model anew
            before["forward"] = now
        _restore(model, _LEFT, before)
        _restore(pipe, ("scheduler", "_progress_bar_config"), own)


def _restore(thing: Any, names: tuple[str, ...], before: dict[str, Any]) -> None:
    for name in names:
        vars(thing).pop(name, None)
    vars(thing).update(before)


class _Store:
    """The folder: what was written there, and the samples that wait for their shard."""

    def __init__(self, folder: Path, header: dict[str, Any]):
        self.folder, self.header, self.size = folder, header, header["shard_size"]
        self.structure: dict[str, Any] | None = None
        self.latents: list[int] = []  # shape of a sample's
        self.tensors: Tensors = {}
        self.captions: list[str] = []  # of all samples, those in ``pending`` last
        self.pending: list[Sample] = []
        self._files: dict[int, ShardFile] = {}
        if (folder / INDEX).exists():
            self._go_on()
        self.saved = len(self)
        self._first = {c: i for i, c in reversed([*enumerate(self.captions)])}  # a sample of every caption

    def __len__(self) -> int:
        return len(self.captions)

    def _go_on(self) -> None:
        """Takes up what an earlier call left; a shard that is not full will be filled."""
        old = artifacts.read(self.folder / INDEX, METHOD)
        plain = json.loads(json.dumps(self.header))
        if different := [k for k, v in plain.items() if old.get(k) != v]:
            raise ValueError(f"{self.folder} holds data with another {', '.join(different)}; choose another folder")
        self.structure, self.latents, self.captions = old["arguments"], old["latents"], old["captions"]
        self.tensors = load_file(self.folder / SHARED)
        number, rows = divmod(old["count"], self.size)
        if rows:
            self.pending = [self._file(number).sample(row) for row in range(rows)]
            del self._files[number]  # it will be replaced

    def data(self) -> dict[str, Any]:
        """What the index says of the samples so far."""
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
        """Raises ``ValueError`` where a clip that is prepared already has another caption now."""
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

    def admit(self, caption: str, recording: _Recording) -> Tensors:
        """The rows of a new caption.

        Raises ``ValueError`` where what all samples share is not what the others have.
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
        """Takes a sample in, and writes the shard that it fills."""
        if [*sample["latents"].shape] != self.latents:
            raise ValueError(
                f"the clip of {caption!r} gives latents {[*sample['latents'].shape]}, the pipeline's call makes "
                f"{self.latents}: frames, height and width of clips and call must be the same"
            )
        self._first.setdefault(caption, len(self))
        self.pending.append(sample)
        self.captions.append(caption)  # last: an interruption before it leaves the sample out
        if len(self.pending) == self.size:
            self.flush()

    def flush(self) -> None:
        """Writes the samples that wait, as a shard that is not full if they do not fill one."""
        if len(self) == self.saved:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.saved:
            artifacts.save_tensors(self.folder / SHARED, self.tensors)
        data = self.data()
        write_shard(self.folder / data["shards"][-1]["file"], self.pending[: data["shards"][-1]["count"]])
        artifacts.write(self.folder / INDEX, data)
        self.saved = len(self)
        if self.saved % self.size == 0:
            self.pending = []


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"
