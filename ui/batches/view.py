"""The batches page as it is drawn: a file is checked and sent, and batches are listed with their progress."""

from __future__ import annotations

import secrets

import streamlit as st

from ui.batches.client import BatchClient, owner_tag
from ui.batches.jsonl import ENDPOINT, MAX_PROBLEMS, BatchLimits, Checked, Problem, check
from ui.batches.listing import forget_listing, reason, show_listing
from ui.batches.texts import BATCH_TEXTS, BatchTexts
from ui.blocks import table
from ui.chat.browser import browser_id
from ui.chat.received import take_missing
from ui.chat.texts import escape
from ui.client import ServiceClient, ServiceError
from ui.picture import megabytes

__all__ = ["show_batches"]

STYLE = """
<style>
  .stMainBlockContainer { max-width: 60rem; padding-top: 3.5rem; }
  .stStatusWidget, [data-testid="stStatusWidget"] { display: none; }
  [data-stale="true"] { opacity: 1 !important; transition: none !important; }
  .stMain [data-testid="stMarkdownContainer"] { overflow-wrap: anywhere; }
  .glm-table table { border-collapse: collapse; font-size: .875rem; width: 100%; }
  .glm-table :is(th, td) { padding: .3rem .6rem; border-bottom: 1px solid #8884; text-align: left;
    overflow-wrap: anywhere; vertical-align: top; }
  .glm-table td:first-child { white-space: nowrap; }
  .glm-table th { font-weight: 400; opacity: .75; }
</style>
"""
UPLOADER = """
<style>
  [data-testid="stFileUploaderDropzone"] button p { font-size: 0; }
  [data-testid="stFileUploaderDropzoneInstructions"] > * { display: none; }
  [data-testid="stFileUploaderDropzone"] button [data-testid="stMarkdownContainer"]::after { content: "%s"; }
  [data-testid="stFileUploaderDropzoneInstructions"]::after { content: "%s"; font-size: .875rem; }
</style>
"""
"""Streamlit's words in the upload, which it has in English alone: the button, whose name they stay, and the largest
file."""
EXAMPLE = f"""{{"custom_id": "1", "method": "POST", "url": "{ENDPOINT}",
 "body": {{"messages": [{{"role": "user", "content": "Hello"}}]}}}}"""
KEY = "batches api key"  # in the session: what the user has entered


def show_batches(client: ServiceClient, language: str) -> None:
    """Draw the page."""
    texts = BATCH_TEXTS[language]
    st.html(STYLE)
    st.markdown(f"## {texts.title}")
    st.caption(texts.hint)
    key = show_key(texts)
    batches = BatchClient(client.keyed(key) if key else client)
    owner = owner_tag(browser_id(st.context.cookies) or st.session_state.setdefault("owner", secrets.token_urlsafe(32)))
    show_upload(batches, owner, texts)
    show_listing(batches, owner, key, texts)


def show_key(texts: BatchTexts) -> str:
    """Show the field of a key, and return the one in use; empty for that of the page."""
    key: str = st.session_state.get(KEY, "")
    with st.popover(texts.api_key, type="tertiary", icon=":material/key:"):
        if key:
            st.caption(texts.own_key)
            if st.button(texts.forget_key, key="forget-key", icon=":material/key_off:"):
                st.session_state[KEY] = ""
                st.rerun()
            return key
        with st.form("key-form", border=False, clear_on_submit=True):
            given = st.text_input(texts.key, type="password", max_chars=1000, help=texts.key_help, autocomplete="off")
            if st.form_submit_button(texts.use_key) and (given := given.strip()):
                if given.isascii() and given.isprintable():
                    st.session_state[KEY] = given
                    st.rerun()
                st.warning(texts.bad_key)
    return key


def show_upload(batches: BatchClient, owner: str, texts: BatchTexts) -> None:
    """Show the choice of a file, what is wrong in it, and the button that starts its batch."""
    limits = BatchLimits.from_environment()
    number = st.session_state.setdefault("batch file number", 0)  # a new widget after each batch that was started
    st.html(UPLOADER % (texts.upload, texts.upload_limit.format(size=megabytes(limits.file))))
    file = st.file_uploader(
        texts.file,
        key=f"batch-file-{number}",
        max_upload_size=max(1, -(-limits.file // (1 << 20))),  # the browser says so beside a file above it
        help=texts.file_help.format(size=megabytes(limits.file), lines=limits.lines),
    )
    for name in take_missing():
        st.warning(texts.missing.format(name=escape(name) or texts.a_file), icon=":material/block:")
    started = st.session_state.pop("batch started", None)
    if started is not None:
        st.success(texts.started.format(name=escape(started)), icon=":material/check:")
        return
    if file is None:
        st.caption(texts.line_hint)
        st.code(EXAMPLE, language=None, wrap_lines=True)
        return
    found = st.session_state.get("batch checked")
    if found is None or found[0] != file.file_id:  # once, not in each rerun
        found = st.session_state["batch checked"] = file.file_id, check(file, limits)
    checked: Checked = found[1]
    if checked.problems:
        show_problems(file.name, checked.problems, texts)
        return
    st.caption(f":material/check: {texts.valid.format(count=checked.requests, size=megabytes(file.size))}")
    if not st.button(texts.start, key="start-batch", type="primary", icon=":material/play_arrow:"):
        return
    try:
        with st.spinner(texts.sending):
            batches.start(file.name, file, owner)
            forget_listing()
    except ServiceError as error:
        st.warning(texts.not_started.format(reason=reason(error, texts)), icon=":material/error:")
    else:
        st.session_state["batch file number"], st.session_state["batch started"] = number + 1, file.name
        st.session_state.pop("batch checked")
        st.rerun()


def show_problems(name: str, problems: list[Problem], texts: BatchTexts) -> None:
    """Show what is wrong in a file."""
    st.warning(texts.invalid.format(name=escape(name)), icon=":material/block:")
    rows = [
        [
            str(one.line) if one.line else "-",
            texts.problems[one.reason].format(found=one.found, limit=one.limit),
        ]
        for one in problems
    ]
    st.html(table(texts.problem, [texts.line, texts.problem], rows))
    if len(problems) == MAX_PROBLEMS:
        st.caption(texts.more.format(count=MAX_PROBLEMS))
