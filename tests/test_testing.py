"""
The test bus: the real bus with a virtual clock, a recorder, and failures that reach the test.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import eventbus.testing
from eventbus import (
    BusClosedError,
    Envelope,
    EventBus,
    HandlerErrors,
    HandlerTimeoutError,
    InMemoryDeadLetters,
    current_envelope,
    event,
    exponential,
    fixed,
)
from eventbus.testing import TestBus, VirtualClock
from testing_colours import Colour, in_both_colours

pytest_plugins = ["pytester"]


@event
class OrderPlaced:
    order_id: str = "A-1"


@event
class InvoiceSent:
    order_id: str = "A-1"


@pytest.fixture
def bus() -> TestBus:
    return TestBus()


def ignore(happened: object) -> None:
    """
    Take any event and do nothing.
    """


def break_down(happened: object) -> None:
    raise ValueError("the printer is on fire")


# -- what kind of bus it is ---------------------------------------------------------------------


def test_the_front_door_is_a_sorted_list() -> None:
    """
    The room's ``__all__`` is sorted, and each of its names can be imported.
    """
    names = eventbus.testing.__all__
    assert sorted(names) == list(names)
    assert [] == [name for name in names if not hasattr(eventbus.testing, name)]


def test_it_needs_no_test_framework() -> None:
    """
    Importing the room imports neither pytest nor asyncio.
    """
    code = "import sys, eventbus.testing; print({'pytest', 'asyncio'} & set(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "set()" == ran.stdout.strip()


def test_it_is_a_bus(bus: TestBus) -> None:
    """
    A test bus can be given wherever a bus is asked for.
    """
    assert isinstance(bus, EventBus)
    assert "<EventBus 'test bus': 0 subscriptions>" == repr(bus)


def test_it_is_no_class_of_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A module that imports a test bus has it neither collected nor warned of by pytest.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        "from eventbus.testing import TestBus\n"
        "class TestBusOfOurs(TestBus): pass\n"
        "def test_it(): assert TestBus() is not None\n"
    )
    pytester.runpytest_inprocess("-W", "error").assert_outcomes(passed=1)


def test_a_bus_of_its_own_forgets_the_others(bus: TestBus) -> None:
    """
    Two test buses share nothing.
    """
    bus.publish(OrderPlaced())
    assert [] == TestBus().published


def test_closing_it_is_closing_a_bus() -> None:
    """
    After its ``with`` block a test bus takes no events, and its records are still there.
    """
    with TestBus() as bus:
        bus.publish(OrderPlaced())
    with pytest.raises(BusClosedError):
        bus.publish(OrderPlaced())
    assert [OrderPlaced()] == bus.published


def test_it_is_closed_in_a_loop_as_well() -> None:
    """
    ``async with`` closes a test bus.
    """

    async def use() -> TestBus:
        async with TestBus() as bus:
            await bus.apublish(OrderPlaced())
        return bus

    assert asyncio.run(use()).is_closed


# -- time -----------------------------------------------------------------------------------------


@in_both_colours
def test_retries_take_no_real_time(bus: TestBus, colour: Colour) -> None:
    """
    The waits between attempts move the virtual clock, and nothing else.
    """
    attempts: list[float] = []

    def fail_twice(placed: OrderPlaced) -> None:
        attempts.append(bus.clock.monotonic())
        if len(attempts) < 3:
            raise TimeoutError

    bus.subscribe(OrderPlaced, colour.handler(fail_twice), retry=fixed(attempts=3, delay=3600.0))
    colour.publish(bus, OrderPlaced())
    assert [0.0, 3600.0, 7200.0] == attempts
    assert [1, 2] == [each.attempt for each in bus.retries]


@in_both_colours
def test_waiting_for_a_handler_ends_with_it(bus: TestBus, colour: Colour) -> None:
    """
    A publish whose handler takes three seconds is over after three virtual seconds.
    """

    def take_three_seconds(placed: OrderPlaced) -> None:
        bus.clock.sleep(3.0)

    bus.subscribe(OrderPlaced, colour.handler(take_three_seconds), name="slow")
    colour.publish(bus, OrderPlaced())
    assert 3.0 == bus.clock.monotonic()
    bus.assert_delivered("slow", times=1)


@pytest.mark.parametrize("publishes_async", [False, True])
def test_a_handler_that_waits_too_long_is_reported_with_all_the_rest(publishes_async: bool) -> None:
    """
    A timeout passes on the virtual clock, and a failed assertion lists every record.
    """
    bus = TestBus(errors="collect")

    async def take_an_hour(placed: OrderPlaced) -> None:
        await bus.clock.asleep(3600.0)

    bus.subscribe(OrderPlaced, take_an_hour, timeout=2.0, name="slow")
    bus.subscribe(InvoiceSent, ignore)
    colour = Colour(publishes_async, True)
    colour.publish(bus, InvoiceSent())
    colour.publish(bus, OrderPlaced())
    assert 2.0 == bus.clock.monotonic()
    assert isinstance(bus.failures[0].exception, HandlerTimeoutError)
    with pytest.raises(AssertionError) as failed:
        bus.assert_delivered("slow")
    assert [
        "slow took no OrderPlaced.",
        "",
        "Published:",
        "  1. InvoiceSent(order_id='A-1')",
        "  2. OrderPlaced(order_id='A-1')",
        "       ✗ failed: HandlerTimeoutError('slow ran longer than its timeout of 2 s on "
        "OrderPlaced')",
    ] == str(failed.value).splitlines()


def test_the_clock_is_advanced_by_the_test(bus: TestBus) -> None:
    """
    A day can pass between two lines of a test, and idempotency keys notice.
    """
    taken: list[str] = []

    @bus.on(OrderPlaced, idempotency_key="order_id")
    def take(placed: OrderPlaced) -> None:
        taken.append(placed.order_id)

    bus.publish(OrderPlaced())
    bus.clock.advance(hours=23)
    bus.publish(OrderPlaced())
    assert ["A-1"] == taken
    bus.clock.advance(hours=2)
    bus.publish(OrderPlaced())
    assert ["A-1", "A-1"] == taken


def test_a_clock_can_be_shared() -> None:
    """
    A virtual clock given to the constructor is the bus's clock.
    """
    clock = VirtualClock()
    assert clock is TestBus(clock=clock).clock


def test_two_runs_make_the_same_ids_and_times() -> None:
    """
    Envelopes of a test bus are the same in every run.
    """

    def run() -> list[tuple[str, Any]]:
        bus = TestBus()
        bus.publish(OrderPlaced())
        return [(each.id, each.time) for each in bus.envelopes]

    assert run() == run()


# -- failures -------------------------------------------------------------------------------------


@in_both_colours
def test_failures_reach_the_test(bus: TestBus, colour: Colour) -> None:
    """
    By default a failure is raised when all handlers have run, and kept as a dead letter.
    """
    bus.subscribe(OrderPlaced, colour.handler(break_down), name="printer")
    bus.subscribe(OrderPlaced, colour.handler(ignore), name="other")
    with pytest.raises(HandlerErrors, match="1 handler of OrderPlaced failed: printer") as raised:
        colour.publish(bus, OrderPlaced())
    assert ["printer"] == [each.subscription for each in raised.value.failures]
    assert ["other"] == [each.subscription for each in bus.delivered]
    assert ["printer"] == [each.subscription for each in bus.failures]
    assert ["printer"] == [letter.subscription for letter in bus.dead_letters]
    assert 1 == len(bus.dead_letters)


@in_both_colours
def test_a_failure_of_what_an_event_led_to_is_not_blamed_on_it(
    bus: TestBus, colour: Colour
) -> None:
    """
    Where the outermost publish raises for those below it, each failure names its own event.
    """

    def invoice(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent(placed.order_id))

    bus.subscribe(OrderPlaced, invoice, name="invoice")
    bus.subscribe(InvoiceSent, break_down, name="printer")
    blamed = r"^1 handler of OrderPlaced and what it led to failed: printer \(InvoiceSent\)"
    with pytest.raises(HandlerErrors, match=blamed) as raised:
        colour.publish(bus, OrderPlaced("A-1"))
    [error] = raised.value.exceptions
    expected = "in subscription 'printer' of InvoiceSent(order_id='A-1'), after 1 attempt"
    assert [expected] == error.__notes__
    bus.subscribe(OrderPlaced, break_down, name="check")
    blamed = r"led to failed: printer \(InvoiceSent\), check \(OrderPlaced\)"
    with pytest.raises(HandlerErrors, match=blamed):
        colour.publish(bus, OrderPlaced("A-2"))


@in_both_colours
def test_failures_of_many_events_are_raised_after_the_last(bus: TestBus, colour: Colour) -> None:
    """
    Publishing many events raises once, with the failures of all of them.
    """
    bus.subscribe(OrderPlaced, colour.handler(break_down), name="printer")
    with pytest.raises(HandlerErrors, match="2 handlers of 3 events failed"):
        colour.publish_many(bus, iter([OrderPlaced("1"), InvoiceSent(), OrderPlaced("2")]))
    assert 3 == len(bus.published)
    assert 2 == len(bus.dead_letters)


@in_both_colours
def test_a_publishing_handler_gets_a_receipt_as_on_the_real_bus(colour: Colour) -> None:
    """
    The outermost publish raises; a handler in between goes on as it does in production.
    """
    bus = TestBus()
    receipts: list[Any] = []

    def invoice(placed: OrderPlaced) -> None:
        receipts.append(bus.publish(InvoiceSent(placed.order_id)))

    bus.subscribe(OrderPlaced, invoice, name="invoice")
    bus.subscribe(InvoiceSent, break_down, name="printer")
    with pytest.raises(HandlerErrors) as raised:
        colour.publish(bus, OrderPlaced())
    assert ["printer"] == [each.subscription for each in raised.value.failures]
    assert [False] == [receipt.ok for receipt in receipts]
    bus.assert_delivered("invoice", times=1)
    assert 1 == len(bus.dead_letters)


def test_errors_can_be_raised_to_handlers_as_well() -> None:
    """
    With ``errors="raise"`` a nested publish raises to its handler, as on such a real bus.
    """
    bus = TestBus(errors="raise")

    @bus.on(OrderPlaced, name="invoice")
    def invoice(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent(placed.order_id))

    bus.subscribe(InvoiceSent, break_down, name="printer")
    with pytest.raises(HandlerErrors) as raised:
        bus.publish(OrderPlaced())
    assert ["invoice"] == [each.subscription for each in raised.value.failures]
    assert ["printer", "invoice"] == [each.subscription for each in bus.failures]


@pytest.mark.parametrize(("errors", "logged"), [(None, 0), ("raise", 0), ("collect", 1)])
def test_what_is_raised_is_not_logged(
    errors: Any, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A failure is raised or logged, never both.
    """
    bus = TestBus(errors=errors)
    bus.subscribe(OrderPlaced, break_down)
    try:
        receipt = bus.publish(OrderPlaced())
    except HandlerErrors:
        assert errors != "collect"
    else:
        assert not receipt.ok
    assert logged == len([each for each in caplog.records if each.levelno == logging.ERROR])


