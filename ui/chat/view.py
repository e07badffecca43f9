"""The chat as it is drawn: the current conversation, its input, and its part of the sidebar."""

from __future__ import annotations

import streamlit as st

from ui.chat.browser import browser_id
from ui.chat.composer import Draft, edit_last, restore, show_draft, show_input
from ui.chat.examples import example_picture
from ui.chat.library import Library, open_library
from ui.chat.messages import NO_RETRY, show_question, show_reply
from ui.chat.panel import show_panel
from ui.chat.texts import chat_texts
from ui.client import ServiceClient
from ui.conversation import Conversation, Exchange, Question
from ui.texts import Texts

__all__ = ["show_chat"]

PARAMETER = "chat"  # of the page's URL: the conversation that a reload opens


def show_chat(client: ServiceClient, texts: Texts) -> None:
    """Draw the chat."""
    library = st.cache_resource(show_spinner=False)(open_library)()
    browser = browser_id(st.context.cookies)
    conversation = current_conversation(library, browser)
    draft: Draft = st.session_state.setdefault("draft", Draft())
    send_waiting(conversation, draft, client)
    with st.sidebar:
        chosen = show_panel(library, browser, conversation, texts)
    if chosen is not None:
        switch(chosen, draft)
    if not conversation.exchanges:
        show_start(conversation, client, texts)
    for exchange in conversation.exchanges:
        show_exchange(exchange, conversation, draft, client, texts)
    if conversation.waiting:
        show_waiting(conversation.waiting, conversation, draft, texts)
    show_draft(draft, texts)
    show_input(draft, conversation, client, texts)


def current_conversation(library: Library, browser: str | None) -> Conversation:
    """Return the conversation of this session, at first the one that the URL names."""
    conversation: Conversation | None = st.session_state.get("conversation")
    if conversation is None:
        conversation = library.open(browser, st.query_params.get(PARAMETER, "")) or library.new(browser)
        st.session_state["conversation"] = conversation
    if browser is None or not conversation.exchanges:
        st.query_params.pop(PARAMETER, None)
    elif st.query_params.get(PARAMETER) != conversation.id:
        st.query_params[PARAMETER] = conversation.id
    return conversation


def switch(conversation: Conversation, draft: Draft) -> None:
    """Show another conversation; a reply of the previous one is received to its end."""
    st.session_state["conversation"] = conversation
    draft.clear()
    st.rerun()


def send_waiting(conversation: Conversation, draft: Draft, client: ServiceClient) -> None:
    """Send the question that was typed during a reply; if that failed, put it back into the input."""
    if conversation.waiting is None or conversation.running:
        return
    if conversation.exchanges[-1].reply.error:
        restore(draft, conversation.waiting)
        conversation.waiting = None
    else:
        conversation.ask_waiting(client)


def show_start(conversation: Conversation, client: ServiceClient, texts: Texts) -> None:
    """Show the greeting, and questions that can be asked by a click."""
    st.markdown(f"### {texts.title}")
    st.caption(texts.greeting)
    with st.container(horizontal=True):
        for number, (text, name) in enumerate(chat_texts(texts).examples):
            icon = ":material/image:" if name else ":material/chat_bubble:"
            if st.button(text, key=f"example-{number}", icon=icon):
                pictures = (example_picture(name),) if name else ()
                conversation.ask(client, Question(text, pictures))
                st.rerun()


def show_exchange(
    exchange: Exchange, conversation: Conversation, draft: Draft, client: ServiceClient, texts: Texts
) -> None:
    """Show a question and its reply; the last one can be asked again and edited."""
    with st.chat_message("user", avatar=":material/person:"):
        show_question(exchange.question)
    last = exchange is conversation.exchanges[-1]
    with st.chat_message("assistant", avatar=":material/auto_awesome:"):
        running = last and exchange.reply.running
        show_reply(exchange.reply, texts, running=running)
        if last and not running:
            show_actions(exchange, conversation, draft, client, texts)


def show_actions(
    exchange: Exchange, conversation: Conversation, draft: Draft, client: ServiceClient, texts: Texts
) -> None:
    """Show the buttons below the last reply."""
    words, error = chat_texts(texts), exchange.reply.error
    with st.container(horizontal=True):
        label = texts.retry if error else words.regenerate
        can_retry = error is None or error.fault not in NO_RETRY
        if can_retry and st.button(
            label, key="retry", icon=":material/refresh:", type="secondary" if error else "tertiary"
        ):
            conversation.retry(client)
            st.rerun()
        if not draft.editing and st.button(words.edit, key="edit", icon=":material/edit:", type="tertiary"):
            edit_last(draft, conversation)
            st.rerun()


def show_waiting(question: Question, conversation: Conversation, draft: Draft, texts: Texts) -> None:
    """Show a question that was typed during a reply."""
    words = chat_texts(texts)
    with st.chat_message("user", avatar=":material/schedule:"):
        show_question(question)
        st.caption(words.waiting_question)
        if st.button(words.cancel, key="cancel-waiting", icon=":material/close:", type="tertiary"):
            restore(draft, question)
            conversation.waiting = None
            st.rerun()
