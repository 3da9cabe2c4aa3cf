"""
Publishes that wait for the end of a block: until it has ended well, or for nothing.

Law: keeps receipts in order, for one context; it neither writes nor delivers. What becomes
of them is decided by whoever opened the block. A block that is over takes no more: what
its tasks and threads publish later is no part of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from threading import Lock
from types import MappingProxyType
from typing import Any

import attrs

from eventbus._logger import logger
from eventbus._receipt import Receipt
from eventbus.event_log import Record, stream_of

__all__ = ["Block", "Deferred", "in_common", "keep", "let_go", "open_block", "or_let_go", "unheard"]

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
        outer: The block around this one.
        is_logged: They are in the log already, but those that are due later.

    Attributes:
        is_over: Whether the block has ended.
        is_plain: It was entered by ``with``, and its end cannot await.
        root: The outermost block around it, or itself.
    """

    def __init__(
        self,
        publish: Callable[[Deferred], object],
        apublish: Callable[[Deferred], Awaitable[object]],
        outer: Deferred | None = None,
        *,
        is_logged: bool = False,
    ) -> None:
        self.is_logged = is_logged
        self.is_over = self.is_plain = False
        self.root: Deferred = self if outer is None else outer.root
        self._outer = outer
        self._publish = publish
        self._apublish = apublish
        self._lock = Lock()
        self._receipts: list[Receipt] = []
        self._has_versions = False
        self._stream = _Stream()  # of those that wait, as far as one has looked

    @property
    def open(self) -> Deferred | None:
        """
        The innermost block that has not ended: this one, or one around it.
        """
        block: Deferred | None = self
        while block is not None and block.is_over:
            block = block._outer
        return block

    @property
    def waiting(self) -> int:
        """
        How many publishes wait for its end, and for that of the blocks around it.
        """
        outer = None if self._outer is None else self._outer.open
        return len(self._receipts) + (0 if outer is None else outer.waiting)

    def check(self, receipts: Sequence[Receipt]) -> None:
        """
        Refuse to add what could not be stored at the end of the block with what waits here.

        Raises:
            TypeError, ValueError: See `in_common`; or there are several streams.
        """
        if self._has_versions or any(map(_has_version, receipts)):
            with self._lock:
                self._stream.take(self._receipts[self._stream.taken :])
                stream = copy(self._stream)
            stream.take(receipts)

    def add(self, *receipts: Receipt) -> bool:
        """
        Let publishes wait; ``False``: the block is over.
        """
        with self._lock:
            if self.is_over:
                return False
            for receipt in receipts:
                receipt.postponed = self
            self._receipts += receipts
            self._has_versions |= any(map(_has_version, receipts))
        return True

    def cancel(self, receipt: Receipt) -> bool:
        """
        Forget a publish; ``False``: it waits no more.
        """
        with self._lock:
            waits = any(each is receipt for each in self._receipts)
            self._receipts = [each for each in self._receipts if each is not receipt]
            self._stream = _Stream()
        if waits:
            let_go(receipt)
        return waits

    def take_all(self) -> list[Receipt]:
        """
        End, and return what has waited; it waits no more.
        """
        with self._lock:
            self.is_over = True
            receipts, self._receipts = self._receipts, []
        return receipts

    def leave(self) -> bool:
        """
        Leave what waits to the block around; ``False``: there is none, or it has ended.
        """
        outer = None if self._outer is None else self._outer.open
        if outer is None:
            return False
        receipts = self.take_all()
        with or_let_go(receipts):
            outer.check(receipts)
        if outer.add(*receipts):  # pragma: no branch - it has ended in this moment
            return True
        self._receipts = receipts  # pragma: no cover
        return False  # pragma: no cover

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

    def drop(self) -> int:
        """
        Publish nothing of it; return how much that is.
        """
        receipts = self.take_all()
        for receipt in receipts:
            let_go(receipt)
        return len(receipts)


