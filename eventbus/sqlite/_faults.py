"""
What SQLite's errors mean here.

Law: every statement of ours passes its error through `fault`, once, at the boundary of the
room. What a handler's or an application's own statement raises is left as it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager

from eventbus.errors import (
    StoreAccessError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
)

__all__ = ["closed", "fault", "faults"]

# By primary result code: https://www.sqlite.org/rescode.html
_KINDS: dict[int, tuple[type[StoreError], str]] = {
    sqlite3.SQLITE_BUSY: (StoreLockedError, "somebody else was writing for all of busy_timeout"),
    sqlite3.SQLITE_LOCKED: (StoreLockedError, "a transaction of this process is in the way"),
    sqlite3.SQLITE_FULL: (StoreFullError, "there is no room left; nothing was stored"),
    sqlite3.SQLITE_CORRUPT: (StoreCorruptError, "the file is damaged: restore it from a backup"),
    sqlite3.SQLITE_NOTADB: (StoreCorruptError, "the file is no SQLite database"),
    sqlite3.SQLITE_READONLY: (StoreAccessError, "the file cannot be written to"),
    sqlite3.SQLITE_CANTOPEN: (StoreAccessError, "the file cannot be opened"),
    sqlite3.SQLITE_PERM: (StoreAccessError, "the file may not be opened"),
    sqlite3.SQLITE_IOERR: (StoreError, "the disk failed; nothing was stored"),
}


def fault(error: sqlite3.Error, path: str) -> StoreError:
    """
    Return the error of ours that *error* means.
    """
    code = getattr(error, "sqlite_errorcode", None)
    if code is None and "closed database" in str(error):
        return closed(path)
    kind, text = _KINDS.get((code or 0) & 0xFF, (StoreError, "SQLite refused"))
    return kind(f"{path}: {text} ({error})", path=path)


@contextmanager
def faults(path: str) -> Generator[None]:
    """
    Raise what *fault* makes of an error in the block.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise fault(error, path) from error


def closed(path: str) -> StoreClosedError:
    """
    Return the error that says that the store has been closed.
    """
    return StoreClosedError(f"{path}: the store has been closed", path=path)
