"""
Who holds a key in memory, and what another one meets who claims it.

Law: a record of one holder, without the store that it is in: what takes a lock, or asks
for room, is there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import attrs

__all__ = ["ClaimState", "Held", "Refused", "refuse"]

ClaimState = Literal["granted", "done", "pending"]


class Held:
    """
    A granted claim, and the record of its key: its identity is the fence.

    There is no ``__init__``: `claim` stores the slots itself, which is a call cheaper.
    *open* is there while the claim is pending, and whoever deletes it decides what
    becomes of the claim: under the GIL, exactly one ``del`` of a slot succeeds.
    """

    __slots__ = ("expires", "name", "open", "source", "ttl_ends", "waiters")

    name: tuple[str, str]
    source: Callable[[], Any]  # the event, or None once it is gone
    expires: float  # the lease
    ttl_ends: float  # of a completed claim, and set before its *open* goes
    open: Literal[True]
    waiters: list[Callable[[], object]] | None

    state: ClaimState = "granted"

    @property
    def event_id(self) -> str | None:
        source = self.source()
        return None if source is None else source.id

    @property
    def is_done(self) -> bool:
        return hasattr(self, "ttl_ends") and not hasattr(self, "open")

    def close(self) -> bool:
        try:
            del self.open
        except AttributeError:
            return False
        return True

    def has_expired(self, now: float) -> bool:
        # Only under the store's lock: after True the record must go.
        if hasattr(self, "open") and (now < self.expires or self.close()):
            return now >= self.expires
        return now >= self.ttl_ends


@attrs.frozen
class Refused:
    """
    A claim that met another holder.
    """

    holder: Held
    state: ClaimState
    expires: float

    @property
    def event_id(self) -> str | None:
        return self.holder.event_id


def refuse(holder: Held) -> Refused:
    is_open = hasattr(holder, "open")
    expires = holder.expires if is_open else holder.ttl_ends
    return Refused(holder, "pending" if is_open else "done", expires)
