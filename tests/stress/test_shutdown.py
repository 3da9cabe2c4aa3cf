"""
A bus that is closed while publishers and handlers are at work loses nothing in silence.

Bounded in count, and by ``PATIENCE`` in time. The short form runs by default, the
long one with ``-m long``. What is random comes from a seed, which a failure shows and
``STRESS_SEED`` sets.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial

import attrs
import pytest

from eventbus import (
    BusClosedError,
    DeadLetter,
    EventBus,
    InMemoryDeadLetters,
    Queued,
    QueueFullError,
    Receipt,
    event,
    fixed,
)
from eventbus._running import DrainReport
from stress.books import PATIENCE, Book, Fact, at_once, handler_of, origin

PUBLISHERS = 6
MOST = 100_000  # events of one round; far fewer are published before it is closed

rounds = pytest.mark.parametrize("rounds", [5, pytest.param(100, marks=pytest.mark.long)])
homes = pytest.mark.parametrize("home", ["thread", "loop"])

pytestmark = pytest.mark.usefixtures("silence")

# Whether the handler is async, and the queue.
SUBSCRIPTIONS: dict[str, tuple[bool, Queued]] = {
    "block": (False, Queued(capacity=16, workers=2)),
    "keyed": (False, Queued(capacity=16, workers=3, ordered_by="key")),
    "oldest": (False, Queued(capacity=16, overflow="drop_oldest")),
    "ablock": (True, Queued(capacity=16, workers=2)),
    "akeyed": (True, Queued(capacity=16, workers=3, ordered_by="key")),
    "araise": (True, Queued(capacity=16, overflow="raise")),
    "anewest": (True, Queued(capacity=16, overflow="drop_newest")),
}


@event
class Outcome:
    """
    What the handlers of one subscription publish themselves.
    """

    number: int


@attrs.define(kw_only=True, eq=False)
class Round:
    """
    One bus, from its first event to its last.
    """

    bus: EventBus
    dice: random.Random
    books: dict[str, Book] = attrs.field(factory=dict)
    receipts: deque[Receipt] = attrs.field(factory=deque)
    outcomes: deque[int] = attrs.field(factory=deque)
    told: deque[int] = attrs.field(factory=deque)
    unsaid: deque[int] = attrs.field(factory=deque)
    is_time: threading.Event = attrs.field(factory=threading.Event)
    when: int = 0


def begin(seed: str) -> Round:
    """
    Make a bus with all kinds of queues, and handlers that keep books.
    """
    dice = random.Random(seed)
    bus = EventBus(name="round", dead_letters=InMemoryDeadLetters(capacity=10 * MOST))
    made = Round(bus=bus, dice=dice, when=dice.randrange(60))
    for name, (is_async, mode) in SUBSCRIPTIONS.items():
        is_ordered = mode.ordered_by is not None
        book = Book(
            name, seed=seed, size=MOST, workers=mode.workers, is_ordered=is_ordered, is_lossy=True
        )
        made.books[name] = book
        handler = handler_of(book, is_async=is_async, slow=0.01)
        if name == "block":
            handler = partial(publish_outcome, made, handler)
        bus.subscribe(
            Fact, handler, name=name, delivery=mode, retry=fixed(delay=0.0005, attempts=3)
        )
    bus.subscribe(Outcome, partial(take, made), name="outcomes", delivery=Queued())
    return made


def publish_outcome(made: Round, handler: Callable[[Fact], None], event: Fact) -> None:
    handler(event)
    try:
        assert made.bus.publish(Outcome(number=event.number)).event is not None
    except BusClosedError:
        made.unsaid.append(event.number)
    else:
        made.told.append(event.number)


def take(made: Round, event: Outcome) -> None:
    made.outcomes.append(event.number)


# -- publishing, until the bus is closed ---------------------------------------------------------


def facts(made: Round, publisher: int) -> Iterator[Fact]:
    """
    Give out more events than are ever taken, and see to it that it is time to close.
    """
    origin.set(publisher)
    for place in range(MOST // PUBLISHERS):
        if publisher == 0 and place == made.when:
            made.is_time.set()
        key = None if place % 10 == 9 else f"k{place % 5}"
        yield Fact(number=place * PUBLISHERS + publisher, publisher=publisher, key=key)


def publish(made: Round, publisher: int) -> None:
    for fact in facts(made, publisher):
        try:
            made.receipts.append(made.bus.publish(fact))
        except BusClosedError:
            return


async def apublish(made: Round, publisher: int) -> None:
    for fact in facts(made, publisher):
        try:
            made.receipts.append(await made.bus.apublish(fact))
        except BusClosedError:
            return
        await asyncio.sleep(0)


def apublish_in_thread(made: Round, publisher: int) -> None:
    asyncio.run(apublish(made, publisher))


# -- accounting ----------------------------------------------------------------------------------


def compare(made: Round, report: DrainReport) -> None:
    """
    Find each event that was published in one place, and in one only.
    """
    stats = made.bus.stats()
    letters = letters_of(made)
    for name, book in made.books.items():
        assert [] == list(book.wrong), name
        places = Counter(place_of(receipt, name, book, letters) for receipt in made.receipts)
        assert [] == [each for each in places if each.startswith("wrong")], (name, places)
        counted = stats.subscriptions[name]
        assert (0, 0, 0) == (counted.depth, counted.scheduled, counted.in_flight)
        assert {
            "delivered": counted.delivered,
            "failed": counted.failed,
            "dropped": counted.dropped,
            "undelivered": counted.undelivered,
        } == {
            "delivered": places["delivered"],
            "failed": places["failed"] + places["refused"],
            "dropped": places["dropped"],
            "undelivered": places["undelivered"],
        }, name
        assert len(made.receipts) == sum(places.values()) == counted.published
        assert report.left.get(name, 0) == counted.undelivered, name
        assert report.running.get(name, 0) <= counted.undelivered


def letters_of(made: Round) -> dict[tuple[str, int], DeadLetter]:
    letters = made.bus.dead_letters.query()
    found = {(each.subscription, each.event.number): each for each in letters}
    assert len(letters) == len(found), "an event has two dead letters"
    return found


def place_of(
    receipt: Receipt, name: str, book: Book, letters: dict[tuple[str, int], DeadLetter]
) -> str:
    """
    Say what became of one event at one subscription, going by its handler and its letter.
    """
    number, letter = receipt.event.number, letters.get((name, receipt.event.number))
    calls, end = book.calls[number], book.ends[number]
    failure = next((each for each in receipt.failures if each.subscription == name), None)
    if failure is not None:
        is_refused = isinstance(failure.exception, BusClosedError | QueueFullError)
        has_letter = letter is not None and (letter.reason, letter.attempts) == ("failed", 0)
        return "refused" if is_refused and has_letter and calls == 0 else f"wrong: {failure}"
    if letter is None:
        return "delivered" if end == 1 else f"wrong: {number} is lost, after {calls} calls"
    if letter.reason == "failed":
        return "failed" if end == 2 else f"wrong: {number} failed, with end {end}"
    if letter.reason == "dropped":
        is_so = end == 0 and calls == letter.attempts
        return "dropped" if is_so else f"wrong: {number} dropped after {calls} calls, end {end}"
    # What is at a handler may be before its first step or behind its last one.
    is_so = 0 <= letter.attempts - calls <= 1 and (end == 0 or letter.attempts > 0)
    return "undelivered" if is_so else f"wrong: {number} undelivered after {calls} calls, {end}"


def compare_outcomes(made: Round, report: DrainReport) -> None:
    """
    Find what the handlers of one subscription published, also while the bus was closing.
    """
    counted = made.bus.stats().subscriptions["outcomes"]
    assert made.books["block"].handled == len(made.told) + len(made.unsaid)
    assert len(made.told) == counted.published
    assert counted.undelivered == report.left.get("outcomes", 0)
    # What was given up on at the handler may have come to its end thereafter.
    most = counted.delivered + report.running.get("outcomes", 0)
    assert counted.delivered <= len(made.outcomes) <= most


def remaining() -> list[threading.Thread]:
    """
    Return the threads of the bus and its subscriptions that have not ended, after a moment.
    """
    names = {"round-loop", "round-alarms", "outcomes", *SUBSCRIPTIONS}
    found = [each for each in threading.enumerate() if each.name in names]
    for thread in found:
        thread.join(5.0)
    return [each for each in found if each.is_alive()]


# -- the tests -----------------------------------------------------------------------------------


@rounds
@homes
def test_a_close_in_the_middle_accounts_for_everything(rounds: int, home: str, seed: int):
    """
    Whenever a bus is closed, each event is handled, refused, or given up with a dead letter.
    """
    for number in range(rounds):
        made = begin(f"{seed}-{number}")
        reports = close_in_threads(made) if home == "thread" else asyncio.run(close_in_loop(made))
        assert [reports[0]] * len(reports) == reports
        assert [] == remaining()
        compare(made, reports[0])
        compare_outcomes(made, reports[0])


def close_in_threads(made: Round) -> list[DrainReport]:
    """
    Publish from threads, and close from two more at once; then a third time.
    """
    reports: deque[DrainReport] = deque()

    def close(timeout: float) -> None:
        assert made.is_time.wait(PATIENCE)
        reports.append(made.bus.close(timeout))

    made.bus.start()
    at_once(
        *[partial(publish, made, each) for each in range(PUBLISHERS - 1)],
        partial(apublish_in_thread, made, PUBLISHERS - 1),
        *[partial(close, patience(made)) for _ in range(2)],
    )
    return [*reports, made.bus.close()]


async def close_in_loop(made: Round) -> list[DrainReport]:
    """
    Publish from tasks and threads, and close from a task and a thread at once; then again.
    """
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
        made.bus.start()
        for each in range(PUBLISHERS):
            doing = apublish(made, each) if each % 2 else asyncio.to_thread(publish, made, each)
            group.create_task(doing)
        await asyncio.to_thread(made.is_time.wait, PATIENCE)
        closing = [
            group.create_task(asyncio.to_thread(made.bus.close, patience(made))),
            group.create_task(made.bus.aclose(patience(made))),
        ]
    assert {asyncio.current_task()} == asyncio.all_tasks()
    return [*[each.result() for each in closing], await made.bus.aclose()]


def patience(made: Round) -> float:
    return made.dice.choice([0.0, 0.001, 0.02, PATIENCE])
