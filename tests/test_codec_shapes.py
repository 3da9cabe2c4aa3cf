"""
Types drawn at random, with values of them and others: all come back, or are refused in time.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, IntFlag, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, TypedDict, TypeVar
from uuid import UUID

import attrs
import hypothesis
import msgspec
import pydantic
from hypothesis import strategies as st

from eventbus import EncodeError, event
from eventbus.codec import JSONCodec

T = TypeVar("T")
Kinds = dict[str, Any]


class Size(Enum):
    SMALL = 1
    LARGE = 2


class Colour(StrEnum):
    RED = "red"
    NONE = ""


class Level(IntEnum):
    LOW = -1
    HIGH = 2**70


class Access(Flag):
    READ = 1
    WRITE = 2


class Mode(IntFlag):
    EXECUTE = 1
    WRITE = 4


class Place(Enum):
    HOME = (0, 0)
    AWAY = None
    NOWHERE = math.nan


class Truth(Enum):
    YES = True
    TWO = 2


class Tax(Decimal, Enum):
    LOW = "0.10"


@dataclasses.dataclass(frozen=True)
class Legs:
    size: str
    count: int


class Creature(Legs, Enum):
    BEETLE = ("small", 6)
    DOG = ("medium", 4)


class Sku(str):
    __slots__ = ()


class Cents(int):
    pass


class Ratio(float):
    pass


class Stamp(datetime):
    pass


class Tags(list[Any]):
    pass


class Box(dict[Any, Any]):
    pass


class Row(NamedTuple):
    a: int
    b: str = "b"


@event(name="shape.card")
class Card:
    number: str


@event
class Pair(Generic[T]):
    one: T
    others: tuple[T, ...] = ()


class Edge(msgspec.Struct, frozen=True, rename="camel"):
    left_edge: int


class Paid(pydantic.BaseModel):
    amount: Decimal
    note: str | None = None


@attrs.frozen
class Shape:
    """
    A type, and what draws its values.
    """

    kind: Any
    values: st.SearchStrategy[Any]
    is_hashable: bool = True


offsets = st.integers(-86_399, 86_399).map(lambda each: timezone(timedelta(seconds=each)))
free = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
literals = st.sampled_from(["a", "", "red", 1, 0, True, False, None, b"x", *Size, *Colour, *Place])
integers = st.integers() | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400])
decimals = st.decimals().filter(lambda each: not each.is_snan())  # has no hash
amounts = st.decimals(allow_nan=False, allow_infinity=False)
names = st.lists(st.text("ab./\\ é", max_size=4), max_size=3)

LEAVES = [
    Shape(str, st.text()),
    Shape(int, integers),
    Shape(bool, st.booleans()),
    Shape(type(None), st.none()),
    Shape(float, st.floats()),
    Shape(Decimal, decimals),
    Shape(datetime, st.datetimes(timezones=st.none() | st.timezones() | offsets)),
    Shape(date, st.dates()),
    Shape(time, st.times(timezones=st.none() | offsets)),
    Shape(timedelta, st.timedeltas()),
    Shape(UUID, st.uuids()),
    Shape(bytes, st.binary()),
    Shape(bytearray, st.binary().map(bytearray), is_hashable=False),
    Shape(Path, names.map(lambda parts: Path(*parts))),
    *(
        Shape(each, st.sampled_from(each))
        for each in (Size, Colour, Level, Place, Truth, Tax, Creature)
    ),
    Shape(Access, st.integers(0, 3).map(Access)),
    Shape(Mode, st.integers(-9, 9).map(Mode)),
    Shape(Sku, st.text().map(Sku)),
    Shape(Cents, integers.map(Cents)),
    Shape(Ratio, st.floats(allow_nan=False).map(Ratio)),
    Shape(Any, free, is_hashable=False),
    Shape(Card, st.builds(Card, st.text())),
    Shape(Row, st.builds(Row, integers, st.text())),
    Shape(Edge, st.builds(Edge, integers)),
    Shape(Paid, st.builds(Paid, amount=amounts), is_hashable=False),
]
items = st.sampled_from([1, "a", None, 1.5, True, Decimal(1), (), Sku("a"), Cents(2), Level.LOW])
odd: list[Any] = [1j, range(3), len, int, iter([]), 10**5000, memoryview(b"x"), Stamp(2026, 1, 2)]
odd += [collections.deque([1], 3), collections.ChainMap({"a": 1}), collections.defaultdict(int)]
odd += [collections.OrderedDict(a=1), collections.Counter("a"), math.nan, Sku("a"), Cents(3)]
KINDS: list[Callable[[Any], Any]] = [list, tuple, set, frozenset, collections.deque, Tags]
KINDS += [dict.fromkeys, lambda given: Box(dict.fromkeys(given, 1))]
# What a field may be given that never heard of its type.
strays = st.one_of(
    *(each.values for each in LEAVES),
    st.text(st.characters(), max_size=3),
    st.sampled_from(odd),
    st.builds(lambda kind, given: kind(given), st.sampled_from(KINDS), st.lists(items, max_size=3)),
)


def arrays(inner: Shape) -> list[Shape]:
    kind, lists = inner.kind, st.lists(inner.values, max_size=3)
    tuples = lists.map(tuple)
    found = [
        Shape(list[kind], lists, is_hashable=False),
        Shape(tuple[kind, ...], tuples, inner.is_hashable),
        Shape(Sequence[kind], lists | tuples, is_hashable=False),
        Shape(collections.deque[kind], lists.map(collections.deque), is_hashable=False),
    ]
    if not inner.is_hashable:
        return found
    frozen, sets = lists.map(frozenset), lists.map(set)
    return [
        *found,
        Shape(frozenset[kind], frozen),
        Shape(set[kind], sets, is_hashable=False),
        Shape(collections.abc.Set[kind], frozen | sets, is_hashable=False),
        Shape(Collection[kind], frozen | sets | lists | tuples, is_hashable=False),
        Shape(Iterable[kind], frozen | lists, is_hashable=False),
    ]


def mappings(key: Shape, item: Shape) -> list[Shape]:
    pairs = st.dictionaries(key.values, item.values, max_size=3)
    counts = st.dictionaries(key.values, st.integers(), max_size=3)
    both = (key.kind, item.kind)
    found: list[tuple[Any, Any]] = [
        (dict[both], pairs),  # type: ignore[misc]
        (Mapping[both], pairs),  # type: ignore[misc]
        (collections.OrderedDict[both], pairs.map(collections.OrderedDict)),  # type: ignore[misc]
        (MappingProxyType[both], pairs.map(MappingProxyType)),  # type: ignore[misc]
        (collections.Counter[key.kind], counts.map(collections.Counter)),  # type: ignore[name-defined]
    ]
    return [Shape(kind, values, is_hashable=False) for kind, values in found]


def bare(name: str, kinds: Kinds, **body: Any) -> type:
    return type(name, (), {"__annotations__": kinds, **body})


def converting(name: str, kinds: Kinds) -> type:
    fields = {each: attrs.field(converter=lambda value: value) for each in kinds}
    return attrs.frozen(bare(name, kinds, **fields))


MAKERS: dict[str, Callable[[str, Kinds], Any]] = {
    "event": lambda name, kinds: event(bare(name, kinds)),
    "attrs": lambda name, kinds: attrs.frozen(bare(name, kinds), kw_only=True, slots=False),
    "converting": converting,
    "dataclass": lambda name, kinds: dataclasses.dataclass(bare(name, kinds), unsafe_hash=True),
    "slotted": lambda name, kinds: dataclasses.make_dataclass(
        name, kinds.items(), frozen=True, slots=True
    ),
    "tuple": lambda name, kinds: NamedTuple(name, kinds.items()),  # type: ignore[misc]
    "struct": lambda name, kinds: msgspec.defstruct(
        name, kinds.items(), frozen=True, rename="upper"
    ),
    "dict": TypedDict,
}


def classes(fields: list[Shape], name: str, maker: str) -> Shape:
    kinds = {f"f{n}": each.kind for n, each in enumerate(fields)}
    values = st.fixed_dictionaries({f"f{n}": each.values for n, each in enumerate(fields)})
    cls = MAKERS[maker](name, kinds)
    is_hashable = maker != "dict" and all(each.is_hashable for each in fields)
    return Shape(cls, values.map(lambda given: cls(**given)), is_hashable)


def around(one: Shape) -> list[Shape]:
    kind, values = one.kind, one.values
    pairs = st.builds(Pair, values, st.lists(values, max_size=2).map(tuple))
    return [
        Shape(NewType("Named", kind), values, one.is_hashable),
        Shape(Annotated[kind, "note"], values, one.is_hashable),
        Shape(Pair[kind], pairs, one.is_hashable),
        Shape(kind | None if isinstance(kind, type) else kind, values, one.is_hashable),
    ]


@st.composite
def shapes(draw: Any, *, has_strays: bool, depth: int = 3) -> Shape:
    """
    Draw a type, down to *depth* types within types; its values may have strays in them.
    """
    step = draw(st.integers(0, 7)) if depth else 0
    inner = shapes(has_strays=has_strays, depth=depth - 1)
    if step == 0:
        leaf = draw(st.sampled_from(LEAVES))
        return attrs.evolve(leaf, values=leaf.values | strays) if has_strays else leaf
    if step == 1:
        return draw(st.sampled_from(arrays(draw(inner))))
    if step == 2:
        key = draw(inner.filter(lambda each: each.is_hashable))
        return draw(st.sampled_from(mappings(key, draw(inner))))
    if step == 3:
        values = draw(st.lists(literals, min_size=1, max_size=4))
        return Shape(Literal[tuple(values)], st.sampled_from(values))  # type: ignore[valid-type]
    if step == 4:
        return draw(st.sampled_from(around(draw(inner))))
    members: list[Shape] = draw(st.lists(inner, min_size=1, max_size=3))
    kinds, are_hashable = tuple(each.kind for each in members), all(e.is_hashable for e in members)
    if step == 5:
        values = st.one_of([each.values for each in members])
        return Shape(typing.Union[kinds], values, are_hashable)  # noqa: UP007
    if step == 6:
        return Shape(tuple[kinds], st.tuples(*(each.values for each in members)), are_hashable)
    name, maker = draw(st.sampled_from("AB")), draw(st.sampled_from(sorted(MAKERS)))
    return classes(members, name, maker)


def same(left: Any, right: Any) -> bool:
    """
    Tell whether *right* is *left* as it was declared, down to what they hold; nan is nan.
    """
    if not isinstance(left, type(right)) and (type(left), type(right)) != (int, float):
        return False
    if isinstance(left, float | Decimal | datetime):
        return left == right or str(left) == str(right)
    if isinstance(left, list | collections.deque | collections.OrderedDict):
        return len(left) == len(right) and all(map(same, listed(left), listed(right)))
    if isinstance(left, dict | set | frozenset | MappingProxyType):
        rest = listed(right)
        for each in listed(left):
            rest.remove(next((other for other in rest if same(each, other)), each))
        return not rest
    if isinstance(left, tuple) and not hasattr(left, "_fields"):
        return len(left) == len(right) and all(map(same, left, right))
    for fields in ("__attrs_attrs__", "__dataclass_fields__", "__struct_fields__", "_fields"):
        names = [getattr(each, "name", each) for each in getattr(type(left), fields, ())]
        if names:
            return all(same(getattr(left, name), getattr(right, name)) for name in names)
    return left is right or bool(left == right)


def listed(value: Any) -> list[Any]:
    return list(value.items() if hasattr(value, "items") else value)


# A type is drawn first, and then its values: on a busy machine that takes its time.
SLOW = [hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large]


def outcome(happened: Any) -> str:
    """
    Write an event with each library, and read it with each; or have both refuse it.
    """
    codecs = [JSONCodec(), JSONCodec(json="msgspec")]
    payloads: list[bytes] = []
    refused: list[EncodeError] = []
    for codec in codecs:
        try:
            payloads.append(codec.encode(happened).payload)
        except EncodeError as error:
            refused.append(error)
    assert not (payloads and refused)
    assert all(error.path.startswith(".value") for error in refused)
    for codec, payload in itertools.product(codecs, payloads):
        codec.know(type(happened))
        found = codec.decode("Held", 1, payload)
        assert same(happened.value, found.value), (happened, found, payload)
    return str(refused[0]) if refused else ""


@hypothesis.settings(max_examples=60, suppress_health_check=SLOW)
@hypothesis.given(st.data())
def test_whatever_a_type_declares_is_written_and_read_back(data: Any):
    """
    Values of any type that is known are stored, and come back equal from either library.
    """
    shape = data.draw(shapes(has_strays=False))
    refused = outcome(event(bare("Held", {"value": shape.kind}))(data.draw(shape.values)))
    # Which a declaration is refused for, whatever the value.
    assert not refused or "go by one name" in refused or "are written alike" in refused


@hypothesis.settings(max_examples=60, suppress_health_check=SLOW)
@hypothesis.given(st.data())
def test_whatever_strays_into_a_field_is_refused_or_comes_back(data: Any):
    """
    No value is stored that could not be read, or would be read as another one.
    """
    shape = data.draw(shapes(has_strays=True))
    try:
        value = data.draw(shape.values)
    except (TypeError, ValueError):  # a stray without a hash, or one that its class refuses
        hypothesis.reject()
    outcome(event(bare("Held", {"value": shape.kind}))(value))
