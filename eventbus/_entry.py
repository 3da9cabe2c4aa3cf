"""
One delivery from the log: the entry that follows it from the record to its end.

Law: values and what they say; nothing here reads the log, writes to a store or calls a
handler. An envelope is made of the record when something asks for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime
from typing import Any

import attrs

from eventbus._envelope import Envelope
from eventbus._job import Job
from eventbus._receipt import Receipt
from eventbus._records import enveloped
from eventbus._stored_letters import failures_from_json
from eventbus._verdict import Trial
from eventbus.event_log import Record
from eventbus.progress import Handled, Pending

__all__ = ["Entry", "LoggedReceipt", "entry_of", "logged_receipt", "readied", "seconds_until"]


@attrs.define(eq=False)
class Entry:
    """
    One delivery from the log, on its way.

    Attributes:
        offset: The record's.
        number: How often its handler's call has been begun, as the store knows it.
        due: When the next attempt is to be made, in seconds since 1970-01-01 UTC.
        due_at: The same, on the monotonic clock.
        story: What became of the attempts before.
        is_pending: The store has it among the deliveries that are not finished.
        is_recovered: It was begun by a process that is gone.
        is_begun: The store knows that attempt *number* is about to be made.
        is_over: Its end was told.
        is_counted: It is among the events that came the subscription's way.
        is_asleep: It was begun, and waits for another event with its idempotency key.
        is_stored: The store knows it as finished, by its handler's own transaction.
        is_unstored: The store did not take what its handler had written.
        handled: What is to be remembered of its success.
        trial: Its attempts, once it was admitted.
        key: What orders it, or ``None``.
        record: The event as it is stored, once it was read.
        receipt: What stands for its publish; ``None`` where it is to be read again.
        ring: Has the queue hand it out that keeps it, once it was begun.
        epoch: Which of its consumer's leases it belongs to.
    """

    offset: int
    number: int = 0
    due: float | None = None
    due_at: float = 0.0
    story: str = ""
    is_pending: bool = False
    is_recovered: bool = False
    is_begun: bool = False
    is_over: bool = False
    is_counted: bool = False
    is_asleep: bool = False
    is_stored: bool = False
    is_unstored: bool = False
    handled: Handled | None = None
    trial: Trial | None = None
    key: str | None = None
    record: Record | None = None
    receipt: LoggedReceipt | None = None
    ring: Callable[[], None] | None = None
    epoch: int = 0


class LoggedReceipt(Receipt):
    """
    What stands, in a handler, for the publish that is long over.

    Attributes:
        entry: The delivery it is for.
    """

    __slots__ = ("entry",)

    entry: Entry

    @property
    def envelope(self) -> Envelope[Any]:
        """
        The envelope, as it was stored.
        """
        if (sealed := self.sealed) is not None:
            return sealed
        record = self.entry.record
        assert record is not None
        made = enveloped(record, self.event, self.route.declaration.version)
        first: Envelope[Any] = vars(self).setdefault("sealed", made)
        return first


def logged_receipt(event: object, route: Any, entry: Entry) -> LoggedReceipt:
    """
    Return what a handler's publishes are seen to come from.
    """
    receipt = LoggedReceipt()
    receipt.event = event
    receipt.route = route
    receipt.parent = None
    receipt.finished = False
    receipt.entry = entry
    return receipt


def entry_of(pending: Pending, epoch: int) -> Entry:
    """
    Return the entry of a delivery that the store knows.
    """
    return Entry(
        pending.offset,
        number=pending.attempts,
        due=pending.due,
        story=pending.story,
        is_pending=True,
        is_recovered=pending.attempts > 0 and pending.due is None,
        epoch=epoch,
    )


def readied(entry: Entry, now: float) -> Job:
    """
    Return the entry's job, with the attempts it has behind it.
    """
    receipt = entry.receipt
    assert receipt is not None
    stories = failures_from_json(entry.story) if entry.story else ()
    trial = Trial(receipt, number=entry.number or 1, stories=stories, is_queued=True)
    return Job(receipt.event, receipt, Context(), now, entry.key, trial)


def seconds_until(due: float, story: str, now: float) -> float:
    """
    Return how long an attempt has to wait, however the clock was set meanwhile.

    It never waits longer than it was to wait when the one before had failed.
    """
    remaining = due - now
    if story and (failures := failures_from_json(story)):
        failed = datetime.timestamp(failures[-1].time.astimezone(UTC))
        remaining = min(remaining, max(0.0, due - failed))
    return max(0.0, remaining)
