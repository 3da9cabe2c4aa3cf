"""
A handler's own transaction: its writes, its progress, its letter and its key are one.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import (
    DeadLetter,
    DeadLetterNotFoundError,
    Durable,
    Receipt,
    StoreError,
    StoreFullError,
    event,
    fixed,
)
from eventbus.memory import MemoryStore
from eventbus.progress import Lease, Transaction
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import TestBus


@event(key="key")
class Placed:
    number: int
    key: str = "K"


class Killed(BaseException):
    """
    What ends a process in the midst of something.
    """


class Fate:
    """
    What befalls the next transactions, as they are lent and before or after their commit.
    """

    def lend(self, transaction: Transaction) -> Any:
        return transaction

    def strike(self, *, after: bool) -> None:
        pass

    def befall(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        begin, abegin = store.progress.transaction, store.progress.atransaction

        @contextmanager
        def transaction(lease: Lease) -> Generator[Transaction]:
            with begin(lease) as transaction:
                yield self.lend(transaction)
                self.strike(after=False)
            self.strike(after=True)

        @asynccontextmanager
        async def atransaction(lease: Lease) -> AsyncGenerator[Transaction]:
            async with abegin(lease) as transaction:
                yield self.lend(transaction)
                self.strike(after=False)
            self.strike(after=True)

        monkeypatch.setattr(store.progress, "transaction", transaction)
        monkeypatch.setattr(store.progress, "atransaction", atransaction)


@attrs.define
class Outage(Fate):
    """
    *error* is raised before or after the commit.
    """

    error: BaseException
    after: bool = False
    times: int = 1

    def strike(self, *, after: bool) -> None:
        if self.after == after and self.times:
            self.times -= 1
            raise self.error


class Silent:
    """
    A connection of another kind: it executes, and that is all.
    """

    def __init__(self, connection: Any) -> None:
        self.execute = connection.execute


@attrs.define
class Lent:
    """
    A transaction that lends such a connection.
    """

    transaction: Transaction

    @property
    def connection(self) -> Silent:
        return Silent(self.transaction.connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transaction, name)


class Other(Fate):
    """
    The store is of another kind.
    """

    def lend(self, transaction: Transaction) -> Lent:
        return Lent(transaction)


class Shop:
    """
    A bus, and a handler of either colour that writes through its connection.
    """

    def __init__(self, store: Store, *, is_async: bool) -> None:
        self.store = store
        self.bus = TestBus(store=store, errors="collect")
        self.is_async = is_async
        self.fails = 0
        self.calls: list[int] = []

        def write(placed: Placed, connection: sqlite3.Connection) -> None:
            self.calls.append(placed.number)
            connection.execute("CREATE TABLE IF NOT EXISTS done (number INTEGER)")
            connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
            if self.fails:
                self.fails -= 1
                raise ValueError("no")

        async def awrite(placed: Placed, connection: sqlite3.Connection) -> None:
            write(placed, connection)

        self.consumed = self.bus.subscribe(
            Placed,
            awrite if is_async else write,
            name="write",
            delivery=Durable(),
            idempotency_key="number",
            retry=fixed(delay=1.0, attempts=3, on=(DeadLetterNotFoundError,)),
        )
        self.bus.settle()

    def restart(self) -> None:
        """
        Begin anew with what is kept, as after a kill and the end of whatever lasts a while.
        """
        self.bus.restart()
        self.bus.clock.advance(seconds=600)
        self.bus.settle()

    def given_up(self) -> DeadLetter:
        self.fails = 1
        self.bus.publish(Placed(1))
        self.bus.settle()
        [letter] = self.bus.dead_letters
        return letter

    def redrive(self, letter: DeadLetter) -> Receipt:
        if self.is_async:
            return asyncio.run(self.bus.aredrive(letter))
        return self.bus.redrive(letter)

    def effects(self) -> list[int]:
        lease = self.store.progress.position("write").lease
        assert lease is not None
        with self.store.progress.transaction(lease) as transaction:
            tables = "SELECT 1 FROM sqlite_master WHERE name = 'done'"
            if not transaction.connection.execute(tables).fetchall():
                return []
            rows = transaction.connection.execute("SELECT number FROM done ORDER BY rowid")
            return [number for (number,) in rows.fetchall()]

    def story(self) -> list[tuple[str, int, int, list[str]]]:
        return [
            (each.id, each.attempts, each.redrives, [one.message for one in each.failures])
            for each in self.bus.dead_letters
        ]


@pytest.fixture(params=[MemoryStore, SQLiteStore])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = request.param(*[tmp_path / "shop.db"][: request.param is SQLiteStore])
    yield made
    made.close()


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def shop(request: pytest.FixtureRequest, store: Store) -> Shop:
    return Shop(store, is_async=request.param)


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


# -- a redrive --------------------------------------------------------------------------------


def test_a_redrive_killed_after_its_commit_is_over(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The writes are there, the letter is not, and the key is used: nothing is done twice.
    """
    letter = shop.given_up()
    Outage(Killed(), after=True).befall(shop.store, monkeypatch)
    with pytest.raises(Killed):
        shop.redrive(letter)
    shop.restart()
    assert [1] == shop.effects()
    assert [] == shop.story()
    with pytest.raises(DeadLetterNotFoundError):
        shop.redrive(letter)
    shop.bus.publish(Placed(1))
    shop.bus.settle()
    assert [1] == shop.effects()


