"""
How events come into a queue, and what happens to one more than it has room for.

Law: runs in the publisher's thread or task, and is all of a queued delivery that the
publisher sees. The only wait is for room, with ``overflow="block"``; it ends when the
queue is closed.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import partial
from typing import Any, cast

from eventbus import _process
from eventbus._abort import running_loop
from eventbus._entanglement import entangled, waiting_for, workers_behind
from eventbus._envelope import here
from eventbus._event import text_of
from eventbus._job import Job, QueuedReceipt, Relief, Worker
from eventbus._queue import Queue
from eventbus._receipt import Receipt
from eventbus._route import Route
from eventbus.errors import BusClosedError, QueueFullError

__all__ = ["Intake", "call_soon", "give_way"]

_here = here.get
_new = cast("Any", tuple).__new__


class Intake(Queue):
    """
    A queue as its publishers see it.

    Args:
        given, options: See `Queue`.
        read_key: Reads from an event what orders it; by default its declared key.

    Attributes:
        relief: Makes room while a publisher waits for it, where there are no workers.
    """

    def __init__(
        self, *given: Any, read_key: Callable[[Any], object] | None = None, **options: Any
    ) -> None:
        super().__init__(*given, **options)
        self.relief: Relief | None = None
        self._read_key = read_key
        _process.register(self)

    def lost_with_the_process(self) -> int:
        """
        Return how many events are nowhere but here.
        """
        return self.depth().pending

    @property
    def unread(self) -> int:
        """
        How many events it has not been told of; only a log knows of such.
        """
        return 0

    @property
    def state(self) -> str:
        """
        What keeps it from being filled, in a word; only from a log it may be kept.
        """
        return ""

    @property
    def is_ordered(self) -> bool:
        """
        Whether events are asked for a key of the subscription's own.
        """
        return self._read_key is not None

    def post(self, event: Any, route: Route) -> Receipt | None:
        """
        Publish an event that goes nowhere but here, and has no key.

        No handler is called before it returns, so nothing has to show, in the context, that
        a publish is under way.

        Returns:
            The receipt; ``None``, and nothing done, where there is no room.
        """
        # Of publishers that come at the same moment, each may find the last place free.
        if len(self.ready) + self._backlog.aside >= self._capacity:
            return None
        job: Any = QueuedReceipt()
        job.event = event
        job.route = route
        if (parent := _here()) is not None:
            job.parent = parent
            route.publisher.descend(job, parent)
        # First fetched, then called: in one, Python 3.11 looks for a method on the class each time.
        now = self._now
        job.context, job.since = copy_context(), now()
        route.published += 1
        self.ready.append(job)
        if self.wants and not self.attend(job):
            self._turn_away(job)
            route.publisher.conclude(job)
        return job  # type: ignore[no-any-return]

    def _turn_away(self, job: Job) -> None:
        token = here.set(job.receipt)
        try:
            self._refuse_closed(job)
        finally:
            here.reset(token)

    # The twins repeat each other: a call of a function in common would cost a tenth.

    def put(self, event: Any) -> None:
        """
        Accept an event, in `publish`; where there is no room, do as the mode says.
        """
        receipt = _here()
        if self._read_key is None and receipt.route.declaration.key is None:
            job: Job = _new(Job, (event, receipt, copy_context(), self._now(), None, None, 0))
            # Of publishers that come at the same moment, each may find the last place free.
            if len(self.ready) + self._backlog.aside < self._capacity:
                self.ready.append(job)
                if self.wants and not self.attend(job):
                    self._refuse_closed(job)
                return None
            return self._overflow(job)
        ordered = self._job(event, receipt)
        if ordered is not None and not self.offer(ordered):
            self._overflow(ordered)
        return None

    def aput(self, event: Any) -> Any:
        """
        Accept an event, in `apublish`; where something is returned, it is to be awaited.
        """
        receipt = _here()
        if self._read_key is None and receipt.route.declaration.key is None:
            job: Job = _new(Job, (event, receipt, copy_context(), self._now(), None, None, 0))
            if len(self.ready) + self._backlog.aside < self._capacity:
                self.ready.append(job)
                if self.wants and not self.attend(job):
                    self._refuse_closed(job)
                return None
            return self._aoverflow(job)
        ordered = self._job(event, receipt)
        if ordered is None or self.offer(ordered):
            return None
        return self._aoverflow(ordered)

    def _job(self, event: Any, receipt: Receipt) -> Job | None:
        """
        Return the job of an event; ``None``, and a refusal, if what reads its key raises.
        """
        try:
            read = self._read_key or receipt.route.declaration.key
            key = None if read is None else text_of(read(event))
        except Exception as error:
            self.keeper.refuse(receipt, error)
            return None
        return Job(event, receipt, copy_context(), self._now(), key, None)

    # -- no room -------------------------------------------------------------------------------

    def _overflow(self, job: Job) -> None:
        match self._mode.overflow:
            case _ if self._is_sealed:
                self._refuse_closed(job)
            case "block" if _is_delayed(job):
                self._squeeze_in(job)
            case "block":
                self._wait_for_room(job)
            case "raise":
                self._refuse_full(job, "Let it take more (capacity=), or handle faster (workers=).")
            case "drop_newest":
                job.receipt.unqueued += 1
                job.receipt.missed += 1
                self._drop(job)
            case _:  # drop_oldest
                self._push_in(job)

    def _aoverflow(self, job: Job) -> Any:
        if self._mode.overflow == "block" and not (self._is_sealed or _is_delayed(job)):
            return self._awaiting_room(job)
        return self._overflow(job)

    def _push_in(self, job: Job) -> None:
        with self._lock:
            dropped: list[Job] = []
            # More than one where publishers that came at the same moment have overfilled it.
            while self._is_full and not self._is_sealed:
                if (oldest := self._backlog.take_oldest()) is None:
                    break  # all there is waits for its next attempt
                dropped.append(oldest)
            is_in = not self._is_full
            starts = is_in and self._take_in(job)
        if starts:
            self._start(self)
        for each in dropped:
            self._drop(each)
        if not is_in:
            self._refuse_closed(job) if self._is_sealed else self._drop(job)

    def _squeeze_in(self, job: Job) -> None:
        """
        Accept what is due beyond the capacity: it was accepted long ago, and nobody waits.
        """
        with self._lock:
            is_in = not self._is_sealed
            starts = is_in and self._take_in(job)
        if starts:
            self._start(self)
        if not is_in:
            self._refuse_closed(job)

    def _drop(self, job: Job) -> None:
        with self._lock:
            self._dropped += 1
        self.keeper.write_off(job, "dropped")

    def _refuse_full(self, job: Job, cure: str) -> None:
        self.keeper.refuse(
            job.receipt,
            QueueFullError(
                f"the queue of {self.name} is full with {self._mode.capacity} events and takes no "
                f"{type(job.event).__qualname__}. {cure}",
                subscription=self.name,
                capacity=self._mode.capacity,
            ),
        )

    def _refuse_closed(self, job: Job) -> None:
        self.keeper.refuse(
            job.receipt,
            BusClosedError(
                f"the bus was closed before {self.name} could accept {type(job.event).__qualname__}"
            ),
        )

    # -- waiting for room: the twins -----------------------------------------------------------

    def _wait_for_room(self, job: Job) -> None:
        own, is_late = workers_behind(self, job, threading.current_thread()), False
        with waiting_for(self, own):
            while not self.offer(job):
                if self.relief is not None and self.relief.relieve(self):
                    continue
                if (why := self._why_not_wait(own, awaits=False)) is not None:
                    return self._refuse(job, why)
                turn = threading.Lock()
                turn.acquire()
                with self._queueing_up(turn.release, own, is_late=is_late) as must_wait:
                    if must_wait:
                        turn.acquire()
                is_late = True

    async def _awaiting_room(self, job: Job) -> None:
        import asyncio  # late: whoever awaits has it loaded already

        loop = asyncio.get_running_loop()
        own, is_late = workers_behind(self, job, asyncio.current_task()), False
        with waiting_for(self, own):
            while not self.offer(job):
                if self.relief is not None and await self.relief.arelieve(self):
                    continue
                if (why := self._why_not_wait(own, awaits=True)) is not None:
                    return self._refuse(job, why)
                room = asyncio.Event()
                turn = partial(call_soon, loop, room.set)
                with self._queueing_up(turn, own, is_late=is_late) as must_wait:
                    if must_wait:
                        await room.wait()
                is_late = True

    @contextmanager
    def _queueing_up(
        self, turn: Callable[[], None], own: list[Worker], *, is_late: bool
    ) -> Generator[bool]:
        """
        Have *turn* called when there is room, unless there is already.

        Who finds that somebody was quicker comes back to the head of those who wait. Who is
        interrupted leaves them; if his turn had come, he passes it on.
        """
        with self._lock:
            (self._blocked.appendleft if is_late else self._blocked.append)(turn)
            self._flag()
            # A worker that takes a job from here on sees that somebody waits.
            must_wait = self._is_full and not self._is_sealed and not (own and entangled(self))
            if not must_wait:
                self._blocked.remove(turn)
        try:
            yield must_wait
        except BaseException:
            self._leave(turn)
            raise

    def _leave(self, turn: Callable[[], None]) -> None:
        with self._lock:
            calls: list[Callable[[], None]] = []
            if turn in self._blocked:
                self._blocked.remove(turn)
            else:
                calls = self._news()
            self._flag()
        for call in calls:
            call()

    @property
    def is_full(self) -> bool:
        """
        Whether there is no room.
        """
        return self._is_full

    def _why_not_wait(self, own: list[Worker], *, awaits: bool) -> str | None:
        if self._is_sealed:
            return ""
        if own and (others := entangled(self)[1:]):
            names = ", ".join(each.name for each in others)
            return f"It was published by handlers of {names}, and each would wait for the other."
        if own and entangled(self):
            return "Its own handlers published it, and would wait for themselves."
        if self.limit == 0:
            return "Nobody handles any meanwhile: let it take more (capacity=), or settle first."
        if not awaits and running_loop() is not None:
            return (
                "publish() in a thread with a running event loop cannot wait for room: use "
                "await bus.apublish(...)."
            )
        return None

    def _refuse(self, job: Job, why: str) -> None:
        if self._is_sealed:
            self._refuse_closed(job)
        else:
            self._refuse_full(job, why)


def _is_delayed(job: Job) -> bool:
    return "due" in (job.receipt.options or {})


@types.coroutine
def give_way() -> Generator[None]:
    """
    Let the loop's other tasks run once.
    """
    yield  # what asyncio does for `asyncio.sleep(0)`


def call_soon(loop: Any, call: Callable[[], None]) -> None:
    """
    Have *call* called in the loop, from any thread, unless it is closed.
    """
    with suppress(RuntimeError):  # the loop is closed, and nobody waits on it
        loop.call_soon_threadsafe(call)
