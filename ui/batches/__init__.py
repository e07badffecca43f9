"""Batches of the service: a file is checked here, uploaded, run, watched and its results downloaded.

Start with `view`, which draws the page; `jsonl` checks files, and `client` makes the HTTP requests.
"""
