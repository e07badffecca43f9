"""The batches page; run by `app`."""

from __future__ import annotations

import streamlit as st

from ui.batches.view import show_batches
from ui.client import ServiceClient, api_key, service_address
from ui.icon import page_icon
from ui.language import choose_language


@st.cache_resource(show_spinner=False)
def connect(address: str) -> ServiceClient:
    """Return the client, which all sessions share."""
    return ServiceClient(address, api_key())


st.set_page_config(page_title="GLM", page_icon=st.cache_resource(show_spinner=False)(page_icon)(), layout="wide")
with st.sidebar:
    chosen = choose_language()
show_batches(connect(service_address()), chosen)
