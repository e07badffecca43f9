"""Which generation answers a request: the live one, or the candidate of a canary.

The symlink `live` and the file `canary` decide, and are read anew each time. Begin with `ownership.py`; `mirror.py`
sends copies of requests to the candidate.
"""
