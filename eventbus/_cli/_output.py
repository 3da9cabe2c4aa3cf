"""
What a command writes: aligned tables for people, one JSON object per line for programs.

Law: nothing that was stored reaches a terminal unescaped, and nothing that was written is
cut short in JSON.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

__all__ = ["HandlerFailedError", "Output", "UsageError", "at", "payload_of", "plain", "told"]

_WIDEST = 60  # characters of one cell, so that a row is seen as one


class HandlerFailedError(Exception):
    """
    Raised when a handler of the application's has raised.
    """


class UsageError(Exception):
    """
    Raised when a command cannot be done as it was asked for.
    """


class Output:
    """
    Writes rows, facts and lines.

    Args:
        stream: Where to.
        is_json: One object per line.
        sleep: Called between two looks at what is followed.
    """

    def __init__(self, stream: TextIO, *, is_json: bool, sleep: Callable[[float], None]) -> None:
        self.stream = stream
        self.is_json = is_json
        self.sleep = sleep
        self._widths: list[int] = []

    def rows(self, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
        """
        Write a table; in JSON, each row with all it has.
        """
        if self.is_json:
            for row in rows:
                self.line(row)
            return
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        heads = [column.upper().replace("_", " ") for column in columns]
        self._widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
        for row_of_cells in [heads, *cells]:
            self._row(row_of_cells)

    def _row(self, cells: Sequence[str]) -> None:
        pairs = zip(cells, self._widths, strict=True)
        self.text("  ".join(cell.ljust(width) for cell, width in pairs).rstrip())

    def one(self, columns: Sequence[str], row: Mapping[str, Any]) -> None:
        """
        Write one more row of the last table; a column that is too narrow stays wider.
        """
        if self.is_json:
            self.line(row)
            return
        cells = [_cell(row.get(column)) for column in columns]
        self._widths = [max(each) for each in zip(self._widths, map(len, cells), strict=True)]
        self._row(cells)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """
        Write names and values, one below the other.
        """
        if self.is_json:
            self.line(facts)
            return
        width = max(map(len, facts))
        for name, value in facts.items():
            self.text(f"{name.replace('_', ' ').ljust(width)}  {plain(_text(value))}".rstrip())

    def line(self, value: Mapping[str, Any]) -> None:
        """
        Write one object of JSON.
        """
        self.stream.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")

    def text(self, text: str) -> None:
        """
        Write one line.
        """
        self.stream.write(text + "\n")


def plain(text: str) -> str:
    """
    Escape what a terminal would obey.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def at(time: datetime | float | None) -> str | None:
    """
    Write a time, or seconds since 1970-01-01 UTC.
    """
    if isinstance(time, float | int):
        try:
            time = datetime.fromtimestamp(time, UTC)
        except (OverflowError, ValueError, OSError):  # beyond the years that a date can be of
            return f"{time:g} s"
    return None if time is None else time.isoformat(timespec="milliseconds")


def payload_of(payload: bytes) -> Any:
    """
    Read a payload as JSON, as text, or as what base64 makes of it.
    """
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):  # no JSON, or nested deeper than anything is read
        pass
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(payload).decode()}


def told(story: str) -> list[dict[str, Any]]:
    """
    Read what was written down of failed attempts, the oldest first; nothing else counts.
    """
    try:
        found: Any = json.loads(story)
        return [each for each in found if isinstance(each, dict)]
    except (TypeError, ValueError):
        return []


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _cell(value: Any) -> str:
    text = plain(_text(value))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
