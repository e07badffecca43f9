"""The way from page to page while parts of a page are refreshed at intervals, and files, by a browser's messages."""

from __future__ import annotations

import asyncio
from pathlib import Path

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

from tests.bench.open_pages import rerun_message
from tests.browser_fixtures import fake_host

CHAT, ROLLOUT = "", "rollout"  # paths
BUSY = 3  # windows that have the page run all the time
FILES = 60


class Window:
    """A window of a browser, which draws nothing."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._pages: dict[str, str] = {}  # hashes by path
        self.first = ""  # the hash of the first run
        self.parts: list[str] = []  # fragments that are refreshed at intervals
        self.shown: list[str] = []  # paths, one for each run of the script

    async def open(self, path: str) -> None:
        """Follow an address."""
        await self._send(page_name=path)
        await self.receive()

    async def go(self, path: str) -> None:
        """Follow a link of the navigation."""
        await self._send(page_script_hash=self._pages[path])

    async def go_on(self) -> None:
        """Ask for the page before its name is known, as a browser does that connects again early."""
        await self._send(page_script_hash=self.first)
        await self.receive()

    async def refresh(self, path: str, part: str) -> None:
        """Ask for a part of a page, as a timer does."""
        await self._send(page_script_hash=self._pages[path], fragment_id=part, is_auto_rerun=True)

    async def receive(self) -> None:
        """Receive what is to be drawn, until nothing more comes."""
        self.shown = []
        while True:
            try:
                message = await asyncio.wait_for(self._message(), 1.5)
            except TimeoutError:
                return
            kind = message.WhichOneof("type")
            if kind == "new_session":
                self.first = self.first or message.new_session.page_script_hash
                path = {name: path for path, name in self._pages.items()}
                self.shown.append(path.get(message.new_session.page_script_hash, "unknown"))
            elif kind == "navigation":
                self._pages = {page.url_pathname: page.page_script_hash for page in message.navigation.app_pages}
            elif kind == "auto_rerun":
                self.parts.append(message.auto_rerun.fragment_id)

    async def run(self) -> None:
        """Have the page run once, to its end."""
        await self._send()
        await self._await(set(), "")

    async def attach(self, name: str, *, after_s: float) -> None:
        """Attach a file while the page begins to run; raises TimeoutError if no address to upload it to comes."""
        await self._send()
        await asyncio.sleep(after_s)
        request = BackMsg()
        request.file_urls_request.request_id = name
        request.file_urls_request.file_names.append(name)
        await self._socket.send(request.SerializeToString())
        await self._await({"file_urls_response"}, name)

    async def _await(self, kinds: set[str], name: str) -> None:
        """Receive until a run has ended, and messages of these kinds have come."""
        left = {"script_finished", *kinds}
        async with asyncio.timeout(30):
            while left:
                message = await self._message()
                kind = message.WhichOneof("type")
                if kind != "file_urls_response" or message.file_urls_response.response_id == name:
                    left.discard(kind or "")

    async def _message(self) -> ForwardMsg:
        data = await self._socket.recv()
        message = ForwardMsg()
        message.ParseFromString(data if isinstance(data, bytes) else data.encode())
        return message

    async def _send(self, **state: str | bool) -> None:
        await self._socket.send(rerun_message(**state))


def test_a_refresh_of_a_page_that_was_left_does_not_return_to_it(tmp_path: Path) -> None:
    """A slow browser asks for it after the next page: at once, while that is drawn, and afterwards."""

    async def look(address: str) -> None:
        stream = f"ws://{address}/_stcore/stream"
        async with connect(stream, subprotocols=["streamlit"], max_size=None) as socket:  # type: ignore[list-item]
            window = Window(socket)
            await window.open(ROLLOUT)
            header = window.parts[0]  # is refreshed on every page
            for seconds in (0, 0.02, 1):
                await window.go(CHAT)
                await asyncio.sleep(seconds)
                await window.refresh(ROLLOUT, header)
                await window.receive()
                assert window.shown == [CHAT], seconds

                await window.refresh(CHAT, header)
                await window.receive()
                assert window.shown == [CHAT], "its own parts are refreshed"

                await window.go(ROLLOUT)
                await window.receive()

            await window.go_on()
            await window.refresh(CHAT, header)
            await window.receive()
            assert window.shown == [CHAT]

    with fake_host(tmp_path) as (_, address):
        asyncio.run(look(address))


def test_a_file_that_is_attached_as_the_page_begins_to_run_is_not_lost(tmp_path: Path) -> None:
    """On a busy page too, where the answer to the browser waits to be sent when the run begins."""

    async def look(address: str) -> None:
        stream = f"ws://{address}/_stcore/stream"

        async def keep_busy() -> None:
            async with connect(stream, subprotocols=["streamlit"], max_size=None) as socket:  # type: ignore[list-item]
                window = Window(socket)
                while not is_over.is_set():
                    await window.run()

        async def attach_files() -> None:
            async with connect(stream, subprotocols=["streamlit"], max_size=None) as socket:  # type: ignore[list-item]
                window = Window(socket)
                for number in range(FILES):
                    await window.attach(f"{number}.png", after_s=0.002 * (number % 10))
            is_over.set()

        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as windows:
            for _ in range(BUSY):
                windows.create_task(keep_busy())
            windows.create_task(attach_files())

    with fake_host(tmp_path) as (_, address):
        asyncio.run(look(address))
