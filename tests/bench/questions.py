"""What the contenders are asked: question `index` is the same for all of them, and no two are alike.

A picture that was seen before could be answered from a cache, so every question of a run has one of its own.
"""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any, Literal

from PIL import Image, ImageDraw

from service.demo_models.tiny import WORDS

__all__ = ["Kind", "body", "messages"]

Kind = Literal["text", "image"]

VOCABULARY = WORDS.split()
COLOURS = ("red", "blue", "green", "gold", "purple", "black", "orange", "teal")


def messages(kind: Kind, index: int) -> list[dict[str, Any]]:
    """Question `index` as the processor takes it, the picture as an image."""
    if kind == "text":
        return [{"role": "user", "content": [{"type": "text", "text": _text(index)}]}]
    parts = [{"type": "image", "image": _picture(index)}, {"type": "text", "text": _text(index)}]
    return [{"role": "user", "content": parts}]


def body(kind: Kind, index: int, *, tokens: int, stream: bool) -> bytes:
    """Question `index` as a greedy chat request of `tokens` tokens, the picture as a data URL."""
    asked = messages(kind, index)
    if kind == "image":
        file = io.BytesIO()
        asked[0]["content"][0]["image"].save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        asked[0]["content"][0] = {"type": "image_url", "image_url": {"url": url}}
    document = {
        "messages": asked,
        "max_tokens": tokens,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": stream,
    }
    if stream:
        document["stream_options"] = {"include_usage": True}
    return json.dumps(document).encode()


def _text(index: int) -> str:
    """10 to 45 words."""
    draw = random.Random(index)
    return " ".join(draw.choices(VOCABULARY, k=10 + 5 * (index % 8)))


def _picture(index: int) -> Image.Image:
    """A few shapes on a light ground, 196 to 252 by 224 pixels."""
    draw = random.Random(index)
    picture = Image.new("RGB", (196 + 28 * (index % 3), 224), tuple(draw.randrange(200, 256) for _ in range(3)))
    pencil = ImageDraw.Draw(picture)
    for _ in range(3):
        x, y, size = draw.randrange(20, 120), draw.randrange(20, 140), draw.randrange(30, 80)
        shape = draw.choice((pencil.ellipse, pencil.rectangle))
        shape((x, y, x + size, y + size), fill=draw.choice(COLOURS))
    return picture
