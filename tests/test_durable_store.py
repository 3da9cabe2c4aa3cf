"""
Durable subscriptions on a file: threads, transactions, leases, and a store that fails.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from eventbus import (
    BusClosedError,
    ConcurrencyError,
    Durable,
    EncodeError,
    Envelope,
    EventBus,
    LeaseLostError,
    Queued,
    RunningLoopError,
    StoreClosedError,
    StoreError,
    StoreFullError,
    SubscriptionOptionError,
    UncommittedError,
    event,
    fixed,
)
from eventbus import _owner as owners
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.testing import TestBus, VirtualClock, record

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


@event(key="key")
class Placed:
    number: int
    key: str = "K"


@event
class Paid:
    number: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "shop.db"
    with closing(sqlite3.connect(found)) as connection:
        connection.execute("CREATE TABLE done (number INTEGER)")
        connection.commit()
    return found


@pytest.fixture
def bus(path: Path) -> Iterator[EventBus]:
    made = EventBus(store=SQLiteStore(path))
    yield made
    made.close(timeout=PATIENCE)


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


def numbers_in(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [number for (number,) in connection.execute("SELECT number FROM done")]


def note_in(bus: EventBus, calls: list[int], name: str = "note", **options: Any) -> None:
    """
    Subscribe a handler that notes down what it gets.
    """

    def note(placed: Placed) -> None:
        calls.append(placed.number)

    bus.subscribe(Placed, note, name=name, delivery=Durable(**options))


# -- lifecycle --------------------------------------------------------------------------------


def test_nothing_is_consumed_before_the_bus_is_started(bus: EventBus) -> None:
    """
    Then everything is, and `drain` waits for it.
    """
    calls = list[int]()
    note_in(bus, calls)
    bus.publish(Placed(1))
    assert not bus.drain(PATIENCE).ok
    assert [] == calls
    bus.start()
    assert bus.drain(PATIENCE).ok
    assert [1] == calls
    bus.publish(Placed(2))
    assert bus.drain(PATIENCE).ok
    assert [1, 2] == calls


def test_async_handlers_run_on_the_loop_that_entered_the_bus(path: Path) -> None:
    """
    And `apublish` does not wait for the disk in the loop.
    """
    calls = list[tuple[int, object]]()

    async def main() -> None:
        async with EventBus(store=SQLiteStore(path)) as bus:

            async def note(placed: Placed) -> None:
                await asyncio.sleep(0)
                calls.append((placed.number, asyncio.get_running_loop()))

            bus.subscribe(Placed, note, delivery=Durable())
            await asyncio.gather(*(bus.apublish(Placed(number)) for number in range(5)))
            assert (await bus.adrain(PATIENCE)).ok
            assert {(number, asyncio.get_running_loop()) for number in range(5)} == set(calls)

    asyncio.run(main())


def test_what_is_not_handled_by_the_end_stays_in_the_file(path: Path) -> None:
    """
    Closing lets the handler finish what it has in hand, and begins nothing more.
    """
    entered, may_go_on, calls = threading.Event(), threading.Event(), list[int]()

    def slow(placed: Placed) -> None:
        calls.append(placed.number)
        entered.set()
        may_go_on.wait(PATIENCE)

    with EventBus(store=SQLiteStore(path)) as first:
        first.subscribe(Placed, slow, name="note", delivery=Durable())
        first.publish_many([Placed(number) for number in range(4)])
        assert entered.wait(PATIENCE)
        closing_thread = threading.Thread(target=first.close, args=(PATIENCE,))
        closing_thread.start()
        may_go_on.set()
        closing_thread.join(PATIENCE)
    handled = len(calls)
    assert handled < 4
    with EventBus(store=SQLiteStore(path)) as second:
        note_in(second, calls)
        assert second.drain(PATIENCE).ok
    assert [0, 1, 2, 3] == calls


def test_a_handler_longer_than_the_grace_is_called_again_after_a_restart(path: Path) -> None:
    """
    Closing ends at about that time, and says what was still running.
    """
    entered, may_go_on = threading.Event(), threading.Event()

    def slow(placed: Placed) -> None:
        entered.set()
        may_go_on.wait(PATIENCE)

    first = EventBus(store=SQLiteStore(path))
    first.subscribe(Placed, slow, name="note", delivery=Durable())
    first.publish(Placed(1))
    first.start()
    assert entered.wait(PATIENCE)
    report = first.close(timeout=0.01)
    assert {"note": 1} == report.running
    may_go_on.set()
    calls = list[int]()
    with EventBus(store=SQLiteStore(path)) as second:
        note_in(second, calls)
        assert second.drain(PATIENCE).ok
    assert [1] == calls


def test_the_bus_closes_its_store(path: Path) -> None:
    """
    What it was given is its own; publishing is refused as ever.
    """
    store = SQLiteStore(path)
    bus = EventBus(store=store)
    bus.close()
    assert store.is_closed
    with pytest.raises(BusClosedError):
        bus.publish(Placed(1))


def test_a_subscription_made_on_a_running_bus_consumes_at_once(bus: EventBus) -> None:
    """
    And one that is cancelled gives its place back to the next of that name.
    """
    calls = list[int]()
    bus.start()
    note_in(bus, calls)
    bus.publish(Placed(1))
    assert bus.drain(PATIENCE).ok
    [subscription] = bus.subscriptions
    subscription.cancel()
    bus.publish(Placed(2))
    note_in(bus, calls)
    assert bus.drain(PATIENCE).ok
    assert [1, 2] == calls


def test_statistics_tell_where_a_subscription_stands(bus: EventBus) -> None:
    """
    Its offset, its lag, what this process does about it, and who consumes it.
    """
    calls = list[int]()
    note_in(bus, calls)
    bus.publish(Placed(1))
    durable = bus.stats().subscriptions["note"].durable
    assert durable is not None
    assert (0, 1, "idle", None) == (durable.offset, durable.lag, durable.state, durable.owner)
    bus.start()
    bus.drain(PATIENCE)
    durable = bus.stats().subscriptions["note"].durable
    assert durable is not None
    assert (1, 0, "consuming") == (durable.offset, durable.lag, durable.state)
    assert owners.owner() == durable.owner
    [explanation] = bus.explain(Placed(1))
    assert "from the log" in explanation.reason


# -- exactly once -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handlers_writes_and_its_progress_are_stored_together(
    bus: EventBus, path: Path, is_async: bool
) -> None:
    """
    Or not at all: what a failed attempt has written is gone.
    """
    fails = [ValueError("no")]

    def write(placed: Placed, envelope: Envelope, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        if placed.number == 2 and fails:
            raise fails.pop()

    async def awrite(placed: Placed, *, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        await asyncio.sleep(0)
        if placed.number == 2 and fails:
            raise fails.pop()

    bus.subscribe(
        Placed,
        awrite if is_async else write,
        name="write",
        delivery=Durable(),
        retry=fixed(delay=0.001, attempts=2),
        idempotency_key="number",
    )
    bus.publish_many([Placed(1), Placed(2), Placed(2), Placed(3)])
    bus.start()
    assert bus.drain(PATIENCE).ok
    assert [1, 2, 3] == sorted(numbers_in(path))
    assert 1 == bus.stats().subscriptions["write"].duplicate


def test_what_such_a_handler_publishes_is_part_of_its_transaction(
    bus: EventBus, path: Path
) -> None:
    """
    Inline handlers get it after the commit, and nobody does if the handler fails.
    """
    seen, scheduled = list[tuple[int, list[int]]](), list[bool]()
    fails = [ValueError("no")]

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        scheduled.append(bus.publish(Paid(placed.number)).is_scheduled)
        if fails:
            raise fails.pop()

    bus.subscribe(
        Placed, write, delivery=Durable(), retry=fixed(delay=0.001, attempts=2), name="write"
    )
    bus.subscribe(Paid, lambda paid: seen.append((paid.number, numbers_in(path))), name="inline")
    bus.publish(Placed(1))
    bus.start()
    assert bus.drain(PATIENCE).ok
    assert [(1, [1])] == seen
    assert [True, True] == scheduled
    assert bus._store is not None
    assert ["Placed", "Paid"] == [each.name for each in bus._store.log.read()]


def test_a_connection_is_for_durable_subscriptions(bus: EventBus) -> None:
    """
    No other has a transaction to lend.
    """

    def write(placed: Placed, connection: sqlite3.Connection) -> None: ...

    for options in ({}, {"delivery": Queued()}, {"delivery": Durable(), "offload": True}):
        with pytest.raises(SubscriptionOptionError, match="connection"):
            bus.subscribe(Placed, write, name="write", **options)


def test_a_redrive_gets_a_connection_as_well(bus: EventBus, path: Path) -> None:
    """
    Where the subscription is consumed; elsewhere its failure says so.
    """
    fails = [ValueError("no")]

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        if fails:
            raise fails.pop()

    bus.subscribe(Placed, write, delivery=Durable(), name="write")
    bus.publish(Placed(1))
    bus.start()
    bus.drain(PATIENCE)
    [letter] = bus.dead_letters
    assert bus.redrive(letter).ok
    assert [1] == numbers_in(path)
    assert 0 == len(bus.dead_letters)


def swallow(connection: sqlite3.Connection) -> None:
    """
    Roll everything back by a conflict, and go on as if nothing were.
    """
    connection.execute("CREATE UNIQUE INDEX IF NOT EXISTS numbers ON done (number)")
    connection.execute("INSERT INTO done VALUES (77)")
    with suppress(sqlite3.IntegrityError):
        connection.execute("INSERT OR ROLLBACK INTO done VALUES (77)")


ENDINGS: dict[str, Callable[[sqlite3.Connection], object]] = {
    "commit": lambda connection: connection.execute("COMMIT"),
    "end, and begin": lambda connection: [connection.execute(each) for each in ("END", "BEGIN")],
    "rollback": lambda connection: connection.cursor().execute("ROLLBACK"),
    "script": lambda connection: connection.executescript("DELETE FROM done"),
    "cursor": lambda connection: connection.cursor().executescript("DELETE FROM done"),
    "conflict": swallow,
}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_handler_that_ends_its_transaction_has_failed(
    bus: EventBus, path: Path, ending: str, is_async: bool
) -> None:
    """
    Its attempts are counted, it becomes a letter, and nothing that it wrote is kept.
    """
    calls = list[int]()

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        calls.append(placed.number)
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        if placed.number == 2:
            ENDINGS[ending](connection)

    async def awrite(placed: Placed, connection: sqlite3.Connection) -> None:
        write(placed, connection)

    bus.subscribe(
        Placed,
        awrite if is_async else write,
        name="write",
        delivery=Durable(),
        retry=fixed(delay=0.001, attempts=2),
    )
    bus.publish_many([Placed(1), Placed(2), Placed(3)])
    bus.start()
    assert bus.drain(PATIENCE).ok
    assert ([1, 2, 2, 3], [1, 3]) == (sorted(calls), numbers_in(path))
    [letter] = bus.dead_letters
    assert ("write", 2, "StoreError") == (
        letter.subscription,
        letter.attempts,
        letter.failures[-1].error_type.rpartition(".")[2],
    )
    assert "transaction" in letter.message or "executescript" in letter.message


def test_what_a_handler_may_do_with_its_connection_stays_as_it_is(
    bus: EventBus, path: Path
) -> None:
    """
    Savepoints, and statements of its own that are not allowed for another reason.
    """
    refused = list[str]()

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        connection.execute("SAVEPOINT mine")
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        connection.execute("ROLLBACK TO mine")
        connection.execute("RELEASE mine")
        with pytest.raises(sqlite3.DatabaseError) as unknown:
            connection.execute("INSERT INTO nowhere VALUES (1)")
        refused.append(str(unknown.value))
        connection.execute("INSERT INTO done VALUES (?)", (placed.number + 10,))

    bus.subscribe(Placed, write, name="write", delivery=Durable())
    bus.publish_many([Placed(1), Placed(2)])
    bus.start()
    assert bus.drain(PATIENCE).ok
    assert ([11, 12], ["no such table: nowhere"] * 2) == (numbers_in(path), refused)


# -- the outbox -------------------------------------------------------------------------------


def test_a_publish_joins_the_applications_transaction(bus: EventBus, path: Path) -> None:
    """
    Rolled back, it is not in the log; committed, it is delivered.
    """
    calls = list[int]()
    note_in(bus, calls)
    bus.start()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        bus.publish(Placed(1), connection=connection)
        connection.execute("ROLLBACK")
        connection.execute("BEGIN")
        bus.publish_many([Placed(2), Placed(3)], connection=connection)
        assert bus._store is not None
        assert 0 == bus._store.log.last_offset()
        connection.execute("COMMIT")
    bus.publish(Placed(4))  # which makes the bus look
    assert bus.drain(PATIENCE).ok
    assert [2, 3, 4] == calls


def test_what_is_no_connection_to_publish_into_is_named(bus: EventBus, path: Path) -> None:
    """
    It is the connection that was closed, and not the store.
    """
    closed: Any = sqlite3.connect(path)
    closed.close()
    with pytest.raises(StoreError, match=r"connection, for that fails: .*closed") as refused:
        bus.publish(Placed(1), connection=closed)
    assert not isinstance(refused.value, StoreClosedError)
    nonsense: Any = "shop.db"
    with pytest.raises(TypeError, match=r"takes the sqlite3.Connection .*, not 'shop.db'"):
        bus.publish(Placed(1), connection=nonsense)


class Session:
    """
    Looks like a connection, as those of other libraries do.
    """

    in_transaction = True

    async def cursor(self) -> None: ...


@pytest.mark.parametrize("with_key", [False, True])
def test_a_connection_of_another_library_is_refused_with_what_to_give_instead(
    bus: EventBus, with_key: bool
) -> None:
    """
    It may look like one of `sqlite3`; what it stands for is named, and nothing is stored.
    """
    options: Any = {"idempotency_key": "once"} if with_key else {}
    for stranger in (Session(), Session):
        given: Any = stranger
        with pytest.raises(TypeError, match=r"not <.*Session.*\.driver_connection.*deferred\(\)"):
            bus.publish(Placed(1), connection=given, **options)
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


def test_a_connection_of_another_thread_is_refused_as_such(bus: EventBus, path: Path) -> None:
    """
    The one that is named is the connection, and not the store.
    """
    with (
        ThreadPoolExecutor(1) as thread,
        closing(sqlite3.connect(path)) as connection,
        pytest.raises(StoreError, match=r"the event could not be .*created in a thread"),
    ):
        thread.submit(bus.publish, Placed(1), connection=connection).result(PATIENCE)


def test_a_duplicate_is_named_in_text_whatever_the_connection_reads(
    bus: EventBus, path: Path
) -> None:
    """
    The application may want bytes on its own connection.
    """
    with closing(sqlite3.connect(path)) as connection:
        connection.text_factory = bytes
        with connection:
            first = bus.publish(Placed(1), connection=connection, idempotency_key="once")
        with connection:
            again = bus.publish(Placed(1), connection=connection, idempotency_key="once")
    assert (True, first.id) == (again.duplicate, again.duplicate_of)


def test_nobody_is_called_before_the_application_commits(bus: EventBus, path: Path) -> None:
    """
    A publish that others than durable subscriptions would get is refused, with the cure.
    """
    bus.subscribe(Paid, print, name="inline")
    connection = sqlite3.connect(path)
    with closing(connection), pytest.raises(UncommittedError, match="would reach inline before"):
        bus.publish(Paid(1), connection=connection)
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


def test_a_stream_has_the_version_the_publisher_expects(bus: EventBus) -> None:
    """
    Else the publish is refused, and nobody gets the event.
    """
    calls = list[Placed]()
    bus.subscribe(Placed, calls.append, name="inline")
    bus.publish(Placed(1), expected_version=0)
    with pytest.raises(ConcurrencyError):
        bus.publish(Placed(2), expected_version=0)
    bus.publish_many([Placed(3), Placed(4)], expected_version=1)
    assert [1, 3, 4] == [each.number for each in calls]


def test_what_only_a_log_can_do_is_refused_without_one() -> None:
    """
    It is not ignored.
    """
    with pytest.raises(TypeError, match="expected_version= is for events that are logged"):
        EventBus().publish(Placed(1), expected_version=0)
    with pytest.raises(TypeError, match="connection= is for events that are logged"):
        EventBus().publish(Placed(1), connection=object())


# -- one consumer -----------------------------------------------------------------------------


def test_the_second_bus_stands_by(path: Path) -> None:
    """
    And takes over when the first one is closed: each event is handled by one of them.
    """
    mine, theirs, came = list[int](), list[int](), threading.Event()
    first, second = EventBus(store=SQLiteStore(path)), EventBus(store=SQLiteStore(path))
    note_in(first, mine)

    def note(placed: Placed) -> None:
        theirs.append(placed.number)
        came.set()

    second.subscribe(Placed, note, name="note", delivery=Durable())
    first.start()
    first.publish(Placed(1))
    assert first.drain(PATIENCE).ok
    second.start()
    assert second.drain(PATIENCE).ok
    durable = second.stats().subscriptions["note"].durable
    assert durable is not None
    assert "standby" == durable.state
    second.publish(Placed(2))
    first.publish(Placed(3))
    assert first.drain(PATIENCE).ok
    first.close(PATIENCE)
    second.publish(Placed(4))
    assert came.wait(PATIENCE)
    assert second.drain(PATIENCE).ok
    assert ([1, 2, 3], [4]) == (mine, theirs)
    second.close(PATIENCE)


def test_the_work_of_a_dead_process_is_taken_over_at_once(path: Path) -> None:
    """
    What it had begun is handled again, and numbered on.
    """
    calls = list[int]()
    with SQLiteStore(path) as store:
        store.progress.open("note")
        bus = EventBus(store=store)
        bus.publish(Placed(1))
        dead = owners.owner().replace(f"pid {os.getpid()} ", "pid 999999999 ")
        assert store.progress.acquire("note", owner=dead, ttl=3600, now=store_time())
        note_in(bus, calls)
        bus.start()
        assert bus.drain(PATIENCE).ok
        assert [1] == calls
        bus.close(PATIENCE)


def store_time() -> float:
    import time

    return time.time()


@pytest.mark.parametrize(
    ("process", "gone"),
    [
        ("{place} pid 999999999 abc", True),
        ("{place} pid {own} {life}", False),
        ("{place} pid {own} of an earlier life", True),
        ("{place} pid 1 abc", False),
        ("elsewhere pid 999999999 abc", False),
        ("a test", False),
    ],
)
def test_a_process_is_known_to_be_gone_only_where_that_is_certain(process: str, gone: bool) -> None:
    """
    A number that is not in use here, or was ours in an earlier life.
    """
    place, _, rest = owners.owner().rpartition(" pid ")
    own, _, life = rest.partition(" ")
    assert gone is owners.is_gone(process.format(place=place, own=own, life=life))


def test_a_process_of_which_nothing_more_is_told_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where there is no /proc, or the process has gone since it was asked for.
    """
    place = owners.owner().rpartition(" pid ")[0]
    with monkeypatch.context() as patches:
        patches.setattr(os, "kill", lambda *_: None)
        assert not owners.is_gone(f"{place} pid 999999999 abc")


