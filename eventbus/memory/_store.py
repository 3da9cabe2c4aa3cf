"""
A whole store in memory, with transactions and crashes.

Law: what a killed process would have left on disk survives `MemoryStore.crash`, and
nothing else does.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from sys import getrefcount
from threading import RLock
from typing import TYPE_CHECKING

import attrs

from eventbus._fork import renewed
from eventbus._gate import Gate
from eventbus.errors import LeaseLostError, StoreClosedError, StoreError, StoreLockedError
from eventbus.idempotency import IdempotencyStore, InMemoryIdempotencyStore
from eventbus.memory._keys import StagedKeys
from eventbus.memory._letters import MemoryLetters
from eventbus.memory._log import InMemoryEventLog, Staged
from eventbus.memory._progress import MemoryProgress
from eventbus.progress import Advance, Lease, Step, Transaction, lost

if TYPE_CHECKING:
    from eventbus._handler_connection import HandlerConnection

__all__ = ["MemoryStore"]


class MemoryStore:
    """
    Keeps everything that a durable bus keeps, in this process, until it ends.

    A handler's own tables live in an SQLite database in memory.

    Args:
        busy_timeout: How long a transaction waits for another one to end, in seconds.
        idempotency: Where keys are kept; an `InMemoryIdempotencyStore` unless given.

    Attributes:
        log: The history.
        progress: How far each subscription has come.
        letters: What was given up on.
        idempotency: Which keys are being handled and which have been.

    .. versionadded:: 0.1
    """

    def __init__(
        self, *, busy_timeout: float = 5.0, idempotency: IdempotencyStore | None = None
    ) -> None:
        self._gate = Gate("the store in memory", busy_timeout)
        self._connection: HandlerConnection | None = None
        self._crashes = 0
        self._lock = lock = renewed(RLock())
        self._letters = letters = MemoryLetters(lock)
        self._log = InMemoryEventLog(self._floor, lock, lambda: letters.changes)
        self._progress = MemoryProgress(
            self._log, self._letters, lock, self._transaction, self._atransaction
        )
        self._idempotency = InMemoryIdempotencyStore() if idempotency is None else idempotency
        self.is_closed = False

    def _floor(self) -> float:
        return min(self._progress.floor(), self._letters.floor())

    @property
    def log(self) -> InMemoryEventLog:
        """
        The history.
        """
        self._check_open()
        return self._log

    @property
    def progress(self) -> MemoryProgress:
        """
        How far each subscription has come.
        """
        self._check_open()
        return self._progress

    @property
    def letters(self) -> MemoryLetters:
        """
        What was given up on.
        """
        self._check_open()
        return self._letters

    @property
    def idempotency(self) -> IdempotencyStore:
        """
        Which keys are being handled and which have been.
        """
        self._check_open()
        return self._idempotency

    def _check_open(self) -> None:
        if self.is_closed:
            raise StoreClosedError("the store has been closed")

    def check(self) -> tuple[str, ...]:
        """
        Find nothing: there is no file to be damaged.
        """
        self._check_open()
        return ()

    def close(self) -> None:
        """
        Refuse whatever is asked from now on; again is fine.
        """
        self.is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(StoreLockedError), self._gate.turn("the end of the store"):
                connection.renovate()
                connection.close()

    def crash(self) -> None:
        """
        Forget what a killed process forgets, and be open again.

        Leases end, and so do claims; whoever holds one is fenced off. Open transactions will
        not commit. Nobody listens to appends any more. What was begun stays begun.
        """
        with self._lock:
            self._crashes += 1
            self._progress.release_all()
            self._letters.release_all()
            self._log.listeners.clear()
            self._log.staged.clear()
            self.is_closed = False

    @contextmanager
    def _transaction(self, of: Lease | str) -> Generator[Transaction]:
        self._progress.fenced(of)
        with self._gate.turn(_name(of)), self._joined(of) as transaction:
            yield transaction

    @asynccontextmanager
    async def _atransaction(self, of: Lease | str) -> AsyncGenerator[Transaction]:
        self._progress.fenced(of)
        async with self._gate.aturn(_name(of)):
            with self._joined(of) as transaction:
                yield transaction

    @contextmanager
    def _joined(self, of: Lease | str) -> Generator[_MemoryTransaction]:
        crashes, connection = self._crashes, self._connect()
        connection.renovate()
        connection.execute("BEGIN IMMEDIATE")
        staged = self._log.staged[connection] = []
        keys = StagedKeys(self._idempotency)
        transaction = _MemoryTransaction(of, connection, keys, self._progress)
        connection.lend()
        known = transaction.references()
        try:
            yield transaction
            connection.take_back()
            with self._lock:
                if crashes != self._crashes:
                    raise _crashed(of)
                self._commit(transaction, staged)
        except BaseException as error:
            connection.end(commit=False)
            keys.undo()
            connection.explain(error)
            raise
        finally:
            if transaction.references() > known:
                connection.bar()
            self._log.staged.pop(connection, None)
        if staged:
            self._log.listeners.call()

    def _commit(self, transaction: _MemoryTransaction, staged: Staged) -> None:
        last = self._log.last_offset()
        try:
            for records, version in staged:
                self._log.store(records, version)
            install = self._progress.prepare(transaction.of, transaction.steps)
            transaction.connection.end(commit=True)
        except BaseException:
            self._log.forget_after(last)
            raise
        install()
        transaction.idempotency.settle()

    def _connect(self) -> HandlerConnection:
        if self._connection is None:
            import sqlite3  # late: for start-up time

            from eventbus._handler_connection import HandlerConnection  # late: likewise

            self._connection = sqlite3.connect(
                ":memory:",
                isolation_level=None,
                check_same_thread=False,
                factory=HandlerConnection,
            )
        return self._connection


def _crashed(of: Lease | str) -> StoreError | LeaseLostError:
    if isinstance(of, str):
        return StoreClosedError(f"the store has crashed while a letter of {of} was redriven")
    return lost(of)


@attrs.frozen
class _MemoryTransaction:
    """
    A transaction under way: its steps are applied when it commits.
    """

    of: Lease | str
    connection: HandlerConnection
    idempotency: StagedKeys
    _progress: MemoryProgress
    steps: list[Step] = attrs.field(init=False, factory=list[Step])

    def advance(self, step: Step) -> Advance:
        """
        Make *step* part of the transaction.
        """
        advance = self._progress.try_out(self.of, [*self.steps, step])
        self.steps.append(step)
        return advance

    def references(self) -> int:
        """
        Return how many hold on to the connection, to tell whether its user still does.
        """
        return getrefcount(self.connection)


def _name(of: Lease | str) -> str:
    return of if isinstance(of, str) else of.subscription
