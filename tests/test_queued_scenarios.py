"""
What a careful user expects of queued delivery: order, pace, neighbours, and the end.

One test or more for each sentence; the rooms' own tests show the steps behind it.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from eventbus import EventBus, Queued, event, fixed
from eventbus.testing import VirtualClock
from queue_by_hand import PATIENCE, met


@event(key="key")
class Moved:
    key: str
    number: int = 0


def both(handle: Callable[[Moved], None], colour: str) -> Any:
    """
    Return a sync handler in the colour asked for.
    """
    if colour == "def":
        return handle

    async def ahandle(moved: Moved) -> None:
        await asyncio.to_thread(handle, moved)

    return ahandle


in_both_colours = pytest.mark.parametrize("colour", ["def", "async def"])


@in_both_colours
@pytest.mark.parametrize("workers", [1, 4])
def test_each_key_in_publish_order(colour: str, workers: int):
    """
    Of 1,000 events over 16 keys, each key's are handled in the order they were published in.
    """
    seen: dict[str, list[int]] = defaultdict(list)

    async def anote(moved: Moved) -> None:
        if moved.number % 3 == 0:
            await asyncio.sleep(0)
        seen[moved.key].append(moved.number)

    def note(moved: Moved) -> None:
        seen[moved.key].append(moved.number)

    handler: Any = note if colour == "def" else anote
    with EventBus() as bus:
        bus.subscribe(Moved, handler, name="note", delivery=Queued(workers=workers))
        for number in range(1_000):
            bus.publish(Moved(f"k{number % 16}", number))
        assert bus.drain(PATIENCE).ok
    assert 16 == len(seen)
    assert {f"k{each}": list(range(each, 1_000, 16)) for each in range(16)} == seen


@in_both_colours
def test_a_blocked_key_delays_no_other(colour: str):
    """
    While the first event of a key is blocked, its second has not started, and others go on.
    """
    gate, began, other_done = threading.Event(), threading.Event(), threading.Event()
    started: list[tuple[str, int]] = []

    def handle(moved: Moved) -> None:
        started.append((moved.key, moved.number))
        if moved == Moved("a", 1):
            began.set()
            met(gate)
        if moved.key == "b":
            other_done.set()

    with EventBus() as bus:
        bus.subscribe(Moved, both(handle, colour), name="move", delivery=Queued(workers=2))
        bus.publish(Moved("a", 1))
        met(began)
        bus.publish(Moved("a", 2))
        bus.publish(Moved("b", 1))
        met(other_done)
        # Whoever worked on b has had its next turn when it is idle again: a's second is held.
        assert not gate.wait(0.1)
        assert [("a", 1), ("b", 1)] == started
        gate.set()
        assert bus.drain(PATIENCE).ok
    assert [("a", 1), ("b", 1), ("a", 2)] == started


@pytest.mark.parametrize("attempts", [2, 1])
def test_a_retry_holds_its_key_back(attempts: int):
    """
    An event is not handled before the one ahead of it of its key is completed or buried.
    """
    clock, tried = VirtualClock(), list[tuple[str, int]]()

    class HandBus(EventBus):
        _workers = 0

    def fail_once(moved: Moved) -> None:
        tried.append((moved.key, moved.number))
        if tried.count(("a", 1)) == 1 and moved == Moved("a", 1):
            raise ConnectionError("not now")

    bus = HandBus(clock=clock)
    retry = fixed(attempts=attempts, delay=30.0)
    bus.subscribe(Moved, fail_once, name="move", delivery=Queued(workers=4), retry=retry)
    queue = next(iter(bus._queues.values()))

    def settle() -> None:
        while queue.ready:
            worker = queue.lend()
            job = queue.turn(worker)
            assert job is not None
            later = job.context.run(queue.keeper.perform, job, worker)
            if later is not None:
                queue.postpone(worker, later)
            queue.release(worker)

    for each in (Moved("a", 1), Moved("a", 2), Moved("b", 1)):
        bus.publish(each)
    settle()
    if attempts == 1:
        assert [("a", 1), ("b", 1), ("a", 2)] == tried
        assert 1 == len(bus.dead_letters)
        return
    assert [("a", 1), ("b", 1)] == tried
    clock.advance(29.9)
    settle()
    assert [("a", 1), ("b", 1)] == tried
    clock.advance(0.1)
    settle()
    assert [("a", 1), ("b", 1), ("a", 1), ("a", 2)] == tried


@in_both_colours
def test_stopping_lets_the_handler_complete(colour: str):
    """
    When a bus is closed its intake ends, the running handler completes, and then it is over.
    """
    began, gate, done = threading.Event(), threading.Event(), list[int]()

    def handle(moved: Moved) -> None:
        began.set()
        met(gate)
        done.append(moved.number)

    bus = EventBus()
    bus.subscribe(Moved, both(handle, colour), name="move", delivery=Queued())
    bus.publish(Moved("a", 1))
    met(began)
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(bus.close(PATIENCE)))
    thread.start()
    gate.set()
    thread.join(PATIENCE)
    assert [1] == done
    assert [True] == [report.ok for report in reports]
    assert bus.is_closed


@in_both_colours
def test_a_handler_longer_than_its_grace(colour: str):
    """
    A close returns at about the end of the grace period, and reports what was running.
    """
    began, gate = threading.Event(), threading.Event()

    async def ahandle(moved: Moved) -> None:
        began.set()
        await asyncio.Event().wait()

    def handle(moved: Moved) -> None:
        began.set()
        met(gate)

    handler: Any = handle if colour == "def" else ahandle
    bus = EventBus()
    bus.subscribe(Moved, handler, name="move", delivery=Queued())
    bus.publish(Moved("a", 1))
    met(began)
    report = bus.close(0.05)
    assert "1 of move (1 running)" == str(report)
    gate.set()


def test_stopped_twice_and_by_many():
    """
    Closing is idempotent: twice, and by many at the same time.
    """
    bus, reports = EventBus(), list[Any]()
    bus.subscribe(Moved, lambda moved: None, name="move", delivery=Queued())
    bus.publish(Moved("a"))
    barrier = threading.Barrier(4)

    def close(is_async: bool) -> None:
        barrier.wait(PATIENCE)
        reports.append(asyncio.run(bus.aclose()) if is_async else bus.close())

    threads = [threading.Thread(target=close, args=(each % 2 == 0,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert 4 == len(reports)
    assert all(report is bus.close() for report in reports)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("overflow", "handled", "dropped", "refused"),
    [
        ("raise", [0, 1, 2], 0, 1),
        ("drop_newest", [0, 1, 2], 1, 0),
        ("drop_oldest", [0, 2, 3], 1, 0),
    ],
)
def test_a_stuck_handler_and_one_event_too_many(
    is_async: bool, overflow: Any, handled: list[int], dropped: int, refused: int
):
    """
    With a stuck handler, one event more than there is room for meets the overflow policy.
    """
    began, gate, done = threading.Event(), threading.Event(), list[int]()

    def handle(moved: Moved) -> None:
        began.set()
        met(gate)
        done.append(moved.number)

    with EventBus() as bus:
        mode = Queued(capacity=2, overflow=overflow, ordered_by=lambda moved: None)
        bus.subscribe(Moved, handle, name="move", delivery=mode)

        def publish(number: int) -> Any:
            moved = Moved("a", number)
            return asyncio.run(bus.apublish(moved)) if is_async else bus.publish(moved)

        receipts = [publish(0)]
        met(began)
        receipts += [publish(number) for number in (1, 2, 3)]
        assert 2 == bus.stats().subscriptions["move"].depth
        gate.set()
        assert bus.drain(PATIENCE).ok
        stats = bus.stats().subscriptions["move"]
    assert handled == done
    assert (dropped, refused) == (stats.dropped, sum(not each.ok for each in receipts))
    assert stats.published == stats.delivered + stats.dropped + stats.failed == 4


def test_a_slow_handler_does_not_delay_its_neighbour():
    """
    What one slow handler is at leaves another one's latency on the same event alone.
    """
    gate, quick = threading.Event(), threading.Event()

    def handle_slowly(moved: Moved) -> None:
        met(gate)

    with EventBus() as bus:
        bus.subscribe(Moved, handle_slowly, name="slow", delivery=Queued(), priority=1)
        bus.subscribe(Moved, lambda moved: quick.set(), name="quick", delivery=Queued())
        receipt = bus.publish(Moved("a"))
        met(quick)
        assert not gate.is_set()
        assert 2 == receipt.queued
        gate.set()


def test_a_cancelled_publisher_has_published():
    """
    What a publisher left in a queue before it was cancelled is delivered all the same.
    """
    handled = list[int]()

    async def wait(moved: Moved) -> None:
        await asyncio.Event().wait()

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(
                Moved, lambda moved: handled.append(moved.number), name="q", delivery=Queued()
            )
            bus.subscribe(Moved, wait, name="wait", priority=-1)
            publishing = asyncio.create_task(bus.apublish(Moved("a", 1)))
            await asyncio.sleep(0)
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            assert (await bus.adrain(PATIENCE)).ok

    asyncio.run(live())
    assert [1] == handled


@pytest.mark.parametrize("seconds", [-3_600.0, 86_400.0])
def test_the_wall_clock_jumps(seconds: float):
    """
    No retry is held longer, or comes earlier, because the wall clock was set.
    """
    clock, tried = VirtualClock(), list[float]()

    def fail_once(moved: Moved) -> None:
        tried.append(clock.monotonic())
        if len(tried) == 1:
            raise ConnectionError("not now")

    class HandBus(EventBus):
        _workers = 0

    bus = HandBus(clock=clock)
    bus.subscribe(
        Moved, fail_once, name="move", delivery=Queued(), retry=fixed(attempts=2, delay=30.0)
    )
    bus.publish(Moved("a"))
    queue = next(iter(bus._queues.values()))

    def settle() -> None:
        worker = queue.lend()
        while (job := queue.turn(worker)) is not None:
            later = job.context.run(queue.keeper.perform, job, worker)
            if later is not None:
                queue.postpone(worker, later)
            worker.job = None

    settle()
    clock.jump(seconds)
    settle()
    clock.advance(30.0)
    settle()
    assert [0.0, 30.0] == tried


@pytest.mark.parametrize("is_in_hand", [False, True], ids=["between attempts", "in hand"])
def test_what_is_left_is_kept_in_the_order_of_its_key(is_in_hand: bool) -> None:
    """
    What waits for its next attempt, or is being handled, came before those behind it.
    """
    began, go = threading.Event(), threading.Event()
    bus = EventBus()

    def handle(moved: Moved) -> None:
        began.set()
        if is_in_hand:
            assert go.wait(PATIENCE)
        raise ValueError("again")

    retry = fixed(attempts=2, delay=3_600.0)
    bus.subscribe(Moved, handle, name="handle", delivery=Queued(), retry=retry)
    events = [Moved("k", number) for number in range(3)]
    bus.publish_many(events)
    assert began.wait(PATIENCE)
    if not is_in_hand:
        while not bus.stats().subscriptions["handle"].scheduled:
            go.wait(0.001)
    bus.close(0.0)
    go.set()
    assert events == [each.event for each in bus.dead_letters]


@pytest.mark.parametrize("fate", ["failed", "dropped", "undelivered"])
def test_a_publishers_key_is_free_again_when_its_event_is_given_up(fate: str) -> None:
    """
    Whatever a queue gives an event up for, publishing it once more is no duplicate.
    """
    seen = list[Moved]()
    bus = EventBus()

    def handle(happened: Moved) -> None:
        seen.append(happened)
        if fate == "failed":
            raise ValueError("broken")

    mode = Queued(capacity=1, overflow="drop_newest")
    subscription = bus.subscribe(Moved, handle, name="handle", delivery=mode)
    if fate != "failed":
        subscription.pause()
    if fate == "dropped":
        bus.publish(Moved("k", 1))
    receipt = bus.publish(Moved("k", 2), idempotency_key="k")
    if fate == "dropped":
        assert (0, 0) == (receipt.queued, receipt.delivered)
    if fate == "undelivered":
        subscription.cancel()
        bus.subscribe(Moved, seen.append, name="other")
        bus._queues[subscription].give_up()
    else:
        subscription.resume()
        assert bus.drain(PATIENCE).ok
    assert not bus.publish(Moved("k", 2), idempotency_key="k").duplicate
    bus.close(PATIENCE)


def test_a_weak_handler_may_end_anywhere() -> None:
    """
    Also where the garbage collector runs while the queue is locked: nobody waits for himself.
    """

    class Window:
        def __init__(self) -> None:
            self.me = self  # a cycle: only the collector ends it

        def show(self, moved: Moved) -> None: ...

    with EventBus() as bus:
        window = Window()
        subscription = bus.subscribe(Moved, window.show, name="show", delivery=Queued(), weak=True)
        queue = bus._queues[subscription]
        del window
        with queue._lock:
            gc.collect()
        ended = threading.Event()
        while subscription.is_active:
            ended.wait(0.001)
        assert () == bus.subscriptions
