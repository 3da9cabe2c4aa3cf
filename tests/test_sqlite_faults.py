"""
A file that cannot be used, a disk that fails, a store that was closed: each has its error.
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eventbus.errors import (
    StoreAccessError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreSchemaError,
)
from eventbus.progress import Step
from eventbus.sqlite import SQLiteStore, _database, _schema
from eventbus.sqlite._faults import fault, faults
from eventbus.testing import VirtualClock
from eventbus.testing.contracts._records import NOON, offsets, record, records
from eventbus.testing.contracts._transactions import letter


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


def filled(path: Path, number: int = 500) -> None:
    with SQLiteStore(path) as store:
        store.log.append(records(number, key="a"))


# -- opening


def test_the_file_is_its_owners_alone(path: Path):
    """
    File and companions can be read and written by the user, and by nobody else.
    """
    with SQLiteStore(path) as store:
        store.log.append([record()])
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert {"store.db": 0o600, "store.db-wal": 0o600, "store.db-shm": 0o600} == modes


def test_a_store_says_where_it_is(path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    Its path is absolute, so that it stays the same when the process moves.
    """
    monkeypatch.chdir(path.parent)
    with SQLiteStore("store.db") as store:
        assert str(path) == store.path
        assert not store.is_closed
    assert store.is_closed


@pytest.mark.parametrize("name", ["a b#c?d%20'e\".db", "ä;--.db", "file.db?mode=memory"])
def test_any_name_is_a_path(tmp_path: Path, name: str):
    """
    No character of a path means anything to SQLite.
    """
    with SQLiteStore(tmp_path / name) as store:
        store.log.append([record()])
    assert [name] == os.listdir(tmp_path)


@pytest.mark.parametrize("name", ["", ":memory:", "file:x.db", "shop\0.db"])
def test_what_is_no_path_is_refused(name: str):
    """
    A store is a file; the message names the one that is none.
    """
    with pytest.raises(StoreError, match="MemoryStore"):
        SQLiteStore(name)


def test_a_path_may_be_bytes(tmp_path: Path):
    """
    As `os` takes them.
    """
    given: Any = os.fsencode(tmp_path / "shop.db")
    with SQLiteStore(given) as store:
        assert str(tmp_path / "shop.db") == store.path


def test_a_link_to_nowhere_is_named(tmp_path: Path):
    """
    It is the file that is missing, and not a right.
    """
    (tmp_path / "shop.db").symlink_to(tmp_path / "missing.db")
    with pytest.raises(StoreAccessError, match="is a link to a file that is not there"):
        SQLiteStore(tmp_path / "shop.db")


def test_tables_of_no_known_version_are_refused(path: Path):
    """
    Whoever made them, it was not this library.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE eventbus_facts (name TEXT, value INTEGER)")
    with pytest.raises(StoreSchemaError, match="does not say of which version"):
        SQLiteStore(path)


def test_a_missing_folder_is_named(tmp_path: Path):
    """
    Folders are not made; the message says what to do.
    """
    with pytest.raises(StoreAccessError, match="Make its folder first") as refused:
        SQLiteStore(tmp_path / "missing" / "store.db")
    assert str(tmp_path / "missing" / "store.db") == refused.value.path
    assert [] == os.listdir(tmp_path)


def test_a_folder_is_no_file(tmp_path: Path):
    """
    Whoever names a folder is told so.
    """
    with pytest.raises(StoreAccessError, match="is a folder"):
        SQLiteStore(tmp_path)


def test_a_read_only_file_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A file that cannot be written to is refused at once, with the cure.
    """
    filled(path)
    path.chmod(0o400)
    if os.geteuid() == 0:  # root may write whatever the mode says
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(StoreAccessError, match="read_only=True"):
        SQLiteStore(path)


def test_bad_options_are_refused(path: Path):
    """
    Only the two known pragmas are taken, and times that can pass.
    """
    with pytest.raises(ValueError, match="synchronous"):
        SQLiteStore(path, synchronous="OFF; DROP TABLE eventbus_events")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"synchronous is 'NORMAL' or 'FULL', not 'full'$"):
        SQLiteStore(path, synchronous="full")  # type: ignore[arg-type]
    for never in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="busy_timeout is 0 seconds or more, and not"):
            SQLiteStore(path, busy_timeout=never)
    for no_time in ("5", True):
        with pytest.raises(TypeError, match="busy_timeout is in seconds, not"):
            SQLiteStore(path, busy_timeout=no_time)  # type: ignore[arg-type]
    assert not path.exists()


