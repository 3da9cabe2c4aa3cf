"""
What handlers write down, and what must be so once all is over.

Law: no test stands here. A book is kept by one subscription's handlers, in steps that
no other thread can come between; it is compared with what the bus has counted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from eventbus import GiveUp, event

PATIENCE = 60.0  # seconds that a short form may take
LONG_PATIENCE = 3_600.0

# What a handler does with an event: its kind says it, in each run with the same seed.
WELL, ONCE, TWICE, NEVER, GIVES_UP, EXITS, SLOW = range(7)
# How often it is then called, if no attempt is the last before the third.
CALLS = {WELL: 1, ONCE: 2, TWICE: 3, NEVER: 3, GIVES_UP: 1, EXITS: 2, SLOW: 1}
FAILING = (NEVER, GIVES_UP)

origin: ContextVar[int] = ContextVar("origin", default=-1)


@event
class Fact:
    number: int
    publisher: int
    key: str | None = None


class WrongError(Exception):
    """
    What a handler fails with, by its plan.
    """


class Book:
    """
    What came to one subscription's handler, event by event.

    Args:
        name: The subscription's.
        seed: Decides what its handler does.
        size: How many events there are; they are numbered from 0.
        workers: How many calls there may be at once.
        is_ordered: Events of one key come one after the other, in each publisher's order.
        is_lossy: An event may be lost between two attempts.
    """

    def __init__(
        self,
        name: str,
        *,
        seed: str,
        size: int,
        workers: int = 1,
        is_ordered: bool = False,
        is_lossy: bool = False,
    ) -> None:
        weights = [976, 6, 2, 2, 2, 2, 10]
        self.name = name
        self.is_ordered = is_ordered
        self.is_lossy = is_lossy
        self.wrong: deque[str] = deque(maxlen=20)
        self.calls, self.ends = bytearray(size), bytearray(size)
        self._plan = bytes(random.Random(f"{seed} {name}").choices(range(7), weights, k=4_099))
        self._tokens = deque(range(workers))
        self._at_work: set[str] = set()
        self._unfinished: dict[str, int] = {}
        self._last: dict[tuple[str, int], int] = {}

    def kind(self, number: int) -> int:
        return self._plan[number % len(self._plan)]

    def begin(self, event: Fact) -> int:
        """
        Write down that the handler is called; return the event's kind.
        """
        number, key = event.number, event.key
        self.calls[number] += 1
        try:
            self._tokens.pop()
        except IndexError:
            self.wrong.append(f"{event}: more calls at once than workers")
        if origin.get() != event.publisher:
            self.wrong.append(f"{event}: handled in the context of publisher {origin.get()}")
        if self.ends[number]:
            self.wrong.append(f"{event}: called again after its end")
        if self.is_ordered and key is not None:
            self._begin_key(key, event)
        return self.kind(number)

    def _begin_key(self, key: str, event: Fact) -> None:
        if key in self._at_work:
            self.wrong.append(f"{event}: two calls for its key at once")
        if self._unfinished.get(key, event.number) != event.number:
            self.wrong.append(f"{event}: overtakes {self._unfinished[key]} of its key")
        if self._last.get((key, event.publisher), -1) > event.number:
            self.wrong.append(f"{event}: overtaken by {self._last[key, event.publisher]}")
        self._at_work.add(key)
        self._last[key, event.publisher] = event.number

    def end(self, event: Fact, kind: int) -> None:
        """
        Write down how the call ends; fail as planned.
        """
        number = event.number
        is_last = self.calls[number] >= CALLS[kind]
        if is_last:
            self.ends[number] = 2 if kind in FAILING else 1
        self.leave(event, is_over=is_last)
        if kind == GIVES_UP:
            raise GiveUp(f"by plan: {number}")
        if kind == NEVER or not is_last:
            raise (SystemExit if kind == EXITS else WrongError)(number)

    def leave(self, event: Fact, *, is_over: bool = False) -> None:
        """
        Write down that a call is over; the event itself may not be.
        """
        key = event.key
        if self.is_ordered and key is not None:
            if is_over:
                self._unfinished.pop(key, None)
            elif not self.is_lossy:
                self._unfinished[key] = event.number
            self._at_work.discard(key)
        self._tokens.append(0)

    @property
    def handled(self) -> int:
        """
        How many events its handler came to the end of.
        """
        return self.ends.count(1)

    @property
    def failed(self) -> int:
        """
        How many events its handler failed for good on.
        """
        return self.ends.count(2)

    def misfits(self) -> list[str]:
        """
        Name the events that were called oftener or less often than their kind asks for.
        """
        found = list(self.wrong)
        for number, (calls, end) in enumerate(zip(self.calls, self.ends, strict=True)):
            kind = self.kind(number)
            expected = (0, 0) if calls == 0 else (CALLS[kind], 2 if kind in FAILING else 1)
            is_lost = self.is_lossy and end == 0 and calls < CALLS[kind]
            if expected != (calls, end) and not is_lost:
                found.append(f"{number} of kind {kind}: {calls} calls, end {end}")
        return found[:20]


_never = threading.Event()


def handler_of(book: Book, *, is_async: bool, slow: float = 0.0005) -> Callable[[Fact], Any]:
    """
    Return a handler that keeps *book*, and takes *slow* seconds over events of that kind.
    """

    def handle(event: Fact) -> None:
        kind = book.begin(event)
        if kind == SLOW:
            _never.wait(slow)
        book.end(event, kind)

    async def ahandle(event: Fact) -> None:
        kind = book.begin(event)
        try:
            if kind == SLOW:
                await asyncio.sleep(slow)
        except BaseException:
            book.leave(event)
            raise
        book.end(event, kind)

    return ahandle if is_async else handle


def new_seed() -> int:
    """
    Return a seed, the one in the environment if it names one.
    """
    return int(os.environ.get("STRESS_SEED") or random.randrange(2**32))


@contextmanager
def quiet() -> Iterator[None]:
    """
    Log nothing: failures are part of the plan, and come by the thousand.
    """
    logger = logging.getLogger("eventbus")
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False


def at_once(*acts: Callable[[], None], patience: float = PATIENCE) -> None:
    """
    Let each act in a thread of its own, at the same time; raise what the first one raised.
    """
    barrier, errors = threading.Barrier(len(acts), timeout=patience), deque[BaseException]()

    def run(act: Callable[[], None]) -> None:
        try:
            barrier.wait()
            act()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience)
    assert [] == [each for each in threads if each.is_alive()], "a deadlock"
    if errors:
        raise errors[0]
