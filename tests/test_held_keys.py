"""
Keys that are held behind a dead letter: what they cost, and how they go on.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import Durable, EventBus, event
from eventbus._owner import owner
from eventbus.memory import MemoryStore
from eventbus.progress import Advance, Lease, Step
from eventbus.sqlite import SQLiteStore
from eventbus.sqlite._database import Database
from eventbus.store import Store
from eventbus.testing import TestBus

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed

HOLD = Durable(start="origin", on_dead_letter="hold_key", lease=3600.0)


@event(key="key", name="held.placed")
class Placed:
    number: int
    key: str = "K"


@event(name="held.paid")
class Paid:
    number: int


class Trace:
    """
    The statements that SQLite was given, by whichever connection.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.statements = list[str]()
        connect: Callable[..., sqlite3.Connection] = Database.connect

        def traced(database: Database, factory: type[Any]) -> sqlite3.Connection:
            connection = connect(database, factory)
            connection.set_trace_callback(self.statements.append)
            return connection

        monkeypatch.setattr(Database, "connect", traced)

    def of_letters(self) -> list[str]:
        """
        Return those that look at letters, since this was asked last.
        """
        statements, self.statements[:] = list(self.statements), []
        verbs = ("SELECT", "DELETE", "UPDATE", "INSERT")
        return [
            each
            for each in map(str.strip, statements)
            if each.startswith(verbs) and "eventbus_letters" in each
        ]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "shop.db")
    with closing(made):
        yield made


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


class Shop:
    """
    A test bus on a store that holds keys, and the numbers its handler was called with.
    """

    def __init__(self, store: Store, **options: Any) -> None:
        self.store = store
        self.bus = TestBus(store=store, errors="collect", **options)
        self.bus.subscribe(Placed, self.note, name="shop", delivery=HOLD)
        self.numbers: list[int] = []
        self.fails = True
        self.on_call: Callable[[Placed], object] = lambda placed: None

    def note(self, placed: Placed) -> None:
        self.numbers.append(placed.number)
        self.on_call(placed)
        if self.fails:
            raise ValueError(f"no {placed.number}")

    def hold(self, keys: int, each: int = 2) -> list[str]:
        """
        Hold so many keys, behind the first of so many events of each; none fails any more.
        """
        names = [f"K-{number:04}" for number in range(keys)]
        for turn in range(each):
            self.bus.publish_many(
                [Placed(turn * keys + number, key) for number, key in enumerate(names)]
            )
        self.bus.settle()
        assert keys * each == len(self.bus.dead_letters)
        assert set(names) == self.store.letters.stuck_keys("shop")
        self.numbers.clear()
        self.fails = False
        return names

    def look(self, seconds: float = 2.0) -> None:
        """
        Let so much time pass, and what is due then happen.
        """
        self.bus.clock.advance(seconds)
        self.bus.settle()

    def failed(self) -> list[str]:
        return [each.id for each in self.bus.dead_letters.query(reason="failed")]


# -- what they cost ---------------------------------------------------------------------------


def looked(keys: int, path: Path, trace: Trace) -> list[str]:
    """
    Hold so many keys, and return how a consumer looks at letters while others write.
    """
    with SQLiteStore(path) as store:
        shop = Shop(store)
        shop.hold(keys)
        shop.look()
        trace.of_letters()
        for number in range(3):
            shop.bus.publish(Paid(number))
            shop.look()
        found = trace.of_letters()
        with closing(sqlite3.connect(path)) as db:
            for each in found:
                assert "USING INDEX eventbus_letters_stuck" in plan(db, each), each
    return found


def plan(db: sqlite3.Connection, statement: str) -> str:
    return " ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {statement}"))


def test_many_keys_are_looked_at_as_few_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    With one question, which an index answers, however many are held.
    """
    trace = Trace(monkeypatch)
    few, many = (looked(keys, tmp_path / f"{keys}.db", trace) for keys in (3, 40))
    assert 3 == len(few)
    assert few == many


def test_held_keys_are_not_looked_at_while_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A bus at rest asks whether somebody has written, and nothing else.
    """
    trace = Trace(monkeypatch)
    with SQLiteStore(tmp_path / "shop.db") as store:
        shop = Shop(store)
        shop.hold(3)
        shop.look()
        trace.of_letters()
        for _ in range(5):
            shop.look()
        assert [] == trace.of_letters()
        assert [] == shop.numbers


