"""The checks of a release: parsed strictly, and judged alike by both programs."""

from __future__ import annotations

import re

import pytest

from service.contract.checks import DEFAULT_CHECKS, Check, parse


def test_checks_are_parsed_with_defaults() -> None:
    """Absent and null fields have their defaults."""
    assert parse([{"question": "Why?"}, {"question": "Hm?", "answer": None, "max_tokens": 3}]) == (
        Check("Why?", answer=None, image=None, name=None, max_tokens=32),
        Check("Hm?", max_tokens=3),
    )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"answer": "red"}, "checks[1].question is missing"),
        ({"question": 7}, "checks[1].question is int, not str"),
        ({"question": "?", "anwser": "red"}, "checks[1].anwser is not a field of a check"),
        ({"question": "?", "max_tokens": "32"}, "checks[1].max_tokens is str, not int"),
        ({"question": "?", "max_tokens": True}, "checks[1].max_tokens is bool, not int"),
        ({"question": "?", "max_tokens": 0}, "checks[1].max_tokens is 0, not at least 1"),
        ("?", "checks[1] is not a JSON object"),
    ],
)
def test_an_invalid_check_is_refused_with_its_field(document: object, message: str) -> None:
    """Unknown fields and wrong types are refused."""
    with pytest.raises(ValueError, match=re.escape(message)):
        parse([{"question": "fine"}, document])


@pytest.mark.parametrize(
    ("check", "reply", "failure"),
    [
        (Check("Where?", answer="STRASSE"), "In der Straße.", None),
        (Check("?", answer="red"), "A RED circle.", None),
        (
            Check("What?", answer="red", name="colour"),
            "blue",
            "check 'colour' failed: asked 'What?', expected 'red' in the answer, got 'blue'",
        ),
        (Check("What?", answer="red"), "", "check 'What?' failed: expected 'red' in the answer, got ''"),
        (Check("What?"), "anything", None),
        (Check("What?"), " \n", "check 'What?' failed: the reply is empty"),
        (DEFAULT_CHECKS[0], "", None),
    ],
)
def test_a_reply_is_judged(check: Check, reply: str, failure: str | None) -> None:
    """The answer must occur in the reply, in any case; an empty reply fails, but for the default check."""
    assert check.judge(reply) == failure


def test_a_long_reply_is_cut_in_the_failure() -> None:
    """A failure quotes 200 characters."""
    failure = Check("What?", answer="red").judge("x" * 1000)
    assert failure is not None
    assert failure.count("x") == 201  # one in "expected"
