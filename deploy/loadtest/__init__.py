"""A load test that reports every request that a client would have seen fail.

Clients of eight classes send requests while the listening socket and the connections of the server change hands.
Nothing is retried. A refused connection, a reset, a truncated response, an unexpected status or byte, or a response
with parts from two models is a loss. Every request is counted: sent = ok + lost. Begin reading at `client_classes.py`
(what the clients do), then `client.py` (one client), `responses.py` (HTTP) and `validation.py` (correct responses).

    report = await loadtest.run("127.0.0.1", 8000, seconds=10)
    assert report.lost == 0, report.losses
"""

from __future__ import annotations

from deploy.loadtest.client_classes import Mix
from deploy.loadtest.load import MODEL, TIME_LIMIT, Load, run
from deploy.loadtest.losses import LossKind
from deploy.loadtest.report import ClassReport, Latency, Loss, Report, Switch
from deploy.loadtest.stats import Progress

__all__ = [
    "MODEL",
    "TIME_LIMIT",
    "ClassReport",
    "Latency",
    "Load",
    "Loss",
    "LossKind",
    "Mix",
    "Progress",
    "Report",
    "Switch",
    "run",
]
