"""
What is written to the log before anything of it is delivered.

Law: encodes all there is to be written, then appends it at once: what cannot be encoded
is refused before anything is stored. Nothing here delivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from eventbus._envelope import stamp
from eventbus._receipt import Receipt
from eventbus._records import record_of
from eventbus.codec import Codec
from eventbus.event_log import EventLog

__all__ = ["LogWriter"]

_envelope_of = attrgetter("envelope")


class LogWriter:
    """
    Writes what is published to a log.

    Args:
        log: The log.
        codec: What encodes events.
    """

    def __init__(self, log: EventLog, codec: Codec) -> None:
        self._log = log
        self._codec = codec

    def append(
        self,
        receipts: Sequence[Receipt],
        *,
        expected_version: int | None = None,
        connection: Any = None,
    ) -> None:
        """
        Write events down, all or none.

        Raises:
            EncodeError, ConcurrencyError, DuplicateEventError, StoreError: None is.
        """
        try:
            envelopes = list(map(_envelope_of, receipts))
            offsets = self._log.append(
                [record_of(each, self._codec) for each in envelopes],
                expected_version=expected_version,
                connection=connection,
            )
            for envelope, offset in zip(envelopes, offsets, strict=True):
                stamp(envelope, offset or None)
        except BaseException:
            _call(receipts, "free")
            raise
        if connection is None:  # else it is not stored before the commit
            _call(receipts, "keep")

    async def aappend(
        self, receipts: Sequence[Receipt], *, expected_version: int | None = None
    ) -> None:
        """
        Write events down, all or none, while the event loop goes on.

        Cancelled, it may have written them or not.
        """
        try:
            envelopes = list(map(_envelope_of, receipts))
            offsets = await self._log.aappend(
                [record_of(each, self._codec) for each in envelopes],
                expected_version=expected_version,
            )
            for envelope, offset in zip(envelopes, offsets, strict=True):
                stamp(envelope, offset or None)
        except Exception:
            _call(receipts, "free")
            raise
        _call(receipts, "keep")


def _call(receipts: Sequence[Receipt], what: str) -> None:
    """
    Free the publishers' keys of events that were not stored, or keep those of stored ones.
    """
    for receipt in receipts:
        if receipt.options and (do := receipt.options.pop(what, None)) is not None:
            do()
