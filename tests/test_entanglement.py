"""
Handlers that publish into each other's full queues: found out, and refused by name.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import copy_context

import pytest

from eventbus import EventBus, Queued, Receipt, event
from queue_by_hand import PATIENCE


@event
class Ping:
    number: int


@event
class Pong:
    number: int


class Circle:
    """
    Two queues with room for one event each, whose handlers publish into each other's.
    """

    def __init__(self, bus: EventBus, *, colour: str) -> None:
        self.bus = bus
        self.receipts: list[Receipt] = []
        both, self.asleep = threading.Barrier(2), asyncio.Barrier(2)
        mode = Queued(capacity=1)

        def ping(got: Ping) -> None:
            if got.number == 0:
                both.wait(PATIENCE)
                self.receipts += [bus.publish(Pong(number)) for number in (1, 2, 3)]

        def pong(got: Pong) -> None:
            if got.number == 0:
                both.wait(PATIENCE)
                self.receipts += [bus.publish(Ping(number)) for number in (1, 2, 3)]

        async def aping(got: Ping) -> None:
            if got.number == 0:
                await self.asleep.wait()
                self.receipts += [await bus.apublish(Pong(number)) for number in (1, 2, 3)]

        async def apong(got: Pong) -> None:
            if got.number == 0:
                await self.asleep.wait()
                self.receipts += [await bus.apublish(Ping(number)) for number in (1, 2, 3)]

        is_async = colour == "async def"
        bus.subscribe(Ping, aping if is_async else ping, name="ping", delivery=mode)
        bus.subscribe(Pong, apong if is_async else pong, name="pong", delivery=mode)

    def complaints(self) -> list[str]:
        failures = [failure for each in self.receipts for failure in each.failures]
        return [str(each.exception) for each in failures]


def test_two_queues_that_feed_each_other():
    """
    Handlers that would wait for room in each other's queue are refused, and both are named.
    """
    with EventBus() as bus:
        circle = Circle(bus, colour="def")
        bus.publish(Ping(0))
        bus.publish(Pong(0))
        assert bus.drain(PATIENCE).ok
    assert 6 == len(circle.receipts)
    assert circle.complaints()
    for complaint in circle.complaints():
        assert "ping" in complaint
        assert "pong" in complaint
        assert "each would wait for the other" in complaint


def test_two_queues_of_async_handlers_that_feed_each_other():
    """
    Async handlers that would wait for room in each other's queue are refused likewise.
    """

    async def live() -> Circle:
        async with EventBus() as bus:
            circle = Circle(bus, colour="async def")
            await bus.apublish(Ping(0))
            await bus.apublish(Pong(0))
            assert (await bus.adrain(PATIENCE)).ok
        return circle

    circle = asyncio.run(live())
    assert 6 == len(circle.receipts)
    assert circle.complaints()
    assert all("each would wait for the other" in each for each in circle.complaints())


@pytest.mark.parametrize("workers", [2, 3])
def test_a_worker_that_is_free_makes_room(workers: int):
    """
    While one of a queue's workers can go on, those that feed each other wait for it.
    """
    receipts: list[Receipt] = []
    both = threading.Barrier(2)

    def ping(got: Ping) -> None:
        if got.number == 0:
            both.wait(PATIENCE)
            receipts.extend(bus.publish(Pong(number)) for number in range(1, 20))

    def pong(got: Pong) -> None:
        if got.number == 0:
            both.wait(PATIENCE)
            receipts.extend(bus.publish(Ping(number)) for number in range(1, 20))

    with EventBus() as bus:
        bus.subscribe(Ping, ping, name="ping", delivery=Queued(capacity=1, workers=workers))
        bus.subscribe(Pong, pong, name="pong", delivery=Queued(capacity=1, workers=workers))
        bus.publish(Ping(0))
        bus.publish(Pong(0))
        assert bus.drain(PATIENCE).ok
    assert [True] * 38 == [each.ok for each in receipts]


def test_what_a_handlers_own_thread_publishes_waits_for_the_handler():
    """
    What a thread publishes with its handler's context counts as published by the handler.
    """
    receipts: list[Receipt] = []

    def ping(got: Ping) -> None:
        if got.number == 0:
            run = copy_context().run
            thread = threading.Thread(target=lambda: run(publish_more))
            thread.start()
            thread.join(PATIENCE)

    def publish_more() -> None:
        receipts.extend(bus.publish(Ping(number)) for number in (1, 2))

    with EventBus() as bus:
        bus.subscribe(Ping, ping, name="ping", delivery=Queued(capacity=1))
        bus.publish(Ping(0))
        assert bus.drain(PATIENCE).ok
    assert [True, False] == [each.ok for each in receipts]
