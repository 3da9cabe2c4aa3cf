"""
What durability costs: events that are stored, delivered from the log, and read again.

Law: whole paths of a bus with a store, as a user would set it up; what the store alone costs
stands in `durable_rows`. Every file is on the same disk, in WAL mode, with the same pragma.
Each contender shows that it does what is timed before it is timed.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import attrs

from eventbus import Durable, EventBus, event
from eventbus.codec import JSONCodec
from eventbus.replay import replay
from eventbus.sqlite import SQLiteStore

from . import ours
from .durable_rows import BARE, INDEXES, INSERT, MANY, bare, row
from .peers import Handler, plain, version_of
from .queued import Line, Opened, race
from .rows import Row, judge
from .timing import Effort, Lane, clone, lane, measure

CYCLE = "durable: publish, deliver, acknowledge"
REPLAY = "durable: replay, decoded"
PLAIN, INDEXED = "bare INSERT", "INSERT, same indexes"
_ROUNDS = 60  # of what takes a thousand times as long as a plain publish
_READINGS = 10
_LIMIT = 2_000  # events of one heat
_READ = 5_000  # events that are read again
_files = count()


@event(key="order_id")
class KeyedOrder:
    order_id: str
    total: int


@contextmanager
def folder() -> Iterator[Path]:
    """
    Make a folder for files, and take it away again.
    """
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextmanager
def stored_in(path: Path, **options: Any) -> Iterator[EventBus]:
    """
    Make a bus on the file, which is closed with it.
    """
    bus = EventBus(store=SQLiteStore(path, **options))
    try:
        yield bus
    finally:
        bus.close()


# -- publishing --------------------------------------------------------------------------------


def publish_rows(effort: Effort) -> Iterator[Row]:
    """
    Publish one event at a time, each with a commit of its own.
    """
    fewer = attrs.evolve(effort, rounds=min(effort.rounds, 4 * _ROUNDS))
    for title, what in (
        ("durable publish, one by one", ours.ORDER),
        ("durable publish, one by one, with a key", KeyedOrder("A-1", 42)),
    ):
        with folder() as place, ExitStack() as stack:
            bus = stack.enter_context(stored_in(place / "ours.db"))
            assert 1 == bus.publish(what).envelope.offset
            lanes = [lane("ours", bus.publish, what)]
            lanes += [_inserting(*each) for each in _tables(stack, place)]
            yield from _rows(title, measure(lanes, fewer), 1.8 if what is ours.ORDER else None)


def publish_many_rows(effort: Effort) -> Iterator[Row]:
    """
    Publish a thousand events at once, all in one transaction.
    """
    fewer = attrs.evolve(effort, rounds=min(effort.rounds, _ROUNDS))
    with folder() as place, ExitStack() as stack:
        bus = stack.enter_context(stored_in(place / "ours.db"))
        batch = ours.orders(MANY)
        assert MANY == bus.publish_many(batch)[-1].envelope.offset
        lanes = [lane("ours", bus.publish_many, batch)]
        lanes += [_executing_many(*each) for each in _tables(stack, place)]
        times = {name: time / MANY for name, time in measure(lanes, fewer).items()}
        yield from _rows(f"durable publish_many, {MANY:,} at once", times, 5.0)


def _tables(stack: ExitStack, place: Path) -> list[tuple[str, sqlite3.Connection]]:
    tables = ((PLAIN, [BARE]), (INDEXED, [BARE, *INDEXES]))
    return [
        (name, stack.enter_context(bare(place / f"{name}.db", statements)))
        for name, statements in tables
    ]


def _inserting(name: str, connection: sqlite3.Connection) -> Lane:
    def prepare(number: int) -> Any:
        return connection.execute, [(INSERT, row()) for _ in range(number)]

    return Lane(name, prepare, statement="call(*event)")


def _executing_many(name: str, connection: sqlite3.Connection) -> Lane:
    def insert_all(rows: Sequence[Any]) -> None:
        connection.execute("BEGIN")
        connection.executemany(INSERT, rows)
        connection.execute("COMMIT")

    def prepare(number: int) -> Any:
        return insert_all, [[row() for _ in range(MANY)] for _ in range(number)]

    return Lane(name, prepare)


def _rows(title: str, times: dict[str, float], target: float | None) -> list[Row]:
    mine = times.pop("ours")
    return judge(title, mine, dict(times), (PLAIN,), target)


# -- the full cycle ----------------------------------------------------------------------------


@contextmanager
def _durable(handler: Handler) -> Iterator[Opened]:
    with folder() as place, stored_in(place / "ours.db") as bus:
        bus.subscribe(ours.OrderPlaced, handler, name="handler", delivery=Durable())
        with bus:
            yield bus.publish, bus.drain


def _litequeue(*, as_json: bool) -> Callable[[Handler], Any]:
    @contextmanager
    def opened(handler: Handler) -> Iterator[Opened]:
        make = import_module("litequeue").LiteQueue
        with folder() as place:
            queue = make(str(place / "theirs.db"))
            is_fenced = "claim_id" in signature(queue.done).parameters  # not before 0.10

            def finish() -> None:
                while (message := queue.pop()) is not None:
                    handler(json.loads(message.data) if as_json else message.data)
                    fence = {"claim_id": message.claim_id} if is_fenced else {}
                    queue.done(message.message_id, **fence)

            try:
                yield (lambda event: queue.put(json.dumps(event))) if as_json else queue.put, finish
            finally:
                queue.close()

    return opened


def _texts(number: int) -> list[str]:
    return [f'{{"order_id": "A-{each}", "total": {each}}}' for each in range(number)]


def _dicts(number: int) -> list[Any]:
    return [json.loads(text) for text in _texts(number)]


def _order_id(order: Any) -> object:
    return order["order_id"] if isinstance(order, dict) else order.order_id


OURS = Line(
    "eventbus", "eventbus", "eventbus", _durable, make=ours.orders, limit=_LIMIT, known_by=_order_id
)
LITEQUEUE = Line(
    "litequeue put, pop, done",
    "litequeue",
    "litequeue",
    _litequeue(as_json=False),
    make=_texts,
    limit=_LIMIT,
    known_by=str,
)
IN_JSON = Line(
    "litequeue, to and from JSON",
    "litequeue",
    "litequeue",
    _litequeue(as_json=True),
    make=_dicts,
    limit=_LIMIT,
    known_by=_order_id,
)
LINES = (LITEQUEUE, IN_JSON)


def cycle_rows(effort: Effort) -> list[Row]:
    """
    Publish, deliver and acknowledge events one by one.
    """
    return race(CYCLE, OURS, LINES, effort, judged=LITEQUEUE.name, target=0.35)


# -- reading again -----------------------------------------------------------------------------

EVENTSOURCING = "eventsourcing, notifications mapped"


def replay_rows(effort: Effort) -> Iterator[Row]:
    """
    Read so many events again, decoded.
    """
    number = min(effort.events, _READ)
    fewer = attrs.evolve(effort, rounds=min(effort.rounds, _READINGS))
    with folder() as place, stored_in(place / "ours.db") as bus:
        bus.publish_many(ours.orders(number))
        lanes = [_replaying(place / "ours.db", number)]
        if is_installed := find_spec("eventsourcing") is not None:
            lanes.append(_mapping(place / "theirs.db", number))
        times = {name: time / number for name, time in measure(lanes, fewer).items()}
    theirs = {EVENTSOURCING: times.get(EVENTSOURCING) if is_installed else None}
    yield from judge(REPLAY, times["ours"], theirs, (EVENTSOURCING,), 0.35)


def _replaying(path: Path, number: int) -> Lane:
    codec, handler = JSONCodec(), clone(plain)
    codec.know(ours.OrderPlaced)

    def read(_: object) -> None:
        with SQLiteStore(path) as store:
            assert number == replay(store, codec, handler).delivered

    return lane("ours", read, None)


def _mapping(path: Path, number: int) -> Lane:
    """
    Have eventsourcing read and map as many events of its own, of the same fields.
    """
    domain = import_module("eventsourcing.domain")
    made = import_module("eventsourcing.application").Application(
        env={"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": str(path)}
    )

    class Placed(domain.Aggregate):  # type: ignore[misc,name-defined]
        class Created(domain.Aggregate.Created):  # type: ignore[misc,name-defined]
            order_id: str
            total: int

        def __init__(self, order_id: str, total: int) -> None:
            self.order_id, self.total = order_id, total

    # Its events go by the path of their class, which has to be found again.
    globals()["Placed"] = Placed
    Placed.__qualname__, Placed.Created.__qualname__ = "Placed", "Placed.Created"
    made.save(*(Placed(order_id=each.order_id, total=each.total) for each in ours.orders(number)))
    first = made.recorder.select_notifications(start=1, limit=1)[0]
    assert "A-0" == made.mapper.to_domain_event(first).order_id
    handler = clone(plain)

    def read(_: object) -> None:
        done = 0
        while found := made.recorder.select_notifications(start=done + 1, limit=500):
            for notification in found:
                handler(made.mapper.to_domain_event(notification))
            done += len(found)
        assert number == done

    return lane(EVENTSOURCING, read, None)


# -- many publishers ---------------------------------------------------------------------------

CROWD = 100


def crowd_rows(effort: Effort) -> Iterator[Row]:
    """
    Publish with ``synchronous=FULL``, alone and a hundred at a time.
    """
    with folder() as place:
        alone = _threads(place, 1, effort.seconds)
        threads, tasks = (each(place, CROWD, effort.seconds) for each in (_threads, _tasks))
    title = "durable publish, synchronous=FULL"
    yield Row(f"{title}, {CROWD} threads", "one thread", threads, alone, 0.1)
    yield Row(f"{title}, {CROWD} tasks", "one thread", tasks, alone, 0.1)


def _threads(place: Path, number: int, seconds: float) -> float:
    """
    Publish from so many threads; return the seconds that one event has taken.
    """
    with stored_in(place / f"{next(_files)}.db", synchronous="FULL") as bus:
        counts, go = [0] * number, threading.Barrier(number + 1)

        def publish(place: int) -> None:
            go.wait()
            end = perf_counter() + seconds
            while perf_counter() < end:
                bus.publish(ours.ORDER)
                counts[place] += 1

        threads = [threading.Thread(target=publish, args=(each,)) for each in range(number)]
        for thread in threads:
            thread.start()
        go.wait()
        began = perf_counter()
        for thread in threads:
            thread.join()
        return (perf_counter() - began) / sum(counts)


def _tasks(place: Path, number: int, seconds: float) -> float:
    """
    Publish from so many tasks of one loop; return the seconds that one event has taken.
    """

    async def publish(bus: EventBus, end: float) -> int:
        done = 0
        while perf_counter() < end:
            await bus.apublish(ours.ORDER)
            done += 1
        return done

    async def publish_all(bus: EventBus) -> float:
        began = perf_counter()
        done = await asyncio.gather(*(publish(bus, began + seconds) for _ in range(number)))
        return (perf_counter() - began) / sum(done)

    with stored_in(place / f"{next(_files)}.db", synchronous="FULL") as bus:
        return cast(float, asyncio.run(publish_all(bus)))


def versions() -> dict[str, str]:
    """
    Return the versions of those who take part here.
    """
    found = find_spec("eventsourcing") is not None
    return {
        "litequeue": LITEQUEUE.version,
        "eventsourcing": version_of("eventsourcing") if found else "not installed",
    }


def run(effort: Effort) -> Iterator[Row]:
    """
    Run everything and yield the rows as they come.
    """
    yield from publish_rows(effort)
    yield from publish_many_rows(effort)
    yield from cycle_rows(effort)
    yield from replay_rows(effort)
    yield from crowd_rows(effort)
