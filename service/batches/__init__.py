"""Files and batches as OpenAI defines them: kept in SQLite beside plain files, worked on by whoever is live.

Read `tables` for what is kept, `claims` for who may work on what, `labourer` for the work, `routes` for the API.
"""

from __future__ import annotations

from service.batches.service import Office

__all__ = ["Office"]
