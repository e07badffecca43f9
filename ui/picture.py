"""Pictures that a person attaches, made fit to be sent."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image, ImageOps

from ui.client import Fault, ServiceError

__all__ = ["KINDS", "LONGEST_EDGE", "Picture", "prepare"]

KINDS = ("png", "jpg", "jpeg", "webp", "gif", "bmp")  # file names that may be attached
LONGEST_EDGE = 2048  # pixels
AS_IT_IS = 4 << 20  # bytes; a conversation sends all its pictures with every question
QUALITY = 90  # of JPEG

FORMATS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "GIF": "image/gif", "BMP": "image/bmp"}


@dataclass(frozen=True)
class Picture:
    """An encoded image as it is shown and sent."""

    name: str
    kind: str
    data: bytes

    @property
    def url(self) -> str:
        """The data URL that a message carries."""
        return f"data:{self.kind};base64,{base64.b64encode(self.data).decode()}"


def prepare(name: str, data: bytes) -> Picture:
    """Scale a picture down to LONGEST_EDGE, or leave it as it is when it is small; raises ServiceError."""
    try:
        image = Image.open(io.BytesIO(data), formats=list(FORMATS))
        kind = FORMATS[image.format or ""]
        if max(image.size) <= LONGEST_EDGE and len(data) <= AS_IT_IS:
            image.verify()
            return Picture(name, kind, data)
        image.thumbnail((LONGEST_EDGE, LONGEST_EDGE))
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
        scaled = io.BytesIO()
        upright.convert("RGB").save(scaled, "JPEG", quality=QUALITY)
    except Exception as error:  # Pillow's plugins raise almost anything on bytes that only begin like theirs
        raise ServiceError(Fault.PICTURE, name) from error
    return Picture(name, "image/jpeg", scaled.getvalue())
