"""
The behaviours that mature systems of this kind are tested for, told as a user would.

Each runs in both colours where the colour could make a difference: ``publish`` and
``subscribe`` are then given by the fixture of that name.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from abc import ABC
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec
import pydantic
import pytest

from eventbus import (
    Attempt,
    BusClosedError,
    DuplicateNameError,
    Envelope,
    EventBus,
    GiveUp,
    HandlerErrors,
    HandlerTimeoutError,
    InMemoryDeadLetters,
    InMemoryIdempotencyStore,
    NotAnEventError,
    PublishCycleError,
    Receipt,
    RetryAfter,
    RunningLoopError,
    current_envelope,
    event,
    exponential,
    fixed,
)
from eventbus.instrumentation import DeadLettered, Failed, Published, Unhandled
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


@event
class B:
    n: int = 0


@event
class C:
    n: int = 0


Publish = Callable[..., Receipt]


@pytest.fixture(params=["sync", "async"])
def colour(request: pytest.FixtureRequest) -> str:
    """
    Run the test once in each colour.
    """
    return str(request.param)


@pytest.fixture
def publish(colour: str) -> Publish:
    """
    Publish from plain code, or from a coroutine in a loop of its own.
    """

    def run(bus: EventBus, happened: object, **options: Any) -> Receipt:
        if colour == "sync":
            return bus.publish(happened, **options)
        return asyncio.run(bus.apublish(happened, **options))

    return run


@pytest.fixture
def dyed(colour: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Make a sync function a handler of the colour under test.
    """

    def dye(handler: Callable[..., Any]) -> Callable[..., Any]:
        if colour == "sync":
            return handler

        async def ahandler(happened: Any) -> None:
            await asyncio.sleep(0)
            handler(happened)

        return ahandler

    return dye


def quiet() -> EventBus:
    return EventBus(clock=VirtualClock())


def raising(error: BaseException, calls: list[int] | None = None) -> Callable[[Any], None]:
    def handler(happened: Any) -> None:
        if calls is not None:
            calls.append(len(calls) + 1)
        raise error

    return handler


def test_a_failing_handler_leaves_its_neighbours_alone(publish: Publish, dyed: Any) -> None:
    """
    Of three handlers of which the second raises, the others run and the receipt tells.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, dyed(lambda happened: seen.append(1)), name="first")
    bus.subscribe(A, dyed(raising(ValueError("no"))), name="second")
    bus.subscribe(A, dyed(lambda happened: seen.append(3)), name="third")

    receipt = publish(bus, A())

    assert [1, 3] == seen
    assert ["second"] == [failure.subscription for failure in receipt.failures]
    assert 2 == receipt.delivered


def test_a_raising_bus_raises_all_failures_at_once(publish: Publish, dyed: Any) -> None:
    """
    With errors="raise" the publisher gets one group with every failure, after all ran.
    """
    bus, seen = EventBus(errors="raise", clock=VirtualClock()), []
    bus.subscribe(A, dyed(raising(ValueError("one"))), name="one")
    bus.subscribe(A, dyed(raising(KeyError("two"))), name="two")
    bus.subscribe(A, dyed(lambda happened: seen.append(3)), name="three")

    with pytest.raises(HandlerErrors, match="2 handlers of A failed: one, two") as caught:
        publish(bus, A())

    assert [3] == seen
    assert ["one", "two"] == [failure.subscription for failure in caught.value.failures]
    assert 2 == len(bus.dead_letters)


def test_changes_during_a_dispatch_follow_the_snapshot_rule(publish: Publish, dyed: Any) -> None:
    """
    Who subscribes during a dispatch misses that event; who is cancelled is not called.
    """
    bus, seen = quiet(), []

    def a(happened: A) -> None:
        seen.append("a")
        if second.is_active:
            second.cancel()
            bus.subscribe(A, dyed(lambda happened: seen.append("c")), name="c")

    bus.subscribe(A, dyed(a), name="a")
    second = bus.subscribe(A, dyed(lambda happened: seen.append("b")), name="b")

    publish(bus, A())
    assert ["a"] == seen
    publish(bus, A())
    assert ["a", "a", "c"] == seen


def test_one_handler_twice_needs_two_names() -> None:
    """
    A name that is taken is refused, naming the first; under two names both are called.
    """
    bus, seen = quiet(), []

    def handler(happened: A) -> None:
        seen.append(happened)

    first = bus.subscribe(A, handler)
    with pytest.raises(DuplicateNameError, match="handler") as caught:
        bus.subscribe(A, handler)
    assert caught.value.first is first
    second = bus.subscribe(A, handler, name="second")
    bus.publish(A())
    assert 2 == len(seen)
    second.cancel()
    second.cancel()
    bus.publish(A())
    assert 3 == len(seen)


def test_each_matching_handler_runs_once(publish: Publish, dyed: Any) -> None:
    """
    Handlers of a base class, an abstract base class and object each get a subtype once.
    """

    class Billable(ABC):  # noqa: B024 - a virtual base class
        pass

    @event
    class Special(A):
        pass

    Billable.register(Special)
    bus, seen = quiet(), []
    for kind in (A, Billable, object, A | Special):
        bus.subscribe(kind, dyed(lambda h, k=kind: seen.append(k)), name=str(kind))

    publish(bus, Special())

    assert [A, Billable, object, A | Special] == seen


def test_sync_handlers_are_done_when_publish_returns_wherever_it_is_called() -> None:
    """
    From plain code, a loop and a worker thread, sync and async handlers all finish.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, lambda happened: seen.append("sync"), name="sync")

    async def later(happened: A) -> None:
        await asyncio.sleep(0)
        seen.append("async")

    bus.subscribe(A, later)

    async def in_a_loop() -> None:
        await bus.apublish(A())
        await asyncio.to_thread(bus.publish, A())

    bus.publish(A())
    asyncio.run(in_a_loop())
    worker = threading.Thread(target=bus.publish, args=(A(),))
    worker.start()
    worker.join(timeout=10)
    assert 4 * ["sync", "async"] == seen
    bus.close()


