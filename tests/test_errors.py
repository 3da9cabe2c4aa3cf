"""
The tree of errors: what each refines, carries and keeps on its way elsewhere.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest

import eventbus
from eventbus import Failure, errors
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

FAULTS = (ValueError("no stock"), ValueError("no stock"), TimeoutError("no answer"))
FAILURES = tuple(Failure(f"handler {n}", fault, 1) for n, fault in enumerate(FAULTS))

EXAMPLES: dict[Exception, tuple[type[Exception], dict[str, object]]] = {
    EventBusError("x"): (Exception, {}),
    DeclarationError("x"): (TypeError, {}),
    HandlerSignatureError("x", subscription="shop.pay"): (TypeError, {"subscription": "shop.pay"}),
    SubscriptionOptionError("x", subscription="shop.pay", option="timeout"): (
        TypeError,
        {"subscription": "shop.pay", "option": "timeout"},
    ),
    DuplicateNameError("x", name="shop.pay", first="the first"): (
        ValueError,
        {"name": "shop.pay", "first": "the first"},
    ),
    NotAnEventError("x"): (TypeError, {}),
    BusClosedError("x"): (RuntimeError, {}),
    RunningLoopError("x", subscription="shop.pay"): (RuntimeError, {"subscription": "shop.pay"}),
    PublishCycleError("x", chain=["A", "B"]): (RecursionError, {"chain": ("A", "B")}),
    HandlerTimeoutError("x", subscription="shop.pay", limit=3.0): (
        TimeoutError,
        {"subscription": "shop.pay", "limit": 3.0},
    ),
    HandlerAbortedError("x", subscription="shop.pay"): (
        RuntimeError,
        {"subscription": "shop.pay"},
    ),
    QueueFullError("x", subscription="shop.pay", capacity=9): (
        RuntimeError,
        {"subscription": "shop.pay", "capacity": 9},
    ),
    WouldDeadlockError("x"): (RuntimeError, {}),
    UncommittedError("x"): (RuntimeError, {}),
    HandlerErrors("x", FAULTS, FAILURES): (ExceptionGroup, {}),
    SubscriptionNotFoundError("x", subscription="shop.pay"): (
        LookupError,
        {"subscription": "shop.pay"},
    ),
    DeadLetterBusyError("x", letter_id="7"): (RuntimeError, {"letter_id": "7"}),
    DeadLetterNotFoundError("x", letter_id="7"): (LookupError, {"letter_id": "7"}),
    DeadLettersFullError("x"): (RuntimeError, {}),
    EncodeError("x", event="the event", path=".total"): (
        ValueError,
        {"event": "the event", "path": ".total"},
    ),
    DecodeError("x", name="shop.paid", version=2, path=".total", reason="gone"): (
        ValueError,
        {"name": "shop.paid", "version": 2, "path": ".total", "reason": "gone"},
    ),
    UnknownEventError("x", name="shop.paid", version=2): (
        LookupError,
        {"name": "shop.paid", "version": 2},
    ),
    ConcurrencyError("x", key="A-1", expected=2, actual=3): (
        RuntimeError,
        {"key": "A-1", "expected": 2, "actual": 3},
    ),
    DuplicateEventError("x", id="7"): (ValueError, {"id": "7"}),
    LeaseLostError("x", subscription="shop.pay", owner="me"): (
        RuntimeError,
        {"subscription": "shop.pay", "owner": "me"},
    ),
    SubscriptionBusyError("x", subscription="shop.pay", owner="me"): (
        RuntimeError,
        {"subscription": "shop.pay", "owner": "me"},
    ),
    ProjectionError("x", projection="shop.sales"): (RuntimeError, {"projection": "shop.sales"}),
    StoreError("x", path="app.db"): (EventBusError, {"path": "app.db"}),
    StoreAccessError("x", path="app.db"): (OSError, {"path": "app.db"}),
    StoreClosedError("x", path="app.db"): (RuntimeError, {"path": "app.db"}),
    StoreCorruptError("x", path="app.db"): (StoreError, {"path": "app.db"}),
    StoreFullError("x", path="app.db"): (StoreError, {"path": "app.db"}),
    StoreLockedError("x", path="app.db"): (TimeoutError, {"path": "app.db"}),
    StoreSchemaError("x", path="app.db"): (StoreError, {"path": "app.db"}),
}

every_error = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
every_copy = pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))],
    ids=["copy", "deepcopy", "pickle"],
)


def test_the_drawn_tree_shows_every_name():
    """
    Each exception of the module is in its ``__all__``, in the drawing, and at the front door.
    """
    drawing = errors.__doc__ or ""
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__.startswith(errors.__name__)
    }
    assert defined == set(errors.__all__)
    assert [] == [name for name in errors.__all__ if name not in drawing]
    assert [] == [name for name in errors.__all__ if name not in eventbus.__all__]


def test_every_error_has_an_example_here():
    """
    No error of the tree is left out of the tests below.
    """
    tree = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, EventBusError)
    }
    assert tree == {type(error) for error in EXAMPLES}


@every_error
def test_an_error_refines_a_builtin(error: Exception):
    """
    Each error is the library's own and the builtin it refines.
    """
    refined, _ = EXAMPLES[error]
    assert isinstance(error, EventBusError)
    assert isinstance(error, refined)
    assert "x" in str(error)


@every_error
def test_an_error_carries_what_it_speaks_of(error: Exception):
    """
    What the message names is there as an attribute, too.
    """
    _, attributes = EXAMPLES[error]
    assert attributes == {name: getattr(error, name) for name in attributes}


@every_error
@every_copy
def test_an_error_survives_copying(error: Exception, copied: Any):
    """
    A copied or pickled error has its type, message, attributes and notes.
    """
    error.__notes__ = ["a note"]
    twin = copied(error)
    assert type(error) is type(twin)
    assert str(error) == str(twin)
    assert EXAMPLES[error][1] == {name: getattr(twin, name) for name in EXAMPLES[error][1]}
    assert ["a note"] == twin.__notes__


def test_a_copied_group_keeps_its_failures():
    """
    A pickled `HandlerErrors` has its members and their failures.
    """
    twin = pickle.loads(pickle.dumps(HandlerErrors("3 handlers failed", FAULTS, FAILURES)))
    assert [repr(fault) for fault in FAULTS] == [repr(fault) for fault in twin.exceptions]
    assert ["handler 0", "handler 1", "handler 2"] == [each.subscription for each in twin.failures]


def test_a_group_is_split_with_its_failures():
    """
    Each part of a split group has the failures of its own members, told by identity.
    """
    group = HandlerErrors("3 handlers failed", FAULTS, FAILURES)
    timeouts, rest = group.split(TimeoutError)
    assert isinstance(timeouts, HandlerErrors)
    assert isinstance(rest, HandlerErrors)
    assert FAILURES[2:] == timeouts.failures
    assert FAILURES[:2] == rest.failures
    first = group.subgroup(lambda error: error is FAULTS[1])
    assert isinstance(first, HandlerErrors)
    assert FAILURES[1:2] == first.failures


def test_a_group_is_taken_apart_by_except_star():
    """
    ``except*`` takes single kinds of failure out of the group.
    """
    caught: list[object] = []
    try:
        raise HandlerErrors("3 handlers failed", FAULTS)
    except* TimeoutError as group:
        caught += group.exceptions
    except* ValueError as group:
        caught += group.exceptions
    assert [FAULTS[2], *FAULTS[:2]] == caught


def test_a_group_by_itself_has_no_failures():
    """
    A group made without failures says that it has none.
    """
    assert () == HandlerErrors("1 handler failed", [ValueError("no stock")]).failures


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_no_handler_can_be_called_again_at_no_time(seconds: float):
    """
    `RetryAfter` refuses what is no delay.
    """
    with pytest.raises(ValueError, match=r"RetryAfter\(seconds\) must be 0 or more, and finite"):
        RetryAfter(seconds)


def test_a_header_is_no_number_of_seconds():
    """
    `RetryAfter` refuses the text of a header with the spelling that works.
    """
    text: Any = "120"
    with pytest.raises(TypeError, match=r"not '120'.*RetryAfter\(float\(value\)\)"):
        RetryAfter(text)


@every_copy
@pytest.mark.parametrize(
    ("order", "message"),
    [
        (RetryAfter(1.5), "retry after 1.5 seconds"),
        (RetryAfter(0, "the server said so"), "the server said so"),
    ],
)
def test_a_delay_is_told_and_kept(order: RetryAfter, message: str, copied: Any):
    """
    `RetryAfter` says how long, or what it is told to say, and keeps the seconds.
    """
    twin = copied(order)
    assert message == str(twin)
    assert order.seconds == twin.seconds


def test_orders_and_warnings_are_no_errors_of_the_library():
    """
    What handlers raise to overrule a policy, and warnings, stand outside the tree.
    """
    for outside in (GiveUp, RetryAfter, EventBusWarning):
        assert not issubclass(outside, EventBusError)
    assert issubclass(EventBusWarning, UserWarning)
