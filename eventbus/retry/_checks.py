"""
What the parameters of a policy must be, refused where it is made.

Law: a refusal names the policy, the parameter, its value and what is allowed; a wrong
type is a `TypeError`, a wrong value a `ValueError`. Nothing here knows a policy.
"""

from __future__ import annotations

from collections.abc import Iterable
from sys import float_info, maxsize
from typing import Any, Final, TypeAlias

__all__ = [
    "COUNT",
    "FACTOR",
    "SECONDS",
    "ExceptionTypes",
    "Range",
    "as_tuple",
    "check",
    "check_callable",
    "exception_types",
]

ExceptionTypes: TypeAlias = type[Exception] | Iterable[type[Exception]]

# What a number must be: in words, its types, its least and its greatest value.
Range: TypeAlias = tuple[str, Any, float, float]

# 2**63 nanoseconds, 292 years: `time.sleep` takes no more.
LONGEST: Final = 9_223_372_036

COUNT: Final[Range] = ("a whole number from 1 up", int, 1, maxsize)
FACTOR: Final[Range] = ("a finite number from 1 up", (int, float), 1, float_info.max)
SECONDS: Final[Range] = (f"a number of seconds from 0 to {LONGEST}", (int, float), 0, LONGEST)


def check(owner: str, allowed: Range, **values: Any) -> None:
    """
    Refuse *values*, by name, that are not numbers in the *allowed* range.
    """
    wanted, types, least, greatest = allowed
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, types):
            raise TypeError(f"{owner}: {name}={value!r} must be {wanted}")
        if not least <= value <= greatest:  # a NaN is in no range
            raise ValueError(f"{owner}: {name}={value!r} must be {wanted}")


def check_callable(owner: str, **values: object) -> None:
    """
    Refuse *values*, by name, that cannot be called, or are classes still to be called.
    """
    for name, value in values.items():
        if isinstance(value, type):
            raise TypeError(f"{owner}: {name}={value!r} is a class; call it: {value.__name__}(...)")
        if not callable(value):
            raise TypeError(f"{owner}: {name}={value!r} must be callable")


def as_tuple(owner: str, name: str, value: Any) -> tuple[Any, ...]:
    """
    Return *value* as a tuple; refuse what cannot be iterated.
    """
    try:
        return tuple(value)
    except TypeError as error:
        raise TypeError(f"{owner}: {name}={value!r} must be several, as in a list") from error


def exception_types(owner: str, name: str, value: object) -> tuple[type[Exception], ...]:
    """
    Return one or several exception types as a tuple.
    """
    several = isinstance(value, Iterable)
    types = as_tuple(owner, name, value if several else (value,))
    for kind in types:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(
                f"{owner}: {name}={kind!r} must be one or more subclasses of Exception; "
                f"nothing else reaches a policy"
            )
    return types
