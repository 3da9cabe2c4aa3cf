"""
The codec that ships: events as JSON, through hooks that cattrs looks up.

Law: here a class's hooks, its name and the JSON library meet, once for each class;
per event there is one look-up, one hook and one call of the library. Every failure
inside leaves as an `EncodeError` or a `DecodeError` that says which event and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from eventbus._event import declaration_of
from eventbus.codec._known import KnownEvents, Route
from eventbus.codec._misfit import MisfitError, told, type_of, within
from eventbus.codec._port import Encoded
from eventbus.codec._upcast import Source
from eventbus.errors import DeclarationError, DecodeError, EncodeError, UnknownEventError

if TYPE_CHECKING:
    import cattrs

    from eventbus.codec._libraries import Write

__all__ = ["JSONCodec"]

# How many brackets of JSON may stand around a value. To read one level takes up to six
# frames of the stack, and Python allows for a thousand.
_DEEPEST = 100
# What a hook may write for them, beside lists and dicts.
_CONTAINERS = (dict, list, tuple)


class JSONCodec:
    """
    Writes events as JSON, exactly: what is read is equal, and of the declared types.

    Attrs classes (``@event`` among them), dataclasses, pydantic models, msgspec structs
    and named tuples are known, and as their fields: text, numbers, ``Decimal``, times,
    ``UUID``, enums, ``bytes``, collections, unions, ``Literal``, ``NewType``, generics,
    ``TypedDict`` and such classes again. A value that is not of its field's declared type
    is refused when it is written, not when it is read; and so is an instance that its
    constructor, with converters and validators, would not make again of its fields.

    An event is written down to 100 levels of JSON, so that it can be read again wherever
    the reader stands; what is nested deeper is refused.

    Times keep their offset and a `zoneinfo.ZoneInfo` its name; the *fold* of a time
    without a zone is not kept. Infinite floats and nan are text, for JSON has none.

    Args:
        converter: A cattrs converter of your own, used as it is: its formats and its
            strictness hold then, and nothing of the above.
        json: Which library writes and reads JSON: ``"stdlib"``, or ``"msgspec"``, which
            is quicker and has to be installed: ``pip install eventbus[msgspec]``. Each
            reads what the other has written.

    Raises:
        ModuleNotFoundError: *json* is ``"msgspec"``, which is not installed.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        converter: cattrs.Converter | None = None,
        *,
        json: Literal["stdlib", "msgspec"] = "stdlib",
    ) -> None:
        # Late, for start-up time: an application without a store needs no cattrs.
        from eventbus.codec._hooks import GivenHooks, Hooks
        from eventbus.codec._libraries import library

        self._hooks = Hooks() if converter is None else GivenHooks(converter)
        self._to_json, self._from_json = library(json)
        self._known = KnownEvents(self._forget)
        self._writers: dict[type, tuple[str, int, Callable[[Any], Any]]] = {}
        self._readers: dict[Source, tuple[Route, Callable[[Any, Any], Any]]] = {}

    @property
    def converter(self) -> cattrs.Converter:
        """
        The converter, for hooks of your own: they go before those that are built in.

        A hook writes what JSON has: text, finite numbers, booleans, ``None``, lists, and
        dicts with text for keys. Ask for the converter again to register later ones:
        that makes the hooks of every class anew.
        """
        self._forget()
        return self._hooks.converter

    def encode(self, event: Any, /) -> Encoded:
        """
        Write an event; its class is known from then on.

        Raises:
            EncodeError: A value is not of its field's type, no hook writes it, or it is
                nested too deeply.
            DeclarationError: Another live class has its name and version.
        """
        try:
            cls = type_of(event)
            name, version, write = self._writers.get(cls) or self._learn(cls)
            data = write(event)
            try:
                payload = self._to_json(data)
            except Exception as error:
                raise _unwritable(data, self._to_json, error) from error
            if len(payload) > 2 * _DEEPEST:  # one that is shorter has not so many brackets
                _refuse_depth(data, payload)
            return Encoded(name, version, payload)
        except DeclarationError:
            raise
        except Exception as error:
            misfit = told(error)
            place = type_of(event).__name__ + misfit.path
            raise EncodeError(
                f"{place} cannot be stored: {misfit.reason}", event=event, path=misfit.path
            ) from (misfit.cause or misfit)

    def decode(self, name: str, version: int, payload: bytes, /) -> Any:
        """
        Read an event, brought up to the version its class has now.

        Raises:
            UnknownEventError: No class is known by that name, nor an upcaster.
            DecodeError: The payload is no JSON, an upcaster failed, or a field does not
                fit. It says which.
        """
        try:
            route, read = self._readers.get((name, version)) or self._find(name, version)
            data = self._from_json(payload)
            for step in route.steps:
                data = _stepped(step, data)
            return read(data, route.event_type)
        except DecodeError:
            raise
        except Exception as error:
            misfit = told(error)
            raise DecodeError(
                f"{name!r} version {version} cannot be read: "
                f"{misfit.path.removeprefix('.')}{': ' if misfit.path else ''}{misfit.reason}",
                name=name,
                version=version,
                path=misfit.path,
                reason=misfit.reason,
            ) from (misfit.cause or misfit)

    def know(self, *event_types: type) -> None:
        """
        Let events be read as these classes, and as classes derived from them.

        Raises:
            DeclarationError: Another live class has the name and version of one of them.
        """
        from eventbus.codec._shapes import has_fields  # late, as above

        for event_type in event_types:
            self._known.look_out_for(event_type)
            is_model = hasattr(event_type, "model_dump")
            if has_fields(event_type) or is_model or self._hooks.knows(event_type):
                self._known.claim(event_type)

    def check(self) -> None:
        """
        Look whether the upcasters of all classes known lead up to them.

        Raises:
            DeclarationError: There is a gap, two upcasters take the same events, one leads
                above its class's version, or takes the events of another class.
        """
        self._known.check()

    def class_of(self, name: str, version: int, /) -> type | None:
        """
        Return the class that such events come back as, or ``None``; reads no payload.
        """
        found = self._readers.get((name, version))
        if found is not None:
            return found[0].event_type
        try:
            route = self._known.route((name, version))
        except DeclarationError:  # which `check` and `decode` tell
            return None
        return None if route is None else route.event_type

    def names_of(self, event_type: type, /) -> tuple[str, ...]:
        """
        Return every name that events of a class may be stored by, the present one first.
        """
        return self._known.names_of(event_type)

    def _learn(self, cls: type) -> tuple[str, int, Callable[[Any], Any]]:
        write = self._hooks.writer(cls)
        self._hooks.reader(cls)  # what could not be read again is not to be written
        declared = declaration_of(cls)
        self._known.claim(cls)
        self._writers[cls] = found = (declared.name, declared.version, write)
        return found

    def _find(self, name: str, version: int) -> tuple[Route, Callable[[Any, Any], Any]]:
        route = self._known.route((name, version))
        if route is None:
            raise _unknown(name, version, self._known.versions_of(name))
        read = self._hooks.reader(route.event_type)
        self._readers[name, version] = found = (route, read)
        return found

    def _forget(self) -> None:
        self._writers.clear()
        self._readers.clear()
        self._hooks.forget()


