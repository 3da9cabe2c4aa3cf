"""
One event to one subscription, under every combination of policies and in every colour.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from itertools import chain, combinations
from typing import Any

import attrs
import pytest

from eventbus import (
    Envelope,
    EventBus,
    HandlerAbortedError,
    InMemoryDeadLetters,
    InMemoryIdempotencyStore,
    Receipt,
    RetryAfter,
    RunningLoopError,
    current_envelope,
    event,
    fixed,
)
from eventbus.instrumentation import DeadLettered, Delivered, Duplicate, Failed, Retried
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


@event
class B:
    n: int = 0


@attrs.frozen
class Twin:
    """
    One colour of publishing, and one of the handlers.
    """

    publishes_async: bool
    handles_async: bool

    def dye(self, handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
        if not self.handles_async:
            return handler

        async def ahandler(happened: Any) -> Any:
            await asyncio.sleep(0)
            return handler(happened)

        return ahandler

    def publish(self, bus: EventBus, happened: object, **options: Any) -> Receipt:
        if not self.publishes_async:
            return bus.publish(happened, **options)

        async def main() -> Receipt | BaseException:
            try:
                return await bus.apublish(happened, **options)
            except BaseException as error:  # an interruption must not come to the loop
                return error

        outcome = asyncio.run(main())
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def redrive(self, bus: EventBus, letter: Any) -> Receipt:
        if self.publishes_async:
            return asyncio.run(bus.aredrive(letter))
        return bus.redrive(letter)


TWINS = [Twin(False, False), Twin(False, True), Twin(True, False), Twin(True, True)]


def shown(value: Any) -> str:
    if isinstance(value, Twin):
        return f"{'a' * value.publishes_async}publish-{'async-' * value.handles_async}def"
    return "+".join(value) or "plain" if isinstance(value, tuple) else str(value)


@pytest.fixture(params=TWINS, ids=shown)
def twin(request: pytest.FixtureRequest) -> Twin:
    """
    Run the test once in each colour.
    """
    return request.param  # type: ignore[no-any-return]


POLICIES = ("key", "retry", "timeout", "once", "weak", "where")
# None, each alone, every pair, and all at once: what two do not break, three seldom do.
SUBSETS = [*chain(*(combinations(POLICIES, size) for size in range(3))), POLICIES]
# A plain sync handler takes no timeout.
COMBINATIONS = [
    (twin, policies)
    for twin in TWINS
    for policies in (
        SUBSETS
        if twin.handles_async
        else dict.fromkeys(tuple(p for p in each if p != "timeout") for each in SUBSETS)
    )
]
WAYS: dict[str, dict[str, Any]] = {
    "key": {"idempotency_key": "n"},
    "retry": {"retry": fixed(attempts=2, delay=1)},
    "timeout": {"timeout": 60.0},
    "once": {"once": True},
    "weak": {"weak": True},
    "where": {"where": lambda happened: happened.n > 0},
}


def foretold(policies: tuple[str, ...], numbers: list[int]) -> tuple[list[str], int, int]:
    """
    Say what should come of each event, the handler failing when it is first called.

    Returns:
        The outcomes, how often the handler is called, and how often it is retried.
    """
    outcomes: list[str] = []
    handled: set[int] = set()
    calls = retried = 0
    is_over = False
    for n in numbers:
        if is_over or ("where" in policies and n <= 0):
            outcomes.append("missed")
            continue
        is_over = "once" in policies
        if "key" in policies and n in handled:
            outcomes.append("duplicate")
            continue
        calls += 1
        if calls == 1 and "retry" in policies:
            calls, retried = 2, 1
        outcomes.append("failed" if calls == 1 else "delivered")
        if calls > 1:
            handled.add(n)
    return outcomes, calls, retried


def outcome(receipt: Receipt) -> str:
    if receipt.duplicate:
        return "duplicate"
    if receipt.failures:
        return "failed"
    return "missed" if receipt.unhandled else "delivered"


class Clumsy:
    """
    Fails when it is first called, and notes each call.
    """

    def __init__(self) -> None:
        self.calls: list[int] = []

    def handle(self, happened: A) -> None:
        self.calls.append(happened.n)
        if len(self.calls) == 1:
            raise ValueError("the first call fails")

    async def ahandle(self, happened: A) -> None:
        await asyncio.sleep(0)
        self.handle(happened)


@pytest.mark.parametrize("is_timed", [False, True], ids=["untimed", "timed"])
@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
@pytest.mark.parametrize(("twin", "policies"), COMBINATIONS, ids=shown)
def test_policies_work_together_as_each_does_alone(
    twin: Twin, policies: tuple[str, ...], is_observed: bool, is_timed: bool
) -> None:
    """
    Whatever is combined, receipts, counts, dead letters and observers agree on what came.
    """
    told: list[Any] = []
    holder = Clumsy()
    calls = holder.calls
    numbers = [0, 1, 1]
    outcomes, called, retried = foretold(policies, numbers)
    options: dict[str, Any] = {}
    for policy in policies:
        options |= WAYS[policy]
    clock = VirtualClock()
    observers = [told.append] if is_observed else []
    with EventBus(clock=clock, observers=observers, timings=is_timed) as bus:
        bus.subscribe(
            A, holder.ahandle if twin.handles_async else holder.handle, name="h", **options
        )
        receipts = [twin.publish(bus, A(n)) for n in numbers]

        assert outcomes == [outcome(each) for each in receipts]
        assert called == len(calls)
        assert float(retried) == clock.monotonic()
        assert outcomes.count("failed") == len(bus.dead_letters)
        if is_observed:
            kinds = [type(each) for each in told]
            expected = [
                ("delivered", Delivered),
                ("failed", Failed),
                ("failed", DeadLettered),
                ("duplicate", Duplicate),
            ]
            for name, kind in expected:
                assert outcomes.count(name) == kinds.count(kind)
            assert retried == kinds.count(Retried)
        if "once" not in policies:
            counted = bus.stats().subscriptions["h"]
            names = ("delivered", "failed", "duplicate", "missed")
            assert [outcomes.count(name) for name in names] == [
                getattr(counted, name) for name in names
            ]
            assert (3, retried) == (counted.published, counted.retried)
            times = None if counted.time is None else counted.time.count
            assert (called if is_timed else None) == times


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
@pytest.mark.parametrize(
    ("twin", "policies"), [each for each in COMBINATIONS if "weak" in each[1]], ids=shown
)
def test_a_handler_held_weakly_ends_with_its_object(
    twin: Twin, policies: tuple[str, ...], is_observed: bool
) -> None:
    """
    Whatever else is asked for, nothing on the bus keeps it alive, and it is called no more.
    """
    options: dict[str, Any] = {}
    for policy in policies:
        options |= WAYS[policy]
    holder = Clumsy()
    holder.calls.append(0)
    calls = holder.calls
    with EventBus(clock=VirtualClock(), observers=[lambda o: None] * is_observed) as bus:
        bus.subscribe(
            A, holder.ahandle if twin.handles_async else holder.handle, name="h", **options
        )
        assert twin.publish(bus, A(1)).ok
        del holder
        gc.collect()
        assert twin.publish(bus, A(2)).unhandled
        assert ([0, 1], ()) == (calls, bus.subscriptions)


PATHS: dict[str, dict[str, Any]] = {
    "plain": {},
    "key": {"idempotency_key": "n"},
    "no key": {"idempotency_key": lambda happened: None},
    "retry": {"retry": fixed(attempts=3, delay=1)},
    "both": {"idempotency_key": "n", "retry": fixed(attempts=3, delay=1)},
}


# Which attempt is interrupted: there is a second one only where the path retries.
INTERRUPTED = [(path, 1) for path in PATHS] + [(p, 2) for p in PATHS if "retry" in PATHS[p]]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
@pytest.mark.parametrize(("path", "attempt"), INTERRUPTED)
def test_an_interruption_passes_through_and_leaves_all_in_order(
    twin: Twin, interruption: type[BaseException], is_observed: bool, path: str, attempt: int
) -> None:
    """
    It ends the publish at once; keys are free, the counts add up, and nothing is buried.
    """
    calls: list[int] = []

    def handle(happened: A) -> None:
        calls.append(happened.n)
        if len(calls) < attempt:
            raise ValueError("again")
        if len(calls) == attempt:
            raise interruption

    behind: list[A] = []
    with EventBus(clock=VirtualClock(), observers=[lambda o: None] * is_observed) as bus:
        bus.subscribe(A, twin.dye(handle), name="h", **PATHS[path])
        bus.subscribe(A, behind.append, name="behind")
        with pytest.raises(interruption):
            twin.publish(bus, A(1), idempotency_key="k")

        assert [] == behind
        assert current_envelope() is None
        assert 0 == len(bus.dead_letters)
        for counted in bus.stats().subscriptions.values():
            assert (1, 0, 0, 1) == (
                counted.published,
                counted.delivered,
                counted.failed,
                counted.missed,
            )
        again = twin.publish(bus, A(1), idempotency_key="k")
        assert (2, False) == (again.delivered, again.duplicate)


@pytest.mark.parametrize("path", PATHS)
def test_an_interruption_that_is_caught_leaves_the_handler_where_it_was(path: str) -> None:
    """
    A handler that survives the interruption of a nested publish still sees its own event.
    """
    bus, seen = EventBus(clock=VirtualClock()), []

    @bus.on(A)
    def outer(happened: A) -> None:
        with pytest.raises(KeyboardInterrupt):
            bus.publish(B())
        envelope = current_envelope()
        assert envelope is not None
        seen.append(envelope.event)

    def inner(happened: B) -> None:
        raise KeyboardInterrupt

    bus.subscribe(B, inner, **PATHS[path])
    assert bus.publish(A(7)).ok
    assert [A(7)] == seen


def test_an_interruption_while_a_failure_is_buried_frees_the_publishers_key(twin: Twin) -> None:
    """
    Interrupted while a dead letter is written, a publish still gives its key back.
    """

    class Interrupted(InMemoryDeadLetters):
        def add(self, letter: Any) -> None:
            raise KeyboardInterrupt

    def handle(happened: A) -> None:
        raise ValueError("buried")

    for options in ({}, {"idempotency_key": "k"}):
        with EventBus(clock=VirtualClock(), dead_letters=Interrupted()) as bus:
            bus.subscribe(A, twin.dye(handle), name="h")
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    twin.publish(bus, A(), **options)
            assert 0 == bus.stats().duplicate
            assert current_envelope() is None


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
def test_a_nested_publish_with_the_same_key_is_a_duplicate(is_observed: bool) -> None:
    """
    It would wait for the delivery it is part of, and so it does not wait.
    """
    bus, nested = EventBus(clock=VirtualClock(), observers=[lambda o: None] * is_observed), []

    @bus.on(A, idempotency_key="n")
    def handle(happened: A) -> None:
        nested.append(bus.publish(A(happened.n)))

    @bus.on(B, idempotency_key="n")
    async def ahandle(happened: B) -> None:
        nested.append(await bus.apublish(B(happened.n)))

    receipts = [bus.publish(A(1)), asyncio.run(bus.apublish(B(1)))]
    assert [True, True] == [each.duplicate for each in nested]
    assert [each.id for each in receipts] == [each.duplicate_of for each in nested]
    assert [1, 1] == [each.delivered for each in receipts]


@attrs.frozen
class Elsewhere:
    """
    Another holder of a key, in a process that is gone.
    """

    id: str = "elsewhere"


def held_by_another(store: InMemoryIdempotencyStore) -> Any:
    return store.claim("h", "1", source=Elsewhere(), now=0.0)


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
def test_a_store_that_cannot_call_back_is_asked_now_and_then(twin: Twin, is_observed: bool) -> None:
    """
    Between the questions the bus's own clock passes, until the crashed holder's lease ends.
    """

    class Silent(InMemoryIdempotencyStore):
        def add_waiter(self, claim: Any, callback: Any) -> Any:
            return None

    store, clock, seen = Silent(lease=1.0), VirtualClock(), []
    held_by_another(store)
    observers = [lambda o: None] * is_observed
    with EventBus(clock=clock, idempotency=store, observers=observers) as bus:
        bus.subscribe(A, twin.dye(seen.append), name="h", idempotency_key="n")
        assert not twin.publish(bus, A(1)).duplicate
    assert [A(1)] == seen
    assert 1.0 == pytest.approx(clock.monotonic(), abs=0.03)


def test_a_lease_that_lapses_ends_the_waiting(twin: Twin) -> None:
    """
    Nobody calls back for a holder that crashed: when its lease has ended the key is taken.
    """
    clock, seen = VirtualClock(), []

    class Lapsing(InMemoryIdempotencyStore):
        def add_waiter(self, claim: Any, callback: Any) -> Any:
            clock.advance(self.lease)
            return super().add_waiter(claim, callback)

    store = Lapsing()
    held_by_another(store)
    with EventBus(clock=clock, idempotency=store) as bus:
        bus.subscribe(A, twin.dye(seen.append), name="h", idempotency_key="n")
        assert twin.publish(bus, A(1)).ok
    assert [A(1)] == seen


def test_a_holder_that_is_settled_before_anybody_waits_is_not_waited_for(twin: Twin) -> None:
    """
    The key is asked for again at once, and the success in between makes this a duplicate.
    """

    class Settling(InMemoryIdempotencyStore):
        def add_waiter(self, claim: Any, callback: Any) -> Any:
            self.complete(holder, now=0.0)
            return super().add_waiter(claim, callback)

    store, seen = Settling(), []
    holder = held_by_another(store)
    with EventBus(clock=VirtualClock(), idempotency=store) as bus:
        bus.subscribe(A, twin.dye(seen.append), name="h", idempotency_key="n")
        receipt = twin.publish(bus, A(1))
    assert (True, []) == (receipt.duplicate, seen)


def test_a_loop_is_not_blocked_to_wait_for_a_key() -> None:
    """
    In publish with a loop running, a key that another holds fails the delivery.
    """
    store, seen = InMemoryIdempotencyStore(), []
    held_by_another(store)
    bus = EventBus(clock=VirtualClock(), idempotency=store)
    bus.subscribe(A, seen.append, name="h", idempotency_key="n")

    async def main() -> Receipt:
        return bus.publish(A(1))

    [failure] = asyncio.run(main()).failures
    assert isinstance(failure.exception, RunningLoopError)
    assert (0, []) == (failure.attempts, seen)


def test_a_holder_may_outlive_the_loop_that_waited_for_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    A wait that is cancelled, its loop closed, does not hinder the holder of the key.
    """

    class Told(InMemoryIdempotencyStore):
        def add_waiter(self, claim: Any, callback: Any) -> Any:
            asyncio.get_running_loop().call_soon(tasks[0].cancel)
            return super().add_waiter(claim, callback)

    store, tasks = Told(), []
    holder = held_by_another(store)
    bus = EventBus(clock=VirtualClock(), idempotency=store)
    bus.subscribe(A, lambda happened: None, name="h", idempotency_key="n")

    async def main() -> None:
        tasks.append(asyncio.ensure_future(bus.apublish(A(1))))
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    asyncio.run(main())
    assert store.release(holder)
    assert [] == caplog.records
    assert 1 == bus.stats().subscriptions["h"].missed


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
@pytest.mark.parametrize("option", ["where", "idempotency_key"])
def test_a_question_that_raises_fails_the_delivery_before_any_attempt(
    twin: Twin, option: str, is_observed: bool
) -> None:
    """
    A filter or key that raises is not retried, and its letter counts no attempt.
    """

    def ask(happened: A) -> Any:
        raise LookupError("no answer")

    seen: list[A] = []
    options: dict[str, Any] = {option: ask, "retry": fixed(attempts=5, delay=1)}
    with EventBus(clock=VirtualClock(), observers=[lambda o: None] * is_observed) as bus:
        bus.subscribe(A, twin.dye(seen.append), name="h", **options)
        [failure] = twin.publish(bus, A(1)).failures
        [letter] = bus.dead_letters
    assert (0, 0, "LookupError") == (failure.attempts, letter.attempts, letter.error_type)
    assert [] == seen


