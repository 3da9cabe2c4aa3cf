"""
Publishers, queues and handlers that fail: every event is accounted for.

Bounded in count, and by ``PATIENCE`` in time. The short form runs by default, the
long one with ``-m long``. What is random comes from a seed, which a failure shows and
``STRESS_SEED`` sets.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any, cast

import attrs
import pytest

from eventbus import EventBus, Queued, QueueFullError
from eventbus.instrumentation import Delivered, Dropped, Duplicate, Failed, Occurrence, Retried
from eventbus.retry import fixed
from stress.books import LONG_PATIENCE, PATIENCE, Book, Fact, at_once, handler_of, origin

PUBLISHERS = 16
KEYS = 24
TOLD = {
    Delivered: "delivered",
    Failed: "failed",
    Dropped: "dropped",
    Retried: "retried",
    Duplicate: "duplicate",
}

pytestmark = pytest.mark.usefixtures("silence")


def counters() -> dict[tuple[str, str], Iterator[int]]:
    """
    Return what counts in one step, whichever threads count at once.
    """
    return {(name, field): count() for name in SUBSCRIPTIONS for field in TOLD.values()}


@attrs.frozen(kw_only=True)
class Shelf:
    """
    The books of all subscriptions of one run, and what its publishers were told.
    """

    books: dict[str, Book]
    patience: float
    refused: deque[tuple[str, int]] = attrs.field(factory=deque)
    told: dict[tuple[str, str], Iterator[int]] = attrs.field(factory=counters)
    published: deque[int] = attrs.field(factory=deque)
    is_over: threading.Event = attrs.field(factory=threading.Event)
    wrong: deque[str] = attrs.field(factory=partial(deque, maxlen=20))


def half(event: Fact) -> bool:
    return event.number % 2 == 0


def pairs(event: Fact) -> str:
    return str(event.number // 32)  # of one publisher: two of its events that come in a row


# Whether the handler is async, the queue, and other options.
SUBSCRIPTIONS: dict[str, tuple[bool, Queued, dict[str, Any]]] = {
    "one": (False, Queued(capacity=64), {"where": half}),
    "keyed": (False, Queued(capacity=64, workers=4, ordered_by="key"), {}),
    "oldest": (False, Queued(capacity=32, workers=3, overflow="drop_oldest"), {}),
    "newest": (
        False,
        Queued(capacity=32, workers=2, overflow="drop_newest", ordered_by="key"),
        {"max_rate": 20_000},
    ),
    "aone": (True, Queued(capacity=64), {"idempotency_key": pairs}),
    "akeyed": (True, Queued(capacity=128, workers=8, ordered_by="key"), {}),
    "araise": (True, Queued(capacity=128, workers=4, overflow="raise", ordered_by="key"), {}),
    "aoldest": (
        True,
        Queued(capacity=32, workers=2, overflow="drop_oldest", ordered_by="key"),
        {},
    ),
}


def fill(bus: EventBus, *, seed: int, size: int) -> Shelf:
    """
    Subscribe a handler with a book for each of the subscriptions.
    """
    books: dict[str, Book] = {}
    for name, (is_async, mode, options) in SUBSCRIPTIONS.items():
        book = books[name] = Book(
            name,
            seed=str(seed),
            size=size,
            workers=mode.workers,
            is_ordered=mode.ordered_by is not None,
            is_lossy=mode.overflow == "drop_oldest",
        )
        bus.subscribe(
            Fact,
            handler_of(book, is_async=is_async),
            name=name,
            delivery=mode,
            retry=fixed(delay=0.0005, attempts=3),
            **options,
        )
    return Shelf(books=books, patience=PATIENCE if size < 10_000 else LONG_PATIENCE)


# -- publishing ----------------------------------------------------------------------------------


def facts(publisher: int, size: int) -> list[int]:
    return list(range(publisher, size, PUBLISHERS))


def fact(publisher: int, number: int) -> Fact:
    place = number // PUBLISHERS
    key = None if place % 10 == 9 else f"k{(place * 7 + publisher) % KEYS}"
    return Fact(number=number, publisher=publisher, key=key)


def note(shelf: Shelf, receipt: Any) -> None:
    """
    Write down what the receipt says; queues with overflow="raise" alone may refuse.
    """
    shelf.published.append(receipt.event.number)
    for failure in receipt.failures:
        if not isinstance(failure.exception, QueueFullError) or failure.attempts:
            shelf.wrong.append(repr(failure))
        shelf.refused.append((failure.subscription, receipt.event.number))


def publish(bus: EventBus, shelf: Shelf, size: int, publisher: int) -> None:
    origin.set(publisher)
    for number in facts(publisher, size):
        note(shelf, bus.publish(fact(publisher, number)))


async def apublish(bus: EventBus, shelf: Shelf, size: int, publisher: int) -> None:
    origin.set(publisher)
    for number in facts(publisher, size):
        note(shelf, await bus.apublish(fact(publisher, number)))
        await asyncio.sleep(0)


async def apublish_all(bus: EventBus, shelf: Shelf, size: int, publishers: range) -> None:
    async with asyncio.timeout(shelf.patience), asyncio.TaskGroup() as group:
        for publisher in publishers:
            group.create_task(apublish(bus, shelf, size, publisher))


def watch(bus: EventBus, shelf: Shelf) -> None:
    """
    Look, until all is over, whether the queues keep to their bounds; pause one at times.
    """
    paused = next(each for each in bus.subscriptions if each.name == "oldest")
    most = {each.name: each.options.delivery.capacity + PUBLISHERS for each in bus.subscriptions}
    while not shelf.is_over.wait(0.01):
        paused.pause()
        for name, counted in bus.stats().subscriptions.items():
            if counted.depth + counted.scheduled > most[name]:
                shelf.wrong.append(f"{name} holds {counted.depth} and {counted.scheduled}")
            if counted.in_flight > SUBSCRIPTIONS[name][1].workers:
                shelf.wrong.append(f"{name} is at {counted.in_flight} at once")
        paused.resume()


def tell(shelf: Shelf, occurrence: Occurrence) -> None:
    if (field := TOLD.get(type(occurrence))) is not None:
        next(shelf.told[cast(Any, occurrence).subscription, field])


def publish_all(bus: EventBus, shelf: Shelf, size: int) -> None:
    """
    Publish from twelve threads, and from four tasks of one event loop.
    """

    def then_over() -> None:
        try:
            at_once(
                *[partial(publish, bus, shelf, size, each) for each in range(12)],
                lambda: asyncio.run(apublish_all(bus, shelf, size, range(12, PUBLISHERS))),
                patience=shelf.patience,
            )
        finally:
            shelf.is_over.set()

    at_once(then_over, partial(watch, bus, shelf), patience=shelf.patience)


# -- comparing -----------------------------------------------------------------------------------


def compare(bus: EventBus, shelf: Shelf, size: int) -> None:
    """
    Compare what the handlers wrote down with what the bus has counted.
    """
    stats, refused = bus.stats(), Counter(name for name, _ in shelf.refused)
    assert (size, size) == (stats.published, len(shelf.published))
    assert set(range(size)) == set(shelf.published)
    for name, book in shelf.books.items():
        counted = stats.subscriptions[name]
        assert [] == book.misfits(), name
        assert (0, 0, 0, 0) == (
            counted.depth,
            counted.scheduled,
            counted.in_flight,
            counted.undelivered,
        )
        assert (book.handled, book.failed + refused[name]) == (
            counted.delivered,
            counted.failed,
        ), name
        elsewhere = refused[name] + counted.dropped + counted.duplicate + counted.missed
        assert size == book.handled + book.failed + elsewhere, name
        assert counted.dead_lettered == counted.failed, name
        assert (size // 2 if name == "one" else 0) == counted.missed
    assert [] == list(shelf.wrong)
    assert alive() <= len(bus.dead_letters) + 500


def alive() -> int:
    """
    Count the events that something holds on to.
    """
    gc.collect()
    return sum(type(each) is Fact for each in gc.get_objects())


def compare_told(bus: EventBus, shelf: Shelf) -> None:
    """
    Compare what the observer was told with what the bus has counted.
    """
    told = {each: next(counter) for each, counter in shelf.told.items()}
    for name, counted in bus.stats().subscriptions.items():
        for field in TOLD.values():
            assert getattr(counted, field) == told[name, field], (name, field)


# -- the tests -----------------------------------------------------------------------------------

events = pytest.mark.parametrize(
    ("home", "is_observed", "size"),
    [
        ("thread", False, 4_800),
        ("loop", False, 3_200),
        ("thread", True, 1_600),
        pytest.param("thread", False, 1_000_000, marks=pytest.mark.long),
        pytest.param("loop", True, 200_000, marks=pytest.mark.long),
    ],
)


@events
def test_every_event_is_accounted_for(home: str, is_observed: bool, size: int, seed: int):
    """
    Sixteen publishers, eight queues: each event is handled once, or its loss is counted.
    """
    bus = EventBus(name="accounted")
    shelf = fill(bus, seed=seed, size=size)
    if is_observed:
        bus.observe(partial(tell, shelf))
    if home == "loop":
        asyncio.run(run_in_loop(bus, shelf, size))
    else:
        run_in_threads(bus, shelf, size)
    if is_observed:
        compare_told(bus, shelf)
    assert (True, []) == (bus.close().ok, remains("accounted"))


def run_in_threads(bus: EventBus, shelf: Shelf, size: int) -> None:
    with bus:
        publish_all(bus, shelf, size)
        assert bus.drain(shelf.patience).ok
        compare(bus, shelf, size)


async def run_in_loop(bus: EventBus, shelf: Shelf, size: int) -> None:
    async with bus, asyncio.timeout(shelf.patience):
        await asyncio.to_thread(publish_all, bus, shelf, size)
        assert (await bus.adrain(shelf.patience)).ok
        compare(bus, shelf, size)


def remains(name: str) -> list[str]:
    """
    Name the threads of a closed bus that run on.
    """
    names = {name, f"{name}-loop", f"{name}-alarms", *SUBSCRIPTIONS}
    return [each.name for each in threading.enumerate() if each.name in names]
