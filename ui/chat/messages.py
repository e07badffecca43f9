"""Drawing of questions and replies."""

from __future__ import annotations

import streamlit as st

from ui.chat.texts import ChatTexts, chat_texts
from ui.client import Fault
from ui.conversation import Question, Reply
from ui.picture import Picture
from ui.texts import Texts

__all__ = ["NO_RETRY", "show_pictures", "show_question", "show_reply"]

REPLY_INTERVAL = "200ms"  # between two refreshes of an incomplete reply
PICTURE_WIDTH = 200  # pixels
LONG_REASONING = 600  # characters; longer reasoning scrolls in a box of REASONING_HEIGHT while it is received
REASONING_HEIGHT = 220  # pixels
NO_RETRY = {Fault.TOO_LONG}  # a retry would fail again


def show_question(question: Question) -> None:
    """Show a question and its pictures."""
    if question.pictures:
        show_pictures(question.pictures, PICTURE_WIDTH)
    if question.text:
        st.text(question.text)


def show_pictures(pictures: tuple[Picture, ...], width: int) -> None:
    """Show pictures beside each other."""
    with st.container(horizontal=True):
        for picture in pictures:
            st.image(picture.data, width=width, alt=picture.name)


def show_reply(reply: Reply, texts: Texts, *, running: bool) -> None:
    """Show a reply; one that runs is refreshed until it ends."""
    if running:
        st.fragment(show_incomplete, run_every=REPLY_INTERVAL)(reply, texts)
        return
    with st.container():  # a fragment has one too: the same element tree keeps an expander open when the reply ends
        show_complete(reply, texts)


def show_partial(reply: Reply, texts: Texts) -> None:
    """Show what has come of a reply; the page runs again when it has ended."""
    if not reply.running:
        st.rerun()
    text = reply.text  # read once: another thread appends to it
    show_reasoning(reply, texts, ended=bool(text))
    if text:
        st.markdown(f"{text} ▍")
    elif not reply.reasoning:
        st.markdown(f":gray[{texts.waiting}]")


def show_incomplete(reply: Reply, texts: Texts) -> None:
    """Show a reply that is being received, with where it comes from and a way to stop it."""
    show_partial(reply, texts)
    show_origin(reply, texts)
    if st.button(texts.stop, key="stop", icon=":material/stop_circle:", type="tertiary"):
        reply.stop()  # its thread then saves the conversation
        st.rerun()


def show_complete(reply: Reply, texts: Texts) -> None:
    """Show a reply that has ended or failed."""
    show_reasoning(reply, texts, ended=True)
    if reply.text:
        st.markdown(reply.text)
    elif reply.error is None:
        st.markdown(f":gray[{texts.no_answer_begun if reply.reasoning or reply.stopped else texts.empty}]")
    notes = [texts.stopped] * reply.stopped + [texts.length_limit] * (reply.finish_reason == "length")
    show_origin(reply, texts, *notes, *timing(reply, chat_texts(texts)))
    if reply.error:
        description, hint = texts.faults[reply.error.fault]
        lines = [f"**{description}**"]
        if reply.error.detail:
            lines.append(texts.service_message.format(detail=reply.error.detail))
        st.warning("  \n".join([*lines, hint]), icon=":material/error:")


def show_reasoning(reply: Reply, texts: Texts, *, ended: bool) -> None:
    """Show the reasoning, expanded until the answer begins."""
    if not reply.reasoning:
        return
    label, icon = texts.thinking, "spinner"
    if ended:
        seconds, icon = reply.reasoning_time, ":material/lightbulb:"
        label = texts.thought.format(seconds=round(seconds)) if seconds >= 1 else texts.thought_briefly
    tall = not ended and len(reply.reasoning) > LONG_REASONING
    with (
        st.expander(label, expanded=not (ended and reply.text), icon=icon, type="compact"),
        st.container(height=REASONING_HEIGHT if tall else "content", border=False, autoscroll=not ended),
    ):
        st.markdown(reply.reasoning)


def show_origin(reply: Reply, texts: Texts, *notes: str) -> None:
    """Show the version and slot of a reply, and notes."""
    if reply.live and reply.live.version:
        source = texts.answered_by.format(version=reply.live.version, slot=reply.live.slot)
        st.caption(" · ".join([source, *notes]))


def timing(reply: Reply, words: ChatTexts) -> list[str]:
    """Return the time to the first token and the rate of those after it, as far as they are known."""
    notes = []
    if reply.first_token_time is not None:
        notes.append(words.delay.format(seconds=f"{reply.first_token_time:.2f}"))
    if reply.token_rate is not None:
        notes.append(words.speed.format(rate=f"{reply.token_rate:.3g}"))
    return notes
