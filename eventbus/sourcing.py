"""
Event sourcing: a state folded from the events of one stream, and decisions appended to it.

Law: the log is the truth, and a state is what `fold` makes of it. A snapshot is a state
that was folded before: it may be missing, stale or damaged, and nothing but time is lost.
Nothing here delivers an event; the log tells those who read it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from inspect import isawaitable
from typing import Any, Generic, Protocol, TypeVar

import attrs

from eventbus._clock import Clock, SystemClock
from eventbus._envelope import current_envelope
from eventbus._event import declaration_of
from eventbus._logger import logger
from eventbus._playback import Sieve
from eventbus._signature import name_of, read_signature
from eventbus._snapshots import (
    InMemorySnapshots,
    Snapshot,
    Snapshots,
    SQLiteSnapshots,
    snapshots_of,
)
from eventbus.codec import Codec
from eventbus.errors import ConcurrencyError, StoreCorruptError, StoreError
from eventbus.event_log import Record
from eventbus.store import Store

__all__ = [
    "Aggregate",
    "InMemorySnapshots",
    "SQLiteSnapshots",
    "Snapshot",
    "Snapshots",
    "Stream",
    "fold",
]

S = TypeVar("S")
E = TypeVar("E")


def fold(initial: S, events: Iterable[E], apply: Callable[[S, E], S]) -> S:
    """
    Return the state that *events* lead to, one after another.

    Args:
        initial: The state before the first event.
        events: The events, the oldest first.
        apply: Takes the state so far and an event, and returns the state after it.

    Raises:
        TypeError: *apply* has returned nothing.

    .. versionadded:: 0.1
    """
    state = initial
    for event in events:
        state = apply(state, event)
        if state is None:
            raise TypeError(
                f"{name_of(apply)} returned None for {type(event).__name__}: it has to return the "
                f"state after the event, also where that has not changed"
            )
    return state


@attrs.frozen(kw_only=True)
class Stream(Generic[S]):
    """
    The events of one entity, as far as they were known when it was loaded.

    Attributes:
        key: Which entity: the key that its events have.
        version: How many events there are; what an append has to find unchanged.
        state: What they lead to.

    .. versionadded:: 0.1
    """

    key: str
    version: int
    state: S


class Append(Protocol):
    """
    Stores the events of one stream, all or none.
    """

    def __call__(self, events: Sequence[Any], *, key: str, expected_version: int) -> object:
        """
        Store *events*, or raise `ConcurrencyError`: the stream has another version.
        """
        ...


class Aggregate(Generic[S]):
    """
    Entities of one kind, each of them the fold of its stream: the events of one key.

    Let keys be unique in the whole application, ``account/7`` rather than ``7``.

    Args:
        initial: Makes the state of a stream without events: a class whose fields have
            defaults, or any callable without arguments.
        apply: Takes a state and an event and returns the state after it; see `fold`. What
            its second parameter is annotated with are the events it is given; others with
            the same key are left out. Without an annotation, all are given.
        store: Where the log is.
        codec: What reads and writes the events, and the states of snapshots.
        name: What snapshots are kept under. Default: that of *apply*.
        version: Raise it when *initial* or *apply* change: older snapshots are passed over.
        snapshot_every: Keep a snapshot when a load has folded so many events or more.
            ``None``: never.
        snapshots: Where they are kept. Default: in the store's file, where it has one.
        append: Stores the events in place of the log: a bus's publish, for one.
        clock: Where ids and times come from.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        initial: Callable[[], S],
        apply: Callable[[S, Any], S],
        *,
        store: Store,
        codec: Codec,
        name: str | None = None,
        version: int = 1,
        snapshot_every: int | None = None,
        snapshots: Snapshots | None = None,
        append: Append | None = None,
        clock: Clock | None = None,
    ) -> None:
        if snapshot_every is not None and snapshot_every < 1:
            raise ValueError(f"snapshot_every counts from 1, not {snapshot_every!r}")
        self.name = name or name_of(apply)
        self.version = version
        self._initial, self._apply = initial, apply
        self._store, self._codec = store, codec
        self._every = snapshot_every
        self._snapshots = snapshots_of(store) if snapshots is None else snapshots
        self._append = append
        self._clock = clock or SystemClock()
        # What is left when the state is given is a callable that takes the event first.
        given = functools.partial(apply, state := initial())
        self._types = read_signature(given, self.name).event_types
        # Where it folds all there is, nothing is told apart.
        self._sieve = Sieve(codec, self._types or (object,), unknown=True)
        if snapshot_every is not None:
            codec.know(type(state))

    def load(self, key: str) -> Stream[S]:
        """
        Fold the stream of *key*, from its snapshot on if there is one.

        Raises:
            DecodeError, StoreError: An event cannot be read, or was pruned before a snapshot.
        """
        known = self._store.log.stream_version(key)
        version, offset, state = self._begin(key)
        if version > known and version > self._store.log.stream_version(key):
            # The log has lost its last events since, or was restored: they did not happen.
            version, offset, state = 0, 0, self._initial()
        began = version
        for record in self._store.log.read(after=offset, key=key):
            version, offset = version + 1, record.offset
            state = fold(state, self._read(record), self._apply)
        if version < known:
            raise StoreError(
                f"the first {known - version} events of stream {key!r} were pruned, and no "
                f"snapshot of {self.name} version {self.version} was made of them: its state "
                f"cannot be known. Keep snapshots, or what streams are folded from."
            )
        if self._every is not None and version - began >= self._every:
            self._keep(key, version, offset, state)
        return Stream(key=key, version=version, state=state)

    def append(self, stream: Stream[S], *events: Any) -> Stream[S]:
        """
        Store *events* behind those of *stream*, all or none; return what it is then.

        Raises:
            ConcurrencyError: Somebody else has appended to it meanwhile; nothing is stored.
            EncodeError: An event cannot be stored, and so none is.
            ValueError: An event belongs to another stream.
        """
        after = self._after(stream, events)
        if not events:
            return after
        if self._append is None:
            records = list(self._records(events, stream.key))
            self._store.log.append(records, expected_version=stream.version)
        else:
            self._append(events, key=stream.key, expected_version=stream.version)
        return after

    async def aappend(self, stream: Stream[S], *events: Any) -> Stream[S]:
        """
        Do as `append`, while the event loop goes on; what a given *append* returns is awaited.
        """
        after = self._after(stream, events)
        if not events:
            return after
        if self._append is None:
            records = list(self._records(events, stream.key))
            await self._store.log.aappend(records, expected_version=stream.version)
        else:
            done = self._append(events, key=stream.key, expected_version=stream.version)
            if isawaitable(done):
                await done
        return after

    def change(
        self, key: str, decide: Callable[[S], Iterable[Any]], *, attempts: int = 3
    ) -> Stream[S]:
        """
        Load the stream of *key*, append what *decide* says, and return what it is then.

        Args:
            key: The stream.
            decide: Takes the state and returns the events that follow, if any; or raises,
                and nothing is stored. It may be called several times.
            attempts: How often to begin anew when somebody else was quicker, in all.

        Raises:
            ConcurrencyError: Somebody else was quicker each time. See `load` and `append`.
        """
        for _ in range(attempts - 1):
            try:
                return self.append(*self._decided(key, decide))
            except ConcurrencyError:
                continue
        return self.append(*self._decided(key, decide))

    async def achange(
        self, key: str, decide: Callable[[S], Iterable[Any]], *, attempts: int = 3
    ) -> Stream[S]:
        """
        Do as `change`, while the event loop goes on.
        """
        for _ in range(attempts - 1):
            try:
                return await self.aappend(*self._decided(key, decide))
            except ConcurrencyError:
                continue
        return await self.aappend(*self._decided(key, decide))

    # -- what the twins share ----------------------------------------------------------------

    def _decided(self, key: str, decide: Callable[[S], Iterable[Any]]) -> tuple[Any, ...]:
        stream = self.load(key)
        decided: Any = decide(stream.state)
        if not hasattr(decided, "__iter__"):
            raise TypeError(
                f"{name_of(decide)} returned {decided!r}: it has to return the events to append, "
                f"as a list; an empty one for none"
            )
        return stream, *decided

    def _after(self, stream: Stream[S], events: Sequence[Any]) -> Stream[S]:
        """
        Return what the stream will be with *events*, if they are its own.
        """
        for event in events:
            _check_key(event, stream.key)
        state = fold(stream.state, filter(self._is_mine, events), self._apply)
        return Stream(key=stream.key, version=stream.version + len(events), state=state)

    def _read(self, record: Record) -> Iterator[Any]:
        if not record.is_intact:
            raise StoreCorruptError(
                f"the stored bytes of event {record.offset} of the log, in stream {record.key!r}, "
                f"are not those that were written: restore the file from a backup"
            )
        if self._sieve.lets_through(record):
            event: Any = self._codec.decode(record.name, record.version, record.payload)
            if self._is_mine(event):
                yield event

    def _is_mine(self, event: object) -> bool:
        return not self._types or isinstance(event, self._types)

    def _records(self, events: Sequence[Any], key: str) -> Iterator[Record]:
        cause, first = current_envelope(), None
        time = datetime.fromtimestamp(self._clock.time(), UTC)
        for event in events:
            id = self._clock.new_id()
            first = first or id
            name, version, payload = self._codec.encode(event)
            yield Record(
                id=id,
                name=name,
                version=version,
                key=key,
                time=time,
                correlation_id=first if cause is None else cause.correlation_id,
                causation_id=None if cause is None else cause.id,
                payload=payload,
            )

    # -- snapshots ---------------------------------------------------------------------------

    def _begin(self, key: str) -> tuple[int, int, S]:
        """
        Return version, last offset and state to go on from: those of the snapshot, if any.
        """
        if self._every is not None:
            try:
                snapshot = self._snapshots.load(self.name, key)
                if snapshot is not None and snapshot.shape == self.version:
                    state = self._codec.decode(*snapshot.state)
                    return snapshot.version, snapshot.offset, state
            except Exception as error:
                self._log_failure("read", key, error)
        return 0, 0, self._initial()

    def _keep(self, key: str, version: int, offset: int, state: S) -> None:
        try:
            self._snapshots.save(
                Snapshot(
                    aggregate=self.name,
                    key=key,
                    version=version,
                    offset=offset,
                    shape=self.version,
                    state=self._codec.encode(state),
                )
            )
        except Exception as error:
            self._log_failure("kept", key, error)

    def _log_failure(self, verb: str, key: str, error: Exception) -> None:
        logger().warning(
            "the snapshot of %s for %r could not be %s", self.name, key, verb, exc_info=error
        )


def _check_key(event: Any, key: str) -> None:
    own = declaration_of(event.__class__).key_of(event)
    if own is not None and own != key:
        raise ValueError(
            f"{type(event).__name__} has the key {own!r}, and was to be appended to the stream "
            f"{key!r}: its key is what names its stream"
        )
