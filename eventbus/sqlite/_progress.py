"""
Positions, pending deliveries and leases in tables.

Law: whatever changes them is one transaction of the store's own writer, all of it or
nothing. Handlers' transactions are lent in another room.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import datetime
from typing import Any

import attrs

from eventbus.event_log import check_limit
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
from eventbus.sqlite._database import Database
from eventbus.sqlite._lending import Lending
from eventbus.sqlite._letters import free_key
from eventbus.sqlite._rows import from_time
from eventbus.sqlite._steps import apply, fence, let_wait
from eventbus.sqlite._writer import Statements, Writer

__all__ = ["SQLiteProgress"]

_POSITIONS = """
    SELECT
        name, taken,
        coalesce((SELECT min("offset") - 1 FROM eventbus_deliveries WHERE subscription = each.id),
                 taken),
        (SELECT count(*) FROM eventbus_deliveries WHERE subscription = each.id),
        coalesce((SELECT max("offset") FROM eventbus_events), 0)
            - max(taken, coalesce((SELECT min("offset") - 1 FROM eventbus_events), 0)),
        (SELECT count(*) FROM eventbus_letters WHERE subscription = each.name),
        owner, token, expires
    FROM eventbus_subscriptions AS each
"""
# Each takes the parameter that `Start` is translated to; "now" and "origin" have none.
_STARTS = {
    "now": 'coalesce((SELECT max("offset") FROM eventbus_events), 0)',
    "origin": "0",
    "offset": "?",
    "instant": 'coalesce((SELECT "offset" - 1 FROM eventbus_events WHERE time >= ? '
    'ORDER BY "offset" LIMIT 1), (SELECT max("offset") FROM eventbus_events), 0)',
}
_ACQUIRE = """
    UPDATE eventbus_subscriptions
    SET owner = ?, expires = ?,
        token = (SELECT value FROM eventbus_facts WHERE name = 'token')
    WHERE name = ? AND (token IS NULL OR expires <= ? OR token = ?)
    RETURNING token