@pytest.mark.parametrize("error", [PermissionError, OverflowError])
def test_a_process_that_cannot_be_asked_about_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """
    It is another user's, or its number is none.
    """

    def refuse(*_: object) -> None:
        raise error

    place, _, _ = owners.owner().rpartition(" pid ")
    with monkeypatch.context() as patches:
        patches.setattr(os, "kill", refuse)
        assert not owners.is_gone(f"{place} pid 77 abc")


def test_where_the_system_tells_less_a_place_is_a_machines_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    As on systems that have no /proc.
    """

    def refuse(*_: object, **options: object) -> None:
        raise FileNotFoundError

    with monkeypatch.context() as patches:
        patches.setattr("platform.node", lambda: "till-3")
        patches.setattr(owners, "open", refuse, raising=False)
        patches.setattr(os, "stat", refuse)
        place = owners._place.__wrapped__()
    assert "till-3" == place


def test_a_lease_nobody_renews_runs_out_also_when_a_clock_was_set_back() -> None:
    """
    Whoever stands by goes by how long nothing was heard.
    """
    store, clock = MemoryStore(), VirtualClock()
    bus = TestBus(store=store, clock=clock, errors="collect")
    calls = list[int]()
    note_in(bus, calls, lease=10)
    assert store.progress.acquire("note", owner="elsewhere", ttl=3600, now=clock.time() + 7200)
    bus.publish(Placed(1))
    bus.settle()
    assert [] == calls
    for _ in range(7):
        clock.advance(3)
        bus.settle()
    assert [1] == calls


def test_whoever_has_lost_the_lease_leaves_off() -> None:
    """
    What its handler has done is not written down; it asks again later.
    """
    store, clock = MemoryStore(), VirtualClock()
    bus = TestBus(store=store, clock=clock, errors="collect")
    calls = list[int]()

    def rob(placed: Placed) -> None:
        calls.append(placed.number)
        if len(calls) == 1:
            holder = store.progress.position("rob").lease
            now = clock.time()
            robber = store.progress.acquire(
                "rob", owner="elsewhere", ttl=5, now=now, instead_of=holder
            )
            assert robber is not None

    bus.subscribe(Placed, rob, name="rob", delivery=Durable())
    bus.publish(Placed(1))
    bus.settle()
    assert 1 == store.progress.position("rob").lag
    for _ in range(5):
        clock.advance(3)
        bus.settle()
    assert [1, 1] == calls
    assert 0 == store.progress.position("rob").lag


def test_a_handler_without_a_lease_gets_no_connection() -> None:
    """
    What it would write is another one's affair by now.
    """
    bus = TestBus(durable=True, errors="collect")

    def write(placed: Placed, connection: sqlite3.Connection) -> None: ...

    subscription = bus.subscribe(Placed, write, name="write", delivery=Durable())
    assert bus._consumers is not None
    consumer = bus._consumers.get(subscription)
    assert consumer is not None
    with pytest.raises(LeaseLostError, match="not consumed here any more"):
        consumer.transaction(is_redrive=False)


@pytest.mark.parametrize("role", ["idle", "standby"])
def test_a_redrive_gets_a_connection_without_a_lease(path: Path, role: str) -> None:
    """
    On a bus that was not started, and on one that stands by: it concerns the letter only.
    """
    fails = True

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
        if fails:
            raise ValueError("no")

    first, second = (EventBus(store=SQLiteStore(path)) for _ in range(2))
    for each in (first, second):
        each.subscribe(Placed, write, name="write", delivery=Durable())
    with first:
        first.publish(Placed(1))
        assert first.drain(PATIENCE).ok
        if role == "standby":
            second.start()
            assert second.drain(PATIENCE).ok
        assert role == second.stats().subscriptions["write"].durable.state  # type: ignore[union-attr]
        [letter] = second.dead_letters
        assert ["ValueError"] == [
            type(each.exception).__name__ for each in second.redrive(letter).failures
        ]
        fails = False
        assert second.redrive(letter).ok
        assert [1] == numbers_in(path)
        assert 0 == len(first.dead_letters)
    second.close(PATIENCE)


# -- a store that fails -----------------------------------------------------------------------


class Failing:
    """
    Fails one method of a port, for a while.
    """

    def __init__(self, port: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_broken = True
        self.refused = threading.Event()
        self._do: Callable[..., Any] = getattr(port, name)
        monkeypatch.setattr(port, name, self)

    def __call__(self, *given: Any, **options: Any) -> Any:
        if self.is_broken:
            self.refused.set()
            raise StoreFullError("no space left on device")
        return self._do(*given, **options)


def test_a_full_disk_is_the_publishers_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    It gets the error, and no handler has seen the event.
    """
    store = MemoryStore()
    bus = TestBus(store=store, errors="collect")
    calls = list[Placed]()
    bus.subscribe(Placed, calls.append, name="inline")
    broken = Failing(store.log, "append", monkeypatch)
    with pytest.raises(StoreFullError):
        bus.publish(Placed(1))
    with pytest.raises(StoreFullError):
        bus.publish_many([Placed(2)])
    assert [] == calls
    broken.is_broken = False
    bus.publish(Placed(3))
    assert [Placed(3)] == calls


