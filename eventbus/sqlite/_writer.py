"""
The one connection that writes, and the commits that callers share.

Law: whoever finds nobody writing writes itself, in its own thread and at once. Whoever
comes meanwhile waits in a queue, and the committer, one thread that is started when it is
first needed and ends with the store, writes all that wait in one transaction. So a commit
is shared by as many as came while the one before was at the disk.

Whoever writes goes through the store's gate first: there the transactions that handlers are
lent wait for it, and it for them, and not in SQLite, which knows no order.

What one caller asks for succeeds or fails by itself; that the commit fails, all learn.

Source: group commit: D. DeWitt et al., "Implementation Techniques for Main Memory Database
Systems", SIGMOD 1984.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from eventbus._fork import renewed
from eventbus.errors import StoreError
from eventbus.sqlite._database import Database
from eventbus.sqlite._faults import fault

if TYPE_CHECKING:
    import asyncio

__all__ = ["Statements", "Work", "Writer", "cursor_of", "in_savepoint", "in_transaction"]

T = TypeVar("T")
Statements = sqlite3.Connection | sqlite3.Cursor
Work = Callable[[Statements], T]


class _Job(Generic[T]):
    """
    What one caller wants written, and what came of it.
    """

    __slots__ = ("error", "is_one", "is_settled", "result", "work")

    def __init__(self, work: Work[T], *, is_one: bool) -> None:
        self.work = work
        self.is_one = is_one
        self.result: Any = None
        self.error: BaseException | None = None
        self.is_settled = Lock()
        self.is_settled.acquire()

    def settle(self) -> None:
        """
        Let the caller go on.
        """
        self.is_settled.release()


class _PostedJob(_Job[T]):
    """
    The same for a caller that does not wait.
    """

    __slots__ = ("failed",)

    def __init__(self, work: Work[T], failed: Callable[[BaseException], object]) -> None:
        super().__init__(work, is_one=False)
        self.failed = failed

    def settle(self) -> None:
        """
        Tell of a failure, as there is nobody to raise it to.
        """
        if self.error is not None:
            self.failed(self.error)


class _AsyncJob(_Job[T]):
    """
    The same for a caller that must not be blocked.
    """

    __slots__ = ("future", "loop")

    def __init__(self, work: Work[T], loop: asyncio.AbstractEventLoop, *, is_one: bool) -> None:
        super().__init__(work, is_one=is_one)
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()

    def settle(self) -> None:
        """
        Let the caller go on; to be called in its loop.
        """
        if not self.future.done():
            self.future.set_result(None)


def _settle(jobs: Sequence[_Job[Any]]) -> None:
    """
    Let all callers go on, and wake each loop but once for all that wait in it.
    """
    awaited: dict[asyncio.AbstractEventLoop, list[_Job[Any]]] = {}
    for job in jobs:
        if isinstance(job, _AsyncJob):
            awaited.setdefault(job.loop, []).append(job)
        else:
            job.settle()
    for loop, those in awaited.items():
        with suppress(RuntimeError):  # it has been closed: nobody waits any more
            loop.call_soon_threadsafe(_settle_here, those)


def _settle_here(jobs: Sequence[_Job[Any]]) -> None:
    for job in jobs:
        job.settle()


class Writer:
    """
    Writes what many threads and tasks ask for, one transaction at a time.
    """

    def __init__(self, database: Database, connection: sqlite3.Connection) -> None:
        self._database = database
        self._connection = connection
        self._lock = renewed(Lock())  # held by whoever writes
        self._queue: deque[_Job[Any]] = deque()
        self._wake = renewed(Event())
        self._starting = renewed(Lock())
        self._committer: Thread | None = None

    def insert(self, sql: str, row: Sequence[Any]) -> int:
        """
        Run one statement that adds one row, commit it and return its rowid.
        """
        gate = self._database.gate
        if not self._queue and self._lock.acquire(blocking=False):
            try:
                if gate.free.acquire(blocking=False):
                    try:
                        self._database.check_usable()
                        # A statement that stands alone is its own transaction: no BEGIN, no COMMIT.
                        return self._connection.execute(sql, row).lastrowid or 0
                    except sqlite3.IntegrityError:
                        raise
                    except sqlite3.Error as error:
                        raise fault(error, self._database.path) from error
                    finally:
                        gate.leave()
            finally:
                self._lock.release()
                if self._queue:
                    self._pass_on()
        return self.run(lambda each: each.execute(sql, row).lastrowid or 0, is_one=True)

    async def ainsert(self, sql: str, row: Sequence[Any]) -> int:
        """
        Do as `insert`, in another thread.
        """
        return await self.arun(lambda each: each.execute(sql, row).lastrowid or 0, is_one=True)

    def run(self, work: Work[T], *, is_one: bool = False) -> T:
        """
        Do *work*, which writes through the connection it is given, and commit it.

        Work that raises is rolled back. It may share a transaction with others' and must
        neither begin nor end one. *is_one*: it is one statement, and needs no savepoint.
        """
        self._database.check_usable()
        job, gate = _Job(work, is_one=is_one), self._database.gate
        if not gate.is_wanted:
            self._see_to(job)
        else:
            with gate.standing_still():
                self._see_to(job)
        return self._outcome(job)

    def _see_to(self, job: _Job[Any]) -> None:
        """
        Have *job* done, by whoever writes, and wait for it.
        """
        self._queue.append(job)
        if self._lock.acquire(blocking=False):
            try:
                self._write_all()
            finally:
                self._lock.release()
                self._pass_on()
        job.is_settled.acquire()  # whoever writes has a bound: the busy timeout

    async def arun(self, work: Work[T], *, is_one: bool = False) -> T:
        """
        Do as `run`, in another thread.
        """
        import asyncio  # late: whoever awaits has it loaded already

        self._database.check_usable()
        job = _AsyncJob(work, asyncio.get_running_loop(), is_one=is_one)
        self._queue.append(job)
        self._pass_on()  # to the committer; or it is refused: the store was closed just now
        await job.future
        return self._outcome(job)

    def post(self, work: Work[object], *, failed: Callable[[BaseException], object]) -> None:
        """
        Have it done after all that was asked for before, and wait for nothing.

        *failed* is called in another thread, and must not raise.
        """
        self._database.check_usable()
        self._queue.append(_PostedJob(work, failed))
        self._pass_on()

    def _outcome(self, job: _Job[T]) -> T:
        error = job.error
        if error is None:
            result: T = job.result
            return result
        if isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError):
            raise fault(error, self._database.path) from error
        raise error

    def _pass_on(self) -> None:
        """
        See to it that somebody writes what came meanwhile.

        Whoever finds the lock held leaves it to the holder, who looks here afterwards.
        """
        while self._queue:
            if not self._database.is_closed:
                self._call_committer()
                return
            with self._lock:
                self._write_all()  # which refuses it

    def _call_committer(self) -> None:
        if self._committer is None:
            with self._starting:
                # Else another thread has just started it, or nobody is to start it any more.
                if self._committer is None and not self._database.is_closed:  # pragma: no branch
                    thread = Thread(target=self._commit_on, name="eventbus-committer", daemon=True)
                    thread.start()
                    self._committer = thread
        self._wake.set()

    def _commit_on(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                # Its callers have been told of it; this thread must go on for the others.
                with suppress(BaseException), self._lock:
                    self._write_all()
            if self._database.is_closed:
                return

    def _write_all(self) -> None:
        """
        Write all that wait, in one transaction, and let them go on. The lock is held.
        """
        jobs = list[_Job[Any]]()
        try:  # at once: who is interrupted here must tell those whose jobs he has taken
            while self._queue:
                jobs.append(self._queue.popleft())
            self._database.check_usable()
            if jobs:
                with self._database.gate.writing():
                    in_transaction(self._connection, lambda: self._do(jobs))
        except BaseException as error:
            for job in jobs:
                job.error = job.error or _for_all(error, self._database.path)
            if not isinstance(error, Exception):
                raise
        finally:
            _settle(jobs)

    def _do(self, jobs: list[_Job[Any]]) -> None:
        connection = self._connection
        if len(jobs) == 1:
            jobs[0].result = jobs[0].work(connection)
            return
        for job in jobs:
            try:
                if job.is_one:
                    job.result = job.work(connection)
                else:
                    job.result = in_savepoint(connection, job.work, connection)
            except Exception as error:
                job.error = error
                if not connection.in_transaction:  # SQLite has rolled back everybody's work
                    raise

    def close(self) -> None:
        """
        Write what waits, and close. Whoever comes later is refused.
        """
        with self._lock:
            self._write_all()
            self._database.close()
            self._connection.close()
        thread = self._committer
        if thread is not None:
            self._wake.set()
            thread.join()
        self._pass_on()


def _for_all(error: BaseException, path: str) -> BaseException:
    if isinstance(error, Exception):
        return error
    return StoreError(f"{path}: writing was interrupted; nothing was stored", path=path)


def in_transaction(connection: sqlite3.Connection, work: Callable[[], T]) -> T:
    """
    Do *work* between BEGIN and COMMIT; roll back whatever stands in the way of either.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # after some errors SQLite has rolled back by itself
            connection.execute("ROLLBACK")
        raise
    return result


def in_savepoint(connection: sqlite3.Connection, work: Work[T], on: Statements) -> T:
    """
    Do *work*, with *on*, as a part of the transaction that can be rolled back by itself.
    """
    connection.execute("SAVEPOINT eventbus")
    try:
        result = work(on)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK TO eventbus")
            connection.execute("RELEASE eventbus")
        raise
    connection.execute("RELEASE eventbus")
    return result


def cursor_of(connection: object) -> sqlite3.Cursor:
    """
    Return a cursor whose rows are tuples, whatever its user made of the connection.

    Raises:
        TypeError: It is no connection of `sqlite3`, but perhaps one of another library's.
    """
    if not isinstance(connection, sqlite3.Connection):
        raise TypeError(
            f"connection= takes the sqlite3.Connection of your transaction, not {connection!r}. "
            f"With SQLAlchemy: session.connection().connection.driver_connection. What aiosqlite "
            f"has belongs to another thread: put async with bus.deferred(): around its "
            f"transaction instead."
        )
    cursor = connection.cursor()
    cursor.row_factory = None
    return cursor
