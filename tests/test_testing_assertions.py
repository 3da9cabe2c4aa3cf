"""
What can be asserted of a test bus, and the words of a failure.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import threading
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

from eventbus import Durable, Queued, SubscriptionNotFoundError, event, fixed, on
from eventbus.testing import TestBus
from testing_colours import Colour, in_both_colours


@event
class OrderPlaced:
    order_id: str
    total: Decimal = Decimal(42)

    @property
    def is_large(self) -> bool:
        return self.total > 1000


@event
class RushOrderPlaced(OrderPlaced):
    hours: int = 1


@event
class InvoiceSent:
    order_id: str


@dataclasses.dataclass(frozen=True)
class AsDataclass:
    order_id: str
    total: int


class AsNamedTuple(NamedTuple):
    order_id: str
    total: int


class AsPydantic(pydantic.BaseModel):
    order_id: str
    total: int


class AsMsgspec(msgspec.Struct):
    order_id: str
    total: int


class AsPlainClass:
    def __init__(self, order_id: str, total: int) -> None:
        self.order_id = order_id
        self.total = total


class AsSlots:
    __slots__ = ("order_id", "total")

    def __init__(self, order_id: str, total: int) -> None:
        self.order_id = order_id
        self.total = total


of_every_kind = pytest.mark.parametrize(
    "kind", [AsDataclass, AsNamedTuple, AsPydantic, AsMsgspec, AsPlainClass, AsSlots]
)


@pytest.fixture
def bus() -> TestBus:
    return TestBus(errors="collect")


@pytest.fixture
def shop(bus: TestBus) -> TestBus:
    """
    A bus with a few handlers, on which two orders have been placed.
    """

    def charge(placed: OrderPlaced) -> None:
        if placed.order_id == "A-1":
            raise TimeoutError("the bank is down")

    def invoice(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent(placed.order_id))

    bus.subscribe(OrderPlaced, invoice, name="invoice")
    bus.subscribe(OrderPlaced, charge, name="charge", retry=fixed(attempts=3, delay=1.0))
    bus.subscribe(OrderPlaced, ignore, name="check", where=lambda placed: placed.is_large)
    bus.publish(OrderPlaced("A-1"))
    bus.publish(OrderPlaced("B-2", Decimal(7)))
    return bus


def ignore(happened: object) -> None:
    """
    Take any event and do nothing.
    """


def failure_of(assertion: Callable[[], object]) -> list[str]:
    """
    Return the lines of what a failing assertion says.
    """
    with pytest.raises(AssertionError) as failed:
        assertion()
    return str(failed.value).splitlines()


# -- published ----------------------------------------------------------------------------------


def test_an_event_that_was_published_is_returned(bus: TestBus) -> None:
    """
    The assertion returns the first event that is meant, for further questions.
    """
    first, second = OrderPlaced("A-1"), OrderPlaced("A-1", Decimal(7))
    bus.publish_many([InvoiceSent("A-1"), first, second])
    assert first is bus.assert_published(OrderPlaced)
    assert second is bus.assert_published(OrderPlaced, total=Decimal(7))
    assert second is bus.assert_published(OrderPlaced, where=lambda placed: placed.total < 10)
    assert [first, second] == bus.assert_published(OrderPlaced, order_id="A-1", times=2)
    assert [] == bus.assert_published(OrderPlaced, order_id="B-2", times=0)


@of_every_kind
def test_fields_of_every_kind_of_event_are_compared(bus: TestBus, kind: Any) -> None:
    """
    Events of any kind of class are found by their fields, and near misses marked.
    """
    happened = kind(order_id="A-1", total=42)
    bus.publish(happened)
    assert happened is bus.assert_published(kind, order_id="A-1", total=42)
    assert [
        f"no {kind.__name__}(order_id='A-1', total=40) was published.",
        "",
        "Published:",
        f"  1. {kind.__name__}(order_id='A-1', total=42)",
        "       ✗ total: expected 40, was 42",
    ] == failure_of(lambda: bus.assert_published(kind, order_id="A-1", total=40))


@of_every_kind
@pytest.mark.parametrize("assertion", ["assert_published", "assert_not_published"])
def test_a_field_the_class_does_not_have_is_an_error(
    bus: TestBus, kind: Any, assertion: str
) -> None:
    """
    A misspelled field is refused at once, also where the assertion would hold.
    """
    bus.publish(kind(order_id="A-1", total=42))
    with pytest.raises(TypeError, match=r"has no field 'order'; it has order_id, total\. Did you"):
        getattr(bus, assertion)(kind, order="A-1")


def test_a_class_of_one_slot_has_one_field(bus: TestBus) -> None:
    """
    ``__slots__`` may be a single name.
    """
    kind = type("OneSlot", (), {"__slots__": "order_id"})
    happened = kind()
    happened.order_id = "A-1"
    bus.publish(happened)
    bus.assert_published(kind, order_id="A-1")
    with pytest.raises(TypeError, match="OneSlot has no field 'x'; it has order_id"):
        bus.assert_published(kind, x=1)


def test_a_class_without_fields_says_so(bus: TestBus) -> None:
    """
    The refusal of a field is readable where there is none at all.
    """

    @event
    class ShopOpened:
        pass

    with pytest.raises(TypeError, match="ShopOpened has no field 'x'; it has none at all"):
        bus.assert_published(ShopOpened, x=1)


def test_fields_of_a_plain_class_are_learned_from_its_events(bus: TestBus) -> None:
    """
    Before an event of a plain class was published nobody knows its fields.
    """
    bus.assert_not_published(AsPlainClass, anything=1)


def test_an_event_may_lack_what_a_base_class_is_asked_for(bus: TestBus) -> None:
    """
    Asked for events of any class, those without such a field are none that are meant.
    """
    bus.publish(InvoiceSent("A-1"))
    bus.publish(AsPlainClass("A-1", 42))
    assert 42 == bus.assert_published(object, total=42).total  # type: ignore[attr-defined]
    assert [
        "no event(total=40) was published.",
        "",
        "Published:",
        "  1. InvoiceSent(order_id='A-1')",
        "       ✗ total: expected 40, but it has no such field",
        "  2. AsPlainClass(order_id='A-1', total=42)",
        "       ✗ total: expected 40, was 42",
    ] == failure_of(lambda: bus.assert_published(object, total=40))


def test_properties_are_fields_to_an_assertion(bus: TestBus) -> None:
    """
    What an event computes can be asked for like what it holds.
    """
    bus.publish(OrderPlaced("A-1", Decimal(2000)))
    bus.assert_published(OrderPlaced, is_large=True)
    bus.assert_not_published(OrderPlaced, is_large=False)


def test_events_of_subclasses_count(bus: TestBus) -> None:
    """
    An event of a subclass is an event of the class.
    """
    bus.publish(RushOrderPlaced("A-1"))
    bus.assert_published(OrderPlaced, order_id="A-1", times=1)
    with pytest.raises(TypeError, match="OrderPlaced has no field 'hours'"):
        bus.assert_published(OrderPlaced, hours=1)


def test_a_matcher_may_stand_for_a_value(bus: TestBus) -> None:
    """
    What compares equal is equal: `pytest.approx` works as a field's value.
    """

    @event
    class Measured:
        celsius: float

    bus.publish(Measured(0.1 + 0.2))
    bus.assert_published(Measured, celsius=pytest.approx(0.3))


def test_a_failure_lists_what_was_published_instead(shop: TestBus) -> None:
    """
    The list shows what led to what, and by what events of the class differ.
    """
    assert [
        "no OrderPlaced(order_id='A-1', total=Decimal('40')) was published.",
        "",
        "Published:",
        "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       ✗ total: expected Decimal('40'), was Decimal('42')",
        "  2. └ InvoiceSent(order_id='A-1')",
        "  3. OrderPlaced(order_id='B-2', total=Decimal('7'))",
        "       ✗ order_id: expected 'A-1', was 'B-2'",
        "       ✗ total: expected Decimal('40'), was Decimal('7')",
        "  4. └ InvoiceSent(order_id='B-2')",
    ] == failure_of(lambda: shop.assert_published(OrderPlaced, order_id="A-1", total=Decimal(40)))


@pytest.mark.parametrize(
    ("times", "title"),
    [
        (0, "OrderPlaced was published twice, expected never."),
        (1, "OrderPlaced was published twice, expected once."),
        (3, "OrderPlaced was published twice, expected 3 times."),
    ],
)
def test_the_wrong_number_is_a_failure(shop: TestBus, times: int, title: str) -> None:
    """
    With ``times=`` the number has to be exact; an arrow points at those that count.
    """
    assert [
        title,
        "",
        "Published:",
        "→ 1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "  2. └ InvoiceSent(order_id='A-1')",
        "→ 3. OrderPlaced(order_id='B-2', total=Decimal('7'))",
        "  4. └ InvoiceSent(order_id='B-2')",
    ] == failure_of(lambda: shop.assert_published(OrderPlaced, times=times))


@pytest.mark.parametrize("times", ["once", -1, 1.5])
def test_a_number_of_times_is_a_number(shop: TestBus, times: Any) -> None:
    """
    Anything else could never hold, and is refused by each assertion that takes it.
    """
    for check, target in (
        (shop.assert_published, OrderPlaced),
        (shop.assert_delivered, "charge"),
        (shop.assert_dead_lettered, OrderPlaced),
    ):
        with pytest.raises(TypeError, match=rf"times= says how often .* not {times!r}\. With"):
            check(target, times=times)  # type: ignore[operator]


def test_none_is_not_enough_either(shop: TestBus) -> None:
    """
    A number that none comes near is worded as such.
    """
    lines = failure_of(lambda: shop.assert_published(OrderPlaced, order_id="Z", times=2))
    assert "no OrderPlaced(order_id='Z') was published, expected twice." == lines[0]


def test_a_failure_on_a_silent_bus_is_short(bus: TestBus) -> None:
    """
    Where nothing was published, there is no list.
    """
    assert ["no OrderPlaced was published. Nothing was published at all."] == failure_of(
        lambda: bus.assert_published(OrderPlaced)
    )


def test_a_failure_says_that_where_said_no(shop: TestBus) -> None:
    """
    An event that only ``where=`` rejects says so, with the name of who was asked.
    """

    def is_huge(placed: OrderPlaced) -> bool:
        return placed.total > 1000

    lines = failure_of(lambda: shop.assert_published(OrderPlaced, order_id="A-1", where=is_huge))
    assert "no OrderPlaced(order_id='A-1', where=is_huge) was published." == lines[0]
    assert "       ✗ where: is_huge says no" == lines[4]
    nameless = functools.partial(is_huge)
    lines = failure_of(lambda: shop.assert_published(OrderPlaced, where=nameless))
    assert "no OrderPlaced(where=partial) was published." == lines[0]


def test_what_where_raises_is_raised(shop: TestBus) -> None:
    """
    A broken question is no answer: its exception comes out, with the event it was asked about.
    """

    def broken(placed: OrderPlaced) -> bool:
        raise KeyError(placed.order_id)

    with pytest.raises(KeyError) as raised:
        shop.assert_published(OrderPlaced, where=broken)
    assert [
        "in where= of an assertion, asked about OrderPlaced(order_id='A-1', total=Decimal('42'))"
    ] == raised.value.__notes__


def test_where_must_be_callable(shop: TestBus) -> None:
    """
    A value given as ``where=`` was meant for a field of that name, and is told the way.
    """
    with pytest.raises(TypeError, match=r"where=lambda event: event\.where == 'Paris'"):
        shop.assert_published(OrderPlaced, where="Paris")  # type: ignore[arg-type]


def test_an_event_in_place_of_a_class_is_told_the_way(shop: TestBus) -> None:
    """
    Asked with an event, an assertion says how to ask with its class and fields.
    """
    with pytest.raises(TypeError, match="as in: InvoiceSent, order_id='A-1'; not by Invoice"):
        shop.assert_published(InvoiceSent("A-1"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="as in: OrderPlaced, id='A-1'; not by 'InvoiceSent'"):
        shop.assert_published("InvoiceSent")  # type: ignore[arg-type]


def test_events_that_must_not_be_published_are_pointed_at(shop: TestBus) -> None:
    """
    `assert_not_published` passes where there is none, and points at those there are.
    """
    shop.assert_not_published(OrderPlaced, order_id="Z")
    shop.assert_not_published(OrderPlaced, where=lambda placed: placed.is_large)
    assert [
        "OrderPlaced(order_id='B-2') was published once, expected never.",
        "",
        "Published:",
        "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       ✗ order_id: expected 'B-2', was 'A-1'",
        "  2. └ InvoiceSent(order_id='A-1')",
        "→ 3. OrderPlaced(order_id='B-2', total=Decimal('7'))",
        "  4. └ InvoiceSent(order_id='B-2')",
    ] == failure_of(lambda: shop.assert_not_published(OrderPlaced, order_id="B-2"))


def test_nothing_is_nothing(bus: TestBus) -> None:
    """
    `assert_nothing_published` lists whatever was published.
    """
    bus.assert_nothing_published()
    bus.publish(InvoiceSent("A-1"))
    assert [
        "1 event was published, expected none.",
        "",
        "Published:",
        "  1. InvoiceSent(order_id='A-1')",
    ] == failure_of(bus.assert_nothing_published)
    bus.publish(InvoiceSent("A-2"))
    assert "2 events were published, expected none." == failure_of(bus.assert_nothing_published)[0]


def test_a_namesake_is_unmasked(bus: TestBus) -> None:
    """
    An event of another class of the same name is said to be one.
    """
    wanted = type("InvoiceSent", (), {"__module__": "billing"})
    imported_twice = type("InvoiceSent", (), {"__module__": "billing"})
    bus.publish(InvoiceSent("A-1"))
    bus.publish(imported_twice())
    lines = failure_of(lambda: bus.assert_published(wanted))
    assert f"       ✗ class: expected billing.InvoiceSent, was {__name__}.InvoiceSent" == lines[4]
    twice = "another billing.InvoiceSent, declared or imported a second time"
    assert f"       ✗ class: {twice}" == lines[6]


def test_values_that_look_the_same_are_told_apart(bus: TestBus) -> None:
    """
    Where expected and actual print alike, their classes are shown.
    """

    class One(int):
        def __eq__(self, other: object) -> bool:
            return self is other

        __hash__ = int.__hash__

    @event
    class Counted:
        number: int

    bus.publish(Counted(One(1)))
    lines = failure_of(lambda: bus.assert_published(Counted, number=1))
    assert lines[4].startswith("       ✗ number: expected 1 (int), was 1 (test_values_that_look")


def test_a_long_list_keeps_what_is_most_alike(bus: TestBus) -> None:
    """
    Of many events, those that come nearest are listed, and the rest is counted.
    """
    bus.publish_many(InvoiceSent(str(number)) for number in range(100))
    bus.publish(OrderPlaced("A-1"))
    lines = failure_of(lambda: bus.assert_published(OrderPlaced, order_id="Z"))
    assert "  101. OrderPlaced(order_id='A-1', total=Decimal('42'))" in lines
    assert "    1. InvoiceSent(order_id='0')" in lines
    assert "  … and 71 more" == lines[-1]


def test_anything_can_be_printed(bus: TestBus) -> None:
    """
    Neither a long value, nor one of many lines, nor one whose ``repr`` raises does harm.
    """

    class Unprintable:
        def __repr__(self) -> str:
            raise RuntimeError

    class Tall:
        def __repr__(self) -> str:
            return "one\ntwo"

    bus.publish_many([AsPlainClass("x" * 1000, 1), Unprintable(), Tall(), object()])
    lines = failure_of(bus.assert_nothing_published)[3:]
    assert "AsPlainClass(order_id='xxx" in lines[0]
    assert " … " in lines[0]
    assert 320 > len(lines[0])
    assert "  2. <Unprintable: its repr raised RuntimeError>" == lines[1]
    assert "  3. one two" == lines[2]
    assert lines[3].startswith("  4. <object object at ")


# -- delivered ----------------------------------------------------------------------------------


@in_both_colours
def test_a_delivery_is_found_by_handler_or_name(bus: TestBus, colour: Colour) -> None:
    """
    A handler is given as such, by its subscription, or by the subscription's name.
    """

    def take(placed: OrderPlaced) -> None:
        pass

    handler = colour.handler(take)
    subscription = bus.subscribe(OrderPlaced, handler, name="take")
    colour.publish(bus, OrderPlaced("A-1"))
    for target in (handler, subscription, "take"):
        assert OrderPlaced("A-1") == bus.assert_delivered(target)
        assert OrderPlaced("A-1") == bus.assert_delivered(target, OrderPlaced, order_id="A-1")
        assert [OrderPlaced("A-1")] == bus.assert_delivered(target, times=1)
        bus.assert_not_delivered(target, order_id="B-2")
        bus.assert_not_delivered(target, InvoiceSent)


def test_a_method_is_found_by_instance_and_by_class(bus: TestBus) -> None:
    """
    A bound method stands for itself, the function of the class for every instance's.
    """

    class Printer:
        @on
        def take(self, sent: InvoiceSent) -> None:
            pass

    printer = Printer()
    bus.include(printer)
    bus.publish(InvoiceSent("A-1"))
    bus.assert_delivered(printer.take)
    bus.assert_delivered(Printer.take)
    with pytest.raises(SubscriptionNotFoundError, match=r"Printer\.take .* is not subscribed"):
        bus.assert_delivered(Printer().take)


def test_a_handler_of_two_subscriptions_stands_for_both(bus: TestBus) -> None:
    """
    A handler subscribed under two names has taken what either took.
    """
    bus.subscribe(InvoiceSent, ignore, name="one")
    bus.subscribe(OrderPlaced, ignore, name="two", where=lambda placed: placed.is_large)
    bus.publish_many([InvoiceSent("A-1"), OrderPlaced("B-2")])
    assert [
        "one and two took InvoiceSent | OrderPlaced once, expected twice.",
        "",
        "Published:",
        "→ 1. InvoiceSent(order_id='A-1')",
        "       one: ✓ delivered",
        "       two: ✗ not called: subscribed to OrderPlaced, which InvoiceSent is not",
        "  2. OrderPlaced(order_id='B-2', total=Decimal('42'))",
        "       one: ✗ not called: subscribed to InvoiceSent, which OrderPlaced is not",
        "       two: ✗ not called: its filter (where=) says no",
    ] == failure_of(lambda: bus.assert_delivered(ignore, times=2))


def test_a_failed_delivery_says_why(shop: TestBus) -> None:
    """
    For each event published the list says what became of it in that handler.
    """
    assert [
        "charge took no OrderPlaced(order_id='A-1').",
        "",
        "Published:",
        "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       ✗ failed after 3 attempts: TimeoutError('the bank is down')",
        "  2. └ InvoiceSent(order_id='A-1')",
        "  3. OrderPlaced(order_id='B-2', total=Decimal('7'))",
        "       ✗ order_id: expected 'A-1', was 'B-2'",
        "       ✓ delivered",
        "  4. └ InvoiceSent(order_id='B-2')",
    ] == failure_of(lambda: shop.assert_delivered("charge", order_id="A-1"))


def test_a_filter_is_named_as_the_reason(shop: TestBus) -> None:
    """
    A handler that its filter kept from being called is said to be so.
    """
    lines = failure_of(lambda: shop.assert_delivered("check", OrderPlaced))
    assert "       ✗ not called: its filter (where=) says no" == lines[4]


def test_a_duplicate_is_named_as_the_reason(bus: TestBus) -> None:
    """
    A delivery that an idempotency key turned away is said to be a duplicate.
    """
    bus.subscribe(InvoiceSent, ignore, name="take", idempotency_key="order_id")
    bus.publish_many([InvoiceSent("A-1"), InvoiceSent("A-1")])
    lines = failure_of(lambda: bus.assert_delivered("take", times=2))
    assert "       ✓ delivered" == lines[4]
    assert "       ✗ not called: a duplicate, of key 'A-1'" == lines[6]


def test_a_cancelled_subscription_is_named_as_the_reason(bus: TestBus) -> None:
    """
    A subscription that is gone is still known, and its end is the reason.
    """
    with bus.subscribe(InvoiceSent, ignore, name="take"):
        pass
    bus.publish(InvoiceSent("A-1"))
    lines = failure_of(lambda: bus.assert_delivered("take"))
    assert "       ✗ not called: its subscription is cancelled" == lines[4]


def test_a_late_subscription_is_named_as_the_reason(bus: TestBus) -> None:
    """
    A subscription made after the event was published did not see it.
    """
    bus.publish(InvoiceSent("A-1"))
    bus.subscribe(InvoiceSent, ignore, name="take")
    lines = failure_of(lambda: bus.assert_delivered("take"))
    assert "       ✗ not called: it was subscribed later" == lines[4]


def why_not(bus: TestBus, handler: str = "take") -> str:
    """
    Return what a failed assertion says about the only event published.
    """
    return failure_of(lambda: bus.assert_delivered(handler))[4].strip()


def test_what_waits_in_a_queue_is_told_the_way(bus: TestBus) -> None:
    """
    An event nobody has settled is in its queue, which is said with what handles it.
    """
    held = bus.subscribe(InvoiceSent, ignore, name="take", delivery=Queued())
    bus.publish(InvoiceSent("A-1"))
    assert "✗ not called: it waits in its queue: settle() handles it" == why_not(bus)

    async def in_a_loop() -> str:
        return why_not(bus)

    expected = "✗ not called: it waits in its queue: asettle() handles it"
    assert expected == asyncio.run(in_a_loop())
    held.pause()
    expected = "✗ not called: it waits in its queue, which is paused: resume() the subscription"
    assert expected == why_not(bus)


def test_what_threads_handle_is_waited_for() -> None:
    """
    On a bus with workers, it is drain that helps, or the handler's return.
    """
    goes_on, begun = threading.Event(), threading.Event()

    def wait(sent: InvoiceSent) -> None:
        begun.set()
        goes_on.wait(10)

    with TestBus(threads=True) as bus:
        bus.subscribe(InvoiceSent, wait, name="take", delivery=Queued())
        bus.publish(InvoiceSent("A-1"))
        begun.wait(10)
        assert "✗ not called: its handler has not returned yet" == why_not(bus)
        bus.publish(InvoiceSent("A-2"))
        last = failure_of(lambda: bus.assert_delivered("take"))[-1].strip()
        assert "✗ not called: it waits in its queue: drain() waits for it" == last
        goes_on.set()


def test_what_waits_for_a_retry_tells_of_the_last_attempt(bus: TestBus) -> None:
    """
    Between two attempts, the failure is told, and that the clock has to go on.
    """

    def fail(sent: InvoiceSent) -> None:
        raise ValueError("no paper")

    subscription = bus.subscribe(
        InvoiceSent, fail, name="take", delivery=Queued(), retry=fixed(attempts=3, delay=60.0)
    )
    bus.publish(InvoiceSent("A-1"))
    bus.settle()
    failed = "✗ attempt 1 failed with ValueError('no paper')"
    expected = f"{failed}: it waits for its next attempt, or for its key: advance the clock"
    assert expected == why_not(bus)
    subscription.pause()
    bus.close(0)
    assert f"{failed}: it was given up, its dead letter says 'undelivered'" == why_not(bus)


def test_what_was_dropped_is_told_apart(bus: TestBus) -> None:
    """
    An event that a full queue has dropped was not subscribed to too late.
    """
    mode = Queued(capacity=1, overflow="drop_oldest")
    bus.subscribe(InvoiceSent, ignore, name="take", delivery=mode)
    bus.publish_many([InvoiceSent("A-1"), InvoiceSent("A-2")])
    expected = "✗ not called: it was given up, its dead letter says 'dropped'"
    assert expected == why_not(bus)


def test_what_waits_in_the_log_is_told_the_way() -> None:
    """
    A durable subscription takes what was logged when the test settles; one made later never.
    """
    with TestBus(durable=True) as bus:
        bus.subscribe(InvoiceSent, ignore, name="take", delivery=Durable())
        bus.publish(InvoiceSent("A-1"))
        assert "✗ not called: it waits in the log: settle() handles it" == why_not(bus)
        bus.subscribe(InvoiceSent, ignore, name="late", delivery=Durable(start="now"))
        assert "✗ not called: it was subscribed later" == why_not(bus, "late")


def test_what_is_due_later_is_counted(bus: TestBus) -> None:
    """
    What was published with a delay is not published yet, and that is said.
    """
    bus.publish(OrderPlaced("A-1"), delay=60.0)
    assert [
        "no OrderPlaced was published. Nothing was published at all. "
        "1 publish is due later: advance the clock."
    ] == failure_of(lambda: bus.assert_published(OrderPlaced))
    bus.publish(OrderPlaced("A-1"), delay=60.0)
    bus.publish(InvoiceSent("A-1"))
    bus.subscribe(OrderPlaced, ignore, name="take")
    lines = failure_of(lambda: bus.assert_delivered("take"))
    assert ["", "2 publishes are due later: advance the clock."] == lines[-2:]


def test_what_waits_for_the_end_of_a_block_is_counted(bus: TestBus) -> None:
    """
    What was published in a deferred() block is published at its end, and that is said.
    """
    nothing = "no OrderPlaced was published. Nothing was published at all."
    with bus.deferred():
        bus.publish(OrderPlaced("A-1"))
        expected = f"{nothing} 1 publish waits for the end of the deferred() block."
        assert [expected] == failure_of(lambda: bus.assert_published(OrderPlaced))
        with bus.deferred():
            bus.publish(OrderPlaced("A-2"))
            expected = f"{nothing} 2 publishes wait for the end of the deferred() block."
            assert [expected] == failure_of(lambda: bus.assert_published(OrderPlaced))
    bus.assert_published(OrderPlaced, times=2)
    with bus.deferred():
        assert "InvoiceSent" in failure_of(lambda: bus.assert_published(InvoiceSent))[0]


def test_a_redelivery_after_a_failure_tells_both(bus: TestBus) -> None:
    """
    An event that failed and was redriven has both in its story, in that order.
    """
    works: list[bool] = []

    def take(sent: InvoiceSent) -> None:
        if not works:
            raise ValueError("no paper")

    bus.subscribe(InvoiceSent, take, name="take")
    bus.publish(InvoiceSent("A-1"))
    works.append(True)
    bus.redrive_all()
    lines = failure_of(lambda: bus.assert_delivered("take", times=2))
    assert "       ✗ failed: ValueError('no paper'), then ✓ delivered" == lines[4]
    bus.faults.duplicate(InvoiceSent, times=2)
    bus.publish(InvoiceSent("A-2"))
    lines = failure_of(lambda: bus.assert_delivered("take", order_id="A-2", times=1))
    assert "       ✓ delivered twice" == lines[-1]


def test_an_unknown_handler_is_an_error(shop: TestBus) -> None:
    """
    A handler that was never subscribed is refused, with the names that are known.
    """
    with pytest.raises(SubscriptionNotFoundError) as misspelled:
        shop.assert_delivered("chrage")
    assert [
        "nothing is subscribed as 'chrage'. Did you mean 'charge'? Known are:",
        "  charge",
        "  check",
        "  invoice",
    ] == str(misspelled.value).splitlines()
    with pytest.raises(SubscriptionNotFoundError, match=r"failure_of at .* is not subscribed\. Kn"):
        shop.assert_not_delivered(failure_of)


def test_a_bus_without_handlers_says_so(bus: TestBus) -> None:
    """
    Where nothing is subscribed at all, the refusal says that.
    """
    with pytest.raises(SubscriptionNotFoundError, match="Nothing else is, either: subscribe it"):
        bus.assert_delivered("charge")


def test_deliveries_that_must_not_be_are_pointed_at(shop: TestBus) -> None:
    """
    `assert_not_delivered` lists what the handler took; what failed in it was not taken.
    """
    shop.assert_not_delivered("charge", order_id="A-1")
    assert [
        "invoice took OrderPlaced(order_id='B-2') once, expected never.",
        "",
        "Delivered:",
        "  1. invoice took OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       ✗ order_id: expected 'B-2', was 'A-1'",
        "→ 2. invoice took OrderPlaced(order_id='B-2', total=Decimal('7'))",
    ] == failure_of(lambda: shop.assert_not_delivered("invoice", order_id="B-2"))


def test_fields_of_a_delivery_are_checked_as_well(shop: TestBus) -> None:
    """
    A field that no event of the handler can have is an error, not a passed assertion.
    """
    with pytest.raises(TypeError, match="OrderPlaced has no field 'id'"):
        shop.assert_not_delivered("charge", id="A-1")


# -- dead-lettered ------------------------------------------------------------------------------


def test_a_dead_letter_is_found_by_event_or_handler(shop: TestBus) -> None:
    """
    The assertion returns the letter, asked for by class, handler, error and fields.
    """
    [letter] = shop.dead_letters
    assert letter is shop.assert_dead_lettered(OrderPlaced)
    assert letter is shop.assert_dead_lettered("charge", error=TimeoutError)
    assert letter is shop.assert_dead_lettered(OrderPlaced, order_id="A-1", error="TimeoutError")
    assert letter is shop.assert_dead_lettered(
        OrderPlaced, where=lambda placed: not placed.is_large
    )
    assert [letter] == shop.assert_dead_lettered("charge", times=1)


def test_of_several_the_first_is_returned() -> None:
    """
    Events, deliveries and dead letters come back in the order in which they happened.
    """

    def fail(placed: OrderPlaced) -> None:
        raise ValueError(placed.order_id)

    with TestBus(errors="collect") as bus:
        bus.subscribe(OrderPlaced, lambda placed: None, name="take")
        bus.subscribe(OrderPlaced, fail, name="fail")
        placed = [OrderPlaced(order_id) for order_id in "CAB"]
        bus.publish_many(placed)
    assert placed[0] is bus.assert_published(OrderPlaced)
    assert placed[0] is bus.assert_delivered("take")
    assert placed[0] is bus.assert_dead_lettered("fail").event
    assert placed == bus.assert_published(OrderPlaced, times=3)
    assert placed == bus.assert_delivered("take", times=3)
    assert placed == [each.event for each in bus.assert_dead_lettered("fail", times=3)]


@pytest.mark.parametrize("asked", [None, "OrderPlaced"])
def test_what_is_no_class_cannot_be_asked_for(asked: Any) -> None:
    """
    The error says how events are asked for.
    """
    with TestBus() as bus, pytest.raises(TypeError, match="asked for by class and fields"):
        bus.assert_published(asked)


def test_a_missing_dead_letter_lists_those_there_are(shop: TestBus) -> None:
    """
    The list says who gave up on what and why; a second one, what became of the others.
    """
    assert [
        "no OrderPlaced(order_id='B-2') was dead-lettered by charge for ValueError.",
        "",
        "Dead letters:",
        "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       ✗ order_id: expected 'B-2', was 'A-1'",
        "       ✗ error: expected ValueError, was TimeoutError",
        "       charge gave up after 3 attempts: TimeoutError: the bank is down",
        "",
        "Published:",
        "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       ✗ order_id: expected 'B-2', was 'A-1'",
        "       ✗ failed after 3 attempts: TimeoutError('the bank is down')",
        "  2. └ InvoiceSent(order_id='A-1')",
        "  3. OrderPlaced(order_id='B-2', total=Decimal('7'))",
        "       ✓ delivered",
        "  4. └ InvoiceSent(order_id='B-2')",
    ] == failure_of(lambda: shop.assert_dead_lettered("charge", order_id="B-2", error=ValueError))


def test_dead_letters_of_others_are_listed_without_differences(shop: TestBus) -> None:
    """
    A letter of another handler or class is listed, but not compared.
    """
    expected = [
        "",
        "Dead letters:",
        "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))",
        "       charge gave up after 3 attempts: TimeoutError: the bank is down",
    ]
    by_handler = failure_of(lambda: shop.assert_dead_lettered("invoice"))
    assert ["no OrderPlaced was dead-lettered by invoice.", *expected] == by_handler[:5]
    by_class = failure_of(lambda: shop.assert_dead_lettered(InvoiceSent, error="KeyError"))
    assert ["no InvoiceSent was dead-lettered for KeyError.", *expected] == by_class[:5]


def test_the_number_of_dead_letters_is_exact(bus: TestBus) -> None:
    """
    With ``times=`` the number has to be exact; a message may be empty.
    """

    def fail(sent: InvoiceSent) -> None:
        raise LookupError

    bus.subscribe(InvoiceSent, fail, name="fail")
    bus.publish_many([InvoiceSent("A-1"), InvoiceSent("A-2")])
    assert [
        "InvoiceSent was dead-lettered by fail twice, expected once.",
        "",
        "Dead letters:",
        "→ 1. InvoiceSent(order_id='A-1')",
        "       fail gave up: LookupError",
        "→ 2. InvoiceSent(order_id='A-2')",
        "       fail gave up: LookupError",
    ] == failure_of(lambda: bus.assert_dead_lettered(fail, times=1))


def test_no_dead_letters_at_all_is_said_in_one_line(bus: TestBus) -> None:
    """
    Where there are none, there is no list.
    """
    assert [
        "no InvoiceSent was dead-lettered. There are no dead letters. Nothing was published at all."
    ] == failure_of(lambda: bus.assert_dead_lettered(InvoiceSent))


@pytest.mark.parametrize("by_class", [False, True])
def test_what_is_no_dead_letter_says_what_became_of_it(bus: TestBus, by_class: bool) -> None:
    """
    An event waits, was redriven or discarded: each of that is said, handler by handler.
    """
    is_down = [True]

    def send(placed: OrderPlaced) -> None:
        if is_down:
            raise ValueError("no paper")

    policy = fixed(attempts=2, delay=60.0)
    bus.subscribe(OrderPlaced, send, name="send", delivery=Queued(), retry=policy)
    bus.subscribe(InvoiceSent, ignore, name="other")
    bus.publish(RushOrderPlaced("A-1"))

    def said() -> str:
        target = OrderPlaced if by_class else send
        title, empty, heading, happened, outcome = failure_of(
            lambda: bus.assert_dead_lettered(target)
        )
        by = "" if by_class else " by send"
        assert f"no OrderPlaced was dead-lettered{by}. There are no dead letters." == title
        assert ("", "Published:") == (empty, heading)
        assert "  1. RushOrderPlaced(order_id='A-1', total=Decimal('42'), hours=1)" == happened
        return outcome.strip().removeprefix("send: " if by_class else "")

    failed = "✗ failed after 2 attempts: ValueError('no paper')"
    assert "✗ not called: it waits in its queue: settle() handles it" == said()
    bus.settle()
    assert said().endswith("it waits for its next attempt, or for its key: advance the clock")
    bus.clock.advance(60.0)
    bus.assert_dead_lettered(send)
    bus.dead_letters.discard()
    assert f"{failed}; its dead letter is discarded" == said()
    bus.clear()
    bus.publish(RushOrderPlaced("A-1"))
    bus.clock.advance(60.0)
    is_down.clear()
    bus.redrive_all()
    assert f"{failed}, then ✓ delivered" == said()


def test_too_few_dead_letters_list_the_other_events(shop: TestBus) -> None:
    """
    Not so if they are too many: those there are, are the answer.
    """
    too_few = failure_of(lambda: shop.assert_dead_lettered("charge", times=2))
    assert "Published:" in too_few
    assert "       ✓ delivered" in too_few
    assert "  1. OrderPlaced(order_id='A-1', total=Decimal('42'))" in too_few
    assert "Published:" not in failure_of(lambda: shop.assert_dead_lettered("charge", times=0))


def test_by_class_each_handler_it_is_for_is_named(shop: TestBus) -> None:
    """
    Also one alone; those subscribed to other events are not.
    """
    shop.subscribe(InvoiceSent, ignore, name="file")
    lines = failure_of(lambda: shop.assert_dead_lettered(OrderPlaced, order_id="B-2"))
    assert [
        "  3. OrderPlaced(order_id='B-2', total=Decimal('7'))",
        "       invoice: ✓ delivered",
        "       charge: ✓ delivered",
        "       check: ✗ not called: its filter (where=) says no",
        "  4. └ InvoiceSent(order_id='B-2')",
    ] == lines[-5:]


def test_a_class_can_be_a_handler(bus: TestBus) -> None:
    """
    A class that is subscribed as a handler is meant as one.
    """

    class Refuse:
        def __init__(self, sent: InvoiceSent) -> None:
            raise ValueError(sent.order_id)

    bus.subscribe(InvoiceSent, Refuse, name="refuse")
    bus.publish(InvoiceSent("A-1"))
    assert "refuse" == bus.assert_dead_lettered(Refuse).subscription


# -- how a failure looks ------------------------------------------------------------------------


def test_a_failure_points_at_the_tests_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A report of pytest shows the line of the test and the message, and none of the library's code.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        """
        from eventbus.testing import TestBus

        def test_it():
            bus = TestBus()
            bus.subscribe(str, print, name="take")
            bus.publish("hello")
            for check in (
                lambda: bus.assert_published(int),
                lambda: bus.assert_not_published(str),
                lambda: bus.assert_nothing_published(),
                lambda: bus.assert_delivered("take", times=2),
                lambda: bus.assert_not_delivered("take"),
                lambda: bus.assert_dead_lettered("take"),
            ):
                try:
                    check()
                except AssertionError as failed:
                    traceback = failed.__traceback__.tb_next.tb_next
                    assert traceback.tb_frame.f_locals["__tracebackhide__"]
                    assert traceback.tb_next is None
            bus.assert_published(int)
        """
    )
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines(
        [
            ">       bus.assert_published(int)",
            "E       AssertionError: no int was published.",
            "E       Published:",
            "E         1. 'hello'",
        ],
        consecutive=False,
    )
    result.stdout.no_fnmatch_line("*_assertions.py*")
    result.assert_outcomes(failed=1)


pytest_plugins = ["pytester"]
