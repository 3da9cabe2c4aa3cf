"""
How what was prepared is run: with keys, in batches, at the end of a block, when it is due.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from eventbus import Durable, EventBus, InMemoryIdempotencyStore, event
from eventbus._deferred import Deferred
from eventbus.memory import MemoryStore
from eventbus.testing import TestBus

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


@event(key="key")
class Placed:
    number: int
    key: str = "K"


@event(logged=False)
class Measured:
    number: int


def test_a_delayed_duplicate_is_not_scheduled() -> None:
    """
    Its key was used before: the receipt says so, and nothing becomes due.
    """
    with TestBus() as bus:
        bus.publish(Placed(1), idempotency_key="k")
        receipt = bus.publish(Placed(1), idempotency_key="k", delay=30.0)
        assert (True, False) == (receipt.duplicate, receipt.is_scheduled)
        assert 0 == bus.stats().scheduled


def test_a_batch_of_what_is_not_logged_is_delivered_all_the_same() -> None:
    """
    A bus with a store writes nothing for it, in either colour.
    """
    bus, seen = TestBus(durable=True), list[int]()
    bus.subscribe(Measured, lambda measured: seen.append(measured.number), name="inline")
    bus.publish_many([Measured(1), Measured(2)])
    asyncio.run(bus.apublish_many([Measured(3), Measured(4)]))
    assert [1, 2, 3, 4] == seen
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


def test_an_async_block_needs_no_store() -> None:
    """
    What is published in it waits for its end, and async handlers are awaited there.
    """
    bus, seen = TestBus(), list[int]()

    @bus.on(Placed, name="inline")
    async def note(placed: Placed) -> None:
        await asyncio.sleep(0)
        seen.append(placed.number)

    async def main() -> None:
        async with bus.deferred():
            await bus.apublish(Placed(1))
            assert [] == seen

    asyncio.run(main())
    assert [1] == seen


def test_a_sync_block_in_a_loop_publishes_what_needs_no_loop() -> None:
    """
    Sync handlers are called when it ends, in a thread with a running event loop, too.
    """
    bus, seen = TestBus(), list[int]()
    bus.subscribe(Placed, lambda placed: seen.append(placed.number), name="inline")

    async def main() -> None:
        with bus.deferred():
            bus.publish(Placed(1))
            assert [] == seen
        assert [1] == seen

    asyncio.run(main())


def test_an_async_block_that_raises_drops_what_it_has_published() -> None:
    """
    Its events reach nobody, and what is published afterwards does not wait.
    """
    bus, seen = TestBus(), list[int]()
    bus.subscribe(Placed, lambda placed: seen.append(placed.number), name="inline")

    async def fail() -> None:
        async with bus.deferred():
            await bus.apublish(Placed(1))
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(fail())
    bus.publish(Placed(2))
    assert [2] == seen


def test_what_has_left_its_block_cannot_be_cancelled() -> None:
    """
    From then on it is on its way; before, cancelling it finishes the receipt.
    """

    async def nothing(_: Deferred) -> None: ...

    block, bus = Deferred(lambda _: None, nothing), TestBus()
    taken, cancelled = bus.publish(Placed(1)), bus.publish(Placed(2))
    block.add(cancelled)
    assert block.cancel(cancelled)
    block.add(taken)
    assert [taken] == block.take_all()
    assert not block.cancel(taken)


def test_a_delayed_publish_is_logged_in_a_loop_too() -> None:
    """
    On a bus that a loop has entered it is stored when it is due, and not before.
    """

    async def main() -> None:
        store, is_over = MemoryStore(), asyncio.Event()
        async with EventBus(store=store) as bus:

            @bus.on(Placed, name="inline")
            async def note(placed: Placed) -> None:
                is_over.set()

            await bus.apublish(Placed(1), delay=0.01)
            assert 0 == store.log.last_offset()
            async with asyncio.timeout(PATIENCE):
                await is_over.wait()
            assert (await bus.adrain(PATIENCE)).ok
            assert 1 == store.log.last_offset()

    asyncio.run(main())


def test_an_async_redrive_of_all_stops_at_a_key_that_fails_again() -> None:
    """
    Those behind it in its key are not called; other keys go on.
    """
    bus, calls = TestBus(durable=True, errors="collect"), list[int]()

    @bus.on(Placed, name="shop", delivery=Durable(on_dead_letter="hold_key"))
    async def fail(placed: Placed) -> None:
        calls.append(placed.number)
        if placed.key == "K":
            raise ValueError

    async def main() -> None:
        await bus.apublish_many([Placed(1), Placed(2), Placed(3, key="L")])
        await bus.asettle()
        assert {1, 3} == set(calls)
        receipts = await bus.aredrive_all()
        assert [False] == [each.ok for each in receipts]

    asyncio.run(main())
    assert [1, 1] == [number for number in calls if number != 3]
    assert [1, 2] == [letter.event.number for letter in bus.dead_letters]


def test_a_key_that_cannot_be_recorded_is_logged_and_hides_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    The event is stored by then, and is delivered; its key is held until the lease ends.
    """

    class Broken(InMemoryIdempotencyStore):
        def complete(self, claim: Any, *, now: float) -> bool:
            raise ConnectionError("no answer")

    store, seen = MemoryStore(), list[object]()
    with EventBus(store=store, idempotency=Broken()) as bus:
        bus.subscribe(Placed, seen.append, name="inline")
        with caplog.at_level(logging.ERROR, logger="eventbus"):
            receipt = bus.publish(Placed(1), idempotency_key="k")
    assert (True, [Placed(1)]) == (receipt.ok, seen)
    assert ["the idempotency key of one Placed is not recorded"] == [
        each.getMessage() for each in caplog.records
    ]
