"""
Between envelopes and records: an event encoded, and read again.

Law: the one place where a codec meets the log. What cannot be read is still delivered to
those who only look: as an `Unreadable` that says why.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from eventbus._envelope import Draft, Envelope
from eventbus._event import declaration_of, declared_as
from eventbus._unreadable import Unreadable
from eventbus.codec import Codec
from eventbus.errors import DeclarationError, StoreCorruptError, UnknownEventError
from eventbus.event_log import Record, RecordDraft

__all__ = ["Unreadable", "envelope_of", "enveloped", "legible", "record_of"]


def record_of(envelope: Envelope[Any], codec: Codec) -> Record:
    """
    Encode an envelope, or raise `EncodeError`.
    """
    name, version, payload = codec.encode(envelope.event)
    draft = RecordDraft()
    draft.offset = 0
    draft.id = envelope.id
    draft.name = name
    draft.version = version
    draft.key = envelope.key
    draft.time = envelope.time
    draft.correlation_id = envelope.correlation_id
    draft.causation_id = envelope.causation_id
    draft.headers = envelope.headers
    draft.payload = payload
    draft.is_intact = True
    return draft.seal()


def envelope_of(
    record: Record, codec: Codec, *, payload: bytes | None = None, is_replay: bool = False
) -> Envelope[Any]:
    """
    Decode a record, or raise why that cannot be.

    Args:
        record: What is in the log.
        codec: What reads it.
        payload: To be read in place of the record's, if it was edited.
        is_replay: What the envelope says of that.
    """
    if not record.is_intact and payload is None:
        raise StoreCorruptError(
            f"the stored bytes of event {record.id} ({record.name}), offset {record.offset}, are "
            f"not those that were written: restore the file from a backup"
        )
    written = record.payload if payload is None else payload
    event: object
    try:
        event = codec.decode(record.name, record.version, written)
    except UnknownEventError:
        if not _is_declared(record.name, codec):
            raise
        event = codec.decode(record.name, record.version, written)
    return enveloped(record, event, declaration_of(type(event)).version, is_replay=is_replay)


def _is_declared(name: str, codec: Codec) -> bool:
    """
    Tell the codec of the classes of that name, if there are any: nobody has asked for them.
    """
    declared = declared_as(name)
    with suppress(DeclarationError):  # two of them, which nobody can tell apart
        codec.know(*declared)
        return bool(declared)
    return False


def legible(record: Record, codec: Codec, *, payload: bytes | None = None) -> Envelope[Any]:
    """
    Decode a record for somebody who only looks: what cannot be read is `Unreadable`.
    """
    try:
        return envelope_of(record, codec, payload=payload)
    except Exception as error:
        written = record.payload if payload is None else payload
        unreadable = Unreadable(record.name, record.version, written, error)
        return enveloped(record, unreadable, record.version)


def enveloped(
    record: Record, event: Any, version: int, *, is_replay: bool = False
) -> Envelope[Any]:
    """
    Return what was known of an event when it was stored, around what it was decoded to.

    Args:
        record: What was stored.
        event: What it is.
        version: That of the event's class, or of the record.
        is_replay: Whether it was handled, or passed by, before.
    """
    draft: Draft[Any] = Draft()
    draft.event = event
    draft.id = record.id
    draft.time = record.time
    draft.name = record.name
    draft.version = version
    draft.key = record.key
    draft.correlation_id = record.correlation_id
    draft.causation_id = record.causation_id
    draft.headers = record.headers
    draft.is_late = False
    draft.offset = record.offset or None
    draft.is_replay = is_replay
    return draft.seal()
