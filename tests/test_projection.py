"""
Projections: state that follows the log, in memory and in tables, and is built anew.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventbus import (
    DeclarationError,
    DecodeError,
    Durable,
    Envelope,
    EventBus,
    LeaseLostError,
    ProjectionError,
    SubscriptionBusyError,
    SubscriptionOptionError,
    event,
    on,
)
from eventbus.codec import JSONCodec
from eventbus.event_log import Record
from eventbus.memory import MemoryStore
from eventbus.progress import Step
from eventbus.projection import Projection, projection
from eventbus.replay import Keeper
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import VirtualClock
from eventbus.testing.contracts._records import record


@event(name="bank.deposited", key="account")
class Deposited:
    account: str
    cents: int


@event(name="bank.bonus", key="account")
class Bonus(Deposited):
    pass


@event(name="bank.closed", key="account")
class Closed:
    account: str


DURABLE = Durable()
WRITER = JSONCodec()
BALANCES = "CREATE TABLE balances (account TEXT PRIMARY KEY, cents INTEGER NOT NULL)"
ADD = "INSERT INTO balances VALUES (?, ?) ON CONFLICT DO UPDATE SET cents = cents + excluded.cents"


@projection(name="totals")
class Totals:
    def __init__(self) -> None:
        self.cents: Counter[str] = Counter()
        self.seen: list[str] = []

    @on
    def deposited(self, happened: Deposited, envelope: Envelope) -> None:
        self.cents[happened.account] += happened.cents
        self.seen.append(f"{envelope.name} {envelope.offset}")

    @on(Closed)
    def closed(self, happened: Closed) -> None:
        del self.cents[happened.account]


@projection(name="balances", tables=BALANCES)
class Balances:
    @on
    def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
        db.execute(ADD, (happened.account, happened.cents))


@projection(name="balances", version=2, tables=BALANCES)
class Doubled:
    @on
    def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
        db.execute(ADD, (happened.account, 2 * happened.cents))


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    opened = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "bank.db")
    yield opened
    opened.close()


@pytest.fixture
def file(tmp_path: Path):
    with SQLiteStore(tmp_path / "bank.db") as store:
        yield store
        assert () == store.check()


def made(what: Any, store: Store, **options: Any) -> Projection[Any]:
    return Projection(what, store=store, codec=JSONCodec(), **options)


def stored(happened: Any, **facts: Any) -> Record:
    name, version, payload = WRITER.encode(happened)
    plain = {"name": name, "version": version, "payload": payload, "key": happened.account}
    return record(**{**plain, **facts})


def deposit(store: Store, *cents: int) -> None:
    store.log.append([stored(Deposited("a", each)) for each in cents])


def rows(store: Any, sql: str = "SELECT * FROM balances") -> list[Any]:
    """
    Read as any other program that has the file open does.
    """
    with closing(sqlite3.connect(store.path)) as connection:
        return connection.execute(sql).fetchall()


# -- in memory -------------------------------------------------------------------------------


def test_state_is_built_from_the_events_there_are(store: Store):
    """
    Each method takes in the events it is marked for, in the order of the log.
    """
    store.log.append([stored(each) for each in (Deposited("a", 5), Bonus("b", 7), Closed("a"))])
    totals = made(Totals, store)
    assert 3 == totals.catch_up()
    assert {"b": 7} == totals.state.cents
    assert ["bank.deposited 1", "bank.bonus 2"] == totals.state.seen


def test_state_goes_on_where_it_was(store: Store):
    """
    What is there already is not taken in again.
    """
    totals = made(Totals, store)
    assert 0 == totals.catch_up()
    deposit(store, 1, 2)
    assert 2 == totals.lag
    totals.catch_up()
    deposit(store, 4)
    assert 3 == totals.catch_up() == totals.position
    assert ({"a": 7}, 0) == (totals.state.cents, totals.lag)


def test_events_of_others_are_passed_by(store: Store):
    """
    What no method takes need not even be known, and the position moves past it.
    """
    store.log.append([record(name="shop.unheard_of"), stored(Deposited("a", 5))])
    totals = made(Totals, store)
    assert 2 == totals.catch_up()
    assert {"a": 5} == totals.state.cents


def test_a_rebuilt_state_takes_the_place_of_the_old_one(store: Store):
    """
    Whoever holds the old state goes on reading it, whole; whoever asks gets the new one.
    """
    deposit(store, 1, 2)
    totals = made(Totals, store)
    totals.catch_up()
    old = totals.state
    assert 2 == totals.rebuild()
    assert old is not totals.state
    assert old.cents == totals.state.cents


def test_a_failing_method_leaves_no_half_event(store: Store):
    """
    The error says where; the next try begins with a state that is whole.
    """
    fails = [True]

    @projection(name="shaky")
    class Shaky:
        def __init__(self) -> None:
            self.cents = 0

        @on
        def deposited(self, happened: Deposited) -> None:
            self.cents += happened.cents
            if fails and happened.cents == 2:
                raise ValueError("no")

    shaky = made(Shaky, store)
    shaky.catch_up()
    deposit(store, 1, 2, 3)
    with pytest.raises(ValueError, match="no") as caught:
        shaky.catch_up()
    assert ["while shaky was taking in bank.deposited at offset 2"] == caught.value.__notes__
    assert 1 == shaky.position
    fails.clear()
    assert 3 == shaky.catch_up()
    assert 6 == shaky.state.cents


def test_what_makes_the_instance_may_be_any_callable(store: Store):
    """
    A projection that needs arguments is made by whoever has them.
    """

    @projection()
    class Over:
        def __init__(self, limit: int) -> None:
            self.limit, self.count = limit, 0

        @on
        def deposited(self, happened: Deposited) -> None:
            self.count += happened.cents > self.limit

    deposit(store, 1, 50, 60)
    over = made(lambda: Over(10), store)
    over.catch_up()
    assert 2 == over.state.count
    assert over.name.endswith("test_what_makes_the_instance_may_be_any_callable.<locals>.Over")


@pytest.mark.parametrize("what", [Totals, Balances])
def test_an_event_that_cannot_be_read_stops_it(store: Store, what: Any):
    """
    A hole in the state would never be noticed: by default the error is raised.
    """
    store.log.append([stored(Deposited("a", 1), payload=b"{}"), stored(Deposited("a", 4))])
    with pytest.raises(DecodeError):
        made(what, store).catch_up()
    assert 2 == made(what, store, unreadable="skip").catch_up()


def test_a_method_may_take_everything(store: Store):
    """
    A method for ``object`` takes all events, and so is stopped by what nobody knows.
    """

    @projection()
    class All:
        @on(object)
        def happened(self, happened: object) -> None: ...

    store.log.append([record(name="shop.unheard_of")])
    with pytest.raises(DecodeError, match=r"shop\.unheard_of"):
        made(All, store).catch_up()


def test_a_method_may_take_the_envelope_by_keyword(store: Store):
    """
    As a handler may.
    """

    @projection()
    class Ids:
        def __init__(self) -> None:
            self.found: list[str] = []

        @on
        def deposited(self, happened: Deposited, *, envelope: Envelope) -> None:
            self.found.append(envelope.id)

    store.log.append([stored(Deposited("a", 1), id="x")])
    ids = made(Ids, store)
    ids.catch_up()
    assert ["x"] == ids.state.found


def test_progress_is_told_while_it_is_built(store: Store):
    """
    A long log is gone through with reports, the last one at its end.
    """
    deposit(store, *range(450))
    for what in (Totals, Balances):
        told: list[Any] = []
        made(what, store, progress=told.append).catch_up()
        assert [200, 400, 450] == [each.done for each in told if each.done != 450] + [450]
        assert {450} == {each.total for each in told}


# -- in tables -------------------------------------------------------------------------------


def test_tables_follow_the_log(file: SQLiteStore):
    """
    What the methods write and how far they have come is committed together.
    """
    deposit(file, 1, 2)
    balances = made(Balances, file)
    assert 2 == balances.catch_up()
    deposit(file, 4)
    assert 1 == balances.lag
    assert 3 == balances.catch_up() == balances.position
    assert [("a", 7)] == rows(file)


def test_tables_survive_the_process(file: SQLiteStore):
    """
    Another process goes on where the first one was, and builds nothing anew.
    """
    deposit(file, 1, 2)
    made(Balances, file).catch_up()
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("UPDATE balances SET cents = 100")
    deposit(file, 4)
    made(Balances, file).catch_up()
    assert [("a", 104)] == rows(file)


def test_tables_stand_in_a_store_in_memory_too():
    """
    A store in memory has a database for them.
    """
    store = MemoryStore()
    deposit(store, 1, 2)
    balances = made(Balances, store)
    balances.catch_up()
    deposit(store, 4)
    assert 3 == balances.catch_up()
    clock = VirtualClock()
    lease = store.progress.acquire("projection:balances", owner="test", ttl=1.0, now=clock.time())
    assert lease is not None
    with store.progress.transaction(lease) as transaction:
        found = transaction.connection.execute("SELECT * FROM balances").fetchall()
    assert [("a", 7)] == found


def test_a_changed_version_builds_its_tables_anew(file: SQLiteStore):
    """
    From the first event on, and once.
    """
    deposit(file, 1, 2)
    made(Balances, file).catch_up()
    doubled = made(Doubled, file)
    doubled.catch_up()
    assert [("a", 6)] == rows(file)
    deposit(file, 4)
    doubled.catch_up()
    assert [("a", 14)] == rows(file)
    made(Balances, file).catch_up()
    assert [("a", 7)] == rows(file)


def test_readers_never_see_tables_half_built(file: SQLiteStore):
    """
    While the new tables are built, readers see the old ones; then the new ones, whole.
    """
    deposit(file, 1, 2)
    made(Balances, file).catch_up()
    seen: list[Any] = []

    @projection(name="balances", version=2, tables=BALANCES)
    class Watching(Doubled):
        @on
        def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
            super().deposited(happened, db)
            seen.append(rows(file))

    made(Watching, file).catch_up()
    assert [[("a", 3)], [("a", 3)]] == seen
    assert [("a", 6)] == rows(file)


def test_what_is_appended_while_it_is_built_is_in_it(file: SQLiteStore):
    """
    Publishers are not held up by the building, and nothing is left out at its end.
    """
    deposit(file, 1, 2)
    deposits = iter([10, 20])

    @projection(name="balances", tables=BALANCES)
    class Slow(Balances):
        @on
        def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
            super().deposited(happened, db)
            deposit(file, *([cents] if (cents := next(deposits, 0)) else []))

    slow = made(Slow, file)
    assert 4 == slow.catch_up()
    assert [("a", 33)] == rows(file)


def test_what_is_appended_at_the_last_moment_is_in_it(
    file: SQLiteStore, monkeypatch: pytest.MonkeyPatch
):
    """
    The last events are taken in while nobody can append any more.
    """
    balances = made(Balances, file)
    deposit(file, 1)
    progress = type(file.progress)
    transaction, calls = progress.transaction, iter([0, 10])

    def late(self: Any, lease: Any) -> Any:
        deposit(file, *filter(None, [next(calls, 0)]))
        return transaction(self, lease)

    monkeypatch.setattr(progress, "transaction", late)
    assert 2 == balances.catch_up() == balances.position
    assert [("a", 11)] == rows(file)


def test_a_failing_rebuild_leaves_everything_as_it_was(file: SQLiteStore):
    """
    Tables, position and version stay those of the old one.
    """
    deposit(file, 1, 2)
    balances = made(Balances, file)
    balances.catch_up()

    @projection(name="balances", version=2, tables=BALANCES)
    class Wrong:
        @on
        def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO no_such_table VALUES (1)")

    with pytest.raises(sqlite3.OperationalError, match="no_such_table"):
        made(Wrong, file).catch_up()
    deposit(file, 4)
    balances.catch_up()
    assert [("a", 7)] == rows(file)


def test_a_failing_event_rolls_its_transaction_back(file: SQLiteStore):
    """
    Neither rows nor position of it are kept, and the next try begins before it.
    """
    fails = [True]

    @projection(name="balances", tables=BALANCES)
    class Shaky(Balances):
        @on
        def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
            super().deposited(happened, db)
            if fails and happened.cents == 2:
                raise ValueError("no")

    shaky = made(Shaky, file)
    shaky.catch_up()
    deposit(file, 2)
    with pytest.raises(ValueError, match="no"):
        shaky.catch_up()
    assert ([], 0) == (rows(file), shaky.position)
    fails.clear()
    shaky.catch_up()
    assert [("a", 2)] == rows(file)


def test_a_rebuild_can_be_asked_for(file: SQLiteStore):
    """
    Without a new version, too: whatever has happened to the tables is undone.
    """
    deposit(file, 1, 2)
    balances = made(Balances, file)
    balances.catch_up()
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("UPDATE balances SET cents = 100")
    assert 2 == balances.rebuild()
    assert [("a", 3)] == rows(file)


def test_everything_a_script_makes_is_swapped(file: SQLiteStore):
    """
    Indexes, views, triggers, generated columns and odd names come along, and go again.
    """
    script = """
        CREATE TABLE "odd ""name" (
            account TEXT, cents INTEGER, euros REAL GENERATED ALWAYS AS (cents / 100.0) STORED
        );
        CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT);
        CREATE INDEX by_account ON "odd ""name" (account);
        CREATE VIEW rich AS SELECT account FROM "odd ""name" WHERE cents > 1;
        CREATE TRIGGER noted AFTER INSERT ON "odd ""name" BEGIN
            INSERT INTO log (text) VALUES (new.account);
        END;
    """

    def declared(version: int, tables: str) -> Any:
        @projection(name="odd", version=version, tables=tables)
        class Odd:
            @on
            def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
                if version < 3:
                    sql = 'INSERT INTO "odd ""name" (account, cents) VALUES (?, ?)'
                    db.execute(sql, (happened.account, happened.cents))

        return Odd

    deposit(file, 1, 250)
    for version in (1, 2):
        made(declared(version, script), file).catch_up()
        assert [("a", 1, 0.01), ("a", 250, 2.5)] == rows(file, 'SELECT * FROM "odd ""name"')
        assert [("a",)] == rows(file, "SELECT * FROM rich")
        assert [(1, "a"), (2, "a")] == rows(file, "SELECT * FROM log")
    made(declared(3, "CREATE TABLE plain (x)"), file).catch_up()
    left = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'eventbus%' AND name NOT LIKE 'sql%'"
    assert [("plain",)] == rows(file, left)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("CREATE TABL x (y)", "the tables of bad cannot be made"),
        ("SELECT 1", "tables= makes no table"),
        ("CREATE TABLE eventbus_mine (x)", "belongs to the store"),
        ("CREATE VIRTUAL TABLE words USING fts5 (text)", "is a virtual table"),
    ],
)
def test_a_script_that_cannot_be_swapped_is_refused(file: SQLiteStore, script: str, said: str):
    """
    The error names the projection and what is wrong with its tables.
    """

    @projection(name="bad", tables=script)
    class Bad:
        @on
        def deposited(self, happened: Deposited) -> None: ...

    with pytest.raises(ProjectionError, match=said) as caught:
        made(Bad, file).catch_up()
    assert "bad" == caught.value.projection


def test_a_table_of_somebody_else_is_never_dropped(file: SQLiteStore):
    """
    A name that is taken is refused; the table stays.
    """
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("CREATE TABLE balances (mine)")
        connection.execute("INSERT INTO balances VALUES (1)")
    with pytest.raises(ProjectionError, match="there is a table 'balances' already"):
        made(Balances, file).catch_up()
    assert [(1,)] == rows(file)


def test_a_table_that_was_dropped_by_hand_is_made_again(file: SQLiteStore):
    """
    A rebuild does not mind that what it would drop is gone.
    """
    deposit(file, 5)
    made(Balances, file).catch_up()
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("DROP TABLE balances")
    made(Balances, file).rebuild()
    assert [("a", 5)] == rows(file)


def test_one_process_at_a_time_brings_tables_on(file: SQLiteStore):
    """
    While another one holds the lease, the projection is busy, and says whose it is.
    """
    balances = made(Balances, file)
    balances.catch_up()
    clock = VirtualClock(start=0.0)
    file.progress.acquire("projection:balances", owner="another", ttl=10.0, now=clock.time())
    for verb in ("catch_up", "rebuild"):
        with pytest.raises(SubscriptionBusyError, match="consumed by another"):
            getattr(made(Balances, file, clock=clock), verb)()


def test_a_lease_that_has_run_out_is_watched_before_tables_are_brought_on(file: SQLiteStore):
    """
    Its holder may be well. Asked for it once, it waits; in a thread of its own it asks again.
    """
    deposit(file, 5)
    made(Balances, file).catch_up()
    clock = VirtualClock(start=1_000.0)
    lease = file.progress.acquire("projection:balances", owner="another", ttl=10.0, now=0.0)
    assert 1 == made(Balances, file, clock=clock).catch_up()
    assert 20.0 < clock.monotonic() < 25.0
    file.progress.acquire("projection:balances", owner="another", ttl=10.0, now=0.0)
    following = made(Balances, file, clock=clock)
    with following:
        until(following, lambda: isinstance(following.error, SubscriptionBusyError))
        clock.advance(25.0)
        until(following, lambda: following.error is None)
    assert lease is not None
    with pytest.raises(LeaseLostError):
        file.progress.advance(lease, Step())


def test_one_that_cannot_be_built_follows_nothing(file: SQLiteStore):
    """
    It can be begun again, once the reason is gone.
    """
    balances = made(Balances, file)
    deposit(file, 5)
    with closing(sqlite3.connect(file.path)) as connection:
        connection.execute("CREATE TABLE balances (mine)")
    with pytest.raises(ProjectionError), balances:
        raise AssertionError("it follows")
    assert balances.error is None
    with closing(sqlite3.connect(file.path)) as connection:
        connection.execute("DROP TABLE balances")
    with balances:
        assert [("a", 5)] == rows(file)


def test_one_thread_at_a_time_brings_it_on(store: Store):
    """
    A method that asks its own projection to catch up is refused, and not blocked.
    """
    holder: list[Projection[Any]] = []

    @projection()
    class Circular:
        @on
        def deposited(self, happened: Deposited) -> None:
            holder[0].catch_up()

    deposit(store, 1)
    holder.append(made(Circular, store))
    with pytest.raises(SubscriptionBusyError, match="another thread of this process"):
        holder[0].catch_up()


def test_an_idle_projection_keeps_its_lease(file: SQLiteStore):
    """
    It has nothing to write for hours, and nobody else takes it for dead.
    """
    clock = VirtualClock()
    deposit(file, 5)
    with made(Balances, file, clock=clock)._alone_in_turns() as advance:
        for _ in range(5):
            advance()
            clock.advance(50)  # less than the lease, and more than two thirds of it
        advance()
        lease = file.progress.position("projection:balances").lease
        assert lease is not None
        assert lease.expires > clock.time()
        with pytest.raises(SubscriptionBusyError):
            made(Balances, file, clock=clock).catch_up()
    assert [("a", 5)] == rows(file)


def test_a_subscription_of_the_same_name_has_a_place_of_its_own(store: Store):
    """
    Neither takes anything from the other.
    """
    bus, seen = EventBus(store=store, name="shop"), list[int]()
    totals = made(Balances, store)
    bus.subscribe(
        Deposited, lambda each: seen.append(each.cents), name="balances", delivery=DURABLE
    )
    bus.publish(Deposited("a", 1))
    totals.catch_up()
    bus.start()
    assert bus.drain(60.0).ok
    bus.publish(Deposited("a", 2))
    assert bus.drain(60.0).ok
    assert ([1, 2], 2) == (seen, totals.catch_up())
    with pytest.raises(SubscriptionOptionError, match="the place of a projection in the log"):
        bus.subscribe(Deposited, print, name="projection:balances", delivery=DURABLE)
    assert 1 == len(bus.subscriptions)
    bus.close()


def test_another_projection_of_the_same_name_is_refused(file: SQLiteStore):
    """
    It has other tables at the same version: it would be given the place of the first one.
    """

    @projection(name="balances", tables="CREATE TABLE visits (account TEXT)")
    class Visits:
        @on
        def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
            db.execute("INSERT INTO visits VALUES (?)", (happened.account,))

    deposit(file, 5)
    made(Balances, file).catch_up()
    visits = made(Visits, file)
    for _ in range(2):
        with pytest.raises(ProjectionError, match=r"tables balances in the file.* makes visits"):
            visits.catch_up()
    deposit(file, 2)
    made(Balances, file).catch_up()
    assert [("a", 7)] == rows(file)


# -- from a pruned log -------------------------------------------------------------------------


def test_tables_are_not_built_from_what_is_left_of_a_log(file: SQLiteStore):
    """
    Of another version or anew: the old ones stay, and go on.
    """
    deposit(file, 100, 1)
    balances = made(Balances, file)
    balances.catch_up()
    file.log.prune(before=2)
    with pytest.raises(ProjectionError, match=r"before offset 2 was pruned.*partial=True"):
        made(Doubled, file).catch_up()
    with pytest.raises(ProjectionError, match="What was built before stays"):
        balances.rebuild()
    assert [("a", 101)] == rows(file)
    deposit(file, 4)
    balances.catch_up()
    assert [("a", 105)] == rows(file)


def test_state_in_memory_is_not_built_from_what_is_left_of_a_log(store: Store):
    """
    One that was built before goes on.
    """
    deposit(store, 100, 1)
    totals = made(Totals, store)
    totals.catch_up()
    store.log.prune(before=2)
    deposit(store, 4)
    assert 3 == totals.catch_up()
    assert {"a": 105} == totals.state.cents
    with pytest.raises(ProjectionError, match="totals cannot be built"):
        totals.rebuild()
    assert {"a": 105} == totals.state.cents
    with pytest.raises(ProjectionError):
        made(Totals, store).catch_up()


@pytest.mark.parametrize("tables", ["", BALANCES])
def test_what_is_pruned_meanwhile_is_noticed(store: Store, tables: str):
    """
    It may not have been read yet.
    """

    @projection(tables=tables)
    class Slow:
        @on
        def deposited(self, happened: Deposited) -> None:
            if prunes:
                store.log.prune(before=2)

    prunes = list[bool]()
    deposit(store, 100, 1)
    slow = made(Slow, store)
    slow.catch_up()
    prunes.append(True)
    with pytest.raises(ProjectionError, match="before offset 2"):
        slow.rebuild()


def test_what_is_pruned_before_it_was_taken_in_is_missed(store: Store):
    """
    A projection in memory is not waited for: it says so, and keeps what it has.
    """
    deposit(store, 100, 1)
    totals = made(Totals, store)
    totals.catch_up()
    deposit(store, 10, 20, 30)
    store.log.prune(before=5)
    for _ in range(2):
        with pytest.raises(ProjectionError, match="between offset 2 and 5 was pruned"):
            totals.catch_up()
    assert (2, {"a": 101}) == (totals.position, totals.state.cents)


def test_what_is_partial_and_misses_something_is_built_from_the_rest(store: Store):
    """
    As it would be after a restart.
    """

    @projection(partial=True)
    class Recent(Totals): ...

    deposit(store, 100, 1)
    recent = made(Recent, store)
    recent.catch_up()
    deposit(store, 10, 20, 30)
    store.log.prune(before=5)
    assert 5 == recent.catch_up()
    assert {"a": 30} == recent.state.cents


def test_an_offset_that_is_missing_is_no_hole(store: Store, monkeypatch: pytest.MonkeyPatch):
    """
    A store may count on without an event; what was there before is still there.
    """
    deposit(store, 100)
    totals = made(Totals, store)
    totals.catch_up()
    deposit(store, 10, 1)
    read: Any = store.log.read
    less = lambda **given: (each for each in read(**given) if each.offset != 2)  # noqa: E731 - short
    monkeypatch.setattr(store.log, "read", less)
    assert 3 == totals.catch_up()
    assert {"a": 101} == totals.state.cents


def test_what_is_meant_to_be_partial_is_built_from_the_rest(store: Store):
    """
    Its class says so.
    """

    @projection(partial=True)
    class Recent(Totals): ...

    deposit(store, 100, 1)
    store.log.prune(before=2)
    recent = made(Recent, store)
    assert 2 == recent.catch_up()
    assert {"a": 1} == recent.state.cents


# -- going on by itself ----------------------------------------------------------------------


def following() -> list[str]:
    return [each.name for each in threading.enumerate() if "projection" in each.name]


def until(each: Projection[Any], holds: Callable[[], bool]) -> None:
    """
    Wait, within bounds, for what the thread is about to do.
    """
    for _ in range(200):
        if holds():
            return
        each._follower.wait_for_turn(0.05)  # type: ignore[union-attr]
    raise AssertionError("the thread has not done it")


@pytest.mark.parametrize("what", [Totals, Balances])
def test_in_a_block_it_goes_on_by_itself(store: Store, what: Any):
    """
    It is up to date when the block begins, follows what is appended, and ends with it.
    """
    deposit(store, 1)
    each = made(what, store)
    with each:
        assert 0 == each.lag
        for cents in (2, 3, 4):
            deposit(store, cents)
            assert each.wait(timeout=60.0)
        assert 4 == each.position
        assert 1 == len(following())
    assert [] == following()


def test_waiting_without_a_thread_catches_up(store: Store):
    """
    Who waits for what nobody does, does it.
    """
    deposit(store, 1)
    totals = made(Totals, store)
    assert totals.wait()
    assert {"a": 1} == totals.state.cents


def test_a_failure_is_told_and_tried_again(store: Store, caplog: pytest.LogCaptureFixture):
    """
    What keeps it from going on is in its ``error`` and once in the log.
    """
    fails, tries = [True], list[int]()

    @projection(name="shaky")
    class Shaky:
        @on
        def deposited(self, happened: Deposited) -> None:
            tries.append(1)
            if fails:
                raise ValueError("no")

    shaky = made(Shaky, store)
    assert shaky.error is None
    with shaky:
        deposit(store, 1)
        assert not shaky.wait(timeout=0.01)
        until(shaky, lambda: len(tries) > 2 and repr(shaky.error) == "ValueError('no')")
        fails.clear()
        assert shaky.wait(timeout=60.0)
        until(shaky, lambda: shaky.error is None)
    assert 1 == len(caplog.records)
    assert "projection shaky has stopped, and will try again" in caplog.text


def test_a_second_process_stands_by(file: SQLiteStore):
    """
    It waits for the lease, without noise, and goes on when that is free.
    """
    balances = made(Balances, file)
    balances.catch_up()
    lease = file.progress.acquire("projection:balances", owner="another", ttl=9e9, now=9e9)
    assert lease is not None
    with balances:
        deposit(file, 1)
        assert not balances.wait(timeout=0.01)
        until(balances, lambda: isinstance(balances.error, SubscriptionBusyError))
        file.progress.release(lease)
        assert balances.wait(timeout=60.0)
    assert [("a", 1)] == rows(file)


def test_one_that_stood_still_stands_by_without_a_fuss(
    file: SQLiteStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """
    Somebody else has taken it over meanwhile, which is no failure.
    """
    renew, is_late = Keeper.renew, list[bool]()

    def late(self: Keeper) -> None:
        if is_late:
            raise LeaseLostError("somebody else has it", subscription="balances", owner="another")
        renew(self)

    monkeypatch.setattr(Keeper, "renew", late)
    balances = made(Balances, file)
    with balances:
        is_late.append(True)
        deposit(file, 1)
        until(balances, lambda: isinstance(balances.error, LeaseLostError))
        is_late.clear()
        assert balances.wait(timeout=60.0)
    assert {"WARNING"} == {each.levelname for each in caplog.records}
    assert "projection balances is brought on by somebody else now" in caplog.text


def test_the_end_of_a_block_that_never_began_is_fine(store: Store):
    """
    Where entering has failed there is nothing to end.
    """
    totals = made(Totals, store)
    totals.__exit__()
    assert [] == following()


# -- what is refused -------------------------------------------------------------------------


def no_options() -> Any:
    @projection()
    class Retrying:
        @on(Deposited, name="x", priority=3)
        def deposited(self, happened: Deposited) -> None: ...

    return Retrying


def no_tables() -> Any:
    @projection()
    class Homeless:
        @on
        def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None: ...

    return Homeless


def no_coroutines() -> Any:
    @projection()
    class Awaiting:
        @on
        async def deposited(self, happened: Deposited) -> None: ...

    return Awaiting


def no_event() -> Any:
    @projection()
    class Vague:
        @on
        def deposited(self, happened) -> None: ...  # type: ignore[no-untyped-def]

    return Vague


class Undeclared:
    pass


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (no_options, "drop name=, priority="),
        (no_tables, r"has no tables: @projection\(tables="),
        (no_coroutines, "build state and await nothing"),
        (no_event, "does not say which event it takes"),
        (lambda: Undeclared, "is no projection"),
    ],
)
def test_what_cannot_be_a_projection_is_refused(what: Any, said: str):
    """
    When it is made, with the cure.
    """
    with pytest.raises(DeclarationError, match=said):
        made(what(), MemoryStore())


@pytest.mark.parametrize("version", [0, -1, True])
def test_a_version_counts_from_one(version: int):
    """
    What is no version is refused where it is written.
    """
    with pytest.raises(DeclarationError, match="version counts from 1"):
        projection(version=version)


def test_only_a_class_can_be_a_projection():
    """
    A function has no state to build.
    """
    wrong: Any = len
    with pytest.raises(DeclarationError, match="declares classes"):
        projection()(wrong)
