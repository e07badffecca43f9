"""The Gunicorn master and its workers: readiness, systemd notification, reload, weight swap.

A generation says READY=1 only when every worker holds a model that passed its release's checks. Begin with `worker.py`
for one process and `master.py` for the generation.
"""
