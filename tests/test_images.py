"""Decoding of images: accepted formats, rejected input, and limits that hold before any pixel is decoded."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from service.chat.images import MAX_ASPECT_RATIO, SMALL, ImageError, from_bytes, from_data_url, from_file, reduced

LIMIT = 10_000


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def data_url(data: bytes, head: str = "data:image/png;base64") -> str:
    return f"{head},{base64.b64encode(data).decode()}"


RED = Image.new("RGB", (8, 6), "red")
NOISE = Image.effect_noise((64, 64), 80)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_common_formats_become_rgb(kind: str) -> None:
    """Every common format is decoded, whatever media type the URL names."""
    image = from_data_url(data_url(encoded(RED, kind)), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    red, green, blue = image.getpixel((4, 3))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize(
    "head",
    ["data:image/png;base64", "DATA:IMAGE/PNG;BASE64", "data:image/png;charset=x;base64", "data:image/jpg; base64"],
)
def test_data_urls_are_parsed_leniently(head: str) -> None:
    """Case, parameters and line breaks in the base64 do not matter."""
    broken = data_url(encoded(RED), head).replace(",", ",\n").replace("A=", "A\r\n=") + "\n"
    assert from_data_url(broken, max_pixels=LIMIT).size == (8, 6)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://example.org/a.png", "not fetched"),
        ("HTTP://example.org/a.png", "not fetched"),
        ("file:///etc/passwd", "not a data URL"),
        ("/etc/passwd", "not a data URL"),
        ("", "not a data URL"),
        ("data:image/png;base64", "not a data URL"),
        ("data:text/plain;base64,AAAA", "image/"),
        ("data:,AAAA", "image/"),
        ("data:image/png,AAAA", "base64"),
        ("data:image/png;base64,A", "invalid base64"),
        ("data:image/png;base64,AA*A", "invalid base64"),
        ("data:image/png;base64,ÄÖÜ", "invalid base64"),
        ("data:image/png;base64,", "not an image"),
        ("data:image/png;base64,AAAA", "not an image"),
        (data_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "data:image/svg+xml;base64"), "not an image"),
        (data_url(encoded(RED, "TIFF")), "not an image"),
        (data_url(encoded(NOISE)[:1000]), "truncated"),
        (data_url(encoded(NOISE, "JPEG")[:-400]), "truncated"),
    ],
)
def test_invalid_images_are_rejected_with_the_reason(url: str, reason: str) -> None:
    """Anything but a data URL of an image is an ImageError that gives the reason."""
    with pytest.raises(ImageError, match=reason):
        from_data_url(url, max_pixels=LIMIT)


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes whose header states a huge size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(101, 100), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_rejected_before_decoding(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The header alone decides; Pillow decodes nothing."""

    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    with pytest.raises(ImageError, match="at most 10000 pixels are allowed"):
        from_bytes(bomb(*size), max_pixels=LIMIT)


def test_limit_is_inclusive() -> None:
    """An image of exactly max_pixels is accepted."""
    assert from_bytes(encoded(Image.new("RGB", (100, 100))), max_pixels=LIMIT).size == (100, 100)


@pytest.mark.parametrize("size", [(200, 1), (1, 191)])
def test_extreme_aspect_ratios_are_rejected(size: tuple[int, int]) -> None:
    """Aspect ratios that the model's preprocessor rejects never reach it."""
    with pytest.raises(ImageError, match="aspect ratio"):
        from_bytes(encoded(Image.new("RGB", size)), max_pixels=LIMIT)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_composited_over_white(mode: str) -> None:
    """A transparent background becomes white."""
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    assert from_bytes(encoded(clear), max_pixels=LIMIT).getpixel((2, 2)) == (255, 255, 255)


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_an_image_of_little_detail_is_made_smaller(width: int, height: int) -> None:
    """Its shape is kept, as far as whole pixels and the largest aspect ratio allow; a small one is not changed."""
    found = reduced((width, height))
    if max(width, height) <= SMALL:
        assert found == (width, height)
        return
    assert max(found) == SMALL
    assert max(found) <= MAX_ASPECT_RATIO * min(found)
    if max(width, height) <= MAX_ASPECT_RATIO * min(width, height):
        assert abs(min(found) - min(width, height) * SMALL / max(width, height)) < 1
        assert (found[0] == SMALL) == (width >= height) or found[0] == found[1]


def test_exif_orientation_is_applied() -> None:
    """The orientation in the EXIF data is applied."""
    exif = Image.Exif()
    exif[0x0112] = 6
    assert from_bytes(encoded(RED, "JPEG", exif=exif), max_pixels=LIMIT).size == (6, 8)


def test_missing_file_is_named(tmp_path: Path) -> None:
    """Files are decoded alike, and the error names a missing one."""
    (tmp_path / "red.png").write_bytes(encoded(RED))
    assert from_file(tmp_path / "red.png", max_pixels=LIMIT).size == (8, 6)
    with pytest.raises(ImageError, match=r"nope\.png"):
        from_file(tmp_path / "nope.png", max_pixels=LIMIT)
