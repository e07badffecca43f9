"""The Gunicorn master and its workers: readiness, systemd notification, reload, weight swap.

A generation sends READY=1 only when every worker has loaded the model and it has passed the release's checks. Begin
with `worker.py` for one worker, and `master.py` for the generation.
"""
