"""Letters of many fonts over cuts of photographs, and the small grammar that captions them.

An image is one capital letter, painted on a cut of a photograph or a texture that scikit-image ships, so its spectrum
is a natural one.  The caption states the letter, its style, weight and colour, and what it is painted on; the font of
that style, size, place, tilt, light and the cut are random, so that one caption has many images.

Everything random is drawn from a ``torch.Generator``: on one machine, the same seed gives the same images.  On another
one the fonts decide (``find_fonts``).  Nothing but drawing needs fonts: a trained family loads and runs without.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 48  # pixels, height and width
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
STYLES = ("sans", "serif", "typewriter", "script")
WEIGHTS = ("regular", "bold")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.87, 0.10, 0.12),
    "orange": (0.97, 0.52, 0.08),
    "yellow": (0.98, 0.89, 0.20),
    "green": (0.10, 0.68, 0.25),
    "blue": (0.13, 0.30, 0.90),
    "purple": (0.65, 0.20, 0.78),
    "white": (0.96, 0.96, 0.95),
    "black": (0.06, 0.06, 0.07),
}


@dataclasses.dataclass(frozen=True)
class Ground:
    """What letters are painted on: cuts of an image of ``skimage.data``, ``tint`` colours a gray one."""

    source: str
    cut: tuple[int, int]  # pixels of the source that a cut is wide, at least and at most
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gain: float = 1.0


GROUNDS: dict[str, Ground] = {
    "grass": Ground("grass", (48, 120), (0.80, 1.10, 0.55)),
    "gravel": Ground("gravel", (48, 120), (1.05, 1.00, 0.92)),
    "brick": Ground("brick", (64, 160), (1.35, 0.90, 0.72)),
    "fur": Ground("chelsea", (48, 120)),
    "coffee": Ground("coffee", (64, 200)),
    "moon": Ground("moon", (64, 160)),
    "stars": Ground("hubble_deep_field", (48, 120), gain=1.6),
    "tissue": Ground("immunohistochemistry", (48, 120)),
    "garage": Ground("stereo_motorcycle", (64, 200)),
    "coins": Ground("coins", (60, 130), (1.10, 1.00, 0.80)),
}

#: Files of fonts (their names without an ending) for every style and weight; those that are installed are used.
FONTS: dict[tuple[str, str], tuple[str, ...]] = {
    ("sans", "regular"): (
        *("DejaVuSans", "LiberationSans-Regular", "FreeSans", "NimbusSans-Regular", "Lato-Regular"),
        *("Roboto-Regular", "OpenSans-Regular", "Carlito-Regular", "URWGothic-Book", "Cantarell-Regular"),
        *("Quicksand-Regular", "Comfortaa-Regular", "Cabin-Regular", "PTS55F"),
    ),
    ("sans", "bold"): (
        *("DejaVuSans-Bold", "LiberationSans-Bold", "FreeSansBold", "NimbusSans-Bold", "Lato-Black", "Roboto-Black"),
        *("OpenSans-ExtraBold", "Carlito-Bold", "URWGothic-Demi", "Cantarell-ExtraBold", "Cabin-Bold", "PTS75F"),
    ),
    ("serif", "regular"): (
        *("DejaVuSerif", "LiberationSerif-Regular", "FreeSerif", "NimbusRoman-Regular", "C059-Roman", "P052-Roman"),
        *("URWBookman-Light", "Caladea-Regular", "LinLibertine_R", "OldStandard-Regular", "Vollkorn-Regular"),
        *("PTF55F", "cmunrm"),
    ),
    ("serif", "bold"): (
        *("DejaVuSerif-Bold", "LiberationSerif-Bold", "FreeSerifBold", "NimbusRoman-Bold", "C059-Bold", "P052-Bold"),
        *("URWBookman-Demi", "Caladea-Bold", "LinLibertine_RB", "OldStandard-Bold", "Vollkorn-Black", "PTF75F"),
        *("cmunbx",),
    ),
    ("typewriter", "regular"): (
        "FreeMono",
        "LiberationMono-Regular",
        "NimbusMonoPS-Regular",
        "cmuntt",
        "Courier Prime",
    ),
    ("typewriter", "bold"): ("FreeMonoBold", "NimbusMonoPS-Bold", "cmuntb", "Courier Prime Bold"),
    ("script", "regular"): ("DancingScript-Regular", "Z003-MediumItalic", "LobsterTwo-Italic"),
    ("script", "bold"): ("DancingScript-Bold", "LobsterTwo-BoldItalic", "KaushanScript-Regular", "lobster"),
}
#: What ``find_fonts(fallback=True)`` takes where none of those is installed: fonts that matplotlib ships.
FALLBACK: dict[tuple[str, str], str] = {
    ("sans", "regular"): "DejaVuSans",
    ("sans", "bold"): "DejaVuSans-Bold",
    ("serif", "regular"): "DejaVuSerif",
    ("serif", "bold"): "DejaVuSerif-Bold",
    ("typewriter", "regular"): "DejaVuSansMono",
    ("typewriter", "bold"): "DejaVuSansMono-Bold",
    ("script", "regular"): "STIXGeneralItalic",
    ("script", "bold"): "STIXGeneralBolIta",
}
PACKAGES = (
    "fonts-dejavu fonts-liberation fonts-freefont-ttf fonts-urw-base35 fonts-lato fonts-roboto-unhinted "
    "fonts-open-sans fonts-crosextra-carlito fonts-crosextra-caladea fonts-cantarell fonts-quicksand fonts-comfortaa "
    "fonts-cabin fonts-paratype fonts-linuxlibertine fonts-oldstandard fonts-vollkorn fonts-cmu fonts-courier-prime "
    "fonts-dancingscript fonts-kaushanscript fonts-lobster fonts-lobstertwo"
)
_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/Library/Fonts")

Fonts = Mapping[tuple[str, str], tuple[Path, ...]]


@dataclasses.dataclass(frozen=True)
class Scene:
    """The content of a caption; every field is a word of the grammar."""

    letter: str
    style: str
    weight: str
    colour: str
    ground: str

    @property
    def caption(self) -> str:
        return f"letter {self.letter} {self.style} {self.weight} {self.colour} on {self.ground}"

    @property
    def held_out(self) -> bool:
        """Whether training never sees this caption (one caption in eight, by a hash of its text)."""
        return hashlib.sha256(self.caption.encode()).digest()[0] % 8 == 0

    @classmethod
    def parse(cls, caption: str) -> Scene:
        """Reads a caption back.  Raises ``ValueError`` for text outside the grammar."""
        words = caption.split()
        known = len(words) == 7 and all(
            word in words_known
            for word, words_known in zip(
                words, (("letter",), LETTERS, STYLES, WEIGHTS, COLOURS, ("on",), GROUNDS), strict=True
            )
        )
        if not known:
            raise ValueError(f"not a caption of the glyph grammar: {caption!r}")
        return cls(*words[1:5], words[6])


def vocabulary() -> list[str]:
    """Every word a caption can contain, in a fixed order (the tokenizer's)."""
    return ["letter", "on", *LETTERS, *STYLES, *WEIGHTS, *COLOURS, *GROUNDS]


def draw_scene(generator: torch.Generator, *, held_out: bool | None = None) -> Scene:
    """A random scene; ``held_out`` keeps only that side of the split."""
    while True:
        chance = torch.rand(5, generator=generator).tolist()
        fields = (LETTERS, STYLES, WEIGHTS, tuple(COLOURS), tuple(GROUNDS))
        scene = Scene(*(words[int(c * len(words))] for c, words in zip(chance, fields, strict=True)))
        if held_out is None or scene.held_out == held_out:
            return scene


def held_out_captions(count: int, seed: int = 2024) -> list[str]:
    """``count`` different captions that training never sees, in a fixed order."""
    generator = torch.Generator().manual_seed(seed)
    captions: dict[str, None] = {}
    while len(captions) < count:
        captions[draw_scene(generator, held_out=True).caption] = None
    return list(captions)


@functools.cache
def find_fonts(fallback: bool = False) -> Fonts:
    """The files of ``FONTS`` that are installed, in its order.

    Raises ``FileNotFoundError`` where a style has none; with ``fallback`` a font that matplotlib ships takes its place.
    """
    files: dict[str, Path] = {}
    for folder in (*_FOLDERS, sys.prefix + "/share/fonts"):
        for path in sorted(Path(folder).expanduser().rglob("*")):
            if path.suffix.lower() in (".ttf", ".otf"):
                files.setdefault(path.stem, path)
    found = {kind: tuple(files[name] for name in names if name in files) for kind, names in FONTS.items()}
    for kind, paths in found.items():
        if paths:
            continue
        if not fallback:
            raise FileNotFoundError(
                f"no font of the style {' '.join(kind)!r} is installed, which is one of: {', '.join(FONTS[kind])}; "
                f"get the fonts with `apt-get install {PACKAGES}`"
            )
        import matplotlib

        found[kind] = (Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{FALLBACK[kind]}.ttf",)
    return found


@functools.cache
def _source(name: str) -> Image.Image:
    """A photograph or texture that scikit-image ships, in colour."""
    import skimage.data

    pixels = getattr(skimage.data, name)()
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels
    return Image.fromarray(pixels).convert("RGB")


@functools.cache
def _font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(path), size)


def draw_ground(name: str, chance: list[float]) -> np.ndarray:
    """A cut of what letters are painted on, [SIZE, SIZE, 3]; ``chance`` holds five numbers in [0, 1)."""
    ground, image = GROUNDS[name], _source(GROUNDS[name].source)
    side = ground.cut[0] + chance[0] * (ground.cut[1] - ground.cut[0])
    x, y = chance[1] * (image.width - side), chance[2] * (image.height - side)
    cut = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side))
    if chance[3] < 0.5:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    light = ground.gain * (0.85 + 0.3 * chance[4])
    return np.asarray(cut, dtype=np.float32) / 255 * light * np.array(ground.tint, dtype=np.float32)


