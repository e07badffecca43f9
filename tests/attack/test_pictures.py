"""Pictures that are small as files and large, slow or deadly when decoded."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import math
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from service.chat import image_decoder
from service.chat.errors import ApiError
from service.chat.image_decoder import EncodedImage, ImageDecoder
from service.chat.images import ImageError
from service.chat.request import ChatRequest
from service.chat.service import ChatService
from service.contract.engine_settings import EngineSettings
from service.engine import Limits
from service.engine.dummy import IMAGE_TOKENS, DummyEngine
from service.fairness.client import Client
from service.model.release import Release
from tests.test_app import IDENTITY, FakeEngine
from tests.test_app import settings as service_settings
from tests.test_image_colours import GREY, RGB, chunk
from tests.test_images import encoded


def request(*pictures: bytes) -> dict[str, Any]:
    parts = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}}
        for picture in pictures
    ]
    return {"messages": [{"role": "user", "content": parts}]}


def plain(side: int, kind: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (side, side), "red"), kind)


@pytest.fixture(scope="module")
def decoder() -> Iterator[ImageDecoder]:
    made = ImageDecoder(max_pixels=4_000_000, processes=1, seconds=1)
    yield made
    made.close()


def complete(chat: ChatService, document: dict[str, Any], address: str = "") -> Any:
    async def answer() -> Any:
        client = Client(address)
        return await chat.create_completion(
            await chat.parse(json.dumps(document).encode(), client, ChatRequest), client=client
        )

    return answer()


def forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageDecoder, "decode", never)


@given(sides=st.lists(st.integers(1, 40), min_size=1, max_size=6), asked=st.integers(0, 6), limit=st.integers(1, 3000))
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_pixels_are_summed_over_the_request_before_any_is_decoded(sides: list[int], asked: int, limit: int) -> None:
    """Many allowed pictures, also in results of tools, are refused if together they have too many pixels."""
    chat = ChatService(FakeEngine(), IDENTITY, service_settings(max_request_pixels=limit))
    document = request(*map(plain, sides))
    [message] = document["messages"]
    parts = [{"type": "text", "text": "?"}, *message["content"]]
    document["messages"] = [message | {"content": parts[: asked + 1]}]
    document["messages"] += [{"role": "tool", "content": parts[asked + 1 :]}] if parts[asked + 1 :] else []
    pixels = sum(side**2 for side in sides)
    try:
        if pixels <= limit:
            asyncio.run(complete(chat, document))
            return
        with pytest.MonkeyPatch.context() as monkeypatch:
            forbid_decoding(monkeypatch)
            with pytest.raises(ApiError, match=f"{pixels} pixels; at most {limit}"):
                asyncio.run(complete(chat, document))
    finally:
        asyncio.run(chat.close())


def test_tokens_of_pictures_are_counted_before_any_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sizes are known from their headers."""
    limits = Limits(max_prompt_tokens=3 * IMAGE_TOKENS)
    engine = DummyEngine(0, Release(Path("/"), "1", EngineSettings(), ()), limits)
    chat = ChatService(engine, IDENTITY, service_settings())
    forbid_decoding(monkeypatch)
    with pytest.raises(ApiError) as caught:
        asyncio.run(complete(chat, request(*[plain(8)] * 4)))
    assert caught.value.code == "context_length_exceeded"


@given(sides=st.lists(st.tuples(st.sampled_from("ab"), st.integers(4, 10)), min_size=1, max_size=8))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_pixels_of_all_requests_together_are_bounded(sides: list[tuple[str, int]]) -> None:
    """Those that are decoded and not answered yet; the others wait, and all are answered at last."""
    total, most, held = 150, 0, 0

    class Engine(FakeEngine):
        async def stream(self, messages: Any, *arguments: Any, **more: Any) -> Any:
            nonlocal held, most
            pixels = sum(math.prod(part["image"].size) for part in messages[0]["content"])
            held += pixels
            most = max(most, held)
            await asyncio.sleep(0.002)
            held -= pixels
            async for item in super().stream(messages, *arguments, **more):
                yield item

    async def scenario() -> None:
        chat = ChatService(Engine(), IDENTITY, service_settings(max_open_pixels=total))
        await asyncio.gather(*(complete(chat, request(plain(side)), address) for address, side in sides))
        assert chat._pixels.held == 0
        await chat.close()

    asyncio.run(scenario())
    assert most <= total


def many_chunks(count: int) -> bytes:
    """A PNG with so many text chunks before its pixels."""
    whole = plain(8)
    head, rest = whole[:33], whole[33:]
    return head + chunk(b"tEXt", b"a\0b") * count + rest


