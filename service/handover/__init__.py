"""The server of one worker, and how client connections are passed to another generation.

A connection is passed only between two requests, as a file descriptor, and the sender never waits for the receiver.
Begin with `server.py`, then `connection.py`.
"""
