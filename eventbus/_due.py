"""
A publish that was prepared is run: now, or when it is due.

Law: whoever runs a publish stands here, apart from the fast path of the verbs. One that
is due later is published to the handlers there are then, with the facts of the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eventbus._deferred import let_go, or_let_go
from eventbus._dispatch import adispatch, adispatch_concurrently, dispatch
from eventbus._envelope import here
from eventbus._postponed import Postponed, comes_to_handlers, moment_of
from eventbus._receipt import Receipt
from eventbus._redriving import Redriving
from eventbus._route import Route
from eventbus._subscription import Subscription
from eventbus._write_off import give_up

__all__ = ["Due"]


class Due(Redriving):
    """
    The part of `eventbus.EventBus` that runs what was prepared.
    """

    # -- now: the twins --------------------------------------------------------------------

    def _run(self, receipt: Receipt, route: Route) -> Receipt:
        if receipt.finished or receipt.postponed is not None:
            return receipt
        if not route.calls:
            receipt.finished = True
            return receipt
        token = here.set(receipt)
        try:
            dispatch(receipt, route, iter(route.calls))
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    async def _arun(self, receipt: Receipt, route: Route) -> Receipt:
        if receipt.finished or receipt.is_scheduled:
            return receipt
        run = adispatch_concurrently if self._is_concurrent else adispatch
        token = here.set(receipt)
        try:
            await run(receipt, route, iter(route.acalls))
        finally:
            here.reset(token)
            receipt.finished = True
        return receipt

    # -- later: the twins --------------------------------------------------------------------

    def _is_due(self, options: Mapping[str, Any]) -> bool:
        """
        Whether a publish with these options is one of now.
        """
        return moment_of(options, self._furniture.clock) is None

    def _those_postponed(self) -> Postponed:
        with self._lock:
            postponed: Postponed | None = self._postponed
            if postponed is None:
                self._postponed = postponed = Postponed(
                    publish=self._publish_due,
                    apublish=self._apublish_due,
                    write_off=self._write_off,
                    clock=self._furniture.clock,
                    alarms=self._alarms,
                    home=self._home,
                    limit=self._workers,
                )
                self._dress(postponed.queues)
            return postponed

    def _publish_due(self, receipt: Receipt) -> None:
        """
        Call the handlers there are now.
        """
        with or_let_go([receipt]):
            route = self._set_out(receipt)
            stored = self._logs(route)
            is_new = self._publisher.keys.claim(receipt, is_stored_next=stored)
            if is_new and stored:
                self._append([receipt], {})
        comes_to_handlers(receipt)
        if is_new:
            self._publisher.announce(receipt, route)
            self._publisher.conclude(self._run(receipt, route))

    async def _apublish_due(self, receipt: Receipt) -> None:
        """
        Call the handlers there are now.
        """
        with or_let_go([receipt]):
            route = self._set_out(receipt)
            stored = self._logs(route)
            is_new = await self._publisher.keys.aclaim(receipt, is_stored_next=stored)
            if is_new and stored:
                await self._aappend([receipt], {})
        comes_to_handlers(receipt)
        if is_new:
            self._publisher.announce(receipt, route)
            self._publisher.conclude(await self._arun(receipt, route))

    def _set_out(self, receipt: Receipt) -> Route:
        receipt.postponed = None
        receipt.route = route = self._routes[type(receipt.event)]
        return route

    def _write_off(self, receipt: Receipt, to: Iterable[Subscription] | None = None) -> None:
        """
        Keep what is not published any more as dead letters of those who would have got it.
        """
        let_go(receipt)
        happened: object = receipt.event
        to = self._registry.matching(type(happened)) if to is None else to
        give_up(self._furniture, to, receipt)
