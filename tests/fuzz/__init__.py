"""Random inputs for what reads bytes of others: request heads, JSON schemas, images, state files. `make fuzz`.

Each target runs in a process of its own, since an input may crash it. The inputs follow from a seed and their number
alone, so a finding is repeated with the input that is saved, or with the same seed. A finding is an exception that the
target does not document, the death of the process, or an input that takes more CPU time, wall time or memory than the
target allows. Begin with `targets.py`.
"""
