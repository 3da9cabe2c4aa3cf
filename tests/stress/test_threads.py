"""
Threads that subscribe, cancel and publish at the same time.

Bounded in count, and by ``PATIENCE`` in time. The short form runs by default, the
long one with ``-m long``.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextvars import copy_context
from itertools import count
from typing import Any

import pytest

from eventbus import Envelope, EventBus, event

THREADS = 8
PATIENCE = 300.0

Act = Callable[[int], None]


@event
class Counted:
    number: int


@event
class Root:
    number: int


@event
class Child:
    number: int


@event
class Ping:
    number: int


@event
class Pong:
    number: int


def rounds(short: int, long: int) -> pytest.MarkDecorator:
    """
    Run a test for few rounds, and for many when asked.
    """
    return pytest.mark.parametrize("rounds", [short, pytest.param(long, marks=pytest.mark.long)])


both_colours = pytest.mark.parametrize("colour", ["sync", "async"])


def at_once(act: Act, threads: int = THREADS) -> None:
    """
    Let *threads* threads act at the same time; raise what the first of them raised.
    """
    barrier, errors = threading.Barrier(threads, timeout=PATIENCE), deque[BaseException]()

    def run(number: int) -> None:
        try:
            barrier.wait()
            act(number)
        except BaseException as error:
            errors.append(error)

    started = [threading.Thread(target=run, args=(each,), daemon=True) for each in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(PATIENCE)
    assert [] == [each for each in started if each.is_alive()], "a deadlock"
    if errors:
        raise errors[0]


def coloured(colour: str, handler: Callable[[Any], object]) -> Callable[[Any], object]:
    async def ahandler(event: Any) -> None:
        handler(event)

    return handler if colour == "sync" else ahandler


# -- subscribing, cancelling and publishing


@both_colours
@rounds(40, 5_000)
def test_churn_loses_and_doubles_nothing(rounds: int, colour: str):
    """
    While threads subscribe and cancel, a subscription that stays gets each event once.
    """
    steady: deque[int] = deque()
    clock, cuts = count(), dict[str, int]()
    late: deque[tuple[str, int]] = deque()

    def act(thread: int) -> None:
        for turn in range(rounds):
            name, own = f"{thread}-{turn}", deque[int]()

            def brief(event: Counted, name: str = name, own: deque[int] = own) -> None:
                own.append(event.number)
                if event.number > cuts.get(name, event.number):
                    late.append((name, event.number))

            subscription = bus.subscribe(Counted, coloured(colour, brief), name=name)
            mine = next(clock)
            assert bus.publish(Counted(number=mine)).ok
            subscription.cancel()
            cuts[name] = next(clock)
            after = next(clock)
            assert bus.publish(Counted(number=after)).ok
            assert (1, 0) == (own.count(mine), own.count(after))
            assert len(own) == len(set(own)), "doubled"

    with EventBus() as bus:
        bus.subscribe(
            Counted, coloured(colour, lambda event: steady.append(event.number)), name="steady"
        )
        at_once(act)
        stats = bus.stats()

    published = 2 * THREADS * rounds
    assert published == len(steady) == len(set(steady))
    assert [] == list(late)
    assert (published, 0, {"steady"}) == (
        stats.published,
        stats.unhandled,
        set(stats.subscriptions),
    )
    assert published == stats.subscriptions["steady"].delivered


@rounds(100, 20_000)
def test_nothing_arrives_after_cancel(rounds: int):
    """
    No publish begun after cancel has returned reaches the handler, in whichever thread.
    """
    clock, late = count(), deque[tuple[int, int]]()
    done = threading.Event()

    def subscribe_and_cancel() -> None:
        for _ in range(rounds):
            cut: list[int] = []

            def brief(event: Counted, cut: list[int] = cut) -> None:
                if cut and event.number > cut[0]:
                    late.append((cut[0], event.number))

            with bus.subscribe(Counted, brief, name="brief"):
                bus.publish(Counted(number=next(clock)))
            cut.append(next(clock))

    def act(thread: int) -> None:
        if thread == 0:
            try:
                subscribe_and_cancel()
            finally:
                done.set()
            return
        while not done.is_set():
            bus.publish(Counted(number=next(clock)))

    with EventBus() as bus:
        at_once(act, 3)
    assert [] == list(late)


@rounds(200, 20_000)
def test_once_is_once_among_threads(rounds: int):
    """
    A subscription for one event gets one, of however many threads that publish.
    """
    seen: deque[int] = deque()
    with EventBus() as bus:
        for turn in range(rounds // 10):
            bus.subscribe(Counted, lambda event: seen.append(event.number), name="one", once=True)
            at_once(lambda thread, turn=turn: bus.publish(Counted(number=turn)) and None)
            assert () == bus.subscriptions
    assert list(range(rounds // 10)) == list(seen)


@both_colours
@rounds(150, 10_000)
def test_keys_are_delivered_once_among_threads(rounds: int, colour: str):
    """
    Events with the same key from all threads are handled once, and the rest are duplicates.
    """
    seen: deque[int] = deque()

    def act(_: int) -> None:
        for number in range(rounds):
            assert bus.publish(Counted(number=number)).ok

    with EventBus() as bus:
        bus.subscribe(
            Counted,
            coloured(colour, lambda event: seen.append(event.number)),
            name="keyed",
            idempotency_key=lambda event: str(event.number),
        )
        at_once(act)
        keyed = bus.stats().subscriptions["keyed"]
    assert dict.fromkeys(range(rounds), 1) == Counter(seen)
    assert (THREADS * rounds, rounds) == (keyed.published, keyed.delivered)
    assert ((THREADS - 1) * rounds, 0) == (keyed.duplicate, keyed.failed)


# -- two buses


@both_colours
@rounds(200, 20_000)
def test_two_buses_crosswise(rounds: int, colour: str):
    """
    Two threads publish on two buses whose handlers publish on the other: both come through.
    """
    seen: deque[tuple[str, int]] = deque()

    def wire(bus: EventBus, other: EventBus) -> None:
        def pass_on(event: Ping) -> None:
            assert other.publish(Pong(number=event.number)).ok

        def take(event: Pong) -> None:
            seen.append((bus.name, event.number))

        bus.subscribe(Ping, pass_on)
        bus.subscribe(Pong, coloured(colour, take))

    with EventBus(name="left") as left, EventBus(name="right") as right:
        buses = [left, right]
        wire(left, right)
        wire(right, left)

        def act(thread: int) -> None:
            for number in range(rounds):
                receipt = buses[thread].publish(Ping(number=number))
                assert (1, ()) == (receipt.delivered, receipt.failures)

        at_once(act, 2)
    expected = Counter((name, number) for name in ("left", "right") for number in range(rounds))
    assert expected == Counter(seen)


@rounds(200, 10_000)
def test_two_loop_threads_crosswise(rounds: int):
    """
    Async handlers that await a publish on the other bus do not wait for each other.
    """
    seen: deque[tuple[str, int]] = deque()

    def wire(bus: EventBus, other: EventBus) -> None:
        async def pass_on(event: Ping) -> None:
            assert (await other.apublish(Pong(number=event.number))).ok

        async def take(event: Pong) -> None:
            seen.append((bus.name, event.number))

        bus.subscribe(Ping, pass_on)
        bus.subscribe(Pong, take)

    with EventBus(name="left") as left, EventBus(name="right") as right:
        wire(left, right)
        wire(right, left)

        def act(thread: int) -> None:
            for number in range(rounds):
                assert (left, right)[thread].publish(Ping(number=number)).ok

        at_once(act, 2)
    expected = Counter((name, number) for name in ("left", "right") for number in range(rounds))
    assert expected == Counter(seen)


# -- causation


@both_colours
@rounds(150, 10_000)
def test_causation_stays_in_its_thread(rounds: int, colour: str):
    """
    Each child names the root that caused it, whatever other threads publish meanwhile.
    """
    roots: dict[int, tuple[str, str | None]] = {}
    children: dict[int, tuple[str | None, str]] = {}

    def publish_child(event: Root, envelope: Envelope[Root]) -> None:
        roots[event.number] = (envelope.id, envelope.causation_id)
        assert bus.publish(Child(number=event.number)).ok

    async def apublish_child(event: Root, envelope: Envelope[Root]) -> None:
        roots[event.number] = (envelope.id, envelope.causation_id)
        assert (await bus.apublish(Child(number=event.number))).ok

    def take(event: Child, envelope: Envelope[Child]) -> None:
        children[event.number] = (envelope.causation_id, envelope.correlation_id)

    def act(thread: int) -> None:
        for turn in range(rounds):
            assert bus.publish(Root(number=thread * rounds + turn)).ok

    with EventBus() as bus:
        bus.subscribe(Root, publish_child if colour == "sync" else apublish_child)
        bus.subscribe(Child, take)
        at_once(act)
    assert THREADS * rounds == len(roots) == len(children)
    assert {None} == {cause for _, cause in roots.values()}
    assert {number: (root, root) for number, (root, _) in roots.items()} == children


@rounds(100, 5_000)
def test_causation_follows_a_copied_context(rounds: int):
    """
    A thread that runs a copy of a handler's context publishes what that handler caused.
    """
    roots: list[tuple[str, str | None]] = []
    children: list[str | None] = []
    started: list[threading.Thread] = []
    go_on = threading.Event()

    def publish_child(number: int) -> None:
        assert go_on.wait(PATIENCE)
        bus.publish(Child(number=number))

    def start(event: Root, envelope: Envelope[Root]) -> None:
        roots.append((envelope.id, envelope.causation_id))
        run = copy_context().run
        thread = threading.Thread(target=run, args=(publish_child, event.number), daemon=True)
        started.append(thread)
        thread.start()

    def take(event: Child, envelope: Envelope[Child]) -> None:
        children.append(envelope.causation_id)

    with EventBus() as bus:
        bus.subscribe(Root, start)
        bus.subscribe(Child, take)
        for first in range(0, rounds, 50):  # so many threads at a time
            for number in range(first, min(first + 50, rounds)):
                bus.publish(Root(number=number))
            go_on.set()
            for thread in started:
                thread.join(PATIENCE)
            go_on.clear()
            started.clear()
    assert {None} == {cause for _, cause in roots}
    assert sorted(root for root, _ in roots) == sorted(map(str, children))
