"""
Single values and their text: numbers, times, ids, bytes, enums, literals.

Law: a value of exactly the declared type comes back equal, and of that type; any
other value is refused, not bent. A subclass's value is written where what is read
back is equal to it. What one entry of the table writes, its other half reads.

=========================  ==========================================================
``str int bool None``      themselves
``float``                  a number; what JSON has no number for is ``"nan"``,
                           ``"inf"`` or ``"-inf"``
``Decimal``                its text, digits and exponent kept: ``"1.50"``
``datetime date time``     ISO 8601; a named zone follows in brackets (RFC 9557)
``timedelta``              ISO 8601: ``"P1DT0.5S"``, ``"-PT3600S"``
``UUID Path``              its text
``bytes bytearray``        base64 (RFC 4648, section 4)
an enum                    the member's value if all values are text or all are whole
                           numbers, otherwise its name
=========================  ==========================================================
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache, partial
from math import isfinite
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from eventbus.codec._misfit import MisfitError, kind_of, type_of, within

__all__ = [
    "NATIVES",
    "TEXTS",
    "Reader",
    "Writer",
    "enum_hooks",
    "literal_hooks",
    "plain",
    "scalar_hooks",
]

Writer = Callable[[Any], Any]
# The second argument is the type, as cattrs calls its hooks.
Reader = Callable[[Any, Any], Any]

_DURATION = re.compile(r"(-?)P(?:(\d+)D)?(?:T(?:(\d+)(?:\.(\d{6}))?S)?)?")
_NOT_FINITE = ("nan", "inf", "-inf")


# -- what JSON has ---------------------------------------------------------------------------


def native_hooks(kind: Any) -> tuple[Writer, Reader]:
    """
    Make the hooks of text, whole numbers or booleans, which JSON has itself.
    """

    def write(value: Any) -> Any:
        if type(value) is kind:
            return value
        if isinstance(value, kind):  # a subclass, an enum's member among them
            base = str.__str__(value) if kind is str else int.__int__(value)
            if base == value:
                return base
            raise MisfitError(
                f"{kind_of(value)} {value!r:.100} would come back as another {kind.__name__}"
            )
        raise MisfitError(f"expected {kind.__name__}, not {kind_of(value)}")

    def read(data: Any, _: Any) -> Any:
        if type(data) is not kind:
            raise MisfitError(f"expected {kind.__name__}, not {kind_of(data)}")
        return data

    return write, read


def write_float(value: Any) -> Any:
    """
    Write a number; a whole one is a float as long as it stays the same number.
    """
    if not isinstance(value, float):
        if type(value) is not int or float(value) != value:
            raise MisfitError(f"expected float, not {kind_of(value)} {value!r}"[:200])
        return float(value)
    number = value if type(value) is float else float.__float__(value)
    return number if isfinite(number) else repr(number)


def read_float(data: Any, _: Any) -> Any:
    """
    Read a number, or the text of one that JSON does not have.
    """
    if type(data) is float or type(data) is int:
        return float(data)
    if type(data) is str and data in _NOT_FINITE:
        return float(data)  # each nan a key of its own
    raise MisfitError(f"expected float, not {kind_of(data)}")


def write_none(value: Any) -> Any:
    """
    Write ``None``.
    """
    if value is not None:
        raise MisfitError(f"expected None, not {kind_of(value)}")
    return value


def read_none(data: Any, _: Any) -> Any:
    """
    Read ``None``.
    """
    return write_none(data)


def plain(value: Any) -> Any:
    """
    Write a value of no declared type: only what comes back as it is from JSON.
    """
    kind = type_of(value)
    if kind is float and not isfinite(value):
        raise MisfitError(f"JSON has no number for {value}")
    if value is None or kind in (str, int, bool, float):
        return value
    if kind is list or (kind is dict and all(type(key) is str for key in value)):
        items: Any = enumerate(value) if kind is list else value.items()
        return _plain_items(kind, items)
    raise MisfitError(
        f"{kind_of(value)} would not come back from a field of no declared type: annotate "
        f"the field with what it holds"
    )


def _plain_items(kind: Any, items: Iterable[tuple[Any, Any]]) -> Any:
    made: dict[Any, Any] = {}
    key: Any = None
    try:
        for key, item in items:
            made[key] = plain(item)
    except Exception as error:
        raise within(f"[{key!r:.100}]", error) from None
    return made if kind is dict else list(made.values())


# -- what is written as text -----------------------------------------------------------------


def _write_datetime(value: datetime) -> str:
    zone = value.tzinfo
    text = value.isoformat()
    if zone is None or zone is UTC:
        return text
    _refuse_fraction(value.utcoffset())
    key = zone.key if isinstance(zone, ZoneInfo) else None
    return f"{text}[{key}]" if key and _is_found(key) else text


@lru_cache(1000)
def _is_found(key: str) -> bool:
    try:
        ZoneInfo(key)
    except (ValueError, LookupError, OSError):  # the key of a file of one's own
        return False
    return True


def _read_datetime(text: str) -> datetime:
    stamp, bracket, key = text.partition("[")
    value = datetime.fromisoformat(stamp)
    if not bracket:
        return value
    zone = ZoneInfo(key.removesuffix("]"))
    for fold in (0, 1):
        local = value.replace(tzinfo=zone, fold=fold)
        if local.utcoffset() == value.utcoffset():
            return local
    return value.astimezone(zone)  # the zone has other rules by now; the instant stays


def _write_time(value: time) -> str:
    if value.tzinfo is not None and type(value.tzinfo) is not timezone:
        raise ValueError("a time of day in a zone whose offset depends on the date")
    _refuse_fraction(value.utcoffset())
    return value.isoformat()


def _refuse_fraction(offset: timedelta | None) -> None:
    # Python 3.11 reads back "+00:00:00.000001" as UTC.
    if offset is not None and offset.microseconds:
        raise ValueError("an offset from UTC that is no whole number of seconds")


def _write_timedelta(value: timedelta) -> str:
    sign = "-" if value < timedelta(0) else ""
    span = abs(value)
    days = f"{span.days}D" if span.days else ""
    rest = f"T{span.seconds}" if span.seconds or span.microseconds or not days else ""
    if span.microseconds:
        rest += f".{span.microseconds:06}"
    return f"{sign}P{days}{rest}S" if rest else f"{sign}P{days}"


def _read_timedelta(text: str) -> timedelta:
    found = _DURATION.fullmatch(text)
    if found is None or text.endswith(("P", "T")):
        raise ValueError(text)
    sign, *parts = found.groups()
    days, seconds, microseconds = (int(part or 0) for part in parts)
    span = timedelta(days, seconds, microseconds)
    return -span if sign else span


def _write_bytes(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


def _read_bytes(text: str) -> bytes:
    return binascii.a2b_base64(text, strict_mode=True)


def _read_bytearray(text: str) -> bytearray:
    return bytearray(_read_bytes(text))


NATIVES = (str, int, bool)
TEXTS: dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]] = {
    Decimal: (str, Decimal),
    datetime: (_write_datetime, _read_datetime),
    date: (date.isoformat, date.fromisoformat),
    time: (_write_time, time.fromisoformat),
    timedelta: (_write_timedelta, _read_timedelta),
    UUID: (str, UUID),
    Path: (str, Path),
    bytes: (_write_bytes, _read_bytes),
    bytearray: (_write_bytes, _read_bytearray),
}


def scalar_hooks() -> dict[type, tuple[Writer, Reader]]:
    """
    Make the hooks of every type that is a single value.
    """
    hooks = {kind: _text_hooks(kind, *pair) for kind, pair in TEXTS.items()}
    natives: dict[type, tuple[Writer, Reader]] = {kind: native_hooks(kind) for kind in NATIVES}
    return {
        **hooks,
        **natives,
        float: (write_float, read_float),
        type(None): (write_none, read_none),
    }


def _text_hooks(
    kind: type, spell: Callable[[Any], str], parse: Callable[[str], Any]
) -> tuple[Writer, Reader]:
    def write(value: Any) -> Any:
        if type(value) is kind:
            return spell(value)
        if not isinstance(value, kind):
            raise MisfitError(f"expected {kind.__name__}, not {kind_of(value)}")
        text = spell(value)
        if parse(text) != value:
            raise MisfitError(
                f"{kind_of(value)} {value!r} would come back as another {kind.__name__}"
            )
        return text

    def read(data: Any, _: Any) -> Any:
        if type(data) is not str:
            raise MisfitError(f"expected the text of a {kind.__name__}, not {kind_of(data)}")
        try:
            return parse(data)
        except (ValueError, ArithmeticError, LookupError) as error:
            raise MisfitError(f"{data!r:.100} is no {kind.__name__}", cause=error) from error

    return write, read


def subclass_hooks(kind: type, write_base: Writer, read_base: Reader) -> tuple[Writer, Reader]:
    """
    Make the hooks of a user's subclass of a single value: written as its base is.
    """

    def write(value: Any) -> Any:
        if type(value) is not kind:
            raise MisfitError(f"expected {kind.__name__}, not {kind_of(value)}")
        data = write_base(value)
        if kind(read_base(data, None)) != value:
            raise MisfitError(f"{value!r:.100} would come back as another {kind.__name__}")
        return data

    def read(data: Any, _: Any) -> Any:
        return kind(read_base(data, None))

    return write, read


# -- one of a few ----------------------------------------------------------------------------


def enum_hooks(kind: type[Enum]) -> tuple[Writer, Reader]:
    """
    Make the hooks of an enum: by value where the values are plain, otherwise by name.
    """
    # `value` and `name` may be properties of the enum's own.
    values = [member._value_ for member in kind.__members__.values()]
    by_value = issubclass(kind, Flag) or any(
        all(type(value) is plain_kind for value in values) for plain_kind in (str, int)
    )
    known = {
        member._value_ if by_value else name: member for name, member in kind.__members__.items()
    }

    def write(value: Any) -> Any:
        if not isinstance(value, kind):
            raise MisfitError(f"expected {kind.__name__}, not {kind_of(value)}")
        data = value._value_ if by_value else value._name_
        # What is not among the members are flags together, or what the enum has made up.
        if known.get(data) is not value and not (by_value and kind(data) == value):
            raise MisfitError(f"{value!r:.100} would come back as another {kind.__name__}")
        return data

    def read(data: Any, _: Any) -> Any:
        if isinstance(data, str | int) and data in known and type(data) is not bool:
            return known[data]
        if not by_value:
            raise MisfitError(f"{data!r:.100} is no member of {kind.__name__}")
        try:  # a combination of flags, or what the enum itself makes of a missing value
            return kind(data)
        except ValueError as error:
            raise MisfitError(str(error), cause=error) from error

    return write, read


def literal_hooks(
    values: Sequence[Any], writer_of: Callable[[Any], Writer]
) -> tuple[Writer, Reader]:
    """
    Make the hooks of a ``Literal``: its values and nothing else.

    Raises:
        MisfitError: Two of the values are written alike.
    """
    written: dict[tuple[type[Any], Any], Any] = {
        (type(value), value): writer_of(type_of(value))(value) for value in values
    }
    known: dict[tuple[type[Any], Any], Any] = {
        (type(data), data): value for (_, value), data in written.items()
    }
    options = ", ".join(repr(value) for value in values)
    if len(known) != len(written):
        raise MisfitError(f"Literal[{options}] has two values that are written alike")
    return partial(_looked_up, written, options), partial(_looked_up, known, options)


def _looked_up(table: dict[tuple[type, Any], Any], options: str, value: Any, _: Any = None) -> Any:
    try:
        return table[type(value), value]
    except (KeyError, TypeError):  # not among them, or not hashable
        raise MisfitError(f"expected one of {options}, not {value!r:.100}") from None
