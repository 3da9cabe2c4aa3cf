"""
Who handles what is queued: threads for sync handlers, tasks for async ones.

Law: a worker asks its queue for a job, has it performed in the job's own context, and
gives it back or finishes it. Here and in `_delivery` stands the only code of two
colours below the verbs. A thread with nothing to do is parked, holds no reference to
its queue and ends with it; a task with nothing to do ends.
"""

from __future__ import annotations

import threading
import types
import weakref
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from eventbus._abort import running_loop
from eventbus._alarms import Alarms
from eventbus._clock import Clock
from eventbus._intake import Intake, give_way
from eventbus._job import Later, Worker, into_hand
from eventbus._logger import logger
from eventbus._loop_thread import LoopThread
from eventbus._mode import Queued
from eventbus._queue import Queue
from eventbus._subscription import Subscription

if TYPE_CHECKING:
    import asyncio

__all__ = ["Home", "awork_off", "in_context", "make_queue", "work_off"]

# So many events handled without a wait, and a task lets the loop's other tasks run.
_SPELL = 64
# After so many it looks once more before it ends.
_BUSY = 8


def make_queue(
    subscription: Subscription,
    *,
    alarms: Alarms,
    clock: Clock,
    home: Home,
    limit: int | None = None,
) -> Intake:
    """
    Return the queue of a subscription, whose workers start when it has something for them.
    """
    options = subscription.options
    assert isinstance(options.delivery, Queued)
    start = partial(start_task, home=home) if subscription.needs_loop else start_thread
    return Intake(
        subscription.name,
        options.delivery,
        limit=limit,
        read_key=options.ordered_by,
        interval=0.0 if options.max_rate is None else 1.0 / options.max_rate,
        alarms=alarms,
        now=clock.monotonic,
        start=start,
        needs_loop=subscription.needs_loop,
    )


# -- threads -----------------------------------------------------------------------------------


def start_thread(queue: Queue) -> None:
    """
    Start one more worker thread of *queue*.
    """
    park = threading.Lock()
    park.acquire()
    worker = Worker(park=park)
    thread = threading.Thread(
        target=_serve, args=(weakref.ref(queue), worker), name=queue.name, daemon=True
    )
    worker.who = thread
    try:
        if queue.hire(worker):
            thread.start()
            worker.is_lost = partial(_is_over, thread)
    except RuntimeError:  # no more threads can be had: the next event tries again
        queue.bereave(worker, revives=False)
        logger().exception("no worker thread for %s could be started", queue.name)
    except BaseException:  # interrupted
        if not thread.is_alive():
            queue.bereave(worker, revives=False)
        raise


def _is_over(thread: threading.Thread) -> bool:
    return not thread.is_alive()


def _serve(find: Callable[[], Queue | None], worker: Worker) -> None:
    """
    Work until the queue is closed or gone.
    """
    try:
        _work(find, worker)
    except BaseException as error:
        # Not the handler's: that was caught. Somebody ended this thread from outside.
        if (queue := find()) is not None:
            try:
                logger().warning(
                    "a worker of %s died of %r and is replaced", queue.name, error, exc_info=error
                )
            finally:
                queue.bereave(worker)
    finally:
        worker.end.has_come()


def _work(find: Callable[[], Queue | None], worker: Worker) -> None:
    assert worker.park is not None
    while (queue := find()) is not None:
        work_off(queue, worker)
        if worker.is_dismissed:
            return
        del queue
        worker.park.acquire()


def work_off(queue: Queue, worker: Worker) -> None:
    """
    Handle what is ready, until nothing is.
    """
    job: Any
    take = into_hand(worker, queue.ready)
    while (job := queue.turn(worker)) is not None:
        perform = queue.keeper.perform
        while True:
            # A copy: the context is the publisher's, and what it holds would hold the job.
            later = job.context.copy().run(perform, job, worker)
            if later is not None:
                queue.postpone(worker, later)
            worker.job = None
            if queue.is_eventful:
                break
            try:
                take()
            except IndexError:
                break
            job = worker.job
            if queue.is_eventful and not queue.confirm(worker, job):
                break


# -- tasks -------------------------------------------------------------------------------------


