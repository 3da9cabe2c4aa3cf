"""
What does not fit, and where: the trouble of one value on its way to JSON or back.

Law: inside the codec every failure travels as a `MisfitError` and gathers its path on the
way out; the codec alone turns it into an `EncodeError` or a `DecodeError`. Nothing
here knows types or formats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["MisfitError", "kind_of", "told", "type_of", "within"]


# To a type checker the class of anything at all is anything at all.
type_of: Callable[[Any], Any] = type


class MisfitError(ValueError):
    """
    Raised when a value does not fit the type its field declares.

    Attributes:
        reason: What is wrong, without saying where.
        path: Where, from the event inwards: ``.lines[2].price``.
        cause: What was raised first, where it was not this.
    """

    def __init__(self, reason: str, *, path: str = "", cause: Exception | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path
        self.cause = cause


def within(step: str, error: Exception) -> Exception:
    """
    Return *error* as seen from one *step* further out.

    What ran out of stack has no path: it would be as long as the stack is deep.
    """
    if isinstance(error, RecursionError):
        return error
    misfit = told(error)
    misfit.path = step + misfit.path
    return misfit


def told(error: Exception) -> MisfitError:
    """
    Return what *error* says as a `MisfitError`, with the path cattrs has noted, if any.
    """
    if isinstance(error, MisfitError):
        return error
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply, or holds itself"
        return MisfitError(reason, cause=error)
    path = ""
    inner: Any = error
    while hasattr(inner, "exceptions"):
        inner = inner.exceptions[0]
        path += "".join(_step(note) for note in getattr(inner, "__notes__", ()))
    if isinstance(inner, MisfitError):
        inner.path = path + inner.path
        return inner
    return MisfitError(f"{type(inner).__name__}: {inner}", path=path, cause=error)


def kind_of(value: object) -> str:
    """
    Name the type of *value* the way a message does.
    """
    return "None" if value is None else type(value).__name__


def _step(note: Any) -> str:
    # What cattrs notes on an error is text that also has the name or the index.
    if hasattr(note, "name"):
        return f".{note.name}"
    return f"[{note.index!r}]" if type(note) is not str else ""
