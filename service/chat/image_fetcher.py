"""Fetching of images from https URLs, restricted to allowed hosts and limited in bytes and time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from http import HTTPStatus

from service.chat.images import ImageError
from service.http_client import httpx

__all__ = ["ImageFetcher"]

MAX_REDIRECTS = 3
# `identity`: a compressed body could expand a thousandfold when it is decoded.
HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "glm-service"}


class ImageFetcher:
    """The HTTPS client of one worker.

    `hosts` are compared, ignoring case, with the authority of the URL: `images.example.org` or
    `images.example.org:8443`. Subdomains, other spellings and addresses do not match, so that only the listed names, as
    DNS resolves them, are reachable. `timeout` is in seconds, `max_bytes` is the limit of one image.
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
        """Fetch every distinct URL concurrently; the value of one that fails is its error.

        `max_total` limits the bytes of all of them together.
        """
        budget = _ByteBudget(max_total)
        distinct = list(dict.fromkeys(urls))
        results = await asyncio.gather(*(self._fetch(url, budget) for url in distinct))
        return dict(zip(distinct, results, strict=True))

    async def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _fetch(self, address: str, budget: _ByteBudget) -> bytes | ImageError:
        try:
            url = self._parse_url(address)
            async with asyncio.timeout(self._timeout):
                return await self._get(url, budget)
        except ImageError as error:
            return error
        except TimeoutError:
            return ImageError(f"the image could not be fetched within {self._timeout:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            return ImageError(f"the image could not be fetched: {type(error).__name__}")

    def _parse_url(self, address: str) -> httpx.URL:
        """Parse the URL once, so that the URL checked is the URL requested; raises ImageError."""
        try:
            url = httpx.URL(address)
        except (httpx.InvalidURL, ValueError, TypeError) as error:  # ValueError: it cannot be encoded
            raise ImageError("not a valid URL") from error
        if url.scheme != "https":
            raise ImageError("image URLs must use https; or send a data URL: data:image/png;base64,…")
        if url.userinfo:
            raise ImageError("the URL must not contain a user name or password")
        if url.netloc.decode("ascii", "replace").lower() not in self._hosts:
            allowed = "only other hosts" if self._hosts else "no hosts"
            raise ImageError(
                f"fetching images from {url.host[:100]!r} is not allowed: the server's settings allow {allowed}; "
                "send a data URL: data:image/png;base64,…"
            )
        return url

    async def _get(self, url: httpx.URL, budget: _ByteBudget) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            async with self._get_client().stream("GET", url) as response:
                if response.has_redirect_location:
                    target = url.join(response.headers["location"])
                    if target.netloc != url.netloc:
                        raise ImageError("the image could not be fetched: its host redirected to another host")
                    url = self._parse_url(str(target))
                    continue
                if response.status_code != HTTPStatus.OK:
                    raise ImageError(f"the image could not be fetched: its host returned status {response.status_code}")
                return await self._read(response, budget)
        raise ImageError(f"the image could not be fetched: its host redirected more than {MAX_REDIRECTS} times")

    async def _read(self, response: httpx.Response, budget: _ByteBudget) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise ImageError("the image could not be fetched: its host sent a compressed response")
        length = response.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise self._too_large()
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > self._max_bytes:
                raise self._too_large()
            budget.spend(len(chunk))
        return bytes(data)

    def _too_large(self) -> ImageError:
        return ImageError(f"the image is larger than {self._max_bytes} bytes")

    def _get_client(self) -> httpx.AsyncClient:
        if self._client is None:  # created on first use, because loading the CA certificates is slow
            self._client = httpx.AsyncClient(
                headers=HEADERS, verify=self._tls, timeout=self._timeout, transport=self._transport
            )
        return self._client


class _ByteBudget:
    """The bytes that one request may still fetch."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def spend(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ImageError(f"the images of the request are larger than {self._limit} bytes in total")
