"""The chat's part of the sidebar: conversations, settings and export."""

from __future__ import annotations

import logging
import sqlite3

import streamlit as st

from ui.chat.documents import to_json, to_markdown
from ui.chat.library import Library
from ui.chat.options import Options
from ui.chat.texts import ChatTexts, chat_texts, escape
from ui.conversation import Conversation
from ui.texts import Texts

__all__ = ["show_panel"]

MAX_SYSTEM_PROMPT = 20_000  # characters
MAX_NAME = 100  # characters

THINKING = {"default": None, "on": True, "off": False}  # Options.thinking by the names in the texts

logger = logging.getLogger(__name__)


def show_panel(library: Library, browser: str | None, conversation: Conversation, texts: Texts) -> Conversation | None:
    """Draw it; return the conversation that is to be shown instead, if one was chosen."""
    words = chat_texts(texts)
    chosen = None
    if st.button(texts.new_chat, key="new", icon=":material/edit_square:", width="stretch"):
        chosen = library.new(browser)
    with st.popover(words.settings, icon=":material/tune:", width="stretch"):
        show_settings(conversation, words)
    if conversation.exchanges:
        with st.popover(words.conversation, icon=":material/more_horiz:", width="stretch"):
            if show_conversation_menu(library, browser, conversation, words):
                chosen = library.new(browser)
    st.caption(words.conversations)
    for summary in library.list(browser):
        current = summary.id == conversation.id
        if st.button(
            escape(summary.title) or "…",
            key=f"open-{summary.id}",
            type="secondary" if current else "tertiary",
            width="stretch",
            disabled=current,
        ):
            chosen = library.open(browser, summary.id)
    st.caption(words.kept if browser else words.not_kept)
    return chosen


def show_settings(conversation: Conversation, words: ChatTexts) -> None:
    """Show the settings of a conversation, and keep what is changed."""
    options, suffix = conversation.options, conversation.id  # in the keys: each conversation has its own widgets

    def keep() -> None:
        """Only when the user has changed one: another page of this browser may show older values."""
        values = {
            name: st.session_state[f"{name}-{suffix}"] for name in ("system", "temperature", "max_tokens", "thinking")
        }
        conversation.options = Options(**{**values, "thinking": THINKING[values["thinking"]]})
        conversation.save(conversation)

    st.text_area(words.system, options.system, key=f"system-{suffix}", max_chars=MAX_SYSTEM_PROMPT, on_change=keep)
    st.number_input(
        words.temperature,
        0.0,
        2.0,
        options.temperature,
        0.1,
        key=f"temperature-{suffix}",
        placeholder=words.default,
        on_change=keep,
    )
    st.number_input(
        words.max_tokens,
        1,
        None,
        options.max_tokens,
        64,
        key=f"max_tokens-{suffix}",
        placeholder=words.default,
        on_change=keep,
    )
    st.selectbox(
        words.thinking,
        list(THINKING),
        list(THINKING.values()).index(options.thinking),
        key=f"thinking-{suffix}",
        format_func=words.thinking_choices.__getitem__,
        on_change=keep,
    )


def show_conversation_menu(library: Library, browser: str | None, conversation: Conversation, words: ChatTexts) -> bool:
    """Show what can be done with a conversation; return whether it was deleted."""
    key = f"name-{conversation.id}"

    def rename() -> None:
        conversation.name = st.session_state[key].strip()
        conversation.save(conversation)

    st.text_input(
        words.name,
        conversation.name,
        key=key,
        max_chars=MAX_NAME,
        placeholder=conversation.title,
        on_change=rename,
    )
    st.download_button(
        words.export_markdown,
        lambda: to_markdown(conversation, you=words.you, thought=words.thought, picture=words.picture),
        "glm-chat.md",
        "text/markdown",
        key="markdown",
        icon=":material/article:",
        on_click="ignore",
        width="stretch",
    )
    st.download_button(
        words.export_json,
        lambda: to_json(conversation, indent=1),
        "glm-chat.json",
        "application/json",
        key="json",
        icon=":material/data_object:",
        on_click="ignore",
        width="stretch",
    )
    if st.button(words.delete, key="delete", icon=":material/delete:", width="stretch"):
        try:
            library.delete(browser, conversation)
        except sqlite3.Error:
            logger.exception("a conversation cannot be deleted")
            st.error(words.delete_failed)
        else:
            return True
    return False
