"""
The file, and the connections to it.

Law: here a path becomes a database. Each connection is used by one thread at a time and
autocommits: a transaction is one that somebody began by name.

Beside a file in WAL mode SQLite keeps two others, also to read it. Where the file system cannot
be written to nobody changes the file either, and it is read without them.

A connection must not be carried into a forked child: https://www.sqlite.org/howtocorrupt.html,
2.6. A store that is used in a child of the process that opened it refuses to work.
"""

from __future__ import annotations

import os
import sqlite3
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs

from eventbus._clock import Clock
from eventbus._gate import Gate
from eventbus._handler_connection import HandlerConnection
from eventbus.errors import StoreAccessError, StoreCorruptError, StoreError, StoreLockedError
from eventbus.sqlite._faults import closed, fault, faults
from eventbus.sqlite._schema import migrate, version_of

__all__ = ["Database", "Synchronous"]

Synchronous = Literal["NORMAL", "FULL"]
C = TypeVar("C", bound=sqlite3.Connection)

# Stands for this process. To ask for its id would cost a system call for each statement.
_process = object()


def _after_fork() -> None:
    global _process  # noqa: PLW0603 - one for each process, as its id is
    _process = object()


if hasattr(os, "register_at_fork"):  # pragma: no branch - missing on Windows only
    os.register_at_fork(after_in_child=_after_fork)

_SYNCHRONOUS = {"NORMAL": "PRAGMA synchronous = NORMAL", "FULL": "PRAGMA synchronous = FULL"}
_IDLE = 8  # readers kept for the next one who asks; more are closed when they are done


