"""
What happened and what would happen: statistics and explanations.
"""

from __future__ import annotations

import abc
import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from eventbus import (
    BusClosedError,
    Durable,
    EventBus,
    Explanation,
    HandlerTime,
    InMemoryIdempotencyStore,
    NotAnEventError,
    Queued,
    Receipt,
    event,
)
from eventbus._insight import explain
from eventbus._registry import Registry
from eventbus._subscription import make_subscription
from eventbus.retry import fixed
from eventbus.testing import TestBus, VirtualClock, record
from stable_ids import stable

Publish = Callable[..., Receipt]


@pytest.fixture(params=["publish", "apublish"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """
    Publish in either colour.
    """
    if request.param == "publish":
        return lambda bus, each, **options: bus.publish(each, **options)
    return lambda bus, each, **options: asyncio.run(bus.apublish(each, **options))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """
    Let failures of handlers go unlogged.
    """
    logging.getLogger("eventbus").disabled = True
    yield
    logging.getLogger("eventbus").disabled = False


@event
class OrderPlaced:
    order_id: str = "A-1"
    total: int = 0


@event
class OrderShipped(OrderPlaced):
    pass


class Auditable(abc.ABC):
    @abc.abstractmethod
    def actor(self) -> str: ...


Auditable.register(OrderShipped)


class Pretending:
    """
    Says of itself that it is an order, as some mocks do.
    """

    __class__ = OrderPlaced  # type: ignore[assignment]


def handler(happened: object) -> None: ...


def fail(happened: object) -> None:
    raise ValueError("no stock")


def by_name(bus: EventBus, happened: object) -> dict[str, tuple[bool, str]]:
    return {each.subscription: (each.called, each.reason) for each in bus.explain(happened)}


# -- explanations ----------------------------------------------------------------------------------


def test_each_subscription_is_explained():
    """
    An explanation lists who would be called, in order, then all others with the reason.
    """
    bus = EventBus()
    bus.subscribe(int | str, handler, name="numbers")
    bus.subscribe(OrderPlaced, handler, name="order")
    bus.subscribe(OrderShipped, handler, name="shipped")
    bus.subscribe(object, handler, name="all", priority=1)
    bus.subscribe(Auditable | int, handler, name="audit")
    assert (
        Explanation(subscription="all", called=True, reason="subscribed to object"),
        Explanation(subscription="order", called=True, reason="subscribed to OrderPlaced"),
        Explanation(
            subscription="numbers",
            called=False,
            reason="subscribed to int | str, which OrderPlaced is not",
        ),
        Explanation(
            subscription="shipped",
            called=False,
            reason="subscribed to OrderShipped, which OrderPlaced is not",
        ),
        Explanation(
            subscription="audit",
            called=False,
            reason="subscribed to Auditable | int, which OrderPlaced is not",
        ),
    ) == bus.explain(OrderPlaced())
    assert ["all", "order", "shipped", "audit"] == [
        each.subscription for each in bus.explain(OrderShipped()) if each.called
    ]


def test_an_explanation_agrees_with_a_publish(publish: Publish):
    """
    Those who would be called are those who are, in that order.
    """
    bus, seen = EventBus(), list[str]()

    def named(name: str) -> Callable[[object], None]:
        return lambda happened: seen.append(name)

    for number, event_type in enumerate([OrderPlaced, OrderShipped, object, int, Auditable]):
        bus.subscribe(event_type, named(str(number)), name=str(number), priority=number % 2)
    for happened in (OrderPlaced(), OrderShipped(), Pretending(), 7):
        seen.clear()
        publish(bus, happened)
        assert seen == [each.subscription for each in bus.explain(happened) if each.called]


def test_a_filter_is_asked():
    """
    A filter that says no, or raises, is the reason why a handler would not be called.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, handler, name="large", where=lambda it: it.total > 3)
    bus.subscribe(OrderPlaced, handler, name="broken", where=lambda it: 1 / it.total > 3)
    assert {
        "large": (False, "its filter (where=) says no"),
        "broken": (
            False,
            "its filter (where=) raises ZeroDivisionError('division by zero'), "
            "which fails the delivery",
        ),
    } == by_name(bus, OrderPlaced())
    assert (True, "subscribed to OrderPlaced") == by_name(bus, OrderPlaced(total=7))["large"]


def test_a_key_is_told_and_not_claimed(publish: Publish):
    """
    An explanation tells the key a handler would have to claim, and leaves it free.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, handler, name="keyed", idempotency_key="order_id")
    bus.subscribe(OrderPlaced, handler, name="keyless", idempotency_key=lambda it: None)
    bus.subscribe(OrderPlaced, handler, name="broken", idempotency_key=lambda it: it.totl)
    assert (True, "subscribed to OrderPlaced, and key 'A-1' is free") == by_name(
        bus, OrderPlaced()
    )["keyed"]
    assert (True, "subscribed to OrderPlaced") == by_name(bus, OrderPlaced())["keyless"]
    called, reason = by_name(bus, OrderPlaced())["broken"]
    assert not called
    assert reason.startswith("its idempotency key raises AttributeError(")
    assert reason.endswith("which fails the delivery")
    assert 2 == publish(bus, OrderPlaced()).delivered


@pytest.mark.parametrize("make", [EventBus, TestBus])
def test_a_key_that_has_been_handled_is_known(make: Any, publish: Publish):
    """
    What would be a duplicate is explained so, and so is what waits for another's outcome.
    """
    told = list[dict[str, tuple[bool, str]]]()
    with make() as bus:
        bus.subscribe(
            OrderPlaced,
            lambda placed: told.append(by_name(bus, OrderPlaced())),
            name="keyed",
            idempotency_key="order_id",
        )
        publish(bus, OrderPlaced())
        expected = "unless another delivery of key 'A-1', under way, succeeds"
        assert [{"keyed": (True, f"subscribed to OrderPlaced, {expected}")}] == told
        assert {"keyed": (False, "key 'A-1' has been handled")} == by_name(bus, OrderPlaced())
        assert publish(bus, OrderPlaced()).duplicate


def test_a_key_whose_store_cannot_be_asked_is_told():
    """
    Where a store of keys cannot tell without a claim, the key is a condition.
    """

    class Plain(InMemoryIdempotencyStore):
        look: Any = None

    bus = EventBus(idempotency=Plain())
    bus.subscribe(OrderPlaced, handler, name="keyed", idempotency_key="order_id")
    bus.publish(OrderPlaced())
    expected = "subscribed to OrderPlaced, unless key 'A-1' has been handled"
    assert {"keyed": (True, expected)} == by_name(bus, OrderPlaced())


def test_a_closed_bus_calls_nobody(publish: Publish):
    """
    What would be refused is explained so, for each that would have been called.
    """
    with EventBus() as bus:
        bus.subscribe(OrderPlaced, handler, name="take")
        bus.subscribe(Auditable, handler, name="audit")
    assert (False, "the bus is closed") == by_name(bus, OrderPlaced())["take"]
    assert "which OrderPlaced is not" in by_name(bus, OrderPlaced())["audit"][1]
    with pytest.raises(BusClosedError):
        publish(bus, OrderPlaced())


def test_a_queue_is_named():
    """
    Where a handler is called from a queue, the explanation says so, and that it is paused.
    """
    with EventBus() as bus:
        subscription = bus.subscribe(OrderPlaced, handler, name="take", delivery=Queued())
        expected = "subscribed to OrderPlaced, in its queue"
        assert (True, expected) == by_name(bus, OrderPlaced())["take"]
        subscription.pause()
        expected = "subscribed to OrderPlaced, in its queue, once it is resumed"
        assert (True, expected) == by_name(bus, OrderPlaced())["take"]


def test_a_recording_explains_what_it_leaves_out():
    """
    Handlers left out by a recording would not be called, and neither would any without delivery.
    """
    with EventBus() as bus:
        bus.subscribe(OrderPlaced, handler, name="take")
        bus.subscribe(OrderPlaced, fail, name="fail", where=lambda placed: placed.total > 0)
        with record(bus, without="take"):
            told = by_name(bus, OrderPlaced(total=1))
            assert {
                "fail": (True, "subscribed to OrderPlaced"),
                "take": (False, "left out of this recording, by without="),
            } == told
        with record(bus, deliver=False):
            told = by_name(bus, OrderPlaced(total=0))
            assert {
                "fail": (False, "its filter (where=) says no"),
                "take": (False, "nothing is delivered while recording with deliver=False"),
            } == told
        with record(bus, without="take"), record(bus, deliver=False):
            told = by_name(bus, OrderPlaced(total=1))
            assert {
                "fail": (False, "nothing is delivered while recording with deliver=False"),
            } == told
        assert by_name(bus, OrderPlaced())["take"][0]
    with TestBus() as outer:
        outer.subscribe(OrderPlaced, handler, name="take")
        with record(outer, without="take"):
            expected = {"take": (False, "left out of this recording, by without=")}
            assert expected == by_name(outer, OrderPlaced())


def test_a_filter_comes_before_a_key():
    """
    Where the filter says no, nobody asks for the key.
    """
    bus = EventBus()
    bus.subscribe(
        OrderPlaced, handler, name="both", where=lambda it: False, idempotency_key=lambda it: 1 / 0
    )
    assert {"both": (False, "its filter (where=) says no")} == by_name(bus, OrderPlaced())


def test_nothing_is_used_up_by_an_explanation(publish: Publish):
    """
    An explanation calls no handler and leaves a ``once`` subscription as it is.
    """
    bus, seen = EventBus(), list[object]()
    bus.subscribe(OrderPlaced, seen.append, once=True)
    for _ in range(2):
        assert [True] == [each.called for each in bus.explain(OrderPlaced())]
    assert ([], 0) == (seen, bus.stats().published)
    assert 1 == publish(bus, OrderPlaced()).delivered
    assert () == bus.explain(OrderPlaced())


def test_a_handler_that_is_gone_is_explained():
    """
    A weakly held handler that has just died would not be called.
    """
    registry = Registry()
    subscription = make_subscription(OrderPlaced, handler, {"name": "weak"})
    registry.add(attrs.evolve(subscription, get_handler=lambda: None))
    assert (
        Explanation(
            subscription="weak", called=False, reason="its handler was held weakly and is gone"
        ),
    ) == explain(OrderPlaced(), registry)


@pytest.mark.parametrize(
    "happened", [None, OrderPlaced | int, list[int], [OrderPlaced()], list, type], ids=stable
)
def test_what_cannot_be_published_cannot_be_explained(happened: object):
    """
    An explanation refuses what a publish would refuse, and says what it takes.
    """
    with pytest.raises(NotAnEventError, match=r"can be no event. Give explain\(\) one that might"):
        EventBus().explain(happened)


@pytest.mark.parametrize("make", [EventBus, TestBus])
def test_a_class_may_be_asked_for(make: Any):
    """
    Who listens to a class is told without an event: what only an event has is left open.
    """
    asked = list[object]()
    with make() as bus:
        bus.subscribe(OrderPlaced, handler, name="plain")
        bus.subscribe(
            OrderPlaced, handler, name="both", where=asked.append, idempotency_key=asked.append
        )
        bus.subscribe(OrderShipped, handler, name="shipped")
        assert {
            "plain": (True, "subscribed to OrderPlaced"),
            "both": (
                True,
                "subscribed to OrderPlaced, if its filter (where=) lets it pass, "
                "unless its key has been handled",
            ),
            "shipped": (False, "subscribed to OrderShipped, which OrderPlaced is not"),
        } == by_name(bus, OrderPlaced)
        assert ["plain", "both", "shipped"] == [
            each.subscription for each in bus.explain(OrderShipped) if each.called
        ]
    assert [] == asked
    assert (False, "the bus is closed") == by_name(bus, OrderPlaced)["plain"]


def twin(module: str) -> Any:
    """
    Make another class that is called as `OrderPlaced`.
    """
    return type("OrderPlaced", (), {"__module__": module})


@pytest.mark.parametrize(
    ("module", "cure"),
    [
        ("shop", "Is one file imported under two names?"),
        (__name__, "Was the code that makes it run again since?"),
    ],
)
@pytest.mark.parametrize("is_open", [False, True], ids=["event", "class"])
def test_two_classes_of_one_name_are_told_apart(module: str, cure: str, is_open: bool):
    """
    A script that is imported as well, or a cell that was run again, has two of them.
    """
    bus = EventBus()
    bus.subscribe(twin(module) | int, handler, name="take")
    expected = (
        f"subscribed to {module}.OrderPlaced | int, which this {__name__}.OrderPlaced is not: "
        f"two classes of one name. {cure}"
    )
    assert {"take": (False, expected)} == by_name(bus, OrderPlaced if is_open else OrderPlaced())


def test_a_key_that_is_an_address_is_told():
    """
    What a delivery refuses as a key, an explanation does not call free.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, handler, name="h", idempotency_key=lambda it: it.order_id.upper)
    called, reason = by_name(bus, OrderPlaced())["h"]
    assert not called
    assert reason.startswith("its idempotency key raises TypeError(")


@pytest.mark.parametrize(("called", "text"), [(True, "✓ pay: why"), (False, "✗ pay: why")])
def test_an_explanation_reads_well(called: bool, text: str):
    """
    Printed, an explanation is one line.
    """
    assert text == str(Explanation(subscription="pay", called=called, reason="why"))


# -- statistics ------------------------------------------------------------------------------------


def counts(bus: EventBus) -> dict[str, dict[str, Any]]:
    """
    Return what is not zero of each subscription's statistics.
    """
    return {
        name: {what: count for what, count in attrs.asdict(each).items() if count}
        for name, each in bus.stats().subscriptions.items()
    }


def test_each_outcome_is_counted(publish: Publish):
    """
    Delivered, failed, retried, duplicate and missed events are told apart, and add up.
    """
    bus = EventBus(clock=VirtualClock())
    bus.subscribe(OrderPlaced, handler, name="plain")
    bus.subscribe(OrderPlaced, fail, name="failing")
    bus.subscribe(OrderPlaced, fail, name="retrying", retry=fixed(delay=1, attempts=3))
    bus.subscribe(OrderPlaced, handler, name="keyed", idempotency_key="order_id")
    bus.subscribe(OrderPlaced, handler, name="large", where=lambda it: it.total > 3)
    for _ in range(2):
        publish(bus, OrderPlaced())
    assert {
        "plain": {"published": 2, "delivered": 2},
        "failing": {"published": 2, "failed": 2, "dead_lettered": 2},
        "retrying": {"published": 2, "failed": 2, "retried": 4, "dead_lettered": 2},
        "keyed": {"published": 2, "delivered": 1, "duplicate": 1},
        "large": {"published": 2, "missed": 2},
    } == counts(bus)


def test_publishes_are_counted(publish: Publish):
    """
    A bus counts its events, those nobody handled, and the publisher's own duplicates.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, handler)
    publish(bus, OrderPlaced())
    publish(bus, "nobody cares")
    for _ in range(2):
        publish(bus, OrderPlaced(), idempotency_key="request 7")
    stats = bus.stats()
    assert (3, 1, 1) == (stats.published, stats.unhandled, stats.duplicate)


def test_a_redrive_comes_its_subscriptions_way_again():
    """
    However often a dead letter is redriven, the counts of its subscription add up.
    """
    bus, is_fixed = EventBus(), list[bool]()

    def pay(placed: OrderPlaced) -> None:
        if not is_fixed:
            raise ValueError("no money")

    bus.subscribe(OrderPlaced, pay, name="pay")
    bus.publish(OrderPlaced())
    (letter,) = bus.dead_letters.query()
    bus.redrive(letter)
    assert {"pay": {"published": 2, "failed": 2, "dead_lettered": 1}} == counts(bus)
    is_fixed.append(True)
    bus.redrive(letter)
    assert {"pay": {"published": 3, "delivered": 1, "failed": 2, "dead_lettered": 1}} == counts(bus)
    assert 1 == bus.stats().published


def test_time_is_measured_where_asked_for(publish: Publish):
    """
    A bus with ``timings`` tells number, sum and longest of the attempts, whatever came of them.
    """
    clock = VirtualClock()
    bus = EventBus(clock=clock, timings=True)

    def work(placed: OrderPlaced) -> None:
        clock.advance(placed.total)
        if placed.total == 5:
            raise ValueError("too long")

    bus.subscribe(OrderPlaced, work, name="work")
    for total in (1, 3, 5, 2):
        publish(bus, OrderPlaced(total=total))
    assert HandlerTime(count=4, total=11.0, max=5.0) == bus.stats().subscriptions["work"].time


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("delivery", [None, Queued(), Durable()], ids=["inline", "queued", "log"])
def test_each_attempt_is_measured(publish: Publish, delivery: Any, is_async: bool):
    """
    Two that fail and one that succeeds are three, and the time between them is no time in it.
    """
    seconds = iter([30.0, 20.0, 1.0])
    with TestBus(timings=True, durable=True, errors="collect") as bus:

        def work(placed: OrderPlaced) -> None:
            spent = next(seconds)
            bus.clock.advance(spent)
            if spent > 1:
                raise TimeoutError

        async def awork(placed: OrderPlaced) -> None:
            work(placed)

        mode = {} if delivery is None else {"delivery": delivery}
        policy = fixed(attempts=3, delay=600.0)
        bus.subscribe(OrderPlaced, awork if is_async else work, name="work", retry=policy, **mode)
        publish(bus, OrderPlaced())
        bus.settle(until=lambda: bool(bus.delivered))
        expected = HandlerTime(count=3, total=51.0, max=30.0)
        assert expected == bus.stats().subscriptions["work"].time


def test_time_is_not_measured_otherwise(publish: Publish):
    """
    Without ``timings`` there is no time to tell.
    """
    bus = EventBus()
    bus.subscribe(OrderPlaced, handler, name="work")
    publish(bus, OrderPlaced())
    assert bus.stats().subscriptions["work"].time is None


def test_statistics_are_of_those_who_are_subscribed(publish: Publish):
    """
    A cancelled subscription takes its counts along; the bus's own stay.
    """
    bus = EventBus()
    publish(bus, OrderPlaced())
    with bus.subscribe(OrderPlaced, handler, name="brief"):
        publish(bus, OrderPlaced())
        assert {"brief": {"published": 1, "delivered": 1}} == counts(bus)
    assert {} == counts(bus)
    assert (2, 1) == (bus.stats().published, bus.stats().unhandled)


def test_a_queue_that_is_not_empty_is_counted_after_its_subscription(publish: Publish):
    """
    What a cancelled subscription has accepted stays in the statistics until it is over.
    """
    bus, seen = EventBus(), list[object]()
    subscription = bus.subscribe(OrderPlaced, seen.append, name="brief", delivery=Queued())
    subscription.pause()
    publish(bus, OrderPlaced())
    publish(bus, OrderPlaced())
    subscription.cancel()
    counted = bus.stats().subscriptions["brief"]
    assert (2, 2, 0) == (counted.published, counted.depth, counted.delivered)
    with bus.subscribe(OrderPlaced, seen.append, name="brief"):
        assert 0 == bus.stats().subscriptions["brief"].published
    subscription.resume()
    assert bus.drain(20).ok
    assert ({}, 2) == (counts(bus), len(seen))
    bus.close()


def test_a_delivery_under_way_counts_as_delivered(publish: Publish):
    """
    While its handler runs, an event counts as delivered.
    """
    bus, seen = EventBus(), list[object]()
    bus.subscribe(OrderPlaced, lambda it: seen.append(counts(bus)), name="curious")
    publish(bus, OrderPlaced())
    assert [{"curious": {"published": 1, "delivered": 1}}] == seen
