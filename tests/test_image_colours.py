"""Colours of decoded images: every mode that a file of an accepted format can have becomes the RGB that it shows.

Transparency is shown over white. Two levels of 255 are for rounding, twice: to 8 bits and when transparency is
blended; lossy formats have a flat colour and a tolerance of their own.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from service.chat.images import from_bytes
from tests.test_images import LIMIT, encoded

EXACT = 2  # levels
LOSSY = 8  # levels, at the highest quality

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # the colour types of PNG
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
DEPTHS = {GREY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GREY_ALPHA: (8, 16), RGBA: (8, 16)}
PNG_MODES = [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths]

Samples = NDArray[Any]  # (height, width, channels)


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: Samples, kind: int, depth: int, *more: tuple[bytes, bytes]) -> bytes:
    """Write a PNG of any colour type and depth, with more chunks before its pixels."""
    height, width, _ = samples.shape
    rows = []
    for row in samples.reshape(height, -1):
        bits = "".join(f"{int(value):0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
        *more,
        (b"IDAT", zlib.compress(b"".join(rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in chunks)


def over_white(colour: Samples, alpha: Samples | None = None) -> Samples:
    """Return the RGB that is shown of colours and an alpha from 0 to 1."""
    colour = np.broadcast_to(colour, (*colour.shape[:2], 3)) * 255.0
    return colour if alpha is None else colour * alpha + 255.0 * (1 - alpha)


def assert_shows(data: bytes, expected: Samples, tolerance: float = EXACT) -> None:
    image = from_bytes(data, max_pixels=LIMIT)
    assert image.mode == "RGB"
    shown = np.asarray(image).astype(float)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= tolerance, (shown.tolist(), expected.tolist())


@st.composite
def samples(draw: st.DrawFn, channels: int, depth: int = 8) -> Samples:
    """Draw an image. Few values, so that a colour occurs more than once."""
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    top = 2**depth - 1
    values = [*draw(st.lists(st.integers(0, top), min_size=1, max_size=4)), 0, top]
    flat = draw(st.lists(st.sampled_from(values), min_size=height * width * channels,
                         max_size=height * width * channels))  # fmt: skip
    return np.array(flat).reshape(height, width, channels)


@pytest.mark.parametrize(("kind", "depth"), PNG_MODES)
@settings(max_examples=50)
@given(data=st.data())
def test_png_of_every_colour_type_and_depth(kind: int, depth: int, data: st.DataObject) -> None:
    """Grey, colour, palette and alpha, of 1 to 16 bits, with a transparent colour or without."""
    drawn = data.draw(samples(CHANNELS[kind], depth))
    shares = drawn / (2**depth - 1)
    transparent = data.draw(st.booleans())
    if kind == PALETTE:
        colours = data.draw(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=2**depth, max_size=2**depth)
                            if depth < 8 else st.just([(n, 255 - n, n // 2) for n in range(256)]))  # fmt: skip
        alphas = data.draw(st.lists(st.sampled_from([0, 255]) if data.draw(st.booleans()) else st.integers(0, 255),
                                    min_size=1, max_size=2**depth)) if transparent else []  # fmt: skip
        palette = np.array([(*c, a) for c, a in zip(colours, alphas + [255] * (2**depth - len(alphas)), strict=True)])
        shown = palette[drawn[..., 0]] / 255
        more = [(b"PLTE", bytes(palette[:, :3].astype(np.uint8).tobytes()))]
        more += [(b"tRNS", bytes(alphas))] if alphas else []
        assert_shows(png(drawn, kind, depth, *more), over_white(shown[..., :3], shown[..., 3:]))
    elif kind in (GREY, RGB) and transparent:
        key = drawn[0, 0] if data.draw(st.booleans()) else data.draw(samples(CHANNELS[kind], depth))[0, 0]
        opaque = (drawn != key).any(axis=-1, keepdims=True).astype(float)
        unused = data.draw(st.sampled_from([0, 0xFFFF << depth & 0xFFFF])) if depth > 1 else 0  # bits to be ignored
        trns = struct.pack(f">{len(key)}H", *(int(value) | unused for value in key))
        assert_shows(png(drawn, kind, depth, (b"tRNS", trns)), over_white(shares, opaque))
    elif kind in (GREY_ALPHA, RGBA):
        assert_shows(png(drawn, kind, depth), over_white(shares[..., :-1], shares[..., -1:]))
    else:
        assert_shows(png(drawn, kind, depth), over_white(shares))


def test_grey_of_16_bits_keeps_its_shades() -> None:
    """The middle of the range is a middle grey, and neighbours above it do not all become white."""
    ramp = np.linspace(0, 65535, 100).astype(int).reshape(1, 100, 1)
    assert_shows(png(ramp, GREY, 16), over_white(ramp / 65535))


@given(drawn=samples(4), lossless=st.sampled_from(["PNG", "WEBP"]))
def test_formats_without_loss(drawn: Samples, lossless: str) -> None:
    """Colours and alpha of Pillow's own PNG and of WebP without loss."""
    image = Image.fromarray(drawn.astype(np.uint8), "RGBA")
    options = {"lossless": True, "exact": True} if lossless == "WEBP" else {}
    shares = drawn / 255
    assert_shows(encoded(image, lossless, **options), over_white(shares[..., :3], shares[..., 3:]))
    assert_shows(encoded(image.convert("RGB"), lossless, **options), over_white(shares[..., :3]))


