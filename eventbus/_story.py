"""
How one attempt failed, told in texts that outlive the exception.

Law: whatever an exception does when it is printed, its story is written.
"""

from __future__ import annotations

from datetime import datetime

import attrs

__all__ = ["AttemptFailure", "story", "type_name"]

MESSAGE_LIMIT = 2_000  # characters; longer ones are usually a dumped payload
TRACEBACK_LIMIT = 10_000  # characters: about 100 frames


@attrs.frozen(kw_only=True)
class AttemptFailure:
    """
    How one attempt failed.

    Attributes:
        number: Which attempt it was, counted from 1 over all redrives; 0: none was made.
        exception: What was raised, or ``None`` where only the texts were kept. Through its
            traceback it keeps the handler's frames alive, as long as the letter is kept.
        error_type: Its module and qualified name; of a builtin the name alone.
        message: Its text, at most 2,000 characters; says so where it is cut, in the middle.
        traceback: As Python prints it, at most 10,000 characters, cut likewise.
        time: When the attempt failed, in UTC.

    .. versionadded:: 0.1
    """

    number: int
    exception: BaseException | None = attrs.field(default=None, eq=False, repr=False)
    error_type: str
    message: str
    traceback: str = attrs.field(repr=False)
    time: datetime


def type_name(error: type[BaseException]) -> str:
    """
    Return the module and the qualified name of an exception class; of a builtin the name.
    """
    module = error.__module__
    return error.__qualname__ if module == "builtins" else f"{module}.{error.__qualname__}"


def _cut(text: str, limit: int) -> str:
    note = f"\n... (cut: {len(text):,} characters in all) ...\n"
    head, tail = limit - limit // 2 - len(note), limit // 2
    return text if len(text) <= limit else text[:head] + note + text[-tail:]


def story(number: int, exception: BaseException, time: datetime) -> AttemptFailure:
    """
    Write down how attempt *number* failed, even if *exception* cannot be printed.

    .. versionadded:: 0.1
    """
    import traceback  # late: for start-up time

    try:
        message = str(exception)
    except Exception as error:
        message = f"<not printable: {type_name(type(error))}>"
    try:
        trace = "".join(traceback.format_exception(exception))
    except Exception:  # malformed attributes, as those of a SyntaxError made by hand
        trace = "".join(traceback.format_tb(exception.__traceback__))
    return AttemptFailure(
        number=number,
        exception=exception,
        error_type=type_name(type(exception)),
        message=_cut(message, MESSAGE_LIMIT),
        traceback=_cut(trace, TRACEBACK_LIMIT),
        time=time,
    )
