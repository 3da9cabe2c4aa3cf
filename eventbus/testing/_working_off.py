"""
A bus whose queues are worked off in the test's thread or task.

Law: what a worker does with a job is the real bus's code; who does it, and in which order,
is decided here. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any

from eventbus._abort import running_loop
from eventbus._clock import VirtualClock
from eventbus._intake import Intake
from eventbus._job import Worker
from eventbus._workers import in_context
from eventbus.errors import RunningLoopError
from eventbus.testing._raising import (
    Overseen,
    RaisingBus,
    collecting,
    go_on_collecting,
    is_nested,
    raise_collected,
)
from eventbus.testing._stamina import Stamina

__all__ = ["Until", "WorkingOffBus"]

Until = datetime | Callable[[], bool]


class WorkingOffBus(RaisingBus):
    """
    The part of `TestBus` that does what workers do elsewhere.
    """

    _is_settling = False

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
            queue.keeper = Overseen(queue.keeper, self._in_background)

    # -- working off: the twins --------------------------------------------------------------

    def _work_off(self, until: Until | None = None, *, sync_only: bool = False) -> None:
        __tracebackhide__ = True
        with self._settling() as is_outermost:
            queues_at_work = partial(self._queues_at_work, sync_only=sync_only)
            stamina, is_going = Stamina(queues_at_work), is_outermost
            while is_going:
                has_turned = self._turn()
                if not sync_only:
                    self._refuse_loop()  # what was handled may have led to more
                queues = self._due_queues(sync_only=sync_only)
                handled = [each for each in queues if self._handle(each)]
                stamina.spend(handled)
                is_going = (has_turned or bool(handled)) and not _has_come(until)

    async def _awork_off(self, until: Until | None = None) -> None:
        __tracebackhide__ = True
        with self._settling() as is_outermost:
            stamina, is_going = Stamina(self._queues_at_work), is_outermost
            while is_going:
                has_turned = self._turn()
                queues = self._due_queues(sync_only=False)
                handled = [each for each in queues if await self._ahandle(each)]
                stamina.spend(handled)
                is_going = (has_turned or bool(handled)) and not _has_come(until)

    def _handle(self, queue: Intake) -> bool:
        """
        Handle one job; ``False`` if the queue hands out none.
        """
        with _lent(queue) as worker:
            if (job := queue.turn(worker)) is None:
                return False
            context = job.context.copy()  # what this attempt sets there, the next does not see
            go_on_collecting(context)
            later = context.run(queue.keeper.perform, job, worker)
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
            context = job.context.copy()
            go_on_collecting(context)
            later = await in_context(context, queue.keeper.aperform(job, worker))
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

    # -- what the twins share ----------------------------------------------------------------

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

    def _queues_at_work(self, *, sync_only: bool = False) -> list[Intake]:
        return [
            each
            for each in self._all_queues()
            if not each.is_paused and not (sync_only and each.needs_loop)
        ]

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
        __tracebackhide__ = True
        if self._is_manned:
            return
        is_own = self._raises_at_last and not is_nested()
        with collecting(self._late) if is_own else nullcontext():
            self._work_off(sync_only=running_loop() is not None)
        if is_over and is_own:
            raise_collected("what became due", self._late)


def _has_come(until: Until | None) -> bool:
    return until is not None and not isinstance(until, datetime) and until()


@contextmanager
def _lent(queue: Intake) -> Generator[Worker]:
    worker = queue.lend()
    try:
        yield worker
    except BaseException:
        queue.bereave(worker, revives=False)
        raise
    queue.release(worker)
