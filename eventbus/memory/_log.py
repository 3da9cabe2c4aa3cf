"""
The event log in memory.

Law: one lock around what changes; no code of others runs under it. Here records are
objects in a list, and a look at the log is a look at a page of it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from itertools import islice
from math import inf
from operator import attrgetter
from threading import RLock
from types import MappingProxyType
from typing import Any

import attrs

from eventbus._fork import renewed
from eventbus.errors import StoreError
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

__all__ = ["InMemoryEventLog"]

_PAGE = 256  # records looked at between two looks at the log; any number serves
_offset_of = attrgetter("offset")
Staged = list[tuple[Sequence[Record], int | None]]


class InMemoryEventLog:
    """
    Keeps records in this process, until it ends.

    Args:
        floor: Returns the offset up to which every subscription has finished.
        lock: What to hold while something changes; reentrant.
        changes: Returns how often something else has changed that `changes` is to show.

    Attributes:
        listeners: Who is called after each append.
        staged: What waits for the commit of a transaction, by its connection.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        floor: Callable[[], float] = lambda: inf,
        lock: AbstractContextManager[Any] | None = None,
        changes: Callable[[], int] = lambda: 0,
    ) -> None:
        self._floor = floor
        self._other_changes = changes
        self._records: list[Record] = []
        self._streams: dict[str, list[Record]] = {}
        self._versions: dict[str, int] = {}
        self._by_id: dict[str, Record] = {}
        self._changes = 0
        self._lock = renewed(RLock()) if lock is None else lock
        self.listeners = Listeners()
        self.staged: dict[Any, Staged] = {}

    def append(
        self,
        records: Sequence[Record],
        *,
        expected_version: int | None = None,
        connection: Any = None,
    ) -> list[int]:
        """
        Store all *records* or none, in this order; return their offsets.
        """
        if connection is not None:
            self._staged_for(connection).append((records, expected_version))
            return [0] * len(records)
        with self._lock:
            offsets = self.store(records, expected_version)
        if offsets:
            self.listeners.call()
        return offsets

    def _staged_for(self, connection: Any) -> Staged:
        try:
            return self.staged[connection]
        except KeyError:
            raise StoreError(
                "a store in memory can be joined in its own transactions only; use SQLiteStore, "
                "on a temporary file, to test the application's"
            ) from None

    def store(self, records: Sequence[Record], expected_version: int | None) -> list[int]:
        """
        Do as `append`, under the caller's lock and without calling anybody.
        """
        if expected_version is not None and records:
            key = stream_of(records)
            check_version(key, expected_version, self._versions.get(key, 0))
        check_times(*(record.time for record in records))
        ids = set[str]()
        for record in records:
            if record.id in self._by_id or record.id in ids:
                raise duplicate(record.id)
            ids.add(record.id)
        first = self.last_offset() + 1
        for offset, record in enumerate(records, start=first):
            time, headers = record.time.astimezone(UTC), MappingProxyType(dict(record.headers))
            self._keep(attrs.evolve(record, offset=offset, time=time, headers=headers))
        return list(range(first, first + len(records)))

    def _keep(self, record: Record) -> None:
        self._records.append(record)
        self._by_id[record.id] = record
        self._changes += 1
        if record.key is not None:
            self._streams.setdefault(record.key, []).append(record)
            self._versions[record.key] = self._versions.get(record.key, 0) + 1

    def forget_after(self, offset: int) -> None:
        """
        Take the newest records back, as a rolled back transaction does.
        """
        while self.last_offset() > offset:
            record = self._records.pop()
            del self._by_id[record.id]
            if record.key is not None:
                self._streams[record.key].pop()
                self._versions[record.key] -= 1

    async def aappend(
        self, records: Sequence[Record], *, expected_version: int | None = None
    ) -> list[int]:
        """
        Do as `append`, which waits for nothing here.
        """
        return self.append(records, expected_version=expected_version)

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
        records = self._records if key is None else self._streams.get(key, [])
        found = (
            record
            for record in self._pages(records, after, inf if until is None else until, backwards)
            if (since is None or record.time >= since)
            and (before is None or record.time < before)
            and (names is None or record.name in names)
        )
        return islice(found, limit)

    def _pages(
        self, records: list[Record], after: float, until: float, backwards: bool
    ) -> Iterator[Record]:
        while True:
            with self._lock:
                first = bisect_right(records, after, key=_offset_of)
                last = bisect_right(records, until, key=_offset_of)
                if backwards:
                    page = records[max(first, last - _PAGE) : last][::-1]
                else:
                    page = records[first : min(last, first + _PAGE)]
            if not page:
                return
            yield from page
            if backwards:
                until = page[-1].offset - 1
            else:
                after = page[-1].offset

    def get(self, id: str) -> Record | None:
        """
        Return the record of the event with that id, if it is kept.
        """
        return self._by_id.get(id)

    def correlated(self, correlation_id: str) -> list[Record]:
        """
        Return the records with that correlation id, in the order of their offsets.
        """
        return [record for record in self.read() if record.correlation_id == correlation_id]

    def last_offset(self) -> int:
        """
        Return the greatest offset; 0 when nothing was ever appended.
        """
        return self._records[-1].offset if self._records else 0

    def count_after(self, offset: int) -> int:
        """
        Return how many records have a greater offset.
        """
        with self._lock:
            return len(self._records) - bisect_right(self._records, offset, key=_offset_of)

    def offset_before(self, instant: datetime) -> int:
        """
        Return the offset after which to read for all from *instant* on.
        """
        first = next(self.read(since=instant, limit=1), None)
        return self.last_offset() if first is None else first.offset - 1

    def stream_version(self, key: str) -> int:
        """
        Return how many records were ever appended with that key, pruned ones included.
        """
        return self._versions.get(key, 0)

    def prune(self, *, before: datetime | int) -> int:
        """
        Take the oldest records away and count them.
        """
        until = before - 1 if isinstance(before, int) else self.offset_before(before)
        limit = min(until, self._floor(), self.last_offset() - 1)
        with self._lock:
            gone = self._records[: bisect_right(self._records, limit, key=_offset_of)]
            del self._records[: len(gone)]
            for record in gone:
                del self._by_id[record.id]
                if record.key is not None:
                    self._streams[record.key].remove(record)
        return len(gone)

    def changes(self) -> int:
        """
        Return a number that is another one whenever something was committed since.
        """
        return self._changes + self._other_changes()

    def on_append(self, callback: Callable[[], object]) -> Callable[[], None]:
        """
        Have *callback* called after every append; return what ends that.
        """
        return self.listeners.add(callback)
