"""
A function with its numbers, compared and printed by them.

Law: a curve is a value and knows no policy. It exists because an attrs class for each
kind of policy adds 6 ms to the import, 8 % of what `import attrs` takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TypeVar, cast

__all__ = ["Curve", "written"]

T = TypeVar("T")


class Curve(partial[T]):
    """
    A partial that equals another one of the same function and the same numbers.

    The function is private and goes by the public name with an underscore before it.
    """

    @property
    def name(self) -> str:
        """
        What its user calls the function.
        """
        return self.func.__name__.removeprefix("_")

    @property
    def facts(self) -> tuple[object, ...]:
        """
        What makes two of them equal.
        """
        return self.func, *sorted(self.keywords.items())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Curve) and self.facts == other.facts

    def __hash__(self) -> int:
        return hash(self.facts)

    def __repr__(self) -> str:
        said = {name: value for name, value in self.keywords.items() if value is not None}
        return written(self.name, said)


def written(name: str, said: Mapping[str, object]) -> str:
    """
    Write the call of *name* with the keywords *said*, exception types by their names.
    """
    keywords = (f"{keyword}={_shown(value)}" for keyword, value in said.items())
    return f"{name}({', '.join(keywords)})"


def _shown(value: object) -> str:
    if isinstance(value, type):
        return value.__name__
    if not isinstance(value, tuple):
        return repr(value)
    items = [_shown(item) for item in cast("tuple[object, ...]", value)]
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
