"""
What declaring an event means, and what is no event.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import pickle
import typing
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar
from uuid import UUID

import attrs
import pytest

from eventbus import DeclarationError, EventBus, NotAnEventError, event
from eventbus._event import (
    Declaration,
    declaration_of,
    declared_as,
    refuse_no_event,
    text_of,
)
from stable_ids import stable

T = TypeVar("T")


@event
class OrderPlaced:
    order_id: str
    total: int = 0


@event(name="shop.order_cancelled", version=2, key="order_id")
class OrderCancelled:
    order_id: str
    reason: str = "none"


@event
class OrderCancelledByCustomer(OrderCancelled):
    customer: str = "Ann"


class OrderCancelledByMistake(OrderCancelled):
    """
    Inherits, but is not declared.
    """


@event
class Changed(Generic[T]):
    old: T
    new: T


@event
class StockCounted:
    counts: dict[str, int]


class Plain:
    pass


EVENTS = [
    OrderPlaced("A-1", 42),
    OrderCancelled("A-1"),
    OrderCancelledByCustomer("A-1", customer="Bob"),
    OrderCancelledByMistake("A-1"),
    Changed(1, 2),
    Changed[int](1, 2),
    StockCounted({"tea": 3}),
]


# -- what a declared class is ----------------------------------------------------------------


def test_an_event_is_frozen():
    """
    An event's fields cannot be assigned or deleted.
    """
    placed: Any = OrderPlaced("A-1", 42)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        placed.total = 3
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        del placed.total
    assert OrderPlaced("A-1", 42) == placed


def test_an_event_has_slots():
    """
    A declared event has no ``__dict__``, and can be referenced weakly.
    """
    placed = OrderPlaced("A-1", 42)
    assert not hasattr(placed, "__dict__")
    assert hasattr(placed, "__weakref__")


def test_an_event_keeps_its_place():
    """
    The declared class has the name, module and docstring of the class that was written.
    """
    assert "OrderPlaced" == OrderPlaced.__qualname__
    assert __name__ == OrderPlaced.__module__


@pytest.mark.parametrize("each", EVENTS, ids=stable)
@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))]
)
def test_an_event_is_copied_and_pickled(each: object, copied: Callable[[object], object]):
    """
    A copy of an event is equal to it and of the same class.
    """
    twin = copied(each)
    assert each == twin
    assert type(each) is type(twin)


def test_an_event_is_as_hashable_as_its_fields():
    """
    An event of hashable fields can be a key; one of others is published all the same.
    """
    assert 1 == len({OrderPlaced("A-1"), OrderPlaced("A-1")})
    counted = StockCounted({"tea": 3})
    with pytest.raises(TypeError):
        hash(counted)
    seen: list[object] = []
    bus = EventBus()
    bus.subscribe(StockCounted, seen.append)
    bus.publish(counted)
    assert [counted] == seen


def test_fields_work_as_in_attrs():
    """
    Defaults, factories, converters, validators and class variables are attrs' own.
    """

    @event
    class Paid:
        amount: int = attrs.field(converter=int, validator=attrs.validators.ge(0))
        tags: list[str] = attrs.field(factory=list)
        currency: str = "EUR"
        limit: ClassVar[int] = 3

    paid = Paid("7")  # type: ignore[arg-type]
    assert (7, [], "EUR") == (paid.amount, paid.tags, paid.currency)
    assert ["amount", "tags", "currency"] == [field.name for field in attrs.fields(Paid)]
    assert 8 == attrs.evolve(paid, amount=8).amount
    with pytest.raises(ValueError, match=">= 0"):
        Paid(-1)


def test_events_inherit_fields():
    """
    An event that inherits has the fields of its base first, and is one of its kind.
    """
    cancelled = OrderCancelledByCustomer("A-1", "late", "Bob")
    assert ("A-1", "late", "Bob") == attrs.astuple(cancelled)
    assert isinstance(cancelled, OrderCancelled)


def test_keyword_only_fields_may_follow_defaults():
    """
    With ``kw_only``, an event may have mandatory fields where its base has defaults.
    """

    @event(kw_only=True)
    class OrderReturned(OrderPlaced):
        why: str

    assert ("A-1", 0, "late") == attrs.astuple(OrderReturned(order_id="A-1", why="late"))


def test_generic_events_take_arguments():
    """
    An event class may be generic; its alias makes events of the class.
    """
    assert Changed(1, 2) == Changed[int](1, 2)
    assert Changed is type(Changed[int](1, 2))


# -- names, versions, keys -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name", "version"),
    [
        (OrderPlaced, "OrderPlaced", 1),
        (OrderCancelled, "shop.order_cancelled", 2),
        (OrderCancelledByCustomer, "OrderCancelledByCustomer", 1),
        (OrderCancelledByMistake, "OrderCancelledByMistake", 1),
        (Changed, "Changed", 1),
        (Plain, "Plain", 1),
        (int, "int", 1),
    ],
)
def test_an_event_has_a_name_and_a_version(cls: type, name: str, version: int):
    """
    A class goes by what it was declared as, else by its own name in version 1.
    """
    declaration = declaration_of(cls)
    assert (name, version) == (declaration.name, declaration.version)


@pytest.mark.parametrize(
    ("each", "key"),
    [
        (OrderPlaced("A-1"), None),
        (OrderCancelled("A-1"), "A-1"),
        (OrderCancelledByCustomer("A-1"), "A-1"),
        (OrderCancelledByMistake("A-1"), "A-1"),
        (Plain(), None),
    ],
    ids=stable,
)
def test_a_key_is_declared_or_inherited(each: object, key: str | None):
    """
    The key is that of the class or of the nearest event it inherits from.
    """
    assert key == declaration_of(type(each)).key_of(each)


def test_a_key_may_be_inherited_from_a_base_or_replaced():
    """
    A field of a base may be the key; an event may have another key than its base.
    """

    @event(key="total")
    class OrderCounted(OrderPlaced):
        pass

    @event(key=lambda it: f"{it.customer}/{it.order_id}")
    class OrderRefused(OrderCancelledByCustomer):
        pass

    assert "42" == declaration_of(OrderCounted).key_of(OrderCounted("A-1", 42))
    assert "Ann/A-1" == declaration_of(OrderRefused).key_of(OrderRefused("A-1"))


@pytest.mark.parametrize(
    ("value", "key"), [(7, "7"), ("", ""), (None, None), (UUID(int=7), str(UUID(int=7)))]
)
def test_a_key_is_text(value: object, key: str | None):
    """
    A key is given as text; ``None`` stays none.
    """
    assert key == Declaration("Any", 1, lambda _: value).key_of(Plain())


# -- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name must be text, not ''"),
        ({"name": "  "}, "name must be text, not '  '"),
        ({"name": 7}, "name must be text, not 7"),
        ({"version": 0}, "version counts from 1, 0 is none"),
        ({"version": True}, "version counts from 1, True is none"),
        ({"version": "1"}, "version counts from 1, '1' is none"),
        (
            {"key": "order"},
            r"@event\(key='order'\) on .*Paid: there is no such field; it has order_id, total\. "
            "Name one of them, or give a callable",
        ),
        ({"key": "order_id.prefix"}, "there is no such field"),
        ({"key": 7}, "there is no such field"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], message: str):
    """
    A name, version or key that is none is refused at declaration, and the message says why.
    """

    class Paid:
        order_id: str
        total: int

    with pytest.raises(DeclarationError, match=message):
        event(**options)(Paid)


def test_a_class_is_found_by_its_name_as_soon_as_it_is_declared():
    """
    Though the name was nobody's when it was asked for before.
    """
    assert [] == declared_as("found.later") == declared_as("found.later")

    @event(name="found.later")
    class Found: ...

    assert [Found] == declared_as("found.later")


class Plain:
    """
    An object that has no text of its own.
    """


@pytest.mark.parametrize(
    "value", ["a".upper, Plain(), [Plain()], lambda: "a", Plain().__init__], ids=stable
)
def test_a_key_that_is_shown_by_its_address_is_refused(value: Any):
    """
    It would be another one each time, and now and then that of a stranger.
    """
    with pytest.raises(TypeError, match=r" at 0x.* is no key: .* call it"):
        text_of(value)
    assert "<a at 0x1>" == text_of("<a at 0x1>")  # whoever gives a text means it


def test_a_key_of_an_event_without_fields_is_refused():
    """
    The message about a key that is no field says when there are no fields at all.
    """
    with pytest.raises(DeclarationError, match="it has no fields"):
        event(key="order_id")(type("Paid", (), {}))


def test_only_classes_are_declared():
    """
    An option given by position is refused with the spelling that works.
    """
    declare: Any = event
    with pytest.raises(DeclarationError, match=r"not 'shop\.paid'; options are keywords"):
        declare("shop.paid")


@pytest.mark.parametrize("other", [attrs.define, __import__("dataclasses").dataclass])
def test_one_decorator_is_enough(other: Callable[[type], type]):
    """
    A class that is an attrs class or a dataclass already is refused, and told what to drop.
    """

    class Paid:
        amount: int = 0

    with pytest.raises(DeclarationError, match="Drop that one, or this"):
        event(other(Paid))


def test_an_enum_is_not_declared():
    """
    An enum is refused, and told that its members are events as they are.
    """
    with pytest.raises(DeclarationError, match="Its members can be published as they are"):

        @event
        class _Colour(enum.Enum):
            RED = 1


@pytest.mark.parametrize(
    ("default", "message"),
    [
        (dataclasses.field(default_factory=list), r"tags is a dataclasses\.field\(\)"),
        ([], r"would share the default of tags, \[\]\. Write attrs\.field\(factory=list\)"),
        ({}, r"factory=dict"),
        (attrs.field(default=set()), r"factory=set"),
    ],
    ids=["dataclass", "list", "dict", "set"],
)
def test_the_defaults_of_dataclasses_are_refused(default: Any, message: str):
    """
    What attrs would take for the value of each instance is refused, with attrs' way.
    """
    tagged = type("Tagged", (), {"__annotations__": {"tags": object}, "tags": default})
    with pytest.raises(DeclarationError, match=message):
        event(tagged)


def test_a_default_that_is_converted_may_be_a_list():
    """
    No two instances share what the converter makes of it.
    """

    @event
    class Tagged:
        tags: tuple[str, ...] = attrs.field(default=[], converter=tuple)

    assert () == Tagged().tags


def test_what_nobody_would_call_is_refused():
    """
    A dataclass's hook does nothing in an attrs class, and the message names the one that does.
    """
    with pytest.raises(DeclarationError, match="__attrs_post_init__"):

        @event
        class _Checked:
            amount: int

            def __post_init__(self) -> None: ...


def test_what_attrs_refuses_is_refused():
    """
    A declaration that attrs cannot make is refused with attrs' reason, and with the cure.
    """
    with pytest.raises(DeclarationError, match=r"No mandatory attributes .*kw_only=True") as order:

        @event
        class _Disordered:
            amount: int = 0
            currency: str

    assert isinstance(order.value.__cause__, ValueError)
    with pytest.raises(DeclarationError, match="Can't freeze a class with a custom __setattr__"):

        @event
        class _Mutable:
            amount: int = 0

            def __setattr__(self, name: str, value: object) -> None: ...

    with pytest.raises(DeclarationError, match="__slots__ not supported") as slots:
        event(type("Pair", (tuple,), {"__annotations__": {"first": int}}))
    assert isinstance(slots.value.__cause__, TypeError)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (OrderPlaced, "Call it: "),
        (int, "Call it: "),
        (type, "Call it: "),
        (Changed[int], "Call it: "),
        (list[int], "Call it: "),
        (typing.Optional[int], "Call it: "),  # noqa: UP045 - another class than the next
        (OrderPlaced | OrderCancelled, "Call it: "),
        (None, "perhaps a function meant to return one has no return statement"),
    ],
    ids=stable,
)
def test_what_is_no_event_is_refused(given: object, message: str):
    """
    Publishing a class or ``None`` is refused each time, with what was probably meant.
    """
    bus = EventBus()
    bus.subscribe(object, lambda it: None)
    for _ in range(2):
        with pytest.raises(NotAnEventError, match=message):
            bus.publish(given)


def test_a_coroutine_is_no_event():
    """
    Publishing what was not awaited is refused, with the cure.
    """

    async def load() -> None: ...

    forgotten = load()
    with pytest.raises(NotAnEventError, match="Await it"):
        EventBus().publish(forgotten)
    forgotten.close()


@pytest.mark.parametrize("several", [[Plain()], (Plain() for _ in range(2))], ids=stable)
def test_several_events_are_no_event(several: object):
    """
    Publishing a list or a generator of events is refused, with the verb that was meant.
    """
    with pytest.raises(NotAnEventError, match="publish_many"):
        EventBus().publish(several)


@pytest.mark.parametrize("each", [*EVENTS, Plain(), 7, "text", (1, 2), {}, len], ids=stable)
def test_any_instance_is_an_event(each: object):
    """
    Instances of any class may be published, declared or not.
    """
    refuse_no_event(type(each))
