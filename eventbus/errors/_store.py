"""
What can go wrong where events are stored.

Law: as for all errors, said at the head of the room. What SQLite raises is translated to
these where it is called, and nowhere else.
"""

from __future__ import annotations

from eventbus.errors._root import EventBusError

__all__ = [
    "ConcurrencyError",
    "DuplicateEventError",
    "LeaseLostError",
    "ProjectionError",
    "StoreAccessError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreSchemaError",
    "SubscriptionBusyError",
]


class ConcurrencyError(EventBusError, RuntimeError):
    """
    Raised when a stream has another version than the appender expected.

    Nothing was stored. Load the stream anew, decide again, append again.

    Attributes:
        key: The stream.
        expected: The version that was expected.
        actual: The version that it has.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, key: str, expected: int, actual: int) -> None:
        super().__init__(message)
        self.key = key
        self.expected = expected
        self.actual = actual


class DuplicateEventError(EventBusError, ValueError):
    """
    Raised when an event is appended whose id is in the log already.

    Attributes:
        id: The id.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, id: str) -> None:
        super().__init__(message)
        self.id = id


class LeaseLostError(EventBusError, RuntimeError):
    """
    Raised when a subscription is consumed by another owner now.

    Attributes:
        subscription: Its name.
        owner: Who has lost it.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str, owner: str) -> None:
        super().__init__(message)
        self.subscription = subscription
        self.owner = owner


class StoreError(EventBusError):
    """
    Raised when events could not be stored or read; its subclasses say why.

    Attributes:
        path: The file, as text; empty if the store is none.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class StoreAccessError(StoreError, OSError):
    """
    Raised when the file cannot be opened, made or written to.

    .. versionadded:: 0.1
    """


class StoreClosedError(StoreError, RuntimeError):
    """
    Raised when a store is used after it was closed.

    .. versionadded:: 0.1
    """


class StoreCorruptError(StoreError):
    """
    Raised when the file is damaged, or is no database at all.

    .. versionadded:: 0.1
    """


class StoreFullError(StoreError):
    """
    Raised when there is no room left to store events; none of them was stored.

    .. versionadded:: 0.1
    """


class StoreLockedError(StoreError, TimeoutError):
    """
    Raised when another process, or a transaction, was writing all the time one waited.

    .. versionadded:: 0.1
    """


class StoreSchemaError(StoreError):
    """
    Raised when the file was written by a newer version of this library.

    .. versionadded:: 0.1
    """


class SubscriptionBusyError(EventBusError, RuntimeError):
    """
    Raised when a subscription is to be replayed, or rebuilt, while somebody consumes it.

    Attributes:
        subscription: Its name.
        owner: Who consumes it.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str, owner: str = "") -> None:
        super().__init__(message)
        self.subscription = subscription
        self.owner = owner


class ProjectionError(EventBusError, RuntimeError):
    """
    Raised when a projection's tables are not its own, or not of its version any more.

    Attributes:
        projection: Its name.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, projection: str = "") -> None:
        super().__init__(message)
        self.projection = projection
