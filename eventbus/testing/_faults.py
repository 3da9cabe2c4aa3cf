"""
Faults: what a handler, a transport or a network does to an application on a bad day.

Law: a fault is asked for by a test and happens where it would happen for real: a
handler fails inside its ``wrap=`` hooks and policies, a redelivery passes through all
of them. Nothing here delivers.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import attrs

from eventbus._receipt import Receipt, begin
from eventbus._route import Route
from eventbus._signature import event_types_of
from eventbus._subscription import Subscription
from eventbus.testing._fields import shown
from eventbus.testing._idempotence import CatchUp, IdempotenceCheck, observed, overheard
from eventbus.testing._reordering import Release, Reordering, mark_undelivered
from eventbus.testing._roster import HandlerOrName, Roster, several

__all__ = ["Faults"]

AnyCall = Callable[..., Any]


@attrs.define(eq=False)
class Faults:
    """
    The faults of one test bus, as ``bus.faults``.

    A handler is given as such, by its subscription or by its subscription's name, and
    has to be subscribed before.

    .. versionadded:: 0.1
    """

    _roster: Roster
    _release: Release
    _catch_up: CatchUp
    _failing: dict[str, deque[Exception]] = attrs.field(init=False, factory=dict)
    _down: set[str] = attrs.field(init=False, factory=set)
    _times: dict[type, int] = attrs.field(init=False, factory=dict)
    _reorderings: list[Reordering] = attrs.field(init=False, factory=list)
    _check: IdempotenceCheck | None = attrs.field(init=False, default=None)

    # -- a handler's bad day -----------------------------------------------------------------

    def fail(
        self,
        handler: HandlerOrName,
        /,
        *,
        with_: type[Exception] | Exception = RuntimeError,
        times: int = 1,
    ) -> None:
        """
        Let the next attempts of *handler* raise, instead of running it.

        Args:
            handler: Whom; see `Faults`.
            with_: What to raise: an exception, or a class made with a message.
            times: How many attempts. With a retry policy, they may be of one event.

        Raises:
            SubscriptionNotFoundError: Nothing like that is subscribed.
            TypeError: *with_* is no exception, or cannot be made from a message.
        """
        errors = _errors(with_, _at_least(1, times))
        for name in self._roster.names([handler]):
            self._failing.setdefault(name, deque()).extend(errors)

    def down(self, handler: HandlerOrName, /) -> ExitStack:
        """
        Let every attempt of *handler* raise a `ConnectionError`, until `up`.

        Returns:
            A context manager whose end calls `up`; it need not be used.

        Raises:
            SubscriptionNotFoundError: Nothing like that is subscribed.
        """
        self._down |= self._roster.names([handler])
        until = ExitStack()
        until.callback(self.up, handler)
        return until

    def up(self, handler: HandlerOrName, /) -> None:
        """
        End what `down` began; do nothing if *handler* is up.

        Raises:
            SubscriptionNotFoundError: Nothing like that is subscribed.
        """
        self._down -= self._roster.names([handler])

    def hook(self, subscription: Subscription) -> Callable[[AnyCall], AnyCall]:
        """
        Return what is put around a handler, inside of all other hooks.
        """

        def around(handler: AnyCall) -> AnyCall:
            def call(event: Any) -> Any:
                self._strike(subscription.name)
                return observed(handler, event)

            async def acall(event: Any) -> Any:
                return await call(event)

            made = acall if subscription.signature.is_async else call
            with suppress(TypeError):  # a mock made after a function has mocks for names
                functools.update_wrapper(made, handler)
            return made

        return around

    def _strike(self, name: str) -> None:
        if name in self._down:
            raise ConnectionError(f"{name} is down: faults.down() said so, and nobody faults.up()")
        with suppress(IndexError):  # that were all of them
            raise self._failing.get(name, deque[Exception]()).popleft().with_traceback(None)

    # -- a transport's bad day ---------------------------------------------------------------

    def duplicate(self, event_type: type, /, *, times: int = 2) -> None:
        """
        Deliver every event of a class that often, as an at-least-once transport may.

        The event is published, and recorded as published, once. Its redeliveries have
        the same id, come right after the first delivery, and pass through all policies:
        a handler with an idempotency key is not called again.

        Args:
            event_type: The class; events of its subclasses are meant as well.
            times: How often, the first delivery included; 1 ends the fault.

        Raises:
            TypeError: That is no class.
        """
        self._times[_checked(event_type)] = _at_least(1, times)

    def deliveries(self, receipt: Receipt, route: Route) -> Iterator[Receipt]:
        """
        Yield the receipt to deliver on, and one more for each redelivery.
        """
        is_turned_away = receipt.finished  # by the publisher's own idempotency key
        yield receipt
        kinds = (each for each in self._times if isinstance(receipt.event, each))
        times = max((self._times[each] for each in kinds), default=1)
        for _ in range(0 if is_turned_away else times - 1):
            route.published += 1
            again = _redelivery(receipt)
            yield again
            known = {each.subscription for each in receipt.failures}
            receipt.failures += tuple(e for e in again.failures if e.subscription not in known)

    def reorder(self, event_type: type, /, *more: type, seed: int = 0) -> Reordering:
        """
        Hold events back as they are published, to deliver them in another order.

        From now on publishing an event of these classes delivers it to nobody, one by
        one or with many at once; its receipt says so. The end of the ``with`` block,
        or `release`, delivers all that are held in a shuffled order, and ends the fault.
        Two events or more never come in the order in which they were published.

        Args:
            event_type: A class; events of its subclasses are meant as well.
            more: Further classes, shuffled together with the first.
            seed: Another seed, another order; the same one, the same.

        Returns:
            A context manager for ``with``, or ``async with`` where handlers are async.

        Raises:
            TypeError: One of them is no class.
        """
        event_types = tuple(map(_checked, (event_type, *more)))
        reordering = Reordering(event_types, seed, self._release)
        self._reorderings = [*(e for e in self._reorderings if not e.is_over), reordering]
        return reordering

    def release(self) -> list[Receipt]:
        """
        Deliver what `reorder` holds back, shuffled, and hold back nothing more.

        Returns:
            The receipts, in the order of delivery.

        Raises:
            HandlerErrors, RunningLoopError: As `eventbus.EventBus.publish_many`.
        """
        return self._release.deliver(self._end_reorderings())

    async def arelease(self) -> list[Receipt]:
        """
        Deliver what `reorder` holds back, awaiting async handlers; see `release`.
        """
        return await self._release.adeliver(self._end_reorderings())

    def _end_reorderings(self) -> list[Any]:
        reorderings, self._reorderings = self._reorderings, []
        return [held for each in reorderings for held in each.end()]

    def keeps(self, receipt: Receipt, route: Route) -> bool:
        """
        Take a published event that is not to be delivered now.
        """
        if overheard(receipt):  # nobody is to hear of it
            if not receipt.cancel():
                route.published -= not receipt.finished
            mark_undelivered(receipt)
            return True
        # What waits comes by here again, when it is due.
        is_scheduled = receipt.is_scheduled
        return is_scheduled or any(each.keeps(receipt, route) for each in self._reorderings)

    def holds(self, event_id: str) -> bool:
        """
        Tell whether the event of that id is held back now.
        """
        return any(each.holds(event_id) for each in self._reorderings)

    # -- the check ---------------------------------------------------------------------------

    def check_idempotent(
        self, *, without: Iterable[HandlerOrName] | HandlerOrName = ()
    ) -> IdempotenceCheck:
        """
        Run every handler twice from now on, and report whose second run differs.

        After each successful delivery the handler is called once more with the same
        event, inside its ``wrap=`` hooks and its timeout. Whoever publishes, returns or
        raises something else the second time is reported: all handlers in one
        `AssertionError`, at the end of the ``with`` block or, without one, when the
        bus is closed. What the second run publishes is compared and not delivered.
        Either end first handles what is queued, as closing the bus does.

        Args:
            without: Handlers to run only once, such as those that an idempotency key
                of theirs protects well enough.

        Raises:
            SubscriptionNotFoundError: One of *without* is not subscribed.
            RuntimeError: A check is under way already.
        """
        if self.check is not None:
            raise RuntimeError("an idempotence check is under way already; end that one first")
        self._check = IdempotenceCheck(self._roster.names(several(without)), self._catch_up)
        return self._check

    @property
    def check(self) -> IdempotenceCheck | None:
        """
        The idempotence check under way.
        """
        return None if self._check is None or self._check.is_over else self._check

    def clear(self) -> None:
        """
        End what `fail`, `down` and `duplicate` began.
        """
        self._failing.clear()
        self._down.clear()
        self._times.clear()


def _at_least(least: int, times: int) -> int:
    if times < least:
        raise ValueError(f"times is at least {least}, not {times!r}")
    return times


def _checked(event_type: type) -> type:
    """
    Refuse what no event can be an instance of; a union of classes will do.
    """
    if event_types_of(event_type) is None:
        raise TypeError(f"events are meant by their class, not by {shown(event_type)}")
    return event_type


def _errors(with_: Callable[[str], object] | Exception, times: int) -> list[Exception]:
    if isinstance(with_, Exception):
        return [with_] * times
    name = getattr(with_, "__qualname__", with_)
    if not isinstance(with_, type) or not issubclass(with_, Exception):
        raise TypeError(f"with_= is an exception or a class of exceptions, not {name!r}")
    try:
        return [with_("injected by faults.fail()") for _ in range(times)]
    except Exception as error:
        raise TypeError(
            f"{name} cannot be made from a message alone; make one: with_={name}(...)"
        ) from error


def _redelivery(receipt: Receipt) -> Receipt:
    again = begin(receipt.event, receipt.route, receipt.parent)
    again.depth = receipt.depth
    again.options = receipt.options
    again.sealed = receipt.envelope
    return again
