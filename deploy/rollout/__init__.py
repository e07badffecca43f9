"""A rollout: preflight, prepare, start, verify, canary, cutover, bake, retire; and the way back.

Each phase is journalled before it acts, so that an interrupted rollout can be finished or undone. Begin with
`rollout.py`, then the module of each phase.
"""
