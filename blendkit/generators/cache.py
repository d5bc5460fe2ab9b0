"""Answers that were paid for, in an SQLite file that several processes may share."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from blendkit.errors import OutputError

# SQLite's own limit on variables in one statement is higher; this one is safe everywhere.
MANY = 500


class Cache:
    """Values by key, for one thread at a time. A `put` is on disk when it returns: a killed process loses nothing that it was told.

    Raises:
        OutputError: the file cannot be written, or is no such cache.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._open: sqlite3.Connection | None = None
        try:
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            # An existing table is left alone by the line above: only a write shows that one is possible.
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._fault(error) from error

    @property
    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            # Readers and one writer at a time, side by side; a write waits for the log only.
            self._open.execute("PRAGMA journal_mode=WAL")
            self._open.execute("PRAGMA synchronous=NORMAL")
        return self._open

    def close(self) -> None:
        """Closes the file, and so folds its log in; the next use opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The values of those keys that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, bytes] = {}
        try:
            for start in range(0, len(wanted), MANY):
                part = wanted[start : start + MANY]
                found.update(self._database.execute(f"SELECT key, value FROM answers WHERE key IN ({','.join('?' * len(part))})", part))
        except sqlite3.Error as error:
            raise self._fault(error) from error
        return found

    def put(self, key: str, value: bytes) -> None:
        """Keeps a value; one that is there already stays."""
        try:
            self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> OutputError:
        return OutputError(f"--cache {self.path}: {error}; name another file, or `none`")
