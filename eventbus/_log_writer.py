"""
What is written to the log before anything of it is delivered.

Law: encodes all there is to be written, then appends it at once: what cannot be encoded
is refused before anything is stored. A publisher's key is used by the commit that stores
its event where the log has the keys, too, and right after it elsewhere. Nothing here
delivers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from eventbus._envelope import stamp
from eventbus._receipt import Receipt
from eventbus._records import record_of
from eventbus.codec import Codec
from eventbus.event_log import EventLog, Record

if TYPE_CHECKING:
    import asyncio

__all__ = ["LogWriter"]

Keep = Callable[..., None]
_sealed_of = attrgetter("sealed")  # the envelope, which each has by now


class LogWriter:
    """
    Writes what is published to a log.

    Args:
        log: The log.
        codec: What encodes events.
        keys: Where publishers' keys are kept.
    """

    def __init__(self, log: EventLog, codec: Codec, keys: object) -> None:
        self._log = log
        self._codec = codec
        # Not every log can write keys: then they are written down after its commit.
        has: Callable[[object], bool] | None = getattr(log, "has_keys", None)
        self._has_keys = has is not None and has(keys)
        self._under_way: set[asyncio.Task[list[int]]] = set()

    def prepare(self, receipt: Receipt) -> None:
        """
        Encode now what is to be written later, once.

        Raises:
            EncodeError: It cannot be.
        """
        options = receipt.options = receipt.options or {}
        if "record" not in options:
            options["record"] = record_of(receipt.envelope, self._codec)

    def append(
        self,
        receipts: Sequence[Receipt],
        *,
        expected_version: int | None = None,
        connection: Any = None,
    ) -> None:
        """
        Write events down, all or none.

        Interrupted, it may have written them or not: a key is held until its lease ends.

        Raises:
            EncodeError, ConcurrencyError, DuplicateEventError, StoreError: None is.
        """
        try:
            records, keeps = self._prepared(receipts)
            if keeps is None:
                offsets = self._log.append(
                    records, expected_version=expected_version, connection=connection
                )
            else:
                offsets = self._with_keys(self._log.append, records, expected_version, keeps)
            for envelope, offset in zip(map(_sealed_of, receipts), offsets, strict=True):
                stamp(envelope, offset or None)
        except Exception:
            _call(receipts, "free")
            raise
        if connection is None:  # else it is not stored before the commit
            _call(receipts, "keep")

    async def aappend(
        self, receipts: Sequence[Receipt], *, expected_version: int | None = None
    ) -> None:
        """
        Write events down, all or none, while the event loop goes on.

        Cancelled, it may have written them or not: a key is kept or freed when that is known.
        """
        try:
            records, keeps = self._prepared(receipts)
            if keeps is None:
                appending = self._log.aappend(records, expected_version=expected_version)
            else:
                appending = self._with_keys(self._log.aappend, records, expected_version, keeps)
            if any("free" in (each.options or ()) for each in receipts):
                offsets = await self._to_the_end(appending, receipts)
            else:
                offsets = await appending
            for envelope, offset in zip(map(_sealed_of, receipts), offsets, strict=True):
                stamp(envelope, offset or None)
        except Exception:
            _call(receipts, "free")
            raise
        _call(receipts, "keep")

    def _prepared(self, receipts: Sequence[Receipt]) -> tuple[list[Record], list[Keep] | None]:
        """
        Return what is to be written, and what keeps the keys that are written with it.
        """
        codec, keeps = self._codec, None
        records: list[Record] = []
        for receipt in receipts:
            if not (options := receipt.options):
                records.append(record_of(receipt.envelope, codec))
                continue
            record = options.pop("record", None)
            records.append(record or record_of(receipt.envelope, codec))
            if self._has_keys and "keep" in options:
                keeps = [*(keeps or ()), options.pop("keep")]
        return records, keeps

    def _with_keys(
        self, append: Any, records: list[Record], version: int | None, keeps: list[Keep]
    ) -> Any:
        def along(connection: Any) -> None:
            for keep in keeps:
                keep(on=connection)

        return append(records, expected_version=version, along=along)

    async def _to_the_end(
        self, appending: Awaitable[list[int]], receipts: Sequence[Receipt]
    ) -> list[int]:
        """
        Await an append that goes on when its publisher is cancelled.
        """
        import asyncio  # late: whoever awaits has it loaded already

        task = asyncio.ensure_future(appending)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        task.add_done_callback(partial(_settle, receipts))
        await asyncio.wait([task])
        return task.result()


def _settle(receipts: Sequence[Receipt], appended: asyncio.Task[list[int]]) -> None:
    """
    Learn what came of an append: unless it was interrupted with its loop, in both cases.
    """
    if not appended.cancelled():
        _call(receipts, "keep" if appended.exception() is None else "free")


def _call(receipts: Sequence[Receipt], what: str) -> None:
    """
    Free the publishers' keys of events that were not stored, or keep those of stored ones.
    """
    for receipt in receipts:
        if receipt.options and (do := receipt.options.pop(what, None)) is not None:
            do()
