"""A prompt's length, before it is rendered or any of its images is decoded: an estimate, and the tokens of its text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = ["CHARACTERS_PER_TOKEN", "LONG", "characters", "estimate", "texts"]

CHARACTERS_PER_TOKEN = 8
"""A prompt with more text than this for each of its tokens is refused, although it might have fewer. English text has
4 to 5, source code 3 to 4, Chinese 1.5; only long runs of one character have more."""

LONG = 1 << 15
"""Characters; more are tokenized in a process of its own first, since 1,000 take 2 ms and hold up other requests."""

_BESIDE = 4  # characters that JSON or the template puts around a value
_DIGITS_PER_BIT = 0.302


def estimate(
    messages: Sequence[Mapping[str, Any]] | str,
    tools: Sequence[Mapping[str, Any]],
    image_tokens: Callable[[Iterable[tuple[int, int]]], int],
    limit: int,
) -> int:
    """Return an estimate of the tokens; it stops soon after `limit`.

    Roles, texts, names, keys and values at any depth count alike. `image_tokens` returns the tokens of images of the
    sizes (width, height), in pixels.
    """
    sizes: list[tuple[int, int]] = []
    text = characters([messages, tools], limit * CHARACTERS_PER_TOKEN, sizes)
    return -(-text // CHARACTERS_PER_TOKEN) + (image_tokens(sizes) if sizes else 0)


def characters(value: Any, limit: int, sizes: list[tuple[int, int]] | None = None) -> int:
    """Return the characters of everything in a value, and add the sizes of images to `sizes`; stops after `limit`."""
    found = 0
    for count in _lengths(value, [] if sizes is None else sizes):
        found += count
        if found > limit:
            break
    return found


def texts(messages: Sequence[Mapping[str, Any]] | str, tools: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the texts that templates render of a conversation; of earlier reasoning they may leave out."""
    if isinstance(messages, str):
        yield messages
        return
    for message in messages:
        content = message.get("content") or ""
        yield from [content] if isinstance(content, str) else (part["text"] for part in content if "text" in part)
        yield from _texts([call["function"]["arguments"] for call in message.get("tool_calls") or ()])
    yield from _texts(tools)


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from value
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value


def _lengths(value: Any, sizes: list[tuple[int, int]]) -> Iterator[int]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield len(value) + _BESIDE
        elif isinstance(value, Mapping):
            yield sum(map(len, value)) + _BESIDE * (1 + len(value))
            waiting += value.values()
        elif isinstance(value, list | tuple):
            yield _BESIDE
            waiting += value
        elif isinstance(value, int):
            yield int(value.bit_length() * _DIGITS_PER_BIT) + _BESIDE
        elif value is None or isinstance(value, float):
            yield 2 * _BESIDE
        else:
            sizes.append(value.size)
