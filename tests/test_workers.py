"""
Workers: threads for sync handlers, tasks for async ones; they die, are replaced, and end.
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import gc
import threading
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from eventbus import EventBus, Queued, event, fixed
from eventbus._job import Worker
from eventbus._workers import Home, _serve, in_context, start_task, start_thread
from queue_by_hand import PATIENCE, Hands, met, until


@event
class Read:
    number: int = 0


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus() as bus:
        yield bus


def queue_of(bus: EventBus) -> Any:
    (queue,) = bus._queues.values()
    return queue


def run(live: Callable[[], Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(PATIENCE):
            return await live()

    return asyncio.run(bounded())


# -- who runs where


def test_a_sync_handler_runs_on_a_thread_of_its_own(bus: EventBus):
    """
    A sync handler runs on a daemon thread that is called like its subscription.
    """
    threads: list[threading.Thread] = []

    @bus.on(Read, delivery=Queued(), name="reader")
    def handle(read: Read) -> None:
        threads.append(threading.current_thread())

    bus.publish(Read())
    bus.publish(Read())
    assert bus.drain(PATIENCE).ok
    assert [("reader", True)] == [(each.name, each.daemon) for each in set(threads)]


def test_an_async_handler_runs_on_the_loop_that_entered_the_bus():
    """
    An async handler runs on the loop in which the bus was entered, whoever publishes.
    """
    loops: list[Any] = []

    async def handle(read: Read) -> None:
        loops.append(asyncio.get_running_loop())

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, delivery=Queued())
            await bus.apublish(Read())
            await asyncio.to_thread(bus.publish, Read())
            bus.publish(Read())
            assert (await bus.adrain()).ok
        assert [asyncio.get_running_loop()] * 3 == loops

    run(live)


@pytest.mark.parametrize("is_eager", [False, True])
def test_a_publish_returns_before_its_handlers_begin(is_eager: bool):
    """
    A publish returns before a queued handler begins, also where tasks begin as they are made.
    """
    found: list[str] = []

    def make(loop: Any, coroutine: Any, **options: Any) -> Any:
        found.append("task made")
        if hasattr(asyncio, "eager_task_factory"):  # from 3.12 on
            return asyncio.eager_task_factory(loop, coroutine, **options)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def live() -> None:
        asyncio.get_running_loop().set_task_factory(make if is_eager else None)
        async with EventBus() as bus:

            @bus.on(Read, delivery=Queued())
            async def handle(read: Read) -> None:
                found.append("handled")

            await bus.apublish(Read())
            found.append("returned")

    run(live)
    expected = ["returned", "task made", "handled"] if is_eager else ["returned", "handled"]
    assert expected == found[: len(expected)]


def test_an_async_handler_without_a_loop_runs_on_the_buss_own(bus: EventBus):
    """
    Where no loop entered the bus, async handlers run on its own loop thread.
    """
    names: list[str] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        names.append(threading.current_thread().name)

    bus.publish(Read())
    assert bus.drain(PATIENCE).ok
    assert ["eventbus-loop"] == names


def test_when_the_loop_that_entered_is_closed(bus: EventBus):
    """
    When the loop that started the bus is closed, its own loop thread takes over.
    """
    names: list[str] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        names.append(threading.current_thread().name)

    async def enter() -> None:
        bus.start()
        bus.publish(Read())
        await bus.adrain()

    run(enter)
    bus.publish(Read())
    assert bus.drain(PATIENCE).ok
    assert [threading.current_thread().name, "eventbus-loop"] == names


def test_when_the_loop_is_closed_in_this_moment(bus: EventBus):
    """
    A loop that refuses to call is as good as closed.
    """

    class Closing:
        def is_closed(self) -> bool:
            return False

        def call_soon_threadsafe(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("Event loop is closed")

    handled: list[Read] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        handled.append(read)

    bus._home.loop = Closing()  # type: ignore[assignment]
    bus.publish(Read())
    assert bus.drain(PATIENCE).ok
    assert [Read()] == handled


def test_tasks_take_turns_with_the_loops_others():
    """
    A worker with much to do lets the loop's other tasks run now and then.
    """
    handled, seen = list[int](), list[int]()

    async def handle(read: Read) -> None:
        handled.append(read.number)

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, delivery=Queued())
            for number in range(200):
                bus.publish(Read(number))
            while len(handled) < 200:
                seen.append(len(handled))
                await asyncio.sleep(0)

    run(live)
    assert 3 < len(seen)
    assert list(range(200)) == handled


def test_as_many_at_once_as_there_are_workers():
    """
    Async handlers of one subscription wait at the same time, as many as it has workers.
    """
    waiting, most, gate = 0, 0, asyncio.Event()

    async def handle(read: Read) -> None:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        if waiting == 3:
            gate.set()
        await gate.wait()
        waiting -= 1

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, delivery=Queued(workers=3))
            for number in range(9):
                await bus.apublish(Read(number))
            await bus.adrain()

    run(live)
    assert 3 == most


# -- death


class Killed(BaseException):
    pass


def kill(thread: threading.Thread) -> None:
    """
    Have *thread* raise as soon as it runs Python code.
    """
    ident = ctypes.c_ulong(thread.ident or 0)
    assert 1 == ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Killed))


def test_a_thread_that_is_killed_between_two_jobs_is_replaced(
    bus: EventBus, caplog: pytest.LogCaptureFixture
):
    """
    A worker that is killed from outside while it waits is replaced, and nothing is lost.
    """
    # Raised by a step of the worker's own: the same, set from outside in a thread that is
    # parked, makes Python 3.11 spin wherever the suite is measured.
    threads: list[threading.Thread] = []

    @bus.on(Read, delivery=Queued(), name="reader")
    def handle(read: Read) -> None:
        threads.append(threading.current_thread())

    bus.publish(Read())
    assert bus.drain(PATIENCE).ok
    queue = queue_of(bus)

    def killed(worker: Any) -> Any:
        del queue.turn
        raise Killed

    queue.turn = killed
    for _ in range(2):
        bus.publish(Read())
        assert bus.drain(PATIENCE).ok
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert 3 == len(threads)
    assert 1 == len(set(threads[1:]))
    assert ["a worker of reader died of Killed() and is replaced"] == caplog.messages


def test_a_thread_that_is_killed_in_a_handler_fails_the_attempt(bus: EventBus):
    """
    What is raised into a handler from outside fails its attempt, and the worker goes on.
    """
    began, gate, threads = threading.Event(), threading.Event(), list[threading.Thread]()

    @bus.on(Read, delivery=Queued())
    def handle(read: Read) -> None:
        threads.append(threading.current_thread())
        if read.number == 1:
            began.set()
            with suppress(TimeoutError):
                while not gate.wait(0.001):
                    pass

    bus.publish(Read(1))
    bus.publish(Read(2))
    met(began)
    kill(threads[0])
    assert bus.drain(PATIENCE).ok
    assert [1] == [letter.event.number for letter in bus.dead_letters]
    assert 1 == len(set(threads))


def test_a_keeper_that_raises_costs_no_event(bus: EventBus, caplog: pytest.LogCaptureFixture):
    """
    Where the library itself breaks, the worker is replaced and the job is handed out again.
    """
    handled: list[Read] = []
    subscription = bus.subscribe(Read, handled.append, delivery=Queued(), name="reader")
    queue = queue_of(bus)
    subscription.pause()
    bus.publish(Read())
    keeper = queue.keeper
    perform = keeper.perform

    def breaking(job: Any, worker: Any) -> Any:
        keeper.perform = perform
        raise AssertionError("a bug")

    keeper.perform = breaking
    subscription.resume()
    assert bus.drain(PATIENCE).ok
    assert [Read()] == handled
    assert ["a worker of reader died of AssertionError('a bug') and is replaced"] == caplog.messages


def test_no_thread_to_be_had(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """
    Where no thread can be started, that is logged, and the next event tries again.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    handled: list[Read] = []
    bus.subscribe(Read, handled.append, delivery=Queued(), name="reader")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert bus.publish(Read(1)).ok
    assert ["no worker thread for reader could be started"] == caplog.messages
    bus.publish(Read(2))
    assert bus.drain(PATIENCE).ok
    assert [Read(1), Read(2)] == handled


