"""
What is due when: calls back at a moment of the bus's clock.

Law: what is called back belongs to the library, takes no time and raises nothing. On
a clock that keeps alarms itself (`VirtualClock`) it runs in the thread that moves the
clock; on any other, in a daemon thread that lives while something is due, and a
moment longer.
"""

from __future__ import annotations

import heapq
import itertools
import os
import threading
from collections.abc import Callable
from functools import partial

from eventbus._clock import Clock
from eventbus._fork import renewed
from eventbus._logger import logger

__all__ = ["Alarms"]

Ring = Callable[[], None]
Entry = tuple[float, int, list[Ring]]

# Seconds a thread with nothing due waits for the next alarm, longer than retries are
# apart where they come in numbers: starting one takes some 100 µs.
_LINGER = 1.0
# With so many alarms, the cancelled ones are taken out when they are more than the others.
_MANY = 64


class Alarms:
    """
    The alarms of one bus.

    Args:
        clock: Whose time they go by.
        name: The thread's name.
    """

    def __init__(self, clock: Clock, name: str) -> None:
        self._clock = clock
        self._name = name
        self._own: Callable[[float, Ring], Ring] | None = getattr(clock, "call_at", None)
        self._places = itertools.count()
        self._is_closed = False
        self._reset()

    def _reset(self) -> None:
        self._agenda = _Agenda()
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()

    def after(self, seconds: float, ring: Ring) -> Ring:
        """
        Call *ring* in so many seconds.

        Returns:
            What cancels it. An alarm that is ringing already rings to the end.
        """
        return self.at(self._clock.monotonic() + seconds, ring)

    def at(self, moment: float, ring: Ring) -> Ring:
        """
        Call *ring* when the monotonic clock shows *moment*, or soon after.
        """
        if self._own is not None:
            return self._own(moment, ring)
        self._leave_to_parent()
        agenda, rings = self._agenda, [ring]
        with agenda.changed:
            if self._is_closed:
                return rings.clear
            heapq.heappush(agenda.heap, (moment, next(self._places), rings))
            if self._thread is None:
                self._start()
            elif agenda.heap[0][2] is rings:
                agenda.changed.notify()
        return partial(agenda.cancel, rings)

    def _start(self) -> None:
        serve = partial(_serve, self._agenda, self._clock, self._end)
        thread = threading.Thread(target=serve, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            logger().exception("%s has no thread; the next alarm tries again", self._name)
        else:
            self._thread = thread

    def _end(self) -> None:
        """
        Let the thread go. Called under the lock.
        """
        self._thread = None

    def _leave_to_parent(self) -> None:
        """
        Begin with none in a forked process: they are the parent's, as is the thread.
        """
        if self._pid != os.getpid():
            self._reset()

    def close(self) -> None:
        """
        Ring no more, and end the thread. Idempotent, and final.
        """
        self._leave_to_parent()
        with self._agenda.changed:
            self._is_closed = self._agenda.is_closed = True
            self._agenda.heap.clear()
            self._agenda.changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()


class _Agenda:
    """
    What is due, for the thread that rings: it holds nothing else of its owner's.
    """

    def __init__(self) -> None:
        self.heap: list[Entry] = []
        self.changed = renewed(threading.Condition(threading.Lock()))
        self.is_closed = False
        self._cancelled = 0

    def cancel(self, rings: list[Ring]) -> None:
        """
        Let an alarm not ring. It stays on the agenda until there are too many of those.
        """
        with self.changed:
            if not rings:
                return
            rings.clear()
            self._cancelled += 1
            if self._cancelled > max(_MANY, len(self.heap) // 2):
                self._cancelled = 0
                self.heap[:] = [each for each in self.heap if each[2]]
                heapq.heapify(self.heap)
                self.changed.notify()

    def next(self, clock: Clock, end: Ring) -> Ring | None:
        """
        Wait for the next alarm that is due; ``None`` if there are none any more.
        """
        with self.changed:
            if not (self.heap or self.is_closed):
                self.changed.wait(_LINGER)
            while self.heap:
                moment, _, rings = self.heap[0]
                wait = moment - clock.monotonic()
                if wait > 0 and rings:
                    self.changed.wait(min(wait, threading.TIMEOUT_MAX))
                    continue
                heapq.heappop(self.heap)
                if rings:
                    return rings.pop()
                self._cancelled = max(0, self._cancelled - 1)
            end()
        return None


def _serve(agenda: _Agenda, clock: Clock, end: Ring) -> None:
    while (ring := agenda.next(clock, end)) is not None:
        try:
            ring()
        except Exception:
            logger().exception("what was due raised; the other alarms go on")
        del ring  # what is next may be far away
