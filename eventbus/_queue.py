"""
The queue of one subscription, as those see it who neither publish nor handle.

Law: hires, pauses, ends and looks; what is handed out, and to whom, is decided at the
desk below. It neither calls a handler nor waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter
from typing import Literal

from eventbus._desk import Desk
from eventbus._job import Depth, Job, Worker

__all__ = ["Queue"]

# Seconds after which a task that was cancelled from outside is replaced.
_REVIVAL = 0.05

Call = Callable[[], None]

_since = attrgetter("since")


class Queue(Desk):
    """
    A desk that can be paused, ended and looked at.
    """

    # -- pausing -------------------------------------------------------------------------------

    def pause(self) -> None:
        """
        Hand out nothing until `resume`; what is in hand is finished.
        """
        with self._lock:
            self._is_paused = True
            self._flag()
            calls = [call for call, minds_pause in self._watching if not minds_pause]
            self._watching = [each for each in self._watching if each[1]]
        for call in calls:
            call()

    def resume(self) -> None:
        """
        Hand out again.
        """
        with self._lock:
            self._is_paused = False
        self.rouse()

    @property
    def is_paused(self) -> bool:
        """
        Whether nothing is handed out.
        """
        return self._is_paused

    # -- waiting for the end -------------------------------------------------------------------

    def when_idle(self, call: Call, *, or_paused: bool = False) -> None:
        """
        Call back, once, when all that was accepted is over: now, if it is.

        Args:
            call: Is called in the thread of whoever ends it.
            or_paused: Call back also when nothing is handed out any more.
        """
        with self._lock:
            waits = self._is_busy() and not (or_paused and self._is_paused)
            if waits:
                self._watching.append((call, not or_paused))
        if not waits:
            call()

    def forget(self, call: Call) -> None:
        """
        Call back no more.
        """
        with self._lock:
            self._watching = [each for each in self._watching if each[0] is not call]

    def retire(self, then: Call) -> None:
        """
        Take no more; when what was accepted is over, let the workers end and call *then*.
        """
        with self._lock:
            self._seal()
            blocked = self._unblock()
        for call in blocked:
            call()
        self.when_idle(partial(self._end, then))

    def _end(self, then: Call) -> None:
        self.give_up()
        then()

    def _seal(self) -> None:
        self._is_sealed, self._capacity = True, 0
        self._flag()

    def _unblock(self) -> list[Call]:
        blocked = list(self._blocked)
        self._blocked.clear()
        return blocked

    def give_up(self) -> dict[Worker, Job]:
        """
        Take and hand out no more, and write off all that is not over.

        Returns:
            What is being handled, by whom: it is written off, too.
        """
        jobs, in_hand = self.stop()
        self.write_off(jobs, in_hand)
        return in_hand

    def stop(self) -> tuple[list[Job], dict[Worker, Job]]:
        """
        Take and hand out no more; return all that is not over, to be written off.

        Returns:
            What nobody has in hand; and what is being handled, by whom.
        """
        with self._lock:
            self._is_closed = True
            self._seal()
            in_hand = self.staff.abandon()
            jobs = self._backlog.take_all()
            self._undelivered += len(jobs) + len(in_hand)
            calls = [*self._unblock(), *(call for call, _ in self._watching)]
            self._watching = []
            self.staff.wake_all()
        for call in calls:
            call()
        return jobs, in_hand

    def write_off(self, jobs: Iterable[Job], in_hand: Mapping[Worker, Job]) -> None:
        """
        Keep as dead letters what `stop` has returned, in the order in which it came.
        """
        held = set(map(id, in_hand.values()))
        for job in sorted((*jobs, *in_hand.values()), key=_since):
            self.keeper.write_off(job, "undelivered", is_in_hand=id(job) in held)

    def take_back(self) -> list[Job]:
        """
        Take out all that nobody has in hand.
        """
        with self._lock:
            jobs = self._backlog.take_all()
            self._flag()
            calls = self._news()
        for call in calls:
            call()
        return jobs

    # -- who comes and goes --------------------------------------------------------------------

    def hire(self, worker: Worker) -> bool:
        """
        Count *worker* in, before it starts; ``False`` if it is one too many by now.
        """
        with self._lock:
            is_wanted = len(self.staff) < self.limit and not self._is_closed
            if is_wanted:
                self.staff.hire(worker)
            self._flag()
        return is_wanted

    def revive_soon(self) -> None:
        """
        Have a worker take over a little later: by then a loop that ends is closed.
        """
        if not self._is_closed:
            self._alarms.after(_REVIVAL, self.rouse)

    def lend(self, who: object = None) -> Worker:
        """
        Return a worker for who hands out and handles by himself, until `turn` ends it.

        Args:
            who: The thread or the task that will handle.
        """
        worker = Worker(who=who)
        with self._lock:
            self.staff.hire(worker)
            self._flag()
        return worker

    def release(self, worker: Worker) -> None:
        """
        Finish what a lent worker has in hand, and count it out.
        """
        with self._lock:
            self._finish(worker)
            self.staff.dismiss(worker)
            self._flag()
            calls = self._news()
        for call in calls:
            call()

    @property
    def has_worker_free(self) -> bool:
        """
        Whether one more job might be handled at the same time as those in hand.
        """
        return len(self.staff) < self._mode.workers and not self._is_paused

    # -- looking -------------------------------------------------------------------------------

    def is_handled_by(self, who: object) -> bool:
        """
        Whether that thread or task has one of its jobs in hand.
        """
        with self._lock:
            return any(worker.who is who for worker in self.staff.in_hand())

    def find(self, event_id: str) -> Literal["waiting", "scheduled", "in hand"] | None:
        """
        Say where in the queue an event is, if it is.
        """
        with self._lock:
            waiting, scheduled = self._backlog.waiting(), self._backlog.due_later()
            in_hand = self.staff.in_hand().values()
        if any(job.receipt.id == event_id for job in waiting):
            return "waiting"
        if any(job.receipt.id == event_id for job in scheduled):
            return "scheduled"
        return "in hand" if any(job.receipt.id == event_id for job in in_hand) else None

    def works_on(self, loop: object) -> bool:
        """
        Whether its workers are tasks of that event loop.
        """
        return any(worker.loop is loop for worker in self.staff)

    def depth(self) -> Depth:
        """
        Return what it holds now.
        """
        with self._lock:
            waiting = self._backlog.waiting()
            scheduled, in_hand = self._backlog.scheduled, self.staff.in_hand()
            dropped, undelivered = self._dropped, self._undelivered
        oldest = min((job.since for job in waiting), default=None)
        return Depth(
            waiting=len(waiting),
            scheduled=scheduled,
            in_flight=len(in_hand),
            dropped=dropped,
            undelivered=undelivered,
            lag=0.0 if oldest is None else max(0.0, self._now() - oldest),
        )
