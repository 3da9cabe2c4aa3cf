"""
Who works at a queue: hired, at work, parked, and dismissed in the end.

Law: keeps account of the workers, and nothing else. Who calls anything here holds the
lock of the queue. A parked worker waits on a lock of its own, which to release is all
there is to waking it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from eventbus._job import Job, Worker

__all__ = ["Staff"]


class Staff:
    """
    The workers of one queue.

    Attributes:
        parked: What those wait on that have nothing to do.
    """

    def __init__(self) -> None:
        self._members: set[Worker] = set()
        self.parked: list[threading.Lock] = []

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._members))

    @property
    def is_busy(self) -> bool:
        """
        Whether one has something in hand, or is about to take it.
        """
        return any(each.is_busy for each in self)

    def hire(self, worker: Worker) -> None:
        """
        Count a worker in.
        """
        worker.is_dismissed = False
        self._members.add(worker)

    def dismiss(self, worker: Worker) -> None:
        """
        Count a worker out: it is to end, if it has not already.
        """
        worker.is_dismissed = True
        worker.is_busy = False
        self._members.discard(worker)

    def send_away(self, worker: Worker, *, for_good: bool) -> None:
        """
        Let a worker wait that has nothing to do; a task ends.
        """
        worker.is_busy = False
        if worker.park is None or for_good:
            self.dismiss(worker)
        else:
            self.parked.append(worker.park)

    def call_back(self, worker: Worker) -> None:
        """
        Take back that *worker* was sent away.
        """
        if worker.park is None:
            self.hire(worker)
        else:
            self.parked.remove(worker.park)

    def wake_one(self) -> bool:
        """
        Wake a worker, if one is parked.
        """
        if not self.parked:
            return False
        self.parked.pop().release()
        return True

    def wake_all(self) -> None:
        """
        Wake all who are parked.
        """
        while self.wake_one():
            pass

    def in_hand(self) -> dict[Worker, Job]:
        """
        Return who has what in hand, and has not been told to leave it.
        """
        return {
            each: each.job
            for each in self
            if each.job is not None and each.abandoned is not each.job
        }

    def abandon(self) -> dict[Worker, Job]:
        """
        Give up what is in hand, unless its outcome is being written down already.
        """
        given_up = {
            worker: job for worker, job in self.in_hand().items() if worker.recorded is not job
        }
        for worker, job in given_up.items():
            worker.abandoned, worker.is_busy = job, False
        return given_up