class Block:
    """
    What `EventBus.deferred` opens.

    Args:
        bus: Whose publishes wait.
        make: Makes what they wait in, given the block around.
    """

    def __init__(self, bus: object, make: Callable[[Deferred | None], Deferred]) -> None:
        self._bus = bus
        self._make = make
        self._entered: list[tuple[Deferred, Mapping[Any, Deferred]]] = []

    def __enter__(self) -> Deferred:
        deferred = self._enter()
        deferred.is_plain = True
        return deferred

    def _enter(self) -> Deferred:
        around = deferring.get()
        deferred = self._make(open_block(self._bus))
        self._entered.append((deferred, around))
        deferring.set({**around, self._bus: deferred})
        return deferred

    def __exit__(self, kind: object, *_: object) -> None:
        if (deferred := self._to_be_published(kind)) is not None:
            deferred.publish()

    async def __aenter__(self) -> Deferred:
        return self._enter()

    async def __aexit__(self, kind: object, *_: object) -> None:
        if (deferred := self._to_be_published(kind)) is not None:
            await deferred.apublish()

    def _to_be_published(self, kind: object) -> Deferred | None:
        deferred, around = self._entered.pop()
        # A generator may be closed in another context than the one in which it was begun.
        if deferring.get().get(self._bus) is deferred:
            deferring.set(around)
        if kind is None:
            return None if deferred.leave() else deferred
        dropped = deferred.drop()
        if dropped and kind is GeneratorExit:  # which nobody hears of
            logger().warning(
                "%d publishes are dropped: the generator with their deferred() block was closed "
                "inside of it",
                dropped,
            )
        return None


def open_block(bus: object) -> Deferred | None:
    """
    Return the innermost block of *bus* around the code here that has not ended.
    """
    block = deferring.get().get(bus)
    return None if block is None else block.open


def _has_version(receipt: Receipt) -> bool:
    return (receipt.options or {}).get("expected_version") is not None


def _is_stored_then(receipt: Receipt) -> bool:
    """
    Whether a publish that waits for the end of a block is stored by that.
    """
    options = receipt.options or {}
    return "record" in options and "due" not in options


def let_go(receipt: Receipt) -> None:
    """
    Free the publisher's key of an event that is not published.
    """
    receipt.postponed, receipt.finished = None, True
    free = (receipt.options or {}).pop("free", None)
    if free is not None:
        free()


def keep(receipt: Receipt) -> None:
    """
    Record the publisher's key of an event that is stored as used.
    """
    do = (receipt.options or {}).pop("keep", None)
    if do is not None:
        do()


@contextmanager
def or_let_go(receipts: Iterable[Receipt]) -> Generator[None]:
    """
    Publish none of *receipts* if the block raises.

    What interrupts it does not say what came of it: then a key is held until its lease ends.
    """
    try:
        yield
    except Exception:
        for receipt in receipts:
            if not receipt.cancel():
                let_go(receipt)
        raise


@contextmanager
def unheard(name: str) -> Generator[None]:
    """
    Log what is raised after the commit of a handler's transaction: it has not failed any more.
    """
    try:
        yield
    except Exception:
        logger().exception("what %s has published, in its transaction, failed", name)


def in_common(receipts: Sequence[Receipt]) -> Mapping[str, Any]:
    """
    Return what is asked of the log for all of *receipts*: the version of a stream.

    Raises:
        TypeError: Only some ask for it.
        ValueError: What they ask for cannot be true of one stream.
    """
    versions = _Versions()
    for each in receipts:
        versions.add((each.options or {}).get("expected_version"))
    return {} if versions.first is None else {"expected_version": versions.first}


@attrs.define
class _Versions:
    """
    What the events of a block ask of the version of their stream, one after the other.
    """

    first: int | None = None
    _before: int | None = None
    _count: int = 0

    def add(self, version: int | None) -> None:
        if self._count == 0:
            self.first = version
        elif (version is None) is not (self.first is None):
            raise TypeError(
                "expected_version= in bus.deferred() is given to all events, or to none"
            )
        elif self.first is not None and version not in (self._before, self.first + self._count):
            # Each may count those before it, as it would outside, or be part of a batch.
            raise ValueError(
                f"expected_version={version} in bus.deferred() cannot be: the block begins at "
                f"{self.first}, and {self._count} of its events come before. "
                f"Give {self.first + self._count}, or one stream a block of its own."
            )
        self._before = version
        self._count += 1


@attrs.define
class _Stream:
    """
    The one stream of a block: what is added to it is looked at once.

    Attributes:
        taken: How many publishes it has looked at.
    """

    taken: int = 0
    _versions: _Versions = attrs.field(factory=_Versions)
    _record: Record | None = None

    def __copy__(self) -> _Stream:
        return _Stream(self.taken, copy(self._versions), self._record)

    def take(self, receipts: Sequence[Receipt]) -> None:
        """
        Look at more of them; what could not be stored with those before is refused.
        """
        for receipt in receipts:
            if _is_stored_then(receipt):
                options = receipt.options or {}
                self._versions.add(options.get("expected_version"))
                record: Record = options["record"]
                if self._versions.first is not None:
                    stream_of([record if self._record is None else self._record, record])
                self._record = record
            self.taken += 1
