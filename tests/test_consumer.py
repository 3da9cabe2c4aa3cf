"""
One consumer of the log: what it takes up, keeps, tells and leaves to others.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from eventbus import (
    DeadLetterNotFoundError,
    DecodeError,
    Durable,
    EventBus,
    Receipt,
    StoreCorruptError,
    StoreLockedError,
    event,
)
from eventbus._consumer import Consumer
from eventbus._owner import owner
from eventbus.event_log import Record
from eventbus.kept_letters import Selection
from eventbus.memory import MemoryStore
from eventbus.progress import Lease
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import TestBus, VirtualClock

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed

HOLD = Durable(start="origin", on_dead_letter="hold_key")
Unreadable = Literal["quarantine", "skip", "raise"]


@event(key="key", name="consumer.placed")
class Placed:
    number: int
    key: str = "K"


class Killed(BaseException):
    """
    What ends a worker in the midst of a handler.
    """


class Fact:
    pass


@event(logged=False)
class Ticked(Fact):
    number: int


@event(name="consumer.paid")
class Paid(Fact):
    number: int


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "shop.db")
    with closing(made):
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "shop.db") as made:
        yield made


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


class Shop:
    """
    A test bus on a store, and the numbers its handler was called with.
    """

    def __init__(self, store: Store, **options: Any) -> None:
        self.store = store
        self.bus = TestBus(store=store, errors="collect", **options)
        self.numbers: list[int] = []
        self.fails: set[int] = set()

    def handle(self, mode: Durable | None = None, **options: Any) -> None:
        self.bus.subscribe(
            Placed, self.note, name="shop", delivery=mode or Durable(start="origin"), **options
        )

    def note(self, placed: Placed) -> None:
        self.numbers.append(placed.number)
        if placed.number in self.fails:
            raise ValueError(f"no {placed.number}")

    def place(self, *numbers: int) -> None:
        for number in numbers:
            self.bus.publish(Placed(number))

    def letters(self) -> list[str]:
        return [each.reason for each in self.bus.dead_letters]


# -- what cannot be read ----------------------------------------------------------------------


def unreadable_first(store: Store, **changes: Any) -> None:
    """
    Leave a log that begins with an event nobody can read, as another process wrote it.
    """
    writer = TestBus(store=store)
    writer.publish(Placed(1))
    [record] = store.log.read(limit=1)
    damaged: Record = attrs.evolve(record, id="damaged", offset=0, **changes)
    store.log.append([damaged])
    writer.publish(Placed(2))
    position = store.progress.open("shop", start=1)
    assert 1 == position.offset


@pytest.mark.parametrize(
    "changes",
    [{"name": "shop.unheard_of"}, {"payload": b"?"}, {"version": 9}],
    ids=["name", "payload", "version"],
)
def test_what_cannot_be_read_may_come_first(store: Store, changes: dict[str, Any]) -> None:
    """
    Before anything of its class was published here: it is quarantined, and others go on.
    """
    unreadable_first(store, **changes)
    shop = Shop(store)
    shop.handle()
    shop.bus.settle()
    assert [2] == shop.numbers
    assert ["unreadable"] == shop.letters()
    assert 0 == store.progress.position("shop").lag


def test_a_turn_that_fails_says_no_more_than_it_knows(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    It may be the store, and it may be something else: the traceback tells.
    """
    shop = Shop(MemoryStore())
    shop.handle()
    monkeypatch.setattr(shop.store.progress, "position", lambda name: 1 / 0)
    caplog.set_level(logging.INFO, "eventbus")
    shop.bus.settle()
    monkeypatch.undo()
    shop.bus.clock.advance(1)
    shop.bus.settle()
    assert ["a turn of shop failed; it goes on trying", "shop goes on"] == caplog.messages


