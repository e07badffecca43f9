"""The chat page: a Streamlit application and HTTP client of the service, in English and Chinese.

An answer is received to its end while the page reruns, and names the version and slot that gave it. Start with `page`;
`conversation` holds questions and replies, `chat` draws and keeps them, `client` makes the HTTP requests, and
`serve` is the server.
"""
