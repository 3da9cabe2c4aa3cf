"""
A bus whose queues are worked off when the test says so, in the test's thread or task.

Law: what a worker does with a job is the real bus's code; who does it, and when, is
decided here. Nothing here waits for real time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from datetime import datetime
from typing import Any

from eventbus._abort import running_loop
from eventbus._clock import VirtualClock
from eventbus._intake import Intake
from eventbus._job import Worker
from eventbus._receipt import Failure, raise_failures
from eventbus._running import DrainReport
from eventbus._workers import in_context
from eventbus.errors import RunningLoopError
from eventbus.testing._raising import RaisingBus, collecting, go_on_collecting

__all__ = ["SettlingBus", "Until"]

Until = datetime | Callable[[], bool]


class SettlingBus(RaisingBus):
    """
    The part of `TestBus` that has no workers.
    """

    _is_settling = False
    _late: list[Failure]

    @property
    def _time(self) -> VirtualClock:
        clock = self._furniture.clock
        assert isinstance(clock, VirtualClock)
        return clock

    @property
    def _is_manned(self) -> bool:
        return self._workers is None

    def _queue_for(self, subscription: Any) -> Intake:
        queue = super()._queue_for(subscription)
        self._dress([queue])
        return queue

    def _dress(self, queues: Iterable[Intake]) -> None:
        for queue in queues:
            queue.relief = None if self._is_manned else self

    # -- the verbs: the twins ----------------------------------------------------------------

    def settle(self, *, until: Until | None = None) -> None:
        """
        Handle what is queued and due, here and now, until nothing is.

        Handlers run one after the other, the queues taking turns; what they publish is
        handled as well. What is due later, a retry or a delayed publish, becomes due when
        the clock is advanced.

        Args:
            until: Advance the clock as well, from one thing due to the next: to a moment,
                or until a condition holds.

        Raises:
            HandlerErrors: Handlers failed for good; see *errors* of `TestBus`.
            RunningLoopError: Async handlers have something to do, and an event loop runs
                in this thread: use ``await bus.asettle()``.
            AssertionError: Nothing more is due, and the condition does not hold.
        """
        __tracebackhide__ = True
        bus: Any = self._stand_in()
        bus._start_consuming()
        bus._refuse_loop()
        with bus._raising_at_last("what was queued"):
            bus._work_off()
            while bus._has_to_wait(until):
                bus._wait(until)
                bus._work_off()

    async def asettle(self, *, until: Until | None = None) -> None:
        """
        Handle what is queued and due, awaiting async handlers in this task; see `settle`.
        """
        __tracebackhide__ = True
        bus: Any = self._stand_in()
        bus._start_consuming()
        with bus._raising_at_last("what was queued"):
            await bus._awork_off()
            while bus._has_to_wait(until):
                bus._wait(until)
                await bus._awork_off()

    def drain(self, timeout: float | None = None) -> DrainReport:
        """
        Handle what was accepted, advancing the clock to what is due within *timeout*.
        """
        bus: Any = self._stand_in()
        if bus._is_manned:
            return super().drain(timeout)
        bus._refuse_loop()
        end = bus._end_of(timeout)
        with bus._raising_at_last("what was queued"):
            bus._work_off()
            while bus._waits_until(end):
                bus._wait(None)
                bus._work_off()
        return super().drain(0.0)

    async def adrain(self, timeout: float | None = None) -> DrainReport:
        """
        Handle what was accepted, awaiting async handlers in this task; see `drain`.
        """
        bus: Any = self._stand_in()
        if bus._is_manned:
            return await super().adrain(timeout)
        end = bus._end_of(timeout)
        with bus._raising_at_last("what was queued"):
            await bus._awork_off()
            while bus._waits_until(end):
                bus._wait(None)
                await bus._awork_off()
        return await super().adrain(0.0)

    def close(self, timeout: float | None = 10.0) -> DrainReport:
        """
        Handle what was accepted, as `drain` does, and end; see `eventbus.EventBus.close`.
        """
        bus: Any = self._stand_in()
        if bus._is_manned or bus.is_closed:
            return super().close(timeout)
        bus._refuse_loop(
            "Use await bus.aclose(); where a with block ends here, await bus.asettle() in it, or "
            "make it an async with block."
        )
        try:
            bus.drain(timeout)
        finally:
            report = super().close(0.0)
        return report

    async def aclose(self, timeout: float | None = 10.0) -> DrainReport:
        """
        Handle what was accepted, awaiting async handlers in this task, and end.
        """
        bus: Any = self._stand_in()
        if bus._is_manned or bus.is_closed:
            return await super().aclose(timeout)
        try:
            await bus.adrain(timeout)
        finally:
            report = await super().aclose(0.0)
        return report

    # -- working off: the twins --------------------------------------------------------------

    def _work_off(self, *, sync_only: bool = False) -> None:
        with self._settling() as is_outermost:
            is_going = is_outermost
            while is_going:
                has_turned = self._turn()
                if not sync_only:
                    self._refuse_loop()  # what was handled may have led to more
                queues = self._due_queues(sync_only=sync_only)
                is_going = True in [has_turned, *map(self._handle, queues)]

    async def _awork_off(self) -> None:
        with self._settling() as is_outermost:
            is_going = is_outermost
            while is_going:
                has_turned = self._turn()
                queues = self._due_queues(sync_only=False)
                is_going = True in [has_turned, *[await self._ahandle(each) for each in queues]]

    def _handle(self, queue: Intake) -> bool:
        """
        Handle one job; ``False`` if the queue hands out none.
        """
        with _lent(queue) as worker:
            if (job := queue.turn(worker)) is None:
                return False
            go_on_collecting(job.context)
            later = job.context.run(queue.keeper.perform, job, worker)
            if later is not None:
                queue.postpone(worker, later)
        return True

    async def _ahandle(self, queue: Intake) -> bool:
        """
        Handle one job; ``False`` if the queue hands out none.
        """
        with _lent(queue) as worker:
            if (job := queue.turn(worker)) is None:
                return False
            go_on_collecting(job.context)
            later = await in_context(job.context, queue.keeper.aperform(job, worker))
            if later is not None:
                queue.postpone(worker, later)
        return True

    def relieve(self, queue: Intake) -> bool:
        """
        Make room in a full queue, as its workers would meanwhile.
        """
        return queue.has_worker_free and self._handle(queue)

    async def arelieve(self, queue: Intake) -> bool:
        """
        Make room in a full queue, as its workers would meanwhile.
        """
        return queue.has_worker_free and await self._ahandle(queue)

    # -- durable subscriptions ---------------------------------------------------------------

    def _turn(self) -> bool:
        """
        Let durable subscriptions read on and write down, as their thread would meanwhile.
        """
        consumers = None if self._is_manned else self._consumers
        if consumers is None:
            return False
        did = consumers.turn()
        consumers.reraise()
        return did

    def restart(self) -> None:
        """
        Forget what a killed process would forget, and go on as one that was started anew.

        What waits in queues is lost, publishes that are due later are, and so is what
        durable subscriptions have in hand: it is in their store, and is handled again. A
        handler under way ends unheard. Subscriptions, records and the clock stay.
        """
        bus: Any = self._stand_in()
        for queue in bus._all_queues():
            queue.take_back()
        bus._postponed = None
        if bus._consumers is not None:
            bus._consumers.crash(bus._store)

    # -- what the twins share ----------------------------------------------------------------

    @contextmanager
    def _settling(self) -> Generator[bool]:
        """
        Work off, unless that is under way around this: then what is due is seen to there.
        """
        is_outermost, self._is_settling = not self._is_settling, True
        try:
            yield is_outermost
        finally:
            self._is_settling = not is_outermost

    def _due_queues(self, *, sync_only: bool) -> list[Intake]:
        return [
            each
            for each in self._all_queues()
            if each.ready and not each.is_paused and not (sync_only and self._who_awaits(each))
        ]

    def _who_awaits(self, queue: Intake) -> str | None:
        """
        Return whose handler has to be awaited for what *queue* hands out next, if one has.
        """
        if self._postponed is None or queue not in self._postponed.queues:
            return queue.name if queue.needs_loop else None
        return self._routes[type(queue.ready[0].event)].needs_loop

    def _refuse_loop(self, cure: str = "Use await bus.asettle().") -> None:
        if running_loop() is None:
            return
        for queue in self._due_queues(sync_only=False):
            if (name := self._who_awaits(queue)) is not None:
                raise RunningLoopError(
                    f"what waits for {name}, which is async, cannot be handled by a call in a "
                    f"thread with a running event loop. {cure}",
                    subscription=name,
                )

    def _keep_up(self, is_over: bool) -> None:
        """
        Handle what has become due on the way of the clock; raise failures in the end.
        """
        if self._is_manned:
            return
        with collecting(self._late) if self._raises_at_last else nullcontext():
            self._work_off(sync_only=running_loop() is not None)
        if is_over and self._late:
            failures, self._late = self._late, []
            raise_failures("what became due", failures)

    def _has_to_wait(self, until: Until | None) -> bool:
        __tracebackhide__ = True
        if until is None:
            return False
        if isinstance(until, datetime):
            return self._time.time() < until.timestamp()
        if until():
            return False
        if self._time.next_alarm is None:
            raise AssertionError(
                f"nothing more is due on {self.name}, and what was waited for has not happened"
            )
        return True

    def _wait(self, until: Until | None) -> None:
        clock, alarm = self._time, self._time.next_alarm
        seconds = math.inf if alarm is None else alarm - clock.monotonic()
        if isinstance(until, datetime):
            seconds = min(seconds, until.timestamp() - clock.time())
        clock.sleep(seconds)

    def _waits_until(self, end: float) -> bool:
        """
        Whether a queue is busy with something that is due by then.
        """
        alarm = self._time.next_alarm
        is_busy = any(each.is_busy and not each.is_paused for each in self._all_queues())
        return is_busy and alarm is not None and alarm <= end

    def _end_of(self, timeout: float | None) -> float:
        return math.inf if timeout is None else self._time.monotonic() + timeout


@contextmanager
def _lent(queue: Intake) -> Generator[Worker]:
    worker = queue.lend()
    try:
        yield worker
    except BaseException:
        queue.bereave(worker, revives=False)
        raise
    queue.release(worker)
