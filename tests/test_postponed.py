"""
Publishes that are due later: at their time, once, unless they are cancelled.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from eventbus import (
    BusClosedError,
    EventBus,
    HandlerErrors,
    Queued,
    Receipt,
    RunningLoopError,
    _process,
    current_envelope,
    event,
)
from eventbus._job import Job
from eventbus.memory import MemoryStore
from eventbus.testing import TestBus, VirtualClock

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


@event
class Reminded:
    number: int = 0


@event
class Answered:
    number: int = 0


@event(key="account")
class Billed:
    account: str
    number: int


class Colour:
    """
    Publishing by a call, or by an await in a loop of its own.
    """

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    def __repr__(self) -> str:
        return "async" if self.is_async else "sync"

    def publish(self, bus: EventBus, happened: object, **options: Any) -> Receipt:
        if self.is_async:
            return asyncio.run(bus.apublish(happened, **options))
        return bus.publish(happened, **options)


both = pytest.mark.parametrize("colour", [Colour(False), Colour(True)], ids=repr)


@both
def test_a_delayed_publish_comes_when_it_is_due(colour: Colour) -> None:
    """
    Until then nothing is called and nothing counts as published.
    """
    with TestBus() as bus:
        moments: list[float] = []
        bus.subscribe(Reminded, lambda _: moments.append(bus.clock.monotonic()), name="x")
        receipt = colour.publish(bus, Reminded(), delay=30.0)
        assert (True, 0, False) == (receipt.is_scheduled, receipt.delivered, receipt.unhandled)
        assert (1, 0) == (bus.stats().scheduled, bus.stats().published)
        bus.assert_nothing_published()
        bus.clock.advance(29.9)
        assert [] == moments
        bus.clock.advance(60.0)
        assert [30.0] == moments
        assert (False, 1) == (receipt.is_scheduled, receipt.delivered)
        assert (0, 1) == (bus.stats().scheduled, bus.stats().published)


@both
@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5))], ids=str)
def test_a_publish_may_be_due_at_a_time_of_day(colour: Colour, zone: Any) -> None:
    """
    Whatever zone it is given in.
    """
    with TestBus() as bus:
        moments: list[float] = []
        bus.subscribe(Reminded, lambda _: moments.append(bus.clock.monotonic()), name="x")
        at = datetime.fromtimestamp(bus.clock.time() + 90.0, zone)
        colour.publish(bus, Reminded(), at=at)
        bus.clock.advance(hours=1)
        assert [90.0] == moments


@both
@pytest.mark.parametrize("delay", [0, -5.0])
def test_what_is_due_already_is_published_now_and_once(colour: Colour, delay: float) -> None:
    """
    A time in the past means now: the receipt is that of an ordinary publish.
    """
    with TestBus() as bus:
        seen: list[object] = []
        bus.subscribe(Reminded, seen.append, name="x")
        assert 1 == colour.publish(bus, Reminded(1), delay=delay).delivered
        past = datetime.fromtimestamp(bus.clock.time() - 60.0, UTC)
        assert 1 == colour.publish(bus, Reminded(2), at=past).delivered
        bus.clock.advance(hours=1)
        assert [Reminded(1), Reminded(2)] == seen


@both
def test_a_cancelled_one_never_comes(colour: Colour) -> None:
    """
    Cancelling says whether it was in time; a second time it is not.
    """
    with TestBus() as bus:
        seen: list[object] = []
        bus.subscribe(Reminded, seen.append, name="x")
        receipt = colour.publish(bus, Reminded(), delay=30.0)
        assert receipt.cancel()
        assert not receipt.cancel()
        assert not receipt.is_scheduled
        bus.clock.advance(hours=1)
        assert [] == seen
        assert not colour.publish(bus, Reminded()).cancel()


def test_it_is_too_late_to_cancel_what_has_been_published() -> None:
    """
    The receipt says so.
    """
    with TestBus() as bus:
        receipt = bus.publish(Reminded(), delay=30.0)
        bus.clock.advance(30.0)
        assert not receipt.cancel()


@both
def test_cancelling_frees_the_publishers_key(colour: Colour) -> None:
    """
    Until then another publish with the key is a duplicate.
    """
    with TestBus() as bus:
        receipt = colour.publish(bus, Reminded(), delay=30.0, idempotency_key="k")
        assert colour.publish(bus, Reminded(), idempotency_key="k").duplicate
        receipt.cancel()
        assert not colour.publish(bus, Reminded(), idempotency_key="k").duplicate


def test_who_is_subscribed_when_it_is_due_gets_it() -> None:
    """
    One who came meanwhile is called, one who left is not.
    """
    with TestBus() as bus:
        seen: list[str] = []
        early = bus.subscribe(Reminded, lambda _: seen.append("early"), name="early")
        bus.publish(Reminded(), delay=30.0)
        early.cancel()
        bus.subscribe(Reminded, lambda _: seen.append("late"), name="late")
        bus.clock.advance(30.0)
        assert ["late"] == seen


def test_its_envelope_tells_of_the_publish() -> None:
    """
    Time, cause and context are those of the call that published it.
    """
    with TestBus() as bus:
        seen: list[tuple[str, str | None]] = []

        @bus.on(Answered)
        def remind(answered: Answered) -> None:
            bus.publish(Reminded(), delay=30.0, headers={"by": "remind"})

        @bus.on(Reminded)
        def look(reminded: Reminded) -> None:
            envelope = current_envelope()
            assert envelope is not None
            assert {"by": "remind"} == envelope.headers
            seen.append((tenant.get(), envelope.causation_id))

        token = tenant.set("acme")
        cause = bus.publish(Answered())
        tenant.reset(token)
        began = bus.clock.time()
        bus.clock.advance(60.0)
        assert [("acme", cause.id)] == seen
        assert began == bus.envelopes[-1].time.timestamp()


def test_those_of_one_key_are_published_one_after_the_other() -> None:
    """
    Of what is due, events of one key do not overtake each other, and others need not wait.
    """
    clock, gate, begun, ended = VirtualClock(), threading.Event(), set[int](), list[int]()
    both_begun = threading.Event()

    def handle(billed: Billed) -> None:
        begun.add(billed.number)
        if billed.number == 3:
            both_begun.set()
        gate.wait(PATIENCE)
        ended.append(billed.number)

    with EventBus(clock=clock) as bus:
        bus.subscribe(Billed, handle)
        for number, account in enumerate("aab", start=1):
            bus.publish(Billed(account, number), delay=1.0)
        clock.advance(1.0)
        assert both_begun.wait(PATIENCE)
        assert {1, 3} == begun
        gate.set()
        assert bus.drain(PATIENCE).ok
    assert [1, 2] == [number for number in ended if number != 3]


def test_those_of_one_key_come_in_the_order_of_their_moments() -> None:
    """
    Who is due first is published first, and then who was published first.
    """
    with TestBus() as bus:
        for number, delay in enumerate([3.0, 1.0, 1.0], start=1):
            bus.publish(Billed("a", number), delay=delay)
        bus.clock.advance(3.0)
        assert [2, 3, 1] == [billed.number for billed in bus.published]


def test_what_its_workers_end_with_is_kept_as_a_dead_letter() -> None:
    """
    A delayed publish that three workers have ended with is not given to a fourth.
    """

    class HandBus(EventBus):
        _workers = 0

    clock = VirtualClock()
    bus: Any = HandBus(clock=clock)
    bus.subscribe(Reminded, lambda _: None, name="x")
    bus.publish(Reminded(7), delay=1.0)
    clock.advance(1.0)
    queue = bus._postponed.queues[0]
    for _ in range(3):
        assert [] == list(bus.dead_letters)
        worker = queue.lend()
        assert Reminded(7) == queue.turn(worker).event
        queue.bereave(worker, revives=False)
    assert [("x", Reminded(7), "undelivered")] == [
        (each.subscription, each.event, each.reason) for each in bus.dead_letters
    ]


class Interrupted:
    """
    A bus whose delayed publish waits in its second handler, and what has become of it.
    """

    def __init__(self, **options: Any) -> None:
        self.calls = list[str]()
        self.began = threading.Event()
        self.bus = EventBus(**options)
        self.bus.subscribe(Reminded, self._note("first"), name="first", priority=2)
        self.bus.subscribe(Reminded, self._wait, name="wait", priority=1)
        self.bus.subscribe(Reminded, self._note("last"), name="last")
        self.bus.subscribe(Reminded, self._note("queued"), name="queued", delivery=Queued())

    def _note(self, name: str) -> Callable[[Reminded], None]:
        return lambda _: self.calls.append(name)

    async def _wait(self, reminded: Reminded) -> None:
        self.calls.append("wait")
        self.began.set()
        await asyncio.Event().wait()

    async def begin(self) -> None:
        self.bus.start()
        self.bus.publish(Reminded(7), delay=0.001)
        async with asyncio.timeout(PATIENCE):
            while not self.began.is_set():  # noqa: ASYNC110 - it tells no task
                await asyncio.sleep(0.001)

    @property
    def letters(self) -> list[tuple[str, str]]:
        return [(each.subscription, each.reason) for each in self.bus.dead_letters]


@pytest.mark.parametrize(
    ("fanout", "is_left"), [("sequential", False), ("sequential", True), ("concurrent", False)]
)
def test_whom_an_interrupted_one_has_not_reached_is_kept_as_dead_letters(
    fanout: Any, is_left: bool
) -> None:
    """
    What the end of a loop breaks off is not begun again, and lost for nobody.
    """
    told = Interrupted(fanout=fanout)
    if is_left:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(told.begin())
        postponed: Any = told.bus._postponed
        (worker,) = postponed.queues[1].staff
        coroutine = worker.who.get_coro()
        loop.close()
        coroutine.close()
    else:
        asyncio.run(told.begin())
    assert told.bus.drain(PATIENCE).ok
    if fanout == "sequential":
        assert ["first", "wait"] == told.calls
        missed = ["wait", "last", "queued"]
    else:
        assert ["first", "last", "queued", "wait"] == sorted(told.calls)
        missed = ["wait"]
    assert [(name, "undelivered") for name in missed] == told.letters
    stats = told.bus.stats().subscriptions
    assert {1} == {each.published for each in stats.values()}
    told.bus.close()
    gc.collect()


def test_one_that_was_begun_is_not_begun_again() -> None:
    """
    Whoever takes over from a worker that ended with a publish calls nobody again.
    """

    class HandBus(EventBus):
        _workers = 0

    clock, handled = VirtualClock(), list[Reminded]()
    bus: Any = HandBus(clock=clock)
    bus.subscribe(Reminded, handled.append, name="x")
    bus.publish(Reminded(7), delay=1.0)
    clock.advance(1.0)
    queue = bus._postponed.queues[0]
    worker = queue.lend()
    job = queue.turn(worker)
    for _ in range(2):
        job.context.run(queue.keeper.perform, job, worker)
    assert [Reminded(7)] == handled
    assert 0 == len(bus.dead_letters)


def test_one_that_cannot_be_stored_is_kept_as_a_dead_letter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    What fails before any handler is called is kept for all of them.
    """
    clock = VirtualClock()
    with EventBus(clock=clock, store=MemoryStore()) as bus:
        bus.subscribe(Reminded, lambda _: None, name="x")
        bus.publish(Reminded(), delay=1.0)

        def fail(*_: object) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(bus, "_append", fail)
        clock.advance(1.0)
        assert bus.drain(PATIENCE).ok
        assert [("x", "undelivered")] == [
            (each.subscription, each.reason) for each in bus.dead_letters
        ]
    assert ["disk full"] == [str(each.exc_info[1]) for each in caplog.records if each.exc_info]


