"""The page's server; glm-ui.service runs `uvicorn ui.serve:app`."""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from streamlit.runtime import memory_uploaded_file_manager, websocket_session_manager
from streamlit.starlette import App

from ui.chat.browser import BrowserCookie
from ui.chat.received import RecordedFiles
from ui.chat.uploads import BoundedUploads
from ui.session import PageSession

# App has no parameters for them, and looks them up here when it starts.
memory_uploaded_file_manager.MemoryUploadedFileManager = RecordedFiles  # type: ignore[misc]
websocket_session_manager.AppSession = PageSession  # type: ignore[attr-defined]

app = App(Path(__file__).with_name("app.py"), middleware=[Middleware(BrowserCookie), Middleware(BoundedUploads)])