@pytest.mark.parametrize("method", ["advance", "position", "acquire"])
def test_consuming_outlives_a_store_that_fails_for_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """
    It is said once; nothing is lost, and nothing is handled twice that was handed out once.
    """
    caplog.set_level(logging.ERROR, "eventbus")
    store, clock = MemoryStore(), VirtualClock()
    bus = TestBus(store=store, clock=clock, errors="collect")
    calls = list[int]()
    note_in(bus, calls)
    bus.publish_many([Placed(1), Placed(2)])
    broken = Failing(store.progress, method, monkeypatch)
    bus.settle()
    for _ in range(5):
        clock.advance(10)
        bus.settle()
    assert [] == calls
    assert 1 == len(caplog.records)
    broken.is_broken = False
    clock.advance(10)
    bus.settle()
    assert [1, 2] == calls
    assert 0 == store.progress.position("note").lag


def test_a_commit_that_fails_is_no_failure_of_the_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A handler in a transaction is called again, as the same attempt.
    """
    store, clock = MemoryStore(), VirtualClock()
    bus = TestBus(store=store, clock=clock, errors="collect")
    calls = list[int]()

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        calls.append(placed.number)

    bus.subscribe(Placed, write, name="write", delivery=Durable())
    bus.publish(Placed(1))
    broken = Failing(store.progress, "transaction", monkeypatch)
    bus.settle()
    broken.is_broken = False
    clock.advance(1)
    bus.settle()
    assert [1] == calls
    assert 0 == store.letters.count()
    assert 0 == store.progress.position("write").lag


def test_a_lease_that_cannot_be_given_back_ends_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whoever comes next stands by until then.
    """
    store, clock = MemoryStore(), VirtualClock()
    bus = TestBus(store=store, clock=clock, errors="collect")
    calls = list[int]()
    note_in(bus, calls, lease=10)
    bus.settle()
    broken = Failing(store.progress, "release", monkeypatch)
    [subscription] = bus.subscriptions
    subscription.cancel()
    bus.settle()
    assert broken.refused.is_set()
    broken.is_broken = False
    bus.publish(Placed(1))
    note_in(bus, calls, lease=10)
    bus.settle()
    assert [] == calls
    for _ in range(6):
        clock.advance(3)
        bus.settle()
    assert [1] == calls