class Home:
    """
    Where a bus's tasks run: the loop that entered it, else its own loop thread.

    Attributes:
        loop: The loop that entered the bus.
    """

    def __init__(self, loop_thread: LoopThread) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = loop_thread

    def call(self, do: Callable[[asyncio.AbstractEventLoop], None]) -> Any:
        """
        Have *do*, which starts a task, called on the loop, now or soon, from any thread.

        Returns:
            The loop, if it is known which one; ``False`` if none will run.
        """
        if (loop := self.loop) is not None and not loop.is_closed():
            try:
                if running_loop() is not loop:
                    loop.call_soon_threadsafe(do, loop, context=Context())
                elif loop.get_task_factory() is None:
                    do(loop)
                else:  # whose tasks may begin at once, and not within a publish
                    loop.call_soon(do, loop, context=Context())
                return loop
            except RuntimeError:  # closed in this moment
                pass
        return self._loop_thread.call(do)


def start_task(queue: Queue, home: Home) -> None:
    """
    Start one more worker task of *queue*.
    """
    worker = Worker()
    if not queue.hire(worker):
        return

    def start(loop: asyncio.AbstractEventLoop) -> None:
        settle(loop)
        if not worker.is_dismissed:
            # The worker holds its task, and the queue the worker.
            serve = _aserve(queue, worker)
            task = worker.who = loop.create_task(serve, name=queue.name, context=Context())
            task.add_done_callback(end)

    def end(_: object) -> None:
        if not worker.end.is_over:  # it was cancelled before its first step
            _end(queue, worker)

    def settle(loop: asyncio.AbstractEventLoop) -> None:
        worker.loop, worker.is_lost = loop, loop.is_closed

    loop = home.call(start)
    if not loop:
        queue.bereave(worker, revives=False)
    elif loop is not True:
        settle(loop)


async def _aserve(queue: Queue, worker: Worker) -> None:
    try:
        await awork_off(queue, worker)
    finally:
        _end(queue, worker)


def _end(queue: Queue, worker: Worker) -> None:
    if not worker.is_dismissed:
        # Cancelled, as by the end of `asyncio.run`: what it had in hand is not
        # acknowledged, and is handed out again, when this loop may be over.
        queue.bereave(worker, revives=False)
        queue.revive_soon()
    worker.end.has_come()


async def awork_off(queue: Queue, worker: Worker) -> None:
    """
    Handle what is ready, until nothing is.
    """
    ready, spell = queue.ready, 0
    while (job := queue.turn(worker)) is not None:
        # A keeper may spare what needs no wait the coroutine.
        begin = getattr(queue.keeper, "begin", queue.keeper.aperform)
        while True:
            context: Any = job.context.copy()
            later: Any = context.run(begin, job, worker)
            if later is not None:
                if type(later) is CoroutineType:
                    await _finish(queue, worker, context, later)
                else:
                    queue.postpone(worker, later)
            worker.job = None
            if (spell := spell + 1) >= _SPELL or (spell >= _BUSY and not ready):
                # Also where more may be coming: to end, and to be started again, costs as much
                # as ten events.
                spell = 0
                await give_way()
            if queue.is_eventful:
                break
            try:
                job = worker.job = ready.popleft()
            except IndexError:
                break
            if queue.is_eventful and not queue.confirm(worker, job):
                break
        # The traceback of a failure, in a dead letter, keeps this frame: it holds no other event.
        context = later = None


async def _finish(queue: Queue, worker: Worker, context: Context, rest: Any) -> None:
    """
    Await the rest of a job in its context.
    """
    import asyncio  # late: whoever awaits has it loaded already

    if (later := await in_context(context, rest)) is not None:
        queue.postpone(worker, later)
    worker.job = None
    if worker.loop is not None and worker.who.cancelling():
        raise asyncio.CancelledError  # the handler has come to its end all the same


@types.coroutine
def in_context(
    context: Context, coroutine: Coroutine[Any, Any, Any]
) -> Generator[Any, Any, Later | None]:
    """
    Await a coroutine in a context of its own, as part of this task.

    A task of its own would cost some five times as much as most handlers that only
    hand something on.
    """
    step, argument = coroutine.send, None
    while True:
        try:
            waits_for = context.run(step, argument)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            argument = yield waits_for
            step = coroutine.send
        except GeneratorExit:
            context.run(coroutine.close)  # left behind with its loop, if it is not over yet
            raise
        except BaseException as error:
            step, argument = coroutine.throw, error
