"""
How far each durable subscription has come: the values and the protocols.

Law: this room keeps accounts and decides nothing: which record is a subscription's
business, what a failure leads to and when to try again is decided elsewhere. Whatever
belongs together is written in one `Step`: all of it, or, after a crash, nothing.

A subscription looks at the log in the order of its offsets. *taken* is how far it has
looked: every record up to there is finished (handled, dead, or none of its business) or
stands in the list of pending deliveries. So nothing is lost, and no finished event is
handled again, whatever the order in which deliveries end::

    log      1  2  3  4  5  6  7  8  9
    taken                      ▲              read on after 7
    pending        ▲     ▲                    3 (waits for its retry), 5 (was begun)
    offset      ▲                             all up to 2 is finished

The time *now* is in seconds since 1970-01-01 UTC, given by the caller: nothing here
reads a clock.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Any, Literal, Protocol

import attrs

from eventbus.errors import LeaseLostError, SubscriptionNotFoundError
from eventbus.idempotency import IdempotencyStore
from eventbus.kept_letters import KeptLetter

__all__ = [
    "Advance",
    "Handled",
    "Lease",
    "Pending",
    "Position",
    "Progress",
    "Retry",
    "Start",
    "Step",
    "Transaction",
    "lost",
    "unknown",
]

Start = Literal["now", "origin"] | int | datetime
"""
Where a new subscription begins: with the next event, the first one, the one after an
offset, or the first one at or after an instant.

