"""
A projection in a process of its own, to be killed: ``python counted.py FILE VERSION``.

It says on stdout that it has begun an event, one line for each, and ends when it has caught up.
"""

from __future__ import annotations

import os
import sqlite3
import sys

from eventbus import event, on
from eventbus.codec import JSONCodec
from eventbus.projection import Projection, projection
from eventbus.sqlite import SQLiteStore

TABLES = "CREATE TABLE numbers (number INTEGER NOT NULL, version INTEGER NOT NULL)"


@event(name="stress.counted")
class Counted:
    number: int


def numbers(version: int) -> type:
    @projection(name="numbers", version=version, tables=TABLES)
    class Numbers:
        @on
        def counted(self, happened: Counted, db: sqlite3.Connection) -> None:
            os.write(1, b".\n")
            db.execute("INSERT INTO numbers VALUES (?, ?)", (happened.number, version))

    return Numbers


if __name__ == "__main__":
    with SQLiteStore(sys.argv[1]) as opened:
        Projection(numbers(int(sys.argv[2])), store=opened, codec=JSONCodec()).catch_up()