def test_a_cycle_leaves_no_dead_letters(caplog: pytest.LogCaptureFixture) -> None:
    """
    Publishes that cause each other without end are logged, and not kept to begin again.
    """
    clock = VirtualClock()
    with EventBus(clock=clock) as bus:
        bus.subscribe(Reminded, bus.publish, name="again")
        bus.publish(Reminded(), delay=1.0)
        clock.advance(1.0)
        assert bus.drain(PATIENCE).ok
        assert 0 == len(bus.dead_letters)
    assert 1 == len([each for each in caplog.records if each.exc_info])


def test_many_may_be_delayed_at_once() -> None:
    """
    They come in the order in which they were given.
    """
    with TestBus() as bus:
        seen: list[object] = []
        bus.subscribe(Reminded, seen.append, name="x")
        receipts = bus.publish_many([Reminded(1), Reminded(2)], delay=30.0)
        assert [True, True] == [each.is_scheduled for each in receipts]
        bus.clock.advance(30.0)
        assert [Reminded(1), Reminded(2)] == seen


@both
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"delay": "soon"}, TypeError),
        ({"delay": True}, TypeError),
        ({"delay": math.inf}, ValueError),
        ({"delay": math.nan}, ValueError),
        ({"at": 5.0}, TypeError),
        ({"at": datetime(2030, 1, 1)}, ValueError),  # noqa: DTZ001
        ({"delay": 1.0, "at": datetime(2030, 1, 1, tzinfo=UTC)}, TypeError),
    ],
)
def test_what_is_no_time_is_refused(colour: Colour, options: Any, error: type) -> None:
    """
    Before anything is called or kept.
    """
    with TestBus() as bus:
        seen: list[object] = []
        bus.subscribe(Reminded, seen.append, name="x")
        with pytest.raises(error):
            colour.publish(bus, Reminded(), **options)
        assert ([], 0) == (seen, bus.stats().scheduled)


