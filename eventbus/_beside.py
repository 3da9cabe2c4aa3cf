"""
What a store can do besides: the ways that not every store has, such as to be awaited.

Law: asks the classes of a store and nothing else. A further way counts only where it was
written for the same store as the way that all have: a class that has replaced that one, or
stands before another store and hands the rest on to it, has not meant the other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

__all__ = ["beside"]


def beside(store: object, way: str, other: str) -> Any:
    """
    Return the method *other* of a store, if it does as the method *way* does; or ``None``.
    """
    own = getattr(store, "__dict__", {})
    if way in own and other not in own:
        return None
    cls: Any = type(store)
    return getattr(store, other, None) if _are_of_one(cls, way, other) else None


@lru_cache(maxsize=256)
def _are_of_one(cls: Any, way: str, other: str) -> bool:
    for each in cls.__mro__:
        if way in vars(each):
            return other in vars(each)
    return True  # it has neither, and hands both on