@attrs.define(eq=False)
class Database:
    """
    One file, and what is open on it.

    Attributes:
        path: The file, absolute.
        synchronous: When the disk is made to confirm what was written.
        busy_timeout: How long to wait for another writer, in seconds.
        is_read_only: Nothing is ever written.
        is_closed: Nothing is read or written any more.
        gate: Who may write now, in this process.
    """

    path: str
    synchronous: Synchronous = attrs.field(validator=attrs.validators.in_(_SYNCHRONOUS))
    busy_timeout: float = attrs.field(validator=attrs.validators.ge(0))
    is_read_only: bool = False
    is_closed: bool = attrs.field(init=False, default=False)
    gate: Gate = attrs.field(init=False)
    _readers: deque[sqlite3.Connection] = attrs.field(init=False, factory=deque)
    _lenders: deque[HandlerConnection] = attrs.field(init=False, factory=deque)
    _process: object = attrs.field(init=False, factory=lambda: _process)

    def __attrs_post_init__(self) -> None:
        self.gate = Gate(self.path, self.busy_timeout)

    def open(self, clock: Clock) -> sqlite3.Connection:
        """
        Make the file and its tables as far as they are missing; return what writes to it.

        Raises:
            StoreError: This cannot be done; the subclass says why.
        """
        if not self.is_read_only:
            self._make_file()
        self._check_whole()
        try:
            return self._opened(clock)
        except StoreAccessError as error:
            folder = os.path.dirname(self.path)
            if (
                not self.is_read_only
                or os.access(folder, os.W_OK)
                or not os.access(self.path, os.R_OK)
            ):
                raise
            raise StoreAccessError(
                f"{self.path} cannot be read where it is: SQLite needs two more files beside it, "
                f"and this process may not make them in {folder}. Copy it to another folder, or "
                f"look as a user who may.",
                path=self.path,
            ) from error

    def _opened(self, clock: Clock) -> sqlite3.Connection:
        with faults(self.path):
            connection = self.connect(sqlite3.Connection)
            try:
                if self.is_read_only:
                    self._check_tables(connection)
                else:
                    self._turn_to_wal(connection, clock)
                    migrate(connection, self.path)
            except BaseException:
                connection.close()
                raise
        return connection

    def _make_file(self) -> None:
        try:
            # SQLite gives the files beside it the same permissions.
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            if not os.path.exists(self.path):
                raise StoreAccessError(
                    f"{self.path} is a link to a file that is not there", path=self.path
                ) from None
            if not os.access(self.path, os.W_OK):
                raise StoreAccessError(
                    f"{self.path} is read-only for this process; give it the right to write, or "
                    f"open it with read_only=True",
                    path=self.path,
                ) from None
        except OSError as error:
            raise StoreAccessError(
                f"{self.path} cannot be made: {error.strerror}. Make its folder first, and one "
                f"that this process may write to.",
                path=self.path,
            ) from error

    def _check_whole(self) -> None:
        """
        Refuse a file that ends in the middle of a page, which SQLite would fill with zeros.

        That whole pages are missing SQLite finds itself. With a WAL beside it the file may
        be in the middle of a checkpoint, which is made up for when it is opened.
        """
        try:
            with open(self.path, "rb") as file:
                header = file.read(18)
            size, has_wal = os.path.getsize(self.path), os.path.exists(f"{self.path}-wal")
        except OSError:
            return  # SQLite will say why
        # "The database header", https://www.sqlite.org/fileformat.html: 1 stands for 65,536.
        page = {0: 1, 1: 65_536}.get(number := int.from_bytes(header[16:18], "big"), number)
        if not has_wal and header.startswith(b"SQLite format 3") and size % page:
            raise StoreCorruptError(
                f"{self.path}: the file is damaged: it has lost its end. Restore it from a backup.",
                path=self.path,
            )

    def _check_tables(self, connection: sqlite3.Connection) -> None:
        if not version_of(connection, self.path):
            raise StoreAccessError(
                f"{self.path} holds no events yet; open it once without read_only=True",
                path=self.path,
            )

    def _turn_to_wal(self, connection: sqlite3.Connection, clock: Clock) -> None:
        """
        Have readers and the writer not wait for each other, now and for ever.

        While several processes do this to a new file, SQLite does not wait by itself.
        """
        end = clock.monotonic() + self.busy_timeout
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchall()
                return
            except sqlite3.OperationalError as error:
                is_busy = isinstance(fault(error, self.path), StoreLockedError)
                if not is_busy or clock.monotonic() >= end:
                    raise
            clock.sleep(0.005)

    def connect(self, factory: type[C]) -> C:
        """
        Open another connection, which raises what `sqlite3` raises.
        """
        mode = "rw"
        if self.is_read_only:
            mode = "ro&immutable=1" if _is_still(self.path) else "ro"
        connection = sqlite3.connect(
            f"{Path(self.path).as_uri()}?mode={mode}",
            uri=True,
            timeout=self.busy_timeout,
            isolation_level=None,
            check_same_thread=False,
            factory=factory,
        )
        try:
            connection.execute(_SYNCHRONOUS[self.synchronous])
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cell_size_check = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    def check_usable(self) -> None:
        """
        Refuse to go on after `close`, and in a child of the process that opened the file.
        """
        if self.is_closed:
            raise closed(self.path)
        if self._process is not _process:
            raise StoreError(
                f"{self.path} was opened before this process was forked; open it in each process",
                path=self.path,
            )

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """
        Return the rows that one reading statement finds, from a snapshot of its own.
        """
        self.check_usable()
        try:
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self.connect(sqlite3.Connection)
            try:
                return connection.execute(sql, parameters).fetchall()
            finally:
                self._give_back(connection, self._readers)
        except sqlite3.Error as error:
            raise fault(error, self.path) from error

    def borrow(self) -> HandlerConnection:
        """
        Return a connection for a transaction, which goes back to `give_back`.
        """
        self.check_usable()
        try:
            return self._lenders.pop()
        except IndexError:
            with faults(self.path):
                return self.connect(HandlerConnection)

    def give_back(self, connection: HandlerConnection) -> None:
        """
        Keep the connection for the next transaction, as it was before the last one.

        Unless its last user has kept it, who could write in that transaction: then the
        next one gets another.
        """
        if connection.is_kept:
            connection.bar()
        else:
            connection.renovate()
            self._give_back(connection, self._lenders)

    def _give_back(self, connection: C, idle: deque[C]) -> None:
        if len(idle) < _IDLE:
            idle.append(connection)
            if not self.is_closed:
                return
            self._close_idle()  # it was closed while this one was out
        else:
            connection.close()

    def close(self) -> None:
        """
        Close all connections that are not in use, and the others when they come back.
        """
        self.is_closed = True
        self._close_idle()

    def _close_idle(self) -> None:
        for idle in (self._readers, self._lenders):
            while idle:
                try:
                    connection = idle.pop()
                except IndexError:  # pragma: no cover - two threads close at once
                    break
                connection.close()


def _is_still(path: str) -> bool:
    """
    Whether nobody can change the file: it is whole, on what cannot be written to.
    """
    if not hasattr(os, "statvfs"):  # pragma: no cover - on Windows
        return False
    try:
        is_fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False  # SQLite will say why
    return is_fixed and not os.path.exists(f"{path}-wal")
