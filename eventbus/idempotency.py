"""
Who may handle a key: the claim, the store's protocol, and the store in memory.

Law: a store decides, it does not wait. Every method takes *now*, in seconds on the
bus's monotonic clock; nothing here reads a clock, sleeps or calls a handler.

A key is a pair (scope, key). Its life::

    free ──claim──► pending ──complete──► done ──ttl──► free
                      ├──release─────────────┴────────► free
                      └──lease ends: the next claim takes the key over

A claim is its own fence: once another one has taken the key over, or the key was
forgotten, whatever the late holder does answers ``False`` and touches nothing.

Source: leases and fencing: M. Kleppmann, "How to do distributed locking", 2016.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import repeat
from math import inf
from threading import Lock
from typing import Any, Protocol
from weakref import ref

import attrs

from eventbus._fork import renewed
from eventbus._held import ClaimState, Held, Refused, refuse
from eventbus._logger import logger

__all__ = ["Claim", "HasId", "IdempotencyStore", "InMemoryIdempotencyStore"]


class HasId(Protocol):
    """
    What knows the id of the event that is being handled.

    .. versionadded:: 0.1
    """

    @property
    def id(self) -> str:
        """
        The event's id, perhaps made only now.
        """
        ...


class Claim(Protocol):
    """
    What a store answers when a key is claimed.

    .. versionadded:: 0.1
    """

    @property
    def state(self) -> ClaimState:
        """
        ``granted``: the key is yours. ``done``: a success is on record.

        ``pending``: another holder is at it, and its lease has not ended.
        """
        ...

    @property
    def event_id(self) -> str | None:
        """
        The id of the event that holds the key, ``None`` where that is not known.
        """
        ...

    @property
    def expires(self) -> float:
        """
        When the lease (granted, pending) or the ttl (done) ends, as far as known.
        """
        ...


class IdempotencyStore(Protocol):
    """
    Remembers which keys are being handled and which have been.

    All methods may be called from any thread. Every *claim* argument is what this store's own
    `claim` returned; one that was not granted owns nothing. Intervals are half open: at the
    instant a lease or a ttl ends, the key is free. ``look(scope, key, *, now)`` is optional:
    what a claim would meet, or ``None``. `eventbus.testing.contracts` holds what each passes.

    .. versionadded:: 0.1
    """

    def claim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        """
        Ask for a key; of all who ask for a free one, exactly one is granted.

        Keys of different scopes never meet; the empty text is a key like any other.
        *source* stands for the event; a store need not ask for its id, nor keep it alive.
        """
        ...

    def renew(self, claim: Any, *, now: float) -> bool:
        """
        Let the lease run anew from *now*; ``False`` when fenced off, freed or completed.

        A lease that has ended is renewed while nobody has taken the key over.
        """
        ...

    def complete(self, claim: Any, *, now: float) -> bool:
        """
        Record success for one ttl from *now*; ``False`` when fenced off.

        A lease that has ended does not matter until the key is taken over.
        """
        ...

    def release(self, claim: Any) -> bool:
        """
        Free the key, pending or completed; ``False`` when fenced off.
        """
        ...

    def add_waiter(self, claim: Any, callback: Callable[[], object]) -> bool | None:
        """
        Have *callback* called, once, when the holder a pending *claim* met is settled.

        Settled: completed, released, taken over or forgotten. The thread that did it calls,
        outside any lock; *callback* must be quick and not raise. A crashed holder settles
        nothing: wait until `Claim.expires`, then claim again.

        Returns:
            Whether it will be called. If not, the holder is settled already: claim again.
            ``None``: this store cannot call back at all; claim again every now and then.
        """
        ...


@attrs.define(eq=False, kw_only=True)
class InMemoryIdempotencyStore:
    """
    Remembers keys in this process, until it ends.

    The source of a key is kept by a weak reference, if it has any, and asked for its id
    only when a duplicate wants it: once the source is gone, that is not known.

    Args:
        ttl: How long a success is remembered, in seconds. The default is a day.
        lease: How long a holder may be silent before its key is free, in seconds.
        capacity: How many keys to remember at most. Beyond it, those whose success is
            the oldest are forgotten, up to a sixty-fourth of the capacity in one go.
            Pending keys are never forgotten, even where they alone are too many.

    .. versionadded:: 0.1
    """

    # Why claim and complete need no lock. A record enters *_records* by `dict.setdefault`
    # alone, which is atomic. It leaves only under *_lock*, a pending one only after its
    # *open* was taken. So whoever takes *open* in `complete` still owns the key, and a
    # takeover at the same time loses the race for *open* and finds a success.

    ttl: float = attrs.field(default=86_400.0, validator=attrs.validators.gt(0))
    lease: float = attrs.field(default=300.0, validator=attrs.validators.gt(0))
    capacity: int = attrs.field(default=100_000, validator=attrs.validators.ge(1))
    _records: dict[tuple[str, str], Held] = attrs.field(init=False, factory=dict, repr=False)
    _finished: deque[Held] = attrs.field(init=False, factory=deque, repr=False)
    _lock: Lock = attrs.field(init=False, factory=Lock, repr=False)
    _tidy_at: int = attrs.field(init=False, default=0, repr=False)  # at so many records
    _scan_at: int = attrs.field(init=False, default=0, repr=False)  # at so many pending ones

    def __attrs_post_init__(self) -> None:
        renewed(self)

    def _at_fork_reinit(self) -> None:
        """
        Remember what was done, in a forked child; what is pending, its parent handles.
        """
        self._lock = Lock()
        for record in list(self._records.values()):
            if not record.is_done:
                del self._records[record.name]

    def claim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        """
        Ask for a key; of all who ask for a free one, exactly one is granted.
        """
        held = Held()
        held.name = name = (scope, key)
        try:
            held.source = ref(source)
        except TypeError:
            held.source = repeat(source).__next__  # a lambda would cost every claim a cell
        held.expires = now + self.lease
        held.open = True
        held.waiters = None
        records = self._records
        if records.setdefault(name, held) is not held:
            return self._contend(held, now)
        if len(records) > self._tidy_at:
            self._make_room(now)
        return held

    def renew(self, claim: Any, *, now: float) -> bool:
        """
        Let the lease run anew from *now*; ``False`` when fenced off, freed or completed.
        """
        with self._lock:
            if is_ours := self._owns(claim) and hasattr(claim, "open"):
                claim.expires = now + self.lease
            return is_ours

    def complete(self, claim: Any, *, now: float) -> bool:
        """
        Record success for one ttl from *now*; ``False`` when fenced off.
        """
        try:
            claim.ttl_ends = now + self.ttl
            del claim.open
        except AttributeError:  # decided before; or refused, which can store nothing
            with self._lock:
                return self._owns(claim)
        self._finished.append(claim)
        if claim.waiters is not None:
            self._wake([claim])
        return True

    def release(self, claim: Any) -> bool:
        """
        Free the key, pending or completed; ``False`` when fenced off.
        """
        with self._lock:
            if not self._owns(claim):
                return False
            self._remove(claim)
        self._wake([claim])
        return True

    def add_waiter(self, claim: Claim, callback: Callable[[], object]) -> bool:
        """
        Have *callback* called, once, when the holder *claim* met is settled.
        """
        if not isinstance(claim, Refused):
            return False
        holder = claim.holder
        with self._lock:
            # First in, then look: `complete` takes *open* first and then looks in here.
            holder.waiters = [*(holder.waiters or ()), callback]
            if hasattr(holder, "open"):
                return True
            holder.waiters.pop()
        return False

    def look(self, scope: str, key: str, *, now: float) -> Claim | None:
        """
        Return what a claim would meet, without making it; ``None`` where the key is free.

        .. versionadded:: 0.1
        """
        holder = self._records.get((scope, key))
        met = None if holder is None else refuse(holder)
        return met if met is not None and now < met.expires else None

    def forget(self, scope: str, key: str) -> bool:
        """
        Free a key whoever holds it; ``False`` when it is free.

        .. versionadded:: 0.1
        """
        with self._lock:
            record = self._records.get((scope, key))
            if record is None:
                return False
            self._remove(record)
        self._wake([record])
        return True

    def clear(self) -> None:
        """
        Free all keys whoever holds them.

        .. versionadded:: 0.1
        """
        for name in list(self._records):
            self.forget(*name)

    def __len__(self) -> int:
        return len(self._records)  # with some that are free, but not swept out yet

    def _owns(self, claim: Claim) -> bool:
        return isinstance(claim, Held) and self._records.get(claim.name) is claim

    def _contend(self, held: Held, now: float) -> Claim:
        lapsed: list[Held] = []
        with self._lock:
            holder = self._records.setdefault(held.name, held)
            if holder is not held and holder.has_expired(now):
                self._remove(holder)
                lapsed, holder = [holder], self._records.setdefault(held.name, held)
            claim = held if holder is held else refuse(holder)
        self._wake(lapsed)
        return claim

    def _remove(self, record: Held) -> None:
        record.close()
        del self._records[record.name]
        finished = self._finished
        if len(finished) > 2 * len(self._records) + 64:  # most were taken out in this way
            for _ in range(len(finished)):  # in place: `complete` may append meanwhile
                each = finished.popleft()
                if self._owns(each):
                    finished.append(each)

    def _make_room(self, now: float) -> None:
        with self._lock:  # what has expired goes; beyond capacity, the oldest successes, too
            self._shrink(now, keep=inf)
            lapsed = self._sweep_lapsed(now)
            slack = self.capacity // 64  # so many claims share the next tidying up
            if len(self._records) > self.capacity:
                self._shrink(now, keep=self.capacity - slack)
            self._tidy_at = min(self.capacity, len(self._records) + slack)
        self._wake(lapsed)

    def _shrink(self, now: float, *, keep: float) -> None:
        finished, records = self._finished, self._records
        while finished and (now >= finished[0].ttl_ends or len(records) > keep):
            record = finished.popleft()
            if self._owns(record):
                del records[record.name]

    def _sweep_lapsed(self, now: float) -> list[Held]:
        # Crashed holders go, each time the pending keys have doubled in number.
        if len(self._records) - len(self._finished) <= self._scan_at:
            return []
        lapsed = [each for each in list(self._records.values()) if each.has_expired(now)]
        for record in lapsed:
            del self._records[record.name]
        pending = len(self._records) - len(self._finished)
        self._scan_at = max(self.capacity // 2, 2 * pending)
        return lapsed

    def _wake(self, records: list[Held]) -> None:
        for record in records:
            with self._lock:
                waiters, record.waiters = record.waiters, None
            for callback in waiters or ():
                try:
                    callback()
                except Exception:
                    logger().exception("waiter %r raised", callback)
