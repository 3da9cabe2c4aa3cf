"""
Dead letters in memory, undecoded.

Law: a dictionary in order of arrival, and who has claimed which letter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from math import inf
from operator import attrgetter
from typing import Any

import attrs

from eventbus.errors import DeadLetterNotFoundError
from eventbus.event_log import check_limit
from eventbus.kept_letters import EVERY_LETTER, KeptLetter, Selection

__all__ = ["MemoryLetters", "missing"]

_place_of = attrgetter("place")


class MemoryLetters:
    """
    Keeps letters in this process, until it ends.

    Args:
        lock: What to hold while something changes; reentrant.

    Attributes:
        changes: How often something has changed.
    """

    def __init__(self, lock: AbstractContextManager[Any]) -> None:
        self._lock = lock
        self._by_id: dict[str, KeptLetter] = {}
        self._claims: dict[str, tuple[str, float]] = {}
        self._last_place = 0
        self.changes = 0

    def add(self, letter: KeptLetter) -> None:
        """
        Keep a letter, or raise `ValueError`: one of its id is kept already.
        """
        with self._lock:
            self.prepare([letter])()

    def prepare(
        self, letters: Sequence[KeptLetter], gone: Collection[str] = ()
    ) -> Callable[[], None]:
        """
        Return what takes letters out and keeps others; it cannot fail while the lock is held.
        """
        added = dict[str, KeptLetter]()
        for letter in letters:
            if letter.id in self._by_id or letter.id in added:
                raise ValueError(f"dead letter {letter.id!r} is kept already: use replace()")
            added[letter.id] = letter

        def install() -> None:
            for id in gone:
                self.remove(id)
            for each in added.values():
                self._last_place += 1
                self._put(attrs.evolve(each, place=self._last_place))

        return install

    def _put(self, letter: KeptLetter) -> None:
        self._by_id[letter.id] = letter
        self.changes += 1

    def get(self, id: str) -> KeptLetter:
        """
        Return the letter of that id.
        """
        with self._lock:
            try:
                return self._by_id[id]
            except KeyError:
                raise missing(id) from None

    def query(
        self,
        selection: Selection = EVERY_LETTER,
        *,
        limit: int | None = None,
        after: int = 0,
    ) -> list[KeptLetter]:
        """
        Return the letters that are meant, first arrival first, at most *limit*.
        """
        check_limit(limit)
        with self._lock:
            letters = list(self._by_id.values())
        behind = letters[bisect_right(letters, after, key=_place_of) :]
        return list(islice(filter(selection.matches, behind), limit))

    def count(self, selection: Selection = EVERY_LETTER) -> int:
        """
        Return how many letters are meant.
        """
        return len(self.query(selection))

    def replace(self, letter: KeptLetter) -> None:
        """
        Put *letter* in the place of the one with its id; its claim ends.
        """
        with self._lock:
            self._put(attrs.evolve(letter, place=self.get(letter.id).place))
            self._claims.pop(letter.id, None)

    def edit(self, id: str, payload: bytes | None) -> KeptLetter:
        """
        Deliver *payload* from now on; ``None``: the original again.
        """
        with self._lock:
            self._put(attrs.evolve(self.get(id), edited=payload))
            return self.get(id)

    def remove(self, id: str) -> KeptLetter:
        """
        Take the letter of that id out and return it.
        """
        with self._lock:
            self.get(id)
            self._claims.pop(id, None)
            self.changes += 1
            return self._by_id.pop(id)

    def discard(self, selection: Selection = EVERY_LETTER) -> int:
        """
        Throw away the letters that are meant, all if nothing is said; count them.
        """
        with self._lock:
            return len([self.remove(letter.id) for letter in self.query(selection)])

    def claim(self, id: str, *, owner: str, ttl: float, now: float) -> bool:
        """
        Ask for the right to redrive a letter; of all who ask, one gets it.
        """
        with self._lock:
            self.get(id)
            holder, expires = self._claims.get(id, (owner, now))
            if holder != owner and now < expires:
                return False
            self._claims[id] = (owner, now + ttl)
            self.changes += 1
            return True

    def release_all(self) -> None:
        """
        End every claim, as if its owner had been dead for a while.
        """
        with self._lock:
            self._claims.clear()
            self.changes += 1

    def floor(self) -> float:
        """
        Return the offset up to which no event waits behind a letter, nor is that letter's.
        """
        with self._lock:
            held = [each.record.offset for each in self._by_id.values() if each.holds_key]
        return min(held, default=inf) - 1

    def held_keys(self, subscription: str) -> frozenset[str]:
        """
        Return the keys whose later events wait behind a letter.
        """
        return _keys(self.holding(subscription))

    def stuck_keys(self, subscription: str) -> frozenset[str]:
        """
        Return the held keys that do not go on by themselves.
        """
        return _keys(each for each in self.holding(subscription) if each.is_stuck)

    def holding(self, subscription: str) -> list[KeptLetter]:
        """
        Return the letters of a subscription behind which later events wait.
        """
        with self._lock:
            letters = list(self._by_id.values())
        return [each for each in letters if each.holds_key and each.subscription == subscription]

    def free(self, subscription: str, keys: Collection[str], *, now: float) -> dict[str, list[int]]:
        """
        Take out the letters that hold *keys*, and return the offsets of their records.

        Keys of which a letter is stuck, or is being redriven, are left out.
        """
        freed: dict[str, list[KeptLetter]] = {key: [] for key in keys}
        for letter in self.holding(subscription):
            key = letter.record.key
            if key in freed:
                _, until = self._claims.get(letter.id, ("", now))
                if letter.is_stuck or now < until:
                    del freed[key]
                else:
                    freed[key].append(letter)
        return {
            key: sorted(self.remove(each.id).record.offset for each in letters)
            for key, letters in freed.items()
        }


def _keys(letters: Iterable[KeptLetter]) -> frozenset[str]:
    return frozenset(each.record.key for each in letters if each.record.key is not None)


def missing(id: str) -> DeadLetterNotFoundError:
    """
    Return the error that says that there is no letter of that id.
    """
    return DeadLetterNotFoundError(
        f"there is no dead letter {id!r}: it was redriven, discarded or never kept", letter_id=id
    )
