"""
Commands that look: the log, the subscriptions, the sizes, the damage.

Law: they read, and write nothing but their answer.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from typing import Any

from eventbus._cli._output import Output, at, payload_of
from eventbus._owner import is_gone
from eventbus.event_log import Record
from eventbus.progress import Lease
from eventbus.sqlite import SQLiteStore

__all__ = ["check", "row_of", "stats", "subscriptions", "tail"]

_TAIL = ("offset", "time", "name", "key", "payload")
_POSITIONS = ("name", "state", "offset", "lag", "pending", "dead", "held_keys", "owner")
_LOOK = 0.2  # seconds between two looks at a log that is followed


def row_of(record: Record) -> dict[str, Any]:
    """
    Return what is shown of an event.
    """
    facts: dict[str, Any] = {
        "offset": record.offset,
        "time": at(record.time),
        "name": record.name,
        "version": record.version,
        "key": record.key,
        "id": record.id,
        "correlation_id": record.correlation_id,
        "causation_id": record.causation_id,
        "headers": dict(record.headers),
        "payload": payload_of(record.payload),
    }
    return facts if record.is_intact else {**facts, "is_intact": False}


def tail(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Show the latest events, and with ``--follow`` those that come.
    """
    which: dict[str, Any] = {"names": arguments.type, "key": arguments.key}
    changes, last = store.log.changes(), store.log.last_offset()
    latest = list(store.log.read(until=last, backwards=True, limit=arguments.n, **which))
    out.rows(_TAIL, map(row_of, reversed(latest)))
    if not arguments.follow:
        return 0
    try:
        while True:
            out.stream.flush()
            out.sleep(_LOOK)
            if changes != (changes := store.log.changes()):
                for record in store.log.read(after=last, **which):
                    last = record.offset
                    out.one(_TAIL, row_of(record))
    except KeyboardInterrupt:  # how one ends it
        return 0


def subscriptions(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Show where each durable subscription stands.
    """
    out.rows(_POSITIONS, _positions(store))
    return 0


def _positions(store: SQLiteStore) -> Iterator[dict[str, Any]]:
    for each in store.progress.positions():
        yield {
            "name": each.name,
            "state": _state(each.lease),
            "offset": each.offset,
            "taken": each.taken,
            "lag": each.lag,
            "pending": each.pending,
            "dead": each.dead,
            "held_keys": len(store.letters.held_keys(each.name)),
            "owner": None if each.lease is None else each.lease.owner,
            "lease_ends": None if each.lease is None else at(each.lease.expires),
        }


def _state(lease: Lease | None) -> str:
    """
    Say whether somebody consumes: nobody, somebody, or somebody who is not heard of.
    """
    if lease is None:
        return "idle"
    is_over = lease.expires <= time.time() or is_gone(lease.owner)
    return "abandoned" if is_over else "running"


def stats(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Show what is in the file.
    """
    positions = store.progress.positions()
    first = next(store.log.read(limit=1), None)
    last = next(store.log.read(limit=1, backwards=True), None)
    facts: dict[str, Any] = {
        "file": store.path,
        "bytes": os.path.getsize(store.path),
        "wal_bytes": _size(f"{store.path}-wal"),
        "first_offset": None if first is None else first.offset,
        "last_offset": store.log.last_offset(),
        "first_time": None if first is None else at(first.time),
        "last_time": None if last is None else at(last.time),
        "subscriptions": len(positions),
        "greatest_lag": max((each.lag for each in positions), default=0),
        "pending": sum(each.pending for each in positions),
        "dead_letters": store.letters.count(),
    }
    if arguments.types:
        counts = Counter(record.name for record in store.log.read())
        facts["events"] = dict(counts.most_common())
    out.facts(facts)
    return 0


def _size(path: str) -> int:
    return os.path.getsize(path) if os.path.exists(path) else 0


def check(store: SQLiteStore, arguments: Namespace, out: Output) -> int:
    """
    Look for damage in the whole file.
    """
    found = store.check()
    if out.is_json:
        out.line({"ok": not found, "found": found})
    else:
        for text in found or ("no damage found",):
            out.text(text)
    return 1 if found else 0