@pytest.mark.parametrize("has_started", [False, True])
def test_interrupted_while_a_thread_starts(monkeypatch: pytest.MonkeyPatch, has_started: bool):
    """
    A publisher that is interrupted while a worker starts leaves no place taken by nobody.
    """
    start, hands = threading.Thread.start, Hands()

    def interrupted(thread: threading.Thread) -> None:
        if has_started:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start_thread(hands.queue)
    assert int(has_started) == len(hands.queue.staff)
    hands.queue.give_up()


def test_no_worker_too_many():
    """
    Of two who start a worker at the same time, for one place, one does.
    """
    hands = Hands()
    before = set(threading.enumerate())
    start_thread(hands.queue)
    start_thread(hands.queue)
    started = set(threading.enumerate()) - before
    assert 1 == len([each for each in started if each.name == hands.queue.name])
    hands.queue.give_up()


def test_a_thread_that_ended_is_found_out(bus: EventBus):
    """
    A worker whose thread is gone is found out by the next rouse, and replaced.
    """
    handled: list[Read] = []
    bus.subscribe(Read, handled.append, delivery=Queued())
    bus.publish(Read(1))
    assert bus.drain(PATIENCE).ok
    queue = queue_of(bus)
    (worker,) = queue.staff
    worker.is_lost = lambda: True
    bus.publish(Read(2))
    assert bus.drain(PATIENCE).ok
    assert [Read(1), Read(2)] == handled


