"""Loading: from a release directory to a model on its device, ready to run.

Promises: every defect of a release raises ReleaseError, whose message names the file at fault; weights are never
copied on the CPU, where they stay views of the files that all workers of the host share. Begin with `release.py`, which
reads `release.json`; `checkpoint.py` loads the checkpoint and calls `weights.py` and `processor.py`. `release.py` and
`checkpoint_files.py` need neither torch nor transformers.
"""
