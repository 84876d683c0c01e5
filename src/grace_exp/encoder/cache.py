"""A cache on disk: bytes by key, shared by processes, with a size limit.

It uses SQLite from the standard library. The usual cache library, diskcache, has had no release since 2023 and
unpickles the files in its folder. Here values are plain bytes. Every `put` is one transaction in a write-ahead log: a
process that is killed leaves all of its finished `put` calls, and no part of an unfinished one.
"""

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from grace_exp.errors import GraceError

FILE = "rationales-v1.sqlite"
"""Raised when the meaning of the values changes, so that an old file is ignored and not misread."""
GIB = 1024**3
DEFAULT_LIMIT = 20 * GIB

_WAIT_S = 60.0  # longest wait for another process's transaction, which takes milliseconds
_FRESH_S = 3600  # a hit renews the time of an entry only if it is older, so that the hits of one run write nothing
_EVICT_TO = 0.9  # share of the limit, so that not every put evicts
_EVICT_AT_ONCE = 16
_KEYS_AT_ONCE = 500  # SQLite's variables per statement are limited
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class CacheError(GraceError):
    """The cache's file is damaged or cannot be used."""


class RationaleCache:
    """Bytes by key in one SQLite file; when it is full, the least recently used entries are evicted."""

    def __init__(self, folder: Path | str, *, size_limit: int = DEFAULT_LIMIT) -> None:
        """Use the cache in `folder`; its file is created and opened at the first use.

        Args:
            folder: A folder on a local disk, because a write-ahead log does not work over network file systems.
            size_limit: Bytes of the entries; the file itself does not shrink before `clear`.
        """
        self.path = Path(folder).expanduser() / FILE
        self.size_limit = size_limit
        self._opened: tuple[int, sqlite3.Connection] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the open file; a process that gets a copy opens it again."""
        return {**self.__dict__, "_opened": None}

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Return the values of those keys that are in the cache.

        Raises:
            CacheError: The file is damaged or cannot be used; every method may raise it.
        """
        found: dict[bytes, bytes] = {}
        stale: list[bytes] = []
        now = int(time.time())
        with self._connection() as connection:
            for start in range(0, len(keys), _KEYS_AT_ONCE):
                chunk = keys[start : start + _KEYS_AT_ONCE]
                marks = ",".join("?" * len(chunk))
                for key, used, value in connection.execute(
                    f"SELECT key, used, value FROM entries WHERE key IN ({marks})", tuple(chunk)
                ):
                    found[key] = value
                    if used < now - _FRESH_S:
                        stale.append(key)
            if stale:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("UPDATE entries SET used = ? WHERE key = ?", [(now, key) for key in stale])
                connection.execute("COMMIT")
        return found

    def put(self, entries: Mapping[bytes, bytes]) -> None:
        """Store entries, all or none of them; then evict entries down to the limit."""
        now = int(time.time())
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(
                "INSERT OR REPLACE INTO entries (key, used, value) VALUES (?, ?, ?)",
                [(key, now, value) for key, value in entries.items()],
            )
            self._evict(connection)
            connection.execute("COMMIT")

    def clear(self) -> int:
        """Delete all entries, free their disk space, and return how many bytes they took."""
        with self._connection() as connection:
            total = "SELECT COALESCE(SUM(LENGTH(key) + LENGTH(value)), 0) FROM entries"
            freed = int(connection.execute(total).fetchone()[0])
            connection.execute("DELETE FROM entries")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            return freed

    def size(self) -> int:
        """Return the bytes of the entries, in whole pages of the file."""
        with self._connection() as connection:
            return _bytes_used(connection)

    def __len__(self) -> int:
        """Return the number of entries."""
        with self._connection() as connection:
            return int(connection.execute("SELECT COUNT(*) FROM entries").fetchone()[0])

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def _evict(self, connection: sqlite3.Connection) -> None:
        if _bytes_used(connection) <= self.size_limit:
            return
        while _bytes_used(connection) > _EVICT_TO * self.size_limit:
            deleted = connection.execute(
                "DELETE FROM entries WHERE rowid IN (SELECT rowid FROM entries ORDER BY used, rowid LIMIT ?)",
                (_EVICT_AT_ONCE,),
            )
            if deleted.rowcount == 0:
                return

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection of this process; an SQLite connection does not survive a fork."""
        try:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = (os.getpid(), self._open())
            connection = self._opened[1]
            try:
                yield connection
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and code & 0xFF in _DAMAGED:
                raise CacheError(
                    f"the rationale cache {self.path} is damaged ({error}): delete that file; what it held is written "
                    "and computed again"
                ) from error
            raise CacheError(
                f"the rationale cache {self.path} cannot be used ({error}): make room or choose another folder, on a "
                "disk of this machine (cache_dir=..., GRACE_EXP_CACHE), or go without (cache=False)"
            ) from error

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Turning on the log fails at once, without waiting, if two processes do it at the same time.
        with FileLock(f"{self.path}.lock", timeout=_WAIT_S):
            connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last puts, no more
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, used INTEGER NOT NULL, value BLOB NOT "
                    "NULL)"
                )
                connection.execute("CREATE INDEX IF NOT EXISTS entries_used ON entries (used)")
            except sqlite3.Error:
                connection.close()
                raise
            return connection


def _bytes_used(connection: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use; a sum over the entries would read all of them."""
    pages, free, page_size = (
        int(connection.execute(f"PRAGMA {name}").fetchone()[0])
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * page_size
