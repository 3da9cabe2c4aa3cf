"""
What goes wrong between an event and its stored form.

Law: as the whole room's. What is done about an event that cannot be read is decided
by whoever reads.
"""

from __future__ import annotations

from eventbus.errors._root import EventBusError

__all__ = ["DecodeError", "EncodeError", "UnknownEventError"]


class EncodeError(EventBusError, ValueError):
    """
    Raised when an event cannot be written so that it would come back equal.

    Attributes:
        event: The event.
        path: Where in it: ``.lines[2].price``. Empty where it is the event as a whole.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, event: object, path: str = "") -> None:
        super().__init__(message)
        self.event = event
        self.path = path


class DecodeError(EventBusError, ValueError):
    """
    Raised when a stored event cannot be read.

    Attributes:
        name: The name it was stored by.
        version: The version it was stored in.
        path: Where in it: ``.lines[2].price``. Empty where it is the event as a whole.
        reason: What is wrong there.

    .. versionadded:: 0.1
    """

    def __init__(
        self, message: str, *, name: str, version: int, path: str = "", reason: str = ""
    ) -> None:
        super().__init__(message)
        self.name = name
        self.version = version
        self.path = path
        self.reason = reason


class UnknownEventError(DecodeError, LookupError):
    """
    Raised when no class is known that a stored event could come back as.

    .. versionadded:: 0.1
    """
