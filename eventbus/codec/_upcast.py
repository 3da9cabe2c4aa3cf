"""
Upcasters: from the JSON of an event's older version to that of a newer one.

Law: an upcaster is a plain function from dict to dict, and hangs on the class it
leads to, as the class's declaration does: no registry, no bus, no codec. Here they
are marked and followed; reading and naming of events is the codec's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

import attrs

from eventbus._event import declaration_of
from eventbus.errors import DeclarationError

__all__ = ["Step", "chain_from", "checked_steps", "steps_of", "upcast"]

F = TypeVar("F", bound=Callable[[dict[str, Any]], dict[str, Any]])

_SLOT = "__eventbus_upcasters__"
# Generators, coroutines and asynchronous generators, by the flags of their code.
_NO_PLAIN_FUNCTION = 0x20 | 0x80 | 0x200
Source = tuple[str, int]


@attrs.frozen
class Step:
    """
    One upcaster.

    Attributes:
        source: Name and version of the events it takes.
        version: The version it leads to, of the class it hangs on.
        function: The user's function.
    """

    source: Source
    version: int
    function: Callable[[dict[str, Any]], Any]

    def __str__(self) -> str:
        module = getattr(self.function, "__module__", None)
        return f"{module}.{getattr(self.function, '__qualname__', self.function)}"


@overload
def upcast(
    source: type, /, *, from_version: int, to_version: int | None = None
) -> Callable[[F], F]: ...


@overload
def upcast(
    source: str, /, *, from_version: int, to: type, to_version: int | None = None
) -> Callable[[F], F]: ...


def upcast(
    source: type | str,
    /,
    *,
    from_version: int,
    to: type | None = None,
    to_version: int | None = None,
) -> Callable[[F], F]:
    """
    Mark a function that brings stored events of an older version up to a newer one.

    The function takes the event's fields as they are in JSON, a dict that is its own to
    change, and returns those of the newer version. It is called whenever an older event
    is read, so it must not depend on anything but what it is given. What is stored
    stays as it is. Steps are chained: 1 to 2, 2 to 3, up to the class's version.

    Args:
        source: The event class; or the name that the events were stored by, when the
            class has another name now, and *to* is the class.
        from_version: The version of the stored events, 1 or more.
        to: The class, where *source* is a name.
        to_version: The version of *to* that the function makes. Default: one more than
            *from_version*.

    Raises:
        DeclarationError: *source* and *to* do not name one class, a version is none, the
            step does not lead upwards, or what is decorated is no plain function.

    .. versionadded:: 0.1
    """
    cls, name = _target(source, to)
    title = f"@upcast({source.__name__ if isinstance(source, type) else source!r})"
    version = _checked_version(from_version, title) + 1
    if to_version is not None:
        version = _checked_version(to_version, title)
    if name == declaration_of(cls).name and version <= from_version:
        raise DeclarationError(
            f"{title}: from version {from_version} to version {version} of the same event "
            f"leads nowhere but in a circle"
        )

    def mark(function: F) -> F:
        flags = getattr(getattr(function, "__code__", None), "co_flags", 0)
        if not callable(function) or flags & _NO_PLAIN_FUNCTION:
            raise DeclarationError(f"{title} takes a plain function from dict to dict")
        setattr(cls, _SLOT, (*steps_of(cls), Step((name, from_version), version, function)))
        return function

    return mark


def steps_of(cls: type) -> tuple[Step, ...]:
    """
    Return the upcasters that lead to *cls* itself, in the order of their marks.
    """
    steps: tuple[Step, ...] = vars(cls).get(_SLOT, ())
    return steps


def checked_steps(cls: type) -> dict[Source, Step]:
    """
    Return the upcasters of *cls* by what they take.

    Raises:
        DeclarationError: Two take the same, one leads above the version of *cls*, or one
            leads to a version that no other takes further.
    """
    declared = declaration_of(cls)
    by_source: dict[Source, Step] = {}
    for step in steps_of(cls):
        first = by_source.setdefault(step.source, step)
        if first is not step:
            raise DeclarationError(
                f"two upcasters take {_spelled(step.source)}: {first} and {step}. Drop one"
            )
        if step.version > declared.version:
            raise DeclarationError(
                f"the upcaster {step} leads from {_spelled(step.source)} to version "
                f"{step.version}, above version {declared.version} that {cls.__qualname__} has. "
                f"Raise the class's version, or give to_version="
            )
    for source in by_source:
        chain_from(source, cls, by_source)
    return by_source


def chain_from(source: Source, cls: type, steps: dict[Source, Step]) -> tuple[Step, ...]:
    """
    Return the upcasters that lead from *source* to *cls*, the first to be called first.

    Raises:
        DeclarationError: There is a gap on the way.
    """
    declared = declaration_of(cls)
    chain: list[Step] = []
    at = source
    while at != (declared.name, declared.version):
        if at not in steps:
            raise DeclarationError(
                f"no upcaster leads from {_spelled(at)} on to version {declared.version}, which "
                f"{cls.__qualname__} has: write the one for "
                f"@upcast({cls.__name__}, from_version={at[1]})"
            )
        chain.append(steps[at])
        at = (declared.name, steps[at].version)
    return tuple(chain)


def _checked_version(version: Any, title: str) -> int:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise DeclarationError(f"{title}: versions count from 1, {version!r} is none")
    return version


def _target(source: Any, to: Any) -> tuple[type, str]:
    if isinstance(source, type) and to is None:
        return source, declaration_of(source).name
    if isinstance(source, str) and source.strip() and isinstance(to, type):
        return to, source
    raise DeclarationError(
        "@upcast takes the event class, @upcast(OrderPlaced, from_version=1), or the name the "
        "events were stored by and the class: @upcast('old_name', from_version=1, to=OrderPlaced)"
    )


def _spelled(source: Source) -> str:
    return f"{source[0]!r} version {source[1]}"
