"""Images from https URLs: of listed hosts alone, and never more bytes or time than the settings allow."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from http import HTTPStatus

import httpx

from service.chat.images import ImageError

__all__ = ["Fetcher"]

REDIRECTS = 3
# `identity`: a compressed body could grow a thousandfold when it is read.
HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "glm-service"}


class Fetcher:
    """Fetches for one worker.

    A host matches as it is spelled in the list, `images.example.org` or `images.example.org:8443`; no other name of it
    does, no subdomain, no address. So what is reachable is what the list says and the DNS of those names.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        timeout: float,
        max_bytes: int,
        tls: ssl.SSLContext | bool = True,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._tls = tls
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    async def fetch(self, urls: Sequence[str], *, max_total: int) -> dict[str, bytes | ImageError]:
        """Fetch each distinct URL at once, `max_total` bytes of them together; what fails is told in its place."""
        budget = _Budget(max_total)
        distinct = list(dict.fromkeys(urls))
        found = await asyncio.gather(*(self._fetch(url, budget) for url in distinct))
        return dict(zip(distinct, found, strict=True))

    async def close(self) -> None:
        """Close what connections are kept."""
        if self._client is not None:
            await self._client.aclose()

    async def _fetch(self, address: str, budget: _Budget) -> bytes | ImageError:
        try:
            url = self._allowed(address)
            async with asyncio.timeout(self._timeout):
                return await self._get(url, budget)
        except ImageError as error:
            return error
        except TimeoutError:
            return ImageError(f"the image could not be fetched within {self._timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            return ImageError(f"the image could not be fetched: {type(error).__name__}")

    def _allowed(self, address: str) -> httpx.URL:
        """Read the URL once: what is checked is what is asked for."""
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError, TypeError) as error:  # ValueError: not to be encoded
            raise ImageError("not a valid URL") from error
        if url.scheme != "https":
            raise ImageError("images are fetched by https alone; or send the image as a data URL")
        if url.userinfo:
            raise ImageError("the URL must hold no user name")
        if url.netloc.decode("ascii", "replace").lower() not in self._hosts:
            raise ImageError(
                f"images are not fetched from {url.host[:100]!r}: {'no host' if not self._hosts else 'only others'} "
                "may be fetched from by this server's settings; send a data URL: data:image/png;base64,…"
            )
        return url

    async def _get(self, url: httpx.URL, budget: _Budget) -> bytes:
        for _ in range(REDIRECTS + 1):
            async with self._connected().stream("GET", url) as answer:
                if answer.has_redirect_location:
                    follow = url.join(answer.headers["location"])
                    if follow.netloc != url.netloc:
                        raise ImageError("the host sent the request on to another host, which is not followed")
                    url = self._allowed(str(follow))
                    continue
                if answer.status_code != HTTPStatus.OK:
                    raise ImageError(f"the image could not be fetched: its host answered {answer.status_code}")
                return await self._read(answer, budget)
        raise ImageError(f"the host sent the request on more than {REDIRECTS} times")

    async def _read(self, answer: httpx.Response, budget: _Budget) -> bytes:
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise ImageError("the host sent the image compressed, which was not asked for")
        length = answer.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        data = bytearray()
        async for chunk in answer.aiter_raw():
            data += chunk
            if len(data) > self._max_bytes:
                raise self._too_large()
            budget.take(len(chunk))
        return bytes(data)

    def _too_large(self) -> ImageError:
        return ImageError(f"the image has more than {self._max_bytes} bytes")

    def _connected(self) -> httpx.AsyncClient:
        if self._client is None:  # made late: reading the authorities' certificates takes a while
            self._client = httpx.AsyncClient(
                headers=HEADERS, verify=self._tls, timeout=self._timeout, transport=self._transport
            )
        return self._client


class _Budget:
    """The bytes that one request may still fetch."""

    def __init__(self, left: int) -> None:
        self._limit = self._left = left

    def take(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ImageError(f"the images of the request have more than {self._limit} bytes")
