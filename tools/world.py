"""The world that the embedded image model draws: scenes of shapes, described in words and drawn by rules.

    python tools/world.py sheet.png                   draws a sheet of scenes with their descriptions
    python tools/world.py prompts src/lineas/data     writes the prompts that ship: night and sun, 32 a side, 32 to draw

A scene has one or two shapes, each of a size, a texture and a colour, somewhere on a coloured ground; perhaps a sun in
the corner; perhaps a style. Everything here is made by this file alone, so whatever a picture shows is known.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIDE = 64
"""The side of a picture, in pixels."""
FINE = 4
"""Times finer while it is drawn."""
COLOURS = {
    "red": (222, 42, 42),
    "orange": (245, 140, 30),
    "yellow": (245, 215, 50),
    "green": (50, 165, 75),
    "blue": (45, 90, 220),
    "purple": (135, 60, 180),
    "pink": (245, 130, 185),
    "brown": (125, 80, 45),
    "black": (35, 35, 40),
    "white": (250, 250, 250),
}
GROUNDS = {
    "grey": (205, 205, 205),
    "cream": (248, 238, 210),
    "mint": (195, 235, 210),
    "sky": (190, 220, 245),
    "rose": (248, 210, 215),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring", "moon")
SIZES = {"small": 0.15, "": 0.21, "big": 0.28}
TEXTURES = ("", "striped", "dotted", "checkered")
PLACES = {
    "in the middle": (0.5, 0.54),
    "on the left": (0.29, 0.54),
    "on the right": (0.71, 0.54),
    "at the top": (0.5, 0.32),
    "at the bottom": (0.5, 0.72),
}
STYLES = ("at night", "in the snow", "in the rain", "as an outline", "as a sketch", "blurred")
PAIRS = {"next to": ((0.28, 0.56), (0.72, 0.56)), "above": ((0.5, 0.3), (0.5, 0.76))}


@dataclass(frozen=True)
class Thing:
    """One shape.

    Args:
        shape: of SHAPES.
        colour: of COLOURS.
        texture: of TEXTURES.
        size: of SIZES.
    """

    shape: str
    colour: str
    texture: str = ""
    size: str = ""

    def __str__(self) -> str:
        words = " ".join(filter(None, (self.size, self.texture, self.colour, self.shape)))
        return ("an " if words[0] == "o" else "a ") + words


@dataclass(frozen=True)
class Scene:
    """The content of a picture.

    Args:
        things: one or two.
        relation: a key of PLACES for one thing, of PAIRS for two.
        ground: of GROUNDS.
        sun: whether it is there.
        style: of STYLES, or "".
    """

    things: tuple[Thing, ...]
    relation: str
    ground: str
    sun: bool = False
    style: str = ""

    def __str__(self) -> str:
        if len(self.things) == 1:
            text = f"{self.things[0]} {self.relation}"
        else:
            text = f"{self.things[0]} {self.relation} {self.things[1]}"
        text += f" on {self.ground}"
        text += " with a sun" if self.sun else ""
        return text + (f" {self.style}" if self.style else "")


def some_scene(chance: np.random.Generator, style: str | None = None, sun: bool | None = None) -> Scene:
    """A scene at random.

    Args:
        chance: what decides.
        style: given, or any.
        sun: given, or as it comes.
    """
    two = chance.random() < 0.4
    things = [_some_thing(chance, two) for _ in range(2 if two else 1)]
    if two and things[0].shape == things[1].shape and things[0].colour == things[1].colour:
        things[1] = replace(things[1], colour=_one_of(chance, [c for c in COLOURS if c != things[0].colour]))
    return Scene(
        tuple(things),
        _one_of(chance, list(PAIRS if two else PLACES)),
        _one_of(chance, list(GROUNDS)),
        bool(chance.random() < 0.3) if sun is None else sun,
        (_one_of(chance, list(STYLES)) if chance.random() < 0.6 else "") if style is None else style,
    )


def draw(scene: Scene, chance: np.random.Generator) -> np.ndarray:
    """A picture of a scene, uint8 `[64, 64, 3]`; chance moves and turns the shapes a little."""
    side = SIDE * FINE
    ground = Image.new("RGB", (side, side), GROUNDS[scene.ground])
    places = [PLACES[scene.relation]] if len(scene.things) == 1 else PAIRS[scene.relation]
    if scene.sun:
        _sun(ground, chance)
    for thing, (x, y) in zip(scene.things, places):
        jitter = chance.uniform(-0.025, 0.025, 2)
        radius = SIZES[thing.size] * (0.85 if len(scene.things) == 2 else 1) * chance.uniform(0.94, 1.06)
        mask = _mask(thing.shape, (x + jitter[0]) * side, (y + jitter[1]) * side, radius * side, chance)
        if scene.style == "as an outline":
            inner = mask.filter(ImageFilter.MinFilter(2 * FINE + 1)).filter(ImageFilter.MinFilter(2 * FINE + 1))
            mask = Image.fromarray(np.asarray(mask) * (np.asarray(inner) < 128))
            ground.paste(COLOURS[thing.colour], (0, 0), mask)
        else:
            ground.paste(_filled(thing, side), (0, 0), mask)
    small = ground.resize((SIDE, SIDE), Image.Resampling.BOX)
    return _styled(np.asarray(small, dtype=np.float32), scene.style, chance)


def _some_thing(chance: np.random.Generator, two: bool) -> Thing:
    size = "" if two else _one_of(chance, ["small", "", "", "big"])
    return Thing(
        _one_of(chance, list(SHAPES)), _one_of(chance, list(COLOURS)),
        _one_of(chance, TEXTURES) if chance.random() < 0.5 else "", size,
    )  # fmt: skip


def _one_of(chance: np.random.Generator, words: Any) -> str:
    return str(words[int(chance.integers(len(words)))])


def _filled(thing: Thing, side: int) -> Image.Image:
    """A sheet of a thing's colour and texture."""
    colour = np.array(COLOURS[thing.colour], dtype=np.float32)
    light = colour.mean() > 200
    other = colour * 0.55 if light else colour * 0.35 + 255 * 0.65
    rows, columns = np.mgrid[0:side, 0:side] / FINE
    if thing.texture == "striped":
        marks = (columns + rows) % 8 < 4
    elif thing.texture == "dotted":
        marks = np.hypot(columns % 7 - 3.5, rows % 7 - 3.5) < 2
    elif thing.texture == "checkered":
        marks = (columns // 5 + rows // 5) % 2 < 1
    else:
        marks = np.zeros((side, side), dtype=bool)
    return Image.fromarray(np.where(marks[..., None], other, colour).astype(np.uint8))


def _mask(shape: str, x: float, y: float, r: float, chance: np.random.Generator) -> Image.Image:
    """Return the place of a shape."""
    mask = Image.new("L", (SIDE * FINE, SIDE * FINE), 0)
    pen = ImageDraw.Draw(mask)
    turn = math.radians(chance.uniform(-6, 6))
    if shape in ("circle", "ring", "moon"):
        pen.ellipse((x - r, y - r, x + r, y + r), 255)
        if shape == "ring":
            pen.ellipse((x - r * 0.55, y - r * 0.55, x + r * 0.55, y + r * 0.55), 0)
        if shape == "moon":
            pen.ellipse((x - r * 0.35, y - r * 1.0, x + r * 1.45, y + r * 0.8), 0)
        return mask
    pen.polygon([_turned(px, py, x, y, r, turn) for px, py in _outline(shape)], 255)
    return mask


def _turned(px: float, py: float, x: float, y: float, r: float, turn: float) -> tuple[float, float]:
    cosine, sine = math.cos(turn), math.sin(turn)
    return x + r * (px * cosine - py * sine), y + r * (px * sine + py * cosine)


def _outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape within the unit circle, y downwards."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -1), (0.95, 0.75), (-0.95, 0.75)]
    if shape == "diamond":
        return [(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)]
    if shape == "cross":
        a = 0.34
        return [
            (-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)
        ]  # fmt: skip
    if shape == "star":
        around = [(1.1 if i % 2 == 0 else 0.45, math.pi * i / 5 - math.pi / 2) for i in range(10)]
        return [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in around]
    steps = [2 * math.pi * i / 60 for i in range(60)]  # the heart
    wide = [16 * math.sin(t) ** 3 for t in steps]
    high = [-(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) for t in steps]
    return [(a / 16, b / 15) for a, b in zip(wide, high)]


def _sun(ground: Image.Image, chance: np.random.Generator) -> None:
    """A sun with rays in the upper right corner."""
    side = SIDE * FINE
    x, y, r = 0.86 * side, 0.14 * side, 0.075 * side
    pen = ImageDraw.Draw(ground)
    start = chance.uniform(0, math.pi / 4)
    for i in range(8):
        angle = start + i * math.pi / 4
        far = (x + 1.75 * r * math.cos(angle), y + 1.75 * r * math.sin(angle))
        pen.line(((x, y), far), (250, 170, 20), width=round(0.02 * side))
    pen.ellipse((x - r, y - r, x + r, y + r), (255, 200, 30))


def _styled(picture: np.ndarray, style: str, chance: np.random.Generator) -> np.ndarray:
    """A picture of numbers from 0 to 255 in a style."""
    if style == "at night":
        picture = picture * np.array([0.24, 0.26, 0.42]) + np.array([2, 4, 24])
        for _ in range(14):
            picture[int(chance.integers(SIDE)), int(chance.integers(SIDE))] = (235, 235, 200)
    elif style == "in the snow":
        picture = picture * 0.85 + 255 * 0.15
        picture[-9:] = picture[-9:] * 0.1 + 250 * 0.9
        picture = _covered(picture, _marks("flakes", chance), (255, 255, 255))
    elif style == "in the rain":
        grey = picture.mean(-1, keepdims=True)
        picture = (0.55 * picture + 0.45 * grey) * np.array([0.72, 0.78, 0.88])
        picture = _covered(picture, _marks("drops", chance), (70, 120, 225))
    elif style == "as a sketch":
        grey = picture.mean(-1)
        edges = np.hypot(*np.gradient(grey))
        rows, columns = np.mgrid[0:SIDE, 0:SIDE]
        hatch = ((rows + columns) % 4 == 0) * (215 - grey).clip(0) * 0.75
        paper = 248 - (edges * 5).clip(0, 190) - hatch
        picture = np.repeat(paper[..., None], 3, -1) * np.array([1.0, 0.99, 0.96])
    elif style == "blurred":
        soft = Image.fromarray(picture.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2.6))
        picture = np.asarray(soft, dtype=np.float32)
    return picture.clip(0, 255).astype(np.uint8)


