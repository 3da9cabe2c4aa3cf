"""
What a declared type says about its values, before any of them is seen.

Law: questions about types, and nothing else: no hook is made here, and no value looked at.
"""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any, TypeVar

from eventbus.codec._collections import ARRAYS, MAPPINGS
from eventbus.codec._misfit import type_of
from eventbus.codec._scalars import TEXTS, enum_hooks
from eventbus.codec._shapes import is_qualifier, is_typed_dict
from eventbus.codec._unions import NATIVE

__all__ = [
    "UNIONS",
    "bare",
    "classes_of",
    "is_hashable",
    "is_text",
    "members_of",
    "native_of",
    "stands_for",
]

UNIONS = (typing.Union, types.UnionType)


def is_hashable(kind: Any) -> bool:
    """
    Tell whether a type can be looked up; one annotated with a list cannot.
    """
    try:
        hash(kind)
    except TypeError:
        return False
    return True


def stands_for(kind: Any) -> Any:
    """
    Return what an alias, a new type, a variable or an annotated type comes down to.
    """
    if isinstance(kind, TypeVar):
        bounds = kind.__constraints__ or (kind.__bound__ or Any,)
        return typing.Union[bounds]  # noqa: UP007 - the members are not known here
    if isinstance(kind, typing.NewType):
        return kind.__supertype__
    origin = typing.get_origin(kind)
    if is_qualifier(origin):
        return typing.get_args(kind)[0]
    if hasattr(origin or kind, "__value__") and not isinstance(kind, type):  # type X = ...
        value = (origin or kind).__value__
        return value[typing.get_args(kind)] if origin else value
    return kind


def members_of(kind: Any) -> tuple[Any, ...]:
    """
    Return the members of a union, those of unions within it included.
    """
    inner = bare(kind)
    if typing.get_origin(inner) not in UNIONS:
        return (kind,)
    return tuple(each for member in typing.get_args(inner) for each in members_of(member))


def is_text(key: Any) -> bool:
    """
    Tell whether keys of a type are written as text, as the keys of JSON objects are.
    """
    key = bare(key)
    if typing.get_origin(key) is typing.Literal:
        return all(type(value) is str for value in typing.get_args(key))
    if not isinstance(key, type):
        return False
    if issubclass(key, Enum):
        return all(type(enum_hooks(key)[0](member)) is str for member in key)
    return key is int or issubclass(key, (str, *TEXTS))


def classes_of(kind: Any) -> tuple[type, ...]:
    """
    Return the classes that the values of a union's member can be of.
    """
    kind = bare(kind)
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        values: tuple[Any, ...] = typing.get_args(kind)
        return tuple(dict.fromkeys(map(type, values)))
    if origin in ARRAYS:
        return ARRAYS[origin]
    if origin in MAPPINGS:
        return (MAPPINGS[origin],)
    if origin is Any:
        return (object,)
    if is_typed_dict(kind):
        return (dict,)
    return (origin,) if isinstance(origin, type) else (object,)


def native_of(kind: Any) -> frozenset[type]:
    """
    Return the types of JSON that tell a union's member from every other.
    """
    kind = bare(kind)
    if typing.get_origin(kind) is typing.Literal:
        found: set[type] = {type_of(value) for value in typing.get_args(kind)}
        return frozenset(found) if found <= set(NATIVE) else frozenset()
    return frozenset((kind,)) if kind in NATIVE else frozenset()


def bare(kind: Any) -> Any:
    """
    Return what a type comes down to in the end.
    """
    inner = stands_for(kind)
    return kind if inner is kind else bare(inner)
