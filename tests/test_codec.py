"""
Events to JSON and back: what comes back, what is refused, and where it says so.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import functools
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import typing
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import attrs
import cattrs
import hypothesis
import msgspec
import pydantic
import pytest
from cattrs.strategies import configure_tagged_union
from hypothesis import strategies as st
from typing_extensions import ReadOnly, TypeAliasType

from eventbus import DeclarationError, DecodeError, EncodeError, UnknownEventError, event
from eventbus.codec import Codec, Encoded, JSONCodec, PayloadCodec
from eventbus.codec import _libraries as libraries
from eventbus.codec._constructors import only_stores
from eventbus.codec._misfit import MisfitError, told
from stable_ids import stable

T = TypeVar("T")
S = TypeVar("S", bound=int)
C = TypeVar("C", int, str)
OrderId = NewType("OrderId", str)
BERLIN = ZoneInfo("Europe/Berlin")


class Size(Enum):
    SMALL = 1
    LARGE = 2


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Access(Flag):
    READ = 1
    WRITE = 2


class Place(Enum):  # what JSON has no values for goes by name
    HOME = (0, 0)
    AWAY = (1, 2)


class Mood(Enum):
    GOOD = "good"
    UNKNOWN = "unknown"

    @classmethod
    def _missing_(cls, value: object) -> Mood:
        return cls.UNKNOWN


class Share(float, Enum):
    HALF = 0.5


@dataclasses.dataclass(frozen=True)
class Legs:
    size: str
    count: int


class Creature(Legs, Enum):
    BEETLE = ("small", 6)
    DOG = ("medium", 4)


class Voiced(Enum):
    """
    Has an idea of its own of what its members are called, and of what it has not got.
    """

    ONE = 1
    TWO = 2

    @property
    def value(self) -> int:
        return 0

    @classmethod
    def _missing_(cls, value: object) -> Any:
        made: Any = object.__new__(cls)
        made._value_, made._name_ = value, None
        return made


class Tuned(Enum):
    A = (440,)

    @classmethod
    def _missing_(cls, value: object) -> Any:
        made: Any = object.__new__(cls)
        made._value_, made._name_ = value, "OTHER"
        return made


class Guarded(list[int]):
    """
    A list that no plain one is equal to.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guarded) and list.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]


class Own(int):
    """
    A number that no plain one is equal to.
    """

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = int.__hash__


class Seven(int):
    def __int__(self) -> int:
        return 7


class Fifth(float):
    def __float__(self) -> float:
        return 0.2


class Basket(dict[str, int]):
    pass


@attrs.frozen
class Listed(list[int]):
    name: str


class Maybe(pydantic.RootModel[int | None]):
    pass


class Sku(str):
    __slots__ = ()


class Cents(int):
    pass


class Shouted(str):
    __slots__ = ()

    def __new__(cls, text: str) -> Shouted:
        return super().__new__(cls, text + "!")


@event
class Line:
    sku: str
    price: Decimal = Decimal(0)


@event(name="shop.card")
class Card:
    number: str


@event
class Cash:
    amount: int


@event
class GiftCard(Card):
    sender: str = "Ann"


@event(name="shop.order_placed", version=3)
class OrderPlaced:
    order_id: str
    lines: list[Line] = attrs.field(factory=list)
    total: Decimal = Decimal(0)


@event
class Four:
    order_id: str
    total: Decimal
    count: int
    note: str


@dataclasses.dataclass
class Plain:
    name: str
    sizes: dict[str, float] = dataclasses.field(default_factory=dict)
    computed: int = dataclasses.field(init=False, default=7)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slotted:
    when: datetime
    size: Size = Size.SMALL


class Row(NamedTuple):
    a: int
    b: str = "b"


Untyped = collections.namedtuple("Untyped", "a b")


class Point(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    left_edge: int
    tags: list[str] = []
    note: str | None = None


class Paid(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    order_id: UUID
    amount: Decimal
    at: datetime
    by: Annotated[str, pydantic.Field(alias="payer")] = "Ann"


class Masked(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr


class Anything(pydantic.BaseModel):
    value: Any


@pydantic.dataclasses.dataclass
class Measured:
    length: int = pydantic.Field(gt=0)
    unit: str = pydantic.Field(default="m")


class Options(TypedDict, total=False):
    colour: Colour
    count: int


class Parcel(Options, total=True):
    weight: Annotated[typing.Required[Decimal], "kg"]
    note: ReadOnly[typing.NotRequired[str]]
    within: typing.NotRequired[Parcel]


class Boxed(TypedDict, Generic[T]):
    content: T


@attrs.frozen(kw_only=True)
class Private:
    _hidden: int
    class_: str = attrs.field(alias="klass")
    computed: int = attrs.field(init=False, default=3)


@attrs.frozen(init=False)
class OwnInit:
    a: int

    def __init__(self, a: int) -> None:
        self.__attrs_init__(a)


@event
class Changed(Generic[T]):
    old: T
    new: list[T]


@event
class PriceChanged(Changed[Decimal]):
    pass


@event
class Moved(Changed[S], Generic[S]):
    pass


@event
class Node:
    name: str
    children: list[Node] = attrs.field(factory=list)
    parent: Node | None = None


@event
class Either(Generic[C]):
    one: C


class Handmade:
    def __init__(self, a: int) -> None:
        self.a = a

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handmade) and self.a == other.a

    __hash__ = None  # type: ignore[assignment]


class Offset(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(hours=2)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "two hours"


@pytest.fixture(params=["stdlib", "msgspec"])
def codec(request: pytest.FixtureRequest) -> JSONCodec:
    return JSONCodec(json=request.param)


def holding(kind: Any) -> Any:
    """
    Make an event class with one field of a type.
    """
    return event(type("Held", (), {"__annotations__": {"value": kind}}))


def again(codec: Codec, happened: Any) -> Any:
    return codec.decode(*codec.encode(happened))


def exactly(left: Any, right: Any) -> bool:
    """
    Tell whether two values are equal down to the types of what they hold; nan is nan.
    """
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return repr(left) == repr(right)
    if isinstance(left, Decimal | datetime | time):
        return repr(left) == repr(right)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(exactly, left, right))
    if isinstance(left, dict | MappingProxyType):
        return exactly(list(left.items()), list(right.items()))
    if attrs.has(type(left)):
        return all(
            exactly(getattr(left, field.name), getattr(right, field.name))
            for field in attrs.fields(type(left))
        )
    return bool(left == right)


# -- what comes back -------------------------------------------------------------------------

VALUES: list[tuple[Any, Any]] = [
    (str, "Grüße, 世界 \x00\u2028"),
    (int, 2**100),
    (bool, True),
    (None, None),
    (float, 0.1),
    (float, -0.0),
    (float, math.nan),
    (float, math.inf),
    (float, -math.inf),
    (Decimal, Decimal("1.50")),
    (Decimal, Decimal("-1E+30")),
    (Decimal, Decimal("NaN")),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 6)),  # noqa: DTZ001 - naive on purpose
    (datetime, datetime(2026, 1, 2, tzinfo=UTC)),
    (datetime, datetime(2026, 1, 2, tzinfo=timezone(timedelta(seconds=-3601)))),
    (datetime, datetime(2026, 7, 2, tzinfo=BERLIN)),
    (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)),
    (datetime, datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=0)),
    (datetime, datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)),
    (date, date(2026, 2, 28)),
    (time, time(3, 4, 5, 6)),
    (time, time(3, 4, tzinfo=UTC)),
    (timedelta, timedelta(0)),
    (timedelta, timedelta(days=3)),
    (timedelta, timedelta(days=-1, microseconds=5)),
    (timedelta, timedelta(days=2, seconds=3, microseconds=4)),
    (UUID, UUID(int=7)),
    (bytes, b"\x00\xff"),
    (bytearray, bytearray(b"\x00\xff")),
    (Path, Path("/a/b c")),
    (Creature, Creature.DOG),
    (Voiced, Voiced.ONE),
    (Size, Size.LARGE),
    (Colour, Colour.RED),
    (Level, Level.LOW),
    (Access, Access.READ | Access.WRITE),
    (Place, Place.AWAY),
    (Mood, Mood.GOOD),
    (Share, Share.HALF),
    (Sku, Sku("tea")),
    (Cents, Cents(5)),
    (OrderId, OrderId("A-1")),
    (Annotated[int, []], 3),
    (Literal["a", 1, True, None, Size.LARGE], Size.LARGE),
    (Literal["a", 1, True, None], True),
    (Any, {"a": [1, 2.5, None, True, {"b": "c"}]}),
    (object, "text"),
    (list[Decimal], [Decimal(1), Decimal(2)]),
    (list, [1, "a"]),
    (typing.List[int], [1]),  # noqa: UP006 - is written so in the wild
    (tuple[int, ...], (1, 2)),
    (tuple[int, str], (1, "a")),
    (tuple[()], ()),
    (tuple, (1, "a")),
    (set[UUID], {UUID(int=1)}),
    (frozenset[str], frozenset({"a", "b"})),
    (collections.deque[Decimal], collections.deque([Decimal("1.50")])),
    (collections.deque, collections.deque([1, "a"])),
    (Sequence[int], (1, 2)),
    (Sequence[int], [1, 2]),
    (Collection[int], {1, 2}),
    (Iterable[int], frozenset({1})),
    (collections.abc.Set[int], {1}),
    (collections.abc.MutableSequence[int], [1]),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[UUID, Decimal], {UUID(int=1): Decimal("1.0")}),
    (dict[Colour, int], {Colour.RED: 1}),
    (dict[Literal["a", "b"], int], {"a": 1}),
    (dict[Place, int], {Place.HOME: 1}),
    (dict[Size, int], {Size.LARGE: 1}),
    (dict[Literal[1, 2], int], {1: 1}),
    (dict[tuple[int, str], int], {(1, "a"): 1}),
    (dict[float, int], {0.5: 1, math.inf: 2}),
    (dict[bool, int], {True: 1}),
    (dict[int | None, int], {None: 1, 2: 2}),
    (dict[OrderId, int], {OrderId("A-1"): 1}),
    (dict[date, int], {date(2026, 1, 1): 1}),
    (dict[Path, int], {Path("a"): 1}),
    (dict, {"a": [1]}),
    (Mapping[str, int], {"a": 1}),
    (MutableMapping[str, int], {"a": 1}),
    (MappingProxyType[str, int], MappingProxyType({"a": 1})),
    (collections.OrderedDict[str, int], collections.OrderedDict(b=1, a=2)),
    (collections.Counter[str], collections.Counter("aab")),
    (collections.Counter[Size], collections.Counter([Size.SMALL])),
    (int | None, None),
    (int | None, 3),
    (Card | Cash, Card("1")),
    (Card | Cash | None, Cash(1)),
    (Card | Cash | None, None),
    (Card | str, "Card"),
    (Card | str, Card("Card")),
    (int | float | str | bool | None, 1),
    (int | float | str | bool | None, 1.0),
    (int | float | str | bool | None, True),
    (int | float | str | bool | None, math.nan),
    (float | str, "nan"),
    (float | str, math.nan),
    (Decimal | str, "1.50"),
    (Decimal | str, Decimal("1.50")),
    (Path | str, Path("a")),
    (Decimal | UUID | datetime, UUID(int=3)),
    (list[int] | list[str], ["a"]),
    (list[int] | list[str], [1]),
    (list[int] | list[str], []),
    (list[int] | tuple[int, ...] | dict[str, int], (1,)),
    (list[int] | tuple[int, ...] | dict[str, int], {"list[int]": 1}),
    (Sequence[int] | str, [1]),
    (Literal["auto"] | int, "auto"),
    (Literal["auto"] | int, 3),
    (Literal["auto"] | OrderId, "auto"),
    (Literal["auto"] | Sku, Sku("auto")),
    (Literal[Colour.RED] | str, Colour.RED),
    (Colour | str, Colour.RED),
    (Colour | str, "red"),
    (OrderId | int, OrderId("A")),
    (Sku | str, "tea"),
    (Sku | str, Sku("tea")),
    (Any | int, "free"),
    (Line, Line("tea", Decimal("1.50"))),
    (list[Card | Cash], [Card("1"), Cash(2)]),
    (Row, Row(1, "x")),
    (Options, {"colour": Colour.RED}),
    (Parcel, {"weight": Decimal("1.50")}),
    (Parcel, {"weight": Decimal(1), "note": "fragile", "within": {"weight": Decimal(2)}}),
    (Boxed[list[Decimal]], {"content": [Decimal(1)]}),
    (Options | Parcel | str, {"weight": Decimal(1)}),
    (Final[int], 3),
    (Changed[int], Changed(1, [2])),
    (Changed[list[Decimal]], Changed([Decimal(1)], [[Decimal(2)]])),
    (Point, Point(left_edge=1, tags=["a"])),
    (Slotted, Slotted(when=datetime(2026, 1, 1, tzinfo=UTC))),
]

