"""
The store: one file, opened, looked after and closed.

Law: this is where the ports are put together. What they promise is said in their rooms.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import inf
from typing import Self, get_args
from zlib import crc32

from eventbus._clock import Clock, SystemClock
from eventbus.errors import StoreAccessError, StoreCorruptError, StoreError
from eventbus.sqlite._database import Database, Synchronous
from eventbus.sqlite._keys import Shift, SQLiteIdempotencyStore
from eventbus.sqlite._lending import Lending
from eventbus.sqlite._letters import SQLiteLetters
from eventbus.sqlite._log import SQLiteEventLog
from eventbus.sqlite._progress import SQLiteProgress
from eventbus.sqlite._writer import Writer

__all__ = ["SQLiteStore"]


class SQLiteStore:
    """
    Keeps everything that a durable bus keeps, in one SQLite file.

    The file may be the application's own database: the names of all tables begin with
    ``eventbus_``. It is put into WAL mode. Any number of processes may have it open; after
    a fork, each child opens its own.

    Args:
        path: The file. It is made if it is missing, readable and writable for its owner
            only; its folder must be there.
        synchronous: ``NORMAL``: what was published survives the process and its crash, and
            the last moments before a power failure may be lost. ``FULL``: survives that,
            too, at the price of a disk flush for each commit.
        busy_timeout: How long to wait while another process writes, in seconds.
        read_only: Only look, beside a running application; whatever writes is refused.
        clock: Where the time comes from; the machine's unless given.

    Raises:
        StoreError: The file cannot be used; the subclass says why.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        synchronous: Synchronous = "NORMAL",
        busy_timeout: float = 5.0,
        read_only: bool = False,
        clock: Clock | None = None,
    ) -> None:
        _check_options(synchronous, busy_timeout)
        clock = SystemClock() if clock is None else clock
        self._database = database = Database(
            _absolute(path), synchronous, busy_timeout, is_read_only=read_only
        )
        self._clock = clock
        self._shift = Shift.of(clock)
        self._writer = Writer(database, database.open(clock))
        self._log = SQLiteEventLog(database, self._writer)
        self._letters = SQLiteLetters(database, self._writer)
        self._idempotency = self.keys()
        lending = Lending(database, self._log.listeners, self._idempotency.on, clock)
        self._progress = SQLiteProgress(database, self._writer, lending)

    @property
    def path(self) -> str:
        """
        The file, absolute.
        """
        return self._database.path

    @property
    def is_closed(self) -> bool:
        """
        Whether it was closed.
        """
        return self._database.is_closed

    @property
    def log(self) -> SQLiteEventLog:
        """
        The history.
        """
        return self._log

    @property
    def progress(self) -> SQLiteProgress:
        """
        How far each subscription has come.
        """
        return self._progress

    @property
    def letters(self) -> SQLiteLetters:
        """
        What was given up on.
        """
        return self._letters

    @property
    def idempotency(self) -> SQLiteIdempotencyStore:
        """
        Which keys are being handled and which have been.
        """
        return self._idempotency

    def keys(self, *, ttl: float = 86_400.0, lease: float = 300.0) -> SQLiteIdempotencyStore:
        """
        Return the idempotency keys in the file, to be kept for other times.

        Args:
            ttl: How long a success is remembered, in seconds. The default is a day.
            lease: How long a holder may be silent before its key is free, in seconds.
        """
        return SQLiteIdempotencyStore(
            self._writer.run,
            self._database.query,
            writer=self._writer,
            path=self._database.path,
            shift=self._shift,
            new_token=self._clock.new_id,
            ttl=ttl,
            lease=lease,
        )

    def check(self) -> tuple[str, ...]:
        """
        Look for damage, in every page and every payload; return what was found, in words.

        It reads the whole file.
        """
        try:
            return tuple(self._findings())
        except StoreCorruptError as error:
            return (str(error),)

    def _findings(self) -> Iterator[str]:
        rows = self._database.query("PRAGMA integrity_check")
        yield from (text for (text,) in rows if text != "ok")
        for record in self._log.read():
            if not record.is_intact:
                yield f"record {record.offset}: its payload is not what was written"
        sql = "SELECT id, payload, checksum FROM eventbus_letters"
        for id, payload, checksum in self._database.query(sql):
            if crc32(payload) != checksum:
                yield f"dead letter {id}: its payload is not what was written"
        sql = (
            'SELECT name, "offset" FROM eventbus_deliveries JOIN eventbus_subscriptions '
            'ON id = subscription WHERE "offset" > taken'
        )
        for name, offset in self._database.query(sql):
            yield f"subscription {name}: delivery {offset} is pending, but was never taken"

    def close(self) -> None:
        """
        Let go of the file; again is fine. Whatever is asked after it is refused.

        What other threads have asked for before is still written.
        """
        self._writer.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_options(synchronous: object, busy_timeout: object) -> None:
    if synchronous not in get_args(Synchronous):
        raise ValueError(f"synchronous is 'NORMAL' or 'FULL', not {synchronous!r}")
    if not isinstance(busy_timeout, int | float) or isinstance(busy_timeout, bool):
        raise TypeError(f"busy_timeout is in seconds, not {busy_timeout!r}")
    if not 0 <= busy_timeout < inf:
        raise ValueError(f"busy_timeout is 0 seconds or more, and not {busy_timeout!r}")


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    if not text or text == ":memory:" or text.startswith("file:") or "\0" in text:
        raise StoreError(
            f"{text!r} is no path of a file, and a store is one; in memory there is MemoryStore",
            path=text,
        )
    if os.path.isdir(text):
        raise StoreAccessError(f"{text} is a folder; name a file in it", path=text)
    return os.path.abspath(text)
