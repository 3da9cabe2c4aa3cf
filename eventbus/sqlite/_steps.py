"""
What a step does to the tables.

Law: a step is part of a transaction that somebody else has begun, and begins by asking
whether the lease still counts: SQLite lets nobody else write until the transaction ends,
so the answer holds for all of it.
"""

from __future__ import annotations

from collections.abc import Collection

from eventbus.kept_letters import KeptLetter
from eventbus.progress import Advance, Lease, Step, lost, unknown
from eventbus.sqlite._letters import delete_letter, insert_letter
from eventbus.sqlite._writer import Statements

__all__ = ["apply", "fence", "let_wait", "name_of"]

_BEGIN = """
    INSERT INTO eventbus_deliveries (subscription, "offset", attempts) VALUES (?, ?, 1)
    ON CONFLICT (subscription, "offset") DO UPDATE SET attempts = attempts + 1, due = NULL
    RETURNING attempts
"""
_WAIT = 'INSERT OR IGNORE INTO eventbus_deliveries (subscription, "offset") VALUES (?, ?)'
_DONE = 'DELETE FROM eventbus_deliveries WHERE subscription = ? AND "offset" = ?'
_UNTRIED = """
    UPDATE eventbus_deliveries SET attempts = attempts - 1
    WHERE subscription = ? AND "offset" = ? AND attempts > 0
"""
_RETRY = 'UPDATE eventbus_deliveries SET due = ?, story = ? WHERE subscription = ? AND "offset" = ?'
_HANDLED = "INSERT OR REPLACE INTO eventbus_handled VALUES (?, ?, ?, ?, ?)"
_HOLDS = "SELECT 1 FROM eventbus_letters WHERE holds_key AND subscription = ? AND key = ? LIMIT 1"


def name_of(of: Lease | str) -> str:
    """
    Return the subscription's name.
    """
    return of if isinstance(of, str) else of.subscription


def fence(connection: Statements, of: Lease | str) -> int:
    """
    Return the subscription's number, if the lease still counts.
    """
    if isinstance(of, str):
        sql = "SELECT id FROM eventbus_subscriptions WHERE name = ?"
        rows = connection.execute(sql, (of,)).fetchall()
    else:
        sql = "SELECT id FROM eventbus_subscriptions WHERE name = ? AND token = ?"
        rows = connection.execute(sql, (of.subscription, of.token)).fetchall()
    if not rows:
        raise unknown(of) if isinstance(of, str) else lost(of)
    number: int = rows[0][0]
    return number


def apply(connection: Statements, of: Lease | str, step: Step) -> Advance:
    """
    Apply *step* in the transaction that is open on *connection*.
    """
    id, name = fence(connection, of), name_of(of)
    for letter_id in step.gone:
        delete_letter(connection, letter_id, name)
    connection.executemany(_DONE, [(id, offset) for offset in step.done])
    connection.executemany(_UNTRIED, [(id, offset) for offset in step.untried])
    connection.executemany(_RETRY, [(each.due, each.story, id, each.offset) for each in step.retry])
    for letter in step.dead:
        _bury(connection, id, letter)
    held = [
        letter.record.offset
        for letter in step.hold
        if connection.execute(_HOLDS, (name, letter.record.key)).fetchall()
        and _bury(connection, id, letter)
    ]
    if step.taken is not None:
        sql = "UPDATE eventbus_subscriptions SET taken = max(taken, ?) WHERE id = ?"
        connection.execute(sql, (step.taken, id))
    let_wait(connection, id, step.waiting)
    attempts = {
        offset: connection.execute(_BEGIN, (id, offset)).fetchall()[0][0] for offset in step.begin
    }
    for each in step.handled:
        given = (each.offset, id, each.attempts, each.time, each.seconds)
        connection.execute(_HANDLED, given)
    return Advance(attempts, frozenset(held))


def let_wait(connection: Statements, id: int, offsets: Collection[int]) -> None:
    """
    Have deliveries wait for their turn that were taken.
    """
    connection.executemany(_WAIT, [(id, offset) for offset in offsets])


def _bury(connection: Statements, id: int, letter: KeptLetter) -> bool:
    """
    Put *letter* in the place of its delivery; ``False``: that was finished before.
    """
    if not connection.execute(_DONE, (id, letter.record.offset)).rowcount:
        return False
    insert_letter(connection, letter)
    return True
