"""The chat: conversations of a browser, which the page's server keeps, and their drawing.

Start with `view`, which draws it; `library` holds the open conversations, `store` keeps them in SQLite, and `browser`
tells browsers apart.
"""
