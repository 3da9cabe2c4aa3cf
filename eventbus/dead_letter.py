"""
What was given up on: the dead letter, the store's protocol, and the store in memory.

Law: a letter tells the whole story, and a store keeps letters in the order in which
they first arrived. Nothing here calls a handler or decides what is given up on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import islice
from threading import Lock
from typing import Any, Literal, Protocol, TypedDict, Unpack, cast, get_args

import attrs

from eventbus._envelope import Envelope
from eventbus._fork import renewed
from eventbus._logger import logger
from eventbus._story import AttemptFailure, story, type_name
from eventbus.errors import DeadLetterNotFoundError, DeadLettersFullError

__all__ = [
    "AttemptFailure",
    "DeadLetter",
    "DeadLetters",
    "Filters",
    "InMemoryDeadLetters",
    "matcher",
    "story",
]

Reason = Literal["failed", "dropped", "undelivered", "unreadable", "held"]
Overflow = Literal["drop_oldest", "drop_newest", "raise"]


@attrs.frozen(kw_only=True)
class DeadLetter:
    """
    One event that one subscription could not take, with its story.

    Attributes:
        id: The letter's own id; it stays the same through redrives.
        envelope: The event and what is known about it.
        subscription: The name of the subscription that gave up.
        reason: ``failed``; never called: ``dropped``, ``undelivered``; not to be decoded:
            ``unreadable``; waiting behind an earlier letter of its key: ``held``.
        attempts: How often the handler was called, over all redrives.
        failures: One entry for each attempt, oldest first, those of redrives included.
        first_failure: When the first attempt failed, in UTC.
        last_failure: When the last attempt failed, in UTC.
        idempotency_key: The key of the delivery, or ``None``.
        redrives: How many redrives have failed.

    .. versionadded:: 0.1
    """

    id: str
    envelope: Envelope[Any]
    subscription: str
    reason: Reason = "failed"
    attempts: int
    failures: tuple[AttemptFailure, ...]
    first_failure: datetime
    last_failure: datetime
    idempotency_key: str | None = None
    redrives: int = 0

    @property
    def event(self) -> Any:
        """
        The event itself.
        """
        return self.envelope.event

    @property
    def error_type(self) -> str:
        """
        The last failure's error type; empty if no attempt was made.
        """
        return self.failures[-1].error_type if self.failures else ""

    @property
    def message(self) -> str:
        """
        The last failure's message; empty if no attempt was made.
        """
        return self.failures[-1].message if self.failures else ""

    @property
    def traceback(self) -> str:
        """
        The last failure's traceback; empty if no attempt was made.
        """
        return self.failures[-1].traceback if self.failures else ""


class Filters(TypedDict, total=False):
    """
    The keywords by which letters are chosen; a letter meets all that are given.

    Attributes:
        event_type: The event is an instance of this class.
        subscription: The subscription's name.
        key: The event's key, as declared by ``@event(key=...)``.
        error: The last failure's exception class, or one it derives from; or its name,
            qualified or simple. Where only texts were kept, a class stands for its name.
        reason: Why the letter was kept.
        since: The last failure was then or later; must have a time zone, as *until*.
        until: The last failure was before.

    .. versionadded:: 0.1
    """

    event_type: type[Any] | None
    subscription: str | None
    key: str | None
    error: type[BaseException] | str | None
    reason: Reason | None
    since: datetime | None
    until: datetime | None


def _is_error(letter: DeadLetter, error: type[BaseException] | str) -> bool:
    name = letter.error_type
    if isinstance(error, str):
        return name != "" and error in (name, name.rpartition(".")[2])
    exception = letter.failures[-1].exception if letter.failures else None
    return name == type_name(error) if exception is None else isinstance(exception, error)


_CONDITIONS: dict[str, Callable[[DeadLetter, Any], bool]] = {
    "event_type": lambda letter, wanted: isinstance(letter.event, wanted),
    "subscription": lambda letter, wanted: letter.subscription == wanted,
    "key": lambda letter, wanted: letter.envelope.key == wanted,
    "error": _is_error,
    "reason": lambda letter, wanted: letter.reason == wanted,
    "since": lambda letter, wanted: letter.last_failure >= wanted,
    "until": lambda letter, wanted: letter.last_failure < wanted,
}


def matcher(**filters: Unpack[Filters]) -> Callable[[DeadLetter], bool]:
    """
    Return what tells of a letter whether it meets *filters*; for `DeadLetters` to use.

    .. versionadded:: 0.1
    """
    if unknown := filters.keys() - _CONDITIONS.keys():
        raise TypeError(f"no filters: {sorted(unknown)}; there are {', '.join(_CONDITIONS)}")
    given: dict[str, Any] = {name: each for name, each in filters.items() if each is not None}
    for name, wanted in given.items():
        _check(name, wanted)
    return lambda letter: all(_CONDITIONS[name](letter, given[name]) for name in given)


def _check(name: str, wanted: Any) -> None:
    """
    Refuse what no letter could meet, for it is no such thing.
    """
    match name:
        case "event_type" if not _is_class(wanted):
            raise TypeError(f"event_type= is a class of events, not {wanted!r}")
        case "subscription" if not isinstance(wanted, str):
            raise TypeError(f"subscription= is the name of one, not {wanted!r}")
        case "key" if not isinstance(wanted, str):
            raise TypeError(f"key= is the key of events, not {wanted!r}")
        case "error" if not (isinstance(wanted, str) or _is_class(wanted)):
            raise TypeError(f"error= is an exception's class, or its name, not {wanted!r}")
        case "reason" if wanted not in get_args(Reason):
            reasons = ", ".join(map(repr, get_args(Reason)))
            raise ValueError(f"reason= is one of {reasons}, not {wanted!r}")
        case "since" | "until" if not isinstance(wanted, datetime):
            raise TypeError(f"{name}= is a datetime with a time zone, not {wanted!r}")
        case "since" | "until" if cast(datetime, wanted).utcoffset() is None:
            raise ValueError(f"{wanted!r} has no time zone; datetime.now(timezone.utc) has one")
        case _:
            pass


def _is_class(wanted: Any) -> bool:
    try:
        isinstance(None, wanted)
    except TypeError:
        return False
    return True


class DeadLetters(Protocol):
    """
    Keeps dead letters in the order in which they first arrived.

    All methods may be called from any thread; what they return is a snapshot. Those
    given an id of which there is no letter raise `DeadLetterNotFoundError`.
    `eventbus.testing.contracts` holds what every implementation passes.

    A store may have ``claim(id, *, owner, ttl, now)``, too, as those of ours have: of all
    who ask to redrive a letter, one gets ``True``, for *ttl* seconds or until the letter is
    replaced. Without it, two who redrive a letter at the same time both call the handler.
    Where `aclaim` and `aremove` are there as well, `EventBus.aredrive` awaits them instead.

    .. versionadded:: 0.1
    """

    def add(self, letter: DeadLetter) -> bool:
        """
        Keep a letter, or raise `ValueError`: one of its id is kept already.

        ``False`` when this letter is the one the store's overflow drops.
        """
        ...

    def get(self, id: str) -> DeadLetter:
        """
        Return the letter of that id.
        """
        ...

    def query(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[Filters]
    ) -> tuple[DeadLetter, ...]:
        """
        Return the letters that meet the filters, first arrival first, at most *limit*.

        For the next page, give the id of the last letter as *after*: it must still be
        kept, and only letters that arrived later are returned.
        """
        ...

    def count(self, **filters: Unpack[Filters]) -> int:
        """
        Return how many letters meet the filters.
        """
        ...

    def replace(self, letter: DeadLetter) -> None:
        """
        Put *letter* in the place of the one with its id, as after a failed redrive.
        """
        ...

    def remove(self, id: str) -> DeadLetter:
        """
        Take the letter of that id out and return it.
        """
        ...

    def discard(self, **filters: Unpack[Filters]) -> int:
        """
        Throw away the letters that meet the filters, all if none is given; count them.
        """
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[DeadLetter]: ...


@attrs.define(eq=False, kw_only=True)
class InMemoryDeadLetters:
    """
    Keeps dead letters in this process, until it ends.

    Args:
        capacity: How many letters to keep at most.
        overflow: What happens to one more: ``drop_oldest`` makes room for it,
            ``drop_newest`` lets it go, ``raise`` refuses it with `DeadLettersFullError`;
            dropping logs a warning, again only if there was room in between.

    Attributes:
        dropped: How many letters were dropped for want of room.

    .. versionadded:: 0.1
    """

    capacity: int = attrs.field(default=10_000, validator=attrs.validators.ge(1))
    overflow: Overflow = attrs.field(
        default="drop_oldest", validator=attrs.validators.in_(get_args(Overflow))
    )
    _by_id: OrderedDict[str, DeadLetter] = attrs.field(init=False, factory=OrderedDict, repr=False)
    _claims: dict[str, tuple[str, float]] = attrs.field(init=False, factory=dict, repr=False)
    _lock: Lock = attrs.field(init=False, factory=lambda: renewed(Lock()), repr=False)
    dropped: int = attrs.field(init=False, default=0)
    _overflowing: bool = attrs.field(init=False, default=False, repr=False)

    def add(self, letter: DeadLetter) -> bool:
        """
        Keep a letter; where there is no room, do as *overflow* says.
        """
        with self._lock:
            if letter.id in self._by_id:
                raise ValueError(f"dead letter {letter.id!r} is kept already: use replace()")
            is_full = len(self._by_id) >= self.capacity
            if is_full and self.overflow == "raise":
                raise DeadLettersFullError(
                    f"{letter.envelope.name} {letter.envelope.id} of {letter.subscription} is not "
                    f"kept: all {self.capacity} places are taken, redrive or discard some"
                )
            keeps = not is_full or self.overflow == "drop_oldest"
            if is_full and keeps:
                self._forget(next(iter(self._by_id)))
            self._by_id |= {letter.id: letter} if keeps else {}
            self.dropped += is_full
            begins, self._overflowing = is_full and not self._overflowing, is_full
        if begins:
            text = "all %d places for dead letters are taken (%s): redrive or discard some"
            logger().warning(text, self.capacity, self.overflow)
        return keeps

    def get(self, id: str) -> DeadLetter:
        """
        Return the letter of that id.
        """
        with self._lock:
            return self._by_id[self._known(id)]

    def query(
        self, *, limit: int | None = None, after: str | None = None, **filters: Unpack[Filters]
    ) -> tuple[DeadLetter, ...]:
        """
        Return the letters that meet the filters, first arrival first.
        """
        if limit is not None and limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit!r}")
        return tuple(islice(filter(matcher(**filters), self._kept(after)), limit))

    def count(self, **filters: Unpack[Filters]) -> int:
        """
        Return how many letters meet the filters.
        """
        return len(self.query(**filters))

    def replace(self, letter: DeadLetter) -> None:
        """
        Put *letter* in the place of the one with its id.
        """
        with self._lock:
            self._by_id[self._known(letter.id)] = letter
            self._claims.pop(letter.id, None)

    def claim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Ask for the right to redrive a letter; of all who ask, one gets it.
        """
        with self._lock:
            holder, until = self._claims.get(self._known(id), (owner, now))
            if holder != owner and now < until:
                return False
            self._claims[id] = (owner, now + ttl)
            return True

    def remove(self, id: str) -> DeadLetter:
        """
        Take the letter of that id out and return it.
        """
        with self._lock:
            return self._forget(self._known(id))

    def discard(self, **filters: Unpack[Filters]) -> int:
        """
        Throw away the letters that meet the filters, all if none is given; count them.
        """
        discarded = 0
        for letter in self.query(**filters):  # filters are the user's code: not under the lock
            with self._lock:
                if self._by_id.get(letter.id) is letter:
                    self._forget(letter.id)
                    discarded += 1
        return discarded

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[DeadLetter]:
        return iter(self._kept())

    def _kept(self, after: str | None = None) -> list[DeadLetter]:
        with self._lock:
            start = 0 if after is None else [*self._by_id].index(self._known(after)) + 1
            return [*self._by_id.values()][start:]

    def _forget(self, id: str) -> DeadLetter:
        self._claims.pop(id, None)
        return self._by_id.pop(id)

    def _known(self, id: str) -> str:
        if id not in self._by_id:
            raise DeadLetterNotFoundError(
                f"there is no dead letter {id!r}: it was redriven, discarded, dropped or never "
                f"kept",
                letter_id=id,
            )
        return id
