"""
Progress: the contract, on every store.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing.contracts import ProgressContract


class TestMemoryProgress(ProgressContract):
    @pytest.fixture
    def store(self):
        store = MemoryStore()
        yield store
        store.close()


class TestSQLiteProgress(ProgressContract):
    @pytest.fixture
    def store(self, tmp_path: Path):
        with SQLiteStore(tmp_path / "store.db") as store:
            yield store
            assert () == store.check()


def test_stores_are_stores():
    """
    Both of ours are what the protocol asks for, as far as a type checker can tell.
    """
    stores: list[type[Store]] = [MemoryStore, SQLiteStore]
    assert 2 == len(stores)