def test_publish_refuses_to_block_a_loop_before_any_handler_ran() -> None:
    """
    With a loop running, an async handler is refused by an error naming it and apublish.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, lambda happened: seen.append(1), name="early", priority=1)

    async def needs_the_loop(happened: A) -> None: ...

    bus.subscribe(A, needs_the_loop)

    async def main() -> None:
        with pytest.raises(RunningLoopError, match=r"needs_the_loop.*apublish"):
            bus.publish(A())
        with pytest.raises(RunningLoopError):
            bus.publish_many([A()])

    asyncio.run(main())
    assert [] == seen


def test_an_unhandled_event_is_seen_and_no_error(publish: Publish) -> None:
    """
    It shows in receipt, statistics and observers; a raising observer changes nothing.
    """
    occurrences: list[object] = []

    def broken(occurrence: object) -> None:
        raise RuntimeError("observer")

    bus = EventBus(observers=[broken, occurrences.append], clock=VirtualClock())
    receipt = publish(bus, A())
    assert receipt.unhandled
    assert receipt.ok
    assert 1 == bus.stats().unhandled
    assert [Published, Unhandled] == [type(each) for each in occurrences]


def test_a_raising_observer_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """
    The first exception of an observer is logged, the others are not.
    """

    def broken(occurrence: object) -> None:
        raise RuntimeError("observer")

    bus = EventBus(observers=[broken], clock=VirtualClock())
    bus.publish(A())
    bus.publish(A())
    assert 1 == len([each for each in caplog.records if "observer" in each.getMessage()])


def test_an_awaitable_that_fails_later_fails_the_delivery(publish: Publish) -> None:
    """
    A sync-looking handler that returns an awaitable is done when that is, or failed.
    """
    bus, seen = quiet(), []

    async def work(fails: bool) -> None:
        await asyncio.sleep(0)
        seen.append(fails)
        if fails:
            raise ValueError("later")

    bus.subscribe(A, lambda happened: work(bool(happened.n)), name="returns an awaitable")
    assert publish(bus, A(0)).ok
    receipt = publish(bus, A(1))
    assert [False, True] == seen
    assert isinstance(receipt.failures[0].exception, ValueError)
    bus.close()


def test_an_awaitable_that_cannot_be_waited_for_fails_with_the_cure() -> None:
    """
    In publish with a loop running, an unexpected awaitable fails that delivery alone.
    """
    bus = quiet()

    async def work() -> None: ...

    bus.subscribe(A, lambda happened: work(), name="surprise")

    async def main() -> Receipt:
        return bus.publish(A())

    receipt = asyncio.run(main())
    assert isinstance(receipt.failures[0].exception, RunningLoopError)


@pytest.mark.parametrize("nested", ["sync", "async", "task", "to_thread", "copied context"])
def test_correlation_and_causation_follow_every_hop(nested: str) -> None:
    """
    A→B→C share a correlation id, and each names its cause, whatever the hop.
    """
    bus = quiet()
    seen: dict[type, Envelope[Any]] = {}
    hops: list[asyncio.Task[Any]] = []

    async def hop(happened: object) -> None:
        if nested == "sync":
            bus.publish(happened)
        elif nested == "async":
            await bus.apublish(happened)
        elif nested == "task":
            hops.append(asyncio.create_task(bus.apublish(happened)))  # type: ignore[arg-type]
        elif nested == "to_thread":
            await asyncio.to_thread(bus.publish, happened)
        else:
            loop, context = asyncio.get_running_loop(), copy_context()
            await loop.run_in_executor(None, context.run, bus.publish, happened)

    bus.publish(C())  # not the first one of this thread

    @bus.on(A)
    async def on_a(happened: A) -> None:
        await hop(B())

    if nested in ("async", "task"):

        @bus.on(B)
        async def on_b(happened: B) -> None:
            await hop(C())
    else:

        @bus.on(B)
        def on_b_plain(happened: B) -> None:
            bus.publish(C())

    @bus.on(A | B | C)
    def note(happened: object, envelope: Envelope[Any]) -> None:
        seen[type(happened)] = envelope

    async def main() -> None:
        await bus.apublish(A())
        for task in hops:
            await task

    asyncio.run(main())
    a, b, c = seen[A], seen[B], seen[C]
    assert a.correlation_id == b.correlation_id == c.correlation_id == a.id
    assert [None, a.id, b.id] == [a.causation_id, b.causation_id, c.causation_id]
    bus.close()


def test_threads_with_copied_contexts_never_mix_their_causes() -> None:
    """
    Two threads that share a copied context and publish at once see their own causes.
    """
    bus = quiet()
    bus.publish(C())  # not the first one of this thread
    both = threading.Barrier(2, timeout=10)
    causes: list[tuple[str, str | None]] = []

    @bus.on(A)
    def on_a(happened: A, envelope: Envelope[A]) -> None:
        both.wait()
        causes.append((envelope.id, bus.publish(B(happened.n)).envelope.causation_id))
        both.wait()

    contexts = [copy_context(), copy_context()]
    with ThreadPoolExecutor(2) as pool:
        roots = [pool.submit(each.run, bus.publish, A(n)) for n, each in enumerate(contexts)]
        assert [None, None] == [each.result(10).envelope.causation_id for each in roots]
    assert all(own == cause for own, cause in causes)


def test_an_always_failing_handler_is_called_n_times_and_buried(
    publish: Publish, dyed: Any
) -> None:
    """
    With n attempts it is called exactly n times, numbered 1 to n, then dead-lettered.
    """
    bus, calls = quiet(), []
    bus.subscribe(
        A, dyed(raising(ValueError("x"), calls)), name="h", retry=fixed(attempts=4, delay=9)
    )
    receipt = publish(bus, A())
    assert [1, 2, 3, 4] == calls
    assert 4 == receipt.failures[0].attempts
    [letter] = bus.dead_letters
    assert [1, 2, 3, 4] == [each.number for each in letter.failures]
    assert 27.0 == (letter.last_failure - letter.first_failure).total_seconds()


def test_a_dead_letter_tells_the_whole_story(publish: Publish, dyed: Any) -> None:
    """
    It holds event, handler, key, count, error type, message, traceback and both times.
    """
    bus = quiet()
    bus.subscribe(A, dyed(raising(KeyError("gone"))), name="h", idempotency_key="n")
    publish(bus, A(7))
    [letter] = bus.dead_letters
    assert (A(7), "h", "7", 1) == (
        letter.event,
        letter.subscription,
        letter.idempotency_key,
        letter.attempts,
    )
    assert ("KeyError", "'gone'") == (letter.error_type, letter.message)
    assert "raise error" in letter.traceback
    assert letter.envelope.time <= letter.first_failure <= letter.last_failure


def test_a_failure_that_is_not_retryable_is_attempted_once(publish: Publish, dyed: Any) -> None:
    """
    An exception outside on=, or GiveUp, ends the delivery at once.
    """
    for error in (KeyError("x"), GiveUp("enough")):
        bus, calls = quiet(), []
        policy = exponential(attempts=5, on=(TimeoutError, GiveUp))
        bus.subscribe(A, dyed(raising(error, calls)), name="h", retry=policy)
        publish(bus, A())
        assert [1] == calls
        assert 1 == len(bus.dead_letters)


def test_no_attempt_starts_after_max_elapsed(publish: Publish, dyed: Any) -> None:
    """
    Once max_elapsed has passed, no further attempt is made.
    """
    bus, calls = quiet(), []
    policy = fixed(attempts=100, delay=10, max_elapsed=35)
    bus.subscribe(A, dyed(raising(ValueError("x"), calls)), name="h", retry=policy)
    publish(bus, A())
    assert [1, 2, 3, 4] == calls


def test_retry_after_overrules_the_policys_delay(publish: Publish, dyed: Any) -> None:
    """
    A handler that raises RetryAfter is called again after exactly that time.
    """
    bus, times = quiet(), []

    def handler(happened: A) -> None:
        times.append(bus.clock.monotonic())
        if len(times) < 3:
            raise RetryAfter(42)

    bus.subscribe(A, dyed(handler), name="h", retry=fixed(attempts=3, delay=1))
    assert publish(bus, A()).ok
    assert [0.0, 42.0, 84.0] == times


def test_an_attempt_over_its_timeout_fails_and_is_retried(publish: Publish) -> None:
    """
    The timeout error names handler and limit; the next attempt has the whole time again.
    """
    bus, calls = quiet(), []

    async def slow(happened: A | B) -> None:
        calls.append(1)
        await bus.clock.asleep(4 if len(calls) == 1 else 2)

    bus.subscribe(A, slow, timeout=3.0, retry=fixed(attempts=2, delay=0), name="slow")
    assert publish(bus, A()).ok
    assert 2 == len(calls)
    calls.clear()
    bus.subscribe(B, slow, timeout=3.0, name="slow too")
    [failure] = publish(bus, B()).failures
    assert isinstance(failure.exception, HandlerTimeoutError)
    assert "slow too ran longer than its timeout of 3 s" in str(failure.exception)
    bus.close()


def test_two_policies_make_one_terminal_notification(publish: Publish, dyed: Any) -> None:
    """
    A subscription's own policy replaces the bus's; the failure is told and logged once.
    """
    told: list[object] = []
    bus = EventBus(retry=fixed(attempts=5, delay=1), clock=VirtualClock(), observers=[told.append])
    calls: list[int] = []
    policy = fixed(attempts=2, delay=1)
    bus.subscribe(A, dyed(raising(ValueError("x"), calls)), name="h", retry=policy)
    publish(bus, A())
    assert [1, 2] == calls
    assert 1 == sum(isinstance(each, Failed) for each in told)


def test_each_terminal_failure_is_logged_exactly_once(
    publish: Publish, dyed: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The record names subscription, event, id and attempts, and carries the traceback.
    """
    bus = quiet()
    bus.subscribe(A, dyed(raising(ValueError("x"))), name="h", retry=fixed(attempts=2, delay=0))
    with caplog.at_level(logging.ERROR, logger="eventbus"):
        receipt = publish(bus, A())
    [record] = caplog.records
    assert ("h", "A", receipt.id, 2) == (
        record.subscription,  # type: ignore[attr-defined]
        record.event_name,  # type: ignore[attr-defined]
        record.event_id,  # type: ignore[attr-defined]
        record.attempts,  # type: ignore[attr-defined]
    )
    assert record.exc_info is not None