def _stepped(step: Any, data: Any) -> Any:
    before = type_of(data)
    if before is not dict:
        raise MisfitError(f"the upcaster {step} takes an object, not {before.__name__}")
    try:
        made = step.function(data)
    except Exception as error:
        reason = f"the upcaster {step} raised {type(error).__name__}: {error}"
        raise MisfitError(reason, cause=error) from error
    after = type_of(made)
    if after is not dict:
        raise MisfitError(f"the upcaster {step} returned {after.__name__}, not a dict")
    return made


def _refuse_depth(data: Any, payload: bytes) -> None:
    """
    Refuse what is nested deeper than a reader's stack is sure to hold.

    Brackets are counted first, which is quick: those that close where another one opens,
    as between the items of a list, are as many levels fewer.
    """
    if payload.find(b"{", 1) < 0 and payload.find(b"[") < 0:
        return
    opened = payload.count(b"{") + payload.count(b"[")
    if opened <= _DEEPEST or opened - payload.count(b"},{") - payload.count(b"],[") <= _DEEPEST:
        return
    if _is_deeper(data, _DEEPEST):
        found = (step for step, child in _children(data) if _is_deeper(child, _DEEPEST - 1))
        reason = f"its JSON would be nested deeper than {_DEEPEST} levels, and might not be read"
        raise MisfitError(reason, path=next(found, ""))


def _is_deeper(data: Any, levels: int) -> bool:
    layer: list[Any] = [data]
    for _ in range(levels):
        layer = [
            child
            for each in layer
            if issubclass(type_of(each), _CONTAINERS)
            for child in (each.values() if issubclass(type_of(each), dict) else each)
        ]
    return any(issubclass(type_of(each), _CONTAINERS) for each in layer)


def _unwritable(data: Any, to_json: Write, error: Exception) -> Exception:
    """
    Find in plain *data* what no JSON can be made of.
    """
    path = ""
    for _ in range(_DEEPEST):
        found = next(_broken_children(data, to_json), None)
        if found is None:
            break
        step, data, error = found
        path += step
    return within(path, error)


def _broken_children(data: Any, to_json: Write) -> Iterator[tuple[str, Any, Exception]]:
    for step, child in _children(data):
        try:
            to_json(child)
        except Exception as error:
            yield step, child, error


def _children(data: Any) -> Iterator[tuple[str, Any]]:
    kind = type_of(data)
    pairs: Any = data.items() if kind is dict else enumerate(data) if kind is list else ()
    for key, child in pairs:
        is_name = isinstance(key, str) and key.isidentifier()
        yield (f".{key}" if is_name else f"[{key!r:.100}]"), child


def _unknown(name: str, version: int, versions: list[int]) -> DecodeError:
    if not versions:
        reason = (
            f"no class is known by the name {name!r}. Import the module that declares it and "
            f"subscribe to it, or tell the codec: codec.know(...). If it has another name now, "
            f"@upcast({name!r}, from_version={version}, to=...)"
        )
        return UnknownEventError(reason, name=name, version=version, reason=reason)
    reason = f"the class known by the name {name!r} has version {versions[-1]}"
    if version > versions[-1]:
        reason += f": version {version} was written by a newer program"
    else:
        reason += f", and no upcaster leads there: @upcast(..., from_version={version})"
    return DecodeError(reason, name=name, version=version, reason=reason)
