"""
How a publish that was prepared is run: now, or when it is due.

Law: whoever runs a publish stands here, apart from the fast path of the verbs. One that
is due later is published by the handlers there are then, with the facts of the call.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from eventbus._abort import running_loop
from eventbus._deferred import Block, Deferred, in_common, keep, let_go, open_block, or_let_go
from eventbus._dispatch import adispatch, adispatch_concurrently, dispatch
from eventbus._envelope import here
from eventbus._logger import logger
from eventbus._postponed import Postponed, moment_of
from eventbus._publisher import refuse_loop
from eventbus._receipt import Receipt, lender
from eventbus._redriving import Redriving
from eventbus._route import Route
from eventbus._verdict import Trial
from eventbus._write_off import write_off
from eventbus.errors import UncommittedError

__all__ = ["Delaying"]

# The options that only a log can do something about.
_STORED = frozenset({"connection", "expected_version"})

Options = Mapping[str, Any]
Batch = Sequence[tuple[object, Route, Options]]
Prepared = Iterator[tuple[Receipt, Route]]


class Delaying(Redriving):
    """
    The part of `eventbus.EventBus` that runs what was prepared.
    """

    _defers = False

    @property
    def _is_plain(self) -> bool:
        return super()._is_plain and not self._defers

    # -- now: the twins --------------------------------------------------------------------

    def _run(self, receipt: Receipt, route: Route) -> Receipt:
        if receipt.finished or receipt.postponed is not None:
            return receipt
        if not route.calls:
            receipt.finished = True
            return receipt
        token = here.set(receipt)
        try:
            dispatch(receipt, route, iter(route.calls))
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    async def _arun(self, receipt: Receipt, route: Route) -> Receipt:
        if receipt.finished or receipt.is_scheduled:
            return receipt
        run = adispatch_concurrently if self._is_concurrent else adispatch
        token = here.set(receipt)
        try:
            await run(receipt, route, iter(route.acalls))
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    # -- preparing: the twins --------------------------------------------------------------

    def _prepare(self, event: object, route: Route, options: Mapping[str, Any]) -> Receipt:
        """
        Return the receipt of a publish that is in the log, if it belongs there.

        One that is due later is finished with for now.
        """
        receipt = self._begin(event, route, options)
        if receipt.finished or receipt.postponed is not None:
            return receipt
        if self._logs(route):
            self._append([receipt], options)
        self._set_off(receipt, route)
        return receipt

    async def _aprepare(self, event: object, route: Route, options: Mapping[str, Any]) -> Receipt:
        """
        Do as `_prepare`, while the event loop goes on.
        """
        receipt = self._begin(event, route, options)
        if not (receipt.finished or receipt.is_scheduled):
            if self._logs(route):
                await self._aappend([receipt], options)
            self._set_off(receipt, route)
        return receipt

    def _set_off(self, receipt: Receipt, route: Route) -> None:
        """
        Announce a publish; one that a transaction is not committed for waits for that.
        """
        afterwards = None if receipt.parent is None else self._afterwards(receipt)
        if afterwards is None or not afterwards.add(receipt):
            self._publisher.announce(receipt, route)

    def _afterwards(self, receipt: Receipt) -> Deferred | None:
        """
        Return what waits for the commit of the transaction that *receipt* is published in.
        """
        of = None if self._log is None else lender(receipt)
        if of is None:
            return None
        if of.afterwards is None or of.afterwards.is_over:  # over: that of another attempt
            of.afterwards = Deferred(
                self._publish_deferred, self._apublish_deferred, is_logged=True
            )
        afterwards: Deferred = of.afterwards
        return afterwards

    def _begin(self, event: object, route: Route, options: Options) -> Receipt:
        if not (options or self._defers):
            return self._publisher.begin(event, route, options)
        moment = moment_of(options, self._furniture.clock)
        self._check_stored(route, options)
        is_joined = options.get("connection") is not None
        block = None if is_joined or not self._defers else open_block(self)
        if moment is None and block is None:
            stored = self._logs(route)
            return self._publisher.begin(event, route, options, is_stored_next=stored)
        nobody = self._routes.nobody(type(event))
        receipt = self._publisher.begin(event, nobody, options, is_to_wait=True)
        if moment is not None:
            assert receipt.options is not None  # there is a delay
            receipt.options["due"] = moment
        if block is None:
            self._postpone(receipt)
        elif self._publisher.keys.set_aside(receipt, block.root):
            self._write_up(receipt)
            with or_let_go([receipt]):
                block.check([receipt])
            if not block.add(receipt):  # pragma: no cover - it has ended in this moment
                let_go(receipt)
                return self._begin(event, route, options)
        return receipt

    def _write_up(self, receipt: Receipt) -> None:
        """
        Write down what tells of this call, and refuse what could not be stored later.
        """
        receipt.envelope  # noqa: B018 - made now
        if self._log is not None and receipt.route.declaration.logged:
            with or_let_go([receipt]):
                self._log.prepare(receipt)

    def _check_stored(self, route: Route, options: Options) -> None:
        """
        Refuse options of the log where there is none, and what could not wait for a commit.
        """
        asked = sorted(each for each in _STORED if options.get(each) is not None)
        if not asked:
            return
        if not self._logs(route):
            raise TypeError(
                f"{', '.join(asked)}= is for events that are logged, "
                f"and {route.name} is not: the bus has no store, or it is declared logged=False"
            )
        if options.get("delay") is not None or options.get("at") is not None:
            raise TypeError(
                f"{', '.join(asked)}= is about what is stored now, and with delay= or at= "
                f"{route.name} is stored when it is due. Publish it without; with bus.deferred() "
                f"around your transaction it is scheduled after the commit, or not at all."
            )
        if options.get("connection") is None or not route.subscriptions:
            return
        names = ", ".join(each.name for each in route.subscriptions)
        raise UncommittedError(
            f"{route.name} would reach {names} before your transaction is committed, and nobody "
            f"says when it is. Subscribe with delivery=Durable(), or publish after the commit, "
            f"as with bus.deferred() does around it."
        )

    def _prepare_all(self, batch: Batch) -> Prepared:
        """
        Go through the receipts of a batch; what belongs into the log is there before.
        """
        if self._log is None:
            for event, route, options in batch:
                yield self._prepare(event, route, options), route
            return
        with self._begun(batch) as begun:
            if logged := self._to_be_logged(begun):
                self._append(logged, batch[0][2])
        yield from self._announced(begun)

    async def _aprepare_all(self, batch: Batch) -> Prepared:
        """
        Do as `_prepare_all`, while the event loop goes on.
        """
        if self._log is None:
            return self._prepare_all(batch)
        with self._begun(batch) as begun:
            if logged := self._to_be_logged(begun):
                await self._aappend(logged, batch[0][2])
        return self._announced(begun)

    @contextmanager
    def _begun(self, batch: Batch) -> Generator[list[tuple[Receipt, Route]]]:
        """
        Begin all publishes of a batch; if one cannot be, or the block raises, none is.
        """
        begun = list[tuple[Receipt, Route]]()
        with or_let_go(receipt for receipt, _ in begun):
            for event, route, options in batch:
                begun.append((self._begin(event, route, options), route))
            yield begun

    def _to_be_logged(self, begun: Iterable[tuple[Receipt, Route]]) -> list[Receipt]:
        return [
            receipt
            for receipt, route in begun
            if self._logs(route) and not (receipt.finished or receipt.is_scheduled)
        ]

    def _announced(self, begun: Iterable[tuple[Receipt, Route]]) -> Prepared:
        for receipt, route in begun:
            if not (receipt.finished or receipt.is_scheduled):
                self._set_off(receipt, route)
            yield receipt, route

    # -- at the end of a block: the twins ----------------------------------------------------

    def deferred(self) -> Block:
        """
        Publish what is published in the block when it has ended well, and drop it otherwise.

        For ``with`` and ``async with``. On a bus with a store all of it is stored by one
        transaction. A block in another one leaves its events to that. What other tasks and
        threads publish is not affected, unless the block starts them with its own context.

        .. versionadded:: 0.1
        """
        bus = self._stand_in()
        if not bus._defers:
            bus._defers = True
            bus._routes.reset(is_plain=False)
        return Block(bus, partial(Deferred, bus._publish_deferred, bus._apublish_deferred))

    def _publish_deferred(self, deferred: Deferred) -> None:
        with self._taken_up(deferred, blocking=running_loop() is not None) as (begun, logged):
            if logged:
                self._append(logged, in_common(logged))
        with self._publisher.concluding() as receipts:
            for receipt, route in self._announced(begun):
                receipts.append(self._run(receipt, route))

    async def _apublish_deferred(self, deferred: Deferred) -> None:
        with self._taken_up(deferred, blocking=False) as (begun, logged):
            if logged:
                await self._aappend(logged, in_common(logged))
        with self._publisher.concluding() as receipts:
            for receipt, route in self._announced(begun):
                receipts.append(await self._arun(receipt, route))

    @contextmanager
    def _taken_up(
        self, deferred: Deferred, *, blocking: bool
    ) -> Generator[tuple[list[tuple[Receipt, Route]], list[Receipt]]]:
        """
        Yield what is to be published now, and what of it is to be stored before.

        Its keys are asked for now. What is due later is scheduled after the block.
        """
        waiting, is_logged = deferred.take_all(), deferred.is_logged
        with or_let_go([] if is_logged else waiting):
            begun = [(each, self._set_out(each)) for each in waiting if not _is_for_later(each)]
            for _, route in begun if blocking else ():
                refuse_loop(route)
            for receipt, route in begun:
                if is_logged:
                    keep(receipt)
                else:
                    self._publisher.keys.claim(receipt, is_stored_next=self._logs(route))
            yield begun, [] if is_logged else self._to_be_logged(begun)
        for receipt in filter(_is_for_later, waiting):
            self._postpone(receipt)

    # -- later -------------------------------------------------------------------------------

    def _is_due(self, options: Options) -> bool:
        """
        Whether a publish with these options is one of now.
        """
        return moment_of(options, self._furniture.clock) is None

    def _postpone(self, receipt: Receipt) -> None:
        """
        Let a publish wait for its moment, or first for the commit that it depends on.
        """
        keys, afterwards = self._publisher.keys, self._afterwards(receipt)
        if afterwards is not None and keys.set_aside(receipt, afterwards):
            self._write_up(receipt)
            if afterwards.add(receipt):  # pragma: no branch - it has ended in this moment
                return
        if not receipt.finished and keys.set_aside(receipt):
            self._write_up(receipt)
            assert receipt.options is not None  # there is a delay
            receipt.postponed = postponed = self._those_postponed()
            postponed.add(receipt, receipt.options["due"])

    def _those_postponed(self) -> Postponed:
        with self._lock:
            postponed: Postponed | None = self._postponed
            if postponed is None:
                self._postponed = postponed = Postponed(
                    publish=self._publish_due,
                    apublish=self._apublish_due,
                    write_off=self._write_off,
                    clock=self._furniture.clock,
                    alarms=self._alarms,
                    home=self._home,
                    limit=self._workers,
                )
                self._dress(postponed.queues)
            return postponed

    def _publish_due(self, receipt: Receipt) -> None:
        """
        Call the handlers there are now; a failure nobody else hears of is logged.
        """
        try:
            with or_let_go([receipt]):
                route = self._set_out(receipt)
                stored = self._logs(route)
                if not self._publisher.keys.claim(receipt, is_stored_next=stored):
                    return
                if stored:
                    self._append([receipt], {})
            self._publisher.announce(receipt, route)
            self._publisher.conclude(self._run(receipt, route))
        except (Exception, SystemExit):
            _log(receipt)

    async def _apublish_due(self, receipt: Receipt) -> None:
        """
        Call the handlers there are now; a failure nobody else hears of is logged.
        """
        try:
            with or_let_go([receipt]):
                route = self._set_out(receipt)
                stored = self._logs(route)
                if not self._publisher.keys.claim(receipt, is_stored_next=stored):
                    return
                if stored:
                    await self._aappend([receipt], {})
            self._publisher.announce(receipt, route)
            self._publisher.conclude(await self._arun(receipt, route))
        except (Exception, SystemExit):
            _log(receipt)

    def _set_out(self, receipt: Receipt) -> Route:
        receipt.postponed = None
        receipt.route = route = self._routes[type(receipt.event)]
        return route

    def _write_off(self, receipt: Receipt) -> None:
        """
        Keep what is not published any more as dead letters of those who would have got it.
        """
        let_go(receipt)
        happened: object = receipt.event
        for subscription in self._registry.matching(type(happened)):
            trial = Trial(receipt, number=0, is_queued=True)
            write_off(self._furniture, subscription.name, trial, "undelivered")


def _is_for_later(receipt: Receipt) -> bool:
    return "due" in (receipt.options or {})


def _log(receipt: Receipt) -> None:
    logger().exception("%s, published with a delay, failed", receipt.envelope.name)
