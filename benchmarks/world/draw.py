"""The drawn world: 64 px pictures of objects x colours x patterns x grounds x places x styles, with captions.

Every picture is a pure function of ``(seed, index)``: the same pair gives the same bytes and the same caption.
Nothing is read from disk.  Pictures are drawn at four times their size and averaged down.

Three of the nine shapes are *kinds* (``toy``, ``bag``, ``vase``).  Their captions mostly omit the
pattern and colours, so that the kind word names a whole family of looks, as "backpack" does in a model of
photographs.  A member of a kind (one pattern in one pair of colours) can be held out of the world, see
:func:`subjects`: a personalization run has to learn it.
"""

from __future__ import annotations

import argparse
import functools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE = 64
SUPER = 4
_BIG = SIZE * SUPER

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 222, 40),
    "green": (30, 160, 60),
    "blue": (36, 84, 220),
    "purple": (130, 50, 170),
    "pink": (252, 130, 186),
    "white": (250, 250, 250),
}
OBJECTS = ("ball", "box", "mug", "car", "hat", "duck")
KINDS = ("toy", "bag", "vase")
SHAPES = OBJECTS + KINDS
PATTERNS = ("plain", "striped", "dotted", "checkered")
# Drawn for the benchmark's subjects alone: pretraining never sees them and no caption names them.
NOVEL_PATTERNS = ("halved", "ringed", "crossed")
GROUNDS = ("grass", "sand", "snow", "water", "bricks", "wood")
PLACES = ("park", "city", "mountains", "night")
STYLES = ("photo", "sketch", "painting", "pixel art", "neon art")

GROUND_PHRASE = {name: f"on {name}" for name in GROUNDS}
PLACE_PHRASE = {"park": "in the park", "city": "in the city", "mountains": "in the mountains", "night": "at night"}
STYLE_PHRASE = {
    "photo": "a photo of",
    "sketch": "a sketch of",
    "painting": "a painting of",
    "pixel art": "pixel art of",
    "neon art": "neon art of",
}

# Words that mean nothing here.  A few captions carry one before the noun, which teaches the text encoder to
# read past words it does not know; the placeholder tokens of personalization are not among them.
FILLER_WORDS = tuple(
    "nice small large big old new good great lovely pretty simple classic modern little tiny fancy plainly bright "
    "favourite favorite cheap rare popular common clean cool fine beautiful ordinary special certain single "
    "typical average cute happy sad funny quiet famous local handmade vintage".split()
)


@dataclass(frozen=True)
class Scene:
    """What a picture shows.  ``shape`` is None for a picture without an object.

    ``second`` equals ``colour`` for plain objects.  ``angle`` (0 or 90 degrees) turns stripes upright and is
    never in a caption.
    """

    shape: str | None
    colour: str = "red"
    second: str = "red"
    pattern: str = "plain"
    angle: int = 0
    ground: str = "grass"
    place: str = "park"
    style: str = "photo"

    @property
    def look(self) -> tuple[str | None, str, frozenset[str]]:
        """The identity that can be held out: shape, pattern and the unordered pair of colours."""
        return self.shape, self.pattern, frozenset((self.colour, self.second))


def subjects() -> dict[str, Scene]:
    """The held-out members of the kinds, by name; the world never draws their look.

    The first is the subject of the demo, the others are for benchmarks.
    """
    table = (
        ("toy", "striped", "orange", "blue", 0),
        ("toy", "dotted", "pink", "green", 0),
        ("toy", "checkered", "white", "purple", 0),
        ("toy", "striped", "yellow", "red", 90),
        ("bag", "striped", "white", "red", 90),
        ("bag", "dotted", "blue", "yellow", 0),
        ("bag", "checkered", "pink", "purple", 0),
        ("bag", "checkered", "orange", "green", 0),
        ("vase", "striped", "green", "pink", 90),
        ("vase", "dotted", "red", "white", 0),
        ("vase", "checkered", "blue", "yellow", 0),
        ("vase", "striped", "purple", "orange", 0),
    )
    return {
        f"{shape}_{pattern}_{colour}_{second}": Scene(shape, colour, second, pattern, angle)
        for shape, pattern, colour, second, angle in table
    }


@functools.lru_cache(maxsize=1)
def _held_out_looks() -> frozenset[tuple[str | None, str, frozenset[str]]]:
    return frozenset(scene.look for scene in subjects().values())


def is_fresh(scene: Scene) -> bool:
    """True for the tenth of all (shape, colour, ground, style) combinations that training never sees."""
    if scene.shape is None:
        return False
    key = (
        SHAPES.index(scene.shape)
        + 3 * list(COLOURS).index(scene.colour)
        + 7 * GROUNDS.index(scene.ground)
        + 9 * STYLES.index(scene.style)
    )
    return key % 10 == 0


def is_held_out(scene: Scene) -> bool:
    """True if the pretraining world must not draw ``scene``: a subject's look or a fresh combination."""
    return scene.look in _held_out_looks() or is_fresh(scene)