EVENTS: list[Any] = [
    OrderPlaced("A-1", [Line("tea", Decimal("1.50"))], Decimal("1.50")),
    GiftCard("1", sender="Bob"),
    Plain("a", {"x": 1.5}),
    Slotted(when=datetime(2026, 1, 1, tzinfo=UTC), size=Size.LARGE),
    Row(1),
    Untyped(1, [None]),
    Point(left_edge=1),
    Paid(order_id=UUID(int=1), amount=Decimal("1.50"), at=datetime.now(UTC), payer="Bob"),
    Measured(2),
    Private(hidden=1, klass="c"),
    OwnInit(1),
    PriceChanged(Decimal("1.0"), [Decimal("2.0")]),
    Changed("old", ["new"]),
    Moved(1, [2]),
    Either("text"),
    Either(1),
    Node("root", [Node("leaf", [Node("deeper")])], parent=Node("above")),
]


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=stable)
def test_a_value_comes_back_as_it_was(codec: JSONCodec, kind: Any, value: Any):
    """
    What a field holds is read back equal and of the same type, down to the last item.
    """
    held = holding(kind)(value)
    assert exactly(held, again(codec, held))


Ids = TypeAliasType("Ids", list[UUID])
Twice = TypeAliasType("Twice", tuple[T, T], type_params=(T,))
Way = TypeAliasType("Way", Card | Cash)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Ids, [UUID(int=1)]), (Twice[Decimal], (Decimal(1), Decimal(2))), (Way | None, Cash(1))],
    ids=["plain", "generic", "union"],
)
def test_an_alias_is_what_it_stands_for(codec: JSONCodec, kind: Any, value: Any):
    """
    ``type X = ...`` is stored like what it names.
    """
    held = holding(kind)(value)
    assert exactly(held, again(codec, held))


@pytest.mark.parametrize("happened", EVENTS, ids=lambda happened: type(happened).__name__)
def test_an_event_comes_back_as_it_was(codec: JSONCodec, happened: Any):
    """
    Every kind of class that has fields is read back equal and of the same class.
    """
    found = again(codec, happened)
    assert happened == found
    assert type(happened) is type(found)


@pytest.mark.parametrize(("kind", "value"), VALUES, ids=stable)
def test_each_library_reads_what_the_other_wrote(kind: Any, value: Any):
    """
    The JSON of the standard library and of msgspec are the same data.
    """
    held = holding(kind)(value)
    stdlib, msgspec_ = JSONCodec(), JSONCodec(json="msgspec")
    written = [codec.encode(held).payload for codec in (stdlib, msgspec_)]
    assert repr(json.loads(written[0])) == repr(json.loads(written[1]))
    stdlib.know(type(held))
    assert exactly(held, stdlib.decode("Held", 1, written[1]))
    assert exactly(held, msgspec_.decode("Held", 1, written[0]))


def test_an_event_is_written_as_its_fields():
    """
    The payload is an object of the fields, under the declared name and version.
    """
    placed = OrderPlaced("A-1", [Line("tea", Decimal("1.50"))], Decimal("1.50"))
    payload = b'{"order_id":"A-1","lines":[{"sku":"tea","price":"1.50"}],"total":"1.50"}'
    assert Encoded("shop.order_placed", 3, payload) == JSONCodec().encode(placed)


@pytest.mark.parametrize(
    ("kind", "value", "written"),
    [
        (float, math.inf, '"inf"'),
        (
            datetime,
            datetime(2026, 7, 2, tzinfo=BERLIN),
            '"2026-07-02T00:00:00+02:00[Europe/Berlin]"',
        ),
        (timedelta, timedelta(hours=-1), '"-PT3600S"'),
        (Size, Size.LARGE, "2"),
        (Place, Place.AWAY, '"AWAY"'),
        (Card | Cash, Card("1"), '{"shop.card":{"number":"1"}}'),
        (Decimal | str, Decimal(1), '{"Decimal":"1"}'),
        (typing.Union[typing.List[int], str], [1], '{"list[int]":[1]}'),  # noqa: UP006, UP007
        (list[Card | None] | str, [None], '{"list[shop.card | None]":[null]}'),
        (tuple[Literal["a"], ...] | str, ("a",), """{"tuple[Literal['a'], ...]":["a"]}"""),
        (Sequence[int], (1,), "[1]"),
        (Sequence[int], [1], '{"list":[1]}'),
        (dict[int, int], {1: 2}, '{"1":2}'),
        (dict[Size, int], {Size.LARGE: 2}, "[[2,2]]"),
        (bytes, b"\xff", '"/w=="'),
    ],
)
def test_the_format_stays(codec: JSONCodec, kind: Any, value: Any, written: str):
    """
    What is in the logs of users is written today as it was then.
    """
    assert f'{{"value":{written}}}' == codec.encode(holding(kind)(value)).payload.decode()


def test_a_subclass_of_a_single_value_comes_back_as_what_the_field_declares(codec: JSONCodec):
    """
    Equal values of a subclass are stored; they come back as the declared type.
    """
    for kind, value in [
        (str, Sku("tea")),
        (int, Level.LOW),
        (int, True),
        (float, 3),
        (str, Colour.RED),
    ]:
        found = again(codec, holding(kind)(value)).value
        assert value == found
        assert kind is type(found)


class Precise(float):
    pass


class Tomorrow(date):
    pass


def test_a_subclass_that_is_equal_is_stored(codec: JSONCodec):
    """
    A float's or a date's subclass is stored where nothing is lost by it.
    """
    assert Precise(1.5) == again(codec, holding(float)(Precise(1.5))).value
    assert date(2026, 1, 1) == again(codec, holding(date)(Tomorrow(2026, 1, 1))).value


