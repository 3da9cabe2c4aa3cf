"""
Which dead letter it is that the later events of a key wait behind.

Law: looks at letters as they are stored, and at as few of them as will do.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from eventbus.kept_letters import KeptLetter, KeptLetters, Selection

__all__ = ["holder_of"]


def holder_of(letters: KeptLetters, subscription: str, key: str) -> KeptLetter | None:
    """
    Return the letter that has to be redriven or discarded before a key goes on, if any has.
    """
    of_key = Selection(subscription=subscription, key=key, holds_key=True)
    return next((each for each in _asked_for(letters, of_key) if each.is_stuck), None)


def _asked_for(letters: KeptLetters, of_key: Selection) -> Iterator[KeptLetter]:
    """
    Find the likely ones first: those that wait behind it may be many.
    """
    if first := letters.query(of_key, limit=1):
        yield from first
        yield from letters.query(attrs.evolve(of_key, reason="failed"), limit=1)
        yield from letters.query(of_key)
