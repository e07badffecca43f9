"""The prompts of a benchmark: prompt `index` is the same for every server, and no two prompts are equal.

Every prompt has an image of its own, because the features of a repeated image would come from a cache.
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
    """Return prompt `index` as messages for the processor, with the image as a PIL image."""
    if kind == "text":
        return [{"role": "user", "content": [{"type": "text", "text": _text(index)}]}]
    parts = [{"type": "image", "image": _image(index)}, {"type": "text", "text": _text(index)}]
    return [{"role": "user", "content": parts}]


def body(kind: Kind, index: int, *, tokens: int, stream: bool) -> bytes:
    """Return the body of a greedy chat request with prompt `index` for `tokens` tokens, the image as a data URL."""
    prompt = messages(kind, index)
    if kind == "image":
        file = io.BytesIO()
        prompt[0]["content"][0]["image"].save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        prompt[0]["content"][0] = {"type": "image_url", "image_url": {"url": url}}
    document = {
        "messages": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
        "stream": stream,
    }
    if stream:
        document["stream_options"] = {"include_usage": True}
    return json.dumps(document).encode()


def _text(index: int) -> str:
    """Return 10 to 45 words."""
    rng = random.Random(index)
    return " ".join(rng.choices(VOCABULARY, k=10 + 5 * (index % 8)))


def _image(index: int) -> Image.Image:
    """Draw three shapes on a light background, 196 to 252 by 224 pixels."""
    rng = random.Random(index)
    image = Image.new("RGB", (196 + 28 * (index % 3), 224), tuple(rng.randrange(200, 256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(3):
        x, y, size = rng.randrange(20, 120), rng.randrange(20, 140), rng.randrange(30, 80)
        shape = rng.choice((draw.ellipse, draw.rectangle))
        shape((x, y, x + size, y + size), fill=rng.choice(COLOURS))
    return image
