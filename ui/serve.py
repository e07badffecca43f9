"""The page's server; started by `streamlit run ui/serve.py`, which finds `app`."""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.starlette import App

from ui.chat.browser import BrowserCookie
from ui.chat.uploads import BoundedUploads

app = App(Path(__file__).with_name("app.py"), middleware=[Middleware(BrowserCookie), Middleware(BoundedUploads)])
