"""
Positions, pending deliveries and leases in memory.

Law: an account is a value, and a step makes another one of it: whatever goes wrong on the
way leaves the old one as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from math import inf
from typing import Any

import attrs

from eventbus.errors import LeaseLostError
from eventbus.event_log import check_limit
from eventbus.kept_letters import KeptLetter, Selection
from eventbus.memory._letters import MemoryLetters, missing
from eventbus.memory._log import InMemoryEventLog
from eventbus.progress import (
    Advance,
    Handled,
    Lease,
    Pending,
    Position,
    Start,
    Step,
    Transaction,
    lost,
    unknown,
)

__all__ = ["MemoryProgress"]

Open = Callable[[Lease | str], AbstractContextManager[Transaction]]
AOpen = Callable[[Lease | str], AbstractAsyncContextManager[Transaction]]


@attrs.frozen
class _Account:
    """
    What is known of one subscription.
    """

    taken: int
    pending: Mapping[int, Pending] = attrs.field(factory=dict[int, Pending])
    lease: Lease | None = None

    @property
    def offset(self) -> int:
        return min(self.pending, default=self.taken + 1) - 1


@attrs.define
class _Changes:
    """
    What is to become of the letters.
    """

    kept: MemoryLetters
    added: list[KeptLetter] = attrs.field(init=False, factory=list[KeptLetter])
    gone: list[str] = attrs.field(init=False, factory=list[str])

    def take_out(self, id: str, subscription: str) -> None:
        if id in self.gone or self.kept.get(id).subscription != subscription:
            raise missing(id)
        self.gone.append(id)

    def held_keys(self, subscription: str) -> set[str]:
        kept = self.kept.holding(subscription)
        left = [*(each for each in kept if each.id not in self.gone), *self.added]
        keys = {each.record.key for each in left if each.holds_key}
        return {key for key in keys if key is not None}


class MemoryProgress:
    """
    Keeps accounts in this process, until it ends.

    Args:
        log: The log they are about.
        letters: Where dead letters go.
        lock: What to hold while something changes; reentrant.
        transaction: Opens a transaction.
        atransaction: Opens one, waiting in the calling task.
    """

    def __init__(
        self,
        log: InMemoryEventLog,
        letters: MemoryLetters,
        lock: AbstractContextManager[Any],
        transaction: Open,
        atransaction: AOpen,
    ) -> None:
        self._log = log
        self._letters = letters
        self._lock = lock
        self._accounts: dict[str, _Account] = {}
        self._handled: dict[str, dict[int, Handled]] = {}
        self._last_token = 0
        self._open = transaction
        self._aopen = atransaction

    def open(self, name: str, *, start: Start = "now") -> Position:
        """
        Return where the subscription stands; *start* decides the first time only.
        """
        with self._lock:
            if name not in self._accounts:
                self._accounts[name] = _Account(self._offset_at(start))
            return self.position(name)

    def _offset_at(self, start: Start) -> int:
        if isinstance(start, datetime):
            return self._log.offset_before(start)
        if isinstance(start, int):
            return start
        return self._log.last_offset() if start == "now" else 0

    def position(self, name: str) -> Position:
        """
        Return where the subscription stands.
        """
        with self._lock:
            account = self._account(name)
            return Position(
                name=name,
                offset=account.offset,
                taken=account.taken,
                pending=len(account.pending),
                lag=self._log.count_after(account.taken) + len(account.pending),
                dead=self._letters.count(Selection(subscription=name)),
                lease=account.lease,
            )

    def positions(self) -> list[Position]:
        """
        Return where all subscriptions stand, by name.
        """
        with self._lock:
            return [self.position(name) for name in sorted(self._accounts)]

    def floor(self) -> float:
        """
        Return the offset up to which every subscription has finished.
        """
        return min((account.offset for account in self._accounts.values()), default=inf)

    def forget(self, name: str) -> None:
        """
        Forget the subscription's position and pending deliveries; its letters stay.
        """
        with self._lock:
            self._account(name)
            del self._accounts[name]
            self._handled.pop(name, None)

    def acquire(
        self, name: str, *, owner: str, ttl: float, now: float, instead_of: Lease | None = None
    ) -> Lease | None:
        """
        Ask for the right to consume the subscription; of all who ask, one gets it.
        """
        with self._lock:
            account = self._account(name)
            holder = account.lease
            if holder is not None and now < holder.expires and not _is(holder, instead_of):
                return None
            self._last_token += 1
            lease = Lease(name, owner, self._last_token, now + ttl)
            self._accounts[name] = attrs.evolve(account, lease=lease)
            return lease

    def renew(self, lease: Lease, *, ttl: float, now: float) -> Lease:
        """
        Let the lease run anew from *now*.
        """
        with self._lock:
            account = self.fenced(lease)
            renewed = attrs.evolve(lease, expires=now + ttl)
            self._accounts[lease.subscription] = attrs.evolve(account, lease=renewed)
            return renewed

    def release(self, lease: Lease) -> bool:
        """
        Give the lease back; ``False`` when it was lost already.
        """
        with self._lock:
            try:
                account = self.fenced(lease)
            except LeaseLostError:
                return False
            self._accounts[lease.subscription] = attrs.evolve(account, lease=None)
            return True

    def release_all(self) -> None:
        """
        End every lease, as if its owner had been dead for a while.
        """
        with self._lock:
            for name, account in self._accounts.items():
                self._accounts[name] = attrs.evolve(account, lease=None)

    def fenced(self, lease: Lease | str) -> _Account:
        """
        Return the account that *lease* is for, or raise `LeaseLostError`.
        """
        if isinstance(lease, str):
            return self._account(lease)
        account = self._accounts.get(lease.subscription)
        holder = None if account is None else account.lease
        if account is None or not _is(lease, holder):
            raise lost(lease)
        return account

    def advance(self, lease: Lease, step: Step) -> Advance:
        """
        Apply *step*, all of it or nothing.
        """
        with self._lock:
            advance = self.try_out(lease, [step])
            self.prepare(lease, [step])()
            return advance

    def prepare(self, lease: Lease | str, steps: Sequence[Step]) -> Callable[[], None]:
        """
        Return what applies *steps* and cannot fail while the lock is held.
        """
        account, letters, _ = self._after(lease, steps)
        name = lease if isinstance(lease, str) else lease.subscription
        keep = self._letters.prepare(letters.added, letters.gone)

        def install() -> None:
            keep()
            self._accounts[name] = account
            handled = self._handled.setdefault(name, {})
            handled.update((each.offset, each) for step in steps for each in step.handled)

        return install

    def try_out(self, lease: Lease | str, steps: Sequence[Step]) -> Advance:
        """
        Tell what came of the last of *steps*, were they applied now.
        """
        with self._lock:
            return self._after(lease, steps)[2]

    def _after(
        self, lease: Lease | str, steps: Sequence[Step]
    ) -> tuple[_Account, _Changes, Advance]:
        account, advance = self.fenced(lease), Advance({})
        name = lease if isinstance(lease, str) else lease.subscription
        letters = _Changes(self._letters)
        for step in steps:
            account, advance = self._apply(step, account, name, letters)
        return account, letters, advance

    def _apply(
        self, step: Step, account: _Account, name: str, letters: _Changes
    ) -> tuple[_Account, Advance]:
        pending = dict(account.pending)
        for letter_id in step.gone:
            letters.take_out(letter_id, name)
        for offset in step.done:
            pending.pop(offset, None)
        for offset in step.untried:
            if (delivery := pending.get(offset)) and delivery.attempts:
                pending[offset] = attrs.evolve(delivery, attempts=delivery.attempts - 1)
        for retry in step.retry:
            if delivery := pending.get(retry.offset):
                pending[retry.offset] = attrs.evolve(delivery, due=retry.due, story=retry.story)
        letters.added += [
            each for each in step.dead if pending.pop(each.record.offset, None) is not None
        ]
        keys = letters.held_keys(name) if step.hold else set[str]()
        held = [
            each
            for each in step.hold
            if each.record.key in keys and pending.pop(each.record.offset, None) is not None
        ]
        for offset in step.waiting:
            pending.setdefault(offset, Pending(offset=offset))
        for offset in step.begin:
            delivery = pending.get(offset, Pending(offset=offset))
            pending[offset] = attrs.evolve(delivery, attempts=delivery.attempts + 1, due=None)
        attempts = {offset: pending[offset].attempts for offset in step.begin}
        taken = account.taken if step.taken is None else max(account.taken, step.taken)
        changed = attrs.evolve(account, taken=taken, pending=pending)
        letters.added += held
        return changed, Advance(attempts, frozenset(each.record.offset for each in held))

    async def aadvance(self, lease: Lease, step: Step) -> Advance:
        """
        Do as `advance`, which waits for nothing here.
        """
        return self.advance(lease, step)

    def take_up(self, lease: Lease, keys: Collection[str], *, now: float) -> dict[str, list[int]]:
        """
        Let what is held of *keys* wait for its turn again.
        """
        with self._lock:
            account, name = self.fenced(lease), lease.subscription
            taken = self._letters.free(name, keys, now=now)
            waiting = {each: Pending(offset=each) for offsets in taken.values() for each in offsets}
            pending = {**waiting, **account.pending}
            self._accounts[name] = attrs.evolve(account, pending=pending)
            return taken

    def transaction(self, of: Lease | str, /) -> AbstractContextManager[Transaction]:
        """
        Open a transaction that commits at the end of the ``with`` block.
        """
        return self._open(of)

    def atransaction(self, of: Lease | str, /) -> AbstractAsyncContextManager[Transaction]:
        """
        Do as `transaction`; whoever it waits for, the event loop goes on.
        """
        return self._aopen(of)

    def pending(self, name: str, *, after: int = 0, limit: int | None = None) -> list[Pending]:
        """
        Return the deliveries taken and not finished, in the order of their offsets.
        """
        check_limit(limit)
        with self._lock:
            pending = self._account(name).pending
        return [pending[offset] for offset in sorted(pending) if offset > after][:limit]

    def handled(self, offset: int) -> dict[str, Handled]:
        """
        Return, by subscription, who remembers to have handled a record.
        """
        with self._lock:
            first = next((each.offset for each in self._log.read(limit=1)), inf)
            for handled in self._handled.values():
                for pruned in [each for each in handled if each < first]:
                    del handled[pruned]
            found = {name: each.get(offset) for name, each in sorted(self._handled.items())}
        return {name: handled for name, handled in found.items() if handled is not None}

    def reset(self, lease: Lease, *, to: int) -> None:
        """
        Begin again after offset *to*: what was pending is forgotten, letters stay.
        """
        with self._lock:
            account = self.fenced(lease)
            self._accounts[lease.subscription] = attrs.evolve(account, taken=to, pending={})

    def _account(self, name: str) -> _Account:
        try:
            return self._accounts[name]
        except KeyError:
            raise unknown(name) from None


def _is(lease: Lease, other: Lease | None) -> bool:
    return other is not None and lease.token == other.token
