"""
Durable subscriptions: from the log to their handlers, at least once, in order.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
from abc import ABC
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from eventbus import (
    DeadLetterBusyError,
    DeclarationError,
    DecodeError,
    Durable,
    EncodeError,
    Envelope,
    EventBus,
    GiveUp,
    InMemoryDeadLetters,
    InMemoryIdempotencyStore,
    Queued,
    Receipt,
    RunningLoopError,
    StoreCorruptError,
    SubscriptionOptionError,
    current_envelope,
    event,
    fixed,
)
from eventbus._job import Worker
from eventbus.codec import upcast
from eventbus.event_log import Record
from eventbus.idempotency import Claim
from eventbus.instrumentation import Occurrence, Published
from eventbus.memory import MemoryStore
from eventbus.testing import TestBus


@event(key="key")
class Placed:
    number: int
    key: str = "K"


@event
class Paid:
    number: int


@event(logged=False)
class Ticked:
    number: int


class Fact(ABC):  # noqa: B024 - a virtual base class
    pass


Fact.register(Placed)


class Killed(BaseException):
    """
    What ends a test in the midst of a handler.
    """


class Shop:
    """
    A test bus with a store, and what its handlers were called with.
    """

    def __init__(self, **options: Any) -> None:
        options.setdefault("errors", "collect")
        self.bus = TestBus(durable=True, **options)
        self.calls: list[tuple[str, int]] = []
        self.attempts: list[int] = []
        self.fails: dict[int, int] = {}

    @property
    def store(self) -> MemoryStore:
        store = self.bus._store
        assert isinstance(store, MemoryStore)
        return store

    def handle(self, name: str = "shop", event_type: Any = Placed, **options: Any) -> None:
        """
        Subscribe a handler that fails on some numbers, so many times.
        """
        mode = options.pop("delivery", None) or Durable()

        def handler(happened: Any) -> None:
            self.calls.append((name, happened.number))
            if self.fails.get(happened.number, 0) > 0:
                self.fails[happened.number] -= 1
                raise ValueError(f"no {happened.number}")

        self.bus.subscribe(event_type, handler, name=name, delivery=mode, **options)

    def place(self, *numbers: int, key: str = "K") -> list[Receipt]:
        return [self.bus.publish(Placed(number, key)) for number in numbers]

    def numbers(self, name: str = "shop") -> list[int]:
        return [number for who, number in self.calls if who == name]

    def between_letters(self, act: Callable[[], object]) -> None:
        """
        Have *act* called once, when the next letter has been removed.
        """
        letters: Any = self.bus.dead_letters
        remove = letters.remove

        def removing(id: str) -> Any:
            letters.remove = remove
            removed = remove(id)
            act()
            return removed

        letters.remove = removing

    def letters(self) -> list[tuple[int, str]]:
        return [(each.event.number, each.reason) for each in self.bus.dead_letters]


@pytest.fixture
def shop() -> Shop:
    return Shop()


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


# -- what is written before it is delivered --------------------------------------------------


def test_a_publish_is_in_the_log_when_it_returns(shop: Shop) -> None:
    """
    Its envelope is, whole, and says where.
    """
    [receipt] = shop.place(1)
    [record] = shop.store.log.read()
    envelope = receipt.envelope
    assert (1, 1) == (record.offset, envelope.offset)
    assert (envelope.id, "Placed", 1, "K") == (record.id, record.name, record.version, record.key)
    assert b'{"number":1,"key":"K"}' == record.payload.replace(b" ", b"")
    assert (envelope.time, envelope.correlation_id) == (record.time, record.correlation_id)


def test_inline_handlers_see_what_is_in_the_log_already(shop: Shop) -> None:
    """
    The event was stored before the first of them is called.
    """
    seen = list[tuple[int | None, int]]()

    def look(placed: Placed, envelope: Envelope) -> None:
        seen.append((envelope.offset, shop.store.log.last_offset()))

    shop.bus.subscribe(Placed, look)
    shop.place(1)
    assert [(1, 1)] == seen


def test_an_event_that_cannot_be_encoded_reaches_nobody(shop: Shop) -> None:
    """
    The publisher gets the error, nothing is stored, and its key is free again.
    """
    calls = list[Placed]()
    shop.bus.subscribe(Placed, calls.append, name="inline")
    wrong: Any = "seven"
    with pytest.raises(EncodeError):
        shop.bus.publish(Placed(wrong), idempotency_key="7")
    assert 0 == shop.store.log.last_offset()
    assert [] == calls
    assert not shop.bus.publish(Placed(7), idempotency_key="7").duplicate


def test_a_batch_is_stored_all_or_not_at_all(shop: Shop) -> None:
    """
    One that cannot be encoded keeps its neighbours out of the log.
    """
    calls = list[Placed]()
    shop.bus.subscribe(Placed, calls.append, name="inline")
    wrong: Any = "seven"
    with pytest.raises(EncodeError):
        shop.bus.publish_many([Placed(1), Placed(wrong), Placed(3)])
    assert 0 == shop.store.log.last_offset()
    assert [] == calls
    shop.bus.publish_many([Placed(1), Placed(2), Placed(3)])
    assert [1, 2, 3] == [each.number for each in calls]
    assert 3 == shop.store.log.last_offset()


async def publish_in_a_loop(shop: Shop) -> None:
    await shop.bus.apublish(Placed(1))
    await shop.bus.apublish_many([Placed(2), Placed(3)])
    await shop.bus.asettle()


def test_apublish_writes_to_the_log_as_well(shop: Shop) -> None:
    """
    Alone or by the batch.
    """
    shop.handle()
    asyncio.run(publish_in_a_loop(shop))
    assert 3 == shop.store.log.last_offset()
    assert [1, 2, 3] == shop.numbers()


def test_high_rate_facts_stay_out_of_the_log(shop: Shop) -> None:
    """
    An event declared so is delivered inline, and no durable subscription can ask for it.
    """
    calls = list[Ticked]()
    shop.bus.subscribe(Ticked, calls.append, name="inline")
    shop.bus.publish(Ticked(1))
    assert [Ticked(1)] == calls
    assert 0 == shop.store.log.last_offset()
    with pytest.raises(SubscriptionOptionError, match="logged=False"):
        shop.handle(event_type=Ticked)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"once": True}, "once=True ends a subscription by itself"),
        ({"weak": True}, "weak=True ends a subscription by itself"),
    ],
)
def test_a_durable_subscription_does_not_end_by_itself(
    shop: Shop, options: dict[str, Any], complaint: str
) -> None:
    """
    What would end it is refused when it is made.
    """
    with pytest.raises(SubscriptionOptionError, match=complaint):
        shop.handle(**options)


def test_a_bus_without_a_store_has_no_durable_subscriptions() -> None:
    """
    The refusal says what is missing.
    """
    bus = EventBus()
    with pytest.raises(SubscriptionOptionError, match="EventBus\\(store=SQLiteStore"):
        bus.subscribe(Placed, print, name="shop", delivery=Durable())
    assert () == bus.subscriptions


# -- from the log to the handler --------------------------------------------------------------


def test_what_was_published_before_the_start_is_delivered_after_it(shop: Shop) -> None:
    """
    All of it, with payload and metadata as they were published.
    """
    seen = list[Envelope[Any]]()

    def handler(placed: Placed, envelope: Envelope) -> None:
        seen.append(envelope)

    shop.bus.subscribe(Placed, handler, delivery=Durable())
    receipts = [
        shop.bus.publish(Placed(number), headers={"tenant": str(number)}) for number in range(100)
    ]
    assert [] == seen
    shop.bus.settle()
    assert [each.envelope for each in receipts] == seen


def test_two_durable_subscriptions_are_behind_as_soon_as_publish_returns(shop: Shop) -> None:
    """
    Even if nobody consumes: what they have to handle is in the store.
    """
    shop.handle("a")
    shop.handle("b")
    [receipt] = shop.place(1)
    assert 2 == receipt.queued
    assert [("a", 1), ("b", 1)] == [
        (each.name, each.lag) for each in shop.store.progress.positions()
    ]


def test_each_subscription_retries_for_itself(shop: Shop) -> None:
    """
    Where one fails once, it is called twice, also after a restart, and the other once.
    """
    shop.fails[1] = 1
    shop.handle("a", retry=fixed(delay=10, attempts=3))
    shop.handle("b")
    shop.fails[1] = 1
    shop.place(1)
    shop.bus.settle()
    assert {("a", 1), ("b", 1)} == set(shop.calls)
    failed = shop.numbers("a")
    shop.bus.restart()
    shop.bus.settle()
    assert failed == shop.numbers("a")
    shop.bus.clock.advance(10)
    assert [1, 1] == shop.numbers("a")
    assert [1] == shop.numbers("b")


def test_attempts_are_numbered_on_after_a_crash(shop: Shop) -> None:
    """
    A crash during attempt k is followed by attempt k+1.
    """
    numbers = list[int]()

    def handler(placed: Placed) -> None:
        [pending] = shop.store.progress.pending("shop")
        numbers.append(pending.attempts)
        if len(numbers) < 3:
            shop.bus.restart()
        else:
            raise ValueError("no")

    shop.bus.subscribe(Placed, handler, name="shop", delivery=Durable())
    shop.place(1)
    shop.bus.settle()
    assert [1, 2, 3] == numbers
    [letter] = shop.bus.dead_letters
    assert 3 == letter.attempts


def test_a_handler_that_returned_is_not_called_again_after_a_restart(shop: Shop) -> None:
    """
    What was acknowledged stays so; what came meanwhile is handled.
    """
    shop.handle()
    shop.place(1, 2)
    shop.bus.settle()
    shop.bus.restart()
    shop.place(3)
    shop.bus.settle()
    assert [1, 2, 3] == shop.numbers()


@pytest.mark.parametrize(
    ("start", "expected"),
    [("origin", [1, 2, 3, 4]), ("now", [4]), (2, [3, 4]), (0, [1, 2, 3, 4])],
)
def test_a_new_subscription_starts_where_it_says(
    shop: Shop, start: Any, expected: list[int]
) -> None:
    """
    With the first event, the next one, or the one after an offset.
    """
    shop.place(1, 2, 3)
    shop.handle(delivery=Durable(start=start))
    shop.place(4)
    shop.bus.settle()
    assert expected == shop.numbers()


def test_a_new_subscription_starts_at_an_instant(shop: Shop) -> None:
    """
    With the first event at that time or later.
    """
    for number in (1, 2, 3):
        shop.place(number)
        shop.bus.clock.advance(60)
    instant = datetime.fromtimestamp(shop.bus.clock.time(), UTC) - timedelta(seconds=120)
    shop.handle(delivery=Durable(start=instant))
    shop.bus.settle()
    assert [2, 3] == shop.numbers()


def test_subscribers_from_origin_each_get_every_earlier_event_once(shop: Shop) -> None:
    """
    Added one by one, while others have had them.
    """
    shop.place(1, 2, 3)
    for name in ("a", "b", "c"):
        shop.handle(name, delivery=Durable(start="origin"))
        shop.bus.settle()
    assert [[1, 2, 3]] * 3 == [shop.numbers(name) for name in ("a", "b", "c")]


@pytest.mark.parametrize("event_type", [Placed, Fact, object, Placed | Paid])
def test_an_event_reaches_whoever_subscribed_to_a_class_it_is_of(
    shop: Shop, event_type: Any
) -> None:
    """
    To its own, an abstract one, to all, or to several; once.
    """
    shop.handle(event_type=event_type)
    shop.place(1)
    shop.bus.settle()
    assert [1] == shop.numbers()


def test_what_nobody_wants_moves_the_offset_all_the_same(shop: Shop) -> None:
    """
    Events of other classes, and those the filter says no to, are behind it.
    """
    shop.handle(where=lambda placed: placed.number > 100)
    shop.handle("paid", Paid)
    shop.place(1, 2, 3)
    shop.bus.settle()
    assert [] == shop.calls
    assert [(3, 0), (3, 0)] == [(each.offset, each.lag) for each in shop.store.progress.positions()]
    assert 3 == shop.bus.stats().subscriptions["shop"].missed


def test_a_filter_that_raises_makes_a_dead_letter(shop: Shop) -> None:
    """
    The handler is not called, and later events flow.
    """
    shop.handle(where=lambda placed: 6 // placed.number)
    shop.place(1, 0, 2)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert [(0, "failed")] == shop.letters()


def test_what_orders_events_may_raise(shop: Shop) -> None:
    """
    Then they are dead letters, and later events flow.
    """
    shop.handle(delivery=Durable(ordered_by=lambda placed: 6 // placed.number))
    shop.place(1, 0, 2)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert [(0, "failed")] == shop.letters()


def test_what_a_handler_publishes_is_caused_by_its_event(shop: Shop) -> None:
    """
    Also after a restart: it has the event's id as causation, and its correlation.
    """
    envelopes = list[Envelope[Any]]()

    def pay(placed: Placed) -> None:
        assert current_envelope() is not None
        shop.bus.publish(Paid(placed.number))

    def note(paid: Paid, envelope: Envelope) -> None:
        envelopes.append(envelope)

    shop.bus.subscribe(Placed, pay, name="pay", delivery=Durable())
    shop.bus.subscribe(Paid, note, name="note", delivery=Durable())
    [receipt] = shop.place(1)
    shop.bus.restart()
    shop.bus.settle()
    [envelope] = envelopes
    assert receipt.id == envelope.causation_id
    assert receipt.envelope.correlation_id == envelope.correlation_id


def test_memory_is_bounded_and_order_kept_over_a_long_backlog(shop: Shop) -> None:
    """
    A thousand events over sixteen keys come in the order of each key.
    """
    shop.handle(delivery=Durable(workers=4))
    shop.fails.update(dict.fromkeys(range(0, 1000, 97), 1))
    shop.bus.publish_many([Placed(number, f"k{number % 16}") for number in range(1000)])
    shop.bus.settle()
    assert 1000 == len(set(shop.numbers()))
    for key in range(16):
        its = [number for number in shop.numbers() if number % 16 == key]
        assert sorted(its) == its


# -- order by key -----------------------------------------------------------------------------


def test_events_of_a_key_wait_while_one_is_between_two_attempts(shop: Shop) -> None:
    """
    Those of other keys do not, and the waiting ones were never begun.
    """
    shop.fails[1] = 1
    shop.handle(retry=fixed(delay=60, attempts=2))
    shop.place(1, 2, 3)
    shop.place(10, key="other")
    shop.bus.settle()
    assert [1, 10] == shop.numbers()
    assert [1, 0, 0] == [each.attempts for each in shop.store.progress.pending("shop")]
    shop.place(4)
    shop.bus.settle()
    shop.bus.clock.advance(60)
    assert [1, 10, 1, 2, 3, 4] == shop.numbers()
    assert 0 == shop.store.progress.position("shop").lag


def test_waiting_behind_a_key_survives_a_restart(shop: Shop) -> None:
    """
    The order is the same, and so is the moment of the next attempt.
    """
    shop.fails[1] = 1
    shop.handle(retry=fixed(delay=60, attempts=2))
    shop.place(1, 2, 3)
    shop.bus.settle()
    shop.bus.clock.advance(30)
    shop.bus.restart()
    shop.place(4)
    shop.bus.settle()
    assert [1] == shop.numbers()
    shop.bus.clock.advance(30)
    assert [1, 1, 2, 3, 4] == shop.numbers()


def test_a_retry_is_not_held_up_by_a_clock_that_was_set_back(shop: Shop) -> None:
    """
    After a restart it waits no longer than it was to wait at first.
    """
    shop.fails[1] = 1
    shop.handle(retry=fixed(delay=60, attempts=2))
    shop.place(1)
    shop.bus.settle()
    shop.bus.clock.jump(-3600)
    shop.bus.restart()
    shop.bus.settle()
    shop.bus.clock.advance(61)
    assert [1, 1] == shop.numbers()


# -- dead letters -----------------------------------------------------------------------------


def test_a_dead_letter_does_not_stop_the_others(shop: Shop) -> None:
    """
    By default later events flow, of the same key as well.
    """
    shop.fails[2] = 1
    shop.handle()
    shop.place(1, 2, 3)
    shop.bus.settle()
    assert [1, 2, 3] == shop.numbers()
    assert [(2, "failed")] == shop.letters()
    assert 1 == shop.store.progress.position("shop").dead


def test_later_events_of_a_key_wait_behind_a_dead_letter(shop: Shop) -> None:
    """
    In order and uncalled, also those published after a restart; other keys go on.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(1, 2, 3, 4, 5, 6)
    shop.bus.settle()
    shop.bus.restart()
    shop.place(7)
    shop.place(10, key="other")
    shop.bus.settle()
    assert [1, 2, 3, 4, 10] == shop.numbers()
    assert [(4, "failed"), (5, "held"), (6, "held"), (7, "held")] == shop.letters()
    stats = shop.bus.stats().subscriptions["shop"]
    assert (8, 4, 4, 4) == (
        stats.published,
        stats.delivered,
        stats.failed,
        stats.dead_lettered,
    )


