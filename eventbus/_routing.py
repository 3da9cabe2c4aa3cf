"""
Event type → what is called for it, compiled on first use, dropped on change.

Law: everything about a route is decided when it is compiled; a publish looks one
up and walks it. What is called is folded outside the registry's lock.
"""

from __future__ import annotations

import weakref
from abc import ABCMeta
from collections import deque
from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Any, Protocol

import attrs

from eventbus._envelope import Envelope, here
from eventbus._event import Declaration, declaration_of, refuse_no_event
from eventbus._receipt import Receipt
from eventbus._registry import Registry
from eventbus._subscription import Counters, Subscription
from eventbus.errors import BusClosedError

__all__ = ["Folded", "Route", "Router", "miss"]

Call = Callable[[Any], Any]
# What a route leaves behind: the counters of its subscriptions, and its own counts.
Ledger = deque[tuple[tuple[Counters, ...], int, int]]


@attrs.frozen
class Folded:
    """
    A subscription folded into what a dispatch calls with the event.

    Attributes:
        call: For `publish`: returns when the delivery is over.
        acall: For `apublish`: may return a coroutine to be awaited.
        settle: Waits, in `publish`, for what *call* returned, if it can be awaited.
        fail: Gives the delivery up: what *call* raised ends here.
    """

    call: Call
    acall: Call
    settle: Callable[[Any], None]
    fail: Callable[[Receipt, Exception], None]


class Publisher(Protocol):
    """
    What a route knows of its bus.
    """

    def seal(self, receipt: Receipt, declaration: Declaration) -> Envelope[Any]:
        """
        Make the receipt's envelope, once.
        """
        ...


class Route:
    """
    What is called, in order, for events of one class.

    ``calls`` and ``acalls`` are lists walked by every publish under way: a cancelled
    subscription is taken out of them by replacing its call, which costs the others
    nothing. They are never lengthened or shortened; a new subscription makes a new
    route.
    """

    __slots__ = (
        "__weakref__",
        "acalls",
        "calls",
        "declaration",
        "event_type",
        "folded",
        "ledger",
        "needs_loop",
        "plain",
        "published",
        "publisher",
        "silent",
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
    ) -> None:
        self.published = 0
        self.unhandled = 0
        self.ledger = ledger
        self.subscriptions = subscriptions
        self.event_type = event_type
        self.declaration = declaration_of(event_type)
        self.calls = [each.call for each in folded]
        self.acalls = [each.acall for each in folded]
        self.folded = folded
        self.needs_loop = next((e.name for e in subscriptions if e.needs_loop), None)
        self.publisher = publisher
        self.plain = plain and bool(subscriptions)
        self.silent = plain and not subscriptions

    def __len__(self) -> int:
        return len(self.subscriptions)

    @property
    def name(self) -> str:
        """
        The event's name.
        """
        return self.declaration.name

    def seal(self, receipt: Receipt) -> Envelope[Any]:
        """
        Make the receipt's envelope, once.
        """
        return self.publisher.seal(receipt, self.declaration)

    def drop_out(self, subscription: Subscription) -> None:
        """
        Let whoever walks this route pass by *subscription* from now on.
        """
        absent = _absent(subscription.counters)
        for position, each in enumerate(self.subscriptions):
            if each is subscription:
                self.calls[position] = self.acalls[position] = absent

    def position(self, walk: Iterator[Call]) -> int:
        """
        Return which call *walk*, an iterator over this route's calls, gave last.
        """
        return len(self.calls) - length_hint(walk) - 1

    def interrupted(self, walk: Iterator[Call]) -> None:
        """
        Note that a publish ended early: the call *walk* gave last, and those behind it.
        """
        for each in self.subscriptions[max(0, self.position(walk)) :]:
            each.counters.missed += 1

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
        return self.unhandled if self.subscriptions else self.published


def miss(counters: Counters) -> None:
    """
    Note that the publish under way here passes a subscription by.
    """
    receipt: Receipt = here.get().current
    counters.missed += 1
    receipt.missed += 1
    if receipt.unhandled:
        route: Any = receipt.route
        route.unhandled += 1


def _absent(counters: Counters) -> Call:
    return lambda event: miss(counters)


