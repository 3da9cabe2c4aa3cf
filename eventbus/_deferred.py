"""
Publishes that wait for the end of a block: until it has ended well, or for nothing.

Law: keeps receipts in order, for one context; it neither writes nor delivers. What becomes
of them is decided by whoever opened the block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from threading import Lock
from types import MappingProxyType
from typing import Any

from eventbus._receipt import Receipt

__all__ = ["Deferred", "deferring"]

# Which blocks stand around the code here, by bus.
deferring: ContextVar[Mapping[Any, Deferred]] = ContextVar(
    "eventbus_deferring", default=MappingProxyType({})
)


class Deferred:
    """
    The publishes of one block.

    Args:
        publish: Publishes them, in this thread.
        apublish: Publishes them, in this task.
        is_logged: They are in the log already.
    """

    def __init__(
        self,
        publish: Callable[[Deferred], object],
        apublish: Callable[[Deferred], Awaitable[object]],
        *,
        is_logged: bool = False,
    ) -> None:
        self.is_logged = is_logged
        self._publish = publish
        self._apublish = apublish
        self._lock = Lock()
        self._receipts: list[Receipt] = []

    def add(self, receipt: Receipt) -> None:
        """
        Let a publish wait.
        """
        receipt.postponed = self
        with self._lock:
            self._receipts.append(receipt)

    def cancel(self, receipt: Receipt) -> bool:
        """
        Forget a publish; ``False``: it waits no more.
        """
        with self._lock:
            waits = any(each is receipt for each in self._receipts)
            self._receipts = [each for each in self._receipts if each is not receipt]
        if waits:
            let_go(receipt)
        return waits

    def take_all(self) -> list[Receipt]:
        """
        Return what has waited; it waits no more.
        """
        with self._lock:
            receipts, self._receipts = self._receipts, []
        return receipts

    def publish(self) -> None:
        """
        Publish what has waited.
        """
        self._publish(self)

    async def apublish(self) -> None:
        """
        Publish what has waited, awaiting async handlers.
        """
        await self._apublish(self)

    def drop(self) -> None:
        """
        Publish nothing of it.
        """
        for receipt in self.take_all():
            let_go(receipt)


def let_go(receipt: Receipt) -> None:
    """
    Free the publisher's key of an event that is not published.
    """
    receipt.postponed, receipt.finished = None, True
    free = (receipt.options or {}).get("free")
    if free is not None:
        free()
