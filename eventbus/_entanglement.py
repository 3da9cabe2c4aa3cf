"""
Who waits for whom: handlers that wait for room which only they themselves could make.

Law: looks at what workers have in hand and wait for; it neither waits nor refuses.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Protocol

from eventbus._job import Job, Worker
from eventbus._receipt import ancestry
from eventbus._staff import Staff

__all__ = ["entangled", "waiting_for", "workers_behind"]


class Line(Protocol):
    """
    A queue, as far as its publishers may have to wait for its workers.
    """

    name: str
    limit: int
    staff: Staff

    @property
    def is_full(self) -> bool:
        """
        Whether there is no room.
        """
        ...


def workers_behind(line: Line, job: Job, who: object) -> list[Worker]:
    """
    Return whose handler publishes *job* into *line*, in the thread or task *who*.

    Where a handler has another task publish, and perhaps waits for it, *who* does not say:
    then all are returned that have the event in hand which caused it.
    """
    found = [worker for worker in line.staff.in_hand() if worker.who is who]
    for cause in ancestry(job.receipt.parent):
        for subscription in getattr(cause.route, "subscriptions", ()):
            staff = () if subscription.queue is None else subscription.queue.staff.in_hand().items()
            found += [worker for worker, in_hand in staff if in_hand.receipt is cause]
    return [each for each in found if each.who is who] or found


@contextmanager
def waiting_for(line: Line, workers: Iterable[Worker]) -> Generator[None]:
    """
    Let it be known that *workers* wait for room in *line*.
    """
    before = [(worker, worker.waits_for) for worker in workers]
    for worker, _ in before:
        worker.waits_for = line
    try:
        yield
    finally:
        for worker, was in before:
            worker.waits_for = was


def entangled(line: Line) -> list[Line]:
    """
    Return the queues that *line* is entangled with, itself the first; none, if there is hope.

    They are full, and each of their workers waits for room in one of them.
    """
    lines: list[Any] = [line]
    for each in lines:  # which grows meanwhile
        waited_for = [worker.waits_for for worker in each.staff if worker.waits_for is not None]
        if not each.is_full or len(waited_for) < max(each.limit, 1):
            return []
        lines += [other for other in dict.fromkeys(waited_for) if other not in lines]
    return lines
