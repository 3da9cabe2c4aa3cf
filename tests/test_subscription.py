"""
A handler bound to its events: which events, held how, for how long.
"""

from __future__ import annotations

import abc
import asyncio
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypedDict, TypeVar, runtime_checkable

import attrs
import pytest

import eventbus._subscription
from eventbus import (
    DuplicateNameError,
    EventBus,
    HandlerSignatureError,
    Queued,
    Receipt,
    Subscription,
    SubscriptionOptionError,
    event,
)
from eventbus._subscription import Counters, make_subscription
from eventbus.testing import TestBus

Publish = Callable[[EventBus, object], Receipt]
E_co = TypeVar("E_co", covariant=True)


@pytest.fixture(params=["publish", "apublish"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """
    Publish in either colour.
    """
    if request.param == "publish":
        return lambda bus, each: bus.publish(each)
    return lambda bus, each: asyncio.run(bus.apublish(each))


@event
class OrderPlaced:
    order_id: str = "A-1"


@event
class OrderShipped(OrderPlaced):
    pass


@event
class OrderCancelled:
    order_id: str = "A-1"


class Auditable(abc.ABC):
    @abc.abstractmethod
    def actor(self) -> str: ...


class Identified(Protocol):
    order_id: str


@runtime_checkable
class Closeable(Protocol):
    def close(self) -> None: ...


class Order(TypedDict):
    order_id: str


def take_placed(placed: OrderPlaced) -> None: ...


def take_shipped(shipped: OrderShipped) -> None: ...


def take_identified(happened: Identified) -> None: ...


def take_anything(happened: Any) -> None: ...


def take_silently(happened) -> None: ...  # type: ignore[no-untyped-def]


def take_stranger(happened: Stranger) -> None: ...  # type: ignore[name-defined] # noqa: F821


def take_order(order: Order) -> None: ...


class Warehouse:
    def __init__(self) -> None:
        self.seen: list[object] = []

    def take(self, placed: OrderPlaced) -> None:
        self.seen.append(placed)

    async def atake(self, placed: OrderPlaced) -> None:
        self.seen.append(placed)

    def __call__(self, placed: OrderPlaced) -> None:
        self.seen.append(placed)


class Outlet(Warehouse):
    def take(self, placed: OrderPlaced) -> None:
        super().take(placed)  # makes the method a closure over its class


# -- which events ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "handler", "expected"),
    [
        (OrderPlaced, take_placed, (OrderPlaced,)),
        (OrderShipped, take_placed, (OrderShipped,)),
        (OrderPlaced | OrderShipped, take_placed, (OrderPlaced, OrderShipped)),
        (OrderPlaced | None, take_placed, (OrderPlaced,)),
        (None, take_placed, (OrderPlaced,)),
        (OrderPlaced, take_identified, (OrderPlaced,)),
        (OrderPlaced, take_anything, (OrderPlaced,)),
        (OrderPlaced, take_silently, (OrderPlaced,)),
        (OrderPlaced, take_stranger, (OrderPlaced,)),
        (object, take_silently, (object,)),
        (Auditable, take_silently, (Auditable,)),
        (dict, take_silently, (dict,)),
    ],
)
def test_the_event_is_given_or_annotated(
    given: object, handler: Callable[..., object], expected: tuple[type, ...]
):
    """
    A subscription is to the given class, or to what the handler says it takes.
    """
    assert expected == make_subscription(given, handler, {}).event_types


@pytest.mark.parametrize(
    ("given", "handler", "message"),
    [
        ("OrderPlaced", take_placed, r"'OrderPlaced' is no event class\. Give a class"),
        (OrderPlaced(), take_placed, r"is no event class"),
        (Any, take_placed, r"object stands for every event"),
        (type, take_silently, r"is no event class"),
        (OrderCancelled, take_placed, r"to OrderCancelled but annotated to take OrderPlaced\. Ch"),
        (OrderPlaced, take_shipped, r"to OrderPlaced but annotated to take OrderShipped"),
        (OrderPlaced | OrderCancelled, take_placed, r"to OrderCancelled but annotated"),
        (object, take_placed, r"to object but annotated to take OrderPlaced"),
        (Identified, take_silently, r"Identified is a Protocol or a TypedDict.*an abstract base"),
        (Closeable, take_silently, r"Closeable is a Protocol"),
        (OrderPlaced | Identified, take_silently, r"Identified is a Protocol"),
        (Order, take_silently, r"Order is a Protocol or a TypedDict"),
        (None, take_identified, r"Identified is a Protocol"),
        (None, take_order, r"Order is a Protocol or a TypedDict"),
        (None, take_silently, r"has no annotation to take the event from\. Annotate it, or give"),
        (None, take_anything, r"annotated Any, which is no event class"),
        (None, take_stranger, r"annotated Stranger, .* Import it at run time, or give the class"),
        (None, 7, r"^7: a handler must be callable, not 7"),
    ],
)
def test_what_contradicts_is_refused(given: object, handler: Any, message: str):
    """
    An event class that is none, or that the handler does not take, is refused with the cure.
    """
    with pytest.raises(HandlerSignatureError, match=message) as refusal:
        make_subscription(given, handler, {})
    assert refusal.value.subscription


def test_a_class_that_is_no_handler_is_named_in_refusals_of_options():
    """
    Where the name itself is refused, the message goes by the handler's.
    """
    with pytest.raises(SubscriptionOptionError, match=r"^7: name must be text"):
        make_subscription(OrderPlaced, 7, {"name": ""})  # type: ignore[arg-type]


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"name": "shop.take"}])
def test_names_are_unique_on_a_bus(options: Any):
    """
    A second subscription of a name is refused by an error that names and holds the first.
    """
    bus, name = EventBus(), options.get("name", f"{__name__}.take_placed")
    first = bus.subscribe(OrderPlaced | OrderShipped, take_placed, **options)
    with pytest.raises(DuplicateNameError) as refusal:
        bus.subscribe(OrderPlaced, take_placed, **options)
    assert (name, first) == (refusal.value.name, refusal.value.first)
    for said in (name, "take_placed at", "OrderPlaced | OrderShipped", "name=", "A | B"):
        assert said in str(refusal.value)
    assert (first,) == bus.subscriptions


