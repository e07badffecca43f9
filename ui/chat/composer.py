"""The input of questions: what cannot be sent is refused in words before anything is sent, and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import streamlit as st

from ui.chat.messages import show_pictures
from ui.chat.received import take_missing
from ui.chat.texts import ChatTexts, chat_texts, escape
from ui.client import ServiceClient
from ui.conversation import Conversation, Question
from ui.picture import Limits, Picture, Reason, Refusal, accept
from ui.texts import Texts

__all__ = ["Attempt", "Draft", "compose", "edit_last", "read_input", "restore", "show_draft", "show_input", "submit"]

THUMBNAIL_WIDTH = 80  # pixels


@dataclass(frozen=True)
class Attempt:
    """What the user has sent off: a text, the files (name, data), and the names of those that did not arrive."""

    text: str
    files: Sequence[tuple[str, bytes]] = ()
    missing: Sequence[str] = ()


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


def submit(attempt: Attempt, draft: Draft, conversation: Conversation, client: ServiceClient) -> None:
    """Send a question with the draft's pictures and the attached ones, or keep all of it if a file is refused."""
    editing = draft.editing
    question = compose(attempt, draft, conversation.pictures(replacing_last=editing))
    if question is None:
        return
    if editing and not conversation.running:
        conversation.replace(client, question)
    else:
        conversation.ask(client, question)


def compose(attempt: Attempt, draft: Draft, earlier: Sequence[Picture] = ()) -> Question | None:
    """Return the question that can be sent, and clear the draft; None if a file is refused, and the draft keeps all.

    After a refusal it is kept until another file is attached or the user goes on without: a second Enter sends nothing.
    `earlier`: the pictures that the same request carries already.
    """
    if draft.refusals and not attempt.files and not attempt.missing:
        draft.text = attempt.text
        return None
    pictures, refusals = accept(attempt.files, (*earlier, *draft.pictures), Limits.from_environment())
    draft.pictures = (*draft.pictures, *pictures)
    draft.refusals = (*refusals, *(Refusal(name, Reason.MISSING) for name in attempt.missing))
    if draft.refusals:
        draft.text = attempt.text
        return None
    question = Question(attempt.text, draft.pictures)
    draft.clear()
    return question


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
        words.refusals[one.reason].format(name=escape(one.name) or words.a_file, found=one.found, limit=one.limit)
        for one in refusals
    ]
    return "\n\n".join([f"**{words.not_sent}**", *reasons, words.not_sent_hint])


def show_input(draft: Draft, conversation: Conversation, client: ServiceClient, texts: Texts) -> None:
    """Show the input; a question is sent, or waits for the end of the current reply."""
    attempt = read_input(texts.question, "question", draft, disabled=conversation.waiting is not None)
    if attempt:
        submit(attempt, draft, conversation, client)
        st.rerun()


def read_input(label: str, key: str, draft: Draft, *, disabled: bool = False) -> Attempt | None:
    """Show an input with files, and return what was sent off with it."""
    if draft.text is not None:
        # The browser's input ignores a text that equals the last one it was given, although it is empty by now.
        given = f"{key} given"
        again = draft.text == st.session_state.get(given)
        st.session_state[key] = st.session_state[given] = f"{draft.text} " if again else draft.text
        draft.text = None
    # No file_type: the browser would drop other files and send the question without them.
    submitted = st.chat_input(label, key=key, accept_file="multiple", disabled=disabled)
    if not submitted or isinstance(submitted, str):
        return None
    files = [(file.name, file.getvalue()) for file in submitted.files]
    attempt = Attempt(submitted.text.rstrip(), files, take_missing())
    return attempt if attempt.text or attempt.files or attempt.missing else None
