"""
What the constructor of a class with fields does besides storing them.

Law: the class alone is asked, and none of its code is run. Where the answer is not
certain, the constructor does more.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import getattr_static
from types import MemberDescriptorType
from typing import Any

import attrs

from eventbus.codec._misfit import type_of

__all__ = ["Setter", "only_stores", "setters_of"]

Setter = Callable[[Any, Any], None]
# What attrs has a constructor do, or leave to another, besides storing the fields.
_BESIDES = ("__attrs_init__", "__attrs_pre_init__", "__attrs_post_init__")


def only_stores(cls: Any) -> bool:
    """
    Tell whether the constructor stores what it is given, and nothing else.

    What it makes of the fields of an instance is then an equal instance. Otherwise a
    converter, a validator or the class's own code may make another one of them.
    """
    if hasattr(cls, "__struct_fields__"):
        return not hasattr(cls, "__post_init__")  # and an own `__init__` it cannot have
    if type(cls).__call__ is not type.__call__:
        return False
    if hasattr(cls, "_fields") and cls.__init__ is object.__init__:
        # A named tuple's `__new__` is a function without a name.
        return _code_of(cls.__new__, "co_name") == "<lambda>"
    if cls.__new__ is not object.__new__:
        return False
    return _attrs_only_stores(cls) or _dataclass_only_stores(cls)


def setters_of(cls: Any) -> dict[str, Setter] | None:
    """
    Return what stores each field, by its name, if the constructor does nothing else.

    That is so for slotted attrs classes, ``@event`` among them, without validators,
    converters or code of their own. A frozen one's constructor stores by name what these
    store by place, which takes two thirds of the time.
    """
    is_attrs = "__attrs_attrs__" in vars(cls) and not hasattr(cls, "_attrs_cached_hash")
    if not (is_attrs and only_stores(cls)):
        return None
    places: dict[str, Any] = {
        field.name: getattr(cls, field.name, None) for field in attrs.fields(cls) if field.init
    }
    is_whole = len(places) == len(attrs.fields(cls))
    if is_whole and all(type(each) is MemberDescriptorType for each in places.values()):
        return {name: place.__set__ for name, place in places.items()}
    return None


def _attrs_only_stores(cls: Any) -> bool:
    return (
        "__attrs_attrs__" in vars(cls)
        and _code_of(cls.__init__, "co_filename").startswith("<attrs generated")
        and not any(hasattr(cls, name) for name in _BESIDES)
        and all(field.validator is None and field.converter is None for field in attrs.fields(cls))
        # A frozen class has attrs' own, which its constructor goes round.
        and (_has_no_setattr(cls) or cls.__setattr__.__module__ == "attr._make")
    )


def _dataclass_only_stores(cls: Any) -> bool:
    return (
        "__dataclass_params__" in vars(cls)
        and _code_of(cls.__init__, "co_qualname").startswith("__create_fn__")
        and not hasattr(cls, "__post_init__")
        and (cls.__dataclass_params__.frozen or _has_no_setattr(cls))
        and not any(_is_descriptor(cls, name) for name in cls.__dataclass_fields__)
    )


def _has_no_setattr(cls: Any) -> bool:
    return bool(cls.__setattr__ is object.__setattr__)


def _is_descriptor(cls: Any, name: str) -> bool:
    place = type_of(getattr_static(cls, name, None))
    return hasattr(place, "__set__") and place is not MemberDescriptorType


def _code_of(function: Any, fact: str) -> str:
    return str(getattr(getattr(function, "__code__", None), fact, ""))
