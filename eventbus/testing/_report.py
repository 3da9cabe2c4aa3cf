"""
The words of a failed assertion: what was asked for, and what was recorded instead.

Law: text from values, and nothing else. What is listed keeps the order in which it
happened; what a handler published stands indented under the event it was handling.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import attrs

__all__ = ["Entry", "counted", "further", "listing", "report", "times_in_words"]

# Entries of one list; beyond them, those are left out that look least like what was meant.
MOST = 30


@attrs.frozen(kw_only=True)
class Entry:
    """
    One thing that was recorded.

    Attributes:
        text: What it is.
        depth: How many events that are listed as well led to it.
        is_meant: Whether it is what was asked for; an arrow points at it.
        notes: What is to say about it, by what it misses for example.
        likeness: Higher is shown rather, where there is no room for all.
    """

    text: str
    depth: int = 0
    is_meant: bool = False
    notes: Sequence[str] = ()
    likeness: int = 0


def report(title: str, heading: str, entries: Sequence[Entry], *, nothing: str) -> str:
    """
    Put a whole message together.

    Args:
        title: What is wrong, in one sentence.
        heading: What the list shows.
        entries: The list.
        nothing: What to say where it is empty.
    """
    if not entries:
        return further(title, nothing)
    return "\n".join([title, "", f"{heading}:", *listing(entries)])


def further(text: str, sentence: str) -> str:
    """
    Add a sentence to a message, in a line of its own where that has several.
    """
    separator = "\n\n" if "\n" in text else " "
    return f"{text}{separator}{sentence}"


def listing(entries: Sequence[Entry]) -> Iterable[str]:
    """
    Print entries as numbered lines, each with its notes below.
    """
    width = len(str(len(entries)))
    chosen = set(_most_alike(entries))
    for position, entry in enumerate(entries):
        if position in chosen:
            arrow, branch = "→" if entry.is_meant else " ", "  " * (entry.depth - 1) + "└ "
            lead = f"{arrow} {position + 1:>{width}}. "
            yield f"{lead}{branch if entry.depth else ''}{entry.text}"
            for note in entry.notes:
                yield f"{' ' * (len(lead) + 2 * entry.depth)}  {note}"
    if len(chosen) < len(entries):
        yield f"  … and {len(entries) - len(chosen)} more"


def _most_alike(entries: Sequence[Entry]) -> Iterable[int]:
    ranked = sorted(
        range(len(entries)), key=lambda at: (not entries[at].is_meant, -entries[at].likeness, at)
    )
    return ranked[:MOST]


def times_in_words(count: int) -> str:
    """
    Say how often: never, once, twice, 3 times.
    """
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def counted(found: Sequence[object], times: int | None) -> str:
    """
    Say, after a verb, how often it was, and how often it was to be.
    """
    so_often = f" {times_in_words(len(found))}" if found else ""
    return so_often if times is None else f"{so_often}, expected {times_in_words(times)}"