def test_a_held_key_is_redriven_in_order(shop: Shop) -> None:
    """
    Then it is free: the next event is called again.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.bus.settle()
    assert [4] == shop.numbers()
    assert all(each.ok for each in shop.bus.redrive_all())
    assert [4, 4, 5, 6] == shop.numbers()
    assert 0 == len(shop.bus.dead_letters)
    shop.place(7)
    shop.bus.settle()
    assert [4, 4, 5, 6, 7] == shop.numbers()


def test_a_redrive_that_fails_again_keeps_the_rest_of_the_key_waiting(shop: Shop) -> None:
    """
    Those behind it are not called; its letter tells the new failure, too.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.bus.settle()
    shop.fails[5] = 1
    receipts = shop.bus.redrive_all()
    assert [True, False] == [each.ok for each in receipts]
    assert [4, 4, 5] == shop.numbers()
    assert [(5, "failed"), (6, "held")] == [
        (each.event.number, "held" if not each.attempts else "failed")
        for each in shop.bus.dead_letters
    ]


@pytest.mark.parametrize("is_async", [False, True])
def test_nobody_takes_up_a_held_key_while_it_is_redriven(shop: Shop, is_async: bool) -> None:
    """
    Its consumer looks between two letters, and finds the next one claimed.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.bus.settle()
    shop.between_letters(lambda: (shop.bus.clock.advance(2), shop.bus.settle()))
    receipts = asyncio.run(shop.bus.aredrive_all()) if is_async else shop.bus.redrive_all()
    assert [True, True, True] == [each.ok for each in receipts]
    assert [4, 4, 5, 6] == shop.numbers()


@pytest.mark.parametrize("is_async", [False, True])
def test_letters_that_vanish_meanwhile_are_passed_by(shop: Shop, is_async: bool) -> None:
    """
    What others discard or redrive while a call redrives many is not its business.
    """
    shop.fails.update({4: 1, 5: 1, 6: 1})
    shop.handle()
    shop.place(4, 5, 6)
    shop.bus.settle()
    first, second, third = shop.bus.dead_letters
    now = shop.bus.clock.time()
    shop.store.letters.claim(third.id, owner="elsewhere", ttl=60, now=now)
    shop.between_letters(lambda: shop.bus.dead_letters.remove(second.id))
    receipts = asyncio.run(shop.bus.aredrive_all()) if is_async else shop.bus.redrive_all()
    assert [first.event] == [each.event for each in receipts]
    assert [third.id] == [each.id for each in shop.bus.dead_letters]


def test_a_held_key_that_is_taken_up_elsewhere_is_left_to_it(shop: Shop) -> None:
    """
    Of a key none is redriven behind one that somebody else has claimed.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.bus.settle()
    [_, held, _] = shop.bus.dead_letters
    shop.store.letters.claim(held.id, owner="elsewhere", ttl=60, now=shop.bus.clock.time())
    assert [True] == [each.ok for each in shop.bus.redrive_all()]
    assert [4, 4] == shop.numbers()


