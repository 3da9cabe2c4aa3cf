"""
How a publish that was prepared is run: now, or when it is due.

Law: whoever runs a publish stands here, apart from the fast path of the verbs. One that
is due later is published by the handlers there are then, with the facts of the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from eventbus._abort import running_loop
from eventbus._deferred import Deferred, deferring
from eventbus._dispatch import adispatch, adispatch_concurrently, dispatch
from eventbus._envelope import here
from eventbus._furniture import logger
from eventbus._postponed import Postponed, moment_of
from eventbus._publisher import refuse_loop
from eventbus._receipt import Receipt
from eventbus._redriving import Redriving
from eventbus._route import Route
from eventbus._storing import lender
from eventbus._verdict import Trial
from eventbus._write_off import write_off
from eventbus.errors import UncommittedError

__all__ = ["Delaying"]

# The options that only a log can do something about.
_STORED = frozenset({"connection", "expected_version"})

Options = Mapping[str, Any]
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
        if receipt.finished or receipt.is_scheduled or not route.calls:
            receipt.finished = not receipt.is_scheduled
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
        if receipt.finished or receipt.is_scheduled:
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
        is_nested = receipt.parent is not None and self._log is not None
        if is_nested and (of := lender(receipt)) is not None:
            if of.afterwards is None:
                of.afterwards = Deferred(
                    self._publish_deferred, self._apublish_deferred, is_logged=True
                )
            of.afterwards.add(receipt)
        else:
            self._publisher.announce(receipt, route)

    def _begin(self, event: object, route: Route, options: Mapping[str, Any]) -> Receipt:
        if not (options or self._defers):
            return self._publisher.begin(event, route, options)
        moment = moment_of(options, self._furniture.clock)
        if moment is None and (options.keys() & _STORED):
            self._check_stored(route, options)
        block = deferring.get().get(self) if self._defers and moment is None else None
        if moment is None and (block is None or options.get("connection") is not None):
            stored = self._logs(route)
            return self._publisher.begin(event, route, options, is_stored_next=stored)
        receipt = self._publisher.begin(event, self._routes.nobody(type(event)), options)
        if not receipt.finished:
            receipt.envelope  # noqa: B018 - made now: it tells of this call
            if moment is None:
                assert block is not None
                block.add(receipt)
            else:
                receipt.postponed = postponed = self._those_postponed()
                postponed.add(receipt, moment)
        return receipt

    def _check_stored(self, route: Route, options: Options) -> None:
        """
        Refuse options of the log where there is none, and what could not wait for a commit.
        """
        if not self._logs(route):
            raise TypeError(
                f"{', '.join(sorted(options.keys() & _STORED))}= is for events that are logged, "
                f"and {route.name} is not: the bus has no store, or it is declared logged=False"
            )
        if options.get("connection") is None or not route.subscriptions:
            return
        names = ", ".join(each.name for each in route.subscriptions)
        raise UncommittedError(
            f"{route.name} would reach {names} before your transaction is committed, and nobody "
            f"says when it is. Subscribe with delivery=Durable(), or publish after the commit, "
            f"as with bus.deferred() does around it."
        )

    def _prepare_all(self, batch: Sequence[tuple[object, Route, Options]]) -> Prepared:
        """
        Go through the receipts of a batch; what belongs into the log is there before.
        """
        if self._log is None:
            for event, route, options in batch:
                yield self._prepare(event, route, options), route
            return
        begun = [(self._begin(*each), each[1]) for each in batch]
        if logged := self._to_be_logged(begun):
            self._append(logged, batch[0][2])
        yield from self._announced(begun)

    async def _aprepare_all(self, batch: Sequence[tuple[object, Route, Options]]) -> Prepared:
        """
        Do as `_prepare_all`, while the event loop goes on.
        """
        if self._log is None:
            return self._prepare_all(batch)
        begun = [(self._begin(*each), each[1]) for each in batch]
        if logged := self._to_be_logged(begun):
            await self._aappend(logged, batch[0][2])
        return self._announced(begun)

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
        return Block(bus, Deferred(bus._publish_deferred, bus._apublish_deferred))

    def _publish_deferred(self, deferred: Deferred) -> None:
        begun = self._taken_up(deferred)
        if running_loop() is not None:
            for _, route in begun:
                refuse_loop(route)
        with self._publisher.concluding() as receipts:
            if not deferred.is_logged and (logged := self._to_be_logged(begun)):
                self._append(logged, _in_common(logged))
            for receipt, route in self._announced(begun):
                receipts.append(self._run(receipt, route))

    async def _apublish_deferred(self, deferred: Deferred) -> None:
        begun = self._taken_up(deferred)
        with self._publisher.concluding() as receipts:
            if not deferred.is_logged and (logged := self._to_be_logged(begun)):
                await self._aappend(logged, _in_common(logged))
            for receipt, route in self._announced(begun):
                receipts.append(await self._arun(receipt, route))

    def _taken_up(self, deferred: Deferred) -> list[tuple[Receipt, Route]]:
        return [(receipt, self._set_out(receipt)) for receipt in deferred.take_all()]

    # -- later -------------------------------------------------------------------------------

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
            route = self._set_out(receipt)
            if self._logs(route):
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
            route = self._set_out(receipt)
            if self._logs(route):
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
        receipt.postponed, receipt.finished = None, True
        happened: object = receipt.event
        for subscription in self._registry.matching(type(happened)):
            trial = Trial(receipt, number=0, is_queued=True)
            write_off(self._furniture, subscription.name, trial, "undelivered")


class Block:
    """
    What `EventBus.deferred` opens.

    Args:
        bus: Whose publishes wait.
        deferred: Where they wait.
    """

    def __init__(self, bus: Delaying, deferred: Deferred) -> None:
        self._bus = bus
        self._deferred = deferred
        self._around: Mapping[Any, Deferred] = {}

    def __enter__(self) -> Deferred:
        self._around = around = deferring.get()
        deferring.set({**around, self._bus: self._deferred})
        return self._deferred

    def __exit__(self, kind: object, *_: object) -> None:
        if self._is_to_be_published(kind):
            self._deferred.publish()

    async def __aenter__(self) -> Deferred:
        return self.__enter__()

    async def __aexit__(self, kind: object, *_: object) -> None:
        if self._is_to_be_published(kind):
            await self._deferred.apublish()

    def _is_to_be_published(self, kind: object) -> bool:
        deferring.set(self._around)
        outer = self._around.get(self._bus)
        if kind is not None:
            self._deferred.drop()
        elif outer is not None:
            for receipt in self._deferred.take_all():
                outer.add(receipt)
        return kind is None and outer is None


def _in_common(receipts: Sequence[Receipt]) -> Options:
    """
    Return what was asked of the log for all of *receipts*: the version of a stream.
    """
    asked = [(each.options or {}).get("expected_version") for each in receipts]
    given = [each for each in asked if each is not None]
    if given and len(given) < len(asked):
        raise TypeError("expected_version= in bus.deferred() is given to all events, or to none")
    return {"expected_version": given[0]} if given else {}


def _log(receipt: Receipt) -> None:
    logger().exception("%s, published with a delay, failed", receipt.envelope.name)