@in_both_colours
def test_a_redrive_returns_its_failure(bus: TestBus, colour: Colour) -> None:
    """
    A redrive returns what fails in it, and raises what fails in what it led to.
    """

    def invoice(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent(placed.order_id))

    bus.subscribe(OrderPlaced, invoice, name="invoice")
    bus.faults.fail("invoice", times=2)
    with pytest.raises(HandlerErrors):
        colour.publish(bus, OrderPlaced())
    assert [False] == [receipt.ok for receipt in colour.redrive_all(bus)]
    bus.subscribe(InvoiceSent, break_down, name="printer")
    with pytest.raises(HandlerErrors, match="1 handler of what was redriven failed: printer"):
        colour.redrive_all(bus)
    bus.assert_delivered("invoice", times=1)


@in_both_colours
def test_failures_at_the_end_of_a_deferred_block_reach_the_test(
    bus: TestBus, colour: Colour
) -> None:
    """
    The end of the block raises them, once all that has waited is delivered.
    """
    bus.subscribe(OrderPlaced, colour.handler(break_down), name="printer")

    async def defer() -> None:
        async with bus.deferred():
            await bus.apublish(OrderPlaced("1"))
            await bus.apublish(OrderPlaced("2"))

    def test() -> None:
        if colour.publishes_async:
            return asyncio.run(defer())
        with bus.deferred():
            bus.publish_many([OrderPlaced("1"), OrderPlaced("2")])

    with pytest.raises(HandlerErrors, match=r"was deferred failed: printer \(OrderPlaced\), "):
        test()
    assert 2 == len(bus.dead_letters)


