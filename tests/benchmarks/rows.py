"""
The races: what is measured against what, and which ratio is the target.

Law: one entry per line of the target table, in its order. A contender proves that it delivers
before it is timed; one that is not installed keeps its row and says so.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import attrs

import eventbus

from . import ours
from .peers import ABARE, ASYNC, BARE, SYNC, Contender, Handler, plain, recorders
from .timing import (
    Call,
    Effort,
    Lane,
    Prepared,
    another_thread,
    clone,
    lane,
    measure,
    measure_imports,
)


@attrs.frozen
class Row:
    """
    One line of the table.

    *ours* and *theirs* are in seconds unless *unit* says otherwise, ``None`` when there is nothing
    to measure. *target* is the greatest ratio hoped for, ``None`` where none was set.
    """

    race: str
    rival: str
    ours: float | None
    theirs: float | None
    target: float | None = None
    unit: Literal["s", "B"] = "s"

    @property
    def ratio(self) -> float | None:
        """
        Return our time as a multiple of theirs.
        """
        return None if self.ours is None or self.theirs is None else self.ours / self.theirs

    @property
    def verdict(self) -> str:
        """
        Return ``met`` or ``missed``, ``not installed``, or nothing where no target was set.
        """
        if self.ratio is None:
            return "not installed"
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "missed"


@attrs.frozen
class Rival:
    """
    Whom we race: a way to make its lane, which is called only if it is installed.
    """

    name: str
    make: Callable[[], Lane]
    is_installed: bool = True


@attrs.frozen
class Race:
    """
    Our lane against its rivals'; the target is set for the fastest of the *judged* ones.

    *beside* surrounds the race with what else goes on in the process.
    """

    title: str
    ours: Callable[[], Lane]
    rivals: tuple[Rival, ...]
    judged: tuple[str, ...] = ()
    target: float | None = None
    beside: Callable[[], AbstractContextManager[None]] = nullcontext

    def run(self, effort: Effort) -> list[Row]:
        """
        Time all lanes of the race, and put the rivals in order of speed, the absent ones last.
        """
        mine = self.ours()
        present = [rival for rival in self.rivals if rival.is_installed]
        with self.beside():
            times = measure([mine, *(rival.make() for rival in present)], effort)
        return judge(self.title, times.pop(mine.name), self.order(times), self.judged, self.target)

    def order(self, times: dict[str, float]) -> dict[str, float | None]:
        """
        Return every rival's time by name, ``None`` for the absent ones.
        """
        found = {rival.name: times.get(rival.name) for rival in self.rivals}
        return dict(sorted(found.items(), key=lambda item: item[1] or float("inf")))


def judge(
    title: str,
    mine: float,
    times: dict[str, float | None],
    judged: Sequence[str],
    target: float | None,
) -> list[Row]:
    """
    Make the rows of a race: the target stands in the row of the fastest judged rival.
    """
    held = {name: time for name in judged if (time := times.get(name)) is not None}
    fastest = min(held, key=lambda name: held[name], default=None)
    return [
        Row(title, name, mine, theirs, target if name == fastest else None)
        for name, theirs in times.items()
    ]


def prove(contender: Contender, count: int, event: object) -> None:
    """
    Assert that one publish calls each of *count* handlers exactly once, with the event itself.
    """
    calls: list[tuple[int, object]] = []
    call = contender.wire(recorders(contender.handler, count, calls))
    # The very statement that will be timed.
    publish: Any = eval(f"lambda call, event: {contender.statement}")
    result = publish(call, event)
    if contender.is_async:
        asyncio.run(_wait_for(result))
    called = sorted(number for number, _ in calls)
    assert list(range(count)) == called, f"{contender.name} called the handlers {called}"
    assert all(seen is event for _, seen in calls), f"{contender.name} handed on something else"


async def _wait_for(result: Any) -> None:
    await result


def lane_of(contender: Contender, count: int) -> Lane:
    """
    Wire a contender to *count* handlers that do nothing, once it has proved that it delivers.
    """
    prove(contender, count, ours.ORDER)
    call = contender.wire(contender.handlers(count))
    return lane(
        contender.name,
        call,
        ours.ORDER,
        statement=contender.statement,
        is_async=contender.is_async,
    )


def _against(contenders: Sequence[Contender], count: int) -> tuple[Rival, ...]:
    return tuple(
        Rival(each.name, partial(lane_of, each, count), each.is_installed) for each in contenders
    )


def _publish(count: int, judged: tuple[str, ...] = (), target: float | None = None) -> Race:
    title = f"publish, {count} plain handler{'s' * (count > 1)}"
    return Race(title, lambda: lane_of(ours.PUBLISH, count), _against(SYNC, count), judged, target)


def _among_threads(race: Race) -> Race:
    title = f"{race.title}, another thread alive"
    return attrs.evolve(race, title=title, beside=another_thread)


def _apublish(count: int, judged: tuple[str, ...] = (), target: float | None = None) -> Race:
    title = f"apublish, {count} plain async handler{'s' * (count > 1)}"
    return Race(
        title, lambda: lane_of(ours.APUBLISH, count), _against(ASYNC, count), judged, target
    )


def _lookup() -> Lane:
    table: dict[type, object] = {ours.OrderPlaced: ()}

    def lookup(event: object) -> object:
        return table.get(type(event))

    return lane("one dict lookup", lookup, ours.ORDER)


def _decorated(handlers: Sequence[Handler]) -> Call:
    decorate = import_module("stamina").retry(on=ConnectionError, attempts=3, timeout=None)
    return decorate(handlers[0])  # type: ignore[no-any-return]


STAMINA = Contender("stamina.retry", "stamina", "stamina", _decorated, how="timeout=None")


def _setdefault(name: str, *, calling: bool = False) -> Lane:
    seen: dict[str, object] = {}
    lock = threading.Lock()
    handler = clone(plain)

    def claim(event: Any) -> object:
        with lock:
            return seen.setdefault(event.order_id, event)

    def claim_and_call(event: Any) -> None:
        with lock:
            first = seen.setdefault(event.order_id, event)
        if first is event:
            handler(event)

    def prepare(number: int) -> Prepared:
        seen.clear()
        return claim_and_call if calling else claim, ours.orders(number)

    return Lane(name, prepare)


def _crowded(name: str, types: int, *, in_turn: bool = False) -> Lane:
    bus, events = ours.populated(types, 10)
    for event in events:
        assert 10 == bus.publish(event).delivered
    if not in_turn:
        return lane(name, bus.publish, events[-1])
    return Lane(name, lambda number: (bus.publish, events * -(-number // len(events))))


_CLAIM = "setdefault under a lock"
_CLAIM_AND_CALL = "setdefault under a lock, then the call"


def races() -> Iterator[Race]:
    """
    Yield every race in the order of the table.
    """
    yield Race(
        "publish, no handler",
        lambda: lane_of(ours.PUBLISH, 0),
        (Rival("one dict lookup", _lookup), *_against(SYNC[1:], 0)),
        ("one dict lookup",),
        2.0,
    )
    yield _publish(1, ("psygnal emit_fast", "pyee emit", "blinker send"), 0.75)
    yield _publish(10, (BARE,), 1.35)
    yield _publish(100)
    yield from (_among_threads(_publish(count)) for count in (1, 10))
    yield from _nested()
    yield _apublish(1, ("aiosignal send", "blinker send_async"), 0.8)
    yield _apublish(10, (ABARE,), 1.35)
    yield _apublish(100)
    yield Race(
        "publish, 1 handler with retry=, success path",
        lambda: ours.retried("retry="),
        (Rival(STAMINA.name, partial(lane_of, STAMINA, 1), STAMINA.is_installed),),
        (STAMINA.name,),
        0.05,
    )
    yield Race(
        "publish, 1 handler with idempotency_key=, in memory",
        lambda: ours.deduplicated("idempotency_key="),
        (
            Rival(_CLAIM, partial(_setdefault, _CLAIM)),
            Rival(_CLAIM_AND_CALL, partial(_setdefault, _CLAIM_AND_CALL, calling=True)),
        ),
        (_CLAIM,),
        6.0,
    )
    yield from _population()


def _nested() -> Iterator[Race]:
    hows: dict[str, Handler] = {
        "an Envelope parameter": ours.read_parameter,
        "current_envelope()": ours.read_current,
    }
    for how, handler in hows.items():
        yield Race(
            f"nested publish, causation read from {how}",
            partial(ours.nested, "read", handler),
            (Rival("not read", lambda: ours.nested("not read", plain)),),
            ("not read",),
            2.0,
        )


def _population() -> Iterator[Race]:
    ten = Rival("10 subscriptions", lambda: _crowded("10 subscriptions", 1))
    name = "10,000 subscriptions on 1,000 types"
    yield Race(name, lambda: _crowded(name, 1000), (ten,), (ten.name,), 1.1)
    in_turn = f"{name}, all types in turn"
    yield Race(in_turn, lambda: _crowded(in_turn, 1000, in_turn=True), (ten,))


def import_rows(effort: Effort) -> list[Row]:
    """
    Time ``import eventbus`` against ``import attrs``.
    """
    assert eventbus.__file__ is not None
    root = Path(eventbus.__file__).parents[1]
    times = measure_imports(["eventbus", "attrs"], path=str(root), effort=effort)
    return [Row("import eventbus", "import attrs", times["eventbus"], times["attrs"], 1.5)]


def run(effort: Effort) -> Iterator[Row]:
    """
    Run everything and yield the rows as they come.
    """
    for race in races():
        yield from race.run(effort)
    yield from import_rows(effort)
