"""
`on`: marks a handler where it is defined, for a bus that includes it later.

Law: marking needs no bus and changes nothing about the function; what a mark
means is found out when it is included.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    overload,
)

from eventbus._options import AnyHandler, SubscriptionOptions
from eventbus._signature import event_types_of
from eventbus.errors import HandlerSignatureError

if TYPE_CHECKING:
    from typing_extensions import TypeForm

__all__ = ["check_order", "is_bare", "marks_in", "on"]

E = TypeVar("E")
F = TypeVar("F", bound=Callable[..., object])
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
Mark = tuple[Any, dict[str, Any]]

_SLOT = "__eventbus_marks__"

# What to do about a holder without marks, by what it is.
_CURES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (type, " It is a class: include an instance of it."),
    (types.ModuleType, " What it only imports is included with the module that defines it."),
    (str, " It is text: import the module, and include that."),
    ((list, tuple, set, frozenset), " Include each by itself: bus.include(*holders)."),
    (
        (types.FunctionType, types.MethodType),
        " Mark it where it is defined, or subscribe it: bus.subscribe(OrderPlaced, handler).",
    ),
)


class Marking(Protocol[E]):
    """
    Marks a function or a method that takes events of one type.
    """

    @overload
    def __call__(
        self, handler: Callable[Concatenate[E, P], R], /
    ) -> Callable[Concatenate[E, P], R]: ...

    @overload
    def __call__(
        self, handler: Callable[Concatenate[S, E, P], R], /
    ) -> Callable[Concatenate[S, E, P], R]: ...


@overload
def on(event_type: type[E], /, **options: Unpack[SubscriptionOptions[E]]) -> Marking[E]: ...


# For what is no ``type[E]`` to a type checker: unions and abstract classes.
@overload
def on(event_type: TypeForm[E], /, **options: Unpack[SubscriptionOptions[E]]) -> Marking[E]: ...


@overload
def on(**options: Unpack[SubscriptionOptions[Any]]) -> Callable[[F], F]: ...


@overload
def on(handler: F, /) -> F: ...


def on(target: Any = None, /, *others: Any, **options: Any) -> Any:
    """
    Mark a function or method as a handler, for `EventBus.include`.

    A method's mark is inherited: included is what an instance has by that name, an
    override, too, unless the override has marks of its own or is set to ``None``.

    Args:
        target: An event class or a union of them; without one, or with nothing but
            the function, the annotation of its first parameter says it.
        options: See `SubscriptionOptions`.

    Raises:
        HandlerSignatureError: *target* is neither an event class nor a function, or the
            handler is a thing that cannot be marked.

    .. versionadded:: 0.1
    """

    def mark(handler: F) -> F:
        given = None if target is handler else target
        marked = _inside(handler)
        try:
            if isinstance(marked, type):
                raise AttributeError("what a class is marked with, its instances are, too")
            setattr(marked, _SLOT, (*_marks_of(marked), (given, options)))
        except AttributeError as error:
            raise HandlerSignatureError(
                f"{handler!r} cannot be marked. Mark the function it is made of, or subscribe "
                f"it: bus.subscribe(OrderPlaced, handler)."
            ) from error
        return handler

    return mark(target) if is_bare(target, others, options) else mark


def is_bare(target: object, others: tuple[object, ...], options: dict[str, Any]) -> bool:
    """
    Tell a handler, in ``@on`` without parentheses, from an event class.

    Raises:
        HandlerSignatureError: It is neither, or a handler with options, or not the only one.
    """
    if others:
        if event_types_of(others[0]) is None and callable(others[0]):
            raise HandlerSignatureError(
                "on() decorates a handler: @bus.on(OrderPlaced). One that is there already is "
                "subscribed: bus.subscribe(OrderPlaced, handler)."
            )
        raise HandlerSignatureError(
            f"on() takes one event class, and {1 + len(others)} are given. For several, give the "
            f"union of them: @bus.on(OrderPlaced | OrderPaid)."
        )
    if target is None or event_types_of(target) is not None:
        return False
    if not callable(target) and not isinstance(target, classmethod):
        raise HandlerSignatureError(
            f"on() takes an event class, a union of classes or a handler, not {target!r}"
        )
    if options:
        raise HandlerSignatureError(
            f"on() takes options with an event class or alone: @bus.on(OrderPlaced, once=True) or "
            f"@bus.on(once=True). To subscribe {target!r} itself, use bus.subscribe()."
        )
    return True


def check_order(event_type: object, handler: object) -> None:
    """
    Refuse what `subscribe` cannot have been meant to be given: one thing, or the two swapped.

    Raises:
        HandlerSignatureError: The handler is missing, or comes first.
    """
    if handler is None:
        raise HandlerSignatureError(
            f"subscribe() takes an event class and a handler, bus.subscribe(OrderPlaced, handler), "
            f"and there is only {event_type!r}. To decorate a handler, write @bus.on(OrderPlaced)."
        )
    is_class = event_types_of(event_type) is not None
    if not is_class and callable(event_type) and event_types_of(handler) is not None:
        raise HandlerSignatureError(
            f"subscribe() takes the event class first, and then the handler {event_type!r}: "
            f"bus.subscribe(OrderPlaced, handler)."
        )


def marks_in(holder: object) -> Iterator[tuple[Any, AnyHandler, dict[str, Any]]]:
    """
    Yield event type, handler and options of each mark in *holder*.

    A module's own functions, an instance's methods (bound), or a marked function.

    Raises:
        ValueError: There is none.
    """
    found = False
    for handler, marks in _marked(holder):
        for given, options in marks:
            found = True
            yield given, handler, options
    if not found:
        cure = next((text for kind, text in _CURES if isinstance(holder, kind)), "")
        raise ValueError(f"{holder!r} has no handler marked with @on.{cure}")


def _marked(holder: Any) -> Iterator[tuple[AnyHandler, tuple[Mark, ...]]]:
    if isinstance(holder, types.ModuleType):
        # Each once, whatever names it has there.
        for value in {id(value): value for value in vars(holder).values()}.values():
            if marks := _is_own(value, holder) and _marks_of(value):
                yield value, marks
    elif isinstance(holder, types.MethodType):
        yield holder, _marks_of(holder.__func__)
    elif marks := _marks_of(holder):
        yield holder, marks
    else:
        lineage = type(holder).__mro__
        for name in dict.fromkeys(name for cls in reversed(lineage) for name in vars(cls)):
            written = (_marks_of(vars(cls).get(name)) for cls in lineage)
            marks = next(filter(None, written), ())
            if marks and callable(handler := getattr(holder, name)):
                yield handler, marks


def _is_own(value: object, module: types.ModuleType) -> bool:
    """
    Whether *module* defines it. What a module only imports belongs to the one that does.
    """
    if type(value) is types.FunctionType:
        return value.__module__ == module.__name__
    # A decorator's object goes by the module of the function it stands for.
    wrapped = inspect.getattr_static(value, "__wrapped__", None)
    return type(wrapped) is not types.FunctionType or wrapped.__module__ == module.__name__


def _marks_of(value: object) -> tuple[Mark, ...]:
    """
    Return what `on` left on *value*, without waking what computes its attributes.
    """
    marks: tuple[Mark, ...] = inspect.getattr_static(_inside(value), _SLOT, ())
    return marks


def _inside(value: Any) -> Any:
    # By its type: ``isinstance`` would ask a lazy object what it is.
    return value.__func__ if type(value) in (staticmethod, classmethod) else value
