"""How a denoiser's answer lies: which of its tensors are about its noisy input, and how they become one tensor.

The engine works with one tensor [rows, ...] a call: the prediction, beside the noisy latents that it is about.  Models
answer with tensors, tuples, lists of samples, dataclasses, audio beside video.  A ``Layout`` names the *parts* (the
tensors that belong to a noisy input), puts them into one tensor and takes such a tensor apart again.  What is no part
(predicted variances, keys and values) is the *rest*: handed on as the model gave it last.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from .arguments import is_sample, is_time
from .structures import SINGLE, flattened, rebuilt, tensors_of

Inputs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of the answer and the input that it is about.

    Attributes:
        leaf: its number among the answer's tensors.
        argument: the name of the input; ``item`` its place where that is a list, of lists maybe.
        axis, size: the input is narrowed to its first ``size`` along ``axis``, where conditions are concatenated
            behind it; a size of 0 takes it whole.
        out_axis, out_size: likewise of the answer, where a variance follows the prediction.
        out_last: whether the prediction is the end of the answer's tensor: text goes before it.
    """

    leaf: int
    argument: str
    item: tuple[int, ...] = ()
    axis: int = 0
    size: int = 0
    out_axis: int = 0
    out_size: int = 0
    out_last: bool = False

    def of(self, inputs: Inputs) -> torch.Tensor:
        """The noisy input."""
        given = inputs[self.argument]
        for place in self.item:
            given = given[place]
        return given.narrow(self.axis, 0, self.size) if self.size and given.shape[self.axis] != self.size else given

    def prediction(self, leaf: torch.Tensor) -> torch.Tensor:
        """The part of an answer's tensor that is about the noisy input."""
        if not self.out_size:
            return leaf
        start = leaf.shape[self.out_axis] - self.out_size if self.out_last else 0
        return leaf.narrow(self.out_axis, start, self.out_size)

    def around(self, leaf: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
        """A tensor like ``leaf`` with another prediction in it."""
        whole = leaf.clone()
        self.prediction(whole).copy_(prediction)
        return whole


class Layout:
    """How the answers of one kind of call lie.

    Attributes:
        parts: what is predicted.
        kind: "single" (one tensor, as it is), "samples" (a list of samples, stacked), "packed" (several tensors with
            the same rows: [rows, 1, elements]) or "loose" (whose rows differ: [1, 1, elements]).
    """

    #: Whether it was read off an answer, and holds for calls of the same shapes alone.
    learnt = True
    #: Whether a part of an answer's tensor is cut off that is no prediction, and that nobody takes.
    cuts = False

    def __init__(self, parts: Sequence[Part], kind: str = "single"):
        self.parts, self.kind = tuple(parts), kind
        #: Whether answers are ``(prediction,)`` and nothing else, so far as was seen.
        self.single = False
        self._first, self._plain = self.parts[0], kind == "single"
        self._whole = self._plain and not self._first.out_size and not self._first.leaf
        self._tree: Any = None  # the answer's structure, once one was seen
        self._shapes: tuple[tuple[torch.Size, torch.dtype], ...] = ()
        self._known: tuple[Any, ...] = ()  # shapes of the inputs that it was made for
        #: Shapes of the parts' inputs, without their rows where all have the same; () where there is but one tensor.
        self.part_shapes: tuple[torch.Size, ...] = ()
        self._shape: torch.Size | None = None
        self._has_rest = False
        self._rest: tuple[torch.Tensor | None, ...] | None = None  # of the last answer, None in the parts' places

    def made_for(self, inputs: Inputs) -> Layout:
        """The layout, which from now on fits calls of these shapes only."""
        self._known = _signature(inputs, self)
        if self.kind in ("packed", "loose"):
            self.part_shapes = tuple(part.of(inputs).shape[self.kind == "packed" :] for part in self.parts)
        if len(self.parts) == 1 and isinstance(self._known[0], torch.Size):
            self._shape = self._known[0]
        return self

    def fits(self, inputs: Inputs) -> bool:
        """Whether a call's answer lies like this."""
        if self._shape is not None:
            given = inputs.get(self._first.argument)
            same = isinstance(given, torch.Tensor) and given.shape == self._shape
            return same and self._asks(inputs)
        if not self._known:
            return True
        return all(p.argument in inputs for p in self.parts) and _signature(inputs, self) == self._known

    def halved(self, inputs: Inputs) -> Layout | None:
        """The layout for calls with fewer of the rows, which nobody has to look at; None where one cannot know.

        That happens where guidance ends: what was one batch of both branches is one of them.
        """
        known, given = self._shape, inputs.get(self._first.argument)
        if known is None or self.kind != "single" or not self.answered or not isinstance(given, torch.Tensor):
            return None
        fewer = given.shape[1:] == known[1:] and 2 * len(given) == known[0]
        alike = self._shapes[self._first.leaf][0][0] == known[0] and not self._has_rest
        return copy.copy(self).made_for(inputs) if fewer and alike and self._asks(inputs) else None

    def lent(self, inputs: Inputs) -> Layout | None:
        """The layout for another model of the same class, which has not been asked yet; None for other calls."""
        fits = self.learnt and self.answered and not self._has_rest and bool(self._known) and self.fits(inputs)
        return copy.copy(self) if fits else None

    def _asks(self, inputs: Inputs) -> bool:
        """Whether a call asks for the kind of answer that was seen."""
        return inputs.get("return_dict", True) == self._known[1]

    @property
    def has_rest(self) -> bool:
        """Whether answers have more than their parts."""
        return self._has_rest

    @property
    def answered(self) -> bool:
        """Whether an answer was seen."""
        return self._tree is not None

    def take_rest(self) -> tuple[torch.Tensor | None, ...] | None:
        """The rest of an answer that has come since this was asked for last, as a copy; None where there is none."""
        taken, self._rest = self._rest, None
        return None if taken is None else tuple(None if t is None else t.clone() for t in taken)

    def x(self, inputs: Inputs) -> torch.Tensor:
        """The noisy latents of a call."""
        if self._plain:
            return self._first.of(inputs)
        return self._joined([part.of(inputs) for part in self._parts_of(inputs)])

    def _parts_of(self, inputs: Inputs) -> Sequence[Part]:
        if self.kind != "samples":
            return self.parts
        count = len(inputs[self._first.argument])
        return self.parts if count == len(self.parts) else [_sample(self._first, n) for n in range(count)]

    def _joined(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.kind == "samples":
            return torch.stack(list(tensors))
        rows = len(tensors[0]) if self.kind == "packed" else 1
        return torch.cat([t.reshape(rows, 1, -1).to(tensors[0].dtype) for t in tensors], dim=2)

    def pack(self, answer: Any, inputs: Inputs) -> torch.Tensor:
        """The prediction [rows, ...] of the answer to a call."""
        if self.single and type(answer) is tuple and len(answer) == 1:
            return answer[0]
        leaves: list[torch.Tensor] = []
        tree = flattened(answer, leaves)
        if self._tree is not None and len(leaves) != len(self._shapes) and self.kind != "samples":
            raise ValueError(
                f"a call was answered with {len(leaves)} tensors, and calls before it with {len(self._shapes)}: the "
                "pipeline asks for something else than predictions, and nothing may stand in for that"
            )
        if self._tree is None or len(leaves) >= len(self._shapes):
            self._tree, self._shapes = tree, tuple((t.shape, t.dtype) for t in leaves)
            self.single = self._whole and tree is SINGLE
        parts = self.parts
        if self.kind == "samples" and len(leaves) != len(parts):
            parts = [_sample(self._first, n) for n in range(len(leaves))]
        of = {part.leaf: part for part in parts}
        rest = tuple(None if n in of and not of[n].out_size else t for n, t in enumerate(leaves))
        self._has_rest = any(t is not None for t in rest)
        self._rest = rest if self._has_rest else None
        found = [part.prediction(leaves[part.leaf]) for part in parts]
        return found[0] if self._plain else self._joined(found)

    def unpack(self, prediction: torch.Tensor, rest: Sequence[torch.Tensor | None] = ()) -> Any:
        """An answer of the model's own structure, of a prediction and what else there is."""
        if self.single:
            return (prediction,)
        leaves = list(rest) if rest else [None] * len(self._shapes)
        for part, tensor in zip(self.parts, self._apart(prediction), strict=True):
            kept = leaves[part.leaf] if part.out_size else None
            leaves[part.leaf] = tensor if kept is None else part.around(kept, tensor)
        return rebuilt(self._tree, iter(leaves))

    def _apart(self, prediction: torch.Tensor) -> list[torch.Tensor]:
        if self._plain:
            return [prediction]
        if self.kind == "samples":
            return list(prediction.unbind(0))
        found, at = [], 0
        for part in self.parts:
            shape, dtype = self._shapes[part.leaf]
            if part.out_size:
                shape = torch.Size((*shape[: part.out_axis], part.out_size, *shape[part.out_axis + 1 :]))
            if self.kind == "packed":  # of which a call may have had but some rows
                shape = torch.Size((len(prediction), *shape[1:]))
            length = shape.numel() // len(prediction)
            found.append(prediction[:, :, at : at + length].reshape(shape).to(dtype))
            at += length
        return found


def _sample(part: Part, number: int) -> Part:
    return dataclasses.replace(part, leaf=number, item=(number, *part.item[1:]))


def rows_of(inputs: Inputs, rows: slice | list[int], layout: Layout | None) -> Inputs:
    """A call for some of its rows: of every tensor that has as many as the latents, however deep it lies."""
    lists = layout is not None and layout.kind == "samples"
    count = len(inputs[layout.parts[0].argument]) if layout is not None else _rows(inputs)

    def cut(name: str, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return _cut(name, value, rows, count)
        if isinstance(value, Mapping) and type(value) is dict:
            return {k: cut(k, v) for k, v in value.items()}
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            if lists and len(value) == count and all(isinstance(v, torch.Tensor) for v in value):
                picked = value[rows] if isinstance(rows, slice) else [value[r] for r in rows]
                return type(value)(picked)
            return type(value)(cut(name, v) for v in value)
        return value

    return {name: cut(name, value) for name, value in inputs.items()}


def _rows(inputs: Inputs) -> int:
    return next(len(value) for name, _, value in _candidates(inputs) if is_sample(name))


def _is_shared(name: str) -> bool:
    """Whether a tensor is of all rows alike, whatever its first axis counts: positions and their embeddings."""
    return name in ("img_ids", "txt_ids") or any(word in name for word in ("rotary", "rope", "freqs", "position"))


def _cut(name: str, value: torch.Tensor, rows: slice | list[int], count: int) -> torch.Tensor:
    """Some rows of a tensor that has as many as the latents, or a text or a ControlNet's once for every frame."""
    if not value.ndim or _is_shared(name) or not len(value):
        return value
    each, left = divmod(len(value), count)
    frames = "encoder_hidden_states" in name or "residual" in name
    if left or not each or (each > 1 and not frames):
        return value
    if each == 1:
        return value[rows]
    return value.unflatten(0, (count, each))[rows].flatten(0, 1)


# -- finding the noisy input -----------------------------------------------------------------------------------------


def found(inputs: Inputs, answer: Any) -> Layout | None:
    """The layout that shapes show; None where no tensor of the answer has the shape of an input.

    A part has its input's shape; or the input is longer along one axis, where conditions follow the noisy part; or the
    answer is twice as long along one, where a variance follows the prediction.
    """
    leaves, parts, used = tensors_of(answer), [], set()
    candidates = _candidates(inputs)
    if (batch := _unbound(leaves, candidates)) is not None:
        rows = [Part(n, batch, (n,)) for n in range(len(leaves))]
        return Layout(rows, "samples").made_for(inputs)
    for number, leaf in enumerate(leaves):
        if not leaf.is_floating_point() or leaf.ndim < 1:
            continue
        part = _match(number, leaf, [c for c in candidates if c[:2] not in used], first=not parts)
        if part is not None:
            parts.append(part)
            used.add((part.argument, part.item))
    if not parts:
        return None
    return Layout(parts, _kind(inputs, parts, leaves)).made_for(inputs)


def _signature(inputs: Inputs, layout: Layout) -> tuple[Any, ...]:
    """What a layout depends on: the shapes of its parts' inputs, and the kind of answer that was asked for."""
    given = [inputs.get(name) for name in dict.fromkeys(part.argument for part in layout.parts)]
    return (*(_shapes(g) for g in given), inputs.get("return_dict", True))


def _shapes(given: Any) -> Any:
    if isinstance(given, torch.Tensor):
        return given.shape
    return tuple(_shapes(inner) for inner in given) if isinstance(given, (list, tuple)) else None


def _unbound(leaves: Sequence[torch.Tensor], candidates: Sequence[Any]) -> str | None:
    """The argument whose rows an answer gives one by one, if any."""
    if not leaves or any(leaf.shape != leaves[0].shape for leaf in leaves):
        return None
    shape = (len(leaves), *leaves[0].shape)
    return next((name for name, item, t in candidates if not item and is_sample(name) and t.shape == shape), None)


def _kind(inputs: Inputs, parts: Sequence[Part], leaves: Sequence[torch.Tensor]) -> str:
    if len(parts) == 1 and not parts[0].item:
        return "single"
    shapes = {leaves[part.leaf].shape for part in parts}
    items = len({part.argument for part in parts}) == 1 and all(part.item for part in parts)
    if items and len(shapes) == 1 and len(parts) == len(leaves) == len(inputs[parts[0].argument]):
        return "samples"
    rows = {leaves[part.leaf].shape[0] for part in parts}
    return "packed" if len(rows) == 1 and not any(part.item for part in parts) else "loose"


def _candidates(inputs: Inputs) -> list[tuple[str, tuple[int, ...], torch.Tensor]]:
    """(argument, item, tensor) of everything that may be noisy, samples by name first."""

    def inside(name: str, item: tuple[int, ...], value: Any) -> Iterator[tuple[str, tuple[int, ...], torch.Tensor]]:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim:
            yield name, item, value
        elif isinstance(value, (list, tuple)):
            for n, inner in enumerate(value):
                yield from inside(name, (*item, n), inner)

    some = [c for name, value in inputs.items() if not is_time(name) for c in inside(name, (), value)]
    return sorted(some, key=lambda c: not is_sample(c[0]))


def _match(number: int, leaf: torch.Tensor, candidates: list[Any], *, first: bool) -> Part | None:
    for samples in (True, False):
        if not samples and not first:  # a second tensor like the text is not what is denoised
            return None
        some = [c for c in candidates if is_sample(c[0]) is samples]
        if samples and any(_other_rows(t.shape, leaf.shape) for _, _, t in some):
            some, first = [c for c in some if c[2].shape == leaf.shape], False  # nothing else is meant than it
        for fits in (_same, _longer, _half, _last):
            for argument, item, tensor in some:
                sizes = fits(tensor.shape, leaf.shape)
                if sizes is not None:
                    return Part(number, argument, item, *sizes)
    return None


def _other_rows(given: torch.Size, leaf: torch.Size) -> bool:
    """Whether a model has answered with more rows or less, as where one sample was given with two prompts."""
    return len(given) == len(leaf) and given[1:] == leaf[1:] and given[0] != leaf[0]


def _same(given: torch.Size, leaf: torch.Size) -> tuple[int, ...] | None:
    return () if given == leaf else None


def _longer(given: torch.Size, leaf: torch.Size) -> tuple[int, ...] | None:
    """The input has conditions behind the noisy part."""
    if len(given) != len(leaf):
        return None
    axes = [n for n, (a, b) in enumerate(zip(given, leaf, strict=True)) if a != b]
    return (axes[0], leaf[axes[0]]) if len(axes) == 1 and axes[0] and given[axes[0]] > leaf[axes[0]] else None


def _half(given: torch.Size, leaf: torch.Size) -> tuple[int, ...] | None:
    """The answer has a variance behind the prediction."""
    if len(given) != len(leaf):
        return None
    axes = [n for n, (a, b) in enumerate(zip(given, leaf, strict=True)) if a != b]
    if len(axes) != 1 or not axes[0] or leaf[axes[0]] != 2 * given[axes[0]]:
        return None
    return 0, 0, axes[0], given[axes[0]]


def _last(given: torch.Size, leaf: torch.Size) -> tuple[Any, ...] | None:
    """The answer has the text before the prediction, as where all of one sequence is given back."""
    if len(given) != len(leaf) or len(given) != 3 or given[0] != leaf[0] or given[2] != leaf[2]:
        return None
    return (0, 0, 1, given[1], True) if leaf[1] > given[1] else None
