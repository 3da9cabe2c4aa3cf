"""
Which bus stands in for which, and where.

Law: that one bus does what another is asked to do is known in one context, and ends with
the block that began it. Nothing else of either is changed.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any, Self

from eventbus._routing import Router
from eventbus._subscription import Subscription

__all__ = ["Replaceable"]

# Which bus stands in for which, in this context only: parallel tests see their own.
_stand_ins: ContextVar[Mapping[Replaceable, Any]] = ContextVar(
    "eventbus_stand_ins", default=MappingProxyType({})
)


class Replaceable:
    """
    The part of `eventbus.EventBus` that lets another bus stand in.
    """

    _routes: Router
    _lock: Lock
    _stood_in = 0
    # By name, what stands here for the subscriptions of a bus that this one stands in for.
    _adopted: Mapping[str, Subscription] = MappingProxyType({})

    @property
    def _is_plain(self) -> bool:
        return self._stood_in == 0

    @contextmanager
    def stood_in_by(self, other: Self) -> Generator[None]:
        """
        Let *other* do, in this context, whatever this bus is asked to do.

        Other contexts, and so other threads and tasks, go on with this bus. It is what
        `eventbus.testing.record` is made of.
        """
        self._stand(+1)
        token = _stand_ins.set({**_stand_ins.get(), self: other})
        try:
            yield
        finally:
            self._stand(-1)
            _stand_ins.reset(token)

    def _stand(self, step: int) -> None:
        with self._lock:
            self._stood_in += step
        self._routes.reset(is_plain=self._is_plain)

    def _stand_in(self) -> Self:
        if not self._stood_in:
            return self
        stand_in: Self = _stand_ins.get().get(self, self)
        return stand_in

    def _meant_here(self, subscription: Subscription) -> Subscription | None:
        """
        Return what stands for *subscription* in this context, if anything does.
        """
        stand_in = self._stand_in()
        if stand_in is self or not subscription.is_live:
            return subscription
        return stand_in._adopted.get(subscription.name)
