"""Attached pictures, scaled for sending."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from ui.client import Fault, ServiceError

__all__ = ["EXTENSIONS", "LONGEST_EDGE", "Picture", "prepare"]

EXTENSIONS = ("png", "jpg", "jpeg", "webp", "gif", "bmp")  # accepted file extensions
LONGEST_EDGE = 2048  # pixels
MAX_UNCHANGED = 4 << 20  # bytes; larger files are encoded again, since every request carries all pictures
JPEG_QUALITY = 90

MEDIA_TYPES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}


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


def prepare(name: str, data: bytes) -> Picture:
    """Scale a picture down to LONGEST_EDGE, or keep a small one unchanged; raises ServiceError."""
    try:
        image = Image.open(io.BytesIO(data), formats=list(MEDIA_TYPES))
        media_type = MEDIA_TYPES[image.format or ""]
        if max(image.size) <= LONGEST_EDGE and len(data) <= MAX_UNCHANGED:
            image.verify()
            return Picture(name, media_type, data)
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        scaled = io.BytesIO()
        upright.convert("RGB").save(scaled, "JPEG", quality=JPEG_QUALITY)
    except Exception as error:  # Pillow's plugins raise many types of errors on damaged files
        raise ServiceError(Fault.INVALID_PICTURE, name) from error
    return Picture(name, "image/jpeg", scaled.getvalue())
