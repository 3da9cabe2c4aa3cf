"""
Unions: which member a value is of, told without guessing.

Law: what JSON itself tells apart (text, whole numbers, other numbers, booleans, null)
is written as it is; every other member says its name: ``{"Card": {...}}``,
``{"Decimal": "1.50"}``. A declared event goes by its declared name, another class by
its own. No two members of a union may go by one name.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from typing import Any

import attrs

from eventbus._event import declaration_of
from eventbus.codec._misfit import MisfitError, kind_of, type_of
from eventbus.codec._scalars import Reader, Writer

__all__ = ["NATIVE", "Member", "optional_hooks", "spelled", "union_hooks"]

NATIVE = (str, int, float, bool, type(None))


@attrs.frozen
class Member:
    """
    One member of a union.

    Attributes:
        type: What the union declares.
        classes: Of which classes its values are.
        native: Which types of JSON need no name to be told apart.
        write: Its hook.
        read: Its hook.
    """

    type: Any
    classes: tuple[type, ...]
    native: frozenset[type]
    write: Writer
    read: Reader

    @property
    def tag(self) -> str:
        """
        What the member is called.
        """
        return spelled(self.type)


def spelled(kind: Any) -> str:
    """
    Spell a type the same way however it was imported and written.
    """
    if kind is None or kind is type(None):
        return "None"
    if kind is Ellipsis:
        return "..."
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return f"Literal[{', '.join(repr(value) for value in typing.get_args(kind))}]"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(spelled(each) for each in typing.get_args(kind))
    if origin is not None:
        return f"{spelled(origin)}[{', '.join(spelled(each) for each in typing.get_args(kind))}]"
    if isinstance(kind, type):
        return declaration_of(kind).name
    return getattr(kind, "__name__", None) or str(kind)


def optional_hooks(kind: Any, write: Writer, read: Reader) -> tuple[Writer, Reader]:
    """
    Make the hooks of a type or ``None``.
    """

    def write_some(value: Any) -> Any:
        if value is None:
            return None
        data = write(value)
        if data is None:
            raise MisfitError(f"{kind_of(value)} {value!r:.100} would come back as None")
        return data

    def read_some(data: Any, _: Any) -> Any:
        return None if data is None else read(data, kind)

    return write_some, read_some


def union_hooks(members: list[Member]) -> tuple[Writer, Reader]:
    """
    Make the hooks of a union.

    Raises:
        MisfitError: Two members go by one name.
    """
    by_tag = {member.tag: member for member in members}
    title = " | ".join(member.tag for member in members)
    if len(by_tag) != len(members):
        raise MisfitError(f"two members of the union {title} go by one name: rename one of them")
    by_class = _by(members, "classes")
    by_native = _by(members, "native")
    by_native.setdefault(int, by_native.get(float, []))

    def write(value: Any) -> Any:
        kind = type_of(value)
        found = by_class.get(kind)
        if found is None:
            found = [member for member in members if isinstance(value, member.classes)]
        return _first(found, lambda member: _written(member, value), title, value)

    def read(data: Any, _: Any) -> Any:
        kind = type_of(data)
        if kind is dict and len(data) == 1:
            ((tag, inner),) = data.items()
            if tag in by_tag:
                return by_tag[tag].read(inner, by_tag[tag].type)
        found = by_native.get(kind, [])
        return _first(found, lambda member: member.read(data, member.type), title, data)

    return write, read


def _written(member: Member, value: Any) -> Any:
    data = member.write(value)
    return data if type(data) in member.native else {member.tag: data}


def _by(members: list[Member], facet: str) -> dict[type, list[Member]]:
    found: dict[type, list[Member]] = {}
    for member in members:
        for kind in getattr(member, facet):
            found.setdefault(kind, []).append(member)
    return found


def _first(members: list[Member], attempt: Callable[[Member], Any], title: str, value: Any) -> Any:
    """
    Return the first attempt that fits: two members may be lists of different items.
    """
    if not members:
        raise MisfitError(f"expected {title}, not {kind_of(value)}")
    for member in members[:-1]:
        try:
            return attempt(member)
        except (TypeError, ValueError):  # `MisfitError` among them
            continue
    return attempt(members[-1])
