"""
The library under test, wired in the ways the races ask for.

Law: only public names of `eventbus`, each bus as a user would make it; no times and no targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventbus import Envelope, EventBus, current_envelope, event, exponential

from .peers import Contender, Handler, aplain, plain
from .timing import Lane, Prepared, clone, lane


@event
class OrderPlaced:
    order_id: str
    total: int


@event
class PaymentTaken:
    order_id: str
    total: int


ORDER = OrderPlaced("A-1", 42)


def bus_of(handlers: Sequence[Handler], bus: EventBus | None = None, **options: Any) -> EventBus:
    """
    Subscribe each handler to `OrderPlaced`, on a plain bus unless one is given.
    """
    bus = bus or EventBus()
    for number, handler in enumerate(handlers):
        bus.subscribe(OrderPlaced, handler, name=f"handler {number}", **options)
    return bus


def one(**options: Any) -> EventBus:
    """
    Make a plain bus with one plain handler under *options*.
    """
    return bus_of([clone(plain)], **options)


PUBLISH = Contender(
    "eventbus publish", "eventbus", "eventbus", lambda handlers: bus_of(handlers).publish
)
APUBLISH = Contender(
    "eventbus apublish",
    "eventbus",
    "eventbus",
    lambda handlers: bus_of(handlers).apublish,
    handler=aplain,
)


def read_parameter(event: PaymentTaken, envelope: Envelope[PaymentTaken]) -> None:
    """
    Read the causation from the handler's second parameter.
    """
    _ = envelope.causation_id


def read_current(event: PaymentTaken) -> None:
    """
    Read the causation from the envelope of the event being handled here.
    """
    envelope = current_envelope()
    assert envelope is not None
    _ = envelope.causation_id


def nesting(inner: Handler) -> EventBus:
    """
    Make a bus on which the handler of one event publishes another, handled by *inner*.
    """
    bus = EventBus()
    payment = PaymentTaken("A-1", 42)

    def take_payment(event: OrderPlaced) -> None:
        bus.publish(payment)

    bus.subscribe(OrderPlaced, take_payment)
    bus.subscribe(PaymentTaken, inner, name="inner")
    return bus


def nested(name: str, inner: Handler) -> Lane:
    """
    Publish an event within an event, once it is shown that cause and effect are known.
    """
    seen: list[str | None] = []

    def record(event: PaymentTaken, envelope: Envelope[PaymentTaken]) -> None:
        seen.append(envelope.causation_id)

    receipt = nesting(record).publish(ORDER)
    assert [receipt.id] == seen
    return lane(name, nesting(clone(inner)).publish, ORDER)


def retried(name: str) -> Lane:
    """
    Publish to a handler with a retry policy, which is shown to be one.
    """
    calls: list[object] = []

    def fail_once(event: OrderPlaced) -> None:
        calls.append(event)
        if len(calls) == 1:
            raise ConnectionError

    policy = exponential(attempts=3, initial=0.0001, on=(ConnectionError,))
    assert bus_of([fail_once], retry=policy).publish(ORDER).ok
    assert 2 == len(calls)
    return lane(name, one(retry=policy).publish, ORDER)


def orders(number: int) -> list[OrderPlaced]:
    """
    Make events that each have a key of their own.
    """
    return [OrderPlaced(f"A-{count}", count) for count in range(number)]


def deduplicated(name: str) -> Lane:
    """
    Publish events of different keys to an idempotent handler, which is shown to be one.
    """
    calls: list[object] = []
    bus = bus_of([calls.append], idempotency_key="order_id")
    assert [False, True] == [bus.publish(ORDER).duplicate for _ in range(2)]
    assert [ORDER] == calls

    def prepare(number: int) -> Prepared:
        bus = one(idempotency_key="order_id")
        bus.publish(OrderPlaced("first", 0))  # the route is made on first use
        return bus.publish, orders(number)

    return Lane(name, prepare)


def populated(types: int, subscriptions: int) -> tuple[EventBus, list[Any]]:
    """
    Make a bus with so many subscriptions on each of so many types, and an event of each.
    """
    bus = EventBus()
    classes = [type(f"Happened{count}", (), {"__slots__": ()}) for count in range(types)]
    for happened in classes:
        for number in range(subscriptions):
            name = f"{happened.__name__} {number}"
            bus.subscribe(happened, clone(plain), name=name)
    return bus, [happened() for happened in classes]
