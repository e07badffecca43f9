"""Asking a slot through its door, and whoever is live through the public socket."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any

import httpx

from deploy.errors import NotReady
from deploy.host import Host

_PATIENCE = 120.0  # seconds for an answer to a check; the first one of a large model may take a while


class Door:
    """Plain HTTP to one slot, whether its gate is open or shut."""

    def __init__(self, host: Host, slot: str) -> None:
        self.slot = slot
        transport = httpx.HTTPTransport(uds=str(host.http_socket(slot)))
        self._client = httpx.Client(transport=transport, base_url="http://slot", timeout=_PATIENCE)

    def version(self) -> str:
        """The version that answers there; raises NotReady when nobody does."""
        return str(self._ask("GET", "/version")["version"])

    def answer(self, question: str, image: str | None, max_tokens: int) -> str:
        """Ask the model, greedily and without thinking, as the worker did before it was ready."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": image}})
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        return str(self._ask("POST", "/v1/chat/completions", body)["choices"][0]["message"]["content"])

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
            document = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise NotReady(f"{self.slot} does not answer at its door: {error}") from error
        if response.status_code != 200:
            message = document.get("error", {}).get("message", response.text)
            raise NotReady(f"{self.slot} answered {response.status_code} to {path}: {message}")
        return dict(document)


def data_url(path: Path) -> str:
    """A picture file as a data URL."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


class PublicSocket:
    """Asks whoever is live, on a new connection each time. Made before a switch, for making one takes 30 ms."""

    def __init__(self, listen: str) -> None:
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(verify=False), base_url=f"http://{listen}", timeout=1.0, trust_env=False
        )

    def slot(self) -> str | None:
        """The slot that answers now; None when none does within a second."""
        try:
            response = self._client.get("/version", headers={"connection": "close"})
        except httpx.HTTPError:
            return None
        return str(response.headers["x-slot"]) if "x-slot" in response.headers else None
