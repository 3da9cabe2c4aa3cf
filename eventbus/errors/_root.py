"""
The root of the tree of errors.

Law: an error can be copied and pickled where what it carries can be.
"""

from __future__ import annotations

from typing import Any

__all__ = ["EventBusError", "portable"]


def portable(self: Any) -> tuple[Any, ...]:
    """
    Reduce an error to what it holds; by itself it would be its message's alone.
    """
    return _restored, (type(self), self.args, vars(self))


def _restored(cls: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    error = cls.__new__(cls, *args)
    error.args = args  # an `OSError` takes them in its constructor only
    vars(error).update(state)
    return error


class EventBusError(Exception):
    """
    The root of every error this library raises.

    .. versionadded:: 0.1
    """

    __reduce__ = portable
