"""
The queue of one durable subscription: what was begun in the store, on its way to a worker.

Law: a queue like any other, only that the log is behind it: it is filled by whoever reads
the log, it is not empty while the log has more, and what it is asked to give back is not
lost. It neither reads the log nor writes to the store.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from eventbus._alarms import Alarms
from eventbus._intake import Intake
from eventbus._job import Depth, Job
from eventbus._mode import Durable, Queued

__all__ = ["LogQueue", "mode_of"]

Ring = Callable[[], None]


def mode_of(delivery: Durable) -> Queued:
    """
    Return the bounds of a durable subscription's queue: who fills it has bounds of its own.
    """
    return Queued(capacity=2**62, workers=delivery.workers)


class LogQueue(Intake):
    """
    A queue that is filled from the log.

    Attributes:
        owes: Tells whether the log, or who keeps account of it, has something to do.
        aside: Tells how many events were read and have not come here.
        unread_in_log: Tells how many records nobody has looked at; while nothing is handed
            out here, how many are not finished.
        state_of_log: Tells what keeps the log from being consumed here, in a word.
        go_on: Has the log consumed again, if that has stopped.
    """

    owes: Callable[[], bool] = staticmethod(lambda: False)
    aside: Callable[[], int] = staticmethod(lambda: 0)
    unread_in_log: Callable[[], int] = staticmethod(lambda: 0)
    state_of_log: Callable[[], str] = staticmethod(lambda: "")
    go_on: Callable[[], None] = staticmethod(lambda: None)

    @property
    def unread(self) -> int:
        """
        How many records of the log nobody has looked at.
        """
        return self.unread_in_log()

    @property
    def state(self) -> str:
        """
        What keeps the log from being consumed here, in a word; empty if nothing does.
        """
        return self.state_of_log()

    def lost_with_the_process(self) -> int:
        """
        Return none: the log has them all.
        """
        return 0

    def depth(self) -> Depth:
        """
        Return what it holds now, together with what was read for it.
        """
        depth = super().depth()
        return attrs.evolve(depth, waiting=depth.waiting + self.aside())

    def __init__(self, *given: Any, alarms: Alarms, **options: Any) -> None:
        super().__init__(*given, alarms=_Patient(alarms), **options)

    def _is_busy(self) -> bool:
        return self.owes() or super()._is_busy()

    def resume(self) -> None:
        """
        Hand out again, though the subscription had stopped.
        """
        super().resume()
        self.go_on()

    @property
    def has_jobs(self) -> bool:
        """
        Whether something is in it or in hand, whatever the log has.
        """
        with self._lock:
            return super()._is_busy()

    @property
    def is_watched(self) -> bool:
        """
        Whether somebody waits for the end of what there is to do.
        """
        return bool(self._watching)

    def settle_up(self) -> None:
        """
        Tell who waits for the end, if nothing is left to do.
        """
        if not self._watching:
            return
        with self._lock:
            calls = self._news()
        for call in calls:
            call()

    def take_held(self, key: str) -> list[Job]:
        """
        Take out what is held behind the first of a key.
        """
        with self._lock:
            held = self._backlog.keys.get(key)
            if not held:
                return []
            self._backlog.keys[key] = None
            self._backlog.aside -= len(held)
        return list(held)


class _Patient:
    """
    Alarms that do not ring for what is never due by itself.
    """

    def __init__(self, alarms: Alarms) -> None:
        self._alarms = alarms
        self.at = alarms.at

    def after(self, seconds: float, ring: Ring) -> Ring:
        return _nothing if seconds == math.inf else self._alarms.after(seconds, ring)


def _nothing() -> None: ...
