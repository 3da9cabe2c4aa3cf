"""
What has been used and let go of is gone: threads, buses, ancestors.

Bounded in count, and by ``PATIENCE`` in time. The short form runs by default, the
long one with ``-m long``.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import pytest

from eventbus import Envelope, EventBus, current_envelope, event

PATIENCE = 300.0

buses = pytest.mark.parametrize("buses", [200, pytest.param(5_000, marks=pytest.mark.long)])
steps = pytest.mark.parametrize("steps", [2_000, pytest.param(100_000, marks=pytest.mark.long)])


@event
class Step:
    number: int


def used_bus(name: str) -> EventBus:
    """
    Return a bus whose loop thread has run a handler.
    """
    bus = EventBus(name=name)
    seen: list[int] = []

    @bus.on
    async def take(event: Step) -> None:
        seen.append(event.number)

    assert bus.publish(Step(number=1)).ok
    assert [1] == seen
    return bus


def threads_named(prefix: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(prefix)]


def still_runs(thread: threading.Thread) -> bool:
    thread.join(0.02)
    return thread.is_alive()


@buses
def test_closed_buses_leave_nothing(buses: int):
    """
    A closed bus has no thread any more, and goes with its last reference and the collector.
    """
    alive: weakref.WeakSet[EventBus] = weakref.WeakSet()
    for number in range(buses):
        with used_bus(f"closed-{number}") as bus:
            alive.add(bus)
            assert 1 == len(threads_named(f"closed-{number}-"))
        assert [] == threads_named("closed-")
    del bus
    gc.collect()
    assert 0 == len(alive)


@buses
def test_dropped_buses_leave_nothing(buses: int):
    """
    A bus that nobody closed is collected, and its thread ends with it.
    """
    alive: weakref.WeakSet[EventBus] = weakref.WeakSet()
    for number in range(0, buses, 50):  # so many threads at a time
        dropped = [used_bus(f"dropped-{number + each}") for each in range(50)]
        alive.update(dropped)
        assert 50 == len(threads_named("dropped-"))
        del dropped
        for _ in range(50):  # a loop may be at the end of its last task, and hold its bus
            gc.collect()
            if not any(map(still_runs, threads_named("dropped-"))):
                break
        assert ([], 0) == (threads_named("dropped-"), len(alive))


@buses
def test_async_buses_leave_nothing(buses: int):
    """
    Buses used within one event loop, closed or just dropped, are collected.
    """
    alive: weakref.WeakSet[EventBus] = weakref.WeakSet()

    async def use(bus: EventBus, *, closes: bool) -> None:
        async def take(event: Step) -> None:
            await asyncio.sleep(0)

        alive.add(bus)
        bus.subscribe(Step, take)
        assert (await bus.apublish(Step(number=1))).ok
        if closes:
            await bus.aclose()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            for number in range(buses):
                await use(EventBus(fanout="concurrent"), closes=number % 2 == 0)

    asyncio.run(main())
    gc.collect()
    assert 0 == len(alive)


@buses
def test_cancelled_subscriptions_leave_nothing(buses: int):
    """
    A cancelled subscription lets go of its handler, also where its route lives on.
    """

    class Handler:
        def __call__(self, event: Step) -> None:
            pass

    alive: weakref.WeakSet[Handler] = weakref.WeakSet()
    with EventBus() as bus:
        bus.subscribe(Step, lambda event: None, name="steady")
        for number in range(buses):
            handler = Handler()
            alive.add(handler)
            with bus.subscribe(Step, handler, name="brief"):
                bus.publish(Step(number=number))
            bus.publish(Step(number=number))
        del handler
        gc.collect()
        assert 0 == len(alive)


# The most ancestors alive at a time: the publish under way, the one that led to it, and
# where handlers outlive their successor's start, as many as may be nested (max_depth).
@pytest.mark.parametrize(("lingers", "most"), [(False, 5), (True, 110)])
@steps
def test_a_chain_of_tasks_keeps_no_ancestors(steps: int, lingers: bool, most: int):
    """
    A task that publishes and starts its successor is forgotten, and its cause is not.
    """
    alive: weakref.WeakSet[Step] = weakref.WeakSet()
    kept: set[asyncio.Task[object]] = set()
    correlations: set[str] = set()
    causes: list[tuple[str, str | None]] = []
    peak = 0

    async def go_on(event: Step, envelope: Envelope[Step]) -> None:
        nonlocal peak
        alive.add(event)
        peak = max(peak, len(alive))
        correlations.add(envelope.correlation_id)
        causes.append((envelope.id, envelope.causation_id))
        if event.number == steps:
            ended.set()
            return
        task = asyncio.create_task(publish(event.number + 1))
        kept.add(task)
        task.add_done_callback(kept.discard)
        if lingers:
            await asyncio.sleep(0)

    async def publish(number: int) -> None:
        assert (await bus.apublish(Step(number=number))).ok

    async def main() -> None:
        async with asyncio.timeout(PATIENCE), bus:
            await publish(1)
            await ended.wait()
            await asyncio.gather(*kept)
        assert current_envelope() is None

    ended, bus = asyncio.Event(), EventBus()
    bus.subscribe(Step, go_on)
    asyncio.run(main())
    ids = [each for each, _ in causes]
    assert [None, *ids[:-1]] == [cause for _, cause in causes]
    assert {ids[0]} == correlations
    assert peak <= most
    gc.collect()
    assert 0 == len(alive)
