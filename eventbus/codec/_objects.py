"""
The two hooks of a class with fields, as code written for that class.

Law: the code made here holds no decision: for each field it is one line, the look-up
of the value and the call of the field's hook. A value of the very type that the field
declares, which is the rule, spares the call. What failed, and where, is found out
afterwards, by the number of the line.

Measured: with four fields, twice as quick as a loop over the fields.
"""

from __future__ import annotations

from collections.abc import Callable
from keyword import iskeyword
from typing import Any

from eventbus.codec._constructors import setters_of
from eventbus.codec._misfit import MisfitError, kind_of, within
from eventbus.codec._scalars import NATIVES, TEXTS, Reader, Writer
from eventbus.codec._shapes import ABSENT, MADE, Field

__all__ = ["object_reader", "object_writer"]

_WRITER = """
def write(value):
    if type(value) is not cls:
        raise other_class(cls, value)
    at = 0
    try:
        {lines}
    except Exception as error:
        raise failed(fields[at], value, error) from None
    return {{{items}}}
"""
_READER = """
def read(data, _):
    if type(data) is not dict:
        raise no_object(cls, data)
    {unknown}
    at = 0
    {extra}
    try:
        {lines}
    except Exception as error:
        raise failed(fields[at], data, error) from None
    {make}
"""
_REFUSE_UNKNOWN = "if not data.keys() <= known: raise unknown_key(cls, data, known)"


def object_writer(cls: type, plan: list[tuple[Field, Writer, bool]]) -> Writer:
    """
    Make the hook that writes instances of exactly *cls*.

    Args:
        cls: The class.
        plan: Its fields, the hook of each, and whether that is the one built in.
    """
    names: dict[str, Any] = {
        "cls": cls,
        "fields": [(field, hook) for field, hook, _ in plan],
        "failed": _failed_to_write,
        "other_class": _other_class,
    }
    lines: list[str] = []
    for n, (field, hook, is_built_in) in enumerate(plan):
        names[f"h{n}"] = hook
        lines += [f"at = {n}", f"v{n} = {_attribute(field.name)}"]
        call = f"h{n}(v{n})"
        if is_built_in and field.type in NATIVES:
            lines.append(f"if type(v{n}) is not {field.type.__name__}: v{n} = {call}")
        elif is_built_in and field.type in TEXTS:
            names[f"t{n}"], names[f"s{n}"] = field.type, TEXTS[field.type][0]
            lines.append(f"v{n} = s{n}(v{n}) if type(v{n}) is t{n} else {call}")
        else:
            lines.append(f"v{n} = {call}")
    items = ", ".join(f"{field.key!r}: v{n}" for n, (field, *_) in enumerate(plan))
    return _compiled(_WRITER.format(lines=_joined(lines), items=items), names, "write")


def object_reader(
    cls: type, plan: list[tuple[Field, Reader, bool]], *, forbid_extra_keys: bool
) -> Reader:
    """
    Make the hook that reads instances of *cls*.

    A missing key takes the field's default. One that no field has is passed over: it
    was written by a newer program; *forbid_extra_keys* refuses it. Fields that the
    constructor does not take are set afterwards, to what they were.
    """
    names: dict[str, Any] = {
        "cls": cls,
        "fields": [(field, hook) for field, hook, _ in plan],
        "known": {field.key for field, *_ in plan},
        "failed": _failed_to_read,
        "no_object": _no_object,
        "unknown_key": _unknown_key,
        "put": object.__setattr__,
    }
    lines: list[str] = []
    arguments: list[str] = []
    needs_extra = False
    for n, (field, hook, is_built_in) in enumerate(plan):
        names[f"h{n}"], names[f"t{n}"] = hook, field.type
        value = _read_value(n, field, is_built_in, names)
        lines += [f"at = {n}", *_read_lines(n, field, value, names)]
        if not field.is_taken:
            continue
        if _is_variable(field):
            in_place = field.positional and not needs_extra
            arguments.append(f"v{n}" if in_place else f"{field.keyword}=v{n}")
        else:
            needs_extra = True
    arguments += ["**extra"] * needs_extra
    source = _READER.format(
        unknown=_REFUSE_UNKNOWN if forbid_extra_keys else "",
        extra="extra = {}" if needs_extra else "",
        lines=_joined(lines),
        make=_made_at_once(cls, plan, names) or _made_by_constructor(arguments, plan),
    )
    return _compiled(source, names, "read")


