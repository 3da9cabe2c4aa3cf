"""
An in-process event bus: declare events, decorate handlers, publish.

Law: the front door is a list. Names and ``__all__``, nothing that runs.
"""

from eventbus._bus import EventBus
from eventbus._clock import Clock
from eventbus._envelope import Envelope, current_envelope
from eventbus._event import event
from eventbus._insight import Explanation, HandlerTime, Stats, SubscriptionStats
from eventbus._marks import on
from eventbus._options import SubscriptionOptions
from eventbus._publisher import PublishOptions
from eventbus._receipt import Failure, Receipt
from eventbus._subscription import Subscription
from eventbus.dead_letter import DeadLetter, DeadLetters, InMemoryDeadLetters
from eventbus.errors import (
    BusClosedError,
    DeadLetterNotFoundError,
    DeadLettersFullError,
    DeclarationError,
    DuplicateNameError,
    EventBusError,
    EventBusWarning,
    GiveUp,
    HandlerErrors,
    HandlerSignatureError,
    HandlerTimeoutError,
    NotAnEventError,
    PublishCycleError,
    RetryAfter,
    RunningLoopError,
    SubscriptionNotFoundError,
    SubscriptionOptionError,
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
    "DeadLetter",
    "DeadLetterNotFoundError",
    "DeadLetters",
    "DeadLettersFullError",
    "DeclarationError",
    "DuplicateNameError",
    "Envelope",
    "EventBus",
    "EventBusError",
    "EventBusWarning",
    "Explanation",
    "Failure",
    "GiveUp",
    "HandlerErrors",
    "HandlerSignatureError",
    "HandlerTime",
    "HandlerTimeoutError",
    "IdempotencyStore",
    "InMemoryDeadLetters",
    "InMemoryIdempotencyStore",
    "NotAnEventError",
    "Observer",
    "PublishCycleError",
    "PublishOptions",
    "Receipt",
    "RetryAfter",
    "RetryPolicy",
    "RunningLoopError",
    "Stats",
    "Subscription",
    "SubscriptionNotFoundError",
    "SubscriptionOptionError",
    "SubscriptionOptions",
    "SubscriptionStats",
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