def test_a_thread_that_dies_with_its_queue():
    """
    A worker that dies when its queue is gone just ends.
    """
    worker = Worker(park=threading.Lock())

    def gone() -> None:
        raise Killed

    calls = iter([gone, lambda: None])
    _serve(lambda: next(calls)(), worker)  # noqa: PLW0108 - each call takes the next
    assert worker.end.is_over


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_paused_while_a_job_is_taken(bus: EventBus, colour: str):
    """
    A worker that takes a job without the lock just when its queue is paused gives it back.
    """
    handled: list[int] = []

    def handle(read: Read) -> None:
        handled.append(read.number)

    async def ahandle(read: Read) -> None:
        handle(read)

    handler: Any = handle if colour == "def" else ahandle
    subscription = bus.subscribe(Read, handler, delivery=Queued())
    queue = queue_of(bus)
    subscription.pause()
    for number in range(3):
        bus.publish(Read(number))
    calls: list[str] = []

    class Pausing(deque[Any]):
        def popleft(self) -> Any:
            calls.append("popleft")
            if len(calls) == 2:
                subscription.pause()
            return super().popleft()

    queue.ready = queue._backlog.ready = Pausing(queue.ready)
    subscription.resume()
    assert [2] == list(bus.drain(PATIENCE).left.values())
    assert [0] == handled
    subscription.resume()
    assert bus.drain(PATIENCE).ok
    assert [0, 1, 2] == handled


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_an_attempt_that_fails_at_once_is_retried(bus: EventBus, colour: str):
    """
    A handler that fails before it has waited for anything is called again.
    """
    tried: list[int] = []

    def handle(read: Read) -> None:
        tried.append(read.number)
        if len(tried) == 1:
            raise ValueError("not yet")

    async def ahandle(read: Read) -> None:
        handle(read)

    handler: Any = handle if colour == "def" else ahandle
    bus.subscribe(Read, handler, delivery=Queued(), retry=fixed(attempts=2, delay=0.001))
    bus.publish(Read(1))
    assert bus.drain(PATIENCE).ok
    assert [1, 1] == tried


