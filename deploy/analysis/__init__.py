"""Whether the candidate is worse than the live slot, from how each answer went.

`statistics.py` holds the tests, `comparison.py` what is compared and when, `recent.py` the figures of the last
seconds. Begin with `comparison.py`.
"""
