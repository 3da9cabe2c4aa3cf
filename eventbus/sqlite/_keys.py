"""
Idempotency keys in a table: one claim among threads and processes.

Law: a store decides, it does not wait. Time comes in on the caller's monotonic clock and
is kept as wall time, in nanoseconds, so that processes agree on it; how far the two are
apart is measured once, when the store is made. So a wall clock that is set back later
prolongs nothing here, and in processes started after it by as much. A claim tells whose it
is: that of a process which is known not to run any more stands in nobody's way.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal, TypeVar

import attrs

from eventbus._clock import Clock
from eventbus._logger import logger
from eventbus._owner import is_gone, owner
from eventbus.errors import StoreClosedError
from eventbus.idempotency import Claim, HasId
from eventbus.sqlite._writer import Statements, Work, Writer, cursor_of

__all__ = ["SQLiteIdempotencyStore", "Shift"]

T = TypeVar("T")
_Row = tuple[int, str | bytes | None, int, str | bytes]
_ENDLESS = 2**62  # nanoseconds: the year 2116

_CLAIM = """
    INSERT INTO eventbus_keys (scope, key, token, event_id, is_done, expires)
    VALUES (?, ?, ?, ?, FALSE, ?)
    ON CONFLICT (scope, key) DO UPDATE
    SET token = excluded.token, event_id = excluded.event_id, is_done = FALSE,
        expires = excluded.expires
    WHERE expires <= ? OR token = ?
    RETURNING token
"""
_HOLDER = "SELECT is_done, event_id, expires, token FROM eventbus_keys WHERE scope = ? AND key = ?"
_OWN = "scope = ? AND key = ? AND token = ?"
_RENEW = f"UPDATE eventbus_keys SET expires = ? WHERE {_OWN} AND NOT is_done"
_COMPLETE = f"""
    UPDATE eventbus_keys SET expires = CASE WHEN is_done THEN expires ELSE ? END, is_done = TRUE
    WHERE {_OWN}
"""
_RELEASE = f"DELETE FROM eventbus_keys WHERE {_OWN}"
_SWEEP = """
    DELETE FROM eventbus_keys WHERE (scope, key) IN (
        SELECT scope, key FROM eventbus_keys WHERE is_done AND expires <= ? LIMIT 64
    )
