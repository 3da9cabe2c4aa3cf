"""
What follows a failure where handlers publish each other's events, and where they do not.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from threading import Event
from typing import Any

import attrs
import pytest

from eventbus import (
    EventBus,
    GiveUp,
    InMemoryIdempotencyStore,
    PublishCycleError,
    current_envelope,
    event,
    fixed,
    no_retry,
)
from eventbus.instrumentation import DeadLettered, Failed, Occurrence
from eventbus.testing import VirtualClock
from testing_colours import Colour, in_both_colours

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


@event
class Ping:
    number: int = 0


@event
class Pong:
    number: int = 0


def ignore(occurrence: Occurrence) -> None: ...


@pytest.fixture(params=[False, True], ids=["unobserved", "observed"])
def bus(request: pytest.FixtureRequest) -> Iterator[EventBus]:
    with EventBus(clock=VirtualClock(), observers=[ignore] * request.param) as bus:
        yield bus


def dig(depth: int, act: Callable[[], Any]) -> Any:
    """
    Call *act* under so many frames.
    """
    return act() if depth == 0 else dig(depth - 1, act)


async def adig(depth: int, act: Callable[[], Awaitable[Any]]) -> Any:
    return await (act() if depth == 0 else adig(depth - 1, act))


def turn(bus: EventBus, happened: type, *, branches: int, frames: int, calls: list[Any]) -> Any:
    """
    Return a handler that publishes *happened*, so many times and from so deep.
    """

    def handle(event: object) -> None:
        calls.append(event)
        for _ in range(branches):
            dig(frames, lambda: bus.publish(happened()))

    return handle


def aturn(bus: EventBus, happened: type, *, branches: int, frames: int, calls: list[Any]) -> Any:
    async def handle(event: object) -> None:
        calls.append(event)
        for _ in range(branches):
            await adig(frames, lambda: bus.apublish(happened()))

    return handle


POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "retried": {"retry": fixed(attempts=5, delay=0.0)},
    "keyless": {"idempotency_key": lambda event: None},
    "filtered": {"where": lambda event: True},
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("frames", [0, 40])
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_cycle_ends_in_an_error_that_names_the_chain(
    bus: EventBus, is_async: bool, branches: int, frames: int, policy: str
):
    """
    However deep its handlers, however many branches, it is retried nowhere and buried nowhere.
    """
    calls: list[Any] = []
    make = aturn if is_async else turn
    options = {"branches": branches, "frames": frames, "calls": calls}
    bus.subscribe(Ping, make(bus, Pong, **options), name="ping", **POLICIES[policy])
    bus.subscribe(Pong, make(bus, Ping, **options), name="pong", **POLICIES[policy])
    with pytest.raises(PublishCycleError, match="Ping → Pong → Ping") as raised:
        Colour(is_async, is_async).publish(bus, Ping())
    chain = raised.value.chain
    assert ("Ping", "Pong") * (len(chain) // 2) == chain[: len(chain) // 2 * 2]
    assert 3 < len(chain) <= len(calls) + 1
    assert len(calls) <= 100
    assert 0 == len(bus.dead_letters)
    assert current_envelope() is None
    for each in bus.stats().subscriptions.values():
        counted = each.delivered + each.failed + each.duplicate + each.missed
        assert (each.published, 0, 0) == (counted, each.failed, each.retried)


@in_both_colours
def test_a_cycle_passes_neighbours_and_leaves_them_counted_as_missed(bus: EventBus, colour: Colour):
    """
    Handlers after the one that turned in a circle are not called any more.
    """
    called: list[Any] = []
    publish = aturn if colour.publishes_async else turn
    bus.subscribe(Ping, publish(bus, Ping, branches=1, frames=0, calls=[]), name="turn")
    bus.subscribe(Ping, colour.handler(called.append), name="after")
    with pytest.raises(PublishCycleError):
        colour.publish(bus, Ping())
    assert [] == called
    stats = bus.stats().subscriptions
    assert stats["after"].published == stats["after"].missed == stats["turn"].missed


@pytest.mark.parametrize("max_depth", [1, 2, 7])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_the_depth_a_bus_allows_is_its_own(is_async: bool, max_depth: int):
    """
    So many publishes may stand inside each other, and not one more.
    """
    with EventBus(max_depth=max_depth) as bus:
        depth = max_depth - 1

        def descend(ping: Ping) -> None:
            if ping.number < depth:
                assert bus.publish(Ping(ping.number + 1)).ok

        async def adescend(ping: Ping) -> None:
            if ping.number < depth:
                assert (await bus.apublish(Ping(ping.number + 1))).ok

        colour = Colour(is_async, is_async)
        bus.subscribe(Ping, adescend if is_async else descend)
        assert colour.publish(bus, Ping()).ok
        depth += 1
        with pytest.raises(PublishCycleError) as raised:
            colour.publish(bus, Ping())
        assert ("Ping",) * (max_depth + 1) == raised.value.chain


@in_both_colours
def test_a_recursion_of_its_own_is_a_failure_like_any_other(bus: EventBus, colour: Colour):
    """
    A handler lost in its own calls fails alone, also where its event is nested in its like.
    """
    called: list[int] = []

    def lose_itself(ping: Ping) -> None:
        if ping.number < 3 and not colour.handles_async:
            bus.publish(Ping(ping.number + 1))
        else:
            dig(sys.getrecursionlimit(), str)

    bus.subscribe(Ping, colour.handler(lose_itself), name="lost")
    bus.subscribe(Ping, lambda ping: called.append(ping.number), name="neighbour")
    receipt = colour.publish(bus, Ping())
    assert called[-1] == 0
    lost = [each.failures[-1].exception for each in bus.dead_letters]
    assert [RecursionError] == [type(each) for each in lost]
    assert colour.handles_async == (not receipt.ok)


@pytest.mark.parametrize(
    "colour", [Colour(False, True), Colour(True, False), Colour(True, True)], ids=str
)
def test_a_cycle_of_tasks_is_none(bus: EventBus, colour: Colour):
    """
    A handler that starts what publishes its event again, and returns, is in nobody's way.
    """
    published: list[int] = []
    tasks: set[asyncio.Task[Any]] = set()
    is_over = Event()

    def start_next(ping: Ping) -> None:
        published.append(ping.number)
        if ping.number < 250:
            tasks.add(asyncio.create_task(bus.apublish(Ping(ping.number + 1))))
        else:
            is_over.set()

    async def main() -> None:
        await bus.apublish(Ping())
        assert await asyncio.to_thread(is_over.wait, PATIENCE)

    bus.subscribe(Ping, colour.handler(start_next))
    if colour.publishes_async:
        asyncio.run(main())
    else:
        bus.publish(Ping())
        assert is_over.wait(PATIENCE)
    assert list(range(251)) == published
    assert 0 == len(bus.dead_letters)


# -- what is not retried


@in_both_colours
def test_giving_up_overrules_the_policy(bus: EventBus, colour: Colour):
    """
    `GiveUp` ends the delivery after that attempt, and is the failure.
    """
    attempts: list[int] = []

    def give_up(ping: Ping) -> None:
        attempts.append(len(attempts))
        raise GiveUp("no use")

    bus.subscribe(Ping, colour.handler(give_up), name="h", retry=fixed(attempts=9, delay=1.0))
    receipt = colour.publish(bus, Ping())
    assert [0] == attempts
    assert ("h", 1) == (receipt.failures[0].subscription, receipt.failures[0].attempts)
    assert isinstance(receipt.failures[0].exception, GiveUp)


@in_both_colours
def test_a_subscription_can_do_without_the_policy_of_its_bus(colour: Colour):
    """
    ``retry=no_retry`` is one attempt, on a bus that retries otherwise.
    """

    def fail(ping: Ping) -> None:
        raise ValueError(ping)

    with EventBus(clock=VirtualClock(), retry=fixed(attempts=3, delay=1.0)) as bus:
        bus.subscribe(Ping, colour.handler(fail), name="once", retry=no_retry)
        bus.subscribe(Ping, colour.handler(fail), name="thrice")
        receipt = colour.publish(bus, Ping())
    assert [("once", 1), ("thrice", 3)] == [
        (each.subscription, each.attempts) for each in receipt.failures
    ]


@in_both_colours
def test_a_later_failure_does_not_come_of_an_earlier_one(bus: EventBus, colour: Colour):
    """
    Neither the next attempt nor the next handler fails "during handling" of the one before.
    """

    def fail(ping: Ping) -> None:
        raise ValueError(ping)

    bus.subscribe(Ping, colour.handler(fail), name="plain")
    bus.subscribe(Ping, colour.handler(fail), name="retried", retry=fixed(attempts=3, delay=1.0))
    bus.subscribe(Ping, colour.handler(fail), name="keyed", idempotency_key="number")
    receipt = colour.publish(bus, Ping())
    assert [None] * 3 == [each.exception.__context__ for each in receipt.failures]
    for letter in bus.dead_letters:
        assert [None] * letter.attempts == [
            each.exception and each.exception.__context__ for each in letter.failures
        ]


# -- what becomes known of it


@pytest.mark.parametrize(
    ("max_depth", "shown"),
    [
        (11, ["Ping", "Pong"] * 6),
        (12, [*["Ping", "Pong"] * 4, "…", "Ping", "Pong", "Ping"]),
    ],
)
def test_a_long_chain_is_shown_by_its_two_ends(max_depth: int, shown: list[str]):
    """
    Up to twelve publishes are named; of more than that the first eight and the last three.
    """
    with EventBus(max_depth=max_depth) as bus:
        for here, there in ((Ping, Pong), (Pong, Ping)):
            bus.subscribe(here, turn(bus, there, branches=1, frames=0, calls=[]), name=str(here))
        with pytest.raises(PublishCycleError) as raised:
            bus.publish(Ping())
    assert f"{max_depth + 1} deep: {' → '.join(shown)}. Break" in str(raised.value)
    assert max_depth + 1 == len(raised.value.chain)


@pytest.mark.parametrize("attempts", [1, 2])
@in_both_colours
def test_a_failure_is_logged_in_one_line(
    bus: EventBus, colour: Colour, attempts: int, caplog: pytest.LogCaptureFixture
):
    """
    It names subscription, event, id, attempts and error, and the record carries the error.
    """
    error = ValueError("no")

    def fail(ping: Ping) -> None:
        raise error

    policy = fixed(attempts=attempts, delay=1.0)
    bus.subscribe(Ping, colour.handler(fail), name="h", retry=policy)
    receipt = colour.publish(bus, Ping())
    [record] = caplog.records
    times = "1 attempt" if attempts == 1 else "2 attempts"
    assert f"h failed on Ping {receipt.id} after {times}: {error!r}" == record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error


@in_both_colours
def test_an_event_is_no_younger_than_its_failures(bus: EventBus, colour: Colour):
    """
    Where nobody has asked for its envelope before, the first failure does.
    """

    def fail(ping: Ping) -> None:
        raise ValueError("no")

    bus.subscribe(Ping, colour.handler(fail), name="h", retry=fixed(attempts=3, delay=60.0))
    colour.publish(bus, Ping())
    [letter] = bus.dead_letters
    assert letter.envelope.time == letter.first_failure
    assert 120.0 == (letter.last_failure - letter.first_failure).total_seconds()


class Asked(InMemoryIdempotencyStore):
    """
    A store of keys that notes what it is asked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def claim(self, scope: str, key: str, *, source: Any, now: float) -> Any:
        self.asked.append("claim")
        return super().claim(scope, key, source=source, now=now)

    def renew(self, claim: Any, *, now: float) -> bool:
        self.asked.append("renew")
        return super().renew(claim, now=now)

    def complete(self, claim: Any, *, now: float) -> bool:
        self.asked.append("complete")
        return super().complete(claim, now=now)

    def release(self, claim: Any) -> bool:
        self.asked.append("release")
        return super().release(claim)


