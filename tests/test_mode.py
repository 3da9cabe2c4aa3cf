"""
The values of ``delivery=``: what they refuse, and how they say it.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import attrs
import pytest

from eventbus import Durable, Inline, Queued


def test_inline_has_nothing_to_set():
    """
    Inline delivery is a value without options.
    """
    assert Inline() == Inline()


def test_the_defaults():
    """
    A queue holds 1,000 events, blocks when it is full, and has one worker, unless told otherwise.
    """
    assert (1_000, "block", 1, None) == attrs.astuple(Queued())


def test_no_subscription_begins_in_the_future():
    """
    It would begin with the next event, which is not what was asked for.
    """
    with pytest.raises(ValueError, match="is yet to come"):
        Durable(start=datetime.now(UTC) + timedelta(days=1))
    began = datetime.now(UTC)
    assert began == Durable(start=began).start


@pytest.mark.parametrize("option", ["capacity", "workers"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1", None])
def test_counts(option: str, value: Any):
    """
    Capacity and workers count from 1, and are whole numbers.
    """
    with pytest.raises(ValueError) as refused:
        Queued(**{option: value})
    assert f"{option} of Queued() counts from 1, {value!r} is none" == str(refused.value)


@pytest.mark.parametrize("value", ["drop", "", None, 1])
def test_overflow(value: Any):
    """
    What is no policy for a full queue is refused, and those there are are named.
    """
    with pytest.raises(ValueError) as refused:
        Queued(overflow=value)
    assert (
        "overflow of Queued() is one of 'block', 'raise', 'drop_oldest', 'drop_newest', "
        f"not {value!r}"
    ) == str(refused.value)


@pytest.mark.parametrize("value", ["", 3, object])
def test_ordered_by(value: Any):
    """
    What orders is an attribute's name, or a callable.
    """
    if callable(value):
        assert value is Queued(ordered_by=value).ordered_by
        return
    with pytest.raises(TypeError) as refused:
        Queued(ordered_by=value)
    assert str(refused.value).startswith("ordered_by of Queued() is an attribute's name or a call")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"start": datetime(2024, 1, 1)}, "start=.* has no time zone"),  # noqa: DTZ001 - the point
        ({"start": "later"}, r"start of Durable\(\) is .*, not 'later'"),
        ({"start": -1}, r"start of Durable\(\) is .*, not -1"),
        ({"start": True}, r"start of Durable\(\) is .*, not True"),
        ({"lease": 0}, r"lease of Durable\(\) is in seconds, above 0, not 0"),
        ({"lease": math.inf}, r"lease of Durable\(\) is in seconds, above 0, not inf"),
        ({"lease": "1"}, r"lease of Durable\(\) is in seconds, above 0, not '1'"),
        ({"on_dead_letter": "hold_key", "ordered_by": "number"}, "drop ordered_by="),
    ],
)
def test_durable(options: dict[str, Any], complaint: str):
    """
    What a durable subscription cannot keep to is refused where it is written down.
    """
    with pytest.raises(ValueError, match=complaint):
        Durable(**options)


@pytest.mark.parametrize("start", ["now", "origin", 0, 7, datetime(2024, 1, 1, tzinfo=UTC)])
def test_start(start: Any):
    """
    A durable subscription starts at either end of the log, after an offset, or at an instant.
    """
    assert start == Durable(start=start).start
