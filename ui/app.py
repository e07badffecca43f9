"""The pages and their navigation; run by `serve`."""

from __future__ import annotations

import streamlit as st

from ui.language import current_language
from ui.rollout_texts import ROLLOUT_TEXTS

texts = ROLLOUT_TEXTS[current_language()]
st.navigation(
    [
        st.Page("page.py", title=texts.chat, url_path="chat", default=True),
        st.Page("rollout_page.py", title=texts.rollout, url_path="rollout"),
    ]
).run()
