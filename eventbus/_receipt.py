"""
What came of one publish: the receipt and its failures.

Law: a receipt is written by the rooms that deliver and read by everybody. It
is also the link from an event to the one that caused it, so it is made for every
publish and must cost next to nothing: five stores, and no ``__init__``, which would
cost as much again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, Protocol

import attrs

from eventbus._envelope import Envelope
from eventbus._event import Declaration
from eventbus.errors import HandlerErrors

__all__ = [
    "Failure",
    "KnownId",
    "Receipt",
    "ancestry",
    "begin",
    "free_key",
    "lender",
    "raise_failures",
]


@attrs.frozen
class Failure:
    """
    One subscription's terminal failure in one publish.

    Attributes:
        subscription: The subscription's name.
        exception: What the last attempt raised.
        attempts: How often the handler was called; 0 when it never came to a call.

    .. versionadded:: 0.1
    """

    subscription: str
    exception: Exception
    attempts: int


class Itinerary(Protocol):
    """
    What a receipt knows of the route its event took.
    """

    @property
    def name(self) -> str:
        """
        The event's name.
        """
        ...

    @property
    def declaration(self) -> Declaration:
        """
        What is known of the event's class.
        """
        ...

    @property
    def queued(self) -> int:
        """
        How many of them take events into queues.
        """
        ...

    @property
    def durable(self) -> int:
        """
        How many more take events from the log.
        """
        ...

    @property
    def publisher(self) -> object:
        """
        What publishes for the bus whose route it is.
        """
        ...

    def __len__(self) -> int:
        """
        Return how many subscriptions stood on the route.
        """
        ...

    def seal(self, receipt: Receipt) -> Envelope[Any]:
        """
        Make the receipt's envelope, once.
        """
        ...


class Receipt:
    """
    What came of one publish.

    Attributes:
        event: The event that was published.
        failures: One `Failure` for each subscription that gave up, in order.
        duplicate: An idempotency key, the publisher's or a subscription's, kept at
            least one handler from running again.
        duplicate_of: The id of the event that holds the key; ``None`` when this is
            no duplicate, or when nothing ever asked that event for its id.

    .. versionadded:: 0.1
    """

    # Every publish stores these, at a fiftieth of its cost each. The rest only few have:
    # it stands in the receipt's dict, and its default here.
    __slots__ = (
        "__dict__",
        "__weakref__",
        "event",
        "finished",
        "parent",
        "route",
    )

    event: Any
    route: Itinerary
    parent: Receipt | None
    finished: bool

    afterwards: Any = None
    connection: Any = None
    depth: int = 0
    duplicate: bool = False
    duplicate_of: str | None = None
    failures: tuple[Failure, ...] = ()
    missed: int = 0
    options: dict[str, Any] | None = None
    postponed: Any = None
    sealed: Envelope[Any] | None = None
    since: float | None = None
    unqueued: int = 0

    @property
    def ok(self) -> bool:
        """
        Whether every handler that was called succeeded in the end.
        """
        return not self.failures

    @property
    def delivered(self) -> int:
        """
        How many subscriptions took the event: called, and successful in the end.
        """
        in_queues = self.route.queued - self.unqueued
        return len(self.route) - self.missed - len(self.failures) - in_queues

    @property
    def queued(self) -> int:
        """
        How many subscriptions have it in their queues, or the log, to handle it thereafter.

        What becomes of it there is in the stats and the dead letters, and not here.
        """
        return self.route.queued + self.route.durable - self.unqueued

    @property
    def unhandled(self) -> bool:
        """
        Whether no handler is called: none subscribed, or each filter said no.
        """
        came = self.delivered or self.failures or self.duplicate or self.queued
        return not (came or self.is_scheduled)

    @property
    def is_scheduled(self) -> bool:
        """
        Whether it is published later: by ``delay=``, ``at=`` or ``deferred()``.
        """
        return self.postponed is not None

    def cancel(self) -> bool:
        """
        Do not publish what is scheduled; its publisher's key is free again.

        Returns:
            Whether it was called off. Too late, or never scheduled, is ``False``.
        """
        return self.postponed is not None and bool(self.postponed.cancel(self))

    @property
    def envelope(self) -> Envelope[Any]:
        """
        The envelope, made now if nothing has asked before.
        """
        sealed = self.sealed
        return self.route.seal(self) if sealed is None else sealed

    @property
    def id(self) -> str:
        """
        The event's id; for a publisher's duplicate the id of the first event.

        A duplicate that was scheduled, and found out when it was to be published, has its own.
        """
        return self.envelope.id

    def raise_for_failures(self) -> None:
        """
        Do nothing if all went well; raise all failures as one group otherwise.

        Raises:
            HandlerErrors: One member for each failure, with a note that names its
                subscription and event.
        """
        if self.failures:
            raise_failures(self.route.name, [(each, self.route.name) for each in self.failures])

    def __repr__(self) -> str:
        facts = [f"delivered={self.delivered}"]
        facts += ["scheduled"] * self.is_scheduled
        facts += [f"queued={self.queued}"] * (self.queued > 0)
        facts += [f"failures={[each.subscription for each in self.failures]}"] * (not self.ok)
        facts += ["duplicate=True"] * self.duplicate
        return f"<Receipt of {self.route.name}: {', '.join(facts)}>"


@attrs.frozen(eq=False, repr=False, weakref_slot=False)
class KnownId:
    """
    The id of an event that holds a key, and need not be alive for it.

    It cannot be referenced weakly, and so a store keeps it as long as the key.
    """

    id: str


def begin(event: object, route: Itinerary, parent: Receipt | None) -> Receipt:
    """
    Return the receipt of a publish that begins now, where it may cost a call.
    """
    receipt = Receipt()
    receipt.event = event
    receipt.route = route
    receipt.parent = parent
    receipt.finished = False
    return receipt


def free_key(receipt: Receipt) -> None:
    """
    Let the publisher's key be used again, if there is one: the event was given up.
    """
    free: Callable[[], None] | None = (receipt.options or {}).get("free")
    if free is not None:
        free()


def ancestry(receipt: Receipt | None) -> Iterator[Receipt]:
    """
    Walk from a publish to the one whose handler made it, and on to the outermost.
    """
    while receipt is not None:
        yield receipt
        receipt = receipt.parent


def lender(receipt: Receipt) -> Receipt | None:
    """
    Return the delivery that has lent its handler, who publishes here, a connection.
    """
    for each in ancestry(receipt.parent):
        if each.connection is not None:
            return each
    return None


def raise_failures(
    what: str, failed: Sequence[tuple[Failure, str]], shown: Sequence[str] | None = None
) -> NoReturn:
    """
    Raise the failures of *what* as one group.

    Args:
        what: An event's name, or what else is to be said to have failed.
        failed: The failures, each with the name of its event.
        shown: How each event is named in the note, if not by its name.
    """
    texts = shown or [name for _, name in failed]
    for (failure, _), text in zip(failed, texts, strict=True):
        _note(failure, text)
    count = f"{len(failed)} handler{'s' * (len(failed) != 1)}"
    names = [f"{each.subscription}{f' ({name})' * (name != what)}" for each, name in failed]
    failures = [failure for failure, _ in failed]
    raise HandlerErrors(
        f"{count} of {what} failed: {', '.join(names)}",
        [failure.exception for failure in failures],
        failures,
    ) from None


def _note(failure: Failure, event: str) -> None:
    attempts = f"{failure.attempts} attempt" + "s" * (failure.attempts != 1)
    note = f"in subscription {failure.subscription!r} of {event}, after {attempts}"
    if note not in getattr(failure.exception, "__notes__", ()):
        failure.exception.add_note(note)