def test_of_a_held_key_what_is_discarded_meanwhile_is_passed_by(shop: Shop) -> None:
    """
    The others of the key are redriven in their order.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.bus.settle()
    [_, _, last] = shop.bus.dead_letters
    shop.between_letters(lambda: shop.bus.dead_letters.remove(last.id))
    assert [True, True] == [each.ok for each in shop.bus.redrive_all()]
    assert [4, 4, 5] == shop.numbers()


def test_the_last_letter_of_a_key_may_fail_again(shop: Shop) -> None:
    """
    Nothing waits behind it but what comes later.
    """
    shop.fails[4] = 2
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4)
    shop.bus.settle()
    assert [False] == [each.ok for each in shop.bus.redrive_all()]
    shop.place(5)
    shop.bus.settle()
    assert [4, 4] == shop.numbers()


def test_what_waits_behind_a_failed_redrive_may_be_redriven_after_it(shop: Shop) -> None:
    """
    The claim on the next letter of the key ends with the call.
    """
    shop.fails[4] = 2
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5)
    shop.bus.settle()
    assert [False] == [each.ok for each in shop.bus.redrive_all()]
    for each in list(shop.bus.dead_letters):
        assert shop.bus.redrive(each).ok


@pytest.mark.parametrize("is_async", [False, True])
def test_what_is_held_is_not_redriven_before_what_holds_it(shop: Shop, is_async: bool) -> None:
    """
    Alone it is refused, with the letter that comes first; one of many, it is passed by.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.place(7, key="L")
    shop.bus.settle()
    first, second, third = shop.bus.dead_letters
    bus: Any = shop.bus

    def redrive(letter: Any) -> Receipt:
        return asyncio.run(bus.aredrive(letter)) if is_async else bus.redrive(letter)

    def redrive_held() -> list[Receipt]:
        meant: Any = {"reason": "held"}
        return asyncio.run(bus.aredrive_all(**meant)) if is_async else bus.redrive_all(**meant)

    with pytest.raises(DeadLetterBusyError, match=f"waits behind {first.id}, .* key 'K'"):
        redrive(second)
    assert [] == redrive_held()
    assert [4, 7] == shop.numbers()
    shop.bus.dead_letters.remove(first.id)
    assert redrive(second).ok
    assert redrive(third).ok
    assert [4, 7, 5, 6] == shop.numbers()