def test_two_instances_of_a_class_need_names():
    """
    The method of a second instance is refused by the default name, and told to take another.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, Warehouse().take)
    with pytest.raises(DuplicateNameError, match=r"For another instance, .* name=\."):
        bus.subscribe(OrderPlaced, Warehouse().take)
    bus.subscribe(OrderPlaced, Warehouse().take, name="second warehouse")


def test_a_name_is_free_again(publish: Publish):
    """
    Once a subscription is cancelled its name may be taken, and nothing of it is left.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, take_placed).cancel()
    second = bus.subscribe(OrderCancelled, take_silently, name=f"{__name__}.take_placed")
    assert (second,) == bus.subscriptions
    assert 0 == publish(bus, OrderPlaced()).delivered


def test_each_name_is_delivered_to_and_cancelled_by_itself(publish: Publish):
    """
    One handler under two names is called twice, and each cancel takes away its own.
    """
    bus, seen = EventBus(), list[object]()
    first = bus.subscribe(OrderPlaced, seen.append, name="first")
    second = bus.subscribe(OrderPlaced, seen.append, name="second")
    assert 2 == publish(bus, OrderPlaced()).delivered
    first.cancel()
    first.cancel()
    assert (second,) == bus.subscriptions
    assert 1 == publish(bus, OrderPlaced()).delivered
    assert 3 == len(seen)


# -- for how long ------------------------------------------------------------------------------