@pytest.mark.parametrize(
    ("unreadable", "letters"), [("quarantine", 1), ("skip", 0)], ids=["quarantine", "skip"]
)
def test_a_replay_goes_by_the_subscriptions_policy(
    store: Store, unreadable: Unreadable, letters: int
) -> None:
    """
    What it passes by as it comes, it passes by when it comes again.
    """
    unreadable_first(store, payload=b"?")
    shop = Shop(store)
    shop.handle(Durable(unreadable=unreadable))
    shop.bus.settle()
    shop.bus.dead_letters.discard()
    shop.bus.restart()
    assert 1 == shop.bus.replay("shop").unreadable
    assert letters == len(shop.letters())


def test_a_replay_may_end_at_what_cannot_be_read(store: Store) -> None:
    """
    Where the subscription itself would stop.
    """
    unreadable_first(store, payload=b"?")
    shop = Shop(store)
    shop.handle(Durable(unreadable="skip"))
    shop.bus.settle()
    [subscription] = shop.bus.subscriptions
    subscription.cancel()
    shop.bus.settle()
    shop.handle(Durable(unreadable="raise"))
    with pytest.raises((DecodeError, StoreCorruptError)):
        shop.bus.replay("shop")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 9}, "has version 1: version 9 was written by a newer program"),
        ({"name": "shop.unheard_of"}, "Import the module that declares it"),
    ],
)
def test_a_letter_says_what_is_wrong_with_an_event(
    store: Store, changes: dict[str, Any], complaint: str
) -> None:
    """
    A version that is not known is no name that is not known.
    """
    unreadable_first(store, **changes)
    shop = Shop(store)
    shop.handle()
    shop.bus.settle()
    [letter] = shop.bus.dead_letters
    assert complaint in str(letter.message)


# -- what the log does not have ---------------------------------------------------------------


@pytest.mark.parametrize("event_type", [Fact, object])
def test_what_is_not_logged_is_nobodys_business_who_reads_the_log(
    store: Store, event_type: type
) -> None:
    """
    A subscription to a base class does not get it: the receipt says so, and so does explain.
    """
    bus, calls = TestBus(store=store), list[Any]()
    bus.subscribe(event_type, calls.append, name="facts", delivery=Durable())
    ticked, paid = bus.publish(Ticked(1)), bus.publish(Paid(2))
    bus.settle()
    assert [Paid(2)] == calls
    assert [(0, True), (1, False)] == [(each.queued, each.unhandled) for each in (ticked, paid)]
    [told] = bus.explain(Ticked(1))
    assert not told.called
    assert "logged=False" in told.reason
    assert bus.explain(Paid(2))[0].called


# -- what waits behind a letter ---------------------------------------------------------------


def held(store: Store) -> Shop:
    """
    Return a shop where events 1 and 2 wait behind 0, which has failed.
    """
    shop = Shop(store)
    shop.handle(HOLD)
    shop.fails.add(0)
    shop.place(0, 1, 2)
    shop.bus.settle()
    assert ["failed", "held", "held"] == shop.letters()
    shop.numbers.clear()
    shop.fails.clear()
    return shop


def let_go_on(shop: Shop, *, by_redrive: bool = True) -> list[Receipt]:
    """
    Take the first letter away, and let what waits behind it come.
    """
    first = next(iter(shop.bus.dead_letters))
    receipts = [shop.bus.redrive(first)] if by_redrive else []
    if not by_redrive:
        shop.bus.dead_letters.remove(first.id)
    shop.bus.clock.advance(2)
    shop.bus.settle()
    return receipts


@pytest.mark.parametrize("by_redrive", [True, False])
def test_what_is_held_is_not_pruned(store: Store, by_redrive: bool) -> None:
    """
    It is not finished: its turn comes when the letter before it is gone.
    """
    shop = held(store)
    assert 0 == store.log.prune(before=99)
    let_go_on(shop, by_redrive=by_redrive)
    assert [0, 1, 2][not by_redrive :] == shop.numbers
    assert [] == shop.letters()
    assert 2 == store.log.prune(before=99)


def test_a_key_behind_which_nothing_waits_is_free_once_its_letter_is_gone(store: Store) -> None:
    """
    There is nothing to take up, and what comes next is handled.
    """
    shop = Shop(store)
    shop.handle(HOLD)
    shop.fails.add(0)
    shop.place(0)
    shop.bus.settle()
    let_go_on(shop, by_redrive=False)
    shop.place(1)
    shop.bus.settle()
    assert [0, 1] == shop.numbers
    assert [] == shop.letters()


