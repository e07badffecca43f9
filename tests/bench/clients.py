"""Concurrent clients in a process of their own: `python -m tests.bench.clients` asks and prints what came, as JSON.

It shares the machine with the server it measures, so it does as little as it can while the clock runs: requests are
written out beforehand, what comes is kept with its time, and is read when all is over.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import httptools

from tests.bench.figures import Figures
from tests.bench.questions import Kind, body

__all__ = ["Answer", "Load", "load"]


@dataclass(frozen=True)
class Load:
    """What to ask of `address`: `clients` at the same time, each `rounds` questions, from question `first` on."""

    address: str
    kind: Kind
    clients: int
    rounds: int
    first: int
    tokens: int
    stream: bool = True


@dataclass(frozen=True)
class Answer:
    """The whole answer to one question."""

    text: str
    prompt_tokens: int


def load(what: Load) -> tuple[Figures, list[Answer]]:
    """Ask in a child process; raises CalledProcessError when a request was not answered as it must be."""
    asked = [sys.executable, "-m", "tests.bench.clients", json.dumps(asdict(what))]
    told = json.loads(subprocess.run(asked, check=True, stdout=subprocess.PIPE).stdout)
    figures = told["figures"]
    return (
        Figures(**figures | {"first": tuple(figures["first"]), "gaps": tuple(figures["gaps"])}),
        [Answer(**answer) for answer in told["answers"]],
    )


class Connection(asyncio.Protocol):
    """One keep-alive connection; `pieces` are the parts of the present answer's body, each with its time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Note the time, and read."""
        self._now = time.perf_counter()
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        """Keep a part of the body."""
        self.pieces.append((self._now, piece))

    def on_message_complete(self) -> None:
        """End the wait of `ask`."""
        self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody closes a connection here but us, after the last answer."""
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> Exchange:
        """Send a request and wait for its whole answer."""
        self._done = asyncio.get_running_loop().create_future()
        self.pieces: list[tuple[float, bytes]] = []
        sent = time.perf_counter()
        self._transport.write(request)
        await self._done
        return Exchange(sent, self._now, self._parser.get_status_code(), self.pieces)


@dataclass(frozen=True)
class Exchange:
    """A request and what came of it, not read yet."""

    sent: float
    ended: float
    status: int
    pieces: list[tuple[float, bytes]]

    def read(self, what: Load) -> tuple[Answer, list[float]]:
        """The answer, and when each piece of its text came; raises ValueError if it is not as long as was asked."""
        read = self._stream() if what.stream and self.status == 200 else self._whole()
        text, usage, times = read
        if usage["completion_tokens"] != what.tokens:
            raise ValueError(f"{usage['completion_tokens']} tokens came instead of {what.tokens}")
        return Answer(text, usage["prompt_tokens"]), times

    def _whole(self) -> tuple[str, dict[str, Any], list[float]]:
        said = b"".join(piece for _, piece in self.pieces)
        if self.status != 200:
            raise ValueError(f"status {self.status}: {said[:300]!r}")
        document = json.loads(said)
        return document["choices"][0]["message"]["content"], document["usage"], [self.ended]

    def _stream(self) -> tuple[str, dict[str, Any], list[float]]:
        text, times, rest = "", [], b""
        usage: dict[str, Any] = {}
        for at, piece in self.pieces:
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: {"):
                    continue  # [DONE], comments
                document = json.loads(event[6:])
                usage = document.get("usage") or usage
                for choice in document.get("choices") or ():
                    if content := choice["delta"].get("content"):
                        text += content
                        times.append(at)
        if not usage or not times:
            raise ValueError(f"no whole answer came: {self.pieces[-1:]!r}")
        return text, usage, times


async def _ask_all(what: Load) -> tuple[Figures, list[Answer]]:
    host, port = what.address.split(":")
    loop = asyncio.get_running_loop()
    requests = [_request(what, what.first + number) for number in range(what.clients * what.rounds)]
    connections = [(await loop.create_connection(Connection, host, int(port)))[1] for _ in range(what.clients)]

    async def client(number: int) -> list[Exchange]:
        return [await connections[number].ask(request) for request in requests[number :: what.clients]]

    used, began = _cpu(), time.perf_counter()
    exchanges = await asyncio.gather(*map(client, range(what.clients)))
    seconds, used = time.perf_counter() - began, _cpu() - used

    answers, first, gaps = [], [], []
    for exchange in (exchanges[index % what.clients][index // what.clients] for index in range(len(requests))):
        answer, times = exchange.read(what)
        answers.append(answer)
        first.append((times[0] - exchange.sent) * 1000)
        gaps += [(after - before) * 1000 for before, after in itertools.pairwise(times)]
    figures = Figures(len(answers) * what.tokens, seconds, tuple(first), tuple(gaps), used / seconds)
    return figures, answers


def _request(what: Load, index: int) -> bytes:
    content = body(what.kind, index, tokens=what.tokens, stream=what.stream)
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {what.address}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "\r\n",
    )
    return "\r\n".join(head).encode() + content


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(words: Sequence[str] | None = None) -> None:
    """Ask as the JSON document on the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.clients", description=__doc__)
    parser.add_argument("load", type=json.loads, help="a JSON object with the fields of Load")
    figures, answers = asyncio.run(_ask_all(Load(**parser.parse_args(words).load)))
    json.dump({"figures": asdict(figures), "answers": [asdict(answer) for answer in answers]}, sys.stdout)


if __name__ == "__main__":
    main()
