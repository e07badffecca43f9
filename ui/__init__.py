"""The web page: a Streamlit application and HTTP client of the service, in English and Chinese. Start with `app`.

`serve` is the server, and `app` lists the pages. `page` is the chat: an answer is received to its end while the page
reruns, and names the version and slot that gave it. `conversation` holds questions and replies, `chat` draws and keeps
them, `client` makes the HTTP requests. `compare` asks both slots of a canary, and `batches` runs files of requests.
`rollout_page` shows what glmctl publishes, which `status` reads once for all sessions.
"""
