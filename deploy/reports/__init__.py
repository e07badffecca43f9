"""Texts for the operator: summary and receipt of a rollout, history, the screen of status, findings of doctor.

Nothing here changes the host. Begin with `report.py`. `overview.py` collects the state of a host for `status`,
and `dashboard.py` draws it.
"""
