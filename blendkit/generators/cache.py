"""Answers that were paid for, in an SQLite file that several processes may share."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

from blendkit.errors import OutputError

# SQLite's own limit on variables in one statement is higher; this one is safe everywhere.
MANY = 500
WAIT = 60.0  # seconds, for another process that writes


class Cache:
    """Values by key, for one thread at a time. A `put` is on disk when it returns: a killed process loses nothing that it was told.

    Raises:
        OutputError: the file cannot be written, or is no such cache.
    """

    def __init__(self, path: str, max_bytes: int) -> None:
        """A row of more than `max_bytes` is none of ours, and is not read."""
        self.path, self.max_bytes = path, max_bytes
        self._open: sqlite3.Connection | None = None
        try:
            self._database.execute("BEGIN IMMEDIATE")
            # An existing table is left alone by this: only a look shows that it is ours.
            self._database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            self._database.execute("SELECT key, value FROM answers LIMIT 0")
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._fault(error) from error

    @property
    def _database(self) -> sqlite3.Connection:
        if self._open is None:
            database = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            try:
                self._set_up(database)
            except BaseException:
                database.close()
                raise
            self._open = database
        return self._open

    def _set_up(self, database: sqlite3.Connection) -> None:
        # While another process sets the same file up, SQLite may say `locked` at once instead of waiting.
        end = time.monotonic() + WAIT
        while True:
            try:
                tables = set(database.execute("SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view')"))
                if tables and ("table", "answers") not in tables:
                    raise OutputError(f"--cache {self.path}: the database of another program; name another file, or `none`")
                # Readers and one writer at a time, side by side; a write waits for the log only.
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA synchronous=NORMAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Closes the file, and so folds its log in; the next use opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def get(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The values of those keys that are there; empty for one that is too long or missing in its row."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, bytes] = {}
        value = "CASE WHEN length(CAST(value AS BLOB)) <= ? THEN CAST(value AS BLOB) END"
        try:
            for start in range(0, len(wanted), MANY):
                part = wanted[start : start + MANY]
                question = f"SELECT key, {value} FROM answers WHERE key IN ({','.join('?' * len(part))})"
                found.update((key, data or b"") for key, data in self._database.execute(question, (self.max_bytes, *part)))
        except sqlite3.Error as error:
            raise self._fault(error) from error
        return found

    def drop(self, keys: Iterable[str]) -> None:
        """Takes out rows that nobody can read."""
        try:
            self._database.executemany("DELETE FROM answers WHERE key = ?", [(key,) for key in keys])
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def put(self, key: str, value: bytes) -> None:
        """Keeps a value; one that is there already stays."""
        try:
            self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", (key, value))
        except sqlite3.Error as error:
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> OutputError:
        return OutputError(f"--cache {self.path}: {error}; name another file, or `none`")
