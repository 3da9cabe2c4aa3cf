"""
The observer protocol and its details objects: what happened, as values.

Law: one frozen details object per kind of occurrence, and nothing here acts.
An observer is any callable that takes one; new facts become new attributes.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import attrs

from eventbus._envelope import Envelope

__all__ = [
    "DeadLettered",
    "Delivered",
    "Dropped",
    "Duplicate",
    "Failed",
    "Observer",
    "Occurrence",
    "Published",
    "Replayed",
    "Retried",
    "Undelivered",
    "Unhandled",
]


@attrs.frozen(kw_only=True)
class Published:
    """
    An event was published; no handler has been called yet.

    Attributes:
        envelope: The event and its facts.
        subscriptions: The names of the subscriptions it goes to: those on its route, in
            order, and then the durable ones of this bus, which take it from the log.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscriptions: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Delivered:
    """
    A handler succeeded.

    Attributes:
        envelope: The event and its facts.
        subscription: The subscription's name.
        attempt: Which attempt it was. Starts at 1.
        duration: Seconds this attempt took, on the bus's clock.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str
    attempt: int
    duration: float


@attrs.frozen(kw_only=True)
class Retried:
    """
    An attempt failed and another one will follow.

    Attributes:
        envelope: The event and its facts.
        subscription: The subscription's name.
        attempt: Which attempt failed. Starts at 1.
        exception: What it raised.
        delay: Seconds until the next attempt.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str
    attempt: int
    exception: Exception
    delay: float


@attrs.frozen(kw_only=True)
class Failed:
    """
    A delivery failed for good. Emitted exactly once for it.

    Attributes:
        envelope: The event and its facts.
        subscription: The subscription's name.
        attempts: How often the handler was called; 0 when it never came to a call.
        exception: What the last attempt raised.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str
    attempts: int
    exception: Exception


@attrs.frozen(kw_only=True)
class DeadLettered:
    """
    A delivery that failed for good, or that is not to be made yet, was kept as a dead letter.

    Attributes:
        envelope: The event and its facts.
        subscription: The subscription's name.
        letter_id: The dead letter's id, for redrive and discard.
        reason: Why it is there: ``"failed"``, ``"dropped"`` or ``"undelivered"``; of durable
            subscriptions also ``"held"`` behind another one, or ``"unreadable"``.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str
    letter_id: str
    reason: str


@attrs.frozen(kw_only=True)
class Duplicate:
    """
    An idempotency key kept a handler, or a whole publish, from running again.

    Attributes:
        envelope: The duplicate and its facts.
        subscription: The subscription's name; ``None`` for the publisher's key.
        key: The idempotency key.
        first_id: The id of the event that holds the key, where known.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str | None
    key: str
    first_id: str | None


@attrs.frozen(kw_only=True)
class Unhandled:
    """
    An event was published and no handler was called.

    Attributes:
        envelope: The event and its facts.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]


@attrs.frozen(kw_only=True)
class Dropped:
    """
    A full queue gave an event up, by its overflow policy.

    Attributes:
        envelope: The event and its facts.
        subscription: The subscription's name.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str


@attrs.frozen(kw_only=True)
class Undelivered:
    """
    A bus was closed before a queued event had been handled.

    Attributes:
        envelope: The event and its facts.
        subscription: The subscription's name.

    .. versionadded:: 0.1
    """

    envelope: Envelope[Any]
    subscription: str


@attrs.frozen(kw_only=True)
class Replayed:
    """
    How far a replay has come. Told at its beginning, about a hundred times, and at its end.

    Attributes:
        subscription: Which subscription the events go to; empty where it is none.
        done: How many offsets of the log have been passed.
        total: How many there are to pass.
        offset: The last one that was passed.
        delivered: How many events were delivered.
        unreadable: How many could not be read.
        dead_letters: How many were left out, for they stand as dead letters of the
            subscription: a redrive delivers them.

    .. versionadded:: 0.1
    """

    subscription: str = ""
    done: int
    total: int
    offset: int
    delivered: int = 0
    unreadable: int = 0
    dead_letters: int = 0


Occurrence: TypeAlias = (
    Published
    | Delivered
    | Retried
    | Failed
    | DeadLettered
    | Duplicate
    | Unhandled
    | Dropped
    | Undelivered
    | Replayed
)


class Observer(Protocol):
    """
    Something that is told what happens on a bus.

    Called in the thread or task in which it happens. An observer that raises is
    logged the first time and changes nothing for publisher, handlers and other
    observers.

    .. versionadded:: 0.1
    """

    def __call__(self, occurrence: Occurrence, /) -> None:
        """
        Take note of *occurrence*.
        """
        ...
