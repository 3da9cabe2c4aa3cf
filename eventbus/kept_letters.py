"""
Dead letters as they are stored: the value, what selects them, and the protocol.

Law: a kept letter is not decoded: its event is a record, its story is text. Nothing here
knows of events, handlers or exceptions; `eventbus.dead_letter` tells of those.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any, Protocol

import attrs

from eventbus.event_log import Record, check_times

__all__ = [
    "EVERY_LETTER",
    "HELD",
    "KeptLetter",
    "KeptLetters",
    "Selection",
    "simple_and_qualified",
]

HELD = "held"  # the reason of a letter that waits behind another one


@attrs.frozen(kw_only=True)
class KeptLetter:
    """
    A dead letter as it is stored: the whole record, and its story as text.

    Attributes:
        id: The letter's own.
        subscription: The name of the subscription that gave up.
        record: The event as it was stored, in full; never changed.
        reason: Why it is here.
        attempts: How often the handler was called, over all redrives.
        failures: One entry for each attempt, as JSON.
        error_type: The last failure's error type; empty if no attempt was made.
        first_failure: When the first attempt failed, in UTC.
        last_failure: When the last attempt failed, in UTC.
        idempotency_key: The key of the delivery, or ``None``.
        redrives: How many redrives have failed.
        edited: The payload to deliver in place of the record's, or ``None``.
        holds_key: Later events of the record's key wait behind this letter.
        place: Where it stands: greater than the places of those that were kept when it
            arrived. The store's, and no part of what makes letters equal.

    .. versionadded:: 0.1
    """

    id: str
    subscription: str
    record: Record
    reason: str = "failed"
    attempts: int = 0
    failures: str = attrs.field(default="[]", repr=False)
    error_type: str = ""
    first_failure: datetime
    last_failure: datetime
    idempotency_key: str | None = None
    redrives: int = 0
    edited: bytes | None = None
    holds_key: bool = False
    place: int = attrs.field(default=0, eq=False, repr=False)

    @property
    def payload(self) -> bytes:
        """
        What to deliver: the edited payload, or the original one.
        """
        return self.record.payload if self.edited is None else self.edited

    @property
    def is_stuck(self) -> bool:
        """
        Whether its key waits for its redrive: the log, from which others go on, will not do.
        """
        return self.holds_key and (self.reason != HELD or self.edited is not None)


@attrs.frozen(kw_only=True)
class Selection:
    """
    Which letters are meant: those that meet everything that is not ``None``.

    Attributes:
        subscription: The subscription's name.
        names: The event has one of these names.
        key: The event has this key.
        error: The last failure's error type, qualified or simple.
        reason: Why the letter was kept.
        since: The last failure was then or later; must have a time zone, as *before*.
        before: The last failure was earlier.
        holds_key: Whether later events of its key wait behind it.

    .. versionadded:: 0.1
    """

    subscription: str | None = None
    names: Collection[str] | None = None
    key: str | None = None
    error: str | None = None
    reason: str | None = None
    since: datetime | None = None
    before: datetime | None = None
    holds_key: bool | None = None

    def __attrs_post_init__(self) -> None:
        check_times(self.since, self.before)

    def matches(self, letter: KeptLetter) -> bool:
        """
        Tell whether *letter* is meant.
        """
        return all(
            wanted is None or _CONDITIONS[name](letter, wanted)
            for name, wanted in (
                ("subscription", self.subscription),
                ("names", self.names),
                ("key", self.key),
                ("error", self.error),
                ("reason", self.reason),
                ("since", self.since),
                ("before", self.before),
                ("holds_key", self.holds_key),
            )
        )


_CONDITIONS: dict[str, Callable[[KeptLetter, Any], bool]] = {
    "subscription": lambda letter, wanted: letter.subscription == wanted,
    "names": lambda letter, wanted: letter.record.name in wanted,
    "key": lambda letter, wanted: letter.record.key == wanted,
    "error": lambda letter, wanted: wanted in simple_and_qualified(letter.error_type),
    "reason": lambda letter, wanted: letter.reason == wanted,
    "since": lambda letter, wanted: letter.last_failure >= wanted,
    "before": lambda letter, wanted: letter.last_failure < wanted,
    "holds_key": lambda letter, wanted: letter.holds_key is wanted,
}

EVERY_LETTER = Selection()


def simple_and_qualified(error_type: str) -> tuple[str, ...]:
    """
    Return the names by which an error type may be asked for; none for none.

    .. versionadded:: 0.1
    """
    return (error_type, error_type.rpartition(".")[2]) if error_type else ()


class KeptLetters(Protocol):
    """
    Keeps dead letters, undecoded, in the order in which they first arrived.

    All methods may be called from any thread and process; what they return is a snapshot.
    Those given an id of which there is no letter raise `DeadLetterNotFoundError`.

    .. versionadded:: 0.1
    """

    def add(self, letter: KeptLetter) -> None:
        """
        Keep a letter, or raise `ValueError`: one of its id is kept already.
        """
        ...

    def get(self, id: str) -> KeptLetter:
        """
        Return the letter of that id.
        """
        ...

    def query(
        self,
        selection: Selection = EVERY_LETTER,
        *,
        limit: int | None = None,
        after: int = 0,
    ) -> list[KeptLetter]:
        """
        Return the letters that are meant, first arrival first, at most *limit*.

        For the next page, give the place of the last letter as *after*, whether or not
        that letter is still kept: only letters behind it are returned.
        """
        ...

    def count(self, selection: Selection = EVERY_LETTER) -> int:
        """
        Return how many letters are meant.
        """
        ...

    def replace(self, letter: KeptLetter) -> None:
        """
        Put *letter* in the place of the one with its id; its claim ends.
        """
        ...

    def edit(self, id: str, payload: bytes | None) -> KeptLetter:
        """
        Deliver *payload* from now on; ``None``: the original again, which is always kept.
        """
        ...

    def remove(self, id: str) -> KeptLetter:
        """
        Take the letter of that id out and return it.
        """
        ...

    def discard(self, selection: Selection = EVERY_LETTER) -> int:
        """
        Throw away the letters that are meant, all if nothing is said; count them.
        """
        ...

    def claim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Ask for the right to redrive a letter; of all who ask, one gets it.

        It ends with *ttl* seconds, when the letter is replaced, or with the process that
        *owner* names, where that is known to be gone. Asking again as the same owner
        renews it.
        """
        ...

    def held_keys(self, subscription: str) -> frozenset[str]:
        """
        Return the keys whose later events wait behind a letter.
        """
        ...

    def stuck_keys(self, subscription: str) -> frozenset[str]:
        """
        Return the held keys that do not go on by themselves: a letter of theirs `is_stuck`.

        It is asked again and again while there are any: let it not look at all letters.
        """
        ...