def test_no_task_too_many(bus: EventBus):
    """
    Of two who start a task at the same time, for one place, one does.
    """
    hands = Hands()
    asked: list[Any] = []

    class Nowhere(Home):
        def call(self, do: Any) -> Any:
            asked.append(do)
            return True

    home = Nowhere(bus._furniture.loop_thread)
    start_task(hands.queue, home)
    start_task(hands.queue, home)
    assert 1 == len(asked) == len(hands.queue.staff)


# -- cancelled from outside


def test_a_task_that_is_cancelled_gives_its_job_back():
    """
    What a cancelled worker had in hand is not acknowledged, and is handled by another one.
    """
    attempts: list[int] = []

    async def handle(read: Read) -> None:
        attempts.append(read.number)
        if len(attempts) == 1:
            await asyncio.Event().wait()

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, delivery=Queued())
            await bus.apublish(Read(1))
            await bus.apublish(Read(2))
            await until(lambda: attempts)
            (worker,) = queue_of(bus).staff
            worker.who.cancel()
            assert (await bus.adrain()).ok
        assert 0 == len(bus.dead_letters)

    run(live)
    assert [1, 1, 2] == attempts


def test_the_end_of_a_loop_gives_the_job_back(bus: EventBus):
    """
    What the end of `asyncio.run` interrupts is handled on the bus's own loop thread.
    """
    names: list[str] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        names.append(threading.current_thread().name)
        if len(names) == 1:
            await asyncio.Event().wait()

    async def leave() -> None:
        bus.start()
        bus.publish(Read())
        await until(lambda: names)

    run(leave)
    assert bus.drain(PATIENCE).ok
    assert [threading.current_thread().name, "eventbus-loop"] == names


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "ends"])
def test_a_worker_that_is_cancelled_before_its_first_step_is_replaced(bus: EventBus, goes_on: bool):
    """
    Its loop goes on, or ends in that moment: no event is left, and the next ones are handled.
    """
    handled: list[int] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        handled.append(read.number)

    async def cancel_all() -> None:
        bus.start()
        bus.publish(Read(1))
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        if goes_on:
            bus.publish(Read(2))
            assert (await bus.adrain(PATIENCE)).ok

    run(cancel_all)
    bus.publish(Read(3))
    assert bus.drain(PATIENCE).ok
    assert [1, 2, 3][:: 1 if goes_on else 2] == handled


def test_a_handler_that_swallows_the_cancellation(bus: EventBus):
    """
    A worker whose handler goes on although its task was cancelled takes no other job there.
    """
    handled: list[tuple[int, str]] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        if read.number == 1:
            with suppress(asyncio.CancelledError):
                began.set()
                await asyncio.Event().wait()
        handled.append((read.number, threading.current_thread().name))

    began = threading.Event()

    async def leave() -> None:
        bus.start()
        bus.publish(Read(1))
        bus.publish(Read(2))
        await until(began.is_set)

    run(leave)
    assert bus.drain(PATIENCE).ok
    assert [(1, threading.current_thread().name), (2, "eventbus-loop")] == handled


@pytest.mark.parametrize("waits", [0, 1])
def test_a_handler_that_cancels_its_own_task(waits: int, caplog: pytest.LogCaptureFixture):
    """
    A handler that cancels its own task has failed in that attempt; its worker goes on.
    """
    handled: list[tuple[int, Any]] = []

    async def handle(read: Read) -> None:
        handled.append((read.number, task := asyncio.current_task()))
        if read.number == 1:
            for _ in range(waits):
                await asyncio.sleep(0)
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    async def live() -> None:
        async with EventBus() as bus:
            retry = fixed(attempts=2, delay=0.0)
            bus.subscribe(Read, handle, name="read", delivery=Queued(), retry=retry)
            await bus.apublish_many([Read(1), Read(2)])
            assert (await bus.adrain()).ok
        assert [("failed", 2, "eventbus.errors.HandlerAbortedError")] == [
            (each.reason, each.attempts, each.error_type) for each in bus.dead_letters
        ]

    run(live)
    assert [1, 2, 1] == [number for number, _ in handled]
    assert handled[0][1] is handled[1][1]
    assert ["ERROR"] == [record.levelname for record in caplog.records]