def _made_at_once(
    cls: type, plan: list[tuple[Field, Reader, bool]], names: dict[str, Any]
) -> str | None:
    """
    Write what makes an instance without its constructor, if that only stores the fields.
    """
    setters = setters_of(cls)
    if setters is None or not all(_is_variable(field) for field, *_ in plan):
        return None
    names["new"] = object.__new__
    names |= {f"s{n}": setters[field.name] for n, (field, *_) in enumerate(plan)}
    stored = [f"s{n}(made, v{n})" for n in range(len(plan))]
    return "\n    ".join(["made = new(cls)", *stored, "return made"])


def _made_by_constructor(arguments: list[str], plan: list[tuple[Field, Reader, bool]]) -> str:
    call = f"cls({', '.join(arguments)})"
    rest = [
        f"if {field.key!r} in data: put(made, {field.name!r}, v{n})"
        for n, (field, *_) in enumerate(plan)
        if not field.is_taken
    ]
    return "\n    ".join([f"made = {call}", *rest, "return made"]) if rest else f"return {call}"


def _read_lines(n: int, field: Field, value: str, names: dict[str, Any]) -> list[str]:
    found = f"v = data[{field.key!r}]"
    if not field.is_taken:
        return [f"if {field.key!r} in data: {found}; v{n} = {value}"]
    if not _is_variable(field):
        found += f"; extra[{field.keyword!r}] = {value}"
        return [found if field.default is ABSENT else f"if {field.key!r} in data: {found}"]
    if field.default is ABSENT:
        return [found, f"v{n} = {value}"]
    names[f"d{n}"] = field.default
    return [f"if {field.key!r} in data: {found}; v{n} = {value}", f"else: v{n} = d{n}"]


def _is_variable(field: Field) -> bool:
    # What a factory makes is left to the constructor, and so is a name that is none here.
    return field.default is not MADE and _is_name(field.keyword)


def _read_value(n: int, field: Field, is_built_in: bool, names: dict[str, Any]) -> str:
    call = f"h{n}(v, t{n})"
    if is_built_in and field.type in NATIVES:
        return f"v if type(v) is {field.type.__name__} else {call}"
    if is_built_in and field.type in TEXTS:
        names[f"p{n}"] = TEXTS[field.type][1]
        return f"p{n}(v) if type(v) is str else {call}"
    return call


def _compiled(source: str, names: dict[str, Any], name: str) -> Callable[..., Any]:
    cls = names["cls"]
    code = compile(source, f"<eventbus {name} {cls.__module__}.{cls.__qualname__}>", "exec")
    exec(code, names)
    return names[name]  # type: ignore[no-any-return]


def _joined(lines: list[str]) -> str:
    return "\n        ".join(lines or ["pass"])


def _is_name(name: str) -> bool:
    return name.isidentifier() and not iskeyword(name)


def _attribute(name: str) -> str:
    return f"value.{name}" if _is_name(name) else f"getattr(value, {name!r})"


# -- what failed -----------------------------------------------------------------------------


def _failed_to_write(step: tuple[Field, Writer], value: Any, error: Exception) -> Exception:
    field, _ = step
    return within(f".{field.name}", error)


def _failed_to_read(step: tuple[Field, Reader], data: Any, error: Exception) -> Exception:
    field, hook = step
    if field.key not in data:
        error = MisfitError("is missing, and has no default")
    elif field.type in TEXTS and not isinstance(error, MisfitError):
        try:  # the hook itself says it better
            hook(data[field.key], field.type)
        except Exception as better:
            error = better
    return within(f".{field.key}", error)


def _no_object(cls: type, data: object) -> MisfitError:
    return MisfitError(f"expected an object with the fields of {cls.__name__}, not {kind_of(data)}")


def _unknown_key(cls: type, data: dict[str, Any], known: set[str]) -> MisfitError:
    return MisfitError(f"{cls.__name__} has no field {min(data.keys() - known)!r}")


def _other_class(cls: type, value: object) -> MisfitError:
    if not isinstance(value, cls):
        return MisfitError(f"expected {cls.__name__}, not {kind_of(value)}")
    return MisfitError(
        f"{kind_of(value)} would come back as a {cls.__name__}, which the field declares. "
        f"Declare the union of the classes it can hold"
    )
