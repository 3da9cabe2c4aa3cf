"""
Queued handlers on a test bus: they run when the test says so, in its own thread or task.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventbus import (
    Durable,
    Envelope,
    EventBus,
    HandlerAbortedError,
    HandlerErrors,
    Queued,
    QueueFullError,
    RunningLoopError,
    SubscriptionOptionError,
    current_envelope,
    event,
    fixed,
)
from eventbus.sqlite import SQLiteStore
from eventbus.testing import TestBus, VirtualClock, _stamina, record

tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


@event(key="account")
class Deposited:
    amount: int
    account: str = "a"


@event
class Noted:
    amount: int


class Colour:
    """
    A test that settles by calling, or by awaiting in its own loop.
    """

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async

    def __repr__(self) -> str:
        return "async" if self.is_async else "sync"

    def handler(self, call: Callable[[Any], object]) -> Callable[[Any], Any]:
        if not self.is_async:
            return call

        async def acall(event: Any) -> None:
            await asyncio.sleep(0)
            call(event)

        return acall

    def run(self, *steps: Callable[[], Any]) -> None:
        """
        Take the steps; what they return is awaited in one loop, where there is one.
        """

        async def run() -> None:
            for step in steps:
                await step()

        if self.is_async:
            asyncio.run(run())
        else:
            for step in steps:
                step()

    def settle(self, bus: TestBus, **options: Any) -> Callable[[], Any]:
        return lambda: (bus.asettle if self.is_async else bus.settle)(**options)

    def publish(self, bus: TestBus, *events: object) -> Callable[[], Any]:
        return lambda: (bus.apublish_many if self.is_async else bus.publish_many)(events)


def fail(happened: object) -> None:
    raise ValueError("out of paper")


both = pytest.mark.parametrize("colour", [Colour(False), Colour(True)], ids=repr)


@both
def test_nothing_queued_runs_before_the_test_settles(colour: Colour) -> None:
    """
    The publish returns with the handler uncalled; settling calls it.
    """
    with TestBus() as bus:
        seen: list[int] = []
        bus.subscribe(
            Deposited, colour.handler(lambda e: seen.append(e.amount)), delivery=Queued(), name="x"
        )
        bus_state: list[list[int]] = []

        def look() -> Any:
            bus_state.append(list(seen))
            return asyncio.sleep(0)

        colour.run(
            colour.publish(bus, Deposited(1), Deposited(2)),
            look if colour.is_async else lambda: bus_state.append(list(seen)),
            colour.settle(bus),
        )
        assert [[]] == bus_state
        assert [1, 2] == seen


@both
def test_what_queued_handlers_publish_is_settled_too(colour: Colour) -> None:
    """
    One call of settle follows a chain to its end, and cause and effect are in order.
    """
    with TestBus() as bus:
        causes: list[str | None] = []

        def note(noted: Noted) -> None:
            envelope = current_envelope()
            assert envelope is not None
            causes.append(envelope.causation_id)

        if colour.is_async:

            async def adeposit(happened: Deposited) -> None:
                await bus.apublish(Noted(happened.amount))

            bus.subscribe(Deposited, adeposit, delivery=Queued())
        else:
            bus.subscribe(
                Deposited, lambda e: bus.publish(Noted(e.amount)), delivery=Queued(), name="x"
            )
        bus.subscribe(Noted, colour.handler(note), delivery=Queued(), name="note")
        colour.run(colour.publish(bus, Deposited(1)), colour.settle(bus))
        assert [bus.envelopes[0].id] == causes
        bus.assert_delivered("note", times=1)


@both
def test_queues_take_turns(colour: Colour) -> None:
    """
    Each queue handles one event before any handles its second.
    """
    with TestBus() as bus:
        seen: list[str] = []
        for name in ("a", "b"):
            bus.subscribe(
                Deposited,
                colour.handler(lambda e, n=name: seen.append(f"{n}{e.amount}")),
                delivery=Queued(),
                name=name,
            )
        colour.run(colour.publish(bus, Deposited(1), Deposited(2)), colour.settle(bus))
        assert ["a1", "b1", "a2", "b2"] == seen


def test_advancing_the_clock_runs_what_becomes_due_at_its_own_time() -> None:
    """
    A retry runs at the moment it was due, not at the end of the leap.
    """
    with TestBus() as bus:
        moments: list[float] = []

        @bus.on(Deposited, delivery=Queued(), retry=fixed(attempts=3, delay=30.0))
        def fail_twice(happened: Deposited) -> None:
            moments.append(bus.clock.monotonic())
            if len(moments) < 3:
                raise ConnectionError

        bus.publish(Deposited(1))
        bus.clock.advance(hours=1)
        assert [0.0, 30.0, 60.0] == moments
        assert 3_600.0 == bus.clock.monotonic()


@both
def test_a_successor_waits_for_the_retry_of_its_key_and_others_do_not(colour: Colour) -> None:
    """
    Event 2 of a key is not handled before event 1 is done; another key's is.
    """
    with TestBus() as bus:
        seen: list[tuple[str, int]] = []

        def fail_once(happened: Deposited) -> None:
            seen.append((happened.account, happened.amount))
            if seen == [("a", 1)]:
                raise ConnectionError

        bus.subscribe(
            Deposited,
            colour.handler(fail_once),
            delivery=Queued(),
            retry=fixed(attempts=2, delay=30.0),
            name="x",
        )
        colour.run(
            colour.publish(bus, Deposited(1), Deposited(2), Deposited(3, "b")),
            colour.settle(bus),
        )
        assert [("a", 1), ("b", 3)] == seen
        in_a_minute = datetime.fromtimestamp(bus.clock.time(), UTC) + timedelta(minutes=1)
        colour.run(colour.settle(bus, until=in_a_minute))
        assert [("a", 1), ("b", 3), ("a", 1), ("a", 2)] == seen
        assert 60.0 == bus.clock.monotonic()


@both
def test_settling_until_a_condition_holds_moves_the_clock_no_further(colour: Colour) -> None:
    """
    It goes from one thing due to the next, and stops when the condition holds.
    """
    with TestBus() as bus:
        calls: list[int] = []

        def fail(happened: Deposited) -> None:
            calls.append(1)
            if len(calls) < 4:
                raise ConnectionError

        bus.subscribe(
            Deposited,
            colour.handler(fail),
            delivery=Queued(),
            retry=fixed(attempts=9, delay=10.0),
            name="x",
        )
        colour.run(
            colour.publish(bus, Deposited(1)),
            colour.settle(bus, until=lambda: len(calls) == 3),
        )
        assert 20.0 == bus.clock.monotonic()
        colour.run(colour.settle(bus, until=lambda: len(calls) == 4))
        assert 30.0 == bus.clock.monotonic()


@both
def test_settling_until_what_never_comes_fails_at_once(colour: Colour) -> None:
    """
    When nothing more is due and the condition does not hold, the test is told.
    """
    with TestBus() as bus, pytest.raises(AssertionError, match="nothing more is due"):
        colour.run(colour.settle(bus, until=lambda: False))


@both
@pytest.mark.parametrize("until", [5, timedelta(minutes=1)])
def test_settling_until_what_is_no_moment_is_refused(colour: Colour, until: Any) -> None:
    """
    Seconds are what the clock is advanced by, and the error says so.
    """
    with TestBus() as bus, pytest.raises(TypeError, match=r"not .*bus\.clock\.advance\(seconds=5"):
        colour.run(colour.settle(bus, until=until))


def test_a_durable_subscription_is_told_how_a_test_bus_has_a_store() -> None:
    """
    The refusal names what a test needs, and not what an application does.
    """
    refused = pytest.raises(SubscriptionOptionError, match=r"TestBus\(durable=True\) .*memory")
    with TestBus() as bus, refused:
        bus.subscribe(Deposited, print, delivery=Durable())


@both
def test_failures_reach_the_test_when_it_settles(colour: Colour) -> None:
    """
    Everything runs first; then one group holds every failure, and the letters are kept.
    """
    with TestBus() as bus:

        def fail(happened: Deposited) -> None:
            raise ValueError(happened.amount)

        bus.subscribe(Deposited, colour.handler(fail), delivery=Queued(), name="x")
        with pytest.raises(HandlerErrors) as raised:
            colour.run(colour.publish(bus, Deposited(1), Deposited(2)), colour.settle(bus))
        assert [1, 2] == [error.args[0] for error in raised.value.exceptions]
        bus.assert_dead_lettered("x", times=2)


def test_failures_on_the_way_of_the_clock_are_raised_when_it_has_arrived() -> None:
    """
    The clock shows the moment it was advanced to, whatever failed on the way.
    """
    with TestBus() as bus:

        @bus.on(Deposited, delivery=Queued(), retry=fixed(attempts=2, delay=10.0))
        def fail(happened: Deposited) -> None:
            raise ValueError

        bus.publish(Deposited(1))
        with pytest.raises(HandlerErrors):
            bus.clock.advance(60.0)
        assert 60.0 == bus.clock.monotonic()


def test_collected_failures_are_not_raised() -> None:
    """
    With ``errors="collect"`` a test reads them from the records.
    """
    with TestBus(errors="collect") as bus:

        @bus.on(Deposited, delivery=Queued())
        def fail(happened: Deposited) -> None:
            raise ValueError

        bus.publish(Deposited(1))
        bus.clock.advance(1.0)
        assert [ValueError] == [type(each.exception) for each in bus.failures]


def test_a_handler_sees_its_publishers_context() -> None:
    """
    The context variables are those of the publish, however much later the handler runs.
    """
    with TestBus() as bus:
        seen: list[str] = []

        @bus.on(Deposited, delivery=Queued())
        def look(happened: Deposited) -> None:
            seen.append(tenant.get())

        token = tenant.set("acme")
        bus.publish(Deposited(1))
        tenant.reset(token)
        bus.settle()
        assert ["acme"] == seen


def test_settling_in_a_loop_is_refused_where_a_handler_needs_the_loop() -> None:
    """
    The error names the handler and ``asettle``; nothing has run.
    """
    seen: list[int] = []

    async def main() -> None:
        async with TestBus() as bus:

            @bus.on(Deposited, delivery=Queued())
            async def handle(happened: Deposited) -> None:
                seen.append(happened.amount)

            await bus.apublish(Deposited(1))
            with pytest.raises(RunningLoopError, match="asettle"):
                bus.settle()
            bus.clock.advance(1.0)
            assert [] == seen

    asyncio.run(main())
    assert [1] == seen


def test_settling_in_a_loop_is_refused_where_it_leads_to_what_needs_the_loop() -> None:
    """
    A sync handler that publishes for an async one is handled, and the other waits.
    """
    with TestBus() as bus:
        seen: list[int] = []

        @bus.on(delivery=Queued(), name="afterwards")
        async def ahandle(noted: Noted) -> None:
            seen.append(noted.amount)

        bus.subscribe(
            Deposited, lambda e: bus.publish(Noted(e.amount)), delivery=Queued(), name="first"
        )

        async def main() -> None:
            bus.publish(Deposited(1))
            with pytest.raises(RunningLoopError, match="what waits for afterwards"):
                bus.settle()
            assert [] == seen
            await bus.asettle()
            assert [1] == seen

        asyncio.run(main())


def test_a_settle_inside_of_a_handler_leaves_the_rest_to_the_one_around_it() -> None:
    """
    Handlers never run inside each other because of it.
    """
    with TestBus() as bus:
        seen: list[str] = []

        @bus.on(Deposited, delivery=Queued())
        def handle(happened: Deposited) -> None:
            seen.append(f"begin {happened.amount}")
            bus.settle()
            bus.clock.advance(1.0)
            seen.append(f"end {happened.amount}")

        bus.publish_many([Deposited(1), Deposited(2)])
        bus.settle()
        assert ["begin 1", "end 1", "begin 2", "end 2"] == seen


@both
def test_a_full_queue_that_blocks_handles_one_to_make_room(colour: Colour) -> None:
    """
    Where workers would have made room meanwhile, the publish does.
    """
    with TestBus() as bus:
        seen: list[int] = []
        bus.subscribe(
            Noted,
            colour.handler(lambda e: seen.append(e.amount)),
            delivery=Queued(capacity=2),
            name="x",
        )
        colour.run(colour.publish(bus, *map(Noted, range(5))))
        assert [0, 1, 2] == seen
        colour.run(colour.settle(bus))
        assert [0, 1, 2, 3, 4] == seen


def test_a_full_queue_that_is_paused_refuses_instead_of_waiting_for_ever() -> None:
    """
    The publish fails for that subscription, and says why.
    """
    with TestBus(errors="collect") as bus:
        subscription = bus.subscribe(
            Noted, lambda e: None, delivery=Queued(capacity=1), name="paused"
        )
        subscription.pause()
        assert bus.publish(Noted(1)).ok
        receipt = bus.publish(Noted(2))
        assert [QueueFullError] == [type(each.exception) for each in receipt.failures]
        assert "paused" in str(receipt.failures[0].exception)


@both
@pytest.mark.parametrize("way", ["settle", "drain", "close"])
def test_a_rate_is_kept_on_the_virtual_clock(colour: Colour, way: str) -> None:
    """
    Each event is handled when its rate allows it, and none is left over.
    """
    times: list[float] = []
    bus = TestBus()
    bus.subscribe(
        Noted,
        colour.handler(lambda _: times.append(bus.clock.monotonic())),
        delivery=Queued(),
        max_rate=2.0,
        name="x",
    )
    ways: dict[str, Callable[[], Any]] = {
        "settle": colour.settle(bus, until=lambda: len(times) == 4),
        "drain": bus.adrain if colour.is_async else bus.drain,
        "close": bus.aclose if colour.is_async else bus.close,
    }
    noted = [Noted(number) for number in range(4)]
    colour.run(colour.publish(bus, *noted), colour.settle(bus), ways[way])
    assert [0.0, 0.5, 1.0, 1.5] == times
    assert 0 == bus.stats().subscriptions["x"].undelivered


def test_advancing_the_clock_hands_out_at_the_rate() -> None:
    """
    What a rate holds back becomes due on the way of the clock, each at its own time.
    """
    with TestBus() as bus:
        times: list[float] = []

        @bus.on(Noted, delivery=Queued(), max_rate=2.0)
        def take(noted: Noted) -> None:
            times.append(bus.clock.monotonic())

        bus.publish_many([Noted(number) for number in range(3)])
        bus.settle()
        bus.clock.advance(5.0)
        assert [0.0, 0.5, 1.0] == times


@both
def test_draining_and_closing_settle_and_wait_in_virtual_time(colour: Colour) -> None:
    """
    Retries within the time granted are waited for; the end of the block handles the rest.
    """
    seen: list[int] = []

    def fail_once(happened: Noted) -> None:
        seen.append(happened.amount)
        if len(seen) == 1:
            raise ConnectionError

    async def main() -> None:
        async with TestBus() as bus:
            bus.subscribe(
                Noted,
                colour.handler(fail_once),
                delivery=Queued(),
                retry=fixed(attempts=2, delay=5.0),
                name="x",
            )
            await bus.apublish(Noted(1))
            report = await bus.adrain(1.0)
            assert (False, {"x": 1}) == (report.ok, report.left)
            assert (await bus.adrain(10.0)).ok
            await bus.apublish(Noted(2))

    def sync() -> None:
        with TestBus() as bus:
            bus.subscribe(
                Noted, fail_once, delivery=Queued(), retry=fixed(attempts=2, delay=5.0), name="x"
            )
            bus.publish(Noted(1))
            report = bus.drain(1.0)
            assert (False, {"x": 1}) == (report.ok, report.left)
            assert bus.drain(10.0).ok
            bus.publish(Noted(2))

    if colour.is_async:
        asyncio.run(main())
    else:
        sync()
    assert [1, 1, 2] == seen


def test_what_a_block_raised_goes_before_what_fails_when_it_is_closed() -> None:
    """
    The test's own failure is the news.
    """

    def test() -> None:
        with TestBus() as bus:
            bus.subscribe(Deposited, lambda _: 1 / 0, delivery=Queued(), name="fails")
            bus.publish(Deposited(1))
            raise KeyError

    with pytest.raises(KeyError):
        test()


def test_what_ends_a_test_leaves_the_event_in_its_queue() -> None:
    """
    What is no `Exception` passes through a handler that settles in the test's thread.
    """
    with TestBus() as bus:
        calls: list[int] = []

        @bus.on(Deposited, delivery=Queued())
        def interrupt(happened: Deposited) -> None:
            calls.append(happened.amount)
            if len(calls) == 1:
                pytest.fail("said the handler")

        bus.publish(Deposited(1))
        with pytest.raises(pytest.fail.Exception, match="said the handler"):
            bus.settle()
        bus.settle()
        assert [1, 1] == calls


@pytest.mark.parametrize("is_own", [False, True])
def test_a_cancellation_that_nobody_else_wants_fails_the_attempt(is_own: bool) -> None:
    """
    A handler that is cancelled by itself, or by what it awaits, does not cancel the test.
    """

    async def handle(deposited: Deposited) -> None:
        future = asyncio.get_running_loop().create_future()
        task = asyncio.current_task()
        assert task is not None
        task.cancel() if is_own else future.cancel()
        await future

    async def main() -> None:
        async with TestBus(errors="collect") as bus:
            bus.subscribe(Deposited, handle, name="take", delivery=Queued())
            await bus.apublish(Deposited(1))
            await bus.asettle()
            assert 1 == bus.assert_dead_lettered("take", error=HandlerAbortedError).attempts
            task = asyncio.current_task()
            assert task is not None
            assert 0 == task.cancelling()

    asyncio.run(main())


def test_a_test_that_wants_threads_gets_them() -> None:
    """
    Then handlers run elsewhere, at once, and draining waits for them.
    """
    with TestBus(threads=True) as bus:
        threads: list[threading.Thread] = []

        @bus.on(Deposited, delivery=Queued())
        def handle(happened: Deposited) -> None:
            threads.append(threading.current_thread())

        bus.publish(Deposited(1))
        assert bus.drain(20.0).ok
        assert [False] == [each is threading.current_thread() for each in threads]
        bus.settle()


def test_a_recorded_bus_settles_for_the_real_one() -> None:
    """
    In the block, what is queued waits for the record's settle; the real queues see nothing.
    """
    bus, seen = EventBus(), []

    @bus.on(Deposited, delivery=Queued())
    def handle(happened: Deposited) -> None:
        seen.append(happened.amount)

    with record(bus) as recorded:
        bus.publish(Deposited(1))
        assert [] == seen
        recorded.settle()
        assert [1] == seen
        recorded.assert_delivered(handle, times=1)
    assert bus.close().ok
    assert 0 == bus.stats().published


def test_nothing_is_queued_where_nothing_is_delivered() -> None:
    """
    With ``deliver=False`` a queued handler is passed by, too.
    """
    bus = EventBus()

    @bus.on(Deposited, delivery=Queued())
    def handle(happened: Deposited) -> None: ...

    with record(bus, deliver=False) as recorded:
        receipt = bus.publish(Deposited(1))
        assert (0, 0) == (receipt.queued, receipt.delivered)
        recorded.settle()
        recorded.assert_not_delivered(handle)


@both
def test_the_idempotence_check_covers_queued_handlers(colour: Colour) -> None:
    """
    A queued handler whose second run publishes something else is reported by name.
    """
    with TestBus() as bus:
        count = iter(range(100))

        if colour.is_async:

            async def handle(happened: Deposited) -> None:
                await bus.apublish(Noted(next(count)))
        else:

            def handle(happened: Deposited) -> None:
                bus.publish(Noted(next(count)))

        bus.subscribe(Deposited, handle, delivery=Queued(), name="counts")
        with (
            pytest.raises(AssertionError, match=r"counts[\s\S]*amount: 1 instead of 0"),
            bus.faults.check_idempotent(),
        ):
            colour.run(colour.publish(bus, Deposited(1)), colour.settle(bus))


@both
def test_an_envelope_made_in_a_queued_handler_tells_of_the_publish(colour: Colour) -> None:
    """
    Its time is when the event was published, however much later something asks for it.
    """
    clock = VirtualClock()
    with EventBus(clock=clock) as bus:
        seen: list[Envelope] = []

        def look(happened: Noted, envelope: Envelope) -> None:
            seen.append(envelope)

        async def alook(happened: Noted, envelope: Envelope) -> None:
            seen.append(envelope)

        subscription = bus.subscribe(
            Noted, alook if colour.is_async else look, delivery=Queued(), name="look"
        )
        subscription.pause()
        published = clock.time()
        bus.publish(Noted(1))
        clock.advance(60.0)
        subscription.resume()
        assert bus.drain(20.0).ok
        assert [(published, False)] == [(e.time.timestamp(), e.is_late) for e in seen]


def test_an_async_test_that_wants_threads_gets_them() -> None:
    """
    Turning the clock handles nothing then; draining and closing await the workers.
    """
    threads: list[threading.Thread] = []

    def handle(happened: Deposited) -> None:
        threads.append(threading.current_thread())

    async def main() -> None:
        async with TestBus(threads=True) as bus:
            bus.subscribe(Deposited, handle, delivery=Queued(), name="handle")
            await bus.apublish(Deposited(1))
            bus.clock.advance(1.0)
            assert (await bus.adrain(20.0)).ok
            assert 1 == len(threads)
            await bus.apublish(Deposited(2))

    asyncio.run(main())
    assert [False, False] == [each is threading.current_thread() for each in threads]


@both
def test_a_queue_that_is_paused_on_the_way_hands_out_nothing_more(colour: Colour) -> None:
    """
    A handler that pauses another subscription is in time for what has not begun.
    """
    with TestBus() as bus:
        seen: list[str] = []

        def stop(happened: Deposited) -> None:
            seen.append("first")
            second.pause()

        bus.subscribe(Deposited, colour.handler(stop), delivery=Queued(), name="first")
        second = bus.subscribe(
            Deposited,
            colour.handler(lambda e: seen.append("second")),
            delivery=Queued(),
            name="second",
        )
        colour.run(colour.publish(bus, Deposited(1)), colour.settle(bus))
        assert ["first"] == seen
        second.resume()
        colour.run(colour.settle(bus))
        assert ["first", "second"] == seen


def test_settling_in_a_loop_handles_what_needs_none() -> None:
    """
    Sync handlers are called by ``settle`` in a thread with a running event loop, too.
    """
    seen: list[int] = []

    async def main() -> None:
        async with TestBus() as bus:
            bus.subscribe(
                Deposited, lambda e: seen.append(e.amount), delivery=Queued(), name="handle"
            )
            await bus.apublish(Deposited(1))
            bus.settle()
            assert [1] == seen

    asyncio.run(main())


@pytest.mark.parametrize("is_entered", [False, True], ids=["fixture", "async with"])
def test_a_delayed_publish_is_awaited_in_the_tests_own_task(is_entered: bool) -> None:
    """
    Advancing the clock leaves it to asettle, wherever the bus was made; a call is refused.
    """
    bus = TestBus()
    loops: list[object] = []

    @bus.on(name="ahandle")
    async def ahandle(noted: Noted) -> None:
        loops.append(asyncio.get_running_loop())

    async def main() -> object:
        await bus.apublish(Noted(1), delay=5.0)
        bus.clock.advance(6.0)
        assert [] == loops
        with pytest.raises(RunningLoopError, match="waits for ahandle, which is async"):
            bus.settle()
        await bus.asettle()
        return asyncio.get_running_loop()

    async def entering() -> object:
        async with bus:
            return await main()

    expected = asyncio.run(entering() if is_entered else main())
    assert [expected] == loops
    bus.close()


@pytest.mark.parametrize("is_entered", [False, True], ids=["fixture", "async with"])
def test_a_delayed_publish_to_sync_handlers_goes_with_the_clock(is_entered: bool) -> None:
    """
    Advancing the clock in a loop publishes what needs none, at its own time.
    """
    bus = TestBus()
    times: list[float] = []

    @bus.on(Noted)
    def handle(noted: Noted) -> None:
        times.append(bus.clock.monotonic())

    async def main() -> None:
        bus.publish(Noted(1), delay=5.0)
        bus.clock.advance(6.0)

    async def entering() -> None:
        async with bus:
            await main()

    asyncio.run(entering() if is_entered else main())
    assert [5.0] == times
    bus.close()


def test_a_restart_forgets_what_waits_in_queues_and_what_is_due_later() -> None:
    """
    Its subscriptions go on with what is published afterwards.
    """
    with TestBus() as bus:
        seen: list[int] = []
        bus.subscribe(Deposited, lambda e: seen.append(e.amount), delivery=Queued(), name="handle")
        bus.publish(Deposited(1))
        bus.publish(Deposited(2), delay=5.0)
        bus.restart()
        bus.publish(Deposited(3))
        bus.settle(until=lambda: seen != [])
        assert [3] == seen
        assert 0 == bus.stats().scheduled


# -- what has no end ---------------------------------------------------------------------------


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Have a test of what never ends end soon.
    """
    monkeypatch.setattr(_stamina, "_SPELL", 50)


