"""The log of the server: journald's own protocol where stderr is a stream of the journal, text elsewhere.

`handler.py` chooses. `journal.py`: lines with fields and priorities. `access.py`: one line for each request, at a
bounded rate. `gunicorn_logger.py`: Gunicorn's logger, and that of everything else in its processes.
"""

from service.logs.access import AccessLog
from service.logs.handler import describe_process

__all__ = ["AccessLog", "describe_process"]
