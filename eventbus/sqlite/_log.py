"""
The event log in a table.

Law: appending is one INSERT, reading is pages of one SELECT: no cursor stays open while
somebody thinks about a record. What is to hold if an append does is in its transaction.
Conditions are put together from the texts in this file; what a user gives is a parameter.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from threading import Lock
from typing import Any

from eventbus._fork import renewed
from eventbus._logger import logger
from eventbus.event_log import (
    Listeners,
    Record,
    check_limit,
    check_names,
    check_times,
    check_version,
    duplicate,
    stream_of,
)
from eventbus.sqlite._database import Database
from eventbus.sqlite._faults import faults
from eventbus.sqlite._joining import check_joinable
from eventbus.sqlite._keys import SQLiteIdempotencyStore
from eventbus.sqlite._rows import RECORD, from_record, from_time, to_record
from eventbus.sqlite._writer import Statements, Work, Writer, cursor_of, in_savepoint

__all__ = ["SQLiteEventLog"]

Along = Callable[[Any], object]

# The version of a stream: that of its newest record, or what was noted when that was pruned.
_VERSION = """
    coalesce(
        (SELECT stream_version FROM eventbus_events WHERE key = ? ORDER BY "offset" DESC LIMIT 1),
        (SELECT version FROM eventbus_streams WHERE key = ?),
        0
    )
"""
_COLUMNS = RECORD.partition(", ")[2]  # all but the offset
_KEY = _COLUMNS.split(", ").index("key")
_PLAIN = f"INSERT INTO eventbus_events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# The last three parameters are the key, once more each.
_IN_STREAM = f"""
    INSERT INTO eventbus_events ({_COLUMNS}, stream_version)
    VALUES (
        ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CASE WHEN ? IS NULL THEN NULL ELSE 1 + {_VERSION} END
    )