"""
_SWEEP_EVERY = 32  # claims; half of what one sweep takes, so that it keeps up with them


@attrs.frozen
class KeyClaim:
    """
    What came of asking for a key.
    """

    name: tuple[str, str]
    token: str
    state: Literal["granted", "done", "pending"]
    event_id: str | None
    expires: float


@attrs.frozen
class _Asked:
    """
    A claim that will be made: what it is if granted, and what asks for it.
    """

    claim: KeyClaim
    work: Work[list[_Row]]


@attrs.frozen
class Shift:
    """
    How far the wall clock is ahead of a monotonic one, in nanoseconds.
    """

    nanoseconds: int

    @classmethod
    def of(cls, clock: Clock) -> Shift:
        """
        Measure it now.
        """
        return cls(round((clock.time() - clock.monotonic()) * 1e9))

    def to_wall(self, monotonic: float) -> int:
        """
        Return wall time in nanoseconds.
        """
        return min(round(min(monotonic, 1e10) * 1e9) + self.nanoseconds, _ENDLESS)

    def to_monotonic(self, nanoseconds: int) -> float:
        """
        Return seconds on the monotonic clock.
        """
        return (nanoseconds - self.nanoseconds) / 1e9


class SQLiteIdempotencyStore:
    """
    Keeps keys in the file of a `SQLiteStore`, for all processes that have it open.

    `SQLiteStore.idempotency` is one, and `SQLiteStore.keys` makes others of the same keys.
    It cannot call back whoever waits for a key: a holder may be in another process.

    Attributes:
        path: The file.
        ttl: How long a success is remembered, in seconds.
        lease: How long a holder may be silent before its key is free, in seconds.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        run: Callable[[Work[Any]], Any],
        query: Callable[[str, Sequence[Any]], list[Any]],
        *,
        writer: Writer | None = None,
        path: str,
        shift: Shift,
        new_token: Callable[[], str],
        ttl: float,
        lease: float,
    ) -> None:
        for name, value in (("ttl", ttl), ("lease", lease)):
            if not value > 0:
                raise ValueError(f"{name} must be greater than 0 seconds, not {value!r}")
        self._run = run
        self._query = query
        self._writer = writer
        self._shift = shift
        self._new_token = new_token
        self._claims = 0
        self.path = path
        self.ttl = ttl
        self.lease = lease

    def on(self, connection: sqlite3.Connection) -> SQLiteIdempotencyStore:
        """
        Return the same store as part of the transaction that is open on *connection*.

        What is claimed, completed and released through it counts when its owner commits.
        """
        return SQLiteIdempotencyStore(
            lambda work: work(cursor_of(connection)),
            lambda sql, given: cursor_of(connection).execute(sql, given).fetchall(),
            path=self.path,
            shift=self._shift,
            new_token=self._new_token,
            ttl=self.ttl,
            lease=self.lease,
        )

    def claim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        """
        Ask for a key; of all who ask for a free one, in all processes, one is granted.
        """
        return self._claimed(asked := self._ask(scope, key, source, now), self._run(asked.work))

    async def aclaim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        """
        Do as `claim`, while the event loop goes on. Cancelled, it holds nothing.
        """
        asked = self._ask(scope, key, source, now)
        if self._writer is None:  # it is part of a transaction that is open already
            return self._claimed(asked, self._run(asked.work))
        try:
            return self._claimed(asked, await self._writer.arun(asked.work))
        except BaseException as error:
            if not isinstance(error, Exception):  # it is written all the same
                with suppress(StoreClosedError):  # what writes is closed: its lease ends
                    self.release_later(asked.claim)
            raise

    def _ask(self, scope: str, key: str, source: HasId, now: float) -> _Asked:
        # Its owner first: see `is_gone`.
        token, event_id = f"{owner()} {self._new_token()}", source.id
        present = self._shift.to_wall(now)
        expires = self._shift.to_wall(now + self.lease)
        self._claims += 1
        sweeps = self._claims % _SWEEP_EVERY == 0

        def work(connection: Statements) -> list[_Row]:
            def ask(instead_of: str) -> list[_Row]:
                given = (scope, key, token, event_id, expires, present, instead_of)
                if connection.execute(_CLAIM, given).fetchall():
                    return []
                return connection.execute(_HOLDER, (scope, key)).fetchall()

            if sweeps:
                connection.execute(_SWEEP, (present,))
            held = ask("")
            return ask(_text(held[0][3])) if held and _is_left(held[0]) else held

        granted = KeyClaim((scope, key), token, "granted", event_id, now + self.lease)
        return _Asked(granted, work)

    def _claimed(self, asked: _Asked, held: list[_Row]) -> KeyClaim:
        return self._held(*asked.claim.name, held[0]) if held else asked.claim

    def look(self, scope: str, key: str, *, now: float) -> Claim | None:
        """
        Return what a claim would meet, without making it; ``None`` where the key is free.

        It waits for nobody who writes, and sees what was committed before.
        """
        present, held = self._shift.to_wall(now), self._query(_HOLDER, (scope, key))
        is_free = not held or held[0][2] <= present or _is_left(held[0])
        return None if is_free else self._held(scope, key, held[0])

    def _held(self, scope: str, key: str, row: _Row) -> KeyClaim:
        is_done, event_id, expires, _ = row
        event_id = None if event_id is None else _text(event_id)
        state: Literal["done", "pending"] = "done" if is_done else "pending"
        return KeyClaim((scope, key), "", state, event_id, self._shift.to_monotonic(expires))

    def renew(self, claim: Any, *, now: float) -> bool:
        """
        Let the lease run anew from *now*; ``False`` when fenced off, freed or completed.
        """
        return self._change(_RENEW, claim, self._shift.to_wall(now + self.lease))

    def complete(self, claim: Any, *, now: float) -> bool:
        """
        Record success for one ttl from *now*; ``False`` when fenced off.
        """
        return self._change(_COMPLETE, claim, self._shift.to_wall(now + self.ttl))

    def release(self, claim: Any) -> bool:
        """
        Free the key, pending or completed; ``False`` when fenced off.
        """
        return self._change(_RELEASE, claim)

    async def acomplete(self, claim: Any, *, now: float) -> bool:
        """
        Do as `complete`, while the event loop goes on.
        """
        if self._writer is None:
            return self.complete(claim, now=now)
        return (
            await self._writer.arun(
                _changing(_COMPLETE, claim, self._shift.to_wall(now + self.ttl))
            )
            > 0
        )

    def complete_later(self, claim: Any, *, now: float) -> None:
        """
        Do as `complete` after all that was asked for before, and wait for nothing.
        """
        if self._writer is None:
            self.complete(claim, now=now)
            return
        work = _changing(_COMPLETE, claim, self._shift.to_wall(now + self.ttl))
        self._writer.post(work, failed=partial(_not_changed, claim.name, "recorded"))

    def release_later(self, claim: Any) -> None:
        """
        Free the key after all that was asked for before, and wait for nothing.
        """
        if self._writer is None:
            self.release(claim)
            return
        work = _changing(_RELEASE, claim)
        self._writer.post(work, failed=partial(_not_changed, claim.name, "released"))

    def _change(self, sql: str, claim: KeyClaim, *values: int) -> bool:
        changed: int = self._run(_changing(sql, claim, *values))
        return changed > 0

    def add_waiter(self, claim: Any, callback: Callable[[], object]) -> None:
        """
        Answer that this store cannot call back.
        """


def _changing(sql: str, claim: KeyClaim, *values: int) -> Work[int]:
    given = (*values, *claim.name, claim.token)
    return lambda connection: connection.execute(sql, given).rowcount


def _not_changed(name: tuple[str, str], what: str, error: BaseException) -> None:
    logger().error("key %r of %s is not %s", *name[::-1], what, exc_info=error)


def _is_left(held: _Row) -> bool:
    """
    Whether a key is pending, and its holder is gone.
    """
    is_done, *_, token = held
    return not is_done and is_gone(_text(token))


def _text(found: str | bytes) -> str:
    # Bytes: as the application wants text on its connection.
    return found.decode() if isinstance(found, bytes) else found
