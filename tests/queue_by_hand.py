"""
A queue whose steps a test takes one by one, for the tests of the rooms about queues.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextvars import Context
from types import SimpleNamespace
from typing import Any

import attrs

from eventbus import Queued
from eventbus._alarms import Alarms
from eventbus._intake import Intake
from eventbus._job import Job, Later, Worker
from eventbus._verdict import Trial
from eventbus.testing import VirtualClock

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


def met(flag: threading.Event) -> None:
    """
    Wait for *flag*, and fail if it does not come.
    """
    if not flag.wait(PATIENCE):
        raise TimeoutError("what the test waits for has not happened")


async def until(holds: Callable[[], object]) -> None:
    """
    Let all tasks and threads go on until *holds* is true, and fail if it never is.
    """
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.001)


@attrs.define
class Notebook:
    """
    A keeper that writes down what it is told.
    """

    refused: list[Any] = attrs.field(factory=list)
    written_off: list[tuple[Any, str]] = attrs.field(factory=list)
    handled: list[Any] = attrs.field(factory=list)

    def refuse(self, receipt: Any, error: Exception) -> None:
        self.refused.append((receipt.event, type(error).__name__))

    def write_off(self, job: Job, reason: Any, *, is_in_hand: bool = False) -> None:
        self.written_off.append((job.event, f"{reason}{' in hand' * is_in_hand}"))

    def lose(self, job: Job) -> None:
        self.written_off.append((job.event, f"lost by {job.returns + 1}"))

    def perform(self, job: Job, worker: Worker) -> Later | None:
        self.handled.append(job.event)
        return None

    async def aperform(self, job: Job, worker: Worker) -> Later | None:
        return self.perform(job, worker)


@attrs.define(eq=False)
class Hands:
    """
    A queue, and those who work at it: whoever is started waits for the test to go on.
    """

    capacity: int = 10
    workers: int = 1
    interval: float = 0.0
    overflow: Any = "raise"
    limit: int | None = None
    clock: VirtualClock = attrs.field(factory=VirtualClock)
    notes: Notebook = attrs.field(factory=Notebook)
    workers_started: list[Worker] = attrs.field(factory=list)
    queue: Intake = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.queue = Intake(
            "queue",
            Queued(capacity=self.capacity, workers=self.workers, overflow=self.overflow),
            interval=self.interval,
            alarms=Alarms(self.clock, "alarms"),
            now=self.clock.monotonic,
            start=self.start,
            limit=self.limit,
        )
        self.queue.keeper = self.notes

    def start(self, queue: Intake) -> None:
        park = threading.Lock()
        park.acquire()
        worker = Worker(park=park)
        if queue.hire(worker):
            self.workers_started.append(worker)

    @property
    def worker(self) -> Worker:
        (worker,) = self.workers_started
        return worker

    def offer(self, *events: Any, key: str | None = None) -> list[bool]:
        return [self.queue.offer(self.job(each, key)) for each in events]

    def job(self, event: Any, key: str | None = None) -> Job:
        receipt: Any = SimpleNamespace(event=event, parent=None)
        return Job(event, receipt, Context(), self.clock.monotonic(), key, None)

    def turn(self, worker: Worker | None = None) -> Any:
        worker = worker or self.worker
        if worker.park in self.queue.staff.parked:
            self.queue.staff.parked.remove(worker.park)  # it looks in once more, unasked
        is_awake(worker)
        job = self.queue.turn(worker)
        return None if job is None else job.event

    def append(self, event: Any) -> Job:
        """
        Do the first half of what a publisher does without the lock.
        """
        job = self.job(event)
        self.queue.ready.append(job)
        return job

    def take(self, worker: Worker | None = None) -> Job:
        """
        Do the first half of what a worker does without the lock.
        """
        worker = worker or self.worker
        job = worker.job = self.queue.ready.popleft()
        return job

    def later(self, delay: float, wake: Callable[[Any], bool | None] | None = None) -> Later:
        trial: Any = Trial(SimpleNamespace())  # type: ignore[arg-type]
        return Later(trial, delay, wake)


def is_awake(worker: Worker) -> bool:
    """
    Whether a worker that was parked has been woken; it is then parked no more.
    """
    return worker.park is not None and worker.park.acquire(blocking=False)
