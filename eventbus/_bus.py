"""
`EventBus`: the public verbs that publish.

Law: a verb looks a route up and walks it; everything else is decided elsewhere or
off the fast path. The loop over the calls stands in the verb itself, because one
more Python call per publish would cost as much as a handler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import isawaitable
from types import CoroutineType
from typing import Any, Unpack

from eventbus._abort import running_loop
from eventbus._dispatch import adispatch, dispatch, fail_first
from eventbus._envelope import here
from eventbus._intake import give_way
from eventbus._publisher import PublishOptions, refuse_loop
from eventbus._receipt import Receipt
from eventbus._replaying import Replaying
from eventbus._route import Route

__all__ = ["EventBus"]


# So many events into a queue, and a task lets the loop's others run: those that handle them,
# above all. What is handled soon has not left the processor's caches.
_SPELL = 64

# Bound once: a lookup of each would cost a publish some percent.
_here, _show, _hide = here.get, here.set, here.reset


class _Unknown:
    """
    What stands for the route of a class that has none yet: it is made off the fast path.
    """

    plain = aplain = False
    post = None


_UNKNOWN: Any = _Unknown


class EventBus(Replaying):
    """
    Delivers events to the handlers subscribed to their classes, in this process.

    Usable in ``with`` and ``async with``, which start and close it. Only durable
    subscriptions need the start.

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
        store: Where events are logged before anybody gets them, and what durable
            subscriptions have done: `eventbus.sqlite.SQLiteStore`. It belongs to the bus,
            which closes it. Idempotency keys and dead letters are then kept there, too.
        codec: What turns events into bytes and back; a `eventbus.codec.JSONCodec` by default.
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
            EncodeError, StoreError: The event could not be stored. Nobody gets it.
            ConcurrencyError: The stream has another version than expected.
            UncommittedError: Others than durable subscriptions would get it.
        """
        try:
            route = self._routes.table[type(event)]
        except KeyError:
            route = _UNKNOWN
        if options or not route.plain:
            queued = None if options or (post := route.post) is None else post(event, route)
            return queued or self._publish(event, self._routes[type(event)], options)
        calls = route.calls
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.finished = False
        receipt.parent = parent = _here()
        if not calls:
            route.published += 1
            receipt.finished = True
            return receipt
        if parent is not None:
            self._publisher.descend(receipt, parent)
        route.published += 1
        call = None
        token = _show(receipt)
        try:
            try:
                for call in calls:
                    if (result := call(event)) is not None and isawaitable(result):
                        route.settle(call, result)
                return receipt
            except BaseException as error:
                failure = error
            self._carry_on(receipt, route, call, failure)
        finally:
            _hide(token)
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
            EncodeError, StoreError, ConcurrencyError, UncommittedError:
                As `publish`.
        """
        try:
            route = self._routes.table[type(event)]
        except KeyError:
            route = _UNKNOWN
        if options or not route.aplain:
            queued = None if options or (post := route.post) is None else post(event, route)
            if queued is not None:
                return queued if route.published % _SPELL else await _given_way(queued)
            return await self._apublish(event, self._routes[type(event)], options)
        calls = route.acalls
        receipt = Receipt()
        receipt.event = event
        receipt.route = route
        receipt.finished = False
        receipt.parent = parent = _here()
        if not calls:
            route.published += 1
            receipt.finished = True
            return receipt
        if parent is not None:
            self._publisher.descend(receipt, parent)
        route.published += 1
        call = None
        token = _show(receipt)
        try:
            try:
                for call in calls:
                    if (result := call(event)) is not None:
                        if type(result) is CoroutineType:
                            await result
                        else:
                            await _awaited(result)
                return receipt
            except BaseException as error:
                failure = error
            await self._acarry_on(receipt, route, call, failure)
        finally:
            _hide(token)
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
            batch = self._batch(events, options, blocking=True)
            for receipt, route in self._prepare_all(batch):
                receipts.append(self._run(receipt, route))
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
            batch = self._batch(events, options, blocking=False)
            for receipt, route in await self._aprepare_all(batch):
                receipts.append(await self._arun(receipt, route))
        return receipts

    # -- publishing, when it is more than calls: the twins ---------------------------------

    def _publish(self, event: object, route: Route, options: PublishOptions) -> Receipt:
        if self._stood_in and (stand_in := self._stand_in()) is not self:
            return stand_in.publish(event, **options)
        if route.needs_loop is not None and running_loop() is not None and self._is_due(options):
            refuse_loop(route)
        receipt = self._prepare(event, route, options)
        return self._publisher.conclude(self._run(receipt, route))

    async def _apublish(self, event: object, route: Route, options: PublishOptions) -> Receipt:
        if (stand_in := self._stand_in()) is not self:
            return await stand_in.apublish(event, **options)
        receipt = await self._aprepare(event, route, options)
        return self._publisher.conclude(await self._arun(receipt, route))

    # Out of the ``except``, for else what other handlers raise would seem to come of it.

    def _carry_on(self, receipt: Receipt, route: Route, call: Any, failure: BaseException) -> None:
        """
        Bury one failure of a plain publish, and call the remaining handlers.
        """
        walk = route.after(route.calls, call)
        fail_first(receipt, route, walk, failure)
        dispatch(receipt, route, walk)
        self._publisher.conclude(receipt)

    async def _acarry_on(
        self, receipt: Receipt, route: Route, call: Any, failure: BaseException
    ) -> None:
        """
        Bury one failure of a plain publish, and call the remaining handlers.
        """
        walk = route.after(route.acalls, call)
        fail_first(receipt, route, walk, failure)
        await adispatch(receipt, route, walk)
        self._publisher.conclude(receipt)

    def _batch(
        self, events: Iterable[object], options: Mapping[str, Any], *, blocking: bool
    ) -> list[tuple[object, Route, dict[str, Any]]]:
        batch: list[tuple[object, Route, dict[str, Any]]] = []
        key: object = options.get("idempotency_key")
        if key is not None and not isinstance(key, str):
            raise TypeError(
                f"idempotency_key of a batch is one text for all of it, to which each event's "
                f"position is added, and not {key!r}. For a key of each, publish them one by one."
            )
        would_block = blocking and running_loop() is not None and self._is_due(options)
        own = dict(options)
        for position, event in enumerate(events):
            route = self._routes[type(event)]
            if would_block:
                refuse_loop(route)
            if key is not None:
                own = {**options, "idempotency_key": f"{key}#{position}"}
            batch.append((event, route, own))
        return batch


async def _given_way(receipt: Receipt) -> Receipt:
    await give_way()
    return receipt


async def _awaited(result: Any) -> None:
    if isawaitable(result):
        await result
