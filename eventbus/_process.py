"""
What is lost with a process that closes nothing, and what a forked one leaves to its parent.

Law: whoever keeps events in memory registers here, and is asked when the process ends or
forks. Nobody is kept alive by it.
"""

from __future__ import annotations

import atexit
import os
import weakref
from typing import Protocol

from eventbus._logger import logger

__all__ = ["register"]


class Keeper(Protocol):
    """
    What keeps events that are nowhere but in this process.
    """

    name: str

    def lost_with_the_process(self) -> int:
        """
        Return how many events are nowhere but here.
        """
        ...

    def empty(self) -> None:
        """
        Begin with nothing, in a forked process: its parent has what was here.
        """
        ...


def register(keeper: Keeper) -> None:
    """
    Ask *keeper* at the end of the process, and in a forked child.
    """
    _keepers.add(keeper)


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _after_fork() -> None:
    """
    Leave to the parent what it has accepted: its workers are not in this process.
    """
    for keeper in list(_keepers):
        keeper.empty()


def _at_exit() -> None:
    """
    Say what is lost with the process, for nobody closed the bus.
    """
    for keeper in list(_keepers):
        if lost := keeper.lost_with_the_process():
            logger().warning(
                "the process ends with %d event%s of %s not handled: close() or drain() the bus "
                "before it does",
                lost,
                "" if lost == 1 else "s",
                keeper.name,
            )


if hasattr(os, "register_at_fork"):  # pragma: no branch - missing on Windows only
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
