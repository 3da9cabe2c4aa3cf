"""
The log: the contract, and what is the value's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import EventBus, event
from eventbus.errors import StoreError
from eventbus.event_log import EventLog, Listeners, check_times, stream_of
from eventbus.memory import InMemoryEventLog, MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing.contracts import EventLogContract
from eventbus.testing.contracts._records import NOON, record


class TestInMemoryEventLog(EventLogContract):
    @pytest.fixture
    def log(self) -> EventLog:
        return InMemoryEventLog()


class TestMemoryStoreLog(EventLogContract):
    @pytest.fixture
    def log(self) -> EventLog:
        return MemoryStore().log


class TestSQLiteEventLog(EventLogContract):
    @pytest.fixture
    def log(self, tmp_path: Path):
        with SQLiteStore(tmp_path / "log.db") as store:
            yield store.log
            assert () == store.check()


def test_a_record_is_a_value():
    """
    Records of the same facts are equal, and can be told apart in a set.
    """
    one = record(headers={"a": "b"})
    assert one == attrs.evolve(one)
    assert {one} == {one, attrs.evolve(one)}
    assert one != attrs.evolve(one, offset=1)


def test_a_record_shows_no_payload():
    """
    What may be large or private does not come up in every message about a record.
    """
    assert "secret" not in repr(record(payload=b"secret"))


def test_records_of_one_stream_have_its_key():
    """
    The stream of records is the key that they share.
    """
    assert "a" == stream_of([record(key="a"), record(key="a")])
    with pytest.raises(ValueError, match="one key"):
        stream_of([])


def test_times_are_checked_where_there_are_any():
    """
    No time is fine, and so is one with a zone.
    """
    check_times(None, NOON)
    with pytest.raises(ValueError, match="time zone"):
        check_times(None, NOON.replace(tzinfo=None))


def test_a_listener_listens_as_often_as_it_was_added():
    """
    Two of the same are called twice, and each stop ends one of them.
    """
    heard: list[str] = []

    def hear() -> None:
        heard.append("heard")

    listeners = Listeners()
    stops = [listeners.add(hear), listeners.add(hear)]
    listeners.call()
    assert 2 == len(heard)
    stops[0]()
    stops[0]()
    listeners.call()
    assert 3 == len(heard)
    listeners.clear()
    stops[1]()
    listeners.call()
    assert 3 == len(heard)


def test_a_log_in_memory_joins_no_strange_transaction():
    """
    Publishing into a connection that the store has not lent is refused, with the cure.
    """
    log = InMemoryEventLog()
    with pytest.raises(StoreError, match="SQLiteStore"):
        log.append([record()], connection="a connection")
    assert 0 == log.last_offset()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "log.db")
    yield made
    made.close()


def test_one_name_is_no_collection_of_names(store: Store):
    """
    Its letters would be looked for instead.
    """
    with pytest.raises(TypeError, match=r"names= is a collection of names, such as \['e'\]"):
        store.log.read(names="e")


@pytest.mark.parametrize("ask", ["prune", "since", "before", "offset_before"])
def test_text_is_no_time(store: Store, ask: str):
    """
    And a time without a zone could be any.
    """
    log: Any = store.log
    asked: dict[str, Callable[[Any], object]] = {
        "prune": lambda time: log.prune(before=time),
        "since": lambda time: list(log.read(since=time)),
        "before": lambda time: list(log.read(before=time)),
        "offset_before": log.offset_before,
    }
    with pytest.raises(TypeError, match="'2020' is no time: give a datetime with a time zone"):
        asked[ask]("2020")
    with pytest.raises(ValueError, match="has no time zone"):
        asked[ask](NOON.replace(tzinfo=None))


@pytest.mark.parametrize("in_block", [False, True])
@pytest.mark.parametrize(
    ("version", "error"), [("0", TypeError), (1.0, TypeError), (True, TypeError), (-1, ValueError)]
)
def test_what_is_no_version_is_no_conflict(
    store: Store, version: Any, error: type[Exception], *, in_block: bool
):
    """
    Else whoever loads the stream anew would try again for ever.
    """
    bus = EventBus(store=store)
    block: Any = bus.deferred() if in_block else nullcontext()
    with pytest.raises(error, match="expected_version= is"), block:
        bus.publish(Placed("a"), expected_version=version)
    with pytest.raises(error, match="expected_version= is"):
        store.log.append([record(key="a")], expected_version=version)
    assert 0 == store.log.last_offset()


@event(key="key")
class Placed:
    key: str
