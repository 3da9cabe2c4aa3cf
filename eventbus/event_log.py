"""
The event log: the record, the protocol, and what every log refuses.

Law: a log stores records and knows nothing of events: names, keys and payloads are text
and bytes to it. Records are appended and read, never changed; only `EventLog.prune`
takes some away, from the oldest on. Nothing here encodes, delivers or waits.

Offsets begin at 1 and grow in the order in which appends became visible: a reader that
has seen offset *n* never meets a smaller one later. Gaps are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from threading import Lock
from typing import Any, Protocol, cast

import attrs

from eventbus._envelope import NO_HEADERS
from eventbus._fork import renewed
from eventbus._logger import logger
from eventbus.errors import ConcurrencyError, DuplicateEventError

__all__ = [
    "EventLog",
    "Listeners",
    "Record",
    "check_expected",
    "check_limit",
    "check_names",
    "check_times",
    "check_version",
    "duplicate",
    "stream_of",
]


# No slot for weak references: it would keep `RecordDraft` from becoming a record.
@attrs.frozen(kw_only=True, weakref_slot=False)
class Record:
    """
    One event as it is stored: its envelope, and its payload as bytes.

    Attributes:
        offset: Its position in the log, from 1; 0: it is in no log yet.
        id: The event's id, unique in a log.
        name: The event's stable name.
        version: The version of the payload's shape, from 1.
        key: What groups events of one entity: the name of its stream, or ``None``.
        time: When the envelope was made, in UTC.
        correlation_id: Shared by everything that one root event led to.
        causation_id: The id of the event whose handler published this one, or ``None``.
        headers: What publisher and bus added: text to text.
        payload: The encoded event.
        is_intact: ``False``: the stored bytes are not those that were written.

    .. versionadded:: 0.1
    """

    offset: int = 0
    id: str
    name: str
    version: int = 1
    key: str | None = None
    time: datetime
    correlation_id: str
    causation_id: str | None = None
    headers: Mapping[str, str] = attrs.field(default=NO_HEADERS, hash=False)
    payload: bytes = attrs.field(repr=False)
    is_intact: bool = True


class RecordDraft:
    """
    A record while it is written; when all is there, `seal` makes it one.

    A frozen class stores each field by a call, which makes a record four times as expensive
    as this does, and there is one for each event that is stored or read.
    """

    __slots__ = tuple(field.name for field in attrs.fields(Record))

    offset: int
    id: str
    name: str
    version: int
    key: str | None
    time: datetime
    correlation_id: str
    causation_id: str | None
    headers: Mapping[str, str]
    payload: bytes
    is_intact: bool

    def seal(self) -> Record:
        """
        Become the record; nothing can be changed any more.
        """
        sealed: Any = self
        sealed.__class__ = Record
        return sealed  # type: ignore[no-any-return]


class EventLog(Protocol):
    """
    Keeps the history: append-only, in one order, with streams by key in it.

    All methods may be called from any thread. Times must have a time zone, or
    `ValueError` is raised. `eventbus.testing.contracts` holds what every
    implementation passes.

    .. versionadded:: 0.1
    """

    def append(
        self,
        records: Sequence[Record],
        *,
        expected_version: int | None = None,
        connection: Any = None,
    ) -> list[int]:
        """
        Store all *records* or none, in this order; return their offsets.

        When this returns they survive the process. Concurrent calls may share one commit.

        Args:
            records: Their own offsets are ignored. None at all is fine, and does nothing.
            expected_version: The version that the stream of the records' one key must have.
            connection: Join the transaction of this connection to the same database, and
                leave the commit to its owner; readers see the records after it. A log
                without transactions raises `StoreError`. An offset that will be known
                only after the commit is returned as 0.

        Raises:
            ConcurrencyError: The stream has another version than expected.
            DuplicateEventError: One of the ids is in the log already, or comes twice.
            ValueError: *expected_version* is given and the records have not one key.
            StoreError: The records could not be stored; the subclass says why.
        """
        ...

    async def aappend(
        self, records: Sequence[Record], *, expected_version: int | None = None
    ) -> list[int]:
        """
        Do as `append`, without blocking the event loop while the disk is at work.

        Cancelled, it may have stored the records or not, but all or none.
        """
        ...

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

        Nothing is held open between two records, however slowly one goes; records that
        are appended meanwhile may turn up, pruned ones may not.

        Args:
            after: Only greater offsets.
            until: Only offsets up to this one.
            since: Only times then or later. The clock may have been set back: this tells
                of each record, and says nothing about its neighbours.
            before: Only earlier times.
            names: Only these names; none of them selects nothing.
            key: Only this stream.
            backwards: Begin with the greatest offset.
            limit: At most so many.
        """
        ...

    def get(self, id: str) -> Record | None:
        """
        Return the record of the event with that id, if it is kept.
        """
        ...

    def correlated(self, correlation_id: str) -> list[Record]:
        """
        Return the records with that correlation id, in the order of their offsets.
        """
        ...

    def last_offset(self) -> int:
        """
        Return the greatest offset; 0 when nothing was ever appended.
        """
        ...

    def offset_before(self, instant: datetime) -> int:
        """
        Return the offset after which to read for all from *instant* on.

        That is the one before the first record whose time is *instant* or later; the
        last offset, if there is none.
        """
        ...

    def stream_version(self, key: str) -> int:
        """
        Return how many records were ever appended with that key, pruned ones included.
        """
        ...

    def prune(self, *, before: datetime | int) -> int:
        """
        Take the oldest records away and count them.

        Args:
            before: An offset: smaller ones go. A time: those before the first record of
                that time or later.

        What a subscription has not finished stays, with everything after it; so do the
        events of keys that are held behind a dead letter, and the newest record.
        """
        ...

    def changes(self) -> int:
        """
        Return a number that is another one whenever something was committed since.

        By any thread or process. It is what a reader polls that waits for records: cheap,
        and for comparing only with the number returned before.
        """
        ...

    def on_append(self, callback: Callable[[], object]) -> Callable[[], None]:
        """
        Have *callback* called after every append in this process; return what ends that.

        It is called in the appending thread, outside any lock, when the records can be
        read; it must be quick and not raise. What was appended by another
        process, or in the application's own transaction, shows in `changes` only.
        """
        ...


