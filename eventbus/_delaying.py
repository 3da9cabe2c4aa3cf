"""
How a publish is prepared that is more than calls: logged first, put off, or held back.

Law: what could not be done later is refused now. What waits for the end of a block, for a
commit or for its moment is written down here, and run in `_due`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from eventbus._abort import running_loop
from eventbus._deferred import Block, Deferred, in_common, keep, let_go, open_block, or_let_go
from eventbus._due import Due
from eventbus._logger import logger
from eventbus._postponed import moment_of
from eventbus._publisher import refuse_loop
from eventbus._receipt import Receipt, lender
from eventbus._route import Route
from eventbus.errors import UncommittedError
from eventbus.event_log import check_expected

__all__ = ["Delaying"]

# The options that only a log can do something about.
_STORED = frozenset({"connection", "expected_version"})

_ENTER_ASYNC = "Enter the block by `async with bus.deferred():`."

Options = Mapping[str, Any]
Batch = Sequence[tuple[object, Route, Options]]
Prepared = Iterator[tuple[Receipt, Route]]


class Delaying(Due):
    """
    The part of `eventbus.EventBus` that prepares publishes and puts them off.
    """

    _defers = False

    @property
    def _is_plain(self) -> bool:
        return super()._is_plain and not self._defers

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
        receipt = self._begin(event, route, options, is_awaited=True)
        if options:
            await self._ahold([(receipt, route)])
        if not (receipt.finished or receipt.is_scheduled):
            if self._logs(route):
                await self._aappend([receipt], options)
            self._set_off(receipt, route)
        return receipt

    async def _ahold(self, begun: Iterable[tuple[Receipt, Route]]) -> None:
        """
        Hold the publishers' keys of publishes that were begun; of all, or of none.
        """
        asked = [
            (receipt, route)
            for receipt, route in begun
            if (receipt.options or {}).get("idempotency_key") is not None
            and not (receipt.finished or receipt.is_scheduled)
        ]
        try:
            for receipt, route in asked:
                await self._publisher.ahold(receipt, is_stored_next=self._logs(route))
        except BaseException:
            for receipt, _ in asked:
                let_go(receipt)
            raise

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

    def _begin(
        self, event: object, route: Route, options: Options, *, is_awaited: bool = False
    ) -> Receipt:
        if not (options or self._defers):
            return self._publisher.begin(event, route, options)
        moment = moment_of(options, self._furniture.clock)
        self._check_stored(route, options)
        is_joined = options.get("connection") is not None
        block = None if is_joined or not self._defers else open_block(self)
        if moment is None and block is None:
            stored = self._logs(route)
            return self._publisher.begin(
                event, route, options, is_stored_next=stored, is_awaited=is_awaited
            )
        if block is not None and block.root.is_plain and running_loop() is not None:
            refuse_loop(route, _ENTER_ASYNC)
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
                return self._begin(event, route, options, is_awaited=is_awaited)
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
        if (version := options.get("expected_version")) is not None:
            check_expected(version)
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
        with self._begun(batch, is_awaited=True) as begun:
            await self._ahold(begun)
            if logged := self._to_be_logged(begun):
                await self._aappend(logged, batch[0][2])
        return self._announced(begun)

    @contextmanager
    def _begun(
        self, batch: Batch, *, is_awaited: bool = False
    ) -> Generator[list[tuple[Receipt, Route]]]:
        """
        Begin all publishes of a batch; if one cannot be, or the block raises, none is.
        """
        begun = list[tuple[Receipt, Route]]()
        with or_let_go(receipt for receipt, _ in begun):
            for event, route, options in batch:
                begun.append((self._begin(event, route, options, is_awaited=is_awaited), route))
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
        with self._taken_up(deferred, blocking=running_loop() is not None) as begun:
            for receipt, route in [] if deferred.is_logged else begun:
                self._publisher.keys.claim(receipt, is_stored_next=self._logs(route))
            if not deferred.is_logged and (logged := self._to_be_logged(begun)):
                self._append(logged, in_common(logged))
        with self._publisher.concluding() as receipts, self._or_given_up(begun) as each:
            for receipt, route in self._announced(each):
                receipts.append(self._run(receipt, route))

    async def _apublish_deferred(self, deferred: Deferred) -> None:
        with self._taken_up(deferred, blocking=False) as begun:
            await self._ahold([] if deferred.is_logged else begun)
            if not deferred.is_logged and (logged := self._to_be_logged(begun)):
                await self._aappend(logged, in_common(logged))
        with self._publisher.concluding() as receipts, self._or_given_up(begun) as each:
            for receipt, route in self._announced(each):
                receipts.append(await self._arun(receipt, route))

    @contextmanager
    def _or_given_up(
        self, begun: Iterable[tuple[Receipt, Route]]
    ) -> Generator[Iterator[tuple[Receipt, Route]]]:
        """
        Yield what goes through *begun*; if that is broken off, keep the rest as dead letters.
        """
        left = deque(begun)
        try:
            yield (left.popleft() for _ in begun)
        except BaseException:
            rest = [(receipt, route) for receipt, route in left if not receipt.finished]
            for receipt, route in rest:
                receipt.missed, receipt.unqueued = len(route), route.queued
                self._write_off(receipt)
            if rest:
                logger().warning(
                    "the end of a deferred() block was broken off: %d publishes are not delivered "
                    "now, and kept as dead letters for their handlers",
                    len(rest),
                )
            raise

    @contextmanager
    def _taken_up(
        self, deferred: Deferred, *, blocking: bool
    ) -> Generator[list[tuple[Receipt, Route]]]:
        """
        Yield what is to be published now, once its keys are held and it is stored.

        What is due later is scheduled after the block.
        """
        waiting, is_logged = deferred.take_all(), deferred.is_logged
        with or_let_go([] if is_logged else waiting):
            begun = [(each, self._set_out(each)) for each in waiting if not _is_for_later(each)]
            for _, route in begun if blocking else ():
                refuse_loop(route, _ENTER_ASYNC)
            for receipt, _ in begun if is_logged else ():
                keep(receipt)
            yield begun
        for receipt in filter(_is_for_later, waiting):
            self._postpone(receipt)

    # -- later -------------------------------------------------------------------------------

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


def _is_for_later(receipt: Receipt) -> bool:
    return "due" in (receipt.options or {})