def test_what_was_edited_waits_for_its_redrive(store: Store) -> None:
    """
    The log has the original, so the key does not go on by itself: the edit would be lost.
    """
    shop = held(store)
    second = store.letters.query()[1]
    store.letters.edit(second.id, second.payload.replace(b"1", b"77"))
    let_go_on(shop)
    assert [0] == shop.numbers
    assert ["held", "held"] == shop.letters()
    assert all(each.ok for each in shop.bus.redrive_all())
    shop.place(3)
    shop.bus.clock.advance(2)
    shop.bus.settle()
    assert [0, 77, 2, 3] == shop.numbers


# -- the lease --------------------------------------------------------------------------------


class Two:
    """
    Two test buses on one store, as two processes would be: the first consumes.
    """

    def __init__(self, lease: float = 9.0) -> None:
        self.store, self.clock = MemoryStore(), VirtualClock()
        self.shops = [Shop(self.store, clock=self.clock) for _ in range(2)]
        for shop in self.shops:
            shop.handle(Durable(lease=lease))
            shop.bus.settle()

    def states(self) -> list[str]:
        places = [each.bus.stats().subscriptions["shop"].durable for each in self.shops]
        return [each.state for each in places if each is not None]

    def go_on(self, seconds: int) -> None:
        """
        Let so much time pass, in which both take turns, the second one first.
        """
        for _ in range(seconds):
            self.clock.advance(1)
            for shop in reversed(self.shops):
                shop.bus.settle()


def test_a_clock_that_is_set_forward_takes_no_lease_away() -> None:
    """
    Its holder renews it, a third of its length later, before somebody takes it for gone.
    """
    two = Two()
    two.clock.jump(3600)
    two.shops[1].bus.settle()
    two.go_on(20)
    assert ["consuming", "standby"] == two.states()


def test_a_lease_that_has_run_out_is_taken_over_a_look_later() -> None:
    """
    A third of its length, and a second.
    """
    store, clock = MemoryStore(), VirtualClock()
    shop = Shop(store, clock=clock)
    shop.handle(Durable(start="origin", lease=9.0))
    shop.place(1)
    assert store.progress.acquire("shop", owner="elsewhere", ttl=9.0, now=clock.time())
    for _ in range(13):
        shop.bus.settle()
        clock.advance(1)
    assert [] == shop.numbers
    clock.advance(1)
    shop.bus.settle()
    assert [1] == shop.numbers


