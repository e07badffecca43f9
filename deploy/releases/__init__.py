"""Releases on disk: imported with digests, published by one rename, never changed afterwards.

Begin with `store.py`; `checkpoint.py` validates what is imported, `compatibility.py` compares two releases.
"""
