"""
Records to fill a log with.

Law: values for the contract suites; each id is new.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from eventbus.event_log import Record

__all__ = ["NOON", "minutes", "offsets", "record", "records"]

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
_ids = count(1)


def minutes(number: float) -> datetime:
    return NOON + timedelta(minutes=number)


def record(**facts: Any) -> Record:
    """
    Make a record nobody has seen, with these facts and plain ones for the rest.
    """
    id = facts.pop("id", f"event-{next(_ids)}")
    plain: dict[str, Any] = {
        "id": id,
        "name": "shop.order_placed",
        "time": NOON,
        "correlation_id": id,
        "payload": b'{"order_id":"A-1"}',
    }
    return Record(**{**plain, **facts})


def records(number: int, **facts: Any) -> list[Record]:
    return [record(**facts) for _ in range(number)]


def offsets(found: Iterable[Record]) -> list[int]:
    return [each.offset for each in found]
