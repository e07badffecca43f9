"""Runs glmctl for operators who are not on the host: the web page sends their requests. Begin with `request.py`."""