def test_a_redrive_that_is_refused_or_killed_leaves_its_letter_free(shop: Shop) -> None:
    """
    In a running loop or with an exception that ends the call, nothing came of it.
    """
    causes: list[BaseException] = [ValueError("broken"), Killed()]

    @shop.bus.on(Placed, name="shop", delivery=Durable())
    async def handle(placed: Placed) -> None:
        if causes:
            raise causes.pop(0)

    shop.place(1)
    shop.bus.settle()
    [letter] = shop.bus.dead_letters

    async def refused() -> None:
        with pytest.raises(RunningLoopError):
            shop.bus.redrive(letter)
        with pytest.raises(Killed):
            await shop.bus.aredrive(letter)
        assert (await shop.bus.aredrive(letter)).ok

    asyncio.run(refused())


def test_a_held_key_goes_on_once_its_letter_is_discarded(shop: Shop) -> None:
    """
    Those that have waited behind it are delivered, in order, and so is what comes then.
    """
    shop.fails[4] = 1
    shop.handle(delivery=Durable(on_dead_letter="hold_key"))
    shop.place(4, 5, 6)
    shop.bus.settle()
    shop.bus.dead_letters.discard(error=ValueError)
    shop.bus.clock.advance(2)
    shop.place(7)
    shop.bus.settle()
    assert [4, 5, 6, 7] == shop.numbers()
    assert 0 == len(shop.bus.dead_letters)
    assert 0 == shop.store.progress.position("shop").lag


def test_only_one_process_redrives_a_letter(shop: Shop) -> None:
    """
    The other one is told.
    """
    shop.fails[1] = 1
    shop.handle()
    shop.place(1)
    shop.bus.settle()
    [letter] = shop.bus.dead_letters
    now = shop.bus.clock.time()
    assert shop.store.letters.claim(letter.id, owner="elsewhere", ttl=60, now=now)
    with pytest.raises(DeadLetterBusyError, match="is being redriven"):
        shop.bus.redrive(letter)
    shop.bus.clock.advance(60)
    assert shop.bus.redrive(letter).ok


