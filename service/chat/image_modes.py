"""Conversion of images to RGB, from every mode that a file of an accepted format can have.

Pillow's own conversion clips grey of 16 bits to 8. The transparent colour of a PNG is stated in the depth of its
samples; Pillow compares it with samples of 8 bits.
"""

from __future__ import annotations

import io
from functools import reduce
from typing import Any

from PIL import Image, ImageChops, ImageOps

__all__ = ["load_rgb"]

_GREY_BITS = {"L;2": 2, "L;4": 4, "L": 8}  # of PNG, by Pillow's name of what the file holds
_WIDE = 1 << 16  # values of a sample of 16 bits
_TO_BYTE = [(value + 128) // 257 for value in range(_WIDE)]


def load_rgb(image: Image.Image, data: bytes) -> Image.Image:
    """Decode to RGB an image that was opened from `data`; raises what Pillow's plugins raise.

    The EXIF orientation is applied, transparency is composited over white, and of an animation the first frame is used.
    Colour profiles are not applied.
    """
    kind = image.format
    tiles = list(getattr(image, "tile", ()))  # how the file holds the pixels, until they are loaded
    image.load()
    if tiles and kind == "PNG":
        image = _of_png(image, tiles[0].args, data)
    elif tiles and kind == "GIF":
        image = _on_canvas(image, tiles[0].extents)
    ImageOps.exif_transpose(image, in_place=True)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def _of_png(image: Image.Image, raw_mode: str, data: bytes) -> Image.Image:
    """Return the image with samples of 8 bits, and its transparent colour in 8 bits too or as alpha."""
    key = image.info.get("transparency")
    if image.mode == "I;16":
        wide = image.convert("I")
        grey = wide.point(_TO_BYTE, "L")
        return grey if key is None else _with_alpha(grey, wide.point([255 * (n != key) for n in range(_WIDE)], "L"))
    if key is not None:
        if raw_mode == "RGB;16B":
            return _with_alpha(image, _differing(image, data, key))
        if raw_mode == "RGB":
            image.info["transparency"] = tuple(value & 255 for value in key)
        if bits := _GREY_BITS.get(raw_mode):
            top = (1 << bits) - 1
            image.info["transparency"] = (key & top) * (255 // top)
    return image


def _differing(image: Image.Image, data: bytes, key: tuple[int, ...]) -> Image.Image:
    """Return 255 where a pixel of RGB of 16 bits is not `key`, else 0. The image holds the upper bytes."""
    file: Any = Image.open(io.BytesIO(data), formats=("PNG",))
    file.tile = [tile._replace(args="RGB;16L") for tile in file.tile]  # the byte that Pillow leaves out otherwise
    lower: Image.Image = file
    bands = [*image.split(), *lower.split()]
    wanted = [*(value >> 8 for value in key), *(value & 255 for value in key)]
    masks = (band.point([255 * (n != value) for n in range(256)]) for band, value in zip(bands, wanted, strict=True))
    return reduce(ImageChops.lighter, masks)


def _with_alpha(image: Image.Image, alpha: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)
    image.putalpha(alpha)
    return image


def _on_canvas(image: Image.Image, covered: tuple[int, int, int, int]) -> Image.Image:
    """Return a GIF whose first frame covers a part of it; the rest is transparent, as in browsers."""
    if covered == (0, 0, *image.size):
        return image
    canvas = Image.new("RGBA", image.size)
    canvas.paste(image.crop(covered).convert("RGBA"), covered)
    return canvas