class Router(dict[type, Route]):
    """
    The compiled routes of one bus, by event class: looked up, made when missing.

    Args:
        registry: Where the subscriptions are.
        publisher: Makes the envelopes of events that take these routes.
        fold: Turns a subscription into what is called; runs once for each.
        is_plain: Whether publishing on these routes needs nothing but the calls.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        publisher: Publisher,
        fold: Callable[[Subscription], Folded],
        is_plain: bool,
    ) -> None:
        super().__init__()
        self._registry = registry
        self._publisher = publisher
        self._fold = fold
        self._is_plain = is_plain
        self._folded: dict[Subscription, Folded] = {}
        # Also those no longer looked up, while a publish under way walks them.
        self._alive: weakref.WeakValueDictionary[int, Route] = weakref.WeakValueDictionary()
        self._ledger: Ledger = deque()
        self._settled_published = 0
        self._settled_unhandled = 0
        self.closed_by: str | None = None
        registry.on_change = self.invalidate

    def __missing__(self, event_type: type) -> Route:
        refuse_no_event(event_type)
        while True:
            self.refuse_if_closed(event_type)
            version, plain = self._registry.version, self._is_plain
            subscriptions = self._registry.matching(event_type)
            route = self._route(event_type, subscriptions, plain=plain)
            with self._registry.lock:
                self._settle()
                self._alive[id(route)] = route
                if version == self._registry.version and self.closed_by is None:
                    return self.setdefault(event_type, route)

    def refuse_if_closed(self, event_type: type) -> None:
        """
        Raise `BusClosedError` for an event of that class, once the bus is closed.
        """
        if self.closed_by is not None:
            raise BusClosedError(
                f"{self.closed_by} is closed and takes no {event_type.__qualname__}. "
                f"Publish before close(), or make a new bus."
            )

    def _route(
        self, event_type: type, subscriptions: tuple[Subscription, ...], *, plain: bool
    ) -> Route:
        return Route(
            event_type,
            subscriptions,
            [self.folded(each) for each in subscriptions],
            publisher=self._publisher,
            plain=plain,
            ledger=self._ledger,
        )

    def folded(self, subscription: Subscription) -> Folded:
        """
        Return what is called for *subscription*, folded the first time.
        """
        # What depends on the bus may change meanwhile; this is then no longer looked at.
        folded = self._folded
        found = folded.get(subscription)
        if found is None:
            found = folded.setdefault(subscription, self._fold(subscription))
            if not subscription.is_active:
                folded.pop(subscription, None)
        return found

    def alone(self, event: object, subscription: Subscription) -> Route:
        """
        Return a route to one subscription, for an event of its own.
        """
        return self._route(type(event), (subscription,), plain=False)

    def invalidate(self, subscription: Subscription) -> None:
        """
        Drop the routes *subscription* belongs to, or may belong to now.

        Called with the registry locked. A route under way is left to those who walk
        it; a cancelled subscription drops out of it.
        """
        if subscription.is_active:
            for event_type in list(self):
                if _may_match(subscription, event_type):
                    self.pop(event_type, None)
            return
        self._folded.pop(subscription, None)
        for route in self._routes():
            if subscription in route.subscriptions:
                route.drop_out(subscription)
                if self.get(route.event_type) is route:
                    self.pop(route.event_type, None)

    def _routes(self) -> list[Route]:
        found = (each() for each in self._alive.valuerefs())
        return [route for route in found if route is not None]

    def reset(self, *, is_plain: bool) -> None:
        """
        Drop every route and everything folded: what folding depends on has changed.
        """
        dropped = self._folded
        with self._registry.lock:
            self._is_plain = is_plain
            self._folded = {}
            self._registry.changed()
            self.clear()
        dropped.clear()

    def close(self, name: str) -> None:
        """
        Compile no more routes: every publish from now on is refused.
        """
        with self._registry.lock:
            self.closed_by = name
            self.clear()

    def _settle(self) -> None:
        """
        Enter what dropped routes have counted; called under the lock.
        """
        for _ in range(len(self._ledger)):
            counters, published, unhandled = self._ledger.popleft()
            for each in counters:
                each.routed += published
            self._settled_published += published
            self._settled_unhandled += unhandled

    def totals(self) -> tuple[int, int, dict[Subscription, int]]:
        """
        Return the events published, the unhandled ones, and those on each one's way.
        """
        with self._registry.lock:
            routes = self._routes()  # first: what dies from here on is counted below
            self._settle()
            published, unhandled = self._settled_published, self._settled_unhandled
            routed = {each: each.counters.routed for each in self._registry}
        for route in routes:
            published += route.published
            unhandled += route.unhandled_events
            for subscription in route.subscriptions:
                if subscription in routed:
                    routed[subscription] += route.published
        return published, unhandled, routed


def _may_match(subscription: Subscription, event_type: type) -> bool:
    # An ABC may answer with user code, and the lock is held: assume it matches.
    return any(
        isinstance(each, ABCMeta) or each in event_type.__mro__ for each in subscription.event_types
    )
