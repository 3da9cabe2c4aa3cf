"""
Idempotency keys claimed in a transaction that may yet be rolled back.

Law: a key is claimed at once, so that others meet it; a success is recorded when the
transaction commits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eventbus.idempotency import Claim, HasId, IdempotencyStore

__all__ = ["StagedKeys"]


class StagedKeys:
    """
    The keys of one transaction, in front of the store that keeps them.
    """

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store
        self._claimed: list[Claim] = []
        self._completed: list[tuple[Claim, float]] = []

    def claim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        """
        Ask for a key; it is free again if the transaction is rolled back.
        """
        claim = self._store.claim(scope, key, source=source, now=now)
        if claim.state == "granted":
            self._claimed.append(claim)
        return claim

    def renew(self, claim: Any, *, now: float) -> bool:
        """
        Let the lease run anew from *now*.
        """
        return self._store.renew(claim, now=now)

    def complete(self, claim: Any, *, now: float) -> bool:
        """
        Record success when the transaction commits; ``False`` when fenced off.
        """
        is_ours = self._store.renew(claim, now=now)
        if is_ours:
            self._completed.append((claim, now))
        return is_ours

    def release(self, claim: Any) -> bool:
        """
        Free the key at once.
        """
        return self._store.release(claim)

    def add_waiter(self, claim: Any, callback: Callable[[], object]) -> bool | None:
        """
        Have *callback* called when the holder that a pending *claim* met is settled.
        """
        return self._store.add_waiter(claim, callback)

    def settle(self) -> None:
        """
        Record the successes: the transaction has committed.
        """
        for claim, now in self._completed:
            self._store.complete(claim, now=now)

    def undo(self) -> None:
        """
        Free what was claimed: the transaction was rolled back.
        """
        for claim in self._claimed:
            self._store.release(claim)
