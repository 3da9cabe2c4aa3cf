"""
How events reach a handler: the values of ``delivery=``.

Law: values that were checked when they were made. What they ask for is done by the
rooms above.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, TypeAlias, cast, get_args

import attrs

__all__ = ["Durable", "Inline", "Mode", "Overflow", "Queued"]

Overflow: TypeAlias = Literal["block", "raise", "drop_oldest", "drop_newest"]
OnDeadLetter: TypeAlias = Literal["continue", "hold_key", "stop"]
Unreadable: TypeAlias = Literal["quarantine", "skip", "raise"]


def _count(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{_place(instance, attribute)} counts from 1, {value!r} is none")


def _reader(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if not (value is None or callable(value) or (isinstance(value, str) and value)):
        raise TypeError(
            f"{_place(instance, attribute)} is an attribute's name or a callable that takes the "
            f"event, not {value!r}"
        )


def _one_of(
    choices: Any,
) -> Callable[[object, attrs.Attribute[Any], object], None]:
    def check(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value not in get_args(choices):
            allowed = ", ".join(map(repr, get_args(choices)))
            raise ValueError(f"{_place(instance, attribute)} is one of {allowed}, not {value!r}")

    return check


def _start(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value in ("now", "origin"):
        return
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(
                f"start={value!r} has no time zone; datetime.now(timezone.utc) has one"
            )
        if value > datetime.now(value.tzinfo):
            raise ValueError(
                f"start={value!r} is yet to come, and a subscription begins with the next event at "
                f"the latest: start='now'. Have its filter leave out what comes too early"
            )
    elif not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(
            f"start of Durable() is 'now', 'origin', an offset or a time, not {value!r}"
        )


def _seconds(instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 < float(cast(float, value)) < math.inf):
        raise ValueError(f"{_place(instance, attribute)} is in seconds, above 0, not {value!r}")


def _place(instance: object, attribute: attrs.Attribute[Any]) -> str:
    return f"{attribute.name} of {type(instance).__name__}()"


@attrs.frozen
class Inline:
    """
    Deliver in the publish itself, in order. What a subscription does by default.

    .. versionadded:: 0.1
    """


@attrs.frozen(kw_only=True)
class Queued:
    """
    Deliver from a bounded queue of the subscription's own: the publisher moves on.

    A sync handler runs on worker threads of the subscription, an async one in tasks on
    the loop that entered the bus, or on the bus's own loop thread where none did.

    Attributes:
        capacity: How many events may wait, those between two attempts included; 1 or
            more. What is being handled does not count.
        overflow: What a publish does when they are so many: ``"block"`` waits for room;
            ``"raise"`` leaves a `QueueFullError` in the receipt, for this subscription;
            ``"drop_oldest"`` gives up the one that waits longest; ``"drop_newest"`` the
            one being published. What is dropped is counted, observed, and kept as a dead
            letter while the store has room.
        workers: How many events may be handled at once; 1 or more.
        ordered_by: Attribute name or callable: events for which it is the same are
            handled in the order in which they were published, also across retries, while
            others go on. Default: the event's declared key. Events without a key, or with
            ``None`` for one, are not ordered.

    Raises:
        ValueError, TypeError: An argument is out of its range.

    .. versionadded:: 0.1
    """

    capacity: int = attrs.field(default=1_000, validator=_count)
    overflow: Overflow = attrs.field(default="block", validator=_one_of(Overflow))
    workers: int = attrs.field(default=1, validator=_count)
    ordered_by: str | Callable[[Any], object] | None = attrs.field(default=None, validator=_reader)


@attrs.frozen(kw_only=True)
class Durable:
    """
    Deliver from the event log, at least once, also across crashes of the process.

    For a bus with a store. Handlers are called as those of a queued subscription are, from
    the moment the bus is started; what was published before waits in the log.

    Attributes:
        start: Where a subscription begins that the store does not know yet: with the next
            event, the first one, the one after an offset, or the first one at or after an
            instant that has passed.
        workers: How many events may be handled at once; 1 or more.
        ordered_by: As with `Queued`.
        on_dead_letter: What happens to later events once one was given up on.
            ``"continue"`` handles them. ``"hold_key"`` keeps those of the same key back, in
            order and uncalled, until the letter is redriven or discarded. ``"stop"`` hands
            out nothing more until then.
        unreadable: What happens to a stored event that cannot be read: one of a name that no
            class has, with a payload that does not fit, or damaged. ``"quarantine"`` makes a
            dead letter of it, ``"skip"`` passes it by, and ``"raise"`` stops there.
        lease: For how long nobody else may take over when this process is not heard of any
            more, in seconds. It is renewed three times as often.
        history: Keep of each event when it was handled and how long that took, for
            ``python -m eventbus STORE trace ID``, until the event is pruned. It is one more
            row in the store for each.

    Raises:
        ValueError, TypeError: An argument is out of its range.

    .. versionadded:: 0.1
    """

    start: Literal["now", "origin"] | int | datetime = attrs.field(default="now", validator=_start)
    workers: int = attrs.field(default=1, validator=_count)
    ordered_by: str | Callable[[Any], object] | None = attrs.field(default=None, validator=_reader)
    on_dead_letter: OnDeadLetter = attrs.field(default="continue", validator=_one_of(OnDeadLetter))
    unreadable: Unreadable = attrs.field(default="quarantine", validator=_one_of(Unreadable))
    lease: float = attrs.field(default=15.0, validator=_seconds)
    history: bool = False

    def __attrs_post_init__(self) -> None:
        if self.on_dead_letter == "hold_key" and self.ordered_by is not None:
            raise ValueError(
                "on_dead_letter='hold_key' holds back events of one declared key: drop ordered_by="
            )


Mode: TypeAlias = Inline | Queued | Durable
