"""A conversation: questions, and the answers that threads collect while the page comes and goes.

Streamlit ends a page's run whenever a person touches something. An answer outlives that, because a thread of its own
receives it; the page only shows how far it has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ui.client import Fault, Live, Piece, Service, ServiceError
from ui.picture import Picture

__all__ = ["Conversation", "Exchange", "Question", "Reply"]

UNWATCHED = 120.0  # seconds after which nobody reads on; browsers let a hidden page look about once a minute


@dataclass(frozen=True)
class Question:
    """What a person sent."""

    text: str
    pictures: tuple[Picture, ...] = ()

    def message(self) -> dict[str, Any]:
        """Write it in OpenAI's form."""
        if not self.pictures:
            return {"role": "user", "content": self.text}
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture.url}} for picture in self.pictures
        ]
        return {"role": "user", "content": [*parts, *([{"type": "text", "text": self.text}] if self.text else [])]}


class Reply:
    """An answer as far as it has arrived. Only its thread writes, except for `stop`."""

    def __init__(self) -> None:
        self.text = ""
        self.thought = ""  # shown, and never sent along: a model reads its answers alone
        self._thinking: tuple[float, float] | None = None  # from when to when
        self.live: Live | None = None
        self.finish = ""
        self.error: ServiceError | None = None
        self.stopped = False
        self._done = threading.Event()
        self._looked = time.monotonic()

    @classmethod
    def failed(cls, error: ServiceError) -> Reply:
        """Make one that never began."""
        reply = cls()
        reply.error = error
        reply._done.set()
        return reply

    @property
    def running(self) -> bool:
        """Whether more may come. Asking also tells that somebody still watches."""
        self._looked = time.monotonic()
        return not self._done.is_set()

    @property
    def settled(self) -> bool:
        """Whether it belongs to the conversation that is sent along."""
        return self._done.is_set() and self.error is None and bool(self.text)

    @property
    def thinking_time(self) -> float:
        """Seconds from the thought's first piece to the answer's; while there is none, to the latest of the thought."""
        began, ended = self._thinking or (0.0, 0.0)
        return ended - began

    def stop(self) -> None:
        """Take what has arrived for the whole; the service is told when its next piece comes."""
        self.stopped = True
        self._done.set()

    def receive(self, service: Service, messages: Sequence[dict[str, Any]]) -> None:
        """Collect the answer to `messages`, until it ends or nobody wants it."""
        try:
            with service.ask(messages) as answer:
                self.live = answer.live
                for piece in answer:
                    if self.stopped or time.monotonic() - self._looked > UNWATCHED:
                        self.stopped = True
                        return
                    self._take(piece)
                self.finish = answer.finish
        except ServiceError as error:
            if not self.stopped:
                self.error = error
        except Exception as error:
            self.error = self.error or ServiceError(Fault.STRANGE, str(error))
            raise  # into the journal
        finally:
            self._done.set()

    def _take(self, piece: Piece) -> None:
        now = time.monotonic()
        if not self.text and (piece.thought or self._thinking):
            began, _ = self._thinking or (now, now)
            self._thinking = began, now
        if piece.thought:
            self.thought += piece.text
        else:
            self.text += piece.text


@dataclass
class Exchange:
    """A question and its answer; another try puts a new answer in the old one's place."""

    question: Question
    reply: Reply


@dataclass
class Conversation:
    """All exchanges since the last "new chat"."""

    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self.exchanges) and self.exchanges[-1].reply.running

    def ask(self, service: Service, question: Question) -> None:
        """Put a question and return at once."""
        reply = self._begin(service, question, self.exchanges)
        self.exchanges.append(Exchange(question, reply))

    def refuse(self, question: Question, error: ServiceError) -> None:
        """Keep a question that could not be sent."""
        self.exchanges.append(Exchange(question, Reply.failed(error)))

    def retry(self, service: Service) -> None:
        """Put the last question again."""
        last = self.exchanges[-1]
        last.reply = self._begin(service, last.question, self.exchanges[:-1])

    def clear(self) -> None:
        """Begin anew."""
        if self.exchanges:
            self.exchanges[-1].reply.stop()
        self.exchanges.clear()

    @staticmethod
    def _begin(service: Service, question: Question, before: Sequence[Exchange]) -> Reply:
        """Send the question after all that was answered; what failed would only fail, or confuse, again."""
        messages: list[dict[str, Any]] = []
        for exchange in before:
            if exchange.reply.settled:
                messages += [exchange.question.message(), {"role": "assistant", "content": exchange.reply.text}]
        reply = Reply()
        arguments = (service, [*messages, question.message()])
        threading.Thread(target=reply.receive, args=arguments, name="answer", daemon=True).start()
        return reply