def test_what_outlives_its_handler_fails_by_itself(bus: TestBus) -> None:
    """
    A task that publishes after its handler has returned gets the failures of that publish.
    """
    tasks: list[asyncio.Task[Any]] = []

    async def start(placed: OrderPlaced) -> None:
        tasks.append(asyncio.create_task(later()))

    async def later() -> None:
        with pytest.raises(HandlerErrors):
            await bus.apublish(InvoiceSent())

    async def use() -> None:
        await bus.apublish(OrderPlaced())
        await asyncio.gather(*tasks)

    bus.subscribe(OrderPlaced, start)
    bus.subscribe(InvoiceSent, break_down, name="printer")
    asyncio.run(use())
    assert 1 == len(bus.failures)


def test_a_handler_of_a_real_bus_gets_the_failures(bus: TestBus) -> None:
    """
    Where the outermost publish is a real bus's, which does not raise, the test bus does.
    """
    real = EventBus(errors="raise")
    real.subscribe(OrderPlaced, lambda placed: bus.publish(InvoiceSent()), name="real")
    bus.subscribe(InvoiceSent, break_down, name="printer")
    with pytest.raises(HandlerErrors, match="failed: real"):
        real.publish(OrderPlaced())


# -- records --------------------------------------------------------------------------------------


@in_both_colours
def test_everything_is_recorded(bus: TestBus, colour: Colour) -> None:
    """
    What is published, delivered, turned away or unhandled is kept in order.
    """

    def take(placed: OrderPlaced) -> None:
        pass

    handler = colour.handler(take)
    bus.subscribe(OrderPlaced, handler, name="take", idempotency_key="order_id")
    receipts = colour.publish_many(bus, [OrderPlaced("1"), OrderPlaced("1"), InvoiceSent("2")])
    assert [OrderPlaced("1"), OrderPlaced("1"), InvoiceSent("2")] == bus.published
    assert [receipt.envelope for receipt in receipts] == bus.envelopes
    [taken] = bus.delivered
    assert (OrderPlaced("1"), "take", 1) == (taken.event, taken.subscription, taken.attempt)
    assert handler is taken.handler
    assert receipts[0].envelope is taken.envelope
    assert [("take", "1")] == [(each.subscription, each.key) for each in bus.duplicates]
    assert [InvoiceSent("2")] == bus.unhandled


