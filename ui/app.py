"""The pages and their navigation; run by `serve`."""

from __future__ import annotations

import streamlit as st

from ui.batches.texts import BATCH_TEXTS
from ui.chat.received import take_missing
from ui.compare.texts import COMPARE_TEXTS
from ui.language import current_language
from ui.live import show_live_line
from ui.operate_texts import OPERATE_TEXTS
from ui.operator import Operator
from ui.rollout_texts import ROLLOUT_TEXTS

language = current_language()
texts = ROLLOUT_TEXTS[language]
pages = [
    st.Page("page.py", title=texts.chat, url_path="chat", default=True),
    st.Page("compare_page.py", title=COMPARE_TEXTS[language].title, url_path="compare"),
    st.Page("rollout_page.py", title=texts.rollout, url_path="rollout"),
    st.Page("batches_page.py", title=BATCH_TEXTS[language].title, url_path="batches"),
]
if Operator.of_host():
    pages.append(st.Page("operate_page.py", title=OPERATE_TEXTS[language].title, url_path="operate"))
page = st.navigation(pages)
if st.session_state.get("page") != page.url_path:  # an upload that failed on another page is none of this one
    take_missing()
    st.session_state["page"] = page.url_path
show_live_line(language)
page.run()