def polling(bus: TestBus, colour: Colour, seen: list[int]) -> Any:
    """
    Subscribe a handler that publishes its own event, as long as it is called.
    """

    def poll(happened: Noted) -> None:
        seen.append(happened.amount)
        bus.publish(Noted(happened.amount + 1))

    return bus.subscribe(Noted, colour.handler(poll), delivery=Queued(), name="poll")


@both
@pytest.mark.usefixtures("patient")
def test_settling_what_has_no_end_says_who_goes_on(colour: Colour) -> None:
    """
    A queue that is as long as before, however much of it was handled, fails the test.
    """
    bus, seen = TestBus(), list[int]()
    polling(bus, colour, seen)
    bus.publish(Noted(0))
    with pytest.raises(AssertionError, match=r"poll has handled 100 events.*1 more wait.*delay="):
        colour.run(colour.settle(bus))
    assert 100 == len(seen)


@pytest.mark.usefixtures("patient")
def test_advancing_the_clock_over_what_has_no_end_says_so() -> None:
    """
    The clock, too, finds out that it would never arrive.
    """
    bus, seen = TestBus(), list[int]()
    polling(bus, Colour(False), seen)
    bus.publish(Noted(0))
    with pytest.raises(AssertionError, match="poll has handled 100 events"):
        bus.clock.advance(1.0)


