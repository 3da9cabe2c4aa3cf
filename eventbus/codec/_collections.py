"""
Collections: arrays, sets and mappings, of whatever their items are.

Law: a collection comes back as the kind its field declares, and one of a subclass is
written only if that is equal to it. Where the field declares an abstract kind, the
first kind of the table is an array and any other says its name: ``{"list": [...]}``.
What can be a key of a JSON object is one, and what cannot makes the mapping an array
of pairs.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, abc, deque
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import attrs

from eventbus.codec._misfit import MisfitError, kind_of, type_of, within
from eventbus.codec._scalars import Reader, Writer

__all__ = [
    "ARRAYS",
    "MAPPINGS",
    "Key",
    "array_hooks",
    "deque_hooks",
    "key_hooks",
    "mapping_hooks",
    "pair_hooks",
    "row_hooks",
    "typed_dict_hooks",
]

# What a field may declare, and which kinds it may then hold.
ARRAYS: dict[Any, tuple[type, ...]] = {
    list: (list,),
    tuple: (tuple,),
    set: (set,),
    frozenset: (frozenset,),
    deque: (deque,),
    abc.Sequence: (tuple, list),
    abc.Collection: (tuple, list, frozenset, set),
    abc.Iterable: (tuple, list, frozenset, set),
    abc.MutableSequence: (list,),
    abc.Set: (frozenset, set),
    abc.MutableSet: (set,),
}
MAPPINGS: dict[Any, type] = {
    dict: dict,
    OrderedDict: OrderedDict,
    Counter: Counter,
    MappingProxyType: MappingProxyType,
    abc.Mapping: dict,
    abc.MutableMapping: dict,
}


def array_hooks(
    kinds: tuple[type, ...], item: Any, write_item: Writer, read_item: Reader
) -> tuple[Writer, Reader]:
    """
    Make the hooks of an array whose items are all of one type.
    """
    bare = kinds[0]
    by_name = {kind.__name__: kind for kind in kinds[1:]}

    def write(value: Any) -> Any:
        kind = _kind_among(kinds, value)
        items: list[Any] = []
        try:
            for each in value:
                items.append(write_item(each))
        except Exception as error:
            raise within(f"[{len(items)}]", error) from None
        return items if kind is bare else {kind.__name__: items}

    def read(data: Any, _: Any) -> Any:
        kind, found = bare, type_of(data)
        if found is dict and len(data) == 1 and by_name.keys() >= data.keys():
            ((name, data),) = data.items()
            kind = by_name[name]
        return kind(_read_items(data, item, read_item))

    return write, read


def deque_hooks(item: Any, write_item: Writer, read_item: Reader) -> tuple[Writer, Reader]:
    """
    Make the hooks of a `collections.deque`, which is an array as long as nothing bounds it.
    """
    write_items, read = array_hooks((deque,), item, write_item, read_item)

    def write(value: Any) -> Any:
        if isinstance(value, deque) and value.maxlen is not None:
            raise MisfitError(
                "a deque with a maxlen would come back without it. Declare a list or a tuple, "
                "and give it what the deque holds"
            )
        return write_items(value)

    return write, read


def row_hooks(items: list[tuple[Any, Writer, Reader]]) -> tuple[Writer, Reader]:
    """
    Make the hooks of a tuple that declares a type for each of its places.
    """

    def check(value: Any, kind: type) -> None:
        if type(value) is not kind:
            _kind_among((kind,), value)
        if len(value) != len(items):
            raise MisfitError(f"expected {len(items)} items, not {len(value)}")

    def write(value: Any) -> Any:
        check(value, tuple)
        row: list[Any] = []
        try:
            for each, (_, write_item, _) in zip(value, items, strict=True):
                row.append(write_item(each))
        except Exception as error:
            raise within(f"[{len(row)}]", error) from None
        return row

    def read(data: Any, _: Any) -> Any:
        check(data, list)
        row: list[Any] = []
        try:
            for each, (kind, _, read_item) in zip(data, items, strict=True):
                row.append(read_item(each, kind))
        except Exception as error:
            raise within(f"[{len(row)}]", error) from None
        return tuple(row)

    return write, read


def key_hooks(kind: type, write: Writer, read: Reader) -> tuple[Writer, Reader]:
    """
    Make the hooks of keys that are text, or whole numbers, which JSON has as text there.
    """

    def write_key(value: Any) -> Any:
        data = write(value)
        if type(data) is not kind:
            raise MisfitError(f"a key is text in JSON, and its hook writes {kind_of(data)}")
        return str(data)

    def read_key(text: str, declared: Any) -> Any:
        return read(int(text), declared)

    return write_key, read if kind is str else read_key


def mapping_hooks(
    kind: type,
    types: tuple[Any, Any],
    keys: tuple[Writer, Reader],
    items: tuple[Writer, Reader],
) -> tuple[Writer, Reader]:
    """
    Make the hooks of a mapping whose keys are written as text: a JSON object.
    """
    (key_type, item_type), (write_key, read_key), (write_item, read_item) = types, keys, items

    def write(value: Any) -> Any:
        _kind_among((kind,), value)
        data: dict[str, Any] = {}
        key: Any = None
        try:
            for key, each in value.items():
                data[write_key(key)] = write_item(each)
        except Exception as error:
            raise within(f"[{key!r:.100}]", error) from None
        if len(data) != len(value):
            raise MisfitError("two of its keys are written alike")
        return data

    def read(data: Any, _: Any) -> Any:
        if type_of(data) is not dict:
            raise MisfitError(f"expected an object, not {kind_of(data)}")
        found: dict[Any, Any] = {}
        key = ""
        try:
            for key, each in data.items():
                found[read_key(key, key_type)] = read_item(each, item_type)
        except Exception as error:
            raise within(f"[{key!r:.100}]", error) from None
        return found if kind is dict else _made(kind, found)

    return write, read


def pair_hooks(kind: type, write_pair: Writer, read_pair: Reader) -> tuple[Writer, Reader]:
    """
    Make the hooks of a mapping whose keys are no text: an array of pairs.
    """

    def write(value: Any) -> Any:
        _kind_among((kind,), value)
        pairs: list[Any] = []
        try:
            for pair in value.items():
                pairs.append(write_pair(pair))
        except Exception as error:
            raise within(f"[{len(pairs)}]", error) from None
        return pairs

    def read(data: Any, _: Any) -> Any:
        return _made(kind, dict(_read_items(data, None, read_pair)))

    return write, read


@attrs.frozen
class Key:
    """
    One key of a `TypedDict`.

    Attributes:
        name: The key.
        type: Its declared type.
        is_required: It has to be there.
        write: The hook that writes its value.
        read: The hook that reads it.
    """

    name: str
    type: Any
    is_required: bool
    write: Writer
    read: Reader


def typed_dict_hooks(
    title: str, keys: list[Key], *, forbid_extra_keys: bool
) -> tuple[Writer, Reader]:
    """
    Make the hooks of a `TypedDict`: a dict of exactly the keys that it declares.

    A key that is read and not declared is passed over, as a field is: it was written
    by a newer program; *forbid_extra_keys* refuses it.
    """
    known = {key.name for key in keys}

    def each_of(value: dict[str, Any], do: Callable[[Key, Any], Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key in keys:
            try:
                if key.name in value:
                    made[key.name] = do(key, value[key.name])
                elif key.is_required:
                    raise MisfitError("is missing")
            except Exception as error:
                raise within(f"[{key.name!r}]", error) from None
        return made

    def refuse_others(value: dict[str, Any]) -> None:
        for name in value:
            if name not in known:
                raise MisfitError(f"{title} has no key {name!r:.100}")

    def write(value: Any) -> Any:
        _kind_among((dict,), value)
        refuse_others(value)
        return each_of(value, lambda key, item: key.write(item))

    def read(data: Any, _: Any) -> Any:
        if type_of(data) is not dict:
            raise MisfitError(f"expected an object, not {kind_of(data)}")
        if forbid_extra_keys:
            refuse_others(data)
        return each_of(data, lambda key, item: key.read(item, key.type))

    return write, read


def _read_items(data: Any, item: Any, read_item: Reader) -> list[Any]:
    if type_of(data) is not list:
        raise MisfitError(f"expected an array, not {kind_of(data)}")
    items: list[Any] = []
    try:
        for each in data:
            items.append(read_item(each, item))
    except Exception as error:
        raise within(f"[{len(items)}]", error) from None
    return items


def _kind_among(kinds: tuple[type, ...], value: Any) -> type:
    own: type = type_of(value)
    if own in kinds:
        return own
    for kind in kinds:
        if isinstance(value, kind):
            if kind(value) == value:
                return kind
            raise MisfitError(f"{kind_of(value)} would come back as another {kind.__name__}")
    options = " or ".join(kind.__name__ for kind in kinds)
    raise MisfitError(f"expected {options}, not {kind_of(value)}")


def _made(kind: type, found: dict[Any, Any]) -> Any:
    return found if kind is dict else kind(found)
