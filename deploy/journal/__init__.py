"""The journal: a record of each phase of a rollout, written before it acts, and the receipt of every request.

A crash at any step can therefore be recovered from, and no request is unaccounted for. Begin with `journal.py`;
`receipt.py` computes the receipt from the workers' state files.
"""