def test_records_are_copies(bus: TestBus) -> None:
    """
    A list of records is the test's own: what it does to it changes nothing.
    """
    bus.publish(OrderPlaced())
    bus.published.clear()
    assert [OrderPlaced()] == bus.published


def test_clearing_forgets_what_happened_and_nothing_else(bus: TestBus) -> None:
    """
    Records and dead letters go; subscriptions, idempotency keys and the clock stay.
    """
    bus.subscribe(OrderPlaced, ignore, name="once", idempotency_key="order_id")
    printer = bus.subscribe(OrderPlaced, break_down, name="printer")
    with pytest.raises(HandlerErrors):
        bus.publish(OrderPlaced())
    printer.cancel()
    bus.clock.advance(1.0)
    bus.clear()
    assert [] == bus.published == bus.delivered == bus.failures == bus.envelopes
    assert 0 == len(bus.dead_letters)
    bus.publish(OrderPlaced())
    assert ["once"] == [each.subscription for each in bus.duplicates]
    assert 1.0 == bus.clock.monotonic()


def test_a_used_up_subscription_is_recorded_with_its_handler(bus: TestBus) -> None:
    """
    A ``once`` subscription is gone when its event is delivered, and still known by name.
    """
    bus.subscribe(OrderPlaced, ignore, name="first", once=True)
    bus.publish_many([OrderPlaced("1"), OrderPlaced("2")])
    assert [ignore] == [each.handler for each in bus.delivered]
    bus.assert_delivered("first", times=1)


