"""
Event sourcing: folding, deciding, appending, and the snapshots that shorten it.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import (
    ConcurrencyError,
    DecodeError,
    EncodeError,
    EventBus,
    StoreCorruptError,
    StoreError,
    UnknownEventError,
    event,
)
from eventbus.codec import Encoded, JSONCodec
from eventbus.event_log import Record
from eventbus.memory import MemoryStore
from eventbus.sourcing import (
    Aggregate,
    InMemorySnapshots,
    Snapshot,
    Snapshots,
    SQLiteSnapshots,
    Stream,
    fold,
)
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import VirtualClock
from eventbus.testing.contracts._records import record


@event(name="bank.opened", key="account")
class Opened:
    account: str
    owner: str


@event(name="bank.deposited", key="account")
class Deposited:
    account: str
    cents: int


@event(name="bank.noted", key="account")
class Noted:
    account: str
    text: str


@event(name="bank.unkeyed")
class Interest:
    cents: int


@attrs.frozen
class Account:
    owner: str = ""
    cents: int = 0

    def deposit(self, cents: int) -> list[Any]:
        if not self.owner:
            raise LookupError("there is no such account")
        return [Deposited("a/1", cents)]


def evolve(account: Account, happened: Opened | Deposited | Interest) -> Account:
    match happened:
        case Opened(owner=owner):
            return attrs.evolve(account, owner=owner)
        case Deposited(cents=cents) | Interest(cents=cents):
            return attrs.evolve(account, cents=account.cents + cents)


def undeclared(account: Account, happened: Any) -> Account:
    return evolve(account, happened)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    opened = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "bank.db")
    yield opened
    opened.close()


@pytest.fixture
def codec() -> JSONCodec:
    return JSONCodec()


@pytest.fixture
def accounts(store: Store, codec: JSONCodec) -> Aggregate[Account]:
    return Aggregate(Account, evolve, store=store, codec=codec)


def opened(accounts: Aggregate[Account], *deposits: int) -> Stream[Account]:
    stream = accounts.append(accounts.load("a/1"), Opened("a/1", "Ada"))
    for cents in deposits:
        stream = accounts.append(stream, Deposited("a/1", cents))
    return stream


class Counting:
    """
    Counts what is read from the log it stands for.
    """

    def __init__(self, store: Any) -> None:
        self.store = store
        self.path = getattr(store, "path", None)
        self.read_records = 0

    @property
    def log(self) -> Counting:
        return self

    def read(self, **conditions: Any) -> Any:
        for each in self.store.log.read(**conditions):
            self.read_records += 1
            yield each

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store.log, name)


# -- fold ------------------------------------------------------------------------------------


def test_a_fold_applies_events_one_after_another():
    """
    Each event is applied to the state that those before it have led to.
    """
    assert "-a-b" == fold("", ["a", "b"], lambda state, each: f"{state}-{each}")


def test_a_fold_of_nothing_is_where_it_begins():
    """
    Without events the state is the initial one.
    """
    nothing: list[str] = []
    assert 7 == fold(7, nothing, lambda state, _: state + 1)


def test_a_fold_that_forgets_to_return_is_told_so():
    """
    A function that changes a state in place and returns nothing is named in the error.
    """

    def forgetful(state: list[str], each: str) -> Any:
        state.append(each)

    with pytest.raises(TypeError, match="forgetful returned None for str"):
        fold([], ["a"], forgetful)


# -- streams ---------------------------------------------------------------------------------


def test_a_stream_without_events_is_loaded_in_its_initial_state(accounts: Aggregate[Account]):
    """
    What never happened is no error: the version says that there is nothing.
    """
    assert Stream(key="a/1", version=0, state=Account()) == accounts.load("a/1")


def test_what_was_appended_is_what_is_loaded(accounts: Aggregate[Account]):
    """
    An append returns the stream as it is then, and a load finds the same.
    """
    stream = opened(accounts, 100, 20)
    assert Stream(key="a/1", version=3, state=Account("Ada", 120)) == stream
    assert stream == accounts.load("a/1")


def test_streams_do_not_see_each_other(accounts: Aggregate[Account]):
    """
    A stream is the events of one key alone.
    """
    opened(accounts)
    other = accounts.append(accounts.load("a/2"), Opened("a/2", "Grace"))
    assert 1 == other.version
    assert "Ada" == accounts.load("a/1").state.owner


def test_an_append_of_nothing_stores_nothing(accounts: Aggregate[Account], store: Store):
    """
    Without events the stream stays what it is.
    """
    stream = accounts.load("a/1")
    assert stream == accounts.append(stream)
    assert 0 == store.log.last_offset()


def test_an_append_to_what_has_moved_on_is_refused(accounts: Aggregate[Account], store: Store):
    """
    Of two who decide on one version, the second is refused and nothing of it is stored.
    """
    stale = opened(accounts)
    accounts.append(stale, Deposited("a/1", 100))
    with pytest.raises(ConcurrencyError) as caught:
        accounts.append(stale, Deposited("a/1", 5), Deposited("a/1", 6))
    assert ("a/1", 1, 2) == (caught.value.key, caught.value.expected, caught.value.actual)
    assert 2 == store.log.last_offset()


def test_events_of_another_stream_are_refused(accounts: Aggregate[Account], store: Store):
    """
    An event whose own key names another stream is not appended to this one.
    """
    with pytest.raises(ValueError, match="has the key 'a/2', and was to be appended to the stream"):
        accounts.append(accounts.load("a/1"), Opened("a/1", "Ada"), Deposited("a/2", 1))
    assert 0 == store.log.last_offset()


def test_events_without_a_key_take_that_of_the_stream(accounts: Aggregate[Account], store: Store):
    """
    What declares no key is stored under the stream's.
    """
    stream = accounts.append(opened(accounts, 100), Interest(3))
    assert 103 == stream.state.cents
    assert "a/1" == list(store.log.read())[-1].key
    assert stream == accounts.load("a/1")


def test_an_event_that_cannot_be_stored_stops_all(accounts: Aggregate[Account], store: Store):
    """
    When one event cannot be encoded, none is stored.
    """
    odd: Any = object()
    with pytest.raises(EncodeError):
        accounts.append(accounts.load("a/1"), Opened("a/1", "Ada"), Noted("a/1", odd))
    assert 0 == store.log.last_offset()


def test_events_it_does_not_fold_count_all_the_same(accounts: Aggregate[Account]):
    """
    Other events of the same key are left out of the state, and belong to the version.
    """
    stream = accounts.append(opened(accounts, 1), Noted("a/1", "a note"), Deposited("a/1", 1))
    assert (4, 2) == (stream.version, stream.state.cents)
    assert stream == accounts.load("a/1")


def test_events_it_does_not_fold_need_no_codec_that_knows_them(
    accounts: Aggregate[Account], store: Store
):
    """
    A process that has only declared their class, and published none, leaves them out as well.
    """
    stream = accounts.append(opened(accounts, 1), Noted("a/1", "a note"))
    again = Aggregate(Account, evolve, store=store, codec=JSONCodec())
    assert stream == again.load("a/1")


def test_a_class_that_is_declared_later_is_left_out_from_then_on(
    accounts: Aggregate[Account], store: Store, codec: JSONCodec
):
    """
    What was unknown when the stream was loaded for the first time is no event of the state.
    """
    opened(accounts, 1)
    name = f"bank.late in {type(store).__name__}"  # of its own: no other test has declared it
    store.log.append([record(key="a/1", name=name, version=1, payload=b'{"n": 1}')])
    with pytest.raises(UnknownEventError):
        accounts.load("a/1")

    @event(name=name)
    class Late:
        n: int

    codec.know(Late)
    assert (3, 1) == (accounts.load("a/1").version, accounts.load("a/1").state.cents)


def test_without_an_annotation_all_events_are_folded(store: Store, codec: JSONCodec):
    """
    A function whose event is not annotated is given whatever the stream holds.
    """
    codec.know(Opened, Deposited)
    accounts = Aggregate(Account, undeclared, store=store, codec=codec)
    assert opened(accounts, 5) == accounts.load("a/1")


def test_an_event_that_nobody_knows_is_no_gap(accounts: Aggregate[Account], store: Store):
    """
    A renamed class would leave a hole in the state: loading fails, and says how to mend it.
    """
    opened(accounts)
    store.log.append([record(key="a/1", name="bank.gone")])
    with pytest.raises(UnknownEventError, match=r"bank\.gone"):
        accounts.load("a/1")


def test_an_event_that_cannot_be_read_is_no_gap(accounts: Aggregate[Account], store: Store):
    """
    What cannot be decoded fails the load.
    """
    store.log.append([record(key="a/1", name="bank.opened", payload=b"{}")])
    with pytest.raises(DecodeError):
        accounts.load("a/1")


def test_a_damaged_event_is_named(accounts: Aggregate[Account], monkeypatch: pytest.MonkeyPatch):
    """
    Bytes that are not those that were written fail the load, whatever they decode to.
    """
    stream = opened(accounts)
    log = type(accounts._store.log)  # type: ignore[attr-defined]
    read = log.read

    def damaged(self: Any, **conditions: Any) -> Any:
        return (attrs.evolve(each, is_intact=False) for each in read(self, **conditions))

    monkeypatch.setattr(log, "read", damaged)
    with pytest.raises(StoreCorruptError, match="event 1 of the log, in stream 'a/1'"):
        accounts.load(stream.key)


# -- what is stored --------------------------------------------------------------------------


def test_what_is_decided_at_once_is_correlated(store: Store, codec: JSONCodec):
    """
    Events of one append have one correlation id, the first one's, and no cause.
    """
    clock = VirtualClock()
    accounts = Aggregate(Account, evolve, store=store, codec=codec, clock=clock)
    accounts.append(accounts.load("a/1"), Opened("a/1", "Ada"), Deposited("a/1", 1))
    first, second = store.log.read()
    assert [first.id, first.id] == [first.correlation_id, second.correlation_id]
    assert [None, None] == [first.causation_id, second.causation_id]
    assert clock.time() == first.time.timestamp() == second.time.timestamp()


def test_what_a_handler_decides_is_caused_by_its_event(accounts: Aggregate[Account], store: Store):
    """
    Inside a handler the event being handled is the cause.
    """
    bus = EventBus()
    bus.subscribe(Noted, lambda noted: opened(accounts))
    receipt = bus.publish(Noted("x", "open one"), correlation_id="story")
    (stored,) = store.log.read()
    assert ("story", receipt.id) == (stored.correlation_id, stored.causation_id)


def test_another_way_of_storing_can_be_given(store: Store, codec: JSONCodec):
    """
    A bus, for one, stores the events and delivers them; it is told what to expect.
    """
    told: list[Any] = []

    def append(events: Any, *, key: str, expected_version: int) -> None:
        told.append((events, key, expected_version))

    accounts = Aggregate(Account, evolve, store=store, codec=codec, append=append)
    accounts.append(accounts.load("a/1"), Opened("a/1", "Ada"))
    assert [((Opened("a/1", "Ada"),), "a/1", 0)] == told


def test_a_bus_may_store_and_deliver_what_is_appended(store: Store, codec: JSONCodec):
    """
    Handlers get it, and who was too late is refused before any of them is called.
    """
    bus, found = EventBus(store=store, codec=codec), list[Any]()
    bus.subscribe(Deposited, found.append)

    def publish(events: Any, *, key: str, expected_version: int) -> None:
        bus.publish_many(events, expected_version=expected_version)

    accounts = Aggregate(Account, evolve, store=store, codec=codec, append=publish)
    stale = accounts.append(accounts.load("a/1"), Opened("a/1", "Ada"))
    accounts.append(stale, Deposited("a/1", 1), Deposited("a/1", 2))
    with pytest.raises(ConcurrencyError):
        accounts.append(stale, Deposited("a/1", 3))
    assert [Deposited("a/1", 1), Deposited("a/1", 2)] == found
    assert Account("Ada", 3) == accounts.load("a/1").state
    bus.close()


# -- deciding --------------------------------------------------------------------------------


def test_a_change_loads_decides_and_appends(accounts: Aggregate[Account]):
    """
    What is decided on the state is stored behind what has led to it.
    """
    opened(accounts, 100)
    stream = accounts.change("a/1", lambda account: account.deposit(50))
    assert (3, 150) == (stream.version, stream.state.cents)
    assert stream == accounts.load("a/1")


def test_a_decision_that_refuses_stores_nothing(accounts: Aggregate[Account], store: Store):
    """
    What the decision raises reaches the caller.
    """
    with pytest.raises(LookupError, match="no such account"):
        accounts.change("a/1", lambda account: account.deposit(50))
    assert 0 == store.log.last_offset()


def test_a_decision_is_made_anew_when_somebody_was_quicker(accounts: Aggregate[Account]):
    """
    Who loses the race decides again, on what the winner has left.
    """
    opened(accounts, 100)
    seen: list[int] = []

    def decide(account: Account) -> list[Any]:
        seen.append(account.cents)
        if len(seen) == 1:
            accounts.change("a/1", lambda account: account.deposit(1))
        return account.deposit(50)

    assert 151 == accounts.change("a/1", decide).state.cents
    assert [100, 101] == seen


def test_a_decision_is_not_made_for_ever(accounts: Aggregate[Account]):
    """
    Who loses every race is told so in the end.
    """
    opened(accounts)
    calls: list[int] = []

    def decide(account: Account) -> list[Any]:
        calls.append(1)
        accounts.change("a/1", lambda account: account.deposit(1))
        return account.deposit(50)

    with pytest.raises(ConcurrencyError):
        accounts.change("a/1", decide, attempts=2)
    assert 2 == len(calls)


def test_a_decision_returns_a_list(accounts: Aggregate[Account]):
    """
    A single event in place of a list is refused with the cure.
    """
    single: Any = lambda _: Opened("a/1", "Ada")  # noqa: E731 - what a user would write
    with pytest.raises(TypeError, match="has to return the events to append, as a list"):
        accounts.change("a/1", single)


# -- in a loop -------------------------------------------------------------------------------


def test_a_change_can_be_awaited(accounts: Aggregate[Account]):
    """
    The twin loads, decides and appends alike, and decides anew when somebody was quicker.
    """
    opened(accounts, 100)
    seen: list[int] = []

    def decide(account: Account) -> list[Any]:
        seen.append(account.cents)
        if len(seen) == 1:
            accounts.change("a/1", lambda account: account.deposit(1))
        return account.deposit(50)

    stream = asyncio.run(accounts.achange("a/1", decide))
    assert (4, 151) == (stream.version, stream.state.cents)
    assert stream == accounts.load("a/1")
    assert [100, 101] == seen


def test_an_awaited_change_is_not_made_for_ever(accounts: Aggregate[Account]):
    """
    Who loses every race is told so in the end, here too.
    """
    opened(accounts)

    def decide(account: Account) -> list[Any]:
        accounts.change("a/1", lambda account: account.deposit(1))
        return account.deposit(50)

    with pytest.raises(ConcurrencyError):
        asyncio.run(accounts.achange("a/1", decide, attempts=2))


def test_an_awaited_append_of_nothing_stores_nothing(accounts: Aggregate[Account], store: Store):
    """
    Without events the stream stays what it is.
    """
    stream = accounts.load("a/1")
    assert stream == asyncio.run(accounts.aappend(stream))
    assert 0 == store.log.last_offset()


@pytest.mark.parametrize("is_async", [True, False])
def test_another_way_of_storing_may_be_awaited(store: Store, codec: JSONCodec, is_async: bool):
    """
    What it returns is awaited, if it can be.
    """
    told: list[Any] = []

    def append(events: Any, *, key: str, expected_version: int) -> None:
        told.append((events, key, expected_version))

    async def aappend(events: Any, *, key: str, expected_version: int) -> None:
        append(events, key=key, expected_version=expected_version)

    way = aappend if is_async else append
    accounts = Aggregate(Account, evolve, store=store, codec=codec, append=way)
    asyncio.run(accounts.aappend(accounts.load("a/1"), Opened("a/1", "Ada")))
    assert [((Opened("a/1", "Ada"),), "a/1", 0)] == told


# -- snapshots -------------------------------------------------------------------------------


def with_snapshots(store: Any, codec: JSONCodec, **options: Any) -> Aggregate[Account]:
    options.setdefault("snapshot_every", 3)
    return Aggregate(Account, evolve, store=store, codec=codec, name="accounts", **options)


def test_a_long_stream_is_folded_from_its_snapshot(store: Store, codec: JSONCodec):
    """
    A load that has folded many events leaves a snapshot, and the next begins there.
    """
    opened(with_snapshots(store, codec), 1, 2)
    counting = Counting(store)
    accounts = with_snapshots(counting, codec, snapshots=InMemorySnapshots())
    assert 3 == accounts.load("a/1").version
    accounts.append(accounts.load("a/1"), Deposited("a/1", 4))
    counting.read_records = 0
    assert Stream(key="a/1", version=4, state=Account("Ada", 7)) == accounts.load("a/1")
    assert 1 == counting.read_records


def test_a_short_stream_leaves_no_snapshot(store: Store, codec: JSONCodec):
    """
    Fewer events than asked for are folded each time.
    """
    snapshots = InMemorySnapshots()
    opened(accounts := with_snapshots(store, codec, snapshots=snapshots), 1)
    accounts.load("a/1")
    assert snapshots.load("accounts", "a/1") is None


def test_a_snapshot_is_found_by_another_process(tmp_path: Path, codec: JSONCodec):
    """
    Snapshots stand in the store's file, and a codec that never saw a state reads them.
    """
    with SQLiteStore(tmp_path / "bank.db") as store:
        opened(accounts := with_snapshots(store, codec), 1, 2)
        accounts.load("a/1")
    with SQLiteStore(tmp_path / "bank.db") as store:
        counting = Counting(store)
        assert Account("Ada", 3) == with_snapshots(counting, JSONCodec()).load("a/1").state
        assert 0 == counting.read_records


def test_a_changed_fold_passes_over_older_snapshots(store: Store, codec: JSONCodec):
    """
    With a raised version, everything is folded anew by the new code.
    """
    snapshots = InMemorySnapshots()
    opened(accounts := with_snapshots(store, codec, snapshots=snapshots), 1, 2)
    accounts.load("a/1")
    counting = Counting(store)
    newer = with_snapshots(counting, codec, snapshots=snapshots, version=2)
    assert 3 == newer.load("a/1").version
    assert 3 == counting.read_records


@pytest.mark.parametrize("wrong", [Encoded("Account", 1, b"{"), Encoded("Gone", 1, b"{}")])
def test_a_snapshot_that_cannot_be_read_costs_time_alone(
    store: Store, codec: JSONCodec, wrong: Encoded, caplog: pytest.LogCaptureFixture
):
    """
    The stream is folded from its beginning, and the log says why.
    """
    snapshots = InMemorySnapshots()
    snapshots.save(
        Snapshot(aggregate="accounts", key="a/1", version=9, offset=9, shape=1, state=wrong)
    )
    stream = opened(accounts := with_snapshots(store, codec, snapshots=snapshots), 1, 2)
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        assert Account("Ada", 3) == stream.state == accounts.load("a/1").state
    assert "the snapshot of accounts for 'a/1' could not be read" in caplog.text


def test_a_snapshot_that_cannot_be_kept_costs_time_alone(
    store: Store, codec: JSONCodec, caplog: pytest.LogCaptureFixture
):
    """
    A place for snapshots that fails does not fail the load.
    """

    class Full(InMemorySnapshots):
        def save(self, snapshot: Snapshot) -> None:
            raise OSError("no room")

    opened(accounts := with_snapshots(store, codec, snapshots=Full()), 1, 2)
    with caplog.at_level(logging.WARNING, logger="eventbus"):
        assert 3 == accounts.load("a/1").version
    assert "could not be kept" in caplog.text


def test_a_state_that_is_no_event_class_needs_no_snapshot_to_work(
    store: Store, codec: JSONCodec, caplog: pytest.LogCaptureFixture
):
    """
    A state the codec cannot write is folded each time, and the log says so.
    """

    def count(number: complex, happened: Opened | Deposited) -> complex:
        return number + 1

    counts = Aggregate(complex, count, store=store, codec=codec, snapshot_every=1)
    counts.append(counts.load("a/1"), Opened("a/1", "Ada"))
    assert 1 == counts.load("a/1").state
    assert "could not be kept" in caplog.text


def test_a_pruned_stream_lives_on_in_its_snapshot(store: Store, codec: JSONCodec):
    """
    What was pruned is part of the snapshot; without one the stream cannot be known.
    """
    snapshots = InMemorySnapshots()
    opened(accounts := with_snapshots(store, codec, snapshots=snapshots), 1, 2)
    accounts.load("a/1")
    accounts.append(accounts.load("a/1"), Deposited("a/1", 3))
    assert 3 == store.log.prune(before=4)
    assert Stream(key="a/1", version=4, state=Account("Ada", 6)) == accounts.load("a/1")
    without = with_snapshots(store, codec, snapshot_every=None)
    with pytest.raises(StoreError, match="the first 3 events of stream 'a/1' were pruned"):
        without.load("a/1")


def test_a_snapshot_of_what_the_log_has_lost_is_passed_over(store: Store, codec: JSONCodec):
    """
    As after a power failure, or a restored backup: what the log has is what happened.
    """
    snapshots = InMemorySnapshots()
    opened(accounts := with_snapshots(store, codec, snapshots=snapshots), 1, 2)
    accounts.load("a/1")
    restored = MemoryStore()
    rest = with_snapshots(restored, codec, snapshots=snapshots)
    assert Stream(key="a/1", version=0, state=Account()) == rest.load("a/1")
    assert 1 == rest.change("a/1", lambda _: [Opened("a/1", "Bo")]).version
    assert Stream(key="a/1", version=1, state=Account("Bo", 0)) == rest.load("a/1")


def test_snapshots_every_none_are_refused(store: Store, codec: JSONCodec):
    """
    A distance of zero events is none.
    """
    with pytest.raises(ValueError, match="counts from 1, not 0"):
        with_snapshots(store, codec, snapshot_every=0)


@pytest.fixture(params=["memory", "file"])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    if request.param == "memory":
        return InMemorySnapshots()
    return SQLiteSnapshots(str(tmp_path / "snapshots.db"))


def snapshot(**facts: Any) -> Snapshot:
    plain: dict[str, Any] = {
        "aggregate": "accounts",
        "key": "a/1",
        "version": 3,
        "offset": 7,
        "shape": 1,
        "state": Encoded("Account", 1, b"{}"),
    }
    return Snapshot(**{**plain, **facts})


def test_a_snapshot_comes_back_as_it_was(snapshots: Snapshots):
    """
    What was saved is loaded, by aggregate and key.
    """
    assert snapshots.load("accounts", "a/1") is None
    snapshots.save(snapshot())
    assert snapshot() == snapshots.load("accounts", "a/1")
    assert snapshots.load("accounts", "a/2") is None
    assert snapshots.load("orders", "a/1") is None


def test_a_snapshot_takes_the_place_of_the_one_before(snapshots: Snapshots):
    """
    Of each stream one snapshot is kept, the latest.
    """
    snapshots.save(snapshot())
    snapshots.save(snapshot(version=9, offset=20))
    assert snapshot(version=9, offset=20) == snapshots.load("accounts", "a/1")


def test_snapshots_keep_to_themselves_in_the_file(tmp_path: Path):
    """
    They stand in a table of their own, beside those of the store.
    """
    with SQLiteStore(tmp_path / "bank.db") as store:
        SQLiteSnapshots(store.path).save(snapshot())
        assert () == store.check()
    with closing(sqlite3.connect(tmp_path / "bank.db")) as connection:
        assert [(1,)] == connection.execute("SELECT count(*) FROM eventbus_snapshots").fetchall()


def test_records_of_a_stream_are_plain_records(accounts: Aggregate[Account], store: Store):
    """
    Whoever reads the log finds the events by name, key and version like any other.
    """
    opened(accounts, 1)
    found: list[Record] = list(store.log.read(names=["bank.deposited"]))
    assert [("a/1", 1, b'{"account":"a/1","cents":1}')] == [
        (each.key, each.version, each.payload) for each in found
    ]
