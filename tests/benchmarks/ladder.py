"""
Where the time of one publish goes: the bare loop, and what stands around it, added step by step.

Law: each step is the one before and one thing more, written as the library writes it. The last step
is the library, so that what the others leave out shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from eventbus import Receipt

from . import ours
from .peers import BARE, SYNC, plain
from .rows import Row
from .timing import Effort, Lane, clone, lane, measure


class Route:
    """
    What is called for one event class.
    """

    __slots__ = ("calls", "plain", "published")

    def __init__(self, calls: list[Callable[[Any], object]]) -> None:
        self.calls = calls
        self.plain = True
        self.published = 0


class Routes(dict[type, Route]):
    """
    Routes by event class, as a dict that could make a missing one.
    """

    def __missing__(self, event_type: type) -> Route:
        raise LookupError(event_type)


_here: ContextVar[Receipt | None] = ContextVar("ladder", default=None)
_parent, _show, _hide = _here.get, _here.set, _here.reset


class Steps:
    """
    One method for each step.
    """

    def __init__(self) -> None:
        self.calls = [clone(plain)]
        self.routes = Routes({ours.OrderPlaced: Route([clone(plain)])})

    def method(self, event: object, /, **options: Any) -> None:
        for call in self.calls:
            call(event)

    def lookup(self, event: object, /, **options: Any) -> None:
        route = self.routes[type(event)]
        for call in route.calls:
            call(event)

    def receipt(self, event: object, /, **options: Any) -> Receipt:
        route: Any = self.routes[type(event)]
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.parent = None
        route.published += 1
        for call in route.calls:
            call(event)
        return receipt

    def causation(self, event: object, /, **options: Any) -> Receipt:
        route: Any = self.routes[type(event)]
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.parent = _parent()
        route.published += 1
        token = _show(receipt)
        try:
            for call in route.calls:
                call(event)
        finally:
            _hide(token)
            receipt.finished = True
        return receipt


def steps() -> list[Lane]:
    """
    Return the lanes in the order in which they build on each other.
    """
    ladder = Steps()
    bare = next(each for each in SYNC if each.name == BARE)
    calls: dict[str, Callable[[Any], Any]] = {
        BARE: bare.wire([clone(plain)]),
        "a method that takes options": ladder.method,
        "the route looked up by type": ladder.lookup,
        "a receipt, counted": ladder.receipt,
        "a context that knows the cause": ladder.causation,
        "eventbus publish": ours.one().publish,
    }
    return [lane(name, call, ours.ORDER) for name, call in calls.items()]


def run(effort: Effort) -> Iterator[Row]:
    """
    Time every step against the one before it.
    """
    times = measure(steps(), effort)
    before = times[BARE]
    for name, time in times.items():
        yield Row(name, "the step before", time, before)
        before = time
