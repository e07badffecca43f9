"""The web page: a Streamlit application and HTTP client of the service, in English and Chinese. Start with `app`.

`page` is the chat: an answer is received to its end while the page reruns, and names the version and slot that gave
it. `conversation` holds its state and `client` the HTTP requests. `rollout_page` shows what glmctl publishes, which
`status` reads once for all sessions.
"""
