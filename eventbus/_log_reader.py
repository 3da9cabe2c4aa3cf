"""
From the log to a subscription: which records are its business, and what they say.

Law: reads and decides; it hands out nothing and keeps no account. The user's code that
runs here, an upcaster or a class's own ``__subclasscheck__``, runs under no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from eventbus._entry import Entry, LoggedReceipt, logged_receipt
from eventbus._event import declared_as
from eventbus._records import Unreadable
from eventbus._subscription import Subscription
from eventbus.codec import Codec
from eventbus.errors import DecodeError, StoreCorruptError, UnknownEventError
from eventbus.event_log import EventLog, Record

__all__ = ["LogReader"]


class LogReader:
    """
    Reads the log for one subscription.

    Args:
        subscription: The subscription.
        codec: What reads events.
        log: What is read.
        route_for: Returns the route that deliveries of an event take, for the receipt.
    """

    def __init__(
        self,
        subscription: Subscription,
        *,
        codec: Codec,
        log: EventLog,
        route_for: Callable[[Any], Any],
    ) -> None:
        self._subscription = subscription
        self._codec = codec
        self._log = log
        self._route_for = route_for
        self._wanted: dict[tuple[str, int], bool] = {}
        codec.know(*subscription.event_types)

    def after(self, offset: int, limit: int) -> Iterator[Record]:
        """
        Go through the next records, whosoever business they are.
        """
        return self._log.read(after=offset, limit=limit)

    def at(self, offset: int) -> Record | None:
        """
        Return one record, if it is kept.
        """
        return next(self._log.read(after=offset - 1, until=offset, limit=1), None)

    def examine(self, entry: Entry, record: Record) -> bool:
        """
        Read a record; give its entry a receipt, and say whether it is the subscription's business.

        Raises:
            Exception: It cannot be read.
        """
        entry.record = record
        if not self._is_wanted(record):
            return False
        if not record.is_intact:
            raise StoreCorruptError(
                f"the stored bytes of event {record.id} ({record.name}) are not those that were "
                f"written: the file is damaged there. Restore it from a backup."
            )
        event = self._codec.decode(record.name, record.version, record.payload)
        entry.receipt = logged_receipt(event, self._route_for(event), entry)
        return True

    def unread(self, entry: Entry, error: Exception) -> LoggedReceipt:
        """
        Return what stands for the publish of an event that cannot be read.
        """
        record = entry.record
        assert record is not None
        event = Unreadable(record.name, record.version, record.payload, error)
        return logged_receipt(event, self._route_for(event), entry)

    def _is_wanted(self, record: Record) -> bool:
        source = (record.name, record.version)
        wanted = self._wanted.get(source)
        if wanted is None:
            wanted = self._wanted[source] = self._wants(record)
        return wanted

    def _wants(self, record: Record) -> bool:
        name, version, types = record.name, record.version, self._subscription.event_types
        cls = self._codec.class_of(name, version)
        if cls is None:
            # Declared here, perhaps, and not known to the codec: nobody has asked for it yet.
            known = declared_as(name)
            wanted = [each for each in known if issubclass(each, types)]
            if known and not wanted:
                return False
            self._codec.know(*wanted)
            cls = self._codec.class_of(name, version)
        if cls is None:
            raise self._why_unknown(record)
        return issubclass(cls, types)

    def _why_unknown(self, record: Record) -> DecodeError:
        name, version = record.name, record.version
        try:
            self._codec.decode(name, version, record.payload)
        except UnknownEventError:
            pass  # of what may be done about it, more is known here
        except DecodeError as error:
            return error  # its name is known, and the codec says what is wrong
        reason = f"no class is known by the name {name!r} in version {version}"
        return UnknownEventError(
            f"{reason}, so it may be {self._subscription.name}'s business. Import the module "
            f"that declares it; if it has another name now, @upcast({name!r}, ...)",
            name=name,
            version=version,
            reason=reason,
        )
