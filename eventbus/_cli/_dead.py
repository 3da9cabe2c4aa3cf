"""
Commands about dead letters that need no application.

Law: what was published is never changed; an edit stands beside it.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from eventbus._cli._fates import Holders, fate_of
from eventbus._cli._output import Output, UsageError, at, payload_of, plain, told
from eventbus._cli._reading import row_of
from eventbus.errors import DeadLetterNotFoundError
from eventbus.kept_letters import KeptLetter, Selection
from eventbus.sqlite import SQLiteStore

__all__ = ["discard", "edit", "list_letters", "meant", "selection_of", "show"]

_LIST = (
    "id",
    "last_failure",
    "subscription",
    "reason",
    "name",
    "key",
    "attempts",
    "error",
    "message",
)


def selection_of(arguments: Namespace) -> Selection:
    """
    Return which letters the options leave.
    """
    return Selection(
        subscription=arguments.subscription,
        names=arguments.type,
        key=arguments.key,
        error=arguments.error,
        reason=arguments.reason,
    )


def meant(store: SQLiteStore, arguments: Namespace) -> list[KeptLetter]:
    """
    Return the letters that a command is to change.

    Raises:
        UsageError: Nothing says which.
        DeadLetterNotFoundError: There is none of that id.
    """
    if arguments.id:
        return [store.letters.get(id) for id in arguments.id]
    selection = selection_of(arguments)
    if selection == Selection() and not arguments.all:
        raise UsageError("say which letters: their ids, options that select some, or --all")
    return store.letters.query(selection)


def _row(letter: KeptLetter, holders: Holders) -> dict[str, Any]:
    stories = told(letter.failures)
    last = stories[-1] if stories else {}
    return {
        "id": letter.id,
        "subscription": letter.subscription,
        "reason": letter.reason,
        "behind": holders.behind(letter),
        "name": letter.record.name,
        "key": letter.record.key,
        "offset": letter.record.offset,
        "event_id": letter.record.id,
        "attempts": letter.attempts,
        "redrives": letter.redrives,
        "error": letter.error_type,
        "message": last.get("message"),
        "first_failure": at(letter.first_failure),
        "last_failure": at(letter.last_failure),
        "is_edited": letter.edited is not None,
        "holds_key": letter.holds_key,
    }


def list_letters(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Show dead letters, the oldest first.
    """
    after = 0 if arguments.after is None else store.letters.get(arguments.after).place
    letters = store.letters.query(selection_of(arguments), limit=arguments.n, after=after)
    holders = Holders(store.letters)
    rows = [_row(each, holders) for each in letters]
    if not out.is_json:  # what tells of no failure has no message
        for row in rows:
            row["message"] = row["message"] or fate_of(row["reason"], row["behind"])
    out.rows(_LIST, rows)
    return 0


def show(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Show one dead letter with its whole story.
    """
    letter = store.letters.get(arguments.id)
    facts = _row(letter, Holders(store.letters)) | {"idempotency_key": letter.idempotency_key}
    facts["event"] = row_of(letter.record)
    if letter.edited is not None:
        facts["edited_payload"] = payload_of(letter.edited)
    if out.is_json:
        out.line({**facts, "failures": told(letter.failures)})
        return 0
    out.facts(facts)
    for each in told(letter.failures):
        out.text("")
        out.text(plain(f"attempt {each.get('number')} at {each.get('time')}"))
        for line in str(each.get("traceback") or each.get("message")).splitlines():
            out.text(f"  {plain(line)}")
    return 0


def discard(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Throw dead letters away.
    """
    count = 0
    for letter in meant(store, arguments):
        try:
            store.letters.remove(letter.id)
        except DeadLetterNotFoundError:  # somebody else was quicker
            continue
        count += 1
    out.facts({"discarded": count})
    return 0


def edit(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Change what will be delivered of a dead letter.
    """
    payload = None if arguments.original else _given(arguments.payload)
    if payload is not None:
        _refuse_what_has_no_fields(payload, store.letters.get(arguments.id).record.payload)
    letter = store.letters.edit(arguments.id, payload)
    out.facts({"id": letter.id, "payload": payload_of(letter.payload)})
    return 0


def _given(text: str) -> bytes:
    try:
        payload = (sys.stdin.read() if text == "-" else text).strip().encode()
    except UnicodeError as error:
        raise UsageError(f"--payload is no text in UTF-8: {error}") from None
    if _kind(payload) is None:
        raise UsageError("--payload is no JSON; it is stored as the event's fields")
    return payload


def _refuse_what_has_no_fields(payload: bytes, stored: bytes) -> None:
    if _kind(payload) is not dict and _kind(stored) in (dict, None):
        raise UsageError("--payload is no JSON object: give all of the event's fields, {...}")


def _kind(payload: bytes) -> type | None:
    """
    Return what Python reads it as, or ``None``: it is no JSON.
    """
    found: object = payload_of(payload)
    is_text_alone = isinstance(found, str) and not payload.startswith(b'"')
    return None if is_text_alone else type(found)
