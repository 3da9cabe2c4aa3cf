"""
Kept letters: the contract, on every store.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from eventbus.kept_letters import KeptLetters
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.testing.contracts import KeptLettersContract


class TestMemoryLetters(KeptLettersContract):
    @pytest.fixture
    def letters(self) -> KeptLetters:
        return MemoryStore().letters


class TestSQLiteLetters(KeptLettersContract):
    @pytest.fixture
    def letters(self, tmp_path: Path):
        with SQLiteStore(tmp_path / "store.db") as store:
            yield store.letters
            assert () == store.check()