def test_a_subscription_the_store_does_not_take_is_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Its name is free for the next try.
    """
    store, calls = MemoryStore(), list[int]()
    bus = TestBus(store=store)
    broken = Failing(store.progress, "open", monkeypatch)
    with pytest.raises(StoreFullError):
        note_in(bus, calls)
    assert () == bus.subscriptions
    broken.is_broken = False
    note_in(bus, calls)
    bus.publish(Placed(1))
    bus.settle()
    assert [1] == calls


def test_consuming_does_not_depend_on_what_others_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Where a store cannot tell whether they have, what is written here is delivered.
    """
    store, calls = MemoryStore(), list[int]()
    with EventBus(store=store) as bus:
        note_in(bus, calls)
        broken = Failing(store.log, "changes", monkeypatch)
        assert broken.refused.wait(PATIENCE)
        bus.publish(Placed(1))
        assert bus.drain(PATIENCE).ok
    assert [1] == calls


def test_a_turn_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Whatever has failed, it is logged, and another turn follows.
    """
    caplog.set_level(logging.ERROR, "eventbus")
    calls = list[int]()
    with EventBus(store=MemoryStore()) as bus:
        note_in(bus, calls)
        [subscription] = bus.subscriptions
        broken = Failing(subscription.queue, "settle_up", monkeypatch)
        assert broken.refused.wait(PATIENCE)
        broken.is_broken = False
        bus.publish(Placed(1))
        assert bus.drain(PATIENCE).ok
    assert [1] == calls
    assert "a turn of the durable subscriptions failed" in caplog.text


def test_closing_does_not_wait_for_ever_for_a_filter(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    It says so, and the event stays in the log.
    """
    caplog.set_level(logging.WARNING, "eventbus")
    monkeypatch.setattr("eventbus._consumers._PATIENCE", 0.0)
    entered, may_go_on, calls = threading.Event(), threading.Event(), list[Placed]()

    def ponder(placed: Placed) -> bool:
        entered.set()
        return may_go_on.wait(PATIENCE)

    store = MemoryStore()
    bus = EventBus(store=store)
    bus.subscribe(Placed, calls.append, name="note", where=ponder, delivery=Durable())
    bus.publish(Placed(1))
    bus.start()
    assert entered.wait(PATIENCE)
    bus.close(timeout=0.0)
    assert "is still at work: a filter or the store" in caplog.text
    [thread] = [each for each in threading.enumerate() if each.name == f"{bus.name}-durable"]
    may_go_on.set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert [] == calls


