"""
Dead letters in a table, undecoded.

Law: a selection becomes conditions from the texts in this file, and parameters.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from eventbus._owner import is_gone
from eventbus.errors import DeadLetterNotFoundError, StoreClosedError
from eventbus.event_log import check_limit
from eventbus.kept_letters import EVERY_LETTER, KeptLetter, Selection
from eventbus.sqlite._database import Database
from eventbus.sqlite._rows import LETTER, from_letter, from_time, to_letter
from eventbus.sqlite._writer import Statements, Writer

__all__ = ["SQLiteLetters", "delete_letter", "free_key", "insert_letter"]

_COLUMNS = [column.strip() for column in LETTER.split(",")]
_INSERT = f"INSERT INTO eventbus_letters ({LETTER}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_FOUND = f"{LETTER}, place"
_REPLACE = (
    f"UPDATE eventbus_letters SET {', '.join(f'{column} = ?' for column in _COLUMNS)}, "
    "claimed_by = NULL, claimed_until = NULL WHERE id = ?"
)
_CLAIM = """
    UPDATE eventbus_letters SET claimed_by = ?, claimed_until = ?
    WHERE id = ? AND (claimed_by IS NULL OR claimed_by = ? OR claimed_until <= ?)
"""
_STUCK = "(reason <> 'held' OR edited IS NOT NULL)"  # in the words of the index
_HELD_KEYS = """
    SELECT DISTINCT key FROM eventbus_letters
    WHERE holds_key AND subscription = ? AND key IS NOT NULL
"""
_OF_KEY = "FROM eventbus_letters WHERE holds_key AND subscription = ? AND key = ?"
_IN_THE_WAY = f"""
    SELECT {_STUCK}, claimed_by {_OF_KEY}
    AND ({_STUCK} OR claimed_by IS NOT NULL AND claimed_until > ?)