@both
@pytest.mark.usefixtures("patient")
def test_a_condition_is_asked_for_also_where_there_is_no_end(colour: Colour) -> None:
    """
    It is asked each time that every queue has handed out one event.
    """
    bus, seen = TestBus(), list[int]()
    polling(bus, colour, seen)
    bus.publish(Noted(0))
    colour.run(colour.settle(bus, until=lambda: len(seen) == 3))
    assert [0, 1, 2] == seen
    bus.assert_published(Noted, times=4)


@both
@pytest.mark.usefixtures("patient")
def test_draining_and_closing_give_up_what_has_no_end(colour: Colour) -> None:
    """
    They come back with what is left, as where time goes by; without a timeout they cannot.
    """
    bus, seen, reports = TestBus(), list[int](), list[Any]()
    polling(bus, colour, seen)
    bus.publish(Noted(0))

    def drain(timeout: float | None) -> Callable[[], Any]:
        def call() -> Any:
            if not colour.is_async:
                return reports.append(bus.drain(timeout))

            async def adrain() -> None:
                reports.append(await bus.adrain(timeout))

            return adrain()

        return call

    def close() -> Any:
        return bus.aclose() if colour.is_async else bus.close()

    with pytest.raises(AssertionError, match="poll has handled 100 events"):
        colour.run(drain(None))
    colour.run(drain(0.5), close)
    assert [{"poll": 1}] == [dict(each.left) for each in reports]
    assert ["undelivered"] == [each.reason for each in bus.dead_letters]


