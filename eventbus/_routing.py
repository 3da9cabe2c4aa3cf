"""
Event type → its route, compiled on first use, dropped on change.

Law: everything about a route is decided when it is compiled; a publish looks one
up and walks it. What is called is folded outside the registry's lock.
"""

from __future__ import annotations

import weakref
from abc import ABCMeta
from collections import deque
from collections.abc import Callable, Iterable

from eventbus._envelope import here
from eventbus._event import declaration_of, refuse_no_event
from eventbus._receipt import ancestry
from eventbus._registry import Registry
from eventbus._route import Folded, Ledger, Publisher, Route
from eventbus._subscription import Subscription
from eventbus.errors import BusClosedError

__all__ = ["Router"]


class Router:
    """
    The compiled routes of one bus, by event class: looked up, made when missing.

    Attributes:
        table: Those that are made. A publish looks there first, for in a plain dict
            the lookup takes half the time it takes in a subclass.
        closed_by: What was closed; ``None`` while it is open.
        has_log: Events that are logged are written to a log before they go their way.

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
        self.table: dict[type, Route] = {}
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
        self.has_log = False
        registry.on_change = self.invalidate

    def __getitem__(self, event_type: type) -> Route:
        if (found := self.table.get(event_type)) is not None:
            return found
        refuse_no_event(event_type)
        while True:
            is_late = self.closed_by is not None and self._is_within()
            if not is_late:
                self.refuse_if_closed(event_type)
            version, plain = self._registry.version, self._is_plain
            subscriptions = self._registry.matching(event_type)
            called = tuple(each for each in subscriptions if not each.is_durable)
            is_logged = self.has_log and declaration_of(event_type).logged
            durable = tuple(each for each in subscriptions if is_logged and each.is_durable)
            plain = plain and not is_logged
            route = self._route(event_type, called, plain=plain, durable=durable)
            if is_late:
                return route
            with self._registry.lock:
                self._settle()
                self._alive[id(route)] = route
                if version == self._registry.version and self.closed_by is None:
                    return self.table.setdefault(event_type, route)

    def _is_within(self) -> bool:
        """
        Whether a publish of this bus is under way here.

        It was begun before the bus ended: what its handlers publish still goes to those
        who need neither queue nor loop.
        """
        within = (each for each in ancestry(here.get()) if not each.finished)
        return any(each.route.publisher is self._publisher for each in within)

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
        self,
        event_type: type,
        subscriptions: tuple[Subscription, ...],
        *,
        plain: bool,
        durable: tuple[Subscription, ...] = (),
    ) -> Route:
        return Route(
            event_type,
            subscriptions,
            [self.folded(each) for each in subscriptions],
            publisher=self._publisher,
            plain=plain,
            ledger=self._ledger,
            durable=durable,
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
            if not subscription.is_live:
                folded.pop(subscription, None)
        return found

    def nobody(self, event_type: type) -> Route:
        """
        Return a route to nobody, for an event that is not published yet.
        """
        refuse_no_event(event_type)
        self.refuse_if_closed(event_type)
        return self._route(event_type, (), plain=False)

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
        if subscription.is_live:
            for event_type in list(self.table):
                if _may_match(subscription, event_type):
                    self.table.pop(event_type, None)
            return
        self._folded.pop(subscription, None)
        for route in self._routes():
            if subscription in route.subscriptions or subscription in route.readers:
                route.drop_out(subscription)
                if self.table.get(route.event_type) is route:
                    self.table.pop(route.event_type, None)

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
            self.table.clear()
        dropped.clear()

    def close(self, name: str) -> None:
        """
        Compile no more routes: every publish from now on is refused.
        """
        with self._registry.lock:
            self.closed_by = name
            self.table.clear()

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

    def totals(
        self, ended: Iterable[Subscription] = ()
    ) -> tuple[int, int, dict[Subscription, int]]:
        """
        Return the events published, the unhandled ones, and those on each one's way.

        Args:
            ended: To be counted as well, though subscribed no more.
        """
        with self._registry.lock:
            routes = self._routes()  # first: what dies from here on is counted below
            self._settle()
            published, unhandled = self._settled_published, self._settled_unhandled
            routed = {each: each.counters.routed for each in (*self._registry, *ended)}
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
