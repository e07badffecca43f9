"""The language of all pages: chosen in the sidebar, at first that of the browser."""

from __future__ import annotations

import streamlit as st

from ui.texts import LANGUAGES, language_of

__all__ = ["choose_language", "current_language"]


_CHOSEN = "chosen language"


def current_language() -> str:
    """Return the language that was chosen in this session, or that of the browser."""
    return st.session_state.get(_CHOSEN) or language_of(st.context.locale)


def choose_language() -> str:
    """Draw the choice and return the chosen language; it holds on every page."""
    # in a key of its own: Streamlit forgets the value of a widget with the page that has it
    st.session_state["language"] = current_language()
    st.segmented_control(
        "Language / 语言",
        list(LANGUAGES),
        key="language",
        required=True,
        format_func=lambda name: LANGUAGES[name].name,
        label_visibility="collapsed",
        on_change=_keep,
    )
    return current_language()


def _keep() -> None:
    st.session_state[_CHOSEN] = st.session_state["language"]