def test_a_bus_nobody_has_closed_is_not_kept_by_its_log() -> None:
    """
    Others go on to append there.
    """
    store, calls = MemoryStore(), list[int]()
    forgotten = TestBus(store=store)
    note_in(forgotten, calls, name="forgotten")
    forgotten.settle()
    gone = weakref.ref(forgotten)
    del forgotten
    gc.collect()
    assert gone() is None
    bus = TestBus(store=store)
    note_in(bus, calls)
    bus.publish(Placed(1))
    bus.settle()
    assert [1] == calls


def test_a_test_bus_on_a_file_is_restarted_as_well(path: Path) -> None:
    """
    A file forgets nothing; what was begun is handled again.
    """
    calls = list[int]()
    with TestBus(store=SQLiteStore(path)) as bus:

        def note(placed: Placed) -> None:
            calls.append(placed.number)
            if len(calls) == 1:
                bus.restart()

        bus.subscribe(Placed, note, name="note", delivery=Durable())
        bus.publish(Placed(1))
        bus.settle()
        assert [1, 1] == calls


# -- deferred publishes -----------------------------------------------------------------------


@pytest.mark.parametrize("has_store", [False, True])
def test_a_block_publishes_when_it_has_ended_well(has_store: bool) -> None:
    """
    All of it, in order; inside, receipts say that it is still to come.
    """
    bus, calls = TestBus(durable=has_store), list[int]()
    bus.subscribe(Placed, lambda placed: calls.append(placed.number), name="inline")
    with bus.deferred():
        receipt = bus.publish(Placed(1))
        bus.publish_many([Placed(2), Placed(3)])
        assert receipt.is_scheduled
        assert [] == calls
    assert not receipt.is_scheduled
    assert receipt.delivered == 1
    assert [1, 2, 3] == calls
    bus.publish(Placed(4))
    assert [1, 2, 3, 4] == calls


