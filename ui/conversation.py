"""A conversation: questions, and replies that are received in threads.

Streamlit reruns a page at every interaction. A reply is received in its own thread, independent of these reruns; the
page shows its current state.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ui.client import Delta, Fault, LiveSlot, ServiceClient, ServiceError
from ui.picture import Picture

__all__ = ["Conversation", "Exchange", "Question", "Reply"]

VIEWER_TIMEOUT = 120.0  # seconds without a refresh after which a reply is stopped; hidden pages refresh once a minute


@dataclass(frozen=True)
class Question:
    """A question with its pictures."""

    text: str
    pictures: tuple[Picture, ...] = ()

    def message(self) -> dict[str, Any]:
        """Return the message in OpenAI's format."""
        if not self.pictures:
            return {"role": "user", "content": self.text}
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.url}} for picture in self.pictures
        ]
        return {"role": "user", "content": [*parts, *([{"type": "text", "text": self.text}] if self.text else [])]}


class Reply:
    """An answer, as received so far. Only its thread changes it, except for `stop`."""

    def __init__(self) -> None:
        self.text = ""
        self.reasoning = ""  # displayed, but not sent back to the model
        self._reasoning_span: tuple[float, float] | None = None  # begin and end, monotonic
        self.live: LiveSlot | None = None
        self.finish_reason = ""
        self.error: ServiceError | None = None
        self.stopped = False
        self._done = threading.Event()
        self._viewed_at = time.monotonic()

    @classmethod
    def failed(cls, error: ServiceError) -> Reply:
        """Return a reply that failed before it was requested."""
        reply = cls()
        reply.error = error
        reply._done.set()
        return reply

    @property
    def running(self) -> bool:
        """Whether the reply is incomplete. Reading this also resets VIEWER_TIMEOUT."""
        self._viewed_at = time.monotonic()
        return not self._done.is_set()

    @property
    def sendable(self) -> bool:
        """Whether the exchange is part of later requests."""
        return self._done.is_set() and self.error is None and bool(self.text)

    @property
    def reasoning_time(self) -> float:
        """Seconds from the first reasoning to the first text, or to the latest reasoning if there is no text yet."""
        began, ended = self._reasoning_span or (0.0, 0.0)
        return ended - began

    def stop(self) -> None:
        """Stop receiving; the request is cancelled when the next delta arrives."""
        self.stopped = True
        self._done.set()

    def receive(self, client: ServiceClient, messages: Sequence[dict[str, Any]]) -> None:
        """Receive the answer to `messages` until it ends, is stopped, or is no longer viewed."""
        try:
            with client.ask(messages) as answer:
                self.live = answer.live
                for delta in answer:
                    self.live = answer.live
                    if self.stopped or time.monotonic() - self._viewed_at > VIEWER_TIMEOUT:
                        self.stopped = True
                        return
                    self._append(delta)
                self.finish_reason = answer.finish_reason
        except ServiceError as error:
            if not self.stopped:
                self.error = error
        except Exception as error:
            self.error = self.error or ServiceError(Fault.INVALID_RESPONSE, str(error))
            raise  # logged to the journal
        finally:
            self._done.set()

    def _append(self, delta: Delta) -> None:
        now = time.monotonic()
        if not self.text and (delta.reasoning or self._reasoning_span):
            began, _ = self._reasoning_span or (now, now)
            self._reasoning_span = began, now
        if delta.reasoning:
            self.reasoning += delta.text
        else:
            self.text += delta.text


@dataclass
class Exchange:
    """A question and its reply; a retry replaces the reply."""

    question: Question
    reply: Reply


@dataclass
class Conversation:
    """All exchanges since the last "new chat"."""

    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether the last reply is incomplete."""
        return bool(self.exchanges) and self.exchanges[-1].reply.running

    def ask(self, client: ServiceClient, question: Question) -> None:
        """Request the reply to a question; does not block."""
        reply = self._request(client, question, self.exchanges)
        self.exchanges.append(Exchange(question, reply))

    def refuse(self, question: Question, error: ServiceError) -> None:
        """Add a question that could not be sent."""
        self.exchanges.append(Exchange(question, Reply.failed(error)))

    def retry(self, client: ServiceClient) -> None:
        """Request the reply to the last question again."""
        last = self.exchanges[-1]
        last.reply = self._request(client, last.question, self.exchanges[:-1])

    def clear(self) -> None:
        """Stop the last reply and remove all exchanges."""
        if self.exchanges:
            self.exchanges[-1].reply.stop()
        self.exchanges.clear()

    @staticmethod
    def _request(client: ServiceClient, question: Question, previous: Sequence[Exchange]) -> Reply:
        """Request the reply to a question, with all earlier exchanges except failed ones."""
        messages: list[dict[str, Any]] = []
        for exchange in previous:
            if exchange.reply.sendable:
                messages += [exchange.question.message(), {"role": "assistant", "content": exchange.reply.text}]
        reply = Reply()
        arguments = (client, [*messages, question.message()])
        threading.Thread(target=reply.receive, args=arguments, name="answer", daemon=True).start()
        return reply
