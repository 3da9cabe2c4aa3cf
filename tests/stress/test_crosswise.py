"""
Two buses whose queued handlers publish on each other: what blocks ends with the bus.

Bounded in count, and by ``PATIENCE`` in time. The short form runs by default, the
long one with ``-m long``.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from functools import partial
from time import monotonic

import attrs
import pytest

from eventbus import BusClosedError, EventBus, Queued, event
from eventbus._running import DrainReport
from stress.books import PATIENCE, at_once

TIMEOUT = 0.1

rounds = pytest.mark.parametrize("rounds", [3, pytest.param(100, marks=pytest.mark.long)])
colours = pytest.mark.parametrize("colour", ["sync", "async", "mixed"])

pytestmark = pytest.mark.usefixtures("silence")


@event
class Ball:
    number: int


@attrs.frozen(kw_only=True)
class Side:
    """
    One of the two buses, and what its handler has seen.
    """

    bus: EventBus
    handled: deque[int] = attrs.field(factory=deque)
    cut: deque[int] = attrs.field(factory=deque)
    taken: deque[int] = attrs.field(factory=deque)  # events it was given, accepted or refused


def sides(colour: str) -> tuple[Side, Side]:
    """
    Make two buses; each event that one handles becomes two for the other.
    """
    left, right = Side(bus=EventBus(name="left")), Side(bus=EventBus(name="right"))
    for side, other, is_async in (
        (left, right, colour == "async"),
        (right, left, colour != "sync"),
    ):
        handler = partial(apass_on if is_async else pass_on, side, other)
        side.bus.subscribe(
            Ball,
            handler,
            name=f"{side.bus.name}-handler",
            delivery=Queued(capacity=2, workers=2),
        )
    return left, right


def pass_on(side: Side, other: Side, event: Ball) -> None:
    try:
        for _ in range(2):
            other.bus.publish(Ball(number=event.number + 1))
            other.taken.append(event.number + 1)
    except BusClosedError:
        pass
    side.handled.append(event.number)


async def apass_on(side: Side, other: Side, event: Ball) -> None:
    try:
        for _ in range(2):
            await other.bus.apublish(Ball(number=event.number + 1))
            other.taken.append(event.number + 1)
    except BusClosedError:
        pass
    except asyncio.CancelledError:
        side.cut.append(event.number)
        raise
    side.handled.append(event.number)


def clog(left: Side, right: Side) -> None:
    """
    Wait until the buses block each other: neither gets rid of what it has accepted.
    """
    until = monotonic() + PATIENCE
    while left.bus.drain(TIMEOUT).ok or right.bus.drain(TIMEOUT).ok:
        assert monotonic() < until, "they have run dry"


def compare(side: Side, reports: list[DrainReport]) -> None:
    """
    Compare what the handler has seen with what the bus has counted.
    """
    name, report = f"{side.bus.name}-handler", reports[0]
    assert [report] * len(reports) == reports
    counted = side.bus.stats().subscriptions[name]
    assert (0, 0, 0) == (counted.depth, counted.scheduled, counted.in_flight)
    assert counted.undelivered == report.left.get(name, 0)
    # What was given up on at the handler may have come to its end thereafter.
    running = report.running.get(name, 0)
    ended = counted.delivered + running - len(side.cut)
    assert counted.delivered <= len(side.handled) <= ended
    # A publish that was cut off with its handler was counted, and not noted.
    places = counted.delivered + counted.failed + counted.undelivered + counted.missed
    assert len(side.taken) <= places == counted.published


def remaining() -> list[threading.Thread]:
    found = [each for each in threading.enumerate() if each.name.startswith(("left-", "right-"))]
    for thread in found:
        thread.join(5.0)
    return [each for each in found if each.is_alive()]


@colours
@rounds
def test_two_clogged_buses_end_by_their_timeout(rounds: int, colour: str):
    """
    Handlers that wait for room on each other's bus are let go when either is closed.
    """
    for number in range(rounds):
        left, right = sides(colour)
        reports: dict[str, DrainReport] = {}

        def close(side: Side, reports: dict[str, DrainReport] = reports) -> None:
            reports[side.bus.name] = side.bus.close(TIMEOUT)

        left.bus.publish(Ball(number=0))
        left.taken.append(0)
        clog(left, right)
        if number % 3 == 0:
            at_once(partial(close, left), partial(close, right))
        else:
            for side in (left, right) if number % 3 == 1 else (right, left):
                at_once(partial(close, side))
        assert [] == remaining()
        for side in (left, right):
            compare(side, [reports[side.bus.name], side.bus.close()])


@rounds
def test_two_clogged_buses_of_one_loop_end_by_their_timeout(rounds: int):
    """
    So are handlers that are tasks of the same event loop, and no task stays behind.
    """

    async def main() -> None:
        left, right = sides("async")
        async with asyncio.timeout(PATIENCE):
            left.bus.start()
            right.bus.start()
            await left.bus.apublish(Ball(number=0))
            left.taken.append(0)
            await asyncio.to_thread(clog, left, right)
            reports = await asyncio.gather(left.bus.aclose(TIMEOUT), right.bus.aclose(TIMEOUT))
        assert {asyncio.current_task()} == asyncio.all_tasks()
        for side, report in zip((left, right), reports, strict=True):
            compare(side, [report, await side.bus.aclose()])

    for _ in range(rounds):
        asyncio.run(main())
    assert [] == remaining()
