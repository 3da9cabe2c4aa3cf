"""
What an event's fields are called and hold, whatever kind of class declares it.

Law: only reads. The kinds are a table, so that none of their libraries is imported:
a class of a kind brings its mark along. Printing a value never raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Any, cast

from eventbus._receipt import Receipt

__all__ = ["check_names", "keywords", "name_of_type", "same", "shown", "values_of"]

# Characters of one printed value; beyond them the middle is left out. Enough for a dozen
# fields, and two of them still fit on a screen.
LIMIT = 300

# The attribute by which a class shows its kind, and how the fields are read from it.
_KINDS: dict[str, Callable[[Any], Iterable[str]]] = {
    "__attrs_attrs__": lambda fields: (field.name for field in fields),
    "__dataclass_fields__": tuple,
    "model_fields": tuple,  # pydantic
    "__struct_fields__": tuple,  # msgspec
    "_fields": tuple,  # named tuples
}


def declared_names(event_type: type) -> tuple[str, ...] | None:
    """
    Return the fields a class declares; ``None`` where only its instances know them.
    """
    for mark, read in _KINDS.items():
        fields = getattr(event_type, mark, None)
        if fields is not None:
            return tuple(read(fields))
    return None


def values_of(event: object) -> dict[str, Any]:
    """
    Return the fields of one event with their values.
    """
    names = declared_names(type(event))
    if names is None:
        names = (*_slots(type(event)), *getattr(event, "__dict__", ()))
    return {name: getattr(event, name) for name in names if hasattr(event, name)}


def _slots(event_type: type) -> list[str]:
    found: list[str] = []
    for cls in event_type.__mro__:
        slots = cls.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else slots
    return [name for name in found if not name.startswith("__")]


def check_names(
    names: Iterable[str], event_types: Iterable[type], recorded: Iterable[object]
) -> None:
    """
    Refuse names that no event of *event_types* can have.

    A class that declares no fields has those of the events recorded; without one of
    exactly that class there is no telling, and every name passes.

    Raises:
        TypeError: A comparison would fail, or hold, for the wrong reason.
    """
    known = dict[str, None]()
    computed = set[str]()
    for event_type in event_types:
        declared = declared_names(event_type)
        if declared is None:
            examples = [each for each in recorded if type(each) is event_type]
            if not examples:
                return
            declared = tuple(name for each in examples for name in values_of(each))
        known.update(dict.fromkeys(declared))
        computed.update(_properties(event_type))
    for name in names:
        if name not in known and name not in computed:
            kind = " | ".join(map(name_of_type, event_types))
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            has = f"it has {', '.join(known)}" if known else "it has none at all"
            raise TypeError(f"{kind} has no field {name!r}; {has}.{hint}")


def _properties(event_type: type) -> Iterable[str]:
    for name in dir(event_type):
        if isinstance(getattr(event_type, name, None), property | cached_property):
            yield name


def same(one: object, other: object) -> bool:
    """
    Compare two values; those whose class compares by identity, field by field.

    Receipts are the same if their events are: each publish has one of its own.
    """
    if one is other or _equal(one, other):
        return True
    if isinstance(one, Receipt) and isinstance(other, Receipt):
        return same(one.event, other.event)
    several, others = _items(one), _items(other)
    if several is not None and others is not None:
        return len(several) == len(others) and all(map(same, several, others))
    if type(one) is not type(other) or type(one).__eq__ is not object.__eq__:
        return False
    mine, theirs = values_of(one), values_of(other)
    if not mine:
        return False
    return mine.keys() == theirs.keys() and all(same(mine[name], theirs[name]) for name in mine)


def _items(value: object) -> Sequence[object] | None:
    return cast("Sequence[object]", value) if isinstance(value, list | tuple) else None


def _equal(one: object, other: object) -> bool:
    try:
        return bool(one == other)
    except Exception:  # an array, say, whose comparison is an array
        return shown(one) == shown(other)


def shown(value: object) -> str:
    """
    Print a value in one line, at most `LIMIT` characters, whatever its ``repr`` does.
    """
    try:
        if type(value).__repr__ is object.__repr__ and (values := values_of(value)):
            text = f"{name_of_type(type(value))}({keywords(values)})"
        else:
            text = " ".join(repr(value).split("\n"))
    except Exception as error:
        text = f"<{name_of_type(type(value))}: its repr raised {type(error).__name__}>"
    return text if len(text) <= LIMIT else f"{text[: LIMIT // 2]} … {text[-LIMIT // 2 :]}"


def name_of_type(cls: type) -> str:
    """
    Return what a class is called, without the function it was declared in.
    """
    return cls.__qualname__.rpartition("<locals>.")[2]


def keywords(values: Mapping[str, object]) -> str:
    """
    Print values as the keywords of a call: ``order_id='A-1', total=42``.
    """
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())
