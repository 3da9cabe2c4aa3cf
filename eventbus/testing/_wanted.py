"""
What an assertion asks for, and by what an event misses it.

Law: a value that compares. It knows no bus and no record, and words nothing but
the thing asked for and the differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from eventbus.testing._fields import check_names, keywords, name_of_type, shown, values_of

__all__ = ["Wanted", "is_so_often", "wanted"]

_MISSING = object()


@attrs.frozen(kw_only=True)
class Wanted:
    """
    Events of some classes, with these values in their fields.

    Attributes:
        event_types: The classes; a subclass will do.
        fields: What their fields have to equal.
        where: What has to say yes, or ``None``.
    """

    event_types: tuple[type, ...]
    fields: Mapping[str, object]
    where: Callable[[Any], object] | None

    def differences(self, event: object) -> list[str] | None:
        """
        Return by what *event* misses: nothing if it is meant, ``None`` for another class.
        """
        if not isinstance(event, self.event_types):
            return None
        found = [
            _difference(name, expected, getattr(event, name, _MISSING))
            for name, expected in self.fields.items()
        ]
        lines = [line for line in found if line]
        if not lines and self.where is not None and not self._says_yes(self.where, event):
            lines.append(f"where: {_name_of(self.where)} says no")
        return lines

    def matches(self, event: object) -> bool:
        """
        Tell whether *event* is meant.
        """
        return self.differences(event) == []

    def namesake(self, event: object) -> str | None:
        """
        Say so if *event* is of another class that only has the same name.
        """
        mine = type(event)
        for wanted in self.event_types:
            if mine.__qualname__ == wanted.__qualname__:
                known, other = (f"{each.__module__}.{each.__qualname__}" for each in (wanted, mine))
                if known == other:
                    return f"class: another {known}, declared or imported a second time"
                return f"class: expected {known}, was {other}"
        return None

    @staticmethod
    def _says_yes(where: Callable[[Any], object], event: object) -> bool:
        try:
            return bool(where(event))
        except Exception as error:
            error.add_note(f"in where= of an assertion, asked about {shown(event)}")
            raise

    def __str__(self) -> str:
        kinds = " | ".join(map(name_of_type, self.event_types))
        kind = "event" if self.event_types == (object,) else kinds
        asked = [keywords(self.fields)] * bool(self.fields)
        asked += [] if self.where is None else [f"where={_name_of(self.where)}"]
        return f"{kind}({', '.join(asked)})" if asked else kind


def wanted(
    event_type: object,
    event_types: tuple[type, ...] | None,
    fields: Mapping[str, object],
    where: Callable[[Any], object] | None,
    *,
    recorded: Iterable[object],
) -> Wanted:
    """
    Check what is asked for.

    Args:
        event_type: What the caller gave.
        event_types: The classes it stands for, if it stands for any.
        fields: What the fields have to equal.
        where: What has to say yes.
        recorded: Events to learn from which fields an undeclared class has.

    Raises:
        TypeError: There is no such field, or *event_type* is no class.
    """
    if event_types is None:
        values = keywords(values_of(event_type))
        apart = f"{name_of_type(type(event_type))}, {values}" if values else "OrderPlaced, id='A-1'"
        raise TypeError(
            f"events are asked for by class and fields, as in: {apart}; not by {shown(event_type)}"
        )
    if where is not None and not callable(where):
        raise TypeError(
            f"where= is called with the event; {shown(where)} cannot be. To ask for a field of "
            f"that name: where=lambda event: event.where == {shown(where)}"
        )
    check_names(fields, event_types, recorded)
    return Wanted(event_types=event_types, fields=dict(fields), where=where)


def is_so_often(found: Sequence[object], times: object) -> bool:
    """
    Tell whether what was found is enough; with *times*, whether it is exactly so much.

    Raises:
        TypeError: *times* is no number of times.
    """
    if times is None:
        return bool(found)
    if not isinstance(times, int) or times < 0:
        raise TypeError(
            f"times= says how often exactly, as a number: 0, 1, 2; not {shown(times)}. Without "
            f"it, once is enough."
        )
    return len(found) == times


def _difference(name: str, expected: object, actual: object) -> str | None:
    if actual is _MISSING:
        return f"{name}: expected {shown(expected)}, but it has no such field"
    if expected is actual or expected == actual:
        return None
    wanted, found = shown(expected), shown(actual)
    if wanted == found:  # they only look the same
        wanted = f"{wanted} ({type(expected).__qualname__})"
        found = f"{found} ({type(actual).__qualname__})"
    return f"{name}: expected {wanted}, was {found}"


def _name_of(where: Callable[[Any], object]) -> str:
    name: str = getattr(where, "__name__", type(where).__name__)
    return name
