"""
What every `Progress` does about leases, ours or yours.

Law: time is a number; who is late is fenced off, whatever it asks for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from threading import Barrier, Thread
from typing import Any

import pytest

from eventbus.errors import LeaseLostError
from eventbus.progress import Lease, Progress, Step
from eventbus.testing.contracts._transactions import TTL, TransactionContract

__all__ = ["LeaseContract"]


class LeaseContract(TransactionContract):
    def test_one_consumes_at_a_time(self, progress: Progress, lease: Lease) -> None:
        """
        While a lease runs nobody else gets one; from its end on it is free.
        """
        assert TTL == lease.expires
        assert lease == progress.position("a").lease
        assert progress.acquire("a", owner="you", ttl=TTL, now=TTL - 0.001) is None
        newer = progress.acquire("a", owner="you", ttl=TTL, now=TTL)
        assert newer is not None
        assert ("you", 2 * TTL) == (newer.owner, newer.expires)
        assert newer.token > lease.token

    def test_one_owner_is_not_two(self, progress: Progress, lease: Lease) -> None:
        """
        Its owner, too, gets no second lease.
        """
        assert progress.acquire("a", owner=lease.owner, ttl=TTL, now=1.0) is None

    def test_a_renewed_lease_runs_anew(self, progress: Progress, lease: Lease) -> None:
        """
        A lease is renewed as often as its holder likes, even late.
        """
        for now in (5.0, 14.0, 100.0):
            lease = progress.renew(lease, ttl=TTL, now=now)
            assert now + TTL == lease.expires
            assert progress.acquire("a", owner="you", ttl=TTL, now=now + TTL - 0.001) is None

    def test_a_lease_that_has_run_out_still_counts(self, progress: Progress, lease: Lease) -> None:
        """
        As long as nobody has taken over, its holder may write.
        """
        progress.advance(lease, Step(taken=3))
        progress.renew(lease, ttl=TTL, now=10 * TTL)
        assert 3 == progress.position("a").taken

    def test_a_dead_owner_is_taken_over_at_once(self, progress: Progress, lease: Lease) -> None:
        """
        Who knows that the holder is gone may name its lease, once.
        """
        newer = progress.acquire("a", owner="you", ttl=TTL, now=1.0, instead_of=lease)
        assert newer is not None
        assert progress.acquire("a", owner="third", ttl=TTL, now=1.0, instead_of=lease) is None
        assert newer == progress.position("a").lease

    def test_a_released_lease_is_free(self, progress: Progress, lease: Lease) -> None:
        """
        After release anybody gets it, and its former holder has nothing.
        """
        assert progress.release(lease)
        assert progress.position("a").lease is None
        assert not progress.release(lease)
        with pytest.raises(LeaseLostError):
            progress.advance(lease, Step(taken=3))
        assert progress.acquire("a", owner="you", ttl=TTL, now=0.0) is not None

    def test_a_late_owner_is_fenced_off(self, progress: Progress, lease: Lease) -> None:
        """
        Whose lease was taken over can write nothing, and is told so by name.
        """
        newer = progress.acquire("a", owner="you", ttl=TTL, now=TTL)
        asks: list[Callable[[], object]] = [
            lambda: progress.advance(lease, Step(taken=3, begin=[1])),
            lambda: asyncio.run(_aadvance(progress, lease, Step(taken=3))),
            lambda: progress.renew(lease, ttl=TTL, now=TTL),
            lambda: progress.reset(lease, to=5),
            lambda: progress.take_up(lease, ["odd"], now=TTL),
            lambda: progress.transaction(lease).__enter__(),
            lambda: asyncio.run(_atransact(progress, lease)),
        ]
        for ask in asks:
            with pytest.raises(LeaseLostError, match="'me'") as refused:
                ask()
            assert ("a", "me") == (refused.value.subscription, refused.value.owner)
        assert not progress.release(lease)
        position = progress.position("a")
        assert (0, 0, newer) == (position.taken, position.pending, position.lease)

    def test_of_many_threads_one_gets_the_lease(self, progress: Progress, lease: Lease) -> None:
        """
        However many ask at once, exactly one is granted.
        """
        for turn in range(1, 11):
            barrier, granted = Barrier(5, timeout=30), list[Lease | None]()

            def ask(
                turn: int = turn, barrier: Barrier = barrier, granted: list[Any] = granted
            ) -> None:
                barrier.wait()
                granted.append(progress.acquire("a", owner="you", ttl=TTL, now=turn * TTL))

            threads = [Thread(target=ask, daemon=True) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert 1 == len([each for each in granted if each is not None])

    def test_tasks_advance_at_once(self, progress: Progress, lease: Lease) -> None:
        """
        Steps of many tasks all count.
        """

        async def begin() -> list[Any]:
            steps = [Step(taken=9, begin=[offset]) for offset in range(1, 10)]
            return await asyncio.gather(*(progress.aadvance(lease, each) for each in steps))

        found = asyncio.run(begin())
        assert [{offset: 1} for offset in range(1, 10)] == [dict(each.attempts) for each in found]
        assert 9 == progress.position("a").pending


async def _atransact(progress: Progress, lease: Lease) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(progress.atransaction(lease))


async def _aadvance(progress: Progress, lease: Lease, step: Step) -> object:
    return await progress.aadvance(lease, step)
