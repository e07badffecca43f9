"""The checks of a release: questions that it must answer before it becomes ready, and again before the cutover."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from service.contract.fields import from_document

__all__ = ["DEFAULT_CHECKS", "Check", "parse"]

_SHOWN = 200  # characters of a reply that a failure quotes


@dataclass(frozen=True)
class Check:
    """One question."""

    question: str
    answer: str | None = None
    """Text that must occur in the reply, ignoring case; None: any reply that is not empty passes."""
    image: str | None = None
    """A path relative to the checks file, in a release relative to its directory; or a data URL."""
    name: str | None = None
    max_tokens: int = 32

    def judge(self, reply: str) -> str | None:
        """Return None if `reply` passes, else the failure."""
        if self.answer is None:
            return None if reply.strip() else self.failure("the reply is empty")
        if self.answer.casefold() in reply.casefold():
            return None
        return self.failure(f"expected {self.answer!r} in the answer, got {reply[:_SHOWN]!r}")

    def failure(self, fault: str) -> str:
        """Return the message of a failed check; `fault` is its reason."""
        asked = f"asked {self.question!r}, " if self.name else ""
        return f"check {self.name or self.question!r} failed: {asked}{fault}"


DEFAULT_CHECKS = (Check("Are you there?", answer="", max_tokens=1),)
"""For a release without checks. Any reply passes, also an empty one: one token may be only part of a character."""


def parse(documents: Iterable[object]) -> tuple[Check, ...]:
    """Make checks of JSON objects; raises ValueError that names the field at fault."""
    return tuple(_parse(document, f"checks[{number}]") for number, document in enumerate(documents))


def _parse(document: object, where: str) -> Check:
    check = from_document(Check, document, where)
    known = {field.name for field in fields(Check)}
    if isinstance(document, dict) and (unknown := sorted(document.keys() - known)):
        raise ValueError(f"{where}.{unknown[0]} is not a field of a check")
    if check.max_tokens < 1:
        raise ValueError(f"{where}.max_tokens is {check.max_tokens}, not at least 1")
    return check