def test_a_key_that_was_claimed_before_a_crash_is_not_waited_for(shop: Shop) -> None:
    """
    The same event claims it anew: whoever held it has lost the subscription.
    """

    def handler(placed: Placed) -> None:
        shop.calls.append(("shop", placed.number))
        if len(shop.calls) == 1:
            raise Killed

    shop.bus.subscribe(Placed, handler, name="shop", delivery=Durable(), idempotency_key="number")
    shop.place(1, 1)
    with pytest.raises(Killed):
        shop.bus.settle()
    shop.bus.restart()
    gc.collect()  # nothing is left of who claimed it but the claim
    shop.bus.settle()
    assert [1, 1] == shop.numbers()
    assert 1 == shop.bus.stats().subscriptions["shop"].duplicate


def test_what_was_handed_out_under_a_lease_that_is_lost_is_not_begun_any_more(shop: Shop) -> None:
    """
    Though the lease has come back meanwhile: it is handed out anew, and called once.
    """
    shop.handle()
    shop.place(1)
    consumers = shop.bus._consumers
    assert consumers is not None
    [(_, consumer)] = consumers.items()
    queue, worker = consumer.queue, Worker()
    while not queue.ready:
        assert consumer.turn()
    stale = queue.turn(worker)
    assert stale is not None
    consumer._open()
    assert stale.context.run(queue.keeper.perform, stale, worker) is None
    assert queue.turn(worker) is None
    assert [] == shop.numbers()
    shop.bus.settle()
    assert [1] == shop.numbers()


def test_a_subscription_may_stop_at_a_dead_letter(shop: Shop) -> None:
    """
    Until the letter is gone, also after a restart.
    """
    shop.fails[2] = 1
    shop.handle(delivery=Durable(on_dead_letter="stop"))
    shop.place(1, 2, 3)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    shop.bus.restart()
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    shop.bus.redrive_all()
    shop.bus.clock.advance(2)
    shop.bus.settle()
    assert [1, 2, 2, 3] == shop.numbers()


def test_dead_letters_may_be_kept_elsewhere() -> None:
    """
    The redrives of a bus go to the store it was given; the log keeps the original.
    """
    letters = InMemoryDeadLetters()
    shop = Shop(dead_letters=letters)
    shop.fails[1] = 1
    shop.handle()
    shop.place(1)
    shop.bus.settle()
    assert 1 == shop.store.letters.count()


# -- what cannot be read ----------------------------------------------------------------------


def damaged(shop: Shop, **changes: Any) -> None:
    """
    Append a copy of the first record that nobody can read.
    """
    [record] = shop.store.log.read(limit=1)
    facts = {"id": "damaged", "key": None, **changes}
    shop.store.log.append([attrs.evolve(record, **facts)])


UNREADABLE = pytest.mark.parametrize(
    "changes",
    [{"name": "shop.unheard_of"}, {"payload": b"?"}, {"version": 9}, {"is_intact": False}],
    ids=["name", "payload", "version", "bytes"],
)


@UNREADABLE
def test_what_cannot_be_read_is_quarantined(shop: Shop, changes: dict[str, Any]) -> None:
    """
    With the reason; the events on both sides of it are delivered in the same pass.
    """
    shop.handle()
    shop.place(1)
    damaged(shop, **changes)
    shop.place(2)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    [kept] = shop.store.letters.query()
    assert ("unreadable", 0) == (kept.reason, kept.attempts)
    assert kept.error_type.startswith("eventbus.errors")
    assert 0 == shop.store.progress.position("shop").lag


@pytest.mark.parametrize("is_async", [False, True])
@UNREADABLE
def test_what_cannot_be_read_is_not_redriven(
    shop: Shop, changes: dict[str, Any], is_async: bool
) -> None:
    """
    The letter stays, the handler is not called, and whoever asked for that one is told why.
    """
    shop.handle()
    shop.place(1)
    damaged(shop, **changes)
    shop.place(2)
    shop.bus.settle()
    [letter] = shop.bus.dead_letters
    assert [] == (asyncio.run(shop.bus.aredrive_all()) if is_async else shop.bus.redrive_all())
    with pytest.raises((DecodeError, StoreCorruptError)):
        asyncio.run(shop.bus.aredrive(letter)) if is_async else shop.bus.redrive(letter)
    assert [1, 2] == shop.numbers()
    assert [letter.id] == [each.id for each in shop.bus.dead_letters]


@UNREADABLE
def test_what_cannot_be_read_may_be_passed_by(shop: Shop, changes: dict[str, Any]) -> None:
    """
    Nothing is kept of it but the log's record.
    """
    shop.handle(delivery=Durable(unreadable="skip"))
    shop.place(1)
    damaged(shop, **changes)
    shop.place(2)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert 0 == shop.store.letters.count()


@UNREADABLE
def test_what_cannot_be_read_may_stop_a_subscription(shop: Shop, changes: dict[str, Any]) -> None:
    """
    Where it stands, and the test learns why.
    """
    shop.handle(delivery=Durable(unreadable="raise"))
    shop.place(1)
    damaged(shop, **changes)
    shop.place(2)
    with pytest.raises(Exception, match=r"cannot be read|not those|no class is|newer program"):
        shop.bus.settle()
    shop.bus.settle()
    assert [1] == shop.numbers()
    assert 1 == shop.store.progress.position("shop").offset


def test_a_class_declared_here_is_known_though_nobody_subscribed_to_it(shop: Shop) -> None:
    """
    Its events are nobody's business, and no riddle.
    """

    @event(name="shop.declared_only")
    class Declared:
        number: int

    shop.handle()
    shop.place(1)
    damaged(shop, name="shop.declared_only")
    shop.bus.settle()
    assert [1] == shop.numbers()
    assert 0 == shop.store.letters.count()
    assert Declared.__name__ == "Declared"


def test_a_subclass_nobody_has_published_here_is_found(shop: Shop) -> None:
    """
    Whoever subscribed to its base gets it.
    """

    @event(name="shop.placed_specially", key="key")
    class PlacedSpecially(Placed):
        pass

    shop.handle()
    shop.place(1)
    damaged(shop, name="shop.placed_specially")
    shop.bus.settle()
    assert [1, 1] == shop.numbers()
    assert issubclass(PlacedSpecially, Placed)


# -- idempotency, pauses and the rest ---------------------------------------------------------


