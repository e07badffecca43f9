"""What every page begins with: the browser's title and icon, and the client of the service."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from ui.client import ServiceClient, api_key, service_address
from ui.icon import page_icon

__all__ = ["begin_page", "service_client"]


def begin_page(layout: Literal["centered", "wide"] = "wide") -> None:
    """Set title, icon and layout; to be called before anything is drawn."""
    st.set_page_config(page_title="GLM", page_icon=st.cache_resource(show_spinner=False)(page_icon)(), layout=layout)


def service_client() -> ServiceClient:
    """Return the client of the service, which all sessions share."""
    return st.cache_resource(show_spinner=False)(_connect)(service_address())


def _connect(address: str) -> ServiceClient:
    return ServiceClient(address, api_key())