def many_scans(side: int, count: int) -> bytes:
    """A progressive JPEG that passes over all its pixels so many times more."""
    data = encoded(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    segments, at = [], 2
    while data[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            while data[end] != 0xFF or data[end + 1] == 0:
                end += 1
        segments.append(data[at:end])
        at = end
    scan = min(range(len(segments)), key=lambda n: len(segments[n]) if segments[n][1] == 0xDA else 1 << 30)
    return data[:2] + b"".join(segments) + b"".join(segments[scan - 1 : scan + 1]) * count + b"\xff\xd9"


SLOW = {"scans": many_scans(1900, 15_000), "chunks": many_chunks(1_500_000)}


@pytest.mark.parametrize("kind", SLOW)
def test_a_picture_that_takes_long_is_given_up(decoder: ImageDecoder, kind: str) -> None:
    """Its process is ended, and the next picture is decoded by another."""
    with pytest.raises(ImageError, match="1 s of processor time"):
        decoder.decode(decoder.measure(SLOW[kind]))
    assert decoder.decode(decoder.measure(plain(8))).size == (8, 8)


def test_a_picture_that_lies_about_its_size_takes_no_more_memory(decoder: ImageDecoder) -> None:
    """A decoder that is told another size than the header's fails; it does not take the worker with it."""
    small = EncodedImage(plain(3000), is_base64=False, full_size=(1, 1))
    with pytest.raises(ImageError, match="at most 4000000 pixels"):
        decoder.decode(small)


def test_pictures_of_16_bits_stay_within_the_bytes_of_a_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    """With little memory beside: they pass through modes of 4 bytes; colour with a transparent one is read twice."""
    monkeypatch.setattr(image_decoder, "OVERHEAD", 24 << 20)
    side = 4000
    decoder = ImageDecoder(max_pixels=side**2, processes=1, seconds=10)
    for kind, row in ((GREY, bytes(2 * side)), (RGB, bytes(6 * side))):
        for more in (b"", chunk(b"tRNS", b"\0\1" * (len(row) // side // 2))):
            head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 16, kind, 0, 0, 0))
            pixels = chunk(b"IDAT", zlib.compress((b"\0" + row) * side, 1))
            data = b"\x89PNG\r\n\x1a\n" + head + more + pixels + chunk(b"IEND")
            assert decoder.decode(decoder.measure(data)).size == (side, side)
    decoder.close()


KINDS = ["PNG", "JPEG", "WEBP", "GIF", "BMP"]
SEEDS = [encoded(Image.effect_noise((40, 30), 80).convert("P" if kind == "GIF" else "RGB"), kind) for kind in KINDS]


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_damaged_pictures_are_refused_or_decoded(decoder: ImageDecoder, data: st.DataObject) -> None:
    """Whatever is changed in a file: an image of the stated size, or a reason."""
    picture = bytearray(data.draw(st.sampled_from(SEEDS)))
    dice = random.Random(data.draw(st.integers(0, 1 << 30)))
    for _ in range(data.draw(st.integers(1, 12))):
        at = dice.randrange(len(picture))
        match dice.randrange(4):
            case 0:
                picture[at] = dice.randrange(256)
            case 1:
                picture[at : at + 4] = dice.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\xff\xff\0\0"])
            case 2:
                del picture[at : at + dice.randrange(1, 20)]
            case 3:
                picture[at:at] = picture[at : at + dice.randrange(1, 200)]
        if not picture:
            return
    reason = ""
    try:
        image = decoder.measure(bytes(picture))
        assert image.pixels <= 4_000_000
        decoded = decoder.decode(image)
        assert len(decoded.data) == 3 * math.prod(decoded.size)
    except ImageError as error:
        reason = str(error)
    assert len(reason) < 300


def test_the_event_loop_goes_on_while_pictures_are_decoded() -> None:
    """Neither base64 nor headers nor pixels are read in the event loop's thread."""

    async def scenario() -> list[float]:
        chat = ChatService(FakeEngine(), IDENTITY, service_settings())
        loop, pauses = asyncio.get_running_loop(), []
        work = asyncio.gather(*(complete(chat, request(plain(2500, kind)), str(n)) for n, kind in
                                itertools.product(range(2), ["PNG", "WEBP"])))  # fmt: skip
        while not work.done():
            before = loop.time()
            await asyncio.sleep(0.005)
            pauses.append(loop.time() - before)
        await work
        await chat.close()
        return sorted(pauses)

    pauses = asyncio.run(scenario())
    assert pauses[len(pauses) * 9 // 10] < 0.1
