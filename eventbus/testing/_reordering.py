"""
Events held back, to be delivered in another order than they were published in.

Law: holds and shuffles. What is held has been published, with envelope and receipt,
and the receipt never claims what has not happened yet. Who delivers it is no matter here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from contextvars import Context, copy_context

import attrs

from eventbus._receipt import Receipt
from eventbus._route import Route
from eventbus.errors import RunningLoopError

__all__ = ["Held", "Release", "Reordering", "mark_undelivered", "refuse_loop_for"]


class Undelivered(Receipt):
    """
    The receipt of an event that is published and not delivered.
    """

    __slots__ = ()

    @property
    def delivered(self) -> int:
        """
        How many subscriptions took the event: none so far.
        """
        return 0

    @property
    def queued(self) -> int:
        """
        How many subscriptions have it in the log: no queue has it so far.
        """
        return self.route.durable

    @property
    def unhandled(self) -> bool:
        """
        Whether no handler was called: nobody knows yet.
        """
        return False


def mark_undelivered(receipt: Receipt) -> None:
    """
    Let *receipt* say that it is not delivered.
    """
    receipt.__class__ = Undelivered


@attrs.frozen
class Held:
    """
    An event held back, with the context in which it was published.
    """

    receipt: Receipt
    route: Route
    context: Context = attrs.field(factory=copy_context)


@attrs.frozen
class Release:
    """
    How what was held is delivered, in either colour.
    """

    deliver: Callable[[list[Held]], list[Receipt]]
    adeliver: Callable[[list[Held]], Awaitable[list[Receipt]]]


@attrs.define(eq=False)
class Reordering:
    """
    A reordering under way: it began when it was made, and ends with its block.

    Usable in ``with``, and in ``async with`` where handlers are async. A block that
    raises delivers nothing more.

    .. versionadded:: 0.1
    """

    _event_types: tuple[type, ...]
    _seed: int
    _release: Release
    _held: list[Held] = attrs.field(init=False, factory=list)
    is_over: bool = attrs.field(init=False, default=False)

    def keeps(self, receipt: Receipt, route: Route) -> bool:
        """
        Hold the event back if it is one of those to be reordered.
        """
        if self.is_over or receipt.finished or not isinstance(receipt.event, self._event_types):
            return False
        mark_undelivered(receipt)
        self._held.append(Held(receipt, route))
        return True

    def end(self) -> list[Held]:
        """
        Hold nothing back any more, and return what was held, shuffled.

        Two events or more never come in the order in which they were published.
        """
        self.is_over = True
        held, self._held = self._held, []
        order = published = list(range(len(held)))
        shuffle = random.Random(self._seed).shuffle
        while len(held) > 1 and order == published:
            order = published.copy()
            shuffle(order)
        for each in held:
            each.receipt.__class__ = Receipt
        return [held[position] for position in order]

    def holds(self, event_id: str) -> bool:
        """
        Tell whether the event of that id is held back now.
        """
        return any(each.receipt.id == event_id for each in self._held)

    def __enter__(self) -> Reordering:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        held = self.end()
        if kind is None:
            self._release.deliver(held)

    async def __aenter__(self) -> Reordering:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        held = self.end()
        if kind is None:
            await self._release.adeliver(held)


def refuse_loop_for(held: Iterable[Held]) -> None:
    """
    Refuse to block an event loop for the async handlers of what is held back.

    Raises:
        RunningLoopError: There are some.
    """
    name = next((each.route.needs_loop for each in held if each.route.needs_loop), None)
    if name is not None:
        raise RunningLoopError(
            f"what is held back for {name} cannot be released in a thread with a running event "
            f"loop. Use await faults.arelease(), or async with faults.reorder(...).",
            subscription=name,
        )