class BrokenStore(InMemoryIdempotencyStore):
    """
    Fails in the method named *breaks*.
    """

    breaks = ""

    def claim(self, *arguments: Any, **keywords: Any) -> Any:
        self._break("claim")
        return super().claim(*arguments, **keywords)

    def complete(self, *arguments: Any, **keywords: Any) -> bool:
        self._break("complete")
        return super().complete(*arguments, **keywords)

    def renew(self, *arguments: Any, **keywords: Any) -> bool:
        self._break("renew")
        return super().renew(*arguments, **keywords)

    def release(self, *arguments: Any, **keywords: Any) -> bool:
        self._break("release")
        return super().release(*arguments, **keywords)

    def _break(self, method: str) -> None:
        if method == self.breaks:
            raise ConnectionError(f"{method} does not answer")


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
def test_a_store_that_refuses_to_claim_fails_the_delivery_and_nothing_else(
    twin: Twin, is_observed: bool
) -> None:
    """
    Its error is the delivery's failure, kept as a dead letter; the next handler is called.
    """
    calls: list[A] = []

    def handle(happened: A) -> None:
        calls.append(happened)

    store, behind = BrokenStore(), []
    store.breaks = "claim"
    observers = [lambda o: None] * is_observed
    with EventBus(clock=VirtualClock(), idempotency=store, observers=observers) as bus:
        retry = fixed(attempts=3, delay=1)
        bus.subscribe(A, twin.dye(handle), name="h", idempotency_key="n", retry=retry)
        bus.subscribe(A, behind.append, name="behind")
        receipt = twin.publish(bus, A(1))
        assert ["ConnectionError"] == [each.error_type for each in bus.dead_letters]
    assert ["h"] == [each.subscription for each in receipt.failures]
    assert (0, 1) == (len(calls), len(behind))