def test_one_key_published_twice_runs_the_handler_once(publish: Publish, dyed: Any) -> None:
    """
    The second receipt is flagged and refers to the first event.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, dyed(seen.append), name="h", idempotency_key="n")
    first, second = publish(bus, A(1)), publish(bus, A(1))
    assert [A(1)] == seen
    assert second.duplicate
    assert first.id == second.duplicate_of
    assert not second.unhandled


def test_a_publishers_key_turns_the_second_event_away(publish: Publish, dyed: Any) -> None:
    """
    One event for each key and class; the other receipts carry the first event's id.
    """
    bus, seen = quiet(), []
    bus.subscribe(A | B, dyed(seen.append), name="h")
    first = publish(bus, A(1), idempotency_key="k")
    first_id, receipts = first.id, [publish(bus, A(2), idempotency_key="k") for _ in range(2)]
    publish(bus, B(3), idempotency_key="k")
    assert [A(1), B(3)] == seen
    assert 2 * [(True, first_id, 0)] == [(r.duplicate, r.id, r.delivered) for r in receipts]
    assert 2 == bus.stats().duplicate


def test_a_key_is_free_again_after_a_dead_letter(publish: Publish, dyed: Any) -> None:
    """
    When the first run ends in the dead letters, the next publish of the key is accepted.
    """
    bus, calls = quiet(), []

    def handler(happened: A) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("first")

    bus.subscribe(A, dyed(handler), name="h", idempotency_key="n")
    assert not publish(bus, A(1), idempotency_key="k").ok
    assert publish(bus, A(1), idempotency_key="k").ok
    assert publish(bus, A(1), idempotency_key="k").duplicate
    assert 2 == len(calls)


def test_the_window_ends_on_time(publish: Publish, dyed: Any) -> None:
    """
    A duplicate just inside the window conflicts, one just outside is accepted.
    """
    clock = VirtualClock()
    bus = EventBus(clock=clock, idempotency=InMemoryIdempotencyStore(ttl=60.0))
    seen: list[A] = []
    bus.subscribe(A, dyed(seen.append), name="h", idempotency_key="n")
    publish(bus, A(1))
    clock.advance(59.9)
    assert publish(bus, A(1)).duplicate
    clock.advance(0.2)
    assert not publish(bus, A(1)).duplicate
    assert 2 == len(seen)


def test_equal_keys_of_different_handlers_do_not_collide(publish: Publish, dyed: Any) -> None:
    """
    Keys belong to their subscription; the empty key is a key, None is none.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, dyed(lambda h: seen.append("one")), name="one", idempotency_key=lambda h: "")
    bus.subscribe(A, dyed(lambda h: seen.append("two")), name="two", idempotency_key=lambda h: "")
    bus.subscribe(A, dyed(lambda h: seen.append("none")), name="x", idempotency_key=lambda h: None)
    publish(bus, A(1))
    publish(bus, A(2))
    assert ["one", "two", "none", "none"] == seen