def test_a_block_that_raises_drops_what_it_has_published() -> None:
    """
    The publisher's keys are free again, and so is everything else as it was.
    """
    bus, calls = TestBus(durable=True), list[int]()
    bus.subscribe(Placed, lambda placed: calls.append(placed.number), name="inline")

    def fail() -> None:
        with bus.deferred():
            bus.publish(Placed(1), idempotency_key="1")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [] == calls
    assert not bus.publish(Placed(1), idempotency_key="1").duplicate
    assert [1] == calls
    assert bus._store is not None
    assert 1 == bus._store.log.last_offset()


def test_a_block_in_a_block_leaves_its_events_to_the_outer_one() -> None:
    """
    Which may still raise; what is cancelled meanwhile is not published.
    """
    bus, calls = TestBus(), list[int]()
    bus.subscribe(Placed, lambda placed: calls.append(placed.number), name="inline")
    with bus.deferred():
        bus.publish(Placed(1))
        with bus.deferred():
            bus.publish(Placed(2))
            cancelled = bus.publish(Placed(3))
        assert [] == calls
        assert cancelled.cancel()
        assert not cancelled.cancel()
    assert [1, 2] == calls


def test_an_async_block_awaits_its_handlers() -> None:
    """
    What other tasks publish meanwhile does not wait for it.
    """
    bus, calls = TestBus(durable=True), list[int]()

    @bus.on(Placed, name="inline")
    async def note(placed: Placed) -> None:
        await asyncio.sleep(0)
        calls.append(placed.number)

    async def aside() -> None:
        await bus.apublish(Placed(9))

    async def main() -> None:
        task = asyncio.create_task(aside())
        async with bus.deferred():
            await bus.apublish(Placed(1))
            await task
            assert [9] == calls

    asyncio.run(main())
    assert [9, 1] == calls


