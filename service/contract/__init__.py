"""The formats of all files that the programs share, each defined once.

Imports the standard library alone, so that `deploy` and `ui` can import it. Every file is replaced by rename; readers
ignore fields that they do not know. Begin with `slots.py` (paths and symlinks), then `generations.py`.
"""