def pragma(connection: sqlite3.Connection) -> int:
    return connection.execute("PRAGMA synchronous").fetchone()[0]


def test_the_pragma_is_the_one_asked_for(path: Path):
    """
    With FULL each commit is flushed to the disk, with NORMAL it is not.
    """
    for synchronous, expected in (("NORMAL", 1), ("FULL", 2)):
        with SQLiteStore(path, synchronous=synchronous) as store:  # type: ignore[arg-type]
            assert expected == store._writer.run(pragma)


def test_an_empty_file_becomes_a_store(path: Path):
    """
    A file that somebody has made beforehand is filled, and keeps its permissions.
    """
    path.touch(mode=0o640)
    path.chmod(0o640)
    filled(path)
    assert 0o640 == stat.S_IMODE(path.stat().st_mode)


def test_the_applications_database_is_a_store(path: Path):
    """
    Tables of an application, and its version of them, stay as they are beside ours.
    """
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE orders (id TEXT)")
        connection.execute("INSERT INTO orders VALUES ('A-1')")
        connection.execute("PRAGMA user_version = 7")
        connection.execute("PRAGMA application_id = 8")
    connection.close()
    filled(path)
    connection = sqlite3.connect(path)
    assert [("A-1",)] == connection.execute("SELECT * FROM orders").fetchall()
    assert (7,) == connection.execute("PRAGMA user_version").fetchone()
    assert (8,) == connection.execute("PRAGMA application_id").fetchone()
    connection.close()


# -- damage


@pytest.mark.parametrize("content", [b"not a database " * 100, b"\0" * 4096, b"SQLite format 4\0"])
def test_a_file_that_is_no_database_is_refused(path: Path, content: bytes):
    """
    It is named as such, and not touched.
    """
    path.write_bytes(content)
    with pytest.raises(StoreCorruptError, match=r"store\.db"):
        SQLiteStore(path)
    assert content == path.read_bytes()


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path: Path, keep: float):
    """
    A file that has lost its end is never half a store.
    """
    filled(path)
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(StoreCorruptError, match=r"damaged|no SQLite database"):
        SQLiteStore(path)


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def test_a_flipped_byte_of_a_payload_is_found(path: Path):
    """
    The record says that it is not intact, `check` names it, and its neighbours are read.
    """
    with SQLiteStore(path) as store:
        payloads = [b"before" * 20, b"the damaged one" * 20, b"after" * 20]
        store.log.append([record(payload=payload) for payload in payloads])
    flip(path, path.read_bytes().index(b"the damaged one"))
    with SQLiteStore(path) as store:
        assert [True, False, True] == [each.is_intact for each in store.log.read()]
        assert ("record 2: its payload is not what was written",) == store.check()


def test_a_flipped_byte_of_a_letter_is_found(path: Path):
    """
    Dead letters are looked at as well.
    """
    with SQLiteStore(path) as store:
        store.log.append([record()])
        store.progress.open("a", start="origin")
        lost = letter(store, 1, record=record(offset=1, payload=b"the damaged one" * 20))
        store.letters.add(lost)
    flip(path, path.read_bytes().index(b"the damaged one"))
    with SQLiteStore(path) as store:
        assert ("dead letter letter-1: its payload is not what was written",) == store.check()
        assert not store.letters.get("letter-1").record.is_intact


