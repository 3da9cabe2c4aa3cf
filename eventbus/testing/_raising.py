"""
Failures that reach the test: collected where they happen, raised by the outermost call.

Law: nothing is delivered differently for it. What fails in a publish is raised by that;
what fails in the background, in a queue or after a delay, by who has it handled.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager
from contextvars import Context, ContextVar
from typing import Unpack

import attrs

from eventbus._bus import EventBus
from eventbus._deferred import Deferred
from eventbus._envelope import here
from eventbus._job import Job, Keeper, Later, Worker
from eventbus._publisher import PublishOptions
from eventbus._receipt import Failure, Receipt, raise_failures
from eventbus._route import Route
from eventbus.dead_letter import DeadLetter
from eventbus.instrumentation import Failed, Occurrence
from eventbus.testing._fields import shown

__all__ = [
    "Collection",
    "Overseen",
    "RaisingBus",
    "collect",
    "collecting",
    "go_on_collecting",
    "is_nested",
    "raise_collected",
]


@attrs.define(eq=False)
class Collection:
    """
    What failed in a call that is under way.

    Attributes:
        failures: What is raised in the end.
        within: The event that is handled in the background, if one is.
        is_narrow: The failures of that event alone are meant: others are raised already.
        is_over: The call has ended.
    """

    failures: list[Failed] = attrs.field(factory=list)
    within: Receipt | None = None
    is_narrow: bool = False
    is_over: bool = False

    def means(self, failed: Failed) -> bool:
        """
        Tell whether a failure belongs here.
        """
        if not self.is_narrow or self.within is None:
            return True
        return failed.envelope.id == self.within.id  # a redelivery has the same


# Where what fails here is collected.
_collection: ContextVar[Collection | None] = ContextVar("eventbus_testing_failures", default=None)


class RaisingBus(EventBus):
    """
    The part of `TestBus` that raises what failed.
    """

    # By the outermost call, in the end; and by each publish, at once.
    _raises_at_last = _raises_at_once = False
    _late: Collection

    @contextmanager
    def _raising_at_last(self, what: str, *, is_one: bool = False) -> Generator[None]:
        """
        Raise the failures of everything within, unless a handler stands around it.

        Args:
            what: What is published or handled there.
            is_one: It is the name of one event.
        """
        if self._raises_at_once:  # by itself, whatever stands around it
            with collecting(None):
                yield
            return
        if is_nested() or not self._raises_at_last:
            yield
            return
        collected = Collection()
        with collecting(collected):
            yield
        if is_one and any(each.envelope.name != what for each in collected.failures):
            what = f"{what} and what it led to"
        raise_collected(what, collected)

    @contextmanager
    def _raising_late(self, what: str) -> Generator[None]:
        """
        Raise what fails in the background meanwhile, and what has failed there before.
        """
        if is_nested() or not self._raises_at_last:
            yield
            return
        with collecting(self._late):
            yield
        raise_collected(what, self._late)

    @contextmanager
    def _in_background(self, within: Receipt | None = None) -> Generator[None]:
        """
        Collect what fails while an event, or any, is handled that no publish waits for.
        """
        if not self._raises_at_last:
            yield
            return
        around = self._late if self._workers is None else _collection.get() or self._late
        mine = Collection(around.failures, within, is_narrow=self._raises_at_once)
        with collecting(mine):
            try:
                yield
            finally:
                mine.is_over = True

    # -- the verbs: the twins ----------------------------------------------------------------

    def _publish(self, event: object, route: Route, options: PublishOptions) -> Receipt:
        with self._raising_at_last(route.name, is_one=True):
            return super()._publish(event, route, options)

    async def _apublish(self, event: object, route: Route, options: PublishOptions) -> Receipt:
        with self._raising_at_last(route.name, is_one=True):
            return await super()._apublish(event, route, options)

    def publish_many(
        self, events: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> list[Receipt]:
        """
        Publish each event in turn; see `eventbus.EventBus.publish_many`.
        """
        events = list(events)
        with self._raising_at_last(f"{len(events)} events"):
            return super().publish_many(events, **options)

    async def apublish_many(
        self, events: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> list[Receipt]:
        """
        Publish each event in turn, awaiting its async handlers; see `publish_many`.
        """
        events = list(events)
        with self._raising_at_last(f"{len(events)} events"):
            return await super().apublish_many(events, **options)

    def _publish_deferred(self, deferred: Deferred) -> None:
        with self._hearing(deferred):
            super()._publish_deferred(deferred)

    async def _apublish_deferred(self, deferred: Deferred) -> None:
        with self._hearing(deferred):
            await super()._apublish_deferred(deferred)

    def _hearing(self, deferred: Deferred) -> AbstractContextManager[None]:
        # After the commit of a handler's transaction nobody hears of what is raised.
        is_block = not deferred.is_logged
        return self._raising_at_last("what was deferred") if is_block else self._in_background()

    def _redrive(self, letter: DeadLetter | str, claimant: str | None) -> Receipt:
        # Its own failure is returned, that of an event its handler publishes is raised.
        with self._raising_at_last("what was redriven"):
            return super()._redrive(letter, claimant)

    async def _aredrive(self, letter: DeadLetter | str, claimant: str | None) -> Receipt:
        with self._raising_at_last("what was redriven"):
            return await super()._aredrive(letter, claimant)


class Overseen:
    """
    Stands in for *keeper*, a queue's: what fails in its hands reaches the test.

    Args:
        keeper: Who really keeps the queue.
        in_background: Collects what fails while an event is handled.
    """

    def __init__(
        self, keeper: Keeper, in_background: Callable[[Receipt], AbstractContextManager[None]]
    ) -> None:
        self._keeper = keeper
        self._in_background = in_background
        self.refuse = keeper.refuse
        self.write_off = keeper.write_off

    def lose(self, job: Job) -> None:
        """
        Give up a job that several workers have ended with in hand.
        """
        with self._in_background(job.receipt):
            self._keeper.lose(job)

    def perform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job in this thread; return what is still to do about it.
        """
        with self._in_background(job.receipt):
            return self._keeper.perform(job, worker)

    async def aperform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job in this task; return what is still to do about it.
        """
        with self._in_background(job.receipt):
            return await self._keeper.aperform(job, worker)


def is_nested() -> bool:
    """
    Whether a handler stands around this, and who called it collects what fails.

    A task that has outlived its handler, and a handler on a bus that is not one of
    ours, stand alone: nobody else would hear of what fails there.
    """
    around, collected = here.get(), _collection.get()
    if around is None or collected is None:
        return False
    return not around.finished or (around is collected.within and not collected.is_over)


def raise_collected(what: str, collected: Collection) -> None:
    """
    Raise what was collected, once, if anything was.
    """
    # Workers may add more at this moment.
    failed = collected.failures[:]
    del collected.failures[: len(failed)]
    if failed:
        raise_failures(
            what,
            [
                (Failure(each.subscription, each.exception, each.attempts), each.envelope.name)
                for each in failed
            ],
            [shown(each.envelope.event) for each in failed],
        )


@contextmanager
def collecting(collection: Collection | None) -> Generator[None]:
    """
    Let failures within be added to a collection, or to none.
    """
    token = _collection.set(collection)
    try:
        yield
    finally:
        _collection.reset(token)


def go_on_collecting(context: Context) -> None:
    """
    Let what runs in *context* add its failures to those collected here.
    """
    context.run(_collection.set, _collection.get())


def collect(occurrence: Occurrence) -> None:
    """
    Observe: add a failure to those that are collected here, if they are.
    """
    collected = _collection.get()
    if collected is None or not isinstance(occurrence, Failed) or not collected.means(occurrence):
        return
    receipt: Receipt | None = here.get()
    facts = {} if receipt is None else receipt.options or {}
    if "redriven" not in facts:  # a redrive returns its own failure
        collected.failures.append(occurrence)
