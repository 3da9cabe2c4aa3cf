"""
Where time, sleep and ids come from.

Law: no other room reads a clock, sleeps or makes an id. Two clocks stand here:
the machine's, and a virtual one that stands still until it is told otherwise.
"""

from __future__ import annotations

import heapq
import itertools
import math
import os
import random
import threading
import types
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import ContextVar
from struct import Struct
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

_FOUR, _EIGHT = Struct(">I").pack, Struct(">Q").pack
_VARIANT, _RANDOM = 0b10 << 62, (1 << 62) - 1

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
    # Three pieces packed and shown as hex take half as long as formatting numbers.
    moment = (unix_ns << 12) // 1_000_000  # 48 bits of milliseconds, 12 of their fraction
    seconds = _FOUR(moment >> 28 & 0xFFFF_FFFF).hex()
    rest = _FOUR((moment & 0xFFF_F000) << 4 | 0x7000 | moment & 0xFFF).hex("-", 2)
    return f"{seconds}-{rest}-{_EIGHT(_VARIANT | randomness & _RANDOM).hex('-', 6)}"


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


def _held_weakly(
    follower: Callable[[bool], None],
) -> Callable[[], Callable[[bool], None] | None]:
    if isinstance(follower, types.MethodType):
        return weakref.WeakMethod(follower)
    return lambda: follower


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
        self._followers: list[Callable[[], Callable[[bool], None] | None]] = []
        self._alarms: list[tuple[float, int, list[Callable[[], None]]]] = []

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

        What is due meanwhile happens on the way, each at its own time.

        Raises:
            ValueError: The sum is negative or endless: this clock never goes back.
            TypeError: One of them is no number.
        """
        try:
            step = seconds + 60.0 * minutes + 3_600.0 * hours + 86_400.0 * days
        except TypeError as error:
            raise TypeError(
                f"a clock is advanced by numbers, as in advance(hours=1), or, of a timedelta, "
                f"advance(delta.total_seconds()): {error}"
            ) from None
        if not 0 <= step < math.inf:
            raise ValueError(
                f"a clock cannot be advanced by {step!r} seconds; give 0 or more. "
                f"Its wall clock alone can be set back, with jump()."
            )
        moment = self._elapsed + step
        self._lead(is_over=False)
        while (ring := self._due_by(moment)) is not None:
            ring()
            self._lead(is_over=False)
        self._move_to(moment)
        self._lead(is_over=True)

    def follow(self, follower: Callable[[bool], None]) -> None:
        """
        Have *follower* do what is due, whenever the clock is advanced, on the way.

        It is called before the clock moves, after each alarm, and, with ``True``, in the
        end. It is held weakly if it is a method.
        """
        self._followers.append(_held_weakly(follower))

    def _lead(self, *, is_over: bool) -> None:
        for found in tuple(self._followers):
            if (follower := found()) is None:
                self._followers.remove(found)
            else:
                follower(is_over)

    def call_at(self, moment: float, ring: Callable[[], None]) -> Callable[[], None]:
        """
        Call *ring* when `monotonic` shows *moment*, in the thread that moves the clock.

        Returns:
            What cancels it.
        """
        rings = [ring]
        with self._lock:
            heapq.heappush(self._alarms, (moment, next(self._places), rings))
        return rings.clear

    @property
    def next_alarm(self) -> float | None:
        """
        When, on `monotonic`, something is due next; ``None`` if nothing is.
        """
        with self._lock:
            while self._alarms and not self._alarms[0][2]:
                heapq.heappop(self._alarms)
            return self._alarms[0][0] if self._alarms else None

    def _move_to(self, moment: float) -> None:
        """
        Let the time pass, ringing each alarm at the moment it was set for.
        """
        while (ring := self._due_by(moment)) is not None:
            ring()
        with self._lock:
            self._elapsed = max(self._elapsed, moment)

    def _due_by(self, moment: float) -> Callable[[], None] | None:
        with self._lock:
            while self._alarms and self._alarms[0][0] <= moment:
                due, _, rings = heapq.heappop(self._alarms)
                if rings:
                    self._elapsed = max(self._elapsed, due)
                    return rings[0]
        return None

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
        self._move_to(self._elapsed + max(0.0, seconds))

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
        self._move_to(moment)

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
