"""
Tables that are built aside, and take their place at once.

Law: what is built here is seen by nobody until it is swapped in, in one transaction of
somebody else's. Only tables that are known to be the projection's own are ever dropped.
The texts executed are those of the projection's own script, as SQLite has stored them.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from typing import Any, Self

from eventbus._handler_connection import HandlerConnection
from eventbus.errors import ProjectionError

__all__ = ["Scratch", "check_same", "note_version", "version_in"]

_REGISTRY = """
    CREATE TABLE IF NOT EXISTS eventbus_projections (
        name TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        tables TEXT NOT NULL       -- names, as JSON
    ) WITHOUT ROWID
"""
_MADE = """
    SELECT type, name, sql FROM sqlite_master
    WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY rowid
"""
_PAGE = 1_000  # rows copied at once


class Scratch:
    """
    The tables of one projection, in a database that vanishes with it.

    Attributes:
        connection: What the projection's methods write to.
    """

    def __init__(self, name: str, script: str) -> None:
        self._name = name
        # A file without a name: on disk where it is large, and gone when it is closed.
        self.connection = sqlite3.connect(
            "", isolation_level=None, factory=HandlerConnection, check_same_thread=False
        )
        try:
            self.connection.executescript(script)
            self._check()
            self.connection.execute("BEGIN")
        except BaseException as error:
            self.connection.close()
            if isinstance(error, sqlite3.Error):
                raise ProjectionError(
                    f"the tables of {name} cannot be made: {error}", projection=name
                ) from error
            raise
        self.connection.is_lent = True

    def _check(self) -> None:
        kinds = self.connection.execute(
            "SELECT name, type FROM pragma_table_list WHERE schema = 'main' "
            "AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
        ).fetchall()
        for table, kind in kinds:
            if kind not in {"table", "view"}:
                self._refuse(f"{table!r} is a virtual table, which cannot be swapped")
            if table.casefold().startswith("eventbus_"):
                self._refuse(f"the name of table {table!r} belongs to the store")
        if "table" not in dict(kinds).values():
            self._refuse("tables= makes no table")

    def _refuse(self, why: str) -> None:
        raise ProjectionError(f"{self._name}: {why}", projection=self._name)

    def names(self) -> list[str]:
        """
        Return the names of the tables and views.
        """
        made = self.connection.execute(_MADE).fetchall()
        return [name for kind, name, _ in made if kind in {"table", "view"}]

    def swap_into(self, target: Any, owned: Collection[str]) -> list[str]:
        """
        Put the tables into the database of *target*, in its transaction.

        Args:
            target: A connection whose transaction is open.
            owned: The tables and views that the projection had there before.

        Returns:
            The tables and views it has there now.

        Raises:
            ProjectionError: One of them is there already and somebody else's.
        """
        self.connection.take_back()
        made = self.connection.execute(_MADE).fetchall()
        names = self.names()
        self._clear(target, names, owned)
        for _, name, sql in (each for each in made if each[0] == "table"):
            target.execute(sql)
            self._copy(target, name)
        for _, _, sql in (each for each in made if each[0] != "table"):
            target.execute(sql)
        return names

    def _clear(self, target: Any, names: list[str], owned: Collection[str]) -> None:
        known = "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')"
        present = dict(target.execute(known).fetchall())
        for name in names:
            if name in present and name not in owned:
                self._refuse(
                    f"there is a {present[name]} {name!r} already, which it has not made: give "
                    f"its own another name, or drop that one"
                )
        # Views first: they may look at the tables.
        for name in sorted(owned, key=lambda name: present.get(name) != "view"):
            if name in present:
                target.execute(f"DROP {present[name].upper()} {_quoted(name)}")

    def _copy(self, target: Any, table: str) -> None:
        columns = [
            _quoted(name)
            for name, hidden in self.connection.execute(
                "SELECT name, hidden FROM pragma_table_xinfo(?)", (table,)
            )
            if not hidden  # generated ones make themselves
        ]
        listed, marks = ", ".join(columns), ", ".join("?" * len(columns))
        rows = self.connection.execute(f"SELECT {listed} FROM {_quoted(table)}")
        insert = f"INSERT INTO {_quoted(table)} ({listed}) VALUES ({marks})"
        while page := rows.fetchmany(_PAGE):
            target.executemany(insert, page)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.is_lent = False
        self.connection.close()


def version_in(connection: Any, name: str) -> tuple[int | None, list[str]]:
    """
    Return which version of a projection stands in the file, and its tables.
    """
    connection.execute(_REGISTRY)
    sql = "SELECT version, tables FROM eventbus_projections WHERE name = ?"
    row = connection.execute(sql, (name,)).fetchone()
    return (None, []) if row is None else (row[0], json.loads(row[1]))


def check_same(name: str, script: str, owned: Collection[str]) -> None:
    """
    Refuse to go on in tables that are not those of the script.

    Raises:
        ProjectionError: They have other names: it was changed, or is another projection.
    """
    with Scratch(name, script) as scratch:
        made = scratch.names()
    if set(made) != set(owned):
        raise ProjectionError(
            f"{name} has the tables {', '.join(sorted(owned))} in the file, and its class makes "
            f"{', '.join(sorted(made))}. If it was changed, raise its version=; if another "
            f"projection has this name, give one of them another",
            projection=name,
        )


def note_version(connection: Any, name: str, version: int, tables: list[str]) -> None:
    """
    Write down which version of a projection stands in the file, and its tables.
    """
    sql = "INSERT OR REPLACE INTO eventbus_projections (name, version, tables) VALUES (?, ?, ?)"
    connection.execute(sql, (name, version, json.dumps(tables)))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