def test_a_failure_of_a_delayed_publish_reaches_the_test() -> None:
    """
    By way of the clock, as that of a queued handler does.
    """
    with TestBus() as bus:

        @bus.on(Reminded)
        def fail(reminded: Reminded) -> None:
            raise ValueError

        bus.publish(Reminded(), delay=1.0)
        with pytest.raises(HandlerErrors):
            bus.clock.advance(1.0)
        bus.assert_dead_lettered(fail)


@pytest.mark.parametrize("errors", ["collect", "raise"])
def test_on_a_real_bus_a_failure_is_logged(errors: Any, caplog: pytest.LogCaptureFixture) -> None:
    """
    Nobody is there to have it raised, and the dead letter is kept.
    """
    with EventBus(errors=errors) as bus:
        is_over = threading.Event()
        bus.subscribe(Reminded, lambda _: 1 / 0, name="fails", priority=1)
        bus.subscribe(Reminded, lambda _: is_over.set(), name="after")
        with caplog.at_level(logging.ERROR, logger="eventbus"):
            bus.publish(Reminded(), delay=0.01)
            assert is_over.wait(PATIENCE)
            assert bus.drain(PATIENCE).ok
        assert 1 == len(caplog.records)
        assert 1 == len(bus.dead_letters)


def test_on_a_real_bus_its_handlers_run_on_a_worker_thread() -> None:
    """
    Not in the thread that keeps the time: one that is slow delays no other.
    """
    with EventBus() as bus:
        release, is_over = threading.Event(), threading.Event()
        bus.subscribe(
            Reminded, lambda e: release.wait(PATIENCE) if e.number == 1 else is_over.set()
        )
        bus.publish(Reminded(1), delay=0.001)
        bus.publish(Reminded(2), delay=0.002)
        assert is_over.wait(PATIENCE)
        release.set()
        assert bus.drain(PATIENCE).ok