def stream_of(records: Sequence[Record]) -> str:
    """
    Return the one key that all *records* have.

    Raises:
        ValueError: They have none, or several.

    .. versionadded:: 0.1
    """
    keys = {record.key for record in records}
    key = keys.pop() if len(keys) == 1 else None
    if key is None:
        raise ValueError("expected_version is that of one stream: all events must have one key")
    return key


def check_times(*times: datetime | None) -> None:
    """
    Refuse times that could mean anything.

    Raises:
        TypeError: One of them is no time.
        ValueError: One of them has no time zone.

    .. versionadded:: 0.1
    """
    for time in cast(tuple[object, ...], times):
        if time is not None and not isinstance(time, datetime):
            raise TypeError(f"{time!r} is no time: give a datetime with a time zone")
        if time is not None and time.utcoffset() is None:
            raise ValueError(f"{time!r} has no time zone; datetime.now(timezone.utc) has one")


class Listeners:
    """
    Who is called after each append.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        self._callbacks: tuple[Callable[[], object], ...] = ()
        self._lock = renewed(Lock())

    def add(self, callback: Callable[[], object]) -> Callable[[], None]:
        """
        Call *callback*, too, until the returned function is called.
        """
        own = [callback]
        with self._lock:
            self._callbacks += (callback,)

        def stop() -> None:
            with self._lock:
                rest = list(self._callbacks)
                if own and own[0] in rest:
                    rest.remove(own.pop())
                self._callbacks = tuple(rest)

        return stop

    def clear(self) -> None:
        """
        Call nobody any more.
        """
        with self._lock:
            self._callbacks = ()

    def call(self) -> None:
        """
        Call them all; what one raises is logged, for the append has succeeded.
        """
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                logger().exception("append callback %r raised", callback)


def check_limit(limit: int | None) -> None:
    """
    Refuse a limit that selects nothing.

    .. versionadded:: 0.1
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit!r}")


def check_names(names: Collection[str] | None) -> None:
    """
    Refuse one name for a collection of them: its letters would be taken for names.

    .. versionadded:: 0.1
    """
    if isinstance(names, str):
        raise TypeError(f"names= is a collection of names, such as [{names!r}], not {names!r}")


def check_expected(version: Any) -> None:
    """
    Refuse what is the version of no stream.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is less than 0.

    .. versionadded:: 0.1
    """
    if type(version) is not int:
        raise TypeError(f"expected_version= is how many events a stream has, not {version!r}")
    if version < 0:
        raise ValueError(f"expected_version= is 0 where a stream has no events, not {version!r}")


def check_version(key: str, expected: int, actual: int) -> None:
    """
    Refuse to append to a stream that has moved on.

    Raises:
        ConcurrencyError: It has.

    .. versionadded:: 0.1
    """
    check_expected(expected)
    if expected != actual:
        raise ConcurrencyError(
            f"stream {key!r} is at version {actual}, not {expected}: somebody else has appended "
            f"to it. Load it anew, decide again, append again.",
            key=key,
            expected=expected,
            actual=actual,
        )


def duplicate(id: str) -> DuplicateEventError:
    """
    Return the error that says that an id is taken.

    .. versionadded:: 0.1
    """
    return DuplicateEventError(
        f"event {id!r} is in the log already, or comes twice; nothing was stored", id=id
    )
