"""
Whether an event can be part of the transaction on somebody's connection.

Law: asks the connection itself, and refuses where what is written with it could get into
another file, or be committed at once. What joins it is written elsewhere.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress

from eventbus._handler_connection import HandlerConnection
from eventbus.errors import StoreError
from eventbus.sqlite._writer import cursor_of

__all__ = ["check_joinable"]


def check_joinable(connection: sqlite3.Connection, path: str) -> None:
    """
    Refuse a connection that could not commit to the file; begin its transaction if it must.

    Raises:
        TypeError: It is no connection of `sqlite3`.
        StoreError: It is closed, another thread's, one to another file, or commits each
            statement by itself.
    """
    try:
        cursor_of(connection)  # refused where it is none, closed, or another thread's
    except sqlite3.ProgrammingError as error:
        text = f"the event could not be committed with the connection, for that fails: {error}"
        raise StoreError(text, path=path) from error
    if connection.in_transaction:
        # First a write, for which the lock is waited for. A transaction that has only
        # read is refused it at once when somebody else has written meanwhile.
        with suppress(sqlite3.OperationalError):  # no such table: said below
            cursor_of(connection).execute("DELETE FROM eventbus_events WHERE 0")
    if isinstance(connection, HandlerConnection) and connection.is_lent:
        return  # one of ours, and in a transaction
    if not _is_open_on(connection, path):
        raise StoreError(
            f"the connection is not one to {path}, nor is that file the first "
            f"attached to it that holds events: the event could not be committed with it",
            path=path,
        )
    if connection.in_transaction:
        return
    if connection.isolation_level is None or getattr(connection, "autocommit", None) is True:
        raise StoreError(
            "the connection commits each statement by itself, and no transaction is open on "
            "it: BEGIN one before publishing into it",
            path=path,
        )
    connection.execute("BEGIN IMMEDIATE")  # as it would have done at its first INSERT


def _is_open_on(connection: sqlite3.Connection, path: str) -> bool:
    """
    Tell whether our tables, as *connection* finds them, are those in the file.
    """
    cursor = cursor_of(connection)
    files = {
        os.fsdecode(name): os.fsdecode(file or "")
        for _, name, file in cursor.execute("SELECT seq, name, file FROM pragma_database_list")
    }
    # A bare name is looked for in "temp" first, then in the others in this order.
    for name in sorted(files, key=lambda name: name != "temp"):
        known = "SELECT count(*) FROM pragma_table_info('eventbus_events', ?)"
        if cursor.execute(known, (name,)).fetchone()[0]:
            file = files[name]
            return file != "" and os.path.exists(file) and os.path.samefile(file, path)
    return False