def test_keys_are_taken_up_in_few_transactions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Not one for each key or letter; by an index, and without loading what was held.
    """
    trace = Trace(monkeypatch)
    with SQLiteStore(tmp_path / "shop.db") as store:
        shop, sizes, take_up = Shop(store), list[int](), store.progress.take_up

        def counted(lease: Any, keys: Any, **options: Any) -> dict[str, list[int]]:
            sizes.append(len(keys))
            return take_up(lease, keys, **options)

        shop.hold(100, each=3)
        monkeypatch.setattr(store.progress, "take_up", counted)
        shop.bus.dead_letters.discard(reason="failed")
        trace.of_letters()
        shop.look()
        statements = trace.of_letters()
        assert [64, 36] == sizes
        assert list(range(100, 300)) == sorted(shop.numbers)
        assert sorted(shop.numbers, key=lambda number: (number % 100, number)) == sorted(
            shop.numbers, key=lambda number: number % 100
        )
        assert 0 == len(shop.bus.dead_letters)
        assert not [each for each in statements if "payload" in each]
        with closing(sqlite3.connect(tmp_path / "shop.db")) as db:
            plans = {plan(db, each) for each in statements if " key = " in each}
        assert {"SEARCH eventbus_letters USING INDEX eventbus_letters_held"} == {
            each.partition(" (")[0] for each in plans
        }


# -- how they go on ---------------------------------------------------------------------------


def test_another_process_may_set_a_key_free(tmp_path: Path) -> None:
    """
    That the file has changed is seen, whoever has changed it.
    """
    with SQLiteStore(tmp_path / "shop.db") as store, SQLiteStore(tmp_path / "shop.db") as other:
        shop = Shop(store)
        shop.hold(2)
        shop.look()
        other.letters.remove(shop.failed()[0])
        shop.look()
        assert [2] == shop.numbers
        other.letters.discard()
        shop.look()
        shop.bus.publish(Placed(4, "K-0001"))
        shop.bus.settle()
        assert [2, 4] == shop.numbers


def test_a_key_that_is_set_free_while_more_is_to_be_held_keeps_its_order(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The letter goes in the moment in which one event is held, and others are about to be.
    """
    numbers, did, advance = list[int](), list[str](), store.progress.advance
    two = attrs.evolve(HOLD, workers=2)
    monkeypatch.setattr("eventbus._filling._QUICK", 0.0)  # it begins two at once, never more
    with EventBus(store=store, errors="collect") as bus:

        @bus.on(Placed, name="shop", delivery=two)
        def note(placed: Placed) -> None:
            if placed.number == 0:
                raise ValueError
            if placed.key == "K":
                numbers.append(placed.number)

        def meanwhile(lease: Lease, step: Step) -> Advance:
            if step.hold and "gone" not in did:
                did.append("gone")
                bus.dead_letters.discard()
            came = advance(lease, step)
            if step.waiting and "more" not in did:
                did.append("more")
                others = [Placed(5, "other"), Placed(6, "another")]
                bus.publish_many([Placed(2), Placed(3), *others, Placed(4)])
            return came

        bus.publish(Placed(0))
        assert bus.drain(PATIENCE).ok
        monkeypatch.setattr(store.progress, "advance", meanwhile)
        bus.publish(Placed(1))
        assert bus.drain(PATIENCE).ok
    assert (["more", "gone"], [1, 2, 3, 4]) == (did, numbers)


def test_what_is_redriven_elsewhere_keeps_no_other_key_waiting(store: Store) -> None:
    """
    However many keys somebody has claimed a letter of; they go on when the claims run out.
    """
    shop = Shop(store)
    shop.hold(66)
    held, now = shop.bus.dead_letters.query(reason="held"), shop.bus.clock.time()
    for each in held[:-1]:
        store.letters.claim(each.id, owner="elsewhere", ttl=60.0, now=now)
    shop.bus.dead_letters.discard(reason="failed")
    shop.look()
    assert [131] == shop.numbers
    shop.look(50.0)
    assert [131] == shop.numbers
    shop.look(10.0)
    assert [131, *range(66, 131)] == shop.numbers


def test_who_has_claimed_a_letter_and_is_gone_keeps_no_key_waiting(tmp_path: Path) -> None:
    """
    A process that runs no more redrives nothing, however long it has claimed it for.
    """
    with SQLiteStore(tmp_path / "shop.db") as store:
        shop = Shop(store)
        shop.hold(1)
        [letter], [held] = shop.failed(), shop.bus.dead_letters.query(reason="held")
        [name, _, life] = owner().rpartition(" pid ")[0], "pid", owner().rpartition(" ")[2]
        gone = f"{name} pid 999999999 {life}"
        store.letters.claim(held.id, owner=gone, ttl=300.0, now=shop.bus.clock.time())
        shop.bus.dead_letters.remove(letter)
        shop.look()
        assert [1] == shop.numbers


def test_a_key_goes_on_while_its_subscription_is_busy(store: Store) -> None:
    """
    It does not wait for a moment in which there is nothing else to write.
    """
    shop = Shop(store)
    shop.hold(1)

    def go_on(placed: Placed) -> None:
        if 10 <= placed.number < 30:
            shop.bus.clock.advance(1)
            shop.bus.publish(Placed(placed.number + 1, "busy"))

    shop.on_call = go_on
    shop.bus.publish(Placed(10, "busy"))
    shop.bus.dead_letters.discard(reason="failed")
    shop.bus.settle()
    assert {1, *range(10, 31)} == set(shop.numbers)
    assert 30 == shop.numbers[-1]
