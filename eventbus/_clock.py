"""
Where time, sleep and ids come from.

Law: no other room reads a clock, sleeps or makes an id. Two clocks stand here:
the machine's, and a virtual one that stands still until it is told otherwise.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import threading
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from time import monotonic as _monotonic
from time import sleep as _sleep
from time import time as _time
from time import time_ns as _time_ns
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    import asyncio

__all__ = ["Clock", "SystemClock", "VirtualClock", "uuid7"]

# Nanoseconds between two ids of one clock: the least that shows in a UUIDv7's 12 bits.
_STEP = 250

_random = random.Random()
# A forked child would otherwise go on with its parent's numbers and make its parent's ids.
if hasattr(os, "register_at_fork"):  # pragma: no branch - missing on Windows only
    os.register_at_fork(after_in_child=_random.seed)


def uuid7(unix_ns: int, randomness: int) -> str:
    """
    Write a UUIDv7 from a time and 62 random bits.

    Args:
        unix_ns: Nanoseconds since 1970-01-01 UTC. Its milliseconds fill the first
            48 bits, the fraction of the millisecond the next 12: ids sort by time,
            down to about 250 nanoseconds.
        randomness: The last 62 bits.

    Source:
        RFC 9562, section 5.7 and section 6.2, method 3.
    """
    milliseconds, rest = divmod(unix_ns, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    low = (0b10 << 62) | (randomness & ((1 << 62) - 1))
    digits = f"{milliseconds & ((1 << 48) - 1):012x}7{fraction:03x}{low:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


class Clock(Protocol):
    """
    What the bus asks of a clock.

    .. versionadded:: 0.1
    """

    def time(self) -> float:
        """
        Return the seconds since 1970-01-01 UTC.
        """
        ...

    def monotonic(self) -> float:
        """
        Return seconds that never go back, from an arbitrary start.
        """
        ...

    def sleep(self, seconds: float, /) -> None:
        """
        Block the calling thread for *seconds*.
        """
        ...

    async def asleep(self, seconds: float, /) -> None:
        """
        Suspend the calling task for *seconds*.
        """
        ...

    def timeout(self, seconds: float, /) -> AbstractAsyncContextManager[object]:
        """
        Bound the body of an ``async with``; raise `TimeoutError` past *seconds*.
        """
        ...

    def new_id(self) -> str:
        """
        Return a new UUIDv7 in canonical text, later than those before.
        """
        ...


class SystemClock:
    """
    The machine's clock.
    """

    def __init__(self) -> None:
        self._last = 0

    # Bound in the class body: these are called on hot paths.
    time = staticmethod(_time)
    monotonic = staticmethod(_monotonic)
    sleep = staticmethod(_sleep)

    async def asleep(self, seconds: float) -> None:
        """
        Suspend the calling task for *seconds*.
        """
        import asyncio  # late: whoever awaits has it loaded already

        await asyncio.sleep(seconds)

    def timeout(self, seconds: float) -> AbstractAsyncContextManager[object]:
        """
        Bound the body of an ``async with``; raise `TimeoutError` past *seconds*.
        """
        import asyncio  # late: whoever awaits has it loaded already

        return asyncio.timeout(seconds)

    def new_id(self) -> str:
        """
        Return a new UUIDv7 in canonical text, later than those before.

        Where the wall clock is coarse, or set back, ids run ahead of it (RFC 9562,
        section 6.2). No lock: of threads that ask at once, the random bits tell.
        """
        earliest, now = self._last + _STEP, _time_ns()
        self._last = moment = now if now > earliest else earliest
        return uuid7(moment, _random.getrandbits(62))


@attrs.define(eq=False)
class Limit:
    """
    A `timeout` on a virtual clock: where it ends, and what ends it there.
    """

    clock: VirtualClock
    deadline: float
    timeout: asyncio.Timeout
    loop: asyncio.AbstractEventLoop
    is_over: bool = False

    async def expire(self) -> None:
        """
        Let the timeout end its body now, wherever that waits; perhaps it waits here.
        """
        import asyncio  # late: whoever awaits has it loaded already

        with suppress(RuntimeError):  # the body was left behind with a closed loop
            self.loop.call_soon_threadsafe(self._cut_short)
        if self.loop is asyncio.get_running_loop():
            # A matter of some turns of the loop; this may be what is then cancelled.
            while not (self.is_over or self.timeout.expired()):  # noqa: ASYNC110
                await asyncio.sleep(0)

    def _cut_short(self) -> None:
        with suppress(RuntimeError):  # it has just ended by itself
            self.timeout.reschedule(-math.inf)


_limits: ContextVar[tuple[Limit, ...]] = ContextVar("eventbus_virtual_limits", default=())


class VirtualClock:
    """
    A clock that stands still until somebody sleeps on it or advances it.

    Sleeping takes no real time: it moves the clock. Ids are made from the virtual
    time and a counter, so that a test that runs twice sees the same ids.

    Args:
        start: Seconds since 1970-01-01 UTC at which the clock stands.

    .. versionadded:: 0.1
    """

    # 2024-01-01 00:00 UTC: any fixed instant serves; a round one reads well in failures.
    def __init__(self, start: float = 1_704_067_200.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._ids = 0
        self._last = 0
        self._lock = threading.Lock()
        self._sleepers: set[tuple[float, int, object]] = set()
        self._places = itertools.count()

    def time(self) -> float:
        """
        Return the virtual seconds since 1970-01-01 UTC.
        """
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """
        Return the virtual seconds since the clock was made.
        """
        return self._elapsed

    def advance(
        self, seconds: float = 0.0, *, minutes: float = 0.0, hours: float = 0.0, days: float = 0.0
    ) -> None:
        """
        Move the clock forward by the sum of the arguments.

        Raises:
            ValueError: The sum is negative or endless: this clock never goes back.
        """
        step = seconds + 60.0 * minutes + 3_600.0 * hours + 86_400.0 * days
        if not 0 <= step < math.inf:
            raise ValueError(
                f"a clock cannot be advanced by {step!r} seconds; give 0 or more. "
                f"Its wall clock alone can be set back, with jump()."
            )
        with self._lock:
            self._elapsed += step

    def jump(self, seconds: float) -> None:
        """
        Move the wall clock by *seconds*, back or forth, as an administrator would.

        `monotonic` does not notice.
        """
        with self._lock:
            self._start += seconds

    def sleep(self, seconds: float) -> None:
        """
        Advance the clock by *seconds* and return at once.
        """
        self.advance(max(0.0, seconds))

    async def asleep(self, seconds: float) -> None:
        """
        Advance the clock by *seconds*, letting other tasks run once.

        Tasks of one loop that sleep at the same time wake in the order in which they
        are due. A `timeout` that ends before one of them is due ends on the way.
        """
        due = self._elapsed + max(0.0, seconds)
        mine = [each for each in _limits.get() if each.clock is self and not each.is_over]
        passed = [each for each in mine if each.deadline < due]
        for limit in sorted(passed, key=lambda each: each.deadline):
            await self._reach(limit.deadline)
            await limit.expire()
        await self._reach(due)

    async def _reach(self, moment: float) -> None:
        import asyncio  # late: whoever awaits has it loaded already

        loop = asyncio.get_running_loop()
        place = (moment, next(self._places), loop)
        self._sleepers.add(place)
        try:
            await asyncio.sleep(0)
            while self._first_in(loop) is not place:  # noqa: ASYNC110 - they take turns
                await asyncio.sleep(0)
        finally:
            self._sleepers.discard(place)
        with self._lock:
            self._elapsed = max(self._elapsed, moment)

    def _first_in(self, loop: object) -> tuple[float, int, object]:
        return min(each for each in tuple(self._sleepers) if each[2] is loop)

    @asynccontextmanager
    async def timeout(self, seconds: float) -> AsyncGenerator[None]:
        """
        Bound the body by *seconds* of virtual time, and of real time as well.

        The real bound ends what waits for something other than this clock.
        """
        import asyncio  # late: whoever awaits has it loaded already

        timeout = asyncio.timeout(seconds)
        limit = Limit(self, self._elapsed + seconds, timeout, asyncio.get_running_loop())
        token = _limits.set((*_limits.get(), limit))
        try:
            async with timeout:
                yield
        finally:
            limit.is_over = True
            _limits.reset(token)
        if self._elapsed > limit.deadline:
            raise TimeoutError(f"{seconds:g} seconds passed on the virtual clock")

    def new_id(self) -> str:
        """
        Return the next UUIDv7 of this clock: virtual time and a counter.
        """
        with self._lock:
            self._ids += 1
            self._last = max(round(self.time() * 1_000_000) * 1_000, self._last + _STEP)
            return uuid7(self._last, self._ids)
