"""The session of a browser window, which stays on the page that the user chose last, and gets every answer."""

from __future__ import annotations

from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.runtime.app_session import AppSession

__all__ = ["PageSession"]

_ANSWERS = {"file_urls_response", "backend_operation_response"}
"""Messages for which the browser waits; it does not ask again."""


class PageSession(AppSession):
    """Streamlit's session, with two faults of slow machines mended.

    A slow browser may ask for a refresh of a page after it has asked for another page. It would be run as a part of the
    page that was left, and clear the window, which nothing would draw again.

    A run that begins discards the messages that were not sent yet, since it draws the page anew. Among them may be the
    answer where to upload a file that was just attached: the file would never appear.
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

    def _clear_queue(self, fragment_ids_this_run: list[str] | None = None) -> None:
        answers = []
        for message in self._browser_queue.flush():
            if message.WhichOneof("type") in _ANSWERS:
                answers.append(message)
            else:
                self._browser_queue.enqueue(message)
        super()._clear_queue(fragment_ids_this_run)
        for answer in answers:
            self._browser_queue.enqueue(answer)
