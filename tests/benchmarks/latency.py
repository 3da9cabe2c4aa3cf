"""
How long an event waits under load: from its publish to its handler.

Law: each contender is given events one by one at half the rate it showed it can keep up,
evenly spaced as far as the clock allows; what is taken is the time between the call that
publishes and the first line of the handler.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from math import ceil
from time import perf_counter
from typing import Any, cast

import attrs

from .peers import Handler
from .queued import AOURS, ASYNCIO, LINES, OURS, SIMPLE, THREADS, Line, measure_lines
from .rows import Row, judge
from .timing import Effort

PERCENTILES = {"p50": 0.5, "p99": 0.99}
# No thread can space events as closely as half the rate of a SimpleQueue.
RIVALS = {title: [each for each in lines if each is not SIMPLE] for title, lines in LINES.items()}
# Where other threads have to run, a wait is a sleep, and its end is as late as the system
# makes it: what has become due meanwhile is published at once. In a loop, a wait lets the
# loop's other tasks run, and there is one before each event, as a publisher has that awaits
# something.
_RUN = """\
def run(call, finish, events, interval, began):
    due = perf_counter()
    for event in events:
        due += interval
        {pause}
        while (left := due - perf_counter()) > 0:
            {wait}
        began(perf_counter())
        {statement}
    {finish}finish()
"""


def _compile(line: Line) -> Callable[..., Any]:
    names: dict[str, Any] = {"perf_counter": perf_counter}
    if line.is_async:
        names["sleep"], wait = asyncio.sleep, "await sleep(0)"
        source = f"async {_RUN}"
        words = {"pause": wait, "wait": wait, "finish": "await "}
    else:
        names["sleep"], source = time.sleep, _RUN
        words = {"pause": "", "wait": "sleep(left)", "finish": ""}
    exec(source.format(statement=line.statement, **words), names)
    return cast(Callable[..., Any], names["run"])


def waits(line: Line, rate: float, seconds: float) -> list[float]:
    """
    Publish at *rate* events a second for so many *seconds*.

    Returns:
        The seconds that each event took to its handler, in increasing order.
    """
    events = line.make(max(10, round(rate * seconds)))
    began: list[float] = []
    handled: list[float] = []
    arrived = handled.append

    def handle(event: object) -> None:
        arrived(perf_counter())

    async def ahandle(event: object) -> None:
        arrived(perf_counter())

    run = _compile(line)
    gc.collect()
    if line.is_async:
        asyncio.run(_awaits(line, ahandle, run, events, 1 / rate, began.append))
    else:
        with line.open(handle) as (call, finish):
            run(call, finish, events, 1 / rate, began.append)
    # One worker handles in order, so that the n-th to arrive is the n-th published.
    return sorted(end - start for start, end in zip(began, handled, strict=True))


async def _awaits(
    line: Line,
    handler: Handler,
    run: Callable[..., Coroutine[Any, Any, None]],
    events: Sequence[object],
    *rest: object,
) -> None:
    async with line.open(handler) as (call, finish):
        await run(call, finish, events, *rest)


def percentile(ordered: Sequence[float], share: float) -> float:
    """
    Return what so great a share of *ordered* values does not exceed.
    """
    return ordered[ceil(share * len(ordered)) - 1]


def measure_waits(lines: Sequence[Line], effort: Effort) -> dict[str, dict[str, float]]:
    """
    Measure *lines* in turns, each at half of its own rate.

    Returns:
        By percentile and name, the seconds of the heat in which they were least.
    """
    few = attrs.evolve(effort, heats=ceil(effort.heats / 3))
    each_takes = measure_lines(lines, few)
    least = {share: {line.name: float("inf") for line in lines} for share in PERCENTILES}
    turns = list(lines)
    for _ in range(few.heats):
        for line in turns:
            found = _held(line, each_takes, effort.seconds)
            for name, share in PERCENTILES.items():
                best = least[name]
                best[line.name] = min(best[line.name], percentile(found, share))
        turns.reverse()
    return least


def _held(line: Line, each_takes: dict[str, float], seconds: float) -> list[float]:
    """
    Measure *line* at half of its rate; at half of that, if it refuses events then.

    bubus refuses more than a hundred at once, which it comes to while it keeps its history.
    """
    for _ in range(8):
        try:
            return waits(line, 0.5 / each_takes[line.name], seconds)
        except RuntimeError:
            each_takes[line.name] *= 2
    raise RuntimeError(f"{line.name} holds no rate at all")


def run(effort: Effort) -> Iterator[Row]:
    """
    Measure the queues of both colours.
    """
    for title, mine in ((ASYNCIO, AOURS), (THREADS, OURS)):
        rivals = RIVALS[title]
        least = measure_waits([mine, *(each for each in rivals if each.is_installed)], effort)
        for share, times in least.items():
            theirs = {line.name: times.get(line.name) for line in rivals}
            ordered = dict(sorted(theirs.items(), key=lambda item: item[1] or float("inf")))
            name = f"{title}: from publish to handler, {share}"
            yield from judge(name, times[mine.name], ordered, (), None)
