"""Concurrent chat clients in a process of their own.

The process shares the machine with the server that it measures, so it does little while the clock runs: requests are
built before, and responses are kept with their times and parsed after.
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

from tests.bench.measurement import Measurement
from tests.bench.prompts import Kind, body

__all__ = ["Answer", "ChatLoad", "run"]


@dataclass(frozen=True)
class ChatLoad:
    """`clients` concurrent clients that send `rounds` requests each to `address`, with prompts from `first` on."""

    address: str
    kind: Kind
    clients: int
    rounds: int
    first: int
    tokens: int
    stream: bool = True


@dataclass(frozen=True)
class Answer:
    """A complete answer."""

    text: str
    prompt_tokens: int


def run(load: ChatLoad) -> tuple[Measurement, list[Answer]]:
    """Run the clients in a child process; raises CalledProcessError if one answer is not as requested."""
    command = [sys.executable, "-m", "tests.bench.chat_load", json.dumps(asdict(load))]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    measurement = result["measurement"]
    return (
        Measurement(**measurement | {"first": tuple(measurement["first"]), "gaps": tuple(measurement["gaps"])}),
        [Answer(**answer) for answer in result["answers"]],
    )


class Connection(asyncio.Protocol):
    """One keep-alive connection; `pieces` are the parts of the current response's body, each with its time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._now = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Record the time, and parse."""
        self._now = time.perf_counter()
        self._parser.feed_data(data)

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body."""
        self.pieces.append((self._now, piece))

    def on_message_complete(self) -> None:
        """End the wait in `send`."""
        self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the request in flight."""
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))

    async def send(self, request: bytes) -> Exchange:
        """Send a request and wait for its complete response."""
        self._done = asyncio.get_running_loop().create_future()
        self.pieces: list[tuple[float, bytes]] = []
        sent = time.perf_counter()
        self._transport.write(request)
        await self._done
        return Exchange(sent, self._now, self._parser.get_status_code(), self.pieces)


@dataclass(frozen=True)
class Exchange:
    """The times of a request, and its response, not parsed yet."""

    sent: float
    ended: float
    status: int
    pieces: list[tuple[float, bytes]]

    def parse(self, load: ChatLoad) -> tuple[Answer, list[float]]:
        """Return the answer and the time of each piece of its text; raises ValueError unless it has `tokens`."""
        streamed = load.stream and self.status == 200
        text, usage, times = self._parse_stream() if streamed else self._parse_body()
        if usage["completion_tokens"] != load.tokens:
            raise ValueError(f"the answer has {usage['completion_tokens']} tokens instead of {load.tokens}")
        return Answer(text, usage["prompt_tokens"]), times

    def _parse_body(self) -> tuple[str, dict[str, Any], list[float]]:
        body = b"".join(piece for _, piece in self.pieces)
        if self.status != 200:
            raise ValueError(f"status {self.status}: {body[:300]!r}")
        document = json.loads(body)
        return document["choices"][0]["message"]["content"], document["usage"], [self.ended]

    def _parse_stream(self) -> tuple[str, dict[str, Any], list[float]]:
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
            raise ValueError(f"the stream is not complete: {self.pieces[-1:]!r}")
        return text, usage, times


async def _send_all(load: ChatLoad) -> tuple[Measurement, list[Answer]]:
    host, port = load.address.split(":")
    loop = asyncio.get_running_loop()
    requests = [_request(load, load.first + number) for number in range(load.clients * load.rounds)]
    connections = [(await loop.create_connection(Connection, host, int(port)))[1] for _ in range(load.clients)]

    async def client(number: int) -> list[Exchange]:
        return [await connections[number].send(request) for request in requests[number :: load.clients]]

    cpu, started = _cpu_seconds(), time.perf_counter()
    exchanges = await asyncio.gather(*map(client, range(load.clients)))
    seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu

    answers, first, gaps = [], [], []
    for exchange in (exchanges[index % load.clients][index // load.clients] for index in range(len(requests))):
        answer, times = exchange.parse(load)
        answers.append(answer)
        first.append((times[0] - exchange.sent) * 1000)
        gaps += [(after - before) * 1000 for before, after in itertools.pairwise(times)]
    measurement = Measurement(len(answers) * load.tokens, seconds, tuple(first), tuple(gaps), cpu / seconds)
    return measurement, answers


def _request(load: ChatLoad, index: int) -> bytes:
    content = body(load.kind, index, tokens=load.tokens, stream=load.stream)
    head = (
        "POST /v1/chat/completions HTTP/1.1",
        f"Host: {load.address}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        "\r\n",
    )
    return "\r\n".join(head).encode() + content


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Run one load, and print the measurement and the answers as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.chat_load", description=__doc__)
    parser.add_argument("load", type=json.loads, help="a JSON object with the fields of ChatLoad")
    measurement, answers = asyncio.run(_send_all(ChatLoad(**parser.parse_args(argv).load)))
    json.dump({"measurement": asdict(measurement), "answers": [asdict(answer) for answer in answers]}, sys.stdout)


if __name__ == "__main__":
    main()
