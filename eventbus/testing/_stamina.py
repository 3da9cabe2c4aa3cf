"""
How long what is queued may be worked off: as long as it comes to an end.

Law: counts, and does nothing else. That a backlog is long is no reason to give up; that it
does not get shorter, however much of it is handled, is one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import attrs

from eventbus._intake import Intake

__all__ = ["EndlessError", "Stamina"]

# So many events are handled, at least, before it is asked whether fewer are left than before.
_SPELL = 5_000


class EndlessError(AssertionError):
    """
    Handlers fill their queues as fast as these are emptied.
    """


@attrs.define(eq=False)
class Stamina:
    """
    What was handled in one go.

    Args:
        queues: Returns the queues that are worked off.
    """

    _queues: Callable[[], Iterable[Intake]]
    _handled: Counter[str] = attrs.field(init=False, factory=Counter)
    _spell: int = attrs.field(init=False, factory=lambda: _SPELL)
    _left: float = attrs.field(init=False, default=math.inf)

    def spend(self, queues: Sequence[Intake]) -> None:
        """
        Count one event of each of *queues*.

        Raises:
            EndlessError: A great many were handled, and no fewer than before are left.
        """
        __tracebackhide__ = True
        self._handled.update(each.name for each in queues)
        self._spell -= len(queues)
        if self._spell > 0:
            return
        left = sum(each.depth().waiting + each.unread for each in self._queues())
        if left >= self._left:
            name, count = self._handled.most_common(1)[0]
            raise EndlessError(
                f"{name} has handled {count:,} events in one go, and {left:,} more wait: its "
                f"handler, or one of those it leads to, publishes into its own queue without end. "
                f"Give that publish a delay=, or ask for less with settle(until=...)."
            )
        # Twice over: what is left may lead to more before it gets less.
        self._spell, self._left = max(_SPELL, 2 * left), left
