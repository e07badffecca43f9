"""The verbs of glmctl, one module each: it declares options and help, calls the room that does the work, and prints.

Begin with `options.py`, which holds the options that all verbs share, then `deploy.py`.
"""