def test_a_concurrent_duplicate_waits_for_the_outcome() -> None:
    """
    While the key is in progress in a thread, the duplicate waits, and runs if it failed.
    """
    bus, inside, go = quiet(), threading.Event(), threading.Event()
    calls: list[int] = []

    def handler(happened: A) -> None:
        calls.append(happened.n)
        inside.set()
        assert go.wait(10)
        if len(calls) == 1:
            raise ValueError("the first one fails")

    bus.subscribe(A, handler, idempotency_key=lambda happened: "k")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(bus.publish, A(1))
        assert inside.wait(10)
        second = pool.submit(bus.publish, A(2))
        go.set()
        assert [False, True] == [first.result(10).ok, second.result(10).ok]
    assert [1, 2] == calls
    assert bus.publish(A(3)).duplicate


def test_a_concurrent_duplicate_waits_in_tasks_too() -> None:
    """
    While the key is in progress in a task, the duplicate task waits for the success.
    """
    bus, calls = quiet(), []

    async def handler(happened: A) -> None:
        calls.append(happened.n)
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    bus.subscribe(A, handler, idempotency_key=lambda happened: "k")

    async def main() -> list[Receipt]:
        return list(await asyncio.gather(bus.apublish(A(1)), bus.apublish(A(2))))

    receipts = asyncio.run(main())
    assert [1] == calls
    assert [False, True] == [each.duplicate for each in receipts]