def test_a_missing_key_takes_the_default(codec: JSONCodec):
    """
    A field that was added with a default is read from older payloads as that default.
    """
    codec.know(OrderPlaced, Line, Private, Point)
    assert OrderPlaced("A-1") == codec.decode("shop.order_placed", 3, b'{"order_id":"A-1"}')
    assert Line("tea") == codec.decode("Line", 1, b'{"sku":"tea"}')
    assert Point(left_edge=1) == codec.decode("Point", 1, b'{"leftEdge":1}')
    codec.know(Measured)
    assert Measured(2) == codec.decode("Measured", 1, b'{"length":2}')
    with pytest.raises(DecodeError, match="validation error"):
        codec.decode("Measured", 1, b"{}")


def test_a_key_that_no_field_has_is_passed_over(codec: JSONCodec):
    """
    What a newer program has added is not in the way of an older one, unless told so.
    """
    codec.know(Card)
    assert Card("1") == codec.decode("shop.card", 1, b'{"number":"1","new":2}')
    codec.converter.forbid_extra_keys = True
    assert Card("1") == codec.decode("shop.card", 1, b'{"number":"1"}')
    with pytest.raises(DecodeError, match="Card has no field 'new'"):
        codec.decode("shop.card", 1, b'{"number":"1","new":2}')


def test_a_key_that_no_typed_dict_has_is_passed_over(codec: JSONCodec):
    """
    A `TypedDict` is read like a class with fields: unknown keys are refused on demand.
    """
    held = holding(Options)
    codec.know(held)
    payload = b'{"value":{"count":1,"new":2}}'
    assert held({"count": 1}) == codec.decode("Held", 1, payload)
    codec.converter.forbid_extra_keys = True
    assert held({"count": 1}) == codec.decode("Held", 1, b'{"value":{"count":1}}')
    with pytest.raises(DecodeError, match="value: Options has no key 'new'"):
        codec.decode("Held", 1, payload)


def test_payloads_written_by_hand_may_have_spaces(codec: JSONCodec):
    """
    White space around and within a payload does not matter.
    """
    codec.know(Card)
    for payload in (b' {"number": "1"}', b'{"number": "1"}\n'):
        assert Card("1") == codec.decode("shop.card", 1, payload)


def test_a_zone_that_changed_its_rules_keeps_the_instant(codec: JSONCodec):
    """
    A stored offset that its zone no longer has is read as the same instant.
    """
    codec.encode(holding(datetime)(datetime.now(UTC)))
    payload = b'{"value":"2026-07-02T00:00:00+09:00[Europe/Berlin]"}'
    found = codec.decode("Held", 1, payload).value
    assert datetime(2026, 7, 1, 15, tzinfo=UTC) == found
    assert BERLIN is found.tzinfo


def test_an_unnamed_zone_keeps_its_offset(codec: JSONCodec):
    """
    A time in a zone without a name comes back equal, with the offset it had.
    """
    for zone in (Offset(), ZoneInfo.from_file(open_zone())):
        when = datetime(2026, 7, 2, tzinfo=zone)
        found = again(codec, holding(datetime)(when)).value
        assert when == found
        assert when.utcoffset() == found.utcoffset()


def open_zone() -> Any:
    import importlib.resources
    import io

    for folder in ("/usr/share/zoneinfo", "/usr/lib/zoneinfo"):
        try:
            with open(f"{folder}/Europe/Berlin", "rb") as file:
                return io.BytesIO(file.read())
        except OSError:
            continue
    package = importlib.resources.files("tzdata.zoneinfo.Europe")
    return io.BytesIO(package.joinpath("Berlin").read_bytes())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
seconds = st.integers(-86_399, 86_399).map(lambda each: timezone(timedelta(seconds=each)))
zones = st.none() | st.timezones() | seconds


@event
class Everything:
    text: str
    whole: int
    number: float
    decimal: Decimal
    when: datetime
    day: date
    span: timedelta
    key: UUID
    raw: bytes
    size: Size
    place: Place
    access: Access
    one_of: int | float | str | bool | Decimal | list[int] | list[str] | Card | Cash | None
    free: Any
    lines: tuple[Line, ...]
    names: frozenset[str]
    by_number: dict[int, list[Decimal]]
    by_pair: dict[tuple[int, bool], bytes | None]
    sequence: Sequence[int]


lines = st.builds(Line, st.text(), st.decimals())
everything = st.builds(
    Everything,
    text=st.text(),
    whole=st.integers(),
    number=st.floats(),
    decimal=st.decimals(),
    when=st.datetimes(timezones=zones),
    day=st.dates(),
    span=st.timedeltas(),
    key=st.uuids(),
    raw=st.binary(),
    size=st.sampled_from(Size),
    place=st.sampled_from(Place),
    access=st.integers(0, 3).map(Access),
    one_of=st.integers()
    | st.floats()
    | st.text()
    | st.booleans()
    | st.decimals()
    | st.lists(st.integers())
    | st.lists(st.text())
    | st.builds(Card, st.text())
    | st.builds(Cash, st.integers())
    | st.none(),
    free=json_values,
    lines=st.lists(lines).map(tuple),
    names=st.frozensets(st.text()),
    by_number=st.dictionaries(st.integers(), st.lists(st.decimals())),
    by_pair=st.dictionaries(st.tuples(st.integers(), st.booleans()), st.none() | st.binary()),
    sequence=st.lists(st.integers()) | st.lists(st.integers()).map(tuple),
)
CODECS = [JSONCodec(), JSONCodec(json="msgspec")]


@pytest.mark.parametrize("codec", CODECS, ids=["stdlib", "msgspec"])
@hypothesis.settings(max_examples=40)
@hypothesis.given(everything)
def test_whatever_is_written_is_read_back(codec: JSONCodec, happened: Everything):
    """
    Any event that is accepted comes back equal, down to the types of what it holds.
    """
    found = again(codec, happened)
    for field in attrs.fields(Everything):
        before, after = getattr(happened, field.name), getattr(found, field.name)
        if isinstance(before, datetime):
            assert before.isoformat() == after.isoformat()
        elif isinstance(before, frozenset):
            assert before == after
        else:
            assert exactly(before, after), field.name


@pytest.mark.parametrize("codec", CODECS, ids=["stdlib", "msgspec"])
@hypothesis.settings(max_examples=25)  # each one breaks a payload of every kind of field
@hypothesis.given(everything, st.data())
def test_a_broken_payload_breaks_nothing_else(codec: JSONCodec, happened: Everything, data: Any):
    """
    Whatever a stored payload is turned into, it is read, or refused by a `DecodeError`.
    """
    encoded = codec.encode(happened)
    fields = json.loads(encoded.payload)
    fields[data.draw(st.sampled_from(sorted(fields)))] = data.draw(json_values)
    payload = bytearray(json.dumps(fields).encode())
    if data.draw(st.booleans()):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found: Any = codec.decode(encoded.name, encoded.version, bytes(payload))
    except DecodeError as error:
        found = error
    if isinstance(found, DecodeError):
        assert ("Everything", 1) == (found.name, found.version)
        assert found.reason
    else:
        assert isinstance(found, Everything)


# -- what is refused, and where --------------------------------------------------------------

