"""
What every `IdempotencyStore` keeps to when many threads ask at once.

Law: each test lets threads meet at one point, some dozens of times, and each wait has a bound.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from threading import Barrier, Thread
from typing import Any, Protocol

import pytest

from eventbus.idempotency import Claim, IdempotencyStore

__all__ = ["EPSILON", "LEASE", "SOURCE", "TTL", "MakeStore", "Source", "TogetherContract"]

TTL = 100.0
LEASE = 10.0
EPSILON = 0.001


class MakeStore(Protocol):
    def __call__(self, *, ttl: float, lease: float) -> IdempotencyStore: ...


class Source:
    """
    Stands for an event, as a receipt does.
    """

    def __init__(self, id: str = "the-event") -> None:
        self.id = id


SOURCE = Source()


def together(*acts: Callable[[], Any]) -> list[Any]:
    """
    Do all *acts* as nearly at once as threads can; return what each returned.
    """
    barrier, answers = Barrier(len(acts), timeout=30), [None] * len(acts)

    def run(number: int) -> None:
        barrier.wait()
        answers[number] = acts[number]()

    threads = [Thread(target=run, args=(number,), daemon=True) for number in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [] == [thread for thread in threads if thread.is_alive()]
    return answers


class TogetherContract:
    @pytest.fixture
    def make_store(self) -> MakeStore:  # pragma: no cover - overridden
        raise NotImplementedError("a subclass says how its store is made")

    @pytest.fixture
    def store(self, make_store: MakeStore) -> IdempotencyStore:
        return make_store(ttl=TTL, lease=LEASE)

    @staticmethod
    def claim(store: IdempotencyStore, now: float, key: str = "key") -> Claim:
        return store.claim("scope", key, source=SOURCE, now=now)

    # -- threads

    def test_of_many_threads_one_is_granted(self, store: IdempotencyStore) -> None:
        """
        However many ask for a free key at once, one gets it and the others meet it.
        """
        for turn in range(20):
            states = self.claim_together(store, now=0.0, key=str(turn))
            assert ["granted"] + ["pending"] * 5 == states

    @pytest.mark.parametrize("completed", [False, True])
    def test_of_many_threads_one_takes_over(self, store: IdempotencyStore, completed: bool) -> None:
        """
        However many ask for a key whose lease or ttl has ended, one gets it.
        """
        for turn in range(20):
            old = self.claim(store, now=0.0, key=str(turn))
            if completed:
                assert store.complete(old, now=0.0)
            states = self.claim_together(store, now=TTL, key=str(turn))
            assert ["granted"] + ["pending"] * 5 == states

    def claim_together(self, store: IdempotencyStore, *, now: float, key: str) -> list[str]:
        return sorted(together(*[lambda: self.claim(store, now, key).state] * 6))

    def test_completion_and_takeover_exclude_each_other(self, store: IdempotencyStore) -> None:
        """
        At the end of the lease either the holder completes or another one is granted.
        """
        for turn in range(40):
            held = self.claim(store, now=0.0, key=str(turn))
            complete = partial(store.complete, held, now=LEASE)
            claim = partial(self.claim, store, now=LEASE, key=str(turn))
            completed, *claims = together(complete, claim, claim, claim)
            granted = [each.state for each in claims].count("granted")
            assert (completed, granted) in ((True, 0), (False, 1))
            assert ("done" if completed else "pending") == claim().state

    def test_a_waiting_thread_is_never_forgotten(self, store: IdempotencyStore) -> None:
        """
        Whoever is promised a call while the holder completes gets it.
        """
        for turn in range(40):
            held = self.claim(store, now=0.0, key=str(turn))
            waiting = self.claim(store, now=1.0, key=str(turn))
            called: list[int] = []
            complete = partial(store.complete, held, now=2.0)
            wait = partial(store.add_waiter, waiting, partial(called.append, turn))
            _, *promised = together(complete, wait, wait, wait)
            assert promised.count(True) == len(called)
