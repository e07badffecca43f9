"""Whether a candidate is worse than the live slot, decided from how each of their responses went.

Begin with `comparison.py`, which holds what is compared and with which margins. `statistics.py` holds the tests and the
level of each look, `samples.py` reads the records of the workers, `recent.py` gives the figures of the last 30 seconds.
"""
