"""
Where the time of one publish goes: the bare loop, and what stands around it, added step by step.

Law: each step is the one before and one thing more, written as the library writes it. The last step
is the library, so that what the others leave out shows as a difference.
"""

from __future__ import annotations

import _thread
import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from eventbus import Receipt

from . import ours
from .peers import BARE, SYNC, plain
from .rows import Row
from .timing import Effort, Lane, clone, lane, measure

# What the library asks, too.
_running_loop = asyncio._get_running_loop
_other_threads = _thread._count


class Cell:
    """
    Where the flow of control stands, as the library keeps it.
    """

    __slots__ = ("current", "threads")

    def __init__(self) -> None:
        self.current: Any = None
        self.threads = 0


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


_here: ContextVar[Cell] = ContextVar("ladder")
_cell = _here.get
_NOWHERE = Cell()


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
        cell = _cell()
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.parent = parent = cell.current
        route.published += 1
        cell.current = receipt
        try:
            for call in route.calls:
                call(event)
        finally:
            cell.current = parent
            receipt.finished = True
        return receipt

    def questions(self, event: object, /, **options: Any) -> Receipt:
        route: Any = self.routes[type(event)]
        cell = _cell()
        if options or not route.plain or cell is _NOWHERE or _running_loop() is not None:
            raise AssertionError("the plain path was expected")
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.parent = parent = cell.current
        route.published += 1
        if _other_threads() == cell.threads:
            cell.current = receipt
        try:
            for call in route.calls:
                call(event)
        finally:
            if _other_threads() == cell.threads:
                cell.current = parent
            receipt.finished = True
        return receipt


def steps() -> list[Lane]:
    """
    Return the lanes in the order in which they build on each other.
    """
    _here.set(Cell())
    ladder = Steps()
    bare = next(each for each in SYNC if each.name == BARE)
    calls: dict[str, Callable[[Any], Any]] = {
        BARE: bare.wire([clone(plain)]),
        "a method that takes options": ladder.method,
        "the route looked up by type": ladder.lookup,
        "a receipt, counted": ladder.receipt,
        "the cell that knows the cause": ladder.causation,
        "options, loop and threads looked at": ladder.questions,
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
