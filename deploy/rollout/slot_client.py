"""HTTP requests to one slot through its internal socket, and to the live slot through the public socket."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import Any

import httpx

from deploy.errors import NotReady
from deploy.host import Host
from service.contract.slots import http_socket

__all__ = ["PublicSocket", "SlotClient", "data_url"]

_TIMEOUT = 120.0  # seconds for a response to a check; the first one of a large model may take a while
_OK = 200


class SlotClient:
    """Plain HTTP to one slot, whether its gate is open or closed."""

    def __init__(self, host: Host, slot: str, *, timeout: float = _TIMEOUT) -> None:
        """`timeout` is in seconds, for each response."""
        self._slot = slot
        transport = httpx.HTTPTransport(uds=str(http_socket(host.runtime, slot)), verify=False)
        self._client = httpx.Client(transport=transport, base_url="http://slot", timeout=timeout)

    def version(self) -> str:
        """Return the version that the slot serves; raises NotReady without a response."""
        return str(self._request("GET", "/version")["version"])

    def chat(self, question: str, image: str | None, max_tokens: int) -> str:
        """Return the model's reply, decoded greedily and without thinking; `image` is a data URL. Raises NotReady."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if image is not None:
            content.insert(0, {"type": "image_url", "image_url": {"url": image}})
        body = {
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": max_tokens,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        message = self._request("POST", "/v1/chat/completions", body)["choices"][0]["message"]
        return str(message["content"] or "")

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._client.request(method, path, json=body)
            document = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise NotReady(f"{self._slot} does not respond on its http.sock: {error}") from error
        if response.status_code != _OK:
            message = document.get("error", {}).get("message", response.text)
            raise NotReady(f"{self._slot} responded with {response.status_code} to {path}: {message}")
        return dict(document)


class PublicSocket:
    """Requests to the live slot, each on a new connection. Creating the client takes 30 ms: do it before a cutover."""

    def __init__(self, listen: str, *, timeout: float = 1.0) -> None:
        """`timeout` is in seconds, for each request."""
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(verify=False), base_url=f"http://{listen}", timeout=timeout, trust_env=False
        )

    def slot(self) -> str | None:
        """Return the slot that responds; None without a response in time."""
        try:
            response = self._client.get("/version", headers={"connection": "close"})
        except httpx.HTTPError:
            return None
        return str(response.headers["x-slot"]) if "x-slot" in response.headers else None


def data_url(path: Path) -> str:
    """Return an image file as a data URL."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
