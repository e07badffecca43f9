"""Images of a request: data URLs become PIL images, and the limits hold before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

from PIL import Image, ImageOps

__all__ = ["ImageError", "from_bytes", "from_data_url", "from_file", "is_remote"]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# The model's preprocessor refuses sides of 1:200 and beyond, and rounds a little before it looks.
MAX_ASPECT = 190

# Pillow would warn or raise at a size of its own; ours is a setting, and from_bytes checks it before it decodes.
Image.MAX_IMAGE_PIXELS = None


class ImageError(ValueError):
    """The image cannot be used; the text says why, in words for the client."""


def is_remote(url: str) -> bool:
    """Tell whether an image is to be fetched."""
    return url[:8].lower().startswith(("http:", "https:"))


def from_data_url(url: str, *, max_pixels: int) -> Image.Image:
    """Decode `data:image/…;base64,…` to RGB; raises ImageError, also for any other kind of URL."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() in ("http", "https"):
        raise ImageError(
            "image URLs are not fetched here; give the image itself as a data URL: data:image/png;base64,…"
        )
    head, comma, body = rest.partition(",")
    kind, *parameters = head.lower().split(";")
    if scheme.lower() != "data" or not comma:
        raise ImageError("not a data URL of the form data:image/png;base64,…")
    if not kind.startswith("image/"):
        raise ImageError(f"the data URL must be of a type image/…, not {kind[:50] or 'without one'}")
    if "base64" not in (parameter.strip() for parameter in parameters):
        raise ImageError("the data URL must be encoded as base64")
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: not ASCII
        raise ImageError("the data URL holds no valid base64") from error
    return from_bytes(data, max_pixels=max_pixels)


def from_file(path: Path, *, max_pixels: int) -> Image.Image:
    """Decode an image file to RGB; raises ImageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path.name}: {error.strerror}") from error
    return from_bytes(data, max_pixels=max_pixels)


def from_bytes(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode to RGB: upright as its EXIF says, the first frame, transparency over white; raises ImageError."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
        width, height = image.size
    except Exception as error:  # Pillow's plugins raise almost anything on bytes that only begin like theirs
        raise ImageError(f"not an image of a known format ({', '.join(FORMATS)})") from error
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} by {height} pixels; at most {max_pixels} are allowed")
    if width < 1 or height < 1 or max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(
            f"the image has {width} by {height} pixels; its sides may differ by {MAX_ASPECT} times at most"
        )
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(
                Image.new("RGBA", upright.size, "white"),
                upright.convert("RGBA"),
            )
        return upright.convert("RGB")
    except Exception as error:  # as above
        raise ImageError("the image is damaged or cut short") from error
