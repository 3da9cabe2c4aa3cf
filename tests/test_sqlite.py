"""
The store on disk: shared commits, the application's own transactions, several processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from eventbus.errors import (
    ConcurrencyError,
    DuplicateEventError,
    StoreClosedError,
    StoreError,
    StoreLockedError,
)
from eventbus.progress import Step
from eventbus.sqlite import SQLiteStore
from eventbus.sqlite import _writer as writers
from eventbus.sqlite._rows import from_time
from eventbus.sqlite._writer import in_savepoint, in_transaction
from eventbus.testing.contracts._records import NOON, offsets, record, records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path) as store:
        yield store
        if not store.is_closed:
            assert () == store.check()


@pytest.fixture
def own(store: SQLiteStore) -> Iterator[sqlite3.Connection]:
    """
    A connection of the application's to the same file.
    """
    connection = sqlite3.connect(store.path)
    connection.execute("CREATE TABLE orders (id TEXT)")
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("time", "error"),
    [(None, TypeError), (date(2026, 1, 1), TypeError), (NOON.replace(tzinfo=None), ValueError)],
)
def test_a_time_that_means_no_instant_is_not_stored(time: Any, error: type[Exception]) -> None:
    """
    A draft or a letter that holds it is refused, before anything is written.
    """
    with pytest.raises(error):
        from_time(time)


# -- what survives


def test_everything_survives_the_process(path: Path):
    """
    What was there when a store was closed is there when it is opened again.
    """
    with SQLiteStore(path) as store:
        store.log.append([record(id="e-1", key="a"), record(id="e-2", key="a")])
        store.progress.open("sub", start="origin")
        lease = store.progress.acquire("sub", owner="me", ttl=10.0, now=0.0)
        assert lease is not None
        store.progress.advance(lease, Step(taken=2, begin=[1, 2]))
        store.progress.advance(lease, Step(done=[1]))
    with SQLiteStore(path) as store:
        assert ["e-1", "e-2"] == [each.id for each in store.log.read()]
        assert 2 == store.log.stream_version("a")
        assert (1, 1, lease) == (
            store.progress.position("sub").offset,
            store.progress.position("sub").pending,
            store.progress.position("sub").lease,
        )
        assert {2: 2} == dict(store.progress.advance(lease, Step(begin=[2])).attempts)
        newer = store.progress.acquire("sub", owner="you", ttl=10.0, now=10.0)
        assert newer is not None
        assert newer.token > lease.token


def test_reading_is_a_matter_of_the_page(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch):
    """
    What is near costs a few statements, however long the log is.
    """
    store.log.append(records(10_000, key="a"))
    store.log.append([record(id="last", key="b")])
    steps = list[int]()
    query = type(store._database).query

    def counted(self: Any, sql: str, parameters: Any = ()) -> Any:
        connection = self.connect(sqlite3.Connection)
        connection.set_progress_handler(lambda: steps.append(1), 100)
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()

    monkeypatch.setattr(type(store._database), "query", counted)
    asks: list[Callable[[], object]] = [
        lambda: list(store.log.read(after=10_000)),
        lambda: list(store.log.read(after=10_000, names=["shop.order_placed"])),
        lambda: list(store.log.read(key="b")),
        lambda: list(store.log.read(backwards=True, limit=1)),
        lambda: store.log.get("last"),
        lambda: store.log.correlated("last"),
        store.log.last_offset,
        lambda: store.log.stream_version("a"),
        lambda: store.log.offset_before(NOON),
        store.progress.positions,
    ]
    for ask in asks:
        steps.clear()
        ask()
        assert len(steps) <= 5, "more than 500 steps of SQLite's machine"
    monkeypatch.setattr(type(store._database), "query", query)


# -- the application's own transaction


def test_an_event_is_committed_with_the_application(store: SQLiteStore, own: sqlite3.Connection):
    """
    Nobody sees it before the commit; after it, it comes in its place.
    """
    own.execute("INSERT INTO orders VALUES ('A-1')")
    before = store.log.changes()
    assert [1] == store.log.append([record(id="e-1", key="a")], connection=own)
    assert 0 == store.log.last_offset()
    own.commit()
    assert before != store.log.changes()
    assert ["e-1"] == [each.id for each in store.log.read()]
    assert [2] == store.log.append([record(key="a")])
    assert 2 == store.log.stream_version("a")


def test_an_event_is_rolled_back_with_the_application(store: SQLiteStore, own: sqlite3.Connection):
    """
    Nothing is left of it, and its offset and its place in the stream go to the next one.
    """
    store.log.append([record(id="e-1", key="a")], connection=own)
    own.execute("INSERT INTO orders VALUES ('A-1')")
    own.rollback()
    assert [] == list(store.log.read())
    assert [1] == store.log.append([record(id="e-1", key="a")], expected_version=0)
    assert [] == own.execute("SELECT * FROM orders").fetchall()


def test_a_refusal_leaves_the_applications_work(store: SQLiteStore, own: sqlite3.Connection):
    """
    What is refused is not stored; the transaction around it goes on.
    """
    store.log.append([record(id="e-1", key="a")])
    own.execute("INSERT INTO orders VALUES ('A-1')")
    with pytest.raises(DuplicateEventError, match="'e-1'"):
        store.log.append([record(id="e-2"), record(id="e-1")], connection=own)
    with pytest.raises(ConcurrencyError):
        store.log.append([record(key="a")], expected_version=0, connection=own)
    assert [] == store.log.append([], connection=own)
    assert [2, 3] == store.log.append([record(id="e-3"), record(id="e-4")], connection=own)
    own.commit()
    assert ["e-1", "e-3", "e-4"] == [each.id for each in store.log.read()]
    assert 1 == len(own.execute("SELECT * FROM orders").fetchall())


def test_the_applications_connection_may_be_as_it_likes(store: SQLiteStore):
    """
    Whatever rows it makes of the results, publishing into it is the same.
    """
    own = sqlite3.connect(store.path, isolation_level=None)
    own.row_factory = lambda cursor, row: {"a dictionary": row}
    own.execute("BEGIN")
    store.log.append([record(key="a")], expected_version=0, connection=own)
    keys = store.idempotency.on(own)
    assert keys.complete(keys.claim("s", "k", source=record(), now=0.0), now=0.0)
    assert "done" == keys.claim("s", "k", source=record(), now=0.0).state
    own.execute("COMMIT")
    own.close()
    assert 1 == store.log.last_offset()


def test_an_attached_file_is_joined(store: SQLiteStore, tmp_path: Path):
    """
    The application's database may be another file that the store's is attached to.
    """
    own = sqlite3.connect(tmp_path / "app.db")
    own.execute("ATTACH ? AS ?", (store.path, 'the "events"; --'))
    own.execute("CREATE TABLE orders (id TEXT)")
    store.log.append([record(key="a")], connection=own)
    own.execute("INSERT INTO orders VALUES ('A-1')")
    own.commit()
    own.close()
    assert 1 == store.log.last_offset()


def test_a_connection_elsewhere_is_refused(store: SQLiteStore, tmp_path: Path):
    """
    An event is never written into another file, or into a table that only looks like ours.
    """
    with SQLiteStore(tmp_path / "other.db") as other:
        elsewhere = sqlite3.connect(other.path)
        with pytest.raises(StoreError, match="not one to"):
            store.log.append([record()], connection=elsewhere)
        elsewhere.execute("ATTACH ? AS mine", (store.path,))
        with pytest.raises(StoreError, match="not one to"):
            store.log.append([record()], connection=elsewhere)
        elsewhere.close()
    memory = sqlite3.connect(":memory:")
    with pytest.raises(StoreError, match="not one to"):
        store.log.append([record()], connection=memory)
    memory.execute("ATTACH ? AS mine", (store.path,))
    memory.execute("CREATE TEMP TABLE eventbus_events (id)")
    with pytest.raises(StoreError, match="not one to"):
        store.log.append([record()], connection=memory)
    memory.close()
    assert 0 == store.log.last_offset()


def test_without_a_transaction_there_is_none_to_join(store: SQLiteStore):
    """
    A connection that commits each statement by itself is refused until it has begun one.
    """
    own = sqlite3.connect(store.path, isolation_level=None)
    with pytest.raises(StoreError, match="BEGIN one"):
        store.log.append([record()], connection=own)
    own.execute("BEGIN")
    store.log.append([record()], connection=own)
    own.execute("COMMIT")
    own.close()
    assert 1 == store.log.last_offset()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="autocommit= came with Python 3.12")
def test_autocommit_has_no_transaction_to_join(store: SQLiteStore):
    """
    ``autocommit=True`` is refused, and with ``autocommit=False`` one is always open.
    """
    own = sqlite3.connect(store.path, autocommit=True)
    with pytest.raises(StoreError, match="BEGIN one"):
        store.log.append([record()], connection=own)
    own.close()
    own = sqlite3.connect(store.path, autocommit=False)
    store.log.append([record()], connection=own)
    own.commit()
    own.close()
    assert 1 == store.log.last_offset()


def test_a_locked_application_is_told(path: Path):
    """
    While another one writes, publishing into a connection raises our error for that.
    """
    with SQLiteStore(path) as store:
        own = sqlite3.connect(path, timeout=0.01)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreLockedError):
            store.log.append([record()], connection=own)
        other.execute("ROLLBACK")
        other.close()
        own.close()


# -- the handler's connection


def test_a_handler_may_do_as_it_likes_with_its_connection(store: SQLiteStore):
    """
    What one handler sets on its connection does not show in the next one's.
    """
    store.progress.open("a", start="origin")
    lease = store.progress.acquire("a", owner="me", ttl=1.0, now=0.0)
    assert lease is not None
    with store.progress.transaction(lease) as transaction:
        transaction.connection.row_factory = sqlite3.Row
        transaction.connection.text_factory = bytes
        transaction.advance(Step(taken=1, begin=[1]))
        first = id(transaction.connection)
    with store.progress.transaction(lease) as transaction:
        assert first == id(transaction.connection)
        assert ("text",) == transaction.connection.execute("SELECT 'text'").fetchone()
    assert 1 == store.progress.position("a").pending


def test_a_handlers_own_error_is_its_own(store: SQLiteStore):
    """
    What SQLite says to a handler's statement reaches it as it is.
    """
    store.progress.open("a")
    lease = store.progress.acquire("a", owner="me", ttl=1.0, now=0.0)
    assert lease is not None
    with (
        pytest.raises(sqlite3.OperationalError, match="no such table"),
        store.progress.transaction(lease) as transaction,
    ):
        transaction.connection.execute("SELECT * FROM missing")


def test_many_connections_are_not_kept(store: SQLiteStore):
    """
    After a rush only a few connections stay open.
    """
    borrowed = [store._database.borrow() for _ in range(12)]
    for each in borrowed:
        store._database.give_back(each)
    assert 8 == len({id(store._database.borrow()) for _ in range(8)} & {id(x) for x in borrowed})
    for each in borrowed[8:]:
        with pytest.raises(sqlite3.ProgrammingError):
            each.execute("SELECT 1")
    for each in borrowed[:8]:
        each.close()


# -- shared commits


def commits(store: SQLiteStore) -> list[str]:
    """
    Note each COMMIT of the writer.
    """
    noted = list[str]()

    def note(statement: str) -> None:
        if statement == "COMMIT":
            noted.append(statement)

    store._writer._connection.set_trace_callback(note)
    return noted


def test_tasks_share_a_commit(store: SQLiteStore):
    """
    Of a hundred tasks that publish at once, few wait for a commit of their own.
    """
    noted = commits(store)

    async def publish() -> list[list[int]]:
        return await asyncio.gather(*(store.log.aappend([record()]) for _ in range(100)))

    found = asyncio.run(publish())
    assert 100 == store.log.last_offset()
    assert 100 == len({offset for (offset,) in found})
    assert 1 <= len(noted) < 50


def test_threads_share_a_commit(store: SQLiteStore):
    """
    Threads that publish while another one writes are all written in the next commit.
    """
    entered, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(store._writer.run, work)
        assert entered.wait(30)
        noted = commits(store)
        rest = [pool.submit(store.log.append, [record(key="a")]) for _ in range(8)]
        while len(store._writer._queue) < 8:
            os.sched_yield()
        go_on.set()
        first.result(30)
        assert list(range(1, 9)) == sorted(each.result(30)[0] for each in rest)
    assert 2 == len(noted)


def test_whoever_shares_a_commit_fails_alone(store: SQLiteStore):
    """
    One that is refused is rolled back by itself; the others of its commit are stored.
    """
    store.log.append([record(id="taken")])

    async def publish() -> list[Any]:
        asked = [
            store.log.aappend([record(id="x"), record(id="taken")]),
            store.log.aappend([record(id="y")]),
            store.log.aappend([record(key="a")], expected_version=9),
            store.log.aappend([record(id="z")]),
        ]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, _, third, _ = asyncio.run(publish())
    assert (DuplicateEventError, ConcurrencyError) == (type(first), type(third))
    assert ["taken", "y", "z"] == [each.id for each in store.log.read()]


def test_the_loop_is_not_blocked_by_the_disk(store: SQLiteStore):
    """
    While a commit is at the disk, other tasks run.
    """
    entered, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> str:
        entered.set()
        assert go_on.wait(30)
        return "written"

    async def main() -> str:
        writing = asyncio.ensure_future(store._writer.arun(work))
        assert await asyncio.to_thread(entered.wait, 30)
        publishing = asyncio.ensure_future(store.log.aappend([record()]))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not publishing.done()
        go_on.set()
        await publishing
        return await writing

    assert "written" == asyncio.run(main())


def test_a_cancelled_task_stores_all_or_nothing(store: SQLiteStore):
    """
    Whoever stops waiting disturbs nobody; its records are stored whole, or not.
    """
    entered, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    async def main() -> None:
        writing = asyncio.ensure_future(store._writer.arun(work))
        assert await asyncio.to_thread(entered.wait, 30)
        cancelled = asyncio.ensure_future(store.log.aappend(records(3)))
        other = asyncio.ensure_future(store.log.aappend([record()]))
        await asyncio.sleep(0)
        cancelled.cancel()
        go_on.set()
        await writing
        await other
        with pytest.raises(asyncio.CancelledError):
            await cancelled

    asyncio.run(main())
    assert store.log.last_offset() in (1, 4)


def test_who_awaits_a_store_that_is_closed_in_that_moment_is_told(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
):
    """
    The committer is gone: nobody else would settle what came too late.
    """
    asyncio.run(store.log.aappend([record()]))
    make = writers._AsyncJob

    def close_and_make(*given: Any, **options: Any) -> Any:
        monkeypatch.undo()
        store.close()
        return make(*given, **options)

    monkeypatch.setattr(writers, "_AsyncJob", close_and_make)
    with pytest.raises(StoreClosedError):
        asyncio.run(asyncio.wait_for(store.log.aappend([record()]), 30))


def test_who_is_interrupted_tells_those_whose_work_he_has_taken(store: SQLiteStore):
    """
    Nobody waits for ever, and the store goes on.
    """

    class Interrupting(deque[Any]):
        def __bool__(self) -> bool:
            if taken:
                raise KeyboardInterrupt
            return len(self) > 0

        def popleft(self) -> Any:
            taken.append(super().popleft())
            return taken[0]

    taken, writer = list[Any](), store._writer
    writer._queue = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        writer.run(lambda connection: None)
    writer._queue = deque()
    assert taken[0].is_settled.acquire(blocking=False)
    assert [1] == store.log.append([record()])


def test_a_loop_that_is_gone_is_not_missed(store: SQLiteStore):
    """
    A task whose loop was closed while it waited is written, and told nothing.
    """
    entered, go_on = threading.Event(), threading.Event()

    def work(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    loop = asyncio.new_event_loop()

    async def begin() -> None:
        tasks.append(asyncio.ensure_future(store._writer.arun(work)))
        assert await asyncio.to_thread(entered.wait, 30)

    tasks = list[Any]()
    loop.run_until_complete(begin())
    tasks[0].cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()
    go_on.set()
    assert [1] == store.log.append([record()])


def test_an_interrupted_commit_is_nobodys(store: SQLiteStore):
    """
    An interrupt in the middle of writing reaches its thread; others learn that they failed.
    """
    entered, go_on = threading.Event(), threading.Event()

    def interrupted(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)
        raise KeyboardInterrupt

    def alone() -> type[BaseException]:
        try:
            store._writer.run(interrupted)
        except BaseException as error:
            return type(error)
        raise AssertionError("it went well")

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(alone)
        assert entered.wait(30)
        go_on.set()
        assert KeyboardInterrupt is found.result(30)
    assert [1] == store.log.append([record()])


def test_an_interrupt_in_a_shared_commit_is_an_error_for_the_others(store: SQLiteStore):
    """
    Those whose writing an interrupt cut short are told that nothing was stored.
    """
    entered, go_on = threading.Event(), threading.Event()

    def wait(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    def interrupted(connection: sqlite3.Connection) -> None:
        raise KeyboardInterrupt

    def outcome(ask: Callable[[], object]) -> object:
        try:
            return ask()
        except BaseException as error:
            return type(error)

    seen = list[object]()
    previous, threading.excepthook = threading.excepthook, lambda given: seen.append(given.exc_type)
    try:
        with ThreadPoolExecutor(3) as pool:
            first = pool.submit(store._writer.run, wait)
            assert entered.wait(30)
            second = pool.submit(outcome, lambda: store.log.append(records(2)))
            while not store._writer._queue:
                os.sched_yield()
            third = pool.submit(outcome, lambda: store._writer.run(interrupted))
            while len(store._writer._queue) < 2:
                os.sched_yield()
            go_on.set()
            first.result(30)
            assert {StoreError} == {second.result(30), third.result(30)}
    finally:
        threading.excepthook = previous
    assert 0 == store.log.last_offset()
    assert [1] == store.log.append([record()])
    assert 1 == asyncio.run(_aappend(store))


async def _aappend(store: SQLiteStore) -> int:
    return len(await store.log.aappend([record()]))


def test_what_waits_when_the_store_closes_is_written(path: Path):
    """
    Closing writes what was asked for before it, and refuses what comes after.
    """
    store = SQLiteStore(path)
    entered, go_on = threading.Event(), threading.Event()

    def wait(connection: sqlite3.Connection) -> None:
        entered.set()
        assert go_on.wait(30)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(store._writer.run, wait)
        assert entered.wait(30)
        second = pool.submit(store.log.append, [record()])
        while not store._writer._queue:
            os.sched_yield()
        closing = pool.submit(store.close)
        go_on.set()
        first.result(30)
        assert [1] == second.result(30)
        closing.result(30)
    with pytest.raises(StoreClosedError):
        store.log.append([record()])


def test_whoever_comes_while_the_store_closes_is_refused(path: Path):
    """
    Nobody waits for a writer that is gone.
    """
    store = SQLiteStore(path)
    store.close()
    writer, database = store._writer, store._database
    database.is_closed = False  # as it was a moment ago, for who has looked already
    with ThreadPoolExecutor(1) as pool:
        assert writer._lock.acquire(timeout=30)
        late = pool.submit(writer.run, lambda connection: None)
        while not writer._queue:
            os.sched_yield()
        database.is_closed = True
        writer._lock.release()
        writer._pass_on()
        with pytest.raises(StoreClosedError):
            late.result(30)


def test_a_rollback_of_sqlites_own_is_not_repeated():
    """
    Where an error has ended the transaction already, that error is what is raised.
    """
    connection = sqlite3.connect(":memory:", isolation_level=None)

    def work() -> None:
        connection.execute("ROLLBACK")
        raise ValueError("the error")

    with pytest.raises(ValueError, match="the error"):
        in_transaction(connection, work)
    connection.execute("BEGIN")
    with pytest.raises(ValueError, match="the error"):
        in_savepoint(connection, lambda _: work(), connection)
    connection.close()


# -- processes

CHILD = """
import json, sys
from datetime import UTC, datetime
from eventbus.errors import DuplicateEventError
from eventbus.event_log import Record
from eventbus.sqlite import SQLiteStore

