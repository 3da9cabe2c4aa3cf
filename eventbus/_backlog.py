"""
What waits in a queue: ready, held behind the first of its key, or due later.

Law: keeps the jobs in order and count, and nothing else. Who calls anything here holds
the lock of the queue; only `ready` is appended to, and popped from the left, without it.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import count

from eventbus._job import Job

__all__ = ["Backlog"]


class Backlog:
    """
    The jobs of one queue that nobody has in hand.

    Attributes:
        ready: What can be handled now.
        keys: Those of which one job is ready, scheduled or in hand, with what is held
            behind it.
        aside: How many are held or scheduled.
    """

    def __init__(self) -> None:
        self.ready: deque[Job] = deque()
        self.keys: dict[str, deque[Job] | None] = {}
        self.aside = 0
        self._scheduled: dict[int, Job] = {}
        self._tokens = count()

    def __len__(self) -> int:
        return len(self.ready) + self.aside

    @property
    def scheduled(self) -> int:
        """
        How many are due later.
        """
        return len(self._scheduled)

    def waiting(self) -> list[Job]:
        """
        Return what is ready or held.
        """
        return [*self.ready.copy(), *self._held()]

    def due_later(self) -> list[Job]:
        """
        Return what is scheduled.
        """
        return [*self._scheduled.values()]

    def add(self, job: Job) -> bool:
        """
        Take a job in; ``False`` if it is held behind another one of its key.
        """
        if (key := job.key) is None:
            self.ready.append(job)
            return True
        if key not in self.keys:
            self.keys[key] = None
            self.ready.append(job)
            return True
        if (held := self.keys[key]) is None:
            held = self.keys[key] = deque()
        held.append(job)
        self.aside += 1
        return False

    def advance(self, key: str | None) -> None:
        """
        Let the next job of a key come forward, or forget the key.
        """
        if key is None:
            return
        if held := self.keys.get(key):
            self.aside -= 1
            self.ready.append(held.popleft())
        else:
            self.keys.pop(key, None)

    def schedule(self, job: Job) -> int:
        """
        Put a job aside until it is due; return what it is then asked for with.
        """
        token = next(self._tokens)
        self._scheduled[token] = job
        self.aside += 1
        return token

    def is_due(self, token: int) -> bool:
        """
        Make a scheduled job ready; ``False`` if it is not scheduled any more.
        """
        job = self._scheduled.pop(token, None)
        if job is None:
            return False
        self.aside -= 1
        self.ready.append(job)
        return True

    def take_oldest(self) -> Job | None:
        """
        Take out what waits longest; what is between two attempts stays.
        """
        heads = [held for held in self.keys.values() if held]
        behind = min(heads, key=lambda held: held[0].since, default=None)
        with suppress(IndexError):  # a worker that needs no lock for it is quicker
            if behind is None or self.ready[0].since <= behind[0].since:
                job = self.ready.popleft()
                self.advance(job.key)
                return job
        if behind is None:
            return None
        self.aside -= 1
        return behind.popleft()

    def take_out(self, job: Job) -> bool:
        """
        Take out a job that is ready; ``False`` if it is not any more.
        """
        # By identity: to compare jobs would compare events, which is the user's code.
        ready = self._take_ready()
        self.ready.extend(each for each in ready if each is not job)
        return any(each is job for each in ready)

    def take_all(self) -> list[Job]:
        """
        Take out all there is.
        """
        jobs = [*self._take_ready(), *self._held(), *self._scheduled.values()]
        self.keys.clear()
        self._scheduled.clear()
        self.aside = 0
        return jobs

    def _held(self) -> list[Job]:
        return [job for held in self.keys.values() if held for job in held]

    def _take_ready(self) -> list[Job]:
        # One by one: each job is taken once, whoever else takes.
        taken: list[Job] = []
        with suppress(IndexError):
            while True:
                taken.append(self.ready.popleft())
        return taken