@pytest.mark.usefixtures("patient")
def test_a_long_backlog_is_no_endless_one() -> None:
    """
    However long it is, and whatever it leads to, it is worked off.
    """
    with TestBus() as bus:
        seen: list[int] = []

        @bus.on(Deposited, delivery=Queued())
        def hand_on(happened: Deposited) -> None:
            bus.publish_many([Noted(happened.amount), Noted(-happened.amount)])

        bus.subscribe(Noted, lambda e: seen.append(e.amount), delivery=Queued(), name="note")
        bus.publish_many([Deposited(amount, str(amount)) for amount in range(1000)])
        bus.settle()
        assert 2000 == len(seen)


@pytest.mark.usefixtures("patient")
def test_what_is_left_to_others_is_no_backlog() -> None:
    """
    What has no end is found out as soon, whatever waits in paused queues or for asettle.
    """
    bus, seen = TestBus(), list[int]()
    polling(bus, Colour(False), seen)

    async def never(happened: Deposited) -> None: ...

    bus.subscribe(Deposited, never, delivery=Queued(), name="never")
    bus.subscribe(Deposited, print, delivery=Queued(), name="paused").pause()
    bus.publish_many([Deposited(amount, str(amount)) for amount in range(500)])
    bus.publish(Noted(0))

    async def main() -> None:
        with pytest.raises(AssertionError, match=r"poll has handled 100 events.*1 more wait"):
            bus.clock.advance(1.0)

    asyncio.run(main())


