"""The operator's file of API keys: who may use the service, and how much of it at a time.

A line is `NAME KEY [OPTION ...]`; empty lines and what follows ` #` are ignored. KEY is the key itself or
`sha256:` and the SHA-256 of the key in hexadecimal digits. The options are

- `requests=N`: requests in flight,
- `tokens=N`: tokens in flight,
- `scope=metrics`, or `metrics`: the key reads /metrics and nothing else.

A name may have several keys, so that a key can be replaced while the one before is still accepted. Then the options are
the same on each of its lines, and the limits hold for all keys of the name together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MIN_LENGTH", "Key", "Keys", "digest_of", "parse"]

MIN_LENGTH = 16
"""Characters of a key; a shorter one could be guessed."""

MAX_SIZE = 1 << 20  # bytes of the file, which is parsed between two requests
_HASH = "sha256:"
_COMMENT = re.compile(r"(?:^|\s)#.*")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_KEY = re.compile(r"[\x21-\x7e]+")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_LIMIT = re.compile(r"[1-9][0-9]{0,11}")


@dataclass(frozen=True)
class Key:
    """A key of the client `name`. `requests` and `tokens` limit what is in flight; None: no limit."""

    name: str
    digest: bytes
    requests: int | None = None
    tokens: int | None = None
    metrics: bool = False

    @property
    def options(self) -> tuple[int | None, int | None, bool]:
        """What has to be the same for all keys of a name."""
        return self.requests, self.tokens, self.metrics


Keys = Mapping[bytes, Key]
"""Keys by their digest."""


def digest_of(key: bytes) -> bytes:
    """Return the digest by which a key is found."""
    return hashlib.sha256(key).digest()


def parse(content: bytes) -> Keys:
    """Return the keys of a file; raises ValueError with the number of the line at fault, never with a part of a key."""
    if len(content) > MAX_SIZE:
        raise ValueError(f"it is larger than {MAX_SIZE} bytes")
    keys: dict[bytes, Key] = {}
    first: dict[str, Key] = {}  # of each name
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            key = _key(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if key is None:
            continue
        if key.digest in keys:
            raise ValueError(f"line {number}: this key is on an earlier line too")
        if first.setdefault(key.name, key).options != key.options:
            raise ValueError(f"line {number}: the options of {key.name} are others than on an earlier line")
        keys[key.digest] = key
    if not keys:
        raise ValueError("it has no key; to do without keys, remove the file and restart the service")
    return keys


def _key(line: bytes) -> Key | None:
    """Return the key of a line, None for an empty one; raises ValueError."""
    if not line.isascii():
        raise ValueError("it has characters that are not ASCII")
    words = _COMMENT.sub("", line.decode()).split()
    if not words:
        return None
    name, *words = words
    if not _NAME.fullmatch(name):
        raise ValueError("the name may have at most 64 letters, digits, and . _ @ -")
    if not words:
        raise ValueError("the key is missing: a line is `NAME KEY [OPTION ...]`")
    text, *words = words
    options: dict[str, int | bool] = {}
    for word in words:
        option, value = _option(word)
        if option in options:
            raise ValueError(f"the option {option} is there twice")
        options[option] = value
    if options.get("metrics") and len(options) > 1:
        raise ValueError("a key with scope=metrics has no limits")
    return Key(name, _digest(text), **options)  # type: ignore[arg-type]


def _digest(text: str) -> bytes:
    if text.startswith(_HASH):
        digest = text.removeprefix(_HASH)
        if not _DIGEST.fullmatch(digest):
            raise ValueError("sha256: is not followed by 64 hexadecimal digits")
        return bytes.fromhex(digest)
    if not _KEY.fullmatch(text):
        raise ValueError("the key has characters that cannot be sent")
    if len(text) < MIN_LENGTH:
        raise ValueError(f"the key has fewer than {MIN_LENGTH} characters; make one with `openssl rand -hex 24`")
    return digest_of(text.encode())


def _option(word: str) -> tuple[str, int | bool]:
    if word in {"metrics", "scope=metrics"}:
        return "metrics", True
    name, _, value = word.partition("=")
    if name not in {"requests", "tokens"}:
        # not the word: it may be a key in the wrong place
        raise ValueError("an option is not one of requests=N, tokens=N, scope=metrics")
    if not _LIMIT.fullmatch(value):
        raise ValueError(f"{name} is not a whole number from 1")
    return name, int(value)
