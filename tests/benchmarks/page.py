"""
What was measured, as text: the tables, and the page of the documentation they stand in.

Law: times and ratios become words here and nowhere else; nothing is measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .rows import Row

PEERS = "Against peers and limits"
_HEAD = ("path", "against", "ours", "theirs", "ratio", "target", "")


def show(seconds: float | None, unit: str = "s") -> str:
    """
    Write a time in the unit that suits it, or so many bytes.
    """
    if seconds is None:
        return "-"
    if unit == "B":
        return f"{seconds / 1e6:,.1f} MB"
    if seconds < 1e-5:
        return f"{seconds * 1e9:,.0f} ns"
    return f"{seconds * 1e6:,.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"


def cells(row: Row) -> tuple[str, ...]:
    """
    Write a row as the cells of the table.
    """
    ratio = row.ratio
    digits = ".2f" if ratio is None or ratio >= 0.1 else ".3f" if ratio >= 0.01 else ".2g"
    shown = "-" if ratio is None else f"{ratio:{digits}}"
    target = "" if row.target is None else f"≤ {row.target:g}"
    times = (show(row.ours, row.unit), show(row.theirs, row.unit))
    return (row.race, row.rival, *times, shown, target, row.verdict)


def table(found: Sequence[Row]) -> str:
    """
    Write rows as a Markdown table that also reads well in a terminal; empty columns are left out.
    """
    columns = zip(*(cells(row) for row in found), strict=True)
    filled = [(head, *column) for head, column in zip(_HEAD, columns, strict=False) if any(column)]
    padded = [[cell.ljust(max(map(len, column))) for cell in column] for column in filled]
    lines = ["| " + " | ".join(line) + " |" for line in zip(*padded, strict=True)]
    rule = "".join(f"|{'-' * (len(column[0]) + 2)}" for column in padded) + "|"
    return "\n".join([*lines[:1], rule, *lines[1:]])


def described(around: Mapping[str, Any]) -> str:
    """
    Say where and with what it was measured.
    """
    return (
        f"{around['implementation']} {around['python']} on {around['platform']}, "
        f"{around['processors']} processors, load average {around['load']:.1f} at the start.\n"
        + ", ".join(f"{name} {version}" for name, version in around["versions"].items())
        + "."
    )


def block(found: Mapping[str, Sequence[Row]], around: Mapping[str, Any]) -> str:
    """
    Write all that one Python measured, the targets first.
    """
    targets = [row for section in found.values() for row in section if row.target is not None]
    parts = [described(around), "**Targets**", table(targets)]
    for title, section in sorted(found.items(), key=lambda item: item[0] == PEERS):
        parts += [f"**{title}**", table(section)]
    return "\n\n".join(parts)


def renew(page: Path, found: Mapping[str, Sequence[Row]], around: Mapping[str, Any]) -> None:
    """
    Replace what *page* holds between the two marks of this Python.

    Raises:
        ValueError: The page has no such marks.
    """
    python = ".".join(around["python"].split(".")[:2])
    opening, closing = f"<!-- measured on {python} -->", f"<!-- end of {python} -->"
    between = re.compile(f"{re.escape(opening)}.*{re.escape(closing)}", re.DOTALL)
    text = page.read_text(encoding="utf-8")
    if not between.search(text):
        raise ValueError(f"{page} has no block from {opening} to {closing}")
    measured = f"{opening}\n\n{block(found, around)}\n\n{closing}"
    page.write_text(between.sub(lambda _: measured, text), encoding="utf-8")
