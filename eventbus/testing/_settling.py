"""
A bus whose queues are worked off when the test says so, in the test's thread or task.

Law: what a worker does with a job is the real bus's code; who does it, and when, is
decided here. Nothing here waits for real time.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from typing import Any

from eventbus._running import DrainReport
from eventbus.testing._stamina import EndlessError
from eventbus.testing._working_off import Until, WorkingOffBus

__all__ = ["SettlingBus", "Until"]

# Seconds of the clock that what is queued is given in the end, as on the real bus.
_PATIENCE = 10.0


class SettlingBus(WorkingOffBus):
    """
    The part of `TestBus` that has no workers.
    """

    _cure = (
        "In a test, TestBus(durable=True) has one in memory, and so has the fixture "
        "durable_test_bus; a bus that is recorded needs a store itself."
    )

    # -- the verbs: the twins ----------------------------------------------------------------

    def settle(self, *, until: Until | None = None) -> None:
        """
        Handle what is queued and due, here and now, until nothing is.

        Handlers run one after the other, the queues taking turns; what they publish is
        handled as well. What is due later, a retry or a delayed publish, becomes due when
        the clock is advanced.

        Args:
            until: Advance the clock as well, from one thing due to the next: to a moment,
                or until a condition holds. It is asked each time that every queue has
                handed out one event.

        Raises:
            HandlerErrors: Handlers failed for good; see *errors* of `TestBus`.
            RunningLoopError: Async handlers have something to do, and an event loop runs
                in this thread: use ``await bus.asettle()``.
            AssertionError: Nothing more is due, and the condition does not hold; or a
                handler publishes into its own queue without end.
        """
        __tracebackhide__ = True
        _check_until(until)
        bus: Any = self._stand_in()
        bus._start_consuming()
        bus._refuse_loop()
        with bus._raising_late("what was queued"):
            bus._work_off(until)
            while bus._has_to_wait(until):
                bus._wait(until)
                bus._work_off(until)

    async def asettle(self, *, until: Until | None = None) -> None:
        """
        Handle what is queued and due, awaiting async handlers in this task; see `settle`.
        """
        __tracebackhide__ = True
        _check_until(until)
        bus: Any = self._stand_in()
        bus._start_consuming()
        with bus._raising_late("what was queued"):
            await bus._awork_off(until)
            while bus._has_to_wait(until):
                bus._wait(until)
                await bus._awork_off(until)

    def drain(self, timeout: float | None = None) -> DrainReport:
        """
        Handle what was accepted, advancing the clock to what is due within *timeout*.

        Where handlers publish into their own queues without end, it comes back with what is
        left; without a *timeout*, `settle` says what it raises.
        """
        bus: Any = self._stand_in()
        if bus._is_manned:
            with bus._raising_late("what was queued"):
                return super().drain(timeout)
        bus._refuse_loop()
        end = bus._end_of(timeout)
        with bus._raising_late("what was queued"), _giving_up(timeout):
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
            with bus._raising_late("what was queued"):
                return await super().adrain(timeout)
        end = bus._end_of(timeout)
        with bus._raising_late("what was queued"), _giving_up(timeout):
            await bus._awork_off()
            while bus._waits_until(end):
                bus._wait(None)
                await bus._awork_off()
        return await super().adrain(0.0)

    def close(self, timeout: float | None = _PATIENCE) -> DrainReport:
        """
        Handle what was accepted, as `drain` does, and end; see `eventbus.EventBus.close`.
        """
        bus: Any = self._stand_in()
        if bus._is_manned or bus.is_closed:
            with bus._raising_late("what was queued"):
                return super().close(timeout)
        bus._refuse_loop("Use await bus.aclose().")
        try:
            bus.drain(timeout)
        finally:
            report = super().close(0.0)
        return report

    async def aclose(self, timeout: float | None = _PATIENCE) -> DrainReport:
        """
        Handle what was accepted, awaiting async handlers in this task, and end.
        """
        bus: Any = self._stand_in()
        if bus._is_manned or bus.is_closed:
            with bus._raising_late("what was queued"):
                return await super().aclose(timeout)
        try:
            await bus.adrain(timeout)
        finally:
            report = await super().aclose(0.0)
        return report

    def _catch_up(self) -> None:
        """
        Handle what was accepted as the end of the bus would.
        """
        if not self._is_manned:
            self._refuse_loop("Use await bus.asettle() in the block, or an async with block.")
        self.drain(_PATIENCE)

    async def _acatch_up(self) -> None:
        """
        Handle what was accepted as the end of the bus would, awaiting async handlers here.
        """
        await self.adrain(_PATIENCE)

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


def _check_until(until: object) -> None:
    __tracebackhide__ = True
    if not (until is None or isinstance(until, datetime) or callable(until)):
        raise TypeError(
            f"until= takes a moment, a datetime, or a function that says whether it has come, "
            f"not {until!r}. To let time pass, say bus.clock.advance(seconds=5)."
        )


def _giving_up(timeout: float | None) -> AbstractContextManager[None]:
    """
    Go no further with what has no end: on a clock that nobody moves, no time is ever over.
    """
    return nullcontext() if timeout is None else suppress(EndlessError)