@given(drawn=samples(3), mode=st.sampled_from(["1", "L", "RGB"]))
def test_bmp(drawn: Samples, mode: str) -> None:
    """Black and white, grey, and colour."""
    image = Image.fromarray(drawn.astype(np.uint8), "RGB").convert(mode)
    assert_shows(encoded(image, "BMP"), np.asarray(image.convert("RGB")).astype(float))


@pytest.mark.parametrize("bits", [(5, 5, 5), (5, 6, 5)])
@given(data=st.data())
def test_bmp_of_16_bits(bits: tuple[int, int, int], data: st.DataObject) -> None:
    """Five bits a channel, or six for green, which masks in the header state."""
    drawn = data.draw(samples(3, 5))
    drawn[..., 1] <<= bits[1] - 5
    height, width, _ = drawn.shape
    shifts = (bits[1] + bits[2], bits[2], 0)
    masks = [(2**count - 1) << shift for count, shift in zip(bits, shifts, strict=True)]
    rows = [
        b"".join(struct.pack("<H", sum(int(v) << s for v, s in zip(pixel, shifts, strict=True))) for pixel in row)
        for row in drawn[::-1]
    ]
    body = b"".join(row + bytes(-len(row) % 4) for row in rows)
    head = struct.pack("<IiiHHIIiiII3I", 40, width, height, 1, 16, 3, len(body), 0, 0, 0, 0, *masks)
    start = 14 + len(head)
    data_ = b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + body
    assert_shows(data_, over_white(drawn / np.array([2**count - 1 for count in bits])), 8)


