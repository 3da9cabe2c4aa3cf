"""
The bus's own loop thread: it runs, passes on, cancels, stops, and is left to no child.

Nothing here waits without a bound: for an event, an outcome or a thread at most
``PATIENCE`` seconds.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from contextvars import ContextVar
from itertools import count
from typing import Any

import pytest

from eventbus._loop_thread import LoopThread, StoppedError

PATIENCE = 20.0

Make = Callable[[], Coroutine[Any, Any, object]]

# pytest reports a thread that ends by SystemExit; Python lets it go in silence.
dies = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

names = count()
place: ContextVar[str] = ContextVar("place", default="nowhere")


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    made = LoopThread(f"test_loop_thread-{next(names)}")
    yield made
    made.close()


def threads_of(loop_thread: LoopThread) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == loop_thread._name]


def gone(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


def met(flag: threading.Event) -> None:
    """
    Wait for *flag*, and fail if it does not come.
    """
    if not flag.wait(PATIENCE):
        raise TimeoutError("what the test waits for has not happened")


class Waiting:
    """
    A call of `LoopThread.run` in a thread of its own.
    """

    def __init__(self, loop_thread: LoopThread, make: Make) -> None:
        self._outcome: Future[None] = Future()
        threading.Thread(target=self._run, args=(loop_thread, make), daemon=True).start()

    def _run(self, loop_thread: LoopThread, make: Make) -> None:
        try:
            loop_thread.run(make)
        except BaseException as error:
            self._outcome.set_exception(error)
        else:
            self._outcome.set_result(None)

    def error(self) -> BaseException | None:
        return self._outcome.exception(PATIENCE)


async def nothing() -> None:
    return None


async def for_ever() -> None:
    await asyncio.Event().wait()


# -- running


def test_no_thread_before_the_first_coroutine(loop_thread: LoopThread):
    """
    There is no thread until something runs, and from then on one daemon.
    """
    assert [] == threads_of(loop_thread)
    loop_thread.run(nothing)
    loop_thread.run(nothing)
    assert [True] == [each.daemon for each in threads_of(loop_thread)]


def test_runs_to_the_end(loop_thread: LoopThread):
    """
    The coroutine runs on the loop's thread and has ended when the call returns.
    """
    seen: list[object] = []

    async def make() -> None:
        await asyncio.sleep(0)
        seen.append(threading.current_thread().name)

    loop_thread.run(make)
    assert [loop_thread._name] == seen


def test_a_thread_that_cannot_be_started_is_tried_again(
    loop_thread: LoopThread, monkeypatch: pytest.MonkeyPatch
):
    """
    Where the system is out of threads the call fails, and the next one does not wait for ever.
    """
    refused: list[threading.Thread] = []

    def refuse(thread: threading.Thread) -> None:
        refused.append(thread)
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            loop_thread.run(nothing)
    loop_thread.run(nothing)
    assert 1 == len(threads_of(loop_thread))
    assert threads_of(loop_thread) != refused


def test_runs_in_a_copy_of_the_context(loop_thread: LoopThread):
    """
    The coroutine sees the caller's context, and what it sets stays its own.
    """
    seen: list[str] = []

    async def make() -> None:
        seen.append(place.get())
        place.set("there")

    token = place.set("here")
    try:
        loop_thread.run(make)
        assert (["here"], "here") == (seen, place.get())
    finally:
        place.reset(token)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_passes_on_what_is_raised(loop_thread: LoopThread, error: BaseException):
    """
    Whatever a coroutine raises is raised to the caller, and the loop goes on.
    """

    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        loop_thread.run(fail)
    (before,) = threads_of(loop_thread)
    loop_thread.run(nothing)
    assert error is caught.value
    assert [before] == threads_of(loop_thread)


def test_what_makes_the_coroutine_may_raise(loop_thread: LoopThread):
    """
    An error of the function that makes the coroutine is raised to the caller as well.
    """

    def fail() -> Coroutine[Any, Any, object]:
        raise LookupError("no coroutine")

    with pytest.raises(LookupError, match="no coroutine"):
        loop_thread.run(fail)


def test_a_cancellation_of_its_own_is_passed_on(loop_thread: LoopThread):
    """
    A coroutine that ends cancelled, on an open loop, is no stopped loop.
    """

    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        loop_thread.run(give_up)


def test_an_error_keeps_nothing_alive(loop_thread: LoopThread):
    """
    What the coroutine held is freed with its error, without the garbage collector.
    """

    class Held:
        pass

    held = [Held()]
    gone_with_it = weakref.ref(held[0])

    async def fail() -> None:
        raise ValueError(held.pop())

    gc.disable()
    try:
        with suppress(ValueError):  # `pytest.raises` would keep the error
            loop_thread.run(fail)
        loop_thread.run(nothing)  # the loop's thread has let go of the task before
        assert gone_with_it() is None
    finally:
        gc.enable()


def test_many_threads_share_one_loop(loop_thread: LoopThread):
    """
    Coroutines of several threads run at the same time on one thread.
    """
    seen: list[str] = []
    meeting = asyncio.Barrier(8)

    async def make() -> None:
        async with meeting:
            seen.append(threading.current_thread().name)

    waiting = [Waiting(loop_thread, make) for _ in range(8)]
    assert [None] * 8 == [each.error() for each in waiting]
    assert [loop_thread._name] * 8 == seen


# -- interrupting the caller


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals a thread")
def test_an_interrupted_caller_cancels(loop_thread: LoopThread):
    """
    A caller interrupted while it waits cancels the coroutine, which cleans up first.
    """
    cleaned: list[bool] = []
    caller = threading.main_thread().ident
    assert caller is not None

    def waits() -> bool:
        frame = sys._current_frames().get(caller)
        while frame is not None and frame.f_code is not Future.result.__code__:
            frame = frame.f_back
        return frame is not None

    async def make() -> None:
        async with asyncio.timeout(PATIENCE):
            while not waits():  # noqa: ASYNC110 - nothing announces that a thread waits
                await asyncio.sleep(0)
            signal.pthread_kill(caller, signal.SIGUSR1)
            try:
                await for_ever()
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

    previous = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop_thread.run(make)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert [True] == cleaned
    loop_thread.run(nothing)


def test_cancelled_before_its_first_step(loop_thread: LoopThread):
    """
    A coroutine cancelled before it began is never made, and nobody waits for it.
    """
    busy, go_on, made = threading.Event(), threading.Event(), []

    async def block() -> None:
        busy.set()
        met(go_on)

    async def make() -> None:
        made.append(True)

    blocking = Waiting(loop_thread, block)
    met(busy)
    outcome: Future[None] = Future()
    cancel = loop_thread._start(make, outcome)
    cancel()
    go_on.set()
    with pytest.raises(CancelledError):
        outcome.result(PATIENCE)
    assert ([], None) == (made, blocking.error())


def test_cancelling_after_the_end_does_nothing(loop_thread: LoopThread):
    """
    Cancelling what has ended does nothing, before and after the loop is closed.
    """
    outcome: Future[None] = Future()
    cancel = loop_thread._start(nothing, outcome)
    assert outcome.result(PATIENCE) is None
    cancel()
    loop_thread.run(nothing)
    loop_thread.close()
    cancel()
    assert outcome.result(0) is None


def test_a_call_is_made_on_the_loop_in_no_context(loop_thread: LoopThread):
    """
    It sees nothing of its caller's variables; once the loop is closed it is refused.
    """
    called: Future[tuple[str, str, bool]] = Future()

    def note(loop: asyncio.AbstractEventLoop) -> None:
        is_running = loop is asyncio.get_running_loop()
        called.set_result((threading.current_thread().name, place.get(), is_running))

    token = place.set("here")
    try:
        assert loop_thread.call(note)
    finally:
        place.reset(token)
    assert (loop_thread._name, "nowhere", True) == called.result(PATIENCE)
    loop_thread.close()
    assert not loop_thread.call(note)
    assert [] == threads_of(loop_thread)


# -- closing


def test_close_ends_the_thread(loop_thread: LoopThread):
    """
    When close has returned the thread is gone, and a second close does nothing.
    """
    loop_thread.run(nothing)
    (thread,) = threads_of(loop_thread)
    loop_thread.close()
    assert not thread.is_alive()
    loop_thread.close()
    assert [] == threads_of(loop_thread)


def test_closed_without_ever_running(loop_thread: LoopThread):
    """
    A loop thread that has never run is closed without a thread, and stays closed.
    """
    loop_thread.close()
    with pytest.raises(StoppedError):
        loop_thread.run(nothing)
    assert [] == threads_of(loop_thread)


def test_close_stops_what_runs(loop_thread: LoopThread):
    """
    Closing cancels what runs, lets it clean up, and its caller learns the reason.
    """
    busy, cleaned = threading.Event(), []

    async def make() -> None:
        busy.set()
        try:
            await for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    waiting = Waiting(loop_thread, make)
    met(busy)
    loop_thread.close()
    error = waiting.error()
    assert StoppedError is type(error)
    assert error is not None
    assert isinstance(error.__cause__, asyncio.CancelledError)
    assert [True] == cleaned


def test_close_lets_an_error_of_the_clean_up_through(loop_thread: LoopThread):
    """
    What a coroutine raises when closing cancels it is what its caller gets.
    """
    busy = threading.Event()

    async def make() -> None:
        busy.set()
        try:
            await for_ever()
        finally:
            raise ValueError("clean-up")

    waiting = Waiting(loop_thread, make)
    met(busy)
    loop_thread.close()
    assert "ValueError('clean-up')" == repr(waiting.error())


def test_close_cancels_the_tasks_left_behind(loop_thread: LoopThread):
    """
    Closing also cancels what a coroutine left running, and what that starts on its way out.
    """
    ended: list[str] = []
    kept: list[asyncio.Task[None]] = []

    async def late() -> None:
        try:
            await for_ever()
        finally:
            ended.append("late")

    async def left_behind() -> None:
        try:
            await for_ever()
        finally:
            kept.append(asyncio.create_task(late()))
            await asyncio.sleep(0)
            ended.append("left behind")

    async def make() -> None:
        kept.append(asyncio.create_task(left_behind()))
        await asyncio.sleep(0)

    loop_thread.run(make)
    loop_thread.close()
    assert ["late", "left behind"] == sorted(ended)


def test_close_from_the_loops_own_thread(loop_thread: LoopThread):
    """
    A coroutine that closes its own loop does not wait for itself, and may return.
    """

    async def make() -> None:
        loop_thread.close()

    threads: list[threading.Thread] = []

    async def note() -> None:
        threads.append(threading.current_thread())

    loop_thread.run(note)
    loop_thread.run(make)
    assert gone(threads[0])
    with pytest.raises(StoppedError):
        loop_thread.run(nothing)


def test_close_from_the_loops_own_thread_stops_its_caller(loop_thread: LoopThread):
    """
    A coroutine that closes its own loop and goes on waiting is cancelled.
    """

    async def make() -> None:
        loop_thread.close()
        await for_ever()

    with pytest.raises(StoppedError):
        loop_thread.run(make)


def test_a_callback_that_exits_leaves_the_loop_running(loop_thread: LoopThread):
    """
    What calls sys.exit on the loop does not take the coroutines of others with it.
    """

    async def make() -> None:
        asyncio.get_running_loop().call_soon(sys.exit)

    loop_thread.run(make)
    loop_thread.run(nothing)
    assert 1 == len(threads_of(loop_thread))
    loop_thread.close()
    assert [] == threads_of(loop_thread)


def test_dropped_without_closing():
    """
    The thread ends with the last reference to its owner.
    """
    loop_thread = LoopThread(f"test_loop_thread-{next(names)}")
    loop_thread.run(nothing)
    (thread,) = threads_of(loop_thread)
    del loop_thread
    assert gone(thread)


@dies
def test_a_task_that_exits_settles_what_waits(loop_thread: LoopThread):
    """
    A coroutine that awaits a task raising SystemExit ends, and so does its caller.
    """

    async def leave() -> None:
        raise SystemExit(3)

    async def make() -> None:
        await asyncio.create_task(leave())

    outcome: Future[None] = Future()
    loop_thread._start(make, outcome)
    for thread in threads_of(loop_thread):
        thread.join(0.5)
    assert SystemExit is type(outcome.exception(0.5))


# -- forking


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_has_a_loop_of_its_own(loop_thread: LoopThread):
    """
    After a fork the child runs coroutines on a thread of its own, and closes only that.
    """
    loop_thread.run(nothing)
    (thread,) = threads_of(loop_thread)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12: forking with threads
        child = os.fork()
    if child == 0:
        _in_child(loop_thread)
    _, status = os.waitpid(child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)
    loop_thread.run(nothing)
    assert [thread] == threads_of(loop_thread)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
def test_a_forked_child_closes_what_it_never_used(loop_thread: LoopThread):
    """
    Closed in a forked child, the parent's loop runs on in the parent.
    """
    loop_thread.run(nothing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12: forking with threads
        child = os.fork()
    if child == 0:
        _in_child(loop_thread, uses=False)
    _, status = os.waitpid(child, 0)
    assert 0 == os.waitstatus_to_exitcode(status)
    loop_thread.run(nothing)


def _in_child(loop_thread: LoopThread, *, uses: bool = True) -> None:
    """
    Use and close the loop thread, and end the process: 0 if all went well.
    """
    signal.alarm(int(PATIENCE))  # ends a child that hangs, by its default action
    code = 1
    try:
        if uses:
            loop_thread.run(nothing)
        loop_thread.close()
        code = len(threads_of(loop_thread))
    finally:
        os._exit(code)


# -- who waits for it


def test_who_waits_until_nothing_runs_is_told_once(loop_thread: LoopThread):
    """
    At once where nothing does; and not at all who has given up waiting.
    """
    told, gate, began = list[str](), threading.Event(), threading.Event()

    async def work() -> None:
        began.set()
        await asyncio.to_thread(gate.wait, 20.0)

    forget = loop_thread.when_idle(lambda: told.append("at once"))
    forget()
    thread = threading.Thread(target=loop_thread.run, args=(work,), daemon=True)
    thread.start()
    assert began.wait(20.0)
    assert loop_thread.is_busy
    loop_thread.when_idle(lambda: told.append("later"))
    loop_thread.when_idle(lambda: told.append("never"))()
    gate.set()
    thread.join(20.0)
    assert ["at once", "later"] == told
    assert not loop_thread.is_busy


def test_a_forked_process_leaves_the_loop_of_its_parent_alone(monkeypatch: pytest.MonkeyPatch):
    """
    What it has got of a loop thread may go: the loop and the thread are its parent's.
    """
    mine = LoopThread("of the parent")
    mine.run(quiet)
    loop, pid = mine._loop, os.getpid()
    assert loop is not None
    finalizer = mine._finalizer
    assert finalizer is not None
    with monkeypatch.context() as patches:
        patches.setattr(os, "getpid", lambda: pid + 1)
        finalizer.peek()[1](*finalizer.peek()[2])  # type: ignore[index]
    assert loop.is_running()
    mine.close()
    assert loop.is_closed()


async def quiet() -> None:
    """
    Come to an end at once.
    """
