"""The input of questions: what cannot be sent is refused in words before anything is sent, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from ui.chat.messages import show_pictures
from ui.chat.texts import ChatTexts, chat_texts, escape
from ui.client import ServiceClient
from ui.conversation import Conversation, Question
from ui.picture import Limits, Picture, Refusal, accept
from ui.texts import Texts

__all__ = ["Draft", "edit_last", "restore", "show_draft", "show_input", "submit"]

THUMBNAIL_WIDTH = 80  # pixels


@dataclass
class Draft:
    """What is kept of a question that is not sent yet; its text is in the input."""

    text: str | None = None  # to be put into the input at the next run
    pictures: tuple[Picture, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    editing: bool = False  # the question replaces the last one

    def clear(self) -> None:
        """Forget everything but the text in the input."""
        self.text, self.pictures, self.refusals, self.editing = None, (), (), False


def restore(draft: Draft, question: Question, *, editing: bool = False) -> None:
    """Put a question back into the input."""
    draft.text, draft.pictures, draft.refusals, draft.editing = question.text, question.pictures, (), editing


def edit_last(draft: Draft, conversation: Conversation) -> None:
    """Put the last question into the input, to be replaced."""
    restore(draft, conversation.exchanges[-1].question, editing=True)


def submit(
    text: str, files: Sequence[tuple[str, bytes]], draft: Draft, conversation: Conversation, client: ServiceClient
) -> None:
    """Send a question with the draft's pictures and files (name, data), or keep all of it if a file is refused.

    After a refusal it is kept until another file is attached or the user goes on without: a second Enter sends nothing.
    """
    if draft.refusals and not files:
        draft.text = text
        return
    before = (*conversation.pictures(replacing_last=draft.editing), *draft.pictures)
    pictures, draft.refusals = accept(files, before, Limits.from_environment())
    draft.pictures = (*draft.pictures, *pictures)
    if draft.refusals:
        draft.text = text
        return
    question, editing = Question(text, draft.pictures), draft.editing
    draft.clear()
    if editing and not conversation.running:
        conversation.replace(client, question)
    else:
        conversation.ask(client, question)


def show_draft(draft: Draft, texts: Texts) -> None:
    """Show what is kept, and why it was not sent."""
    words = chat_texts(texts)
    if draft.editing:
        st.caption(f":material/edit: {words.editing}")
    if draft.refusals:
        st.warning(refusal_text(draft.refusals, words), icon=":material/block:")
    if draft.pictures:
        show_pictures(draft.pictures, THUMBNAIL_WIDTH)
    with st.container(horizontal=True):
        if draft.refusals and st.button(words.leave_out, key="leave-out", icon=":material/check:"):
            draft.refusals = ()
            st.rerun()
        if draft.pictures and st.button(words.remove_pictures, key="remove", icon=":material/hide_image:"):
            draft.pictures = ()
            st.rerun()
        if draft.editing and st.button(words.cancel, key="cancel", icon=":material/close:"):
            draft.clear()
            draft.text = ""
            st.rerun()


def refusal_text(refusals: Sequence[Refusal], words: ChatTexts) -> str:
    """Return why files were not sent, as Markdown."""
    reasons = [
        words.refusals[one.reason].format(name=escape(one.name), found=one.found, limit=one.limit) for one in refusals
    ]
    return "\n\n".join([f"**{words.not_sent}**", *reasons, words.not_sent_hint])


def show_input(draft: Draft, conversation: Conversation, client: ServiceClient, texts: Texts) -> None:
    """Show the input; a question is sent, or waits for the end of the current reply."""
    if draft.text is not None:
        st.session_state["question"], draft.text = draft.text, None
    # No file_type: the browser would drop other files and send the question without them.
    submitted = st.chat_input(
        texts.question, key="question", accept_file="multiple", disabled=conversation.waiting is not None
    )
    if submitted and not isinstance(submitted, str) and (submitted.text.strip() or submitted.files):
        files = [(file.name, file.getvalue()) for file in submitted.files]
        submit(submitted.text, files, draft, conversation, client)
        st.rerun()
