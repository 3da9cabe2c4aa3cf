"""
What a queue hands out, and to whom: jobs, workers, and who keeps account of them.

Law: values and protocols; nothing here waits, locks or calls.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from itertools import repeat
from typing import Any, NamedTuple, Protocol

import attrs

from eventbus._receipt import Receipt
from eventbus._verdict import Trial
from eventbus.dead_letter import Reason

__all__ = [
    "NOBODY",
    "Depth",
    "Job",
    "Keeper",
    "Later",
    "QueuedReceipt",
    "Relief",
    "Worker",
    "into_hand",
]


class Job(NamedTuple):
    """
    One event on its way to one handler.

    Attributes:
        event: The event.
        receipt: The publish it belongs to.
        context: A copy of the publisher's, for this delivery alone.
        since: When it was accepted, on the monotonic clock.
        key: What orders it, or ``None``.
        trial: The attempts so far, if there is anything to know of them.
        returns: How often a worker has ended with it in hand.
    """

    event: Any
    receipt: Receipt
    context: Context
    since: float
    key: str | None
    trial: Trial | None
    returns: int = 0


class QueuedReceipt(Receipt):
    """
    The receipt of a publish that is over when one queue has it: a job by itself.

    It stands for `Job` wherever one does. What the two of them are, made apart, takes
    half as long again, and the garbage collector has twice as much to look at. Of what a
    receipt has, only what differs from one to the next is stored.
    """

    __slots__ = ("context", "since")

    context: Context
    since: Any

    finished: bool = True
    parent: Receipt | None = None
    key: str | None = None
    trial: Trial | None = None
    returns: int = 0

    @property
    def receipt(self) -> Receipt:
        """
        The publish it belongs to.
        """
        return self

    def _replace(self, **changes: Any) -> Job:
        return Job(self.event, self, self.context, self.since, None, None)._replace(**changes)


class Later(NamedTuple):
    """
    What is still to do about a job that a worker lets go of.

    Attributes:
        trial: Its attempts so far.
        delay: Seconds until it is due.
        wake: Given a callback, has it called when the job is due earlier: ``None``
            where it never will, ``False`` where the job is due already.
    """

    trial: Trial
    delay: float
    wake: Callable[[Callable[[], None]], bool | None] | None = None


def _nothing() -> None: ...


class Latch:
    """
    Something that comes once, and that anybody may wait for.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_over = False
        self._waiting: list[Callable[[], None]] = []

    def tell(self, call: Callable[[], None]) -> Callable[[], None]:
        """
        Call back when it is over; return what ends the wait.
        """
        with self._lock:
            is_over = self._is_over
            if not is_over:
                self._waiting.append(call)
        if is_over:
            call()
        return _nothing

    @property
    def is_over(self) -> bool:
        """
        Whether it has come.
        """
        return self._is_over

    def has_come(self) -> None:
        """
        Tell all who wait.
        """
        with self._lock:
            self._is_over = True
            waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


@attrs.define(eq=False)
class Worker:
    """
    Who handles one job at a time: a thread or a task.

    Attributes:
        park: What a thread waits on while there is nothing to do; ``None`` for a task,
            which ends instead.
        who: The thread, or the task.
        loop: Where a task runs.
        job: What it has in hand.
        key: What its job, in hand or just done, keeps others of the same key waiting by.
        is_busy: It has something in hand, or is about to take it.
        abandoned: What it had in hand when that was given up, and written off.
        recorded: What it had in hand when it began to write down the outcome: nobody else
            may do so.
        waits_for: The full queue that its handler publishes into.
        is_dismissed: It is to end.
        end: Comes when it has ended.
        is_lost: Whether it will never go on: killed, or its loop was closed under it.
    """

    park: threading.Lock | None = None
    who: Any = None
    loop: Any = None
    job: Job | None = None
    key: str | None = None
    is_busy: bool = False
    abandoned: Job | None = None
    recorded: Job | None = None
    waits_for: Any = None
    is_dismissed: bool = False
    is_lost: Callable[[], bool] = bool
    end: Latch = attrs.field(factory=Latch)

    def cancel(self) -> None:
        """
        Cancel what a task awaits. A thread cannot be stopped, and ends by itself.
        """
        if self.loop is not None and self.who is not None:
            with suppress(RuntimeError):  # its loop is closed
                self.loop.call_soon_threadsafe(self.who.cancel)

    def join(self) -> None:
        """
        Wait for a thread that has nothing more to do.
        """
        if self.park is not None and self.who is not threading.current_thread():
            self.who.join()


def into_hand(worker: Worker, ready: deque[Job]) -> Callable[[], None]:
    """
    Return what takes the next job from *ready* into the hand of *worker*, in one step.

    A thread may be killed between any two steps of Python's, and a job that was taken and
    not yet stored would be lost; what is put together here runs in C from end to end.

    Raises:
        IndexError: There was none, when it was called.
    """
    return map(setattr, repeat(worker), repeat("job"), iter(ready.popleft, None)).__next__


class Keeper(Protocol):
    """
    What a queue asks of the subscription's delivery.
    """

    def refuse(self, receipt: Receipt, error: Exception) -> None:
        """
        Let the publish know that its event was not accepted.
        """
        ...

    def write_off(self, job: Job, reason: Reason, *, is_in_hand: bool = False) -> None:
        """
        Keep what will not be handled as a dead letter, and tell the observers.
        """
        ...

    def lose(self, job: Job) -> None:
        """
        Give up a job that several workers have ended with in hand.
        """
        ...

    def perform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job in this thread; return what is still to do about it.
        """
        ...

    async def aperform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job in this task; return what is still to do about it.
        """
        ...


class Relief(Protocol):
    """
    Who handles the jobs of queues that have no workers.
    """

    def relieve(self, queue: Any) -> bool:
        """
        Handle one job of *queue* here; ``False`` if there is none to be handled.
        """
        ...

    async def arelieve(self, queue: Any) -> bool:
        """
        Handle one job of *queue* here; ``False`` if there is none to be handled.
        """
        ...


@attrs.frozen(kw_only=True)
class Depth:
    """
    What a queue holds at one moment.
    """

    waiting: int = 0
    scheduled: int = 0
    in_flight: int = 0
    dropped: int = 0
    undelivered: int = 0
    lag: float = 0.0

    @property
    def pending(self) -> int:
        """
        What was accepted and is not over.
        """
        return self.waiting + self.scheduled + self.in_flight


class _Nobody:
    """
    Stands for the keeper of a queue that is not folded yet: nothing is put there.
    """

    def refuse(self, receipt: Receipt, error: Exception) -> None: ...

    def write_off(self, job: Job, reason: Reason, *, is_in_hand: bool = False) -> None: ...

    def lose(self, job: Job) -> None: ...

    def perform(self, job: Job, worker: Worker) -> Later | None: ...

    async def aperform(self, job: Job, worker: Worker) -> Later | None: ...


NOBODY: Keeper = _Nobody()
