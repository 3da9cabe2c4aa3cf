"""
How a time is taken: interleaved rounds of a tight loop, the minimum of many.

Law: this file knows clocks and loops; it knows no bus, no peer and no target.

Method, for every number the benchmarks print:

- All lanes of one race run in one process. A round times each lane once, one after the other, in
  an order that turns around every round; so a slow minute of the machine falls on all of them.
- One time is that of a tight loop of N calls, with N chosen so that the loop takes about
  `Effort.span` seconds: short enough to fit often between two interruptions.
- A lane's time is the minimum over all rounds, divided by N, less the cost of the empty loop, which
  is itself a lane of the same rounds. Noise only ever adds, so the minimum is the steadiest.
- Ratios are ratios of such minima from the same rounds. Absolute times are shown for scale only.
- The garbage collector stays on and has just collected when a race begins.
- Each lane has a loop of its own code, and every handler is a function of its own code: CPython
  from 3.11 on specialises each call site to what it met there, and a shared site would make a lane
  pay for its neighbours.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from types import FunctionType
from typing import Any, cast

import attrs

Call = Callable[..., Any]
Prepared = tuple[Call, Sequence[object]]


@attrs.frozen
class Effort:
    """
    How long to look for the minimum.

    *span* is the length of one timed loop in seconds, *rounds* how often each lane runs it, and
    *imports* how many fresh interpreters import a module. Queues are taken through *heats*: of so
    many *events* where their throughput is timed, and of so many *seconds* where their latency is.
    *stored* is how many events a file holds already: each number is compared with the first.
    """

    span: float = 0.001
    rounds: int = 500
    imports: int = 25
    heats: int = 15
    events: int = 20_000
    seconds: float = 0.5
    stored: tuple[int, ...] = (10_000, 100_000)


FULL = Effort()
QUICK = Effort(
    span=0.0002, rounds=7, imports=2, heats=2, events=1_000, seconds=0.05, stored=(100, 1_000)
)


@attrs.frozen
class Lane:
    """
    One contender, wired up.

    *prepare* takes a number of calls and returns what to call and that many events, or more, to
    call it with. It runs before every timed loop and outside the time taken, so a lane that must
    not see an event twice makes new ones there. *statement* is the body of the loop; it may use
    ``call`` and ``event``, and is awaited if *is_async*.
    """

    name: str
    prepare: Callable[[int], Prepared]
    statement: str = "call(event)"
    is_async: bool = False


def lane(name: str, call: Call, event: object, **options: Any) -> Lane:
    """
    Make the usual lane: the same call with the same event, over and over.
    """
    return Lane(name, lambda number: (call, (event,) * number), **options)


def clone(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    Copy a function with a code object of its own, as if it had been written a second time.
    """
    original = cast(FunctionType, function)
    copy = FunctionType(
        original.__code__.replace(),
        original.__globals__,
        original.__name__,
        original.__defaults__,
    )
    copy.__annotations__ = original.__annotations__
    return copy


_LOOP = """\
def loop(call, events):
    began = perf_counter()
    for event in events:
        {statement}
    return perf_counter() - began
"""


def _compile(statement: str, *, is_async: bool = False) -> Callable[..., Any]:
    """
    Write the timed loop around *statement*, as `timeit` does: no call between loop and contender.
    """
    source = _LOOP.format(statement=f"await {statement}" if is_async else statement)
    names: dict[str, Any] = {"perf_counter": perf_counter}
    exec(f"async {source}" if is_async else source, names)
    return cast(Callable[..., Any], names["loop"])


class _Stopwatch:
    """
    One lane with its own loop, its number of calls and the best time so far.
    """

    def __init__(self, lane: Lane, runner: asyncio.Runner) -> None:
        self.lane = lane
        self.best = float("inf")
        self.number = 1
        self._runner = runner
        self._loop = _compile(lane.statement, is_async=lane.is_async)

    def run(self) -> float:
        """
        Time one loop and keep it if it is the best; in seconds per call.
        """
        call, events = self.lane.prepare(self.number)
        ran = self._loop(call, events)
        taken: float = self._runner.run(ran) if self.lane.is_async else ran
        self.best = min(self.best, taken / len(events))
        return taken

    def calibrate(self, span: float) -> None:
        """
        Choose a number of calls that takes about *span* seconds, warming the lane up on the way.

        The quickest of a few runs decides: an interruption would leave too small a number, and
        each loop would be over before the processor had warmed to it.
        """
        while (taken := min(self.run() for _ in range(5))) < span / 2 and self.number < 1_000_000:
            self.number *= max(2, min(10, round(span / max(taken, 1e-7))))
        self.best = float("inf")


def measure(lanes: Sequence[Lane], effort: Effort = FULL) -> dict[str, float]:
    """
    Time *lanes* against each other.

    Returns:
        By the lane's name, the least time of one call in seconds.
    """
    with asyncio.Runner() as runner:
        watches = [_Stopwatch(each, runner) for each in lanes]
        for watch in watches:
            watch.calibrate(effort.span)
        idle = _compile("pass")
        gc.collect()
        number = max(watch.number for watch in watches)
        empty = float("inf")
        for _ in range(effort.rounds):
            empty = min(empty, idle(None, (None,) * number) / number)
            for watch in watches:
                watch.run()
            watches.reverse()
    best = {watch.lane.name: max(watch.best - empty, 1e-12) for watch in watches}
    return {each.name: best[each.name] for each in lanes}


@contextmanager
def another_thread() -> Iterator[None]:
    """
    Keep a second thread alive that waits for nothing but the end.
    """
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


_IMPORT = """\
import sys, time
sys.path.insert(0, {path!r})
began = time.perf_counter()
import {module}
print(time.perf_counter() - began)
"""


def measure_imports(
    modules: Sequence[str], *, path: str, effort: Effort = FULL
) -> dict[str, float]:
    """
    Time the first ``import`` of each module, each time in a fresh interpreter.

    The interpreter's own start is not counted, and the bytecode is compiled beforehand. *path* is
    searched first.

    Returns:
        By module, the least time in seconds.
    """
    best = dict.fromkeys(modules, float("inf"))
    for turn in range(effort.imports + 1):
        for module in modules:
            source = _IMPORT.format(path=path, module=module)
            child = subprocess.run(
                [sys.executable, "-c", source],
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            if turn:  # the first turn writes the bytecode
                best[module] = min(best[module], float(child.stdout))
    return best
