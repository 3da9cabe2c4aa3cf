"""
What came of a publish: the receipt, its defaults and its errors.
"""

from __future__ import annotations

import pytest

from eventbus import EventBus, HandlerErrors, event
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


def test_an_attribute_it_does_not_have_is_an_attribute_error():
    """
    What was never stored has a default only where the receipt declares it.
    """
    receipt = EventBus().publish(A())
    with pytest.raises(AttributeError, match="no attribute 'results'"):
        _ = receipt.results  # type: ignore[attr-defined]
    assert () == receipt.failures


def test_without_failures_nothing_is_raised():
    """
    raise_for_failures does nothing when all went well.
    """
    receipt = EventBus().publish(A())
    assert receipt.raise_for_failures() is None
    assert "<Receipt of A: delivered=0>" == repr(receipt)


def test_asking_twice_notes_the_subscription_once():
    """
    However often the failures are raised, each error names its subscription and event once.
    """
    bus = EventBus(clock=VirtualClock())

    def broken(happened: A) -> None:
        raise ValueError("broken")

    bus.subscribe(A, broken, name="h")
    receipt = bus.publish(A())
    for _ in range(2):
        with pytest.raises(HandlerErrors) as caught:
            receipt.raise_for_failures()
    [error] = caught.value.exceptions
    assert ["in subscription 'h' of A, after 1 attempt"] == error.__notes__
    assert "failures=['h']" in repr(receipt)


def test_a_duplicate_shows_that_it_is_one():
    """
    Its repr says so, for it reads as if nobody had handled the event otherwise.
    """
    bus = EventBus(clock=VirtualClock())
    bus.subscribe(A, lambda happened: None, name="h", idempotency_key="n")
    assert ["<Receipt of A: delivered=1>", "<Receipt of A: delivered=0, duplicate=True>"] == [
        repr(bus.publish(A())) for _ in range(2)
    ]
