"""
What storing costs: the log's appends against SQLite's own statements, on the same pragmas.

Law: the store alone is measured here, without codec, envelope or dispatch. Two limits stand
beside each append: a bare INSERT into a table without any index, and the same INSERT into a
table with the indexes that unique ids and streams by key ask for. What lies between the two is
the price of the promise, what lies above the second is ours.

Run it with ``python -m tests.benchmarks.durable_rows`` from the project's folder.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs

from eventbus.event_log import Record
from eventbus.sqlite import SQLiteStore

from .timing import FULL, QUICK, Effort, Lane, Prepared, measure

PAYLOAD = b'{"order_id":"A-1","total":"42.00","currency":"EUR","lines":[{"sku":"x","count":1}]}'
NOW = datetime(2024, 2, 29, 12, tzinfo=UTC)
MANY = 1_000

# The columns of the log's table, with and without what is looked up in them.
BARE = """
    CREATE TABLE bare (
        "offset" INTEGER PRIMARY KEY, id TEXT NOT NULL, name TEXT NOT NULL,
        version INTEGER NOT NULL, key TEXT, time INTEGER NOT NULL, correlation_id TEXT,
        causation_id TEXT, headers TEXT, payload BLOB NOT NULL, checksum INTEGER NOT NULL,
        stream_version INTEGER
    )
