"""
`EventBus`: the public verbs that publish and redrive.

Law: a verb looks a route up and walks it; everything else is decided elsewhere or
off the fast path. The loop over the calls stands in the verb itself, because one
more Python call per publish would cost as much as a handler.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Unpack

from eventbus._delivery import Delivery
from eventbus._dispatch import adispatch, adispatch_concurrently, dispatch, fail_first
from eventbus._envelope import NOWHERE, here, leave, other_threads, settle_down
from eventbus._publisher import PublishOptions, refuse_loop, unheard
from eventbus._receipt import Receipt
from eventbus._routing import Route
from eventbus._wiring import Wiring
from eventbus.dead_letter import DeadLetter, DeadLetters, Filters
from eventbus.errors import DeadLetterNotFoundError, SubscriptionNotFoundError

__all__ = ["EventBus"]


def _probe_loop() -> Any:
    """
    Return the running event loop; until asyncio is imported there can be none.
    """
    global _running_loop  # noqa: PLW0603 - this function steps aside for the real one
    events = sys.modules.get("asyncio.events")
    found = getattr(events, "_get_running_loop", None)
    if found is None:
        return None
    _running_loop = found
    return found()


_running_loop: Callable[[], Any] = _probe_loop
_here = here.get


class EventBus(Wiring):
    """
    Delivers events to the handlers subscribed to their classes, in this process.

    Usable in ``with`` and ``async with``, whose end closes it; a bus needs no start.

    Args:
        errors: What a publish does with failures of its handlers, after all have run:
            ``"collect"`` logs each once and leaves them in the receipt; ``"raise"``
            raises one `HandlerErrors`. Dead letters are kept either way.
        fanout: How `apublish` runs the async handlers of one event: one after the
            other, or ``"concurrent"``.
        retry: The retry policy of subscriptions without one of their own.
        wrap: A hook around every handler, outside the subscription's own ``wrap=``.
        headers: Called for each publish, in the publisher's context; its headers are
            added to the event's. What it raises, the publisher gets.
        observers: Who is told what happens; see `eventbus.instrumentation`.
        idempotency: The store of idempotency keys. Default: in memory, for a day.
        dead_letters: The store of dead letters. Default: in memory, 10,000.
        clock: Where time, sleep and ids come from.
        timings: Measure the time spent in handlers, for `stats`.
        envelopes: ``"lazy"`` makes an envelope when something asks for it;
            ``"eager"`` at each publish, so that its time is always the publish's.
        max_depth: How deep handlers may publish inside each other before it counts
            as a cycle. The default leaves each handler ten calls of its own before
            Python's limit of 1,000, also under a tracer, which counts awaits twice.
        name: What the bus is called in errors and thread names.

    .. versionadded:: 0.1
    """

    # -- publishing ------------------------------------------------------------------------

    def publish(self, event: object, /, **options: Unpack[PublishOptions]) -> Receipt:
        """
        Deliver *event* to its handlers, and return when they are done.

        Sync handlers run in this thread, async ones on the bus's own loop thread, in
        order of priority, then of subscription. No handler's failure reaches the
        others.

        Args:
            event: Any instance.
            options: See `PublishOptions`.

        Returns:
            What came of it.

        Raises:
            NotAnEventError: A class or ``None`` was given.
            RunningLoopError: An async handler is subscribed, and an event loop runs in
                this thread. No handler has been called.
            PublishCycleError: Handlers publish each other's events without end.
            BusClosedError: The bus is closed.
            HandlerErrors: Handlers failed, on a bus with ``errors="raise"``.
        """
        route = self._routes[type(event)]
        cell = _here()
        if options or not route.plain or cell is NOWHERE or _running_loop() is not None:
            return self._publish(event, route, options)
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.parent = parent = cell.current
        if parent is not None:
            self._publisher.descend(receipt, parent)
        route.published += 1
        walk = iter(route.calls)
        token = None
        if other_threads() == cell.threads:
            cell.current = receipt
        else:
            token = here.set(receipt)
        try:
            try:
                for call in walk:
                    if (result := call(event)) is not None:
                        route.folded[route.position(walk)].settle(result)
                return receipt
            except Exception as error:
                failure = error
            except BaseException:
                route.interrupted(walk)
                raise
            # Out here, for else what other handlers raise would seem to come of it.
            self._carry_on(receipt, route, walk, failure)
        finally:
            if token is not None:
                here.reset(token)
            elif other_threads() == cell.threads:
                cell.current = parent
            else:
                leave(cell, parent)
            receipt.finished = True
        return receipt

    async def apublish(self, event: object, /, **options: Unpack[PublishOptions]) -> Receipt:
        """
        Deliver *event* to its handlers, awaiting the async ones.

        Sync handlers are called in the loop, or in a thread with ``offload=True``.
        Cancelled, it cancels the handler it awaits, calls no other, and passes the
        cancellation on.

        Raises:
            NotAnEventError, PublishCycleError, BusClosedError, HandlerErrors:
                As `publish`.
        """
        route = self._routes[type(event)]
        if options or not route.plain:
            return await self._apublish(event, route, options)
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.parent = parent = _here().current
        if parent is not None:
            self._publisher.descend(receipt, parent)
        route.published += 1
        walk = iter(route.acalls)
        token = here.set(receipt)
        try:
            try:
                for call in walk:
                    if (result := call(event)) is not None:
                        if type(result) is CoroutineType:
                            await result
                        else:
                            await _awaited(result)
                return receipt
            except Exception as error:
                failure = error
            except BaseException:
                route.interrupted(walk)
                raise
            await self._acarry_on(receipt, route, walk, failure)
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    def publish_many(
        self, events: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> list[Receipt]:
        """
        Publish each event in turn; refuse them all if one cannot be published.

        Args:
            events: Any number of events.
            options: Apply to each. An *idempotency_key* stands for the whole batch:
                each event's position is added to it.

        Raises:
            HandlerErrors: With ``errors="raise"``: all failures, after all events.
            NotAnEventError, RunningLoopError, PublishCycleError, BusClosedError:
                As `publish`, before any event has been published.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.publish_many(events, **options)
        with self._publisher.concluding() as receipts:
            for event, own in self._batch(events, options, blocking=True):
                route = self._route(event, blocking=True)
                receipts.append(self._run(self._publisher.prepare(event, route, own), route))
        return receipts

    async def apublish_many(
        self, events: Iterable[object], /, **options: Unpack[PublishOptions]
    ) -> list[Receipt]:
        """
        Publish each event in turn, awaiting its async handlers; see `publish_many`.
        """
        if (stand_in := self._stand_in()) is not self:
            return await stand_in.apublish_many(events, **options)
        with self._publisher.concluding() as receipts:
            for event, own in self._batch(events, options, blocking=False):
                route = self._route(event, blocking=False)
                receipts.append(await self._arun(self._publisher.prepare(event, route, own), route))
        return receipts

    # -- publishing, when it is more than calls: the twins ---------------------------------

    def _publish(self, event: object, route: Route, options: PublishOptions) -> Receipt:
        if route.silent and not options:
            return unheard(event, route)
        if (stand_in := self._stand_in()) is not self:
            return stand_in.publish(event, **options)
        if _running_loop() is not None:
            refuse_loop(route)
        elif _here() is NOWHERE:
            settle_down()
            if route.plain and not options:
                return self.publish(event)
        receipt = self._publisher.prepare(event, route, options)
        return self._publisher.conclude(self._run(receipt, route))

    async def _apublish(self, event: object, route: Route, options: PublishOptions) -> Receipt:
        if route.silent and not options:
            return unheard(event, route)
        if (stand_in := self._stand_in()) is not self:
            return await stand_in.apublish(event, **options)
        receipt = self._publisher.prepare(event, route, options)
        return self._publisher.conclude(await self._arun(receipt, route))

    def _run(self, receipt: Receipt, route: Route) -> Receipt:
        if receipt.finished:
            return receipt
        token = here.set(receipt)
        try:
            dispatch(receipt, route, iter(route.calls))
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    async def _arun(self, receipt: Receipt, route: Route) -> Receipt:
        if receipt.finished:
            return receipt
        run = adispatch_concurrently if self._is_concurrent else adispatch
        token = here.set(receipt)
        try:
            await run(receipt, route, iter(route.acalls))
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    def _carry_on(
        self, receipt: Receipt, route: Route, walk: Iterator[Any], error: Exception
    ) -> None:
        """
        Bury one failure of a plain publish, and call the remaining handlers.
        """
        fail_first(receipt, route, walk, error)
        dispatch(receipt, route, walk)
        self._publisher.conclude(receipt)

    async def _acarry_on(
        self, receipt: Receipt, route: Route, walk: Iterator[Any], error: Exception
    ) -> None:
        """
        Bury one failure of a plain publish, and call the remaining handlers.
        """
        fail_first(receipt, route, walk, error)
        await adispatch(receipt, route, walk)
        self._publisher.conclude(receipt)

    def _batch(
        self, events: Iterable[object], options: Mapping[str, Any], *, blocking: bool
    ) -> list[tuple[object, dict[str, Any]]]:
        batch: list[tuple[object, dict[str, Any]]] = []
        key = options.get("idempotency_key")
        for position, event in enumerate(events):
            self._route(event, blocking=blocking)
            own: dict[str, Any] = {} if key is None else {"idempotency_key": f"{key}#{position}"}
            batch.append((event, {**options, **own}))
        return batch

    def _route(self, event: object, *, blocking: bool) -> Route:
        route = self._routes[type(event)]
        if blocking and _running_loop() is not None:
            refuse_loop(route)
        return route

    # -- dead letters ------------------------------------------------------------------------

    @property
    def dead_letters(self) -> DeadLetters:
        """
        The deliveries that were given up on: query, count, discard.
        """
        return self._stand_in()._furniture.dead_letters

    def redrive(self, letter: DeadLetter | str, /) -> Receipt:
        """
        Deliver a dead letter again, to the handler that failed and to no other.

        Its retry policy starts anew, its filter is not asked and its key is not in the
        way. Success removes the letter; another failure is added to its story.

        Args:
            letter: The letter or its id.

        Returns:
            What came of it; on every bus, failures are returned and not raised.

        Raises:
            DeadLetterNotFoundError: There is no such letter (any more).
            SubscriptionNotFoundError: Nothing is subscribed by the letter's name.
            RunningLoopError: The handler is async and a loop runs in this thread.
        """
        delivery, receipt, route, found = self._stand_in()._redriven(letter)
        if _running_loop() is not None:
            refuse_loop(route)
        token = here.set(receipt)
        try:
            dispatch(receipt, route, iter([delivery.deliver]))
        finally:
            here.reset(token)
            receipt.finished = True
        return self._laid_to_rest(receipt, found)

    async def aredrive(self, letter: DeadLetter | str, /) -> Receipt:
        """
        Deliver a dead letter again, awaiting an async handler; see `redrive`.
        """
        delivery, receipt, route, found = self._stand_in()._redriven(letter)
        token = here.set(receipt)
        try:
            await adispatch(receipt, route, iter([delivery.adeliver]))
        finally:
            here.reset(token)
            receipt.finished = True
        return self._laid_to_rest(receipt, found)

    def redrive_all(self, **filters: Unpack[Filters]) -> list[Receipt]:
        """
        Redrive each dead letter that matches *filters*, the oldest first.

        Raises:
            SubscriptionNotFoundError: See `redrive`; letters before it are redriven.
        """
        return [self.redrive(letter) for letter in self.dead_letters.query(**filters)]

    async def aredrive_all(self, **filters: Unpack[Filters]) -> list[Receipt]:
        """
        Redrive each dead letter that matches *filters*; see `redrive_all`.
        """
        return [await self.aredrive(letter) for letter in self.dead_letters.query(**filters)]

    def _redriven(self, letter: DeadLetter | str) -> tuple[Delivery, Receipt, Route, DeadLetter]:
        letter = self.dead_letters.get(letter if isinstance(letter, str) else letter.id)
        event: object = letter.event
        self._routes.refuse_if_closed(type(event))
        subscription = self._registry.named(letter.subscription)
        if subscription is None or subscription.handler is None:
            raise SubscriptionNotFoundError(
                f"dead letter {letter.id} belongs to {letter.subscription!r}, which is not "
                f"subscribed here. Subscribe a handler by that name= first, or discard it.",
                subscription=letter.subscription,
            )
        route = self._routes.alone(letter.event, subscription)
        receipt = self._publisher.redriving(letter, route)
        return self._delivery(subscription), receipt, route, letter

    def _laid_to_rest(self, receipt: Receipt, letter: DeadLetter) -> Receipt:
        if receipt.ok:
            with suppress(DeadLetterNotFoundError):  # discarded meanwhile
                self.dead_letters.remove(letter.id)
        return receipt


async def _awaited(result: Any) -> None:
    if isawaitable(result):
        await result
