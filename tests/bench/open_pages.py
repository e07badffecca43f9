"""Open pages without a browser: sessions of the page, which are drawn anew as often as a browser asks for it.

Chromium draws what it shows, and twenty of its windows need more of two cores than the page and the service together;
in use they are drawn on the machines of their users.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect

__all__ = ["open_pages", "rerun_message"]

START_SECONDS = 120  # until all are drawn
NAMES = ("", "rollout")  # of the pages, in turns: the chat and the rollout


@contextmanager
def open_pages(address: str, count: int) -> Iterator[None]:
    """Hold sessions at host:port open, half of them on the rollout.

    Raises TimeoutError if they are not drawn, and at the end what has closed one of them meanwhile.
    """
    loop = asyncio.new_event_loop()
    drawn = threading.Semaphore(0)

    async def hold() -> None:
        async with asyncio.TaskGroup() as sessions:
            for number in range(count):
                sessions.create_task(_session(address, NAMES[number % len(NAMES)], drawn))

    async def cancel() -> None:
        task.cancel()
        await asyncio.wait([task])

    task = loop.create_task(hold())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        for _ in range(count):
            if not drawn.acquire(timeout=START_SECONDS):
                raise TimeoutError(f"{count} pages were not drawn within {START_SECONDS} s")
        if task.done():
            task.result()
        yield
        if task.done():  # what was measured was less than all of them
            task.result()
    finally:
        asyncio.run_coroutine_threadsafe(cancel(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _session(address: str, name: str, drawn: threading.Semaphore) -> None:
    """Open a page, and ask for its parts that are drawn anew at intervals, until it is cancelled."""
    timers: dict[str, asyncio.Task[None]] = {}
    page = ""
    is_drawn = False
    try:
        async with connect(f"ws://{address}/_stcore/stream", subprotocols=["streamlit"], max_size=None) as socket:  # type: ignore[list-item]
            await socket.send(rerun_message(page_name=name))
            async for data in socket:
                message = ForwardMsg.FromString(data if isinstance(data, bytes) else data.encode())
                kind = message.WhichOneof("type")
                if kind == "new_session":
                    page = message.new_session.page_script_hash
                elif kind == "auto_rerun":
                    part = message.auto_rerun.fragment_id
                    if part not in timers:
                        timers[part] = asyncio.create_task(_repeat(socket, page, part, message.auto_rerun.interval))
                elif kind == "script_finished" and not is_drawn:
                    is_drawn = True
                    drawn.release()
    finally:
        await _cancel(timers)
        if not is_drawn:
            drawn.release()  # who waits for it sees what happened


async def _repeat(socket: ClientConnection, page: str, part: str, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        await socket.send(rerun_message(page_script_hash=page, fragment_id=part, is_auto_rerun=True))


def rerun_message(**state: str | bool) -> bytes:
    """Return what a browser sends to have the script run; `state`: fields of Streamlit's ClientState."""
    message = BackMsg()
    for name, value in state.items():
        setattr(message.rerun_script, name, value)
    message.rerun_script.SetInParent()
    return bytes(message.SerializeToString())


async def _cancel(timers: dict[str, asyncio.Task[None]]) -> None:
    for timer in timers.values():
        timer.cancel()
    await asyncio.gather(*timers.values(), return_exceptions=True)
