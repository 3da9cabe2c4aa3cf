"""
An in-process event bus: declare events, decorate handlers, publish.

Law: the front door is a list. Names and ``__all__``, nothing that runs.
"""

from eventbus._bus import EventBus
from eventbus._clock import Clock
from eventbus._ending import DrainReport
from eventbus._envelope import Envelope, current_envelope
from eventbus._event import event
from eventbus._insight import DurableStats, Explanation, HandlerTime, Stats, SubscriptionStats
from eventbus._marks import on
from eventbus._mode import Durable, Inline, Queued
from eventbus._options import SubscriptionOptions
from eventbus._publisher import PublishOptions
from eventbus._receipt import Failure, Receipt
from eventbus._subscription import Subscription
from eventbus.dead_letter import DeadLetter, DeadLetters, InMemoryDeadLetters
from eventbus.errors import (
    BusClosedError,
    ConcurrencyError,
    DeadLetterBusyError,
    DeadLetterNotFoundError,
    DeadLettersFullError,
    DeclarationError,
    DecodeError,
    DuplicateEventError,
    DuplicateNameError,
    EncodeError,
    EventBusError,
    EventBusWarning,
    GiveUp,
    HandlerAbortedError,
    HandlerErrors,
    HandlerSignatureError,
    HandlerTimeoutError,
    LeaseLostError,
    NotAnEventError,
    ProjectionError,
    PublishCycleError,
    QueueFullError,
    RetryAfter,
    RunningLoopError,
    StoreAccessError,
    StoreClosedError,
    StoreCorruptError,
    StoreError,
    StoreFullError,
    StoreLockedError,
    StoreSchemaError,
    SubscriptionBusyError,
    SubscriptionNotFoundError,
    SubscriptionOptionError,
    UncommittedError,
    UnknownEventError,
    WouldDeadlockError,
)
from eventbus.idempotency import IdempotencyStore, InMemoryIdempotencyStore
from eventbus.instrumentation import Observer
from eventbus.retry import (
    Attempt,
    RetryPolicy,
    exponential,
    fixed,
    from_tenacity,
    linear,
    no_retry,
    schedule,
)

__all__ = [
    "Attempt",
    "BusClosedError",
    "Clock",
    "ConcurrencyError",
    "DeadLetter",
    "DeadLetterBusyError",
    "DeadLetterNotFoundError",
    "DeadLetters",
    "DeadLettersFullError",
    "DeclarationError",
    "DecodeError",
    "DrainReport",
    "DuplicateEventError",
    "DuplicateNameError",
    "Durable",
    "DurableStats",
    "EncodeError",
    "Envelope",
    "EventBus",
    "EventBusError",
    "EventBusWarning",
    "Explanation",
    "Failure",
    "GiveUp",
    "HandlerAbortedError",
    "HandlerErrors",
    "HandlerSignatureError",
    "HandlerTime",
    "HandlerTimeoutError",
    "IdempotencyStore",
    "InMemoryDeadLetters",
    "InMemoryIdempotencyStore",
    "Inline",
    "LeaseLostError",
    "NotAnEventError",
    "Observer",
    "ProjectionError",
    "PublishCycleError",
    "PublishOptions",
    "QueueFullError",
    "Queued",
    "Receipt",
    "RetryAfter",
    "RetryPolicy",
    "RunningLoopError",
    "Stats",
    "StoreAccessError",
    "StoreClosedError",
    "StoreCorruptError",
    "StoreError",
    "StoreFullError",
    "StoreLockedError",
    "StoreSchemaError",
    "Subscription",
    "SubscriptionBusyError",
    "SubscriptionNotFoundError",
    "SubscriptionOptionError",
    "SubscriptionOptions",
    "SubscriptionStats",
    "UncommittedError",
    "UnknownEventError",
    "WouldDeadlockError",
    "current_envelope",
    "event",
    "exponential",
    "fixed",
    "from_tenacity",
    "linear",
    "no_retry",
    "on",
    "schedule",
]
