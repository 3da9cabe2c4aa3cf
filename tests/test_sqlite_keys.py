"""
Idempotency keys in the file: the contract, and what several processes ask of it.
"""

from __future__ import annotations

import math
import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from contracts.idempotency_store import SOURCE, IdempotencyStoreContract, MakeStore
from eventbus._owner import owner
from eventbus.sqlite import SQLiteStore, _keys
from eventbus.testing import VirtualClock


class TestSQLiteIdempotencyStore(IdempotencyStoreContract):
    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        stores = list[SQLiteStore]()

        def make(*, ttl: float, lease: float):
            stores.append(SQLiteStore(tmp_path / f"{len(stores)}.db", clock=VirtualClock()))
            return stores[-1].keys(ttl=ttl, lease=lease)

        yield make
        for store in stores:
            store.close()


@pytest.mark.parametrize("name", ["ttl", "lease"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_times_are_above_zero(tmp_path: Path, name: str, value: float):
    """
    A time that would never let a key be held is refused.
    """
    with SQLiteStore(tmp_path / "store.db") as store:
        make = partial(store.keys, **{name: value})
        with pytest.raises(ValueError, match=f"{name} must be greater than 0"):
            make()


def test_keys_outlive_the_process(tmp_path: Path):
    """
    A success, and who is at it, are met by whoever opens the file next, on its own clock.
    """
    with SQLiteStore(tmp_path / "store.db", clock=VirtualClock(1_000.0)) as store:
        keys = store.keys(ttl=100.0, lease=10.0)
        assert keys.complete(keys.claim("s", "done", source=SOURCE, now=0.0), now=0.0)
        keys.claim("s", "pending", source=SOURCE, now=0.0)
    with SQLiteStore(tmp_path / "store.db", clock=VirtualClock(1_009.0)) as store:
        keys = store.keys(ttl=100.0, lease=10.0)
        done = keys.claim("s", "done", source=SOURCE, now=0.0)
        pending = keys.claim("s", "pending", source=SOURCE, now=0.0)
        assert ("done", 91.0, "the-event") == (done.state, done.expires, done.event_id)
        assert ("pending", 1.0) == (pending.state, pending.expires)
        assert "granted" == keys.claim("s", "pending", source=SOURCE, now=1.0).state
        assert "granted" == keys.claim("s", "done", source=SOURCE, now=91.0).state


def test_an_endless_ttl_is_fine(tmp_path: Path):
    """
    A success may count for ever.
    """
    with SQLiteStore(tmp_path / "store.db", clock=VirtualClock()) as store:
        keys = store.keys(ttl=math.inf)
        assert keys.complete(keys.claim("s", "k", source=SOURCE, now=0.0), now=0.0)
        assert "done" == keys.claim("s", "k", source=SOURCE, now=2e9).state


def test_what_has_expired_is_swept_out(tmp_path: Path):
    """
    Keys whose time is over do not fill the file.
    """
    with SQLiteStore(tmp_path / "store.db", clock=VirtualClock()) as store:
        keys = store.keys(ttl=1.0)
        for number in range(300):
            now = float(number)
            assert keys.complete(keys.claim("s", str(number), source=SOURCE, now=now), now=now)
        (count,) = store._database.query("SELECT count(*) FROM eventbus_keys")[0]
        assert count < 64


def test_a_claim_in_a_transaction_is_taken_back_with_it(tmp_path: Path):
    """
    A key claimed in a transaction that is rolled back is free; one held elsewhere stays held.
    """
    with SQLiteStore(tmp_path / "store.db") as store:
        keys = store.idempotency
        keys.claim("s", "held", source=SOURCE, now=0.0)
        connection = store._database.borrow()
        connection.execute("BEGIN")
        inside = keys.on(connection)
        assert "granted" == inside.claim("s", "free", source=SOURCE, now=0.0).state
        assert "pending" == inside.claim("s", "held", source=SOURCE, now=0.0).state
        connection.rollback()
        store._database.give_back(connection)
        assert "granted" == keys.claim("s", "free", source=SOURCE, now=0.0).state
        assert "pending" == keys.claim("s", "held", source=SOURCE, now=0.0).state


@pytest.mark.parametrize("reads_bytes", [False, True])
@pytest.mark.parametrize(("process", "is_free"), [("gone", True), ("running", False)])
def test_what_a_dead_process_held_is_free_at_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    process: str,
    *,
    is_free: bool,
    reads_bytes: bool,
):
    """
    A key it had not completed is, and no other: whatever text the application reads.
    """
    alive = owner()
    dead = alive.replace(f"pid {os.getpid()} ", "pid 999999999 ")
    monkeypatch.setattr(_keys, "owner", lambda: dead if process == "gone" else alive)
    with SQLiteStore(tmp_path / "store.db", clock=VirtualClock()) as store:
        keys = store.keys()
        left = keys.claim("s", "pending", source=SOURCE, now=0.0)
        done = keys.claim("s", "done", source=SOURCE, now=0.0)
        assert keys.complete(done, now=0.0)
        monkeypatch.undo()
        assert is_free is (keys.look("s", "pending", now=1.0) is None)
        with closing(sqlite3.connect(store.path, isolation_level=None)) as connection:
            connection.text_factory = bytes if reads_bytes else str
            keys = keys.on(connection)
            claim = keys.claim("s", "pending", source=SOURCE, now=1.0)
            assert ("granted" if is_free else "pending") == claim.state
            assert "done" == keys.claim("s", "done", source=SOURCE, now=1.0).state
            assert is_free is not keys.complete(left, now=1.0)
            assert is_free is not keys.release(left)
