"""
The tables, and how a file comes by them.

Law: a migration that was ever released is never changed; what is new is a new one. The
file may be the application's own: every name of ours begins with ``eventbus_``, and
neither ``user_version`` nor ``application_id``, which are the application's, is touched.
"""

from __future__ import annotations

import sqlite3

from eventbus.errors import StoreSchemaError

__all__ = ["MIGRATIONS", "migrate", "version_of"]

_FIRST = (
    # Offsets appear in the order of commits: SQLite lets one transaction write at a time,
    # and a rowid is one more than the greatest that is there. The newest row is never
    # pruned, so no offset is given twice, without the second table page that AUTOINCREMENT
    # writes at every insert.
    """
    CREATE TABLE eventbus_events (
        "offset" INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        key TEXT,
        time INTEGER NOT NULL,     -- microseconds since 1970-01-01 UTC
        correlation_id TEXT,       -- NULL: the id
        causation_id TEXT,
        headers TEXT,              -- JSON; NULL: none
        payload BLOB NOT NULL,
        checksum INTEGER NOT NULL, -- CRC-32 of the payload
        stream_version INTEGER     -- of the key, from 1
    )
    """,
    # Each further index is one more page to write per commit: only what must be looked up.
    "CREATE INDEX eventbus_events_key ON eventbus_events (key) WHERE key IS NOT NULL",
    "CREATE INDEX eventbus_events_correlation ON eventbus_events (correlation_id) "
    "WHERE correlation_id IS NOT NULL",
    # How far streams had come whose records were pruned.
    "CREATE TABLE eventbus_streams (key TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
    """
    CREATE TABLE eventbus_subscriptions (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        taken INTEGER NOT NULL,
        owner TEXT,
        token INTEGER,             -- NULL: nobody's
        expires REAL
    )
    """,
    """
    CREATE TABLE eventbus_deliveries (
        subscription INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        due REAL,
        story TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (subscription, "offset")
    ) WITHOUT ROWID
    """,
    # In the order of offsets, as it grows; for those subscriptions that ask for it.
    """
    CREATE TABLE eventbus_handled (
        "offset" INTEGER NOT NULL,
        subscription INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        time REAL NOT NULL,        -- seconds since 1970-01-01 UTC
        seconds REAL NOT NULL,
        PRIMARY KEY ("offset", subscription)
    ) WITHOUT ROWID
    """,
    """
    CREATE TRIGGER eventbus_handled_pruned AFTER DELETE ON eventbus_events BEGIN
        DELETE FROM eventbus_handled WHERE "offset" = OLD."offset";
    END
    """,
    # What is asked of many comes first: to reach what is behind a payload, all of it is read.
    """
    CREATE TABLE eventbus_letters (
        place INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        subscription TEXT NOT NULL,
        reason TEXT NOT NULL,
        holds_key INTEGER NOT NULL,
        claimed_by TEXT,
        claimed_until REAL,
        "offset" INTEGER NOT NULL,
        event_id TEXT NOT NULL,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        key TEXT,
        time INTEGER NOT NULL,
        correlation_id TEXT,
        causation_id TEXT,
        headers TEXT,
        payload BLOB NOT NULL,
        checksum INTEGER NOT NULL,
        attempts INTEGER NOT NULL,
        failures TEXT NOT NULL,    -- JSON
        error_type TEXT NOT NULL,
        first_failure INTEGER NOT NULL,
        last_failure INTEGER NOT NULL,
        idempotency_key TEXT,
        redrives INTEGER NOT NULL,
        edited BLOB
    )
    """,
    "CREATE INDEX eventbus_letters_subscription ON eventbus_letters (subscription)",
    "CREATE INDEX eventbus_letters_held ON eventbus_letters (subscription, key) WHERE holds_key",
    # Far fewer than are held; SQLite takes it only for a condition of the same words.
    "CREATE INDEX eventbus_letters_stuck ON eventbus_letters (subscription, key) "
    "WHERE holds_key AND (reason <> 'held' OR edited IS NOT NULL)",
    """
    CREATE TABLE eventbus_keys (
        scope TEXT NOT NULL,
        key TEXT NOT NULL,
        token TEXT NOT NULL,
        event_id TEXT,
        is_done INTEGER NOT NULL,
        expires INTEGER NOT NULL,  -- nanoseconds since 1970-01-01 UTC
        PRIMARY KEY (scope, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX eventbus_keys_expires ON eventbus_keys (expires) WHERE is_done",
    "INSERT INTO eventbus_facts (name, value) VALUES ('token', 0)",
)

MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST,)

_FACTS = "CREATE TABLE eventbus_facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID"


def version_of(connection: sqlite3.Connection, path: str) -> int:
    """
    Return the version of the tables in the file; 0: there are none.

    Raises:
        StoreSchemaError: It is one that only a newer library knows.
    """
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'eventbus_facts'"
    if not connection.execute(known).fetchall():
        return 0
    row = connection.execute("SELECT value FROM eventbus_facts WHERE name = 'schema'").fetchone()
    if row is None:
        raise StoreSchemaError(
            f"{path} does not say of which version its tables are: it was not made by this "
            f"library, or it is damaged. Restore it from a backup.",
            path=path,
        )
    version: int = row[0]
    if version > len(MIGRATIONS):
        raise StoreSchemaError(
            f"{path} was written by a newer version of this library: its tables are of version "
            f"{version}, and this one knows them up to {len(MIGRATIONS)}. Update the library.",
            path=path,
        )
    return version


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """
    Bring the tables up to date in one transaction, all the way or not at all.
    """
    if version_of(connection, path) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = version_of(connection, path)  # again: another process may have been quicker
        if not version:
            connection.execute(_FACTS)
            connection.execute("INSERT INTO eventbus_facts (name, value) VALUES ('schema', 0)")
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(
            "UPDATE eventbus_facts SET value = ? WHERE name = 'schema'", (len(MIGRATIONS),)
        )
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
