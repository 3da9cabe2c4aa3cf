"""
Where the jobs of one subscription are handed out, in order by key, and taken back.

Law: decides; it neither calls a handler nor waits. What changes here changes under the
one lock, which is held for a few steps of ours and never while user code runs: who is
to be told of a change is told afterwards. Two things do without it, for they are most
of what happens, and a lock costs as much as either: a publisher appends to `ready`, and
a worker takes from it. Each of them then reads a flag (`wants`, `is_eventful`) that
whoever changes something sets before he looks at `ready` himself: one of the two sees
the other.

The life of a job::

    offer ──► ready ──► in hand ──► over
      │        ▲ ▲         │
      ▼        │ └─────────┴─► scheduled (the next attempt, a contested key)
     held ─────┘
    (behind its key's first)
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from eventbus._alarms import Alarms
from eventbus._backlog import Backlog
from eventbus._job import NOBODY, Job, Keeper, Later, Worker
from eventbus._logger import logger
from eventbus._mode import Queued
from eventbus._staff import Staff

__all__ = ["Desk"]

# Seconds between two questions after a contested key, where its store cannot call back.
_POLL = 0.02
# So many workers may end with one job in hand; it is then not given to another one.
_LIVES = 3

Call = Callable[[], None]


class Desk:
    """
    The jobs of one subscription.

    Args:
        name: The subscription's.
        mode: Its bounds.
        interval: Seconds between two calls of the handler, at least.
        alarms: Call back what is due later.
        now: The monotonic clock.
        start: Called to have one more worker start; its end is `turn` saying so.
        limit: How many workers there may be, if not as many as *mode* says.
        needs_loop: Its workers are tasks.

    Attributes:
        keeper: The subscription's delivery; replaced when it is folded anew.
        limit: How many workers there may be; 0 where somebody else lends himself.
        staff: Those there are.
        ready: What can be handled now.
        wants: A job put into *ready* would find a worker to be woken or started, or the
            queue sealed: `attend` to it.
        is_eventful: Before the next job, `turn` has something to see to.
        spells: How often a worker has begun to work, after it had nothing to do.
    """

    def __init__(
        self,
        name: str,
        mode: Queued,
        *,
        interval: float,
        alarms: Alarms,
        now: Callable[[], float],
        start: Callable[[Any], None],
        limit: int | None = None,
        needs_loop: bool = False,
    ) -> None:
        self.name = name
        self.limit = mode.workers if limit is None else limit
        self.needs_loop = needs_loop
        self.keeper: Keeper = NOBODY
        self.spells = 0
        self._mode = mode
        self._capacity = mode.capacity
        self._interval = interval
        self._next_at = 0.0
        self._alarms = alarms
        self._now = now
        self._start = start
        self._is_paused = self._is_sealed = self._is_closed = False
        self._dropped: int = 0
        self._undelivered: int = 0
        self.empty()

    def empty(self) -> None:
        """
        Begin with nothing: at first, and in a forked process, whose parent has the jobs.
        """
        self._lock = threading.Lock()
        self._backlog = Backlog()
        self.ready = self._backlog.ready
        self.staff = Staff()
        self._is_ticking = False
        self._blocked: deque[Call] = deque()
        self._watching: list[tuple[Call, bool]] = []
        self._flag()
        # Who is parked holds no reference to this, and ends with it.
        weakref.finalize(self, _release, self.staff.parked).atexit = False

    # -- taking in -----------------------------------------------------------------------------

    @property
    def _is_full(self) -> bool:
        return len(self._backlog) >= self._capacity

    def offer(self, job: Job) -> bool:
        """
        Accept a job, in its key's order, if there is room.
        """
        with self._lock:
            if self._is_full:
                return False
            starts = self._take_in(job)
        if starts:
            self._start(self)
        return True

    def _take_in(self, job: Job) -> bool:
        """
        Accept a job; return whether a worker is to be started for it.
        """
        if job.key is not None:
            self.is_eventful = True  # first: who takes it has to see that
        starts = self._backlog.add(job) and self._rouse_one()
        self._flag()
        return starts

    def attend(self, job: Job) -> bool:
        """
        See to a job that was put into `ready`; ``False``: the queue was sealed before.
        """
        with self._lock:
            if self._is_sealed:
                return not self._backlog.take_out(job)  # else it was still taken
            starts = self._rouse_one()
            self._flag()
        if starts:
            self._start(self)
        return True

    def _rouse_one(self) -> bool:
        """
        Wake one worker; return whether the caller has to start one instead.
        """
        is_open = not (self._is_paused or self._is_closed)
        return is_open and not self.staff.wake_one() and len(self.staff) < self.limit

    @property
    def _can_come(self) -> bool:
        return bool(self.staff.parked) or len(self.staff) < self.limit

    def _flag(self) -> None:
        self.wants = self._is_sealed or (self._can_come and not self._is_paused)
        self.is_eventful = bool(
            self._interval
            or self._is_paused
            or self._is_closed
            or self._backlog.keys
            or self._blocked
        )

    # -- handing out ---------------------------------------------------------------------------

    def turn(self, worker: Worker) -> Job | None:
        """
        Finish what *worker* has in hand, and give it what is next.

        Returns:
            The next job; ``None``: there is none. Then a task is no longer counted, and
            a thread has its lock in the list of those to be released.
        """
        now = self._now() if self._interval else 0.0
        with self._lock:
            self._finish(worker)
            job = self._next_for(worker, now)
            self._flag()
            ticks = self._has_to_tick()
            calls = self._news()
        if ticks:
            self._alarms.at(self._next_at, self._tick)
        for call in calls:
            call()
        return job

    def _finish(self, worker: Worker) -> None:
        key, worker.key = worker.key, None
        worker.job = worker.recorded = worker.abandoned = None
        if not self._is_closed:
            self._backlog.advance(key)

    def _next_for(self, worker: Worker, now: float) -> Job | None:
        is_new = not worker.is_busy
        while (job := self._next(now)) is None:
            self.staff.send_away(worker, for_good=self._is_closed)
            self._flag()
            # Who puts something in from here on sees that it is wanted; who did before
            # may not have seen it.
            if self._is_paused or self._is_closed or now < self._next_at or not self.ready:
                return None
            self.staff.call_back(worker)
        worker.job, worker.key, worker.is_busy = job, job.key, True
        self.spells += is_new
        return job

    def _next(self, now: float) -> Job | None:
        if self._is_paused or self._is_closed or not self.ready:
            return None
        if self._interval and now < self._next_at:
            return None
        try:
            job = self.ready.popleft()
        except IndexError:  # a worker that needs no lock for it was quicker
            return None
        if self._interval:
            self._next_at = now + self._interval
        return job

    def _has_to_tick(self) -> bool:
        """
        Whether an alarm has to be set, for when the next job may be handed out.
        """
        has_to = bool(self._interval and self.ready) and not (self._is_ticking or self._is_paused)
        # Who is lent comes from outside, whenever it is time.
        has_to = has_to and (self._can_come or self.limit == 0)
        self._is_ticking = self._is_ticking or has_to
        return has_to

    def _tick(self) -> None:
        with self._lock:
            self._is_ticking = False
        self.rouse(most=1)

    def confirm(self, worker: Worker, job: Job) -> bool:
        """
        Whether a job that *worker* took from `ready` without the lock is to be handled.

        Not if the queue was paused or closed meanwhile: ask for a `turn`.
        """
        with self._lock:
            goes_on = not (self._is_paused or self._is_closed)
            is_lost = self._is_closed and worker.abandoned is not job
            self._undelivered += is_lost
            if goes_on:
                worker.key = job.key
            else:
                worker.job = None
            if not (goes_on or self._is_closed):
                self.ready.appendleft(job)
            calls = self._news()
        for call in calls:
            call()
        if is_lost:
            self.keeper.write_off(job, "undelivered")
        return goes_on

    def amend(self, worker: Worker, job: Job) -> None:
        """
        Note what *worker*'s job has become; if it was given up meanwhile, so is this.
        """
        with self._lock:
            if worker.abandoned is worker.job is not None:
                worker.abandoned = job
            worker.job = job

    def seize(self, worker: Worker) -> bool:
        """
        Reserve the right to write down what became of *worker*'s job.

        ``False``: it was given up while it was handled, and has been written off.
        """
        with self._lock:
            if worker.job is not None and worker.abandoned is worker.job:
                return False
            worker.recorded = worker.job
            return True

    def postpone(self, worker: Worker, later: Later) -> None:
        """
        Take back *worker*'s job, to be handed out when it is due.
        """
        with self._lock:
            job, worker.job = worker.job, None
            if job is None or worker.abandoned is job:
                return
            job, token = job._replace(trial=later.trial), -1
            self._undelivered += self._is_closed
            if not self._is_closed:
                worker.key = None  # whose next ones go on waiting
                token = self._backlog.schedule(job)
        if token < 0:
            return self.keeper.write_off(job, "undelivered")
        due, delay = partial(self._is_due, token), later.delay
        if later.wake is not None and (will := self._will_wake(later.wake, due)) is not True:
            delay = 0.0 if will is False else min(delay, _POLL)
        if delay <= 0:
            return due()
        self._alarms.after(delay, due)

    def _will_wake(self, wake: Callable[[Call], bool | None], due: Call) -> bool | None:
        try:
            return wake(due)
        except Exception:
            logger().exception("the store of keys of %s cannot call back; it is asked", self.name)
            return None

    def _is_due(self, token: int) -> None:
        with self._lock:
            starts = self._backlog.is_due(token) and self._rouse_one()
            self._flag()
        if starts:
            self._start(self)

    def bereave(self, worker: Worker, *, revives: bool = True) -> None:
        """
        Note that *worker* has ended without being told to, and have another one take over.

        What it had in hand goes back to the head of the queue, unless it has cost too many
        workers their lives.
        """
        with self._lock:
            if not worker.is_dismissed:
                self.staff.dismiss(worker)
            job, worker.job = worker.job, None
            lost = None if worker.abandoned is job else job
            is_over = self._is_closed
            if lost is not None and lost.returns < _LIVES - 1 and not is_over:
                self.ready.appendleft(lost._replace(returns=lost.returns + 1))
                lost = worker.key = None
            self._undelivered += is_over and lost is not None
            self._finish(worker)
            self._flag()
            calls = self._news()
        for call in calls:
            call()
        if lost is not None:
            self.keeper.write_off(lost, "undelivered") if is_over else self.keeper.lose(lost)
        if revives:
            self.rouse()

    def rouse(self, *, most: int | None = None) -> None:
        """
        Have as many workers at work as there are jobs for, or *most* of them.
        """
        for worker in self.staff:
            if worker.is_lost():
                self.bereave(worker, revives=False)
        with self._lock:
            self._flag()  # first: who puts something in from here on attends to it
            wanted = min(len(self.ready), self.limit if most is None else most)
            starting = sum(self._rouse_one() for _ in range(wanted))
            self._flag()
        for _ in range(starting):
            self._start(self)

    # -- who is told ---------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        """
        Whether anything accepted is not over.
        """
        with self._lock:
            return self._is_busy()

    def _is_busy(self) -> bool:
        # In this order: a worker is busy before it takes what is ready.
        return len(self._backlog) > 0 or self.staff.is_busy

    def _news(self) -> list[Call]:
        """
        Return who is to be told, outside the lock, that there is room, or that all is over.
        """
        calls: list[Call] = []
        if self._blocked and not self._is_full:
            calls.append(self._blocked.popleft())
        if self._watching and not self._is_busy():
            calls += [call for call, _ in self._watching]
            self._watching = []
        return calls


def _release(parked: list[threading.Lock]) -> None:
    for each in parked:
        each.release()