# -- failures in the background ------------------------------------------------------------------


@pytest.mark.parametrize("way", ["drain", "close", "settle", "adrain", "aclose", "asettle"])
@pytest.mark.parametrize("kind", ["queued", "durable", "delayed"])
def test_what_fails_in_a_thread_reaches_the_test_when_it_waits(way: str, kind: str) -> None:
    """
    Never the publish, which is over by then or is not: it depends.
    """
    bus = TestBus(threads=True, durable=True)
    modes = {"queued": Queued(), "durable": Durable()}
    if kind in modes:
        bus.subscribe(Deposited, fail, delivery=modes[kind], name="printer")
    else:
        bus.subscribe(Deposited, fail, name="printer")
    failed = threading.Event()
    bus.observe(lambda occurrence: failed.set() if type(occurrence).__name__ == "Failed" else None)
    bus.start()
    for amount in range(3):
        failed.clear()
        bus.publish(Deposited(amount), delay=1.0 if kind == "delayed" else None)
        bus.clock.advance(1.0)
        assert failed.wait(20.0)
    with pytest.raises(HandlerErrors, match="3 handlers of what was queued failed") as raised:
        asyncio.run(getattr(bus, way)()) if way.startswith("a") else getattr(bus, way)()
    assert ["printer"] * 3 == [each.subscription for each in raised.value.failures]
    assert bus.close().ok


