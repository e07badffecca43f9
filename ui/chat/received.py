"""Files that the browser was to upload, and that are not there when the input is sent.

Streamlit's input sends what has arrived: a file whose upload failed, or that went with a restart of the page, is left
out without a word. The browser asks for an address before each upload, and names the files that it believes to be here,
so that the server can tell which are missing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager
from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import UploadedFileRec, UploadFileUrlInfo

__all__ = ["RecordedFiles", "take_missing"]

MAX_FILES = 1000  # of a session that are remembered, the latest


class RecordedFiles(MemoryUploadedFileManager):
    """Streamlit's store of uploaded files, which also knows those that did not arrive; thread-safe."""

    def __init__(self, upload_endpoint: str) -> None:
        super().__init__(upload_endpoint)
        self._awaited: dict[str, OrderedDict[str, str]] = {}  # by session: the name of a file by its identifier
        self._seen: dict[str, OrderedDict[str, None]] = {}  # by session: files that were here, or were reported
        self._records = threading.Lock()

    def get_upload_urls(self, session_id: str, file_names: Sequence[str]) -> list[UploadFileUrlInfo]:
        """Return the addresses of uploads, which are awaited from now on."""
        addresses = super().get_upload_urls(session_id, file_names)
        with self._records:
            awaited = self._awaited.setdefault(session_id, OrderedDict())
            for address, name in zip(addresses, file_names, strict=True):
                _add(awaited, address.file_id, name)
        return addresses

    def add_file(self, session_id: str, file: UploadedFileRec) -> None:
        """Store a file that has arrived completely."""
        super().add_file(session_id, file)
        self._arrived(session_id, file.file_id)

    def remove_file(self, session_id: str, file_id: str) -> None:
        """Remove a file that was used, or that the user has removed."""
        super().remove_file(session_id, file_id)
        self._arrived(session_id, file_id)

    def remove_session_files(self, session_id: str) -> None:
        """Forget a session."""
        super().remove_session_files(session_id)
        with self._records:
            self._awaited.pop(session_id, None)
            self._seen.pop(session_id, None)

    def get_files(self, session_id: str, file_ids: Sequence[str]) -> list[UploadedFileRec]:
        """Return those of the files that are here; one that never was is missing."""
        found = super().get_files(session_id, file_ids)
        with self._records:
            seen = self._seen.get(session_id) or ()
            here = {one.file_id for one in found}
            for lost in (one for one in file_ids if one not in here and one not in seen):
                awaited = self._awaited.setdefault(session_id, OrderedDict())
                _add(awaited, lost, awaited.get(lost, ""))
        return found

    def take_missing(self, session_id: str) -> list[str]:
        """Return the names of the files that are missing, "" where it is unknown, and report none of them again."""
        with self._records:
            awaited = self._awaited.pop(session_id, OrderedDict())
            seen = self._seen.setdefault(session_id, OrderedDict())
            for identifier in awaited:
                _add(seen, identifier, None)
        return list(awaited.values())

    def _arrived(self, session_id: str, file_id: str) -> None:
        with self._records:
            self._awaited.get(session_id, OrderedDict()).pop(file_id, None)
            _add(self._seen.setdefault(session_id, OrderedDict()), file_id, None)


def take_missing() -> list[str]:
    """Return the files that this session's browser tried to upload in vain since the last call, by name."""
    context = get_script_run_ctx()
    files = context.uploaded_file_mgr if context else None
    return files.take_missing(context.session_id) if context and isinstance(files, RecordedFiles) else []


def _add(entries: OrderedDict[str, Any], key: str, value: Any) -> None:
    entries[key] = value
    if len(entries) > MAX_FILES:
        entries.popitem(last=False)