path, name = sys.argv[1:]
sys.stdin.readline()
won = []
with SQLiteStore(path, busy_timeout=60.0) as store:
    store.progress.open("sub", start="origin")
    for turn in range(40):
        for id, key in ((f"{name}-{turn}", name), (f"shared-{turn}", "shared")):
            try:
                now = datetime.now(UTC)
                facts = {"id": id, "key": key, "correlation_id": id, "payload": b""}
                store.log.append([Record(name="x", time=now, **facts)])
                won.append(id)
            except DuplicateEventError:
                pass
    lease = store.progress.acquire("sub", owner=name, ttl=60.0, now=0.0)
    source = Record(id=name, name="x", time=datetime.now(UTC), correlation_id="", payload=b"")
    claim = store.idempotency.claim("s", "k", source=source, now=1.0)
    print(json.dumps([won, lease is not None, claim.state, claim.event_id]), flush=True)
    sys.stdin.readline()  # what a process has claimed that is gone, others may have
"""


def test_processes_share_a_file(path: Path):
    """
    Processes that open, write and claim at once lose nothing, and agree on who was first.
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two", "three")
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    answers = [json.loads(child.stdout.readline()) for child in children if child.stdout]
    assert [""] * 3 == [child.communicate("\n", timeout=60)[0] for child in children]
    ids = [id for won, *_ in answers for id in won]
    assert 160 == len(ids) == len(set(ids))
    assert [False, False, True] == sorted(leased for _, leased, _, _ in answers)
    assert ["granted", "pending", "pending"] == sorted(state for *_, state, _ in answers)
    assert 1 == len({event_id for *_, event_id in answers})
    with SQLiteStore(path) as store:
        assert sorted(ids) == sorted(each.id for each in store.log.read())
        assert list(range(1, 161)) == offsets(store.log.read())
        assert 40 == store.log.stream_version("shared")
        own = [each.id for each in store.log.read(key="two")]
        assert [f"two-{turn}" for turn in range(40)] == own
        assert () == store.check()
