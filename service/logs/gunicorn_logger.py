"""Gunicorn's logger, with our handler instead of its own; Gunicorn makes it before anything is logged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gunicorn
import uvicorn
from gunicorn.glogging import Logger

from service.logs.handler import new_handler

__all__ = ["GunicornLogger"]

_SERVERS = (str(Path(gunicorn.__file__).parent), str(Path(uvicorn.__file__).parent))
_REPEATED = "USR2 signal ignored"  # a reload repeats the signal until the next master has begun


class GunicornLogger(Logger):  # type: ignore[misc]  # Gunicorn's classes carry no types
    """Logs what Gunicorn, the service and its libraries have to say, in one format.

    What Gunicorn and Uvicorn do when all goes well is left out: the master logs it in the terms of the slot.
    """

    def setup(self, cfg: Any) -> None:
        """Set the handlers; a reload of the configuration calls it again."""
        super().setup(cfg)
        if cfg.errorlog != "-":  # a file that the operator has chosen
            return
        handler = new_handler()
        handler.addFilter(_is_wanted)
        for name in (None, "gunicorn.error", "service"):
            log = logging.getLogger(name)
            log.handlers = [handler]
            log.propagate = False
        logging.getLogger("service").setLevel(logging.INFO)


def _is_wanted(record: logging.LogRecord) -> bool:
    if not record.pathname.startswith(_SERVERS):
        return True
    return record.levelno >= logging.WARNING and not record.getMessage().startswith(_REPEATED)