@pytest.mark.parametrize("is_observed", [False, True], ids=["unobserved", "observed"])
@pytest.mark.parametrize("breaks", ["complete", "renew"])
def test_a_store_that_breaks_later_leaves_the_outcome_of_the_handler(
    twin: Twin, breaks: str, is_observed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A key that cannot be recorded or renewed is logged; the handler's success counts.
    """
    calls: list[A] = []

    def handle(happened: A) -> None:
        calls.append(happened)
        if len(calls) < (3 if breaks == "renew" else 1):
            raise ValueError("again")

    store = BrokenStore()
    store.breaks = breaks
    observers = [lambda o: None] * is_observed
    with EventBus(clock=VirtualClock(), idempotency=store, observers=observers) as bus:
        retry = fixed(attempts=3, delay=1) if breaks == "renew" else None
        bus.subscribe(A, twin.dye(handle), name="h", idempotency_key="n", retry=retry)
        receipt = twin.publish(bus, A(1))
        assert [] == list(bus.dead_letters)
    assert (True, 1) == (receipt.ok, receipt.delivered)
    assert (3 if breaks == "renew" else 1) == len(calls)
    assert "key '1' of h could not be" in caplog.text


def test_a_key_that_cannot_be_freed_is_logged_and_hides_nothing(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The receipt still shows the handler's own failure, and so does the publisher's key.
    """
    store = BrokenStore()
    store.breaks = "release"

    def handle(happened: A) -> None:
        raise ValueError("the handler's own")

    with EventBus(clock=VirtualClock(), idempotency=store, errors="raise") as bus:
        bus.subscribe(A, twin.dye(handle), name="h", idempotency_key="n")
        with caplog.at_level(logging.ERROR, logger="eventbus"), pytest.raises(ExceptionGroup):
            twin.publish(bus, A(1), idempotency_key="k")
        assert ["ValueError"] == [each.error_type for each in bus.dead_letters]
    assert [
        "key '1' of h could not be released; its lease ends by itself",
        "the idempotency key of one A is not released",
    ] == [each.getMessage() for each in caplog.records]


def test_a_dead_letter_that_cannot_be_kept_is_logged_and_hides_nothing(
    twin: Twin, caplog: pytest.LogCaptureFixture
) -> None:
    """
    The receipt still shows the failure; counts and observers know of no letter.
    """

    class Full(InMemoryDeadLetters):
        def add(self, letter: Any) -> None:
            raise ConnectionError("no room")

    def handle(happened: A) -> None:
        raise ValueError("the handler's own")

    told: list[Any] = []
    with EventBus(clock=VirtualClock(), dead_letters=Full(), observers=[told.append]) as bus:
        bus.subscribe(A, twin.dye(handle), name="h")
        receipt = twin.publish(bus, A(1))
        counted = bus.stats().subscriptions["h"]
    assert ["the handler's own"] == [str(each.exception) for each in receipt.failures]
    assert (1, 0) == (counted.failed, counted.dead_lettered)
    assert DeadLettered not in [type(each) for each in told]
    assert any("could not be kept" in each.getMessage() for each in caplog.records)


@pytest.mark.parametrize("answer", ["raises", "no number"])
def test_a_retry_policy_that_breaks_ends_the_retries_with_a_note(twin: Twin, answer: str) -> None:
    """
    The handler's error stays the failure, and a note on it says what the policy did.
    """

    def policy(attempt: Any) -> Any:
        if answer == "raises":
            raise LookupError("no such table")
        return "soon"

    def handle(happened: A) -> None:
        raise ValueError("the handler's own")

    with EventBus(clock=VirtualClock()) as bus:
        bus.subscribe(A, twin.dye(handle), name="h", retry=policy)
        [failure] = twin.publish(bus, A(1)).failures
    assert 1 == failure.attempts
    assert "which ends the retries" in failure.exception.__notes__[0]


def test_retry_after_needs_a_policy_and_keeps_to_its_limits(twin: Twin) -> None:
    """
    Without a policy it is a failure; with one, attempts and elapsed time are still limited.
    """

    def handle(happened: A) -> None:
        raise RetryAfter(20)

    policies = [None, fixed(attempts=2, delay=1), fixed(attempts=9, delay=1, max_elapsed=50)]
    with EventBus(clock=VirtualClock()) as bus:
        for n, policy in enumerate(policies):
            bus.subscribe(A, twin.dye(handle), name=f"h{n}", retry=policy)
        receipt = twin.publish(bus, A())
    assert [1, 2, 3] == [each.attempts for each in receipt.failures]


@pytest.mark.parametrize("path", ["retry", "both"])
def test_each_attempt_may_return_something_to_wait_for(path: str) -> None:
    """
    A handler that is not known to be async is awaited in its first and its second attempt.
    """
    calls: list[A] = []

    async def work(happened: A) -> None:
        calls.append(happened)
        if len(calls) % 2:
            raise ValueError("again")

    with EventBus(clock=VirtualClock()) as bus:
        bus.subscribe(A, lambda happened: work(happened) or None, name="h", **PATHS[path])
        receipts = [bus.publish(A(1)), asyncio.run(bus.apublish(A(2)))]
        assert [1, 1] == [each.delivered for each in receipts]
    assert 4 == len(calls)


def test_a_redrive_takes_a_key_that_is_done_and_one_that_is_not(twin: Twin) -> None:
    """
    Another event of the same key has succeeded meanwhile, and the letter is redriven still.
    """
    broken, seen = [True], []

    def handle(happened: A) -> None:
        if broken:
            broken.pop()
            raise ValueError("broken")
        seen.append(current_envelope())

    with EventBus(clock=VirtualClock()) as bus:
        bus.subscribe(A, twin.dye(handle), name="h", idempotency_key="n")
        first = twin.publish(bus, A(1))
        second = twin.publish(bus, A(1))
        [letter] = bus.dead_letters
        assert twin.redrive(bus, letter).ok
        assert 0 == len(bus.dead_letters)
    assert [second.id, first.id] == [each.id for each in seen]


def test_all_at_once_failures_are_told_in_the_order_of_the_handlers() -> None:
    """
    Handlers that raise when called, later, or not at all do not disturb each other.
    """
    bus, seen = EventBus(fanout="concurrent", clock=VirtualClock()), []

    async def late(happened: A) -> None:
        await asyncio.sleep(0)
        raise ValueError("late")

    def soon(happened: A) -> None:
        raise ValueError("soon")

    bus.subscribe(A, late, name="late")
    bus.subscribe(A, soon, name="soon")
    bus.subscribe(A, seen.append, name="fine")
    receipt = asyncio.run(bus.apublish(A()))
    assert ["late", "soon"] == [each.subscription for each in receipt.failures]
    assert [A()] == seen


def test_an_interruption_in_the_middle_of_all_at_once_abandons_what_was_not_begun() -> None:
    """
    Tasks not yet started are closed, and each subscription left out counts as missed.
    """
    bus, seen = EventBus(fanout="concurrent", clock=VirtualClock()), []

    async def first(happened: A) -> None:
        seen.append(happened)

    def second(happened: A) -> None:
        raise KeyboardInterrupt

    for handler in (first, second):
        bus.subscribe(A, handler, name=handler.__name__)
    bus.subscribe(A, lambda happened: asyncio.sleep(0), name="third")

    with pytest.raises(KeyboardInterrupt):
        Twin(True, True).publish(bus, A())
    assert [] == seen
    assert [1, 1, 1] == [each.missed for each in bus.stats().subscriptions.values()]


def test_an_envelope_asked_for_reaches_handlers_held_weakly(twin: Twin) -> None:
    """
    A weak handler with an envelope parameter, by position or by keyword, gets both.
    """

    class Holder:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def by_position(self, happened: A, envelope: Envelope[A]) -> None:
            self.seen.append((happened, envelope.event))

        def by_keyword(self, happened: A, *, envelope: Envelope[A]) -> None:
            self.seen.append((happened, envelope.event))

        async def in_a_coroutine(self, happened: A, envelope: Envelope[A]) -> None:
            self.seen.append((happened, envelope.event))

    holder = Holder()
    with EventBus(clock=VirtualClock()) as bus:
        for handler in (holder.by_position, holder.by_keyword, holder.in_a_coroutine):
            bus.subscribe(A, handler, weak=True)
        assert 3 == twin.publish(bus, A(1)).delivered
    assert 3 * [(A(1), A(1))] == holder.seen


def test_a_letter_discarded_during_a_redrive_that_fails_is_kept_again(twin: Twin) -> None:
    """
    The failure is not lost with the letter whose place is gone.
    """
    with EventBus(clock=VirtualClock()) as bus:

        def handle(happened: A) -> None:
            bus.dead_letters.discard()
            raise ValueError("again")

        bus.subscribe(A, twin.dye(handle), name="h")
        twin.publish(bus, A(1))
        [letter] = bus.dead_letters
        assert not twin.redrive(bus, letter).ok
        [again] = bus.dead_letters
    assert (letter.id, 2, 1) == (again.id, again.attempts, again.redrives)


def test_a_filter_that_publishes_may_use_the_only_event_up() -> None:
    """
    With once=True the nested event is the first to reach the handler, and the last.
    """
    bus, seen = EventBus(clock=VirtualClock()), []

    def where(happened: A) -> bool:
        if happened.n == 0:
            bus.publish(A(1))
        return True

    bus.subscribe(A, seen.append, name="h", once=True, where=where)
    assert bus.publish(A(0)).unhandled
    assert [A(1)] == seen


def test_a_weak_handler_that_ends_in_between_is_passed_by(twin: Twin) -> None:
    """
    Gone before its end was noticed, it is not called but missed, and its subscription ends.
    """
    with EventBus(clock=VirtualClock()) as bus:
        other = Clumsy()
        subscription = bus.subscribe(A, other.handle, name="weak", weak=True)
        subscription.get_handler = lambda: None
        receipt = twin.publish(bus, A())
        assert (0, True) == (receipt.delivered, receipt.unhandled)
        assert (False, []) == (subscription.is_active, other.calls)


def test_what_a_handler_returns_is_awaited_or_ignored(twin: Twin) -> None:
    """
    A future is waited for, a number is not, whether or not somebody observes.
    """
    for observers in ([], [lambda occurrence: None]):
        with EventBus(clock=VirtualClock(), observers=observers) as bus:
            bus.subscribe(A, lambda happened: 7, name="number")
            bus.subscribe(A, lambda happened: Later(), name="later")
            receipt = twin.publish(bus, A())
            assert "<Receipt of A: delivered=2>" == repr(receipt)


@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
@pytest.mark.parametrize(
    "policies", [(), ("retry",), ("key",), ("key", "retry"), ("where",)], ids=shown
)
def test_a_cancellation_nobody_asked_for_is_a_failure_of_the_handler(
    twin: Twin, policies: tuple[str, ...], fanout: Any
) -> None:
    """
    It is retried and buried like any other, and the neighbours are called.
    """
    options: dict[str, Any] = {}
    for policy in policies:
        options |= WAYS[policy]
    calls, seen = list[A](), list[A]()

    @twin.dye
    def handler(happened: A) -> None:
        calls.append(happened)
        raise asyncio.CancelledError  # as what it awaits does when somebody else cancels that

    with EventBus(clock=VirtualClock(), fanout=fanout) as bus:
        bus.subscribe(A, handler, name="waits", **options)
        bus.subscribe(A, twin.dye(seen.append), name="next")
        receipt = twin.publish(bus, A(1))
        [failure] = receipt.failures
        assert ("waits", 1, [A(1)]) == (failure.subscription, receipt.delivered, seen)
        assert isinstance(failure.exception, HandlerAbortedError)
        assert isinstance(failure.exception.__cause__, asyncio.CancelledError)
        attempts = 1 + ("retry" in policies)
        assert (attempts, attempts) == (failure.attempts, len(calls))
        assert ["waits"] == [letter.subscription for letter in bus.dead_letters]
        assert not twin.publish(bus, A(1)).duplicate  # its key is free again


class Later:
    """
    Can be awaited, and is no coroutine.
    """

    def __await__(self) -> Any:
        return asyncio.sleep(0).__await__()