.. versionadded:: 0.1
"""


@attrs.frozen
class Lease:
    """
    The right to consume one subscription, for as long as it is renewed.

    Attributes:
        subscription: Its name.
        owner: Who holds it: the text given to `Progress.acquire`.
        token: Greater than that of every lease before; the fence.
        expires: When it ends unless renewed, in seconds since 1970-01-01 UTC.

    .. versionadded:: 0.1
    """

    subscription: str
    owner: str
    token: int
    expires: float


@attrs.frozen(kw_only=True)
class Position:
    """
    Where one subscription stands.

    Attributes:
        name: The subscription.
        offset: Everything up to here is finished.
        taken: Everything up to here has been looked at; reading goes on after it.
        pending: How many deliveries have been taken and are not finished.
        lag: How many records there are that are not finished.
        dead: How many dead letters it has.
        lease: Who consumes it, or did last; ``None`` where nobody does.

    .. versionadded:: 0.1
    """

    name: str
    offset: int
    taken: int
    pending: int
    lag: int
    dead: int
    lease: Lease | None


@attrs.frozen(kw_only=True)
class Pending:
    """
    One delivery that has been taken and is not finished.

    Attributes:
        offset: The record's.
        attempts: How often the handler's call has been begun.
        due: When the next attempt is to be made, in seconds since 1970-01-01 UTC;
            ``None``: as soon as may be.
        story: What became of the attempts so far, as the caller wrote it.

    .. versionadded:: 0.1
    """

    offset: int
    attempts: int = 0
    due: float | None = None
    story: str = ""


@attrs.frozen(kw_only=True)
class Retry:
    """
    A failed attempt that is followed by another one.

    Attributes:
        offset: The record's.
        due: When to try again, in seconds since 1970-01-01 UTC.
        story: What became of all attempts so far; the caller's text, JSON as a rule.

    .. versionadded:: 0.1
    """

    offset: int
    due: float
    story: str = ""


@attrs.frozen(kw_only=True)
class Handled:
    """
    A delivery that has succeeded, as a subscription remembers it that keeps a history.

    Attributes:
        offset: The record's.
        attempts: The number of the attempt that succeeded, from 1.
        time: When it ended, in seconds since 1970-01-01 UTC.
        seconds: How long it took.

    .. versionadded:: 0.1
    """

    offset: int
    attempts: int
    time: float
    seconds: float


@attrs.frozen(kw_only=True)
class Step:
    """
    What changes about one subscription in one transaction. It is applied in this order.

    Attributes:
        gone: Ids of letters of the subscription whose events were handled after all, or
            wait for their turn again; all are there, or nothing is changed.
        done: Offsets of pending deliveries that are finished.
        untried: Offsets that were begun and whose handler was not called after all: they
            stay pending, with one attempt less.
        retry: Pending deliveries to be tried again.
        dead: Letters; the delivery of each one's record is finished.
        hold: Letters that are kept only while an earlier one holds their key; the
            delivery of each one's record is then finished, and stays pending otherwise.
        taken: Look at the log after this offset from now on; it never moves back.
        waiting: Offsets that were taken, but wait for their turn: pending from now on.
        begin: Offsets whose handler is about to be called: pending, with one attempt more.
        handled: What is to be remembered, in the place of what was of the same offset.

    .. versionadded:: 0.1
    """

    gone: Collection[str] = ()
    done: Collection[int] = ()
    untried: Collection[int] = ()
    retry: Sequence[Retry] = ()
    dead: Sequence[KeptLetter] = ()
    hold: Sequence[KeptLetter] = ()
    taken: int | None = None
    waiting: Collection[int] = ()
    begin: Collection[int] = ()
    handled: Sequence[Handled] = ()


@attrs.frozen
class Advance:
    """
    What came of a step.

    Attributes:
        attempts: For each offset in `Step.begin`, the number of the attempt, from 1.
        held: The offsets of the letters in `Step.hold` that were kept.

    .. versionadded:: 0.1
    """

    attempts: Mapping[int, int]
    held: frozenset[int] = frozenset()


class Transaction(Protocol):
    """
    One database transaction that carries a handler's own writes and its progress.

    .. versionadded:: 0.1
    """

    @property
    def connection(self) -> Any:
        """
        A `sqlite3.Connection` for the handler; it can neither commit nor roll back.

        It is also what to give `EventLog.append` and `IdempotencyStore` views, for what
        is to be stored or dropped together with the rest.
        """
        ...

    @property
    def idempotency(self) -> IdempotencyStore:
        """
        The store's keys, claimed and completed as part of this transaction.
        """
        ...

    def advance(self, step: Step) -> Advance:
        """
        Make *step* part of the transaction; see `Progress.advance`.
        """
        ...


class Progress(Protocol):
    """
    Keeps the positions, pending deliveries and leases of durable subscriptions.

    All methods may be called from any thread and process. Those given a name that was
    never opened raise `SubscriptionNotFoundError`; those given a lease that another owner
    has taken over, or that was released, raise `LeaseLostError` and write nothing. A
    lease that has run out still counts until somebody else takes it.

    .. versionadded:: 0.1
    """

    def open(self, name: str, *, start: Start = "now") -> Position:
        """
        Return where the subscription stands; *start* decides the first time only.
        """
        ...

    def position(self, name: str) -> Position:
        """
        Return where the subscription stands.
        """
        ...

    def positions(self) -> list[Position]:
        """
        Return where all subscriptions stand, handlers present or not, by name.
        """
        ...

    def forget(self, name: str) -> None:
        """
        Forget the subscription's position and pending deliveries; its letters stay.

        The lease goes with them: whoever holds it is fenced off.
        """
        ...

    def acquire(
        self, name: str, *, owner: str, ttl: float, now: float, instead_of: Lease | None = None
    ) -> Lease | None:
        """
        Ask for the right to consume the subscription; of all who ask, one gets it.

        Args:
            name: The subscription.
            owner: Tells who holds it; one owner asking twice is two different ones.
            ttl: How long the lease lasts unless renewed, in seconds.
            now: The time.
            instead_of: Take it over even though it has not run out, if it still is this
                very lease. For callers who know that its owner is gone.

        Returns:
            ``None`` while another lease runs.
        """
        ...

    def renew(self, lease: Lease, *, ttl: float, now: float) -> Lease:
        """
        Let the lease run anew from *now*; even late, while nobody has taken it over.
        """
        ...

    def release(self, lease: Lease) -> bool:
        """
        Give the lease back; ``False`` when it was lost already.
        """
        ...

    def advance(self, lease: Lease, step: Step) -> Advance:
        """
        Apply *step*, all of it or nothing; when this returns it survives the process.

        An offset in `Step.done`, `Step.untried`, `Step.retry` or a letter that is not
        pending is passed over: it was finished before.

        Raises:
            DeadLetterNotFoundError: One in `Step.gone` is not there, or not the
                subscription's: it was redriven or discarded before.
        """
        ...

    async def aadvance(self, lease: Lease, step: Step) -> Advance:
        """
        Do as `advance`, without blocking the event loop while the disk is at work.
        """
        ...

    def take_up(self, lease: Lease, keys: Collection[str], *, now: float) -> dict[str, list[int]]:
        """
        Let what is held of *keys* wait for its turn again, in one transaction.

        Returns:
            For each key that is free, the offsets whose letters are gone, and pending
            now; a key of which a letter `is_stuck`, or is claimed, stays as it is.
        """
        ...

    def transaction(self, of: Lease | str, /) -> AbstractContextManager[Transaction]:
        """
        Open a transaction that commits at the end of the ``with`` block.

        Given a name alone, a letter is redriven, by `Step.gone`. It is rolled back if the block
        raises or the lease is lost. Nobody else writes meanwhile: append with its connection.
        """
        ...

    def atransaction(self, of: Lease | str, /) -> AbstractAsyncContextManager[Transaction]:
        """
        Do as `transaction`; whoever it waits for, the event loop goes on.
        """
        ...

    def pending(self, name: str, *, after: int = 0, limit: int | None = None) -> list[Pending]:
        """
        Return the deliveries taken and not finished, in the order of their offsets.
        """
        ...

    def handled(self, offset: int) -> dict[str, Handled]:
        """
        Return, by subscription, who remembers to have handled a record that is still kept.
        """
        ...

    def reset(self, lease: Lease, *, to: int) -> None:
        """
        Begin again after offset *to*: what was pending is forgotten, letters stay.
        """
        ...


def lost(lease: Lease) -> LeaseLostError:
    """
    Return the error that says that somebody else has taken over.

    .. versionadded:: 0.1
    """
    return LeaseLostError(
        f"{lease.owner!r} does not consume {lease.subscription} any more: its lease was taken "
        f"over, given back or forgotten. Nothing was written; stop, and acquire it again.",
        subscription=lease.subscription,
        owner=lease.owner,
    )


def unknown(name: str) -> SubscriptionNotFoundError:
    """
    Return the error that says that a name was never opened.

    .. versionadded:: 0.1
    """
    return SubscriptionNotFoundError(
        f"no durable subscription {name!r} has a position in this store", subscription=name
    )
