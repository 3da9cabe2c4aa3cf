"""
What waits behind one of its key that sleeps, tries again, or has just been over.

Law: keeps the order of the log for each key, and decides nothing. A key is closed until
the first of it is over, however often that is tried; then those behind it go on one after
the other. To close and to open a key costs the same however many wait behind it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict, deque
from collections.abc import Sequence
from heapq import merge

from eventbus._entry import Entry

__all__ = ["Behind", "merged"]


class Behind:
    """
    The lines of entries that wait behind the first of their key.
    """

    def __init__(self) -> None:
        self._first: dict[str, int] = {}  # for whom a key is closed
        self._lines: dict[str, deque[Entry]] = {}  # none of them empty
        self._open: OrderedDict[str, None] = OrderedDict()  # those that may go on

    def __len__(self) -> int:
        return sum(map(len, list(self._lines.values())))

    @property
    def is_empty(self) -> bool:
        """
        Whether nothing waits here.
        """
        return not self._lines

    @property
    def next_line(self) -> deque[Entry] | None:
        """
        The line whose turn it is; ``None`` if there is none, or all are closed.
        """
        return self._lines[next(iter(self._open))] if self._open else None

    def move_on(self) -> None:
        """
        Note that the first of `next_line` was taken out: it is the next one's turn.
        """
        key, _ = self._open.popitem(last=False)
        if self._lines[key]:
            self._open[key] = None
        else:
            del self._lines[key]

    def close(self, entry: Entry) -> None:
        """
        Let nothing of the entry's key go on before the entry is over.
        """
        if entry.key is not None:
            self._first[entry.key] = entry.offset
            self._open.pop(entry.key, None)

    def open(self, entry: Entry) -> None:
        """
        Let what waits behind the entry go on, if it is for this one that it waits.
        """
        key = entry.key
        if key is not None and self._first.get(key) == entry.offset:
            del self._first[key]
            if key in self._lines:
                self._open[key] = None

    def is_in_the_way_of(self, entry: Entry) -> bool:
        """
        Whether the entry's key is closed for it, or others come before it.
        """
        key = entry.key
        if key is None:
            return False
        if (first := self._first.get(key)) is not None:
            return first != entry.offset
        return key in self._lines and self._lines[key][0].offset < entry.offset

    def add(self, key: str, entries: Sequence[Entry]) -> None:
        """
        Let entries, in the order of the log, wait for those of their key before them.
        """
        if entries:
            self._lines[key] = merged(self._lines.get(key, deque()), entries)


def merged(line: deque[Entry], entries: Sequence[Entry]) -> deque[Entry]:
    """
    Return the line with the entries in it, in the order of the log.
    """
    if not line or not entries or line[-1].offset < entries[0].offset:
        line.extend(entries)
    elif entries[-1].offset < line[0].offset:
        line.extendleft(reversed(entries))
    elif len(entries) == 1:
        insort(line, entries[0], key=_offset)
    else:
        return deque(merge(entries, line, key=_offset))
    return line


def _offset(entry: Entry) -> int:
    return entry.offset
