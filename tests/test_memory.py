"""
The store in memory: transactions, crashes and its end.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest

from eventbus.errors import LeaseLostError, StoreClosedError, StoreError, StoreLockedError
from eventbus.idempotency import InMemoryIdempotencyStore
from eventbus.kept_letters import KeptLetter
from eventbus.memory import MemoryStore
from eventbus.progress import Lease, Step
from eventbus.testing.contracts._records import record, records


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(busy_timeout=0.01)
    store.log.append(records(3, key="a"))
    store.progress.open("a", start="origin")
    return store


def leased(store: MemoryStore) -> Lease:
    lease = store.progress.acquire("a", owner="me", ttl=10.0, now=0.0)
    assert lease is not None
    return lease


def test_a_crash_forgets_what_a_killed_process_forgets(store: MemoryStore):
    """
    History, progress and letters stay; leases end, and nobody listens any more.
    """
    lease = leased(store)
    store.progress.advance(lease, Step(taken=2, begin=[1, 2]))
    store.log.on_append(pytest.fail)
    store.crash()
    store.log.append([record()])
    assert (0, 2, None) == (
        store.progress.position("a").offset,
        store.progress.position("a").pending,
        store.progress.position("a").lease,
    )
    with pytest.raises(LeaseLostError):
        store.progress.advance(lease, Step(done=[1]))
    assert {1: 2} == dict(store.progress.advance(leased(store), Step(begin=[1])).attempts)


def test_a_transaction_does_not_survive_a_crash(store: MemoryStore):
    """
    What was open when the process died is rolled back, its events included.
    """
    lease = leased(store)

    def crash_inside() -> None:
        with store.progress.transaction(lease) as transaction:
            transaction.connection.execute("CREATE TABLE mine (what)")
            store.log.append([record()], connection=transaction.connection)
            store.crash()

    with pytest.raises(LeaseLostError):
        crash_inside()
    assert 3 == store.log.last_offset()
    with store.progress.transaction(leased(store)) as transaction:
        tables = transaction.connection.execute("SELECT * FROM sqlite_master").fetchall()
    assert [] == tables


def test_a_closed_store_refuses_by_name(store: MemoryStore):
    """
    After closing every port says so, until the store is opened again by a crash.
    """
    with store.progress.transaction(leased(store)) as transaction:
        transaction.connection.execute("CREATE TABLE mine (what)")
    store.close()
    store.close()
    asks: list[Callable[[], object]] = [
        lambda: store.log,
        lambda: store.progress,
        lambda: store.letters,
        lambda: store.idempotency,
        store.check,
    ]
    for ask in asks:
        with pytest.raises(StoreClosedError, match="closed"):
            ask()
    store.crash()
    assert 3 == store.log.last_offset()
    assert () == store.check()


def test_transactions_take_turns(store: MemoryStore):
    """
    While one is open another one waits as long as it was told to, and gives up by name.
    """
    lease = leased(store)
    with store.progress.transaction(lease), ThreadPoolExecutor(1) as thread:
        for of in (lease, "a"):
            entering = thread.submit(store.progress.transaction(of).__enter__)
            with pytest.raises(StoreLockedError, match=r"a was writing.* was over \(0\.01 s\)"):
                entering.result(20.0)
            with pytest.raises(StoreLockedError, match="a has a transaction open in this very"):
                store.progress.transaction(of).__enter__()
        store.close()  # does not wait for ever either
    store.crash()
    with store.progress.transaction(leased(store)):
        pass


def test_a_redrive_does_not_survive_a_crash_either(store: MemoryStore):
    """
    Whoever redrives has no lease that would be lost, and is told all the same.
    """
    with (
        pytest.raises(StoreClosedError, match="crashed while a letter of a was redriven"),
        store.progress.transaction("a"),
    ):
        store.crash()


def test_a_claim_does_not_survive_a_crash(store: MemoryStore):
    """
    Who had it is gone, and another one redrives the letter.
    """
    [first, *_] = store.log.read(limit=1)
    now = datetime(2024, 1, 1, tzinfo=UTC)
    store.letters.add(
        KeptLetter(id="L", subscription="a", record=first, first_failure=now, last_failure=now)
    )
    assert store.letters.claim("L", owner="me", ttl=60.0, now=0.0)
    assert not store.letters.claim("L", owner="you", ttl=60.0, now=0.0)
    store.crash()
    assert store.letters.claim("L", owner="you", ttl=60.0, now=0.0)


def test_a_connection_joins_while_its_transaction_is_open(store: MemoryStore):
    """
    After the block nothing can be published into it any more.
    """
    with store.progress.transaction(leased(store)) as transaction:
        assert [0, 0] == store.log.append(records(2), connection=transaction.connection)
    assert 5 == store.log.last_offset()
    with pytest.raises(StoreError, match="SQLiteStore"):
        store.log.append([record()], connection=transaction.connection)


def test_the_keys_may_be_kept_elsewhere():
    """
    A store takes the place for idempotency keys that it is given.
    """
    keys = InMemoryIdempotencyStore(ttl=1.0)
    assert keys is MemoryStore(idempotency=keys).idempotency


def test_a_fenced_off_key_is_not_completed(store: MemoryStore):
    """
    In a transaction, too, whose key was taken over learns it.
    """
    with store.progress.transaction(leased(store)) as transaction:
        keys = transaction.idempotency
        late = keys.claim("s", "k", source=record(), now=0.0)
        assert "granted" == keys.claim("s", "k", source=record(), now=1_000.0).state
        assert not keys.complete(late, now=1_001.0)
        pending = keys.claim("s", "k", source=record(), now=1_001.0)
        assert "pending" == pending.state
        assert keys.add_waiter(pending, list)