"""
_VERSION_OF = f"SELECT {_VERSION}"
_PAGE = 200  # rows; memory for one page against statements per record
_PRUNED_AT_ONCE = 5_000  # rows; others wait to write meanwhile


class SQLiteEventLog:
    """
    Keeps records in the file of a `SQLiteStore`, which makes it.

    .. versionadded:: 0.1
    """

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._watch: sqlite3.Connection | None = None
        self._watching = renewed(Lock())
        self._place = _place_of(database.path)
        self.listeners = Listeners()

    def has_keys(self, keys: object) -> bool:
        """
        Whether *keys* are in this file, and `append` can change them *along* with it.
        """
        return isinstance(keys, SQLiteIdempotencyStore) and keys.path == self._database.path

    def append(
        self,
        records: Sequence[Record],
        *,
        expected_version: int | None = None,
        connection: sqlite3.Connection | None = None,
        along: Along | None = None,
    ) -> list[int]:
        """
        Store all *records* or none, in this order; return their offsets.

        Args:
            records: See `EventLog.append`, also for the next two.
            expected_version: The version of their stream.
            connection: Whose transaction to join.
            along: Called with the connection that writes, in the same transaction: if it
                raises, nothing is stored. It may be called by another thread.
        """
        if connection is not None:
            return self._join(connection, records, expected_version)
        if not records:
            return []
        if len(records) == 1 and expected_version is None and along is None:
            try:
                offsets = [self._writer.insert(*_insertion(records[0]))]
            except sqlite3.IntegrityError as error:
                raise duplicate(records[0].id) from error
        else:
            offsets = self._writer.run(_storing(records, expected_version, along))
        self.listeners.call()
        return offsets

    async def aappend(
        self,
        records: Sequence[Record],
        *,
        expected_version: int | None = None,
        along: Along | None = None,
    ) -> list[int]:
        """
        Do as `append`, without blocking the event loop while the disk is at work.
        """
        if not records:
            return []
        if len(records) == 1 and expected_version is None and along is None:
            try:
                offsets = [await self._writer.ainsert(*_insertion(records[0]))]
            except sqlite3.IntegrityError as error:
                raise duplicate(records[0].id) from error
        else:
            offsets = await self._writer.arun(_storing(records, expected_version, along))
        self.listeners.call()
        return offsets

    def _join(
        self, connection: sqlite3.Connection, records: Sequence[Record], version: int | None
    ) -> list[int]:
        self._database.check_usable()
        with faults(self._database.path):
            check_joinable(connection, self._database.path)
            if not records:
                return []
            return in_savepoint(connection, _storing(records, version), cursor_of(connection))

    def read(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        since: datetime | None = None,
        before: datetime | None = None,
        names: Collection[str] | None = None,
        key: str | None = None,
        backwards: bool = False,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """
        Go through the records that meet all conditions, in the order of their offsets.
        """
        check_times(since, before)
        check_names(names)
        check_limit(limit)
        self._database.check_usable()
        conditions: list[tuple[str, Sequence[Any]]] = []
        if since is not None:
            conditions.append(("time >= ?", (from_time(since),)))
        if before is not None:
            conditions.append(("time < ?", (from_time(before),)))
        if key is not None:
            conditions.append(("key = ?", (key,)))
        if names is not None:
            conditions.append((f"name IN ({', '.join('?' * len(names))})", tuple(names)))
        last = _GREATEST if until is None else until
        return self._pages(conditions, after, last, backwards, limit)

    def _pages(
        self,
        conditions: list[tuple[str, Sequence[Any]]],
        after: int,
        until: int,
        backwards: bool,
        limit: int | None,
    ) -> Iterator[Record]:
        where = "".join(f" AND {text}" for text, _ in conditions)
        given = [value for _, values in conditions for value in values]
        sql = (
            f'SELECT {RECORD} FROM eventbus_events WHERE "offset" > ? AND "offset" <= ?{where} '
            f'ORDER BY "offset" {"DESC" if backwards else "ASC"} LIMIT ?'
        )
        left = limit
        while left is None or left > 0:
            size = _PAGE if left is None else min(_PAGE, left)
            rows = self._database.query(sql, (after, until, *given, size))
            yield from map(to_record, rows)
            if len(rows) < size:
                return
            if backwards:
                until = rows[-1][0] - 1
            else:
                after = rows[-1][0]
            left = None if left is None else left - size

    def get(self, id: str) -> Record | None:
        """
        Return the record of the event with that id, if it is kept.
        """
        rows = self._database.query(f"SELECT {RECORD} FROM eventbus_events WHERE id = ?", (id,))
        return to_record(rows[0]) if rows else None

    def correlated(self, correlation_id: str) -> list[Record]:
        """
        Return the records with that correlation id, in the order of their offsets.
        """
        sql = (
            f"SELECT {RECORD} FROM eventbus_events WHERE correlation_id = ? "
            f"UNION SELECT {RECORD} FROM eventbus_events WHERE id = ? AND correlation_id IS NULL "
            f"ORDER BY 1"
        )
        return list(map(to_record, self._database.query(sql, (correlation_id,) * 2)))

    def last_offset(self) -> int:
        """
        Return the greatest offset; 0 when nothing was ever appended.
        """
        return self._number('SELECT coalesce(max("offset"), 0) FROM eventbus_events')

    def offset_before(self, instant: datetime) -> int:
        """
        Return the offset after which to read for all from *instant* on.
        """
        check_times(instant)
        sql = (
            'SELECT coalesce((SELECT "offset" - 1 FROM eventbus_events WHERE time >= ? '
            'ORDER BY "offset" LIMIT 1), (SELECT max("offset") FROM eventbus_events), 0)'
        )
        return self._number(sql, from_time(instant))

    def stream_version(self, key: str) -> int:
        """
        Return how many records were ever appended with that key, pruned ones included.
        """
        return self._number(_VERSION_OF, key, key)

    def _number(self, sql: str, *parameters: Any) -> int:
        number: int = self._database.query(sql, parameters)[0][0]
        return number

    def prune(self, *, before: datetime | int) -> int:
        """
        Take the oldest records away and count them, a few thousand in each transaction.
        """
        until = before - 1 if isinstance(before, int) else self.offset_before(before)
        count = 0
        while gone := self._writer.run(lambda connection: _prune(connection, until)):
            count += gone
        return count

    def changes(self) -> int:
        """
        Return a number that is another one whenever something was committed since.
        """
        # It counts what other connections commit: this one never writes, so all of them.
        self._database.check_usable()
        self._look_for_file()
        with self._watching, faults(self._database.path):
            if self._watch is None:
                self._watch = self._database.connect(sqlite3.Connection)
            number: int = self._watch.execute("PRAGMA data_version").fetchone()[0]
        return number

    def _look_for_file(self) -> None:
        """
        Log, once, that what is written is lost: the file is not where it was opened.
        """
        if self._place is not None and self._place != _place_of(self._database.path):
            self._place = None
            logger().error(
                "%s was moved, replaced or deleted while it was open: what is written from then "
                "on is in no file that anybody finds. End this process, put the file in its "
                "place again, and move or copy it only while nobody has it open.",
                self._database.path,
            )

    def on_append(self, callback: Callable[[], object]) -> Callable[[], None]:
        """
        Have *callback* called after every append in this process; return what ends that.
        """
        return self.listeners.add(callback)

    def close(self) -> None:
        """
        Stop watching.
        """
        self._look_for_file()
        self._place = None
        with self._watching:
            watch, self._watch = self._watch, None
            if watch is not None:
                watch.close()


def _place_of(path: str) -> tuple[int, int] | None:
    """
    Return what tells this file from any other that may come by its name.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_GREATEST = 2**63 - 1  # SQLite's greatest integer