def test_while_nobody_can_write_no_lease_is_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Its holder could not renew it either, and gets the time for it when the file is free.
    """
    two = Two()

    def wait(*_: object, **__: object) -> Any:
        two.clock.advance(4)
        raise StoreLockedError("somebody else was writing")

    with monkeypatch.context() as patch:
        for name in ("release", "renew", "advance"):
            patch.setattr(two.store.progress, name, wait)
        two.go_on(20)
    two.go_on(20)
    assert ["consuming", "standby"] == two.states()


def test_a_filter_that_takes_its_time_keeps_nobody_from_renewing(file: SQLiteStore) -> None:
    """
    Leases are renewed by a thread that calls nothing of the user's.
    """
    entered, may_go_on = threading.Event(), threading.Event()
    renewed = {"slow": threading.Event(), "other": threading.Event()}
    bus = EventBus(store=file)
    renew = file.progress.renew

    def where(_: Placed) -> bool:
        entered.set()
        return may_go_on.wait(PATIENCE)

    def renewing(lease: Lease, **times: Any) -> Lease:
        if entered.is_set() and not may_go_on.is_set():
            renewed[lease.subscription].set()
        return renew(lease, **times)

    file.progress.renew = renewing  # type: ignore[method-assign]
    for name in renewed:
        mode = Durable(lease=0.3)
        filtered: Any = where if name == "slow" else None
        bus.subscribe(Placed, lambda _: None, name=name, delivery=mode, where=filtered)
    with bus:
        assert bus.drain(PATIENCE).ok
        bus.publish(Placed(1))
        assert entered.wait(PATIENCE)
        assert all(each.wait(PATIENCE) for each in renewed.values())
        may_go_on.set()
        assert bus.drain(PATIENCE).ok


def test_what_a_dead_process_has_claimed_is_redriven_at_once(file: SQLiteStore) -> None:
    """
    Its name says which process it was, whatever else it says; others are waited for.
    """
    store, shop = file, Shop(file)
    shop.handle()
    shop.fails.add(1)
    shop.place(1)
    shop.bus.settle()
    shop.fails.clear()
    [letter] = shop.bus.dead_letters
    now = shop.bus.clock.time()
    alive = f"{owner()} another"
    dead = alive.replace(f"pid {os.getpid()} ", "pid 999999999 ")
    assert store.letters.claim(letter.id, owner=alive, ttl=0.0, now=now)
    assert store.letters.claim(letter.id, owner=dead, ttl=300.0, now=now)
    assert store.letters.claim(letter.id, owner=alive, ttl=300.0, now=now)
    assert [] == shop.bus.redrive_all()
    assert store.letters.claim(letter.id, owner=alive, ttl=0.0, now=now)
    assert store.letters.claim(letter.id, owner=dead, ttl=300.0, now=now)
    assert [True] == [each.ok for each in shop.bus.redrive_all()]
    with pytest.raises(DeadLetterNotFoundError):
        store.letters.claim(letter.id, owner=alive, ttl=300.0, now=now)


# -- what a drain says ------------------------------------------------------------------------


def test_a_drain_counts_what_a_stopped_subscription_leaves(store: Store) -> None:
    """
    It does not wait for it, and does not say that all was handled; also after a restart.
    """
    shop = Shop(store)
    shop.handle(Durable(start="origin", on_dead_letter="stop"))
    shop.fails.add(1)
    shop.place(1, 2, 3)
    shop.bus.settle()
    assert {"shop": 2} == shop.bus.drain().left
    shop.bus.restart()
    shop.bus.settle()
    assert {"shop": 2} == shop.bus.drain().left
    shop.fails.clear()
    shop.bus.redrive_all()
    shop.bus.clock.advance(2)
    assert shop.bus.drain().ok


def test_a_stopped_subscription_does_not_go_on_before_its_letter_is_kept(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A turn between the failure and the news of it finds no letter, and waits for it.
    """
    shop, tell = Shop(store), Consumer._tell
    shop.handle(Durable(start="origin", on_dead_letter="stop"))
    shop.fails.add(1)
    shop.place(1, 2)

    def turn_and_tell(consumer: Consumer, *news: Any) -> None:
        if consumer.state == "stopped":
            shop.bus.clock.advance(2)
            consumer.turn()
        tell(consumer, *news)

    monkeypatch.setattr(Consumer, "_tell", turn_and_tell)
    shop.bus.settle()
    assert [1] == shop.numbers
    assert ["failed"] == shop.letters()


