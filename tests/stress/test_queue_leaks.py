"""
Queues that were used and let go of are gone: threads, tasks, files, buses.

Bounded in count, and by ``PATIENCE`` in time. The short form runs by default, the
long one with ``-m long``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import weakref
from pathlib import Path

import pytest

from eventbus import EventBus, Queued, event, fixed
from stress.books import PATIENCE

buses = pytest.mark.parametrize("buses", [50, pytest.param(1_000, marks=pytest.mark.long)])

pytestmark = pytest.mark.usefixtures("silence")

# What the interpreter itself keeps between two counts: caches, free lists, logging.
_SLACK = 500


@event
class Step:
    number: int


class Sink:
    """
    Two queued handlers, of either colour; the first attempt of each fails.
    """

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.failed: set[str] = set()

    def fail_once(self, name: str) -> None:
        if name not in self.failed:
            self.failed.add(name)
            raise ValueError(name)

    def take(self, event: Step) -> None:
        self.fail_once("take")
        self.seen.append(event.number)

    async def atake(self, event: Step) -> None:
        self.fail_once("atake")
        await asyncio.sleep(0)
        self.seen.append(event.number)


def bus_with_queues(name: str) -> tuple[EventBus, Sink]:
    bus, sink = EventBus(name=name, retry=fixed(delay=0.0, attempts=3)), Sink()
    bus.subscribe(Step, sink.take, name=f"{name}-sync", delivery=Queued(workers=2))
    bus.subscribe(Step, sink.atake, name=f"{name}-async", delivery=Queued(workers=2))
    return bus, sink


def used_bus(name: str) -> EventBus:
    """
    Return a bus whose queues have handled three events each.
    """
    bus, sink = bus_with_queues(name)
    assert [2, 2, 2] == [bus.publish(Step(number=each)).queued for each in range(3)]
    assert bus.drain(PATIENCE).ok
    assert [0, 0, 1, 1, 2, 2] == sorted(sink.seen)
    return bus


def threads_named(prefix: str) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith(prefix)]


def still_runs(thread: threading.Thread) -> bool:
    thread.join(0.02)
    return thread.is_alive()


def open_files() -> int:
    folder = Path("/proc/self/fd")
    return len(os.listdir(folder)) if folder.exists() else 0


def objects() -> int:
    """
    Count what the garbage collector knows; of what a coverage tool keeps, only ours.
    """
    gc.collect()
    found = gc.get_objects()
    if "coverage" not in sys.modules:
        return len(found)
    return sum(type(each).__module__.startswith("eventbus") for each in found)


@buses
def test_closed_queues_leave_nothing(buses: int):
    """
    Once a bus is closed its queues have no thread, file or object any more.
    """
    used_bus("warm-up").close()
    files, before = open_files(), objects()
    alive: weakref.WeakSet[EventBus] = weakref.WeakSet()
    for number in range(buses):
        with used_bus(f"closed-{number}") as bus:
            alive.add(bus)
            assert threads_named(f"closed-{number}-sync")
        assert [] == threads_named("closed-")
    del bus
    gc.collect()
    assert (0, files) == (len(alive), open_files())
    assert objects() - before < _SLACK


@buses
def test_dropped_queues_leave_nothing(buses: int):
    """
    A bus with queues that nobody closed is collected, and the threads parked there end.
    """
    alive: weakref.WeakSet[EventBus] = weakref.WeakSet()
    for number in range(0, buses, 25):  # so many threads at a time
        dropped = [used_bus(f"dropped-{number + each}") for each in range(25)]
        alive.update(dropped)
        assert len(threads_named("dropped-")) >= 2 * 25
        del dropped
        for _ in range(100):  # an alarm thread lingers for a second, and holds nothing else
            gc.collect()
            if not any(map(still_runs, threads_named("dropped-"))):
                break
        assert ([], 0) == (threads_named("dropped-"), len(alive))


@buses
def test_queues_within_a_loop_leave_nothing(buses: int):
    """
    Queues of buses that one event loop enters leave no task there, closed or dropped.
    """
    alive: weakref.WeakSet[EventBus] = weakref.WeakSet()

    async def use(number: int, *, closes: bool) -> None:
        bus, sink = bus_with_queues(f"looped-{number}")
        alive.add(bus)
        bus.start()
        for each in range(3):
            assert 2 == (await bus.apublish(Step(number=each))).queued
        assert (await bus.adrain(PATIENCE)).ok
        assert [0, 0, 1, 1, 2, 2] == sorted(sink.seen)
        if closes:
            await bus.aclose()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE * max(1, buses // 50)):
            for number in range(buses):
                await use(number, closes=number % 2 == 0)
                await asyncio.sleep(0)
                assert {asyncio.current_task()} == asyncio.all_tasks()

    asyncio.run(main())
    for _ in range(100):
        gc.collect()
        if not any(map(still_runs, threads_named("looped-"))):
            break
    assert ([], 0) == (threads_named("looped-"), len(alive))
