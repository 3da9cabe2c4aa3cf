"""
`record`: a test bus that stands in for an application's own bus.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from eventbus import (
    BusClosedError,
    DuplicateNameError,
    Envelope,
    EventBus,
    HandlerErrors,
    IdempotencyStore,
    Inline,
    InMemoryDeadLetters,
    InMemoryIdempotencyStore,
    PublishCycleError,
    Queued,
    RunningLoopError,
    SubscriptionNotFoundError,
    event,
    fixed,
)
from eventbus._clock import SystemClock
from eventbus.testing import TestBus, VirtualClock, record
from testing_colours import Colour, in_both_colours


@event
class OrderPlaced:
    order_id: str = "A-1"


@event
class InvoiceSent:
    order_id: str = "A-1"


class Shop:
    """
    An application with a bus of its own.
    """

    def __init__(self, bus: EventBus) -> None:
        self.bus = bus
        self.charged: list[str] = []
        self.printed: list[str] = []
        bus.subscribe(OrderPlaced, self.charge, name="charge")
        bus.subscribe(InvoiceSent, self.print, name="print")

    def charge(self, placed: OrderPlaced) -> None:
        self.charged.append(placed.order_id)
        self.bus.publish(InvoiceSent(placed.order_id))

    def print(self, sent: InvoiceSent) -> None:
        self.printed.append(sent.order_id)


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(name="shop") as bus:
        yield bus


@pytest.fixture
def shop(bus: EventBus) -> Shop:
    return Shop(bus)


def ignore(happened: object) -> None:
    """
    Take any event and do nothing.
    """


def state_of(bus: EventBus) -> object:
    """
    Return what must be the same before a recording and after it.
    """
    return (
        bus.subscriptions,
        [each.is_active for each in bus.subscriptions],
        [(each.counters.failed, each.counters.missed) for each in bus.subscriptions],
        bus.stats(),
        list(bus.dead_letters),
        bus.is_closed,
        bus._is_plain,
    )


# -- the same handlers --------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [False, True], ids=["settled", "threads"])
def test_queued_handlers_run_here_or_on_workers(bus: EventBus, threads: bool) -> None:
    """
    In the test's own thread when it drains, and with ``threads=True`` on threads of their own.
    """
    ran_in: list[threading.Thread] = []

    def note(placed: OrderPlaced) -> None:
        ran_in.append(threading.current_thread())

    bus.subscribe(OrderPlaced, note, name="note", delivery=Queued())
    with record(bus, threads=threads) as recorded:
        bus.publish(OrderPlaced())
        recorded.drain()
        recorded.assert_delivered("note", times=1)
    assert [not threads] == [each is threading.current_thread() for each in ran_in]


@in_both_colours
def test_the_same_handlers_run_and_are_recorded(bus: EventBus, colour: Colour) -> None:
    """
    What the block publishes on the application's bus is handled as ever, and recorded.
    """
    taken: list[object] = []

    def take(placed: OrderPlaced) -> None:
        taken.append(placed)

    handler = colour.handler(take)
    bus.subscribe(OrderPlaced, handler, name="take")
    before = state_of(bus)
    with record(bus) as recorded:
        receipt = colour.publish(bus, OrderPlaced("1"))
        colour.publish_many(bus, [OrderPlaced("2"), OrderPlaced("3")])
        recorded.assert_delivered(handler, times=3)
        assert 3 == bus.stats().subscriptions["take"].delivered
    assert receipt.ok
    assert [OrderPlaced("1"), OrderPlaced("2"), OrderPlaced("3")] == taken == recorded.published
    assert before == state_of(bus)
    colour.publish(bus, OrderPlaced("4"))
    assert 4 == len(taken)
    assert 3 == len(recorded.published)


def test_what_handlers_publish_is_recorded(shop: Shop) -> None:
    """
    A handler that publishes on the application's bus publishes on the recording.
    """
    with record(shop.bus) as recorded:
        shop.bus.publish(OrderPlaced())
    assert [OrderPlaced(), InvoiceSent()] == recorded.published
    first, second = recorded.envelopes
    assert first.id == second.causation_id
    assert ["A-1"] == shop.charged == shop.printed


@in_both_colours
def test_the_recording_has_a_clock_of_its_own(bus: EventBus, colour: Colour) -> None:
    """
    Retries inside the block take no real time.
    """

    def fail(placed: OrderPlaced) -> None:
        raise TimeoutError

    handler = colour.handler(fail)
    bus.subscribe(OrderPlaced, handler, name="fail", retry=fixed(attempts=3, delay=3600.0))
    with record(bus) as recorded:
        with pytest.raises(HandlerErrors):
            colour.publish(bus, OrderPlaced())
        assert recorded.clock is bus.clock
        assert 7200.0 == bus.clock.monotonic()
    assert isinstance(bus.clock, SystemClock)
    assert 0 == len(bus.dead_letters)
    recorded.assert_dead_lettered(handler, error=TimeoutError)


def test_two_recordings_can_share_a_clock(bus: EventBus) -> None:
    """
    An application with two buses is recorded on one time.
    """
    clock = VirtualClock()
    with record(bus, clock=clock) as one, EventBus() as other, record(other, clock=clock) as two:
        one.clock.advance(hours=1)
    assert 3600.0 == two.clock.monotonic()


# -- everything is put back ---------------------------------------------------------------------


def test_everything_is_put_back_after_an_exception(shop: Shop) -> None:
    """
    A block that raises leaves nothing behind, and its exception comes out.
    """
    before = state_of(shop.bus)
    recordings: list[TestBus] = []

    def test() -> None:
        with record(shop.bus) as recorded:
            recordings.append(recorded)
            shop.bus.publish(OrderPlaced())
            raise LookupError

    with pytest.raises(LookupError):
        test()
    assert before == state_of(shop.bus)
    assert recordings[0].is_closed
    recordings[0].assert_published(OrderPlaced)


def test_a_recording_is_over_after_its_block(shop: Shop) -> None:
    """
    The records can be read afterwards; the recording itself takes no more events.
    """
    with record(shop.bus) as recorded:
        shop.bus.publish(OrderPlaced())
    with pytest.raises(BusClosedError):
        recorded.publish(OrderPlaced())
    recorded.assert_delivered("charge")


def test_what_is_subscribed_inside_is_gone_afterwards(shop: Shop) -> None:
    """
    A subscription of the block belongs to the recording, whoever made it.
    """
    before = state_of(shop.bus)
    with record(shop.bus) as recorded:

        @shop.bus.on(OrderPlaced, name="inside")
        def take(placed: OrderPlaced) -> None:
            pass

        with pytest.raises(DuplicateNameError, match="'charge' exists"):
            shop.bus.subscribe(OrderPlaced, ignore, name="charge")
        shop.bus.publish(OrderPlaced())
        assert ["charge", "print", "inside"] == [each.name for each in shop.bus.subscriptions]
        called = [each.subscription for each in shop.bus.explain(OrderPlaced()) if each.called]
        assert ["charge", "inside"] == called
    recorded.assert_delivered(take)
    assert before == state_of(shop.bus)


def test_what_is_cancelled_inside_is_back_afterwards(shop: Shop) -> None:
    """
    Cancelling a subscription of the recording does not cancel the application's.
    """
    with record(shop.bus) as recorded:
        shop.bus.subscriptions[0].cancel()
        shop.bus.publish(OrderPlaced("1"))
    recorded.assert_not_delivered("charge")
    shop.bus.publish(OrderPlaced("2"))
    assert ["2"] == shop.charged


@in_both_colours
def test_a_subscription_the_application_holds_is_cancelled_inside_only(
    bus: EventBus, colour: Colour
) -> None:
    """
    Cancelled in the block, it is called there no more, and after the block as ever.
    """
    handler = colour.handler(ignore)
    held = bus.subscribe(OrderPlaced, handler, name="held")
    with record(bus) as recorded:
        assert held.is_active
        held.cancel()
        held.cancel()
        assert not held.is_active
        colour.publish(bus, OrderPlaced())
    recorded.assert_not_delivered("held")
    assert held.is_active
    assert 1 == colour.publish(bus, OrderPlaced()).delivered


@in_both_colours
def test_a_subscription_the_application_holds_is_paused_inside_only(
    bus: EventBus, colour: Colour
) -> None:
    """
    Paused in the block, its queue waits there, and not on the application's bus.
    """
    handler = colour.handler(ignore)
    held = bus.subscribe(OrderPlaced, handler, name="held", delivery=Queued())
    with record(bus) as recorded:
        held.pause()
        assert held.is_paused
        colour.publish(bus, OrderPlaced())
        recorded.settle()
        recorded.assert_not_delivered("held")
        held.resume()
        assert not held.is_paused
        held.pause()
        held.resume()
        recorded.settle()
        recorded.assert_delivered("held", times=1)
    assert not held.is_paused


def test_what_stands_for_nothing_here_is_let_be(shop: Shop) -> None:
    """
    A subscription that a recording leaves out can be cancelled and paused there, to no effect.
    """
    held = shop.bus.subscribe(OrderPlaced, ignore, name="held", delivery=Queued())
    with record(shop.bus, without="held"):
        assert (False, False) == (held.is_active, held.is_paused)
        held.pause()
        held.resume()
        held.cancel()
    assert (True, False) == (held.is_active, held.is_paused)


def test_of_two_recordings_the_inner_one_is_meant(bus: EventBus) -> None:
    """
    In a recording of a recording, the innermost copy is the one that is meant.
    """
    held = bus.subscribe(OrderPlaced, ignore, name="held")
    with record(bus) as outer:
        with record(bus) as inner:
            held.cancel()
            bus.publish(OrderPlaced())
        bus.publish(OrderPlaced())
    inner.assert_not_delivered("held")
    outer.assert_delivered("held", times=1)


def test_a_subscription_that_is_over_stays_over_inside(bus: EventBus) -> None:
    """
    One that was cancelled before the block says nothing about its successor of the same name.
    """
    old = bus.subscribe(OrderPlaced, ignore, name="held")
    old.cancel()
    new = bus.subscribe(OrderPlaced, ignore, name="held")
    with record(bus):
        old.cancel()
        assert (False, True) == (old.is_active, new.is_active)


@in_both_colours
def test_a_once_subscription_is_used_up_inside_only(bus: EventBus, colour: Colour) -> None:
    """
    A ``once`` subscription runs once in each recording, and once outside.
    """
    taken: list[object] = []

    def take(placed: OrderPlaced) -> None:
        taken.append(placed)

    bus.subscribe(OrderPlaced, colour.handler(take), name="take", once=True)
    for number in range(2):
        with record(bus) as recorded:
            colour.publish_many(bus, [OrderPlaced("x"), OrderPlaced("y")])
            recorded.assert_delivered("take", times=1)
        assert number + 1 == len(taken)
    colour.publish_many(bus, [OrderPlaced("x"), OrderPlaced("y")])
    assert 3 == len(taken)


def test_a_weak_subscription_stays_weak(bus: EventBus) -> None:
    """
    A recording delivers to a handler held weakly, and does not keep it alive.
    """

    class Printer:
        def take(self, sent: InvoiceSent) -> None:
            pass

    printers = [Printer()]
    bus.subscribe(InvoiceSent, printers[0].take, name="print", weak=True)
    with record(bus) as recorded:
        bus.publish(InvoiceSent())
        recorded.assert_delivered("print", times=1)
        printers.clear()
        gc.collect()
        bus.publish(InvoiceSent())
        recorded.assert_delivered("print", times=1)
    assert bus.publish(InvoiceSent()).unhandled


def test_a_bus_closed_inside_is_open_afterwards(shop: Shop) -> None:
    """
    An application that closes its bus, as at the end of a ``with`` block, closes the recording.
    """
    with record(shop.bus) as recorded:
        with shop.bus:
            shop.bus.publish(OrderPlaced())
        assert shop.bus.is_closed
        with pytest.raises(BusClosedError):
            shop.bus.publish(OrderPlaced())
    assert 2 == len(recorded.published)
    assert not shop.bus.is_closed
    assert shop.bus.publish(OrderPlaced()).ok


@in_both_colours
def test_the_application_drains_the_recording(bus: EventBus, colour: Colour) -> None:
    """
    Its own drain and close handle what is queued, at once: no worker runs meanwhile.
    """
    seen: list[OrderPlaced] = []
    bus.subscribe(OrderPlaced, colour.handler(seen.append), name="late", delivery=Queued())
    for drain, adrain in ((bus.drain, bus.adrain), (bus.close, bus.aclose)):
        with record(bus):
            colour.publish(bus, OrderPlaced())
            assert (asyncio.run(adrain()) if colour.publishes_async else drain()).ok
        assert [OrderPlaced()] == seen
        seen.clear()


@in_both_colours
def test_what_follows_from_a_redrive_reaches_the_test(bus: EventBus, colour: Colour) -> None:
    """
    Also where the application redrives: its handler has the receipt of what it publishes.
    """

    def invoice(placed: OrderPlaced) -> None:
        bus.publish(InvoiceSent())

    def break_down(sent: InvoiceSent) -> None:
        raise ValueError("out of paper")

    bus.subscribe(OrderPlaced, invoice, name="invoice")
    bus.subscribe(InvoiceSent, break_down, name="printer")
    with record(bus) as recorded:
        recorded.faults.fail("invoice")
        with pytest.raises(HandlerErrors, match="invoice"):
            colour.publish(bus, OrderPlaced())
        with pytest.raises(HandlerErrors, match="what was redriven failed: printer"):
            colour.redrive_all(bus)
        assert ["printer"] == [letter.subscription for letter in bus.dead_letters]


def test_the_bus_is_closed_in_a_loop_as_well(shop: Shop) -> None:
    """
    ``async with`` on the application's bus closes the recording and not the bus.
    """

    async def lifespan() -> None:
        async with shop.bus:
            await shop.bus.apublish(InvoiceSent())

    with record(shop.bus) as recorded:
        asyncio.run(lifespan())
        assert shop.bus.is_closed
    recorded.assert_published(InvoiceSent)
    assert not shop.bus.is_closed


@in_both_colours
def test_dead_letters_of_the_block_are_redriven_in_the_block(bus: EventBus, colour: Colour) -> None:
    """
    An application that looks after its dead letters finds those of the recording.
    """

    def take(placed: OrderPlaced) -> None:
        pass

    bus.subscribe(OrderPlaced, colour.handler(take), name="take")
    with record(bus, errors="collect") as recorded:
        recorded.faults.fail("take")
        assert not colour.publish(bus, OrderPlaced()).ok
        assert 1 == len(bus.dead_letters)
        assert [True] == [receipt.ok for receipt in colour.redrive_all(bus)]
        recorded.assert_delivered("take", times=1)


def test_observers_of_the_block_are_told_of_the_block(shop: Shop) -> None:
    """
    The application's observers are not told of a recording, those of the block are.
    """
    outside: list[object] = []
    inside: list[object] = []
    shop.bus.observe(outside.append)
    with record(shop.bus):
        stop = shop.bus.observe(inside.append)
        shop.bus.publish(InvoiceSent())
        assert 2 == len(inside)
        stop()
        shop.bus.publish(InvoiceSent())
    assert 2 == len(inside)
    assert [] == outside


# -- choosing handlers --------------------------------------------------------------------------


@in_both_colours
def test_nothing_is_delivered_if_so_asked(bus: EventBus, colour: Colour) -> None:
    """
    With ``deliver=False`` events are recorded, and no handler runs, old or new.
    """
    taken: list[object] = []

    def take(placed: OrderPlaced) -> None:
        taken.append(placed)

    bus.subscribe(OrderPlaced, colour.handler(take), name="take", once=True)
    with record(bus, deliver=False) as recorded:
        bus.subscribe(OrderPlaced, colour.handler(take), name="inside")
        receipt = colour.publish(bus, OrderPlaced())
        assert (0, True) == (receipt.delivered, receipt.unhandled)
    recorded.assert_published(OrderPlaced, times=1)
    recorded.assert_not_delivered("take")
    assert [] == taken
    with pytest.raises(AssertionError) as failed:
        recorded.assert_delivered("inside")
    reason = "nothing is delivered while recording with deliver=False"
    assert f"       ✗ not called: {reason}" == str(failed.value).splitlines()[4]


def test_only_some_handlers_are_called(shop: Shop) -> None:
    """
    With ``only=`` the others are left out, and known to be.
    """
    with record(shop.bus, only=["charge"]) as recorded:
        shop.bus.publish(OrderPlaced())
    assert (["A-1"], []) == (shop.charged, shop.printed)
    recorded.assert_not_delivered(shop.print)
    with pytest.raises(AssertionError) as failed:
        recorded.assert_delivered(shop.print)
    reason = "✗ not called: left out of this recording, by only="
    assert reason == str(failed.value).splitlines()[5].strip()


def test_some_handlers_are_not_called(shop: Shop) -> None:
    """
    With ``without=`` the others are called; one alone needs no list.
    """
    with record(shop.bus, without=shop.charge) as recorded:
        shop.bus.publish_many([OrderPlaced(), InvoiceSent()])
    assert ([], ["A-1"]) == (shop.charged, shop.printed)
    recorded.assert_not_delivered(shop.charge)
    with pytest.raises(AssertionError, match="left out of this recording, by without="):
        recorded.assert_delivered(shop.charge)


def test_a_name_left_out_is_free(shop: Shop) -> None:
    """
    A handler of the block can take the place of one left out, by its name.
    """
    with record(shop.bus, without="charge") as recorded:
        shop.bus.subscribe(OrderPlaced, ignore, name="charge")
        shop.bus.publish(OrderPlaced())
    recorded.assert_delivered("charge", times=1)
    assert [] == shop.charged


@pytest.mark.parametrize("option", ["only", "without"])
def test_an_unknown_handler_is_refused(shop: Shop, option: str) -> None:
    """
    A misspelled name would leave the wrong handlers in: it is refused, with those there are.
    """
    before = state_of(shop.bus)
    chosen: Any = {option: ["chrage", "print"]}
    with (
        pytest.raises(SubscriptionNotFoundError, match=r"'chrage'\. Did .*:\n  charge\n  print"),
        record(shop.bus, **chosen),
    ):
        pytest.fail("the block is not entered")
    assert before == state_of(shop.bus)


def test_async_handlers_left_out_block_no_loop(bus: EventBus) -> None:
    """
    In a running loop `publish` refuses async handlers, but not for those left out.
    """

    async def take(placed: OrderPlaced) -> None:
        pass

    async def use(**chosen: Any) -> None:
        with record(bus, **chosen):
            bus.publish(OrderPlaced())

    bus.subscribe(OrderPlaced, take, name="take")
    asyncio.run(use(without=["take"]))
    with pytest.raises(RunningLoopError):
        asyncio.run(use())


# -- failures -----------------------------------------------------------------------------------


def test_failures_reach_the_test(shop: Shop) -> None:
    """
    Like a test bus, a recording raises failures, unless told otherwise.
    """
    with record(shop.bus) as recorded:
        recorded.faults.down("charge")
        with pytest.raises(HandlerErrors):
            shop.bus.publish(OrderPlaced())
    with record(shop.bus, errors="collect") as recorded:
        recorded.faults.down("charge")
        assert not shop.bus.publish(OrderPlaced()).ok


@pytest.mark.parametrize(
    ("raising", "given", "failed"),
    [
        ("collect", None, ["print"]),
        ("raise", None, ["print", "charge"]),
        ("raise", "collect", ["print"]),
        ("collect", "raise", ["print", "charge"]),
    ],
)
def test_a_bus_that_raises_raises_to_its_handlers(
    raising: Any, given: Any, failed: list[str]
) -> None:
    """
    Where the application's handlers get exceptions from publish, they get them recorded.
    """
    shop = Shop(EventBus(errors=raising))
    with ExitStack() as stack:
        recorded = stack.enter_context(record(shop.bus, errors=given))
        recorded.faults.down("print")
        if given != "collect":
            stack.enter_context(pytest.raises(HandlerErrors))
        shop.bus.publish(OrderPlaced())
    assert failed == [each.subscription for each in recorded.failures]


def test_an_idempotence_check_reports_at_the_end_of_the_block(shop: Shop) -> None:
    """
    A check that runs in a recording ends with it.
    """
    numbers = itertools.count()
    shop.bus.subscribe(OrderPlaced, lambda placed: next(numbers), name="count")

    def test() -> None:
        with record(shop.bus) as recorded:
            recorded.faults.check_idempotent()
            shop.bus.publish(OrderPlaced())

    with pytest.raises(AssertionError, match=r"idempotent: .*\n\n  count\n"):
        test()
    assert ["A-1", "A-1"] == shop.charged == shop.printed


# -- settings -----------------------------------------------------------------------------------


def test_settings_of_the_bus_are_kept() -> None:
    """
    Headers, wrap, default retry, fan-out, depth, timings and name are the application's.
    """
    wrapped: list[str] = []

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        wrapped.append(handler.__name__)
        return handler

    bus = EventBus(
        headers=lambda: {"tenant": "acme"},
        wrap=wrap,
        retry=fixed(attempts=2, delay=1.0),
        fanout="concurrent",
        max_depth=3,
        timings=True,
        name="shop",
    )
    envelopes: list[Envelope[Any]] = []

    def take(placed: OrderPlaced, envelope: Envelope[OrderPlaced]) -> None:
        envelopes.append(envelope)

    def turn(sent: InvoiceSent) -> None:
        bus.publish(sent)

    bus.subscribe(OrderPlaced, take, name="take")
    bus.subscribe(InvoiceSent, turn, name="turn")
    with record(bus) as recorded:
        assert 4 == len(wrapped)
        recorded.faults.fail("take")
        bus.publish(OrderPlaced())
        with pytest.raises(PublishCycleError, match="4 deep"):
            bus.publish(InvoiceSent())
        time = bus.stats().subscriptions["take"].time
        assert time is not None
        assert 2 == time.count
    assert [{"tenant": "acme"}] == [each.headers for each in envelopes]
    assert 1 == len(recorded.retries)
    assert "shop" == recorded.name


def test_fan_out_is_kept() -> None:
    """
    On a bus whose handlers run concurrently, they do when recorded.
    """
    bus = EventBus(fanout="concurrent")

    async def use() -> None:
        meeting = asyncio.Barrier(2)

        async def meet(placed: OrderPlaced) -> None:
            await meeting.wait()

        bus.subscribe(OrderPlaced, meet, name="one")
        bus.subscribe(OrderPlaced, meet, name="two")
        with record(bus):
            await bus.apublish(OrderPlaced())

    asyncio.run(asyncio.wait_for(use(), timeout=30.0))


def test_stores_are_new_and_of_the_same_measures() -> None:
    """
    A recording starts with empty stores in memory, of the application's ttl and capacity.
    """
    keys = InMemoryIdempotencyStore(ttl=60.0)
    letters = InMemoryDeadLetters(capacity=1)
    bus = EventBus(idempotency=keys, dead_letters=letters, errors="collect")
    taken: list[object] = []
    bus.subscribe(OrderPlaced, taken.append, name="take", idempotency_key="order_id")
    bus.publish(OrderPlaced())
    with record(bus, errors="collect") as recorded:
        bus.publish(OrderPlaced())
        bus.publish(OrderPlaced())
        recorded.clock.advance(60.0)
        bus.publish(OrderPlaced())
        recorded.faults.down("take")
        bus.publish_many([OrderPlaced("B-2"), OrderPlaced("B-3")])
        assert 1 == len(bus.dead_letters)
    assert 3 == len(taken)
    assert 0 == len(letters)


def test_stores_of_others_are_replaced_by_ours() -> None:
    """
    A store of the application's own is not touched: the recording uses memory.
    """

    class Forbidden:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    store: Any = Forbidden()
    bus = EventBus(idempotency=store, dead_letters=store)
    bus.subscribe(OrderPlaced, ignore, name="take", idempotency_key="order_id")
    with record(bus, errors="collect") as recorded:
        recorded.faults.fail("take")
        bus.publish(OrderPlaced())
        assert 1 == len(bus.dead_letters)


def test_a_subclass_of_a_store_in_memory_is_replaced_by_ours() -> None:
    """
    What a subclass adds to a store is the application's own, and is not asked.
    """

    class Loud(InMemoryIdempotencyStore):
        def claim(self, *arguments: Any, **options: Any) -> Any:
            raise AssertionError(arguments, options)

    store: IdempotencyStore = Loud(ttl=60.0)
    bus = EventBus(idempotency=store)
    bus.subscribe(OrderPlaced, ignore, name="take", idempotency_key="order_id")
    with record(bus) as recorded:
        bus.publish(OrderPlaced())
    recorded.assert_delivered("take")


# -- nested and parallel ------------------------------------------------------------------------


def test_recordings_nest(shop: Shop) -> None:
    """
    The inner recording takes over, with the handlers of the outer one, until it ends.
    """
    with record(shop.bus, without="print") as outer:
        shop.bus.subscribe(OrderPlaced, ignore, name="outer")
        shop.bus.publish(OrderPlaced("1"))
        with record(shop.bus) as inner:
            shop.bus.publish(OrderPlaced("2"))
            assert ["charge", "outer"] == [each.name for each in shop.bus.subscriptions]
        shop.bus.publish(OrderPlaced("3"))
    inner.assert_delivered("outer", times=1)
    orders = [each.order_id for each in outer.published if isinstance(each, OrderPlaced)]
    assert ["1", "3"] == orders
    assert ["charge", "print"] == [each.name for each in shop.bus.subscriptions]


def test_a_test_bus_can_be_recorded() -> None:
    """
    A test bus is a bus: what a recording of it sees, it does not see itself.
    """
    bus = TestBus()
    bus.subscribe(OrderPlaced, ignore, name="take")
    with record(bus) as recorded:
        bus.publish(OrderPlaced())
        assert recorded.clock is bus.clock
        bus.assert_nothing_published()
        bus.close()
    recorded.assert_delivered("take", times=1)
    assert bus.publish(OrderPlaced()).ok


def in_threads(*runs: Callable[[], object]) -> None:
    """
    Run each in a thread of its own, all at the same time, and raise what one raises.
    """
    errors: list[BaseException] = []
    start = threading.Barrier(len(runs))

    def guarded(run: Callable[[], object]) -> None:
        try:
            start.wait(timeout=30.0)
            run()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    assert [] == errors


@in_both_colours
def test_parallel_tests_in_threads_do_not_see_each_other(bus: EventBus, colour: Colour) -> None:
    """
    Each thread's recording has its own events, and a thread that records nothing the bus.
    """
    handled: list[tuple[str, int]] = []

    def take(placed: OrderPlaced) -> None:
        handled.append((placed.order_id, threading.get_ident()))

    bus.subscribe(OrderPlaced, colour.handler(take), name="take")
    real: list[object] = []
    bus.observe(real.append)

    def test(name: str) -> Callable[[], None]:
        def run() -> None:
            with record(bus) as recorded:
                for _ in range(20):
                    colour.publish(bus, OrderPlaced(name))
                assert [OrderPlaced(name)] * 20 == recorded.published
                recorded.assert_delivered("take", times=20)

        return run

    def live() -> None:
        for _ in range(20):
            colour.publish(bus, OrderPlaced("live"))

    in_threads(test("one"), test("two"), test("three"), live)
    assert 80 == len(handled)
    assert {"live"} == {each.envelope.event.order_id for each in real}  # type: ignore[attr-defined]
    assert 40 == len(real)


def test_parallel_tests_in_tasks_do_not_see_each_other(bus: EventBus) -> None:
    """
    Each task's recording has its own events, also across awaits and in tasks it starts.
    """

    async def take(placed: OrderPlaced) -> None:
        await asyncio.sleep(0)

    async def test(name: str) -> None:
        with record(bus) as recorded:
            for _ in range(5):
                await bus.apublish(OrderPlaced(name))
                await asyncio.create_task(bus.apublish(OrderPlaced(name)))
                await asyncio.to_thread(bus.publish, OrderPlaced(name))
            assert [OrderPlaced(name)] * 15 == recorded.published
            recorded.assert_delivered("take", times=15)

    async def use() -> None:
        await asyncio.gather(*(test(str(number)) for number in range(5)))
        await bus.apublish(OrderPlaced("live"))

    bus.subscribe(OrderPlaced, take, name="take")
    asyncio.run(use())
    assert 1 == bus.stats().published


def test_a_thread_of_its_own_context_is_not_recorded(shop: Shop) -> None:
    """
    A thread started by the block goes on with the real bus unless it is given the context.
    """
    with record(shop.bus) as recorded:
        in_threads(lambda: shop.bus.publish(InvoiceSent("live")))
        context = contextvars.copy_context()
        in_threads(lambda: context.run(shop.bus.publish, InvoiceSent("recorded")))
    assert [InvoiceSent("recorded")] == recorded.published
    assert ["live", "recorded"] == shop.printed


def test_a_recording_may_be_a_decorator(shop: Shop) -> None:
    """
    Each call of a function that `record` decorates is a recording of its own.
    """
    seen: list[Mapping[str, Any]] = []

    @record(shop.bus, deliver=False)
    def test() -> None:
        shop.bus.publish(OrderPlaced())
        seen.append(shop.bus.stats().subscriptions)

    test()
    test()
    assert [1, 1] == [each["charge"].missed for each in seen]
    assert [] == shop.charged


def test_a_recording_may_decorate_an_async_function(bus: EventBus) -> None:
    """
    Its end awaits what async handlers have left to do, in the function's own task.
    """
    tasks: list[object] = []

    async def take(placed: OrderPlaced) -> None:
        tasks.append(asyncio.get_running_loop())

    bus.subscribe(OrderPlaced, take, name="take", delivery=Queued())

    @record(bus)
    async def test(order_id: str) -> object:
        await bus.apublish(OrderPlaced(order_id))
        return asyncio.get_running_loop()

    loop = asyncio.run(test("A-1"))
    assert [loop] == tasks
    assert 0 == bus.stats().published


def test_an_async_block_awaits_what_is_left_to_do(bus: EventBus) -> None:
    """
    At the end of ``async with``, queued async handlers run in the test's own task.
    """
    taken: list[str] = []

    async def take(placed: OrderPlaced) -> None:
        await asyncio.sleep(0)
        taken.append(placed.order_id)

    bus.subscribe(OrderPlaced, take, name="take", delivery=Queued())

    async def test() -> None:
        async with record(bus) as recorded:
            await bus.apublish(OrderPlaced())
            assert [] == taken
        recorded.assert_delivered(take)

    asyncio.run(test())
    assert ["A-1"] == taken
    assert 0 == bus.stats().published


def test_an_async_block_passes_on_what_it_raises(shop: Shop) -> None:
    """
    An exception ends the recording, and the application's bus is itself again.
    """

    async def test() -> None:
        async with record(shop.bus):
            await shop.bus.apublish(OrderPlaced())
            raise KeyError("A-1")

    with pytest.raises(KeyError, match="A-1"):
        asyncio.run(test())
    assert shop.bus is shop.bus._stand_in()


def test_a_block_that_leaves_async_handlers_to_do_says_so(bus: EventBus) -> None:
    """
    A plain ``with`` cannot await at its end, and names what can.
    """

    async def take(placed: OrderPlaced) -> None:
        """
        Never called.
        """

    bus.subscribe(OrderPlaced, take, name="take", delivery=Queued())

    async def test() -> None:
        with record(bus):
            await bus.apublish(OrderPlaced())

    with pytest.raises(RunningLoopError, match=r"waits for take.*make it an async with block"):
        asyncio.run(test())
    assert bus is bus._stand_in()


@pytest.mark.parametrize("is_recorded", [False, True])
def test_what_a_block_has_raised_hides_behind_nothing(bus: EventBus, is_recorded: bool) -> None:
    """
    Neither behind async handlers that a plain ``with`` cannot await: that is a note of it.
    """

    async def take(placed: OrderPlaced) -> None:
        """
        Never called.
        """

    bus.subscribe(OrderPlaced, take, name="take", delivery=Queued())

    async def test() -> None:
        with record(bus) if is_recorded else TestBus.like(bus) as recorded:
            if not is_recorded:
                recorded.subscribe(OrderPlaced, take, name="take", delivery=Queued())
            await recorded.apublish(OrderPlaced())
            recorded.assert_delivered("take")

    with pytest.raises(AssertionError, match=r"asettle\(\) handles it") as raised:
        asyncio.run(test())
    [note] = raised.value.__notes__
    assert "what waits for take, which is async, cannot be handled by a call" in note
    assert note.endswith(" Where a with block ends, make it an async with block.")


@pytest.mark.parametrize("is_async", [False, True])
def test_a_recording_that_ends_elsewhere_says_so(bus: EventBus, is_async: bool) -> None:
    """
    Nobody between has known of it, as where a fixture has a task of its own.
    """
    recording = record(bus)

    async def begin() -> TestBus:
        return await recording.__aenter__() if is_async else recording.__enter__()

    async def test() -> None:
        await bus.apublish(OrderPlaced())

    async def end() -> None:
        if is_async:
            await recording.__aexit__(None, None, None)
        else:
            recording.__exit__(None, None, None)

    async def main() -> None:
        recorded = await asyncio.create_task(begin())
        await asyncio.create_task(test())
        with pytest.raises(RuntimeError, match=r"another task or thread.*Enter it in the test"):
            await asyncio.create_task(end())
        recorded.assert_nothing_published()
        assert recorded.is_closed

    asyncio.run(main())
    assert 1 == bus.stats().published
    assert bus is bus._stand_in()


def test_a_recording_delivers_or_does_not(bus: EventBus) -> None:
    """
    What is neither true nor false is refused, and does not deliver by chance.
    """
    given: Any = "no"
    with pytest.raises(TypeError, match=r"deliver= is True or False, not 'no'"):
        record(bus, deliver=given)


@pytest.mark.parametrize("given", ["app", EventBus, None])
def test_what_is_no_bus_is_not_recorded(given: Any) -> None:
    """
    A name or the class is refused at once, and what is wanted is named.
    """
    with pytest.raises(TypeError, match=r"record\(\) takes the bus itself, .*, not "):
        record(given)


@pytest.mark.parametrize("kind", ["queued", "delayed"])
@pytest.mark.parametrize("errors", ["collect", "raise"])
def test_what_fails_in_the_background_reaches_the_test(kind: str, errors: Any) -> None:
    """
    Whatever the application's bus does with what fails in its publishes.
    """
    bus = EventBus(errors=errors)

    def fail(placed: OrderPlaced) -> None:
        raise ValueError("out of paper")

    bus.subscribe(
        OrderPlaced, fail, name="print", delivery=Queued() if kind == "queued" else Inline()
    )
    with ExitStack() as stack:
        recorded = stack.enter_context(record(bus))
        bus.publish(OrderPlaced(), delay=5 if kind == "delayed" else None)
        with pytest.raises(HandlerErrors, match="print"):
            recorded.clock.advance(10)
