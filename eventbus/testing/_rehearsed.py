"""
A queue's keeper that has every job handled twice while handlers are checked for it.

Law: the first time is the real keeper's; what the check compares it knows itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eventbus._envelope import here
from eventbus._job import Job, Keeper, Later, Worker
from eventbus._route import Folded
from eventbus._subscription import Subscription
from eventbus.testing._idempotence import IdempotenceCheck

__all__ = ["Rehearsed"]


class Rehearsed:
    """
    Stands in for *keeper*, the delivery of *subscription*.

    Args:
        keeper: Who really keeps the queue.
        subscription: Whose queue it is.
        check: Returns the check under way, if there is one.
        again: One more attempt, in `perform`.
        aagain: One more attempt, in `aperform`.
    """

    def __init__(
        self,
        keeper: Keeper,
        subscription: Subscription,
        check: Callable[[], IdempotenceCheck | None],
        again: Callable[[Any], Any],
        aagain: Callable[[Any], Any],
    ) -> None:
        self._keeper = keeper
        self._subscription = subscription
        self._check = check
        self._again = again
        self._aagain = aagain
        self.refuse = keeper.refuse
        self.write_off = keeper.write_off
        self.lose = keeper.lose

    def perform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job, and rehearse one more attempt of it.
        """
        if (check := self._check()) is None:
            return self._keeper.perform(job, worker)
        here.set(job.receipt)
        later: list[Later | None] = []

        def call(_: Any) -> None:
            later.append(self._keeper.perform(job, worker))

        check.twice(self._subscription, _folded(call), self._again, job.event)
        return later[0]

    async def aperform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job, and rehearse one more attempt of it.
        """
        if (check := self._check()) is None:
            return await self._keeper.aperform(job, worker)
        here.set(job.receipt)
        later: list[Later | None] = []

        async def acall(_: Any) -> None:
            later.append(await self._keeper.aperform(job, worker))

        await check.atwice(self._subscription, _folded(acall), self._aagain, job.event)
        return later[0]


def _folded(call: Callable[[Any], Any]) -> Folded:
    return Folded(call, call, _let_be, _let_be)


def _let_be(*_: object) -> None: ...