def test_a_subscription_lasts_until_it_is_cancelled(publish: Publish):
    """
    A cancelled subscription is inactive, not listed and not called; cancelling again does nothing.
    """
    bus, seen = EventBus(), list[object]()
    subscription = bus.subscribe(OrderPlaced, seen.append, name="seen")
    assert "<Subscription 'seen' to OrderPlaced>" == repr(subscription)
    assert subscription.is_active
    for _ in range(2):
        subscription.cancel()
        assert not subscription.is_active
        assert 0 == publish(bus, OrderPlaced()).delivered
    assert ([], ()) == (seen, bus.subscriptions)
    assert "<Subscription 'seen' to OrderPlaced, cancelled>" == repr(subscription)


def test_a_block_ends_its_subscription(publish: Publish):
    """
    Used in a ``with`` block, a subscription ends with it, also by an exception.
    """
    bus, seen = EventBus(), list[object]()

    def fail_within() -> None:
        with bus.subscribe(OrderPlaced, seen.append) as subscription:
            assert isinstance(subscription, Subscription)
            publish(bus, OrderPlaced())
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    publish(bus, OrderPlaced())
    assert [OrderPlaced()] == seen


def test_a_subscription_without_a_bus_has_nothing_to_cancel():
    """
    Cancelling a subscription that no bus has taken does nothing.
    """
    subscription = make_subscription(OrderPlaced, take_placed, {})
    subscription.cancel()
    assert subscription.is_active


# -- once ----------------------------------------------------------------------------------------


def test_once_is_over_with_the_first_event(publish: Publish):
    """
    A ``once`` subscription is called for one event, and is cancelled by then.
    """
    bus, seen = EventBus(), list[object]()

    def handler(placed: OrderPlaced) -> None:
        seen.append((placed, bus.subscriptions))

    bus.subscribe(OrderPlaced, handler, once=True)
    assert [1, 0] == [publish(bus, OrderPlaced()).delivered for _ in range(2)]
    assert [(OrderPlaced(), ())] == seen


def test_once_is_over_with_the_first_event_in_its_queue(publish: Publish):
    """
    A queued ``once`` subscription is cancelled then, and its queue keeps that one event.
    """
    with TestBus() as bus:
        subscription = bus.subscribe(OrderPlaced, take_placed, once=True, delivery=Queued())
        assert [1, 0] == [publish(bus, OrderPlaced()).queued for _ in range(2)]
        assert (False, ()) == (subscription.is_active, bus.subscriptions)
        assert [] == bus.delivered
        bus.settle()
        bus.assert_delivered(take_placed, times=1)


def test_once_waits_for_an_event_its_filter_lets_through(publish: Publish):
    """
    An event that is filtered out does not use up a ``once`` subscription.
    """
    bus, seen = EventBus(), list[object]()
    bus.subscribe(
        OrderPlaced, seen.append, once=True, where=lambda placed: placed.order_id == "B-2"
    )
    for order_id in ("A-1", "B-2", "B-2"):
        publish(bus, OrderPlaced(order_id))
    assert [OrderPlaced("B-2")] == seen


def test_once_means_one_of_all_nested_publishes(publish: Publish):
    """
    A ``once`` handler that publishes its own event is not called for that.
    """
    bus, depths = EventBus(), list[int]()

    def handler(placed: OrderPlaced) -> None:
        depths.append(bus.publish(OrderShipped()).delivered)

    bus.subscribe(OrderPlaced, handler, once=True)
    publish(bus, OrderPlaced())
    assert [0] == depths


@pytest.mark.parametrize("round_", range(5))
def test_once_means_one_of_all_threads(round_: int):
    """
    Of any number of threads that publish at once, one reaches a ``once`` handler.
    """
    bus, seen, barrier = EventBus(), list[object](), threading.Barrier(8)
    bus.subscribe(OrderPlaced, seen.append, once=True)

    def race() -> None:
        barrier.wait()
        bus.publish(OrderPlaced(str(round_)))

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [OrderPlaced(str(round_))] == seen


def test_once_has_one_turn_however_it_is_compiled():
    """
    A ``once`` subscription has one turn, also across routes and observers that come and go.
    """
    bus, seen = EventBus(), list[object]()

    def handler(placed: OrderPlaced) -> None:
        seen.append(placed)
        bus.observe(lambda occurrence: None)  # everything is compiled anew
        bus.publish(OrderPlaced("B-2"))

    bus.subscribe(OrderPlaced, handler, once=True)
    bus.publish(OrderPlaced())
    assert [OrderPlaced()] == seen