def test_redrive_goes_to_the_failing_handler_only(publish: Publish, dyed: Any, colour: str) -> None:
    """
    Failing again keeps both stories; success removes the letter; no key is in the way.
    """
    bus, seen, broken = quiet(), [], [True, True]

    def handler(happened: A) -> None:
        if broken:
            broken.pop()
            raise ValueError("broken")
        seen.append(current_envelope())

    bus.subscribe(A, dyed(lambda happened: seen.append("other")), name="other")
    bus.subscribe(A, dyed(handler), name="h", idempotency_key="n")
    first = publish(bus, A(1))
    [letter] = bus.dead_letters

    def redrive() -> Receipt:
        if colour == "sync":
            return bus.redrive(letter)
        return asyncio.run(bus.aredrive(letter.id))

    assert not redrive().ok
    [again] = bus.dead_letters
    assert (letter.id, 2, 1) == (again.id, len(again.failures), again.redrives)
    assert redrive().ok
    assert [] == list(bus.dead_letters)
    assert ["other", first.envelope] == seen


@pytest.mark.parametrize("depth", [5, 32])
def test_a_cycle_ends_in_an_error_that_names_the_chain(
    publish: Publish, colour: str, depth: int
) -> None:
    """
    A publishes B publishes A …: the outermost publish raises, with two branches as well.
    """
    bus = EventBus(max_depth=depth, clock=VirtualClock())
    for name in ("left", "right"):
        for source, target in ((A, B), (B, A)):
            if colour == "sync":
                bus.subscribe(
                    source, lambda h, t=target: bus.publish(t()) and None, name=f"{name} {source}"
                )
            else:

                async def ahandler(happened: Any, target: Any = target) -> None:
                    await bus.apublish(target())

                bus.subscribe(source, ahandler, name=f"{name} {source}")
    with pytest.raises(PublishCycleError, match="A → B → A") as caught:
        publish(bus, A())
    assert depth + 1 == len(caught.value.chain)


