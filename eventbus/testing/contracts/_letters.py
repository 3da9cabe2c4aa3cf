"""
Letters to fill a store of dead letters with, and what may be asked of them.

Law: values for the contract suites. Seven letters differ in everything one can ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import pytest

from eventbus._envelope import Envelope
from eventbus._event import declaration_of
from eventbus.dead_letter import DeadLetter, story

__all__ = [
    "MIXED",
    "NOON",
    "SELECTIONS",
    "OrderCancelled",
    "OrderPlaced",
    "PaymentError",
    "UrgentOrderPlaced",
    "each_selection",
    "ids",
    "letter",
    "minutes",
    "raised",
]

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)


@attrs.frozen
class OrderPlaced:
    order_id: str = "A-1"


@attrs.frozen
class UrgentOrderPlaced(OrderPlaced):
    pass


@attrs.frozen
class OrderCancelled:
    order_id: str = "A-1"


class PaymentError(ConnectionError):
    pass


def minutes(count: float) -> datetime:
    return NOON + timedelta(minutes=count)


def raised(exception: BaseException) -> BaseException:
    """
    Give *exception* the traceback that it has once it was raised.
    """
    try:
        raise exception
    except type(exception) as error:
        return error


def letter(
    id: str,
    event: object = None,
    errors: Sequence[BaseException] = (ValueError("no"),),
    at: float = 0,
    **changes: Any,
) -> DeadLetter:
    """
    Make a letter whose attempts failed with *errors*, one a minute, the last one *at*.
    """
    event = OrderPlaced() if event is None else event
    failures = tuple(
        story(number, raised(error), minutes(at - len(errors) + number))
        for number, error in enumerate(errors, start=1)
    )
    name = declaration_of(type(event)).name
    envelope = Envelope(event=event, id=f"e-{id}", time=NOON, name=name, correlation_id=f"e-{id}")
    facts: dict[str, Any] = {
        "id": id,
        "envelope": envelope,
        "subscription": "shop.charge",
        "attempts": len(errors),
        "failures": failures,
        "first_failure": minutes(at - len(errors) + 1),
        "last_failure": minutes(at),
    }
    return DeadLetter(**{**facts, **changes})


def ids(letters: Sequence[DeadLetter]) -> str:
    return " ".join(each.id for each in letters)


# Seven letters that differ in everything one can ask for, in order of arrival.
MIXED = (
    letter("a", at=5),
    letter("b", UrgentOrderPlaced(), [PaymentError("down")], at=1),
    letter("c", OrderCancelled(), [PaymentError("down"), KeyError("k")], at=2),
    letter("d", at=3, subscription="shop.notify"),
    letter("e", OrderCancelled(), [ConnectionError()], at=4, subscription="shop.notify"),
    letter("f", errors=(), at=6, reason="dropped"),
    letter("g", UrgentOrderPlaced(), [TimeoutError("slow")], at=7, reason="undelivered"),
)

SELECTIONS: list[tuple[dict[str, Any], str]] = [
    ({}, "a b c d e f g"),
    ({"event_type": OrderPlaced}, "a b d f g"),
    ({"event_type": UrgentOrderPlaced}, "b g"),
    ({"event_type": object}, "a b c d e f g"),
    ({"event_type": str}, ""),
    ({"subscription": "shop.notify"}, "d e"),
    ({"subscription": "shop"}, ""),
    ({"subscription": ""}, ""),
    ({"error": "ValueError"}, "a d"),
    ({"error": "PaymentError"}, "b"),
    ({"error": f"{__name__}.PaymentError"}, "b"),
    ({"error": "elsewhere.PaymentError"}, ""),
    ({"error": "KeyError"}, "c"),
    ({"error": "Error"}, ""),
    ({"error": ""}, ""),
    ({"error": PaymentError}, "b"),
    ({"error": ValueError}, "a d"),
    ({"reason": "failed"}, "a b c d e"),
    ({"reason": "dropped"}, "f"),
    ({"since": minutes(4)}, "a e f g"),
    ({"until": minutes(4)}, "b c d"),
    ({"since": minutes(2), "until": minutes(5)}, "c d e"),
    ({"since": minutes(5), "until": minutes(5)}, ""),
    ({"since": minutes(4).astimezone(timezone(timedelta(hours=9)))}, "a e f g"),
    ({"event_type": OrderCancelled, "subscription": "shop.notify"}, "e"),
    ({"event_type": OrderCancelled, "subscription": "shop.notify", "error": "KeyError"}, ""),
    ({"event_type": None, "error": None, "since": None, "reason": None}, "a b c d e f g"),
]

each_selection = pytest.mark.parametrize(("filters", "expected"), SELECTIONS)
