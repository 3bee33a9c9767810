"""Recognises the content of a moving-shapes clip from its frames, to score generated clips against their captions.

``observe`` looks at pixels only and never at a caption: it separates shapes from the gray background by their colour,
follows every shape through space-time, reads direction and speed off its centroids, and names its kind by fitting the
four outlines of ``shapes.signed_distance`` to it.  ``check`` then compares the observation with a caption.

Generated clips are imperfect, so each property has a tolerance about half-way to the next word of the grammar, and
whatever lies far from every word is ``None``, which matches no caption.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy import ndimage

from .shapes import COLOURS, DIRECTIONS, KINDS, SPEEDS, Scene, Shape, signed_distance

MIN_COVER = 0.4  # least coverage of a pixel that belongs to a shape
MIN_AREA = 16.0  # pixels; the smallest drawn shape has about 45, fringes where two shapes touch have about 8
SEEN_SHARE = 1 / 3  # of the frames that a blob must be in to count as a shape at all
FOLLOWED_SHARE = 3 / 4  # of the frames that a shape must be in for its motion to count
MAX_COLOUR_ERROR = 0.4  # RGB distance to the palette; its closest two colours are 0.61 apart
MAX_PATH_ERROR = 1.5  # pixels (root mean square) off the straight path
MIN_FIT = 0.8  # share of the coverage that the best outline explains
HALF_SLACK = 0.02  # by which another outline may fit half of the clip better
BLUR = 0.9  # pixels, the standard deviation of the blur that outlines are tried with
MAX_RADIUS = 14.0  # pixels; the largest drawn shape has 9.5

_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)
_WHITE = list(COLOURS).index("white")
# A shape over gray is recognised by its chroma (a colour minus its mean over RGB), which is zero for gray.
_CHROMA = _PALETTE - _PALETTE.mean(axis=1, keepdims=True)
_CHROMA_GAIN = _CHROMA / np.maximum((_CHROMA**2).sum(axis=1, keepdims=True), 1e-3)
# The area of each kind of shape of radius 1, and how far around the radius of the measured area (which blur and
# clipping change a little) the outlines are tried.
_Y, _X = torch.meshgrid(torch.linspace(-1.5, 1.5, 301), torch.linspace(-1.5, 1.5, 301), indexing="ij")
_AREAS = {kind: float((signed_distance(kind, _X, _Y, 1.0) < 0).sum()) * 0.01**2 for kind in KINDS}
_SCALES = (0.9, 0.97, 1.04)


@dataclasses.dataclass(frozen=True)
class SeenShape:
    """One shape as measured; a word is ``None`` where the measurement fits no word of the grammar."""

    colour: str | None
    kind: str | None
    direction: str | None
    speed: str | None
    velocity: tuple[float, float]  # pixels a frame, x to the right and y down
    radius: float  # pixels, in the sense of ``signed_distance``
    fit: float  # share of the coverage (of its squares) that the best outline explains, at most 1


@dataclasses.dataclass(frozen=True)
class Observation:
    """Everything seen in a clip: its shapes, the largest first, and its background."""

    shapes: tuple[SeenShape, ...]
    background: str | None


@dataclasses.dataclass(frozen=True)
class ShapeVerdict:
    """Which properties of one expected shape were seen as the caption says."""

    colour: bool
    kind: bool
    direction: bool
    speed: bool

    @property
    def correct(self) -> bool:
        return self.colour and self.kind and self.direction


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judgement of a clip: one entry for each shape of the caption, in its order, and the background."""

    shapes: tuple[ShapeVerdict, ...]
    background: bool

    @property
    def correct(self) -> bool:
        """Whether every expected shape has the right colour, kind and direction (and no other shape is there)."""
        return all(s.correct for s in self.shapes)


def _frames(clip: torch.Tensor | np.ndarray) -> np.ndarray:
    """Any [F, H, W, 3] clip in [0, 1] as float32 frames [3, F, H, W], cut to the range.

    Channels come first because NumPy is several times slower along a short last axis.
    """
    frames = torch.as_tensor(clip).detach().to("cpu", torch.float32).numpy()
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] < 2:
        raise ValueError(f"expected a clip [F, H, W, 3] of at least 2 frames, got {tuple(frames.shape)}")
    return np.clip(np.nan_to_num(np.moveaxis(frames, -1, 0).copy()), 0.0, 1.0)