def test_a_cycle_of_deep_handlers_is_no_bare_recursion_error() -> None:
    """
    Where Python's own limit comes first, the error still names the chain.
    """
    bus = EventBus(max_depth=10_000, clock=VirtualClock())
    bus.subscribe(A, lambda happened: bus.publish(A()) and None, name="again")
    with pytest.raises(PublishCycleError, match="A → A"):
        bus.publish(A())


def test_cancelling_apublish_cancels_the_handler_and_nothing_else_runs() -> None:
    """
    The awaited handler is cancelled, the rest is not called, the cancellation passes on.
    """
    for fanout in ("sequential", "concurrent"):
        bus, seen = EventBus(fanout=fanout, clock=VirtualClock()), []  # type: ignore[arg-type]
        started = asyncio.Event()

        async def waits(happened: A, seen: Any = seen, started: Any = started) -> None:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                seen.append("cancelled")

        bus.subscribe(A, waits, name="waits")
        if fanout == "sequential":
            bus.subscribe(A, lambda h, seen=seen: seen.append("called"), name="behind")

        async def main(bus: EventBus = bus, started: Any = started) -> set[Any]:
            task = asyncio.create_task(bus.apublish(A()))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return asyncio.all_tasks() - {asyncio.current_task()}

        assert set() == asyncio.run(main())
        assert ["cancelled"] == seen


def test_a_handler_sees_the_publishers_context(publish: Publish) -> None:
    """
    Inline, on the loop thread and offloaded, a context variable has the publisher's value.
    """
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    bus, seen = quiet(), []

    async def ahandler(happened: A) -> None:
        seen.append(tenant.get())

    bus.subscribe(A, lambda happened: seen.append(tenant.get()), name="inline")
    bus.subscribe(A, ahandler, name="async")
    bus.subscribe(A, lambda happened: seen.append(tenant.get()), name="offloaded", offload=True)

    token = tenant.set("acme")
    try:
        publish(bus, A())
    finally:
        tenant.reset(token)
    assert 3 * ["acme"] == seen
    bus.close()


@pytest.mark.parametrize("wrong", [None, A])
def test_what_is_no_event_is_refused_each_time(publish: Publish, wrong: object) -> None:
    """
    None and a class instead of an instance are refused with what was probably meant.
    """
    bus = quiet()
    for _ in range(2):
        with pytest.raises(NotAnEventError, match="published"):
            publish(bus, wrong)


def test_a_closed_bus_takes_no_more_events(publish: Publish) -> None:
    """
    Publishing after close is refused; closing again does nothing.
    """
    with quiet() as bus:
        publish(bus, A())
    bus.close()
    with pytest.raises(BusClosedError, match="is closed"):
        publish(bus, A())
    assert bus.is_closed


