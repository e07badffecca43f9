"""Rollouts and hosts as a person reads them: receipts, history, timeline, the watch screen, doctor's findings.

Nothing here changes anything. Begin with `report.py`; `overview.py` collects what `status` shows.
"""
