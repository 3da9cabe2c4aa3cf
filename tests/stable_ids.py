"""
Names of parametrised tests that are the same in every run.
"""

from __future__ import annotations

import re

__all__ = ["stable"]


def stable(value: object) -> str:
    """
    Return how *value* is shown, without the address at which it happens to be.

    Sets are shown by their kind: they have an order of their own in each run.
    """
    if isinstance(value, set | frozenset):
        return type(value).__name__
    return re.sub(r" (at 0x|id=')[0-9a-f]+'?", "", repr(value))
