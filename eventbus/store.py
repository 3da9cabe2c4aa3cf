"""
What a bus with durable subscriptions keeps, in one place: the protocol.

Law: a store is four ports that share one database, one life and one end. What each port
promises is said where it lives.
"""

from __future__ import annotations

from typing import Protocol

from eventbus.event_log import EventLog
from eventbus.idempotency import IdempotencyStore
from eventbus.kept_letters import KeptLetters
from eventbus.progress import Progress

__all__ = ["Store"]


class Store(Protocol):
    """
    What a bus with durable subscriptions keeps, in one place.

    .. versionadded:: 0.1
    """

    @property
    def log(self) -> EventLog:
        """
        The history.
        """
        ...

    @property
    def progress(self) -> Progress:
        """
        How far each subscription has come.
        """
        ...

    @property
    def letters(self) -> KeptLetters:
        """
        What was given up on.
        """
        ...

    @property
    def idempotency(self) -> IdempotencyStore:
        """
        Which keys are being handled and which have been.
        """
        ...

    def check(self) -> tuple[str, ...]:
        """
        Look for damage, in everything; return what was found, in words.
        """
        ...

    def close(self) -> None:
        """
        Let go of everything that is open; again is fine.

        Whatever is asked after it raises `StoreClosedError`.
        """
        ...