@pytest.mark.parametrize("observers", [[], [ignore]], ids=["unobserved", "observed"])
@pytest.mark.parametrize("policy", POLICIES)
@in_both_colours
def test_without_a_key_no_store_is_asked(
    colour: Colour, policy: str, observers: list[Any], caplog: pytest.LogCaptureFixture
):
    """
    Neither a success nor a failure is any business of the store of keys.
    """
    store = Asked()

    def work(ping: Ping) -> None:
        if ping.number:
            raise ValueError("no")

    with EventBus(clock=VirtualClock(), observers=observers, idempotency=store) as bus:
        bus.subscribe(Ping, colour.handler(work), name="h", **POLICIES[policy])
        outcomes = [colour.publish(bus, Ping(number)).ok for number in (0, 1)]
        assert ([True, False], []) == (outcomes, store.asked)
    assert 1 == len(caplog.records)


@in_both_colours
def test_a_redrive_that_fails_is_told_once_more(bus: EventBus, colour: Colour):
    """
    The letter stays the same one; whatever it was kept for at first, its handler has failed now.
    """
    told: list[Any] = []

    def fail(ping: Ping) -> None:
        raise ValueError("no")

    bus.subscribe(Ping, colour.handler(fail), name="h")
    colour.publish(bus, Ping())
    [letter] = bus.dead_letters
    bus.dead_letters.replace(attrs.evolve(letter, reason="undelivered"))
    bus.observe(told.append)
    bus.clock.sleep(3_600.0)
    assert [False] == [each.ok for each in colour.redrive_all(bus)]
    [failed, dead_lettered] = told
    assert (Failed, 2) == (type(failed), failed.attempts)
    assert (
        DeadLettered(
            envelope=letter.envelope, subscription="h", letter_id=letter.id, reason="failed"
        )
        == dead_lettered
    )
    [again] = bus.dead_letters
    assert ("failed", letter.first_failure) == (again.reason, again.first_failure)
    assert 3_600.0 == (again.last_failure - letter.last_failure).total_seconds()


@pytest.mark.parametrize("timings", [False, True], ids=["untimed", "timed"])
@pytest.mark.parametrize("policy", [*POLICIES, "keyed"])
@in_both_colours
def test_a_success_makes_no_envelope_by_itself(colour: Colour, policy: str, timings: bool):
    """
    Identity and time are made when somebody asks, which here is after the publish.
    """
    options = POLICIES.get(policy, {"idempotency_key": "number"})
    with EventBus(clock=VirtualClock(), timings=timings) as bus:
        bus.subscribe(Ping, colour.handler(lambda ping: None), name="h", **options)
        receipts = [colour.publish(bus, Ping(number)) for number in (1, 2)]
        assert [(1, True), (1, True)] == [(r.delivered, r.envelope.is_late) for r in receipts]
