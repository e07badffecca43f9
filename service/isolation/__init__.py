"""Native code that a client's input may crash, hang or fill the memory with, in processes of its own.

`processes.py` is the side of the worker: it starts a process at first use, and the next one when it has died.
`child.py` is what runs there: it calls one function, for one request at a time, with limits of memory and processor
time.
"""
