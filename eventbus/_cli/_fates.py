"""
Why a letter is one, and what it waits for.

Law: a letter that tells of no failure says in words what it tells of.
"""

from __future__ import annotations

from eventbus._holder import holder_of
from eventbus.kept_letters import HELD, KeptLetter, KeptLetters

__all__ = ["Holders", "fate_of"]

_FATES = {
    "failed": "dead letter",
    "dropped": "dropped by its full queue",
    "undelivered": "not handled before the bus was closed",
    "unreadable": "cannot be read",
}


class Holders:
    """
    Knows behind which letters others wait; asks for each key once.
    """

    def __init__(self, letters: KeptLetters) -> None:
        self._letters = letters
        self._known: dict[tuple[str, str], str | None] = {}

    def behind(self, letter: KeptLetter) -> str | None:
        """
        Return the id of the letter that has to go first; ``None`` for one that does not wait.
        """
        subscription, key = letter.subscription, letter.record.key
        if letter.reason != HELD or key is None:
            return None
        if (subscription, key) not in self._known:
            holder = holder_of(self._letters, subscription, key)
            self._known[subscription, key] = None if holder is None else holder.id
        found = self._known[subscription, key]
        return None if found == letter.id else found


def fate_of(reason: str, behind: str | None) -> str:
    """
    Say in words what became of the event.
    """
    if reason == HELD:
        return "held until its key goes on" if behind is None else f"held behind {behind}"
    return _FATES.get(reason, reason)
