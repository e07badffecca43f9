"""The rollout: preflight, prepare, (vacate), start, verify, canary, cutover, bake, retire; and the rollback.

Every phase is recorded in the journal before it acts, and `frame.py` ends the record whatever happens; `recovery.py`
ends those of killed controllers. Begin with `rollout.py`, then read the module of each phase. `weights.py` and
`reload.py` are the rollouts that stay in one slot.
"""