@pytest.mark.parametrize("is_started", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_close_counts_what_stays_in_the_log(
    tmp_path: Path, is_started: bool, is_async: bool
) -> None:
    """
    It is no loss, but nobody is told that it was handled; and the next process handles it.
    """
    path, numbers, began, go_on = (
        tmp_path / "shop.db",
        list[int](),
        threading.Event(),
        threading.Event(),
    )

    def handle(placed: Placed) -> None:
        numbers.append(placed.number)
        began.set()
        assert go_on.wait(PATIENCE)

    bus = EventBus(store=SQLiteStore(path))
    bus.subscribe(Placed, handle, name="a", delivery=HOLD)
    bus.subscribe(Fact, print, name="nothing", delivery=HOLD)
    bus.publish_many([Placed(1), Placed(2), Placed(3)])
    if is_started:
        bus.start()
        assert began.wait(PATIENCE)
    closing = threading.Thread(
        target=lambda: reports.append(asyncio.run(bus.aclose()) if is_async else bus.close())
    )
    reports = list[Any]()
    closing.start()
    go_on.set()
    closing.join(PATIENCE)
    [report] = reports
    left = 3 - len(numbers)
    assert (True, left) == (report.ok, report.in_log.get("a", 0))
    assert f"{left} of a (in the log, for later)" in str(report) or not left
    with EventBus(store=SQLiteStore(path)) as bus:
        bus.subscribe(Placed, handle, name="a", delivery=HOLD)
        assert bus.drain(PATIENCE).ok
        assert {} == bus.close().in_log
    assert [1, 2, 3] == numbers


def test_a_drain_counts_what_waits_for_the_start(store: Store) -> None:
    """
    A bus that was not started handles nothing, and does not say that all was handled.
    """
    numbers: list[int] = []
    bus = EventBus(store=store)
    bus.subscribe(Placed, lambda placed: numbers.append(placed.number), name="a", delivery=HOLD)
    assert bus.drain(PATIENCE).ok
    bus.publish_many([Placed(1), Placed(2)])
    report = bus.drain(PATIENCE)
    assert ({"a": 2}, {"a": "idle"}, False) == (report.left, report.states, report.ok)
    assert "2 of a (not started)" == str(report)
    with bus:
        assert bus.drain(PATIENCE).ok
        assert [1, 2] == numbers
    assert bus.drain(PATIENCE).ok


def test_a_drain_counts_what_another_process_has_not_handled() -> None:
    """
    A bus that stands by cannot wait for it.
    """
    store = MemoryStore()
    shop = Shop(store)
    shop.handle()
    assert store.progress.acquire("shop", owner="elsewhere", ttl=60.0, now=shop.bus.clock.time())
    shop.place(1, 2)
    shop.bus.settle()
    report = shop.bus.drain(0.0)
    assert {"shop": 2} == report.left
    assert "2 of shop (consumed elsewhere)" == str(report)
    assert not report.ok


# -- letters that are gone --------------------------------------------------------------------


def redrive(bus: EventBus) -> None:
    bus.redrive(bus.dead_letters.query(reason="failed")[0])


def redrive_all(bus: EventBus) -> None:
    bus.redrive_all()


def redrive_in_a_loop(bus: EventBus) -> None:
    asyncio.run(bus.aredrive(bus.dead_letters.query(reason="failed")[0]))


def discard(bus: EventBus) -> None:
    bus.dead_letters.discard(reason="failed")


def remove(bus: EventBus) -> None:
    bus.dead_letters.remove(bus.dead_letters.query(reason="failed")[0].id)


@pytest.mark.parametrize("gets_rid", [redrive, redrive_all, redrive_in_a_loop, discard, remove])
@pytest.mark.parametrize("policy", ["hold_key", "stop"])
@pytest.mark.parametrize("drains", [False, True], ids=["settle", "drain"])
def test_what_waited_goes_on_as_soon_as_the_letter_is_gone(
    store: Store, policy: Any, gets_rid: Callable[[EventBus], None], *, drains: bool
) -> None:
    """
    Where it is this bus that has got rid of it, no time has to pass.
    """
    shop = Shop(store)
    shop.handle(Durable(start="origin", on_dead_letter=policy))
    shop.fails.add(1)
    shop.place(1, 2, 3)
    shop.bus.settle()
    shop.fails.clear()
    gets_rid(shop.bus)
    report = shop.bus.drain(0.0) if drains else shop.bus.settle()
    assert [1, 2, 3] == sorted(set(shop.numbers))
    assert report is None or report.ok


@pytest.mark.parametrize("policy", ["hold_key", "stop"])
def test_a_handlers_own_transaction_that_redrives_lets_the_others_go_on(
    file: SQLiteStore, policy: Any
) -> None:
    """
    The letter is gone with its commit.
    """
    shop = Shop(file)

    def write(placed: Placed, db: sqlite3.Connection) -> None:
        shop.note(placed)

    shop.bus.subscribe(
        Placed, write, name="shop", delivery=Durable(start="origin", on_dead_letter=policy)
    )
    shop.fails.add(1)
    shop.place(1, 2, 3)
    shop.bus.settle()
    shop.fails.clear()
    redrive(shop.bus)
    shop.bus.settle()
    assert [1, 1, 2, 3] == shop.numbers


@pytest.mark.parametrize("policy", ["hold_key", "stop"])
def test_a_drain_sees_that_another_process_has_got_rid_of_a_letter(
    file: SQLiteStore, policy: Any
) -> None:
    """
    It looks once more before it says what is left.
    """
    numbers: list[int] = []

    def note(placed: Placed) -> None:
        if placed.number == 1:
            raise ValueError(placed)
        numbers.append(placed.number)

    with EventBus(store=file) as bus:
        mode = Durable(start="origin", on_dead_letter=policy)
        bus.subscribe(Placed, note, name="a", delivery=mode)
        bus.publish_many([Placed(1), Placed(2)])
        bus.drain(PATIENCE)
        with SQLiteStore(file.path) as other:
            [letter] = other.letters.query(Selection(reason="failed"))
            other.letters.remove(letter.id)
        assert bus.drain(PATIENCE).ok
        assert [2] == numbers


def test_a_drain_does_not_wait_for_what_is_paused(store: Store) -> None:
    """
    Though a letter is gone there: what waited behind it goes on with all else.
    """
    shop = Shop(store)
    shop.handle(HOLD)
    shop.fails.add(1)
    shop.place(1, 2)
    shop.bus.settle()
    [subscription] = shop.bus.subscriptions
    subscription.pause()
    discard(shop.bus)
    shop.bus.drain(PATIENCE)
    assert [1] == shop.numbers
    subscription.resume()
    shop.bus.settle()
    assert [1, 2] == shop.numbers


def test_a_letter_of_one_subscription_is_no_business_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Nobody else looks for it.
    """
    shop = Shop(MemoryStore())
    shop.handle(HOLD)
    shop.bus.subscribe(Placed, shop.note, name="other", delivery=HOLD)
    shop.fails.add(1)
    shop.place(1, 2)
    shop.bus.settle()
    asked: list[str] = []
    ask = shop.store.letters.stuck_keys
    monkeypatch.setattr(
        shop.store.letters, "stuck_keys", lambda name: [asked.append(name), ask(name)][1]
    )
    shop.bus.dead_letters.discard(subscription="shop", reason="failed")
    shop.bus.settle()
    assert {"shop"} == set(asked)


# -- what observers are told ------------------------------------------------------------------


def test_observers_learn_of_each_letter(store: Store) -> None:
    """
    Of those that are held, or cannot be read, as well: numbers made of it are the statistics'.
    """
    told = list[tuple[str, str]]()
    shop = Shop(store, observers=[lambda event: told.append(_told(event))])
    shop.handle(HOLD)
    shop.fails.add(0)
    shop.place(0, 1, 2)
    [record] = store.log.read(limit=1)
    damaged: Record = attrs.evolve(record, id="damaged", offset=0, key=None, payload=b"?")
    store.log.append([damaged])
    shop.bus.settle()
    kept = [reason for what, reason in told if what == "DeadLettered"]
    assert ["failed", "held", "held", "unreadable"] == sorted(kept)
    stats = shop.bus.stats().subscriptions["shop"]
    assert 4 == stats.dead_lettered
    letters = {each.id: each.reason for each in shop.bus.dead_letters}
    assert 4 == len(letters)


def _told(event: Any) -> tuple[str, str]:
    return type(event).__name__, getattr(event, "reason", "")


def test_observers_learn_of_what_ends_every_worker() -> None:
    """
    Its letter is like any other.
    """
    told = list[tuple[str, str]]()
    bus = TestBus(
        durable=True, errors="collect", observers=[lambda event: told.append(_told(event))]
    )

    def handler(placed: Placed) -> None:
        raise Killed

    bus.subscribe(Placed, handler, name="shop", delivery=Durable())
    bus.publish(Placed(1))
    for _ in range(3):
        with pytest.raises(Killed):
            bus.settle()
    bus.settle()
    assert ("DeadLettered", "failed") in told