BAD_VALUES: list[tuple[Any, Any, str, str]] = [
    (str, 5, "", "expected str, not int"),
    (int, "5", "", "expected int, not str"),
    (int, 1.0, "", "expected int, not float"),
    (bool, 1, "", "expected bool, not int"),
    (None, 1, "", "expected None, not int"),
    (float, Decimal(1), "", "expected float, not Decimal"),
    (float, 2**53 + 1, "", "expected float, not int"),
    (float, 10**400, "", "OverflowError"),
    (float, True, "", "expected float, not bool"),
    (Decimal, 1.5, "", "expected Decimal, not float"),
    (date, datetime(2026, 1, 1, tzinfo=UTC), "", "would come back as another date"),
    (time, time(3, tzinfo=BERLIN), "", "a time of day in a zone"),
    (time, time(3, tzinfo=timezone(timedelta(microseconds=1))), "", "no whole number of seconds"),
    (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(microseconds=1))), "", "no whole"),
    (Path, PurePosixPath("a"), "", "expected Path, not PurePosixPath"),
    (bytes, bytearray(b"x"), "", "expected bytes, not bytearray"),
    (str, "\ud800", "", "surrogates not allowed"),
    (dict[str, str], {"\ud800": "x"}, "", "surrogates not allowed"),
    (list[str], ["a", "\ud800"], "[1]", "surrogates not allowed"),
    (dict[str, dict[str, str]], {"a b": {"c": "\ud800"}}, "['a b'].c", "surrogates not allowed"),
    (int, 10**5000, "", "Exceeds the limit"),
    (int, Own(1), "", "Own 1 would come back as another int"),
    (Size, 2, "", "expected Size, not int"),
    (Voiced, Voiced(3), "", "would come back as another Voiced"),
    (Tuned, Tuned(441), "", "would come back as another Tuned"),
    (Literal["a", 1], True, "", "expected one of 'a', 1, not True"),
    (Literal["a"], [], "", "expected one of 'a'"),
    (Any, Decimal(1), "", "no declared type"),
    (Any, (1, 2), "", "no declared type"),
    (Any, [0, {"a": {1: 2}}], "[1]['a']", "no declared type"),
    (Any, [math.nan], "[0]", "JSON has no number for nan"),
    (Sku, "tea", "", "expected Sku, not str"),
    (Shouted, Shouted("tea"), "", "would come back as another Shouted"),
    (list[int], (1,), "", "expected list, not tuple"),
    (list[int], [1, "2"], "[1]", "expected int, not str"),
    (list[int], Guarded([1]), "", "Guarded would come back as another list"),
    (collections.deque[int], collections.deque(["a"]), "[0]", "expected int, not str"),
    (collections.deque[int], [1], "", "expected deque, not list"),
    (collections.deque[int], collections.deque([1], 3), "", "a deque with a maxlen"),
    (collections.deque, collections.deque([(1,)]), "[0]", "no declared type"),
    (Sequence[str], "text", "", "expected tuple or list, not str"),
    (tuple[int, str], (1,), "", "expected 2 items, not 1"),
    (tuple[int, str], [1, "a"], "", "expected tuple, not list"),
    (tuple[int, str], (1, 2), "[1]", "expected str, not int"),
    (dict[str, int], {"a": "b"}, "['a']", "expected int, not str"),
    (dict[str, int], {1: 2}, "[1]", "expected str, not int"),
    (dict[str, int], [("a", 1)], "", "expected dict, not list"),
    (dict[bool, int], {True: "x"}, "[0][1]", "expected int, not str"),
    (dict[Decimal, int], {Decimal("NaN"): 1, Decimal("nan"): 2}, "", "two of its keys"),
    (Maybe | None, Maybe(None), "", "would come back as None"),
    (int | str, 1.5, "", "expected int | str, not float"),
    (list[int] | list[str], [None], "[0]", "expected str, not None"),
    (Card | Cash, Line("x"), "", "expected shop.card | Cash, not Line"),
    (Card | Cash, Card(5), "", "expected str, not int"),  # type: ignore[arg-type]
    (Card, GiftCard("1"), "", "GiftCard would come back as a Card"),
    (Line, None, "", "expected Line, not None"),
    (list[Line], [Line("a"), Line("b", 1.5)], "[1].price", "expected Decimal, not float"),  # type: ignore[arg-type]
    (Paid, Cash(1), "", "expected Paid, not Cash"),
    (Options, [("count", 1)], "", "expected dict, not list"),
    (Options, {"count": "1"}, "['count']", "expected int, not str"),
    (Options, {"size": 1}, "", "Options has no key 'size'"),
    (Parcel, {"weight": None}, "['weight']", "expected Decimal, not None"),
    (Parcel, {"note": "fragile"}, "['weight']", "is missing"),
    (list[Boxed[int]], [{"content": "1"}], "[0]['content']", "expected int, not str"),
    (Options | None, {"count": "1"}, "['count']", "expected int, not str"),
    (Masked, Masked(user="a", password="b"), ".password", "does not come back"),
    (Anything, Anything(value=Decimal(1)), ".value", "does not come back"),
    (Anything, Anything(value=math.nan), ".value", "does not come back"),
]


@pytest.mark.parametrize(
    ("kind", "value", "path", "reason"), BAD_VALUES, ids=map(str, range(len(BAD_VALUES)))
)
def test_what_would_not_come_back_is_refused(
    codec: JSONCodec, kind: Any, value: Any, path: str, reason: str
):
    """
    A value that is not of its field's type is refused when written, with its path.
    """
    held = holding(kind)(value)
    with pytest.raises(EncodeError) as refused:
        codec.encode(held)
    path = ".value.number" if value == Card(5) else f".value{path}"  # type: ignore[arg-type]
    assert path == refused.value.path
    assert held is refused.value.event
    assert str(refused.value).startswith(f"Held{path} cannot be stored: ")
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Handmade, "Handmade is a type the codec does not know"),
        (list[complex], "complex is a type the codec does not know"),
        (Callable[[], int], "is a type the codec does not know"),
        (collections.defaultdict, r"does not know\. Declare dict\[\.\.\.\], and give it dict"),
        (typing.DefaultDict[str, int], r"defaultdict\[str, int\] .* Declare dict"),  # noqa: UP006
        (collections.ChainMap, "Declare dict"),
        (typing.ChainMap[str, int], "Declare dict"),
        (collections.UserDict, "Declare dict"),
        (Basket, "Basket is a type the codec does not know. Declare dict"),
        (collections.UserList, r"does not know\. Declare list\[\.\.\.\] or tuple"),
        (collections.abc.Reversible[int], "Declare list"),
        (range, "Declare list"),
        (typing.SupportsInt, "SupportsInt is a type the codec does not know. Declare the class"),
        (Listed, "Listed is a list: no field keeps what it holds"),
        (Callable[[Annotated[int, []]], int], "is a type the codec does not know"),
        (TypedDict("Made", {"by": Handmade}), "Handmade is a type the codec does not know"),
        (Literal["red", Colour.RED], "two values that are written alike"),
        (Line | dataclasses.make_dataclass("Line", [("a", int)]), "go by one name"),
    ],
)
def test_a_type_that_could_not_be_read_is_not_written(codec: JSONCodec, kind: Any, reason: str):
    """
    A class whose field cannot be read back is refused before anything is stored.
    """
    held = holding(kind)(None)
    for _ in range(2):
        with pytest.raises(EncodeError, match=reason) as refused:
            codec.encode(held)
        assert refused.value.path in (".value", ".value['by']")


@pytest.mark.parametrize(
    ("kind", "value", "found"),
    [
        (dict[str, int], collections.defaultdict(int, a=1), {"a": 1}),
        (dict[str, int], Basket(a=1), {"a": 1}),
        (Mapping[str, int], collections.Counter("a"), {"a": 1}),
        (tuple[int, str], Row(1, "a"), (1, "a")),
        (Sequence[Any], Row(1, "a"), (1, "a")),
    ],
    ids=stable,
)
def test_a_collection_of_a_subclass_comes_back_as_what_the_field_declares(
    codec: JSONCodec, kind: Any, value: Any, found: Any
):
    """
    What is equal to one of the declared type may be given for it.
    """
    back = again(codec, holding(kind)(value)).value
    assert exactly(found, back)
    assert value == back


@pytest.mark.parametrize("kind", [float, Decimal], ids=stable)
def test_each_nan_in_a_set_is_one_of_its_own(codec: JSONCodec, kind: Any):
    """
    No two of them are equal, and so none of them is lost.
    """
    held = holding(frozenset[kind])(frozenset({kind("nan"), kind("nan")}))
    assert 2 == len(again(codec, held).value)


def test_a_number_is_written_as_what_it_is(codec: JSONCodec):
    """
    What a class derived from a number makes of itself does not matter.
    """
    assert 3 == again(codec, holding(int)(Seven(3))).value
    assert 0.5 == again(codec, holding(float)(Fifth(0.5))).value


def test_a_zone_from_a_file_of_ones_own_keeps_its_offset(codec: JSONCodec):
    """
    A zone whose name nobody else can look up goes without its name.
    """
    zone = ZoneInfo.from_file(open_zone(), key="Mars/Olympus")
    when = datetime(2026, 7, 2, tzinfo=zone)
    assert when == again(codec, holding(datetime)(when)).value


def test_an_event_without_known_fields_is_refused(codec: JSONCodec):
    """
    An instance of any class can be published, but only known kinds can be stored.
    """
    with pytest.raises(
        EncodeError, match="Handmade cannot be stored: Handmade is a type the codec"
    ):
        codec.encode(Handmade(1))


def test_an_unresolved_annotation_is_named(codec: JSONCodec):
    """
    An annotation that names what cannot be found is refused, and the cure is named.
    """

    @event
    class Lost:
        what: Nowhere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(EncodeError, match="name 'Nowhere' is not defined"):
        codec.encode(Lost(1))

    @dataclasses.dataclass
    class LostToo:
        what: Nowhere  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(EncodeError, match="name 'Nowhere' is not defined"):
        codec.encode(LostToo(1))


def test_a_derived_class_does_not_take_its_bases_annotations(codec: JSONCodec):
    """
    A class of the name that its base's annotations mention does not step in their place.
    """

    @event(name="shop.line.derived")
    class Node(globals()["Node"]):  # type: ignore[misc]
        extra: int = 0

    happened = Node("a", parent=globals()["Node"]("b"), extra=1)
    assert happened == again(codec, happened)


def test_a_class_in_a_function_may_hold_its_own_kind(codec: JSONCodec):
    """
    A class that names itself is found, wherever it is declared.
    """

    @event
    class Twig:
        twigs: list[Twig]

    assert Twig([Twig([])]) == again(codec, Twig([Twig([])]))


def test_annotations_may_be_resolved_beforehand(codec: JSONCodec):
    """
    `attrs.resolve_types` finds what only the function knows that declares the class.
    """

    class Inner(StrEnum):
        A = "a"

    @event
    class Outer:
        inner: Inner
        untyped: Any = attrs.field(default=1)

    attrs.resolve_types(Outer, localns={"Inner": Inner})
    assert Outer(Inner.A) == again(codec, Outer(Inner.A))


def test_a_field_without_a_type_holds_plain_values(codec: JSONCodec):
    """
    An attrs class made without annotations is stored as far as JSON goes.
    """
    made = attrs.make_class("Made", {"a": attrs.field(), "b": attrs.field(default=2)})
    assert made(1) == again(codec, made(1))