def test_a_task_that_took_its_cancellation_back_is_cancelled_from_outside():
    """
    Of a handler's own cancellations only those count that it has not taken back.
    """
    handled: list[int] = []

    async def handle(read: Read) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        task.uncancel()
        handled.append(read.number)
        if len(handled) == 1:
            await asyncio.Event().wait()

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, name="read", delivery=Queued())
            await bus.apublish(Read(1))
            await until(lambda: handled)
            (worker,) = queue_of(bus).staff
            worker.who.cancel()
            assert (await bus.adrain()).ok
        assert 0 == len(bus.dead_letters)

    run(live)
    assert [1, 1] == handled


@pytest.mark.parametrize("options", [{}, {"retry": fixed(attempts=9, delay=0.0)}])
def test_an_event_whose_workers_are_all_cancelled(
    options: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    """
    An event that three workers have ended with has failed for good, and is logged so, once.
    """
    calls: list[int] = []

    async def handle(read: Read) -> None:
        calls.append(read.number)
        await asyncio.Event().wait()

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, name="read", delivery=Queued(), **options)
            await bus.apublish(Read(1))
            for life in range(1, 4):
                await until(lambda life=life: len(calls) == life)
                (worker,) = queue_of(bus).staff
                worker.who.cancel()
            assert (await bus.adrain()).ok
            stats = bus.stats().subscriptions["read"]
            assert (1, 0, 1) == (stats.failed, stats.undelivered, stats.dead_lettered)
        assert [("failed", 3, "eventbus.errors.HandlerAbortedError")] == [
            (each.reason, each.attempts, each.error_type) for each in bus.dead_letters
        ]

    run(live)
    (record,) = caplog.records
    assert "after 3 attempts: HandlerAbortedError" in record.getMessage()


@pytest.mark.parametrize("error", [GeneratorExit, ValueError])
def test_a_handler_that_ends_badly_when_it_is_left_behind(
    bus: EventBus, error: type[BaseException], caplog: pytest.LogCaptureFixture
):
    """
    What a handler raises because its loop was closed under it is no failure of its attempt.
    """
    names: list[str] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        names.append(threading.current_thread().name)
        if len(names) == 1:
            try:
                await asyncio.Event().wait()
            finally:
                raise error

    async def leave() -> None:
        bus.start()
        bus.publish(Read())
        await until(lambda: names)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    (worker,) = queue_of(bus).staff
    coroutine = worker.who.get_coro()
    loop.close()
    with suppress(ValueError):
        coroutine.close()
    assert bus.drain(PATIENCE).ok
    assert ["eventbus-loop"] == names[1:]
    assert 0 == len(bus.dead_letters)


def test_a_loop_that_is_closed_under_its_tasks(bus: EventBus):
    """
    What was in the hands of a loop that was stopped and closed is handled elsewhere.
    """
    names: list[str] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        names.append(threading.current_thread().name)
        if len(names) == 1:
            await asyncio.Event().wait()

    async def leave() -> None:
        bus.start()
        bus.publish(Read())
        await until(lambda: names)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    assert bus.drain(PATIENCE).ok
    assert ["eventbus-loop"] == names[1:]
    gc.collect()


def test_a_loop_that_is_closed_before_its_tasks_begin(bus: EventBus):
    """
    A task that a loop was asked to start, and never did, is started elsewhere.
    """
    handled: list[str] = []

    @bus.on(Read, delivery=Queued())
    async def handle(read: Read) -> None:
        handled.append(threading.current_thread().name)

    loop = asyncio.new_event_loop()
    bus._home.loop = loop
    bus.publish(Read())
    loop.close()
    assert bus.drain(PATIENCE).ok
    assert ["eventbus-loop"] == handled


