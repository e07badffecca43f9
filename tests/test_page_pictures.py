"""What the page refuses before it sends a question, and the words for it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import MutableMapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.settings import Settings
from tests.page_fixtures import picture
from ui.chat.composer import refusal_text
from ui.chat.texts import CHAT_TEXTS, escape
from ui.chat.uploads import OVERHEAD, TAIL, BoundedUploads
from ui.picture import MAX_FILE, Limits, Picture, Reason, accept, prepare


def jpeg() -> bytes:
    data = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(data, "JPEG")
    return data.getvalue()


UNSENDABLE = {
    "pdf": (b"%PDF-1.7 ...", Reason.PDF, "is a PDF"),
    "svg": (b"\xef\xbb\xbf<?xml version='1.0'?><svg xmlns='x'/>", Reason.SVG, "is an SVG"),
    "html": (b"<html>", Reason.NO_PICTURE, "PNG, JPEG, WebP, GIF and BMP work"),
    "empty": (b"", Reason.BROKEN, "damaged or incomplete"),
    "signature": (b"\x89PNG\r\n\x1a\n", Reason.BROKEN, "damaged or incomplete"),
    "cut png": (picture(64, 64)[:60], Reason.BROKEN, "damaged or incomplete"),
    "cut jpeg": (jpeg()[:-200], Reason.BROKEN, "damaged or incomplete"),
    "pixels": (picture(101, 100), Reason.PIXELS, "is 101 x 100 pixels; at most 0.01 million"),
    "wide": (picture(191, 1), Reason.SHAPE, "is 191 x 1 pixels; one side may be at most 190 times"),
    "size": (bytes(MAX_FILE + 1), Reason.FILE_SIZE, "is larger than 64 MB"),
}


@pytest.mark.parametrize(("data", "reason", "words"), UNSENDABLE.values(), ids=UNSENDABLE)
def test_files_that_cannot_be_sent(data: bytes, reason: Reason, words: str) -> None:
    """Each is refused for its reason, in words that name the file and the limit, in both languages."""
    pictures, [refusal] = accept([("my_file", data)], (), Limits(pixels=10_000))
    assert pictures == ()
    assert refusal.reason is reason
    for texts in CHAT_TEXTS.values():
        text = refusal_text([refusal], texts)
        assert "my\\_file" in text
        assert refusal.found in text
        assert refusal.limit in text
    assert words in refusal_text([refusal], CHAT_TEXTS["English"])


def test_the_reasons_have_words() -> None:
    """Every reason, in both languages, with the limit wherever there is one."""
    limited = {Reason.FILE_SIZE, Reason.PIXELS, Reason.SHAPE, Reason.COUNT, Reason.REQUEST_SIZE}
    for texts in CHAT_TEXTS.values():
        assert set(texts.refusals) == set(Reason)
        assert {reason for reason, text in texts.refusals.items() if "{limit}" in text} == limited


@settings(max_examples=25, deadline=None)
@given(
    before=st.integers(0, 5),
    sizes=st.lists(st.integers(1, 3000), max_size=8),
    limits=st.builds(Limits, images=st.integers(0, 6), body=st.integers(0, 8000)),
)
def test_what_is_accepted_fits_the_request(before: int, sizes: list[int], limits: Limits) -> None:
    """No file vanishes, and the pictures of a request exceed no limit through those that are added."""
    earlier = [Picture("old", "image/png", bytes(30))] * before
    small = picture(1, 1, "BMP")
    files = [(str(number), small + bytes(size)) for number, size in enumerate(sizes)]
    pictures, refusals = accept(files, earlier, limits)
    assert sorted([one.name for one in pictures] + [one.name for one in refusals]) == sorted(name for name, _ in files)
    assert {one.reason for one in refusals} <= {Reason.COUNT, Reason.REQUEST_SIZE}
    if pictures:
        assert before + len(pictures) <= limits.images
        assert sum(len(one.url.partition(",")[2]) for one in (*earlier, *pictures)) <= limits.body


def test_the_limits_are_the_service_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings that the service reads bound the page too, and the defaults are the same."""
    service = Settings(slot="blue")
    assert Limits() == Limits(service.max_images, service.max_pixels, service.max_body)
    monkeypatch.setenv("GLM_MAX_IMAGES", "3")
    assert Limits.from_environment() == Limits(images=3)


def test_escape() -> None:
    """A file's name is shown as it is, whatever Markdown it has."""
    assert escape("![a](b)\n`c`") == r"\!\[a\]\(b\) \`c\`"


def test_small_pictures_are_unchanged() -> None:
    """Also those that have a palette."""
    data = picture(5, 5, "GIF")
    assert prepare("x", data) == Picture("x", "image/gif", data)


def received(chunks: list[bytes], method: str = "PUT") -> list[bytes]:
    """What an application gets of a request's body behind the middleware."""
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, 1)
    ]
    bodies: list[bytes] = []

    async def receive() -> MutableMapping[str, Any]:
        return messages.pop(0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            bodies.append(message["body"])
            more = message["more_body"]

    async def send(message: Any) -> None: ...

    asyncio.run(BoundedUploads(app)({"type": "http", "method": method}, receive, send))
    return bodies


def test_an_upload_is_cut_behind_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too large arrives as too large, with the closing boundary, and no more of it is held."""
    monkeypatch.setattr("ui.chat.uploads.MAX_FILE", 100_000)
    closing = b"\r\n--boundary--\r\n"
    small = [bytes(50_000), bytes(50_000), closing]
    assert received(small) == small
    large = [bytes(50_000)] * 40 + [closing[:3], closing[3:]]
    body = b"".join(received(large))
    assert body.endswith(closing)
    assert 100_000 + TAIL < len(body) <= 100_000 + OVERHEAD + TAIL
    assert received(large, "POST") == large