def test_a_block_asks_for_the_version_of_a_stream_once() -> None:
    """
    For all events of it, or for none.
    """
    bus = TestBus(durable=True)
    with bus.deferred():
        bus.publish(Placed(1), expected_version=0)
        bus.publish(Placed(2), expected_version=0)
    with pytest.raises(ConcurrencyError), bus.deferred():
        bus.publish(Placed(3), expected_version=0)
    block = bus.deferred()
    block.__enter__()
    bus.publish(Placed(3), expected_version=2)
    with pytest.raises(TypeError, match="to all events, or to none"):
        bus.publish(Placed(4))
    block.__exit__(TypeError)
    assert bus._store is not None
    assert 2 == bus._store.log.last_offset()


# -- standing in ------------------------------------------------------------------------------


def test_a_recording_of_a_bus_with_a_store_has_one_in_memory(bus: EventBus, path: Path) -> None:
    """
    Its durable subscriptions come along; the file is not touched.
    """
    calls = list[int]()
    note_in(bus, calls)
    with record(bus) as recorded:
        bus.publish(Placed(1))
        recorded.settle()
    assert [1] == calls
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()
    assert [Placed(1)] == recorded.published


def test_an_async_handlers_publishes_are_delivered_after_its_commit(path: Path) -> None:
    """
    In its own task, so that async handlers are awaited there.
    """
    seen = list[tuple[int, list[int]]]()

    async def main() -> None:
        async with EventBus(store=SQLiteStore(path)) as bus:

            @bus.on(Placed, delivery=Durable(), name="write")
            async def write(placed: Placed, connection: sqlite3.Connection) -> None:
                connection.execute("INSERT INTO done VALUES (?)", (placed.number,))
                await bus.apublish(Paid(placed.number))

            @bus.on(Paid, name="inline")
            async def note(paid: Paid) -> None:
                await asyncio.sleep(0)
                seen.append((paid.number, numbers_in(path)))

            await bus.apublish(Placed(1))
            assert (await bus.adrain(PATIENCE)).ok

    asyncio.run(main())
    assert [(1, [1])] == seen