def test_what_only_the_constructor_saw_is_refused(codec: JSONCodec):
    """
    A dataclass whose constructor needs what no field keeps could not be made again.
    """

    @dataclasses.dataclass
    class Salted:
        a: int
        salt: dataclasses.InitVar[int]

    with pytest.raises(EncodeError, match=r"Salted\.salt is an InitVar"):
        codec.encode(Salted(1, salt=2))

    @dataclasses.dataclass
    class Peppered:
        a: int
        pepper: dataclasses.InitVar[int] = 2

    assert Peppered(1) == again(codec, Peppered(1))


def test_what_holds_itself_is_refused(codec: JSONCodec):
    """
    An event without end is refused, and not followed.
    """
    root = Node("root")
    root.children.append(root)
    with pytest.raises(EncodeError, match="nested too deeply, or holds itself"):
        codec.encode(root)
    free: list[Any] = []
    free.append(free)
    with pytest.raises(EncodeError, match="nested too deeply, or holds itself"):
        codec.encode(holding(Any)(free))


@event
class Folder:
    above: Folder | None = None


@event
class Hall:
    doors: tuple[Hall | Folder, ...] = ()


class Crate(TypedDict, total=False):
    within: Crate | None


@event
class Shipped:
    crate: Crate
    free: Any = None


def lists(levels: int) -> Any:
    return Shipped({}, nested(levels))


def crates(levels: int) -> Any:
    inner: Crate = {}
    for _ in range(levels):
        inner = {"within": inner}
    return Shipped(inner)


def folders(levels: int) -> Any:
    inner = Folder()
    for _ in range(levels):
        inner = Folder(inner)
    return inner


def halls(levels: int) -> Any:
    inner = Hall()
    for _ in range(levels):
        inner = Hall((inner,))
    return inner


def from_far_down(frames: int, do: Callable[[], Any]) -> Any:
    return from_far_down(frames - 1, do) if frames else do()


@pytest.mark.parametrize(
    ("make", "levels", "path"),
    [
        (lists, 98, ".free"),
        (crates, 98, ".crate"),
        (folders, 99, ".above"),
        (halls, 32, ".doors"),  # an array, its object and the name of the union's member
    ],
    ids=["free", "dicts", "objects", "union"],
)
def test_what_is_written_can_be_read_from_anywhere(
    codec: JSONCodec, make: Callable[[int], Any], levels: int, path: str
):
    """
    What is nested deeper than 100 levels is refused, for its reader's stack might be full.
    """
    happened = make(levels)
    encoded = codec.encode(happened)
    assert happened == from_far_down(300, lambda: codec.decode(*encoded))
    with pytest.raises(EncodeError, match="nested deeper than 100 levels") as refused:
        codec.encode(make(levels + 1))
    assert path == refused.value.path


@pytest.mark.parametrize(
    "value",
    [
        "[{" * 200,
        [["},{"]] * 200,
        [{"a": {"b": [n]}} for n in range(200)],
        {str(n): {"b": [n]} for n in range(200)},
    ],
    ids=["text", "texts", "list", "dict"],
)
def test_brackets_side_by_side_are_no_depth(codec: JSONCodec, value: Any):
    """
    An event may be as wide as it likes, and hold any text.
    """
    held = holding(Any)(value)
    assert held == again(codec, held)
    codec.know(str)
    assert "[{" * 200 == again(codec, "[{" * 200)
    assert Card("flat" * 100) == again(codec, Card("flat" * 100))


def test_what_a_hook_writes_is_no_deeper_either(codec: JSONCodec):
    """
    A hook's own data is looked through as well, whatever it stands in.
    """
    codec.converter.register_unstructure_hook(Handmade, lambda value: value.a)
    codec.converter.register_structure_hook(Handmade, lambda data, _: Handmade(data))
    deep: Any = 1
    for _ in range(101):
        deep = (deep,)
    with pytest.raises(EncodeError, match="Handmade cannot be stored: its JSON would be nested"):
        codec.encode(Handmade(deep))


BAD_DATA: list[tuple[Any, Any, str, str]] = [
    (str, 5, "", "expected str, not int"),
    (str, None, "", "expected str, not None"),
    (int, True, "", "expected int, not bool"),
    (int, 1.0, "", "expected int, not float"),
    (None, 0, "", "expected None, not int"),
    (float, "1.5", "", "expected float, not str"),
    (Decimal, "abc", "", "'abc' is no Decimal"),
    (Decimal, 1, "", "expected the text of a Decimal, not int"),
    (datetime, "yesterday", "", "'yesterday' is no datetime"),
    (datetime, "2026-01-01T00:00:00+00:00[Mars/Olympus]", "", "is no datetime"),
    (timedelta, "P", "", "'P' is no timedelta"),
    (timedelta, "PT", "", "'PT' is no timedelta"),
    (timedelta, "an hour", "", "'an hour' is no timedelta"),
    (bytes, "/", "", "'/' is no bytes"),
    (UUID, "7", "", "'7' is no UUID"),
    (Size, 3, "", "3 is not a valid Size"),
    (Size, True, "", ""),
    (Place, "NOWHERE", "", "'NOWHERE' is no member of Place"),
    (Literal["a"], "b", "", "expected one of 'a', not 'b'"),
    (Sku, 1, "", "expected str, not int"),
    (list[int], {}, "", "expected an array, not dict"),
    (list[int], [1, "a"], "[1]", "expected int, not str"),
    (set[Any], [[]], "", "unhashable"),
    (Sequence[int], {"dict": []}, "", "expected an array, not dict"),
    (tuple[int, str], [1], "", "expected 2 items, not 1"),
    (tuple[int, str], [1, 2], "[1]", "expected str, not int"),
    (tuple[int, str], {}, "", "expected list, not dict"),
    (dict[str, int], [], "", "expected an object, not list"),
    (dict[str, int], {"a": "b"}, "['a']", "expected int, not str"),
    (dict[int, int], {"a": 1}, "['a']", "invalid literal for int"),
    (dict[bool, int], [[True]], "[0]", "expected 2 items, not 1"),
    (Card | Cash, {"Cheque": {}}, "", "expected shop.card | Cash, not dict"),
    (Card | Cash, {"Cash": {"amount": "x"}}, ".amount", "expected int, not str"),
    (Card | Cash, 5, "", "expected shop.card | Cash, not int"),
    (Line, [], "", "expected an object with the fields of Line, not list"),
    (Line, {}, ".sku", "is missing, and has no default"),
    (list[Line], [{"sku": "a"}, {"sku": "b", "price": "x"}], "[1].price", "'x' is no Decimal"),
    (Parcel, {"note": "x"}, "['weight']", "is missing"),
    (Parcel, [], "", "expected an object, not list"),
    (Options, {"colour": "green"}, "['colour']", "'green' is not a valid Colour"),
    (Options, {"count": "x"}, "['count']", "expected int, not str"),
]


@pytest.mark.parametrize(
    ("kind", "data", "path", "reason"), BAD_DATA, ids=map(str, range(len(BAD_DATA)))
)
def test_what_does_not_fit_is_not_read(
    codec: JSONCodec, kind: Any, data: Any, path: str, reason: str
):
    """
    A payload that does not fit its class is refused, with name, version, path and reason.
    """
    codec.know(made := holding(kind))
    if kind is Size and data is True:
        assert Size.SMALL is codec.decode("Held", 1, b'{"value":true}').value
        return
    with pytest.raises(DecodeError) as refused:
        codec.decode("Held", 1, json.dumps({"value": data}).encode())
    error = refused.value
    assert ("Held", 1, f".value{path}") == (error.name, error.version, error.path)
    assert reason in error.reason
    assert f"'Held' version 1 cannot be read: value{path}: {error.reason}" == str(error)
    assert made


def test_an_unknown_member_is_what_the_enum_makes_of_it(codec: JSONCodec):
    """
    An enum with an answer to missing values is asked for it.
    """
    codec.know(holding_mood := holding(Mood))
    assert holding_mood(Mood.UNKNOWN) == codec.decode("Held", 1, b'{"value":"grim"}')


def test_a_pydantic_model_says_where_it_does_not_fit(codec: JSONCodec):
    """
    What pydantic refuses is told with the path inside the model.
    """
    codec.know(holding_paid := holding(list[Paid]))
    with pytest.raises(DecodeError, match="Field required") as refused:
        codec.decode("Held", 1, b'{"value":[{"amount":"1"}]}')
    assert ".value[0].order_id" == refused.value.path
    assert holding_paid

    class Listed(pydantic.BaseModel):
        numbers: list[int]

    codec.know(Listed)
    with pytest.raises(DecodeError, match="valid integer") as refused:
        codec.decode("Listed", 1, b'{"numbers":[1,"x"]}')
    assert ".numbers[1]" == refused.value.path


