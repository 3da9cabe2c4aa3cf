"""
How a bus is put together, wired to its handlers and looked at.

Law: everything a bus is, apart from publishing, redriving, starting and closing:
nothing here runs while an event is published, unless another bus stands in for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Literal,
    ParamSpec,
    TypeVar,
    Unpack,
    overload,
)

from eventbus._alarms import Alarms
from eventbus._attempt import wrapped
from eventbus._clock import Clock, SystemClock
from eventbus._delivery import Delivery
from eventbus._fork import renewed
from eventbus._furnishing import (
    check_calls,
    check_choices,
    check_parts,
    codec_for,
    keys_in,
    letters_in,
)
from eventbus._furniture import Furniture
from eventbus._insight import DurableStats, Explanation, Stats, explain, stats_of
from eventbus._intake import Intake
from eventbus._keeping import QueuedDelivery
from eventbus._loop_thread import LoopThread
from eventbus._marks import check_order, is_bare, marks_in
from eventbus._options import AnyHandler, SubscriptionOptions
from eventbus._publisher import Publisher
from eventbus._registry import Registry
from eventbus._replaceable import Replaceable
from eventbus._route import Folded
from eventbus._routing import Router
from eventbus._subscription import Subscription, make_subscription
from eventbus._workers import Home, make_queue
from eventbus.dead_letter import DeadLetters
from eventbus.idempotency import IdempotencyStore
from eventbus.instrumentation import Observer
from eventbus.retry import RetryPolicy, as_policy

if TYPE_CHECKING:
    from typing_extensions import TypeForm

    from eventbus.codec import Codec
    from eventbus.store import Store

__all__ = ["Wiring"]

E = TypeVar("E")
R = TypeVar("R")
P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., object])
Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class Wiring(Replaceable):
    """
    The part of `eventbus.EventBus` that does not publish.
    """

    # How many workers a queue has, if not as many as it asks for.
    _workers: int | None = None

    def __init__(
        self,
        *,
        errors: Literal["collect", "raise"] = "collect",
        fanout: Literal["sequential", "concurrent"] = "sequential",
        retry: RetryPolicy | Callable[..., float | None] | None = None,
        wrap: Wrap | None = None,
        headers: Callable[[], Mapping[str, str]] | None = None,
        observers: Iterable[Observer] = (),
        idempotency: IdempotencyStore | None = None,
        dead_letters: DeadLetters | None = None,
        store: Store | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
        timings: bool = False,
        envelopes: Literal["lazy", "eager"] = "lazy",
        max_depth: int = 32,
        name: str = "eventbus",
    ) -> None:
        check_choices(errors, fanout, envelopes, max_depth)
        check_calls(wrap=wrap, headers=headers, observers=observers)
        check_parts(clock, codec, dead_letters, idempotency, store)
        self.name = name
        codec = codec_for(store, codec)
        self._furniture = Furniture(
            clock=clock or SystemClock(),
            idempotency=keys_in(store) if idempotency is None else idempotency,
            dead_letters=letters_in(store, codec) if dead_letters is None else dead_letters,
            loop_thread=LoopThread(f"{name}-loop"),
            observers=tuple(observers),
            retry=None if retry is None else as_policy(retry),
            timings=timings,
            logs_failures=errors == "collect",
        )
        self._publisher = Publisher(
            furniture=self._furniture,
            headers=headers,
            is_eager=envelopes == "eager" or headers is not None,
            max_depth=max_depth,
            raises=errors == "raise",
        )
        self._is_concurrent = fanout == "concurrent"
        self._wrap = wrap
        self._lock = renewed(threading.Lock())
        self._alarms = Alarms(self._furniture.clock, f"{name}-alarms")
        self._home = Home(self._furniture.loop_thread)
        self._ending: Any = None
        self._postponed: Any = None
        self._queues: dict[Subscription, Intake] = {}
        self._targets: dict[Subscription, AnyHandler] = {}
        self._registry = Registry()
        self._routes = Router(
            self._registry, publisher=self._publisher, fold=self._fold, is_plain=self._is_plain
        )
        if store is not None and codec is not None:
            self._use(store, codec)

    def _use(self, store: Store, codec: Codec) -> None:
        """
        Log to *store* what is published, and deliver from it.
        """

    # -- subscribing -----------------------------------------------------------------------

    @overload
    def on(
        self, event_type: type[E], /, **options: Unpack[SubscriptionOptions[E]]
    ) -> Callable[[Callable[Concatenate[E, P], R]], Callable[Concatenate[E, P], R]]: ...

    # For what is no ``type[E]`` to a type checker: unions and abstract classes.
    @overload
    def on(
        self, event_type: TypeForm[E], /, **options: Unpack[SubscriptionOptions[E]]
    ) -> Callable[[Callable[Concatenate[E, P], R]], Callable[Concatenate[E, P], R]]: ...

    @overload
    def on(self, /, **options: Unpack[SubscriptionOptions[Any]]) -> Callable[[F], F]: ...

    @overload
    def on(self, handler: F, /) -> F: ...

    def on(self, target: Any = None, /, *others: Any, **options: Any) -> Any:
        """
        Subscribe the decorated function, and return it unchanged.

        Args:
            target: An event class or a union of them; without one, the annotation of
                the function's first parameter says it.
            options: See `SubscriptionOptions`.

        Raises:
            HandlerSignatureError: The function cannot be called with such an event.
            SubscriptionOptionError: An option cannot work for it.
            DuplicateNameError: Its name is taken.
        """

        def decorate(handler: F) -> F:
            self._subscribe(None if target is handler else target, handler, options)
            return handler

        return decorate(target) if is_bare(target, others, options) else decorate

    @overload
    def subscribe(
        self,
        event_type: type[E],
        handler: Callable[Concatenate[E, P], object],
        /,
        **options: Unpack[SubscriptionOptions[E]],
    ) -> Subscription: ...

    @overload
    def subscribe(
        self,
        event_type: TypeForm[E],
        handler: Callable[Concatenate[E, P], object],
        /,
        **options: Unpack[SubscriptionOptions[E]],
    ) -> Subscription: ...

    def subscribe(self, event_type: Any, handler: Any = None, /, **options: Any) -> Subscription:
        """
        Subscribe *handler* to events of a class and its subclasses.

        Args:
            event_type: An event class, an abstract base class, ``object``, or a union.
            handler: Called with the event, and with its `Envelope` if it has a second
                parameter annotated so. May be async.
            options: See `SubscriptionOptions`.

        Returns:
            The subscription, to be cancelled, also by the end of a ``with`` block.

        Raises:
            HandlerSignatureError: The handler cannot be called with such an event.
            SubscriptionOptionError: An option cannot work for it.
            DuplicateNameError: Its name is taken.
        """
        check_order(event_type, handler)
        return self._subscribe(event_type, handler, options)

    def include(self, *holders: object) -> tuple[Subscription, ...]:
        """
        Subscribe what `on` has marked in modules, instances, or single functions.

        All or nothing: if one cannot be subscribed, none is.

        Raises:
            ValueError: A holder has no marked handler.
            HandlerSignatureError, SubscriptionOptionError, DuplicateNameError: See `on`.
        """
        made: list[Subscription] = []
        try:
            for holder in holders:
                for event_type, handler, options in marks_in(holder):
                    made.append(self._subscribe(event_type, handler, options))
        except BaseException:
            for subscription in made:
                subscription.end()
            raise
        return tuple(made)

    def _subscribe(self, given: Any, handler: Any, options: Mapping[str, Any]) -> Subscription:
        if (stand_in := self._stand_in()) is not self:
            return stand_in._subscribe(given, handler, options)
        return self._take_in(make_subscription(given, handler, options))

    def _take_in(self, subscription: Subscription) -> Subscription:
        subscription.retire, subscription.meant_here = self._retire, self._meant_here
        self._targets[subscription] = wrapped(subscription, self._hooks(subscription))
        if subscription.is_queued:
            subscription.queue = self._queues[subscription] = self._queue_for(subscription)
        try:
            self._registry.add(subscription)
        except BaseException:
            self._forget(subscription)
            raise
        return subscription

    def _queue_for(self, subscription: Subscription) -> Intake:
        """
        Return the queue of a subscription, whose workers start with its first event.
        """
        return make_queue(
            subscription,
            alarms=self._alarms,
            clock=self._furniture.clock,
            home=self._home,
            limit=self._workers,
        )

    def _dress(self, queues: Iterable[Intake]) -> None:
        """
        Prepare queues that are nobody's in particular.
        """

    def _forget(self, subscription: Subscription) -> None:
        self._targets.pop(subscription, None)
        self._queues.pop(subscription, None)

    def _hooks(self, subscription: Subscription) -> tuple[Wrap, ...]:
        """
        Return what is put around a handler, the innermost first.
        """
        own = (subscription.options.wrap, self._wrap)
        return tuple(each for each in own if each is not None)

    def _retire(self, subscription: Subscription) -> None:
        self._registry.remove(subscription)
        if (queue := self._queues.get(subscription)) is None:
            return self._forget(subscription)
        # What it has accepted is still handled, and then its workers end.
        queue.retire(partial(self._forget, subscription))

    def _fold(self, subscription: Subscription) -> Folded:
        return self._delivery(subscription).fold()

    def _delivery(self, subscription: Subscription) -> Delivery:
        target = self._targets.get(subscription)
        if target is None:
            target = wrapped(subscription, ())
        if (queue := self._queues.get(subscription)) is not None:
            return QueuedDelivery(subscription, self._furniture, target, queue)
        return Delivery(subscription, self._furniture, target)

    @property
    def _is_plain(self) -> bool:
        publisher = self._publisher
        is_special = publisher.is_eager or publisher.is_closing
        is_special = is_special or self._is_concurrent
        return super()._is_plain and not (is_special or self._furniture.observers)

    def _settings(self) -> dict[str, Any]:
        """
        Return how the constructor was called, furniture aside: for a bus that stands in.
        """
        return {
            "errors": "raise" if self._publisher.raises else "collect",
            "fanout": "concurrent" if self._is_concurrent else "sequential",
            "retry": self._furniture.retry,
            "wrap": self._wrap,
            "headers": self._publisher.headers,
            "timings": self._furniture.timings,
            "envelopes": "eager" if self._publisher.is_eager else "lazy",
            "max_depth": self._publisher.max_depth,
            "name": self.name,
        }

    # -- seeing ------------------------------------------------------------------------------

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """
        The subscriptions, in the order in which they were made.
        """
        return tuple(self._stand_in()._registry)

    def explain(self, event: object, /) -> tuple[Explanation, ...]:
        """
        Say, subscription by subscription, whether *event* would reach it, and why.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.explain(event)
        keys, now = self._furniture.idempotency, self._furniture.clock.monotonic()
        return explain(event, self._registry, is_closed=self.is_closed, keys=keys, now=now)

    def stats(self) -> Stats:
        """
        Return what has been counted since the bus was made.
        """
        bus = self._stand_in()
        return stats_of(
            bus._registry,
            bus._routes,
            duplicates=bus._publisher.keys.duplicates,
            timed=bus._furniture.timings,
            scheduled=0 if bus._postponed is None else len(bus._postponed),
            depths={each: queue.depth() for each, queue in list(bus._queues.items())},
            places=bus._places(),
        )

    def _places(self) -> dict[Subscription, DurableStats]:
        return {}

    def observe(self, observer: Observer, /) -> Callable[[], None]:
        """
        Tell *observer* what happens from now on, until the returned function is called.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.observe(observer)
        dismiss = self._furniture.admit(observer)
        self._routes.reset(is_plain=self._is_plain)

        def stop() -> None:
            dismiss()
            self._routes.reset(is_plain=self._is_plain)

        return stop

    @property
    def clock(self) -> Clock:
        """
        Where the bus takes time, sleep and ids from.
        """
        return self._stand_in()._furniture.clock

    @property
    def is_closed(self) -> bool:
        """
        Whether the bus has been closed.
        """
        return self._stand_in()._routes.closed_by is not None

    def __repr__(self) -> str:
        state = ", closed" * self.is_closed
        return f"<EventBus {self.name!r}: {len(self.subscriptions)} subscriptions{state}>"


# As the error for a wrong argument names it.
Wiring.__init__.__qualname__ = "EventBus.__init__"
