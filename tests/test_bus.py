"""
The public verbs, where no other room's tests pass.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import nullcontext
from typing import Any

import pytest

from eventbus import (
    BusClosedError,
    DeadLetter,
    EventBus,
    HandlerErrors,
    InMemoryDeadLetters,
    PublishCycleError,
    Receipt,
    current_envelope,
    event,
)
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


@event
class B:
    n: int = 0


Publish = Callable[[EventBus, object], Receipt]


def test_plain_code_needs_no_asyncio():
    """
    A program that publishes to sync handlers never imports asyncio.
    """
    code = (
        "import sys; before = set(sys.modules); "
        "from eventbus import EventBus; seen = []; bus = EventBus(); "
        "bus.subscribe(int, seen.append, name='h'); bus.publish(1); bus.publish(2); "
        "print(seen, 'asyncio' in set(sys.modules) - before)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "[1, 2] False" == child.stdout.strip()


def test_asyncio_may_be_imported_between_two_publishes():
    """
    A task that a handler starts in the first loop of a program knows its cause.
    """
    code = (
        "from eventbus import EventBus, current_envelope; bus = EventBus(); seen = []; "
        "bus.subscribe(int, seen.append, name='h'); bus.publish(1); bus.publish(2)\n"
        "import asyncio\n"
        "async def later(): return current_envelope().event\n"
        "bus.subscribe(str, lambda it: seen.append(asyncio.create_task(later())), name='t')\n"
        "async def main():\n"
        "    bus.publish('three')\n"
        "    seen[-1] = await seen[-1]\n"
        "asyncio.run(main()); print(seen)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "[1, 2, 'three']" == child.stdout.strip()


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_interrupted_batch_frees_the_keys_of_what_failed(colour: str):
    """
    A batch that ends early frees the key of the event whose handler failed before.
    """
    bus = EventBus(clock=VirtualClock())

    def handler(happened: A) -> None:
        if happened.n == 1:
            raise ValueError("fails")
        raise KeyboardInterrupt

    bus.subscribe(A, handler, name="h")

    def publish_both() -> None:
        if colour == "sync":
            bus.publish_many([A(1), A(2)], idempotency_key="k")
        else:
            asyncio.run(bus.apublish_many([A(1), A(2)], idempotency_key="k"))

    with pytest.raises(KeyboardInterrupt):
        publish_both()
    assert not bus.publish(A(1), idempotency_key="k#0").duplicate


def test_what_a_plain_handler_returns_to_publish_is_awaited():
    """
    On the bus's own loop thread, the first time and every other.
    """
    seen: list[int] = []

    async def later(n: int) -> None:
        seen.append(n)

    with EventBus(clock=VirtualClock()) as bus:
        bus.subscribe(A, lambda happened: later(happened.n), name="h")
        assert all(bus.publish(A(n)).ok for n in range(3))
    assert [0, 1, 2] == seen


def test_a_handler_may_return_what_cannot_be_awaited():
    """
    A value that is no awaitable is ignored, in both colours.
    """
    bus = EventBus(clock=VirtualClock())
    bus.subscribe(A, lambda happened: 42, name="h")
    assert bus.publish(A()).ok
    assert asyncio.run(bus.apublish(A())).ok


async def _async_observer(occurrence: object) -> None: ...


@pytest.mark.parametrize("observer", [3, _async_observer])
def test_what_cannot_observe_is_refused_at_once(observer: object):
    """
    An observer that cannot be called, or would have to be awaited, is a TypeError.
    """
    with pytest.raises(TypeError, match="plain callable"):
        EventBus(observers=[observer])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="plain callable"):
        EventBus().observe(observer)  # type: ignore[arg-type]


def test_what_a_plain_handler_returns_to_apublish_is_awaited():
    """
    Also what is no coroutine; what cannot be awaited is let go.
    """

    @event
    class Asked:
        pass

    async def main() -> None:
        bus, answered = EventBus(), asyncio.get_running_loop().create_future()
        bus.subscribe(Asked, lambda asked: answered, name="awaitable")
        bus.subscribe(Asked, lambda asked: 7, name="number")
        asyncio.get_running_loop().call_soon(answered.set_result, None)
        receipt = await bus.apublish(Asked())
        assert (2, True) == (receipt.delivered, answered.done())

    asyncio.run(main())


# -- a publish that needs nothing but its calls goes ways of its own, once its route is made


class Stop(BaseException):
    """
    An interruption that neither pytest nor asyncio treats in a way of its own.
    """


@pytest.fixture(params=["publish, first", "publish", "apublish, first", "apublish"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """
    Publish where the route is still to be made, or is there already.
    """

    def run(bus: EventBus, happened: object) -> Receipt:
        if not request.param.endswith("first"):
            assert bus._routes[type(happened)] is bus._routes[type(happened)]
        if request.param.startswith("publish"):
            return bus.publish(happened)
        return asyncio.run(awaited(bus, happened))

    async def awaited(bus: EventBus, happened: object) -> Receipt:
        receipt = await bus.apublish(happened)
        assert current_envelope() is None
        return receipt

    return run


def counts(bus: EventBus) -> dict[str, tuple[int, int, int]]:
    """
    Return of each subscription what it has taken, given up and missed.
    """
    stats = bus.stats().subscriptions.items()
    return {name: (each.delivered, each.failed, each.missed) for name, each in stats}


def test_a_failure_ends_its_own_delivery_on_each_way(publish: Publish):
    """
    The others are called, in order; failure, dead letter and counts say whose it was.
    """
    bus, called = EventBus(clock=VirtualClock()), list[str]()

    def handler(name: str) -> Callable[[A], None]:
        def handle(happened: A) -> None:
            called.append(name)
            if name in {"b", "d"}:
                raise ValueError(name)

        return handle

    for name in "abcde":
        bus.subscribe(A, handler(name), name=name)
    receipt = publish(bus, A())
    assert ["a", "b", "c", "d", "e"] == called
    assert [("b", "b"), ("d", "d")] == [
        (each.subscription, str(each.exception)) for each in receipt.failures
    ]
    assert 3 == receipt.delivered
    assert ["b", "d"] == [each.subscription for each in bus.dead_letters]
    assert {name: (0, 1, 0) if name in "bd" else (1, 0, 0) for name in "abcde"} == counts(bus)


@pytest.mark.parametrize("failing", ["nobody", "before", "behind"])
def test_an_interruption_passes_on_each_way(publish: Publish, failing: str):
    """
    Those before it have had the event, it and those behind have missed it; no letter is kept.
    """
    bus = EventBus(clock=VirtualClock())

    def handler(name: str) -> Callable[[A], None]:
        def handle(happened: A) -> None:
            if name == "stop":
                raise Stop
            if name == failing:
                raise ValueError(name)

        return handle

    for name in ("before", "stop", "behind"):
        bus.subscribe(A, handler(name), name=name)
    with pytest.raises(Stop):
        publish(bus, A())
    before = (0, 1, 0) if failing == "before" else (1, 0, 0)
    assert {"before": before, "stop": (0, 0, 1), "behind": (0, 0, 1)} == counts(bus)
    assert (failing == "before") == bool(bus.dead_letters)


class Interrupting(InMemoryDeadLetters):
    """
    Interrupts whoever buries a failure.
    """

    def add(self, letter: DeadLetter) -> bool:
        raise Stop


def test_an_interruption_while_a_failure_is_buried_passes_on_each_way(publish: Publish):
    """
    Who failed has failed and not missed the event as well; those behind have missed it.
    """
    bus = EventBus(clock=VirtualClock(), dead_letters=Interrupting())

    def fail(happened: A) -> None:
        raise ValueError("no")

    bus.subscribe(A, lambda happened: None, name="before")
    bus.subscribe(A, fail, name="fail")
    bus.subscribe(A, lambda happened: None, name="behind")
    with pytest.raises(Stop):
        publish(bus, A())
    assert {"before": (1, 0, 0), "fail": (0, 1, 0), "behind": (0, 0, 1)} == counts(bus)


def test_what_changes_during_a_publish_follows_the_snapshot_rule_on_each_way(publish: Publish):
    """
    Who is cancelled meanwhile is not called any more, and who has come waits for the next.
    """
    bus, called = EventBus(clock=VirtualClock()), list[str]()

    def change(happened: A) -> None:
        called.append("change")
        if gone.is_active:
            gone.cancel()
            bus.subscribe(A, lambda happened: called.append("new"), name="new")

    bus.subscribe(A, change)
    gone = bus.subscribe(A, lambda happened: called.append("gone"), name="gone")
    bus.subscribe(A, lambda happened: called.append("last"), name="last")
    assert 2 == publish(bus, A()).delivered
    assert ["change", "last"] == called
    called.clear()
    assert 3 == publish(bus, A()).delivered
    assert ["change", "last", "new"] == called


@pytest.mark.parametrize("outcome", [None, ValueError(), Stop()], ids=repr)
def test_the_event_is_here_while_it_is_handled_on_each_way(
    publish: Publish, outcome: BaseException | None
):
    """
    What its handlers publish is caused by it; afterwards, however it ended, nothing is.
    """
    bus, seen, inner = EventBus(clock=VirtualClock()), list[Any](), list[Receipt]()

    def handle(happened: A) -> None:
        seen.append(current_envelope())
        inner.append(bus.publish(B()))
        assert current_envelope() is seen[0]
        if outcome is not None:
            raise outcome

    bus.subscribe(A, handle)
    bus.subscribe(B, lambda happened: seen.append(current_envelope()), name="inner")
    with pytest.raises(Stop) if isinstance(outcome, Stop) else nullcontext():
        publish(bus, A())
    outside = publish(bus, B())
    of_a, of_b, last = seen
    assert (A(), B(), B()) == (of_a.event, of_b.event, last.event)
    assert (None, of_a.id, None) == (of_a.causation_id, of_b.causation_id, last.causation_id)
    assert of_b is inner[0].envelope
    assert last is outside.envelope
    assert not any(each.is_late for each in seen)


def test_an_envelope_asked_for_afterwards_is_late_on_each_way(publish: Publish):
    """
    Whether all went well, a handler failed, or there was none.
    """
    bus = EventBus(clock=VirtualClock())
    assert publish(bus, A()).envelope.is_late
    bus.subscribe(A, lambda happened: None, name="h")
    assert publish(bus, A()).envelope.is_late
    assert 2 == bus.stats().published


def test_a_raising_bus_raises_when_all_have_run_on_each_way(publish: Publish):
    """
    One group with all failures, and the neighbours have had the event.
    """
    bus, called = EventBus(errors="raise", clock=VirtualClock()), list[int]()

    def fail(happened: A) -> None:
        raise ValueError("no")

    for name in ("first", "second"):
        bus.subscribe(A, fail, name=name)
    bus.subscribe(A, lambda happened: called.append(happened.n), name="third")
    with pytest.raises(HandlerErrors, match="2 handlers of A failed: first, second"):
        publish(bus, A(7))
    assert [7] == called


def test_a_cycle_ends_on_each_way(publish: Publish):
    """
    So deep as the bus allows, and what comes after it is at the surface again.
    """
    bus, called = EventBus(max_depth=4, clock=VirtualClock()), list[int]()

    def handle(happened: A) -> None:
        called.append(happened.n)
        if happened.n:
            bus.publish(A(happened.n))

    bus.subscribe(A, handle)
    for _ in range(2):
        called.clear()
        with pytest.raises(PublishCycleError, match="A → A → A → A → A"):
            publish(bus, A(1))
        assert 4 == len(called)
    assert publish(bus, A(0)).ok


def test_a_closed_bus_takes_nothing_on_each_way(publish: Publish):
    """
    Not even by a route that was made while it was open; nobody is called.
    """
    bus, called = EventBus(clock=VirtualClock()), list[A]()
    bus.subscribe(A, called.append, name="h")
    publish(bus, A(1))
    bus.close()
    with pytest.raises(BusClosedError, match="takes no A"):
        bus.publish(A(2))
    with pytest.raises(BusClosedError, match="takes no A"):
        asyncio.run(bus.apublish(A(3)))
    assert [A(1)] == called


class Promise:
    """
    What a handler returns: neither a coroutine nor a future, and to be awaited all the same.
    """

    def __init__(self, kept: list[str], name: str) -> None:
        self.kept = kept
        self.name = name

    def __await__(self) -> Generator[Any]:
        yield from asyncio.sleep(0).__await__()
        if self.name == "broken":
            raise ValueError("broken")
        self.kept.append(self.name)


def test_what_handlers_promise_is_part_of_their_delivery_on_each_way(publish: Publish):
    """
    It is awaited before the next handler is called, and if it fails, that one has failed.
    """
    kept: list[str] = []
    with EventBus(clock=VirtualClock()) as bus:
        for name in ("first", "broken", "last"):
            bus.subscribe(A, lambda happened, name=name: Promise(kept, name), name=name)
        bus.subscribe(A, lambda happened: kept.append("sync"), name="sync")
        receipt = publish(bus, A())
    assert ["first", "last", "sync"] == kept
    assert ["broken"] == [each.subscription for each in receipt.failures]
    assert 3 == receipt.delivered
