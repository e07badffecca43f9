"""Drawn pictures of one coloured shape, each with a mask of the shape."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from random import Random

from PIL import Image, ImageDraw

__all__ = ["COLOURS", "SHAPES", "Figure", "draw", "draw_canonical", "sample_figure"]

COLOURS = {"red": 0, "orange": 30, "yellow": 56, "green": 120, "blue": 225, "purple": 285}  # hues in degrees
SHAPES = ("circle", "square", "triangle")
CORNERS = {"square": (4, 45.0), "triangle": (3, -90.0)}  # number of corners, and the direction of the first in degrees


@dataclass(frozen=True)
class Figure:
    """The colour and shape that a picture shows."""

    colour: str
    shape: str


def sample_figure(rng: Random) -> Figure:
    """Choose a random colour and shape."""
    return Figure(rng.choice(list(COLOURS)), rng.choice(SHAPES))


def draw(
    rng: Random, figure: Figure, *, size: tuple[int, int] | None = None, plain: bool = False
) -> tuple[Image.Image, Image.Image]:
    """Draw the figure in a picture of `size` pixels (width, height), with its mask: white where the figure is.

    Tint, background, position, size and a slight rotation are random; with `plain` the figure is upright on a light
    background. The mask may have twice the size of the picture.
    """
    width, height = size or (rng.randint(56, 130), rng.randint(56, 130))
    if size is None and rng.random() < 0.04:
        width, height = 4 * width, 4 * height
    light = plain or rng.random() < 0.75
    white = rng.random() < 0.2
    background = _rgb(
        rng.uniform(0, 360), rng.uniform(0, 0.08), rng.uniform(0.85, 1) if light else rng.uniform(0, 0.15)
    )
    if light and white:
        background = (255, 255, 255)
    fill = _rgb(COLOURS[figure.colour] + rng.uniform(-7, 7), rng.uniform(0.75, 1), rng.uniform(0.75, 1))
    scale = rng.choice((1, 2)) if max(width, height) < 200 else 1  # 2: drawn larger and scaled down, for smooth edges
    wide, high = width * scale, height * scale
    radius = min(wide, high) * rng.uniform(0.25, 0.46)
    center = rng.uniform(radius, wide - radius), rng.uniform(radius, high - radius)
    rotation = 0.0 if plain else rng.uniform(-6, 6)
    picture, mask = Image.new("RGB", (wide, high), background), Image.new("L", (wide, high), 0)
    _paint(picture, figure.shape, center, radius, rotation, fill)
    _paint(mask, figure.shape, center, radius, rotation, 255)
    if scale > 1:
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return picture, mask


def draw_canonical(figure: Figure, edge: int = 256) -> Image.Image:
    """Draw the figure large, upright, in its pure colour, on white; `edge` in pixels."""
    picture = Image.new("RGB", (4 * edge, 4 * edge), "white")
    _paint(picture, figure.shape, (2 * edge, 2 * edge), 1.4 * edge, 0.0, _rgb(COLOURS[figure.colour], 0.9, 0.9))
    return picture.resize((edge, edge), Image.Resampling.BILINEAR)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint(
    canvas: Image.Image,
    shape: str,
    center: tuple[float, float],
    radius: float,
    rotation: float,
    fill: int | tuple[int, int, int],
) -> None:
    """Fill a circle, or the polygon inscribed in it, rotated by `rotation` degrees."""
    x, y = center
    context = ImageDraw.Draw(canvas)
    if shape == "circle":
        context.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
        return
    corners, first = CORNERS[shape]
    directions = [math.radians(rotation + first) + math.tau / corners * corner for corner in range(corners)]
    context.polygon([(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in directions], fill=fill)
