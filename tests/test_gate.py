"""
The gate of a store: one after the other, in order, and nobody for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest

from eventbus import StoreLockedError
from eventbus._gate import Gate

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


def gate_of(seconds: float = PATIENCE) -> Gate:
    return Gate("shop.db", seconds)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE / 2):
            await main()

    asyncio.run(bounded())


async def asked(gate: Gate, number: int) -> None:
    """
    Wait until *number* borrowers wait.
    """
    await until(lambda: len(gate._borrowers) >= number)


def started(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> bool:
    thread.join(PATIENCE)
    return not thread.is_alive()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - it is seen from outside, and nobody tells
        await asyncio.sleep(0)


# -- order --------------------------------------------------------------------------------------


def test_tasks_come_in_the_order_in_which_they_ask() -> None:
    """
    One at a time, each when the one before it is out, and the loop goes on meanwhile.
    """
    gate, order, inside = gate_of(), list[int](), list[int]()

    async def take(number: int) -> None:
        async with gate.aturn(str(number)):
            inside.append(number)
            await asyncio.sleep(0)
            assert [number] == inside
            order.append(inside.pop())

    async def main() -> None:
        await asyncio.gather(*map(take, range(5)))

    run(main)
    assert [0, 1, 2, 3, 4] == order
    assert not gate.is_wanted


def test_the_writer_has_its_turn_after_each_borrower() -> None:
    """
    However many wait, it waits for one; and after it comes the next of them.
    """
    gate, order = gate_of(), list[str]()

    def write() -> None:
        with gate.writing():
            order.append("writer")

    async def take(name: str, writer: list[threading.Thread]) -> None:
        async with gate.aturn(name):
            order.append(name)
            if name == "a":
                writer.append(started(write))
                await until(lambda: gate._writer is not None)

    async def main() -> None:
        writer = list[threading.Thread]()
        await asyncio.gather(*(take(name, writer) for name in "abc"))
        assert joined(writer[0])

    run(main)
    assert ["a", "writer", "b", "c"] == order


def test_a_writer_that_leaves_lets_borrowers_in() -> None:
    """
    Those who have asked while it wrote do not have to ask again.
    """
    gate = gate_of()

    async def main() -> None:
        with gate.writing():
            turn = asyncio.create_task(_enter(gate, "a"))
            await asked(gate, 1)
        await turn

    run(main)
    assert gate.free.acquire(blocking=False)


async def _enter(gate: Gate, name: str) -> None:
    async with gate.aturn(name):
        pass


def test_threads_and_tasks_wait_in_one_line() -> None:
    """
    A thread that asked first is in first, and keeps the loop of the next one free.
    """
    gate, is_in, may_leave, order = gate_of(), threading.Event(), threading.Event(), list[str]()

    def hold() -> None:
        with gate.turn("thread"):
            is_in.set()
            may_leave.wait(PATIENCE)
            order.append("thread")

    async def main() -> None:
        thread = started(hold)
        assert await asyncio.to_thread(is_in.wait, PATIENCE)
        task = asyncio.create_task(_enter(gate, "task"))
        await asked(gate, 1)
        may_leave.set()
        await task
        order.append("task")
        assert joined(thread)

    run(main)
    assert ["thread", "task"] == order


# -- the end of a wait --------------------------------------------------------------------------


def test_a_cancelled_task_leaves_the_line() -> None:
    """
    Those behind it come as if it had never asked.
    """
    gate, order = gate_of(), list[str]()

    async def take(name: str) -> None:
        async with gate.aturn(name):
            order.append(name)

    async def main() -> None:
        async with gate.aturn("first"):
            gone, last = asyncio.create_task(take("gone")), asyncio.create_task(take("last"))
            await asked(gate, 2)
            gone.cancel()
            await asyncio.wait([gone])
            assert gone.cancelled()
        await last

    run(main)
    assert ["last"] == order


def test_a_task_cancelled_when_it_is_let_in_passes_its_turn_on() -> None:
    """
    The turn had come, and nobody took it up: the next one gets it.
    """
    gate, order = gate_of(), list[str]()

    async def take(name: str) -> None:
        async with gate.aturn(name):
            order.append(name)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(gate.aturn("first"))
            gone, last = asyncio.create_task(take("gone")), asyncio.create_task(take("last"))
            await asked(gate, 2)
        assert gate._holder is not None
        gone.cancel()
        await asyncio.wait([gone, last])
        assert gone.cancelled()

    run(main)
    assert ["last"] == order
    assert not gate.is_wanted


def test_who_waits_too_long_is_told_who_was_in() -> None:
    """
    By name: task, thread and writer alike. Nothing of them stays in the line.
    """
    gate, refused = gate_of(0.01), list[StoreLockedError]()

    def borrow() -> None:
        with pytest.raises(StoreLockedError, match=r"shop\.db: count was writing") as error:
            gate.turn("thread").__enter__()
        refused.append(error.value)

    def write() -> None:
        with pytest.raises(StoreLockedError, match="count was writing, in this process"):
            gate.writing().__enter__()
        refused.append(StoreLockedError(""))

    async def main() -> None:
        async with gate.aturn("count"):
            with pytest.raises(StoreLockedError, match="count was writing"):
                await _enter(gate, "task")
            assert await asyncio.to_thread(joined, started(borrow))
            assert await asyncio.to_thread(joined, started(write))
            assert 0 == len(gate._borrowers)
        await _enter(gate, "task")

    run(main)
    assert "shop.db" == refused[0].path
    assert 2 == len(refused)


def test_a_writer_in_the_way_is_called_the_store() -> None:
    """
    Where no borrower is in, it is the store that writes.
    """
    gate = gate_of(0.01)
    with (
        gate.writing(),
        pytest.raises(StoreLockedError, match="the store itself was writing"),
        gate.turn("count"),
    ):
        pytest.fail("it is in")


def test_who_could_only_wait_for_himself_is_refused_at_once() -> None:
    """
    In a handler's own thread, and in that of its event loop.
    """
    gate = gate_of()
    refused = pytest.raises(StoreLockedError, match="count has a transaction open in this very")

    async def main() -> None:
        async with gate.aturn("count"):
            with refused, gate.turn("other"):
                pytest.fail("it is in")

    with gate.turn("count"), refused, gate.standing_still():
        pytest.fail("it waits")
    run(main)
    with gate.turn("after"):
        assert gate.is_wanted


# -- who cannot take up a turn ------------------------------------------------------------------


def test_a_thread_that_waits_is_not_kept_waiting_by_its_own_tasks() -> None:
    """
    They cannot go on while their loop stands: others come first, and they afterwards.
    """
    gate, is_in, may_leave, order = gate_of(), threading.Event(), threading.Event(), list[str]()

    def hold() -> None:
        with gate.turn("thread"):
            is_in.set()
            may_leave.wait(PATIENCE)

    async def take(name: str) -> None:
        async with gate.aturn(name):
            order.append(name)

    def free() -> None:
        while not gate._standing:
            pass
        may_leave.set()

    async def main() -> None:
        threads = [started(hold)]
        assert await asyncio.to_thread(is_in.wait, PATIENCE)
        task = asyncio.create_task(take("task"))
        await asked(gate, 1)
        threads.append(started(free))
        with gate.turn("loop's thread"):  # asked later, and could not be passed by
            order.append("loop's thread")
        await task
        assert all(map(joined, threads))

    run(main)
    assert ["loop's thread", "task"] == order


def test_a_task_whose_loop_is_gone_is_passed_by() -> None:
    """
    Nobody takes its turn up, and nobody waits for that.
    """
    gate, loop = gate_of(), asyncio.new_event_loop()
    entering: Any = gate.aturn("left behind")

    async def ask() -> None:
        await entering.__aenter__()

    with ExitStack() as stack:
        stack.enter_context(gate.turn("first"))
        coroutine = ask()
        task = loop.create_task(coroutine)
        while not gate._borrowers:
            loop.call_soon(loop.stop)
            loop.run_forever()
        loop.close()
    assert not gate.is_wanted
    with gate.turn("next"):
        assert gate.is_wanted
    task._log_destroy_pending = False
    with gate._guard:  # garbage is collected in whatever thread, at whatever moment
        coroutine.close()


def test_a_turn_that_is_not_taken_up_yet_is_given_back() -> None:
    """
    A thread that waits is not refused for a task of its own that has not begun.
    """
    gate, order = gate_of(), list[str]()

    async def take(name: str) -> None:
        async with gate.aturn(name):
            order.append(name)

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(gate.aturn("first"))
            task, last = asyncio.create_task(take("task")), asyncio.create_task(take("last"))
            await asked(gate, 2)
        assert gate._holder is not None
        with gate.standing_still(), gate.writing():
            order.append("loop's thread")
        await task
        await last

    run(main)
    assert ["loop's thread", "task", "last"] == order
