"""API keys: which requests are answered, and how much of a key may be in flight in this worker."""

from __future__ import annotations

import hmac
import logging
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Literal

from starlette.types import Scope

from service.chat.errors import ApiError, invalid
from service.contract import keys_file, regular_file
from service.contract.cached_file import CachedFile
from service.contract.keys_file import Key, Keys, digest_of
from service.settings import Settings

__all__ = ["Access", "ApiKeys", "InFlight", "KeysError"]

Access = Literal["key", "metrics", "open"]
"""Who may use a route: keys, or keys for /metrics if there are any, or everybody."""

PERIOD = 1.0  # seconds between two looks at the file
CREDENTIAL = "glm-keys"

_HEADERS = {b"x-api-key", b"api-key"}
_BLANKS = b" \t"
_OFF: AbstractContextManager[None] = nullcontext()

log = logging.getLogger("service")


class KeysError(Exception):
    """The file of keys cannot be used; the text says why."""


class InFlight:
    """A request of a key, which is counted until the end of a `with` block; raises ApiError 429 beyond a limit."""

    def __init__(self, keys: ApiKeys, key: Key) -> None:
        self._keys = keys
        self._key = key
        self._tokens = 0
        self._add(keys.requests, 1, key.requests, "requests")

    def add_tokens(self, tokens: int) -> None:
        """Count tokens until the answer has ended; raises ApiError 429 while others leave no room, else 400."""
        limit = self._key.tokens
        if limit is not None and tokens > limit:
            raise invalid(
                f"prompt and answer may have {tokens} tokens; this API key may have {limit} in flight",
                param="max_tokens",
                code="too_many_tokens",
            )
        self._add(self._keys.tokens, tokens, limit, "tokens")
        self._tokens += tokens

    def _add(self, counts: Counter[str], amount: int, limit: int | None, what: str) -> None:
        held = counts[self._key.name]
        if limit is not None and held + amount > limit:
            raise ApiError(
                429,
                f"this API key has {held} of {limit} {what} in flight; try again later",
                code="rate_limit_exceeded",
                headers={"Retry-After": "1"},
            )
        counts[self._key.name] += amount

    def __enter__(self) -> InFlight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for counts, amount in ((self._keys.requests, 1), (self._keys.tokens, self._tokens)):
            counts[self._key.name] -= amount
            if not counts[self._key.name]:
                del counts[self._key.name]


class ApiKeys:
    """The keys of a file, which is looked at once a second. All calls must come from the thread of one event loop.

    Without a file every request is answered. A file that is there and cannot be used is a KeysError at the start. One
    that is removed, or cannot be used, later changes nothing: the keys before it stay valid, which is logged once.

    `requests` and `tokens` are what is in flight, by the names of keys.
    """

    def __init__(self, path: Path | None = None) -> None:
        """`path` None: no request needs a key."""
        self.requests: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self._keys: Keys | None = None
        self._has_metrics = self._missing_logged = False
        self._look_at = float("inf")  # CLOCK_MONOTONIC, in seconds
        if path is None:
            return
        self._file = CachedFile(path, keys_file.parse, self._note, follow=True)
        try:
            self._use(keys_file.parse(regular_file.read(path, follow=True)))
        except (FileNotFoundError, NotADirectoryError):
            pass
        except (OSError, ValueError) as error:
            raise KeysError(_fault(path, error)) from None
        self._look_at = 0.0

    @classmethod
    def of(cls, settings: Settings) -> ApiKeys:
        """Return the keys of the unit's credential `glm-keys`, or else those of the file that the settings name."""
        credentials = os.environ.get("CREDENTIALS_DIRECTORY")
        credential = Path(credentials, CREDENTIAL) if credentials else None
        return cls(credential if credential and os.path.lexists(credential) else settings.keys)

    def admit(self, scope: Scope, access: Access) -> AbstractContextManager[object]:
        """Return what the request holds while it is answered; raises ApiError 401, 403 and 429.

        The request's state gets `caller`, the owner of what it makes, and `in_flight`, an InFlight. A request to the
        slot's internal socket needs no key and has no limit.
        """
        keys = None if access == "open" else self._current()
        if keys is None or (access == "metrics" and not self._has_metrics):
            return _OFF
        state = scope["state"]
        is_trusted = state.get("internal", False)
        sent = {*_keys_in(scope["headers"])}
        key = _find(keys, min(sent)) if len(sent) == 1 else None
        if key is None:
            if is_trusted:
                return _OFF
            raise _unauthorized(len(sent))
        state["caller"] = f"key:{key.name}"
        if is_trusted:
            return _OFF
        if key.metrics != (access == "metrics"):
            what = "reads /metrics and nothing else" if key.metrics else "cannot read /metrics"
            raise ApiError(403, f"this API key {what}", code="insufficient_permissions")
        state["in_flight"] = in_flight = InFlight(self, key)
        return in_flight

    def _current(self) -> Keys | None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + PERIOD
            found = self._file.read()
            if found is not None and found is not self._keys:
                self._use(found)
            self._note_missing()
        return self._keys

    def _use(self, keys: Keys) -> None:
        self._keys = keys
        self._has_metrics = any(key.metrics for key in keys.values())
        log.info("%s: %d API keys", self._file.path, len(keys))

    def _note(self, error: Exception) -> None:
        log.error("%s; %s", _fault(self._file.path, error), self._still)

    def _note_missing(self) -> None:
        is_missing = self._keys is not None and not os.path.exists(self._file.path)  # noqa: PTH110  (never raises)
        if is_missing and not self._missing_logged:
            log.error("the API keys %s cannot be found; %s", self._file.path, self._still)
        self._missing_logged = is_missing

    @property
    def _still(self) -> str:
        return "no request needs a key" if self._keys is None else "the keys before stay valid until a restart"


def _keys_in(headers: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """Yield what the headers have in place of a key; empty for another scheme than Bearer."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.strip(_BLANKS).partition(b" ")
            yield token.strip(_BLANKS) if scheme.lower() == b"bearer" else b""
        elif name in _HEADERS:
            yield value.strip(_BLANKS)


def _find(keys: Keys, sent: bytes) -> Key | None:
    """Return the key; how long that takes depends on the digest alone, of which a client cannot choose the bytes."""
    digest = digest_of(sent)
    key = keys.get(digest)
    return key if key is not None and hmac.compare_digest(key.digest, digest) else None


def _unauthorized(sent: int) -> ApiError:
    message = {
        0: "this URL needs an API key; send it as `Authorization: Bearer KEY`",
        1: "the API key is not valid",
    }.get(sent, "the headers have different API keys; send one")
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def _fault(path: Path, error: Exception) -> str:
    reason = error.strerror or error if isinstance(error, OSError) else error
    fix = "; the service must be able to enter its directory and to read it" * isinstance(error, PermissionError)
    return f"the API keys {path} cannot be used: {reason}{fix}"