def test_a_batch_with_one_bad_event_publishes_none(publish: Publish, colour: str) -> None:
    """
    publish_many refuses the whole batch when one of its members is no event.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, seen.append, name="h")

    def many(events: list[object], **options: Any) -> list[Receipt]:
        if colour == "sync":
            return bus.publish_many(events, **options)
        return asyncio.run(bus.apublish_many(events, **options))

    with pytest.raises(NotAnEventError):
        many([A(1), None, A(3)])
    assert [] == seen
    many([A(1), A(2)], idempotency_key="batch")
    assert [True, True] == [each.duplicate for each in many([A(1), A(2)], idempotency_key="batch")]
    assert [A(1), A(2)] == seen


def test_an_envelope_made_late_says_so(publish: Publish) -> None:
    """
    Asked for after the publish, an envelope is marked late; its cause is made before it.
    """
    bus, nested = quiet(), []
    bus.subscribe(A, lambda happened: nested.append(bus.publish(B())), name="h")
    receipt = publish(bus, A())
    late = nested[0].envelope
    assert late.is_late
    assert receipt.envelope.id == late.causation_id
    assert receipt.envelope.time <= late.time
    assert receipt.envelope.id < late.id
    assert not EventBus(envelopes="eager").publish(A()).envelope.is_late


def test_a_letter_that_is_dropped_at_once_is_not_counted_as_kept(
    publish: Publish, dyed: Any
) -> None:
    """
    A full store that drops the newest keeps one, and only one is counted and reported.
    """
    told: list[object] = []
    letters = InMemoryDeadLetters(capacity=1, overflow="drop_newest")
    bus = EventBus(clock=VirtualClock(), dead_letters=letters, observers=[told.append])
    bus.subscribe(A, dyed(raising(ValueError("x"))), name="h")
    for n in range(3):
        publish(bus, A(n))
    assert 1 == len(letters)
    assert (3, 1) == (
        bus.stats().subscriptions["h"].failed,
        bus.stats().subscriptions["h"].dead_lettered,
    )
    assert [letter.id for letter in letters] == [
        each.letter_id for each in told if isinstance(each, DeadLettered)
    ]


def test_a_policy_of_ones_own_may_end_what_retry_after_asks_for(
    publish: Publish, dyed: Any
) -> None:
    """
    RetryAfter replaces a policy's delay, and not its decision to give up.
    """
    bus, calls = quiet(), []
    bus.subscribe(A, dyed(raising(RetryAfter(1), calls)), name="h", retry=lambda attempt: None)
    publish(bus, A())
    assert [1] == calls
    calls.clear()

    def twice(attempt: Attempt) -> float | None:
        return 5.0 if attempt.number < 2 else None

    bus.subscribe(B, dyed(raising(RetryAfter(1), calls)), name="twice", retry=twice)
    publish(bus, B())
    assert [1, 2] == calls
    assert 1.0 == bus.clock.monotonic()


@dataclass
class ByDataclass:
    n: int


class ByNamedTuple(NamedTuple):
    n: int


class ByPydantic(pydantic.BaseModel):
    n: int


class ByMsgspec(msgspec.Struct):
    n: int


@pytest.mark.parametrize("kind", [ByDataclass, ByNamedTuple, ByPydantic, ByMsgspec])
def test_instances_of_any_class_are_events(publish: Publish, dyed: Any, kind: Any) -> None:
    """
    Handled under their class's name, retried, told apart by key, and kept as dead letters.
    """
    bus, calls = quiet(), []
    retry = fixed(attempts=2, delay=1)
    bus.subscribe(kind, dyed(calls.append), name="h", idempotency_key="n", retry=retry)
    bus.subscribe(kind, dyed(raising(ValueError("no"))), name="fails", retry=retry)
    first, second = publish(bus, kind(n=1)), publish(bus, kind(n=1))
    assert [kind(n=1)] == calls
    assert (False, True) == (first.duplicate, second.duplicate)
    assert kind.__name__ == first.envelope.name
    assert 2 * [kind(n=1)] == [letter.event for letter in bus.dead_letters]


def test_handlers_publish_depth_first(publish: Publish, colour: str) -> None:
    """
    What a handler publishes is delivered before the handler goes on, and the next is called.
    """
    bus, seen = quiet(), []

    def note(name: str) -> Callable[[Any], None]:
        return lambda happened: seen.append(name)

    if colour == "sync":

        def outer(happened: A) -> None:
            seen.append("before")
            bus.publish(B())
            seen.append("after")

        bus.subscribe(A, outer)
    else:

        async def aouter(happened: A) -> None:
            seen.append("before")
            await bus.apublish(B())
            seen.append("after")

        bus.subscribe(A, aouter)
    bus.subscribe(A, note("next"), name="next")
    bus.subscribe(B, note("inner"), name="inner")
    assert publish(bus, A()).ok
    assert ["before", "inner", "after", "next"] == seen


def test_causation_follows_a_retry_and_a_redrive(publish: Publish, colour: str) -> None:
    """
    Whichever attempt publishes, and however late: the cause is the event, and so is the story.
    """
    bus = quiet()
    caused: list[Envelope[Any]] = []
    failures = 3  # both attempts of the first event, and one of the second

    def work(happened: A) -> None:
        nonlocal failures
        failures -= 1
        if failures >= 0:
            raise ValueError("again")

    if colour == "sync":

        def handle(happened: A) -> None:
            work(happened)
            bus.publish(B())

        bus.subscribe(A, handle, name="h", retry=fixed(attempts=2, delay=60))
    else:

        async def ahandle(happened: A) -> None:
            work(happened)
            await bus.apublish(B())

        bus.subscribe(A, ahandle, name="h", retry=fixed(attempts=2, delay=60))
    bus.subscribe(B, lambda happened: caused.append(current_envelope()), name="note")  # type: ignore[arg-type]

    buried = publish(bus, A(0), correlation_id="request 7")
    retried = publish(bus, A(1), correlation_id="request 8")
    [letter] = bus.dead_letters
    assert bus.redrive(letter).ok if colour == "sync" else asyncio.run(bus.aredrive(letter)).ok
    assert [retried.id, buried.id] == [each.causation_id for each in caused]
    assert ["request 8", "request 7"] == [each.correlation_id for each in caused]


def test_a_batch_has_one_correlation_and_the_same_headers(publish: Publish, colour: str) -> None:
    """
    What publish_many is given goes for each of its events; each has an id of its own.
    """
    bus = quiet()
    options: Any = {"correlation_id": "request 7", "headers": {"tenant": "acme"}}
    if colour == "sync":
        receipts = bus.publish_many([A(1), B(2)], **options)
    else:
        receipts = asyncio.run(bus.apublish_many([A(1), B(2)], **options))
    envelopes = [each.envelope for each in receipts]
    assert [A(1), B(2)] == [each.event for each in envelopes]
    assert 2 * [("request 7", {"tenant": "acme"})] == [
        (each.correlation_id, each.headers) for each in envelopes
    ]
    assert 2 == len({each.id for each in envelopes})


def test_an_observer_that_publishes_what_nobody_handles_comes_to_an_end(
    publish: Publish,
) -> None:
    """
    Told of the event it has published itself, and so on, it is cut off; the publish is fine.
    """

    def alarm(occurrence: object) -> None:
        if isinstance(occurrence, Unhandled):
            bus.publish(B())

    bus = EventBus(observers=[alarm], clock=VirtualClock())
    receipt = publish(bus, A())
    assert (True, True) == (receipt.unhandled, receipt.ok)
    assert current_envelope() is None


def test_a_duplicate_uses_up_the_only_turn(publish: Publish, dyed: Any) -> None:
    """
    With once=True, and a key that an earlier subscription of the name has recorded.
    """
    bus, seen = quiet(), []
    with bus.subscribe(A, dyed(seen.append), name="h", idempotency_key="n"):
        publish(bus, A(1))
    bus.subscribe(A, dyed(seen.append), name="h", idempotency_key="n", once=True)
    assert publish(bus, A(1)).duplicate
    assert publish(bus, A(2)).unhandled
    assert [A(1)] == seen


def test_a_duplicate_names_the_first_event_while_that_is_known(publish: Publish, dyed: Any) -> None:
    """
    A handler's key knows it as long as its receipt is kept, a publisher's key always.
    """
    bus = quiet()
    bus.subscribe(A, dyed(lambda happened: None), name="h", idempotency_key="n")
    kept = publish(bus, A(1))
    assert kept.id == publish(bus, A(1)).duplicate_of
    publish(bus, A(2))
    gc.collect()
    again = publish(bus, A(2))
    assert (True, None) == (again.duplicate, again.duplicate_of)
    first_id = publish(bus, B(), idempotency_key="k").id
    gc.collect()
    assert first_id == publish(bus, B(), idempotency_key="k").duplicate_of