def draw_mask(letter: str, path: Path, chance: list[float]) -> np.ndarray:
    """How much of every pixel a letter covers, [SIZE, SIZE]; ``chance`` holds four numbers in [0, 1)."""
    over = 4  # drawn that much larger, for smooth edges
    left, top, right, bottom = _font(path, 200).getbbox(letter, anchor="ls")
    height = SIZE * (0.60 + 0.20 * chance[0])
    size = round(200 * over * min(height / (bottom - top), 0.86 * SIZE / (right - left)))
    font = _font(path, 4 * round(size / 4))
    left, top, right, bottom = font.getbbox(letter, anchor="ls")
    width, height = right - left, bottom - top
    canvas = Image.new("L", (SIZE * over, SIZE * over))
    spare_x, spare_y = canvas.width - width, canvas.height - height
    x, y = spare_x * (0.2 + 0.6 * chance[1]) - left, spare_y * (0.2 + 0.6 * chance[2]) - top
    ImageDraw.Draw(canvas).text((x, y), letter, fill=255, font=font, anchor="ls")
    canvas = canvas.rotate(16 * (chance[3] - 0.5), Image.Resampling.BILINEAR)
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32) / 255


def draw_image(scene: Scene, generator: torch.Generator, fonts: Fonts) -> torch.Tensor:
    """Draws a scene: [SIZE, SIZE, 3] in [0, 1]."""
    chance = torch.rand(16, generator=generator).tolist()
    ground = draw_ground(scene.ground, chance[:5])
    paths = fonts[scene.style, scene.weight]
    mask = draw_mask(scene.letter, paths[int(chance[5] * len(paths))], chance[6:10])
    # The letter throws a soft shadow: dark, or for dark letters light, so that it is legible on any ground.
    blurred = Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.2))
    shadow = np.roll(np.asarray(blurred, dtype=np.float32) / 255, (1, 1), (0, 1))[..., None]
    shadow = np.minimum(1.0, 1.3 * shadow)
    colour = np.array(COLOURS[scene.colour], dtype=np.float32)
    halo = 0.55 * ground if scene.colour != "black" else 0.45 + 0.55 * ground
    image = ground + shadow * (halo - ground)
    # It is lit from one side and takes a little of what it is painted on.
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) / (SIZE - 1) - 0.5
    angle = 2 * math.pi * chance[10]
    lit = 1 + 0.25 * (x * math.cos(angle) + y * math.sin(angle))
    gray = ground.mean(axis=2)
    paint = colour * (0.92 + 0.12 * chance[11]) * (lit + 0.35 * (gray - gray.mean()))[..., None]
    image = image + mask[..., None] * (paint - image)
    return torch.from_numpy(np.clip(image, 0.0, 1.0))


def draw_batch(
    count: int, generator: torch.Generator, *, fonts: Fonts | None = None, held_out: bool = False
) -> tuple[list[str], torch.Tensor]:
    """``count`` captions and their images, [count, SIZE, SIZE, 3] in [0, 1]."""
    fonts = fonts if fonts is not None else find_fonts()
    scenes = [draw_scene(generator, held_out=held_out) for _ in range(count)]
    return [s.caption for s in scenes], torch.stack([draw_image(s, generator, fonts) for s in scenes])