def test_duplicates_are_recognised_across_a_restart(shop: Shop) -> None:
    """
    A key that was handled is not handled again; the offset passes the duplicate.
    """
    shop.handle(idempotency_key="number")
    shop.place(1, 1)
    shop.bus.settle()
    shop.bus.restart()
    shop.place(1, 2)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert 2 == shop.bus.stats().subscriptions["shop"].duplicate
    assert 0 == shop.store.progress.position("shop").lag


def test_a_paused_subscription_leaves_its_events_in_the_log(shop: Shop) -> None:
    """
    None is begun until it resumes.
    """
    shop.handle()
    [subscription] = shop.bus.subscriptions
    subscription.pause()
    shop.place(1, 2)
    shop.bus.settle()
    assert [] == shop.calls
    assert 0 == shop.store.progress.position("shop").pending
    subscription.resume()
    shop.bus.settle()
    assert [1, 2] == shop.numbers()


def test_a_cancelled_subscription_keeps_its_place(shop: Shop) -> None:
    """
    The same name goes on where it was.
    """
    shop.handle()
    shop.place(1)
    shop.bus.settle()
    [subscription] = shop.bus.subscriptions
    subscription.cancel()
    shop.place(2)
    shop.bus.settle()
    assert [1] == shop.numbers()
    assert 1 == shop.store.progress.position("shop").lag
    shop.handle()
    shop.bus.settle()
    assert [1, 2] == shop.numbers()


def test_queued_events_are_lost_with_the_process_and_durable_ones_are_not(shop: Shop) -> None:
    """
    It is what the test bus's restart stands for.
    """
    shop.handle("queued", delivery=Queued())
    shop.handle("durable")
    shop.place(1)
    shop.bus.publish(Placed(2), delay=5)
    shop.bus.restart()
    shop.bus.clock.advance(10)
    shop.bus.settle()
    assert [("durable", 1)] == shop.calls


def test_statistics_add_up(shop: Shop) -> None:
    """
    What came is delivered, failed, a duplicate, passed by, or still waiting.
    """
    shop.fails.update({1: 2, 2: 1})
    shop.handle(
        retry=fixed(delay=60, attempts=2),
        where=lambda placed: placed.number != 3,
        idempotency_key=lambda placed: min(placed.number, 4),
    )
    shop.place(2)
    shop.place(3, 4, 5, 6, key="a")
    shop.place(1, 7, key="b")
    shop.bus.settle()
    stats = shop.bus.stats().subscriptions["shop"]
    waiting = stats.depth + stats.scheduled + stats.in_flight
    assert stats.published == (
        stats.delivered + stats.failed + stats.duplicate + stats.missed + waiting
    )
    shop.bus.clock.advance(60)
    stats = shop.bus.stats().subscriptions["shop"]
    assert (7, 2, 1, 3, 1) == (
        stats.published,
        stats.delivered,
        stats.failed,
        stats.duplicate,
        stats.missed,
    )


def test_a_record_in_the_log_is_what_the_letter_keeps(shop: Shop) -> None:
    """
    The whole of it, as it was stored.
    """
    shop.fails[1] = 1
    shop.handle()
    shop.place(1)
    shop.bus.settle()
    [kept] = shop.store.letters.query()
    [record] = shop.store.log.read()
    assert isinstance(record, Record)
    assert record == kept.record


def test_a_gap_in_the_upcasters_is_found_when_the_bus_starts(shop: Shop) -> None:
    """
    Before any event is read; the error names it.
    """

    @event(name="shop.moved", version=3)
    class Moved:
        number: int

    @upcast(Moved, from_version=1, to_version=2)
    def add_number(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "number": 0}

    shop.handle(event_type=Moved)
    with pytest.raises(DeclarationError, match=r"shop\.moved"):
        shop.bus.start()
    assert callable(add_number)


def test_older_events_come_in_the_shape_they_have_now(shop: Shop) -> None:
    """
    The upcasters bring them there, once; the stored bytes stay.
    """

    @event(name="shop.renamed", version=3)
    class Renamed:
        number: int

    @upcast("shop.old_name", from_version=1, to=Renamed, to_version=2)
    def rename(data: dict[str, Any]) -> dict[str, Any]:
        return {"count": data["n"]}

    @upcast(Renamed, from_version=2)
    def recount(data: dict[str, Any]) -> dict[str, Any]:
        return {"number": data["count"]}

    shop.handle(event_type=Renamed)
    shop.place(1)
    damaged(shop, name="shop.old_name", version=1, payload=b'{"n": 7}')
    shop.bus.settle()
    assert [7] == shop.numbers()
    assert b'{"n": 7}' == [*shop.store.log.read()][1].payload
    assert callable(rename)
    assert callable(recount)


# -- what seldom happens ----------------------------------------------------------------------


def test_a_stopped_subscription_resumes_when_told_to(shop: Shop) -> None:
    """
    Though the letter it has stopped for is still there.
    """
    shop.fails[2] = 1
    shop.handle(delivery=Durable(on_dead_letter="stop"))
    shop.place(1, 2, 3)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    [subscription] = shop.bus.subscriptions
    subscription.resume()
    shop.bus.settle()
    assert [1, 2, 3] == shop.numbers()


def test_a_key_that_somebody_else_handles_is_waited_for(shop: Shop) -> None:
    """
    Others of its order wait as well, and those of other orders do not.
    """
    shop.handle(idempotency_key="number")
    [receipt] = shop.place(1)
    keys, now = shop.store.idempotency, shop.bus.clock.monotonic()
    other = shop.bus.publish(Paid(1))
    claim = keys.claim("shop", "1", source=other, now=now)
    shop.place(2)
    shop.place(3, key="other")
    shop.bus.settle()
    assert [3] == shop.numbers()
    keys.release(claim)
    shop.bus.settle()
    assert [3, 1, 2] == shop.numbers()
    assert 0 == shop.store.progress.position("shop").lag
    assert receipt.queued == 1


