"""
Every exception and warning of the library, the tree drawn at the top.

Law: an error carries the objects it speaks of as attributes, and its message
says what happened, to which subscription and event, and what to do about it.
Nothing here imports another room, logs or decides. An error can be copied and
pickled where what it carries can be: it may be on its way to another process.

::

    EventBusError
    ├── DeclarationError (TypeError)         an event class cannot be declared so
    ├── HandlerSignatureError (TypeError)    a handler cannot be called so
    ├── SubscriptionOptionError (TypeError)  an option cannot work for that handler
    ├── DuplicateNameError (ValueError)      a subscription's name is taken
    ├── NotAnEventError (TypeError)          what was published is no event
    ├── BusClosedError (RuntimeError)        the bus has been closed
    ├── RunningLoopError (RuntimeError)      publish() met an event loop and a coroutine
    ├── PublishCycleError (RecursionError)   handlers publish each other's events forever
    ├── HandlerTimeoutError (TimeoutError)   an attempt ran longer than its timeout
    ├── HandlerAbortedError (RuntimeError)   a queued handler ended by no exception of its own
    ├── QueueFullError (RuntimeError)        a subscription's queue has no room
    ├── WouldDeadlockError (RuntimeError)    a call would wait for what it is part of
    ├── UncommittedError (RuntimeError)      an event would be delivered before its commit
    ├── HandlerErrors (ExceptionGroup)       the failures of one publish
    ├── SubscriptionNotFoundError (LookupError)
    ├── DeadLetterBusyError (RuntimeError)   somebody else redrives the letter
    ├── DeadLetterNotFoundError (LookupError)
    ├── DeadLettersFullError (RuntimeError)
    ├── ConcurrencyError (RuntimeError)      a stream has another version than expected
    ├── DuplicateEventError (ValueError)     an event's id is in the log already
    ├── EncodeError (ValueError)             an event cannot be written to a store
    ├── DecodeError (ValueError)             a stored event cannot be read
    │   └── UnknownEventError (LookupError)  no class is known by its name
    ├── LeaseLostError (RuntimeError)        another owner consumes the subscription now
    ├── SubscriptionBusyError (RuntimeError) somebody consumes the subscription
    ├── ProjectionError (RuntimeError)       a projection's tables are not its own
    └── StoreError                           events could not be stored or read
        ├── StoreAccessError (OSError)       there is no such file, or it is not ours to write
        ├── StoreClosedError (RuntimeError)  the store has been closed
        ├── StoreCorruptError                the file is damaged, or no database
        ├── StoreFullError                   there is no room left
        ├── StoreLockedError (TimeoutError)  somebody else was writing all the time
        └── StoreSchemaError                 the file was written by a newer version

    Raised by handlers, to overrule their retry policy:
    GiveUp, RetryAfter

    EventBusWarning (UserWarning)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eventbus.errors._codec import DecodeError, EncodeError, UnknownEventError
from eventbus.errors._letters import (
    DeadLetterBusyError,
    DeadLetterNotFoundError,
    DeadLettersFullError,
)
from eventbus.errors._root import EventBusError, portable
from eventbus.errors._store import (
    ConcurrencyError,
    DuplicateEventError,
    LeaseLostError,
    ProjectionError,
    StoreAccessError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreSchemaError,
    SubscriptionBusyError,
)

__all__ = [
    "BusClosedError",
    "ConcurrencyError",
    "DeadLetterBusyError",
    "DeadLetterNotFoundError",
    "DeadLettersFullError",
    "DeclarationError",
    "DecodeError",
    "DuplicateEventError",
    "DuplicateNameError",
    "EncodeError",
    "EventBusError",
    "EventBusWarning",
    "GiveUp",
    "HandlerAbortedError",
    "HandlerErrors",
    "HandlerSignatureError",
    "HandlerTimeoutError",
    "LeaseLostError",
    "NotAnEventError",
    "ProjectionError",
    "PublishCycleError",
    "QueueFullError",
    "RetryAfter",
    "RunningLoopError",
    "StoreAccessError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreSchemaError",
    "SubscriptionBusyError",
    "SubscriptionNotFoundError",
    "SubscriptionOptionError",
    "UncommittedError",
    "UnknownEventError",
    "WouldDeadlockError",
]


class DeclarationError(EventBusError, TypeError):
    """
    Raised when a class cannot be declared as an event.

    .. versionadded:: 0.1
    """


class HandlerSignatureError(EventBusError, TypeError):
    """
    Raised when a handler's parameters or annotations do not fit its event.

    Attributes:
        subscription: The name the subscription would have had.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str = "") -> None:
        super().__init__(message)
        self.subscription = subscription


class SubscriptionOptionError(EventBusError, TypeError):
    """
    Raised when an option of a subscription cannot work for its handler.

    Attributes:
        subscription: The name the subscription would have had.
        option: The option's name.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str = "", option: str = "") -> None:
        super().__init__(message)
        self.subscription = subscription
        self.option = option


class DuplicateNameError(EventBusError, ValueError):
    """
    Raised when a second subscription asks for a name that is taken.

    Attributes:
        name: The name both asked for.
        first: The subscription that has it.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, name: str, first: object) -> None:
        super().__init__(message)
        self.name = name
        self.first = first