def _choice(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def random_scene(rng: np.random.Generator) -> Scene:
    """One scene of the whole world, held-out ones included."""
    ground, place, style = _choice(rng, GROUNDS), _choice(rng, PLACES), _choice(rng, STYLES)
    if rng.random() < 0.07:
        return Scene(None, ground=ground, place=place, style=style)
    # Kinds are a third of the shapes but almost half of the pictures: their looks are the most varied.
    shape = _choice(rng, KINDS if rng.random() < 0.45 else OBJECTS)
    colour, second = (str(name) for name in rng.permutation(list(COLOURS))[:2])
    pattern = _choice(rng, PATTERNS[1:]) if shape in KINDS or rng.random() < 0.3 else "plain"
    if pattern == "plain":
        return Scene(shape, colour, colour, "plain", 0, ground, place, style)
    angle = 90 * int(rng.integers(2)) if pattern == "striped" else 0
    return Scene(shape, colour, second, pattern, angle, ground, place, style)


def object_phrase(scene: Scene, told: bool = True, noun: str | None = None) -> str:
    """The noun phrase, e.g. ``a striped red and blue mug``; without ``told`` only ``a mug``."""
    noun = noun or scene.shape or ""
    if not told:
        return f"a {noun}"
    if scene.pattern == "plain":
        words = f"{scene.colour} {noun}"
    else:
        words = f"{scene.pattern} {scene.colour} and {scene.second} {noun}"
    return ("an " if words[0] in "aeiou" else "a ") + words


def full_caption(scene: Scene, told: bool = True) -> str:
    """The caption that names style, object, ground and place; ``told=False`` omits the look."""
    what = object_phrase(scene, told) + " " + GROUND_PHRASE[scene.ground] if scene.shape else scene.ground
    return f"{STYLE_PHRASE[scene.style]} {what} {PLACE_PHRASE[scene.place]}"


def random_caption(scene: Scene, rng: np.random.Generator) -> str:
    """A true caption of ``scene`` with parts left out at random; never one that says something false."""
    told = rng.random() < (0.4 if scene.shape in KINDS else 0.92)
    # A caption without a style word means a photo, as it mostly does in captions of photographs.
    style = STYLE_PHRASE[scene.style] if scene.style != "photo" or rng.random() < 0.7 else ""
    ground = GROUND_PHRASE[scene.ground] if rng.random() < 0.88 else ""
    place = PLACE_PHRASE[scene.place] if rng.random() < 0.6 else ""
    if scene.shape is None:
        return f"{style} {scene.ground} {place}".strip().replace("  ", " ")
    noun = f"{_choice(rng, FILLER_WORDS)} {scene.shape}" if rng.random() < 0.06 else scene.shape
    return " ".join(part for part in (style, object_phrase(scene, told, noun), ground, place) if part)


def _generator(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _world_scene(rng: np.random.Generator) -> Scene:
    scene = random_scene(rng)
    while is_held_out(scene):
        scene = random_scene(rng)
    return scene


def world_scene(seed: int, index: int) -> Scene:
    """The scene of :func:`world_item`, without drawing it."""
    return _world_scene(_generator(seed, index))


def world_item(seed: int, index: int) -> tuple[np.ndarray, str, Scene]:
    """Picture ``index`` of the pretraining world: uint8 (64, 64, 3), its caption and its scene."""
    rng = _generator(seed, index)
    scene = _world_scene(rng)
    caption = random_caption(scene, rng)
    return render(scene, rng), caption, scene


def any_item(seed: int, index: int) -> tuple[np.ndarray, Scene]:
    """A picture of the whole world, held-out scenes included: what the judge is tested on."""
    rng = _generator(seed, index)
    scene = random_scene(rng)
    return render(scene, rng), scene


def subject_item(name: str, ground: str, place: str, style: str, seed: int) -> tuple[np.ndarray, Scene]:
    """A picture of a held-out subject: uint8 (64, 64, 3) and its scene."""
    scene = replace(subjects()[name], ground=ground, place=place, style=style)
    return render(scene, np.random.default_rng(seed)), scene


# --------------------------------------------------------------------------------------------------------------
# Backdrops.  A handful of variants of each is drawn once per process and shifted sideways per picture.

_VARIANTS = 24
_HORIZON = int(0.56 * _BIG)


def _noise(rng: np.random.Generator, height: int, width: int, cell: int) -> np.ndarray:
    """Smooth noise in [0, 1], float (height, width), with features of about ``cell`` pixels."""
    small = rng.random((max(2, height // cell), max(2, width // cell)), dtype=np.float32)
    image = Image.fromarray((small * 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _speckled(rng: np.random.Generator, colour: tuple[int, int, int], height: int, amount: float) -> Image.Image:
    """A flat colour with smooth and fine brightness noise, as an image of the full width."""
    noise = 0.6 * _noise(rng, height, _BIG, 24) + 0.4 * _noise(rng, height, _BIG, 5) - 0.5
    pixels = np.asarray(colour, np.float32) * (1 + amount * noise[..., None])
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _drawn(rng: np.random.Generator, least: int, below: int) -> int:
    return int(rng.integers(least, below))


def _draw_grass(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    for _ in range(420):
        x, y = _drawn(rng, 0, _BIG), _drawn(rng, 0, image.height + 10)
        shade = tuple(int(v) for v in np.array((78, 165, 52)) * rng.uniform(0.62, 1.3))
        pen.line((x, y, x + _drawn(rng, -6, 7), y - _drawn(rng, 9, 20)), fill=shade, width=3)


def _draw_sand(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    xs = np.arange(-8, _BIG + 8, 8)
    for y in range(6, image.height, 17):
        wave = y + 4 * np.sin(xs / rng.uniform(16, 26) + rng.uniform(0, 6))
        pen.line(list(zip(xs.tolist(), wave.tolist(), strict=True)), fill=(203, 166, 98), width=4)
    for _ in range(150):
        x, y = _drawn(rng, 0, _BIG), _drawn(rng, 0, image.height)
        pen.ellipse((x, y, x + 3, y + 3), fill=(182, 144, 84))


def _draw_snow(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    for _ in range(7):
        x, y, w = _drawn(rng, -40, _BIG), _drawn(rng, 8, image.height), _drawn(rng, 60, 130)
        pen.ellipse((x, y, x + w, y + w // 5), fill=(206, 222, 243))
        pen.ellipse((x, y - 6, x + w, y + w // 5 - 7), fill=(243, 247, 253))


def _draw_water(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    for row, y in enumerate(range(4, image.height, 15)):
        offset = rng.integers(0, 30)
        for x in range(-30, _BIG, 34):
            left = x + offset
            pen.arc((left, y - 7, left + 32, y + 9), 20, 160, fill=(176, 224, 246), width=4 if row % 2 else 3)


def _draw_bricks(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    for row, y in enumerate(range(0, image.height, 20)):
        for x in range(-44 + 22 * (row % 2), _BIG, 44):
            shade = tuple(int(v) for v in np.array((170, 84, 62)) * rng.uniform(0.82, 1.18))
            pen.rectangle((x + 2, y + 2, x + 41, y + 17), fill=shade)


def _draw_wood(image: Image.Image, rng: np.random.Generator) -> None:
    pen = ImageDraw.Draw(image)
    centre = _BIG / 2
    for x in range(-3 * _BIG, 4 * _BIG, 62):  # planks run towards the horizon
        shade = tuple(int(v) for v in np.array((158, 108, 60)) * rng.uniform(0.82, 1.15))
        top = [centre + (x + d - centre) * 0.45 for d in (0, 62)]
        pen.polygon((top[0], 0, top[1], 0, x + 62, image.height, x, image.height), fill=shade)
        pen.line((top[0], 0, x, image.height), fill=(82, 50, 26), width=4)


_GROUND_BASE = {
    "grass": ((72, 150, 50), 0.35, _draw_grass),
    "sand": ((232, 200, 134), 0.12, _draw_sand),
    "snow": ((240, 245, 252), 0.04, _draw_snow),
    "water": ((46, 132, 196), 0.30, _draw_water),
    "bricks": ((208, 190, 172), 0.10, _draw_bricks),
    "wood": ((150, 100, 56), 0.10, _draw_wood),
}


def _sky(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> Image.Image:
    ramp = np.linspace(0, 1, _HORIZON + 16, dtype=np.float32)[:, None, None]
    pixels = np.asarray(top, np.float32) * (1 - ramp) + np.asarray(bottom, np.float32) * ramp
    return Image.fromarray(np.broadcast_to(pixels, (_HORIZON + 16, _BIG, 3)).astype(np.uint8))


def _draw_park(rng: np.random.Generator) -> Image.Image:
    image = _sky((120, 190, 245), (206, 232, 250))
    pen = ImageDraw.Draw(image)
    for x in range(int(rng.integers(-40, 0)), _BIG + 30, 62):
        height, half = rng.integers(66, 100), rng.integers(24, 36)
        pen.rectangle((x - 5, _HORIZON - 50, x + 5, _HORIZON + 16), fill=(104, 70, 40))
        for dx, dy, shade in ((-14, 0, 0.85), (12, 6, 1.0), (0, -18, 1.15)):
            fill = tuple(int(v * shade) for v in (38, 118, 58))
            y = _HORIZON - height + dy
            pen.ellipse((x + dx - half, y, x + dx + half, y + 1.6 * half), fill=fill)
    return image


def _draw_city(rng: np.random.Generator) -> Image.Image:
    image = _sky((196, 202, 214), (238, 226, 214))
    pen = ImageDraw.Draw(image)
    x = int(rng.integers(-30, 0))
    while x < _BIG:
        width, top = int(rng.integers(34, 56)), _HORIZON - int(rng.integers(50, 128))
        grey = int(rng.integers(84, 132))
        pen.rectangle((x, top, x + width, _HORIZON + 16), fill=(grey, grey + 4, grey + 16))
        for wx in range(x + 6, x + width - 8, 13):
            for wy in range(top + 8, _HORIZON, 17):
                pen.rectangle((wx, wy, wx + 6, wy + 8), fill=(250, 226, 140) if rng.random() < 0.6 else (58, 64, 80))
        x += width + int(rng.integers(0, 10))
    return image


def _draw_mountains(rng: np.random.Generator) -> Image.Image:
    image = _sky((150, 200, 240), (246, 222, 214))
    pen = ImageDraw.Draw(image)
    for x in range(int(rng.integers(-60, -10)), _BIG + 60, 84):
        half, height = int(rng.integers(66, 92)), int(rng.integers(84, 126))
        top = _HORIZON - height
        shade = rng.uniform(0.85, 1.1)
        rock = tuple(int(v * shade) for v in (112, 106, 142))
        pen.polygon((x - half, _HORIZON + 16, x, top, x + half, _HORIZON + 16), fill=rock)
        cap = 0.34
        pen.polygon(
            (x - half * cap, top + height * cap, x, top, x + half * cap, top + height * cap, x, top + height * 0.24),
            fill=(250, 250, 255),
        )
    return image


def _draw_night(rng: np.random.Generator) -> Image.Image:
    image = _sky((10, 14, 46), (38, 40, 92))
    pen = ImageDraw.Draw(image)
    for _ in range(34):
        x, y, r = rng.integers(0, _BIG), rng.integers(0, _HORIZON), rng.integers(1, 4)
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(246, 246, 220))
    x, y, r = int(rng.integers(40, _BIG - 40)), int(rng.integers(26, 60)), 19
    pen.ellipse((x - r, y - r, x + r, y + r), fill=(252, 244, 196))
    return image


_PLACE_DRAW = {"park": _draw_park, "city": _draw_city, "mountains": _draw_mountains, "night": _draw_night}


@functools.cache
def _ground(name: str, variant: int) -> np.ndarray:
    rng = np.random.default_rng([GROUNDS.index(name), variant, 1])
    colour, amount, draw = _GROUND_BASE[name]
    image = _speckled(rng, colour, _BIG - _HORIZON + 16, amount)
    draw(image, rng)
    return np.asarray(image)


@functools.cache
def _place(name: str, variant: int) -> np.ndarray:
    return np.asarray(_PLACE_DRAW[name](np.random.default_rng([PLACES.index(name), variant, 2])))


def _backdrop(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Place above, ground below a jittered horizon: float (256, 256, 3) in [0, 255]."""
    horizon = _HORIZON + int(rng.integers(-14, 15))
    place = _place(scene.place, int(rng.integers(_VARIANTS)))
    ground = _ground(scene.ground, int(rng.integers(_VARIANTS)))
    if rng.random() < 0.5:
        place = place[:, ::-1]
    canvas = np.empty((_BIG, _BIG, 3), np.float32)
    canvas[:horizon] = np.resize(place, (_HORIZON + 16, _BIG, 3))[-horizon:] if horizon <= len(place) else 0
    canvas[horizon:] = np.roll(ground, int(rng.integers(-30, 31)), axis=1)[: _BIG - horizon]
    if scene.place == "night":
        canvas[horizon:] *= (0.62, 0.64, 0.80)
    return canvas


# --------------------------------------------------------------------------------------------------------------
# Objects.  A shape is painted as roles on an upright 256 px square that stands for [-1, 1]^2, y downwards.

_NONE, _BODY, _ACCENT, _DARK, _LIGHT, _SHADE = range(6)


def _px(*values: float) -> list[float]:
    return [(value + 1) * _BIG / 2 for value in values]


def _shape_ball(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse(_px(-0.88, -0.88, 0.88, 0.88), fill=_BODY)


def _shape_box(pen: ImageDraw.ImageDraw) -> None:
    pen.polygon(_px(-0.85, -0.35, -0.4, -0.8, 0.9, -0.8, 0.5, -0.35), fill=_ACCENT)
    pen.polygon(_px(0.5, -0.35, 0.9, -0.8, 0.9, 0.4, 0.5, 0.88), fill=_SHADE)
    pen.rectangle(_px(-0.85, -0.35, 0.5, 0.88), fill=_BODY)


def _shape_mug(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse(_px(0.1, -0.5, 0.98, 0.55), fill=_ACCENT)
    pen.ellipse(_px(0.3, -0.25, 0.76, 0.3), fill=_NONE)
    pen.rounded_rectangle(_px(-0.85, -0.7, 0.5, 0.88), radius=26, fill=_BODY)
    pen.ellipse(_px(-0.85, -0.88, 0.5, -0.52), fill=_ACCENT)
    pen.ellipse(_px(-0.72, -0.81, 0.37, -0.59), fill=_DARK)


def _shape_car(pen: ImageDraw.ImageDraw) -> None:
    pen.polygon(_px(-0.62, -0.05, -0.38, -0.62, 0.34, -0.62, 0.66, -0.05), fill=_ACCENT)
    pen.polygon(_px(-0.44, -0.08, -0.28, -0.48, -0.05, -0.48, -0.05, -0.08), fill=_LIGHT)
    pen.polygon(_px(0.06, -0.08, 0.06, -0.48, 0.26, -0.48, 0.47, -0.08), fill=_LIGHT)
    pen.rounded_rectangle(_px(-1.0, -0.12, 1.0, 0.6), radius=30, fill=_BODY)
    for x in (-0.52, 0.52):
        pen.ellipse(_px(x - 0.27, 0.34, x + 0.27, 0.88), fill=_DARK)
        pen.ellipse(_px(x - 0.11, 0.50, x + 0.11, 0.72), fill=_LIGHT)


def _shape_hat(pen: ImageDraw.ImageDraw) -> None:
    pen.polygon(_px(-0.66, -0.85, 0.66, -0.85, 0.54, 0.7, -0.54, 0.7), fill=_BODY)
    pen.ellipse(_px(-0.66, -0.98, 0.66, -0.68), fill=_ACCENT)
    pen.ellipse(_px(-1.0, 0.42, 1.0, 0.88), fill=_ACCENT)
    pen.polygon(_px(-0.585, 0.22, 0.585, 0.22, 0.56, 0.56, -0.56, 0.56), fill=_DARK)


def _shape_duck(pen: ImageDraw.ImageDraw) -> None:
    pen.polygon(_px(0.5, 0.15, 1.0, -0.15, 0.85, 0.6), fill=_ACCENT)
    pen.ellipse(_px(-0.72, -0.08, 0.85, 0.88), fill=_BODY)
    pen.polygon(_px(-0.62, -0.62, -1.0, -0.42, -0.62, -0.26), fill=_ACCENT)
    pen.ellipse(_px(-0.74, -0.95, 0.12, -0.08), fill=_BODY)
    pen.ellipse(_px(-0.54, -0.70, -0.34, -0.48), fill=_DARK)


def _shape_toy(pen: ImageDraw.ImageDraw) -> None:
    for x in (-1, 1):
        pen.ellipse(_px(0.46 * x - 0.25, -1.0, 0.46 * x + 0.25, -0.5), fill=_ACCENT)
        pen.ellipse(_px(0.66 * x - 0.26, -0.1, 0.66 * x + 0.26, 0.42), fill=_ACCENT)
        pen.ellipse(_px(0.42 * x - 0.32, 0.5, 0.42 * x + 0.32, 0.98), fill=_ACCENT)
    pen.ellipse(_px(-0.64, -0.22, 0.64, 0.9), fill=_BODY)
    pen.ellipse(_px(-0.58, -0.9, 0.58, 0.08), fill=_BODY)
    for x in (-0.24, 0.24):
        pen.ellipse(_px(x - 0.1, -0.58, x + 0.1, -0.36), fill=_DARK)
    pen.ellipse(_px(-0.13, -0.30, 0.13, -0.12), fill=_DARK)


def _shape_bag(pen: ImageDraw.ImageDraw) -> None:
    pen.ellipse(_px(-0.36, -1.0, 0.36, -0.3), fill=_ACCENT)
    pen.ellipse(_px(-0.19, -0.83, 0.19, -0.4), fill=_NONE)
    for left in (-0.96, 0.68):
        pen.rounded_rectangle(_px(left, 0.15, left + 0.28, 0.78), radius=14, fill=_ACCENT)
    pen.rounded_rectangle(_px(-0.76, -0.72, 0.76, 0.9), radius=52, fill=_BODY)
    pen.rounded_rectangle(_px(-0.5, 0.34, 0.5, 0.76), radius=16, fill=_ACCENT)
    pen.line(_px(-0.34, 0.47, 0.34, 0.47), fill=_DARK, width=8)


def _shape_vase(pen: ImageDraw.ImageDraw) -> None:
    y = np.linspace(-0.9, 0.88, 40)
    half = 0.30 + 0.50 * np.exp(-(((y - 0.15) / 0.42) ** 2)) + 0.14 * np.exp(-(((y + 0.9) / 0.14) ** 2))
    outline = np.concatenate([np.stack([half, y], 1), np.stack([-half, y], 1)[::-1]])
    pen.polygon(_px(*outline.ravel().tolist()), fill=_BODY)
    pen.ellipse(_px(-0.50, -1.0, 0.50, -0.74), fill=_ACCENT)
    pen.ellipse(_px(-0.36, -0.94, 0.36, -0.80), fill=_DARK)
    pen.rounded_rectangle(_px(-0.46, 0.74, 0.46, 0.94), radius=8, fill=_ACCENT)


_SHAPE_DRAW = {
    "ball": _shape_ball,
    "box": _shape_box,
    "mug": _shape_mug,
    "car": _shape_car,
    "hat": _shape_hat,
    "duck": _shape_duck,
    "toy": _shape_toy,
    "bag": _shape_bag,
    "vase": _shape_vase,
}


@functools.cache
def _roles(shape: str) -> np.ndarray:
    """Role of each pixel of the upright shape, uint8 (256, 256)."""
    image = Image.new("L", (_BIG, _BIG), _NONE)
    _SHAPE_DRAW[shape](ImageDraw.Draw(image))
    return np.asarray(image)


@functools.cache
def _pattern(name: str, angle: int) -> np.ndarray:
    """Where the second colour goes, bool (256, 256).

    Stripes, dots and checks are at least 8 px wide in the picture: two latent cells, which is what a small U-Net
    learns to draw in order.
    """
    axis = np.linspace(-1, 1, _BIG, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    turn = np.deg2rad(angle)
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    if name == "striped":
        return np.floor(v / 0.38 + 0.5).astype(int) % 2 == 1
    if name == "checkered":
        return (np.floor(u / 0.5 + 0.5) + np.floor(v / 0.5 + 0.5)).astype(int) % 2 == 1
    if name == "dotted":
        step, row = 0.68, np.floor(v / 0.68 + 0.5)
        du = (u / step + 0.5 * (row % 2)) % 1 - 0.5
        dv = v / step - row
        return du**2 + dv**2 < 0.31**2
    if name == "halved":
        return v > 0.1
    if name == "ringed":
        return np.floor(np.hypot(u, v - 0.15) / 0.3).astype(int) % 2 == 1
    if name == "crossed":
        return np.minimum(np.abs(u), np.abs(v - 0.15)) < 0.2
    return np.zeros((_BIG, _BIG), bool)


@functools.cache
def _edge(shape: str) -> np.ndarray:
    """Outline and inner part borders of a shape, float (256, 256) in [0, 1]."""
    roles = Image.fromarray(_roles(shape) * 40)
    edge = ImageChops.difference(roles.filter(ImageFilter.MaxFilter(7)), roles.filter(ImageFilter.MinFilter(7)))
    return (np.asarray(edge) > 0).astype(np.float32)


def _object_pixels(scene: Scene) -> np.ndarray:
    """Flat colours of the upright object with its coverage: uint8 (256, 256, 4)."""
    assert scene.shape is not None
    return _upright(scene.shape, scene.colour, scene.second, scene.pattern, scene.angle)


@functools.lru_cache(maxsize=64)
def _upright(shape: str, colour: str, other: str, pattern: str, angle: int) -> np.ndarray:
    """Cached, as one object is drawn in many scenes: do not write into it."""
    first = np.asarray(COLOURS[colour], np.float32)
    second = np.asarray(COLOURS[other], np.float32) * (0.78 if pattern == "plain" else 1.0)
    palette = np.stack([first, first, second, (34, 30, 36), (224, 238, 248), second * 0.78])
    roles = _roles(shape)
    pixels = palette[roles]
    pixels[(roles == _BODY) & _pattern(pattern, angle)] = second
    alpha = np.where(roles == _NONE, 0, 255)
    return np.concatenate([pixels, alpha[..., None]], axis=2).astype(np.uint8)


@dataclass(frozen=True)
class _Pose:
    """Where the object stands: centre and half size in supersampled pixels, turn in degrees, mirrored or not."""

    x: float
    y: float
    half: float
    turn: float
    mirror: bool

    @staticmethod
    def random(rng: np.random.Generator) -> _Pose:
        half = rng.uniform(0.29, 0.36) * _BIG
        foot = rng.uniform(0.86, 0.94) * _BIG
        return _Pose(rng.uniform(0.40, 0.60) * _BIG, foot - half, half, rng.uniform(-9, 9), rng.random() < 0.5)

    def apply(self, upright: np.ndarray) -> np.ndarray:
        """Place an upright (256, 256[, C]) uint8 picture on the canvas."""
        scale = _BIG / 2 / self.half
        turn = np.deg2rad(self.turn)
        flip = -1 if self.mirror else 1
        a, b = flip * scale * np.cos(turn), flip * scale * np.sin(turn)
        d, e = -scale * np.sin(turn), scale * np.cos(turn)
        c = _BIG / 2 - a * self.x - b * self.y
        f = _BIG / 2 - d * self.x - e * self.y
        image = Image.fromarray(upright)
        placed = image.transform((_BIG, _BIG), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR)
        return np.asarray(placed)


def _shading(pose: _Pose) -> np.ndarray:
    """Light from the upper left: a brightness factor, float (256, 256, 1)."""
    axis = np.arange(_BIG, dtype=np.float32)
    across = (axis[None, :] - pose.x) / pose.half * 0.5 + (axis[:, None] - pose.y) / pose.half * 0.9
    return np.clip(1.02 - 0.17 * across, 0.76, 1.14)[..., None]


def _shadow(pose: _Pose) -> np.ndarray:
    """Soft contact shadow: darkening in [0, 1], float (256, 256, 1)."""
    axis = np.arange(_BIG, dtype=np.float32)
    dx = (axis[None, :] - pose.x - 0.12 * pose.half) / (1.12 * pose.half)
    dy = (axis[:, None] - pose.y - 0.90 * pose.half) / (0.26 * pose.half)
    return 0.62 * np.exp(-1.4 * (dx**2 + dy**2) ** 1.5)[..., None]


# --------------------------------------------------------------------------------------------------------------
# Styles: each turns the layers of a scene into the final 64 px picture.


@dataclass(frozen=True)
class _Layers:
    """Backdrop (256, 256, 3), object colours (256, 256, 3), coverage and line maps (256, 256, 1) in [0, 1]."""

    backdrop: np.ndarray
    colours: np.ndarray
    cover: np.ndarray
    lines: np.ndarray
    pose: _Pose | None


def _layers(scene: Scene, rng: np.random.Generator) -> _Layers:
    backdrop = _backdrop(scene, rng)
    if scene.shape is None:
        empty = np.zeros((_BIG, _BIG, 1), np.float32)
        return _Layers(backdrop, backdrop, empty, empty, None)
    pose = _Pose.random(rng)
    placed = pose.apply(_object_pixels(scene)).astype(np.float32)
    lines = pose.apply((_edge(scene.shape) * 255).astype(np.uint8)).astype(np.float32)[..., None] / 255
    return _Layers(backdrop, placed[..., :3], placed[..., 3:] / 255, lines, pose)


def _photo_canvas(layers: _Layers) -> np.ndarray:
    """Lit object with shadow on the backdrop, float (256, 256, 3) in [0, 255]."""
    if layers.pose is None:
        return layers.backdrop
    canvas = layers.backdrop * (1 - _shadow(layers.pose))
    lit = layers.colours * _shading(layers.pose)
    canvas = canvas * (1 - layers.cover) + lit * layers.cover
    return canvas * (1 - 0.55 * layers.lines)


def _down(pixels: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Average (256, 256, C) down to (size, size, C)."""
    step = _BIG // size
    blocks = pixels.reshape(size, step, size, step, -1)
    if blocks.shape[-1] == 1:
        return blocks.mean(axis=(1, 3), dtype=np.float32)
    total = np.zeros((size, size, blocks.shape[-1]), np.float32)
    for y, x in np.ndindex(step, step):  # numpy's own order of summing, to the bit, in a third of the time
        np.add(total, blocks[:, y, :, x], out=total, dtype=np.float32, casting="same_kind")
    return total / np.float32(step * step)


def _gradient(pixels: np.ndarray, reach: int) -> np.ndarray:
    """Largest colour difference over ``reach`` pixels to the right and below: float (H, W, 1) in [0, 1]."""
    right = np.abs(pixels - np.roll(pixels, -reach, axis=1)).max(axis=2)
    below = np.abs(pixels - np.roll(pixels, -reach, axis=0)).max(axis=2)
    right[:, -reach:] = 0
    below[-reach:] = 0
    return np.clip(np.maximum(right, below) / 255, 0, 1)[..., None]


def _style_photo(layers: _Layers, rng: np.random.Generator) -> np.ndarray:
    small = _down(_photo_canvas(layers)) * rng.uniform(0.95, 1.04)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    vignette = 1 - 0.13 * (axis[:, None] ** 2 + axis[None, :] ** 2) / 2
    return small * vignette[..., None]


def _style_sketch(layers: _Layers, rng: np.random.Generator) -> np.ndarray:
    """Pencil lines on cream paper; the object is filled with hatched coloured pencil."""
    back, colours, cover, lines = (_down(a, 128) for a in (layers.backdrop, layers.colours, layers.cover, layers.lines))
    flat = back * (1 - cover) + colours * cover
    pencil = np.clip(1.5 * _gradient(flat, 1) * (1 - 0.5 * cover), 0, 0.62)
    pencil = np.maximum(pencil, 0.85 * lines)
    x, y = np.meshgrid(np.arange(128), np.arange(128))
    hatch = (0.5 + 0.5 * np.sin((x + y) * 0.9 + rng.uniform(0, 6)))[..., None].astype(np.float32)
    strength = cover * (0.66 + 0.22 * hatch) + (1 - cover) * 0.36
    paper = np.asarray((250, 246, 232), np.float32)
    page = paper * (1 - strength) + flat * strength
    page = page * (1 - pencil) + np.asarray((48, 46, 54), np.float32) * pencil
    return page.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))


def _style_painting(layers: _Layers, rng: np.random.Generator) -> np.ndarray:
    """Short thick strokes along a smooth flow, warm and saturated."""
    source = _down(_photo_canvas(layers), 128)
    grey = source.mean(axis=2, keepdims=True)
    source = np.clip((grey + 1.35 * (source - grey)) * (1.08, 1.0, 0.86), 0, 255)
    canvas = Image.fromarray(source.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
    colours = source.astype(np.int16)
    pen = ImageDraw.Draw(canvas)
    flow = _noise(rng, 128, 128, 40) * 2 * np.pi
    reach = np.where(_down(layers.cover, 128)[..., 0] > 0.5, 2.2, 4.5)  # finer strokes keep the object readable
    points = rng.integers(0, 128, (900, 2))
    tints = rng.integers(-22, 23, 900)
    paints = (colours[points[:, 1], points[:, 0]] + tints[:, None]).clip(0, 255).tolist()
    for (x, y), (red, green, blue) in zip(points.tolist(), paints, strict=True):
        angle = flow[y, x]
        dx, dy = reach[y, x] * np.cos(angle), reach[y, x] * np.sin(angle)
        pen.line((x - dx, y - dy, x + dx, y + dy), fill=(red, green, blue), width=3)
    return np.asarray(canvas, np.float32).reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))


def _style_pixel(layers: _Layers, rng: np.random.Generator) -> np.ndarray:
    """Sixteen fat pixels across, few colour levels, a dark outline around the object."""
    inside = _down(layers.cover, 16) > 0.5
    colours = layers.colours[8::16, 8::16]  # point samples keep patterns crisp where averages would mix them
    block = np.where(inside, colours, _down(layers.backdrop, 16))
    ring = ~inside & (np.roll(inside, 1, 0) | np.roll(inside, -1, 0) | np.roll(inside, 1, 1) | np.roll(inside, -1, 1))
    block = np.where(ring, block * 0.30, block)
    levels = np.round(block / 42.5) * 42.5
    return np.kron(levels, np.ones((4, 4, 1), np.float32))


def _style_neon(layers: _Layers, rng: np.random.Generator) -> np.ndarray:
    """Glowing coloured lines on a dark backdrop."""
    back, colours, cover, lines = (_down(a, 128) for a in (layers.backdrop, layers.colours, layers.cover, layers.lines))
    flat = back * (1 - cover) + colours * cover
    tubes = np.clip(2.0 * _gradient(flat, 2), 0, 1)
    vivid = flat / np.maximum(flat.max(axis=2, keepdims=True), 60) * 255
    outline = np.clip(lines * 1.2, 0, 1)
    tint = vivid * (1 - outline) + np.maximum(vivid, 90) * outline
    glow = tint * np.maximum(tubes * (0.50 + 0.35 * cover), outline * 0.95)
    blurred = Image.fromarray(np.clip(glow, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(3))
    fill = flat * (0.30 + 0.36 * cover) * (1, 0.94, 1.1)
    page = np.asarray((10, 4, 26), np.float32) + fill * 0.9 + glow * 0.75 + np.asarray(blurred, np.float32) * 0.5
    return page.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))


_STYLE_DRAW = {
    "photo": _style_photo,
    "sketch": _style_sketch,
    "painting": _style_painting,
    "pixel art": _style_pixel,
    "neon art": _style_neon,
}


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draw ``scene`` with the jitter of ``rng``: uint8 (64, 64, 3)."""
    picture = _STYLE_DRAW[scene.style](_layers(scene, rng), rng)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def contact_sheet(pictures: list[np.ndarray], columns: int, zoom: int = 2) -> Image.Image:
    """Lay uint8 (64, 64, 3) pictures out row by row, enlarged ``zoom`` times without smoothing."""
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (SIZE + 2), columns * (SIZE + 2), 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        y, x = (i // columns) * (SIZE + 2), (i % columns) * (SIZE + 2)
        sheet[y : y + SIZE, x : x + SIZE] = picture
    image = Image.fromarray(sheet)
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


# --------------------------------------------------------------------------------------------------------------
# The demo's task: four photos of one held-out toy, all on grass in the park.


def write_demo(folder: Path) -> None:
    """Write ``subject/`` (4 captioned pictures) and ``heldout/`` (10 pictures for fidelity)."""
    name = next(iter(subjects()))
    for part in ("subject", "heldout"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for index in range(4):
        picture, _ = subject_item(name, "grass", "park", "photo", seed=100 + index)
        Image.fromarray(picture).save(folder / "subject" / f"{index + 1}.png")
        (folder / "subject" / f"{index + 1}.txt").write_text("a photo of {subject} on grass\n")
    others = [ground for ground in GROUNDS if ground != "grass"]
    for index in range(10):
        ground, place = others[index % len(others)], PLACES[(index + index // len(others)) % len(PLACES)]
        picture, _ = subject_item(name, ground, place, "photo", seed=200 + index)
        Image.fromarray(picture).save(folder / "heldout" / f"{index + 1:02d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the demo's pictures.")
    parser.add_argument("--demo", type=Path, default=Path("apt_train/assets/demo"))
    write_demo(parser.parse_args().demo)


if __name__ == "__main__":
    main()
