"""The session of a browser window, which stays on the page that the user chose last."""

from __future__ import annotations

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession

__all__ = ["PageSession"]


class PageSession(AppSession):
    """Streamlit's session, without the refreshes of a page that was left.

    A slow browser may ask for one after it has asked for another page. It would be run as a part of the page that was
    left, and clear the window, which nothing would draw again.
    """

    _page = ""  # the page that was asked for last, by its hash; "": the browser does not know it yet

    def request_rerun(self, client_state: ClientState | None) -> None:
        """Have the script run for what the browser asks, unless that is a refresh of another page."""
        if client_state and client_state.is_auto_rerun:
            if self._page and client_state.page_script_hash != self._page:
                return
        elif client_state:
            asked = client_state.page_script_hash
            self._page = "" if asked == self._pages_manager.main_script_hash else asked
        super().request_rerun(client_state)
