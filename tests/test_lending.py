"""
Handlers that are lent a connection, side by side: on one event loop, and beside threads.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventbus import Durable, EventBus, StoreClosedError, StoreError, StoreLockedError, event
from eventbus._handler_connection import HandlerConnection
from eventbus.memory import MemoryStore
from eventbus.progress import Lease, Step
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import VirtualClock

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


@event(key="key")
class Placed:
    number: int
    key: str


@event
class Paid:
    number: int


def placed(number: int) -> Placed:
    return Placed(number, str(number))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "shop.db"
    with closing(sqlite3.connect(found)) as connection:
        connection.execute("CREATE TABLE done (name TEXT, number INTEGER)")
    return found


Make = Callable[..., Store]


@pytest.fixture(params=[SQLiteStore, MemoryStore])
def make(request: pytest.FixtureRequest, path: Path) -> Make:
    """
    Make a store of each kind; they wait for longer than any test does, unless told otherwise.
    """

    def made(busy_timeout: float = PATIENCE) -> Store:
        if request.param is SQLiteStore:
            return SQLiteStore(path, busy_timeout=busy_timeout)
        store = MemoryStore(busy_timeout=busy_timeout)
        lease = leased(store, "setup")
        with store.progress.transaction(lease) as transaction:
            transaction.connection.execute("CREATE TABLE done (name TEXT, number INTEGER)")
        store.progress.forget("setup")
        return store

    return made


@pytest.fixture
def store(make: Make) -> Iterator[Store]:
    store = make()
    yield store
    store.close()


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """
    Nothing that happens here is worth a warning.
    """
    caplog.set_level(logging.WARNING, "eventbus")
    yield
    assert [] == [each.getMessage() for each in caplog.get_records("call")]


def leased(store: Store, name: str = "a") -> Lease:
    store.progress.open(name, start="origin")
    lease = store.progress.acquire(name, owner="me", ttl=600.0, now=0.0)
    assert lease is not None
    return lease


def written(store: Store, name: str = "look") -> list[tuple[str, int]]:
    with store.progress.transaction(leased(store, name)) as transaction:
        sql = "SELECT name, number FROM done ORDER BY name, number"
        rows: list[tuple[str, int]] = transaction.connection.execute(sql).fetchall()
    return rows


def write(connection: sqlite3.Connection, number: int, name: str = "") -> None:
    connection.execute("INSERT INTO done VALUES (?, ?)", (name, number))


def run(main: Callable[[], Awaitable[None]]) -> None:
    """
    Run *main* for half as long as a store would wait: a loop that stands still has failed.
    """

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE / 2):
            await main()

    asyncio.run(bounded())


async def turns_of_the_loop(number: int = 5) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# -- async handlers side by side ----------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 3])
def test_async_handlers_take_turns_on_one_loop(make: Make, workers: int) -> None:
    """
    Three subscriptions that await in their transactions handle all, each event once.
    """
    inside, most, store = [0], [0], make()

    def handler(name: str) -> Any:
        async def handle(event: Placed, db: sqlite3.Connection) -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            write(db, event.number, name)
            await turns_of_the_loop()
            inside[0] -= 1

        return handle

    async def main() -> None:
        async with EventBus(store=store) as bus:
            for name in "abc":
                mode = Durable(workers=workers)
                bus.subscribe(Placed, handler(name), name=name, delivery=mode)
            await asyncio.gather(*(bus.apublish(placed(number)) for number in range(5)))
            assert (await bus.adrain(PATIENCE)).ok
            found.extend(await asyncio.to_thread(written, store))

    found = list[tuple[str, int]]()
    run(main)
    assert [(name, number) for name in "abc" for number in range(5)] == found
    assert [1] == most


def test_threads_and_tasks_take_turns(store: Store) -> None:
    """
    While a thread has the connection, the loop goes on, and its task comes afterwards.
    """
    entered, may_leave, order = threading.Event(), threading.Event(), list[str]()
    lease = leased(store)

    def in_a_thread() -> None:
        with store.progress.transaction(lease):
            entered.set()
            assert may_leave.wait(PATIENCE)
            order.append("thread")

    async def in_a_task() -> None:
        async with store.progress.atransaction(lease):
            order.append("task")

    async def main() -> None:
        thread = asyncio.create_task(asyncio.to_thread(in_a_thread))
        assert await asyncio.to_thread(entered.wait, PATIENCE)
        task = asyncio.create_task(in_a_task())
        await asyncio.to_thread(is_asked, store)
        may_leave.set()
        await asyncio.gather(thread, task)

    run(main)
    assert ["thread", "task"] == order


def test_handlers_of_both_colours_take_turns(make: Make) -> None:
    """
    Some in threads and some on the loop handle all there is, each event once.
    """
    store, found = make(), list[tuple[str, int]]()

    def handle(event: Placed, db: sqlite3.Connection) -> None:
        write(db, event.number, "sync")

    async def ahandle(event: Placed, db: sqlite3.Connection) -> None:
        write(db, event.number, "async")
        await turns_of_the_loop()

    async def main() -> None:
        async with EventBus(store=store) as bus:
            bus.subscribe(Placed, handle, name="sync", delivery=Durable(workers=3))
            bus.subscribe(Placed, ahandle, name="async", delivery=Durable(workers=3))
            await asyncio.gather(*(bus.apublish(placed(number)) for number in range(5)))
            assert (await bus.adrain(PATIENCE)).ok
            found.extend(await asyncio.to_thread(written, store))

    run(main)
    assert [(name, number) for name in ("async", "sync") for number in range(5)] == found


def is_asked(store: Any, number: int = 1) -> None:
    """
    Wait until *number* of those who want a connection wait.
    """
    gate = store._gate if isinstance(store, MemoryStore) else store._database.gate
    pause = threading.Event()
    for _ in range(10_000):
        if len(gate._borrowers) >= number:
            return
        pause.wait(0.001)
    pytest.fail("nobody has asked")


def test_a_cancelled_wait_passes_its_turn_on(store: Store) -> None:
    """
    A task that is cancelled in the line writes nothing, and those behind it come.
    """
    lease, order = leased(store), list[int]()

    async def borrow(number: int) -> None:
        async with store.progress.atransaction(lease) as transaction:
            write(transaction.connection, number)
            order.append(number)

    async def main() -> None:
        async with store.progress.atransaction(lease):
            tasks = [asyncio.create_task(borrow(number)) for number in range(3)]
            await asyncio.to_thread(is_asked, store, 3)
            tasks[1].cancel()
        await asyncio.wait(tasks)
        assert tasks[1].cancelled()

    run(main)
    assert [0, 2] == order
    assert [("", 0), ("", 2)] == written(store)


def test_an_async_transaction_is_all_or_nothing(store: Store) -> None:
    """
    Cancelled in its midst it leaves nothing behind; ended well it is there.
    """
    lease = leased(store)

    async def borrow(number: int, entered: asyncio.Event, may_leave: asyncio.Event) -> None:
        async with store.progress.atransaction(lease) as transaction:
            write(transaction.connection, number)
            transaction.advance(Step(taken=number))
            entered.set()
            await may_leave.wait()

    async def main() -> None:
        entered, may_leave = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(borrow(1, entered, may_leave))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        assert 0 == store.progress.position("a").taken
        may_leave.set()
        await borrow(2, entered, may_leave)

    run(main)
    assert (2, [("", 2)]) == (store.progress.position("a").taken, written(store))


def test_a_replay_takes_its_turn_as_well(store: Store) -> None:
    """
    It is lent a connection as others are: who asks meanwhile comes afterwards.
    """
    order, lease = list[str](), leased(store)

    async def handle(event: Placed, db: sqlite3.Connection) -> None:
        order.append("replay")
        await asyncio.to_thread(is_asked, store)
        write(db, event.number)

    async def borrow() -> None:
        while not order:  # noqa: ASYNC110 - it is seen from outside, and nobody tells
            await asyncio.sleep(0)
        async with store.progress.atransaction(lease):
            order.append("other")

    async def main() -> None:
        bus = EventBus(store=store)
        bus.subscribe(Placed, handle, name="handle", delivery=Durable(start="origin"))
        await bus.apublish(placed(1))
        mine = leased(store, "handle")
        store.progress.advance(mine, Step(taken=1))
        store.progress.release(mine)
        replayed, _ = await asyncio.gather(bus.areplay("handle"), borrow())
        assert 1 == replayed.done

    run(main)
    assert ["replay", "other"] == order
    assert [("", 1)] == written(store)


# -- the store's own writes ---------------------------------------------------------------------


async def hold(
    store: Store, lease: Lease, entered: asyncio.Event, may_leave: asyncio.Event
) -> None:
    async with store.progress.atransaction(lease):
        entered.set()
        await may_leave.wait()


def test_a_publish_from_elsewhere_comes_after_the_handler(store: Store) -> None:
    """
    Awaited, it is stored once the transaction has ended; the loop goes on meanwhile.
    """
    lease, bus = leased(store, "count"), EventBus(store=store)

    async def main() -> None:
        entered, may_leave = asyncio.Event(), asyncio.Event()
        holding = asyncio.create_task(hold(store, lease, entered, may_leave))
        await entered.wait()
        publishing = asyncio.create_task(bus.apublish(Paid(1)))
        await turns_of_the_loop()
        may_leave.set()
        await asyncio.gather(publishing, holding)

    run(main)
    assert 1 == store.log.last_offset()


def test_who_publishes_meanwhile_is_told_who_has_the_file(path: Path) -> None:
    """
    After busy_timeout, by the subscription's name; and at once where waiting is in vain.
    """
    with SQLiteStore(path, busy_timeout=0.01) as store:
        lease, bus = leased(store, "count"), EventBus(store=store)

        async def main() -> None:
            entered, may_leave = asyncio.Event(), asyncio.Event()
            holding = asyncio.create_task(hold(store, lease, entered, may_leave))
            await entered.wait()
            with pytest.raises(StoreLockedError, match="count was writing, in this process"):
                await bus.apublish(Paid(1))
            with pytest.raises(StoreLockedError, match="count has a transaction open in this very"):
                bus.publish(Paid(2))
            may_leave.set()
            await holding
            bus.publish(Paid(3))

        run(main)
        assert 1 == store.log.last_offset()


def test_many_transactions_do_not_keep_the_store_from_writing(store: Store) -> None:
    """
    However many wait for a connection, what is published is stored after the first of them.
    """
    lease, bus, order = leased(store, "count"), EventBus(store=store), list[str]()

    async def borrow(number: int) -> None:
        async with store.progress.atransaction(lease):
            if number == 0:
                publishing.append(asyncio.create_task(bus.apublish(Paid(1))))
                await asyncio.to_thread(is_writing, store)
            order.append(str(store.log.last_offset()))

    async def main() -> None:
        await asyncio.gather(*map(borrow, range(3)))
        await publishing[0]

    publishing = list[asyncio.Task[Any]]()
    run(main)
    if isinstance(store, SQLiteStore):  # in memory nobody waits for a transaction to publish
        assert ["0", "1", "1"] == order


def is_writing(store: Any) -> None:
    """
    Wait until the store's own writer waits for its turn.
    """
    pause = threading.Event()
    for _ in range(10_000):
        if isinstance(store, MemoryStore) or store._database.gate._writer is not None:
            return
        pause.wait(0.001)
    pytest.fail("nobody writes")


def test_keys_are_asked_for_again_while_a_handler_has_the_file(path: Path) -> None:
    """
    A key is claimed in the loop's own thread: that comes back later, and blocks nothing.
    """
    seen = list[int]()

    async def handle(event: Placed, db: sqlite3.Connection) -> None:
        write(db, event.number)
        await turns_of_the_loop(50)
        seen.append(event.number)

    async def main() -> None:
        async with EventBus(store=SQLiteStore(path, busy_timeout=PATIENCE)) as bus:
            mode = Durable(workers=3)
            bus.subscribe(Placed, handle, name="handle", delivery=mode, idempotency_key="number")
            await asyncio.gather(*(bus.apublish(placed(number)) for number in range(5)))
            assert (await bus.adrain(PATIENCE)).ok
            assert 0 == bus.dead_letters.count()

    run(main)
    assert [0, 1, 2, 3, 4] == sorted(seen)


# -- other processes ----------------------------------------------------------------------------


def test_another_process_is_waited_for_beside_the_loop(path: Path) -> None:
    """
    A task tries again and again until the other has committed.
    """
    clock = VirtualClock()
    with (
        SQLiteStore(path, clock=clock) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        lease = leased(store)

        async def borrow() -> None:
            async with store.progress.atransaction(lease) as transaction:
                write(transaction.connection, 1)

        async def main() -> None:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(borrow())
            await turns_of_the_loop()
            clock.advance(1.0)
            await turns_of_the_loop()
            assert not task.done()
            other.execute("COMMIT")
            clock.advance(1.0)
            await task

        run(main)
        assert [("", 1)] == written(store)


def test_another_process_is_not_waited_for_longer_than_busy_timeout(path: Path) -> None:
    """
    Then it is as in a thread; and the connection waits again as it did before.
    """
    clock = VirtualClock()
    with (
        SQLiteStore(path, clock=clock, busy_timeout=2.0) as store,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        lease = leased(store)

        async def borrow() -> None:
            with pytest.raises(StoreLockedError, match="somebody else was writing"):
                await store.progress.atransaction(lease).__aenter__()

        async def main() -> None:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(borrow())
            await turns_of_the_loop()
            clock.advance(3.0)
            await task
            other.execute("ROLLBACK")

        run(main)
        with store.progress.transaction(lease) as transaction:
            assert [(2_000,)] == transaction.connection.execute("PRAGMA busy_timeout").fetchall()


def test_what_is_not_a_lock_is_not_waited_for(path: Path) -> None:
    """
    Whatever else keeps a transaction from beginning is raised at once, by name.
    """
    with SQLiteStore(path, clock=VirtualClock()) as store:
        lease, database = leased(store), store._database
        spoilt = database.borrow()
        spoilt.execute("BEGIN")
        database._lenders.append(spoilt)

        async def main() -> None:
            with pytest.raises(StoreError, match="within a transaction"):
                await store.progress.atransaction(lease).__aenter__()
            store.close()
            with pytest.raises(StoreClosedError):
                await store.progress.atransaction(lease).__aenter__()

        run(main)


# -- the end of a loan --------------------------------------------------------------------------


def test_a_connection_that_was_kept_is_refused(store: Store) -> None:
    """
    When its handler has ended, each of its verbs says so, and nothing is written by it.
    """
    kept = list[Any]()

    def handle(event: Placed, db: sqlite3.Connection) -> None:
        kept.extend([db, db.cursor()])

    with EventBus(store=store) as bus:
        bus.subscribe(Placed, handle, name="handle", delivery=Durable())
        bus.publish(placed(1))
        assert bus.drain(PATIENCE).ok
        connection, cursor = kept
        sql = "INSERT INTO done VALUES ('kept', 1)"
        asks: list[Callable[[], object]] = [
            lambda: connection.execute(sql),
            lambda: connection.executemany(sql, [()]),
            lambda: connection.executescript(sql),
            connection.cursor,
            lambda: connection.blobopen("done", "name", 1),
        ]
        for ask in asks:
            with pytest.raises(StoreError, match="lent to a handler that has ended"):
                ask()
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            cursor.execute(sql)
        with pytest.raises(StoreError, match="close"):
            connection.close()
        assert [] == written(store)


def test_a_connection_that_is_not_lent_is_one_like_any_other() -> None:
    """
    What watches over a loan is in nobody's way before it: the lender uses all of `sqlite3`.
    """
    with closing(HandlerConnection(":memory:")) as connection:
        connection.set_authorizer(lambda *_: sqlite3.SQLITE_OK)
        connection.executescript("CREATE TABLE done (name BLOB)")
        with connection:
            connection.execute("INSERT INTO done VALUES (zeroblob(3))")
        connection.execute("INSERT INTO done VALUES ('taken back')")
        connection.rollback()
        with connection.blobopen("done", "name", 1) as blob:
            blob.write(b"abc")
        connection.commit()
        assert [(b"abc",)] == connection.execute("SELECT name FROM done").fetchall()


def test_nobody_else_gets_a_connection_that_was_kept(path: Path) -> None:
    """
    The next handler has another one: what the first one does with its own is no part of it.
    """
    with SQLiteStore(path) as store:
        lease = leased(store)
        with store.progress.transaction(lease) as transaction:
            first = transaction.connection
        with store.progress.transaction(lease) as transaction:
            second = id(transaction.connection)
            assert first is not transaction.connection
            with pytest.raises(StoreError, match="has ended"):
                first.execute("INSERT INTO done VALUES ('kept', 1)")
            write(transaction.connection, 2)
        with store.progress.transaction(lease) as transaction:
            assert second == id(transaction.connection)  # which nobody has kept
        assert [("", 2)] == written(store)


def test_a_handler_finds_nothing_of_what_another_one_has_set(store: Store) -> None:
    """
    Factories and hooks are as they were; what watches over the transaction cannot be set.
    """
    lease, traced = leased(store), list[str]()
    with store.progress.transaction(lease) as transaction:
        connection = transaction.connection
        connection.row_factory, connection.text_factory = sqlite3.Row, bytes
        connection.isolation_level = "DEFERRED"
        connection.set_trace_callback(traced.append)
        connection.set_progress_handler(lambda: 1, 1_000_000)
        with pytest.raises(StoreError, match="set_authorizer"):
            connection.set_authorizer(None)
        known = id(connection)
        del connection
    traced.clear()
    with store.progress.transaction(lease) as transaction:
        connection = transaction.connection
        assert known == id(connection)
        assert ("text",) == connection.execute("SELECT 'text'").fetchone()
        assert connection.isolation_level is None
    assert [] == traced


def test_a_connection_that_was_kept_serves_in_memory_again(store: Store) -> None:
    """
    There is but one to a store in memory: each loan begins anew.
    """
    lease = leased(store)
    with store.progress.transaction(lease) as transaction:
        _kept = transaction.connection
        write(_kept, 1)
    with store.progress.transaction(lease) as transaction:
        write(transaction.connection, 2)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            transaction.connection.execute(["SAVEPOINT x", "COMMIT"][1])
    assert [("", 1), ("", 2)] == written(store)
