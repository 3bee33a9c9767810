"""Procedurally drawn clips of moving shapes, and the small grammar that captions them.

A clip is one or two coloured shapes that move in a straight line over a plain or textured background.  The caption
states everything a checker can measure (colour, kind, direction, speed, background); size, position and the phase of
the texture are random, so that one caption has many clips.

Everything is drawn from a ``torch.Generator``: the same seed gives the same clips on every machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

import torch

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.13, 0.13),
    "green": (0.15, 0.75, 0.22),
    "blue": (0.18, 0.32, 0.95),
    "yellow": (0.96, 0.86, 0.12),
    "purple": (0.78, 0.22, 0.85),
    "white": (0.96, 0.96, 0.96),
}
KINDS = ("circle", "square", "triangle", "cross")
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SPEEDS: dict[str, float] = {"slowly": 0.6, "quickly": 1.4}  # pixels a frame
BACKGROUNDS = ("dark", "gray", "striped", "checkered", "dotted")

HEIGHT = WIDTH = 48
NUM_FRAMES = 17
FPS = 12
TWO_SHARE = 0.2  # of the scenes that have two shapes, unless asked otherwise


@dataclasses.dataclass(frozen=True)
class Shape:
    """One moving shape of a caption; every field is a word of the grammar."""

    colour: str
    kind: str
    direction: str
    speed: str

    def words(self) -> str:
        return f"a {self.colour} {self.kind} moves {self.direction} {self.speed}"


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a caption: one or two shapes and a background."""

    shapes: tuple[Shape, ...]
    background: str

    @property
    def caption(self) -> str:
        return " and ".join(s.words() for s in self.shapes) + f" on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether training never sees this caption (one caption in eight, by a hash of its text)."""
        return hashlib.sha256(self.caption.encode()).digest()[0] % 8 == 0

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """Reads a caption back.  Raises ``ValueError`` for text outside the grammar."""
        try:
            body, background = caption.strip().removesuffix(" background").rsplit(" on a ", 1)
            shapes = []
            for part in body.split(" and "):
                article, colour, kind, verb, direction, speed = part.split()
                if (article, verb) != ("a", "moves"):
                    raise ValueError
                known = colour in COLOURS and kind in KINDS and direction in DIRECTIONS and speed in SPEEDS
                if not known:
                    raise ValueError
                shapes.append(Shape(colour, kind, direction, speed))
            if background not in BACKGROUNDS or not 1 <= len(shapes) <= 2:
                raise ValueError
        except ValueError:
            raise ValueError(f"not a caption of the moving-shapes grammar: {caption!r}") from None
        return cls(tuple(shapes), background)


def vocabulary() -> list[str]:
    """Every word a caption can contain, in a fixed order (the tokenizer's)."""
    glue = ["a", "and", "moves", "on", "background"]
    return glue + list(COLOURS) + list(KINDS) + list(DIRECTIONS) + list(SPEEDS) + list(BACKGROUNDS)


def _pick(options, generator: torch.Generator):
    options = list(options)
    return options[int(torch.randint(len(options), (), generator=generator))]


def draw_scene(generator: torch.Generator, *, held_out: bool | None = None, two: float = TWO_SHARE) -> Scene:
    """A random scene; ``held_out`` keeps only that side of the split, ``two`` is the share with two shapes."""
    while True:
        count = 2 if float(torch.rand((), generator=generator)) < two else 1
        colours: list[str] = []
        shapes = []
        for _ in range(count):
            colour = _pick([c for c in COLOURS if c not in colours], generator)
            colours.append(colour)
            shapes.append(
                Shape(colour, _pick(KINDS, generator), _pick(DIRECTIONS, generator), _pick(SPEEDS, generator))
            )
        scene = Scene(tuple(shapes), _pick(BACKGROUNDS, generator))
        if held_out is None or scene.held_out == held_out:
            return scene


