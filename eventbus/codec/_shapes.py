"""
Classes with fields: what fields they have, and how an instance is made of them.

Law: each kind of class is asked for its fields in one function, and then they are all
alike, but that the constructor may not take one. Types are resolved here; no value is
looked at.

Kinds: attrs classes (``@event`` among them), dataclasses, msgspec structs, named
tuples; and `TypedDict`, whose keys are asked for. None of their libraries is imported
but for a class that has already needed it.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import attrs

from eventbus.codec._misfit import MisfitError

__all__ = [
    "ABSENT",
    "MADE",
    "Field",
    "fields_of",
    "has_fields",
    "is_qualifier",
    "is_typed_dict",
    "keys_of",
]

# What may stand around a declared type.
_QUALIFIERS = (typing.Annotated, typing.Final, typing.Required, typing.NotRequired)
ABSENT: Any = object()
MADE: Any = object()


@attrs.frozen
class Field:
    """
    One field of a class.

    Attributes:
        name: The attribute that holds it.
        key: What it is called in JSON.
        keyword: What the constructor calls it.
        type: Its declared type, resolved; `typing.Any` where none is declared.
        default: What the constructor takes where it is given nothing: a value, `ABSENT`
            where there is none, or `MADE` where a factory makes it.
        positional: The constructor takes it by its place.
        is_taken: The constructor takes it at all. What it does not take is set afterwards.
    """

    name: str
    key: str
    keyword: str
    type: Any
    default: Any
    positional: bool = False
    is_taken: bool = True


def has_fields(kind: Any) -> bool:
    """
    Tell whether *kind* is a class whose fields are known here, or a generic alias of one.
    """
    cls: Any = typing.get_origin(kind) or kind
    return isinstance(cls, type) and _source_of(cls) is not None


def fields_of(kind: Any) -> tuple[Field, ...]:
    """
    Return the fields of a class, with the types its type arguments give them.

    Raises:
        MisfitError: An annotation cannot be resolved, or the constructor wants what no
            field holds.
    """
    cls = typing.get_origin(kind) or kind
    source = _source_of(cls)
    assert source is not None
    given = _arguments_of(kind)
    return tuple(
        attrs.evolve(field, type=_substituted(field.type, given))
        for field in source(cls, _types_of(cls))
    )


def keys_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """
    Return the keys of a `TypedDict`: the type of each, and whether it has to be there.

    Raises:
        MisfitError: An annotation cannot be resolved.
    """
    cls = typing.get_origin(kind) or kind
    given = _arguments_of(kind)
    # Where annotations are text, `__required_keys__` knows of `total=` alone.
    return {
        key: (_substituted(declared, given), _is_required(declared, key in cls.__required_keys__))
        for key, declared in _types_of(cls).items()
    }


def is_typed_dict(kind: Any) -> bool:
    """
    Tell whether *kind* is a `TypedDict`, or a generic alias of one.
    """
    cls: Any = typing.get_origin(kind) or kind
    return isinstance(cls, type) and hasattr(cls, "__required_keys__") and issubclass(cls, dict)


# -- the kinds -------------------------------------------------------------------------------

Source = Callable[[Any, dict[str, Any]], Iterator[Field]]


def _source_of(cls: Any) -> Source | None:
    if "__attrs_attrs__" in vars(cls) or attrs.has(cls):
        return _attrs_fields
    if dataclasses.is_dataclass(cls):
        return _dataclass_fields
    if hasattr(cls, "__struct_fields__"):
        return _struct_fields
    if hasattr(cls, "_fields") and issubclass(cls, tuple):
        return _tuple_fields
    return None


# To a type checker, `attrs.Factory` is a function that returns a default.
_FACTORY: Any = attrs.Factory


def _attrs_fields(cls: Any, types: dict[str, Any]) -> Iterator[Field]:
    has_own_init = hasattr(cls, "__attrs_init__") or "__attrs_attrs__" not in vars(cls)
    for field in attrs.fields(cls):
        kind = types.get(field.name, field.type or Any)
        if not field.init:
            yield Field(field.name, field.name, "", kind, MADE, is_taken=False)
            continue
        is_made = isinstance(field.default, _FACTORY)
        default = MADE if is_made else _given(field.default, attrs.NOTHING)
        positional = not (has_own_init or field.kw_only)
        yield Field(field.name, field.name, field.alias, kind, default, positional)


def _dataclass_fields(cls: Any, types: dict[str, Any]) -> Iterator[Field]:
    for name, kind in types.items():
        if isinstance(kind, dataclasses.InitVar) and not hasattr(cls, name):
            raise MisfitError(
                f"{cls.__name__}.{name} is an InitVar: no field keeps what it was given"
            )
    for field in dataclasses.fields(cls):
        kind = types[field.name]
        if not field.init:
            yield Field(field.name, field.name, "", kind, MADE, is_taken=False)
            continue
        is_made = field.default_factory is not dataclasses.MISSING or (
            # pydantic's dataclasses have what describes the field as its default
            type(field.default).__name__ == "FieldInfo"
        )
        default = MADE if is_made else _given(field.default, dataclasses.MISSING)
        positional = cls.__dataclass_params__.init and not field.kw_only
        yield Field(field.name, field.name, field.name, kind, default, positional)


def _struct_fields(cls: Any, types: dict[str, Any]) -> Iterator[Field]:
    import msgspec

    for field in msgspec.structs.fields(cls):
        is_made = field.default_factory is not msgspec.NODEFAULT
        default = MADE if is_made else _given(field.default, msgspec.NODEFAULT)
        yield Field(field.name, field.encode_name, field.name, types[field.name], default)


def _tuple_fields(cls: Any, types: dict[str, Any]) -> Iterator[Field]:
    for name in cls._fields:
        default = cls._field_defaults.get(name, ABSENT)
        yield Field(name, name, name, types.get(name, Any), default, positional=True)


def _given(default: Any, nothing: Any) -> Any:
    return ABSENT if default is nothing else default


# -- their types -----------------------------------------------------------------------------


def _types_of(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls, include_extras=True)
    except NameError:
        pass
    try:  # a class in a function may name itself
        return typing.get_type_hints(cls, localns={cls.__name__: cls}, include_extras=True)
    except NameError as error:
        resolved = _resolved_before(cls)
        if resolved is not None:
            return resolved
        raise MisfitError(
            f"{cls.__name__} has an annotation that cannot be resolved: {error}. Define "
            f"what it names at the top of its module",
            cause=error,
        ) from error


def _resolved_before(cls: Any) -> dict[str, Any] | None:
    # `attrs.resolve_types` may have been called with the names of a function.
    if not attrs.has(cls):
        return None
    types: dict[str, Any] = {field.name: field.type or Any for field in attrs.fields(cls)}
    return None if any(isinstance(kind, str) for kind in types.values()) else types


def is_qualifier(origin: Any) -> bool:
    """
    Tell whether *origin* qualifies a type, and is none: ``Final``, ``NotRequired``.
    """
    # `ReadOnly` has several homes, by the version of Python.
    return origin in _QUALIFIERS or getattr(origin, "_name", None) == "ReadOnly"


def _is_required(declared: Any, by_total: bool) -> bool:
    while is_qualifier(origin := typing.get_origin(declared)):
        if origin in (typing.Required, typing.NotRequired):
            return origin is typing.Required
        declared = typing.get_args(declared)[0]
    return by_total


def _arguments_of(kind: Any) -> dict[Any, Any]:
    """
    Map the type variables of a class and its bases to what stands for them.
    """
    origin = typing.get_origin(kind)
    cls = origin or kind
    parameters = getattr(cls, "__parameters__", ())
    given = dict(zip(parameters, typing.get_args(kind), strict=False)) if origin else {}
    for base in getattr(cls, "__orig_bases__", ()):
        if has_fields(base) or is_typed_dict(base):
            given = {**_arguments_of(_substituted(base, given)), **given}
    return given


def _substituted(kind: Any, given: dict[Any, Any]) -> Any:
    if isinstance(kind, TypeVar):
        return given.get(kind, kind)
    parameters = getattr(kind, "__parameters__", ())
    if not parameters or isinstance(kind, type) or not given:
        return kind
    return kind[tuple(given.get(each, each) for each in parameters)]
