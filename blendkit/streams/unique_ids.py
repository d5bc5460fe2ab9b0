"""The ids that a stream has had so far: in memory for a short stream, on disk for a long one."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from blendkit.errors import OutputError

# A set of this many hashes takes some 25 MB.
IN_MEMORY = 1 << 18
CACHE_KIB = 16 << 10


class UniqueIds:
    """A set of strings or other constants, as their 64-bit hashes.

    Beyond `in_memory` of them it lies in a temporary SQLite file without a name, which ends with the process.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._keys: set[int] = set()
        self._in_memory = in_memory
        self._disk: _OnDisk | None = None

    def add(self, item: Hashable) -> bool:
        """Adds the item; False when it was there before.

        Raises:
            OutputError: no room for the temporary file.
        """
        key = hash(item)
        if self._disk is not None:
            return self._disk.add([key]) == 1
        if key in self._keys:
            return False
        self._keys.add(key)
        if len(self._keys) >= self._in_memory:
            self._disk = _OnDisk()
            self._disk.add(sorted(self._keys))
            self._keys = set()
        return True

    def __contains__(self, item: Hashable) -> bool:
        """Raises OutputError as `add` does."""
        key = hash(item)
        return key in self._keys if self._disk is None else self._disk.has(key)


class _OnDisk:
    def __init__(self) -> None:
        import sqlite3  # only long streams need it

        self._error = sqlite3.Error
        try:
            # Different threads may use it, one after the other.
            self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            for setting in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{CACHE_KIB}"):
                self._database.execute(f"PRAGMA {setting}")
            self._database.execute("CREATE TABLE seen (key INTEGER PRIMARY KEY)")
            self._database.execute("BEGIN")
        except sqlite3.Error as error:
            raise OutputError.of_temporary_files(error) from error

    def add(self, keys: Iterable[int]) -> int:
        """How many of them are new."""
        try:
            return self._database.executemany("INSERT OR IGNORE INTO seen VALUES (?)", ((key,) for key in keys)).rowcount
        except self._error as error:
            raise OutputError.of_temporary_files(error) from error

    def has(self, key: int) -> bool:
        try:
            return self._database.execute("SELECT 1 FROM seen WHERE key = ?", (key,)).fetchone() is not None
        except self._error as error:
            raise OutputError.of_temporary_files(error) from error
