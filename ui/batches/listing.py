"""The list of batches: progress while they run, cancelling, and the results."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import streamlit as st

from ui.batches.client import MAX_DOWNLOAD, Batch, BatchClient
from ui.batches.texts import BatchTexts
from ui.blocks import table
from ui.chat.texts import escape
from ui.client import Fault, ServiceError
from ui.figures import zone
from ui.picture import megabytes

__all__ = ["forget_listing", "reason", "show_listing"]

SHOWN = 20  # the latest
SHARED = 1.5  # seconds for which sessions with the same key share a list
RUNNING_INTERVAL, IDLE_INTERVAL = "2s", "15s"  # between two looks, while a batch runs and while none does
COLOURS = {"completed": "green", "failed": "red", "expired": "orange", "cancelled": "gray"}  # others are blue
MAX_FILE_LINES = 20  # of what was wrong in an input file


@st.cache_data(show_spinner=False, ttl=SHARED, max_entries=32)
def _latest(_batches: BatchClient, key: str) -> list[Batch]:  # noqa: ARG001  of the cache
    """Return the batches of a key, of which only the digest is kept; raises ServiceError."""
    return _batches.latest()


def forget_listing() -> None:
    """Ask the service anew at the next look."""
    _latest.clear()


def show_listing(batches: BatchClient, owner: str, key: str, texts: BatchTexts) -> None:
    """Show the batches of a key that the user has entered, else those of this browser."""
    st.markdown(f"### {texts.batches}")
    st.caption(texts.own_key if key else texts.own_batches)
    digest = hashlib.sha256(key.encode()).hexdigest() if key else ""
    try:
        is_running = any(batch.unfinished for batch in _find(batches, owner, digest))
    except ServiceError:
        is_running = False
    interval = RUNNING_INTERVAL if is_running else IDLE_INTERVAL
    st.fragment(_show, run_every=interval)(batches, owner, digest, texts, is_running=is_running)


def _find(batches: BatchClient, owner: str, digest: str) -> list[Batch]:
    """Return those to be listed; raises ServiceError."""
    return [batch for batch in _latest(batches, digest) if digest or batch.owner == owner][:SHOWN]


def _show(batches: BatchClient, owner: str, digest: str, texts: BatchTexts, *, is_running: bool) -> None:
    """Show the list; `is_running`: whether the interval is that of running batches."""
    try:
        found = _find(batches, owner, digest)
    except ServiceError as error:
        text = (
            texts.key_needed if error.fault is Fault.UNAUTHORIZED else texts.unknown.format(reason=reason(error, texts))
        )
        if error.fault is Fault.TIMEOUT:  # as in a swap, while no version is loaded
            st.caption(text)
        else:
            st.warning(text, icon=":material/cloud_off:")
        return
    if any(batch.unfinished for batch in found) != is_running:
        st.rerun()
    if not found:
        st.caption(texts.none)
    for batch in found:
        with st.container(border=True):
            _show_batch(batch, batches, texts)


def _show_batch(batch: Batch, batches: BatchClient, texts: BatchTexts) -> None:
    """Show one batch, and what can be done with it."""
    badge = f":{COLOURS.get(batch.status, 'blue')}-badge[{texts.statuses.get(batch.status, batch.status)}]"
    st.markdown(f"**{escape(batch.file) or batch.id}** {badge}")
    at = datetime.fromtimestamp(batch.created_at, UTC).astimezone(zone(st.context.timezone))
    st.caption(f"{batch.id} · {texts.since.format(at=f'{at:%Y-%m-%d %H:%M:%S}')}")
    _show_progress(batch, texts)
    with st.container(horizontal=True):
        if batch.cancellable:
            _show_cancel(batch, batches, texts)
        for file, title, kind in ((batch.output, texts.output, "output"), (batch.error_output, texts.errors, "errors")):
            if file and not batch.unfinished:
                _show_download(file, title, f"{batch.id}-{kind}.jsonl", batches, texts)
    if batch.errors:
        st.caption(texts.input_errors)
        rows = [[str(line or "-"), message] for line, message in batch.errors[:MAX_FILE_LINES]]
        st.html(table(texts.input_errors, [texts.line, texts.problem], rows))


def _show_progress(batch: Batch, texts: BatchTexts) -> None:
    done = batch.completed + batch.failed
    if not batch.total:
        if batch.unfinished:
            st.progress(0.0, texts.checking)
        return
    text = texts.progress.format(done=done, total=batch.total)
    if batch.failed:
        text += f" · {texts.statuses['failures'].format(count=batch.failed)}"
    st.progress(min(1.0, done / batch.total), text)


def _show_cancel(batch: Batch, batches: BatchClient, texts: BatchTexts) -> None:
    if not st.button(texts.cancel, key=f"cancel-{batch.id}", icon=":material/close:"):
        return
    try:
        batches.cancel(batch.id)
    except ServiceError as error:
        st.warning(texts.cancel_failed.format(reason=reason(error, texts)))
    else:
        forget_listing()
        st.rerun()


def _show_download(file: str, title: str, name: str, batches: BatchClient, texts: BatchTexts) -> None:
    """Show the button of a file of results; it is fetched when it is pressed."""
    sizes: dict[str, int | None] = st.session_state.setdefault("result sizes", {})
    if file not in sizes:
        try:
            sizes[file] = batches.size(file)
        except ServiceError as error:
            if error.fault is not Fault.REJECTED:  # not 404, which a file that has expired gets
                return
            sizes[file] = None
    size = sizes[file]
    if size is None:
        st.caption(texts.expired)
    elif size > MAX_DOWNLOAD:
        st.caption(texts.too_large.format(title=title, size=megabytes(size)))
        header = '-H "Authorization: Bearer $GLM_API_KEY"'
        st.code(f"curl -o {name} {header} {batches.address(file)}", language=None, wrap_lines=True)
    else:
        st.download_button(
            title,
            lambda: batches.download(file),
            name,
            "application/jsonl",
            key=f"download-{file}",
            icon=":material/download:",
            on_click="ignore",
        )


def reason(error: ServiceError, texts: BatchTexts) -> str:
    """Return why a request failed, as Markdown."""
    detail = texts.service_message.format(detail=escape(error.detail)) if error.detail else ""
    return " ".join(filter(None, (texts.fault(error.fault), detail)))
