"""
What begins anew in a forked process: locks above all, which its parent's threads may hold.

Law: whoever has a lock that a publish, a subscribe or a close waits for registers it here, or
itself. Only the thread that forked goes on in the child: nobody there would ever release what
another one held. Nothing is kept alive by it.
"""

from __future__ import annotations

import os
from typing import Any, TypeVar
from weakref import WeakValueDictionary

__all__ = ["renewed"]

T = TypeVar("T")


def renewed(thing: T) -> T:
    """
    Return *thing*, which is to begin anew in a forked child.

    It has an ``_at_fork_reinit``, as all has that `threading` lets one wait for: that is how
    the standard library renews its own. There is none on a platform that does not fork.
    """
    _things[id(thing)] = thing
    return thing


# By id: of what is a user's subclass, not all need be hashable.
_things: WeakValueDictionary[int, Any] = WeakValueDictionary()


def _after_fork() -> None:
    """
    Let nobody hold, in this process, what is registered, nor wait for it.
    """
    for thing in list(_things.values()):
        thing._at_fork_reinit()


if hasattr(os, "register_at_fork"):  # pragma: no branch - missing on Windows only
    os.register_at_fork(after_in_child=_after_fork)