def test_on_a_bus_that_a_loop_has_entered_it_is_published_there() -> None:
    """
    Async handlers are awaited in that loop, sync ones called in it.
    """

    async def main() -> None:
        async with EventBus() as bus:
            loop, seen = asyncio.get_running_loop(), []
            is_over = asyncio.Event()

            @bus.on(Reminded, priority=1)
            def look(reminded: Reminded) -> None:
                seen.append(asyncio.get_running_loop() is loop)

            @bus.on(Reminded)
            async def alook(reminded: Reminded) -> None:
                seen.append(asyncio.get_running_loop() is loop)
                is_over.set()

            await bus.apublish(Reminded(), delay=0.01)
            async with asyncio.timeout(PATIENCE):
                await is_over.wait()
            assert [True, True] == seen

    asyncio.run(main())


@pytest.mark.parametrize("makes_many", [False, True], ids=["publish", "publish_many"])
def test_a_call_in_a_loop_may_put_off_what_is_awaited_later(makes_many: bool) -> None:
    """
    Nothing is waited for by a publish that is due later; one of now is refused as ever.
    """
    taken: list[object] = []

    async def main() -> None:
        async with EventBus() as bus:
            done = asyncio.Event()

            async def take(noted: Reminded) -> None:
                taken.append(asyncio.get_running_loop())
                done.set()

            def publish(**options: Any) -> Any:
                if makes_many:
                    return bus.publish_many([Reminded(1)], **options)
                return bus.publish(Reminded(1), **options)

            bus.subscribe(Reminded, take)
            for now in ({}, {"delay": 0}, {"at": datetime(2020, 1, 1, tzinfo=UTC)}):
                with pytest.raises(RunningLoopError):
                    publish(**now)
            publish(delay=0.01)
            await asyncio.wait_for(done.wait(), PATIENCE)
            assert [asyncio.get_running_loop()] == taken

    asyncio.run(main())


