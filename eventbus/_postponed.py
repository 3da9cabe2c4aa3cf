"""
Publishes that are due later: kept until then, cancelled, or given up with the bus.

Law: what is due is published by workers of the bus, as a queued event is handled, and
never by whoever looks at the clock. Nothing here calls a handler.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime
from functools import partial
from threading import Lock
from typing import Any

from eventbus import _process
from eventbus._alarms import Alarms
from eventbus._clock import Clock
from eventbus._deferred import let_go
from eventbus._intake import Intake
from eventbus._job import Job, Worker
from eventbus._logger import logger
from eventbus._mode import Queued
from eventbus._receipt import Receipt
from eventbus._workers import Home, start_task, start_thread
from eventbus.dead_letter import Reason
from eventbus.errors import BusClosedError

__all__ = ["Postponed", "comes_to_handlers", "moment_of"]

# The option of a receipt that says who has missed the event; `None` stands for all.
_MISSED = "missed_by"

# So many that are due may be published at once; a slow handler then delays no others.
_WORKERS = 8
# What is due is not refused: it was accepted long ago.
_MODE = Queued(capacity=2**62, workers=_WORKERS)


class Postponed:
    """
    The publishes of one bus that are due later.

    Args:
        publish: Publishes what is due, in this thread.
        apublish: Publishes what is due, in this task.
        write_off: Keeps what will not be published as dead letters: of those it is given,
            too, or else of all.
        clock: Whose time they go by.
        alarms: Tells when it is time.
        home: Where tasks run.
        limit: How many workers there may be, if not as many as ever.

    Attributes:
        name: What they are called in the log.
        queues: What is due and not published yet, for threads and for tasks.
    """

    name = "delayed publishes"

    def __init__(
        self,
        *,
        publish: Callable[[Receipt], None],
        apublish: Callable[[Receipt], Awaitable[None]],
        write_off: Callable[..., None],
        clock: Clock,
        alarms: Alarms,
        home: Home,
        limit: int | None = None,
    ) -> None:
        self._publish = publish
        self._apublish = apublish
        self._write_off = write_off
        self._clock = clock
        self._alarms = alarms
        self._home = home
        self._is_over = False
        self.empty()
        make = partial(
            Intake, mode=_MODE, limit=limit, interval=0.0, alarms=alarms, now=clock.monotonic
        )
        self._threads = make(name="delayed publishes", start=start_thread)
        self._tasks = make(
            name="delayed publishes", start=partial(start_task, home=home), needs_loop=True
        )
        self.queues = (self._threads, self._tasks)
        for queue in self.queues:
            queue.keeper = self
        _process.register(self)

    def empty(self) -> None:
        """
        Begin with nothing: at first, and in a forked process, whose parent publishes it.
        """
        self._lock = Lock()
        self._waiting: dict[Receipt, Callable[[], None]] = {}

    def lost_with_the_process(self) -> int:
        """
        Return how many publishes are due later, and known nowhere else.
        """
        return len(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, receipt: Receipt, moment: float) -> None:
        """
        Publish *receipt*'s event when the monotonic clock shows *moment*.
        """
        # Its key: what is due at about the same time is then published in order.
        key = receipt.envelope.key
        job = Job(receipt.event, receipt, copy_context(), moment, key, None)
        with self._lock:
            is_over = self._is_over
            if not is_over:
                self._waiting[receipt] = self._alarms.at(moment, partial(self._is_due, job))
        if is_over:  # the bus was closed in this moment
            self.refuse(receipt, BusClosedError("the bus ended before it was published"))

    def _is_due(self, job: Job) -> None:
        with self._lock:
            is_wanted = self._waiting.pop(job.receipt, None) is not None
        if is_wanted:
            queue = self._threads if self._home.loop is None else self._tasks
            if not queue.offer(job):
                self.refuse(job.receipt, BusClosedError("the bus ended before it was published"))

    def cancel(self, receipt: Receipt) -> bool:
        """
        Forget a publish; ``False``: it was due before, or is forgotten already.
        """
        with self._lock:
            stop = self._waiting.pop(receipt, None)
        if stop is None:
            return False
        stop()
        let_go(receipt)
        return True

    def give_up(self) -> int:
        """
        Write off all that is not due yet; count it.
        """
        with self._lock:
            self._is_over = True
            waiting, self._waiting = self._waiting, {}
        for receipt, stop in waiting.items():
            stop()
            self._write_off(receipt)
        return len(waiting)

    # -- keeping the queues ------------------------------------------------------------------

    def perform(self, job: Job, worker: Worker) -> None:
        """
        Publish what is due, in this thread.
        """
        with self._unattended(job.receipt) as is_begun:
            if not is_begun:
                self._publish(job.receipt)

    async def aperform(self, job: Job, worker: Worker) -> None:
        """
        Publish what is due, in this task.
        """
        with self._unattended(job.receipt) as is_begun:
            if not is_begun:
                await self._apublish(job.receipt)

    @contextmanager
    def _unattended(self, receipt: Receipt) -> Generator[bool]:
        """
        Log a failure that nobody else hears of; keep for whom the publish was broken off.

        Yields whether a worker that was ended with it had begun already: the handlers that
        it has called are not called again.
        """
        assert receipt.options is not None  # there is a delay
        if not receipt.finished:
            receipt.options[_MISSED] = None
        try:
            yield receipt.finished
        except GeneratorExit:
            raise  # left behind, wherever that is noticed: whoever takes over keeps it
        except Exception:
            logger().exception("%s, published with a delay, failed", receipt.envelope.name)
            if not receipt.options.get(_MISSED):  # else a cycle, which is not to begin again
                self._keep_missed(receipt)
        except BaseException:
            self._keep_missed(receipt)
            raise
        else:
            self._keep_missed(receipt)

    def _keep_missed(self, receipt: Receipt) -> None:
        """
        Keep as dead letters what a publish that was broken off has not brought to its end.
        """
        assert receipt.options is not None  # there is a delay
        if _MISSED in receipt.options:
            self._write_off(receipt, receipt.options.pop(_MISSED))

    def refuse(self, receipt: Receipt, error: Exception) -> None:
        """
        Keep what came too late as dead letters.
        """
        self._write_off(receipt)

    def write_off(self, job: Job, reason: Reason, *, is_in_hand: bool = False) -> None:
        """
        Keep what was due and could not be published as dead letters.
        """
        if not is_in_hand:  # else its handlers have been called, or are being called
            self._write_off(job.receipt)

    def lose(self, job: Job) -> None:
        """
        Keep as dead letters what several workers have ended with.
        """
        self._write_off(job.receipt)


def comes_to_handlers(receipt: Receipt) -> None:
    """
    Note that from now on only those miss the event whom a dispatch says that it has not reached.
    """
    assert receipt.options is not None  # there is a delay
    receipt.options.pop(_MISSED)


def moment_of(options: Mapping[str, Any], clock: Clock) -> float | None:
    """
    Return when, on the monotonic clock, a publish is due; ``None`` for now.

    Raises:
        TypeError: *delay* is no number, *at* is no time, or both are given.
        ValueError: *delay* is endless or not a number, or *at* has no time zone.
    """
    delay, at = options.get("delay"), options.get("at")
    if delay is None and at is None:
        return None
    if delay is not None and at is not None:
        raise TypeError("delay= and at= say the same in two ways: give one of them")
    if delay is None:
        if not isinstance(at, datetime):
            raise TypeError(f"at= is a datetime, not {at!r}")
        if at.utcoffset() is None:
            raise ValueError(f"at={at!r} has no time zone; datetime.now(timezone.utc) has one")
        delay = at.timestamp() - clock.time()
    if not isinstance(delay, int | float) or isinstance(delay, bool):
        raise TypeError(f"delay= is in seconds, not {delay!r}")
    if not math.isfinite(delay):
        raise ValueError(f"delay= is in seconds, and has to come to an end: {delay!r} does not")
    return clock.monotonic() + delay if delay > 0 else None
