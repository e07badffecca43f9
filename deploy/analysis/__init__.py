"""Whether a candidate is worse than the live slot, decided from how each of their responses went.

Begin with `comparison.py`, which holds what is compared and when; `errors.py` and `times.py` hold the margins.
`blocks.py` compares times in blocks of time, `statistics.py` holds the tests and the level of each look, `group.py` the
responses of one side, `reference.py` those of the live slot since before the rollout, `verdict.py` the result.
`samples.py` reads the records of the workers, `recent.py` gives the figures of the last 30 seconds.
"""
