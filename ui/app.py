"""The pages and their navigation; run by `serve`."""

from __future__ import annotations

import streamlit as st

from ui.language import current_language
from ui.operate_texts import OPERATE_TEXTS
from ui.operator import Operator
from ui.rollout_texts import ROLLOUT_TEXTS

texts = ROLLOUT_TEXTS[current_language()]
pages = [
    st.Page("page.py", title=texts.chat, url_path="chat", default=True),
    st.Page("rollout_page.py", title=texts.rollout, url_path="rollout"),
]
if Operator.of_host():
    pages.append(st.Page("operate_page.py", title=OPERATE_TEXTS[current_language()].title, url_path="operate"))
st.navigation(pages).run()
