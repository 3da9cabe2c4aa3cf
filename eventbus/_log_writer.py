"""
What is written to the log before anything of it is delivered.

Law: encodes all there is to be written, then appends it at once: what cannot be encoded
is refused before anything is stored. Nothing here delivers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventbus._envelope import stamp
from eventbus._receipt import Receipt
from eventbus._records import record_of
from eventbus.codec import Codec
from eventbus.event_log import EventLog, Record

__all__ = ["LogWriter"]


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
            records = self._records(receipts)
            offsets = self._log.append(
                records, expected_version=expected_version, connection=connection
            )
            for receipt, offset in zip(receipts, offsets, strict=True):
                stamp(receipt.envelope, offset or None)
        except BaseException:
            _call(receipts, "free")
            raise
        _call(receipts, "keep")

    async def aappend(
        self, receipts: Sequence[Receipt], *, expected_version: int | None = None
    ) -> None:
        """
        Write events down, all or none, while the event loop goes on.

        Cancelled, it may have written them or not.
        """
        try:
            records = self._records(receipts)
            offsets = await self._log.aappend(records, expected_version=expected_version)
            for receipt, offset in zip(receipts, offsets, strict=True):
                stamp(receipt.envelope, offset or None)
        except Exception:
            _call(receipts, "free")
            raise
        _call(receipts, "keep")

    def _records(self, receipts: Sequence[Receipt]) -> list[Record]:
        return [record_of(receipt.envelope, self._codec) for receipt in receipts]


def _call(receipts: Sequence[Receipt], what: str) -> None:
    """
    Free the publishers' keys of events that were not stored, or keep those of stored ones.
    """
    for receipt in receipts:
        do = (receipt.options or {}).get(what)
        if do is not None:
            do()
