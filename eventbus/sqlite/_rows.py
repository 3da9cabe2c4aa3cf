"""
Values as SQLite keeps them, and back.

Law: times are integers, microseconds since 1970-01-01 UTC; headers are JSON; bytes are
bytes. Nothing is ever unpickled. What was damaged on disk comes back as a record that says
so: reading goes on behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from zlib import crc32

from eventbus._envelope import NO_HEADERS
from eventbus.event_log import Record, RecordDraft, check_times
from eventbus.kept_letters import KeptLetter

__all__ = [
    "LETTER",
    "RECORD",
    "from_letter",
    "from_record",
    "from_time",
    "to_letter",
    "to_record",
    "to_time",
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_from_timestamp = datetime.fromtimestamp
# Up to here, in 2106, a float of seconds tells each microsecond from its neighbours.
_EXACT = 2**32 * 1_000_000

# The columns in the order in which `to_record` and `to_letter` take them.
RECORD = (
    '"offset", id, name, version, key, time, correlation_id, causation_id, headers, '
    "payload, checksum"
)
LETTER = (
    '"offset", event_id, name, version, key, time, correlation_id, causation_id, headers, '
    "payload, checksum, id, subscription, reason, attempts, failures, error_type, "
    "first_failure, last_failure, idempotency_key, redrives, edited, holds_key"
)


def from_time(time: datetime) -> int:
    """
    Return microseconds since 1970-01-01 UTC; naive times are refused.
    """
    try:
        return (time - _EPOCH) // _MICROSECOND
    except TypeError:
        check_times(time)
        raise


def to_time(microseconds: int) -> datetime:
    """
    Return the time in UTC.
    """
    if 0 <= microseconds < _EXACT:
        return _from_timestamp(microseconds / 1e6, UTC)  # half the time of the sum
    return _EPOCH + timedelta(microseconds=microseconds)


def from_record(record: Record) -> tuple[Any, ...]:
    """
    Return the columns that an insert takes: all of `RECORD` but the offset.
    """
    own = record.correlation_id
    headers, payload = record.headers, record.payload
    return (
        record.id,
        record.name,
        record.version,
        record.key,
        from_time(record.time),
        None if own == record.id else own,
        record.causation_id,
        json.dumps(dict(headers), ensure_ascii=False) if headers else None,
        payload,
        crc32(payload),
    )


def to_record(row: Sequence[Any]) -> Record:
    """
    Return the record in columns as `RECORD` names them.
    """
    draft = RecordDraft()
    (
        draft.offset,
        draft.id,
        draft.name,
        draft.version,
        draft.key,
        time,
        correlation,
        draft.causation_id,
        headers,
        draft.payload,
        checksum,
    ) = row
    draft.correlation_id = draft.id if correlation is None else correlation
    try:
        draft.time = to_time(time)
        draft.headers = NO_HEADERS if headers is None else MappingProxyType(json.loads(headers))
        draft.is_intact = crc32(draft.payload) == checksum
    except (TypeError, ValueError, OverflowError):
        return _damaged(draft)
    return draft.seal()


def _damaged(found: RecordDraft) -> Record:
    """
    Save what can be saved of a row whose columns are not what was ever written.
    """
    payload: Any = found.payload
    return Record(
        offset=found.offset,
        id=str(found.id),
        name=str(found.name),
        key=None if found.key is None else str(found.key),
        time=_EPOCH,
        correlation_id=str(found.id),
        payload=payload if isinstance(payload, bytes) else str(payload).encode(),
        is_intact=False,
    )


def from_letter(letter: KeptLetter) -> tuple[Any, ...]:
    """
    Return the columns that an insert takes: those of `LETTER`.
    """
    return (
        letter.record.offset,
        *from_record(letter.record),
        letter.id,
        letter.subscription,
        letter.reason,
        letter.attempts,
        letter.failures,
        letter.error_type,
        from_time(letter.first_failure),
        from_time(letter.last_failure),
        letter.idempotency_key,
        letter.redrives,
        letter.edited,
        letter.holds_key,
    )


def to_letter(row: Sequence[Any]) -> KeptLetter:
    """
    Return the letter in columns as `LETTER` names them, and its place.
    """
    (id, subscription, reason, attempts, failures, error_type) = row[11:17]
    (first_failure, last_failure, idempotency_key, redrives, edited, holds_key, place) = row[17:]
    return KeptLetter(
        id=id,
        subscription=subscription,
        record=to_record(row[:11]),
        reason=reason,
        attempts=attempts,
        failures=failures,
        error_type=error_type,
        first_failure=to_time(first_failure),
        last_failure=to_time(last_failure),
        idempotency_key=idempotency_key,
        redrives=redrives,
        edited=edited,
        holds_key=bool(holds_key),
        place=place,
    )
