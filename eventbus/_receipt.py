"""
What came of one publish: the receipt and its failures.

Law: a receipt is written by the rooms that deliver and read by everybody. It
is also the link from an event to the one that caused it, so it is made for every
publish and must cost next to nothing: three stores, the rest are defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Protocol

import attrs

from eventbus._envelope import Envelope
from eventbus.errors import HandlerErrors

__all__ = ["Failure", "Receipt", "ancestry", "raise_failures"]


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


# Read through `Receipt.__getattr__` while the slot is unset.
_DEFAULTS: dict[str, Any] = {
    "depth": 0,
    "duplicate_of": None,
    "failures": (),
    "finished": False,
    "missed": 0,
    "options": None,
    "sealed": None,
    "duplicate": False,
}


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

    __slots__ = (
        "__weakref__",
        "depth",
        "duplicate",
        "duplicate_of",
        "event",
        "failures",
        "finished",
        "missed",
        "options",
        "parent",
        "route",
        "sealed",
    )

    event: Any
    route: Itinerary
    parent: Receipt | None
    depth: int
    duplicate: bool
    duplicate_of: str | None
    failures: tuple[Failure, ...]
    finished: bool
    missed: int
    options: dict[str, Any] | None
    sealed: Envelope[Any] | None

    # A receipt can stand in `here` for itself: a cell that is never moved.
    threads: ClassVar[int] = -1

    @property
    def current(self) -> Receipt:
        """
        The publish under way: this one.
        """
        return self

    if not TYPE_CHECKING:
        # Unset slots come here: a publish stores only what differs from the default.
        def __getattr__(self, name):
            try:
                return _DEFAULTS[name]
            except KeyError:
                raise AttributeError(f"a Receipt has no attribute {name!r}") from None

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
        return len(self.route) - self.missed - len(self.failures)

    @property
    def unhandled(self) -> bool:
        """
        Whether no handler was called: none subscribed, or each filter said no.
        """
        return not (self.delivered or self.failures or self.duplicate)

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
        """
        return self.envelope.id

    def raise_for_failures(self) -> None:
        """
        Do nothing if all went well; raise all failures as one group otherwise.

        Raises:
            HandlerErrors: One member for each failure, with a note that names its
                subscription.
        """
        if self.failures:
            raise_failures(self.route.name, self.failures)

    def __repr__(self) -> str:
        facts = [f"delivered={self.delivered}"]
        facts += [f"failures={[each.subscription for each in self.failures]}"] * (not self.ok)
        facts += ["duplicate=True"] * self.duplicate
        return f"<Receipt of {self.route.name}: {', '.join(facts)}>"


def ancestry(receipt: Receipt | None) -> Iterator[Receipt]:
    """
    Walk from a publish to the one whose handler made it, and on to the outermost.
    """
    while receipt is not None:
        yield receipt
        receipt = receipt.parent


def raise_failures(what: str, failures: Sequence[Failure]) -> NoReturn:
    """
    Raise *failures* of *what* as one group.
    """
    for failure in failures:
        _note(failure)
    count = f"{len(failures)} handler{'s' * (len(failures) != 1)}"
    raise HandlerErrors(
        f"{count} of {what} failed: {', '.join(each.subscription for each in failures)}",
        [failure.exception for failure in failures],
        failures,
    ) from None


def _note(failure: Failure) -> None:
    attempts = f"{failure.attempts} attempt" + "s" * (failure.attempts != 1)
    note = f"in subscription {failure.subscription!r}, after {attempts}"
    if note not in getattr(failure.exception, "__notes__", ()):
        failure.exception.add_note(note)
