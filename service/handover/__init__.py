"""The server of one worker, and how client connections are passed to another generation.

A connection is passed between two requests, as a file descriptor, with what its client has sent of the next one; the
sender never waits for the receiver. Requests are read one at a time, and what a client may send, hold and take has
limits. Begin with `server.py`, then `connection.py`; `reader.py` has the reading, `idle.py` the connections without a
request, `fd_passing.py` the messages.
"""
