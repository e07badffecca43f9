"""Drawn pictures of one coloured shape, each with a mask that tells where the shape is."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

__all__ = ["COLOURS", "SHAPES", "Thing", "any_thing", "draw", "draw_plainly"]

COLOURS = {"red": 0, "orange": 30, "yellow": 56, "green": 120, "blue": 225, "purple": 285}  # hues in degrees
SHAPES = ("circle", "square", "triangle")
CORNERS = {"square": (4, 45.0), "triangle": (3, -90.0)}  # how many, and the direction of the first in degrees


@dataclass(frozen=True)
class Thing:
    """What a picture shows."""

    colour: str
    shape: str


def any_thing(rng: Random) -> Thing:
    """Choose what to draw."""
    return Thing(rng.choice(list(COLOURS)), rng.choice(SHAPES))


def draw(
    rng: Random, thing: Thing, *, size: tuple[int, int] | None = None, plain: bool = False
) -> tuple[Image.Image, Image.Image]:
    """Draw the thing somewhere in a picture of `size` pixels, and its mask: white where the thing is.

    Tint, ground, place, size and a slight turn vary with `rng`; `plain` keeps it upright on a light ground.
    """
    width, height = size or (rng.randint(56, 130), rng.randint(56, 130))
    if size is None and rng.random() < 0.04:
        width, height = 4 * width, 4 * height
    light = plain or rng.random() < 0.75
    white = rng.random() < 0.2
    ground = _rgb(rng.uniform(0, 360), rng.uniform(0, 0.08), rng.uniform(0.85, 1) if light else rng.uniform(0, 0.15))
    if light and white:
        ground = (255, 255, 255)
    fill = _rgb(COLOURS[thing.colour] + rng.uniform(-7, 7), rng.uniform(0.75, 1), rng.uniform(0.75, 1))
    finer = rng.choice((1, 2)) if max(width, height) < 200 else 1  # drawn larger and scaled down, edges are smooth
    wide, high = width * finer, height * finer
    radius = min(wide, high) * rng.uniform(0.25, 0.46)
    middle = rng.uniform(radius, wide - radius), rng.uniform(radius, high - radius)
    turn = 0.0 if plain else rng.uniform(-6, 6)
    picture, mask = Image.new("RGB", (wide, high), ground), Image.new("L", (wide, high), 0)
    _paint(picture, thing.shape, middle, radius, turn, fill)
    _paint(mask, thing.shape, middle, radius, turn, 255)
    if finer > 1:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return picture, mask


def draw_plainly(thing: Thing, edge: int = 256) -> Image.Image:
    """Draw the thing as a person would to try the model: large, upright, in its purest colour, on white."""
    picture = Image.new("RGB", (4 * edge, 4 * edge), "white")
    _paint(picture, thing.shape, (2 * edge, 2 * edge), 1.4 * edge, 0.0, _rgb(COLOURS[thing.colour], 0.9, 0.9))
    return picture.resize((edge, edge), Image.Resampling.BILINEAR)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint(
    canvas: Image.Image,
    shape: str,
    middle: tuple[float, float],
    radius: float,
    turn: float,
    fill: int | tuple[int, int, int],
) -> None:
    """Fill a circle, or the polygon whose corners lie on it, turned by so many degrees."""
    x, y = middle
    pen = ImageDraw.Draw(canvas)
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    corners, first = CORNERS[shape]
    directions = [math.radians(turn + first) + math.tau / corners * corner for corner in range(corners)]
    pen.polygon([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in directions], fill=fill)