def test_the_recorder_does_not_keep_a_weak_handler_alive(bus: TestBus) -> None:
    """
    A handler held weakly can go, and its record says so.
    """

    class Printer:
        def take(self, placed: OrderPlaced) -> None:
            pass

    printers = [Printer()]
    bus.subscribe(OrderPlaced, printers[0].take, name="printer", weak=True)
    bus.publish(OrderPlaced("1"))
    printers.clear()
    bus.publish(OrderPlaced("2"))
    assert [OrderPlaced("1")] == [each.event for each in bus.delivered]
    assert [OrderPlaced("2")] == bus.unhandled


def test_observers_of_the_test_are_told_as_well() -> None:
    """
    ``observers=`` and `observe` work as on every bus.
    """
    told: list[str] = []
    bus = TestBus(observers=[lambda occurrence: told.append(type(occurrence).__name__)])
    bus.publish(OrderPlaced())
    assert ["Published", "Unhandled"] == told


def test_settings_of_the_real_bus_are_taken() -> None:
    """
    What the real bus takes, the test bus passes on to it.
    """
    letters = InMemoryDeadLetters(capacity=1)
    bus = TestBus(
        headers=lambda: {"tenant": "acme"},
        retry=exponential(attempts=2),
        dead_letters=letters,
        max_depth=2,
        timings=True,
        name="shop",
    )
    bus.subscribe(OrderPlaced, break_down)
    with pytest.raises(HandlerErrors, match="failed"):
        bus.publish(OrderPlaced())
    assert letters is bus.dead_letters
    assert [2] == [letter.attempts for letter in letters]
    assert {"tenant": "acme"} == bus.envelopes[0].headers
    assert "shop" == bus.name


def test_handlers_run_as_on_the_real_bus(bus: TestBus) -> None:
    """
    Envelopes, wrap hooks and a publisher's context reach the handler.
    """
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[object] = []

    def trace(handler: Any) -> Any:
        seen.append(handler.__name__)
        return handler

    @bus.on(OrderPlaced, wrap=trace)
    def take(placed: OrderPlaced, envelope: Envelope[OrderPlaced]) -> None:
        seen.extend([tenant.get(), envelope is current_envelope()])

    tenant.set("acme")
    bus.publish(OrderPlaced())
    assert ["acme", True] == seen[1:]


def test_a_wrap_hook_sees_the_handlers_name(bus: TestBus) -> None:
    """
    What stands between a hook and its handler answers to the handler's name.
    """
    names: list[str] = []

    def trace(handler: Any) -> Any:
        names.append(handler.__qualname__)
        return handler

    bus.subscribe(object, ignore, wrap=trace)
    assert ["ignore"] == names


def test_what_other_threads_publish_is_recorded(bus: TestBus) -> None:
    """
    All threads that use a test bus are recorded, each with its own handler runs.
    """
    bus.subscribe(OrderPlaced, ignore, name="take")
    threads = [
        threading.Thread(target=bus.publish, args=(OrderPlaced(str(number)),))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {str(number) for number in range(8)} == {each.order_id for each in bus.published}
    assert 8 == len(bus.delivered)


def test_no_file_of_the_room_is_long() -> None:
    """
    Each file of the room is read in one sitting.
    """
    room = Path(eventbus.testing.__file__).parent
    lengths = {
        path.name: path.read_text(encoding="utf-8").count("\n") for path in room.glob("*.py")
    }
    assert {} == {name: length for name, length in lengths.items() if length > 350}
