"""
What declaring an event means: a frozen class with a stable name and a version.

Law: nothing here knows a bus, a handler or a store. Instances of a class that was
never declared are events all the same; `declaration_of` says what they are called.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from enum import Enum
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload

import attrs

from eventbus.errors import DeclarationError, NotAnEventError

__all__ = ["Declaration", "declaration_of", "declared_as", "event", "refuse_no_event", "text_of"]

T = TypeVar("T")

_SLOT = "__eventbus_declaration__"
# What stands for a class where one is written.
_LIKE_CLASSES = (
    type,
    types.GenericAlias,
    types.UnionType,
    type(typing.List[int]),  # noqa: UP006 - its class has no public name
)


# What holds several events and is none. A class of one's own that inherits from list is.
_SEVERAL = (list, types.GeneratorType, types.AsyncGeneratorType)


# The names, of a log, by which no class is declared: in the last of these, which a new class ends.
_asked: list[set[str]] = [set()]

# In the text of whatever has no text of its own: a function, a method, an object.
_ADDRESS = " at 0x"


@attrs.frozen
class Declaration:
    """
    The facts about one event class.

    Attributes:
        name: What the event is called outside this process; stable across renames
            of the class.
        version: The version of the event's shape, from 1.
        key: Reads from an event what groups and orders the events of one entity,
            or ``None``.
        logged: Whether a bus with a store writes its events to the log.
    """

    name: str
    version: int
    key: Callable[[Any], object] | None
    logged: bool = True

    def key_of(self, event: object) -> str | None:
        """
        Return the key of *event* as text, or ``None`` where it has none.
        """
        if self.key is None:
            return None
        return text_of(self.key(event))


@overload
def event(cls: type[T], /) -> type[T]: ...


@overload
def event(
    *,
    name: str | None = None,
    version: int = 1,
    key: str | Callable[[Any], object] | None = None,
    kw_only: bool = False,
    logged: bool = True,
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(frozen_default=True, field_specifiers=(attrs.field,))
def event(
    cls: type[T] | None = None,
    /,
    *,
    name: str | None = None,
    version: int = 1,
    key: str | Callable[[Any], object] | None = None,
    kw_only: bool = False,
    logged: bool = True,
) -> Any:
    """
    Declare a class as an event: a frozen, slotted attrs class.

    Fields, defaults, validators, converters and inheritance work as in attrs.

    Args:
        cls: The class, when used as a bare decorator.
        name: What the event is called in logs and stores. Default: the class's name.
            Give one before you rename a class whose events are stored.
        version: The version of the event's shape, 1 or more.
        key: What groups and orders events of one entity: the name of a field, or a
            callable that takes the event. ``None`` inherits the base event's key.
        kw_only: Make every field keyword-only, so that a base may have defaults.
        logged: ``False`` keeps high-rate facts out of the log of a bus with a store. They
            reach inline and queued handlers only.

    Raises:
        DeclarationError: The name is empty, the version is not a positive integer,
            *key* names no field, or attrs cannot make such a class.

    .. versionadded:: 0.1
    """

    def declare(cls: type[T]) -> type[T]:
        _check(cls, name, version)
        made = _frozen(cls, kw_only)
        _check_fields(made)
        declared = Declaration(name or cls.__name__, version, _key_reader(made, key), logged)
        setattr(made, _SLOT, declared)
        _asked.append(set())  # first: who is looking meanwhile notes it where nobody reads it
        del _asked[:-1]
        return made

    return declare if cls is None else declare(cls)


def declaration_of(cls: type) -> Declaration:
    """
    Return what is known of events of class *cls*, declared or not.

    An undeclared class goes by its own name in version 1 and has the key of the
    declared class it inherits from, if any.
    """
    own = cls.__dict__.get(_SLOT)
    if own is not None:
        return own  # type: ignore[no-any-return]
    inherited: Declaration | None = getattr(cls, _SLOT, None)
    if inherited is None:
        return Declaration(cls.__name__, 1, None)
    return Declaration(cls.__name__, 1, inherited.key, inherited.logged)


def declared_as(name: str) -> list[type]:
    """
    Return the live classes that were declared by that name, wherever they are.

    It goes through all classes there are: for names that nobody has asked for by class. A name
    that is nobody's is asked for once, until another class is declared.
    """
    nobodys = _asked[-1]
    if name in nobodys:
        return []
    found, left = list[type](), list(type.__subclasses__(object))
    seen = set[type]()
    while left:
        cls = left.pop()
        if cls in seen:
            continue
        seen.add(cls)
        left += type.__subclasses__(cls)
        own: Declaration | None = vars(cls).get(_SLOT)
        if own is not None and own.name == name:
            found.append(cls)
    if not found:
        nobodys.add(name)
    return found


def text_of(key: object) -> str | None:
    """
    Return a key as it is compared; ``None`` stands for no key.

    Raises:
        TypeError: Its text is an address: it would be another one each time, or by chance
            that of a stranger.
    """
    if key is None or type(key) is str:
        return key
    if _ADDRESS in (text := str(key)):
        raise TypeError(
            f"{text} is no key: what it is shown by is where it lies in memory. If it is a "
            f"method, call it; if it is an object, give a text that tells it from others"
        )
    return text


def refuse_no_event(event_type: type) -> None:
    """
    Refuse what cannot have been meant as an event, by its class.

    Raises:
        NotAnEventError: It is a class or another type, ``None``, a coroutine, or a list.
    """
    if issubclass(event_type, _LIKE_CLASSES):
        raise NotAnEventError(
            "a class was published instead of an instance of it. "
            "Call it: bus.publish(OrderPlaced(...)), not bus.publish(OrderPlaced)."
        )
    if event_type is types.NoneType:
        raise NotAnEventError(
            "None was published. Publish an event; perhaps a function meant to return one "
            "has no return statement."
        )
    if event_type is types.CoroutineType:
        raise NotAnEventError(
            "a coroutine was published. Await it, and publish what it returns: "
            "bus.publish(await load_event())."
        )
    if event_type in _SEVERAL:
        raise NotAnEventError(
            f"a {event_type.__qualname__} was published, which is no event. To publish each of "
            f"its members: bus.publish_many(events)."
        )


def _check(cls: Any, name: Any, version: Any) -> None:
    if not isinstance(cls, type):
        raise DeclarationError(
            f"@event declares classes, not {cls!r}; options are keywords: "
            f"@event(name='shop.order_placed', version=2)"
        )
    if Enum in cls.__mro__:
        raise DeclarationError(
            f"@event on {cls.__qualname__}, an enum, which can have no fields. Its members can be "
            f"published as they are: drop @event."
        )
    if "__dataclass_fields__" in vars(cls) or "__attrs_attrs__" in vars(cls):
        raise DeclarationError(
            f"@event on {cls.__qualname__}, which another decorator has made a dataclass or an "
            f"attrs class. Drop that one, or this: instances of any class can be published."
        )
    if name is not None and not (isinstance(name, str) and name.strip()):
        raise DeclarationError(f"@event on {cls.__qualname__}: name must be text, not {name!r}")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DeclarationError(
            f"@event on {cls.__qualname__}: version counts from 1, {version!r} is none"
        )


def _frozen(cls: type[T], kw_only: bool) -> type[T]:
    try:
        return attrs.frozen(cls, kw_only=kw_only)
    except (TypeError, ValueError) as error:
        raise DeclarationError(
            f"@event on {cls.__qualname__}: {error}. If it is about the order of fields, "
            f"@event(kw_only=True) does away with it, also where a base event has defaults."
        ) from error


def _check_fields(cls: type) -> None:
    """
    Refuse what is written for a dataclass, or for all instances at once.
    """
    for field in attrs.fields(cls):
        default: Any = field.default
        if type(default).__module__ == "dataclasses":
            raise DeclarationError(
                f"@event on {cls.__qualname__}: {field.name} is a dataclasses.field(), which "
                f"attrs takes for its value. Write attrs.field(factory=...), or default=."
            )
        if type(default) in (list, dict, set) and field.converter is None:
            raise DeclarationError(
                f"@event on {cls.__qualname__}: all its instances would share the default of "
                f"{field.name}, {default!r}. Write attrs.field(factory={type(default).__name__})."
            )
    if "__post_init__" in vars(cls):
        raise DeclarationError(
            f"@event on {cls.__qualname__}: nobody calls __post_init__ of an attrs class. Call it "
            f"__attrs_post_init__, or write a validator."
        )


def _key_reader(cls: type, key: Any) -> Callable[[Any], object] | None:
    if key is None:
        inherited: Declaration | None = getattr(cls, _SLOT, None)
        return inherited.key if inherited else None
    if callable(key):
        return key  # type: ignore[no-any-return]
    fields = [field.name for field in attrs.fields(cls)]
    if key not in fields:
        raise DeclarationError(
            f"@event(key={key!r}) on {cls.__qualname__}: there is no such field; "
            f"it has {', '.join(fields) or 'no fields'}. "
            f"Name one of them, or give a callable that takes the event."
        )
    return attrgetter(key)