def test_what_is_not_due_when_the_bus_is_closed_is_kept_as_dead_letters() -> None:
    """
    One for each subscription that would have got it, and the report names them.
    """
    bus = EventBus()
    bus.subscribe(Reminded, lambda _: None, name="one")
    bus.subscribe(Reminded, lambda _: None, name="two", delivery=Queued())
    receipt = bus.publish(Reminded(), delay=3_600.0)
    report = bus.close()
    assert {"delayed publishes": 1} == report.left
    assert [("one", "undelivered"), ("two", "undelivered")] == sorted(
        (each.subscription, each.reason) for each in bus.dead_letters
    )
    assert not receipt.is_scheduled
    with pytest.raises(BusClosedError):
        bus.publish(Reminded(), delay=1.0)


def test_draining_does_not_wait_for_what_is_due_later() -> None:
    """
    A reminder for tomorrow does not hold up what is drained today.
    """
    with TestBus(threads=True) as bus:
        bus.publish(Reminded(), delay=86_400.0)
        assert bus.drain(PATIENCE).ok
        assert 1 == bus.stats().scheduled


class Hasty(VirtualClock):
    """
    A clock whose alarms are ringing already when somebody cancels them.
    """

    def call_at(self, moment: float, ring: Callable[[], None]) -> Callable[[], None]:
        super().call_at(moment, ring)
        return lambda: None


def test_one_that_is_cancelled_while_its_alarm_rings_never_comes() -> None:
    """
    Whoever cancels in time is not overruled by an alarm that cannot be stopped any more.
    """
    with TestBus(clock=Hasty()) as bus:
        seen: list[object] = []
        bus.subscribe(Reminded, seen.append, name="x")
        assert bus.publish(Reminded(), delay=30.0).cancel()
        bus.clock.advance(60.0)
        assert [] == seen


