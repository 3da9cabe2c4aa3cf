"""
One async bus under many publishes at the same time.

Bounded in count. The short form runs by default, the long one with ``-m long``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Literal

import pytest

from eventbus import Envelope, EventBus, Receipt, event

PATIENCE = 300.0

Fanout = Literal["sequential", "concurrent"]


@event
class Counted:
    number: int


@event
class Child:
    number: int


both_fanouts = pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
many_publishes = pytest.mark.parametrize(
    ("fanout", "publishes"),
    [
        ("sequential", 10_000),
        ("concurrent", 3_000),
        pytest.param("sequential", 200_000, marks=pytest.mark.long),
        pytest.param("concurrent", 200_000, marks=pytest.mark.long),
    ],
)
few_publishes = pytest.mark.parametrize(
    "publishes", [1_000, pytest.param(100_000, marks=pytest.mark.long)]
)


async def all_at_once(bus: EventBus, numbers: list[int]) -> list[Receipt]:
    async with asyncio.timeout(PATIENCE):
        return await asyncio.gather(*(bus.apublish(Counted(number=each)) for each in numbers))


@many_publishes
def test_each_event_is_delivered_once(fanout: Fanout, publishes: int):
    """
    Of thousands of concurrent publishes each reaches each handler once, and is counted once.
    """
    seen: dict[str, list[int]] = {"sync": [], "async": []}

    def take(event: Counted) -> None:
        seen["sync"].append(event.number)

    async def atake(event: Counted) -> None:
        await asyncio.sleep(0)
        seen["async"].append(event.number)

    async def main() -> list[Receipt]:
        async with bus:
            return await all_at_once(bus, list(range(publishes)))

    bus = EventBus(fanout=fanout)
    bus.subscribe(Counted, take, name="sync")
    bus.subscribe(Counted, atake, name="async")
    receipts = asyncio.run(main())
    assert {(2, True)} == {(each.delivered, each.ok) for each in receipts}
    expected = list(range(publishes))
    assert expected == sorted(seen["sync"])
    assert expected == sorted(seen["async"])
    stats = bus.stats()
    assert (publishes, 0, 0) == (stats.published, stats.unhandled, stats.duplicate)
    assert [publishes] * 2 == [each.delivered for each in stats.subscriptions.values()]


@few_publishes
@both_fanouts
def test_each_key_is_delivered_once(fanout: Fanout, publishes: int):
    """
    Of concurrent events with the same key one is handled, the others wait and are duplicates.
    """
    distinct = publishes * 4 // 5  # a fifth of them comes twice
    numbers = [*range(distinct), *range(publishes - distinct)]
    keyed: list[int] = []
    plain: list[int] = []

    async def take_keyed(event: Counted) -> None:
        await asyncio.sleep(0)
        keyed.append(event.number)

    async def take(event: Counted) -> None:
        plain.append(event.number)
        await asyncio.sleep(0)

    async def main() -> list[Receipt]:
        async with bus:
            return await all_at_once(bus, numbers)

    bus = EventBus(fanout=fanout)
    bus.subscribe(Counted, take_keyed, name="keyed", idempotency_key=lambda event: event.number)
    bus.subscribe(Counted, take, name="plain")
    receipts = asyncio.run(main())
    duplicates = publishes - distinct
    assert list(range(distinct)) == sorted(keyed)
    assert Counter(numbers) == Counter(plain)
    assert {False: distinct, True: duplicates} == Counter(each.duplicate for each in receipts)
    counted = bus.stats().subscriptions["keyed"]
    assert (publishes, distinct, duplicates) == (
        counted.published,
        counted.delivered,
        counted.duplicate,
    )
    assert (0, 0, publishes) == (
        counted.failed,
        counted.missed,
        bus.stats().subscriptions["plain"].delivered,
    )


@few_publishes
@both_fanouts
def test_publishers_keys_are_delivered_once(fanout: Fanout, publishes: int):
    """
    Of concurrent publishes with the same key one goes out; the others name its id.
    """
    seen: list[int] = []

    async def take(event: Counted) -> None:
        await asyncio.sleep(0)
        seen.append(event.number)

    async def main() -> list[Receipt]:
        async with bus, asyncio.timeout(PATIENCE):
            pending = [
                bus.apublish(Counted(number=each // 2), idempotency_key=str(each // 2))
                for each in range(publishes)
            ]
            return await asyncio.gather(*pending)

    bus = EventBus(fanout=fanout)
    bus.subscribe(Counted, take)
    receipts = asyncio.run(main())
    assert list(range(publishes // 2)) == sorted(seen)
    assert [False, True] * (publishes // 2) == [each.duplicate for each in receipts]
    firsts = [each.id for each in receipts[::2]]
    assert firsts == [each.duplicate_of for each in receipts[1::2]]
    assert (publishes // 2, publishes // 2) == (bus.stats().published, bus.stats().duplicate)


@few_publishes
@both_fanouts
def test_failures_and_cancellations_add_up(fanout: Fanout, publishes: int):
    """
    With every third handler failing and every third publish cancelled, the counts add up.
    """
    begun: set[int] = set()
    all_begun = asyncio.Event()

    async def take(event: Counted) -> None:
        begun.add(event.number)
        if len(begun) == publishes:
            all_begun.set()
        if event.number % 3 == 1:
            raise ValueError(event.number)
        await (asyncio.Event().wait() if event.number % 3 == 2 else asyncio.sleep(0))

    async def main() -> list[Receipt | BaseException]:
        async with bus, asyncio.timeout(PATIENCE):
            tasks = [asyncio.create_task(bus.apublish(Counted(number=n))) for n in range(publishes)]
            await all_begun.wait()
            for task in tasks[2::3]:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    bus = EventBus(fanout=fanout, errors="raise")
    bus.subscribe(Counted, take, name="take")
    outcomes = asyncio.run(main())
    thirds = [len(range(each, publishes, 3)) for each in range(3)]
    counted = bus.stats().subscriptions["take"]
    assert [publishes, *thirds] == [
        counted.published,
        counted.delivered,
        counted.failed,
        counted.missed,
    ]
    assert thirds[0] == sum(isinstance(each, Receipt) for each in outcomes)
    assert thirds[2] == sum(isinstance(each, asyncio.CancelledError) for each in outcomes)


@few_publishes
@both_fanouts
def test_causation_stays_in_its_task(fanout: Fanout, publishes: int):
    """
    Each child names the event whose handler published it, whatever other tasks publish.
    """
    roots: dict[int, str] = {}
    children: dict[int, str | None] = {}

    async def publish_child(event: Counted, envelope: Envelope[Counted]) -> None:
        roots[event.number] = envelope.id
        await asyncio.sleep(0)
        await bus.apublish(Child(number=event.number))

    async def take(event: Child, envelope: Envelope[Child]) -> None:
        await asyncio.sleep(0)
        children[event.number] = envelope.causation_id

    async def main() -> None:
        async with bus:
            await all_at_once(bus, list(range(publishes)))

    bus = EventBus(fanout=fanout)
    bus.subscribe(Counted, publish_child)
    bus.subscribe(Child, take)
    asyncio.run(main())
    assert publishes == len(roots)
    assert roots == children
