"""
The bus's own event loop, on a thread of its own, for `publish` of async handlers.

Law: the thread is a daemon, started by the first coroutine and ended by `close`
or with its owner; nothing but what deliveries start runs on it. asyncio is
imported here late, for start-up time.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus._fork import renewed

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

__all__ = ["LoopThread", "StoppedError"]

Call = Callable[[], None]
Make = Callable[[], Coroutine[Any, Any, object]]

# Seconds that what is cancelled gets to clean up before nobody waits for it any more.
_PATIENCE = 5.0


class StoppedError(Exception):
    """
    Raised by `LoopThread.run` when the loop was closed, before or meanwhile.
    """


class LoopThread:
    """
    An event loop on a daemon thread, made when it is first needed.

    Args:
        name: The thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_closed = False
        self._at_fork_reinit()
        renewed(self)

    def _at_fork_reinit(self) -> None:
        """
        Begin with no loop: at first, and in a forked child, where its thread is not.
        """
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ident: int | None = None
        self._under_way = 0
        self._waiting: list[Call] = []
        self._finalizer: weakref.finalize[..., LoopThread] | None = None

    def run(self, make: Make) -> None:
        """
        Run a coroutine on the loop, in a copy of the caller's context, to its end.

        A caller that is interrupted while it waits cancels the coroutine, lets it
        clean up and passes the interruption on.

        Raises:
            StoppedError: The loop was closed. Otherwise what the coroutine raises.
        """
        with self._lock:
            self._under_way += 1  # before the loop may have begun with it
        try:
            self._wait_for(make)
        finally:
            self._has_gone()

    def _wait_for(self, make: Make) -> None:
        import concurrent.futures  # late: asyncio loads it anyway

        outcome: Future[None] = concurrent.futures.Future()
        cancel = self._start(make, outcome)
        try:
            outcome.result()
        except BaseException as error:
            if not outcome.done():
                cancel()
                concurrent.futures.wait([outcome], timeout=_PATIENCE)
            elif self._is_closed and _is_cancellation(error):
                raise StoppedError from error
            raise
        finally:
            del outcome, cancel  # they hold the error, whose traceback holds this frame

    @property
    def is_busy(self) -> bool:
        """
        Whether somebody waits in `run`.
        """
        return self._under_way > 0

    @property
    def is_here(self) -> bool:
        """
        Whether this is that thread: it cannot be waited for here.
        """
        return self._ident == threading.get_ident()

    def when_idle(self, call: Call) -> Call:
        """
        Have *call* called once nobody waits in `run` any more; return what forgets it.
        """
        with self._lock:
            if self._under_way:
                self._waiting.append(call)
                return partial(self._forget, call)
        call()
        return partial(self._forget, call)

    def _forget(self, call: Call) -> None:
        with self._lock, suppress(ValueError):
            self._waiting.remove(call)

    def _has_gone(self) -> None:
        waiting: list[Call] = []
        with self._lock:
            self._under_way -= 1
            if not self._under_way:
                waiting, self._waiting = self._waiting, waiting
        for call in waiting:
            call()

    def call(self, do: Callable[[asyncio.AbstractEventLoop], None]) -> bool:
        """
        Have *do* called on the loop, soon, in no context; ``False`` once it is closed.
        """
        with self._lock:
            if not self._is_closed:
                loop = self._running()
                loop.call_soon_threadsafe(do, loop, context=Context())
            return not self._is_closed

    def close(self) -> None:
        """
        Cancel what runs, stop the loop and wait for the thread. Idempotent, and final.
        """
        with self._lock:
            self._is_closed = True
            finalizer, self._finalizer, self._loop = self._finalizer, None, None
        if finalizer is not None:
            finalizer()

    def _start(self, make: Make, outcome: Future[None]) -> Callable[[], None]:
        """
        Hand the coroutine to the loop; return what cancels it.
        """
        tasks: list[asyncio.Task[None]] = []

        def start() -> None:
            # In this callback the context is already the caller's copy; the task copies it.
            task = loop.create_task(_carry(make, outcome))
            # One that is cancelled before its first step never comes to settle the outcome.
            task.add_done_callback(lambda _: outcome.cancel())
            tasks.append(task)

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop has been closed, and all of it cancelled
                loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])

        with self._lock:  # which keeps the loop from being closed in between
            if self._is_closed:
                raise StoppedError
            loop = self._running()
            loop.call_soon_threadsafe(start, context=copy_context())
        return cancel

    def _running(self) -> asyncio.AbstractEventLoop:
        import asyncio  # late: for start-up time

        if self._loop is None:
            # Made in no context: what the loop keeps of it would keep the publish, and the bus.
            loop, closing = Context().run(asyncio.new_event_loop), threading.Event()
            thread = threading.Thread(
                target=_serve, args=(loop, closing), name=self._name, daemon=True
            )
            stop: weakref.finalize[..., LoopThread]
            stop = weakref.finalize(self, _stop, loop, closing, thread, os.getpid())
            # At exit a daemon thread dies with the process; joining could hang it.
            stop.atexit = False
            try:
                thread.start()
            except BaseException:  # out of threads, or interrupted: the next one tries again
                stop()
                raise
            self._loop, self._ident, self._finalizer = loop, thread.ident, stop
        return self._loop


def _is_cancellation(error: BaseException) -> bool:
    import asyncio  # late: for start-up time
    import concurrent.futures  # late: for start-up time

    return isinstance(error, asyncio.CancelledError | concurrent.futures.CancelledError)


async def _carry(make: Make, outcome: Future[None]) -> None:
    import asyncio  # late: for start-up time

    try:
        await make()
    except asyncio.CancelledError as error:
        outcome.set_exception(error)
        raise
    except BaseException as error:
        # Raised again in the publisher's thread; here a SystemExit would end the loop.
        outcome.set_exception(error)
    else:
        outcome.set_result(None)
    finally:
        del outcome  # it holds the error, whose traceback holds this frame


def _serve(loop: asyncio.AbstractEventLoop, closing: threading.Event) -> None:
    import asyncio  # late: for start-up time

    asyncio.set_event_loop(loop)
    try:
        _run_until(closing, loop)
        loop.run_until_complete(_wind_up())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _run_until(closing: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
    """
    Run the loop until it is closing, whatever raises `SystemExit` in a task of its own.

    The task's failure reaches those who await it; it must not leave the others waiting.
    """
    while not closing.is_set():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


async def _wind_up() -> None:
    """
    Cancel all tasks, and those they start, and wait for them.
    """
    import asyncio  # late: for start-up time

    while rest := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)


def _stop(
    loop: asyncio.AbstractEventLoop, closing: threading.Event, thread: threading.Thread, pid: int
) -> None:
    if pid != os.getpid():
        return
    if not thread.is_alive():
        loop.close()  # it was never served, or what served it is gone
        return
    closing.set()
    loop.call_soon_threadsafe(loop.stop)
    if thread is not threading.current_thread():
        # What is cancelled gets a moment to clean up; a daemon thread may outlive it.
        thread.join(timeout=_PATIENCE)
