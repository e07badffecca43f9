"""What operators did on this host, with the output of glmctl while it runs and afterwards."""

from __future__ import annotations

import os
import shlex
import textwrap
from datetime import tzinfo
from pathlib import Path

import streamlit as st

from service.contract import operations
from service.contract.operations import Operation
from ui.blocks import table
from ui.figures import clock, moment
from ui.operate_texts import OperateTexts

__all__ = ["BEGUN", "INTERVAL", "outcome", "recent", "show_operations", "show_output", "shown", "state_directory"]

BEGUN = "begun"  # id of an operation that the session has begun, and not shown yet
INTERVAL = "1s"  # between two looks at the output
LISTED = 20
LINES = 80  # of the output; a table in it does not wrap


def state_directory() -> Path:
    """Return the state directory of the host, GLM_STATE."""
    return Path(os.environ.get("GLM_STATE") or "/var/lib/glm")


def recent() -> list[Operation]:
    """Return the last operations, newest first."""
    return operations.newest(state_directory(), LISTED)


def show_output(texts: OperateTexts, where: tzinfo) -> None:
    """Show the output of an operation while it runs, at first of the last one; the address of the page names it."""
    if recent():
        st.fragment(_output, run_every=INTERVAL)(texts, where)


def show_operations(texts: OperateTexts, where: tzinfo) -> None:
    """Show the last operations, newest first."""
    st.markdown(f"### {texts.operations}")
    st.fragment(_list, run_every=INTERVAL)(texts, where)


def shown(text: str) -> str:
    """Return the end of an output, without the indentation that all lines have."""
    return "\n".join(textwrap.dedent(text).rstrip().splitlines()[-LINES:])


def _output(texts: OperateTexts, where: tzinfo) -> None:
    by_id = {one.id: one for one in recent()}
    named = st.query_params.get("operation")
    if (begun := st.session_state.pop(BEGUN, None)) in by_id:
        st.session_state["operation"] = begun
    if st.session_state.get("operation") not in by_id:
        st.session_state["operation"] = named if named in by_id else next(iter(by_id))
    chosen = st.selectbox(
        texts.operation, list(by_id), key="operation", format_func=lambda name: _title(by_id[name], texts, where)
    )
    st.query_params["operation"] = chosen
    operation = by_id[chosen]
    text, is_running = operations.output(state_directory(), operation)
    colour, word = outcome(operation, texts, is_running=is_running)
    st.markdown(f"`{shlex.join(['glmctl', *operation.arguments])}` :{colour}-badge[{word}]")
    st.code(shown(text) or texts.silent, language=None)


def _list(texts: OperateTexts, where: tzinfo) -> None:
    found = recent()
    if not found:
        st.caption(texts.none_yet)
        return
    titles = [texts.began, texts.operator, texts.command, texts.outcome]
    st.html(table(texts.operations, titles, [_row(one, texts, where) for one in found]))


def outcome(operation: Operation, texts: OperateTexts, *, is_running: bool) -> tuple[str, str]:
    """Return how an operation ended, as a colour and a word."""
    if operation.code is not None:
        return ("green", texts.done) if operation.code == 0 else ("red", texts.failed.format(code=operation.code))
    return ("blue", texts.running) if is_running else ("gray", texts.lost)


def _row(operation: Operation, texts: OperateTexts, where: tzinfo) -> list[str]:
    is_running = operation.code is None and operations.output(state_directory(), operation)[1]
    word = outcome(operation, texts, is_running=is_running)[1]
    return [_began(operation, where), operation.operator, shlex.join(operation.arguments), word]


def _title(operation: Operation, texts: OperateTexts, where: tzinfo) -> str:
    by = texts.by.format(name=operation.operator, at=_began(operation, where))
    return f"{' '.join(operation.arguments)} · {by}"


def _began(operation: Operation, where: tzinfo) -> str:
    began = moment(operation.started_at)
    return f"{began.astimezone(where):%Y-%m-%d} {clock(operation.started_at, where)}" if began else ""
