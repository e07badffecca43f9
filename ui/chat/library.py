"""The conversations of all browsers: open ones in memory, all of them in the store."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from pathlib import Path
from weakref import WeakValueDictionary

from ui.chat.documents import from_json, to_json
from ui.chat.store import ConversationStore, Summary
from ui.conversation import Conversation

__all__ = ["Library", "open_library"]

logger = logging.getLogger(__name__)


class Library:
    """Hands out conversations, each one once: pages of the same browser and the thread of a reply share it.

    A browser without an identifier (None) has conversations that are not kept.
    """

    def __init__(self, store: ConversationStore) -> None:
        self._store = store
        self._open: WeakValueDictionary[tuple[str, str], Conversation] = WeakValueDictionary()
        self._lock = threading.RLock()

    def new(self, browser: str | None) -> Conversation:
        """Return an empty conversation; it is kept from its first question on."""
        return self._adopt(browser, Conversation())

    def open(self, browser: str | None, identifier: str) -> Conversation | None:
        """Return a conversation of this browser; None if it has no such one, or it cannot be read."""
        if browser is None:
            return None
        with self._lock:
            conversation = self._open.get((browser, identifier))
            if conversation is not None:
                return conversation
            try:
                data = self._store.load(browser, identifier)
                return self._adopt(browser, from_json(data)) if data else None
            except (sqlite3.Error, ValueError, KeyError, TypeError):
                logger.warning("a conversation cannot be read", exc_info=True)
                return None

    def list(self, browser: str | None) -> list[Summary]:
        """Return what is kept for this browser, the latest first."""
        if browser is None:
            return []
        try:
            return self._store.list(browser)
        except sqlite3.Error:
            logger.warning("the conversations cannot be listed", exc_info=True)
            return []

    def delete(self, browser: str | None, conversation: Conversation) -> None:
        """Stop and delete a conversation; what its reply saves later is ignored. Raises sqlite3.Error."""
        with self._lock:
            conversation.save = _ignore
            conversation.stop()
            conversation.waiting = None
            if browser is not None:
                self._open.pop((browser, conversation.id), None)
                self._store.delete(browser, conversation.id)

    def _adopt(self, browser: str | None, conversation: Conversation) -> Conversation:
        if browser is not None:
            owner = browser

            def save(conversation: Conversation) -> None:
                self._save(owner, conversation)

            conversation.save = save
            with self._lock:
                self._open[owner, conversation.id] = conversation
        return conversation

    def _save(self, browser: str, conversation: Conversation) -> None:
        """Save a conversation; a failure is logged, since the chat works without."""
        with self._lock:
            if conversation.save is _ignore or not conversation.exchanges:
                return
            try:
                kept = self._store.save(browser, conversation.id, conversation.title, to_json(conversation))
                if not kept:
                    logger.warning("a conversation is too large to be kept")
            except sqlite3.Error:
                logger.warning("a conversation cannot be kept", exc_info=True)


def open_library() -> Library:
    """Return the library in the directory `ui` of GLM_STATE; without the variable or the directory, in memory."""
    state = os.environ.get("GLM_STATE")
    if state:
        path = Path(state, "ui", "conversations.sqlite")
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            return Library(ConversationStore(path))
        except (OSError, sqlite3.Error) as error:
            logger.warning("conversations are kept in memory until the page ends: %s: %s", path, error)
    return Library(ConversationStore())


def _ignore(_: Conversation) -> None:
    """Save nothing: the conversation was deleted."""
