"""
The part of a bus that has a store: what is logged, and who consumes the log.

Law: a bus without a store is not touched by anything here, and does not load what only a
store needs. Whether an event is logged is decided when its route is made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from eventbus._delivery import Delivery
from eventbus._event import declaration_of
from eventbus._insight import DurableStats, Explanation
from eventbus._mode import Durable
from eventbus._options import refuse_option
from eventbus._receipt import Receipt, lender
from eventbus._registry import Registry
from eventbus._route import Route
from eventbus._routing import Router
from eventbus._subscription import Subscription
from eventbus._wiring import Wiring
from eventbus._workers import start_task, start_thread

if TYPE_CHECKING:
    from eventbus._consumer import Consumer
    from eventbus._consumers import Consumers
    from eventbus._log_queue import LogQueue
    from eventbus._log_writer import LogWriter
    from eventbus.codec import Codec
    from eventbus.store import Store

__all__ = ["Storing"]


class Storing(Wiring):
    """
    The part of `eventbus.EventBus` that has a store.
    """

    _store: Store | None = None
    _log: LogWriter | None = None
    _consumers: Consumers | None = None
    _in_log: dict[str, int] | None = None  # what its end has left there, by subscription
    # What to do where it has none, and a durable subscription comes.
    _cure: str = 'Give it a store: EventBus(store=SQLiteStore("app.db")).'

    def _use(self, store: Store, codec: Codec) -> None:
        from eventbus._consumers import Consumers  # late, as all below: for start-up time
        from eventbus._log_writer import LogWriter
        from eventbus._stored_letters import StoredDeadLetters

        self._store, self._codec = store, codec
        self._log = LogWriter(store.log, codec, self._furniture.idempotency)
        self._consumers = Consumers(
            store.log, f"{self.name}-durable", is_manned=self._workers is None
        )
        if isinstance(letters := self._furniture.dead_letters, StoredDeadLetters):
            letters.on_removed = self._consumers.look_again
        self._routes.has_log = self._publisher.keys.has_log = True

    # -- what is logged: the twins -----------------------------------------------------------

    def _logs(self, route: Route) -> bool:
        """
        Whether events that go this way are written to the log.
        """
        return self._log is not None and route.declaration.logged

    def _append(self, receipts: Sequence[Receipt], options: Mapping[str, Any]) -> None:
        """
        Write events to the log, all or none, before anybody gets them.
        """
        assert self._log is not None
        if not options and receipts[0].parent is None:
            return self._log.append(receipts)
        self._log.append(
            receipts,
            expected_version=options.get("expected_version"),
            connection=options.get("connection") or lent_to(receipts),
        )

    async def _aappend(self, receipts: Sequence[Receipt], options: Mapping[str, Any]) -> None:
        """
        Do as `_append`, while the event loop goes on.
        """
        assert self._log is not None
        if options.get("connection") is not None or lent_to(receipts) is not None:
            return self._append(receipts, options)  # which waits for no commit
        await self._log.aappend(receipts, expected_version=options.get("expected_version"))

    # -- durable subscriptions ---------------------------------------------------------------

    def _take_in(self, subscription: Subscription) -> Subscription:
        mode = subscription.options.delivery
        if not isinstance(mode, Durable):
            return super()._take_in(subscription)
        store, consumers = self._store, self._consumers
        if store is None or consumers is None:
            refuse_option(
                "delivery",
                subscription.name,
                f"delivery=Durable() is from the event log of the bus, and this one has none. "
                f"{self._cure}",
            )
        if subscription.name.startswith("projection:"):
            refuse_option(
                "name",
                subscription.name,
                "what begins with 'projection:' is the place of a projection in the log: give "
                "the subscription another name",
            )
        _check_logged(subscription)
        taken = super()._take_in(subscription)
        try:
            store.progress.open(subscription.name, start=mode.start)
            queue = self._queues[subscription] = self._log_queue_for(subscription, mode)
            subscription.queue = queue
            consumers.add(subscription, self._consumer_for(subscription, mode, queue))
        except BaseException:
            taken.end()
            raise
        return taken

    def _log_queue_for(self, subscription: Subscription, mode: Durable) -> LogQueue:
        from eventbus._log_queue import LogQueue, mode_of

        options, home = subscription.options, self._home
        start = partial(start_task, home=home) if subscription.needs_loop else start_thread
        return LogQueue(
            subscription.name,
            mode_of(mode),
            limit=self._workers,
            needs_loop=subscription.needs_loop,
            interval=0.0 if options.max_rate is None else 1.0 / options.max_rate,
            alarms=self._alarms,
            now=self._furniture.clock.monotonic,
            start=start,
        )

    def _consumer_for(self, subscription: Subscription, mode: Durable, queue: LogQueue) -> Consumer:
        from eventbus._consumer import Consumer
        from eventbus._log_reader import LogReader

        store, clock = self._store, self._furniture.clock
        assert store is not None
        assert self._consumers is not None
        reader = LogReader(
            subscription,
            codec=self._codec,
            log=store.log,
            route_for=_Alone(self._routes, self._registry, subscription).route,
        )
        return Consumer(
            subscription.name,
            mode,
            store=store,
            queue=queue,
            reader=reader,
            clock=clock,
            wake=self._consumers.wake,
            is_quiet=self._workers is not None,
        )

    def _delivery(self, subscription: Subscription) -> Delivery:
        consumer = None if self._consumers is None else self._consumers.get(subscription)
        target = self._targets.get(subscription)
        if consumer is None or target is None:
            return super()._delivery(subscription)
        from eventbus._durable_keeping import DurableDelivery

        return DurableDelivery(subscription, self._furniture, target, consumer)

    def explain(self, event: object, /) -> tuple[Explanation, ...]:
        """
        Say, subscription by subscription, whether *event* would reach it, and why.

        Of a durable one, also whether anybody consumes it, and whether it, or the event's key,
        waits behind a dead letter: for that the store is asked.

        Args:
            event: What would be published. Or its class: what filters and keys say is then
                left open.

        Raises:
            NotAnEventError: It can be no event.
            StoreError: The store cannot say.
        """
        told = super().explain(event)
        if self._consumers is None or self._store is None or self._stand_in() is not self:
            return told
        from eventbus._outlook import looked_ahead

        store, items = self._store, self._consumers.items()
        consumers = {each.name: consumer for each, consumer in items if each.is_live}
        return tuple(
            looked_ahead(each, event, consumers[each.subscription], store)
            if each.called and each.subscription in consumers
            else each
            for each in told
        )

    def _places(self) -> dict[Subscription, DurableStats]:
        consumers = self._consumers
        if consumers is None or self.is_closed:
            return super()._places()
        return {each: consumer.place() for each, consumer in consumers.items()}

    def _retire(self, subscription: Subscription) -> None:
        if self._consumers is not None:
            self._consumers.retire(subscription)
        super()._retire(subscription)

    def _start_consuming(self) -> None:
        """
        Begin to consume, if there is a store; what older events are read with is checked.

        Raises:
            DeclarationError: There is a gap in the upcasters of a class.
        """
        if self._consumers is not None:
            self._codec.check()
            self._consumers.start()

    def _look_around(self) -> None:
        """
        Learn of what others have appended, or the application in its own transaction.
        """
        if self._consumers is not None:
            self._consumers.look()

    def _put_away(self) -> None:
        """
        Write down what is known, and close the store. Again is fine.
        """
        if self._store is not None and self._consumers is not None:
            self._consumers.close()
            if self._in_log is None:
                self._in_log = self._consumers.left()
            self._store.close()


def lent_to(receipts: Sequence[Receipt]) -> Any:
    """
    Return the connection whose transaction these publishes are part of, if there is one.
    """
    of = lender(receipts[0]) if receipts else None
    return None if of is None else of.connection


class _Alone:
    """
    The routes of one durable subscription's deliveries, until something has changed.
    """

    def __init__(self, routes: Router, registry: Registry, subscription: Subscription) -> None:
        self._all = routes
        self._registry = registry
        self._subscription = subscription
        self._version = -1
        self._routes: dict[type, Route] = {}

    def route(self, event: object) -> Route:
        """
        Return the route of an event to the subscription.
        """
        if self._registry.version != self._version:
            self._version = self._registry.version
            self._routes.clear()
        route = self._routes.get(type(event))
        if route is None:
            route = self._routes[type(event)] = self._all.alone(event, self._subscription)
        return route


def _check_logged(subscription: Subscription) -> None:
    for event_type in subscription.event_types:
        if not declaration_of(event_type).logged:
            refuse_option(
                "delivery",
                subscription.name,
                f"{event_type.__qualname__} is declared with logged=False, so no log has it. "
                f"Drop that, or subscribe with delivery=Queued().",
            )