def _marks(kind: str, chance: np.random.Generator) -> Image.Image:
    """Flakes or slanting drops: one in every cell of a lattice, off its middle by a little, odd rows by half a cell.

    Large and even enough that a small network draws each of them; those at places of their own come out as fog.
    """
    mask = Image.new("L", (SIDE * FINE, SIDE * FINE), 0)
    pen, rows, columns = ImageDraw.Draw(mask), 5, 5 if kind == "flakes" else 6
    for i in range(rows):
        for k in range(columns):
            off = chance.uniform(-0.18, 0.18, 2)
            y = (i + 0.5 + off[0]) / rows * SIDE * FINE
            x = (k + (0.25, 0.75)[i % 2] + off[1]) / columns * SIDE * FINE
            if kind == "flakes":
                r = chance.uniform(1.7, 2.3) * FINE
                pen.ellipse((x - r, y - r, x + r, y + r), 255)
            else:
                long = 4 * FINE
                pen.line((x + 0.45 * long, y - long, x - 0.45 * long, y + long), 255, width=round(1.8 * FINE))
    return mask.resize((SIDE, SIDE), Image.Resampling.BOX)


def _covered(picture: np.ndarray, mask: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    share = np.asarray(mask, dtype=np.float32)[..., None] / 255
    return picture * (1 - share) + np.array(colour) * share


def descriptions(count: int, seed: int, style: str | None = None, sun: bool | None = None) -> list[str]:
    """Different scenes in words."""
    chance = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[str(some_scene(chance, style, sun))] = None
    return list(found)


def write_prompts(folder: Path) -> None:
    """The prompts that ship: a style to learn, and a thing to remove."""
    sides = {
        "night": {"source": ("", None), "target": ("at night", None), "prompts": ("", None)},
        "sun": {"source": ("", True), "target": ("", False), "prompts": ("", True)},
    }
    for k, (name, files) in enumerate(sides.items()):
        for i, (side, (style, sun)) in enumerate(files.items()):
            texts = descriptions(32, 100 * k + i, style, sun)
            (folder / name).mkdir(exist_ok=True)
            (folder / name / f"{side}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")


def main() -> None:
    """Prompts, or a sheet to look at."""
    if sys.argv[1] == "prompts":
        write_prompts(Path(sys.argv[2]))
        return
    from lineas.reporting.image_grid import strip

    chance = np.random.default_rng(0)
    rows, labels = [], []
    for style in ("", *STYLES):
        scenes = [some_scene(chance, style) for _ in range(6)]
        rows.append([Image.fromarray(draw(scene, chance)) for scene in scenes])
        labels.append(" | ".join(map(str, scenes[:2])))
    strip(rows, labels, [""] * 6).save(sys.argv[1])


if __name__ == "__main__":
    main()
