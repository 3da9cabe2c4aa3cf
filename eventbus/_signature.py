"""
What a handler's signature says: its events, its colour, its wish for an envelope.

Law: signatures and annotations are read here and nowhere else, once, when a
handler is subscribed. What cannot work is refused here, with the cure.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from typing import Any, NoReturn

import attrs

from eventbus._envelope import Envelope
from eventbus.errors import HandlerSignatureError

__all__ = ["HandlerSignature", "event_types_of", "name_of", "read_signature"]

_UNKNOWN = inspect.Parameter.empty
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_FUNCTIONS = (types.FunctionType, types.MethodType)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# How `sqlite3.Connection` is written where only type checkers import it.
_CONNECTION = re.compile(r"(sqlite3\.)?Connection")
# How `Envelope` is written where only type checkers import it, or what stands in its brackets.
_ENVELOPE = re.compile(r"(\w+\.)*Envelope(\[.*\])?(\s*\|\s*None)?")


@attrs.frozen(kw_only=True)
class HandlerSignature:
    """
    What a handler's signature says.

    Attributes:
        event_types: The classes its first parameter is annotated with; empty when
            there is no annotation, or one that says nothing.
        annotation: That annotation as it is written; empty when there is none.
        is_async: Calling it is known to return an awaitable. A handler of which this
            is not known may still return one: it is then awaited all the same.
        takes_envelope: It has a parameter annotated `Envelope`.
        envelope_keyword: The parameter's name where it is keyword-only.
        connection_keyword: The name of the parameter annotated `sqlite3.Connection`, which
            takes the connection whose transaction carries the handler's progress.
    """

    event_types: tuple[type, ...] = ()
    annotation: str = ""
    is_async: bool = False
    takes_envelope: bool = False
    envelope_keyword: str | None = None
    connection_keyword: str | None = None


def read_signature(
    handler: Callable[..., object], name: str, *, wrapped: bool = True
) -> HandlerSignature:
    """
    Read what *handler* takes and returns.

    Args:
        handler: Any callable.
        name: What to call it in an error.
        wrapped: Look through `functools.wraps` for parameters.

    Raises:
        HandlerSignatureError: It cannot be called with an event, or to no effect.
    """
    if not callable(handler):
        _refuse(name, f": a handler must be callable, not {handler!r}")
    if _has_flag(handler, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        _refuse(
            name,
            " is a generator function: calling it runs nothing of its body, and nobody would "
            "iterate over what it returns. Write it without yield.",
        )
    if _makes_context_manager(handler):
        _refuse(
            name,
            " makes a context manager, which nobody would enter: its body would never run. "
            "Subscribe a plain function, and enter the context in it, or in wrap=.",
        )
    signature = _signature(handler, follow=False)
    if wrapped and (signature is None or _takes_anything(signature)):
        signature = _signature(handler, follow=True)  # it passes on what it takes
    if signature is None:
        return HandlerSignature(is_async=_is_async(handler, _UNKNOWN))
    connection = _connection(signature, handler)
    written, envelope = _parameters(signature, handler, name, connection)
    annotation = _resolve(written, handler)
    is_keyword = envelope is not None and envelope.kind is inspect.Parameter.KEYWORD_ONLY
    return HandlerSignature(
        event_types=event_types_of(annotation) or (),
        annotation=_spelled(written),
        is_async=_is_async(handler, _resolve(signature.return_annotation, handler)),
        takes_envelope=envelope is not None,
        envelope_keyword=envelope.name if envelope is not None and is_keyword else None,
        connection_keyword=connection,
    )


def name_of(handler: Callable[..., object]) -> str:
    """
    Return a handler's default name: its module and its qualified name.
    """
    target = _without_partial(handler)
    named = target if isinstance(getattr(target, "__qualname__", None), str) else _class_of(target)
    return ".".join(filter(None, (named.__module__, named.__qualname__)))


def event_types_of(annotation: object) -> tuple[type, ...] | None:
    """
    Return the classes *annotation* stands for; ``None`` when it stands for none.

    A class is itself, a union its members, an alias like ``Changed[int]`` its class,
    a type variable what it is bound to. ``None`` in a union says nothing: it is no event.
    Nor is a container of events, ``list[Changed]``: they are delivered one by one.
    """
    members = _members(annotation)
    if members is not None:
        found = [event_types_of(each) for each in members if each is not types.NoneType]
        known = [each for each in found if each is not None]
        return tuple(dict.fromkeys(chain(*known))) if len(known) == len(found) > 0 else None
    origin: Any = typing.get_origin(annotation) or annotation
    if origin in (_UNKNOWN, Any, types.NoneType) or not _is_class(origin):
        return None
    if origin is not annotation and origin.__module__ in ("builtins", "collections.abc"):
        return None
    return (origin,)


def _is_class(value: object) -> bool:
    return isinstance(value, type) and not issubclass(value, type)


def _members(annotation: Any) -> tuple[object, ...] | None:
    """
    Take apart what stands for other types; ``None`` for what stands for itself.
    """
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return (annotation.__origin__,)
    if origin in (types.UnionType, typing.Union):
        return typing.get_args(annotation)
    if isinstance(annotation, typing.NewType):
        return (annotation.__supertype__,)
    if isinstance(annotation, typing.TypeVar):
        return annotation.__constraints__ or (annotation.__bound__,)
    alias = annotation if origin is None else origin
    if hasattr(alias, "__value__") and hasattr(alias, "__type_params__"):  # type X = A | B
        return (alias.__value__,)
    return None


def _refuse(name: str, why: str) -> NoReturn:
    raise HandlerSignatureError(f"{name}{why}", subscription=name)


def _signature(handler: Callable[..., object], *, follow: bool) -> inspect.Signature | None:
    try:
        return inspect.signature(handler, follow_wrapped=follow)
    except (ValueError, TypeError):  # some builtins have none; they may still take an event
        return None


def _spelled(annotation: Any) -> str:
    if annotation is _UNKNOWN or isinstance(annotation, str):
        return annotation if isinstance(annotation, str) else ""
    return inspect.formatannotation(annotation)


def _takes_anything(signature: inspect.Signature) -> bool:
    kinds = {each.kind for each in signature.parameters.values()}
    return inspect.Parameter.VAR_POSITIONAL in kinds


def _parameters(
    signature: inspect.Signature,
    handler: Callable[..., object],
    name: str,
    connection: str | None,
) -> tuple[Any, inspect.Parameter | None]:
    """
    Return the annotation of the event, and the parameter that takes the envelope.
    """
    parameters = list(signature.parameters.values())
    positional = [each for each in parameters if each.kind in _POSITIONAL]
    if not positional and not _takes_anything(signature):
        _refuse(
            name,
            f"{signature} takes no event: a handler is called with the event as its first "
            f"argument. Give it a positional parameter.",
        )
    written = positional[0].annotation if positional else _UNKNOWN
    if positional and _is_envelope(written, handler):
        _refuse(
            name, f"{signature}: the event comes first, and the Envelope second: (event, envelope)"
        )
    envelope = _envelope(signature, positional, handler, name, connection)
    if positional and written is _UNKNOWN and hasattr(handler, "__wrapped__"):
        # A decorator's own parameter; unless it adds or takes away some, it is the handler's.
        inner = _signature(handler, follow=True)
        if inner is not None and len(inner.parameters) == len(parameters):
            written = next(iter(inner.parameters.values())).annotation
    return written, envelope


def _envelope(
    signature: inspect.Signature,
    positional: list[inspect.Parameter],
    handler: Callable[..., object],
    name: str,
    connection: str | None,
) -> inspect.Parameter | None:
    """
    Return the parameter that takes the envelope; refuse those nobody would fill.
    """
    keywords = [
        each
        for each in signature.parameters.values()
        if each.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    bound = {*_bound_keywords(handler), connection}
    rest = [each for each in positional[1:] + keywords if each.name not in bound]
    envelope = next((each for each in rest if _is_envelope(each.annotation, handler)), None)
    if envelope is not None and envelope in positional[2:]:
        _refuse(name, f"{signature}: put the Envelope second, right after the event")
    for each in rest:
        if each is not envelope and each.default is _UNKNOWN:
            cure = (
                "It looks like a method without its instance: subscribe it bound, or mark it with "
                "@eventbus.on and include the instance, bus.include(service)."
                if positional and positional[0].name == "self"
                else "A handler takes the event, and a second parameter if that is annotated "
                "Envelope. Annotate it so, give it a default, or bind it with functools.partial."
            )
            _refuse(name, f"{signature} needs {each.name!r}, which nobody would give it. {cure}")
    return envelope


def _is_envelope(annotation: object, handler: Callable[..., object]) -> bool:
    resolved = _resolve(annotation, handler)
    if resolved is _UNKNOWN:
        return isinstance(annotation, str) and _ENVELOPE.fullmatch(annotation) is not None
    return event_types_of(resolved) == (Envelope,)


def _connection(signature: inspect.Signature, handler: Callable[..., object]) -> str | None:
    """
    Return the name of the parameter that takes a connection, if there is one.
    """
    bound = _bound_keywords(handler)
    for each in list(signature.parameters.values())[1:]:
        is_free = each.kind in _NAMED and each.name not in bound
        if is_free and _is_connection(each.annotation, handler):
            return each.name
    return None


def _is_connection(annotation: object, handler: Callable[..., object]) -> bool:
    resolved = _resolve(annotation, handler)
    if resolved is _UNKNOWN:
        return isinstance(annotation, str) and _CONNECTION.fullmatch(annotation) is not None
    # By name: who only asks must not load sqlite3.
    return getattr(resolved, "__qualname__", "") == "Connection" and getattr(
        resolved, "__module__", ""
    ).startswith("sqlite3")


def _bound_keywords(handler: Any) -> set[str]:
    return set(handler.keywords) if isinstance(handler, functools.partial) else set()


def _class_of(value: object) -> type[object]:
    # Not ``__class__``, which a mock may have from its specification.
    return type(value)


def _without_partial(handler: Callable[..., object]) -> Any:
    target: Any = handler
    while isinstance(target, functools.partial):
        target = target.func
    return target


def _has_flag(handler: Callable[..., object], *asks: Callable[[object], bool]) -> bool:
    target = _without_partial(handler)
    call = getattr(_class_of(target), "__call__", None)  # noqa: B004 - its nature, not presence
    asked = [call] if _hides_its_nature(target) else [target, call]
    return any(ask(each) for ask in asks for each in asked)


def _hides_its_nature(target: Any) -> bool:
    """
    Tell a mock that was specified by a function, and does not know which kind it was.
    """
    pretends = isinstance(target, _FUNCTIONS) and _class_of(target) not in _FUNCTIONS
    flags = getattr(getattr(target, "__code__", None), "co_flags", None)
    return pretends and not isinstance(flags, int)


def _makes_context_manager(handler: Callable[..., object]) -> bool:
    target = _without_partial(handler)
    function = getattr(target, "__func__", target)
    is_made_there = getattr(function, "__globals__", {}).get("__name__") == "contextlib"
    return is_made_there and _has_flag(
        getattr(function, "__wrapped__", function),
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
    )


def _is_async(handler: Callable[..., object], returns: object) -> bool:
    if _has_flag(handler, inspect.iscoroutinefunction):
        return True
    origin = typing.get_origin(returns) or returns
    return isinstance(origin, type) and issubclass(origin, Awaitable)


def _resolve(annotation: object, handler: Callable[..., object]) -> object:
    """
    Turn an annotation, also one written as text, into what it names.

    Text is read where the handler is written: its module, its class, and those
    functions around it that still run. What names nothing there is not known.
    """
    if annotation is _UNKNOWN:
        return _UNKNOWN
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    words = set(re.findall(r"\w+", annotation if isinstance(annotation, str) else repr(annotation)))
    for names in _namespaces(handler, words):
        try:
            return typing.get_type_hints(holder, names, include_extras=True)["it"]
        except Exception:  # annotations may be any expression; the next place may know it
            continue
    return _UNKNOWN if isinstance(annotation, str) else annotation


def _namespaces(handler: Callable[..., object], words: set[str]) -> Iterator[dict[str, Any]]:
    """
    Yield what the names in a handler's annotations may mean, the likeliest first.

    `functools.wraps` copies annotations: they belong to the innermost function.
    """
    layers = list[Any]()
    owner: type = object
    target: Any = handler
    while target is not None:
        if isinstance(target, functools.partial):
            target = target.func
        elif _class_of(target) is types.MethodType:
            it: Any = target.__self__
            owner = it if isinstance(it, type) else _class_of(it)
            target = target.__func__
        elif _class_of(target) is types.FunctionType or isinstance(target, type):
            layers.append(target)
            target = getattr(target, "__wrapped__", None)
        elif hasattr(target, "__wrapped__"):
            target = target.__wrapped__
        else:
            owner = _class_of(target)
            call = getattr(owner, "__call__", None)  # noqa: B004 - to find its module
            target = call if isinstance(call, types.FunctionType) else None
    for layer in reversed(layers):
        yield _names_around(layer, owner, words)


def _names_around(layer: Any, owner: type, words: set[str]) -> dict[str, Any]:
    """
    Return the names in scope where *layer*, a function or class, is written.

    Functions around it are asked for their locals only if one of *words* is among
    them: up to Python 3.12 a frame keeps alive what it has once shown.
    """
    module = sys.modules.get(layer.__module__)
    names = {name: value for cls in reversed(owner.__mro__) for name, value in vars(cls).items()}
    names.update(vars(module or types), **getattr(layer, "__globals__", {}))
    outer, _, inside = layer.__qualname__.rpartition(".<locals>.")
    around = list[types.FrameType]()
    frame = inspect.currentframe() if inside and outer else None
    while frame is not None:
        path = f"{frame.f_code.co_qualname}.<locals>."
        if (
            f"{outer}.<locals>.".startswith(path)
            and frame.f_globals.get("__name__") == layer.__module__
        ):
            around.append(frame)
        frame = frame.f_back
    for each in reversed(around):
        code = each.f_code
        if not words.isdisjoint((*code.co_varnames, *code.co_cellvars, *code.co_freevars)):
            names.update(each.f_locals)
    return names
