"""Files and batches of OpenAI's API, stored in SQLite and plain files and processed by the workers of the live slot.

Each request of a batch has exactly one result, across cutovers, crashes and reboots. Start with `claims`, which assigns
requests to workers; then `runner` (processing), `store` and `files` (storage), `api` (the routes).
"""

from __future__ import annotations

from service.batches.service import BatchService

__all__ = ["BatchService"]
