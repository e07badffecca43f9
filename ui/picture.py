"""Attached pictures: checked against the service's limits and scaled before they are sent.

What the service would refuse is refused here with the limit, so that a question never goes without its picture.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from PIL import Image, ImageOps

__all__ = ["LONGEST_EDGE", "Limits", "Picture", "PictureRefusedError", "Reason", "Refusal", "accept", "prepare"]

LONGEST_EDGE = 2048  # pixels
MAX_UNCHANGED = 4 << 20  # bytes; larger files are encoded again, since every request carries all pictures
MAX_FILE = (
    64 << 20
)  # bytes; server.maxUploadSize in .streamlit/config.toml is above it, since the browser drops in silence
MAX_ASPECT_RATIO = 190  # of the service
JPEG_QUALITY = 90

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}


class Reason(StrEnum):
    """Why a file cannot be sent; `Texts` has the words."""

    FILE_SIZE = "file_size"
    PIXELS = "pixels"
    SHAPE = "shape"
    PDF = "pdf"
    SVG = "svg"
    NO_PICTURE = "no_picture"
    BROKEN = "broken"
    COUNT = "count"
    REQUEST_SIZE = "request_size"
    MISSING = "missing"


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be sent; `found` exceeds `limit`, where the reason is a limit."""

    name: str
    reason: Reason
    found: str = ""
    limit: str = ""


class PictureRefusedError(Exception):
    """A file cannot be sent as a picture."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.name}: {refusal.reason}")
        self.refusal = refusal


@dataclass(frozen=True)
class Limits:
    """The limits of one request; the defaults are those of the service's settings."""

    images: int = 16
    pixels: int = 50_000_000  # of one picture
    body: int = 32 << 20  # bytes

    @classmethod
    def from_environment(cls) -> Limits:
        """Return the limits of GLM_MAX_IMAGES, GLM_MAX_PIXELS and GLM_MAX_BODY, which the service reads too."""
        names = {"images": "GLM_MAX_IMAGES", "pixels": "GLM_MAX_PIXELS", "body": "GLM_MAX_BODY"}
        return cls(**{field: int(os.environ[name]) for field, name in names.items() if os.environ.get(name)})


@dataclass(frozen=True)
class Picture:
    """An encoded image, as displayed and sent."""

    name: str
    media_type: str
    data: bytes

    @property
    def url(self) -> str:
        """The data URL for a message."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    @property
    def sent_size(self) -> int:
        """The bytes that it takes in a request."""
        return -(-len(self.data) // 3) * 4


def prepare(name: str, data: bytes, limits: Limits | None = None) -> Picture:
    """Scale a picture down to LONGEST_EDGE, or keep a small one unchanged; raises PictureRefusedError."""
    limits = limits or Limits()
    if len(data) > MAX_FILE:
        raise PictureRefusedError(Refusal(name, Reason.FILE_SIZE, limit=megabytes(MAX_FILE)))
    try:
        image = Image.open(io.BytesIO(data), formats=list(MEDIA_TYPES))
        media_type = MEDIA_TYPES[image.format or ""]
    except Exception as error:  # Pillow's plugins raise many types of errors on damaged files
        raise PictureRefusedError(Refusal(name, _kind(data))) from error
    width, height = image.size
    if width * height > limits.pixels:
        found, limit = f"{width} x {height}", f"{limits.pixels / 1e6:g}"
        raise PictureRefusedError(Refusal(name, Reason.PIXELS, found, limit))
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise PictureRefusedError(Refusal(name, Reason.SHAPE, f"{width} x {height}", str(MAX_ASPECT_RATIO)))
    try:
        if max(image.size) <= LONGEST_EDGE and len(data) <= MAX_UNCHANGED:
            image.load()  # unlike verify(), this finds a JPEG that was cut off
            return Picture(name, media_type, data)
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        scaled = io.BytesIO()
        upright.convert("RGB").save(scaled, "JPEG", quality=JPEG_QUALITY)
    except Exception as error:
        raise PictureRefusedError(Refusal(name, Reason.BROKEN)) from error
    return Picture(name, "image/jpeg", scaled.getvalue())


def accept(
    files: Sequence[tuple[str, bytes]], before: Sequence[Picture], limits: Limits
) -> tuple[tuple[Picture, ...], tuple[Refusal, ...]]:
    """Return the pictures among files (name, data) that can be sent, and why the others cannot.

    `before`: the pictures that the same request carries already, those of earlier questions included.
    """
    pictures: list[Picture] = []
    refusals: list[Refusal] = []
    size = sum(picture.sent_size for picture in before)
    for name, data in files:
        count = len(before) + len(pictures) + 1
        if count > limits.images:
            refusals.append(Refusal(name, Reason.COUNT, str(len(before) + len(files)), str(limits.images)))
            continue
        try:
            picture = prepare(name, data, limits)
        except PictureRefusedError as error:
            refusals.append(error.refusal)
            continue
        if size + picture.sent_size > limits.body:
            found, limit = megabytes(size + picture.sent_size), megabytes(limits.body)
            refusals.append(Refusal(name, Reason.REQUEST_SIZE, found, limit))
            continue
        size += picture.sent_size
        pictures.append(picture)
    return tuple(pictures), tuple(refusals)


def megabytes(size: int) -> str:
    """Return a size in bytes as MB of 2**20 bytes, rounded up, so that what exceeds a limit reads so."""
    return f"{-(-size * 100 // (1 << 20)) / 100:g} MB"


def _kind(data: bytes) -> Reason:
    """Return what a file is that Pillow does not open."""
    start = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"%PDF"):
        return Reason.PDF
    if start.startswith(b"<") and b"<svg" in data[:4096].lower():
        return Reason.SVG
    signatures = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"BM", b"RIFF")
    return Reason.BROKEN if data.startswith(signatures) or not data else Reason.NO_PICTURE