class NotAnEventError(EventBusError, TypeError):
    """
    Raised when something that is no event is published.

    .. versionadded:: 0.1
    """


class BusClosedError(EventBusError, RuntimeError):
    """
    Raised when an event is published to a bus that has been closed.

    .. versionadded:: 0.1
    """


class RunningLoopError(EventBusError, RuntimeError):
    """
    Raised when `publish` would have to block a running event loop.

    Attributes:
        subscription: The name of the subscription whose handler is async.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str) -> None:
        super().__init__(message)
        self.subscription = subscription


class PublishCycleError(EventBusError, RecursionError):
    """
    Raised when nested publishes go deeper than the bus allows.

    It passes through every dispatch of the chain up to the outermost publish:
    isolating it would let a cycle with two branches run practically forever.

    Attributes:
        chain: The event names of the chain, outermost first.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, chain: Sequence[str]) -> None:
        super().__init__(message)
        self.chain = tuple(chain)


class HandlerTimeoutError(EventBusError, TimeoutError):
    """
    Raised when one attempt of a handler ran longer than its timeout.

    Attributes:
        subscription: The name of the subscription.
        limit: The timeout, in seconds.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str, limit: float) -> None:
        super().__init__(message)
        self.subscription = subscription
        self.limit = limit


class HandlerAbortedError(EventBusError, RuntimeError):
    """
    Raised when a handler ended with something that is no `Exception`.

    A cancellation that nobody asked its caller for ends the attempt, and so does, in a
    queued handler, a `SystemExit`. Its ``__cause__`` is what the handler raised.

    Attributes:
        subscription: The name of the subscription.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str) -> None:
        super().__init__(message)
        self.subscription = subscription


class QueueFullError(EventBusError, RuntimeError):
    """
    Raised when a queued subscription has no room for an event and must not wait for it.

    Attributes:
        subscription: The name of the subscription.
        capacity: How many events may wait there.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str, capacity: int) -> None:
        super().__init__(message)
        self.subscription = subscription
        self.capacity = capacity


class WouldDeadlockError(EventBusError, RuntimeError):
    """
    Raised when a call would wait for what it is itself a part of.

    .. versionadded:: 0.1
    """


class UncommittedError(EventBusError, RuntimeError):
    """
    Raised when an event would be delivered before the transaction it is part of commits.

    .. versionadded:: 0.1
    """


class HandlerErrors(EventBusError, ExceptionGroup[Exception]):
    """
    Raised when handlers of one publish failed and the caller wants to know.

    An `ExceptionGroup`: ``except*`` takes single kinds of failure out of it.
    Each member carries a note that names its subscription and event.

    Attributes:
        failures: The `eventbus.Failure` values, in the order of the handlers.

    .. versionadded:: 0.1
    """

    failures: tuple[Any, ...]

    def __new__(
        cls, message: str, exceptions: Sequence[Exception], failures: Sequence[Any] = ()
    ) -> HandlerErrors:
        """
        Build the group from *exceptions* and remember their *failures*.
        """
        self = super().__new__(cls, message, exceptions)
        self.failures = tuple(failures)
        return self

    def __init__(
        self, message: str, exceptions: Sequence[Exception], failures: Sequence[Any] = ()
    ) -> None:
        super().__init__(message, exceptions)

    def derive(self, excs: Sequence[Any], /) -> Any:
        """
        Keep the failures that belong to *excs* when the group is split.
        """
        kept = {id(each) for each in excs}
        failures = [failure for failure in self.failures if id(failure.exception) in kept]
        return HandlerErrors(self.message, excs, failures)


class SubscriptionNotFoundError(EventBusError, LookupError):
    """
    Raised when nothing is subscribed by the name a dead letter asks for.

    Attributes:
        subscription: That name.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, *, subscription: str = "") -> None:
        super().__init__(message)
        self.subscription = subscription


class GiveUp(Exception):
    """
    Raise it in a handler to give up now, whatever the retry policy says.

    .. versionadded:: 0.1
    """


class RetryAfter(Exception):
    """
    Raise it in a handler to be called again after *seconds*, whatever the policy says.

    The server's ``Retry-After`` is the usual source. It replaces the policy's delay and
    its choice of exceptions, not its limits: *attempts* and *max_elapsed* still count, a
    policy of your own may give up, and without a policy there is no further attempt.

    Attributes:
        seconds: How long to wait before the next attempt, 0 or more.

    .. versionadded:: 0.1
    """

    def __init__(self, seconds: float, message: str | None = None) -> None:
        try:
            is_wait = 0 <= seconds < math.inf
        except TypeError as error:
            raise TypeError(
                f"RetryAfter(seconds) must be a number, not {seconds!r}. A header is text: "
                f"RetryAfter(float(value))."
            ) from error
        if not is_wait:
            raise ValueError(f"RetryAfter(seconds) must be 0 or more, and finite, not {seconds!r}")
        super().__init__(message or f"retry after {seconds:g} seconds")
        self.seconds = seconds

    __reduce__ = portable


class EventBusWarning(UserWarning):
    """
    Warned when something works but is probably not what was meant.

    .. versionadded:: 0.1
    """
