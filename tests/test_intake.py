"""
Taking in: what a publisher sees of a queue, with room and without, in both colours.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import attrs
import pytest

from eventbus import EventBus, HandlerErrors, Queued, QueueFullError, Receipt, event
from eventbus._intake import Intake, call_soon
from eventbus._process import _at_exit
from eventbus.instrumentation import Dropped
from queue_by_hand import PATIENCE, met, until


@event
class Read:
    number: int


@event(key="sensor")
class Sensed:
    sensor: str
    number: int = 0


class HandBus(EventBus):
    """
    A bus whose queues have no workers: what is taken in stays.
    """

    _workers = 0


Publish = Callable[[EventBus, object], Receipt]


def publish(bus: EventBus, event: object) -> Receipt:
    return bus.publish(event)


def apublish(bus: EventBus, event: object) -> Receipt:
    return asyncio.run(bus.apublish(event))


in_both_colours = pytest.mark.parametrize("publish", [publish, apublish])


def queue_of(bus: EventBus) -> Intake:
    (queue,) = bus._queues.values()
    return queue


def waiting(bus: EventBus) -> list[int]:
    return [job.event.number for job in queue_of(bus)._backlog.waiting()]


def ignore(happened: object) -> None: ...


def hand_bus(**options: Any) -> HandBus:
    bus = HandBus()
    bus.subscribe(Read | Sensed, ignore, name="ignore", delivery=Queued(**options))
    return bus


# -- the only one on its route


@in_both_colours
def test_the_receipt_is_the_job(publish: Publish):
    """
    A publish that goes into one queue alone is over at once; its receipt waits there itself.
    """
    bus = hand_bus()
    publish(bus, Read(0))  # which made the route
    receipt = publish(bus, Read(1))
    assert receipt is queue_of(bus)._backlog.waiting()[1]
    assert (True, None, 1, 0) == (
        receipt.finished,
        receipt.parent,
        receipt.queued,
        receipt.delivered,
    )
    assert not receipt.envelope.is_late
    assert 2 == bus.stats().published


@in_both_colours
def test_the_receipt_as_a_job_tells_its_cause(publish: Publish):
    """
    What a handler publishes into a queue was caused by its event, and a cycle is found out.
    """
    bus, receipts = hand_bus(), list[Receipt]()

    def cause(sensed: Sensed) -> None:
        receipts.append(bus.publish(Read(1)))

    bus.publish(Read(0))
    bus.subscribe(Sensed, cause, name="cause")
    root = publish(bus, Sensed("a"))
    (caused,) = receipts
    assert root.id == caused.envelope.causation_id
    assert root.id == caused.envelope.correlation_id


def closing_in_between(queue: Intake, monkeypatch: pytest.MonkeyPatch, end: Any) -> None:
    """
    Have *end* called between a publisher's look at the queue and what he does then.
    """
    now = queue._now

    def look() -> float:
        monkeypatch.undo()
        end()
        return now()

    monkeypatch.setattr(queue, "_now", look)


def test_closed_in_between(monkeypatch: pytest.MonkeyPatch):
    """
    A bus that is closed while an event is put into its only queue leaves that in the receipt.
    """
    bus = EventBus()
    bus.subscribe(Read, ignore, name="ignore", delivery=Queued())
    bus.publish(Read(0))
    bus.drain(PATIENCE)
    closing_in_between(queue_of(bus), monkeypatch, bus.close)
    (failure,) = bus.publish(Read(1)).failures
    assert "closed before ignore could accept Read" in str(failure.exception)


def test_closed_in_between_on_a_bus_that_raises(monkeypatch: pytest.MonkeyPatch):
    """
    With ``errors="raise"`` that is raised.
    """
    bus = EventBus(errors="raise")
    bus.subscribe(Read, ignore, name="ignore", delivery=Queued())
    bus.publish(Read(0))
    bus.drain(PATIENCE)
    closing_in_between(queue_of(bus), monkeypatch, bus.close)
    with pytest.raises(HandlerErrors, match="1 handler of Read failed: ignore"):
        bus.publish(Read(1))


def test_cancelled_in_between(monkeypatch: pytest.MonkeyPatch):
    """
    A subscription that is cancelled while an event comes to it has missed it.
    """
    bus = EventBus()
    subscription = bus.subscribe(Read, ignore, name="ignore", delivery=Queued())
    bus.publish(Read(0))
    bus.drain(PATIENCE)
    closing_in_between(queue_of(bus), monkeypatch, subscription.cancel)
    receipt = bus.publish(Read(1))
    assert (True, 0, True) == (receipt.ok, receipt.queued, receipt.unhandled)


def test_publishing_without_end_lets_the_worker_go_on():
    """
    A task that publishes event after event lets the loop's other tasks run now and then.
    """
    handled: list[int] = []

    async def handle(read: Read) -> None:
        handled.append(read.number)

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, delivery=Queued())
            for number in range(300):
                await bus.apublish(Read(number))
            assert 150 < len(handled)

    asyncio.run(live())
    assert [*range(300)] == handled


def test_what_was_handled_is_freed_at_once():
    """
    Receipts and contexts of events that were handled need no garbage collector.
    """

    class Held:
        __slots__ = ("__weakref__",)

    bus = EventBus()
    seen = list[weakref.ref[Held]]()
    bus.subscribe(Held, lambda held: seen.append(weakref.ref(held)), name="see", delivery=Queued())
    gc.disable()
    try:
        for _ in range(3):
            bus.publish(Held())
        bus.drain(PATIENCE)
        bus.close()
        assert [None] * 3 == [each() for each in seen]
    finally:
        gc.enable()


# -- with room


@in_both_colours
def test_taken_in(publish: Publish):
    """
    The receipt counts the queue that took the event, and nothing as delivered.
    """
    bus = hand_bus()
    receipt = publish(bus, Read(1))
    assert (1, 0, True, False) == (
        receipt.queued,
        receipt.delivered,
        receipt.ok,
        receipt.unhandled,
    )
    assert [1] == waiting(bus)


place: ContextVar[str] = ContextVar("place", default="nowhere")


@in_both_colours
def test_the_context_is_the_publishers(publish: Publish):
    """
    What a handler sees of context variables is what its publisher saw.
    """
    bus = hand_bus()
    token = place.set("here")
    publish(bus, Read(1))
    publish(bus, Sensed("a"))
    place.reset(token)
    seen = [job.context[place] for job in queue_of(bus)._backlog.waiting()]
    assert ["here", "here"] == seen


@in_both_colours
@pytest.mark.parametrize(
    ("ordered_by", "key"),
    [(None, "a"), ("number", "0"), (lambda sensed: None, None), (lambda sensed: sensed, "S")],
)
def test_what_orders(publish: Publish, ordered_by: Any, key: str | None):
    """
    The declared key orders, unless the mode says otherwise; as text, and ``None`` is no key.
    """

    class Shown(Sensed):
        def __str__(self) -> str:
            return "S"

    bus = hand_bus(ordered_by=ordered_by)
    publish(bus, Shown("a"))
    (job,) = queue_of(bus)._backlog.waiting()
    assert key == job.key


@in_both_colours
def test_a_key_that_cannot_be_read(publish: Publish):
    """
    What raises while it reads what orders an event fails that delivery, in the receipt.
    """

    def unreadable(happened: object) -> object:
        raise KeyError("no key")

    bus = hand_bus(ordered_by=unreadable)
    receipt = publish(bus, Read(1))
    assert [("ignore", 0)] == [(each.subscription, each.attempts) for each in receipt.failures]
    assert 0 == receipt.queued
    assert ["failed"] == [letter.reason for letter in bus.dead_letters]
    assert 1 == bus.stats().subscriptions["ignore"].failed


# -- without room


@in_both_colours
@pytest.mark.parametrize("event", [Read, lambda number: Sensed("a", number)])
def test_refused(publish: Publish, event: Callable[[int], object]):
    """
    With ``overflow="raise"`` a full queue leaves its failure in the receipt, and harms no other.
    """
    bus, handled = hand_bus(capacity=1, overflow="raise"), list[object]()
    bus.subscribe(object, handled.append, name="neighbour")
    assert [True, False] == [publish(bus, event(number)).ok for number in (1, 2)]
    receipt = publish(bus, event(3))
    (failure,) = receipt.failures
    assert isinstance(failure.exception, QueueFullError)
    assert ("ignore", 0, 1) == (failure.subscription, failure.attempts, failure.exception.capacity)
    assert (1, 0) == (receipt.delivered, receipt.queued)
    assert 3 == len(handled)
    assert [1] == waiting(bus)


@in_both_colours
@pytest.mark.parametrize(
    ("overflow", "left", "dropped"), [("drop_newest", [1, 2], 3), ("drop_oldest", [2, 3], 1)]
)
def test_dropped(publish: Publish, overflow: Any, left: list[int], dropped: int):
    """
    What is dropped is counted, observed and kept; the publisher is not troubled.
    """
    bus, told = hand_bus(capacity=2, overflow=overflow), list[Any]()
    bus.observe(told.append)
    assert all(publish(bus, Read(number)).ok for number in (1, 2, 3))
    assert left == waiting(bus)
    assert [dropped] == [each.envelope.event.number for each in told if isinstance(each, Dropped)]
    (letter,) = bus.dead_letters
    assert ("dropped", dropped, 0) == (letter.reason, letter.event.number, letter.attempts)
    stats = bus.stats().subscriptions["ignore"]
    assert (3, 1, 2, 0) == (stats.published, stats.dropped, stats.depth, stats.delivered)


def test_the_oldest_is_the_one_that_waits_longest():
    """
    Of what is ready and what is held behind its key, the one accepted first is dropped.
    """
    bus = hand_bus(capacity=3, overflow="drop_oldest")
    queue = queue_of(bus)
    bus.publish(Sensed("a", 1))
    assert queue.turn(queue.lend()) is not None
    for number in (2, 3):
        bus.publish(Sensed("a", number))
    bus.publish(Sensed("b", 4))
    bus.publish(Sensed("b", 5))
    bus.publish(Sensed("c", 6))
    assert [2, 3] == [letter.event.number for letter in bus.dead_letters]
    assert [4, 6, 5] == waiting(bus)
    bus.publish(Sensed("c", 7))
    assert [5, 6, 7] == sorted(waiting(bus))


def test_what_is_between_two_attempts_is_not_dropped():
    """
    Where all there is waits for its next attempt, the event being published is dropped.
    """
    from eventbus._job import Later
    from eventbus._verdict import Trial

    bus = hand_bus(capacity=1, overflow="drop_oldest")
    bus.publish(Read(1))
    queue = queue_of(bus)
    worker = queue.lend()
    job = queue.turn(worker)
    assert job is not None
    queue.postpone(worker, Later(Trial(job.receipt), 60.0))
    bus.publish(Read(2))
    assert [2] == [letter.event.number for letter in bus.dead_letters]
    queue.give_up()


@in_both_colours
@pytest.mark.parametrize("overflow", ["block", "raise", "drop_oldest", "drop_newest"])
def test_cancelled_while_it_is_published(publish: Publish, overflow: Any):
    """
    A queue whose subscription was cancelled meanwhile takes no more, and that is no failure.
    """
    bus = HandBus()

    def leave(happened: Read) -> None:
        queue.retire(lambda: None)
        subscription.is_live = False

    bus.subscribe(Read, leave, name="leave")
    subscription = bus.subscribe(Read, ignore, name="x", delivery=Queued(overflow=overflow))
    queue = next(iter(bus._queues.values()))
    receipt = publish(bus, Read(1))
    assert (True, 0, 1, 0) == (
        receipt.ok,
        receipt.queued,
        receipt.delivered,
        len(bus.dead_letters),
    )
    assert 1 == bus.stats().subscriptions["x"].missed


@in_both_colours
def test_closed_while_it_is_published(publish: Publish):
    """
    A queue that is closed between its publisher's two steps leaves a failure in the receipt.
    """
    bus = hand_bus()
    queue = queue_of(bus)
    now = queue._now

    def close_meanwhile() -> float:
        queue._now = now
        queue.stop()
        queue._capacity = 10  # as it was when the publisher looked
        return now()

    queue._now = close_meanwhile
    (failure,) = publish(bus, Read(1)).failures
    assert "the bus was closed before ignore could accept Read" == str(failure.exception)


def test_dropping_wakes_who_could_work(monkeypatch: pytest.MonkeyPatch):
    """
    A publisher that drops the oldest has a worker started, if there may be one.
    """
    bus = hand_bus(capacity=1, overflow="drop_oldest")
    queue, started = queue_of(bus), list[Any]()
    monkeypatch.setattr(queue, "_start", started.append)
    bus.publish(Read(1))
    queue.limit = 1
    bus.publish(Read(2))
    assert [queue] == started
    assert [2] == waiting(bus)


def test_closed_while_it_is_dropping():
    """
    A publisher that would drop the oldest of a queue closed meanwhile is refused.
    """
    bus = hand_bus(capacity=1, overflow="drop_oldest")
    queue = queue_of(bus)
    bus.publish(Read(1))
    (job,) = queue._backlog.waiting()
    queue.stop()
    queue._push_in(job)
    assert 0 == bus.stats().subscriptions["ignore"].dropped
    assert ["BusClosedError"] == [
        each.exception.__class__.__name__ for each in job.receipt.failures
    ]


# -- waiting for room


@attrs.define
class Shop:
    """
    A bus with one handler that waits for its gate, and a queue with room for one.
    """

    bus: EventBus
    gate: threading.Event = attrs.field(factory=threading.Event)
    began: threading.Event = attrs.field(factory=threading.Event)
    handled: list[int] = attrs.field(factory=list)

    def handle(self, read: Read) -> None:
        self.began.set()
        met(self.gate)
        self.handled.append(read.number)

    def open(self, **options: Any) -> Intake:
        mode = Queued(**{"capacity": 1, **options})
        self.bus.subscribe(Read, self.handle, name="handle", delivery=mode)
        self.bus.publish(Read(0))
        met(self.began)
        self.bus.publish(Read(1))
        return queue_of(self.bus)


@pytest.fixture
def shop() -> Any:
    with EventBus() as bus:
        made = Shop(bus)
        yield made
        made.gate.set()


def when_blocked(queue: Intake, count: int = 1) -> None:
    """
    Wait until so many publishers wait for room.
    """
    for _ in range(int(PATIENCE * 1000)):
        if len(queue._blocked) == count:
            return
        threading.Event().wait(0.001)
    raise TimeoutError


def test_waits_for_room(shop: Shop):
    """
    With ``overflow="block"`` a publisher waits until there is room, and nothing is lost.
    """
    queue = shop.open()
    receipts: list[Receipt] = []
    thread = threading.Thread(target=lambda: receipts.append(shop.bus.publish(Read(2))))
    thread.start()
    when_blocked(queue)
    assert [] == receipts
    shop.gate.set()
    thread.join(PATIENCE)
    assert [True] == [each.ok for each in receipts]
    assert shop.bus.drain(PATIENCE).ok
    assert [0, 1, 2] == shop.handled


def test_awaits_room(shop: Shop):
    """
    `apublish` waits for room without blocking its loop.
    """
    queue = shop.open()

    async def live() -> None:
        waits = asyncio.create_task(shop.bus.apublish(Read(2)))
        await until(lambda: len(queue._blocked) == 1)
        assert not waits.done()
        shop.gate.set()
        assert (await asyncio.wait_for(waits, PATIENCE)).ok

    asyncio.run(live())
    assert shop.bus.drain(PATIENCE).ok
    assert [0, 1, 2] == shop.handled


def test_interrupted_while_waiting(shop: Shop):
    """
    A publisher that is cancelled while it waits for room leaves nothing behind.
    """
    queue = shop.open()

    async def live() -> None:
        waits = asyncio.create_task(shop.bus.apublish(Read(2)))
        await until(lambda: len(queue._blocked) == 1)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits

    asyncio.run(live())
    assert 0 == len(queue._blocked)
    assert [1] == waiting(shop.bus)
    assert 1 == shop.bus.stats().subscriptions["handle"].missed


def test_interrupted_when_its_turn_had_come():
    """
    A publisher that is interrupted when there was room for it passes its turn on.
    """
    queue, told = queue_of(hand_bus(capacity=1)), list[str]()
    queue.limit = 1
    queue.ready.append(Any)  # type: ignore[arg-type]

    def wait() -> None:
        with queue._queueing_up(lambda: told.append("first"), None, is_late=False) as must_wait:
            assert must_wait
            queue._blocked.append(lambda: told.append("second"))
            queue.ready.clear()
            for call in queue._news():
                call()
            assert ["first"] == told
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait()
    assert ["first", "second"] == told


def test_room_that_came_meanwhile():
    """
    A publisher that finds room once it has said that it waits does not wait.
    """
    queue = queue_of(hand_bus(capacity=1))
    with queue._queueing_up(lambda: None, None, is_late=False) as must_wait:
        assert not must_wait
        assert 0 == len(queue._blocked)


def test_who_was_overtaken_waits_at_the_head():
    """
    Who finds that another one was quicker comes next.
    """
    queue = queue_of(hand_bus(capacity=1))
    queue.ready.append(Any)  # type: ignore[arg-type]
    with queue._queueing_up(print, None, is_late=False):
        with queue._queueing_up(repr, None, is_late=True):
            assert [repr, print] == list(queue._blocked)
        queue._blocked.clear()
        queue.ready.clear()


@in_both_colours
def test_room_that_comes_before_the_wait(publish: Publish, monkeypatch: pytest.MonkeyPatch):
    """
    Where there is room by the time a publisher would wait for it, it goes on at once.
    """
    bus = hand_bus(capacity=1)
    queue = queue_of(bus)
    queue.limit = 1
    monkeypatch.setattr(queue, "_start", lambda queue: None)
    publish(bus, Read(1))
    offer = queue.offer

    def late(job: Any) -> bool:
        if queue.ready:
            queue.ready.clear()
            return False
        return offer(job)

    monkeypatch.setattr(queue, "offer", late)
    assert publish(bus, Read(2)).ok
    assert [2] == waiting(bus)


@pytest.mark.parametrize("colour", ["publish", "apublish"])
def test_closed_while_waiting(shop: Shop, colour: str):
    """
    The end of the bus ends the wait for room: the event is refused, and not lost in silence.
    """
    queue = shop.open()
    receipts: list[Receipt] = []

    def wait() -> None:
        if colour == "publish":
            receipts.append(shop.bus.publish(Read(2)))
        else:
            receipts.append(asyncio.run(shop.bus.apublish(Read(2))))

    thread = threading.Thread(target=wait)
    thread.start()
    when_blocked(queue)
    report = shop.bus.close(0.0)
    thread.join(PATIENCE)
    (failure,) = receipts[0].failures
    assert "the bus was closed before handle could accept Read" == str(failure.exception)
    assert ({"handle": 2}, {"handle": 1}) == (report.left, report.running)


def test_refused_from_the_loops_own_thread(shop: Shop):
    """
    `publish` from a thread with a running loop does not wait: the failure names `apublish`.
    """
    shop.open()

    async def live() -> Receipt:
        return shop.bus.publish(Read(2))

    (failure,) = asyncio.run(live()).failures
    assert "use await bus.apublish(...)" in str(failure.exception)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_handler_does_not_wait_for_itself(workers: int, colour: str):
    """
    Handlers that publish into their own full queue are refused before all of them would wait.
    """
    receipts: list[Receipt] = []
    barrier = threading.Barrier(workers)

    def more(read: Read) -> None:
        if read.number < workers:
            barrier.wait(PATIENCE)
            receipts.extend(bus.publish(Read(10 * (read.number + 1) + each)) for each in (1, 2, 3))

    async def amore(read: Read) -> None:
        if read.number < workers:
            for each in (1, 2, 3):
                number = 10 * (read.number + 1) + each
                task = asyncio.create_task(bus.apublish(Read(number)))
                receipts.append(await task)

    with EventBus() as bus:
        mode = Queued(capacity=2, workers=workers)
        bus.subscribe(Read, more if colour == "def" else amore, name="more", delivery=mode)
        for number in range(workers):
            bus.publish(Read(number))
        assert bus.drain(PATIENCE).ok
    failures = [failure for each in receipts for failure in each.failures]
    assert 3 * workers == len(receipts)
    assert failures
    assert all("would wait for themselves" in str(each.exception) for each in failures)


@in_both_colours
def test_nobody_to_make_room(publish: Publish):
    """
    Where there are no workers, a full queue that blocks refuses, for nobody would make room.
    """
    bus = hand_bus(capacity=1)
    publish(bus, Read(1))
    (failure,) = publish(bus, Read(2)).failures
    assert "Nobody handles any meanwhile" in str(failure.exception)


@in_both_colours
def test_relieved(publish: Publish):
    """
    Where there are no workers but somebody who relieves the queue, he makes the room.
    """

    class Relief:
        def relieve(self, queue: Intake) -> bool:
            return queue.ready.popleft() is not None

        async def arelieve(self, queue: Intake) -> bool:
            return self.relieve(queue)

    bus = hand_bus(capacity=1)
    queue_of(bus).relief = Relief()
    assert [True, True] == [publish(bus, Read(number)).ok for number in (1, 2)]
    assert [2] == waiting(bus)


def test_calling_a_loop_that_is_closed():
    """
    Calling back on a loop that is closed meanwhile does nothing.
    """
    loop = asyncio.new_event_loop()
    loop.close()
    call_soon(loop, lambda: None)


# -- the end of the process


@pytest.mark.parametrize(("count", "events"), [(1, "1 event"), (2, "2 events")])
def test_what_the_process_loses_is_logged(
    caplog: pytest.LogCaptureFixture, count: int, events: str
):
    """
    A process that ends with events in a queue says how many, and of which subscription.
    """
    bus, name = HandBus(), f"lost {count}"
    bus.subscribe(Read, ignore, name=name, delivery=Queued())
    for number in range(count):
        bus.publish(Read(number))
    caplog.set_level(logging.WARNING)
    _at_exit()
    assert (
        f"the process ends with {events} of {name} not handled: close() or drain() the bus "
        f"before it does"
    ) in caplog.messages
    bus.close(0.0)
    caplog.clear()
    _at_exit()
    assert [] == [each for each in caplog.messages if name in each]


ENDS = """
import threading
from eventbus import BusClosedError, EventBus, Queued

bus = EventBus()
began = threading.Event()

@bus.on(int, delivery=Queued(), name="stuck")
def stuck(number: int) -> None:
    began.set()
    threading.Event().wait()

for number in range(3):
    bus.publish(number)
assert began.wait(20.0)
"""


def test_a_process_ends_without_closing():
    """
    Nothing keeps a process alive whose bus was not closed; it says what it drops.
    """
    child = subprocess.run(
        [sys.executable, "-c", ENDS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert 0 == child.returncode, child.stderr
    assert "the process ends with 3 events of stuck not handled" in child.stderr