def test_a_redrive_killed_before_its_commit_has_not_begun(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Nothing of it is left, and the letter is redriven again as it was.
    """
    letter = shop.given_up()
    before = shop.story()
    Outage(Killed()).befall(shop.store, monkeypatch)
    with pytest.raises(Killed):
        shop.redrive(letter)
    shop.restart()
    assert ([], before) == (shop.effects(), shop.story())
    assert shop.redrive(letter).ok
    assert ([1], []) == (shop.effects(), shop.story())


def test_a_redrive_whose_commit_fails_leaves_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The failure joins the story, the key is free, and the next redrive is the first to write.
    """
    letter = shop.given_up()
    Outage(StoreFullError("disk full")).befall(shop.store, monkeypatch)
    [failure] = shop.redrive(letter).failures
    assert isinstance(failure.exception, StoreFullError)
    assert [] == shop.effects()
    assert [(letter.id, 2, 1, ["no", "disk full"])] == shop.story()
    assert shop.redrive(letter).ok
    assert [1] == shop.effects()


def test_a_redrive_that_fails_again_changes_the_story_only(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Killed before the new story is kept, the letter has the old one; it is never half of each.
    """
    letter = shop.given_up()
    before = shop.story()
    letters, shop.fails = shop.store.letters, 2
    with monkeypatch.context() as patch:
        patch.setattr(letters, "replace", _raise(Killed()))
        with pytest.raises(Killed):
            shop.redrive(letter)
    shop.restart()
    assert ([], before) == (shop.effects(), shop.story())
    assert not shop.redrive(letter).ok
    assert ([], [(letter.id, 2, 1, ["no", "no"])]) == (shop.effects(), shop.story())
    assert shop.redrive(letter).ok
    assert ([1], []) == (shop.effects(), shop.story())


def test_a_redrive_comes_too_late_for_a_letter_that_is_gone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its handler is not called, whatever the retry policy, and the letter does not come back.
    """
    letter = shop.given_up()

    def discard(id: str, **facts: Any) -> bool:
        shop.store.letters.remove(id)
        return True

    async def adiscard(id: str, **facts: Any) -> bool:
        return discard(id)

    monkeypatch.setattr(shop.store.letters, "claim", discard)
    monkeypatch.setattr(shop.store.letters, "aclaim", adiscard, raising=False)
    with pytest.raises(DeadLetterNotFoundError):
        shop.redrive(letter)
    assert [1] == shop.calls
    assert ([], []) == (shop.effects(), shop.story())


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*given: object, **facts: object) -> None:
        raise error

    return fail


# -- a delivery from the log ------------------------------------------------------------------


def test_a_delivery_whose_commit_fails_keeps_its_key(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It is called again at once, and its key is used by what is committed then.
    """
    Outage(StoreError("outage")).befall(shop.store, monkeypatch)
    shop.bus.publish(Placed(1))
    shop.bus.settle(until=lambda: len(shop.calls) == 2)
    shop.bus.publish(Placed(1))
    shop.bus.settle()
    assert ([1, 1], [1]) == (shop.calls, shop.effects())
    assert (0, []) == (shop.store.progress.position("write").lag, shop.story())


def test_a_connection_that_cannot_tell_whether_it_holds_is_lent_as_well(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A store of another kind lends what it has: whether that still holds, its commit shows.
    """
    Other().befall(shop.store, monkeypatch)
    shop.bus.publish(Placed(1))
    shop.bus.settle()
    assert ([1], 0) == (shop.calls, shop.store.progress.position("write").lag)


@pytest.mark.parametrize("after", [False, True])
def test_a_delivery_killed_at_its_commit_is_done_once(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    """
    Its writes, its progress and its key are all there after the restart, or none is.
    """
    Outage(Killed(), after=after).befall(shop.store, monkeypatch)
    shop.bus.publish(Placed(1))
    with suppress(Killed):
        shop.bus.settle()
    shop.restart()
    shop.bus.publish(Placed(1))
    shop.bus.settle()
    assert [1] == shop.effects()
    assert 0 == shop.store.progress.position("write").lag
