"""
Clocks and ids: the machine's, and the virtual one that tests turn.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventbus import Clock, _clock
from eventbus._clock import SystemClock, VirtualClock, uuid7

NEW_YEAR = 1_704_067_200.0  # 2024-01-01 00:00 UTC
MOMENTS = st.integers(min_value=0, max_value=2**48 * 1_000_000 - 1)
BITS = st.integers(min_value=0, max_value=2**62 - 1)

both_clocks = pytest.mark.parametrize("make", [SystemClock, VirtualClock])


def run(main: Callable[[], Coroutine[Any, Any, object]]) -> object:
    return asyncio.run(main())


# -- ids -------------------------------------------------------------------------------------


@given(MOMENTS, BITS)
def test_an_id_is_a_uuid_of_version_7(moment: int, bits: int):
    """
    An id has the version, the variant and the canonical text of a UUIDv7.
    """
    made = uuid7(moment, bits)
    read = uuid.UUID(made)
    assert made == str(read)
    assert 7 == read.version
    assert uuid.RFC_4122 == read.variant


@given(MOMENTS, BITS)
def test_an_id_holds_its_time_and_its_bits(moment: int, bits: int):
    """
    Milliseconds fill the first 48 bits, their fraction the next 12, random bits the last 62.
    """
    read = uuid.UUID(uuid7(moment, bits)).int
    milliseconds, rest = divmod(moment, 1_000_000)
    assert milliseconds == read >> 80
    assert rest * 4096 // 1_000_000 == (read >> 64) & 0xFFF
    assert bits == read & (2**62 - 1)


@given(MOMENTS, st.integers(min_value=250, max_value=10**12), BITS, BITS)
def test_ids_sort_by_time(moment: int, later: int, bits: int, other_bits: int):
    """
    Of two ids at least 250 nanoseconds apart the later one sorts behind.
    """
    if moment + later < 2**48 * 1_000_000:
        assert uuid7(moment, bits) < uuid7(moment + later, other_bits)


@both_clocks
def test_ids_of_a_clock_are_in_order(make: Callable[[], Clock]):
    """
    Each id of a clock sorts behind those before it.
    """
    clock = make()
    ids = [clock.new_id() for _ in range(5_000)]
    assert sorted(set(ids)) == ids


@pytest.mark.parametrize("step", [0, -1, -3_600 * 10**9], ids=["coarse", "jitter", "set back"])
def test_ids_stay_in_order_when_the_wall_clock_does_not(step: int, monkeypatch: pytest.MonkeyPatch):
    """
    Ids go on in order where the wall clock stands still, or is set back.
    """
    moments = iter(range(10**18, 10**18 + step * 1_000, step) if step else [10**18] * 1_000)
    monkeypatch.setattr(_clock, "_time_ns", lambda: next(moments))
    clock = SystemClock()
    ids = [clock.new_id() for _ in range(1_000)]
    assert sorted(set(ids)) == ids


def test_ids_of_the_machines_clock_tell_its_time(monkeypatch: pytest.MonkeyPatch):
    """
    An id made by the machine's clock holds the wall clock's time.
    """
    monkeypatch.setattr(_clock, "_time_ns", lambda: 1_700_000_000_123_000_000)
    assert 1_700_000_000_123 == uuid.UUID(SystemClock().new_id()).int >> 80


@both_clocks
def test_ids_are_unique_across_threads(make: Callable[[], Clock]):
    """
    Threads that share a clock never get the same id.
    """
    clock, ids = make(), list[str]()
    threads = [
        threading.Thread(target=lambda: ids.extend(clock.new_id() for _ in range(500)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 2_000 == len(set(ids))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here to test")
def test_a_forked_child_makes_ids_of_its_own():
    """
    After a fork, parent and child do not go on with the same random numbers.
    """
    code = (
        "import os, sys; from eventbus import _clock\n"
        "_clock._random.seed(1)\n"
        "read, write = os.pipe()\n"
        "child = os.fork()\n"
        "mine = str(_clock._random.getrandbits(62))\n"
        "if not child:\n"
        "    os.write(write, mine.encode()); os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "theirs = os.read(read, 100).decode()\n"
        "assert theirs and mine != theirs, mine\n"
    )
    root = Path(_clock.__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)


# -- the machine's clock -----------------------------------------------------------------------


def test_the_machines_clock_is_the_machines():
    """
    The machine's clock reads and sleeps as the `time` module does.
    """
    assert time.time is SystemClock.time
    assert time.monotonic is SystemClock.monotonic
    assert time.sleep is SystemClock.sleep


def test_the_machines_clock_sleeps_and_ends_what_takes_too_long():
    """
    In a loop, the machine's clock suspends the task, and its timeouts are asyncio's.
    """

    async def main() -> None:
        clock = SystemClock()
        await clock.asleep(0)
        with pytest.raises(TimeoutError):
            async with clock.timeout(0):
                await asyncio.get_running_loop().create_future()

    run(main)


# -- the virtual clock -------------------------------------------------------------------------


def test_a_virtual_clock_stands_still():
    """
    Nothing moves a virtual clock but sleeping on it and advancing it.
    """
    clock = VirtualClock()
    assert (NEW_YEAR, 0.0) == (clock.time(), clock.monotonic())
    assert (5.0, 0.0) == (VirtualClock(start=5).time(), VirtualClock(start=5).monotonic())


def test_a_virtual_clock_is_advanced_by_the_sum():
    """
    ``advance`` takes seconds, minutes, hours and days together.
    """
    clock = VirtualClock()
    clock.advance(1.5, minutes=2, hours=3, days=4)
    assert 4 * 86_400 + 3 * 3_600 + 2 * 60 + 1.5 == clock.monotonic()
    assert NEW_YEAR + clock.monotonic() == clock.time()


@pytest.mark.parametrize("seconds", [-0.1, math.inf, math.nan])
def test_a_virtual_clock_never_goes_back(seconds: float):
    """
    A step back, or without end, is refused, and the clock stands where it stood.
    """
    clock = VirtualClock()
    with pytest.raises(ValueError, match=r"give 0 or more\. Its wall clock alone .* jump\(\)"):
        clock.advance(seconds)
    assert 0.0 == clock.monotonic()


@pytest.mark.parametrize("amount", [timedelta(hours=1), "5", None])
@pytest.mark.parametrize("unit", ["seconds", "hours"])
def test_a_virtual_clock_is_advanced_by_numbers(unit: str, amount: Any):
    """
    Anything else is refused by an error that shows how it is written.
    """
    clock = VirtualClock()
    with pytest.raises(
        TypeError, match=r"advance\(hours=1\), or, .* advance\(delta\.total_seconds"
    ):
        clock.advance(**{unit: amount})
    assert 0.0 == clock.monotonic()


@pytest.mark.parametrize("seconds", [3_600.0, -3_600.0])
def test_only_the_wall_clock_jumps(seconds: float):
    """
    A jump moves the wall clock back or forth; monotonic time does not notice.
    """
    clock = VirtualClock()
    clock.jump(seconds)
    assert (NEW_YEAR + seconds, 0.0) == (clock.time(), clock.monotonic())


def test_sleeping_moves_a_virtual_clock():
    """
    A sleep returns at once and leaves the clock where it would have ended.
    """
    clock = VirtualClock()
    clock.sleep(3_600)
    clock.sleep(-1)
    assert 3_600.0 == clock.monotonic()


def test_virtual_ids_are_the_same_in_each_run():
    """
    Two virtual clocks that go through the same make the same ids.
    """

    def ids() -> list[str]:
        clock = VirtualClock()
        made = [clock.new_id(), clock.new_id()]
        clock.advance(hours=1)
        return [*made, clock.new_id()]

    assert ids() == ids()
    assert [0, 0, 3_600_000] == [
        (uuid.UUID(each).int >> 80) - int(NEW_YEAR * 1_000) for each in ids()
    ]


def test_virtual_ids_stay_in_order_when_the_clock_is_set_back():
    """
    A virtual wall clock that jumps back does not take the order of ids along.
    """
    clock = VirtualClock()
    first = clock.new_id()
    clock.jump(-3_600)
    assert first < clock.new_id()


def test_tasks_wake_in_the_order_in_which_they_are_due():
    """
    Tasks that sleep at the same time wake as on a real clock, each at its own moment.
    """
    clock, woken = VirtualClock(), list[tuple[str, float]]()

    async def sleep(name: str, *lengths: float) -> None:
        for seconds in lengths:
            await clock.asleep(seconds)
            woken.append((name, clock.monotonic()))

    async def main() -> None:
        await asyncio.gather(sleep("slow", 10), sleep("quick", 1, 2), sleep("none", -1))

    run(main)
    assert [("none", 0.0), ("quick", 1.0), ("quick", 3.0), ("slow", 10.0)] == woken


def test_a_cancelled_sleeper_holds_up_nobody():
    """
    A task that is cancelled while it sleeps leaves its place in the order.
    """
    clock = VirtualClock()

    async def main() -> None:
        first, second = (asyncio.create_task(clock.asleep(each)) for each in (1, 5))
        await asyncio.sleep(0)
        first.cancel()
        await second

    run(main)
    assert 5.0 == clock.monotonic()


# -- timeouts on the virtual clock ---------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "ends_at"), [(3.0, 3.0), (2.0, 2.0)])
def test_what_ends_in_time_is_left_alone(seconds: float, ends_at: float):
    """
    A body that takes no longer than its timeout, to the second, is not ended.
    """
    clock = VirtualClock()

    async def main() -> None:
        async with clock.timeout(3):
            await clock.asleep(seconds)

    run(main)
    assert ends_at == clock.monotonic()


def test_what_sleeps_too_long_ends_at_its_timeout():
    """
    A body that sleeps longer than its timeout ends then, and no later, with a `TimeoutError`.
    """
    clock = VirtualClock()

    async def sleep_twice() -> None:
        async with clock.timeout(3):
            await clock.asleep(2)
            await clock.asleep(2)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await sleep_twice()
        assert 3.0 == clock.monotonic()
        await clock.asleep(10)

    run(main)
    assert 13.0 == clock.monotonic()


def test_a_timeout_ends_its_body_by_cancellation():
    """
    The body is cancelled as by a real timeout: it cannot take it for an error of its own.
    """
    clock, seen = VirtualClock(), list[str]()

    async def body() -> None:
        try:
            await clock.asleep(5)
        except Exception:
            seen.append("an error")
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with clock.timeout(3):
                await body()

    run(main)
    assert ["cancelled"] == seen


@pytest.mark.parametrize(
    ("outer", "inner", "whose"), [(3, 5, "outer"), (5, 3, "inner"), (3, 3, "outer")]
)
def test_the_timeout_that_is_due_first_ends_its_own_body(outer: float, inner: float, whose: str):
    """
    Of nested timeouts the one that is due first ends its body, and no other is blamed.
    """
    clock, ended = VirtualClock(), list[str]()

    async def main() -> None:
        try:
            async with clock.timeout(outer):
                try:
                    async with clock.timeout(inner):
                        await clock.asleep(10)
                except TimeoutError:
                    ended.append("inner")
        except TimeoutError:
            ended.append("outer")

    run(main)
    assert [whose] == ended
    assert 3.0 == clock.monotonic()


def test_a_timeout_is_one_clocks_own():
    """
    Sleeping on one clock does not end what another one bounds.
    """
    clock, other = VirtualClock(), VirtualClock()

    async def main() -> None:
        async with clock.timeout(3):
            await other.asleep(10)

    run(main)
    assert (0.0, 10.0) == (clock.monotonic(), other.monotonic())


@pytest.mark.parametrize("advance", [VirtualClock.sleep, VirtualClock.advance])
def test_what_blocks_too_long_is_found_out_at_the_end(advance: Callable[..., None]):
    """
    A body that moves the clock past its timeout without waiting is told when it is over.
    """
    clock = VirtualClock()

    async def main() -> None:
        with pytest.raises(TimeoutError, match="3 seconds passed on the virtual clock"):
            async with clock.timeout(3):
                advance(clock, 4)

    run(main)


def test_an_error_of_the_body_is_its_own():
    """
    What a body raises comes out of its timeout as it is, however late.
    """
    clock = VirtualClock()

    async def body() -> None:
        clock.advance(4)
        raise KeyError("mine")

    async def main() -> None:
        with pytest.raises(KeyError, match="mine"):
            async with clock.timeout(3):
                await body()

    run(main)


def test_a_virtual_timeout_bounds_real_time_as_well():
    """
    A body that waits for something other than the clock is ended, too.
    """

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with VirtualClock().timeout(0):
                await asyncio.get_running_loop().create_future()

    run(main)


def test_a_task_of_the_body_runs_into_its_timeout():
    """
    Where a task of the body sleeps too long, the body that waits for it ends at its timeout.
    """
    clock = VirtualClock()

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with clock.timeout(3):
                await asyncio.create_task(clock.asleep(5))
        assert 3.0 == clock.monotonic()

    run(main)


def test_a_task_that_outlives_the_body_sleeps_on():
    """
    A task left behind by a body is not bound by its timeout any more.
    """
    clock = VirtualClock()

    async def sleep_later(gate: asyncio.Event) -> None:
        await gate.wait()
        await clock.asleep(7)

    async def main() -> None:
        gate = asyncio.Event()
        async with clock.timeout(3):
            under_way = asyncio.create_task(clock.asleep(5))
            not_begun = asyncio.create_task(sleep_later(gate))
            await asyncio.sleep(0)
        await under_way
        gate.set()
        await not_begun

    run(main)
    assert 12.0 == clock.monotonic()


def test_a_timeout_that_has_just_ended_is_not_cut_short():
    """
    A task may find the timeout due in the moment in which its body ends by itself.
    """
    clock = VirtualClock()

    async def main() -> None:
        async with clock.timeout(3):
            left_behind = asyncio.create_task(clock.asleep(5))
            while clock.monotonic() < 3:  # noqa: ASYNC110 - it is the number of turns that counts
                await asyncio.sleep(0)
        await left_behind

    run(main)
    assert 5.0 == clock.monotonic()


def test_a_timeout_reaches_into_other_threads():
    """
    Where a loop of another thread runs into a timeout, the body ends in its own loop.
    """
    clock = VirtualClock()

    def sleep_elsewhere() -> None:
        asyncio.run(clock.asleep(5))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with clock.timeout(3):
                await asyncio.to_thread(sleep_elsewhere)

    run(main)


def test_each_context_has_its_own_timeouts():
    """
    A task started from elsewhere is not bound by the timeouts of the one that runs here.
    """
    clock = VirtualClock()
    outside = contextvars.copy_context()

    async def main() -> None:
        async with clock.timeout(3):
            free = asyncio.get_running_loop().create_task(clock.asleep(2), context=outside)
            await free

    run(main)
    assert 2.0 == clock.monotonic()


# -- who follows -----------------------------------------------------------------------------


def test_a_function_that_follows_is_told_before_and_in_the_end():
    """
    A clock that is advanced tells it first that it is not over, and last that it is.
    """
    clock, told = VirtualClock(), list[tuple[float, bool]]()

    def follow(is_over: bool) -> None:
        told.append((clock.monotonic(), is_over))

    clock.follow(follow)
    clock.call_at(2.0, lambda: None)
    clock.advance(5.0)
    assert [(0.0, False), (2.0, False), (5.0, True)] == told


def test_a_follower_that_is_gone_is_forgotten():
    """
    A method does not keep its object, and the clock goes on without it.
    """

    class Follower:
        def follow(self, is_over: bool) -> None:
            told.append(is_over)

    clock, told = VirtualClock(), list[bool]()
    follower = Follower()
    clock.follow(follower.follow)
    clock.advance(1.0)
    assert [False, True] == told
    del follower
    gc.collect()
    clock.advance(1.0)
    assert [False, True] == told
    assert 2.0 == clock.monotonic()