@pytest.mark.skipif(
    tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11),
    reason="older ones always read by alias",
)
def test_a_pydantic_model_may_go_by_its_own_names(codec: JSONCodec):
    """
    A model that does not read aliases is not written by them.
    """

    class Named(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(validate_by_name=True, validate_by_alias=False)
        a: int = pydantic.Field(alias="b")

    assert Named(a=1) == again(codec, Named(a=1))


def test_a_pydantic_model_with_a_changed_extra_is_refused(codec: JSONCodec):
    """
    Extra values of a model are compared, too.
    """

    class Open(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")

    assert Open(a=1) == again(codec, Open(a=1))  # type: ignore[call-arg]
    with pytest.raises(EncodeError, match="does not come back"):
        codec.encode(Open(a=Decimal(1)))  # type: ignore[call-arg]


def test_a_pydantic_field_that_cannot_be_written_is_named(codec: JSONCodec):
    """
    What pydantic does not write, or JSON does not have, is told with the field's path.
    """

    class Scan(pydantic.BaseModel):
        number: int = 1
        image: bytes = b""
        width: float = 1.0
        _seen: int = pydantic.PrivateAttr(default=0)

    class Failing(pydantic.BaseModel):
        number: int = 1

        @pydantic.model_serializer
        def fail(self) -> dict[str, Any]:
            raise OSError

    seen = Scan()
    seen._seen = 3
    for scan, path, reason in [
        (Scan(image=b"\xff"), ".image", "invalid utf-8"),
        (Scan(width=math.nan), ".width", "JSON has no number for nan"),
        (seen, "._seen", "does not come back as the same value"),
        (Failing(), "", "OSError"),
    ]:
        with pytest.raises(EncodeError, match=reason) as refused:
            codec.encode(scan)
        assert path == refused.value.path
    assert Scan(image=b"a") == again(codec, Scan(image=b"a"))


def test_what_a_pydantic_model_works_out_is_not_compared(codec: JSONCodec):
    """
    A cached property is no field: whether it was asked for makes no difference.
    """

    class Squared(pydantic.BaseModel):
        side: int

        @functools.cached_property
        def area(self) -> int:
            return self.side**2

    value = Squared(side=3)
    assert 9 == value.area
    assert value == again(codec, value)


def test_a_pydantic_root_model_comes_back(codec: JSONCodec):
    """
    A model that is no object in JSON is stored like any other.
    """

    class Numbers(pydantic.RootModel[list[int]]):
        pass

    assert Numbers([1, 2]) == again(codec, Numbers([1, 2]))


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"\xff", b'{"number":NaN}', b'{"number":"1"}x', b"[]", b"null"]
)
def test_what_is_no_json_object_is_not_read(codec: JSONCodec, payload: bytes):
    """
    A payload that is cut off, damaged or something else is refused by a `DecodeError`.
    """
    codec.know(Card)
    with pytest.raises(DecodeError, match=r"'shop\.card' version 1 cannot be read"):
        codec.decode("shop.card", 1, payload)


def test_a_validator_is_heard(codec: JSONCodec):
    """
    A class that refuses its own fields makes the event unreadable, by its own words.
    """

    @event
    class Positive:
        a: int = attrs.field(validator=attrs.validators.gt(0))

    codec.know(Positive)
    with pytest.raises(DecodeError, match="'a' must be > 0") as refused:
        codec.decode("Positive", 1, b'{"a":-1}')
    assert isinstance(refused.value.__cause__, ValueError)


@event
class Rounded:
    a: float = attrs.field(converter=lambda value: round(value, 1))


@event
class Doubled:
    a: int
    b: int = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "b", 2 * self.a)


@event
class Spelled:
    a: str

    def __init__(self, a: str) -> None:
        self.__attrs_init__(a.strip())  # type: ignore[attr-defined]


@attrs.frozen(slots=False)
class Unslotted:
    a: int


@attrs.frozen(cache_hash=True)
class Hashed:
    a: int


@event
class Counted:
    made: typing.ClassVar[int] = 0
    a: int

    def __new__(cls, *_: object) -> Counted:
        cls.made += 1
        return object.__new__(cls)


@event
class Based(Unslotted):
    b: int = 3


@pytest.mark.parametrize(
    "value",
    [Rounded(0.25), Doubled(4), Spelled(" x "), Unslotted(1), Hashed(1), Counted(1), Based(1, b=2)],
    ids=lambda value: type(value).__name__,
)
def test_what_a_constructor_does_is_done_for_what_is_read(codec: JSONCodec, value: Any):
    """
    A constructor that does more than store the fields is called, and no other way is taken.
    """
    before = Counted.made
    back = again(codec, value)
    assert (value, hash(value), vars(value) if hasattr(value, "__dict__") else None) == (
        back,
        hash(back),
        vars(back) if hasattr(back, "__dict__") else None,
    )
    assert (type(value) is Counted) == (before < Counted.made)


def test_what_only_stores_is_read_with_defaults_and_without_gaps(codec: JSONCodec):
    """
    An event whose constructor only stores is read whole, its defaults in place, and frozen.
    """

    @event
    class Whole:
        a: int
        b: str = "b"
        _c: int = 3

    codec.know(Whole)
    back = codec.decode("Whole", 1, b'{"a":1}')
    assert Whole(1) == back
    assert hash(Whole(1)) == hash(back)
    assert Whole(1) == copy.copy(back)
    assert None is not weakref.ref(back)()
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        back.a = 2


# -- constructors that do more than store ----------------------------------------------------


@event
class InCents:
    cents: int = attrs.field(converter=lambda amount: int(amount * 100))


@attrs.define
class Raised:
    rate: int

    def __attrs_post_init__(self) -> None:
        self.rate += 1


def raise_level(made: Any, _: Any, level: int) -> None:
    object.__setattr__(made, "level", level + 1)


@event
class Clamped:
    level: int = attrs.field(validator=raise_level)


@attrs.define
class Drifting:
    level: int

    def __setattr__(self, name: str, value: int) -> None:
        object.__setattr__(self, name, value + 1)


@dataclasses.dataclass
class Grossed:
    total: Decimal

    def __post_init__(self) -> None:
        self.total *= 2


@dataclasses.dataclass
class Stepped:
    step: int

    def __setattr__(self, name: str, value: int) -> None:
        object.__setattr__(self, name, value + 1)


class Rising:
    def __get__(self, made: Any, _: Any = None) -> int:
        return made.at if made is not None else 0

    def __set__(self, made: Any, value: int) -> None:
        made.at = value + 1


@dataclasses.dataclass
class Described:
    step: int = Rising()  # type: ignore[assignment]


@dataclasses.dataclass
class Suffixed:
    name: str

    def __init__(self, name: str) -> None:
        self.name = name + "!"


@dataclasses.dataclass
class Filled:
    found: Any

    def __post_init__(self) -> None:
        self.found.append(1)


class Later(Row):
    def __new__(cls, a: int, b: str) -> Later:
        return super().__new__(cls, a + 1, b)


class Older(msgspec.Struct):
    age: int

    def __post_init__(self) -> None:
        self.age += 1


class Counting(type):
    def __call__(cls, number: int) -> Any:
        return super().__call__(number + 1)


