"""A conversation: questions, and replies that are received in threads.

Streamlit reruns a page at every interaction. A reply is received in its own thread, independent of these reruns; the
page shows its current state. A conversation is saved whenever it changes, a reply when it ends.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ui.chat.options import Options
from ui.client import Delta, Fault, LiveSlot, ServiceClient, ServiceError
from ui.picture import Picture

__all__ = ["Conversation", "Exchange", "Question", "Reply"]

VIEWER_TIMEOUT = 120.0  # seconds without a refresh after which a reply is stopped; hidden pages refresh once a minute
TITLE_LENGTH = 60  # characters

LEAST_SPAN = 0.05
"""Seconds. What arrives in a shorter time came in one piece, and its rate would say nothing."""


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
        self.reasoning_time = 0.0  # seconds from the first reasoning to the first text, or to the latest reasoning
        self.live: LiveSlot | None = None
        self.finish_reason = ""
        self.error: ServiceError | None = None
        self.stopped = False
        self.first_token_time: float | None = None  # seconds from the request
        self.token_rate: float | None = None  # tokens per second after the first, reasoning included
        self.total_time: float | None = None  # seconds from the request to the end of the answer
        self._asked_at = self._began_at = time.monotonic()
        self._reasons = False  # whether the first token is reasoning
        self._done = threading.Event()
        self._viewed_at = time.monotonic()

    @classmethod
    def ended(cls) -> Reply:
        """Return a reply that is not being received, to be filled in."""
        reply = cls()
        reply._done.set()
        return reply

    @property
    def complete(self) -> bool:
        """Whether the reply has ended; reading this is not viewing it."""
        return self._done.is_set()

    @property
    def running(self) -> bool:
        """Whether the reply is incomplete. Reading this also resets VIEWER_TIMEOUT."""
        self._viewed_at = time.monotonic()
        return not self._done.is_set()

    @property
    def sendable(self) -> bool:
        """Whether the exchange is part of later requests."""
        return self._done.is_set() and self.error is None and bool(self.text)

    def stop(self) -> None:
        """Stop receiving; the request is cancelled when the next delta arrives."""
        self.stopped = True
        self._done.set()

    def receive(self, client: ServiceClient, messages: Sequence[dict[str, Any]], fields: dict[str, Any]) -> None:
        """Receive the answer to `messages` until it ends, is stopped, or is no longer viewed."""
        self._asked_at = time.monotonic()
        try:
            with client.ask(messages, fields) as answer:
                self.live = answer.live
                for delta in answer:
                    self.live = answer.live
                    if self.stopped or time.monotonic() - self._viewed_at > VIEWER_TIMEOUT:
                        self.stopped = True
                        return
                    self._append(delta)
                self.finish_reason = answer.finish_reason
                self._measure(answer.tokens)
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
        if self.first_token_time is None:
            self._began_at, self.first_token_time = now, now - self._asked_at
            self._reasons = delta.reasoning
        if self._reasons and not self.text:
            self.reasoning_time = now - self._began_at
        if delta.reasoning:
            self.reasoning += delta.text
        else:
            self.text += delta.text

    def _measure(self, tokens: int | None) -> None:
        now = time.monotonic()
        span, self.total_time = now - self._began_at, now - self._asked_at
        if self.first_token_time is not None and tokens and tokens > 1 and span > LEAST_SPAN:
            self.token_rate = (tokens - 1) / span


@dataclass
class Exchange:
    """A question and its reply; a retry replaces the reply."""

    question: Question
    reply: Reply


@dataclass(eq=False)
class Conversation:
    """Exchanges with their settings; `save` is called after each change, also by the thread of a reply."""

    id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    name: str = ""  # given by the user
    options: Options = field(default_factory=Options)
    exchanges: list[Exchange] = field(default_factory=list)
    waiting: Question | None = None  # asked during a reply, sent when it has ended
    save: Callable[[Conversation], None] = field(default=lambda _: None, repr=False)

    @property
    def title(self) -> str:
        """The given name, or the beginning of the first question."""
        if self.name or not self.exchanges:
            return self.name
        question = self.exchanges[0].question
        words = " ".join(question.text.split()) or next((picture.name for picture in question.pictures), "")
        return words if len(words) <= TITLE_LENGTH else f"{words[: TITLE_LENGTH - 1]}…"

    @property
    def running(self) -> bool:
        """Whether the last reply is incomplete."""
        return bool(self.exchanges) and self.exchanges[-1].reply.running

    def pictures(self, *, replacing_last: bool = False) -> list[Picture]:
        """Return the pictures that the next request carries, without those of a question that it replaces."""
        previous = self.exchanges[:-1] if replacing_last else self.exchanges
        sent = [exchange for exchange in previous if exchange.reply.sendable or not exchange.reply.complete]
        return [picture for exchange in sent for picture in exchange.question.pictures]

    def ask(self, client: ServiceClient, question: Question) -> None:
        """Request the reply to a question, or let it wait for the end of the current reply; does not block."""
        if self.running:
            self.waiting = question
            return
        reply = Reply()
        self.exchanges = [*self.exchanges, Exchange(question, reply)]
        self._request(client, reply)

    def ask_waiting(self, client: ServiceClient) -> bool:
        """Request the reply to the question that waits, if the current one has ended; return whether that is so."""
        if self.waiting is None or self.running:
            return False
        question, self.waiting = self.waiting, None
        self.ask(client, question)
        return True

    def retry(self, client: ServiceClient) -> None:
        """Request the reply to the last question again."""
        self.replace(client, self.exchanges[-1].question)

    def replace(self, client: ServiceClient, question: Question) -> None:
        """Request the reply to a question in place of the last one."""
        self.exchanges = self.exchanges[:-1]
        self.ask(client, question)

    def stop(self) -> None:
        """Stop the last reply."""
        if self.exchanges and not self.exchanges[-1].reply.complete:
            self.exchanges[-1].reply.stop()
            self.save(self)

    def _request(self, client: ServiceClient, reply: Reply) -> None:
        """Request the reply to the last question, with all earlier exchanges except failed ones."""
        *previous, last = self.exchanges
        messages = self.options.messages()
        for exchange in previous:
            if exchange.reply.sendable:
                messages += [exchange.question.message(), {"role": "assistant", "content": exchange.reply.text}]
        messages.append(last.question.message())
        self.save(self)
        arguments = (reply, client, messages, self.options.fields())
        threading.Thread(target=self._receive, args=arguments, name="answer", daemon=True).start()

    def _receive(
        self, reply: Reply, client: ServiceClient, messages: list[dict[str, Any]], fields: dict[str, Any]
    ) -> None:
        try:
            reply.receive(client, messages, fields)
        finally:
            self.save(self)
