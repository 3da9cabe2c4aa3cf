"""
Redriving where a loop runs: while somebody else writes to the file, the loop goes on.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from eventbus import Durable, EventBus, Receipt, event, fixed
from eventbus.sqlite import SQLiteStore

T = TypeVar("T")
PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


@event
class Paid:
    number: int


class Till:
    """
    A bus with a dead letter, and its handler, which says when it has been called.
    """

    def __init__(self, path: Path) -> None:
        # Whoever waits for the file in the loop itself gives up quickly.
        self.store = SQLiteStore(path, busy_timeout=1.0)
        self.bus = EventBus(store=self.store)
        self.is_well = False
        self.on_call: Callable[[], object] = int
        self.bus.subscribe(
            Paid, self.handle, name="pay", delivery=Durable(), retry=fixed(attempts=1, delay=0.0)
        )

    async def handle(self, paid: Paid) -> None:
        if not self.is_well:
            raise ValueError("no")
        self.on_call()

    async def fail(self) -> None:
        await self.bus.apublish(Paid(1))
        assert (await self.bus.adrain(PATIENCE)).ok
        self.is_well = True

    async def beside_a_writer(self, do: Callable[[], Awaitable[T]]) -> T:
        """
        Begin while somebody else writes, and go on when he has ended.
        """
        with closing(sqlite3.connect(self.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.ensure_future(do())
            for _ in range(10):
                await asyncio.sleep(0)
            assert not task.done()
            other.execute("ROLLBACK")
        return await asyncio.wait_for(task, PATIENCE)


@pytest.fixture
def till(tmp_path: Path) -> Iterator[Till]:
    made = Till(tmp_path / "till.db")
    yield made
    made.bus.close(timeout=PATIENCE)


@pytest.mark.parametrize("is_batch", [False, True])
def test_a_redrive_waits_while_the_loop_goes_on(till: Till, is_batch: bool) -> None:
    """
    To be claimed, and to be removed in the end, its letter waits for who writes.
    """

    async def redrive() -> list[Receipt]:
        [letter] = till.bus.dead_letters
        return await till.bus.aredrive_all() if is_batch else [await till.bus.aredrive(letter)]

    async def fail_and_redrive() -> bool:
        async with till.bus:
            await till.fail()
            [receipt] = await till.beside_a_writer(redrive)
            return receipt.ok

    assert asyncio.run(fail_and_redrive())


def test_a_letter_is_removed_while_the_loop_goes_on(till: Till) -> None:
    """
    Though somebody has begun to write when its handler was done.
    """

    async def fail_and_redrive() -> int:
        with closing(sqlite3.connect(till.store.path, isolation_level=None)) as other:
            async with till.bus:
                await till.fail()
                [letter] = till.bus.dead_letters
                till.on_call = lambda: begin_on(other)
                task = asyncio.create_task(till.bus.aredrive(letter))
                await called.wait()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert not task.done()
                other.execute("ROLLBACK")
                await asyncio.wait_for(task, PATIENCE)
                return till.store.letters.count()

    def begin_on(other: sqlite3.Connection) -> None:
        other.execute("BEGIN IMMEDIATE")
        called.set()

    called = asyncio.Event()
    assert 0 == asyncio.run(fail_and_redrive())


def test_a_cancelled_redrive_claims_nothing(till: Till) -> None:
    """
    Though it is cancelled while it waits for who writes: the next one has its letter.
    """

    async def fail_and_redrive() -> bool:
        async with till.bus:
            await till.fail()
            [letter] = till.bus.dead_letters
            with closing(sqlite3.connect(till.store.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                task: Any = asyncio.create_task(till.bus.aredrive(letter))
                for _ in range(10):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                other.execute("ROLLBACK")
            return (await till.bus.aredrive(letter)).ok

    assert asyncio.run(fail_and_redrive())
