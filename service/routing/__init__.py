"""Which generation answers a request: the live one, or the candidate of a canary.

One look at the symlink `live` and the file `canary` decides, and nothing is cached beside them. Begin with
`ownership.py`; `mirror.py` sends copies of requests to the candidate.
"""
