"""
A projection that is killed wherever it stands has taken in each event once.

Bounded in count. The short form runs by default, the long one with ``-m long``.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from eventbus.codec import JSONCodec
from eventbus.event_log import Record
from eventbus.sqlite import SQLiteStore
from stress.counted import Counted

EVENTS = 1_500
NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
CHILD = Path(__file__).with_name("counted.py")

kills = pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])


@pytest.fixture
def file(tmp_path: Path) -> str:
    codec, path = JSONCodec(), str(tmp_path / "counted.db")
    records = []
    for number in range(1, EVENTS + 1):
        name, version, payload = codec.encode(Counted(number))
        facts = {"id": str(number), "correlation_id": str(number), "time": NOON}
        records.append(Record(name=name, version=version, payload=payload, **facts))
    with SQLiteStore(path) as store:
        store.log.append(records)
    return path


def run(file: str, version: int, *, kill_after: int | None = None) -> int:
    """
    Run the projection, and kill it when it has begun so many events; return its exit code.
    """
    with subprocess.Popen(
        [sys.executable, str(CHILD), file, str(version)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        for begun, _ in enumerate(child.stdout, 1):
            if begun == kill_after:
                child.kill()
        return child.wait(timeout=60)


def found(file: str) -> tuple[list[tuple[int, int]], int]:
    """
    Return what stands in the table, if there is one, and how far the position says it is.
    """
    with SQLiteStore(file) as store, closing(sqlite3.connect(file)) as connection:
        assert () == store.check()
        known = "SELECT count(*) FROM sqlite_master WHERE name = 'numbers'"
        sql = "SELECT number, version FROM numbers ORDER BY number"
        is_there = connection.execute(known).fetchone()[0]
        rows = connection.execute(sql).fetchall() if is_there else []
        positions = store.progress.positions()
        return rows, positions[0].offset if positions else 0


@kills
def test_no_event_is_counted_twice_however_often_it_is_killed(file: str, kills: int):
    """
    Rows and position agree after each kill, while it is built and while it goes on.
    """
    chance = random.Random(kills)
    for number in range(kills):
        if number == kills // 2:
            assert 0 == run(file, 1)  # built; what follows is taken in batch by batch
            with SQLiteStore(file) as store:
                store.log.append(
                    [
                        Record(
                            id=f"more {each}",
                            name="stress.counted",
                            correlation_id="more",
                            time=NOON,
                            payload=b'{"number":%d}' % each,
                        )
                        for each in range(EVENTS + 1, 2 * EVENTS + 1)
                    ]
                )
        run(file, 1, kill_after=chance.randrange(1, EVENTS))
        rows, offset = found(file)
        assert [(each, 1) for each in range(1, offset + 1)] == rows
    assert 0 == run(file, 1)
    rows, offset = found(file)
    assert [(each, 1) for each in range(1, 2 * EVENTS + 1)] == rows


@kills
def test_a_killed_rebuild_leaves_the_old_tables(file: str, kills: int):
    """
    Until the new ones are whole, the old ones are there, and then all at once the new ones.
    """
    chance = random.Random(kills)
    version = 1
    assert 0 == run(file, version)
    for _ in range(kills):
        # Its last words may be heard when it has finished: then the new ones are there.
        run(file, version + 1, kill_after=chance.randrange(1, EVENTS))
        rows, offset = found(file)
        assert rows in (whole(version), whole(version + 1))
        assert EVENTS == offset
        version = rows[0][1]
    assert 0 == run(file, version + 1)
    assert (whole(version + 1), EVENTS) == found(file)


def whole(version: int) -> list[tuple[int, int]]:
    return [(number, version) for number in range(1, EVENTS + 1)]