def test_it_is_too_late_to_cancel_what_is_due() -> None:
    """
    It waits for a worker by then, and is published.
    """
    with TestBus() as bus:
        seen: list[object] = []
        bus.subscribe(Reminded, seen.append, name="x")
        receipt = bus.publish(Reminded(), delay=30.0)
        bus.clock.sleep(30.0)  # which settles nothing
        assert [] == seen
        assert not receipt.cancel()
        bus.settle()
        assert [Reminded()] == seen


def test_what_is_due_and_not_published_when_the_bus_is_closed_is_kept_as_a_dead_letter() -> None:
    """
    What handlers are at work on is reported, and not delivered to anybody twice.
    """
    clock, release = VirtualClock(), threading.Event()
    bus = EventBus(clock=clock)
    all_at_work = threading.Barrier(9)  # the eight workers there are, and this thread

    def work(reminded: Reminded) -> None:
        all_at_work.wait(PATIENCE)
        release.wait(PATIENCE)

    bus.subscribe(Reminded, work, name="work")
    bus.publish_many([Reminded(number) for number in range(9)], delay=1.0)
    clock.advance(1.0)
    all_at_work.wait(PATIENCE)
    try:
        report = bus.close(0.0)
    finally:
        release.set()
    assert not report.ok
    assert [("work", Reminded(8), "undelivered")] == [
        (each.subscription, each.event, each.reason) for each in bus.dead_letters
    ]


def test_what_becomes_due_on_a_bus_that_has_ended_is_kept_as_a_dead_letter() -> None:
    """
    A publish that was under way when the bus was closed is not lost without a word.
    """
    ends = list[Callable[[], object]]()

    def end_meanwhile() -> dict[str, str]:
        for end in ends:
            end()
        return {}

    clock = VirtualClock()
    bus = EventBus(clock=clock, headers=end_meanwhile)
    bus.subscribe(Reminded, lambda _: None, name="x")
    bus.publish(Reminded(1), delay=30.0).cancel()
    ends.append(bus.close)
    bus.publish(Reminded(2), delay=30.0)
    clock.advance(30.0)
    assert [(Reminded(2), "undelivered")] == [
        (each.event, each.reason) for each in bus.dead_letters
    ]


def test_in_a_loop_a_failure_is_logged_as_well(caplog: pytest.LogCaptureFixture) -> None:
    """
    A delayed publish that fails in a task of the bus ends there, and the bus goes on.
    """

    async def main() -> None:
        is_over = asyncio.Event()
        async with EventBus(errors="raise") as bus:
            bus.subscribe(Reminded, lambda _: 1 / 0, name="fails", priority=1)

            @bus.on(Reminded)
            async def after(reminded: Reminded) -> None:
                is_over.set()

            await bus.apublish(Reminded(), delay=0.01)
            async with asyncio.timeout(PATIENCE):
                await is_over.wait()
            assert (await bus.adrain(PATIENCE)).ok
            assert 1 == len(bus.dead_letters)

    with caplog.at_level(logging.ERROR, logger="eventbus"):
        asyncio.run(main())
    assert 1 == len(caplog.records)


def test_what_is_put_off_while_the_bus_ends_is_kept_as_a_dead_letter() -> None:
    """
    A publish that met the end of the bus half-way is not lost without a word.
    """
    bus = EventBus()
    bus.subscribe(Reminded, lambda _: None, name="one")
    postponed = bus._those_postponed()
    assert 0 == postponed.give_up()
    receipt = bus.publish(Reminded(), delay=3_600.0)
    assert not receipt.is_scheduled
    assert ["undelivered"] == [each.reason for each in bus.dead_letters]
    bus.close()


def test_what_becomes_due_when_no_worker_takes_it_is_kept_as_a_dead_letter() -> None:
    """
    Its alarm may ring just after the workers of the bus have ended.
    """
    clock = VirtualClock()
    with EventBus(clock=clock) as bus:
        bus.subscribe(Reminded, lambda _: None, name="one")
        bus.publish(Reminded(), delay=30.0)
        for queue in bus._those_postponed().queues:
            queue.give_up()
        clock.advance(30.0)
        assert ["undelivered"] == [each.reason for each in bus.dead_letters]


