"""Decoding of images to RGB. Limits are checked before any pixel is decoded.

Files of the operator are decoded where they are read, those of clients in a process of its own: `image_decoder.py`.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path

from PIL import Image

from service.chat.image_modes import load_rgb

__all__ = [
    "ImageError",
    "base64_of",
    "decode_base64",
    "from_bytes",
    "from_data_url",
    "from_file",
    "is_remote",
    "open_image",
    "reduced",
]

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# The model's preprocessor rejects an aspect ratio of 200 or more, computed from rounded sides.
MAX_ASPECT_RATIO = 190
SMALL = 512
"""Pixels of the longer side of an image of which the client asks for little detail, as in OpenAI's API."""

# Disables Pillow's own limit: from_bytes checks the configured one before it decodes.
Image.MAX_IMAGE_PIXELS = None


class ImageError(ValueError):
    """The image cannot be used; the message is meant for the client."""


def is_remote(url: str) -> bool:
    """Return whether the image has to be fetched over HTTP."""
    return url[:8].lower().startswith(("http:", "https:"))


def from_data_url(url: str, *, max_pixels: int) -> Image.Image:
    """Decode `data:image/…;base64,…` to RGB; raises ImageError, also for any other kind of URL."""
    return from_bytes(decode_base64(base64_of(url)), max_pixels=max_pixels)


def base64_of(url: str) -> bytes:
    """Return the base64 of a data URL, not decoded; raises ImageError, also for any other kind of URL."""
    scheme, _, rest = url.partition(":")
    if scheme.lower() in ("http", "https"):
        raise ImageError("image URLs are not fetched here; send the image as a data URL: data:image/png;base64,…")
    head, comma, body = rest.partition(",")
    media_type, *parameters = head.lower().split(";")
    if scheme.lower() != "data" or not comma:
        raise ImageError("not a data URL of the form data:image/png;base64,…")
    if not media_type.startswith("image/"):
        raise ImageError(f"the media type of the data URL must be image/*, got {media_type[:50] or 'none'}")
    if "base64" not in (parameter.strip() for parameter in parameters):
        raise ImageError("the data URL must be base64-encoded")
    try:
        return body.encode("ascii")
    except UnicodeEncodeError as error:
        raise ImageError("the data URL contains invalid base64") from error


def decode_base64(data: bytes) -> bytes:
    """Decode base64, which white space may divide; raises ImageError."""
    try:
        return base64.b64decode(b"".join(data.split()), validate=True)
    except binascii.Error as error:
        raise ImageError("the data URL contains invalid base64") from error


def from_file(path: Path, *, max_pixels: int) -> Image.Image:
    """Decode an image file to RGB; raises ImageError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read {path.name}: {error.strerror}") from error
    return from_bytes(data, max_pixels=max_pixels)


def open_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """Read the header of an image and check its size; raises ImageError. No pixel is decoded."""
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # parses the header only
        width, height = image.size
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise many types for bytes that match only their signature
        raise ImageError(f"not an image in a supported format ({', '.join(FORMATS)})") from error
    if width * height > max_pixels:
        raise ImageError(f"the image is {width} x {height} pixels; at most {max_pixels} pixels are allowed")
    if width < 1 or height < 1 or max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageError(f"the image is {width} x {height} pixels; its aspect ratio must be at most {MAX_ASPECT_RATIO}")
    return image


def reduced(size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of an image (width, height) that is made to have at most SMALL pixels a side."""
    longer, shorter = max(size), min(size)
    if longer <= SMALL:
        return size
    shorter = max(-(-SMALL // MAX_ASPECT_RATIO), round(shorter * SMALL / longer))
    return (SMALL, shorter) if size[0] == longer else (shorter, SMALL)


def from_bytes(data: bytes, *, max_pixels: int) -> Image.Image:
    """Decode to RGB, as `image_modes.load_rgb` does; raises ImageError."""
    image = open_image(data, max_pixels=max_pixels)
    try:
        return load_rgb(image, data)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ImageError("the image is damaged or truncated") from error