def held_out_captions(count: int, seed: int = 2024) -> list[str]:
    """``count`` different captions that training never sees, in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[draw_scene(generator, held_out=True).caption] = None
    return list(captions)


@dataclasses.dataclass(frozen=True)
class _Path:
    """The path of a shape: its centre in pixels at frame f is start + f * velocity."""

    start: tuple[float, float]
    velocity: tuple[float, float]
    radius: float

    def at(self, frame: float) -> tuple[float, float]:
        return self.start[0] + frame * self.velocity[0], self.start[1] + frame * self.velocity[1]


def _draw_path(shape: Shape, radius: float, generator: torch.Generator) -> _Path:
    """A straight path that keeps the whole shape inside the frame."""
    dx, dy = DIRECTIONS[shape.direction]
    speed = SPEEDS[shape.speed]
    velocity = (dx * speed, dy * speed)
    start = []
    for size, v in ((WIDTH, velocity[0]), (HEIGHT, velocity[1])):
        travel = v * (NUM_FRAMES - 1)
        low = radius + 1 - min(travel, 0.0)
        high = size - radius - 1 - max(travel, 0.0)
        start.append(low + (high - low) * float(torch.rand((), generator=generator)))
    return _Path((start[0], start[1]), velocity, radius)


def draw_paths(scene: Scene, generator: torch.Generator) -> list[_Path]:
    """Paths of a scene's shapes; two shapes keep apart, so that neither hides the other."""
    small, large = (6.5, 9.5) if len(scene.shapes) == 1 else (5.5, 7.5)
    for attempt in range(400):
        shrink = 1.0 if attempt < 200 else 0.8
        radii = [shrink * (small + (large - small) * float(torch.rand((), generator=generator))) for _ in scene.shapes]
        paths = [_draw_path(s, r, generator) for s, r in zip(scene.shapes, radii, strict=True)]
        if len(paths) == 1:
            return paths
        gaps = [math.dist(paths[0].at(f), paths[1].at(f)) for f in range(NUM_FRAMES)]
        if min(gaps) > (radii[0] + radii[1]) * 1.15:
            return paths
    return paths


def signed_distance(kind: str, x: torch.Tensor, y: torch.Tensor, radius) -> torch.Tensor:
    """Distance in pixels to the outline of a shape centred at 0 (negative inside), up to corner rounding.

    The shapes of one ``radius`` have nearly one area, so that size does not give the kind away.
    """
    if kind == "circle":
        return torch.hypot(x, y) - radius * 0.95
    if kind == "square":
        return torch.maximum(x.abs(), y.abs()) - radius * 0.84
    if kind == "triangle":
        slope = math.sqrt(3) / 2
        return torch.maximum(y - radius * 0.66, slope * x.abs() - 0.5 * y - radius * 0.66)
    if kind == "cross":
        arm, half = radius * 0.36, radius * 1.0
        bar = torch.maximum(x.abs() - half, y.abs() - arm)
        pole = torch.maximum(x.abs() - arm, y.abs() - half)
        return torch.minimum(bar, pole)
    raise ValueError(f"unknown kind of shape {kind!r}; known: {KINDS}")


def _background(name: str, generator: torch.Generator, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The [H, W] gray levels of a background, textures with a random phase and orientation."""
    phase = torch.rand(3, generator=generator).tolist()
    dark, light = 0.16, 0.40
    if name == "dark":
        return torch.full_like(x, 0.10)
    if name == "gray":
        return torch.full_like(x, 0.45)
    if name == "striped":
        wave = torch.sin(2 * math.pi * ((x if phase[2] < 0.5 else y) / 8 + phase[0]))
    elif name == "checkered":
        wave = torch.sin(2 * math.pi * (x / 16 + phase[0])) * torch.sin(2 * math.pi * (y / 16 + phase[1])) * 2
    else:
        wave = torch.cos(2 * math.pi * (x / 8 + phase[0])) + torch.cos(2 * math.pi * (y / 8 + phase[1])) - 0.9
    return dark + (light - dark) * torch.sigmoid(4 * wave)


def draw_clip(scene: Scene, generator: torch.Generator) -> torch.Tensor:
    """Draws a scene: [NUM_FRAMES, HEIGHT, WIDTH, 3] in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(HEIGHT) + 0.5, torch.arange(WIDTH) + 0.5, indexing="ij")
    paths = draw_paths(scene, generator)
    clip = _background(scene.background, generator, x, y)[None, :, :, None].expand(NUM_FRAMES, -1, -1, 3)
    frame = torch.arange(NUM_FRAMES, dtype=torch.float32)[:, None, None]
    for shape, path in zip(scene.shapes, paths, strict=True):
        cx, cy = path.start[0] + frame * path.velocity[0], path.start[1] + frame * path.velocity[1]
        inside = torch.sigmoid(-3.0 * signed_distance(shape.kind, x - cx, y - cy, path.radius))[..., None]
        clip = clip * (1 - inside) + torch.tensor(COLOURS[shape.colour]) * inside
    return clip.contiguous()


def draw_batch(
    count: int, generator: torch.Generator, *, held_out: bool = False, two: float = TWO_SHARE
) -> tuple[list[str], torch.Tensor]:
    """``count`` captions and their clips, [count, NUM_FRAMES, HEIGHT, WIDTH, 3] in [0, 1]."""
    scenes = [draw_scene(generator, held_out=held_out, two=two) for _ in range(count)]
    return [s.caption for s in scenes], torch.stack([draw_clip(s, generator) for s in scenes])
