"""
The beginning and the end of a bus: started, drained, closed, from anywhere, in both colours.
"""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import (
    BusClosedError,
    EventBus,
    Queued,
    Receipt,
    RunningLoopError,
    WouldDeadlockError,
    event,
    fixed,
)
from eventbus import _running as running
from eventbus._ending import DrainReport, first_busy
from eventbus.instrumentation import DeadLettered
from eventbus.sqlite import SQLiteStore
from queue_by_hand import PATIENCE, Hands, met, until


@event
class Asked:
    number: int = 0


@event
class Answered:
    number: int = 0


@attrs.frozen
class Verbs:
    """
    The verbs of one colour, as a plain script calls them.
    """

    is_async: bool

    def drain(self, bus: EventBus, timeout: float | None = PATIENCE) -> DrainReport:
        return asyncio.run(bus.adrain(timeout)) if self.is_async else bus.drain(timeout)

    def close(self, bus: EventBus, timeout: float | None = PATIENCE) -> DrainReport:
        return asyncio.run(bus.aclose(timeout)) if self.is_async else bus.close(timeout)


in_both_colours = pytest.mark.parametrize(
    "verbs", [pytest.param(Verbs(False), id="sync"), pytest.param(Verbs(True), id="async")]
)


def run(live: Callable[[], Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await live()

    return asyncio.run(bounded())


@attrs.define
class Desk:
    """
    A bus with one queued handler, which waits for its gate.
    """

    bus: EventBus = attrs.field(factory=EventBus)
    gate: threading.Event = attrs.field(factory=threading.Event)
    began: threading.Event = attrs.field(factory=threading.Event)
    handled: list[int] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.bus.subscribe(Asked, self.handle, name="desk", delivery=Queued())

    def handle(self, asked: Asked) -> None:
        self.began.set()
        met(self.gate)
        self.handled.append(asked.number)

    def ask(self, *numbers: int) -> None:
        for number in numbers:
            self.bus.publish(Asked(number))


# -- the report


def test_the_report_speaks():
    """
    A report says in words what was left, by subscription, and what was running.
    """
    assert "all handled" == str(DrainReport(left={}, running={}))
    report = DrainReport(left={"mail": 3, "log": 1}, running={"mail": 1})
    assert "3 of mail (1 running), 1 of log" == str(report)
    assert not report.ok


def test_the_report_says_why_what_is_left_is_left():
    """
    If it is the whole subscription that does not go on, and not for its time alone.
    """
    report = DrainReport(
        left={"mail": 3, "log": 1, "ship": 2},
        running={"log": 1},
        states={"mail": "idle", "log": "stopped", "ship": "stopped"},
    )
    assert "3 of mail (not started), 1 of log (1 running), 2 of ship (stopped)" == str(report)
    report = DrainReport(left={}, running={}, in_log={"ship": 5})
    assert (True, "5 of ship (in the log, for later)") == (report.ok, str(report))


# -- draining


@in_both_colours
def test_drained(verbs: Verbs):
    """
    A drain returns when all that was accepted is handled, and the bus goes on.
    """
    desk = Desk()
    desk.gate.set()
    for numbers in ((1, 2), (3,)):
        desk.ask(*numbers)
        assert verbs.drain(desk.bus).ok
    assert [1, 2, 3] == desk.handled
    assert verbs.close(desk.bus).ok


@in_both_colours
def test_out_of_time(verbs: Verbs):
    """
    A drain that takes too long returns what is left, and gives up nothing.
    """
    desk = Desk()
    desk.ask(1, 2)
    met(desk.began)
    report = verbs.drain(desk.bus, 0.01)
    assert ({"desk": 2}, {"desk": 1}) == (report.left, report.running)
    desk.gate.set()
    assert verbs.close(desk.bus).ok
    assert [1, 2] == desk.handled


@in_both_colours
def test_without_bounds(verbs: Verbs):
    """
    A drain may take as long as it takes, however that is said.
    """
    desk = Desk()
    desk.gate.set()
    for timeout in (None, math.inf, 1e12):
        desk.ask(1)
        assert verbs.drain(desk.bus, timeout).ok
    desk.bus.close()


@in_both_colours
def test_what_handlers_publish_is_waited_for(verbs: Verbs):
    """
    What one queue's handlers publish into another is drained, back and forth.
    """
    bus, handled = EventBus(), list[int]()

    @bus.on(Asked, delivery=Queued(), name="ask")
    def ask(asked: Asked) -> None:
        bus.publish(Answered(asked.number + 1))

    @bus.on(Answered, delivery=Queued(), name="answer")
    async def answer(answered: Answered) -> None:
        handled.append(answered.number)
        if answered.number < 20:
            await bus.apublish(Asked(answered.number))

    bus.publish(Asked(0))
    assert verbs.drain(bus).ok
    assert list(range(1, 21)) == handled
    bus.close()


def test_idle_at_the_same_time():
    """
    A queue that is filled after it was looked at, by one that is looked at later, is seen.
    """
    one, other = Hands(), Hands()
    other.offer(1)
    other.turn()
    looks: list[str] = []

    def queues() -> Any:
        looks.append("looked")
        return [one.queue, other.queue]

    is_busy = type(other.queue).is_busy.fget
    assert is_busy is not None

    class Handing(type(other.queue)):  # type: ignore[misc]
        @property
        def is_busy(self) -> bool:
            if self is other.queue and other.worker.job is not None:
                one.offer(2)  # its handler publishes, and is done
                other.turn()
            return bool(is_busy(self))

    other.queue.__class__ = Handing
    assert one.queue is first_busy(queues)
    one.turn()
    one.turn()
    assert None is first_busy(queues)


def test_a_worker_that_begins_while_all_are_looked_at():
    """
    Where a worker has begun to work meanwhile, all are looked at once more.
    """
    one, looks = Hands(), list[int]()

    def queues() -> Any:
        looks.append(one.queue.spells)
        if len(looks) == 2:
            one.queue.spells += 1
        return [one.queue]

    assert None is first_busy(queues)
    assert 4 == len(looks)


@in_both_colours
def test_the_paused_are_not_waited_for(verbs: Verbs):
    """
    A drain does not wait for a paused subscription, nor for one that is paused meanwhile.
    """
    desk = Desk()
    subscription = desk.bus.subscriptions[0]
    subscription.pause()
    desk.ask(1)
    assert {"desk": 1} == verbs.drain(desk.bus, None).left
    subscription.resume()
    met(desk.began)
    queue = next(iter(desk.bus._queues.values()))
    reports: list[DrainReport] = []
    thread = threading.Thread(target=lambda: reports.append(verbs.drain(desk.bus, None)))
    thread.start()
    for _ in range(10_000):
        if queue._watching:
            break
        threading.Event().wait(0.001)
    subscription.pause()
    thread.join(PATIENCE)
    assert [{"desk": 1}] == [report.left for report in reports]
    desk.gate.set()
    desk.bus.close()


def test_a_retry_is_waited_for():
    """
    A drain waits for events between two attempts.
    """
    tried: list[int] = []

    def fail_first(asked: Asked) -> None:
        tried.append(asked.number)
        if len(tried) == 1:
            raise ValueError("not yet")

    with EventBus() as bus:
        retry = fixed(attempts=2, delay=0.005)
        bus.subscribe(Asked, fail_first, delivery=Queued(), retry=retry)
        bus.publish(Asked(1))
        assert bus.drain(PATIENCE).ok
    assert [1, 1] == tried


# -- closing


@in_both_colours
def test_closed(verbs: Verbs):
    """
    Closing handles what was accepted, takes nothing more, and leaves no thread.
    """
    before = threading.active_count()
    desk = Desk()
    desk.gate.set()
    desk.ask(1, 2)
    assert verbs.close(desk.bus).ok
    assert [1, 2] == desk.handled
    with pytest.raises(BusClosedError):
        desk.ask(3)
    assert desk.bus.is_closed
    assert before == threading.active_count()


@in_both_colours
def test_closed_twice(verbs: Verbs):
    """
    Closing again returns the same report.
    """
    desk = Desk()
    desk.ask(1)
    met(desk.began)
    first = verbs.close(desk.bus, 0.0)
    desk.gate.set()
    assert first is verbs.close(desk.bus)
    assert {"desk": 1} == first.left


@in_both_colours
def test_closed_by_many(verbs: Verbs):
    """
    Of those who close at the same time each gets the one report, when all is over.
    """
    desk, reports = Desk(), list[DrainReport]()
    desk.ask(1, 2)
    met(desk.began)
    threads = [
        threading.Thread(target=lambda: reports.append(verbs.close(desk.bus))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    desk.gate.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert 4 == len(reports)
    assert 1 == len({id(report) for report in reports})
    assert [1, 2] == desk.handled


def test_while_it_is_closing():
    """
    While a bus is closing it takes nothing from outside, and what its handlers publish.
    """
    bus, answers, refused = EventBus(), list[int](), list[BaseException]()
    began, gate = threading.Event(), threading.Event()

    @bus.on(Asked, delivery=Queued(), name="ask")
    def ask(asked: Asked) -> None:
        began.set()
        met(gate)
        bus.publish(Answered(asked.number))

    bus.subscribe(Answered, lambda each: answers.append(each.number), delivery=Queued(), name="a")
    bus.publish(Asked(1))
    met(began)
    thread = threading.Thread(target=bus.close)
    thread.start()
    while not bus._publisher.is_closing:
        gate.wait(0.001)
    try:
        bus.publish(Asked(2))
    except BusClosedError as error:
        refused.append(error)
    gate.set()
    thread.join(PATIENCE)
    assert ["is closing and takes no Asked"] == [
        str(each)[8 : 8 + len("is closing and takes no Asked")] for each in refused
    ]
    assert [1] == answers


@in_both_colours
def test_what_is_left_is_reported(verbs: Verbs, caplog: pytest.LogCaptureFixture):
    """
    What was not handled in time is in the report, the log, the stats and the dead letters.
    """
    desk = Desk()
    desk.ask(1, 2, 3)
    met(desk.began)
    report = verbs.close(desk.bus, 0.01)
    assert ({"desk": 3}, {"desk": 1}) == (report.left, report.running)
    assert ["eventbus is closed with events not handled: 3 of desk (1 running)"] == caplog.messages
    assert [(1, 1), (2, 0), (3, 0)] == [
        (letter.event.number, letter.attempts) for letter in desk.bus.dead_letters
    ]
    assert {"undelivered"} == {letter.reason for letter in desk.bus.dead_letters}
    stats = desk.bus.stats().subscriptions["desk"]
    assert (3, 3, 0) == (stats.published, stats.undelivered, stats.delivered)
    desk.gate.set()


def test_an_async_handler_gets_its_time():
    """
    No cancellation reaches a handler before the time is over; then all are cancelled.
    """
    ended: list[str] = []

    async def handle(asked: Asked) -> None:
        try:
            await asyncio.sleep(0.01 if asked.number == 1 else 3_600)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("done")

    async def live() -> None:
        bus = EventBus()
        bus.start()
        bus.subscribe(Asked, handle, name="desk", delivery=Queued(workers=2))
        await bus.apublish(Asked(1))
        await bus.apublish(Asked(2))
        report = await bus.aclose(0.1)
        assert ({"desk": 1}, {"desk": 1}) == (report.left, report.running)
        assert {asyncio.current_task()} == asyncio.all_tasks()

    run(live)
    assert ["done", "cancelled"] == ended


def test_on_the_loop_thread():
    """
    Async handlers on the bus's own loop thread are cancelled by its end, too.
    """
    began, ended = threading.Event(), list[str]()

    async def handle(asked: Asked) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    bus = EventBus()
    bus.subscribe(Asked, handle, name="desk", delivery=Queued())
    bus.publish(Asked(1))
    met(began)
    assert {"desk": 1} == bus.close(0.0).left
    assert ["ended"] == ended


def test_used_in_with():
    """
    The end of a ``with`` block, of either colour, drains and closes.
    """
    desk = Desk()
    desk.gate.set()
    with desk.bus as bus:
        assert bus is desk.bus
        desk.ask(1)
    assert desk.bus.is_closed

    async def live() -> list[int]:
        other = Desk()
        other.gate.set()
        async with other.bus:
            other.ask(2)
        return other.handled

    assert [[1], [2]] == [desk.handled, run(live)]


def test_an_interrupted_close_gives_up_what_is_left(monkeypatch: pytest.MonkeyPatch):
    """
    Who is interrupted while he closes leaves a closed bus, and nothing goes without a word.
    """

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    desk = Desk()
    desk.ask(1, 2)
    met(desk.began)
    with monkeypatch.context() as patch:
        patch.setattr(running.threading, "Event", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            desk.bus.close()
    assert desk.bus.is_closed
    assert {"desk": 2} == desk.bus.close().left
    desk.gate.set()


def test_a_cancelled_close_gives_up_what_is_left():
    """
    A task that is cancelled while it closes leaves a closed bus.
    """

    async def live() -> None:
        desk = Desk()
        desk.ask(1)
        await asyncio.to_thread(met, desk.began)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await desk.bus.aclose(None)
        assert {"desk": 1} == (await desk.bus.aclose()).left
        desk.gate.set()

    run(live)


def test_a_worker_that_does_not_end(monkeypatch: pytest.MonkeyPatch):
    """
    An async handler that goes on when it is cancelled is waited for a moment, not for ever.
    """
    monkeypatch.setattr(running, "_PATIENCE", 0.01)
    gate = asyncio.Event()

    async def handle(asked: Asked) -> None:
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()

    async def live() -> None:
        bus = EventBus()
        bus.start()
        bus.subscribe(Asked, handle, name="desk", delivery=Queued())
        await bus.apublish(Asked(1))
        await asyncio.sleep(0)
        assert {"desk": 1} == (await bus.aclose(0.0)).left
        gate.set()
        await asyncio.sleep(0)

    run(live)


# -- from where it cannot be


@pytest.mark.parametrize("verb", ["drain", "close"])
def test_in_its_own_handler(verb: str):
    """
    A handler that would wait for itself is told so.
    """
    errors: list[Exception] = []

    with EventBus() as bus:

        @bus.on(Asked, delivery=Queued(), name="desk")
        def handle(asked: Asked) -> None:
            try:
                getattr(bus, verb)()
            except WouldDeadlockError as error:
                errors.append(error)

        @bus.on(Asked, delivery=Queued(), name="async desk")
        async def ahandle(asked: Asked) -> None:
            try:
                await getattr(bus, f"a{verb}")()
            except WouldDeadlockError as error:
                errors.append(error)

        bus.publish(Asked())
        assert bus.drain(PATIENCE).ok
    assert sorted(str(error) for error in errors) == [
        f"a{verb}() in a handler of async desk would wait for that handler. Call it from outside.",
        f"{verb}() in a handler of desk would wait for that handler. Call it from outside.",
    ]


@pytest.mark.parametrize("raised", [None, KeyError, asyncio.CancelledError])
def test_a_plain_block_in_the_loop_of_its_handlers(
    raised: type[BaseException] | None, caplog: pytest.LogCaptureFixture
):
    """
    It cannot be closed by a call, and what the block itself raised comes first.
    """

    async def handle(asked: Asked) -> None: ...

    async def main() -> BaseException:
        bus = EventBus(name="desk")
        bus.subscribe(Asked, handle, delivery=Queued(), name="clerk")
        try:
            with bus:
                await bus.apublish(Asked())
                if raised is not None:
                    raise raised("mine")
        except BaseException as error:
            return error
        finally:
            assert (await bus.aclose(PATIENCE)).ok
        raise AssertionError("nothing was raised")

    error = asyncio.run(main())
    cure = "Use await bus.aclose(). Where a with block ends, make it an async with block."
    if raised is None:
        assert isinstance(error, RunningLoopError)
        assert ("clerk", True) == (error.subscription, str(error).endswith(cure))
        return
    assert (raised, ("mine",)) == (type(error), error.args)
    [note] = error.__notes__
    assert note.startswith("and desk could not be closed: close() in the thread of the event loop")
    assert note.endswith(cure)
    # Nobody sees the notes of a cancellation.
    is_hidden = not isinstance(error, Exception)
    assert is_hidden == ("desk could not be closed" in caplog.text)


@pytest.mark.parametrize("verb", ["drain", "close"])
@pytest.mark.parametrize("begins_first", [False, True])
def test_in_the_thread_of_its_own_loop(verb: str, begins_first: bool):
    """
    Blocking the loop that handlers run on is refused, also before their task has begun.
    """

    async def handle(asked: Asked) -> None:
        await asyncio.sleep(0.005)

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Asked, handle, name="desk", delivery=Queued())
            bus.publish(Asked())
            if begins_first:
                await asyncio.sleep(0)
            with pytest.raises(RunningLoopError) as refused:
                getattr(bus, verb)()
            assert str(refused.value).endswith(f"Use await bus.a{verb}().")
            await bus.adrain()
            assert bus.drain(PATIENCE).ok

    run(live)


def test_in_the_thread_of_another_loop():
    """
    A loop on which no queued handler runs may be blocked: it is the caller's own choice.
    """
    desk = Desk()
    desk.ask(1)
    met(desk.began)

    async def live() -> bool:
        threading.Timer(0.01, desk.gate.set).start()
        return desk.bus.drain(PATIENCE).ok

    assert run(live)
    desk.bus.close()


def test_in_the_thread_of_a_loop_that_is_closing_it():
    """
    Blocking the loop in which the bus is being closed is refused.
    """

    async def live() -> None:
        desk = Desk()
        desk.ask(1)
        await asyncio.to_thread(met, desk.began)
        closing = asyncio.create_task(desk.bus.aclose())
        await until(lambda: desk.bus._ending)
        with pytest.raises(RunningLoopError):
            desk.bus.close()
        desk.gate.set()
        assert (await closing).ok
        assert desk.bus.close().ok

    run(live)


def test_a_handler_may_end_its_own_subscription():
    """
    A handler that cancels its own subscription still gets what was accepted before.
    """
    handled: list[int] = []
    with EventBus() as bus:

        def handle(asked: Asked) -> None:
            handled.append(asked.number)
            subscription.cancel()

        subscription = bus.subscribe(Asked, handle, delivery=Queued())
        for number in range(3):
            bus.publish(Asked(number))
        assert bus.drain(PATIENCE).ok
    assert list(range(len(handled))) == handled
    assert handled


# -- publishes under way elsewhere


def publish_in_a_thread(bus: EventBus, receipts: list[Receipt]) -> threading.Thread:
    thread = threading.Thread(target=lambda: receipts.append(bus.publish(Asked(1))), daemon=True)
    thread.start()
    return thread


@in_both_colours
def test_an_async_handler_under_way_is_given_the_time(verbs: Verbs):
    """
    One that another thread's publish waits for comes to its end, before the bus does.
    """
    bus, gate, began = EventBus(), asyncio.Event(), threading.Event()
    loops, receipts, handled = list[Any](), list[Receipt](), list[int]()

    @bus.on(Asked)
    async def work(asked: Asked) -> None:
        loops.append(asyncio.get_running_loop())
        began.set()
        await gate.wait()
        handled.append(asked.number)

    thread = publish_in_a_thread(bus, receipts)
    met(began)
    closing = threading.Thread(target=verbs.close, args=(bus,), daemon=True)
    closing.start()
    asyncio.run(until(lambda: bus._furniture.loop_thread._waiting))
    loops[0].call_soon_threadsafe(gate.set)
    thread.join(PATIENCE)
    closing.join(PATIENCE)
    assert ([1], True, True) == (handled, receipts[0].ok, bus.is_closed)


@in_both_colours
def test_an_async_handler_that_takes_too_long_is_cancelled(verbs: Verbs):
    """
    When the time is over, and its publisher is told in the receipt.
    """
    bus, began, receipts, seen = EventBus(), threading.Event(), list[Receipt](), list[str]()

    @bus.on(Asked, name="work")
    async def work(asked: Asked) -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    thread = publish_in_a_thread(bus, receipts)
    met(began)
    verbs.close(bus, 0.01)
    thread.join(PATIENCE)
    [failure] = receipts[0].failures
    assert (["cancelled"], "work") == (seen, failure.subscription)
    assert isinstance(failure.exception, BusClosedError)


def test_a_handler_that_closes_its_bus_does_not_wait_for_itself():
    """
    It comes to its end, on the bus's own loop, and that ends after it.
    """
    bus, reports = EventBus(), list[DrainReport]()

    @bus.on(Asked)
    async def leave(asked: Asked) -> None:
        reports.append(await bus.aclose(None))

    receipt = bus.publish(Asked())
    [report] = reports
    assert (True, True, True) == (receipt.ok, report.ok, bus.is_closed)


@in_both_colours
def test_what_a_handler_publishes_after_the_end_is_delivered(verbs: Verbs):
    """
    Its publish was begun before; everybody else's is refused.
    """
    bus, answers, receipts = EventBus(), list[int](), list[Receipt]()
    began, gate = threading.Event(), threading.Event()

    @bus.on(Asked)
    def ask(asked: Asked) -> None:
        began.set()
        met(gate)
        bus.publish(Answered(asked.number))

    bus.subscribe(Answered, lambda answered: answers.append(answered.number), name="hear")
    thread = publish_in_a_thread(bus, receipts)
    met(began)
    assert verbs.close(bus).ok
    with pytest.raises(BusClosedError):
        bus.publish(Answered(2))
    gate.set()
    thread.join(PATIENCE)
    assert ([1], True) == (answers, receipts[0].ok)
    with pytest.raises(BusClosedError):
        copy_context().run(bus.publish, Answered(3))


@pytest.mark.parametrize("verb", ["drain", "adrain", "close", "aclose"])
@pytest.mark.parametrize("timeout", ["20", math.nan, [1]])
def test_what_is_no_time_gives_nothing_up(verb: str, timeout: Any):
    """
    It is refused before anything has happened to what is queued.
    """
    desk = Desk()
    desk.ask(1)
    call = getattr(desk.bus, verb)
    with pytest.raises(TypeError, match=rf"{verb}\(timeout=\) takes a number of seconds or None"):
        run(lambda: call(timeout)) if verb.startswith("a") else call(timeout)
    desk.gate.set()
    assert desk.bus.close(PATIENCE).ok
    assert [1] == desk.handled


def test_a_closed_bus_is_not_started_again() -> None:
    """
    Whoever enters it a second time learns of it there, and not at the first publish.
    """
    bus = EventBus(name="once")

    async def enter() -> None:
        async with bus:
            raise AssertionError

    with bus:
        pass
    with pytest.raises(BusClosedError, match="'once' is closed and cannot be started again"):
        bus.start()
    with pytest.raises(BusClosedError, match="cannot be started again"):
        bus.__enter__()
    with pytest.raises(BusClosedError, match="cannot be started again"):
        asyncio.run(enter())
    assert bus.close().ok


# -- many that are given up, on a bus with a store


def paused(store: SQLiteStore, *numbers: int, **options: Any) -> EventBus:
    """
    A bus on *store* whose one queue handles nothing of what it has taken.
    """
    bus = EventBus(store=store, **options)
    bus.subscribe(Asked, lambda asked: None, name="work", delivery=Queued()).pause()
    for number in numbers:
        bus.publish(Asked(number))
    return bus


@in_both_colours
def test_what_is_given_up_is_kept_by_one_transaction(
    verbs: Verbs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    However much it is; and observers are told of each letter that is kept.
    """
    store, told, steps = SQLiteStore(tmp_path / "shop.db"), list[Any](), list[int]()
    add_all = store.letters.add_all

    def counted(letters: list[Any]) -> None:
        steps.append(len(letters))
        add_all(letters)

    monkeypatch.setattr(store.letters, "add_all", counted)
    monkeypatch.setattr(store.letters, "add", counted)
    bus = paused(store, 1, 2, 3, observers=[told.append])
    verbs.close(bus, 0.0)
    assert [3] == steps
    letters = [each.letter_id for each in told if isinstance(each, DeadLettered)]
    with SQLiteStore(tmp_path / "shop.db") as again:
        assert letters == [each.id for each in again.letters.query()]
    assert 3 == len(letters)


@in_both_colours
def test_a_locked_file_is_waited_for_once_where_much_is_given_up(
    verbs: Verbs, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """
    One line says how much could not be kept, and nobody is told that it was.
    """
    told = list[Any]()
    bus = paused(
        SQLiteStore(tmp_path / "shop.db", busy_timeout=0.05), 1, 2, 3, observers=[told.append]
    )
    with closing(sqlite3.connect(tmp_path / "shop.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        report = verbs.close(bus, 0.0)
        other.execute("ROLLBACK")
    assert {"work": 3} == report.left
    lines = [each for each in caplog.messages if "could not be kept" in each]
    assert ["3 dead letters of work could not be kept"] == lines
    assert [] == [each for each in told if isinstance(each, DeadLettered)]


def test_what_another_bus_gives_up_meanwhile_is_kept_by_that_one(tmp_path: Path):
    """
    An observer that is told of what is given up may fill the queue of another bus.
    """
    other = EventBus(store=SQLiteStore(tmp_path / "other.db"))
    full = Queued(capacity=1, overflow="drop_oldest")
    other.subscribe(Asked, lambda asked: None, name="other", delivery=full).pause()
    other.publish(Asked(10))
    store = SQLiteStore(tmp_path / "shop.db")
    bus = paused(store, 1, 2, observers=[lambda told: other.publish(Asked(11))])
    bus.close(0.0)
    other.close(0.0)
    with SQLiteStore(tmp_path / "shop.db") as again:
        assert ["work", "work"] == [each.subscription for each in again.letters.query()]
    with SQLiteStore(tmp_path / "other.db") as again:
        assert {"other"} == {each.subscription for each in again.letters.query()}


def test_a_letter_that_cannot_be_written_hinders_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """
    Its event has no form in a store; it is logged by itself.
    """

    @event(logged=False)
    class Odd:
        what: object

    store = SQLiteStore(tmp_path / "shop.db")
    bus = paused(store, 1)
    bus.subscribe(Odd, print, name="odd", delivery=Queued()).pause()
    bus.publish(Odd(object()))
    bus.publish(Asked(2))
    bus.close(0.0)
    with SQLiteStore(tmp_path / "shop.db") as again:
        assert 2 == again.letters.count()
    assert 1 == sum("the dead letter of odd for event" in each for each in caplog.messages)