def test_dismissed_before_it_began():
    """
    A task that was dismissed before its loop came to start it does not start.
    """
    handled: list[Read] = []

    def make(loop: Any, coroutine: Any, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, **options)

    async def handle(read: Read) -> None:
        handled.append(read)

    async def live() -> None:
        asyncio.get_running_loop().set_task_factory(make)  # then a task starts a turn later
        bus = EventBus()
        bus.start()
        bus.subscribe(Read, handle, delivery=Queued())
        bus.publish(Read())
        queue = queue_of(bus)
        (worker,) = queue.staff
        queue.bereave(worker, revives=False)
        await asyncio.sleep(0)
        assert None is worker.who
        assert (await bus.aclose()).ok

    run(live)
    assert [Read()] == handled


def test_no_loop_at_all():
    """
    Where no loop will run any more, no task is counted as if it did.
    """

    async def handle(read: Read) -> None: ...

    bus = EventBus()
    bus.subscribe(Read, handle, delivery=Queued())
    queue = queue_of(bus)
    bus._furniture.loop_thread.close()
    bus.publish(Read())
    assert 0 == len(queue.staff)
    bus.close(0.0)


# -- the context


def test_a_handler_suspends_in_its_own_context():
    """
    What a handler sets in its context is there after a wait, and not for other events.
    """
    from contextvars import ContextVar

    seen: list[tuple[int, int, int]] = []
    mine: ContextVar[int] = ContextVar("mine", default=0)

    async def handle(read: Read) -> None:
        before = mine.get()
        mine.set(read.number)
        await asyncio.sleep(0)
        with suppress(ValueError):
            await failing()
        seen.append((read.number, before, mine.get()))

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def live() -> None:
        async with EventBus() as bus:
            bus.subscribe(Read, handle, delivery=Queued(workers=2))
            for number in (1, 2, 3):
                await bus.apublish(Read(number))

    run(live)
    assert [(1, 0, 1), (2, 0, 2), (3, 0, 3)] == sorted(seen)


# -- leaks


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_bus_that_is_dropped_is_collected(colour: str):
    """
    A bus that was used and never closed is collected, and its workers end with it.
    """

    def handle(read: Read) -> None: ...

    async def ahandle(read: Read) -> None: ...

    bus = EventBus(name="dropped")
    handler: Any = handle if colour == "def" else ahandle
    bus.subscribe(Read, handler, delivery=Queued(), name="dropped")
    bus.publish(Read())
    assert bus.drain(PATIENCE).ok
    threads = [each for each in threading.enumerate() if each.name.startswith("dropped")]
    found = weakref.ref(bus)
    del bus
    for _ in range(100):
        gc.collect()
        if found() is None:
            break
        threading.Event().wait(0.01)
    assert None is found()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.mark.parametrize("colour", ["def", "async def"])
def test_a_failure_keeps_no_other_event_alive(bus: EventBus, colour: str):
    """
    The traceback in a dead letter keeps its own event alive, and not those handled after it.
    """

    def handle(read: Read) -> None:
        if read.number == 1:
            raise ValueError(read)

    async def ahandle(read: Read) -> None:
        handle(read)

    chosen: Any = handle if colour == "def" else ahandle
    subscription = bus.subscribe(Read, chosen, delivery=Queued(), name="reader")
    subscription.pause()
    events = [Read(1), Read(2)]
    for each in events:
        bus.publish(each)
    found = [weakref.ref(each) for each in events]
    del events, each
    subscription.resume()
    assert bus.drain(PATIENCE).ok
    gc.collect()
    assert [True, False] == [each() is not None for each in found]


def test_what_is_left_behind_may_be_over_already():
    """
    The garbage collector may close the inner one of two coroutines before the outer one.
    """

    @types.coroutine
    def wait() -> Any:
        yield

    async def handle() -> None:
        await wait()

    rest = handle()
    steps = in_context(contextvars.copy_context(), rest)
    assert None is steps.send(None)
    rest.close()
    steps.close()
