"""
`TestBus`: the real bus with other furniture, for tests.

Law: what a delivery passes through is the real bus's code. Added are a virtual clock,
a recorder, faults at both ends of a delivery, and failures that reach the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, Self, Unpack

import attrs

from eventbus._abort import running_loop
from eventbus._attempt import acall_of, call_of
from eventbus._bus import EventBus
from eventbus._clock import VirtualClock
from eventbus._envelope import Envelope
from eventbus._receipt import Receipt
from eventbus._route import Folded, Route, miss
from eventbus._running import DrainReport
from eventbus._subscription import Subscription
from eventbus.dead_letter import InMemoryDeadLetters
from eventbus.event_log import check_version
from eventbus.idempotency import InMemoryIdempotencyStore
from eventbus.memory import MemoryStore
from eventbus.testing._assertions import AssertingBus
from eventbus.testing._faults import Faults
from eventbus.testing._idempotence import CatchUp, is_rehearsing
from eventbus.testing._raising import Collection, Overseen, collect, go_on_collecting
from eventbus.testing._recording import PASSED_BY, BusOptions
from eventbus.testing._rehearsed import Rehearsed
from eventbus.testing._reordering import Held, Release, refuse_loop_for

__all__ = ["TestBus"]


class TestBus(AssertingBus):
    """
    The real bus with a virtual clock, a recorder and faults.

    Waiting takes no real time: it moves the clock. Stores are in memory. What happened
    is in `published`, `delivered`, `failures`, `retries`, `duplicates`, `unhandled` and
    `dead_letters`, and the ``assert_...`` methods ask for it.

    Args:
        errors: By default, failures are raised to the test: as one `HandlerErrors`, by
            the outermost publish, after everything has run. A handler that publishes
            gets a receipt, as it does on the real bus. ``"raise"`` and ``"collect"``
            mean what they mean to `eventbus.EventBus`. Dead letters are always kept.
        clock: A virtual clock to share with something else.
        threads: Queues have workers, as on the real bus, and `settle` has nothing to do.
            By default, queued handlers run in the test's own thread or task, when it says
            `settle` or `asettle`, drains or closes the bus, or advances the clock.
        durable: The bus has a store, in memory, and so takes durable subscriptions. They
            consume from `settle` on. `restart` does to it what killing the process would.
        options: See `eventbus.EventBus`.

    Attributes:
        faults: What goes wrong on purpose; see `Faults`.

    .. versionadded:: 0.1
    """

    __test__ = False  # to pytest: a class to test with, not one of tests

    def __init__(
        self,
        *,
        errors: Literal["raise", "collect"] | None = None,
        clock: VirtualClock | None = None,
        threads: bool = False,
        durable: bool = False,
        **options: Unpack[BusOptions],
    ) -> None:
        if durable:
            options.setdefault("store", MemoryStore())
        self._virtual_clock = clock or VirtualClock()
        self._workers = None if threads else 0
        self._late = Collection()
        options.setdefault("name", "test bus")
        options["observers"] = (collect, *options.get("observers", ()))
        super().__init__(errors=errors or "collect", clock=self._virtual_clock, **options)
        self._furniture.logs_failures = errors == "collect"
        self._furniture.logs_queued = errors == "collect"
        self._raises_at_last = errors != "collect"
        self._raises_at_once = errors == "raise"
        self._virtual_clock.follow(self._keep_up)
        release = Release(self._release, self._arelease)
        self.faults = Faults(self._roster, release, CatchUp(self._catch_up, self._acatch_up))

    @property
    def clock(self) -> VirtualClock:
        """
        The virtual clock: ``bus.clock.advance(hours=24)``.
        """
        return self._stand_in()._virtual_clock

    def close(self, timeout: float | None = 10.0) -> DrainReport:
        """
        Handle what is queued, end, and end an idempotence check that is under way.

        Args:
            timeout: In seconds of the virtual clock.

        Raises:
            HandlerErrors: Queued handlers failed.
            AssertionError: The check has something to report.
        """
        __tracebackhide__ = True
        report = super().close(timeout)
        self._end_check()
        return report

    async def aclose(self, timeout: float | None = 10.0) -> DrainReport:
        """
        Handle what is queued, awaiting async handlers in this task, and end; see `close`.
        """
        __tracebackhide__ = True
        report = await super().aclose(timeout)
        self._end_check()
        return report

    def _end_check(self) -> None:
        __tracebackhide__ = True
        if self._stand_in() is self and self.faults.check is not None:
            self.faults.check.end()

    def __exit__(self, *raised: object) -> None:
        """
        Close the bus; what the block raised goes before what a check has to report.
        """
        __tracebackhide__ = True
        self._give_way(raised)
        super().__exit__(*raised)

    async def __aexit__(self, *raised: object) -> None:
        """
        Close the bus; what the block raised goes before what a check has to report.
        """
        __tracebackhide__ = True
        self._give_way(raised)
        await super().__aexit__(*raised)

    def _give_way(self, raised: tuple[object, ...]) -> None:
        if any(raised):
            self._raises_at_last = False
            if self.faults.check is not None:
                self.faults.check.give_up()

    # -- standing in for another bus -----------------------------------------------------------

    @classmethod
    def like(
        cls,
        bus: EventBus,
        *,
        errors: Literal["raise", "collect"] | None = None,
        clock: VirtualClock | None = None,
        threads: bool = False,
        delivers: bool = True,
    ) -> Self:
        """
        Return a test bus with the settings of *bus*, and with none of its handlers.

        Its stores in memory are of the same measures; those of *bus* are not touched.

        Args:
            bus: Any bus. One with ``errors="raise"`` passes that on.
            errors: See `TestBus`.
            clock: See `TestBus`.
            threads: See `TestBus`.
            delivers: ``False``: no handler is ever called.
        """
        source = bus._stand_in()
        settings = source._settings()
        raises = settings.pop("errors") == "raise"
        idempotency = _alike(source._furniture.idempotency, "ttl", "lease", "capacity")
        dead_letters = _alike(source._furniture.dead_letters, "capacity", "overflow")
        if source._store is not None:
            settings |= {"store": MemoryStore(idempotency=idempotency), "codec": source._codec}
            idempotency = None
        made = cls(
            errors=errors or ("raise" if raises else None),
            clock=clock,
            threads=threads,
            idempotency=idempotency,
            dead_letters=dead_letters,
            **settings,
        )
        made._delivers = delivers
        return made

    def adopt(self, subscription: Subscription) -> Subscription:
        """
        Subscribe as another bus's *subscription* does, by the same name.
        """
        mine = Subscription(
            name=subscription.name,
            event_types=subscription.event_types,
            options=subscription.options,
            signature=subscription.signature,
            get_handler=subscription.get_handler,
        )
        self._adopted = {**self._adopted, mine.name: self._take_in(mine)}
        return mine

    def leave_out(self, subscription: Subscription, why: str) -> None:
        """
        Know another bus's *subscription* without subscribing it, and say *why* if asked.
        """
        self._roster.leave_out(subscription, why)

    # -- what differs from the real bus ------------------------------------------------------

    def _hooks(self, subscription: Subscription) -> tuple[Any, ...]:
        return (self.faults.hook(subscription), *super()._hooks(subscription))

    def _fold(self, subscription: Subscription) -> Folded:
        folded = super()._fold(subscription)
        if not self._delivers:
            pass_by = partial(_pass_by, subscription)
            return attrs.evolve(folded, call=pass_by, acall=pass_by)
        target = self._targets.get(subscription) or folded.call
        again = acall_of(subscription, target, self.clock)
        again_now = call_of(subscription, target, again, self._furniture.loop_thread)
        if (queue := self._queues.get(subscription)) is not None:
            check = partial(getattr, self.faults, "check")
            rehearsed = Rehearsed(queue.keeper, subscription, check, again_now, again)
            queue.keeper = Overseen(rehearsed, self._in_background)
            return folded

        def call(event: Any) -> Any:
            if (check := self.faults.check) is None:
                return folded.call(event)
            return check.twice(subscription, folded, again_now, event)

        def acall(event: Any) -> Any:
            if (check := self.faults.check) is None:
                return folded.acall(event)
            return check.atwice(subscription, folded, again, event)

        return attrs.evolve(folded, call=call, acall=acall)

    def _why_not(self, subscription: Subscription, envelope: Envelope[Any]) -> str:
        if not self._delivers:
            return PASSED_BY
        if self.faults.holds(envelope.id):
            return "held back by faults.reorder(), until faults.release()"
        return super()._why_not(subscription, envelope)

    def _append(self, receipts: Sequence[Receipt], options: Mapping[str, Any]) -> None:
        if not is_rehearsing():
            return super()._append(receipts, options)
        # Nothing is written, and a version that has changed is found out all the same.
        expected, key = options.get("expected_version"), receipts[0].envelope.key
        if expected is not None and key is not None and self._store is not None:
            check_version(key, expected, self._store.log.stream_version(key))

    async def _aappend(self, receipts: Sequence[Receipt], options: Mapping[str, Any]) -> None:
        if is_rehearsing():
            return self._append(receipts, options)
        await super()._aappend(receipts, options)

    def _run(self, receipt: Receipt, route: Route) -> Receipt:
        return receipt if self.faults.keeps(receipt, route) else self._deliver(receipt, route)

    async def _arun(self, receipt: Receipt, route: Route) -> Receipt:
        if self.faults.keeps(receipt, route):
            return receipt
        return await self._adeliver(receipt, route)

    def _deliver(self, receipt: Receipt, route: Route) -> Receipt:
        for each in self.faults.deliveries(receipt, route):
            super()._run(each, route)
        return receipt

    async def _adeliver(self, receipt: Receipt, route: Route) -> Receipt:
        for each in self.faults.deliveries(receipt, route):
            await super()._arun(each, route)
        return receipt

    def _release(self, held: list[Held]) -> list[Receipt]:
        if running_loop() is not None:
            refuse_loop_for(held)
        with self._raising_at_last(f"{len(held)} events held back"):
            for each in held:
                go_on_collecting(each.context)
                each.context.run(self._deliver, each.receipt, each.route)
            return self._publisher.conclude_many([each.receipt for each in held])

    async def _arelease(self, held: list[Held]) -> list[Receipt]:
        import asyncio  # late: whoever awaits has it loaded already

        loop = asyncio.get_running_loop()
        with self._raising_at_last(f"{len(held)} events held back"):
            for each in held:
                go_on_collecting(each.context)
                delivering = self._adeliver(each.receipt, each.route)
                await loop.create_task(delivering, context=each.context)
            return self._publisher.conclude_many([each.receipt for each in held])


def _pass_by(subscription: Subscription, event: object) -> None:
    miss(subscription.counters, unqueued=int(subscription.is_queued))


def _alike(store: Any, *measures: str) -> Any:
    """
    Return a new store like *store*; ``None``, for the default, if it is not one of ours.
    """
    if not isinstance(store, InMemoryIdempotencyStore | InMemoryDeadLetters):
        return None
    kind = next(each for each in type(store).__mro__ if each.__module__.startswith("eventbus."))
    return kind(**{name: getattr(store, name) for name in measures})