@dataclasses.dataclass
class Numbered(metaclass=Counting):
    number: int


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (InCents(1), ".cents"),
        (Raised(1), ".rate"),
        (Clamped(1), ".level"),
        (Drifting(1), ".level"),
        (Grossed(Decimal(1)), ".total"),
        (Stepped(1), ".step"),
        (Described(1), ".step"),
        (Suffixed("a"), ".name"),
        (Filled([]), ".found"),
        (Later(1, "b"), ".a"),
        (Older(1), ".age"),
        (Numbered(1), ".number"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_constructor_would_change_again_is_refused(codec: JSONCodec, value: Any, path: str):
    """
    An instance that its constructor would not make again is refused when written.
    """
    with pytest.raises(EncodeError, match=r"the constructor of \w+ would make") as refused:
        codec.encode(value)
    assert path == refused.value.path
    held = holding(list[type(value)])([value])  # type: ignore[misc]
    with pytest.raises(EncodeError) as refused:
        codec.encode(held)
    assert f".value[0]{path}" == refused.value.path


def test_what_a_constructor_would_not_take_again_is_refused(codec: JSONCodec):
    """
    An instance whose constructor fails on what it has made itself is refused when written.
    """

    @event
    class Priced:
        price: Decimal = attrs.field(converter=lambda text: Decimal(text.removeprefix("$")))

    with pytest.raises(EncodeError, match="would not take it when it is read: AttributeError"):
        codec.encode(Priced("$1"))

    @attrs.frozen
    class Limited:
        limit: int = attrs.field(validator=attrs.validators.lt(5))

    broken = Limited(1)
    object.__setattr__(broken, "limit", 9)
    with pytest.raises(EncodeError, match="'limit' must be < 5"):
        codec.encode(broken)


@attrs.frozen(eq=False)
class Sorted:
    names: set[str] = attrs.field(converter=set)
    rate: float = attrs.field(default=math.nan, converter=float)
    inner: list[Sorted] = attrs.field(factory=list, converter=list)


def test_what_a_constructor_makes_again_is_stored(codec: JSONCodec):
    """
    Twins are compared by what is written, so that neither nan nor identity is in the way.
    """
    value = Sorted({"a", "b"}, inner=[Sorted({"c"}), Sorted(set())])
    back = again(codec, value)
    assert {"a", "b"} == back.names
    assert math.isnan(back.rate)
    assert [{"c"}, set()] == [each.names for each in back.inner]


@event
class Shelf:
    numbers: frozenset[int] = attrs.field(converter=lambda given: frozenset([*given][::-1]))
    colour: str = "red"


def test_a_set_may_be_made_in_another_order(codec: JSONCodec):
    """
    A set is no other one for the order of its items.
    """
    assert [*frozenset([0, 8])] != [*frozenset([8, 0])]
    assert Shelf(frozenset([0, 8])) == again(codec, Shelf(frozenset([0, 8])))


def test_twins_within_twins_are_compared_once(codec: JSONCodec):
    """
    A deep tree of such instances takes its depth squared, and not two to its power.
    """
    calls = 0

    @attrs.frozen
    class Branch:
        below: list[Branch]

        def __attrs_post_init__(self) -> None:
            nonlocal calls
            calls += 1

    tree = Branch([])
    for _ in range(29):
        tree = Branch([tree])
    calls = 0
    codec.encode(tree)
    assert calls <= 30 * 31 // 2


@event
class Stamped:
    order_id: str
    id: UUID = attrs.field(init=False, factory=uuid4)


@dataclasses.dataclass(frozen=True, slots=True)
class Noted:
    name: str
    at: datetime = dataclasses.field(init=False, default_factory=lambda: datetime.now(UTC))


@attrs.frozen
class Mixed:
    _count: int = attrs.field(init=False, factory=itertools.count().__next__)
    name: str = "n"


@pytest.mark.parametrize(
    "value", [Stamped("A-1"), Noted("a"), Mixed()], ids=lambda value: type(value).__name__
)
def test_what_a_constructor_does_not_take_comes_back_as_it_was(codec: JSONCodec, value: Any):
    """
    Fields with ``init=False`` are stored as well, and set to what they were.
    """
    assert value == again(codec, value)
    assert value == again(codec, holding(list[type(value)])([value])).value[0]  # type: ignore[misc]


def test_a_field_that_was_not_stored_is_the_constructors(codec: JSONCodec):
    """
    Where a payload has nothing for a field with ``init=False``, it is what is made.
    """
    codec.know(Stamped, Doubled)
    assert isinstance(codec.decode("Stamped", 1, b'{"order_id":"A-1"}').id, UUID)
    assert 8 == codec.decode("Doubled", 1, b'{"a":4}').b
    with pytest.raises(DecodeError, match="id: 'x' is no UUID"):
        codec.decode("Stamped", 1, b'{"order_id":"A-1","id":"x"}')


@pytest.mark.parametrize(
    ("cls", "is_plain"),
    [
        (Card, True),
        (GiftCard, True),
        (Four, True),
        (Unslotted, True),
        (Hashed, True),
        (Based, True),
        (attrs.define(type("Loose", (), {"__annotations__": {"a": int}})), True),
        (Plain, True),
        (Slotted, True),
        (Row, True),
        (Untyped, True),
        (Point, True),
        (Measured, False),
        (OwnInit, False),
        (Counted, False),
        (type("Derived", (Card,), {}), False),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_plain_constructors_are_known(cls: type, is_plain: bool):
    """
    Classes whose constructors only store are told apart: they are spared the comparison.
    """
    assert is_plain is only_stores(cls)


# -- hooks of one's own ----------------------------------------------------------------------


def test_a_hook_of_ones_own_goes_first(codec: JSONCodec):
    """
    What is registered with the converter is found wherever its type turns up.
    """
    made = holding(list[Handmade] | None)
    with pytest.raises(EncodeError):
        codec.encode(made(None))
    codec.converter.register_unstructure_hook(Handmade, lambda value: value.a)
    codec.converter.register_structure_hook(Handmade, lambda data, _: Handmade(data))
    assert made([Handmade(1)]) == again(codec, made([Handmade(1)]))
    assert Handmade(2) == again(codec, Handmade(2))


def test_a_hook_for_a_union_goes_first(codec: JSONCodec):
    """
    A union has one name and two hooks of the user's, and both are found.
    """
    configure_tagged_union(Card | Cash, codec.converter)
    held = holding(Card | Cash)(Card("1"))
    assert b'{"value":{"number":"1","_type":"Card"}}' == codec.encode(held).payload
    assert held == again(codec, held)


def test_a_hook_for_a_collection_goes_first(codec: JSONCodec):
    """
    What is refused for want of a hook is stored once there is one.
    """
    made = collections.defaultdict
    codec.converter.register_unstructure_hook(made, dict)
    codec.converter.register_structure_hook(made, lambda data, _: made(int, data))
    held = holding(made)(made(int, a=1))
    assert held == again(codec, held)


@pytest.mark.parametrize(
    ("key", "write", "is_stored"),
    [
        (UUID(int=3), lambda key: key.int, False),
        (UUID(int=3), lambda key: key.hex, True),
        (3, hex, False),
        (3, lambda key: key + 1, True),
    ],
    ids=["number", "text", "text of a number", "number of a number"],
)
def test_a_hook_of_a_key_writes_what_a_key_can_be(
    codec: JSONCodec, key: Any, write: Callable[[Any], Any], is_stored: bool
):
    """
    Keys are text in JSON: what a hook writes otherwise could not be told apart when read.
    """
    codec.converter.register_unstructure_hook(type(key), write)
    codec.converter.register_structure_hook(type(key), lambda *_: key)
    held = holding(dict[type(key), str])({key: "a"})  # type: ignore[misc]
    if is_stored:
        assert held == again(codec, held)
        return
    with pytest.raises(EncodeError, match="a key is text in JSON, and its hook writes") as refused:
        codec.encode(held)
    assert f".value[{key!r}]" == refused.value.path


def test_a_later_hook_replaces_the_one_built_in(codec: JSONCodec):
    """
    A hook for a type known already is used from then on.
    """
    held = holding(Decimal)(Decimal("1.50"))
    assert b'{"value":"1.50"}' == codec.encode(held).payload
    codec.converter.register_unstructure_hook(Decimal, float)
    codec.converter.register_structure_hook(Decimal, lambda data, _: Decimal(str(data)))
    assert b'{"value":1.5}' == codec.encode(held).payload
    assert held == again(codec, held)


def nested(depth: int, inmost: Any = 0) -> list[Any]:
    inner: list[Any] = [inmost]
    for _ in range(depth):
        inner = [inner]
    return inner


@pytest.mark.parametrize(
    "rubbish",
    [{1, 2}, [object()], {"a": [1, object()]}, nested(250, object())],
    ids=["set", "list", "dict", "nested"],
)
def test_a_hook_that_writes_no_json_is_found_out(codec: JSONCodec, rubbish: Any):
    """
    What a hook makes is refused where JSON has nothing like it.
    """
    codec.converter.register_unstructure_hook(Handmade, lambda _: rubbish)
    codec.converter.register_structure_hook(Handmade, lambda data, _: Handmade(data))
    if isinstance(rubbish, set):
        codec = JSONCodec(codec.converter)  # msgspec writes sets as arrays
    with pytest.raises(EncodeError, match=r"Held\.value"):
        codec.encode(holding(Handmade)(Handmade(1)))


def test_a_hook_that_fails_is_named_with_its_path(codec: JSONCodec):
    """
    What a hook raises is the cause, and the path leads to its field.
    """

    def fail(*_: Any) -> Any:
        raise KeyError("gone")

    codec.converter.register_unstructure_hook(Handmade, fail)
    codec.converter.register_structure_hook(Handmade, fail)
    with pytest.raises(
        EncodeError, match=r"Held\.value\[0\] cannot be stored: KeyError: 'gone'"
    ) as refused:
        codec.encode(holding(list[Handmade])([Handmade(1)]))
    assert isinstance(refused.value.__cause__, KeyError)


def test_a_whole_converter_of_ones_own_is_used_as_it_is():
    """
    A converter that is given keeps its formats, and its errors get their path.
    """
    codec = JSONCodec(cattrs.Converter(unstruct_strat=cattrs.UnstructureStrategy.AS_DICT))
    codec.converter.register_unstructure_hook(Decimal, str)
    codec.converter.register_structure_hook(Decimal, lambda data, _: Decimal(data))
    placed = OrderPlaced("A-1", [Line("tea", Decimal("1.50"))])
    assert placed == again(codec, placed)
    with pytest.raises(DecodeError) as refused:
        codec.decode(
            "shop.order_placed",
            3,
            b'{"order_id":"A","lines":[{"sku":"a"},{"sku":"b","price":"x"}]}',
        )
    assert ".lines[1].price" == refused.value.path
    with pytest.raises(DecodeError) as refused:
        codec.decode("shop.order_placed", 3, b"{}")
    assert "KeyError: 'order_id'" == refused.value.reason


# -- which class -----------------------------------------------------------------------------


def test_an_unknown_name_is_told(codec: JSONCodec):
    """
    An event of no known class raises an error of its own kind.
    """
    with pytest.raises(
        UnknownEventError, match=r"no class is known by the name 'shop\.card'"
    ) as refused:
        codec.decode("shop.card", 1, b"{}")
    assert ("shop.card", 1) == (refused.value.name, refused.value.version)
    assert codec.class_of("shop.card", 1) is None


def test_another_version_is_told(codec: JSONCodec):
    """
    A version nobody can bring up to date, or a newer one, is told from an unknown name.
    """
    codec.know(OrderPlaced)
    with pytest.raises(DecodeError, match=r"has version 3, and no upcaster leads there"):
        codec.decode("shop.order_placed", 1, b"{}")
    with pytest.raises(DecodeError, match=r"version 4 was written by a newer program") as refused:
        codec.decode("shop.order_placed", 4, b"{}")
    assert not isinstance(refused.value, UnknownEventError)


def test_a_class_is_known_when_told_or_written(codec: JSONCodec):
    """
    Classes come from `know` and from what is written.
    """
    codec.know(Card, Cash)
    codec.encode(Line("tea"))
    assert [Card, Cash, Line] == [codec.class_of(name, 1) for name in ("shop.card", "Cash", "Line")]
    assert ("shop.card",) == codec.names_of(Card)
    assert Card is codec.decode("shop.card", 1, b'{"number":"1"}').__class__
    assert Card is codec.class_of("shop.card", 1)


class Happened:
    pass


@event
class DoorOpened(Happened):
    door: str


@dataclasses.dataclass(slots=True)
class DoorShut(DoorOpened.__base__):  # type: ignore[misc,name-defined]
    door: str


@pytest.mark.parametrize(
    "value", ["text", 5, (1, "a"), {"a": 1}, Size.LARGE, Sku("tea")], ids=lambda v: type(v).__name__
)
def test_events_without_fields_are_known_when_told(codec: JSONCodec, value: Any):
    """
    What another codec has written without any fields is read by one that was told of it.
    """
    codec.know(type(value))
    assert value == codec.decode(*JSONCodec().encode(value))


def test_classes_that_are_not_stored_are_not_claimed(codec: JSONCodec):
    """
    What can have no instances here, or none that are stored, claims no name.
    """
    codec.know(object, Mapping, Happened, Handmade)
    for cls in (object, Mapping, Happened, Handmade):
        assert None is codec.class_of(cls.__name__, 1)
    own = JSONCodec(cattrs.Converter())
    own.know(Handmade)
    assert None is own.class_of("Handmade", 1)


def test_a_known_class_stands_for_those_derived_from_it(codec: JSONCodec):
    """
    Who knows a base class can read what is derived from it, by its own name.
    """
    codec.know(Happened, object)
    assert DoorOpened("front") == codec.decode("DoorOpened", 1, b'{"door":"front"}')
    assert DoorShut("front") == codec.decode("DoorShut", 1, b'{"door":"front"}')
    with pytest.raises(UnknownEventError):
        codec.decode("Happened", 1, b"{}")


def test_classes_of_one_name_below_a_base_are_told_apart(codec: JSONCodec):
    """
    Two live classes of one name are refused when an event asks for them, too.
    """

    class Root:
        pass

    def make() -> type:
        @event
        class Twin(Root):
            a: int

        return Twin

    kept = [make(), make()]
    codec.know(Root)
    with pytest.raises(DecodeError, match="are both called 'Twin' version 1"):
        codec.decode("Twin", 1, b'{"a":1}')
    assert kept


def test_two_live_classes_of_one_name_are_refused(codec: JSONCodec):
    """
    A log cannot tell two classes of one name and version apart: the second is refused.
    """

    def make() -> Any:
        @event(name="shop.twin")
        class Twin:
            a: int

        return Twin

    first, second = make(), make()
    codec.know(first)
    codec.know(first)
    with pytest.raises(
        DeclarationError, match=r"make.<locals>.Twin and .*Twin are both called 'shop.twin'"
    ):
        codec.know(second)
    with pytest.raises(DeclarationError):
        codec.encode(second(1))
    assert first(1) == again(codec, first(1))


def test_a_class_that_is_gone_makes_room(codec: JSONCodec):
    """
    A class that nobody holds any more is forgotten, although its events were written.
    """

    def make() -> Any:
        @event(name="shop.gone")
        class Gone:
            a: int

        return Gone

    first = make()
    assert first(1) == again(codec, first(1))
    gone = weakref.ref(first)
    del first
    second = make()
    assert second(2) == again(codec, second(2))
    gc.collect()
    assert gone() is None
    assert codec.class_of("shop.never", 1) is None
    assert second is codec.class_of("shop.gone", 1)


def test_versions_of_one_name_may_live_side_by_side(codec: JSONCodec):
    """
    Two classes of one name and different versions each read their own events.
    """
    first = event(name="shop.side", version=1)(type("First", (), {"__annotations__": {"a": int}}))
    second = event(name="shop.side", version=2)(type("Second", (), {"__annotations__": {"b": int}}))
    codec.know(first, second)
    assert first(1) == codec.decode("shop.side", 1, b'{"a":1}')
    assert second(1) == codec.decode("shop.side", 2, b'{"b":1}')


# -- around the codec ------------------------------------------------------------------------


def test_a_codec_around_a_codec_changes_the_payload_alone():
    """
    A wrapper compresses what is stored; name, version and classes are the inner codec's.
    """
    plain = JSONCodec()
    codec: Codec = PayloadCodec(plain, write=zlib.compress, read=zlib.decompress)
    codec.know(Card)
    codec.check()
    encoded = codec.encode(Card("1" * 100))
    assert ("shop.card", 1) == encoded[:2]
    assert plain.encode(Card("1" * 100)).payload == zlib.decompress(encoded.payload)
    assert Card("1" * 100) == codec.decode(*encoded)
    assert Card is codec.class_of("shop.card", 1)
    assert ("shop.card",) == codec.names_of(Card)


def test_a_wrapper_that_fails_is_told():
    """
    What the wrapper cannot undo or do is refused by the codec's own errors.
    """
    codec = PayloadCodec(JSONCodec(), write=zlib.compress, read=zlib.decompress)
    codec.know(Card)
    with pytest.raises(DecodeError, match="could not be unwrapped: error: ") as refused:
        codec.decode("shop.card", 1, b"no zlib")
    assert ("shop.card", 1) == (refused.value.name, refused.value.version)
    broken = PayloadCodec(JSONCodec(), write=lambda payload: bytes(payload[10**6]), read=bytes)
    with pytest.raises(EncodeError, match="could not be wrapped: IndexError"):
        broken.encode(Card("1"))
    texts: Any = PayloadCodec(JSONCodec(), write=bytes.decode, read=str.encode)  # type: ignore[arg-type]
    with pytest.raises(EncodeError, match=r"wrapped: TypeError: .* not 'str'") as wrapped:
        texts.encode(Card("1"))
    assert Card("1") == wrapped.value.event


def test_a_wrapper_may_write_any_kind_of_bytes():
    """
    What it makes is stored as bytes, whatever holds them.
    """
    codec = PayloadCodec(JSONCodec(), write=bytearray, read=bytes)
    assert b'{"number":"1"}' == codec.encode(Card("1")).payload
    assert bytes is type(codec.encode(Card("1")).payload)


def test_a_codec_says_which_libraries_it_takes(monkeypatch: pytest.MonkeyPatch):
    """
    Another JSON library is refused, and one that is missing is named with the cure.
    """
    with pytest.raises(ValueError, match="must be 'stdlib' or 'msgspec', not 'orjson'"):
        JSONCodec(json="orjson")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install eventbus\[msgspec\]"):
        JSONCodec(json="msgspec")


def test_a_python_without_the_accelerator_writes_the_same(monkeypatch: pytest.MonkeyPatch):
    """
    The pure Python encoder writes the same bytes.
    """
    placed = OrderPlaced("Ä-1", [Line("tea", Decimal("1.50"))])
    before = JSONCodec().encode(placed)
    monkeypatch.setattr(libraries.encoder, "c_make_encoder", None)
    assert before == JSONCodec().encode(placed)


def test_a_codec_is_made_late():
    """
    Importing the codec imports neither cattrs nor a JSON library.
    """
    code = (
        "import sys; import eventbus, eventbus.codec; "
        "print([name for name in ('cattrs', 'json', 'msgspec', 'pydantic') if name in sys.modules])"
    )
    # A measured suite would measure its child too, and so import json for it.
    environment = {key: value for key, value in os.environ.items() if "COVERAGE" not in key}
    child = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "[]" == child.stdout.strip()


def test_threads_may_meet_a_class_at_once():
    """
    Many threads that meet a class for the first time all get its hooks whole.
    """
    import concurrent.futures
    import threading

    node = Node("root", [Node("leaf")], parent=Node("above"))
    for _ in range(20):
        codec = JSONCodec()
        gate = threading.Barrier(4)

        def meet(codec: JSONCodec = codec, gate: threading.Barrier = gate) -> Any:
            gate.wait(10)
            return again(codec, node)

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = [future.result(30) for future in [pool.submit(meet) for _ in range(4)]]
        assert [node] * 4 == found


def test_the_event_is_left_as_it_was(codec: JSONCodec):
    """
    Writing an event changes nothing in it.
    """
    placed = OrderPlaced("A-1", [Line("tea", Decimal("1.50"))])
    before = copy.deepcopy(placed)
    codec.encode(placed)
    assert before == placed


# -- hooks of users that ask the converter again


class Framed:
    """
    Something with hooks of its own.
    """

    def __init__(self, at: Any) -> None:
        self.at = at

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Framed) and self.at == other.at

    __hash__ = None  # type: ignore[assignment]


@event(name="codec.hung")
class Hung:
    framed: Framed


MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("value", [MOMENT, 7, 0.5, True, "text", b"bytes"], ids=stable)
def test_hooks_of_users_may_ask_the_converter(value: Any):
    """
    What they hand on is written and read as a field of its own would be.
    """
    codec = JSONCodec()
    ask, kind = codec.converter, type(value)
    ask.register_unstructure_hook(Framed, lambda framed: {"at": ask.unstructure(framed.at)})
    ask.register_structure_hook(Framed, lambda data, _: Framed(ask.structure(data["at"], kind)))
    hung = Hung(Framed(value))
    name, version, payload = codec.encode(hung)
    assert hung == codec.decode(name, version, payload)


def test_a_misfit_in_a_group_keeps_its_place():
    """
    What cattrs has noted comes before the path within.
    """
    inner = MisfitError("no number", path="['qty']")
    assert inner is told(ExceptionGroup("while structuring", [inner]))
    assert "['qty']" == inner.path
