"""Browsers are told apart by a cookie: a random identifier, which no script can read.

Streamlit cannot set cookies from a script, so that a middleware of its server does. Whoever has the identifier has the
conversations: it is never shown, logged or put into a URL.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

__all__ = ["COOKIE", "BrowserCookie", "browser_id"]

COOKIE = "glm_browser"
MAX_AGE = 400 * 86_400  # seconds; browsers keep none longer. It is renewed whenever the page is loaded.
IDENTIFIER = re.compile(r"[A-Za-z0-9_-]{43}")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def browser_id(cookies: Mapping[str, str]) -> str | None:
    """Return the identifier in a request's cookies; None without a valid one."""
    value = str(cookies.get(COOKIE, ""))
    return value if IDENTIFIER.fullmatch(value) else None


class BrowserCookie:
    """An ASGI middleware that gives each browser that loads the page an identifier, and renews it."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request; only those for a document (Accept: text/html) are answered with the cookie."""
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or b"text/html" not in headers.get(b"accept", b""):
            await self.app(scope, receive, send)
            return
        identifier = browser_id(_cookies(headers.get(b"cookie", b""))) or secrets.token_urlsafe(32)
        cookie = f"{COOKIE}={identifier}; Max-Age={MAX_AGE}; Path=/; HttpOnly; SameSite=Lax"
        if scope.get("scheme") == "https":
            cookie += "; Secure"

        async def send_with_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"set-cookie", cookie.encode())]
            await send(message)

        await self.app(scope, receive, send_with_cookie)


def _cookies(header: bytes) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header.decode("latin-1")).items()}
    except CookieError:
        return {}
