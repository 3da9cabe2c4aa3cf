"""
Upcasters: older events brought up to date, and chains that cannot be followed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import msgspec
import pydantic
import pytest

from eventbus import DeclarationError, DecodeError, event
from eventbus.codec import JSONCodec, upcast

Step = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(params=["stdlib", "msgspec"])
def codec(request: pytest.FixtureRequest) -> JSONCodec:
    return JSONCodec(json=request.param)


def declare(name: str, *, version: int, **fields: Any) -> Any:
    """
    Declare an event class of its own for one test.
    """
    made = type(name.title().replace(".", ""), (), {"__annotations__": fields})
    return event(name=name, version=version)(made)


def same(old: dict[str, Any]) -> dict[str, Any]:
    return old


def test_an_older_event_is_brought_up_to_date(codec: JSONCodec):
    """
    Each step turns the JSON of one version into that of the next, in order.
    """
    placed = declare("shop.placed", version=3, order_id=str, total=Decimal, currency=str)

    @upcast(placed, from_version=2)
    def add_currency(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "currency": "EUR"}

    @upcast(placed, from_version=1)
    def cents_to_total(old: dict[str, Any]) -> dict[str, Any]:
        old["total"] = str(Decimal(old.pop("cents")) / 100)
        return old

    codec.know(placed)
    codec.check()
    found = codec.decode("shop.placed", 1, b'{"order_id":"A-1","cents":4200}')
    assert placed("A-1", Decimal(42), "EUR") == found
    assert found == codec.decode("shop.placed", 2, b'{"order_id":"A-1","total":"42"}')
    assert found == codec.decode(*codec.encode(found))
    assert placed is codec.class_of("shop.placed", 1)


def test_what_is_stored_stays_as_it_is(codec: JSONCodec):
    """
    Reading changes no stored bytes, whatever an upcaster does with what it gets.
    """
    placed = declare("shop.kept", version=2, a=int)

    @upcast(placed, from_version=1)
    def spoil(old: dict[str, Any]) -> dict[str, Any]:
        old.clear()
        return {"a": 1}

    codec.know(placed)
    payload = bytearray(b'{"b":[1,2]}')
    for _ in range(2):
        assert placed(1) == codec.decode("shop.kept", 1, bytes(payload))
    assert b'{"b":[1,2]}' == payload


def test_an_event_may_have_another_name_now(codec: JSONCodec):
    """
    Events stored by a former name come back as the class that has taken their place.
    """
    placed = declare("shop.order_placed", version=3, order=str)
    upcast("placed", from_version=1, to=placed)(lambda old: {"id": old["number"]})
    upcast("placed", from_version=2, to=placed, to_version=2)(same)
    upcast(placed, from_version=2)(lambda old: {"order": old["id"]})
    codec.know(placed)
    codec.check()
    assert placed("A") == codec.decode("placed", 1, b'{"number":"A"}')
    assert placed("A") == codec.decode("placed", 2, b'{"id":"A"}')
    assert placed("A") == codec.decode("shop.order_placed", 2, b'{"id":"A"}')
    assert placed is codec.class_of("placed", 1)
    assert ("shop.order_placed", "placed") == codec.names_of(placed)


def test_an_upcaster_is_still_a_function():
    """
    The decorated function is handed back as it was, to be tested by itself.
    """
    placed = declare("shop.function", version=2, a=int)

    @upcast(placed, from_version=1)
    def add(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "a": 1}

    assert {"a": 1} == add({})


def test_an_upcaster_may_be_marked_after_its_class_is_known(codec: JSONCodec):
    """
    A module of upcasters may be imported when the class is in use already.
    """
    placed = declare("shop.late", version=2, a=int)
    codec.encode(placed(1))
    with pytest.raises(DecodeError, match="no upcaster leads there"):
        codec.decode("shop.late", 1, b"{}")
    upcast(placed, from_version=1)(lambda _: {"a": 1})
    assert placed(1) == codec.decode("shop.late", 1, b"{}")


def test_every_kind_of_class_takes_upcasters(codec: JSONCodec):
    """
    Upcasters hang on any class that events are made of.
    """

    @dataclasses.dataclass(frozen=True, slots=True)
    class Plain:
        a: int

    class Struct(msgspec.Struct, frozen=True):
        a: int

    class Model(pydantic.BaseModel):
        a: int

    for made in (Plain, Struct, Model):
        upcast(f"old.{made.__name__}", from_version=1, to=made, to_version=1)(lambda _: {"a": 1})
        codec.know(made)
        assert made(a=1) == codec.decode(f"old.{made.__name__}", 1, b"{}")


def test_a_derived_class_does_not_inherit_upcasters(codec: JSONCodec):
    """
    Upcasters lead to the class they name, and to no class derived from it.
    """
    base = declare("shop.base", version=2, a=int)
    upcast(base, from_version=1)(lambda _: {"a": 1})
    derived = event(name="shop.derived", version=2)(type("Derived", (base,), {}))
    codec.know(base, derived)
    assert base(1) == codec.decode("shop.base", 1, b"{}")
    with pytest.raises(DecodeError, match="no upcaster leads there"):
        codec.decode("shop.derived", 1, b"{}")


# -- chains that cannot be followed ----------------------------------------------------------


def test_a_gap_is_named(codec: JSONCodec):
    """
    A chain that stops short of the class's version is refused, and the gap is named.
    """
    placed = declare("shop.gap", version=4, a=int)
    upcast(placed, from_version=1)(same)
    upcast(placed, from_version=3)(same)
    codec.know(placed)
    message = r"no upcaster leads from 'shop.gap' version 2 on to version 4.*from_version=2\)"
    with pytest.raises(DeclarationError, match=message):
        codec.check()
    assert codec.class_of("shop.gap", 1) is None
    for version in (1, 2):
        with pytest.raises(DecodeError, match=message):
            codec.decode("shop.gap", version, b'{"a":1}')
    with pytest.raises(DecodeError, match="written by a newer program"):
        codec.decode("shop.gap", 5, b'{"a":1}')


def test_a_former_name_must_lead_on_too(codec: JSONCodec):
    """
    A rename that ends at an older version of the class needs the steps from there.
    """
    placed = declare("shop.renamed", version=3, a=int)
    upcast("old", from_version=1, to=placed)(same)
    codec.know(placed)
    with pytest.raises(DeclarationError, match=r"no upcaster leads from 'shop\.renamed' version 2"):
        codec.check()


def test_two_upcasters_from_one_version_are_refused(codec: JSONCodec):
    """
    Two upcasters that take the same events are refused, and both are named.
    """
    placed = declare("shop.fork", version=2, a=int)

    @upcast(placed, from_version=1)
    def one(old: dict[str, Any]) -> dict[str, Any]:
        return old

    @upcast(placed, from_version=1)
    def other(old: dict[str, Any]) -> dict[str, Any]:
        return old

    codec.know(placed)
    with pytest.raises(DeclarationError, match=r"'shop.fork' version 1: .*one and .*other"):
        codec.check()
    with pytest.raises(DecodeError, match="two upcasters take"):
        codec.decode("shop.fork", 1, b"{}")


def test_two_classes_cannot_take_the_same_events(codec: JSONCodec):
    """
    An event that upcasters of two classes take is refused.
    """
    one = declare("shop.one", version=1, a=int)
    other = declare("shop.other", version=1, a=int)
    for made in (one, other):
        upcast("both", from_version=1, to=made, to_version=1)(same)
    codec.know(one, other)
    with pytest.raises(DeclarationError, match="two upcasters take 'both' version 1"):
        codec.check()


def test_an_upcaster_beyond_the_class_is_refused(codec: JSONCodec):
    """
    A step to a version that the class does not have yet is refused.
    """
    placed = declare("shop.beyond", version=2, a=int)
    upcast(placed, from_version=2)(same)
    codec.know(placed)
    with pytest.raises(DeclarationError, match="to version 3, above version 2 that"):
        codec.check()


def test_a_circle_of_names_is_refused(codec: JSONCodec):
    """
    Two classes that take each other's events are refused.
    """
    one = declare("shop.chicken", version=1, a=int)
    other = declare("shop.egg", version=1, a=int)
    upcast("shop.egg", from_version=1, to=one, to_version=1)(same)
    upcast("shop.chicken", from_version=1, to=other, to_version=1)(same)
    codec.know(one)
    with pytest.raises(DeclarationError, match=r"takes 'shop.egg' version 1, and .* is the class"):
        codec.know(other)


def test_an_upcaster_marked_later_may_take_a_known_class_and_is_found(codec: JSONCodec):
    """
    What was no conflict when the class became known is one when the chain is checked.
    """
    one = declare("shop.first", version=1, a=int)
    other = declare("shop.second", version=1, a=int)
    codec.know(one, other)
    codec.check()
    upcast("shop.first", from_version=1, to=other, to_version=1)(same)
    with pytest.raises(DeclarationError, match=r"takes 'shop.first' version 1, and .*ShopFirst"):
        codec.check()


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (lambda cls: upcast(cls, from_version=2, to_version=2), "leads nowhere but in a circle"),
        (lambda cls: upcast("shop.bad", from_version=2, to=cls, to_version=1), "in a circle"),
        (lambda cls: upcast(cls, from_version=0), "versions count from 1, 0 is none"),
        (lambda cls: upcast(cls, from_version=1, to_version=True), "True is none"),
        (lambda cls: upcast(cls, from_version="1", to_version=2), "'1' is none"),
        (lambda cls: upcast(cls, from_version="1"), "'1' is none"),
        (lambda cls: upcast("old", from_version=1), "takes the event class"),
        (lambda cls: upcast(" ", from_version=1, to=cls), "takes the event class"),
        (lambda cls: upcast(cls, from_version=1, to=cls), "takes the event class"),
        (lambda _: upcast(5, from_version=1), "takes the event class"),  # type: ignore[call-overload]
        (lambda cls: upcast(cls, from_version=1)(5), "a plain function"),
    ],
)
def test_a_mark_that_makes_no_sense_is_refused(mark: Any, message: str):
    """
    An upcaster without a class, a version or a function is refused where it is marked.
    """
    bad = declare("shop.bad", version=3, a=int)
    with pytest.raises(DeclarationError, match=message):
        mark(bad)


def test_no_coroutine_is_an_upcaster():
    """
    Reading waits for nothing: coroutines and generators are refused.
    """
    placed = declare("shop.waits", version=2, a=int)

    async def wait(old: dict[str, Any]) -> dict[str, Any]:
        return old

    def generate(old: dict[str, Any]) -> Any:
        yield old

    for function in (wait, generate):
        with pytest.raises(DeclarationError, match="a plain function from dict to dict"):
            upcast(placed, from_version=1)(function)  # type: ignore[type-var]


# -- steps that fail -------------------------------------------------------------------------


def test_an_upcaster_that_raises_is_named(codec: JSONCodec):
    """
    What an upcaster raises is the cause of a `DecodeError` that names it.
    """
    placed = declare("shop.raises", version=2, a=int)

    @upcast(placed, from_version=1)
    def fail(old: dict[str, Any]) -> dict[str, Any]:
        return {"a": old["missing"]}

    codec.know(placed)
    with pytest.raises(
        DecodeError, match=r"the upcaster .*fail raised KeyError: 'missing'"
    ) as refused:
        codec.decode("shop.raises", 1, b"{}")
    assert isinstance(refused.value.__cause__, KeyError)
    assert ("shop.raises", 1, "") == (refused.value.name, refused.value.version, refused.value.path)


def test_an_upcaster_that_returns_no_dict_is_named(codec: JSONCodec):
    """
    An upcaster without a return statement is told from one that works.
    """
    placed = declare("shop.nothing", version=2, a=int)

    @upcast(placed, from_version=1)
    def forget(old: dict[str, Any]) -> dict[str, Any]:
        old["a"] = 1
        return None  # type: ignore[return-value]

    codec.know(placed)
    with pytest.raises(DecodeError, match=r"the upcaster .*forget returned NoneType, not a dict"):
        codec.decode("shop.nothing", 1, b"{}")


def test_what_is_no_object_is_not_brought_up_to_date(codec: JSONCodec):
    """
    An upcaster is not called with what is no JSON object.
    """
    placed = declare("shop.array", version=2, a=int)
    upcast(placed, from_version=1)(same)
    codec.know(placed)
    with pytest.raises(DecodeError, match="takes an object, not list"):
        codec.decode("shop.array", 1, b"[]")


def test_what_a_step_leaves_out_is_told_with_its_path(codec: JSONCodec):
    """
    What the last step returns is held to the class like anything else that is read.
    """
    placed = declare("shop.short", version=2, a=int)
    upcast(placed, from_version=1)(same)
    codec.know(placed)
    with pytest.raises(DecodeError, match="a: is missing, and has no default"):
        codec.decode("shop.short", 1, json.dumps({"b": 1}).encode())
