"""
What becomes of a queued event: success, failure, retry, duplicate, and what nobody handled.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import types
from collections.abc import Callable, Generator
from contextvars import Context
from typing import Any

import attrs
import pytest

from eventbus import (
    EventBus,
    HandlerAbortedError,
    InMemoryDeadLetters,
    InMemoryIdempotencyStore,
    Queued,
    current_envelope,
    event,
    fixed,
)
from eventbus._job import Later
from eventbus.instrumentation import Delivered, Dropped, Failed, Retried, Undelivered
from eventbus.testing import VirtualClock
from queue_by_hand import PATIENCE


@event
class Paid:
    number: int = 0
    account: str = "a"


class HandBus(EventBus):
    """
    A bus whose queues have no workers.
    """

    _workers = 0


@attrs.frozen
class Colour:
    """
    How handlers are written, and so how a worker performs.
    """

    is_async: bool
    waits: bool = True

    def handler(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """
        Return a sync function as a handler of this colour; the async one waits, once.
        """
        if not self.is_async:
            return function

        async def handle(paid: Any) -> None:
            if self.waits:
                await asyncio.sleep(0)
            function(paid)

        return handle

    def settle(self, bus: EventBus) -> None:
        """
        Handle what is ready, here.
        """
        for queue in bus._all_queues():
            worker = queue.lend()
            while (job := queue.turn(worker)) is not None:
                if self.is_async:
                    later = asyncio.run(_perform(queue.keeper, job, worker))
                else:
                    later = job.context.run(queue.keeper.perform, job, worker)
                if later is not None:
                    queue.postpone(worker, later)
                worker.job = None


async def _perform(keeper: Any, job: Any, worker: Any) -> Later | None:
    return await asyncio.create_task(keeper.aperform(job, worker), context=job.context)


in_both_colours = pytest.mark.parametrize(
    "colour",
    [
        pytest.param(Colour(False), id="def"),
        pytest.param(Colour(True), id="async-def"),
        pytest.param(Colour(True, waits=False), id="async-def-at-once"),
    ],
)


def hand_bus(
    colour: Colour, function: Callable[[Any], Any], *, mode: Queued | None = None, **options: Any
) -> HandBus:
    made = {
        each: options.pop(each)
        for each in ("clock", "dead_letters", "idempotency", "observers", "timings", "errors")
        if each in options
    }
    bus = HandBus(**made)
    bus.subscribe(Paid, colour.handler(function), name="pay", delivery=mode or Queued(), **options)
    return bus


def counted(bus: EventBus) -> dict[str, int]:
    stats = attrs.asdict(bus.stats().subscriptions["pay"])
    return {name: count for name, count in stats.items() if count and name not in {"lag", "time"}}


def fail(paid: Paid) -> None:
    raise ValueError("declined")


# -- outcomes


@in_both_colours
@pytest.mark.parametrize("options", [{}, {"timings": True}])
def test_delivered(colour: Colour, options: dict[str, Any]):
    """
    An event that was handled counts as delivered.
    """
    handled: list[Paid] = []
    bus = hand_bus(colour, handled.append, **options)
    bus.publish(Paid())
    assert {"published": 1, "depth": 1} == counted(bus)
    colour.settle(bus)
    assert [Paid()] == handled
    assert {"published": 1, "delivered": 1} == counted(bus)


@in_both_colours
def test_an_observer_that_comes_late_is_told(colour: Colour):
    """
    Who observes from now on is told of events that were accepted before.
    """
    bus, told = hand_bus(colour, lambda paid: None), list[Any]()
    bus.publish(Paid())
    bus.observe(told.append)
    colour.settle(bus)
    assert [Delivered] == [type(each) for each in told]


@in_both_colours
def test_the_time_is_measured(colour: Colour):
    """
    With timings the stats tell how long the handler ran.
    """
    clock = VirtualClock()
    bus = hand_bus(colour, lambda paid: clock.advance(2.0), clock=clock, timings=True)
    bus.publish(Paid())
    colour.settle(bus)
    time = bus.stats().subscriptions["pay"].time
    assert time is not None
    assert (1, 2.0) == (time.count, time.total)


@in_both_colours
@pytest.mark.parametrize("errors", ["collect", "raise"])
def test_failed(colour: Colour, errors: Any, caplog: pytest.LogCaptureFixture):
    """
    A failure never reaches the receipt: it is logged, counted, observed and kept.
    """
    told: list[Any] = []
    bus = hand_bus(colour, fail, errors=errors)
    receipt = bus.publish(Paid())
    bus.observe(told.append)
    colour.settle(bus)
    assert receipt.ok
    assert {"published": 1, "failed": 1, "dead_lettered": 1} == counted(bus)
    (letter,) = bus.dead_letters
    assert ("failed", 1, "declined") == (letter.reason, letter.attempts, letter.message)
    assert [logging.ERROR] == [each.levelno for each in caplog.records]
    assert Failed in {type(each) for each in told}


@in_both_colours
def test_the_plain_fail_like_the_others(colour: Colour):
    """
    A handler without any policy leaves the same dead letter.
    """
    bus = hand_bus(colour, fail)
    bus.publish(Paid())
    colour.settle(bus)
    (letter,) = bus.dead_letters
    assert ("failed", 1, "declined") == (letter.reason, letter.attempts, letter.message)


@in_both_colours
def test_retried_later(colour: Colour):
    """
    The next attempt is due when its policy says so, and others go on meanwhile.
    """
    clock, tried = VirtualClock(), list[int]()

    def decline_first(paid: Paid) -> None:
        tried.append(paid.number)
        if tried == [1]:
            fail(paid)

    bus = hand_bus(colour, decline_first, clock=clock, retry=fixed(attempts=3, delay=5.0))
    bus.publish(Paid(1))
    bus.publish(Paid(2))
    colour.settle(bus)
    assert {"published": 2, "delivered": 1, "retried": 1, "scheduled": 1} == counted(bus)
    clock.advance(5.0)
    colour.settle(bus)
    assert [1, 2, 1] == tried
    assert {"published": 2, "delivered": 2, "retried": 1} == counted(bus)


@in_both_colours
def test_given_up_after_the_last_attempt(colour: Colour):
    """
    A handler that always fails is called as often as its policy says, and then buried.
    """
    clock, told = VirtualClock(), list[Any]()
    bus = hand_bus(
        colour, fail, clock=clock, retry=fixed(attempts=3, delay=1.0), observers=[told.append]
    )
    bus.publish(Paid())
    for _ in range(3):
        colour.settle(bus)
        clock.advance(1.0)
    (letter,) = bus.dead_letters
    assert (3, 3) == (letter.attempts, len(letter.failures))
    assert [1, 2] == [each.attempt for each in told if isinstance(each, Retried)]
    assert {"published": 1, "failed": 1, "retried": 2, "dead_lettered": 1} == counted(bus)


@in_both_colours
def test_the_handler_stands_in_its_event(colour: Colour):
    """
    What a handler sees of the event it handles does not depend on how it was published.
    """
    seen: list[Any] = []

    def look(paid: Paid) -> None:
        envelope = current_envelope()
        assert envelope is not None
        seen.append(envelope.event)

    bus = hand_bus(colour, look)
    bus.publish(Paid(1))
    queue = next(iter(bus._queues.values()))
    (job,) = queue._backlog.take_all()
    queue.ready.append(job._replace(context=Context()))
    colour.settle(bus)
    assert [Paid(1)] == seen


# -- keys


@in_both_colours
def test_handled_once_for_each_key(colour: Colour):
    """
    A second event of one idempotency key is a duplicate; without a key each is handled.
    """
    handled: list[Paid] = []
    bus = hand_bus(colour, handled.append, idempotency_key=lambda paid: paid.account or None)
    for account in ("a", "a", "", ""):
        bus.publish(Paid(account=account))
    colour.settle(bus)
    assert ["a", "", ""] == [paid.account for paid in handled]
    assert {"published": 4, "delivered": 3, "duplicate": 1} == counted(bus)


@in_both_colours
def test_a_key_that_another_holds(colour: Colour):
    """
    An event whose key is at work elsewhere waits for its outcome, and holds no worker.
    """
    handled, store, clock = list[Paid](), InMemoryIdempotencyStore(), VirtualClock()
    bus = hand_bus(
        colour, handled.append, idempotency=store, clock=clock, idempotency_key="account"
    )
    claim = store.claim("pay", "a", source=bus.publish(Paid(account="b")), now=0.0)
    bus.publish(Paid(account="a"))
    colour.settle(bus)
    assert ["b"] == [paid.account for paid in handled]
    assert {"published": 2, "delivered": 1, "scheduled": 1} == counted(bus)
    store.release(claim)
    colour.settle(bus)
    assert ["b", "a"] == [paid.account for paid in handled]


@in_both_colours
def test_a_key_that_cannot_be_read(colour: Colour):
    """
    What raises while it reads the idempotency key fails the delivery, without a call.
    """

    def unreadable(paid: Paid) -> str:
        raise KeyError("no key")

    bus = hand_bus(colour, fail, idempotency_key=unreadable)
    bus.publish(Paid())
    colour.settle(bus)
    (letter,) = bus.dead_letters
    assert ("failed", 0) == (letter.reason, letter.attempts)


@in_both_colours
def test_a_key_is_freed_by_the_last_failure(colour: Colour):
    """
    When an event is given up on, the next one of its key is handled.
    """
    tried: list[int] = []

    def decline_first(paid: Paid) -> None:
        tried.append(paid.number)
        if paid.number == 1:
            fail(paid)

    bus = hand_bus(colour, decline_first, idempotency_key="account")
    bus.publish(Paid(1))
    bus.publish(Paid(2))
    colour.settle(bus)
    assert [1, 2] == tried


# -- handlers that vanish


class Till:
    def __init__(self) -> None:
        self.taken: list[Paid] = []

    def take(self, paid: Paid) -> None:
        self.taken.append(paid)


def test_a_weak_handler_that_is_gone():
    """
    An event whose weak handler vanished while it waited is missed, and no failure.
    """
    bus, till = HandBus(), Till()
    bus.subscribe(Paid, till.take, name="pay", weak=True, delivery=Queued(), timeout=None)
    subscription = bus.subscriptions[0]
    bus.publish(Paid())
    keeper = next(iter(bus._queues.values()))
    worker = keeper.lend()
    job = keeper.turn(worker)
    assert job is not None
    del till
    gc.collect()
    job.context.run(keeper.keeper.perform, job, worker)
    assert 1 == subscription.counters.missed


def test_once():
    """
    A queued handler that is wanted once is called for the first event only.
    """
    handled: list[Paid] = []
    with EventBus() as bus:
        bus.subscribe(Paid, handled.append, name="pay", once=True, delivery=Queued())
        for number in range(3):
            bus.publish(Paid(number))
    assert [Paid(0)] == handled


@in_both_colours
def test_what_was_accepted_before_a_cancel_is_handled(colour: Colour):
    """
    A cancelled subscription takes no more, and handles what it has.
    """
    handled: list[Paid] = []
    with EventBus() as bus:
        handler = colour.handler(handled.append)
        subscription = bus.subscribe(Paid, handler, name="pay", delivery=Queued())
        subscription.pause()
        bus.publish(Paid(1))
        subscription.cancel()
        assert bus.publish(Paid(2)).unhandled
        subscription.resume()
        assert bus.drain(PATIENCE).ok
    assert [Paid(1)] == handled


# -- what is no Exception


@in_both_colours
@pytest.mark.parametrize(
    "error", [SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
def test_what_ends_programs_ends_the_attempt(colour: Colour, error: type[BaseException]):
    """
    On a worker, what is meant to end programs and tasks fails the attempt, by another name.
    """

    def leave(paid: Paid) -> None:
        tried.append(paid.number)
        raise error

    tried: list[int] = []
    with EventBus() as bus:
        bus.subscribe(
            Paid,
            colour.handler(leave),
            name="pay",
            delivery=Queued(),
            retry=fixed(attempts=2, delay=0.0),
        )
        bus.publish(Paid(1))
        bus.publish(Paid(2))
        assert bus.drain(PATIENCE).ok
        assert [1, 1, 2, 2] == sorted(tried)
        letters = list(bus.dead_letters)
    assert [2, 2] == [letter.attempts for letter in letters]
    assert {HandlerAbortedError.__qualname__} == {
        letter.error_type.rpartition(".")[2] for letter in letters
    }


def test_the_process_is_interrupted():
    """
    A real interruption, in the main thread, passes through an async handler's worker.
    """

    async def interrupt(paid: Paid) -> None:
        handled.append(paid.number)
        if len(handled) == 1:
            raise KeyboardInterrupt

    async def live(bus: EventBus) -> None:
        bus.start()
        await bus.apublish(Paid(1))
        await bus.adrain()

    handled: list[int] = []
    with EventBus() as bus:
        bus.subscribe(Paid, interrupt, name="pay", delivery=Queued())
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(live(bus))
        assert bus.drain(PATIENCE).ok
    assert [1, 1] == handled


def test_who_lends_himself_is_interrupted():
    """
    Where somebody lends his own thread, what is no `Exception` is his.
    """
    colour = Colour(False)

    def leave(paid: Paid) -> None:
        raise SystemExit

    bus = hand_bus(colour, leave)
    bus.publish(Paid())
    with pytest.raises(SystemExit):
        colour.settle(bus)


# -- awaitables of any kind


class Ready:
    """
    What can be awaited and is no coroutine.
    """

    def __init__(self, paid: Paid, handled: list[Paid]) -> None:
        self._paid, self._handled = paid, handled

    def __await__(self) -> Generator[Any, Any, None]:
        yield from asyncio.sleep(0).__await__()
        self._handled.append(self._paid)


@pytest.mark.parametrize("has_loop", [False, True])
def test_an_awaitable_is_waited_for(has_loop: bool):
    """
    What a handler returns to be awaited belongs to its delivery, on a thread as in a loop.
    """
    handled: list[Paid] = []

    async def live(bus: EventBus) -> None:
        async with bus:
            await bus.apublish(Paid(1))

    bus = EventBus()
    bus.subscribe(Paid, lambda paid: Ready(paid, handled), name="pay", delivery=Queued())
    if has_loop:
        asyncio.run(live(bus))
    else:
        with bus:
            bus.publish(Paid(1))
            assert bus.drain(PATIENCE).ok
    assert [Paid(1)] == handled


def test_an_async_handler_that_needs_no_coroutine():
    """
    An async handler wrapped into what returns another awaitable is awaited all the same.
    """
    handled: list[Paid] = []

    @types.coroutine
    def generated(paid: Paid) -> Generator[Any, Any, None]:
        yield from asyncio.sleep(0).__await__()
        handled.append(paid)

    async def handle(paid: Paid) -> None:
        await generated(paid)

    with EventBus() as bus:
        bus.subscribe(Paid, handle, name="pay", delivery=Queued())
        keeper: Any = None
        bus.publish(Paid(1))
        assert bus.drain(PATIENCE).ok
        keeper = next(iter(bus._queues.values())).keeper
        keeper._acall = lambda paid: Ready(paid, handled)
        bus.publish(Paid(2))
        assert bus.drain(PATIENCE).ok
        keeper._acall = lambda paid: None
        bus.publish(Paid(3))
        assert bus.drain(PATIENCE).ok
    assert [Paid(1), Paid(2)] == handled


# -- what is written off


def test_what_is_dropped_frees_its_key():
    """
    An event that was waiting for its next attempt and is written off lets its key go.
    """
    clock, store = VirtualClock(), InMemoryIdempotencyStore()
    bus = hand_bus(
        Colour(False),
        fail,
        clock=clock,
        idempotency=store,
        idempotency_key="account",
        retry=fixed(attempts=2, delay=60.0),
    )
    receipt = bus.publish(Paid())
    Colour(False).settle(bus)
    bus.close(0.0)
    (letter,) = bus.dead_letters
    assert ("undelivered", 1, 1, "a") == (
        letter.reason,
        letter.attempts,
        len(letter.failures),
        letter.idempotency_key,
    )
    assert "granted" == store.claim("pay", "a", source=receipt, now=0.0).state


@pytest.mark.parametrize("capacity", [1, 2])
def test_kept_where_there_is_room(capacity: int):
    """
    What is dropped is kept as a dead letter only while the store has room.
    """
    told: list[Any] = []
    letters = InMemoryDeadLetters(capacity=capacity)
    bus = hand_bus(
        Colour(False),
        fail,
        mode=Queued(capacity=1, overflow="drop_newest"),
        dead_letters=letters,
        observers=[told.append],
    )
    for number in range(3):
        bus.publish(Paid(number))
    assert capacity == len(letters)
    assert 2 == len([each for each in told if isinstance(each, Dropped)])
    assert {"published": 3, "depth": 1, "dropped": 2} == counted(bus)


def test_a_store_that_fails_hides_nothing(caplog: pytest.LogCaptureFixture):
    """
    A store of dead letters that raises is logged, and what was not handled is counted.
    """

    class Broken(InMemoryDeadLetters):
        def add(self, letter: Any) -> bool:
            raise ConnectionError("no store")

    told: list[Any] = []
    bus = hand_bus(Colour(False), fail, dead_letters=Broken(), observers=[told.append])
    bus.publish(Paid())
    assert {"pay": 1} == bus.close(0.0).left
    assert [Undelivered] == [type(each) for each in told if isinstance(each, Undelivered)]
    assert 1 == len([each for each in caplog.messages if "could not be kept" in each])


# -- given up while it is handled


@attrs.define
class Slow:
    """
    A handler that stands at its gate.
    """

    outcome: Callable[[Paid], None] = lambda paid: None
    began: threading.Event = attrs.field(factory=threading.Event)
    gate: threading.Event = attrs.field(factory=threading.Event)

    def handle(self, paid: Paid) -> None:
        self.began.set()
        assert self.gate.wait(PATIENCE)
        self.outcome(paid)


@pytest.mark.parametrize("outcome", [fail, lambda paid: None])
@pytest.mark.parametrize("options", [{}, {"idempotency_key": "account"}])
def test_given_up_while_it_is_handled(outcome: Any, options: dict[str, Any]):
    """
    What was given up while its handler ran is written off once, whatever comes of it then.
    """
    slow, bus, store = Slow(outcome), EventBus(), InMemoryIdempotencyStore()
    bus = EventBus(idempotency=store)
    bus.subscribe(Paid, slow.handle, name="pay", delivery=Queued(), **options)
    receipt = bus.publish(Paid())
    assert slow.began.wait(PATIENCE)
    (worker,) = next(iter(bus._queues.values())).staff
    report = bus.close(0.0)
    assert ({"pay": 1}, {"pay": 1}) == (report.left, report.running)
    slow.gate.set()
    worker.who.join(PATIENCE)
    assert ["undelivered"] == [letter.reason for letter in bus.dead_letters]
    assert {"published": 1, "undelivered": 1} == counted(bus)
    if options:
        expected = "granted" if outcome is fail else "done"
        claim = store.claim("pay", "a", source=receipt, now=0.0)
        assert (expected == "granted") == (claim.state == "granted")


def test_an_async_handler_that_is_given_up_is_cancelled():
    """
    An async handler gets no cancellation before its time is over, and its key back then.
    """
    store, cancelled = InMemoryIdempotencyStore(), list[int]()

    async def handle(paid: Paid) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(paid.number)
            raise

    async def live() -> None:
        bus = EventBus(idempotency=store)
        bus.start()
        bus.subscribe(Paid, handle, name="pay", delivery=Queued(), idempotency_key="account")
        receipt = await bus.apublish(Paid(7))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        report = await bus.aclose(0.0)
        assert ({"pay": 1}, {"pay": 1}) == (report.left, report.running)
        assert "granted" == store.claim("pay", "a", source=receipt, now=0.0).state

    asyncio.run(live())
    assert [7] == cancelled


def test_a_key_that_cannot_be_read_in_the_end():
    """
    A delivery that fails before its call, when it was given up already, is written off once.
    """
    bus: Any = None

    def unreadable(paid: Paid) -> str:
        next(iter(bus._queues.values())).give_up()
        raise KeyError("no key")

    bus = hand_bus(Colour(False), fail, idempotency_key=unreadable)
    bus.publish(Paid())
    Colour(False).settle(bus)
    assert ["undelivered"] == [letter.reason for letter in bus.dead_letters]