# -- held weakly ---------------------------------------------------------------------------------


def module_handler(placed: OrderPlaced) -> None: ...


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


@logged
def decorated_handler(placed: OrderPlaced) -> None: ...


def test_a_handler_is_held(publish: Publish):
    """
    By default a subscription keeps its handler alive.
    """
    bus, warehouse = EventBus(), Warehouse()
    seen = warehouse.seen
    bus.subscribe(OrderPlaced, warehouse.take)
    del warehouse
    gc.collect()
    publish(bus, OrderPlaced())
    assert [OrderPlaced()] == seen


@pytest.mark.parametrize("cls", [Warehouse, Outlet])
@pytest.mark.parametrize("name", ["take", "atake", "__call__"])
def test_a_weakly_held_handler_takes_its_subscription_along(
    cls: type[Warehouse], name: str, publish: Publish
):
    """
    When the object of a weakly held handler dies, its subscription is cancelled at once.
    """
    bus, warehouse = EventBus(), cls()
    seen = warehouse.seen
    handler = warehouse if name == "__call__" else getattr(warehouse, name)
    subscription = bus.subscribe(OrderPlaced, handler, weak=True, name="weak")
    assert handler == subscription.handler
    publish(bus, OrderPlaced())
    del handler, warehouse
    gc.collect()
    assert (False, None, ()) == (subscription.is_active, subscription.handler, bus.subscriptions)
    assert 0 == publish(bus, OrderPlaced()).delivered
    assert [OrderPlaced()] == seen
    bus.subscribe(OrderPlaced, seen.append, name="weak")


@pytest.mark.parametrize(
    "handler", [module_handler, decorated_handler, Warehouse.__call__.__get__(Outlet()), print]
)
def test_what_is_held_elsewhere_may_be_held_weakly(handler: Callable[..., Any]):
    """
    Functions of modules, decorated or built in, and bound methods may be held weakly.
    """
    assert handler == make_subscription(OrderPlaced, handler, {"weak": True}).handler


def test_what_is_local_may_be_held_weakly(publish: Publish):
    """
    A local function that encloses nothing, or a local object, ends with its last reference.
    """
    bus = EventBus()

    class Holder:
        def take(self, placed: OrderPlaced) -> None: ...

    def handler(placed: OrderPlaced) -> None: ...

    holder = Holder()
    subscriptions = [bus.subscribe(OrderPlaced, each, weak=True) for each in (handler, holder.take)]
    assert 2 == publish(bus, OrderPlaced()).delivered
    del handler, holder
    gc.collect()
    assert [False, False] == [each.is_active for each in subscriptions]


def closure() -> Callable[..., None]:
    seen = list[object]()

    def handler(placed: OrderPlaced) -> None:
        seen.append(placed)

    return handler


@attrs.define(slots=True, weakref_slot=False)
class Slotted:
    def take(self, placed: OrderPlaced) -> None: ...

    def __call__(self, placed: OrderPlaced) -> None: ...


SEEN: list[object] = []


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (lambda placed: None, "weak=True would lose .*lambda.* at once"),
        (functools.partial(take_placed), "weak=True would lose .*partial"),
        (closure(), "weak=True would lose .*closure"),
        (SEEN.append, r"weak=True would lose .*append.*Drop weak=True, or subscribe a method"),
        (Slotted().take, "Slotted cannot be referenced weakly.*__weakref__"),
        (Slotted(), "Slotted cannot be referenced weakly"),
    ],
)
def test_what_would_vanish_at_once_is_not_held_weakly(handler: Any, message: str):
    """
    What nothing else holds, or what cannot be referenced weakly, is refused with the cure.
    """
    with pytest.raises(SubscriptionOptionError, match=message) as refusal:
        make_subscription(OrderPlaced, handler, {"weak": True})
    assert "weak" == refusal.value.option


