"""
Faults on purpose: failing handlers, duplicates, disorder, and the idempotence check.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest

from eventbus import (
    Durable,
    HandlerErrors,
    HandlerTimeoutError,
    Queued,
    RetryAfter,
    RunningLoopError,
    SubscriptionNotFoundError,
    event,
    fixed,
)
from eventbus.testing import TestBus
from testing_colours import Colour, in_both_colours


@event
class OrderPlaced:
    order_id: str = "A-1"


@event
class RushOrderPlaced(OrderPlaced):
    pass


@event
class InvoiceSent:
    order_id: str = "A-1"
    number: int = 1


@event(key="account")
class Opened:
    account: str = "a"


@pytest.fixture
def bus() -> TestBus:
    return TestBus()


def orders(count: int) -> list[OrderPlaced]:
    return [OrderPlaced(str(number)) for number in range(count)]


def collector(taken: list[Any]) -> Callable[[Any], None]:
    def take(happened: object) -> None:
        taken.append(happened)

    return take


# -- fail ---------------------------------------------------------------------------------------


@in_both_colours
def test_a_handler_fails_as_often_as_asked(bus: TestBus, colour: Colour) -> None:
    """
    The next attempts raise instead of running the handler, and the retries take no time.
    """
    taken: list[object] = []
    handler = colour.handler(collector(taken))
    bus.subscribe(OrderPlaced, handler, name="charge", retry=fixed(attempts=3, delay=60.0))
    bus.faults.fail(handler, with_=TimeoutError, times=2)
    colour.publish(bus, OrderPlaced())
    assert [OrderPlaced()] == taken
    assert [TimeoutError, TimeoutError] == [type(each.exception) for each in bus.retries]
    assert "injected by faults.fail()" == str(bus.retries[0].exception)
    assert bus.retries[0].exception is not bus.retries[1].exception
    assert 120.0 == bus.clock.monotonic()
    bus.assert_delivered(handler, times=1)


def test_a_fault_is_of_one_handler(bus: TestBus) -> None:
    """
    Handlers that nobody asked to fail do not.
    """
    taken: list[object] = []
    bus.subscribe(OrderPlaced, collector(taken), name="charge")
    bus.subscribe(OrderPlaced, collector(taken), name="notify")
    bus.faults.fail("charge")
    with pytest.raises(HandlerErrors):
        bus.publish(OrderPlaced())
    bus.assert_dead_lettered("charge", error=RuntimeError)
    bus.assert_delivered("notify")


def test_faults_add_up(bus: TestBus) -> None:
    """
    Asked to fail twice in different ways, a handler fails in the one and then in the other.
    """
    bus.subscribe(OrderPlaced, print, name="charge", retry=fixed(attempts=3, delay=1.0))
    bus.faults.fail("charge", with_=TimeoutError)
    bus.faults.fail("charge", with_=ConnectionError)
    bus.publish(OrderPlaced())
    assert [TimeoutError, ConnectionError] == [type(each.exception) for each in bus.retries]


def test_an_exception_can_be_given_as_such(bus: TestBus) -> None:
    """
    What a class cannot make from a message is given ready made, also to overrule a policy.
    """
    bus.subscribe(OrderPlaced, print, name="charge", retry=fixed(attempts=3, delay=1.0))
    bus.faults.fail("charge", with_=RetryAfter(30.0), times=2)
    bus.publish(OrderPlaced())
    assert 60.0 == bus.clock.monotonic()


def test_what_cannot_be_raised_is_refused(bus: TestBus) -> None:
    """
    No exception, a class that needs more than a message, and no times at all are refused.
    """
    bus.subscribe(OrderPlaced, print, name="charge")
    with pytest.raises(TypeError, match="with_= is an exception or a class of exceptions, not 'x'"):
        bus.faults.fail("charge", with_="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not 'KeyboardInterrupt'"):
        bus.faults.fail("charge", with_=KeyboardInterrupt)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"make one: with_=UnicodeDecodeError\(\.\.\.\)"):
        bus.faults.fail("charge", with_=UnicodeDecodeError)
    with pytest.raises(ValueError, match="times is at least 1, not 0"):
        bus.faults.fail("charge", times=0)


@pytest.mark.parametrize("fault", ["fail", "down", "up"])
def test_an_unknown_handler_is_refused(bus: TestBus, fault: str) -> None:
    """
    A fault of a handler that is not subscribed would never happen: the names are listed.
    """
    bus.subscribe(OrderPlaced, print, name="charge")
    with pytest.raises(SubscriptionNotFoundError, match=r"'chrage'\. Did you .*:\n  charge"):
        getattr(bus.faults, fault)("chrage")


@in_both_colours
def test_a_fault_happens_inside_the_wrap_hooks(colour: Colour) -> None:
    """
    A hook around the handler sees the fault as it would see the handler fail.
    """
    seen: list[str] = []

    def transaction(handler: Any) -> Any:
        @functools.wraps(handler)
        def call(placed: OrderPlaced) -> Any:
            try:
                return handler(placed)
            except TimeoutError:
                seen.append("rolled back")
                raise

        @functools.wraps(handler)
        async def acall(placed: OrderPlaced) -> Any:
            try:
                return await handler(placed)
            except TimeoutError:
                seen.append("rolled back")
                raise

        return acall if colour.handles_async else call

    bus = TestBus(wrap=transaction)
    bus.subscribe(OrderPlaced, colour.handler(collector([])), name="charge", wrap=transaction)
    bus.faults.fail("charge", with_=TimeoutError)
    with pytest.raises(HandlerErrors):
        colour.publish(bus, OrderPlaced())
    assert ["rolled back", "rolled back"] == seen


# -- down and up --------------------------------------------------------------------------------


@in_both_colours
def test_a_handler_is_down_until_it_is_up(bus: TestBus, colour: Colour) -> None:
    """
    Every attempt fails with a `ConnectionError` that says so, and redriving helps afterwards.
    """
    taken: list[object] = []
    handler = colour.handler(collector(taken))
    bus.subscribe(OrderPlaced, handler, name="charge", retry=fixed(attempts=2, delay=1.0))
    bus.faults.down(handler)
    for order in orders(2):
        with pytest.raises(HandlerErrors):
            colour.publish(bus, order)
    letter, _ = bus.assert_dead_lettered("charge", error=ConnectionError, times=2)
    assert "charge is down: faults.down() said so, and nobody faults.up()" == letter.message
    bus.faults.up(handler)
    bus.faults.up(handler)
    colour.redrive_all(bus)
    assert orders(2) == taken


def test_a_handler_can_be_down_for_a_block(bus: TestBus) -> None:
    """
    The end of ``with faults.down(...)`` is the end of it.
    """
    bus.subscribe(OrderPlaced, print, name="charge")
    with bus.faults.down("charge"), pytest.raises(HandlerErrors):
        bus.publish(OrderPlaced())
    assert bus.publish(OrderPlaced()).ok


def test_all_faults_can_be_ended(bus: TestBus) -> None:
    """
    `clear` ends failing, downtime and duplicates.
    """
    taken: list[object] = []
    bus.subscribe(OrderPlaced, collector(taken), name="charge")
    bus.faults.fail("charge")
    bus.faults.down("charge")
    bus.faults.duplicate(OrderPlaced)
    bus.faults.clear()
    assert bus.publish(OrderPlaced()).ok
    assert [OrderPlaced()] == taken


# -- duplicate ----------------------------------------------------------------------------------


@in_both_colours
def test_an_event_is_delivered_as_often_as_asked(bus: TestBus, colour: Colour) -> None:
    """
    A duplicated event is published once, and delivered again with the same envelope.
    """
    taken: list[object] = []
    bus.subscribe(OrderPlaced, colour.handler(collector(taken)), name="first")
    bus.subscribe(OrderPlaced, colour.handler(collector(taken)), name="second")
    bus.subscribe(InvoiceSent, colour.handler(collector(taken)), name="third")
    bus.faults.duplicate(OrderPlaced, times=3)
    receipt = colour.publish(bus, RushOrderPlaced())
    colour.publish(bus, InvoiceSent())
    assert receipt.ok
    assert 7 == len(taken)
    assert [RushOrderPlaced(), InvoiceSent()] == bus.published
    bus.assert_delivered("first", times=3)
    assert ["first", "second"] * 3 == [each.subscription for each in bus.delivered[:6]]
    assert {receipt.id} == {each.envelope.id for each in bus.delivered[:6]}
    stats = bus.stats().subscriptions["first"]
    assert (3, 3) == (stats.published, stats.delivered)


@in_both_colours
def test_an_idempotency_key_withstands_duplicates(bus: TestBus, colour: Colour) -> None:
    """
    A redelivery passes through all policies: a handler with a key is called once.
    """
    taken: list[object] = []
    handler = colour.handler(collector(taken))
    bus.subscribe(OrderPlaced, handler, name="charge", idempotency_key="order_id")
    bus.faults.duplicate(OrderPlaced)
    receipt = colour.publish(bus, OrderPlaced())
    assert [OrderPlaced()] == taken
    assert [receipt.id] == [each.first_id for each in bus.duplicates]
    stats = bus.stats().subscriptions["charge"]
    assert (2, 1, 1) == (stats.published, stats.delivered, stats.duplicate)
    assert not receipt.duplicate


@in_both_colours
def test_a_redelivery_that_fails_is_raised(bus: TestBus, colour: Colour) -> None:
    """
    What only the second delivery does wrong reaches the test, once.
    """
    sent: set[str] = set()

    def send(placed: OrderPlaced) -> None:
        if placed.order_id in sent:
            raise ValueError("sent before")
        sent.add(placed.order_id)

    bus.subscribe(OrderPlaced, colour.handler(send), name="send")
    bus.faults.duplicate(OrderPlaced)
    with pytest.raises(HandlerErrors, match="1 handler of OrderPlaced failed: send"):
        colour.publish(bus, OrderPlaced())
    assert 1 == len(bus.dead_letters)


def test_a_receipt_counts_a_subscription_once() -> None:
    """
    A handler that fails in every delivery of one event is one failure of its receipt.
    """
    bus = TestBus(errors="collect")
    bus.subscribe(OrderPlaced, print, name="charge")
    bus.faults.down("charge")
    bus.faults.duplicate(OrderPlaced)
    receipt = bus.publish(OrderPlaced())
    assert ["charge"] == [each.subscription for each in receipt.failures]
    assert 2 == len(bus.dead_letters)


def test_a_publishers_duplicate_is_not_delivered_at_all(bus: TestBus) -> None:
    """
    What the publisher's own key turns away is not redelivered either.
    """
    bus.subscribe(OrderPlaced, print, name="charge")
    bus.faults.duplicate(OrderPlaced)
    bus.publish(OrderPlaced(), idempotency_key="A-1")
    bus.publish(OrderPlaced(), idempotency_key="A-1")
    bus.assert_delivered("charge", times=2)


def test_duplicates_end_with_once(bus: TestBus) -> None:
    """
    Of several faults for one event the greater counts; once is no fault, and less is refused.
    """
    bus.subscribe(OrderPlaced, print, name="charge")
    bus.faults.duplicate(OrderPlaced, times=3)
    bus.faults.duplicate(RushOrderPlaced, times=2)
    bus.publish(RushOrderPlaced())
    bus.assert_delivered("charge", times=3)
    bus.faults.duplicate(OrderPlaced, times=1)
    bus.publish(OrderPlaced())
    bus.assert_delivered("charge", times=4)
    with pytest.raises(ValueError, match="times is at least 1, not 0"):
        bus.faults.duplicate(OrderPlaced, times=0)


@in_both_colours
def test_what_is_due_later_is_duplicated_when_it_is_due(bus: TestBus, colour: Colour) -> None:
    """
    No copy is delivered before, and none if the publish is cancelled.
    """
    times: list[float] = []
    bus.subscribe(
        OrderPlaced, colour.handler(lambda placed: times.append(bus.clock.monotonic())), name="q"
    )
    bus.faults.duplicate(OrderPlaced, times=2)
    colour.publish(bus, OrderPlaced("1"), delay=60)
    assert colour.publish(bus, OrderPlaced("2"), delay=60).cancel()
    bus.clock.advance(60)
    assert [60.0, 60.0] == times
    assert ["1", "1"] == [each.event.order_id for each in bus.delivered]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_deferred_is_duplicated_at_the_end_of_the_block(
    bus: TestBus, is_async: bool
) -> None:
    """
    Nothing comes before, and nothing at all of a block that was broken off.
    """
    taken: list[object] = []
    bus.subscribe(OrderPlaced, collector(taken), name="q")
    bus.faults.duplicate(OrderPlaced, times=2)

    async def adefer() -> None:
        async with bus.deferred():
            await bus.apublish(OrderPlaced())
            assert [] == taken

    def defer(then: object = None) -> None:
        with bus.deferred():
            bus.publish(OrderPlaced())
            assert [] == taken
            if then is not None:
                raise KeyError(then)

    with pytest.raises(KeyError, match="rolled back"):
        defer("rolled back")
    assert [] == taken
    asyncio.run(adefer()) if is_async else defer()
    assert [OrderPlaced(), OrderPlaced()] == taken


@pytest.mark.parametrize("what", [3, "OrderPlaced", OrderPlaced(), print])
def test_a_fault_of_no_class_of_events_is_refused(bus: TestBus, what: Any) -> None:
    """
    It would happen to nothing, and the test pass for that.
    """
    with pytest.raises(TypeError, match="events are meant by their class, not by"):
        bus.faults.duplicate(what)
    with pytest.raises(TypeError, match="events are meant by their class, not by"):
        bus.faults.reorder(OrderPlaced, what)


def test_a_fault_may_be_of_several_classes(bus: TestBus) -> None:
    """
    A union stands for each of its members.
    """
    union: Any = OrderPlaced | InvoiceSent
    bus.subscribe(object, print, name="q")
    bus.faults.duplicate(union)
    bus.publish_many([OrderPlaced(), InvoiceSent()])
    bus.assert_delivered("q", times=4)
    with bus.faults.reorder(union):
        bus.publish(OrderPlaced())
    bus.assert_delivered("q", times=6)


# -- reorder ------------------------------------------------------------------------------------


def shuffled(colour: Colour, count: int, seed: int) -> list[OrderPlaced]:
    bus, taken = TestBus(), list[OrderPlaced]()
    bus.subscribe(OrderPlaced, colour.handler(collector(taken)))
    bus.faults.reorder(OrderPlaced, seed=seed)
    colour.publish_many(bus, orders(count))
    colour.release(bus)
    return taken


def test_a_reordering_is_what_its_block_is_given(bus: TestBus) -> None:
    """
    It says whether it is over, in ``with`` as in ``async with``.
    """
    with bus.faults.reorder(OrderPlaced) as reordering:
        assert not reordering.is_over
    assert reordering.is_over

    async def main() -> bool:
        async with bus.faults.reorder(OrderPlaced) as reordering:
            assert not reordering.is_over
        return reordering.is_over

    assert asyncio.run(main())


@in_both_colours
def test_events_are_delivered_in_another_order(colour: Colour) -> None:
    """
    The same seed makes the same order, another seed another one, and none the published one.
    """
    assert set(orders(10)) == set(shuffled(colour, 10, seed=7))
    assert shuffled(colour, 10, seed=7) == shuffled(colour, 10, seed=7)
    assert shuffled(colour, 10, seed=7) != shuffled(colour, 10, seed=8)
    assert orders(1) == shuffled(colour, 1, seed=7)
    assert [] == shuffled(colour, 0, seed=7)
    for seed in range(10):
        assert [OrderPlaced("1"), OrderPlaced("0")] == shuffled(colour, 2, seed=seed)


@in_both_colours
def test_events_are_held_back_until_they_are_released(bus: TestBus, colour: Colour) -> None:
    """
    Until then they are published and not delivered, and their receipts and records say so.
    """
    taken: list[object] = []
    bus.subscribe(object, colour.handler(collector(taken)), name="take")
    bus.faults.reorder(OrderPlaced, seed=7)
    first = colour.publish(bus, OrderPlaced("1"))
    colour.publish(bus, InvoiceSent())
    second = colour.publish(bus, RushOrderPlaced("2"))
    assert [InvoiceSent()] == taken
    assert [OrderPlaced("1"), InvoiceSent(), RushOrderPlaced("2")] == bus.published
    assert (0, True, False) == (first.delivered, first.ok, first.unhandled)
    assert [] == bus.unhandled
    with pytest.raises(AssertionError) as failed:
        bus.assert_delivered("take", OrderPlaced)
    reason = "       ✗ not called: held back by faults.reorder(), until faults.release()"
    assert reason == str(failed.value).splitlines()[4]

    assert [second, first] == colour.release(bus)
    assert [InvoiceSent(), RushOrderPlaced("2"), OrderPlaced("1")] == taken
    assert (1, True, False) == (first.delivered, first.ok, first.unhandled)
    colour.publish(bus, OrderPlaced("3"))
    assert 4 == len(taken)
    assert [] == colour.release(bus)


@in_both_colours
def test_what_is_held_back_is_in_no_queue(colour: Colour) -> None:
    """
    Of an event that is held back, a receipt claims no place but the log's.
    """
    with TestBus(durable=True) as bus:
        take = colour.handler(collector([]))
        bus.subscribe(OrderPlaced, take, name="queued", delivery=Queued())
        bus.subscribe(OrderPlaced, take, name="durable", delivery=Durable())
        bus.faults.reorder(OrderPlaced, seed=7)
        receipt = colour.publish(bus, OrderPlaced("1"))
        assert (0, 1, False) == (receipt.delivered, receipt.queued, receipt.unhandled)
        colour.release(bus)
        assert (0, 2, False) == (receipt.delivered, receipt.queued, receipt.unhandled)
        bus.settle()
        bus.assert_delivered("queued", times=1)


def test_what_is_due_later_is_held_back_when_it_is_due(bus: TestBus) -> None:
    """
    The end of the block delivers nothing before its time.
    """
    taken: list[OrderPlaced] = []
    bus.subscribe(OrderPlaced, collector(taken), name="q")
    with bus.faults.reorder(OrderPlaced):
        bus.publish(OrderPlaced("late"), delay=60)
    assert [] == taken
    with bus.faults.reorder(OrderPlaced):
        bus.publish(OrderPlaced("0"), delay=10)
        bus.publish(OrderPlaced("1"), delay=20)
        bus.clock.advance(30)
        assert [] == taken
    assert ["1", "0"] == [each.order_id for each in taken]
    bus.clock.advance(30)
    assert ["1", "0", "late"] == [each.order_id for each in taken]


@in_both_colours
def test_a_block_releases_at_its_end(bus: TestBus, colour: Colour) -> None:
    """
    ``with`` and ``async with`` deliver what was held, of several classes in one shuffle.
    """
    taken: list[object] = []
    bus.subscribe(object, colour.handler(collector(taken)))

    async def use() -> None:
        async with bus.faults.reorder(OrderPlaced, InvoiceSent, seed=7):
            await bus.apublish(OrderPlaced())
            await bus.apublish(InvoiceSent())
            assert [] == taken

    if colour.publishes_async:
        asyncio.run(use())
    else:
        with bus.faults.reorder(OrderPlaced, InvoiceSent, seed=7):
            bus.publish(OrderPlaced())
            bus.publish(InvoiceSent())
            assert [] == taken
    assert [InvoiceSent(), OrderPlaced()] == taken


@pytest.mark.parametrize("is_async", [False, True])
def test_a_block_that_raises_delivers_nothing(bus: TestBus, is_async: bool) -> None:
    """
    An exception ends the fault, and what was held stays undelivered.
    """
    bus.subscribe(OrderPlaced, print, name="take")

    def fail(then: object) -> None:
        raise LookupError

    async def use() -> None:
        async with bus.faults.reorder(OrderPlaced):
            fail(await bus.apublish(OrderPlaced()))

    if is_async:
        with pytest.raises(LookupError):
            asyncio.run(use())
    else:
        with pytest.raises(LookupError), bus.faults.reorder(OrderPlaced):
            fail(bus.publish(OrderPlaced()))
    bus.assert_not_delivered("take")
    bus.publish(OrderPlaced())
    bus.assert_delivered("take", times=1)


def test_a_second_reordering_has_events_of_its_own(bus: TestBus) -> None:
    """
    Each reordering holds its own classes, and one release ends all of them.
    """
    taken: list[object] = []
    bus.subscribe(object, collector(taken))
    bus.faults.reorder(OrderPlaced)
    bus.faults.reorder(InvoiceSent)
    bus.publish_many([OrderPlaced("1"), InvoiceSent("1"), OrderPlaced("2"), InvoiceSent("2")])
    bus.faults.release()
    assert ["2", "1", "2", "1"] == [each.order_id for each in taken]  # type: ignore[attr-defined]


@in_both_colours
def test_failures_of_what_was_held_are_raised_together(bus: TestBus, colour: Colour) -> None:
    """
    Releasing raises what failed, of all events, after the last one.
    """

    def fail(placed: OrderPlaced) -> None:
        raise ValueError(placed.order_id)

    bus.subscribe(OrderPlaced, colour.handler(fail), name="fail")
    bus.faults.reorder(OrderPlaced)
    colour.publish_many(bus, orders(3))
    with pytest.raises(HandlerErrors, match="3 handlers of 3 events held back failed"):
        colour.release(bus)
    assert 3 == len(bus.dead_letters)


@in_both_colours
def test_held_events_are_handled_in_the_context_of_their_publish(
    bus: TestBus, colour: Colour
) -> None:
    """
    A handler sees the publisher's context variables and its own place in the causation.
    """
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    def take(sent: InvoiceSent) -> None:
        seen.append(tenant.get())

    def invoice(placed: OrderPlaced) -> None:
        tenant.set(f"tenant of {placed.order_id}")
        bus.publish(InvoiceSent(placed.order_id))

    bus.subscribe(OrderPlaced, invoice)
    bus.subscribe(InvoiceSent, take)
    bus.faults.reorder(InvoiceSent)
    for order in orders(2):
        contextvars.copy_context().run(colour.publish, bus, order)
    colour.release(bus)
    assert ["tenant of 1", "tenant of 0"] == seen
    causes = {each.id for each in bus.envelopes if isinstance(each.event, OrderPlaced)}
    assert causes == {each.causation_id for each in bus.envelopes} - {None}


def test_a_release_does_not_block_a_loop(bus: TestBus) -> None:
    """
    In a running event loop, `release` refuses async handlers and names the way out.
    """

    async def take(placed: OrderPlaced) -> None:
        pass

    async def use() -> None:
        bus.faults.reorder(OrderPlaced)
        await bus.apublish(OrderPlaced())
        bus.faults.release()

    bus.subscribe(OrderPlaced, print, name="plain")
    asyncio.run(use())
    bus.subscribe(OrderPlaced, take, name="take")
    with pytest.raises(RunningLoopError, match=r"for take .* Use await faults\.arelease\(\)"):
        asyncio.run(use())


# -- check_idempotent ---------------------------------------------------------------------------


def report_of(bus: TestBus, publish: Callable[[], object]) -> list[str]:
    """
    Return the lines of an idempotence check's report.
    """
    with pytest.raises(AssertionError) as failed, bus.faults.check_idempotent():
        publish()
    return str(failed.value).splitlines()


@in_both_colours
def test_an_idempotent_handler_passes(bus: TestBus, colour: Colour) -> None:
    """
    A handler is called twice with the same event, and passes if it does the same twice.
    """
    taken: list[object] = []

    def take(placed: OrderPlaced) -> str:
        taken.append(placed)
        return f"taken {placed.order_id}"

    bus.subscribe(OrderPlaced, colour.handler(take), name="take")
    with bus.faults.check_idempotent() as check:
        assert check is bus.faults.check
        colour.publish(bus, OrderPlaced())
    assert check.is_over
    assert [OrderPlaced(), OrderPlaced()] == taken
    bus.assert_delivered("take", times=1)
    assert 1 == bus.stats().subscriptions["take"].delivered
    colour.publish(bus, OrderPlaced())
    assert 3 == len(taken)


@in_both_colours
def test_every_handler_that_differs_is_named(bus: TestBus, colour: Colour) -> None:
    """
    Whoever returns, publishes or raises something else the second time is in one report.
    """
    numbers: Iterator[int] = itertools.count(1)
    seen: set[object] = set()

    def count(placed: OrderPlaced) -> int:
        return next(numbers)

    async def invoice(placed: OrderPlaced) -> None:
        await bus.apublish(InvoiceSent(placed.order_id, next(numbers)))

    def remember(sent: InvoiceSent) -> None:
        if sent in seen:
            raise ValueError("seen before")
        seen.add(sent)

    def ignore(placed: object) -> None:
        pass

    bus.subscribe(OrderPlaced, colour.handler(count), name="count")
    bus.subscribe(OrderPlaced, invoice, name="invoice")
    bus.subscribe(InvoiceSent, colour.handler(remember), name="remember")
    bus.subscribe(object, colour.handler(ignore), name="ignore")
    assert [
        "3 handlers are not idempotent: delivered twice, the second run differs.",
        "",
        "  count",
        "    on OrderPlaced(order_id='A-1')",
        "      returned 1, the second time 2",
        "  remember",
        "    on InvoiceSent(order_id='A-1', number=3)",
        "      raised ValueError('seen before') the second time",
        "  invoice",
        "    on OrderPlaced(order_id='A-1')",
        "      published InvoiceSent(order_id='A-1', number=3), the second time with",
        "        number: 4 instead of 3",
    ] == report_of(bus, lambda: colour.publish(bus, OrderPlaced()))
    assert [OrderPlaced(), InvoiceSent(number=3)] == bus.published
    assert 1 == bus.stats().subscriptions["remember"].delivered
    assert 2 == bus.stats().published


@in_both_colours
def test_another_number_of_events_differs(bus: TestBus, colour: Colour) -> None:
    """
    More events, fewer events, none and others are all something else.
    """
    batches = iter([[1], [], [], [1, 2], [1], [InvoiceSent()]])

    def publish(placed: OrderPlaced) -> None:
        for happened in next(batches):
            bus.publish(happened)

    bus.subscribe(OrderPlaced, colour.handler(publish), name="publish")
    assert [
        "1 handler is not idempotent: delivered twice, the second run differs.",
        "",
        "  publish",
        "    on OrderPlaced(order_id='0')",
        "      published 1, the second time nothing",
        "    on OrderPlaced(order_id='1')",
        "      published nothing, the second time 2 events: int, int",
        "    on OrderPlaced(order_id='2')",
        "      published 1, the second time InvoiceSent(order_id='A-1', number=1)",
    ] == report_of(bus, lambda: colour.publish_many(bus, orders(3)))


def test_a_long_report_is_cut(bus: TestBus) -> None:
    """
    A handler that differs on many events is shown with three of them.
    """
    numbers = itertools.count()
    bus.subscribe(OrderPlaced, lambda placed: next(numbers), name="count")
    lines = report_of(bus, lambda: bus.publish_many(orders(5)))
    assert 9 + 1 == len(lines)
    assert "    … and on 2 more" == lines[-1]


def test_events_and_results_without_equality_are_compared_by_their_fields(bus: TestBus) -> None:
    """
    Equal fields make equal events of a plain class, and what cannot be compared is printed.
    """

    class Sent:
        def __init__(self, number: int) -> None:
            self.number = number

    class Undecided:
        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

        __hash__ = None  # type: ignore[assignment]

        def __repr__(self) -> str:
            return "Undecided()"

    def take(placed: OrderPlaced) -> object:
        bus.publish(Sent(1))
        return Undecided()

    numbers = itertools.count(1)

    def differ(sent: InvoiceSent) -> object:
        bus.publish(Sent(next(numbers)))
        return object()

    bus.subscribe(OrderPlaced, take, name="take")
    with bus.faults.check_idempotent():
        bus.publish(OrderPlaced())
    bus.subscribe(InvoiceSent, differ, name="differ")
    lines = report_of(bus, lambda: bus.publish(InvoiceSent()))
    assert lines[4].startswith("      returned <object object at ")
    assert [
        "      published Sent(number=1), the second time with",
        "        number: 2 instead of 1",
    ] == lines[5:]


@in_both_colours
def test_receipts_are_compared_by_their_events(bus: TestBus, colour: Colour) -> None:
    """
    A handler that returns what publishing returned is the same twice, if the events are.
    """
    numbers = itertools.count(1)

    def same(placed: OrderPlaced) -> object:
        return bus.publish(InvoiceSent())

    def same_many(placed: OrderPlaced) -> object:
        return bus.publish_many([InvoiceSent(), InvoiceSent()])

    def differ(sent: RushOrderPlaced) -> object:
        return [bus.publish(InvoiceSent(str(next(numbers))))]

    bus.subscribe(OrderPlaced, colour.handler(same), name="same")
    bus.subscribe(OrderPlaced, colour.handler(same_many), name="same_many")
    with bus.faults.check_idempotent():
        colour.publish(bus, OrderPlaced())
    bus.subscribe(RushOrderPlaced, colour.handler(differ), name="differ")
    with pytest.raises(AssertionError, match="2"), bus.faults.check_idempotent():
        colour.publish(bus, RushOrderPlaced())


@in_both_colours
def test_a_retried_delivery_is_checked_once_it_succeeded(bus: TestBus, colour: Colour) -> None:
    """
    Failed attempts are no run to compare with; a delivery given up on has none.
    """
    taken: list[object] = []
    handler = colour.handler(collector(taken))
    bus.subscribe(OrderPlaced, handler, name="take", retry=fixed(attempts=2, delay=1.0))
    with bus.faults.check_idempotent():
        bus.faults.fail("take", times=1)
        colour.publish(bus, OrderPlaced())
        assert 2 == len(taken)
        bus.faults.fail("take", times=2)
        with pytest.raises(HandlerErrors):
            colour.publish(bus, OrderPlaced())
    assert 2 == len(taken)


@in_both_colours
def test_what_a_wrap_hook_or_a_filter_rejects_is_not_run_again(
    bus: TestBus, colour: Colour
) -> None:
    """
    Only a delivery that came to its handler, and succeeded, is run a second time.
    """
    taken: list[object] = []

    def refuse(handler: Any) -> Any:
        @functools.wraps(handler)
        def call(placed: OrderPlaced) -> Any:
            handler(placed)
            raise LookupError

        @functools.wraps(handler)
        async def acall(placed: OrderPlaced) -> Any:
            await handler(placed)
            raise LookupError

        return acall if colour.handles_async else call

    handler = colour.handler(collector(taken))
    bus.subscribe(OrderPlaced, handler, name="refused", wrap=refuse)
    bus.subscribe(OrderPlaced, handler, name="filtered", where=lambda placed: False)
    with bus.faults.check_idempotent(), pytest.raises(HandlerErrors):
        colour.publish(bus, OrderPlaced())
    assert [OrderPlaced()] == taken


@pytest.mark.parametrize("publishes_async", [False, True])
def test_the_second_run_has_the_whole_timeout(bus: TestBus, publishes_async: bool) -> None:
    """
    Two runs in a row do not add up to a timeout, and a second one that hangs is reported.
    """
    delays = iter([2.0, 2.0, 2.0, 4.0])

    async def take(placed: OrderPlaced) -> None:
        await bus.clock.asleep(next(delays))

    bus.subscribe(OrderPlaced, take, name="take", timeout=3.0)
    colour = Colour(publishes_async, True)
    with bus.faults.check_idempotent():
        colour.publish(bus, OrderPlaced())
    [*_, line] = report_of(bus, lambda: colour.publish(bus, OrderPlaced()))
    assert line.startswith(f"      raised {HandlerTimeoutError.__name__}('take ran longer than")


@in_both_colours
def test_handlers_can_be_left_out(bus: TestBus, colour: Colour) -> None:
    """
    A handler in ``without=`` runs once, and what it publishes is nobody else's.
    """
    taken: list[object] = []

    def invoice(placed: OrderPlaced) -> None:
        taken.append(placed)
        bus.publish(InvoiceSent(number=len(taken)))

    bus.subscribe(OrderPlaced, colour.handler(invoice), name="invoice")
    bus.subscribe(InvoiceSent, print, name="print")
    with bus.faults.check_idempotent(without="invoice"):
        colour.publish(bus, OrderPlaced())
    assert [OrderPlaced()] == taken
    with pytest.raises(SubscriptionNotFoundError):
        bus.faults.check_idempotent(without=["invoce"])


@pytest.mark.parametrize("publishes_async", [False, True])
def test_awaitables_of_plain_functions_are_awaited_twice(
    bus: TestBus, publishes_async: bool
) -> None:
    """
    A handler not known to be async is checked as well, with what its awaitable does.
    """
    numbers = itertools.count(1)

    async def work() -> int:
        await bus.apublish(InvoiceSent())
        return next(numbers)

    def take(placed: OrderPlaced) -> Any:
        return work()

    bus.subscribe(OrderPlaced, take, name="take")
    bus.subscribe(InvoiceSent, print, name="print")
    lines = report_of(bus, lambda: Colour(publishes_async, True).publish(bus, OrderPlaced()))
    assert ["      returned 1, the second time 2"] == lines[4:]


def test_a_publishers_key_makes_a_handler_idempotent(bus: TestBus) -> None:
    """
    Publishing the same event with the same key twice is the same twice.
    """

    def invoice(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent(placed.order_id), idempotency_key=placed.order_id)

    bus.subscribe(OrderPlaced, invoice)
    with bus.faults.check_idempotent():
        bus.publish(OrderPlaced())
    assert [] == bus.duplicates


def test_what_outlives_its_handler_is_not_compared(bus: TestBus) -> None:
    """
    A task that publishes after its handler has returned belongs to neither run.
    """
    tasks: list[asyncio.Task[Any]] = []

    async def start(placed: OrderPlaced) -> None:
        tasks.append(asyncio.create_task(later()))

    async def later() -> None:
        await bus.apublish(InvoiceSent(number=len(tasks)))

    async def use() -> None:
        with bus.faults.check_idempotent():
            await bus.apublish(OrderPlaced())
            await asyncio.gather(*tasks)

    bus.subscribe(OrderPlaced, start)
    asyncio.run(use())
    assert [OrderPlaced(), InvoiceSent(number=2)] == bus.published


def test_one_check_at_a_time(bus: TestBus) -> None:
    """
    A check inside a check is refused.
    """
    with (
        bus.faults.check_idempotent(),
        pytest.raises(RuntimeError, match="is under way already"),
    ):
        bus.faults.check_idempotent()
    with bus.faults.check_idempotent():
        pass


@pytest.mark.parametrize("is_async", [False, True])
def test_without_a_block_the_bus_reports_when_it_is_closed(is_async: bool) -> None:
    """
    A check that nobody ends ends with the bus.
    """
    numbers = itertools.count()

    async def use() -> None:
        async with TestBus() as bus:
            publish(bus)

    def publish(bus: TestBus) -> None:
        bus.subscribe(OrderPlaced, lambda placed: next(numbers), name="count")
        bus.faults.check_idempotent()
        bus.publish(OrderPlaced())

    if is_async:
        with pytest.raises(AssertionError, match="1 handler is not idempotent"):
            asyncio.run(use())
    else:
        bus = TestBus()
        publish(bus)
        with pytest.raises(AssertionError, match="1 handler is not idempotent"):
            bus.close()
        assert bus.is_closed
        bus.close()


@pytest.mark.parametrize("is_async", [False, True])
def test_an_exception_is_the_news(is_async: bool) -> None:
    """
    What a block raised is not covered up by the report of a check.
    """
    numbers = itertools.count()

    def publish(bus: TestBus) -> None:
        bus.subscribe(OrderPlaced, lambda placed: next(numbers), name="count")
        bus.faults.check_idempotent()
        bus.publish(OrderPlaced())
        raise LookupError

    async def use() -> None:
        async with TestBus() as bus:
            publish(bus)

    if is_async:
        with pytest.raises(LookupError):
            asyncio.run(use())
    else:
        with pytest.raises(LookupError), TestBus() as bus:
            publish(bus)
        with pytest.raises(LookupError), bus.faults.check_idempotent():
            raise LookupError


def test_what_handlers_of_another_bus_publish_is_their_own(bus: TestBus) -> None:
    """
    A handler answers for what it publishes itself, on whichever bus, and for nothing else.
    """
    other = TestBus()

    def ask(placed: OrderPlaced) -> None:
        other.publish(placed)

    def answer(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent())

    bus.subscribe(OrderPlaced, ask)
    other.subscribe(OrderPlaced, answer)
    with bus.faults.check_idempotent():
        bus.publish(OrderPlaced())
    assert [OrderPlaced()] == other.published


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("threads", [False, True])
def test_the_end_of_a_block_checks_what_is_queued(is_async: bool, threads: bool) -> None:
    """
    What was not settled in the block is handled there, an attempt that is due soon as well.
    """
    numbers, attempts = itertools.count(), list[int]()

    def count(placed: OrderPlaced) -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise ValueError("not yet")
        return next(numbers)

    async def acount(placed: OrderPlaced) -> int:
        return count(placed)

    bus = TestBus(threads=threads)
    retry = fixed(attempts=2, delay=0.0 if threads else 1.0)
    handler = acount if is_async and not threads else count
    bus.subscribe(OrderPlaced, handler, delivery=Queued(), name="count", retry=retry)

    def test() -> None:
        with bus.faults.check_idempotent():
            bus.publish(OrderPlaced())

    async def atest() -> None:
        async with bus.faults.check_idempotent():
            await bus.apublish(OrderPlaced())

    with pytest.raises(AssertionError, match=r"count\n.*\n +returned 0, the second time 1"):
        asyncio.run(atest()) if is_async else test()
    assert bus.faults.check is None
    assert bus.close().ok


def test_the_end_of_a_block_in_a_loop_says_what_it_cannot_check(bus: TestBus) -> None:
    """
    A plain ``with`` cannot await what is queued, and names what can.
    """

    async def never(placed: OrderPlaced) -> None: ...

    bus.subscribe(OrderPlaced, never, delivery=Queued(), name="never")

    async def test() -> None:
        with bus.faults.check_idempotent():
            await bus.apublish(OrderPlaced())

    with pytest.raises(RunningLoopError, match=r"waits for never.*an async with block"):
        asyncio.run(test())
    assert bus.faults.check is None


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("ends_by", ["raising", "closing"])
def test_a_block_that_has_ended_by_itself_checks_no_more(
    bus: TestBus, is_async: bool, ends_by: str
) -> None:
    """
    What the block raised is the news, and a bus that is closed has checked what was queued.
    """
    taken: list[object] = []
    bus.subscribe(OrderPlaced, collector(taken), delivery=Queued(), name="take")

    def leave() -> None:
        bus.publish(OrderPlaced())
        if ends_by == "raising":
            raise KeyError("A-1")
        bus.close()

    def test() -> None:
        with suppress(KeyError), bus.faults.check_idempotent():
            leave()

    async def atest() -> None:
        with suppress(KeyError):
            async with bus.faults.check_idempotent():
                leave()

    asyncio.run(atest()) if is_async else test()
    assert (2 if ends_by == "closing" else 0) == len(taken)
    assert bus.faults.check is None


def test_what_fails_at_the_end_of_a_block_is_the_news(bus: TestBus) -> None:
    """
    A queued handler that fails there is raised, and nothing reported.
    """
    numbers = itertools.count()

    def fail(placed: OrderPlaced) -> None:
        raise ValueError("out of paper")

    bus.subscribe(OrderPlaced, lambda placed: next(numbers), delivery=Queued(), name="count")
    bus.subscribe(OrderPlaced, fail, delivery=Queued(), name="fail")
    with pytest.raises(HandlerErrors, match="fail"), bus.faults.check_idempotent():
        bus.publish(OrderPlaced())
    assert bus.close().ok


@in_both_colours
@pytest.mark.parametrize("way", ["now", "delayed", "deferred"])
def test_what_a_second_run_publishes_is_delivered_to_nobody(colour: Colour, way: str) -> None:
    """
    Neither when it is due nor from the log; and what is put off is compared as well.
    """
    bus, numbers = TestBus(durable=True), itertools.count()
    options: Any = {"delay": 5} if way == "delayed" else {}

    async def apublish(placed: OrderPlaced) -> None:
        async with bus.deferred() if way == "deferred" else nullcontext():
            await bus.apublish(InvoiceSent(number=next(numbers)), **options)

    def publish(placed: OrderPlaced) -> None:
        with bus.deferred() if way == "deferred" else nullcontext():
            bus.publish(InvoiceSent(number=next(numbers)), **options)

    bus.subscribe(OrderPlaced, apublish if colour.handles_async else publish, name="invoice")
    bus.subscribe(InvoiceSent, print, name="inline")
    bus.subscribe(InvoiceSent, print, delivery=Durable(), name="durable")
    text = "published InvoiceSent.*\n +number: 1 instead of 0"
    with pytest.raises(AssertionError, match=text), bus.faults.check_idempotent():
        colour.publish(bus, OrderPlaced())
    bus.clock.advance(10)
    bus.settle()
    bus.assert_delivered("inline", times=1)
    bus.assert_delivered("durable", times=1)
    assert 2 == bus.stats().published
    assert 0 == bus.stats().scheduled


@in_both_colours
def test_a_second_run_finds_a_stream_that_has_moved_on(colour: Colour) -> None:
    """
    Nothing is written then, and the version that is expected is compared all the same.
    """
    bus = TestBus(durable=True)

    async def aopen(placed: OrderPlaced) -> None:
        await bus.apublish(Opened(), expected_version=0)

    def open_(placed: OrderPlaced) -> None:
        bus.publish(Opened(), expected_version=0)

    bus.subscribe(OrderPlaced, aopen if colour.handles_async else open_, name="open")
    text = "raised ConcurrencyError.* the second time"
    with pytest.raises(AssertionError, match=text), bus.faults.check_idempotent():
        colour.publish(bus, OrderPlaced())
    bus.assert_published(Opened, times=1)
