"""Releases on disk: immutable directories with a digest for each file, published by one rename.

Begin with `store.py`. `checkpoint.py` checks what is imported and reads the headers of safetensors files;
`compatibility.py` decides whether the weights of one release fit the model of another.
"""
