"""Decoding of clients' images in processes of its own, which a crash, a slow image or a large one ends."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image

from service.chat import images
from service.chat.images import ImageError
from service.isolation.processes import Died, IsolatedProcesses, Refusal

__all__ = ["EncodedImage", "ImageDecoder", "RgbImage", "begin"]

BYTES_PER_PIXEL = 24
"""Pillow takes 4 for an image in any mode but grey. Of 20 million pixels, 18 bytes a pixel were the most that was
measured, for PNGs of 16 bits with a transparent colour; with an alpha channel it was 16."""

OVERHEAD = 192 << 20  # bytes for the encoded image, its copies in Pillow's plugins, and their code

_SIZE = struct.Struct("<II")
_MEASURE, _DECODE, _BASE64, _SMALL = 1, 2, 4, 8


@dataclass(frozen=True)
class EncodedImage:
    """An image as it was sent, perhaps in base64; all sizes are (width, height) in pixels."""

    data: bytes
    is_base64: bool
    full_size: tuple[int, int]
    """As its header states."""
    is_small: bool = False
    """Whether it is decoded to `images.SMALL` pixels a side at most."""

    @property
    def size(self) -> tuple[int, int]:
        """The size that it is decoded to."""
        return images.reduced(self.full_size) if self.is_small else self.full_size

    @property
    def pixels(self) -> int:
        """The number of pixels that are decoded, before it is made smaller."""
        return self.full_size[0] * self.full_size[1]


@dataclass(frozen=True)
class RgbImage:
    """A decoded image. NumPy reads its pixels in place: a copy would hold the interpreter."""

    size: tuple[int, int]
    """(width, height) in pixels."""
    data: memoryview
    """Three bytes for each pixel, row by row."""

    @property
    def __array_interface__(self) -> dict[str, Any]:
        width, height = self.size
        return {"version": 3, "shape": (height, width, 3), "typestr": "|u1", "data": self.data}


class ImageDecoder:
    """Reads headers and decodes, in `processes` processes. All methods block and raise ImageError.

    `seconds`: the processor time of one image. 50 million pixels take 1 to 3 s in any format, unless the image was made
    to be slow: a progressive JPEG of 1 MB can hold thousands of passes over all its pixels.
    """

    def __init__(self, *, max_pixels: int, processes: int, seconds: int) -> None:
        self._processes = IsolatedProcesses(
            __name__,
            lambda: str(max_pixels).encode(),
            count=processes,
            memory=OVERHEAD + BYTES_PER_PIXEL * max_pixels,
            seconds=seconds,
        )

    def measure(self, data: bytes, *, is_base64: bool = False, is_small: bool = False) -> EncodedImage:
        """Read the header of an image."""
        size = _SIZE.unpack(self._call(_MEASURE | is_base64 * _BASE64, data))
        return EncodedImage(data, is_base64, size, is_small)

    def decode(self, image: EncodedImage) -> RgbImage:
        """Decode to RGB."""
        reply = self._call(_DECODE | image.is_base64 * _BASE64 | image.is_small * _SMALL, image.data)
        return RgbImage(_SIZE.unpack_from(reply), reply[_SIZE.size :])

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def _call(self, task: int, data: bytes) -> memoryview:
        try:
            return self._processes.call(bytes([task]), data)
        except Refusal as error:
            raise ImageError(str(error)) from None
        except Died as error:
            raise ImageError(f"the image cannot be decoded: {error}") from error


def begin(setup: bytes) -> Callable[[bytes], bytes]:
    """Return the function that an isolated process calls."""
    max_pixels = int(setup)
    Image.init()  # imports the plugins, before memory is limited

    def answer(request: bytes) -> bytes:
        task, data = request[0], request[1:]
        if task & _BASE64:
            data = images.decode_base64(data)
        if task & _MEASURE:
            return _SIZE.pack(*images.open_image(data, max_pixels=max_pixels).size)
        image = images.from_bytes(data, max_pixels=max_pixels)
        if task & _SMALL:
            image = image.resize(images.reduced(image.size), reducing_gap=2.0)
        return _SIZE.pack(*image.size) + image.tobytes()

    return answer
