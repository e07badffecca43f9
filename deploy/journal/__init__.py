"""What is known of rollouts: a record of each phase, written before it acts, and the receipt of every request.

Begin with `journal.py`; `receipt.py` computes the account from the workers' state files.
"""
