"""Questions for the first click, some with a drawn picture."""

from __future__ import annotations

import io
from functools import cache

from PIL import Image, ImageDraw

from ui.picture import Picture

__all__ = ["example_picture"]

SIZE = (120, 90)  # pixels


@cache
def example_picture(name: str) -> Picture:
    """Return the picture of a name such as "red circle"."""
    colour, shape = name.split()
    image = Image.new("RGB", (2 * SIZE[0], 2 * SIZE[1]), "white")
    draw, box = ImageDraw.Draw(image), (70, 40, 170, 140)
    {"circle": draw.ellipse, "square": draw.rectangle}[shape](box, fill=colour)
    data = io.BytesIO()
    image.resize(SIZE, Image.Resampling.LANCZOS).save(data, "PNG")
    return Picture(f"{colour}-{shape}.png", "image/png", data.getvalue())
