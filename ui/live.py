"""The live version in the header of every page on a phone, where the sidebar is closed."""

from __future__ import annotations

from html import escape

import streamlit as st

from ui.client import LiveSlot, ServiceClient, ServiceError
from ui.frame import service_client
from ui.texts import LANGUAGES, Texts

__all__ = ["show_live_line"]

INTERVAL = "2s"  # between two refreshes
SHARED = 0.9  # seconds for which all sessions share what the service has answered

# The header is 3.75rem high, with the button of the sidebar on its left and the menu on its right.
STYLE = """
<style>
  [data-testid="stLayoutWrapper"]:has(> .st-key-live-line) { display: none; }
  @media (max-width: 767px) {
    [data-testid="stLayoutWrapper"]:has(> .st-key-live-line) { display: flex; position: fixed; z-index: 999991;
      top: 0; left: 3.75rem; right: 3.75rem; width: auto; pointer-events: none; }
    .stApp:has(.stSidebar[data-collapsed="false"]) .st-key-live-line { visibility: hidden; }
  }
  .glm-live { height: 3.75rem; display: flex; align-items: center; justify-content: center; text-align: center;
    font-size: .875rem; line-height: 1.2; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
  .glm-live i { display: inline-block; width: .6rem; height: .6rem; border-radius: 50%; margin-right: .4rem;
    background: #888; }
  .glm-live .blue { background: #3b8fd9; } .glm-live .green { background: #3aa76d; }
</style>
"""


def show_live_line(language: str) -> None:
    """Draw the line. A screen that has room for the sidebar does not show it."""
    st.html(STYLE)
    with st.container(key="live-line"):
        st.fragment(_show, run_every=INTERVAL)(LANGUAGES[language])


@st.cache_data(show_spinner=False, ttl=SHARED, max_entries=1)
def _live(_client: ServiceClient) -> LiveSlot | None:
    """Return the live slot; None while none answers."""
    try:
        return _client.live()
    except ServiceError:
        return None


def _show(texts: Texts) -> None:
    st.html(live_line(_live(service_client()), texts))


def live_line(live: LiveSlot | None, texts: Texts) -> str:
    """Return the line as HTML."""
    if live is None:
        return f'<div class="glm-live"><span>{escape(texts.no_response)}</span></div>'
    slot = live.slot if live.slot in {"blue", "green"} else ""
    return (
        f'<div class="glm-live"><span><i class="{slot}"></i>{escape(texts.live_now)} <b>{escape(live.version)}</b>'
        f" · {escape(texts.slot.format(slot=live.slot))}</span></div>"
    )
