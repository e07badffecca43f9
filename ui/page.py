"""The chat page; run by `app`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import streamlit as st

from ui.chat.view import show_chat
from ui.client import Fault, LiveSlot, ServiceClient, ServiceError
from ui.frame import begin_page, service_client
from ui.language import choose_language
from ui.texts import LANGUAGES, Texts

LIVE_INTERVAL = "2s"  # between two requests for the live version
MAX_CHANGES = 5  # cutovers listed in the sidebar

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


def main() -> None:
    """Draw the page from the session's state."""
    begin_page("centered")
    st.html(STYLE)
    client = service_client()
    history: LiveHistory = st.session_state.setdefault("history", LiveHistory())
    show_chat(client, sidebar(client, history))


def sidebar(client: ServiceClient, history: LiveHistory) -> Texts:
    """Draw the sidebar and return the texts of the selected language."""
    with st.sidebar:
        top = st.container()
        texts = LANGUAGES[choose_language()]
        with top:
            st.fragment(show_live, run_every=LIVE_INTERVAL)(client, history, texts)
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


main()