def test_what_fails_after_the_commit_is_no_failure_of_the_handler() -> None:
    """
    It is logged, and kept where failures are kept.
    """
    store, calls = MemoryStore(), list[int]()
    with EventBus(store=store, errors="raise") as bus:

        def write(placed: Placed, connection: sqlite3.Connection) -> None:
            calls.append(placed.number)
            bus.publish(Paid(placed.number))

        def fail(paid: Paid) -> None:
            raise ValueError("no")

        bus.subscribe(Placed, write, name="write", delivery=Durable())
        bus.subscribe(Paid, fail, name="inline")
        bus.publish(Placed(1))
        assert bus.drain(PATIENCE).ok
        assert [1] == calls
        assert ["inline"] == [each.subscription for each in bus.dead_letters]


def test_a_sync_block_in_a_loop_is_refused_for_async_handlers() -> None:
    """
    When it ends, before anything of it is delivered.
    """
    bus, calls = TestBus(durable=True), list[int]()

    @bus.on(Placed, name="inline")
    async def note(placed: Placed) -> None:
        calls.append(placed.number)

    async def main() -> None:
        with bus.deferred():
            await bus.apublish(Placed(1))

    with pytest.raises(RunningLoopError, match=r"async with bus\.deferred"):
        asyncio.run(main())
    assert [] == calls
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


def test_apublish_gets_the_error_of_the_store_as_well() -> None:
    """
    And joins a transaction as `publish` does.
    """
    bus = TestBus(durable=True)
    wrong: Any = "seven"

    async def main() -> None:
        with pytest.raises(EncodeError):
            await bus.apublish(Placed(wrong), idempotency_key="7")
        assert not (await bus.apublish(Placed(7), idempotency_key="7")).duplicate
        with pytest.raises(StoreError, match="joined in its own transactions only"):
            await bus.apublish(Placed(8), connection=object())
        async with bus.deferred():
            await bus.apublish(Placed(9), expected_version=1)

    asyncio.run(main())
    assert bus._store is not None
    assert 2 == bus._store.log.last_offset()


def test_a_delayed_publish_is_logged_when_it_is_due() -> None:
    """
    Not before; then it is delivered to durable subscriptions as well.
    """
    bus, calls = TestBus(durable=True), list[int]()
    note_in(bus, calls)
    bus.publish(Placed(1), delay=5)
    bus.settle()
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()
    bus.clock.advance(5)
    bus.settle()
    assert 1 == bus._store.log.last_offset()
    assert [1] == calls


def test_a_bus_closed_right_after_its_start_ends_at_once(bus: EventBus) -> None:
    """
    It does not wait for a place in the log that it will not ask for any more.
    """
    note_in(bus, [])
    bus.start()
    assert bus.close(3_600.0).ok


@pytest.mark.parametrize("is_called", [False, True], ids=["at rest", "just called"])
def test_what_the_application_has_committed_is_drained(
    bus: EventBus, path: Path, is_called: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A drain looks at the log before it says that there is nothing to wait for.

    Whatever else the consuming thread has just been called for.
    """
    calls = list[int]()
    note_in(bus, calls)
    bus.start()
    assert bus.drain(PATIENCE).ok
    assert bus._consumers is not None
    if is_called:
        monkeypatch.setattr(bus._consumers._bell, "is_set", lambda: True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        bus.publish(Placed(1), connection=connection)
        connection.execute("COMMIT")
    assert bus.drain(PATIENCE).ok
    assert [1] == calls


def test_a_publishers_key_is_free_again_after_a_rollback(bus: EventBus, path: Path) -> None:
    """
    It joins the transaction the event joins; one that another publish holds stays held.
    """
    note_in(bus, [])
    assert not bus.publish(Placed(0), idempotency_key="held").duplicate
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        first = bus.publish(Placed(1), connection=connection, idempotency_key="1")
        connection.execute("ROLLBACK")
        connection.execute("BEGIN IMMEDIATE")
        again = bus.publish(Placed(1), connection=connection, idempotency_key="1")
        connection.execute("COMMIT")
    assert (False, False) == (first.duplicate, again.duplicate)
    assert bus.publish(Placed(1), idempotency_key="1").duplicate
    assert bus.publish(Placed(0), idempotency_key="held").duplicate


def test_a_key_is_recorded_when_its_event_is_stored(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    A process that dies before the append has used no key: it is only held for a lease.
    """

    class Killed(BaseException):
        pass

    def die(*given: object, **options: object) -> None:
        raise Killed

    assert bus._log is not None
    with monkeypatch.context() as patch:
        patch.setattr(bus._log, "append", die)
        with pytest.raises(Killed):
            bus.publish(Placed(1), idempotency_key="1")
    assert bus._store is not None
    claim = bus._store.idempotency.claim(
        "publish Placed",
        "1",
        source=bus.publish(Placed(2)),
        now=bus.clock.monotonic(),
    )
    assert "pending" == claim.state