"""
INDEXES = (
    "CREATE UNIQUE INDEX bare_id ON bare (id)",
    "CREATE INDEX bare_key ON bare (key) WHERE key IS NOT NULL",
)
INSERT = (
    "INSERT INTO bare (id, name, version, key, time, correlation_id, causation_id, headers, "
    "payload, checksum, stream_version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_ids = count()


@attrs.frozen
class Row:
    """
    One line of the table: *ours* and *theirs* in seconds per event.
    """

    race: str
    rival: str
    ours: float
    theirs: float
    target: float | None = None

    @property
    def ratio(self) -> float:
        """
        Return our time as a multiple of theirs.
        """
        return self.ours / self.theirs


def record(key: str | None = None) -> Record:
    """
    Make a record nobody has seen.
    """
    id = f"018df5a0-0000-7000-8000-{next(_ids):012d}"
    return Record(
        id=id, name="shop.order_placed", key=key, time=NOW, correlation_id=id, payload=PAYLOAD
    )


def row(key: str | None = None) -> tuple[Any, ...]:
    """
    Make the columns of such a record.
    """
    id = f"018df5a0-0000-7000-8000-{next(_ids):012d}"
    name, time = "shop.order_placed", 1_709_208_000_000_000
    return (id, name, 1, key, time, None, None, None, PAYLOAD, 1_234_567, None)


def key(number: int) -> str:
    """
    Spread events over a hundred entities.
    """
    return f"A-{number % 100}"


@contextmanager
def bare(path: Path, statements: Sequence[str]) -> Iterator[sqlite3.Connection]:
    """
    Open a database as the store does, with a table of *statements*.
    """
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        for statement in statements:
            connection.execute(statement)
        yield connection


def one_by_one(folder: Path, effort: Effort, *, keyed: bool) -> list[Row]:
    """
    Append one event at a time, each with a commit of its own.
    """
    race = f"append, {'with' if keyed else 'without'} a key"

    def events(make: Callable[[str | None], Any]) -> Callable[[int], list[Any]]:
        return lambda number: [make(key(each) if keyed else None) for each in range(number)]

    with (
        SQLiteStore(folder / f"one-{keyed}.db") as store,
        bare(folder / f"bare-{keyed}.db", [BARE]) as plain,
        bare(folder / f"indexed-{keyed}.db", [BARE, *INDEXES]) as indexed,
    ):
        ours = _lane("ours", store.log.append, events(lambda key: [record(key)]))
        lanes = [ours, *(_inserts(*each, events(row)) for each in _named(plain, indexed))]
        times = measure(lanes, effort)
    return _rows(race, times, {"bare INSERT": 1.8, "INSERT, same indexes": 1.2})


def many(folder: Path, effort: Effort, *, keyed: bool) -> list[Row]:
    """
    Append a thousand events in one transaction.
    """
    race = f"append {MANY:,}, {'with' if keyed else 'without'} keys"

    def batches(make: Callable[[str | None], Any]) -> Callable[[int], list[Any]]:
        def prepare(number: int) -> list[Any]:
            keys = [key(each) if keyed else None for each in range(MANY)]
            return [[make(each) for each in keys] for _ in range(number)]

        return prepare

    def executemany(connection: sqlite3.Connection) -> Callable[[Any], None]:
        def call(rows: list[tuple[Any, ...]]) -> None:
            connection.execute("BEGIN")
            connection.executemany(INSERT, rows)
            connection.execute("COMMIT")

        return call

    with (
        SQLiteStore(folder / f"many-{keyed}.db") as store,
        bare(folder / f"many-bare-{keyed}.db", [BARE]) as plain,
        bare(folder / f"many-indexed-{keyed}.db", [BARE, *INDEXES]) as indexed,
    ):
        lanes = [_lane("ours", store.log.append, batches(record))]
        for name, connection in _named(plain, indexed):
            lanes.append(_lane(name, executemany(connection), batches(row)))
        times = measure(lanes, effort)
    per_event = {name: seconds / MANY for name, seconds in times.items()}
    return _rows(race, per_event, {"bare INSERT": 5.0, "INSERT, same indexes": 2.5})


def _named(
    plain: sqlite3.Connection, indexed: sqlite3.Connection
) -> list[tuple[str, sqlite3.Connection]]:
    return [("bare INSERT", plain), ("INSERT, same indexes", indexed)]


def _lane(name: str, call: Callable[..., Any], make: Callable[[int], list[Any]]) -> Lane:
    def prepare(number: int) -> Prepared:
        return call, make(number)

    return Lane(name, prepare)


def _inserts(name: str, connection: sqlite3.Connection, make: Callable[[int], list[Any]]) -> Lane:
    def prepare(number: int) -> Prepared:
        return connection.execute, [(INSERT, each) for each in make(number)]

    return Lane(name, prepare, statement="call(*event)")


def _rows(race: str, times: dict[str, float], targets: dict[str, float]) -> list[Row]:
    ours = times.pop("ours")
    return [Row(race, name, ours, theirs, targets[name]) for name, theirs in times.items()]


def publishers(folder: Path, *, number: int, seconds: float) -> float:
    """
    Let *number* threads append with ``synchronous=FULL``; return events per second.
    """
    with SQLiteStore(folder / f"full-{number}.db", synchronous="FULL") as store:
        counts = [0] * number
        end = perf_counter() + seconds

        def publish(place: int) -> None:
            while perf_counter() < end:
                store.log.append([record()])
                counts[place] += 1

        threads = [threading.Thread(target=publish, args=(each,)) for each in range(number)]
        began = perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (perf_counter() - began)


def main(arguments: Sequence[str]) -> None:
    """
    Print the table; ``--quick`` looks less long for the minimum.
    """
    is_quick = "--quick" in arguments
    effort = QUICK if is_quick else attrs.evolve(FULL, rounds=60, span=0.005)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            each
            for race in (one_by_one, many)
            for keyed in (False, True)
            for each in race(folder, effort, keyed=keyed)
        ]
        for each in rows:
            print(
                f"{each.race:28} {each.ours * 1e6:7.1f} µs   {each.rival:22} "
                f"{each.theirs * 1e6:7.1f} µs   {each.ratio:5.2f} x   (aim: {each.target})"
            )
        alone, together = (
            publishers(folder, number=number, seconds=0.2 if is_quick else 2.0)
            for number in (1, 100)
        )
        ratio = f"{together / alone:5.2f} x   (aim: at least 10)"
        print(f"100 publishers, FULL         {together:,.0f}/s, one: {alone:,.0f}/s   {ratio}")


if __name__ == "__main__":
    main(sys.argv[1:])
