"""
The right to consume one subscription, as far as this process has it.

Law: asks, renews and gives back; what is done with the right is decided elsewhere. A lease
is taken over from somebody only if he is known to be gone, or does not renew it though he
could: for the time by which it has run out is another's, or was set forward, and nobody
renews while a third program holds the file. So whoever finds a lease run out writes, too,
and then gives its holder as long as healthy ones need.
"""

from __future__ import annotations

from threading import Lock

import attrs

from eventbus._clock import Clock
from eventbus._fork import renewed
from eventbus._logger import logger
from eventbus._owner import is_gone, owner
from eventbus.progress import Lease, Progress
from eventbus.store import Store

__all__ = ["Tenure", "Watch"]

_STANDBY = 1.0  # seconds between two questions whether a lease is free, at most
_GRACE = 1.0  # seconds, beyond a third of a lease, in which healthy holders renew theirs


class Watch:
    """
    What can be told of whoever holds a lease, by looking at it again and again.

    Args:
        name: The subscription's.
        seconds: How long a lease lasts unless renewed.
        progress: Where leases are kept.
        clock: What tells the time.
    """

    def __init__(self, name: str, seconds: float, progress: Progress, clock: Clock) -> None:
        self._name = name
        self._seconds = seconds
        self._progress = progress
        self._clock = clock
        self._since = 0.0
        self._seen: Lease | None = None
        self._wrote_at: float | None = None

    def holder(self) -> Lease | None:
        """
        Return the lease that somebody holds now.
        """
        return self._progress.position(self._name).lease

    def is_gone(self, holder: Lease, now: float) -> bool:
        """
        Whether the holder needs the lease no more, for all that has been seen until *now*.
        """
        if is_gone(holder.owner):
            return True
        if holder != self._seen:
            self._seen, self._since, self._wrote_at = holder, now, None
        if self._clock.time() < holder.expires and now - self._since <= self._seconds:
            return False
        if self._wrote_at is None:
            # It changes nothing, for nobody has that lease, and it waits as any write does.
            self._progress.release(attrs.evolve(holder, token=-1))
            self._wrote_at = self._clock.monotonic()
        return now - self._wrote_at > self._seconds / 3 + _GRACE

    def is_undecided(self) -> bool:
        """
        Whether the lease has run out, and its holder may yet turn out to be well.
        """
        holder = self.holder()
        if holder is None or self.is_gone(holder, self._clock.monotonic()):
            return False
        return self._clock.time() >= holder.expires


class Tenure:
    """
    The lease of one subscription, or the wait for it.

    Args:
        name: The subscription's.
        seconds: How long a lease lasts unless renewed.
        store: Where leases are kept.
        clock: The bus's.

    Attributes:
        lease: The lease, while it is held.
        is_waiting: Somebody else has it.
    """

    def __init__(self, name: str, seconds: float, store: Store, clock: Clock) -> None:
        self.lease: Lease | None = None
        self.is_waiting = False
        self._name = name
        self._seconds = seconds
        self._store = store
        self._clock = clock
        self._watch = Watch(name, seconds, store.progress, clock)
        self._renew_at = self._ask_at = 0.0
        self._lock = renewed(Lock())  # held by who renews, while the lease is this one

    def renew(self, now: float) -> None:
        """
        Let the lease run anew, if it is time; from any thread.

        Raises:
            LeaseLostError: Somebody else has it by now.
        """
        with self._lock:
            if self.lease is not None and now >= self._renew_at:
                time, progress = self._clock.time(), self._store.progress
                self.lease = progress.renew(self.lease, ttl=self._seconds, now=time)
                self._renew_at = now + self._seconds / 3

    def ask(self, now: float) -> bool:
        """
        Ask for the lease, if it is time; whether it is held now.
        """
        if now < self._ask_at:
            return False
        self._ask_at = now + min(_STANDBY, self._seconds / 3)
        holder = self._watch.holder()
        if holder is None or self._watch.is_gone(holder, now):
            self._renew_at = now + self._seconds / 3
            self.lease = self._store.progress.acquire(
                self._name,
                owner=owner(),
                ttl=self._seconds,
                now=self._clock.time(),
                instead_of=holder,
            )
        if self.lease is None and not self.is_waiting:
            logger().info("%s is consumed by %s; this process stands by", self._name, holder)
        self.is_waiting = self.lease is None
        return self.lease is not None

    def give_back(self) -> None:
        """
        Let somebody else have it, at once if the store can be reached.
        """
        lease, self._ask_at = self.lose(), 0.0
        if lease is None:
            return
        try:
            self._store.progress.release(lease)
        except Exception:
            logger().exception("the lease of %s is not given back; it ends by itself", self._name)

    def lose(self) -> Lease | None:
        """
        Have it no more; return what was held.
        """
        with self._lock:
            lease, self.lease = self.lease, None
        return lease
