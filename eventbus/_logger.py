"""
The logger ``eventbus``, and what happens when writing to it fails.

Law: no delivery is harmed by what the application has hung on its logger. What a filter
or a handler there raises is shown on stderr, with what was to be logged, and ends here.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

__all__ = ["logger"]

# From where a line is logged: the caller of the method that calls `_write`.
_CALLER = 3


class _Guarded:
    """
    The logger ``eventbus``, that raises nothing.
    """

    def info(self, text: str, *given: object) -> None:
        self._write("INFO", text, given, {})

    def warning(self, text: str, *given: object, **options: Any) -> None:
        self._write("WARNING", text, given, options)

    def error(self, text: str, *given: object, **options: Any) -> None:
        self._write("ERROR", text, given, options)

    def exception(self, text: str, *given: object) -> None:
        """
        Log an error, with the traceback of the exception that is being handled.
        """
        self._write("ERROR", text, given, {"exc_info": True})

    def _write(
        self, level: str, text: str, given: tuple[object, ...], options: dict[str, Any]
    ) -> None:
        import logging  # late: for start-up time; only failures need it

        try:
            logging.getLogger("eventbus").log(
                getattr(logging, level), text, *given, stacklevel=_CALLER, **options
            )
        except Exception:
            if logging.raiseExceptions and sys.stderr is not None:
                _show(level, text, given)


def logger() -> _Guarded:
    """
    Return the logger ``eventbus``.
    """
    return _Guarded()


def _show(level: str, text: str, given: tuple[object, ...]) -> None:
    """
    Write on stderr what could not be logged, and why, as `logging` does for its handlers.
    """
    import traceback  # late: for start-up time

    with suppress(Exception):  # a stderr that is closed, an argument without a text
        why = traceback.format_exc()
        sys.stderr.write(
            f"eventbus could not log this, see below why:\n{level} {text % given}\n{why}"
        )
