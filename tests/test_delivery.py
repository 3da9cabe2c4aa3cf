"""
One key, many who want it: who runs, who waits, who is a duplicate, in every order of events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import EventBus, Inline, InMemoryIdempotencyStore, Queued, Receipt, event, fixed
from eventbus.testing import TestBus, VirtualClock

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging
LEASE = 10.0

Fanout = Literal["sequential", "concurrent"]


@event
class Charged:
    key: str
    number: int


async def quiet() -> None:
    """
    Let all tasks go on until each waits for something: far more steps than one needs.
    """
    for _ in range(40):
        await asyncio.sleep(0)


@attrs.define
class World:
    """
    A bus with one idempotent handler, whose every call ends when and as it is told.
    """

    bus: EventBus
    begun: int = 0
    publishes: dict[int, asyncio.Task[Receipt]] = attrs.field(factory=dict)
    keys: dict[int, str] = attrs.field(factory=dict)
    running: dict[str, tuple[int, asyncio.Future[None]]] = attrs.field(factory=dict)
    succeeded: dict[str, int] = attrs.field(factory=dict)

    async def handle(self, charged: Charged) -> None:
        assert charged.key not in self.running, "two at once"
        assert charged.key not in self.succeeded, "once more after a success"
        gate = asyncio.get_running_loop().create_future()
        self.running[charged.key] = charged.number, gate
        try:
            await gate
            self.succeeded[charged.key] = charged.number
        finally:
            del self.running[charged.key]

    def publish(self, key: str) -> None:
        number = len(self.publishes)
        self.keys[number] = key
        self.publishes[number] = asyncio.create_task(self._publish(Charged(key, number)))

    async def _publish(self, charged: Charged) -> Receipt:
        self.begun += 1  # one that is cancelled before its first step never comes here
        return await self.bus.apublish(charged)

    def succeed(self, key: str) -> None:
        if key in self.running:
            self.running[key][1].set_result(None)

    def fail(self, key: str) -> None:
        if key in self.running:
            self.running[key][1].set_exception(ValueError("declined"))

    def cancel(self, key: str) -> None:
        if key in self.running:
            self.publishes[self.running[key][0]].cancel()

    def cancel_one_that_waits(self, key: str) -> None:
        waiting = [each for each in self.waiting(key) if each != self.running[key][0]]
        for number in waiting[:1]:
            self.publishes[number].cancel()

    def waiting(self, key: str) -> list[int]:
        return [
            number
            for number, task in self.publishes.items()
            if self.keys[number] == key and not task.done()
        ]

    def check(self) -> None:
        """
        Nobody waits for nothing: of those not done, one runs, and none after a success.
        """
        for key in self.keys.values():
            if key in self.succeeded:
                assert [] == self.waiting(key)
            elif self.waiting(key):
                assert self.running[key][0] in self.waiting(key)

    async def finish(self) -> None:
        while self.running:
            for key in list(self.running):
                self.succeed(key)
            await quiet()
        await asyncio.wait_for(
            asyncio.gather(*self.publishes.values(), return_exceptions=True), PATIENCE
        )

    def check_receipts(self) -> None:
        """
        Each publish was cancelled, or the one success, or failed, or refers to the success.
        """
        for number, task in self.publishes.items():
            if task.cancelled():
                continue
            receipt, first = task.result(), self.succeeded.get(self.keys[number])
            if number == first:
                assert (1, False) == (receipt.delivered, receipt.duplicate)
            elif receipt.duplicate:
                assert first is not None
                assert self.publishes[first].result().id == receipt.duplicate_of
                assert (0, True) == (receipt.delivered, receipt.ok)
            else:
                assert ["handle"] == [each.subscription for each in receipt.failures]

    def check_counts(self) -> None:
        stats = self.bus.stats().subscriptions["handle"]
        assert self.begun == stats.published
        assert len(self.succeeded) == stats.delivered
        ended = stats.delivered + stats.failed + stats.duplicate + stats.missed
        assert stats.published == ended
        assert len(self.bus.dead_letters) == stats.failed


ACTS = ["publish", "publish", "succeed", "fail", "cancel", "cancel_one_that_waits"]


@given(
    acts=st.lists(st.tuples(st.sampled_from(ACTS), st.sampled_from("ab")), max_size=25),
    pauses=st.lists(st.booleans(), min_size=25, max_size=25),
    attempts=st.integers(1, 3),
    fanout=st.sampled_from(["sequential", "concurrent"]),
)
def test_of_all_who_want_a_key_one_at_a_time_runs_until_one_succeeds(
    acts: list[tuple[str, str]], pauses: list[bool], attempts: int, fanout: Fanout
):
    """
    In any order of publishes, successes, failures and cancellations, retried or not.
    """

    async def live() -> None:
        bus = EventBus(clock=VirtualClock(), fanout=fanout)
        world = World(bus)
        policy = fixed(attempts=attempts, delay=1.0)
        bus.subscribe(Charged, world.handle, name="handle", idempotency_key="key", retry=policy)
        for (act, key), pause in zip(acts, pauses, strict=False):
            if act != "cancel_one_that_waits" or key in world.running:
                getattr(world, act)(key)
            if pause or act != "publish":
                await quiet()
                world.check()
        await quiet()
        await world.finish()
        world.check_receipts()
        world.check_counts()
        bus.close()

    asyncio.run(live())


# -- time


def world_of(fanout: Fanout = "sequential", **options: Any) -> World:
    store = InMemoryIdempotencyStore(lease=LEASE)
    world = World(EventBus(clock=VirtualClock(), idempotency=store, fanout=fanout))
    world.bus.subscribe(Charged, world.handle, name="handle", idempotency_key="key", **options)
    return world


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


def test_a_delivery_keeps_its_key_while_it_waits_for_the_next_attempt():
    """
    A duplicate published long after the lease, but before the retry, waits for its outcome.
    """
    world = world_of(retry=fixed(attempts=2, delay=10 * LEASE))

    async def live() -> None:
        async def meanwhile() -> None:
            await world.bus.clock.asleep(5 * LEASE)
            world.publish("a")

        world.publish("a")
        await quiet()
        later = asyncio.create_task(meanwhile())
        world.fail("a")
        await quiet()
        assert later.done()
        assert 10 * LEASE == world.bus.clock.monotonic()
        await world.finish()
        assert {"a": 0} == world.succeeded
        assert world.publishes[1].result().duplicate

    run(live())


def test_a_late_finisher_does_not_free_the_key_of_its_successor():
    """
    Once its lease has ended another may run; the first one's end is then nobody's business.
    """
    bus = EventBus(clock=VirtualClock(), idempotency=InMemoryIdempotencyStore(lease=LEASE))
    gates: list[asyncio.Future[None]] = []

    async def handle(charged: Charged) -> None:
        gates.append(asyncio.get_running_loop().create_future())
        await gates[-1]

    bus.subscribe(Charged, handle, name="handle", idempotency_key="key")

    async def live() -> None:
        crashed = asyncio.create_task(bus.apublish(Charged("a", 0)))
        await quiet()
        clock = bus.clock
        assert isinstance(clock, VirtualClock)
        clock.advance(LEASE)
        successor = asyncio.create_task(bus.apublish(Charged("a", 1)))
        await quiet()
        third = asyncio.create_task(bus.apublish(Charged("a", 2)))
        await quiet()
        assert 2 == len(gates)
        gates[0].set_exception(ValueError("at last"))
        await quiet()
        assert (True, False, False) == (crashed.done(), successor.done(), third.done())
        assert 2 == len(gates)
        gates[1].set_result(None)
        assert (await successor).id == (await third).duplicate_of

    run(live())


# -- nested


@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
def test_handlers_of_one_event_do_not_wait_for_each_other(fanout: Fanout):
    """
    Each publishes the key again while another may hold it: each runs once, and none hangs.
    """
    bus = EventBus(fanout=fanout)
    calls: list[tuple[str, int]] = []

    async def first(charged: Charged) -> None:
        calls.append(("first", charged.number))
        assert (await bus.apublish(Charged("a", charged.number + 1))).duplicate

    async def second(charged: Charged) -> None:
        calls.append(("second", charged.number))
        assert (await bus.apublish(Charged("a", charged.number + 1))).duplicate

    bus.subscribe(Charged, first, idempotency_key="key")
    bus.subscribe(Charged, second, idempotency_key="key")

    async def live() -> None:
        assert (await bus.apublish(Charged("a", 0))).ok
        assert ["first", "second"] == sorted(name for name, _ in calls)
        assert 0 == len(bus.dead_letters)

    run(live())


@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
def test_a_waiting_publish_that_is_cancelled_leaves_nothing(fanout: Fanout):
    """
    Neither a task nor a claim: the holder goes on, and the next one is its duplicate.
    """
    world = world_of(fanout)

    async def live() -> None:
        before = asyncio.all_tasks()
        world.publish("a")
        await quiet()
        waiting = asyncio.create_task(world.bus.apublish(Charged("a", 9)))
        await quiet()
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting
        assert waiting.cancelled()
        await world.finish()
        assert {"a": 0} == world.succeeded
        world.publish("a")
        await quiet()
        assert world.publishes[1].result().duplicate
        assert before == asyncio.all_tasks()

    run(live())


@pytest.mark.parametrize("mode", [Inline(), Queued()], ids=["inline", "queued"])
def test_a_key_that_is_an_address_fails_the_delivery(mode: Any, caplog: pytest.LogCaptureFixture):
    """
    A method that was not called would make strangers duplicates: none is turned away.
    """
    caplog.set_level(logging.CRITICAL, "eventbus")
    calls = list[Charged]()
    read: Any = lambda charged: charged.key.upper  # noqa: E731 - as it is forgotten
    with TestBus(errors="collect") as bus:
        bus.subscribe(Charged, calls.append, name="h", delivery=mode, idempotency_key=read)
        for number in range(5):
            bus.publish(Charged(f"k{number}", number))
        bus.settle()
        assert 5 == len(bus.dead_letters)
        assert {"TypeError"} == {
            each.failures[0].error_type.rpartition(".")[2] for each in bus.dead_letters
        }
    assert [] == calls
