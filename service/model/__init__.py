"""From a release directory to a model on its device.

Whatever is wrong with a release is a ReleaseError that names the file at fault. Begin with `release.py`, then
`checkpoint.py`, which calls `weights.py` and `processor.py`.
"""
