"""
A durable store in one SQLite file.

Law: the front door of the room; the only one, with `eventbus._handler_connection`, that
imports `sqlite3`. SQL is written here and nowhere else, and no text of a user's ever
becomes part of it.
"""

from eventbus.sqlite._keys import SQLiteIdempotencyStore
from eventbus.sqlite._log import SQLiteEventLog
from eventbus.sqlite._store import SQLiteStore

__all__ = ["SQLiteEventLog", "SQLiteIdempotencyStore", "SQLiteStore"]
