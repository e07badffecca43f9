"""The chat page; run by `app.py`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import streamlit as st

from ui.client import Fault, LiveSlot, ServiceClient, ServiceError, api_key, service_address
from ui.conversation import Conversation, Exchange, Question, Reply
from ui.icon import page_icon
from ui.language import choose_language
from ui.picture import EXTENSIONS, Picture, prepare
from ui.texts import LANGUAGES, Texts

LIVE_INTERVAL = "1s"  # between two requests for the live version
REPLY_INTERVAL = "200ms"  # between two refreshes of an incomplete reply
MAX_CHANGES = 5  # cutovers listed in the sidebar
PICTURE_WIDTH = 200  # pixels
LONG_REASONING = 600  # characters; longer reasoning scrolls in a box of REASONING_HEIGHT while it is received
REASONING_HEIGHT = 220  # pixels
NO_RETRY = {Fault.INVALID_PICTURE, Fault.TOO_LONG}  # a retry would fail again

# Only what a Streamlit theme cannot express.
STYLE = """
<style>
  .stMainBlockContainer { max-width: 46rem; padding-top: 3.5rem; }
  .stSidebar h3 { padding: 0 0 .5rem; }
  .stChatMessage { padding-block: .5rem; }
  .stChatMessage pre, .stChatMessage [data-testid="stText"] { white-space: pre-wrap; overflow-wrap: anywhere; }
  .stChatMessage [data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; }
  .stChatMessage [data-testid="stExpanderDetails"] { border-left: 2px solid #8886; padding-left: .75rem; opacity: .75; }
  .stStatusWidget, [data-testid="stStatusWidget"] { display: none; }
  [data-stale="true"] { opacity: 1 !important; transition: none !important; }
</style>
"""


@dataclass
class LiveHistory:
    """The live slots seen by this page with the local time, newest last."""

    entries: list[tuple[str, LiveSlot]] = field(default_factory=list)

    def add(self, live: LiveSlot) -> None:
        """Add an entry if the live slot has changed."""
        if not self.entries or self.entries[-1][1] != live:
            self.entries = [*self.entries, (time.strftime("%H:%M:%S"), live)][-MAX_CHANGES - 1 :]


def connect(address: str) -> ServiceClient:
    """Return the client, which all sessions share."""
    return ServiceClient(address, api_key())


def main() -> None:
    """Draw the page from the session's state."""
    st.set_page_config(
        page_title="GLM", page_icon=st.cache_resource(show_spinner=False)(page_icon)(), layout="centered"
    )
    st.html(STYLE)
    client = st.cache_resource(show_spinner=False)(connect)(service_address())
    conversation: Conversation = st.session_state.setdefault("conversation", Conversation())
    history: LiveHistory = st.session_state.setdefault("history", LiveHistory())
    texts = sidebar(client, conversation, history)
    if not conversation.exchanges:
        st.markdown(f"### {texts.title}")
        st.caption(texts.greeting)
    for exchange in conversation.exchanges:
        show_exchange(exchange, conversation, client, texts)
    submitted = st.chat_input(
        texts.question,
        key="question",
        accept_file="multiple",
        file_type=list(EXTENSIONS),
        disabled=conversation.running,
    )
    if submitted and (submitted.text.strip() or submitted.files):
        files = [(file.name, file.getvalue()) for file in submitted.files]
        submit(submitted.text, files, conversation, client)
        st.rerun()


def sidebar(client: ServiceClient, conversation: Conversation, history: LiveHistory) -> Texts:
    """Draw the sidebar and return the texts of the selected language."""
    with st.sidebar:
        top = st.container()
        texts = LANGUAGES[choose_language()]
        with top:
            st.fragment(show_live, run_every=LIVE_INTERVAL)(client, history, texts)
            if st.button(texts.new_chat, key="new", icon=":material/edit_square:", width="stretch"):
                conversation.clear()
                st.rerun()
    return texts


def show_live(client: ServiceClient, history: LiveHistory, texts: Texts) -> None:
    """Show the live version and slot, and the changes seen on this page."""
    st.caption(texts.live_now)
    try:
        live = client.live()
    except ServiceError as error:
        text = {Fault.UNREACHABLE: texts.unreachable, Fault.INVALID_RESPONSE: texts.other_service}.get(
            error.fault, texts.no_response
        )
        st.markdown(f":orange[:material/cloud_off:] {text}")
    else:
        history.add(live)
        colour = "green" if live.slot == "green" else "blue"
        st.markdown(f"### {live.version} &ensp;:{colour}-badge[{texts.slot.format(slot=live.slot)}]")
    changes = [
        f"{at} &ensp; {before.version} → **{after.version}**"
        for (_, before), (at, after) in zip(history.entries, history.entries[1:], strict=False)
    ]
    if changes:
        st.caption("  \n".join([texts.changes, *reversed(changes)]))


def submit(text: str, files: list[tuple[str, bytes]], conversation: Conversation, client: ServiceClient) -> None:
    """Send a question with its attached files."""
    pictures: list[Picture] = []
    try:
        pictures += [prepare(name, data) for name, data in files]
    except ServiceError as error:
        conversation.refuse(Question(text), error)
    else:
        conversation.ask(client, Question(text, tuple(pictures)))


def show_exchange(exchange: Exchange, conversation: Conversation, client: ServiceClient, texts: Texts) -> None:
    """Show a question and its reply; the last reply is refreshed until it ends, and can be retried if it failed."""
    with st.chat_message("user", avatar=":material/person:"):
        if exchange.question.pictures:
            with st.container(horizontal=True):
                for picture in exchange.question.pictures:
                    st.image(picture.data, width=PICTURE_WIDTH)
        if exchange.question.text:
            st.text(exchange.question.text)
    last = exchange is conversation.exchanges[-1]
    with st.chat_message("assistant", avatar=":material/auto_awesome:"):
        if last and exchange.reply.running:
            st.fragment(show_incomplete, run_every=REPLY_INTERVAL)(exchange.reply, texts)
            return
        with st.container():  # a fragment has one too: the same element tree keeps an expander open when the reply ends
            show_complete(exchange.reply, texts)
        error = exchange.reply.error
        can_retry = last and error and error.fault not in NO_RETRY
        if can_retry and st.button(texts.retry, key="retry", icon=":material/refresh:"):
            conversation.retry(client)
            st.rerun()


def show_incomplete(reply: Reply, texts: Texts) -> None:
    """Show a reply that is being received."""
    if not reply.running:
        st.rerun()
    text = reply.text  # read once: another thread appends to it
    show_reasoning(reply, texts, ended=bool(text))
    if text:
        st.markdown(f"{text} ▍")
    elif not reply.reasoning:
        st.markdown(f":gray[{texts.waiting}]")
    show_origin(reply, texts)
    if st.button(texts.stop, key="stop", icon=":material/stop_circle:", type="tertiary"):
        reply.stop()
        st.rerun()


def show_complete(reply: Reply, texts: Texts) -> None:
    """Show a reply that has ended or failed."""
    show_reasoning(reply, texts, ended=True)
    if reply.text:
        st.markdown(reply.text)
    elif reply.error is None:
        st.markdown(f":gray[{texts.no_answer_begun if reply.reasoning or reply.stopped else texts.empty}]")
    notes = [texts.stopped] * reply.stopped + [texts.length_limit] * (reply.finish_reason == "length")
    show_origin(reply, texts, *notes)
    if reply.error:
        description, hint = texts.faults[reply.error.fault]
        lines = [f"**{description.format(detail=reply.error.detail)}**"]
        if reply.error.detail and reply.error.fault is not Fault.INVALID_PICTURE:
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


main()