def test_damaged_pages_are_found(path: Path):
    """
    Whatever page is overwritten, opening, reading or checking says so by name.
    """
    filled(path)
    whole = path.read_bytes()
    for page in range(1, len(whole) // 4096):
        broken = whole[: page * 4096] + b"\xa5" * 4096 + whole[(page + 1) * 4096 :]
        path.write_bytes(broken)
        with suppress(StoreCorruptError), SQLiteStore(path) as store:
            assert store.check()


def test_a_row_of_nonsense_does_not_stop_the_reader(path: Path):
    """
    A record whose columns were damaged comes as one that is not intact.
    """
    with SQLiteStore(path) as store:
        store.log.append(records(5))
        changes = [
            "headers = '{'",
            "time = 'noon', payload = 'text'",
            "time = 9223372036854775807, key = 7",
        ]
        for number, change in enumerate(changes, start=2):
            sql = f'UPDATE eventbus_events SET {change} WHERE "offset" = {number}'
            store._writer.run(lambda connection, sql=sql: connection.execute(sql))
        found = list(store.log.read())
        assert [True, False, False, False, True] == [each.is_intact for each in found]
        assert b"text" == found[2].payload
        assert "7" == found[3].key
        assert 3 == len(store.check())


def test_impossible_progress_is_found(path: Path):
    """
    A delivery that is pending without ever having been taken is reported.
    """
    with SQLiteStore(path) as store:
        store.progress.open("shop.charge", start="origin")
        lease = store.progress.acquire("shop.charge", owner="me", ttl=1.0, now=0.0)
        assert lease is not None
        store.progress.advance(lease, Step(waiting=[3]))
        (finding,) = store.check()
        assert "shop.charge" in finding


def test_damage_met_while_checking_is_a_finding(path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    `check` returns what SQLite cannot read any further, instead of raising it.
    """
    with SQLiteStore(path) as store:

        def query(self: object, sql: str) -> None:
            raise StoreCorruptError("page 7 is damaged")

        monkeypatch.setattr(type(store._database), "query", query)
        assert ("page 7 is damaged",) == store.check()


# -- versions


def test_a_newer_file_is_refused(path: Path):
    """
    What a newer library has written is left alone.
    """
    with SQLiteStore(path) as store:
        sql = "UPDATE eventbus_facts SET value = 99 WHERE name = 'schema'"
        store._writer.run(lambda connection: connection.execute(sql))
    for read_only in (False, True):
        with pytest.raises(StoreSchemaError, match="newer version"):
            SQLiteStore(path, read_only=read_only)


def test_an_older_file_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    A newer library brings the tables up to date when it opens the file.
    """
    filled(path, 3)
    newer = (*_schema.MIGRATIONS, ("CREATE TABLE eventbus_more (x)",))
    monkeypatch.setattr(_schema, "MIGRATIONS", newer)
    with SQLiteStore(path) as store:
        assert [] == store._database.query("SELECT * FROM eventbus_more")
        assert 3 == store.log.last_offset()
        assert [(2,)] == store._database.query(
            "SELECT value FROM eventbus_facts WHERE name = 'schema'"
        )


def test_a_failed_migration_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    All steps of a migration are made, or none.
    """
    filled(path, 3)
    good = _schema.MIGRATIONS
    broken = (*good, ("CREATE TABLE eventbus_more (x)", "CREATE TABLE eventbus_more (x)"))
    monkeypatch.setattr(_schema, "MIGRATIONS", broken)
    with pytest.raises(StoreError, match="already exists"):
        SQLiteStore(path)
    monkeypatch.setattr(_schema, "MIGRATIONS", good)
    with SQLiteStore(path) as store:
        assert 3 == store.log.last_offset()
        assert () == store.check()


# -- locked, full


@pytest.fixture
def blocked(path: Path):
    """
    A store with a short patience, while another connection writes.
    """
    with SQLiteStore(path, busy_timeout=0.01) as store:
        store.log.append([record()])
        store.progress.open("a", start="origin")
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        yield store
        other.execute("ROLLBACK")
        other.close()
        store.log.append([record()])  # it has survived
        assert 2 == store.log.last_offset()


def test_a_locked_file_is_waited_for_and_named(blocked: SQLiteStore):
    """
    After the stated time the publisher gets an error, whatever it asked for, and nothing else.
    """
    asks: list[Callable[[], object]] = [
        lambda: blocked.log.append([record()]),
        lambda: blocked.log.append(records(3)),
        lambda: asyncio.run(aappend(blocked)),
        lambda: blocked.progress.acquire("a", owner="me", ttl=1.0, now=0.0),
        lambda: blocked.idempotency.claim("s", "k", source=record(), now=0.0),
        blocked.letters.discard,
    ]
    for ask in asks:
        with pytest.raises(StoreLockedError, match="busy_timeout"):
            ask()


def test_readers_do_not_wait_for_writers(blocked: SQLiteStore):
    """
    While somebody writes everything can be read.
    """
    assert 1 == blocked.log.last_offset()
    assert [1] == offsets(blocked.log.read())
    assert 1 == blocked.progress.position("a").lag
    assert () == blocked.check()


def test_a_transaction_waits_for_the_file(path: Path):
    """
    A transaction that cannot begin raises the same error, and leaves nothing open.
    """
    with SQLiteStore(path, busy_timeout=0.01) as store:
        store.progress.open("a")
        lease = store.progress.acquire("a", owner="me", ttl=1.0, now=0.0)
        assert lease is not None
        with store.progress.transaction(lease):
            with pytest.raises(StoreLockedError), store.progress.transaction(lease):
                pytest.fail("it began")
            with pytest.raises(StoreLockedError):
                store.log.append([record()])
        store.log.append([record()])


def aappend(store: SQLiteStore) -> object:
    async def append() -> object:
        return await store.log.aappend([record()])

    return append()


def test_turning_to_wal_is_tried_for_a_while(path: Path, monkeypatch: pytest.MonkeyPatch):
    """
    While others open the same new file, one waits as long as it would for a writer.
    """
    filled(path, 1)
    clock = VirtualClock()
    tries = []

    class Busy(sqlite3.Connection):
        def execute(self, sql, *parameters):
            if "journal_mode" in sql:
                tries.append(sql)
                if len(tries) < limit:
                    error = sqlite3.OperationalError("database is locked")
                    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
                    raise error
            return super().execute(sql, *parameters)

    connect = sqlite3.connect
    monkeypatch.setattr(
        _database.sqlite3,
        "connect",
        lambda *given, factory, **options: connect(*given, factory=Busy, **options),
    )
    limit = 5
    SQLiteStore(path, clock=clock).close()
    assert 5 == len(tries)
    limit = 1_000_000
    with pytest.raises(StoreLockedError):
        SQLiteStore(path, clock=clock, busy_timeout=1.0)
    assert 1.0 <= clock.monotonic() < 1.1


def test_a_full_disk_is_named(path: Path):
    """
    What does not fit is refused whole, and what is there stays readable.
    """
    with SQLiteStore(path) as store:
        store.log.append(records(10))

        def limit(connection: sqlite3.Connection, pages: int) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}")

        store._writer.run(lambda connection: limit(connection, 1))
        big = [record(payload=b"x" * 100_000)]
        asks: list[Callable[[], object]] = [
            lambda: store.log.append(big),
            lambda: store.log.append(big + records(2)),
            lambda: asyncio.run(store.log.aappend(big)),
        ]
        for ask in asks:
            with pytest.raises(StoreFullError, match="nothing was stored"):
                ask()
        assert 10 == len(list(store.log.read()))
        store._writer.run(lambda connection: limit(connection, 100_000))
        assert [11] == store.log.append(big)
        assert () == store.check()


def test_a_full_disk_fails_all_who_share_the_commit(path: Path):
    """
    When SQLite gives up the transaction, nobody in it is told that all went well.
    """
    with SQLiteStore(path) as store:
        store._writer.run(lambda each: each.execute("PRAGMA max_page_count = 1"))

        async def publish() -> list[object]:
            payloads = [b"small", b"x" * 200_000, b"small"]
            asked = [store.log.aappend([record(payload=payload)]) for payload in payloads]
            return await asyncio.gather(*asked, return_exceptions=True)

        found = asyncio.run(publish())
        assert isinstance(found[1], StoreFullError)
        stored = [each for each in found if not isinstance(each, StoreFullError)]
        assert len(stored) == len(list(store.log.read()))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (sqlite3.SQLITE_READONLY, StoreAccessError),
        (sqlite3.SQLITE_CANTOPEN, StoreAccessError),
        (sqlite3.SQLITE_LOCKED, StoreLockedError),
        (sqlite3.SQLITE_IOERR | 3 << 8, StoreError),
        (sqlite3.SQLITE_NOMEM, StoreError),
        (None, StoreError),
    ],
)
def test_each_code_has_its_error(code: int | None, expected: type[StoreError]):
    """
    What SQLite reports becomes an error of ours that names file, reason and cure.
    """
    error = sqlite3.OperationalError("the reason")
    if code is not None:
        error.sqlite_errorcode = code  # type: ignore[misc]
    found = fault(error, "app.db")
    assert expected is type(found)
    assert "app.db" == found.path
    assert "the reason" in str(found)


def test_a_connection_closed_meanwhile_is_a_store_closed():
    """
    Whoever was about to use a connection when the store was closed learns just that.
    """
    connection = sqlite3.connect(":memory:")
    connection.close()
    with pytest.raises(StoreClosedError), faults("app.db"):
        connection.execute("SELECT 1")


def test_what_is_no_record_is_refused_before_it_is_stored(path: Path):
    """
    Values of other types are Python's own error, and leave nothing behind.
    """
    with SQLiteStore(path) as store:
        for facts in ({"time": "noon"}, {"payload": "text"}, {"time": NOON.replace(tzinfo=None)}):
            with pytest.raises((TypeError, ValueError)):
                store.log.append([record(), record(**facts)])
        assert 0 == store.log.last_offset()


# -- closed, forked, only for reading


def test_a_closed_store_refuses_by_name(path: Path):
    """
    After closing, every port says that the store has been closed.
    """
    store = SQLiteStore(path)
    store.log.append([record()])
    store.progress.open("a")
    lease = store.progress.acquire("a", owner="me", ttl=1.0, now=0.0)
    assert lease is not None
    store.log.changes()
    store.close()
    store.close()
    memory = sqlite3.connect(":memory:")
    asks: list[Callable[[], object]] = [
        lambda: store.log.append([record()]),
        lambda: store.log.append(records(2)),
        lambda: asyncio.run(aappend(store)),
        store.log.read,
        store.log.last_offset,
        store.log.changes,
        lambda: store.log.append([record()], connection=memory),
        store.progress.positions,
        lambda: store.progress.advance(lease, Step(taken=1)),
        lambda: store.progress.transaction(lease).__enter__(),
        store.letters.count,
        lambda: store.idempotency.claim("s", "k", source=record(), now=0.0),
        store.check,
    ]
    for ask in asks:
        with pytest.raises(StoreClosedError, match="closed"):
            ask()
    memory.close()
    assert ["store.db"] == os.listdir(path.parent)


def test_closing_waits_for_nobody_who_reads(path: Path):
    """
    A reader in the middle of the log is refused its next page.
    """
    store = SQLiteStore(path)
    store.log.append(records(600))
    reading = store.log.read()
    next(reading)
    store.close()
    with pytest.raises(StoreClosedError):
        list(reading)


def test_a_transaction_open_while_closing_ends_well(path: Path):
    """
    What a handler is in the middle of is committed, and its connection closed after it.
    """
    store = SQLiteStore(path)
    store.progress.open("a", start="origin")
    lease = store.progress.acquire("a", owner="me", ttl=1.0, now=0.0)
    assert lease is not None
    with store.progress.transaction(lease) as transaction:
        transaction.connection.execute("CREATE TABLE mine (what)")
        store.close()
    with SQLiteStore(path) as store:
        assert [] == store._database.query("SELECT * FROM mine")


def test_a_file_can_be_looked_at(path: Path):
    """
    Read-only a store shows everything beside a writer, and writes nothing.
    """
    with SQLiteStore(path) as store:
        store.log.append(records(3))
        store.progress.open("a", start="origin")
        with SQLiteStore(path, read_only=True) as looking:
            assert [1, 2, 3] == offsets(looking.log.read())
            assert 3 == looking.progress.position("a").lag
            before = looking.log.changes()
            store.log.append([record()])
            assert before != looking.log.changes()
            assert 4 == looking.log.last_offset()
            assert () == looking.check()
            with pytest.raises(StoreAccessError, match="cannot be written"):
                looking.log.append([record()])


def test_a_file_on_what_cannot_be_written_to_is_read_by_itself(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """
    A mounted backup has no room for the files that SQLite keeps beside it.
    """
    filled(path)
    fixed = SimpleNamespace(f_flag=os.ST_RDONLY)
    monkeypatch.setattr(os, "statvfs", lambda _: fixed)
    with SQLiteStore(path, read_only=True) as looking:
        assert 0 < looking.log.last_offset() == len(list(looking.log.read()))
        assert [path.name] == os.listdir(path.parent)
        with pytest.raises(StoreAccessError, match="cannot be written"):
            looking.log.append([record()])
    fixed.f_flag = 0
    with SQLiteStore(path, read_only=True) as looking:
        looking.log.last_offset()
        assert [path.name] != os.listdir(path.parent)


@pytest.mark.parametrize("is_made", [True, False])
def test_a_folder_in_which_a_file_cannot_be_looked_at_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_made: bool
):
    """
    It is nobody's fault that has opened the file to read it only.
    """
    if is_made:
        filled(path)

    def refuse(*_: object) -> None:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DIRECTORY
        raise error

    monkeypatch.setattr(_database.Database, "connect", refuse)
    can_write, access = os.W_OK, os.access
    monkeypatch.setattr(os, "access", lambda name, mode: mode != can_write and access(name, mode))
    with pytest.raises(StoreAccessError, match="Copy it to" if is_made else "written") as caught:
        SQLiteStore(path, read_only=True)
    assert str(path) == caught.value.path


def test_there_must_be_something_to_look_at(path: Path):
    """
    A file that is missing, or has no events, is not made by looking at it.
    """
    with pytest.raises(StoreAccessError, match="cannot be opened"):
        SQLiteStore(path, read_only=True)
    assert not path.exists()
    path.touch()
    with pytest.raises(StoreAccessError, match="holds no events yet"):
        SQLiteStore(path, read_only=True)


def test_a_forked_child_is_refused(path: Path):
    """
    A connection must not cross a fork: the child is told to open the file itself.
    """
    with SQLiteStore(path) as store, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_database, "_process", _database._process)  # put back at the end
        _database._after_fork()
        for ask in (lambda: store.log.append([record()]), lambda: store.log.append(records(2))):
            with pytest.raises(StoreError, match="forked"):
                ask()
        with pytest.raises(StoreError, match="forked"):
            store.log.last_offset()
        patch.undo()
        assert [1] == store.log.append([record()])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_that_was_forked_knows_it(path: Path):
    """
    After a fork the store is refused to the child, and serves the parent as before.
    """
    with SQLiteStore(path) as store:
        child = os.fork()
        if child == 0:  # pragma: no cover - in a process of its own
            try:
                store.log.append([record()])
            except StoreError:
                os._exit(0)
            finally:
                os._exit(1)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert [1] == store.log.append([record()])


def test_no_thread_outlives_the_store(path: Path):
    """
    The committer is started when it is needed and ends with the store.
    """
    before = threading.active_count()
    with SQLiteStore(path) as store:
        store.log.append([record()])
        assert before == threading.active_count()
        asyncio.run(aappend(store))
        assert before + 1 == threading.active_count()
    assert before == threading.active_count()


def test_prepared_statements_take_only_parameters(path: Path):
    """
    Names, keys, ids and payloads of any content are data, in every port.
    """
    evil = "'; DROP TABLE eventbus_events; --"
    with SQLiteStore(path) as store:
        store.log.append([record(id=evil, name=evil, key=evil, payload=evil.encode(), time=NOON)])
        store.progress.open(evil, start="origin")
        assert store.progress.acquire(evil, owner=evil, ttl=1.0, now=0.0) is not None
        assert evil == next(store.log.read(names=[evil], key=evil)).id
        assert 1 == store.log.stream_version(evil)
        store.idempotency.claim(evil, evil, source=record(), now=0.0)
        assert () == store.check()


@pytest.mark.parametrize("fate", ["moved", "deleted", "replaced"])
@pytest.mark.parametrize("looks", [True, False])
def test_a_file_that_is_not_in_its_place_is_noticed(
    path: Path, caplog: pytest.LogCaptureFixture, fate: str, *, looks: bool
):
    """
    Once, by whoever waits for events, and when the store is closed at the latest.
    """
    with SQLiteStore(path) as store:
        store.log.append([record()])
        store.log.changes()
        if fate == "moved":
            path.rename(path.with_name("backup.db"))
        else:
            path.unlink()
        if fate == "replaced":
            path.touch()
        for _ in range(2 * looks):
            store.log.changes()
        assert looks == len(caplog.records)
    store.close()
    (said,) = caplog.records
    assert said.getMessage().startswith(f"{path} was moved, replaced or deleted while it was open")


def test_a_file_that_goes_after_its_store_is_nobodys_affair(
    path: Path, caplog: pytest.LogCaptureFixture
):
    """
    It may be moved once the store is closed.
    """
    store = SQLiteStore(path)
    store.close()
    path.unlink()
    store.close()
    assert [] == caplog.records
