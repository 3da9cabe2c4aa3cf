"""
One replay under way: which records, read how, and how far it has come.

Law: it goes through the log once, from one offset to another, and yields envelopes. Whom
they are for, and who may be called meanwhile, is decided by whoever iterates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime
from inspect import isawaitable, iscoroutinefunction
from types import CoroutineType
from typing import Any, Final, Literal, TypedDict, cast, get_args

from eventbus._clock import Clock, SystemClock
from eventbus._envelope import Envelope
from eventbus._event import declared_as
from eventbus._records import envelope_of
from eventbus.codec import Codec
from eventbus.dead_letter import story
from eventbus.event_log import EventLog, Record, check_times
from eventbus.instrumentation import Replayed
from eventbus.kept_letters import KeptLetter
from eventbus.store import Store

__all__ = [
    "PASSED",
    "ReplayOptions",
    "Replayed",
    "Run",
    "Sieve",
    "at_once",
    "bounds",
    "checked",
    "untold",
]

Unreadable = Literal["quarantine", "skip", "raise"]

PASSED: Final = object()  # what is returned where nobody was called for an event

_BEYOND = 2**63 - 1  # no log has such an offset, and a store can still be asked about it


class ReplayOptions(TypedDict, total=False):
    """
    What is replayed, as keywords.

    .. versionadded:: 0.1
    """

    from_: int | datetime
    """The first offset, or the instant from which on. Default: the beginning."""
    until: int | datetime | None
    """The last offset, or the instant before which. Default: the end, as it is now."""
    names: Collection[str] | None
    """Only events stored by these names."""
    key: str | None
    """Only this stream."""
    event_types: Collection[type]
    """Only events of these classes and those derived from them."""
    reset: Callable[[], object] | None
    """Called once, before the first event, also if there is none."""
    unreadable: Unreadable
    """What becomes of an event that cannot be read: ``"skip"`` passes over it; ``"raise"``
    ends the replay there; ``"quarantine"`` keeps a dead letter of the subscription. Default:
    the last for a subscription, and ``"skip"`` for a callable, which can have no other."""
    progress: Callable[[Replayed], object] | None
    """Told how far it has come."""
    clock: Clock | None
    """Where times and ids come from."""


def checked(options: ReplayOptions) -> ReplayOptions:
    """
    Return the options, or refuse what cannot be meant: before anything is held or called.

    Raises:
        TypeError: There is no such option, or it does not take that.
        ValueError: A time has no time zone, or *unreadable* is none of its words.
    """
    given = cast(Mapping[str, object], options)
    known = ReplayOptions.__annotations__
    if unknown := sorted(given.keys() - known.keys()):
        raise TypeError(f"a replay takes no {', '.join(unknown)}; it takes {', '.join(known)}")
    _check_place("from_", given.get("from_", 0))
    if (until := given.get("until")) is not None:
        _check_place("until", until)
    if (names := given.get("names")) is not None:
        _check_each("names", str, names)
    _check_each("event_types", type, given.get("event_types", ()))
    if not isinstance(key := given.get("key"), str | None):
        raise TypeError(f"key is text, as that of an envelope is, not {key!r}")
    for name in ("reset", "progress"):
        call = given.get(name)
        if call is not None and (not callable(call) or iscoroutinefunction(call)):
            raise TypeError(f"{name} is a plain callable, not {call!r}")
    if (word := given.get("unreadable", "skip")) not in get_args(Unreadable):
        allowed = ", ".join(map(repr, get_args(Unreadable)))
        raise ValueError(f"unreadable is one of {allowed}, not {word!r}")
    return options


def _check_place(name: str, given: object) -> None:
    if isinstance(given, datetime):
        check_times(given)
    elif not isinstance(given, int) or isinstance(given, bool):
        raise TypeError(f"{name} is an offset or a datetime, not {given!r}")


def _check_each(name: str, kind: type, given: object) -> None:
    is_several = isinstance(given, Collection) and not isinstance(given, str | type)
    if not is_several or not all(isinstance(each, kind) for each in cast(Any, given)):
        what = "names" if kind is str else "classes"
        raise TypeError(f"{name} is a tuple or a list of {what}, not {given!r}")


def at_once(result: object) -> object:
    """
    Return what a plain callable has returned, and refuse what would have to be awaited.
    """
    if result is None or not isawaitable(result):
        return result
    if isinstance(result, CoroutineType):
        result.close()  # or Python would warn that nobody has awaited it
    raise TypeError(
        f"replay() does not await what it calls, and that has returned {result!r}: the event "
        f"was not handled. Use await areplay(...)."
    )


def bounds(
    log: EventLog, from_: int | datetime = 0, until: int | datetime | None = None
) -> tuple[int, int]:
    """
    Return the offset to read after and the last one to read, both as of now.
    """
    last = log.last_offset()
    if isinstance(from_, datetime):
        after = log.offset_before(from_)
    else:
        after = min(max(0, from_ - 1), _BEYOND)
    if until is not None:
        last = min(last, log.offset_before(until) if isinstance(until, datetime) else until)
    return after, max(after, last)


def untold(_: Replayed) -> None:
    """
    Tell nobody how far it has come.
    """


class Sieve:
    """
    Tells by name and version alone whether a record is of certain classes.

    Args:
        codec: What knows the classes; it is told of *event_types*.
        event_types: The classes, which stand for those derived from them, too.
        unknown: Whether to let through what no class is known by.
    """

    def __init__(self, codec: Codec, event_types: tuple[type, ...], *, unknown: bool) -> None:
        codec.know(*(each for each in event_types if each is not object))
        self._codec = codec
        self._types = event_types
        self._unknown = unknown
        self._found: dict[tuple[str, int], bool] = {}

    def lets_through(self, record: Record) -> bool:
        """
        Tell whether *record* is meant.
        """
        source = (record.name, record.version)
        found = self._found.get(source)
        if found is None:
            cls = self._codec.class_of(*source)
            is_meant = self._means(record.name) if cls is None else issubclass(cls, self._types)
            found = self._found[source] = is_meant
        return found

    def _means(self, name: str) -> bool:
        declared = declared_as(name)  # perhaps, and nobody has told the codec
        meant = [each for each in declared if issubclass(each, self._types)]
        self._codec.know(*meant)
        return bool(meant) or (self._unknown and not declared)


class Run:
    """
    One replay: yields the envelopes, and counts.
    """

    def __init__(
        self,
        store: Store,
        codec: Codec,
        options: ReplayOptions,
        *,
        subscription: str = "",
        taken: int | None = None,
        without: Collection[int] = (),
        dead: Collection[int] = (),
        tick: Callable[[], object] | None = None,
    ) -> None:
        self._store, self._codec = store, codec
        self._subscription, self._tick = subscription, tick
        self._without, self._dead = without, dead
        self._options = checked(options)
        self._fate = options.get("unreadable", "quarantine" if subscription else "skip")
        if self._fate == "quarantine" and not subscription:
            raise ValueError(
                "unreadable='quarantine' keeps dead letters of a subscription, and here is none "
                "that could be given them. 'skip' counts what cannot be read, 'raise' ends there"
            )
        self._clock = options.get("clock") or SystemClock()
        self._sieve = Sieve(codec, tuple(options.get("event_types", (object,))), unknown=True)
        self._tell = options.get("progress") or untold
        self._delivered = self._unreadable = self._left_out = 0
        after, last = bounds(store.log, options.get("from_", 0), options.get("until"))
        self._after, self._last = after, last if taken is None else max(after, min(last, taken))
        self._offset = self._after

    def __iter__(self) -> Iterator[Envelope[Any]]:
        reset = self._options.get("reset")
        if reset is not None:
            reset()
        self._tell(self.report())
        step = max(1, (self._last - self._after) // 100)
        due = self._after + step
        for record in self._records():
            if self._tick is not None:
                self._tick()
            envelope = self._envelope(record)
            if envelope is not None:
                yield envelope
            self._offset = record.offset
            if due <= self._offset < self._last:
                due = self._offset + step
                self._tell(self.report())
        self._offset = self._last
        self._tell(self.report())

    def _records(self) -> Iterator[Record]:
        return self._store.log.read(
            after=self._after,
            until=self._last,
            names=self._options.get("names"),
            key=self._options.get("key"),
        )

    def _envelope(self, record: Record) -> Envelope[Any] | None:
        if record.offset in self._dead:
            self._left_out += 1
            return None
        try:
            if record.offset in self._without or not self._sieve.lets_through(record):
                return None
            return envelope_of(record, self._codec, is_replay=True)
        except Exception as error:
            if self._fate == "raise":
                raise
            self._unreadable += 1
            if self._fate == "quarantine":
                self._quarantine(record, error)
            return None

    def _quarantine(self, record: Record, error: Exception) -> None:
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        told = story(0, error, now)
        facts = {name: getattr(told, name) for name in ("number", "error_type", "message")}
        facts |= {"traceback": told.traceback, "time": now.isoformat()}
        self._store.letters.add(
            KeptLetter(
                id=self._clock.new_id(),
                subscription=self._subscription,
                record=record,
                reason="unreadable",
                failures=json.dumps([facts]),
                error_type=told.error_type,
                first_failure=now,
                last_failure=now,
            )
        )

    def count(self, result: object) -> None:
        """
        Count an event as delivered, unless *result* is `PASSED`.
        """
        self._delivered += result is not PASSED

    def note(self, error: BaseException, envelope: Envelope[Any]) -> None:
        """
        Note on an error where it was raised.
        """
        error.add_note(
            f"while replaying {envelope.name} at offset {envelope.offset} of "
            f"{self._after + 1} to {self._last}; nothing after it was replayed"
        )

    def report(self) -> Replayed:
        """
        Return how far it has come.
        """
        return Replayed(
            subscription=self._subscription,
            done=self._offset - self._after,
            total=self._last - self._after,
            offset=self._offset,
            delivered=self._delivered,
            unreadable=self._unreadable,
            dead_letters=self._left_out,
        )
