"""
What a queue costs: events from the first publish until the last one is handled.

Law: each contender hands the same number of events to the same handler, one at a time
and in order where it can, through a queue with one worker; the time ends when its own
way of waiting says that all were handled. A contender proves that before it is timed.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any, cast

import attrs

from eventbus import Queued

from . import ours
from .peers import Handler, aplain, plain, version_of
from .rows import Row, judge
from .timing import Effort, clone

# What is open: the publishing call, and what returns when everything published is handled.
Opened = tuple[Callable[..., Any], Callable[[], Any]]
THREADS, ASYNCIO = "queued, threads", "queued, asyncio"
_ROOMY = 1_000_000
_TIGHT = 1_000


def _orders(number: int) -> Sequence[object]:
    return (ours.ORDER,) * number


@attrs.frozen
class Line:
    """
    A contender with a queue in it.

    *open* is a context manager, async if *is_async*: given the handler, it makes the queue
    and starts its worker, and ends both. *make* makes so many events, outside the time taken.
    *limit* is for one that takes long: the most events of one run. *known_by* tells events apart
    where the handler does not get the very object that was published.
    """

    name: str
    module: str
    distribution: str
    open: Callable[[Handler], Any]
    statement: str = "call(event)"
    is_async: bool = False
    make: Callable[[int], Sequence[object]] = _orders
    limit: int = 1_000_000
    known_by: Callable[[Any], object] = id

    @property
    def is_installed(self) -> bool:
        """
        Tell whether it can be imported here.
        """
        return find_spec(self.module) is not None

    @property
    def version(self) -> str:
        """
        Return the installed version, or what to say instead.
        """
        return version_of(self.distribution) if self.is_installed else "not installed"

    def handler(self) -> Handler:
        """
        Make a handler that does nothing, with a code object of its own.
        """
        return clone(aplain if self.is_async else plain)


# -- the contenders: threads -------------------------------------------------------------------


def _bus(capacity: int = _ROOMY) -> Callable[[Handler], Any]:
    @contextmanager
    def opened(handler: Handler) -> Iterator[Opened]:
        with ours.bus_of([handler], delivery=Queued(capacity=capacity)) as bus:
            yield bus.publish, bus.drain

    return opened


def _queue(capacity: int = 0) -> Callable[[Handler], Any]:
    @contextmanager
    def opened(handler: Handler) -> Iterator[Opened]:
        line: queue.Queue[object] = queue.Queue(capacity)

        def work() -> None:
            while (event := line.get()) is not None:
                handler(event)
                line.task_done()

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield line.put, line.join
        finally:
            line.put(None)
            thread.join()

    return opened


@contextmanager
def _simple_queue(handler: Handler) -> Iterator[Opened]:
    line: queue.SimpleQueue[object] = queue.SimpleQueue()
    handled = threading.Semaphore(0)

    def work() -> None:
        while (event := line.get()) is not None:
            if event is handled:
                handled.release()
            else:
                handler(event)

    def finish() -> None:
        line.put(handled)
        handled.acquire()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield line.put, finish
    finally:
        line.put(None)
        thread.join()


@contextmanager
def _executor(handler: Handler) -> Iterator[Opened]:
    with ThreadPoolExecutor(1) as executor:
        submit = executor.submit

        def call(event: object) -> object:
            return submit(handler, event)

        yield call, lambda: submit(int).result()


# -- the contenders: asyncio -------------------------------------------------------------------


def _abus(capacity: int = _ROOMY) -> Callable[[Handler], Any]:
    @asynccontextmanager
    async def opened(handler: Handler) -> AsyncIterator[Opened]:
        async with ours.bus_of([handler], delivery=Queued(capacity=capacity)) as bus:
            yield bus.apublish, bus.adrain

    return opened


def _aqueue(capacity: int = 0) -> Callable[[Handler], Any]:
    @asynccontextmanager
    async def opened(handler: Handler) -> AsyncIterator[Opened]:
        line: asyncio.Queue[object] = asyncio.Queue(capacity)

        async def work() -> None:
            while True:
                event = await line.get()
                await handler(event)
                line.task_done()

        worker = asyncio.create_task(work())
        try:
            yield line.put, line.join
        finally:
            worker.cancel()
            await asyncio.wait([worker])

    return opened


@asynccontextmanager
async def _pyee(handler: Handler) -> AsyncIterator[Opened]:
    emitter = import_module("pyee.asyncio").AsyncIOEventEmitter()
    emitter.add_listener("happened", handler)
    yield emitter.emit, emitter.wait_for_complete


@asynccontextmanager
async def _bubus(handler: Handler) -> AsyncIterator[Opened]:
    async def handle(event: object) -> None:  # it asks a handler for its name
        await handler(event)

    bus = import_module("bubus").EventBus()
    bus.on("Happened", handle)
    try:
        yield bus.dispatch, bus.wait_until_idle
    finally:
        await bus.stop(clear=True)


def _bubus_events(number: int) -> Sequence[object]:
    model: Any = type("Happened", (import_module("bubus").BaseEvent,), {})
    return [model() for _ in range(number)]


OURS = Line("eventbus", "eventbus", "eventbus", _bus())
AOURS = Line("eventbus", "eventbus", "eventbus", _abus(), "await call(event)", is_async=True)
QUEUE = Line("queue.Queue, one worker", "queue", "", _queue())
AQUEUE = Line(
    "asyncio.Queue, one worker", "asyncio", "", _aqueue(), "await call(event)", is_async=True
)
# Each event takes the longer the more of them are pending: few at once show it at its best.
BUBUS = Line(
    "bubus dispatch", "bubus", "bubus", _bubus, is_async=True, make=_bubus_events, limit=10
)
PYEE = Line("pyee emit, asyncio", "pyee", "pyee", _pyee, "call('happened', event)", is_async=True)
SIMPLE = Line("queue.SimpleQueue, one worker", "queue", "", _simple_queue)
LINES: dict[str, tuple[Line, ...]] = {
    THREADS: (
        QUEUE,
        SIMPLE,
        Line("ThreadPoolExecutor(1).submit", "concurrent.futures", "", _executor),
    ),
    ASYNCIO: (AQUEUE, PYEE, BUBUS),
}

# -- the time ----------------------------------------------------------------------------------

_RUN = """\
def run(call, finish, events):
    began = perf_counter()
    for event in events:
        {statement}
    {wait}finish()
    return perf_counter() - began