def test_a_handler_may_outlive_its_subscription():
    """
    A weakly held handler that dies after its subscription is gone troubles nobody.
    """
    warehouse = Warehouse()
    subscription = make_subscription(OrderPlaced, warehouse.take, {"weak": True})
    find_handler = subscription.get_handler
    del subscription, warehouse
    gc.collect()
    assert find_handler() is None


def test_a_handler_may_die_while_the_bus_is_locked():
    """
    A handler that the garbage collector finds while its bus changes ends without a deadlock.
    """
    bus, warehouse = EventBus(), Warehouse()
    subscription = bus.subscribe(OrderPlaced, warehouse.take, weak=True)
    with bus._registry.lock:
        del warehouse
        gc.collect()
    assert not subscription.is_active


def test_a_dying_handler_may_use_its_bus():
    """
    A finalizer may publish and subscribe on the bus that held its object weakly.
    """
    bus, seen = EventBus(), list[object]()
    bus.subscribe(object, seen.append)

    class Farewell(Warehouse):
        def __del__(self) -> None:
            bus.publish("farewell")

    farewell = Farewell()
    bus.subscribe(OrderPlaced, farewell.take, weak=True)
    del farewell
    gc.collect()
    assert ["farewell"] == seen


def test_a_cancelled_subscription_lets_its_handler_go(publish: Publish):
    """
    Once cancelled, a bus keeps nothing of a subscription it has delivered to.
    """
    bus, warehouse = EventBus(), Warehouse()
    found = weakref.ref(warehouse)
    subscription = bus.subscribe(OrderPlaced, warehouse.take, retry=lambda attempt: None)
    publish(bus, OrderPlaced())
    subscription.cancel()
    del subscription, warehouse
    gc.collect()
    assert found() is None


# -- what is counted -----------------------------------------------------------------------------


def test_the_time_of_calls_is_added_up():
    """
    Counters keep the number, the sum and the longest of the calls.
    """
    counters = Counters()
    for duration in (1.0, 3.0, 2.0):
        counters.took(duration)
    assert (3, 6.0, 3.0) == (counters.calls, counters.seconds, counters.slowest)


@pytest.mark.parametrize(
    ("handler", "options", "expected"),
    [
        (take_placed, {}, False),
        (Warehouse().atake, {}, True),
        (take_placed, {"offload": True}, False),
        (take_placed, {"offload": True, "timeout": 3}, True),
    ],
)
def test_what_is_async_or_bounded_needs_a_loop(handler: Any, options: Any, expected: bool):
    """
    An async handler needs an event loop, and so does a thread that is waited for in time.
    """
    assert expected is make_subscription(OrderPlaced, handler, options).needs_loop


def test_nothing_here_knows_a_bus():
    """
    The room of the subscription names no room above it.
    """
    assert not hasattr(eventbus._subscription, "EventBus")


# -- pausing ---------------------------------------------------------------------------------


def test_a_queued_subscription_says_whether_it_is_paused():
    """
    It is from `pause` to `resume`, and nothing is handed out meanwhile.
    """
    seen = list[object]()
    with TestBus() as bus:
        subscription = bus.subscribe(OrderPlaced, seen.append, delivery=Queued(), name="queued")
        assert not subscription.is_paused
        subscription.pause()
        assert subscription.is_paused
        bus.publish(OrderPlaced())
        bus.settle()
        assert [] == seen
        subscription.resume()
        assert not subscription.is_paused
        bus.settle()
        assert [OrderPlaced()] == seen


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_what_has_no_queue_cannot_be_paused(verb: str):
    """
    An inline subscription is never paused, and refuses by naming what would help.
    """
    with EventBus() as bus:
        subscription = bus.subscribe(OrderPlaced, lambda placed: None, name="inline")
        assert not subscription.is_paused
        with pytest.raises(SubscriptionOptionError, match=rf"{verb}\(\).*delivery=Queued\(\)"):
            getattr(subscription, verb)()
