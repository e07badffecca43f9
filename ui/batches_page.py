"""The batches page; run by `app`."""

from __future__ import annotations

import streamlit as st

from ui.batches.view import show_batches
from ui.frame import begin_page, service_client
from ui.language import choose_language

begin_page()
with st.sidebar:
    chosen = choose_language()
show_batches(service_client(), chosen)
