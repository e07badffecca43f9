"""What the programs of this folder share: the server, the shape that calls and documents describe, and the entry.

A program is run in the environment of its package, with the names of cells as arguments. It prints one JSON object a
line for each: `cell`, and `answer` (what came back) or `error` (the traceback).
"""

import asyncio
import base64
import inspect
import json
import os
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

URL = os.environ["OPENAI_BASE_URL"]
KEY = os.environ["OPENAI_API_KEY"]
MODEL = "glm-4.6v-flash"
PICTURE = Path(os.environ["PICTURE"])
PICTURE_URL = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"

HELLO = "Hello"
COUNT = "Count to three."
WHAT = "What do you see?"
SKILLS = "What can you do?"
PAINT = "Paint a shape"
DONE = "a red circle"  # what the tool returns


class Shape(BaseModel):
    """A shape to paint."""

    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "blue"]
    size: Literal[1, 2, 3]
    filled: bool


def paint(colour: Literal["red", "blue"], size: Literal[1, 2, 3], filled: bool) -> str:
    """Paint a shape."""
    return DONE


CALL = {"colour": "red", "size": 2, "filled": True}  # arguments of an earlier call

Answer = dict[str, Any]


def call(name: str, arguments: Any) -> Answer:
    """Describe a call; `arguments` is an object, or JSON."""
    return {"name": name, "arguments": json.loads(arguments) if isinstance(arguments, str) else arguments}


def streamed(pieces: list[str | None]) -> Answer:
    """Describe a streamed text: the whole, and how many pieces it came in."""
    return {"text": "".join(piece or "" for piece in pieces), "pieces": len([piece for piece in pieces if piece])}


def main(**cells: Callable[[], Answer | Awaitable[Answer]]) -> None:
    """Run the cells that the command line names."""
    with asyncio.Runner() as runner:
        for name in sys.argv[1:]:
            try:
                answer = cells[name]()
                if inspect.isawaitable(answer):
                    answer = runner.run(_awaited(answer))
                line = {"cell": name, "answer": answer}
            except Exception:
                line = {"cell": name, "error": traceback.format_exc()}
            print(json.dumps(line), flush=True)


async def _awaited(answer: Awaitable[Answer]) -> Answer:
    return await answer