"""


def _compile(line: Line) -> Callable[..., Any]:
    prefix, wait = ("async ", "await ") if line.is_async else ("", "")
    names: dict[str, Any] = {"perf_counter": perf_counter}
    exec(prefix + _RUN.format(statement=line.statement, wait=wait), names)
    return cast(Callable[..., Any], names["run"])


def run_once(line: Line, handler: Handler, events: Sequence[object]) -> float:
    """
    Take *events* through a new queue to *handler*; in seconds, until all are handled.
    """
    run = _compile(line)
    gc.collect()
    if line.is_async:
        return asyncio.run(_arun_once(line, handler, events, run))
    with line.open(handler) as (call, finish):
        return cast(float, run(call, finish, events))


async def _arun_once(
    line: Line,
    handler: Handler,
    events: Sequence[object],
    run: Callable[..., Coroutine[Any, Any, float]],
) -> float:
    async with line.open(handler) as (call, finish):
        return await run(call, finish, events)


def prove_line(line: Line) -> None:
    """
    Assert that all events have been handled, each once and in order, when the time ends.
    """
    handled: list[object] = []

    async def arecord(event: object) -> None:
        handled.append(event)

    events = line.make(7)
    run_once(line, arecord if line.is_async else handled.append, events)
    known_by = line.known_by
    assert [*map(known_by, events)] == [*map(known_by, handled)], f"{line.name} handled {handled}"


def measure_lines(lines: Sequence[Line], effort: Effort) -> dict[str, float]:
    """
    Time *lines* in turns; by name, the least time of one event in seconds.
    """
    best = {line.name: float("inf") for line in lines}
    turns = list(lines)
    for line in turns:
        prove_line(line)
    for _ in range(effort.heats):
        for line in turns:
            events = line.make(min(effort.events, line.limit))
            taken = run_once(line, line.handler(), events)
            best[line.name] = min(best[line.name], taken / len(events))
        turns.reverse()
    return best


def race(
    title: str,
    mine: Line,
    rivals: Sequence[Line],
    effort: Effort,
    *,
    judged: str = "",
    target: float | None = None,
) -> list[Row]:
    """
    Time our line against those of its rivals that are installed.
    """
    present = [line for line in rivals if line.is_installed]
    times = measure_lines([mine, *present], effort)
    theirs = {line.name: times.get(line.name) for line in rivals}
    ordered = dict(sorted(theirs.items(), key=lambda item: item[1] or float("inf")))
    return judge(title, times[mine.name], ordered, (judged,), target)


def run(effort: Effort) -> Iterator[Row]:
    """
    Time the queues of both colours: with room for all, and full most of the time.
    """
    yield from race(ASYNCIO, AOURS, LINES[ASYNCIO], effort, judged=AQUEUE.name, target=0.6)
    yield from race(THREADS, OURS, LINES[THREADS], effort, judged=QUEUE.name, target=0.4)
    held_up = f"the publisher held up by a full queue of {_TIGHT:,}"
    mine = attrs.evolve(AOURS, open=_abus(_TIGHT)), attrs.evolve(OURS, open=_bus(_TIGHT))
    theirs = attrs.evolve(AQUEUE, open=_aqueue(_TIGHT)), attrs.evolve(QUEUE, open=_queue(_TIGHT))
    for title, our, their in zip((ASYNCIO, THREADS), mine, theirs, strict=True):
        yield from race(f"{title}, {held_up}", our, (their,), effort)