@given(
    drawn=samples(1, 2),
    colours=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=4, max_size=4, unique=True),
    clear=st.sampled_from([None, 0, 1, 2, 3]),
)
def test_gif(drawn: Samples, colours: Sequence[tuple[int, ...]], clear: int | None) -> None:
    """A palette, of which one index may be transparent."""
    image = Image.fromarray(drawn[..., 0].astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    options = {} if clear is None else {"transparency": clear}
    shown = np.array(colours)[drawn[..., 0]] / 255
    opaque = None if clear is None else (drawn != clear).astype(float)
    assert_shows(encoded(image, "GIF", optimize=False, **options), over_white(shown, opaque))


def test_a_gif_whose_first_frame_is_smaller_than_the_picture() -> None:
    """What no frame covers is transparent, as in browsers."""
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    small = bytearray(encoded(image, "GIF", optimize=False))
    small[6:10] = struct.pack("<HH", 6, 5)  # the size of the logical screen
    expected = np.full((5, 6, 3), 255.0)
    expected[:4, :4] = (255, 0, 0)
    assert_shows(bytes(small), expected)


colours = st.tuples(*[st.integers(0, 255)] * 4)


def flat(colour: Sequence[int], mode: str) -> Image.Image:
    return Image.new(mode, (16, 16), tuple(colour))


def of_inks(cyan: int, magenta: int, yellow: int, black: int) -> Samples:
    shown = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    return np.broadcast_to(np.array(shown), (16, 16, 3))


@given(colour=colours)
def test_jpeg_of_inks(colour: tuple[int, ...]) -> None:
    """CMYK is stored inverted, as Adobe's programs do, also by programs that do not add Adobe's marker."""
    data = encoded(flat(colour, "CMYK"), "JPEG", quality=100)
    assert_shows(data, of_inks(*colour), LOSSY)
    marker = data.index(b"\xff\xee")
    length = int.from_bytes(data[marker + 2 : marker + 4], "big")
    assert data[marker + 4 : marker + 9] == b"Adobe"
    assert_shows(data[:marker] + data[marker + 2 + length :], of_inks(*colour), LOSSY)


@given(colour=colours)
def test_jpeg_of_inks_as_luminance(colour: tuple[int, ...]) -> None:
    """YCCK: the inks as luminance and chrominance, which Adobe's marker states."""
    *inks, black = colour
    as_luminance = Image.new("RGB", (1, 1), tuple(inks)).convert("YCbCr").getpixel((0, 0))
    assert isinstance(as_luminance, tuple)
    data = bytearray(encoded(flat([*(255 - value for value in as_luminance), black], "CMYK"), "JPEG", quality=100))
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    data[marker + 11] = 2  # the transform: YCCK
    assert_shows(bytes(data), of_inks(*colour), LOSSY)


@given(colour=colours, kind=st.sampled_from(["JPEG", "WEBP"]), mode=st.sampled_from(["L", "RGB", "RGBA"]))
def test_formats_with_loss(colour: tuple[int, ...], kind: str, mode: str) -> None:
    """Grey, colour and alpha of JPEG, which has none, and of WebP with loss."""
    if kind == "JPEG" and mode == "RGBA":
        mode = "RGB"
    channels = np.array(colour[: len(mode)]) / 255
    shares = np.broadcast_to(channels, (16, 16, len(mode)))
    expected = over_white(shares[..., :3], shares[..., 3:]) if mode == "RGBA" else over_white(shares)
    assert_shows(encoded(flat(colour[: len(mode)], mode), kind, quality=100), expected, LOSSY)


ORIENTATIONS: dict[int, Callable[[Samples], Samples]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@settings(max_examples=20)
@given(drawn=samples(3), wide=samples(1, 16))
def test_orientation(orientation: int, drawn: Samples, wide: Samples) -> None:
    """All eight values of EXIF, in files of 8 and 16 bits."""
    show = ORIENTATIONS[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(drawn.astype(np.uint8), "RGB")
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        assert_shows(encoded(image, kind, exif=exif, **options), show(over_white(drawn / 255)))
    tags = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    assert_shows(png(wide, GREY, 16, tags), show(over_white(wide / 65535)))


def test_orientation_of_a_jpeg() -> None:
    """The red half of a picture is where its orientation says."""
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:, :16] = (255, 0, 0)
    for orientation, show in ORIENTATIONS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(Image.fromarray(stored), "JPEG", quality=100, subsampling=0, exif=exif)
        assert_shows(data, show(stored.astype(float)), LOSSY)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@given(first=colours, second=colours)
def test_the_first_frame_of_an_animation(kind: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    """GIF, WebP and APNG."""
    frames = [flat(colour[:3], "RGB") for colour in (first, second)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert_shows(data, np.broadcast_to(np.array(first[:3], dtype=float), (16, 16, 3)))
