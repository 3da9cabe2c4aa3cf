"""
Transactions that are lent to handlers, each on a connection of its own.

Law: whoever borrows comes through the store's gate, behind the others of this process, so
that SQLite has to wait for other processes only; and a task does not wait for those inside
of SQLite, either, which would stop its event loop. What a handler does to its connection
is over with its transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from sys import getrefcount

import attrs

from eventbus._clock import Clock
from eventbus._handler_connection import HandlerConnection
from eventbus.event_log import Listeners
from eventbus.progress import Advance, Lease, Step, Transaction
from eventbus.sqlite._database import Database
from eventbus.sqlite._faults import faults
from eventbus.sqlite._keys import SQLiteIdempotencyStore
from eventbus.sqlite._steps import apply, fence, name_of
from eventbus.sqlite._writer import cursor_of

__all__ = ["Lending"]

_RETRY_AFTER = 0.005  # seconds between two tries to begin while another process writes
_LONGEST = 2**31 - 1  # milliseconds that SQLite can be told to wait


@attrs.frozen
class Lending:
    """
    Lends connections to one file.
    """

    _database: Database
    _listeners: Listeners
    _keys_on: Callable[[sqlite3.Connection], SQLiteIdempotencyStore]
    _clock: Clock

    @contextmanager
    def transaction(self, of: Lease | str, /) -> Generator[Transaction]:
        """
        Open a transaction that commits at the end of the ``with`` block.
        """
        database = self._database
        with database.gate.turn(name_of(of)):
            connection = database.borrow()
            try:
                with faults(database.path):
                    connection.execute("BEGIN IMMEDIATE")
                with self._lent(of, connection) as transaction:
                    yield transaction
            finally:
                self._give_back(connection)
        self._listeners.call()

    @asynccontextmanager
    async def atransaction(self, of: Lease | str, /) -> AsyncGenerator[Transaction]:
        """
        Do as `transaction`; whoever it waits for, the event loop goes on.
        """
        database = self._database
        async with database.gate.aturn(name_of(of)):
            connection = database.borrow()
            try:
                with faults(database.path):
                    await self._abegin(connection)
                with self._lent(of, connection) as transaction:
                    yield transaction
            finally:
                self._give_back(connection)
        self._listeners.call()

    async def _abegin(self, connection: HandlerConnection) -> None:
        """
        Begin a transaction; while another process writes, wait outside of SQLite.
        """
        clock, seconds = self._clock, self._database.busy_timeout
        end = clock.monotonic() + seconds
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            while not _has_begun(connection, is_last=clock.monotonic() >= end):
                await clock.asleep(_RETRY_AFTER)
        finally:
            connection.execute(f"PRAGMA busy_timeout = {min(round(seconds * 1_000), _LONGEST)}")

    def _give_back(self, connection: HandlerConnection) -> None:
        connection.end(commit=False)  # nothing, after a commit
        self._database.give_back(connection)

    @contextmanager
    def _lent(self, of: Lease | str, connection: HandlerConnection) -> Generator[SQLiteTransaction]:
        """
        Lend the connection, in whose transaction the lease still counts, and commit.
        """
        path = self._database.path
        with faults(path):
            fence(connection, of)
        transaction = SQLiteTransaction(of, connection, self._keys_on(connection), path)
        connection.lend()
        known = transaction.references()
        try:
            yield transaction
            connection.take_back()
            with faults(path):
                connection.end(commit=True)
        except sqlite3.Error as error:
            connection.explain(error)
            raise
        finally:
            connection.is_kept = transaction.references() > known


@attrs.frozen
class SQLiteTransaction:
    """
    A transaction under way, on a connection of its own.
    """

    of: Lease | str
    connection: HandlerConnection
    idempotency: SQLiteIdempotencyStore
    _path: str

    def advance(self, step: Step) -> Advance:
        """
        Make *step* part of the transaction.
        """
        with faults(self._path):
            return apply(cursor_of(self.connection), self.of, step)

    def references(self) -> int:
        """
        Return how many hold on to the connection, to tell whether its user still does.
        """
        return getrefcount(self.connection)


def _has_begun(connection: sqlite3.Connection, *, is_last: bool) -> bool:
    """
    Begin a transaction, unless somebody else writes; that is raised the last time only.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if is_last or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return True
