"""
What a long history costs: the same work on files that hold ever more events.

Law: each row compares a file with many events with one that has the fewest; a ratio of 1 says
that it makes no difference. Times are taken in turns on all files, memory in processes of their
own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from eventbus import Durable, EventBus
from eventbus.sqlite import SQLiteStore

from . import ours
from .durable import folder, stored_in
from .durable_rows import MANY
from .peers import Handler, plain
from .queued import Line, Opened, measure_lines
from .rows import Row
from .timing import Effort, lane, measure

_ROOT = Path(__file__).parents[2]
_DELIVERED = 500  # events of one heat
_ROUNDS = 60


def filled(path: Path, number: int) -> Path:
    """
    Make a file that holds so many events.
    """
    with stored_in(path) as bus:
        for begin in range(0, number, MANY):
            bus.publish_many(ours.orders(min(MANY, number - begin)))
        assert number == bus.publish(ours.ORDER).envelope.offset - 1
    return path


def _named(number: int) -> str:
    return f"{number:,} events stored"


def times_of(files: dict[int, Path], effort: Effort) -> Iterator[tuple[str, dict[str, float]]]:
    """
    Yield what is done with each file, and how long it takes.
    """
    fewer = attrs.evolve(effort, rounds=min(effort.rounds, _ROUNDS))
    lanes = [lane(_named(number), partial(_open, path), None) for number, path in files.items()]
    yield "open, catch up and close", measure(lanes, fewer)
    with ExitStack() as stack:
        lanes = [
            lane(_named(number), stack.enter_context(stored_in(path)).publish, ours.ORDER)
            for number, path in files.items()
        ]
        yield "durable publish", measure(lanes, fewer)
    lines = [
        Line(
            _named(number),
            "eventbus",
            "eventbus",
            _delivering(path),
            make=ours.orders,
            limit=_DELIVERED,
            known_by=_order_id,
        )
        for number, path in files.items()
    ]
    yield "publish, deliver, acknowledge", measure_lines(lines, effort)


def _open(path: Path, _: object) -> None:
    with EventBus(store=SQLiteStore(path)) as bus:
        bus.subscribe(ours.OrderPlaced, plain, name="opened", delivery=Durable())
        assert bus.drain().ok


def _delivering(path: Path) -> Callable[[Handler], Any]:
    @contextmanager
    def opened(handler: Handler) -> Iterator[Opened]:
        with stored_in(path) as bus:
            bus.subscribe(ours.OrderPlaced, handler, name="handler", delivery=Durable())
            bus.start()
            bus.drain()
            yield bus.publish, bus.drain

    return opened


def _order_id(order: Any) -> object:
    return order.order_id


# -- memory ------------------------------------------------------------------------------------


def drained(path: Path) -> int:
    """
    Have a process of its own handle all that is stored; return by how many bytes it has grown.
    """
    child = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.draining", str(path)],
        cwd=_ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(json.loads(child.stdout)["grown"])


def run(effort: Effort) -> Iterator[Row]:
    """
    Compare files of all sizes.
    """
    with folder() as place:
        files = {number: filled(place / f"{number}.db", number) for number in effort.stored}
        grown = {_named(number): float(drained(path)) for number, path in files.items()}
        for title, times in times_of(files, effort):
            yield from _against_least(title, times)
        title = "memory taken by draining them all"
        yield from (attrs.evolve(row, unit="B") for row in _against_least(title, grown))


def _against_least(title: str, found: dict[str, float]) -> list[Row]:
    (least, theirs), *others = found.items()
    return [Row(f"{title}, {name}", least, mine, theirs) for name, mine in others]