def test_what_waits_and_is_no_longer_in_the_log_is_over(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It can be neither read nor handled, and holds nothing up.
    """
    shop.fails[1] = 1
    shop.handle(retry=fixed(delay=60, attempts=2))
    shop.place(1, 2)
    shop.bus.settle()
    shop.bus.restart()
    shop.store.log._records[:] = shop.store.log._records[1:]
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert 0 == shop.store.progress.position("shop").lag


@pytest.mark.parametrize("unreadable", ["quarantine", "skip", "raise"])
def test_what_waits_may_become_unreadable(shop: Shop, unreadable: Any) -> None:
    """
    Then it is treated as any such event, and its history is kept.
    """
    shop.fails[1] = 1
    shop.handle(retry=fixed(delay=60, attempts=2), delivery=Durable(unreadable=unreadable))
    shop.place(1, 2)
    shop.bus.settle()
    shop.bus.restart()
    log = shop.store.log
    log._records[0] = attrs.evolve(log._records[0], is_intact=False)
    if unreadable == "raise":
        with pytest.raises(StoreCorruptError):
            shop.bus.settle()
        assert [1] == shop.numbers()
        return
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert (unreadable == "quarantine") == bool(shop.store.letters.count())
    assert 0 == shop.store.progress.position("shop").lag


def test_a_retry_policy_counts_from_the_first_attempt(shop: Shop) -> None:
    """
    Made by a process that is gone: its time is over when its time is over.
    """
    shop.fails[1] = 9
    shop.handle(retry=fixed(delay=60, attempts=None, max_elapsed=100))
    shop.place(1)
    shop.bus.settle()
    shop.bus.clock.advance(60)
    shop.bus.restart()
    shop.bus.clock.advance(60)
    shop.bus.settle()
    assert [(1, "failed")] == shop.letters()
    [letter] = shop.bus.dead_letters
    assert [1, 2, 3][: letter.attempts] == [each.number for each in letter.failures]


def test_what_ends_every_worker_becomes_a_dead_letter(shop: Shop) -> None:
    """
    After the third one; the others go on.
    """

    def handler(placed: Placed) -> None:
        shop.calls.append(("shop", placed.number))
        if placed.number == 1:
            raise Killed

    shop.bus.subscribe(Placed, handler, name="shop", delivery=Durable())
    shop.place(1, 2)
    for _ in range(3):
        with pytest.raises(Killed):
            shop.bus.settle()
    shop.bus.settle()
    assert [1, 1, 1, 2] == shop.numbers()
    assert [(1, "failed")] == shop.letters()
    assert 0 == shop.store.progress.position("shop").lag


def test_many_workers_keep_a_held_key_in_order() -> None:
    """
    Real threads: what was begun together with the one that died is kept behind it.
    """
    store = MemoryStore()
    with EventBus(store=store) as bus:
        calls = list[int]()

        def handler(placed: Placed) -> None:
            calls.append(placed.number)
            if placed.number % 50 == 7:
                raise ValueError("no")

        bus.subscribe(
            Placed,
            handler,
            name="shop",
            delivery=Durable(workers=4, on_dead_letter="hold_key"),
        )
        bus.publish_many([Placed(number, f"k{number % 10}") for number in range(100)])
        assert bus.drain(20).ok
        letters = store.letters.query()
    assert [number for number in calls if number % 10 == 7] == [7]
    assert list(range(7, 100, 10)) == [
        int(each.record.payload.split(b":")[1].split(b",")[0]) for each in letters
    ]
    assert 91 == len(calls)


def test_what_reads_an_idempotency_key_may_raise(shop: Shop) -> None:
    """
    Then the event is a dead letter, and later ones flow.
    """
    shop.handle(idempotency_key=lambda placed: 6 // placed.number)
    shop.place(1, 0, 2)
    shop.bus.settle()
    assert [1, 2] == shop.numbers()
    assert [(0, "failed")] == shop.letters()
    assert 0 == shop.store.progress.position("shop").lag


class RenewedInTime(InMemoryIdempotencyStore):
    """
    Keys whose holder renews them at the very moment at which his lease would end.
    """

    held: Any = None

    def claim(self, scope: str, key: str, *, source: Any, now: float) -> Claim:
        if self.held is not None and now == self.held.expires:
            self.renew(self.held, now=now)
        return super().claim(scope, key, source=source, now=now)


def test_a_key_that_is_renewed_in_the_last_moment_is_waited_for() -> None:
    """
    Whoever had begun the event is at work: it is handled when he has let go.
    """
    keys = RenewedInTime()
    shop = Shop(store=MemoryStore(idempotency=keys))
    shop.handle(idempotency_key="number")
    [receipt] = shop.place(1)
    keys.held = keys.claim("shop", "1", source=receipt, now=shop.bus.clock.monotonic())
    shop.bus.settle()
    assert [] == shop.numbers()
    keys.release(keys.held)
    shop.bus.settle()
    assert [1] == shop.numbers()


@pytest.mark.parametrize("settles_in_loop", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_of_either_colour_is_lent_a_connection(
    shop: Shop, is_async: bool, settles_in_loop: bool
) -> None:
    """
    Whether a thread or a task settles.
    """

    def write(placed: Placed, connection: sqlite3.Connection) -> int:
        shop.calls.append(("shop", placed.number))
        return connection.total_changes  # which nobody asks for

    async def awrite(placed: Placed, connection: sqlite3.Connection) -> None:
        await asyncio.sleep(0)
        write(placed, connection)

    handler: Any = awrite if is_async else write
    shop.bus.subscribe(Placed, handler, name="shop", delivery=Durable())
    shop.place(1)
    if settles_in_loop:
        asyncio.run(shop.bus.asettle())
    else:
        shop.bus.settle()
    assert [1] == shop.numbers()
    assert 0 == shop.store.progress.position("shop").lag


def test_what_a_handler_tells_too_late_is_not_heard(shop: Shop) -> None:
    """
    Its event was begun anew meanwhile, and that attempt is what counts.
    """

    def handler(placed: Placed) -> None:
        shop.calls.append(("shop", placed.number))
        if len(shop.calls) == 1:
            shop.bus.restart()
            assert shop.bus._turn()

    shop.bus.subscribe(Placed, handler, name="shop", delivery=Durable())
    shop.place(1)
    shop.bus.settle()
    assert [1, 1] == shop.numbers()
    assert 0 == shop.store.progress.position("shop").lag


# -- the end of a subscription ----------------------------------------------------------------


def test_what_was_begun_and_not_handed_out_goes_back_to_the_log(shop: Shop) -> None:
    """
    A handler that cancels its own subscription is the last; the next one goes on.
    """

    def last(placed: Placed) -> None:
        shop.calls.append(("last", placed.number))
        [subscription] = shop.bus.subscriptions
        if placed.number == 5:
            subscription.cancel()

    shop.bus.subscribe(Placed, last, name="shop", delivery=Durable())
    shop.place(*range(20))
    shop.bus.settle()
    assert list(range(6)) == shop.numbers("last")
    assert 14 == shop.store.progress.position("shop").lag
    shop.handle()
    shop.bus.settle()
    assert list(range(6, 20)) == shop.numbers()


def test_a_subscription_cancelled_before_the_start_has_kept_its_place(shop: Shop) -> None:
    """
    The next of its name begins there.
    """
    shop.handle("queued", delivery=Queued())
    shop.handle()
    shop.place(1)
    for subscription in shop.bus.subscriptions:
        subscription.cancel()
    shop.bus.settle()
    assert [] == shop.numbers()
    shop.handle()
    shop.bus.settle()
    assert [1] == shop.numbers()


def test_a_subscription_that_stands_by_ends_at_once(shop: Shop) -> None:
    """
    It has nothing in hand, and does not take over any more.
    """
    shop.handle()
    progress, now = shop.store.progress, shop.bus.clock.time()
    lease = progress.acquire("shop", owner="elsewhere", ttl=60, now=now)
    assert lease is not None
    shop.place(1)
    shop.bus.settle()
    [subscription] = shop.bus.subscriptions
    subscription.cancel()
    shop.bus.settle()
    assert progress.release(lease)
    shop.bus.clock.advance(60)
    assert [] == shop.calls
    assert progress.position("shop").lease is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start": "later"}, "start of Durable"),
        ({"start": -1}, "start of Durable"),
        ({"start": True}, "start of Durable"),
        ({"start": datetime(2024, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - the point
        ({"workers": 0}, r"workers of Durable\(\) counts from 1"),
        ({"on_dead_letter": "ignore"}, "on_dead_letter of Durable"),
        ({"unreadable": "ignore"}, "unreadable of Durable"),
        ({"lease": 0}, r"lease of Durable\(\) is in seconds"),
        ({"lease": "1"}, r"lease of Durable\(\) is in seconds"),
        ({"on_dead_letter": "hold_key", "ordered_by": "number"}, "drop ordered_by="),
    ],
)
def test_a_value_out_of_its_range_is_refused(options: dict[str, Any], complaint: str) -> None:
    """
    When it is made, by name.
    """
    with pytest.raises(ValueError, match=complaint):
        Durable(**options)


# -- a history --------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [False, True])
def test_a_history_says_when_an_event_was_handled(shop: Shop, writes: bool) -> None:
    """
    In which attempt, until when and for how long; of what failed and what is not kept, nothing.
    """

    def slow(placed: Placed) -> None:
        shop.bus.clock.advance(0.25 if placed.number == 1 else 0.5)
        if shop.fails.pop(placed.number, 0):
            raise ValueError("no")

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        slow(placed)

    shop.fails[2] = 1
    shop.bus.subscribe(
        Placed,
        write if writes else slow,
        name="slow",
        retry=fixed(delay=1.0, attempts=2),
        delivery=Durable(history=True),
    )
    shop.handle("quick")
    began = shop.bus.clock.time()
    shop.place(1, 2)
    shop.bus.settle(until=lambda: not shop.store.progress.position("slow").lag)
    handled = [shop.store.progress.handled(offset) for offset in (1, 2)]
    assert [["slow"], ["slow"]] == [list(each) for each in handled]
    first, second = (each["slow"] for each in handled)
    assert (1, 1, began + 0.25, 0.25) == attrs.astuple(first)
    assert (2, 2, 0.5) == (second.offset, second.attempts, second.seconds)


def test_who_publishes_is_told_of_those_who_read_the_log(shop: Shop) -> None:
    """
    They come after those who are called, and no more once they are cancelled.
    """
    told: list[tuple[str, ...]] = []

    def note(happened: Occurrence) -> None:
        if isinstance(happened, Published):
            told.append(happened.subscriptions)

    shop.bus.observe(note)
    shop.handle("durable")
    inline = shop.bus.subscribe(Placed, lambda placed: None, name="inline")
    [receipt] = shop.place(1)
    assert (1, ("inline", "durable")) == (receipt.queued, told[-1])
    [durable] = [each for each in shop.bus.subscriptions if each is not inline]
    durable.cancel()
    [receipt] = shop.place(2)
    assert (0, ("inline",)) == (receipt.queued, told[-1])


def test_what_became_due_while_stopped_goes_on_with_its_key(shop: Shop) -> None:
    """
    Once the letter is gone it is handled, and then what waited behind it.
    """
    calls: list[int] = []

    def handle(placed: Placed) -> None:
        calls.append(placed.number)
        if placed.number == 2:
            raise GiveUp
        if calls == [1]:
            raise ValueError("no")

    shop.bus.subscribe(
        Placed,
        handle,
        name="shop",
        retry=fixed(delay=10.0, attempts=3),
        delivery=Durable(on_dead_letter="stop"),
    )
    shop.place(1)
    shop.place(2, key="other")
    shop.bus.settle()
    shop.place(3)
    shop.bus.clock.advance(20)
    assert [1, 2] == calls
    shop.bus.dead_letters.discard()
    shop.bus.clock.advance(2)
    assert [1, 2, 1, 3] == calls
    assert 0 == shop.store.progress.position("shop").lag


def test_what_was_held_comes_before_what_is_in_hand(shop: Shop) -> None:
    """
    Its key is taken up again when nothing later of it is on its way to a worker.
    """
    shop.fails[1] = 1
    shop.handle(max_rate=1.0, delivery=Durable(on_dead_letter="hold_key", workers=4))
    shop.place(1, 2, 3)
    shop.bus.settle()
    shop.bus.clock.advance(1.0)
    assert [(1, "failed"), (2, "held")] == shop.letters()
    shop.bus.dead_letters.remove(next(iter(shop.bus.dead_letters)).id)
    shop.bus.clock.advance(0.5)
    for _ in range(4):
        shop.bus.clock.advance(2.0)
    assert ([1, 2, 3], []) == (shop.numbers(), shop.letters())
