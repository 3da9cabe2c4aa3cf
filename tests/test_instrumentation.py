"""
The details objects: what observers are told.
"""

from __future__ import annotations

import inspect
import typing
from typing import Any

import attrs
import pytest

from eventbus import Envelope, EventBus, event, instrumentation
from eventbus.instrumentation import Observer, Occurrence, Published

OCCURRENCES: tuple[type[Any], ...] = typing.get_args(Occurrence)

every_occurrence = pytest.mark.parametrize("cls", OCCURRENCES, ids=lambda cls: cls.__name__)


@event
class OrderPlaced:
    order_id: str = "A-1"


def test_every_occurrence_is_public():
    """
    Each kind of occurrence stands in the union, and in the list of public names.
    """
    assert {"Observer", "Occurrence", *(cls.__name__ for cls in OCCURRENCES)} == set(
        instrumentation.__all__
    )


@every_occurrence
def test_details_are_frozen_and_named(cls: type[Any]):
    """
    A details object is a value whose facts are given by name, the envelope of its event among them.
    """
    parameters = inspect.signature(cls).parameters
    assert (cls is not instrumentation.Replayed) is ("envelope" in parameters)
    assert {inspect.Parameter.KEYWORD_ONLY} == {each.kind for each in parameters.values()}
    made = cls(**dict.fromkeys(parameters))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        made.envelope = None


@every_occurrence
def test_every_fact_is_documented(cls: type[Any]):
    """
    The docstring of a details object says what each of its facts means.
    """
    documented = inspect.getdoc(cls) or ""
    assert [] == [
        each.name for each in attrs.fields(cls) if f"\n    {each.name}: " not in documented
    ]
    assert ".. versionadded::" in documented


def test_any_callable_of_an_occurrence_observes():
    """
    An observer is whatever can be called with an occurrence.
    """
    seen: list[Occurrence] = []
    observer: Observer = seen.append
    bus = EventBus(observers=[observer])
    receipt = bus.publish(OrderPlaced())
    assert Published(envelope=receipt.envelope, subscriptions=()) == seen[0]
    assert isinstance(seen[0].envelope, Envelope)
