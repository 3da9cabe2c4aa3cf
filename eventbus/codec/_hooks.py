"""
The hooks of every type the codec knows, and the converter they are looked up in.

Law: a type's two hooks are made together, once, when it is first met; what cannot be
read back has no writing hook either. Hooks of inner types are always looked up in the
converter, so that a user's own hook is found wherever its type turns up; none of those
that cattrs brings along ever is, for they check nothing.
"""

from __future__ import annotations

import typing
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from threading import local
from typing import Any, NoReturn

import cattrs

from eventbus.codec import _collections as collections
from eventbus.codec._constructors import only_stores
from eventbus.codec._misfit import MisfitError, within
from eventbus.codec._objects import object_reader, object_writer
from eventbus.codec._pydantic import is_model, model_hooks
from eventbus.codec._scalars import (
    Reader,
    Writer,
    enum_hooks,
    literal_hooks,
    plain,
    scalar_hooks,
    subclass_hooks,
)
from eventbus.codec._shapes import Field, fields_of, has_fields, is_typed_dict, keys_of
from eventbus.codec._twins import twin_writer
from eventbus.codec._types import (
    UNIONS,
    bare,
    classes_of,
    is_hashable,
    is_text,
    members_of,
    native_of,
    stands_for,
)
from eventbus.codec._unions import Member, optional_hooks, spelled, union_hooks

__all__ = ["GivenHooks", "Hooks"]

Pair = tuple[Writer, Reader]
Maker = Callable[[Any], Pair]
SCALARS = scalar_hooks()
# cattrs dispatches these, and all classes derived from them, before it asks anybody else.
_SETTLED = (str, bytes, int, float, Enum, Path)
# What instances of classes derived from these hold is in no field.
_HOLDERS = {*SCALARS, list, set, frozenset, deque, dict}


class _Later:
    """
    Stands for a hook that is being made: a type may contain itself.
    """

    __slots__ = ("hook",)

    hook: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.hook(*arguments)


class _UnderWay(local):
    """
    What this thread is making hooks of.
    """

    def __init__(self) -> None:
        self.pairs: dict[Any, Pair] = {}