"""
# A name without a dot is a simple one: it may end a qualified name.
_ERROR = (
    "error_type <> '' AND (error_type = ? OR (instr(?, '.') = 0 "
    "AND substr(error_type, -length(?) - 1) = '.' || ?))"
)


class SQLiteLetters:
    """
    Keeps letters in the file of a `SQLiteStore`, which makes it.
    """

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer

    def add(self, letter: KeptLetter) -> None:
        """
        Keep a letter, or raise `ValueError`: one of its id is kept already.
        """
        self._writer.run(lambda connection: insert_letter(connection, letter))

    def add_all(self, letters: Sequence[KeptLetter]) -> None:
        """
        Keep letters by one transaction: all of them, or none.
        """

        def insert(connection: Statements) -> None:
            for letter in letters:
                insert_letter(connection, letter)

        self._writer.run(insert)

    def get(self, id: str) -> KeptLetter:
        """
        Return the letter of that id.
        """
        rows = self._database.query(f"SELECT {_FOUND} FROM eventbus_letters WHERE id = ?", (id,))
        if not rows:
            raise _missing(id)
        return to_letter(rows[0])

    def query(
        self,
        selection: Selection = EVERY_LETTER,
        *,
        limit: int | None = None,
        after: int = 0,
    ) -> list[KeptLetter]:
        """
        Return the letters that are meant, first arrival first, at most *limit*.
        """
        check_limit(limit)
        where, given = _where(selection)
        sql = f"SELECT {_FOUND} FROM eventbus_letters WHERE {where} AND place > ? ORDER BY place"
        rows = self._database.query(f"{sql} LIMIT ?", (*given, after, limit or -1))
        return list(map(to_letter, rows))

    def count(self, selection: Selection = EVERY_LETTER) -> int:
        """
        Return how many letters are meant.
        """
        where, given = _where(selection)
        sql = f"SELECT count(*) FROM eventbus_letters WHERE {where}"
        number: int = self._database.query(sql, given)[0][0]
        return number

    def replace(self, letter: KeptLetter) -> None:
        """
        Put *letter* in the place of the one with its id; its claim ends.
        """
        self._change(letter.id, _REPLACE, (*from_letter(letter), letter.id))

    def edit(self, id: str, payload: bytes | None) -> KeptLetter:
        """
        Deliver *payload* from now on; ``None``: the original again.
        """
        self._change(id, "UPDATE eventbus_letters SET edited = ? WHERE id = ?", (payload, id))
        return self.get(id)

    def _change(self, id: str, sql: str, given: Sequence[Any]) -> None:
        if not self._writer.run(lambda connection: connection.execute(sql, given).rowcount):
            raise _missing(id)

    def remove(self, id: str) -> KeptLetter:
        """
        Take the letter of that id out and return it.
        """
        return self._writer.run(partial(_remove, id))

    async def aremove(self, id: str) -> KeptLetter:
        """
        Do as `remove`, while the event loop goes on.
        """
        return await self._writer.arun(partial(_remove, id))

    def discard(self, selection: Selection = EVERY_LETTER) -> int:
        """
        Throw away the letters that are meant, all if nothing is said; count them.
        """
        where, given = _where(selection)
        sql = f"DELETE FROM eventbus_letters WHERE {where}"
        return self._writer.run(lambda connection: connection.execute(sql, given).rowcount)

    def claim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Ask for the right to redrive a letter; of all who ask, one gets it.
        """
        return self._writer.run(partial(_claim, id, owner, ttl, now))

    async def aclaim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Do as `claim`, while the event loop goes on. Cancelled, it holds nothing.
        """
        try:
            return await self._writer.arun(partial(_claim, id, owner, ttl, now))
        except BaseException as error:
            if not isinstance(error, Exception):  # it is written all the same
                with suppress(StoreClosedError):  # what writes is closed: the claim ends
                    self._writer.post(partial(_claim, id, owner, 0.0, now), failed=_unheard)
            raise

    def held_keys(self, subscription: str) -> frozenset[str]:
        """
        Return the keys whose later events wait behind a letter.
        """
        return frozenset(key for (key,) in self._database.query(_HELD_KEYS, (subscription,)))

    def stuck_keys(self, subscription: str) -> frozenset[str]:
        """
        Return the held keys that do not go on by themselves.
        """
        sql = f"{_HELD_KEYS} AND {_STUCK}"
        return frozenset(key for (key,) in self._database.query(sql, (subscription,)))


def _claim(id: str, owner: str, ttl: float, now: float, connection: Statements) -> bool:
    def ask(instead_of: str) -> bool:
        given = (owner, now + ttl, id, instead_of, now)
        return connection.execute(_CLAIM, given).rowcount > 0

    if ask(owner):
        return True
    sql = "SELECT claimed_by FROM eventbus_letters WHERE id = ?"
    rows = connection.execute(sql, (id,)).fetchall()
    if not rows:
        raise _missing(id)
    return is_gone(rows[0][0]) and ask(rows[0][0])


def _unheard(error: BaseException) -> None:
    """
    Leave a claim to its end by itself: whoever made it is gone.
    """


def _remove(id: str, connection: Statements) -> KeptLetter:
    sql = f"DELETE FROM eventbus_letters WHERE id = ? RETURNING {_FOUND}"
    rows = connection.execute(sql, (id,)).fetchall()
    if not rows:
        raise _missing(id)
    return to_letter(rows[0])


def insert_letter(connection: Statements, letter: KeptLetter) -> None:
    """
    Keep *letter* in the transaction that is open on *connection*.
    """
    try:
        connection.execute(_INSERT, from_letter(letter))
    except sqlite3.IntegrityError as error:
        text = f"dead letter {letter.id!r} is kept already: use replace()"
        raise ValueError(text) from error


def delete_letter(connection: Statements, id: str, subscription: str) -> None:
    """
    Take a letter of *subscription* out, in the transaction that is open on *connection*.
    """
    sql = "DELETE FROM eventbus_letters WHERE id = ? AND subscription = ?"
    if not connection.execute(sql, (id, subscription)).rowcount:
        raise _missing(id)


def free_key(
    connection: Statements, subscription: str, key: str, *, now: float
) -> list[int] | None:
    """
    Take out the letters that hold a key, in the transaction that is open on *connection*.

    Return the offsets of their records; ``None``: one is stuck, or is being redriven.
    """
    rows = connection.execute(_IN_THE_WAY, (subscription, key, now)).fetchall()
    if any(is_stuck or not is_gone(claimant) for is_stuck, claimant in rows):
        return None
    gone = connection.execute(f'DELETE {_OF_KEY} RETURNING "offset"', (subscription, key))
    return sorted(offset for (offset,) in gone.fetchall())


def _where(selection: Selection) -> tuple[str, list[Any]]:
    each, names = selection, selection.names
    conditions: list[tuple[str, Sequence[Any]]] = [
        ("subscription = ?", (each.subscription,)),
        ("key = ?", (each.key,)),
        (_ERROR, (each.error,) * 4),
        ("reason = ?", (each.reason,)),
        ("last_failure >= ?", (each.since and from_time(each.since),)),
        ("last_failure < ?", (each.before and from_time(each.before),)),
    ]
    if each.holds_key is not None:
        # As text: for a parameter SQLite does not take the index of those that hold.
        conditions.append(("holds_key" if each.holds_key else "NOT holds_key", ()))
    if names is not None:
        conditions.append((f"name IN ({', '.join('?' * len(names))})", tuple(names)))
    given = [(text, values) for text, values in conditions if None not in values]
    texts = [text for text, _ in given] or ["TRUE"]
    return " AND ".join(texts), [value for _, values in given for value in values]


def _missing(id: str) -> DeadLetterNotFoundError:
    return DeadLetterNotFoundError(
        f"there is no dead letter {id!r}: it was redriven, discarded or never kept", letter_id=id
    )
