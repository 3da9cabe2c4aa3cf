"""
Snapshots of streams: the value, the protocol, and where they are kept.

Law: a snapshot is kept in the place of the one before, and is nobody's only copy of
anything. When one is made and when it counts is decided elsewhere.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from eventbus.codec import Encoded

if TYPE_CHECKING:
    import sqlite3

__all__ = ["InMemorySnapshots", "SQLiteSnapshots", "Snapshot", "Snapshots", "snapshots_of"]


@attrs.frozen(kw_only=True)
class Snapshot:
    """
    The state of one stream at one version, as it is stored.

    Attributes:
        aggregate: The name of the aggregate that has folded it.
        key: The stream.
        version: How many events it is made of.
        offset: That of the last of them.
        shape: The version of the aggregate's own code.
        state: The state, encoded.

    .. versionadded:: 0.1
    """

    aggregate: str
    key: str
    version: int
    offset: int
    shape: int
    state: Encoded


class Snapshots(Protocol):
    """
    Keeps the latest snapshot of each stream. All methods may be called from any thread.

    .. versionadded:: 0.1
    """

    def load(self, aggregate: str, key: str) -> Snapshot | None:
        """
        Return the snapshot of a stream, if one is kept.
        """
        ...

    def save(self, snapshot: Snapshot) -> None:
        """
        Keep *snapshot* in the place of the one before.
        """
        ...


class InMemorySnapshots:
    """
    Keeps snapshots in this process.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str], Snapshot] = {}

    def load(self, aggregate: str, key: str) -> Snapshot | None:
        """
        Return the snapshot of a stream, if one is kept.
        """
        return self._kept.get((aggregate, key))

    def save(self, snapshot: Snapshot) -> None:
        """
        Keep *snapshot* in the place of the one before.
        """
        self._kept[snapshot.aggregate, snapshot.key] = snapshot


_TABLE = """
    CREATE TABLE IF NOT EXISTS eventbus_snapshots (
        aggregate TEXT NOT NULL,
        key TEXT NOT NULL,
        version INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        shape INTEGER NOT NULL,
        state_name TEXT NOT NULL,
        state_version INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (aggregate, key)
    ) WITHOUT ROWID
"""
_LOAD = """
    SELECT version, "offset", shape, state_name, state_version, state FROM eventbus_snapshots
    WHERE aggregate = ? AND key = ?
"""
_SAVE = "INSERT OR REPLACE INTO eventbus_snapshots VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


class SQLiteSnapshots:
    """
    Keeps snapshots in a table of an SQLite file, that of the store as a rule.

    Nothing is held open between two calls.

    Args:
        path: The file.
        busy_timeout: How long to wait while somebody else writes, in seconds.

    .. versionadded:: 0.1
    """

    def __init__(self, path: str, *, busy_timeout: float = 5.0) -> None:
        self._path = path
        self._busy_timeout = busy_timeout

    def _connect(self) -> sqlite3.Connection:
        import sqlite3  # late: for start-up time

        return sqlite3.connect(self._path, timeout=self._busy_timeout, isolation_level=None)

    def load(self, aggregate: str, key: str) -> Snapshot | None:
        """
        Return the snapshot of a stream, if one is kept.
        """
        known = "SELECT 1 FROM sqlite_master WHERE name = 'eventbus_snapshots'"
        with closing(self._connect()) as connection:
            if connection.execute(known).fetchone() is None:
                return None
            row = connection.execute(_LOAD, (aggregate, key)).fetchone()
        if row is None:
            return None
        version, offset, shape, *state = row
        return Snapshot(
            aggregate=aggregate,
            key=key,
            version=version,
            offset=offset,
            shape=shape,
            state=Encoded(*state),
        )

    def save(self, snapshot: Snapshot) -> None:
        """
        Keep *snapshot* in the place of the one before.
        """
        each = snapshot
        row = (each.aggregate, each.key, each.version, each.offset, each.shape, *each.state)
        with closing(self._connect()) as connection:
            connection.execute(_TABLE)
            connection.execute(_SAVE, row)


def snapshots_of(store: Any) -> Snapshots:
    """
    Return where the snapshots of streams in *store* are kept: in its file, if it has one.
    """
    path = getattr(store, "path", None)
    return InMemorySnapshots() if path is None else SQLiteSnapshots(path)