"""


class SQLiteProgress:
    """
    Keeps positions in the file of a `SQLiteStore`, which makes it.
    """

    def __init__(
        self,
        database: Database,
        writer: Writer,
        lending: Lending,
    ) -> None:
        self._database = database
        self._writer = writer
        self._lending = lending

    def open(self, name: str, *, start: Start = "now") -> Position:
        """
        Return where the subscription stands; *start* decides the first time only.
        """
        kind, given = _start(start)
        sql = f"INSERT OR IGNORE INTO eventbus_subscriptions (name, taken) VALUES (?, {kind})"
        if not self._rows("WHERE name = ?", name):
            self._writer.run(lambda connection: connection.execute(sql, (name, *given)))
        return self.position(name)

    def position(self, name: str) -> Position:
        """
        Return where the subscription stands.
        """
        positions = self._rows("WHERE name = ?", name)
        if not positions:
            raise unknown(name)
        return positions[0]

    def positions(self) -> list[Position]:
        """
        Return where all subscriptions stand, by name.
        """
        return self._rows("ORDER BY name")

    def _rows(self, which: str, *parameters: str) -> list[Position]:
        return [
            Position(
                name=name,
                offset=offset,
                taken=taken,
                pending=pending,
                lag=max(0, ahead) + pending,
                dead=dead,
                lease=None if token is None else Lease(name, owner, token, expires),
            )
            for name, taken, offset, pending, ahead, dead, owner, token, expires in (
                self._database.query(_POSITIONS + which, parameters)
            )
        ]

    def forget(self, name: str) -> None:
        """
        Forget the subscription's position and pending deliveries; its letters stay.
        """

        def work(connection: Statements) -> None:
            sql = "DELETE FROM eventbus_subscriptions WHERE name = ? RETURNING id"
            rows = connection.execute(sql, (name,)).fetchall()
            if not rows:
                raise unknown(name)
            connection.execute("DELETE FROM eventbus_deliveries WHERE subscription = ?", rows[0])
            connection.execute("DELETE FROM eventbus_handled WHERE subscription = ?", rows[0])

        self._writer.run(work)

    def acquire(
        self, name: str, *, owner: str, ttl: float, now: float, instead_of: Lease | None = None
    ) -> Lease | None:
        """
        Ask for the right to consume the subscription; of all who ask, one gets it.
        """
        token = None if instead_of is None else instead_of.token

        def work(connection: Statements) -> int | None:
            connection.execute("UPDATE eventbus_facts SET value = value + 1 WHERE name = 'token'")
            rows = connection.execute(_ACQUIRE, (owner, now + ttl, name, now, token)).fetchall()
            return rows[0][0] if rows else None

        self.position(name)
        granted = self._writer.run(work)
        return None if granted is None else Lease(name, owner, granted, now + ttl)

    def renew(self, lease: Lease, *, ttl: float, now: float) -> Lease:
        """
        Let the lease run anew from *now*.
        """
        self._update(lease, "SET expires = ?", now + ttl)
        return attrs.evolve(lease, expires=now + ttl)

    def release(self, lease: Lease) -> bool:
        """
        Give the lease back; ``False`` when it was lost already.
        """
        sql = "UPDATE eventbus_subscriptions SET token = NULL WHERE name = ? AND token = ?"
        given = (lease.subscription, lease.token)
        return self._writer.run(lambda connection: connection.execute(sql, given).rowcount) > 0

    def _update(self, lease: Lease, change: str, *values: Any) -> None:
        sql = f"UPDATE eventbus_subscriptions {change} WHERE name = ? AND token = ?"
        given = (*values, lease.subscription, lease.token)
        if not self._writer.run(lambda connection: connection.execute(sql, given).rowcount):
            raise lost(lease)

    def advance(self, lease: Lease, step: Step) -> Advance:
        """
        Apply *step*, all of it or nothing.
        """
        return self._writer.run(lambda connection: apply(connection, lease, step))

    async def aadvance(self, lease: Lease, step: Step) -> Advance:
        """
        Do as `advance`, without blocking the event loop while the disk is at work.
        """
        return await self._writer.arun(lambda connection: apply(connection, lease, step))

    def take_up(self, lease: Lease, keys: Collection[str], *, now: float) -> dict[str, list[int]]:
        """
        Let what is held of *keys* wait for its turn again, in one transaction.
        """

        def work(connection: Statements) -> dict[str, list[int]]:
            id, name = fence(connection, lease), lease.subscription
            freed = {key: free_key(connection, name, key, now=now) for key in keys}
            taken = {key: offsets for key, offsets in freed.items() if offsets is not None}
            for offsets in taken.values():
                let_wait(connection, id, offsets)
            return taken

        return self._writer.run(work)

    def transaction(self, of: Lease | str, /) -> AbstractContextManager[Transaction]:
        """
        Open a transaction that commits at the end of the ``with`` block.
        """
        return self._lending.transaction(of)

    def atransaction(self, of: Lease | str, /) -> AbstractAsyncContextManager[Transaction]:
        """
        Do as `transaction`; whoever it waits for, the event loop goes on.
        """
        return self._lending.atransaction(of)

    def pending(self, name: str, *, after: int = 0, limit: int | None = None) -> list[Pending]:
        """
        Return the deliveries taken and not finished, in the order of their offsets.
        """
        check_limit(limit)
        self.position(name)
        sql = (
            'SELECT "offset", attempts, due, story FROM eventbus_deliveries WHERE subscription = '
            '(SELECT id FROM eventbus_subscriptions WHERE name = ?) AND "offset" > ? '
            'ORDER BY "offset" LIMIT ?'
        )
        rows = self._database.query(sql, (name, after, -1 if limit is None else limit))
        return [
            Pending(offset=offset, attempts=attempts, due=due, story=story)
            for offset, attempts, due, story in rows
        ]

    def handled(self, offset: int) -> dict[str, Handled]:
        """
        Return, by subscription, who remembers to have handled a record.
        """
        sql = (
            "SELECT name, attempts, time, seconds FROM eventbus_handled JOIN "
            'eventbus_subscriptions ON id = subscription WHERE "offset" = ? ORDER BY name'
        )
        return {
            name: Handled(offset=offset, attempts=attempts, time=time, seconds=seconds)
            for name, attempts, time, seconds in self._database.query(sql, (offset,))
        }

    def reset(self, lease: Lease, *, to: int) -> None:
        """
        Begin again after offset *to*: what was pending is forgotten, letters stay.
        """

        def work(connection: Statements) -> None:
            id = fence(connection, lease)
            connection.execute("DELETE FROM eventbus_deliveries WHERE subscription = ?", (id,))
            sql = "UPDATE eventbus_subscriptions SET taken = ? WHERE id = ?"
            connection.execute(sql, (to, id))

        self._writer.run(work)


def _start(start: Start) -> tuple[str, tuple[int, ...]]:
    if isinstance(start, datetime):
        return _STARTS["instant"], (from_time(start),)
    if isinstance(start, int):
        return _STARTS["offset"], (start,)
    return _STARTS[start], ()
