"""
What is called, in order, for events of one class: a route.

Law: what publishes under way walk never changes its length; whoever leaves it is
replaced by what passes him by. Which routes there are is decided in `_routing`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from operator import length_hint
from typing import Any, Protocol

import attrs

from eventbus._envelope import Envelope, here
from eventbus._event import Declaration, declaration_of
from eventbus._receipt import Receipt
from eventbus._subscription import Counters, Subscription

__all__ = ["Folded", "Ledger", "Publisher", "Route", "miss"]

Call = Callable[[Any], Any]
# What a route leaves behind: the counters of its subscriptions, and its own counts.
Ledger = deque[tuple[tuple[Counters, ...], int, int]]


@attrs.frozen(eq=False, repr=False)
class Folded:
    """
    A subscription folded into what a dispatch calls with the event.

    Attributes:
        call: For `publish`: returns when the delivery is over.
        acall: For `apublish`: may return a coroutine to be awaited.
        settle: Waits, in `publish`, for what *call* returned, if it can be awaited.
        fail: Gives the delivery up: what *call* raised ends here.
        post: For a route to it alone: takes the event into its queue, and returns the
            receipt of the publish; or ``None``, where there is more to it.
        buries: Some failures end inside of *call*, and are in the receipt when it returns.
    """

    call: Call
    acall: Call
    settle: Callable[[Any], None]
    fail: Callable[[Receipt, Exception], None]
    post: Callable[[Any, Any], Receipt | None] | None = None
    buries: bool = False


class Publisher(Protocol):
    """
    What a route knows of its bus.

    Attributes:
        raises: Failures are raised once all handlers have run.
    """

    raises: bool

    def seal(self, receipt: Receipt, declaration: Declaration) -> Envelope[Any]:
        """
        Make the receipt's envelope, once.
        """
        ...

    def descend(self, receipt: Receipt, parent: Receipt) -> None:
        """
        Note that *receipt*'s event is published by a handler of *parent*'s.
        """
        ...

    def conclude(self, receipt: Receipt) -> Receipt:
        """
        Do what is due when all handlers are done.
        """
        ...

    def interrupted(self, receipt: Receipt) -> None:
        """
        Note that something else ends the publish, and not all have had the event.
        """
        ...


class Route:
    """
    What is called, in order, for events of one class.

    ``calls`` and ``acalls`` are lists walked by every publish under way: a cancelled
    subscription is taken out of them by replacing its call, which costs the others
    nothing. They are never lengthened or shortened; a new subscription makes a new
    route.

    Attributes:
        plain: A publish has nothing to look at but the calls, and no loop is needed.
        aplain: The same of `apublish`, which has a loop.
        post: All there is to a publish, where one queue takes the event and nothing else
            is asked; it may return ``None``, and then it is a publish like any other.
    """

    __slots__ = (
        "__weakref__",
        "acalls",
        "aplain",
        "calls",
        "declaration",
        "durable",
        "event_type",
        "folded",
        "ledger",
        "needs_loop",
        "plain",
        "post",
        "published",
        "publisher",
        "queued",
        "readers",
        "subscriptions",
        "unhandled",
    )

    def __init__(
        self,
        event_type: type,
        subscriptions: tuple[Subscription, ...],
        folded: list[Folded],
        *,
        publisher: Publisher,
        plain: bool,
        ledger: Ledger,
        durable: tuple[Subscription, ...] = (),
    ) -> None:
        self.published = 0
        self.readers = durable  # of the log, which has the events of this route
        self.durable = len(durable)
        self.unhandled = 0
        self.ledger = ledger
        self.subscriptions = subscriptions
        self.event_type = event_type
        self.declaration = declaration_of(event_type)
        self.folded = folded = _told_apart(folded)
        self.calls = [each.call for each in folded]
        self.acalls = [each.acall for each in folded]
        inline = [each for each in subscriptions if not each.is_queued]
        self.queued = len(subscriptions) - len(inline)
        self.needs_loop = next((each.name for each in inline if each.needs_loop), None)
        self.publisher = publisher
        alone = folded[0] if plain and len(folded) == 1 else None
        self.post = alone.post if alone is not None and self.declaration.key is None else None
        # Where failures are raised at the end, those that ended inside of a call are looked for.
        plain = plain and not (publisher.raises and any(each.buries for each in folded))
        self.aplain = plain and self.post is None
        self.plain = self.aplain and self.needs_loop is None

    def __len__(self) -> int:
        return len(self.subscriptions)

    @property
    def name(self) -> str:
        """
        The event's name.
        """
        return self.declaration.name

    @property
    def names(self) -> tuple[str, ...]:
        """
        The names of the subscriptions it leads to: in order, and those that read the log.
        """
        return tuple([each.name for each in (*self.subscriptions, *self.readers)])

    def seal(self, receipt: Receipt) -> Envelope[Any]:
        """
        Make the receipt's envelope, once.
        """
        return self.publisher.seal(receipt, self.declaration)

    def drop_out(self, subscription: Subscription) -> None:
        """
        Let whoever walks this route pass by *subscription* from now on.
        """
        absent, self.post = _absent(subscription), None
        for position, each in enumerate(self.subscriptions):
            if each is subscription:
                self.calls[position] = self.acalls[position] = absent

    def position(self, walk: Iterator[Call]) -> int:
        """
        Return which call *walk*, an iterator over this route's calls, gave last.
        """
        return len(self.calls) - length_hint(walk) - 1

    def after(self, calls: list[Call], call: Call | None) -> Iterator[Call]:
        """
        Return what *calls* still has to give when it has given *call*.

        It need not be there any more. The loop of a publish that goes well is spared
        the iterator this takes, which is a twentieth of a publish to one handler.
        """
        walk = iter(calls)
        if call is not None:
            # It is found: what is put in a call's place leaves *folded* as it is.
            for now, folded in zip(walk, self.folded, strict=False):  # pragma: no branch - found
                if call is now or call is folded.call or call is folded.acall:
                    break
        return walk

    def settle(self, call: Call, result: object) -> None:
        """
        Wait, in `publish`, for what *call* returned, which can be awaited.
        """
        self.folded[self.position(self.after(self.calls, call))].settle(result)

    def __del__(self) -> None:
        # The last publish that took this route has let go of it: its count is final.
        # A deque takes the entry without a lock, whichever thread this runs in.
        if self.published:
            counters = tuple(each.counters for each in self.subscriptions)
            self.ledger.append((counters, self.published, self.unhandled_events))

    @property
    def unhandled_events(self) -> int:
        """
        How many events came this way for which no handler was called.
        """
        return self.unhandled if self.subscriptions or self.durable else self.published


def miss(counters: Counters, *, unqueued: int = 0) -> None:
    """
    Note that the publish under way here passes a subscription by, perhaps a queued one.
    """
    receipt: Receipt = here.get()
    counters.missed += 1
    receipt.missed += 1
    if unqueued:
        receipt.unqueued += unqueued
    if receipt.unhandled:
        route: Any = receipt.route
        route.unhandled += 1


def _absent(subscription: Subscription) -> Call:
    counters, unqueued = subscription.counters, int(subscription.is_queued)
    return lambda event: miss(counters, unqueued=unqueued)


def _told_apart(folded: list[Folded]) -> list[Folded]:
    """
    Return *folded* with no call twice: a call that fails then says whose it is.
    """
    seen: set[int] = set()
    apart: list[Folded] = []
    for one in folded:
        is_twin = id(one.call) in seen or id(one.acall) in seen
        calls = (partial(one.call), partial(one.acall)) if is_twin else (one.call, one.acall)
        apart.append(attrs.evolve(one, call=calls[0], acall=calls[1]) if is_twin else one)
        seen.update(map(id, calls))
    return apart
