"""
What a type checker must accept in a user's code, and what it must reject.

Checked, not run. A line that must be rejected says so to both checkers, and names
the error: an ignore comment that is not needed is an error itself.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar, Union, assert_type
from unittest.mock import AsyncMock, Mock

import attrs

import eventbus
from eventbus import (
    Attempt,
    DeadLetter,
    Envelope,
    EventBus,
    Explanation,
    Failure,
    GiveUp,
    HandlerErrors,
    InMemoryDeadLetters,
    InMemoryIdempotencyStore,
    Receipt,
    RetryAfter,
    Subscription,
    current_envelope,
    event,
    exponential,
    fixed,
    on,
    schedule,
)
from eventbus.instrumentation import Failed, Occurrence, Replayed, Retried
from eventbus.testing import TestBus, VirtualClock

T = TypeVar("T")

# -- declaring: accepted ---------------------------------------------------------------------


@event
class OrderPlaced:
    order_id: str
    total: int = 0


@event(name="shop.order_cancelled", version=2, key="order_id")
class OrderCancelled:
    order_id: str
    reason: str


@event(key=lambda order: order.order_id)
class OrderShipped(OrderPlaced):
    carriers: tuple[str, ...] = ()
    weight: float = attrs.field(
        default=1.0, converter=float, validator=attrs.validators.gt(0), kw_only=True
    )


@event(kw_only=True)
class OrderReturned(OrderPlaced):
    why: str


@event
class Changed(Generic[T]):
    old: T
    new: T


class Auditable(abc.ABC):
    @property
    @abc.abstractmethod
    def actor(self) -> str: ...


@dataclass
class UserJoined:
    name: str


class UserLeft(NamedTuple):
    name: str


placed = OrderPlaced("A-1", total=42)
assert_type(placed.order_id, str)
assert_type(OrderReturned(order_id="A-1", why="broken").total, int)
assert_type(OrderShipped("A-1", 42, ("post",), weight=2).weight, float)
assert_type(Changed(1, 2).new, int)

# -- declaring: rejected ---------------------------------------------------------------------

placed.total = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
OrderPlaced()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
OrderPlaced(order_id=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
OrderPlaced("A-1", amount=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
OrderReturned("A-1", 42, "broken")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
assert OrderCancelled("A-1", "late") < OrderCancelled("A-2", "late")  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]


@event("shop.order_lost")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportUntypedClassDecorator]
class OrderLost:
    order_id: str


@event(version="2")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
class OrderFound:
    order_id: str


# -- subscribing: accepted -------------------------------------------------------------------

bus = EventBus()


@bus.on(OrderPlaced)
def reserve_stock(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced)
async def charge(placed: OrderPlaced, envelope: Envelope[OrderPlaced]) -> int:
    assert_type(envelope.event, OrderPlaced)
    return placed.total


@bus.on(OrderPlaced)
def charge_later(placed: OrderPlaced, *, envelope: Envelope, gently: bool = True) -> None: ...


@bus.on(OrderShipped)
def take_any_order(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced | OrderCancelled)
def notify(happened: OrderPlaced | OrderCancelled) -> None: ...


@bus.on(Union[OrderPlaced, OrderCancelled])  # noqa: UP007 - the older spelling is still about
def notify_too(happened: Union[OrderPlaced, OrderCancelled]) -> None: ...  # noqa: UP007


@bus.on(Auditable)
def audit(happened: Auditable) -> None: ...


@bus.on(object)
def log(happened: object) -> None: ...


@bus.on(Changed[int])
def count(changed: Changed[int]) -> None: ...


@bus.on(Changed)
def see(changed: Changed[Any]) -> None: ...


@bus.on(UserJoined)
def greet(joined: UserJoined) -> None: ...


@bus.on(UserLeft)
def miss(left: UserLeft) -> None: ...


@bus.on
def infer(happened: OrderPlaced | OrderCancelled) -> None: ...


@bus.on(once=True, priority=10)
async def infer_too(placed: OrderPlaced) -> None: ...


@bus.on(
    OrderPlaced,
    name="shop.discount",
    priority=-1,
    where=lambda placed: placed.total > 1_000,
    once=False,
    weak=True,
    retry=exponential(attempts=5, initial=0.1, maximum=30.0, on=(TimeoutError, ConnectionError)),
    timeout=3.0,
    idempotency_key="order_id",
)
async def discount(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced, offload=True, idempotency_key=lambda placed: (placed.order_id, placed.total))
def write_file(placed: OrderPlaced) -> None: ...


class Billing:
    def charge(self, placed: OrderPlaced) -> None: ...

    async def refund(self, cancelled: OrderCancelled, envelope: Envelope[Any]) -> None: ...

    @staticmethod
    def bill(placed: OrderPlaced) -> None: ...

    @classmethod
    def close(cls, happened: object) -> None: ...

    def __call__(self, placed: OrderPlaced) -> None: ...


def pass_on(placed: OrderPlaced) -> Awaitable[int]:
    return charge(placed, Envelope(event=placed, id="", time=NOW, name="", correlation_id=""))


def with_ledger(placed: OrderPlaced, ledger: list[str]) -> None: ...


NOW = datetime.now().astimezone()
orders: list[OrderPlaced] = []
bus.subscribe(OrderPlaced, reserve_stock)
bus.subscribe(OrderPlaced, charge)
bus.subscribe(OrderPlaced | OrderCancelled, notify)
bus.subscribe(Auditable, audit)
bus.subscribe(object, print)
bus.subscribe(OrderPlaced, pass_on)
bus.subscribe(OrderPlaced, orders.append)
bus.subscribe(OrderPlaced, Billing().charge)
bus.subscribe(OrderCancelled, Billing().refund)
bus.subscribe(OrderPlaced, Billing.bill)
bus.subscribe(OrderPlaced, Billing.close)
bus.subscribe(OrderPlaced, Billing())
bus.subscribe(OrderPlaced, functools.partial(with_ledger, ledger=[]))
bus.subscribe(OrderPlaced, lambda placed: abs(placed.total), where=lambda placed: not placed)
bus.subscribe(OrderPlaced, Mock())
bus.subscribe(OrderPlaced, AsyncMock())
for some_type in (OrderPlaced, OrderShipped):
    bus.subscribe(some_type, reserve_stock)

with bus.subscribe(OrderPlaced, reserve_stock, name="for a while") as subscription:
    assert_type(subscription, Subscription)
    subscription.cancel()

# What is decorated stays what it was.
assert_type(reserve_stock(placed), None)
assert_type(infer(happened=placed), None)

# -- subscribing: rejected -------------------------------------------------------------------


def take_cancelled(cancelled: OrderCancelled) -> None: ...


@bus.on(OrderPlaced)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def wrong_event(cancelled: OrderCancelled) -> None: ...


@bus.on(OrderPlaced)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
async def wrong_event_async(cancelled: OrderCancelled, envelope: Envelope[Any]) -> None: ...


@bus.on(OrderPlaced)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def too_narrow(shipped: OrderShipped) -> None: ...


@bus.on(OrderPlaced | OrderCancelled)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def only_half(placed: OrderPlaced) -> None: ...


@bus.on(Auditable)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def not_that_base(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
def no_event() -> None: ...


@bus.on(OrderPlaced, where=lambda placed: placed.totl > 3)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
def wrong_filter(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced, idempotency_key=lambda placed: placed.oder_id)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
def wrong_key(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced, priorty=3)  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportCallIssue, reportUntypedFunctionDecorator]
def wrong_option(placed: OrderPlaced) -> None: ...


@bus.on(OrderPlaced, timeout="3 s")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
async def wrong_unit(placed: OrderPlaced) -> None: ...


async def ask_database(placed: OrderPlaced) -> bool:
    return placed.total > 3


bus.subscribe(OrderPlaced, take_cancelled)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
bus.subscribe(OrderPlaced | OrderCancelled, take_cancelled)  # type: ignore[arg-type, misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
bus.subscribe(Auditable, take_cancelled)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
bus.subscribe(OrderPlaced, Billing().refund)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
bus.subscribe(OrderPlaced, lambda placed: abs(placed.totl))  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownArgumentType, reportUnknownMemberType]
bus.subscribe(OrderPlaced, reserve_stock, where=lambda placed: placed.totl)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
bus.subscribe(OrderPlaced, reserve_stock, where=ask_database)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
bus.subscribe(OrderPlaced, reserve_stock, prio=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
bus.subscribe(placed, reserve_stock)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]

# -- marks -----------------------------------------------------------------------------------


@on(OrderPlaced)
def send_invoice(placed: OrderPlaced) -> str:
    return placed.order_id


@on(OrderPlaced | OrderCancelled, priority=3)
async def archive(
    happened: OrderPlaced | OrderCancelled,
    envelope: Envelope[OrderPlaced | OrderCancelled],
) -> None: ...


@on
def infer_mark(placed: OrderPlaced) -> None: ...


class Warehouse:
    @on(OrderPlaced)
    def reserve(self, placed: OrderPlaced) -> int:
        return placed.total

    @on(OrderCancelled, retry=fixed(delay=1.0, attempts=3))
    async def release(self, cancelled: OrderCancelled, envelope: Envelope[Any]) -> None: ...

    @on(Auditable)
    def audit(self, happened: Auditable) -> None: ...

    @on(once=True)
    def open(self, placed: OrderPlaced) -> None: ...

    @on
    def infer(self, placed: OrderPlaced) -> None: ...

    def lend(self, cancelled: OrderCancelled) -> None: ...

    wrong_method = on(OrderPlaced)(lend)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUnknownVariableType]


@on(OrderPlaced)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
def wrong_mark(cancelled: OrderCancelled) -> None: ...


assert_type(send_invoice(placed), str)
assert_type(Warehouse().reserve(placed), int)
assert_type(bus.include(eventbus, Warehouse(), send_invoice), tuple[Subscription, ...])

# -- publishing ------------------------------------------------------------------------------

receipt = bus.publish(placed, correlation_id="request 7", headers={"tenant": "acme"})
assert_type(receipt, Receipt)
assert_type(receipt.ok, bool)
assert_type(receipt.delivered, int)
assert_type(receipt.failures, tuple[Failure, ...])
assert_type(receipt.duplicate_of, str | None)
assert_type(receipt.envelope.time, datetime)
assert_type(bus.publish_many([placed, UserJoined("Ann")], idempotency_key="b"), list[Receipt])
assert_type(current_envelope(), Envelope[Any] | None)
for failure in receipt.failures:
    assert_type(failure.exception, Exception)
    assert_type(failure.attempts, int)


async def main() -> None:
    async with EventBus(fanout="concurrent") as inner:
        assert_type(await inner.apublish(placed), Receipt)
        assert_type(await inner.apublish_many([placed]), list[Receipt])
        inner.apublish(placed)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
        assert (await inner.apublish(placed)).okay  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


bus.publish(placed, idempotency_key=7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
bus.publish(placed, correlation="request 7")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bus.publish(placed, headers={"tenant": 7})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
bus.publish()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
bus.publish(placed).ok = True  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
bus.publish(placed).ok()  # type: ignore[operator]  # pyright: ignore[reportCallIssue]
assert bus.publish(placed).failed  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
receipt.envelope.id = "mine"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
receipt.failures[0].attempts = 0  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]

try:
    receipt.raise_for_failures()
except HandlerErrors as errors:
    assert_type(errors.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])

# -- policies, stores, observers, hooks ------------------------------------------------------


def patience(attempt: Attempt) -> float | None:
    if isinstance(attempt.exception, TimeoutError):
        raise RetryAfter(3)
    if attempt.number > 3:
        raise GiveUp
    return attempt.elapsed


def observe(occurrence: Occurrence) -> None:
    match occurrence:
        case Failed(subscription=subscription, exception=error):
            assert_type(subscription, str)
            assert_type(error, Exception)
        case Retried():
            assert_type(occurrence.delay, float)
        case Replayed():  # of many events, and so of no envelope
            pass
        case _:
            assert_type(occurrence.envelope, Envelope[Any])


def observe_failures(occurrence: Failed) -> None: ...


def traced(handler: Callable[..., Any]) -> Callable[..., Any]:
    def call(happened: object, envelope: Envelope[Any]) -> Any:
        return handler(happened)

    return call


def tenant() -> Mapping[str, str]:
    return {"tenant": "acme"}


strict = EventBus(
    errors="raise",
    retry=schedule([0.1, 1]) | patience,
    wrap=traced,
    headers=tenant,
    observers=[observe],
    idempotency=InMemoryIdempotencyStore(),
    dead_letters=InMemoryDeadLetters(),
    clock=VirtualClock(),
    timings=True,
    envelopes="eager",
    max_depth=10,
    name="shop",
)
stop = strict.observe(observe)
assert_type(stop(), None)
assert_type(strict.explain(placed), tuple[Explanation, ...])
assert_type(strict.stats().subscriptions["shop.discount"].delivered, int)
assert_type(strict.subscriptions, tuple[Subscription, ...])
for letter in strict.dead_letters.query():
    assert_type(letter, DeadLetter)
    assert_type(strict.redrive(letter), Receipt)

EventBus(errors="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
EventBus(observers=[observe_failures])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
EventBus(retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
EventBus("shop")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue]
strict.observe(observe_failures)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
strict.redrive(placed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# -- testing ---------------------------------------------------------------------------------


def test_checkout(test_bus: TestBus) -> None:
    app_bus: EventBus = test_bus
    app_bus.publish(placed)
    test_bus.clock.advance(hours=24)
    test_bus.assert_published(OrderPlaced, order_id="A-1")
    test_bus.assert_published(OrderPlaced, where=lambda placed: placed.total > 3, times=1)
    test_bus.assert_published(OrderPlaced, where=lambda placed: placed.totl > 3)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]


coroutine: Coroutine[Any, Any, int] = charge(placed, receipt.envelope)