@both
@pytest.mark.parametrize("errors", [None, "raise"])
def test_what_fails_in_the_background_is_raised_by_who_has_it_handled(
    colour: Colour, errors: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Also on a bus whose publishes raise: of these, nothing is raised a second time.
    """
    bus = TestBus(errors=errors)
    caught: list[HandlerErrors] = []

    def hand_on(happened: Deposited) -> None:
        try:
            bus.publish(Noted(happened.amount))
        except HandlerErrors as error:
            caught.append(error)

    bus.subscribe(Noted, fail, name="inline")
    bus.subscribe(Deposited, colour.handler(hand_on), delivery=Queued(), name="hand on")
    bus.subscribe(Deposited, colour.handler(fail), delivery=Queued(), name="queued")
    bus.publish(Deposited(1))
    with pytest.raises(HandlerErrors) as raised:
        colour.run(colour.settle(bus))
    names = [each.subscription for each in raised.value.failures]
    assert (["queued"] if errors else ["inline", "queued"]) == names
    assert (errors == "raise") == bool(caught)
    assert [] == caplog.records
    assert bus.close().ok


@pytest.mark.parametrize("errors", [None, "raise"])
@pytest.mark.parametrize("copies", [1, 2])
def test_what_fails_after_a_delay_is_raised_when_the_clock_has_arrived(
    errors: Any, copies: int
) -> None:
    """
    Also on a bus whose publishes raise, and by the name of each who failed.
    """
    bus = TestBus(errors=errors)
    bus.subscribe(Deposited, fail, name="printer")
    bus.faults.duplicate(Deposited, times=copies)
    bus.publish(Deposited(1), delay=5.0)
    with pytest.raises(HandlerErrors) as raised:
        bus.clock.advance(10.0)
    assert ["printer"] * copies == [each.subscription for each in raised.value.failures]
    assert 10.0 == bus.clock.monotonic()


@pytest.mark.parametrize("errors", [None, "raise"])
@pytest.mark.parametrize("threads", [False, True])
def test_what_fails_after_the_commit_of_a_handler_reaches_the_test(
    errors: Any, threads: bool, tmp_path: Path
) -> None:
    """
    To the handler it cannot be raised any more, whatever its publishes do.
    """
    store = SQLiteStore(tmp_path / "app.db")
    bus = TestBus(errors=errors, threads=threads, store=store)
    bus.subscribe(Noted, fail, name="printer")

    @bus.on(Deposited, delivery=Durable(), name="hand on")
    def hand_on(happened: Deposited, connection: sqlite3.Connection) -> None:
        bus.publish(Noted(happened.amount))

    bus.publish(Deposited(1))
    bus.start()
    with pytest.raises(HandlerErrors, match="1 handler of what was queued failed: printer"):
        bus.drain(20.0)
    bus.assert_delivered(hand_on)
    assert bus.close().ok


def test_a_queued_handler_that_publishes_gets_its_receipt() -> None:
    """
    As on the real bus, and the test gets the failure.
    """
    bus, receipts = TestBus(), list[bool]()
    bus.subscribe(Noted, fail, name="printer")

    @bus.on(Deposited, delivery=Queued(), name="hand on")
    def hand_on(happened: Deposited) -> None:
        receipts.append(bus.publish(Noted(happened.amount)).ok)

    bus.publish(Deposited(1))
    with pytest.raises(HandlerErrors, match="1 handler of what was queued failed: printer"):
        bus.settle()
    assert [False] == receipts
    bus.assert_delivered(hand_on)


def test_a_task_that_outlives_its_queued_handler_fails_by_itself() -> None:
    """
    Nobody else would hear of what fails there.
    """
    bus, raised = TestBus(), list[bool]()
    bus.subscribe(Noted, fail, name="printer")
    tasks: list[asyncio.Task[None]] = []

    async def outlive() -> None:
        await asyncio.sleep(0)
        try:
            await bus.apublish(Noted(1))
        except HandlerErrors:
            raised.append(True)

    @bus.on(Deposited, delivery=Queued())
    async def spawn(happened: Deposited) -> None:
        tasks.append(asyncio.create_task(outlive()))

    async def main() -> None:
        await bus.apublish(Deposited(1))
        await bus.asettle()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert [True] == raised


def test_what_a_handler_has_settled_or_waited_for_is_raised_to_the_test() -> None:
    """
    Not to the handler, whose publish it is that ends last.
    """
    bus = TestBus()
    bus.subscribe(Noted, fail, delivery=Queued(), name="printer")

    @bus.on(Deposited, name="advance")
    def advance(happened: Deposited) -> None:
        bus.publish(Noted(1))
        bus.settle()
        bus.publish(Noted(2))
        bus.clock.advance(1.0)

    with pytest.raises(HandlerErrors, match=r"it led to failed: printer \(Noted\), printer"):
        bus.publish(Deposited(1))
    bus.assert_delivered(advance)


def test_a_room_made_by_a_publish_that_raises_leaves_the_failure_to_the_end() -> None:
    """
    It is none of that publish's, and it is not lost.
    """
    bus = TestBus(errors="raise")
    bus.subscribe(Deposited, fail, delivery=Queued(capacity=1), name="printer")
    bus.publish(Deposited(1))
    bus.publish(Deposited(2))
    assert 1 == len(bus.failures)
    with pytest.raises(HandlerErrors, match="2 handlers of what was queued failed"):
        bus.close()


def test_what_is_lost_with_its_workers_is_known_to_the_test() -> None:
    """
    A job that several workers have ended with has failed, whoever finds that out.
    """
    bus = TestBus()

    @bus.on(Deposited, delivery=Queued(), name="printer")
    def end(happened: Deposited) -> None:
        raise KeyboardInterrupt

    bus.publish(Deposited(1))
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            bus.settle()
    with pytest.raises(HandlerErrors, match="printer"):
        bus.settle()


@both
def test_an_attempt_does_not_see_what_the_one_before_has_set(colour: Colour) -> None:
    """
    Each has the publisher's context variables, as on the real bus.
    """
    with TestBus() as bus:
        seen: list[str] = []

        def look(happened: Deposited) -> None:
            seen.append(tenant.get())
            tenant.set("another")
            if len(seen) < 2:
                raise ValueError

        bus.subscribe(
            Deposited,
            colour.handler(look),
            delivery=Queued(),
            retry=fixed(attempts=2, delay=1.0),
            name="look",
        )
        token = tenant.set("acme")
        bus.publish(Deposited(1))
        tenant.reset(token)
        colour.run(colour.settle(bus, until=lambda: len(seen) == 2))
        assert ["acme", "acme"] == seen