def _background_image(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The [H, W] gray levels behind the shapes, and the [H, W] mask of pixels that some frame leaves uncovered.

    Covered pixels hold the median of the others.
    """
    smooth = ndimage.uniform_filter(frames, size=(1, 1, 3, 3))  # noise must not pass for colour
    darkest = smooth.min(axis=0)
    foreground = (smooth.max(axis=0) - darkest > 0.2) | (darkest > 0.6)
    # Two more pixels all round: the soft edge of a shape would tint the background.
    bare = ~ndimage.maximum_filter(foreground, size=(1, 5, 5))
    count = bare.sum(axis=0)
    known = count > 0
    level = (frames.mean(axis=0) * bare).sum(axis=0) / np.maximum(count, 1)
    return np.where(known, level, np.median(level[known]) if known.any() else 0.25).astype(np.float32), known


def _name_background(level: np.ndarray, known: np.ndarray) -> str | None:
    """The background whose waves explain the gray levels [H, W] of the known pixels."""
    if known.mean() < 0.2:
        return None
    values = level[known] - level[known].mean()
    mean, variance = float(level[known].mean()), float(values.var())
    if variance < 0.03**2:  # the textures have a standard deviation of about 0.1
        error, name = min((abs(mean - 0.10), "dark"), (abs(mean - 0.45), "gray"))
        return name if error < 0.13 else None
    y, x = (2 * np.pi * axis[known] for axis in np.indices(level.shape))
    across, down = ([np.cos(axis / 8), np.sin(axis / 8)] for axis in (x, y))
    diagonal = [f(x / 16) * g(y / 16) for f in (np.cos, np.sin) for g in (np.cos, np.sin)]
    waves = np.stack(across + down + diagonal, axis=1)
    waves -= waves.mean(axis=0)
    gram = waves.T @ waves / len(waves) + 1e-4 * np.eye(8)  # the ridge is for clips with little background in sight
    weights = np.linalg.solve(gram, waves.T @ values / len(waves))
    # Stripes are a wave along one axis, dots the same wave along both, the chequerboard a product of longer waves.
    along_x, along_y = (float(weights[i : i + 2] @ weights[i : i + 2]) / 2 for i in (0, 2))
    product = float(weights[4:] @ weights[4:]) / 4
    if along_x + along_y + product < 0.5 * variance:
        return None
    if product > along_x + along_y:
        return "checkered"
    return "dotted" if min(along_x, along_y) > 0.3 * max(along_x, along_y) else "striped"


def _coverage(frames: np.ndarray, background: np.ndarray) -> np.ndarray:
    """How much of every pixel each palette colour covers, [colours, F, H, W], about 0 to 1.

    Chroma needs no knowledge of the background.  White has none, and is recognised by how far the darkest channel rises
    from the background's level to white: every other colour has a dark channel.
    """
    cover = np.tensordot(_CHROMA_GAIN, frames, axes=1)
    cover[_WHITE] = (frames.min(axis=0) - background) / np.maximum(_PALETTE[_WHITE, 0] - background, 0.2)
    return cover


def _tracks(cover: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The colour and the [F, H, W] mask of every shape in the coverage [colours, F, H, W].

    A shape moves by less than its width from frame to frame, so its pixels are connected through space and time.
    """
    best = cover.argmax(axis=0)
    tracks = []
    for colour in range(len(cover)):
        mask = (best == colour) & (cover[colour] > MIN_COVER)
        if mask.sum() < MIN_AREA:
            continue
        joined = mask.copy()
        joined[1:-1] |= mask[:-2] & mask[2:]  # one missed frame does not make two shapes of one
        labels = ndimage.label(joined, structure=np.ones((3, 3, 3)))[0] * mask
        sizes = np.bincount(labels.ravel())
        for label in 1 + np.flatnonzero(sizes[1:] >= MIN_AREA * SEEN_SHARE * len(mask)):
            track = labels == label
            areas = track.sum(axis=(1, 2))
            if (areas >= MIN_AREA).mean() >= SEEN_SHARE:
                tracks.append((colour, track & (areas >= MIN_AREA)[:, None, None]))
    return sorted(tracks, key=lambda item: -int(item[1].sum()))


def _centroids(alpha: np.ndarray) -> np.ndarray:
    """The (x, y) centre in pixels of the coverage in each frame of [F, H, W], as [F, 2]."""
    mass = alpha.sum(axis=(1, 2))
    x = (alpha.sum(axis=1) * (np.arange(alpha.shape[2]) + 0.5)).sum(axis=1) / mass
    y = (alpha.sum(axis=2) * (np.arange(alpha.shape[1]) + 0.5)).sum(axis=1) / mass
    return np.stack([x, y], axis=1)


def _motion(times: np.ndarray, centres: np.ndarray, frames: int) -> tuple[str | None, str | None, tuple[float, float]]:
    """Direction, speed and velocity (pixels a frame) of centres [n, 2] at times [n], by a straight-line fit."""
    if len(times) < max(2.0, FOLLOWED_SHARE * frames):
        return None, None, (0.0, 0.0)
    line = np.polyfit(times, centres, 1)  # [2, 2]: velocity, start
    error = float(np.sqrt(((centres - times[:, None] * line[0] - line[1]) ** 2).sum(axis=1).mean()))
    velocity = (float(line[0, 0]), float(line[0, 1]))
    along, direction = max((d[0] * velocity[0] + d[1] * velocity[1], name) for name, d in DIRECTIONS.items())
    too_slow, sideways = along < 0.5 * min(SPEEDS.values()), min(abs(velocity[0]), abs(velocity[1]))
    if too_slow or sideways > 0.5 * along or error > MAX_PATH_ERROR:
        return None, None, velocity
    speed = min(SPEEDS, key=lambda name: abs(SPEEDS[name] - along))
    return direction, speed if along < 1.5 * max(SPEEDS.values()) else None, velocity


def _fit_kind(alpha: np.ndarray, centres: np.ndarray) -> tuple[str | None, float, float]:
    """The kind, radius (pixels) and fit of a coverage [n, H, W] in [0, 1] with centres [n, 2] in pixels.

    Every outline is drawn at the measured centres, sub-pixel offsets included, at radii around the one that its area
    asks for.  Errors are summed over frames, which averages noise out; the two halves of the clip must agree, or a
    shape that turns into another would pass for one of them.
    """
    area = float(alpha.sum(axis=(1, 2)).mean())
    reach = int(np.ceil(1.4 * np.sqrt(area / min(_AREAS.values())))) + 2
    if reach > 2 * MAX_RADIUS:
        return None, reach / 1.4, 0.0
    corners = np.floor(centres).astype(int)  # of the window [-reach, reach] around each centre
    padded, size = np.pad(alpha, ((0, 0), (reach, reach), (reach, reach))), 2 * reach + 1
    windows = np.stack([f[cy : cy + size, cx : cx + size] for f, (cx, cy) in zip(padded, corners, strict=True)])
    grid = torch.arange(size, dtype=torch.float32) - reach + 0.5
    offsets = torch.from_numpy((centres - corners).astype(np.float32))
    x, y = torch.broadcast_tensors(grid - offsets[:, 0, None, None], grid[:, None] - offsets[:, 1, None, None])
    outlines = [(kind, scale * float(np.sqrt(area / _AREAS[kind]))) for kind in KINDS for scale in _SCALES]
    inside = [torch.sigmoid(-3.0 * signed_distance(kind, x, y, radius)).numpy() for kind, radius in outlines]
    # A generated clip is blurred, and a small cross that is looks like a circle to a sharp outline.
    drawn = np.stack(inside + [ndimage.gaussian_filter(frames, (0, BLUR, BLUR)) for frames in inside])
    missed = ((drawn - windows) ** 2).sum(axis=(2, 3))  # [candidates, n]
    power = (windows**2).sum(axis=(1, 2))
    total = missed.sum(axis=1) / power.sum()
    (kind, radius), fit = (2 * outlines)[int(total.argmin())], 1 - float(total.min())
    same = np.array([other == kind for other, _ in 2 * outlines])
    middle = len(alpha) // 2
    halves = [missed[:, half].sum(axis=1) / power[half].sum() for half in (slice(middle), slice(middle, None))]
    steady = all(half[same].min() < half.min() + HALF_SLACK for half in halves)
    return kind if steady and fit >= MIN_FIT and radius <= MAX_RADIUS else None, radius, fit


def _measure(frames: np.ndarray, cover: np.ndarray, colour: int, track: np.ndarray) -> SeenShape:
    """Measures the shape that ``track`` ([F, H, W]) outlines in frames [3, F, H, W] and coverage [F, H, W]."""
    times = np.flatnonzero(track.any(axis=(1, 2)))
    inside = track[times]
    error = np.median(frames[:, track], axis=1) - _PALETTE[colour]
    # Coverage relative to the shape's own middle, so that a paler shape keeps its outline; two pixels around the
    # mask hold its soft edge.
    near = ndimage.maximum_filter(inside, size=(1, 5, 5))
    alpha = np.clip(cover[times] / np.quantile(cover[times][inside], 0.7), 0.0, 1.0) * near
    centres = _centroids(alpha)
    direction, speed, velocity = _motion(times, centres, len(track))
    kind, radius, fit = _fit_kind(alpha, centres)
    name = list(COLOURS)[colour] if float(np.linalg.norm(error)) <= MAX_COLOUR_ERROR else None
    return SeenShape(name, kind, direction, speed, velocity, radius, fit)


def observe(clip: torch.Tensor | np.ndarray) -> Observation:
    """The shapes and the background of a clip [F, H, W, 3] in [0, 1], from its frames alone."""
    frames = _frames(clip)
    background, known = _background_image(frames)
    cover = _coverage(frames, background)
    shapes = tuple(_measure(frames, cover[colour], colour, track) for colour, track in _tracks(cover))
    return Observation(shapes, _name_background(background, known))


def _compare(expected: Shape, seen: SeenShape | None) -> ShapeVerdict:
    if seen is None:
        return ShapeVerdict(False, False, False, False)
    return ShapeVerdict(*(getattr(seen, f.name) == getattr(expected, f.name) for f in dataclasses.fields(expected)))


def check(clip: torch.Tensor | np.ndarray, caption: str) -> Verdict:
    """Compares a clip [F, H, W, 3] in [0, 1] with its caption (``ValueError`` outside the grammar).

    Seen shapes are given to the expected ones in the way that makes most of them right.  A shape too few fails its
    entry; a shape too many fails the colour of every entry, since a clip with it shows something else.
    """
    scene, seen = Scene.parse(caption), observe(clip)
    count = len(scene.shapes)
    best, score = (), (-1, -1)
    for chosen in itertools.permutations((*seen.shapes, *[None] * count), count):
        verdicts: tuple[ShapeVerdict, ...] = tuple(map(_compare, scene.shapes, chosen))
        rank = (sum(v.correct for v in verdicts), sum(sum(dataclasses.astuple(v)) for v in verdicts))
        if rank > score:
            best, score = verdicts, rank
    if len(seen.shapes) > count:
        best = tuple(dataclasses.replace(v, colour=False) for v in best)
    return Verdict(best, seen.background == scene.background)


def accuracy(clips: Iterable[torch.Tensor | np.ndarray], captions: Sequence[str]) -> dict[str, float]:
    """Scores clips ([F, H, W, 3] in [0, 1] each) against their captions, as shares in [0, 1].

    ``correct`` and ``background`` are shares of the clips, the others shares of the expected shapes of all clips.
    """
    verdicts = [check(clip, caption) for clip, caption in zip(clips, captions, strict=True)]
    if not verdicts:
        raise ValueError("accuracy needs at least one clip")
    shapes = [s for v in verdicts for s in v.shapes]
    scores = {"correct": float(np.mean([v.correct for v in verdicts]))}
    for word in ("colour", "kind", "direction", "speed"):
        scores[word] = float(np.mean([getattr(s, word) for s in shapes]))
    return scores | {"background": float(np.mean([v.background for v in verdicts]))}
