"""
Dead letters in a store: the contract, and what texts and bytes make of them.
"""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest

from contracts.dead_letters import (
    NOON,
    DeadLettersContract,
    MakeStore,
    OrderPlaced,
    PaymentError,
    ids,
    letter,
    minutes,
)
from eventbus import event
from eventbus._records import Unreadable, envelope_of, legible, record_of
from eventbus._stored_letters import StoredDeadLetters
from eventbus.codec import JSONCodec, upcast
from eventbus.dead_letter import DeadLetter
from eventbus.errors import DeadLetterNotFoundError, StoreCorruptError
from eventbus.kept_letters import KeptLetter
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.testing.contracts._letters import OrderCancelled, UrgentOrderPlaced
from eventbus.testing.contracts._records import record


def codec() -> JSONCodec:
    made = JSONCodec()
    made.know(OrderPlaced, OrderCancelled, UrgentOrderPlaced)
    return made


class TestLettersInMemory(DeadLettersContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda: StoredDeadLetters(MemoryStore().letters, codec())


class TestLettersInAFile(DeadLettersContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path):
        with SQLiteStore(tmp_path / "store.db") as store:
            yield partial(StoredDeadLetters, store.letters, codec())


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def letters(store: MemoryStore) -> StoredDeadLetters:
    return StoredDeadLetters(store.letters, codec())


def test_of_an_exception_its_texts_are_kept(letters: StoredDeadLetters):
    """
    A failure that was stored has type, message and traceback, and no exception.
    """
    letters.add(letter("a", errors=[PaymentError("card declined")]))
    (failure,) = letters.get("a").failures
    assert failure.exception is None
    assert "card declined" == failure.message
    assert failure.traceback.startswith("Traceback")


def test_an_edited_letter_shows_what_will_be_delivered(
    store: MemoryStore, letters: StoredDeadLetters
):
    """
    The event of an edited letter is the edited one, and a failed redrive keeps it so.
    """
    letters.add(letter("a", OrderPlaced("A-1")))
    edited = record_of(letter("b", OrderPlaced("A-2")).envelope, codec()).payload
    store.letters.edit("a", edited)
    assert OrderPlaced("A-2") == letters.get("a").event
    letters.replace(attrs.evolve(letters.get("a"), redrives=1))
    assert (OrderPlaced("A-2"), 1) == (letters.get("a").event, letters.get("a").redrives)
    store.letters.edit("a", None)
    assert OrderPlaced("A-1") == letters.get("a").event


def test_what_cannot_be_read_is_shown_as_such(store: MemoryStore, letters: StoredDeadLetters):
    """
    A letter whose payload nobody can read is found, with its bytes and the reason.
    """
    letters.add(letter("a"))
    letters.add(letter("b"))
    store.letters.edit("a", b"no JSON")
    event = letters.get("a").event
    assert isinstance(event, Unreadable)
    assert (b"no JSON", 1) == (event.payload, event.version)
    assert "a b" == ids(letters.query())
    assert "b" == ids(letters.query(event_type=OrderPlaced))
    assert "a" == ids(letters.query(event_type=Unreadable))


def test_many_letters_are_kept_one_by_one_where_the_store_has_no_other_way(
    letters: StoredDeadLetters,
):
    """
    Those in memory need no transaction for it.
    """
    made = [letter("a"), letter("b")]
    assert made == letters.add_all(made)
    assert ["a", "b"] == [each.id for each in letters]


def test_letters_of_a_class_that_is_only_declared_are_read(store: MemoryStore):
    """
    The codec of a new process knows nobody: whoever is declared here is found by the name.
    """

    @event(name="letters.declared")
    class Declared: ...

    (offset,) = store.log.append([record(name="letters.declared")])
    (stored,) = store.log.read(after=offset - 1)
    store.letters.add(
        KeptLetter(id="a", subscription="s", record=stored, first_failure=NOON, last_failure=NOON)
    )
    letters = StoredDeadLetters(store.letters, JSONCodec())
    assert isinstance(letters.get("a").event, Declared)
    assert 1 == letters.count(event_type=Declared)


def test_two_classes_of_one_name_are_not_told_apart(store: MemoryStore):
    """
    A letter that could be of either is unreadable, as it is where none is declared.
    """

    def declare() -> type:
        @event(name="letters.twice")
        class Twice: ...

        return Twice

    one, other = declare(), declare()
    (offset,) = store.log.append([record(name="letters.twice")])
    (stored,) = store.log.read(after=offset - 1)
    assert isinstance(legible(stored, JSONCodec()).event, Unreadable)
    del one
    gc.collect()
    assert isinstance(legible(stored, JSONCodec()).event, other)


def test_an_envelope_has_the_version_of_what_it_holds():
    """
    An event that was stored in an older one is of the version that it was made into.
    """

    @event(name="letters.grown", version=2)
    class Grown:
        size: int = 0

    @upcast(Grown, from_version=1)
    def grow(data: dict[str, Any]) -> dict[str, Any]:
        return data

    stored = record(name="letters.grown", version=1, payload=b"{}")
    assert 2 == envelope_of(stored, JSONCodec()).version


def test_more_letters_than_one_page_are_searched(letters: StoredDeadLetters):
    """
    However rare what one looks for, all letters are looked at.
    """
    first = letter("0")
    for number in range(230):
        letters.add(attrs.evolve(first, id=str(number)))
    letters.add(letter("rare", OrderCancelled()))
    assert "rare" == ids(letters.query(event_type=OrderCancelled))
    assert 231 == letters.count()
    assert 200 == len(letters.query(limit=200))


@pytest.mark.parametrize("filters", [{}, {"event_type": OrderPlaced}])
def test_letters_may_go_while_others_are_looked_for(
    store: MemoryStore,
    letters: StoredDeadLetters,
    monkeypatch: pytest.MonkeyPatch,
    filters: dict[str, Any],
):
    """
    The page behind one whose last letter is gone is read all the same.
    """
    first, query = letter("0"), store.letters.query
    for number in range(450):
        letters.add(attrs.evolve(first, id=str(number)))

    def query_and_discard(*given: Any, **options: Any) -> list[KeptLetter]:
        found = query(*given, **options)
        store.letters.remove(found[-1].id)
        return found

    monkeypatch.setattr(store.letters, "query", query_and_discard)
    assert 450 == len(letters.query(**filters))
    assert 445 == letters.count(**filters)
    if filters:
        assert 440 == letters.count()
    assert "0" == next(iter(letters)).id


def test_letters_are_counted_without_decoding_them(
    letters: StoredDeadLetters, monkeypatch: pytest.MonkeyPatch
):
    """
    Where what is asked for is known without their events.
    """
    letters.add(letter("a", errors=[PaymentError("no")]))
    monkeypatch.setattr("eventbus._stored_letters.read_letter", pytest.fail)
    assert 1 == letters.count(subscription="shop.charge", error="PaymentError", since=minutes(0))
    assert 0 == letters.count(error="ValueError")
    with pytest.raises(TypeError, match="no filters"):
        letters.count(errors="ValueError")


def test_a_letter_discarded_meanwhile_is_not_counted(
    letters: StoredDeadLetters, monkeypatch: pytest.MonkeyPatch
):
    """
    Of two who discard at once each counts what it has discarded itself.
    """
    letters.add(letter("a"))
    letters.add(letter("b"))
    found: tuple[DeadLetter, ...] = letters.query()
    letters.remove("a")
    monkeypatch.setattr(letters, "query", lambda: found)
    assert 1 == letters.discard()
    with pytest.raises(DeadLetterNotFoundError):
        letters.get("b")


def test_damaged_bytes_are_not_read():
    """
    Bytes that are not those that were written are never taken for an event.
    """
    record = record_of(letter("a").envelope, codec())
    damaged = attrs.evolve(record, is_intact=False)
    with pytest.raises(StoreCorruptError, match="e-a"):
        envelope_of(damaged, codec())
    event = legible(damaged, codec()).event
    assert isinstance(event, Unreadable)
    assert isinstance(event.error, StoreCorruptError)
    assert OrderPlaced() == envelope_of(damaged, codec(), payload=record.payload).event


def test_an_envelope_comes_back_from_its_record():
    """
    All that is known about an event survives the way through a record.
    """
    envelope = attrs.evolve(
        letter("a").envelope,
        key="A-1",
        correlation_id="root",
        causation_id="cause",
        headers={"tenant": "Ü"},
    )
    assert envelope == envelope_of(record_of(envelope, codec()), codec())
    assert NOON == envelope.time
