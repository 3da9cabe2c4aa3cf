"""
How a bus is started, drained and closed.

Law: what is to be done stands in generators, of no colour, that give out what is to be
waited for; the verbs wait, each in its own way. No cancellation reaches a handler
before the time granted is over, and nothing that was accepted goes without a word.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, Self

from eventbus._abort import running_loop
from eventbus._ending import LATER, DrainReport, Ending, first_busy, still_pending
from eventbus._envelope import here
from eventbus._intake import Intake, call_soon
from eventbus._job import Worker
from eventbus._logger import logger
from eventbus._loop_thread import LoopThread
from eventbus._receipt import ancestry
from eventbus._storing import Storing
from eventbus._write_off import gathering, keep_all
from eventbus.errors import BusClosedError, RunningLoopError, WouldDeadlockError

__all__ = ["LATER", "DrainReport", "Running"]

# Seconds that what was cancelled, or has nothing to do any more, gets to end.
_PATIENCE = 5.0
# Seconds beyond which a thread cannot be told how long to wait.
_LONGEST = threading.TIMEOUT_MAX

Call = Callable[[], None]
# What is to be waited for: given a callback, has it called once; and for how long.
Wait = tuple[Callable[[Call], Call], float | None]
Steps = Generator[Wait, bool | None, DrainReport]


class Running(Storing):
    """
    The part of `eventbus.EventBus` that begins and ends.
    """

    # -- the verbs: the twins ----------------------------------------------------------------

    def start(self) -> None:
        """
        Let the queues' workers begin, and durable subscriptions consume. Idempotent.

        Without it, the first queued event starts the workers, and what is durable waits.

        In a thread with a running event loop, that loop is from now on where async
        handlers of queued subscriptions run.

        Raises:
            BusClosedError: It was closed, and stays so.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.start()
        if self._ending is not None:
            raise BusClosedError(
                f"EventBus {self.name!r} is closed and cannot be started again: make a new bus"
            )
        if (loop := running_loop()) is not None:
            self._home.loop = loop
        for queue in self._all_queues():
            queue.rouse()
        self._start_consuming()

    def drain(self, timeout: float | None = None) -> DrainReport:
        """
        Wait until all that was accepted is handled; the bus goes on.

        Events between two attempts are waited for. Those of paused subscriptions, and
        publishes that are due later, are not. Nor are those of durable subscriptions that
        have stopped, or that another process consumes: they are in the report.

        Args:
            timeout: Seconds to wait, at most; ``None`` for as long as it takes.

        Raises:
            RunningLoopError: In a thread with a running event loop, in which handlers of
                queued subscriptions run: they could not.
            WouldDeadlockError: In a handler of a queued subscription.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.drain(timeout)
        _check_timeout("drain", timeout)
        self._refuse_own("drain", awaits=False)
        return self._driven(self._draining(timeout))

    async def adrain(self, timeout: float | None = None) -> DrainReport:
        """
        Wait until all that was accepted is handled; see `drain`.
        """
        if (stand_in := self._stand_in()) is not self:
            return await stand_in.adrain(timeout)
        _check_timeout("adrain", timeout)
        self._refuse_own("adrain", awaits=True)
        return await self._adriven(self._draining(timeout))

    def close(self, timeout: float | None = 10.0) -> DrainReport:
        """
        Take no more events, handle those that were accepted, and end. Idempotent.

        Of durable subscriptions, what is being handled comes to its end; the rest stays in the
        log, and is in the report. What handlers publish meanwhile is still delivered. When the
        time is over, what is left is kept as dead letters with reason ``undelivered``, async
        handlers are cancelled, and the bus ends; a sync handler that still runs cannot be
        stopped.
        A publish under way elsewhere goes on with its sync handlers, and what they publish
        is delivered to sync handlers, also when the bus has ended.

        Args:
            timeout: Seconds that handlers are given; ``None`` for as long as they take.

        Returns:
            What was not handled. A second call, from wherever, returns the same.

        Raises:
            RunningLoopError, WouldDeadlockError: As `drain`.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.close(timeout)
        _check_timeout("close", timeout)
        self._refuse_own("close", awaits=False)
        return self._driven(self._closing(timeout, aside=False))

    async def aclose(self, timeout: float | None = 10.0) -> DrainReport:
        """
        Take no more events, handle those that were accepted, and end; see `close`.
        """
        if (stand_in := self._stand_in()) is not self:
            return await stand_in.aclose(timeout)
        _check_timeout("aclose", timeout)
        self._refuse_own("aclose", awaits=True)
        return await self._adriven(self._closing(timeout, aside=True))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """
        Close the bus; where that is refused, what the block raised goes before.
        """
        __tracebackhide__ = True  # to pytest: for it the block ends in the test
        try:
            self.close()
        except RunningLoopError as refused:
            text = f"{refused} Where a with block ends, make it an async with block."
            error = raised[1] if any(raised) else None
            if not isinstance(error, BaseException):
                raise RunningLoopError(text, subscription=refused.subscription) from None
            error.add_note(f"and {self.name} could not be closed: {text}")
            if not isinstance(error, Exception):  # its notes are hardly ever shown
                logger().error("%s could not be closed: %s", self.name, text)

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _driven(self, steps: Steps) -> DrainReport:
        """
        Take the steps, blocking this thread while something is to be waited for.
        """
        answer = None
        try:
            while True:
                tell, seconds = steps.send(answer)
                came = threading.Event()
                forget = tell(came.set)
                try:
                    answer = came.wait(None if seconds is None else min(seconds, _LONGEST))
                finally:
                    forget()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    async def _adriven(self, steps: Steps) -> DrainReport:
        """
        Take the steps, suspending this task while something is to be waited for.
        """
        import asyncio  # late: whoever awaits has it loaded already

        answer, loop = None, asyncio.get_running_loop()
        try:
            while True:
                tell, seconds = steps.send(answer)
                came = asyncio.Event()
                forget = tell(partial(call_soon, loop, came.set))
                try:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(seconds):
                            await came.wait()
                finally:
                    forget()
                answer = came.is_set()
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            steps.close()

    # -- what is to be done ------------------------------------------------------------------

    def _draining(self, timeout: float | None) -> Steps:
        self._look_around()
        yield from self._drained(timeout)
        return still_pending(self._all_queues())

    def _drained(
        self, timeout: float | None, loop: LoopThread | None = None
    ) -> Generator[Wait, bool | None, None]:
        """
        Wait until no queue is busy, nor *loop*: what one handles may fill another.
        """
        now = self._furniture.clock.monotonic
        until = None if timeout is None else now() + timeout
        tell: Callable[[Call], Call]
        while True:
            if (busy := first_busy(self._all_queues)) is not None:
                busy.rouse()
                tell = partial(_when_quiet, busy)
            elif loop is not None and loop.is_busy:
                tell = loop.when_idle
            else:
                return
            seconds = None if until is None else max(0.0, until - now())
            if not (yield tell, seconds):
                return

    def _closing(self, timeout: float | None, *, aside: bool) -> Steps:
        with self._lock:
            is_first, self._ending = self._ending is None, self._ending or Ending()
            ending: Ending = self._ending
        if not is_first:
            # Bounded by those who close: by their time, and the patience thereafter.
            yield ending.tell, None
            assert ending.report is not None
            return ending.report
        ending.loop = running_loop()
        try:
            self._publisher.is_closing = True
            self._routes.reset(is_plain=False)
            if self._consumers is not None:
                self._consumers.stop_handing_out()
            # A handler that closes its bus waits for none that may be waiting for it.
            is_outside = all(each.finished for each in ancestry(here.get()))
            loop = self._furniture.loop_thread if is_outside else None
            yield from self._drained(timeout, loop)
            workers = self._give_up(ending)
            if aside and ending.letters:  # what is written to may be locked
                yield partial(_aside, partial(self._keep_letters, ending)), None
            self._keep_letters(ending)
            patience = monotonic() + _PATIENCE
            for worker in workers:
                if (yield worker.end.tell, max(0.0, patience - monotonic())):
                    worker.join()
            if aside:
                if not self._furniture.loop_thread.is_here:  # else it ends when its handler has
                    yield partial(_aside, self._furniture.loop_thread.close), None
                yield partial(_aside, self._put_away), None
        finally:
            self._end(ending)
        assert ending.report is not None
        return ending.report

    def _give_up(self, ending: Ending) -> list[Worker]:
        """
        Write off what is left, and end all workers, those at work by a cancellation.

        Returns:
            Those whose end can be waited for.
        """
        with gathering(self._furniture) as ending.letters:
            if self._postponed is not None:
                ending.unpublished = self._postponed.give_up()
            return self._write_off_all(ending)

    def _write_off_all(self, ending: Ending) -> list[Worker]:
        queues = self._all_queues()
        ending.before = {queue: queue.depth().undelivered for queue in queues}
        # All of them first: else one would go on while another is written off.
        staffs = [tuple(queue.staff) for queue in queues]
        stopped = [queue.stop() for queue in queues]
        workers: list[Worker] = []
        for queue, staff, (jobs, in_hand) in zip(queues, staffs, stopped, strict=True):
            ending.running[queue] = len(in_hand)
            queue.write_off(jobs, in_hand)
            for worker in staff:
                worker.cancel()
            # A thread in the midst of a handler ends with it, and nobody knows when; and who
            # lends himself does not end.
            ends = [each for each in staff if each.park is not None and each not in in_hand]
            ends += [each for each in staff if each.loop is not None]
            workers += [each for each in ends if not each.is_lost()]
        return workers

    def _keep_letters(self, ending: Ending) -> None:
        letters, ending.letters = ending.letters, []
        keep_all(self._furniture, letters)

    def _end(self, ending: Ending) -> None:
        if ending.before is None:  # interrupted: what is left is written off all the same
            self._give_up(ending)
        self._keep_letters(ending)
        self._routes.close(f"EventBus {self.name!r}")
        self._alarms.close()
        self._furniture.loop_thread.close()
        self._put_away()
        ending.report = report = ending.account(self._in_log or {})
        if not report.ok:
            logger().warning("%s is closed with events not handled: %s", self.name, report)
        ending.has_come()

    def _all_queues(self) -> list[Intake]:
        later = () if self._postponed is None else self._postponed.queues
        return [*self._queues.values(), *later]

    def _refuse_own(self, verb: str, *, awaits: bool) -> None:
        """
        Refuse to wait, here, for what could then not go on.
        """
        me, loop = threading.current_thread(), running_loop()
        task = None if loop is None else _current_task()
        ending: Ending | None = None if loop is None or awaits else self._ending
        if ending is not None and ending.loop is loop and not ending.is_over:
            raise self._blocking(verb, "aclose(), which is under way, and its handlers")
        for queue in self._all_queues():
            if queue.is_handled_by(me) or (task is not None and queue.is_handled_by(task)):
                raise WouldDeadlockError(
                    f"{verb}() in a handler of {queue.name} would wait for that handler. Call it "
                    f"from outside."
                )
            if loop is None or awaits or not queue.is_busy:
                continue
            if queue.works_on(loop) or (queue.needs_loop and self._home.loop is loop):
                raise self._blocking(verb, f"handlers of {queue.name}", queue.name)

    def _blocking(self, verb: str, what: str, subscription: str = "") -> RunningLoopError:
        return RunningLoopError(
            f"{verb}() in the thread of the event loop that {what} run on would keep them from "
            f"running. Use await bus.a{verb}().",
            subscription=subscription,
        )


def _check_timeout(verb: str, timeout: Any) -> None:
    """
    Refuse what is no time, before anything is given up for want of it.
    """
    try:
        is_time = timeout is None or float(timeout) == timeout
    except (TypeError, ValueError):
        is_time = False
    if not is_time:
        raise TypeError(f"{verb}(timeout=) takes a number of seconds or None, not {timeout!r}")


def _when_quiet(queue: Intake, call: Call) -> Call:
    queue.when_idle(call, or_paused=True)
    return partial(queue.forget, call)


def _current_task() -> object:
    import asyncio  # late: where a loop runs it is loaded already

    return asyncio.current_task()


def _aside(do: Call, call: Call) -> Call:
    """
    Do in a thread what blocks, and call back.
    """

    def run() -> None:
        do()
        call()

    thread = threading.Thread(target=run, name="eventbus-closing", daemon=True)
    thread.start()
    return thread.join