class Hooks:
    """
    Makes and keeps the hooks, and has them registered with a converter of its own.

    Attributes:
        converter: The converter. Hooks registered with it go before the ones made here.
    """

    def __init__(self) -> None:
        self.converter = cattrs.Converter()
        self._made: dict[Any, Pair] = {}
        self._under_way = _UnderWay()
        converter: Any = self.converter
        for kind in _SETTLED:
            converter.register_structure_hook(kind, self._read_settled)
            converter.register_unstructure_hook(kind, self._write_settled)
        # Of users: cattrs keeps what reads a union apart, and looks there after all the rest.
        self._given_unions: dict[Any, Any] = converter._union_struct_registry
        converter.register_unstructure_hook_factory(_every_type, self._own_writer)
        converter.register_structure_hook_factory(self._is_read_here, self._own_reader)

    def forget(self) -> None:
        """
        Make every hook anew when it is next asked for.
        """
        self._made.clear()

    def writer(self, kind: Any) -> Writer:
        """
        Return the hook that writes values of a type.
        """
        if not is_hashable(kind):
            return self._make(kind)[0]
        hook = self.converter.get_unstructure_hook(kind, cache_result=False)
        return self.pair(kind)[0] if hook == self._write_settled else hook

    def reader(self, kind: Any) -> Reader:
        """
        Return the hook that reads values of a type.
        """
        if not is_hashable(kind):
            return self._make(kind)[1]
        hook = self.converter.get_structure_hook(kind, cache_result=False)
        return self.pair(kind)[1] if hook == self._read_settled else hook

    def knows(self, kind: type) -> bool:
        """
        Tell whether instances of exactly *kind* are written and read, fields or none.
        """
        if kind is object or getattr(kind, "__abstractmethods__", None):
            return False
        try:
            self.writer(kind)
            self.reader(kind)
        except Exception:
            return False
        return True

    def pair(self, kind: Any) -> Pair:
        """
        Return our own two hooks of a type, made now if they were not yet.

        Raises:
            MisfitError: No hooks can be made.
        """
        under_way = self._under_way.pairs
        found = self._made.get(kind) or under_way.get(kind)
        if found is not None:
            return found
        is_outermost = not under_way
        write, read = _Later(), _Later()
        under_way[kind] = write, read
        try:
            write.hook, read.hook = under_way[kind] = self._make(kind)
            if is_outermost:
                self._made.update(under_way)
            return under_way[kind]
        finally:
            if is_outermost:
                under_way.clear()

    def _own_writer(self, kind: Any) -> Writer:
        return self.pair(kind)[0]

    def _own_reader(self, kind: Any) -> Reader:
        return self.pair(kind)[1]

    def _make(self, kind: Any) -> Pair:
        maker = self._maker_of(kind)
        if maker is None:
            _unknown(kind)
        return maker(kind)

    def _is_read_here(self, kind: Any) -> bool:
        return not (is_hashable(kind) and kind in self._given_unions)

    def _write_settled(self, value: Any) -> Any:
        return self.pair(type(value))[0](value)

    def _read_settled(self, data: Any, kind: Any) -> Any:
        return self.pair(kind)[1](data, kind)

    def _maker_of(self, kind: Any) -> Maker | None:
        if kind is Any or kind is object:
            return lambda _: (plain, lambda data, _: data)
        if kind is None or (isinstance(kind, type) and kind in SCALARS):
            return lambda kind: SCALARS[kind or type(None)]
        if stands_for(kind) is not kind:
            return self._alias
        origin = typing.get_origin(kind) or kind
        if origin in UNIONS:
            return self._union
        if origin is typing.Literal:
            return lambda kind: literal_hooks(typing.get_args(kind), self.writer)
        if isinstance(kind, type) and issubclass(kind, Enum):  # of a dataclass, perhaps
            return enum_hooks
        if is_model(kind):
            return model_hooks
        if has_fields(kind):
            return self._object
        if is_typed_dict(kind):
            return self._typed_dict
        if origin in collections.ARRAYS:
            return self._array
        if origin in collections.MAPPINGS:
            return self._mapping
        bases: tuple[type, ...] = kind.__mro__ if isinstance(kind, type) else ()
        base = next((base for base in bases if base in SCALARS), None)
        return None if base is None else lambda kind: subclass_hooks(kind, *SCALARS[base])

    # -- the makers --------------------------------------------------------------------------

    def _alias(self, kind: Any) -> Pair:
        inner = stands_for(kind)
        read = self.reader(inner)
        return self.writer(inner), lambda data, _: read(data, inner)

    def _object(self, kind: Any) -> Pair:
        cls = typing.get_origin(kind) or kind
        for base in _HOLDERS.intersection(cls.__mro__):
            raise MisfitError(f"{cls.__name__} is a {base.__name__}: no field keeps what it holds")
        forbids = bool(getattr(self.converter, "forbid_extra_keys", False))
        writers: list[tuple[Field, Writer, bool]] = []
        readers: list[tuple[Field, Reader, bool]] = []
        for field in fields_of(kind):
            try:
                write, read = self.writer(field.type), self.reader(field.type)
            except Exception as error:
                raise within(f".{field.name}", error) from None
            is_type = isinstance(field.type, type)
            built_in = SCALARS.get(field.type, (None, None)) if is_type else (None, None)
            writers.append((field, write, write is built_in[0]))
            readers.append((field, read, read is built_in[1]))
        write = object_writer(cls, writers)
        read = object_reader(cls, readers, forbid_extra_keys=forbids)
        if only_stores(cls):
            return write, read
        return twin_writer(cls, {field.key: field.name for field, *_ in writers}, write, read), read

    def _typed_dict(self, kind: Any) -> Pair:
        forbids = bool(getattr(self.converter, "forbid_extra_keys", False))
        keys: list[collections.Key] = []
        for name, (declared, is_required) in keys_of(kind).items():
            try:
                write, read = self.writer(declared), self.reader(declared)
            except Exception as error:
                raise within(f"[{name!r}]", error) from None
            keys.append(collections.Key(name, declared, is_required, write, read))
        return collections.typed_dict_hooks(spelled(kind), keys, forbid_extra_keys=forbids)

    def _array(self, kind: Any) -> Pair:
        origin = typing.get_origin(kind) or kind
        items = typing.get_args(kind)
        if origin is tuple and kind not in (tuple, typing.Tuple) and items[1:] != (Ellipsis,):  # noqa: UP006
            return collections.row_hooks(
                [(each, self.writer(each), self.reader(each)) for each in items]
            )
        item = items[0] if items else Any
        if origin is deque:
            return collections.deque_hooks(item, self.writer(item), self.reader(item))
        kinds = collections.ARRAYS[origin]
        return collections.array_hooks(kinds, item, self.writer(item), self.reader(item))

    def _mapping(self, kind: Any) -> Pair:
        made = collections.MAPPINGS[typing.get_origin(kind) or kind]
        key, *rest = typing.get_args(kind) or (str, Any)
        item = int if made is Counter else rest[0]
        keys, items = (self.writer(key), self.reader(key)), (self.writer(item), self.reader(item))
        if is_text(key):
            keys = collections.key_hooks(int if bare(key) is int else str, *keys)
            return collections.mapping_hooks(made, (key, item), keys, items)
        row = collections.row_hooks([(key, *keys), (item, *items)])
        return collections.pair_hooks(made, *row)

    def _union(self, kind: Any) -> Pair:
        members = members_of(kind)
        some = [member for member in members if member is not type(None)]
        if len(some) == 1:
            return optional_hooks(some[0], self.writer(some[0]), self.reader(some[0]))
        return union_hooks([self._member(member) for member in members])

    def _member(self, kind: Any) -> Member:
        return Member(kind, classes_of(kind), native_of(kind), self.writer(kind), self.reader(kind))


class GivenHooks:
    """
    The hooks of a user's own converter, as they are.

    Attributes:
        converter: The converter.
    """

    def __init__(self, converter: cattrs.Converter) -> None:
        self.converter = converter

    def forget(self) -> None:
        """
        Keep nothing; the converter forgets by itself.
        """

    def knows(self, _: type) -> bool:
        """
        Say no: a converter of one's own does not tell.
        """
        return False

    def writer(self, kind: Any) -> Writer:
        """
        Return the hook that writes values of a type.
        """
        return self.converter.get_unstructure_hook(kind, cache_result=False)

    def reader(self, kind: Any) -> Reader:
        """
        Return the hook that reads values of a type.
        """
        return self.converter.get_structure_hook(kind, cache_result=False)


def _every_type(_: Any) -> bool:
    return True


def _unknown(kind: Any) -> NoReturn:
    cure = "Declare the class with @event or as a dataclass"
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Mapping):
        cure = "Declare dict[...], and give it dict(value)"
    elif isinstance(origin, type) and issubclass(origin, Iterable):
        cure = "Declare list[...] or tuple[...], and give it the items"
    raise MisfitError(
        f"{spelled(kind)} is a type the codec does not know. {cure}, or register a structure "
        f"and an unstructure hook on codec.converter"
    )