def test_what_is_due_later_and_lost_with_the_process_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    A process that closes no bus says how many publishes will never come.
    """
    bus = EventBus(clock=VirtualClock())
    bus.subscribe(Reminded, lambda _: None, name="one")
    bus.publish_many([Reminded(1), Reminded(2)], delay=30.0)
    text = "the process ends with 2 events of delayed publishes"
    _process._at_exit()
    assert 1 == sum(text in each for each in caplog.messages)
    caplog.clear()
    bus.close(0.0)
    _process._at_exit()
    assert [] == [each for each in caplog.messages if text in each]


def test_a_forked_process_leaves_to_its_parent_what_is_due_later() -> None:
    """
    It counts, cancels and publishes nothing of it.
    """
    clock, seen = VirtualClock(), list[Reminded]()
    with EventBus(clock=clock) as bus:
        bus.subscribe(Reminded, seen.append, name="one")
        receipt = bus.publish(Reminded(1), delay=30.0)
        with bus._those_postponed()._lock:
            _process._after_fork()
        assert (0, False) == (bus.stats().scheduled, receipt.cancel())
        clock.advance(30.0)
        assert bus.drain(PATIENCE).ok
    assert ([], 0) == (seen, len(bus.dead_letters))


@pytest.mark.parametrize("key", [None, "number"], ids=["bare", "ordered"])
@both
def test_what_is_due_does_not_wait_for_room(colour: Colour, key: Any) -> None:
    """
    A full queue that would make its publishers wait takes what was accepted long ago.
    """
    seen: list[int] = []

    def read(reminded: Reminded) -> int:
        return reminded.number

    with TestBus() as bus:
        mode = Queued(capacity=1, ordered_by=None if key is None else read)
        queued = bus.subscribe(Reminded, lambda it: seen.append(it.number), name="q", delivery=mode)
        queued.pause()
        for number in range(12):
            colour.publish(bus, Reminded(number), delay=1.0)
        bus.clock.advance(2.0)
        assert (12, 0) == (bus.stats().subscriptions["q"].depth, len(bus.dead_letters))
        queued.resume()
        bus.settle()
        assert list(range(12)) == sorted(seen)


def test_what_is_due_wakes_a_queue_that_has_run_empty_meanwhile() -> None:
    """
    Whoever finds it full sees that, and takes the room that is there by then as well.
    """
    seen = threading.Event()
    with EventBus() as bus:
        bus.subscribe(Reminded, lambda _: seen.set(), name="q", delivery=Queued())
        (queue,) = bus._queues.values()
        receipt: Any = bus.publish(Reminded(), delay=60.0)
        job = Job(receipt.event, receipt, contextvars.copy_context(), 0.0, None, None)
        queue._squeeze_in(job)
        assert seen.wait(PATIENCE)
        assert receipt.cancel()


def test_what_is_due_is_refused_by_a_queue_that_has_ended() -> None:
    """
    A subscription that is cancelled in this moment takes nothing beyond its capacity.
    """
    with EventBus() as bus:
        subscription = bus.subscribe(Reminded, lambda _: None, name="q", delivery=Queued())
        (queue,) = bus._queues.values()
        subscription.pause()
        bus.publish(Reminded())
        subscription.cancel()
        receipt: Any = bus.publish(Reminded(), delay=60.0)
        job = Job(receipt.event, receipt, contextvars.copy_context(), 0.0, None, None)
        refused: list[object] = []
        queue.keeper.refuse = lambda _, error: refused.append(type(error))
        queue._squeeze_in(job)
        assert [BusClosedError] == refused
        assert receipt.cancel()
        subscription.resume()