def _insertion(record: Record) -> tuple[str, tuple[Any, ...]]:
    """
    Return the statement that stores a record, and its parameters.
    """
    row = from_record(record)
    return (_PLAIN, row) if record.key is None else (_IN_STREAM, _with_key(row))


def _with_key(row: tuple[Any, ...]) -> tuple[Any, ...]:
    key = row[_KEY]
    return (*row, key, key, key)


def _storing(
    records: Sequence[Record], expected_version: int | None, along: Along | None = None
) -> Work[list[int]]:
    """
    Return what stores *records* in a transaction; they are encoded before it begins.
    """
    key = None if expected_version is None else stream_of(records)
    insert, rows = _PLAIN, list(map(from_record, records))
    if any(record.key is not None for record in records):
        insert, rows = _IN_STREAM, list(map(_with_key, rows))

    def store(connection: Statements) -> list[int]:
        if expected_version is not None and key is not None:
            actual = connection.execute(_VERSION_OF, (key, key)).fetchone()[0]
            check_version(key, expected_version, actual)
        before = _changes(connection)
        try:
            connection.executemany(insert, rows)
        except sqlite3.IntegrityError as error:
            raise duplicate(records[_changes(connection) - before].id) from error
        # In one transaction nobody else inserts: the offsets are consecutive.
        last = connection.execute("SELECT last_insert_rowid()").fetchone()[0]
        if along is not None:
            along(connection)
        return list(range(last - len(rows) + 1, last + 1))

    return store


def _changes(connection: Statements) -> int:
    number: int = connection.execute("SELECT total_changes()").fetchone()[0]
    return number


_FLOOR = """
    SELECT min(floor) FROM (
        SELECT coalesce(
            (SELECT min("offset") - 1 FROM eventbus_deliveries WHERE subscription = each.id),
            each.taken
        ) AS floor
        FROM eventbus_subscriptions AS each
        UNION ALL
        SELECT min("offset") - 1 FROM eventbus_letters WHERE holds_key
    )
"""


def _prune(connection: Statements, until: int) -> int:
    first, last = connection.execute(
        'SELECT min("offset"), max("offset") FROM eventbus_events'
    ).fetchone()
    if first is None:
        return 0
    floor = connection.execute(_FLOOR).fetchone()[0]
    limit = min(until, last - 1, first + _PRUNED_AT_ONCE - 1, last if floor is None else floor)
    connection.execute(
        "INSERT OR REPLACE INTO eventbus_streams (key, version) "
        "SELECT key, max(stream_version) FROM eventbus_events "
        'WHERE "offset" <= ? AND key IS NOT NULL GROUP BY key',
        (limit,),
    )
    return connection.execute('DELETE FROM eventbus_events WHERE "offset" <= ?', (limit,)).rowcount
