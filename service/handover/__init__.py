"""The server of one worker, and how client connections are passed to another generation.

A connection is passed between two requests only, as a file descriptor, and no call waits for the receiver. Begin with
`server.py`, then `connection.py`.
"""
