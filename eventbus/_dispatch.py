"""
One event to all its subscriptions: call by call, a failure ends only its own delivery.

Law: walks a route, and knows nothing of policies: a call is over when it returned, or
what it returned was awaited. The loop of a publish in which nothing happens stands in
`_bus`; it comes here when something does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from eventbus._abort import as_failure, concerns_caller
from eventbus._receipt import Receipt, free_key
from eventbus._route import Route, miss
from eventbus._subscription import Subscription

if TYPE_CHECKING:
    import asyncio

__all__ = ["adispatch", "adispatch_concurrently", "dispatch", "fail_first"]

AnyCall = Callable[[Any], Any]


def dispatch(receipt: Receipt, route: Route, walk: Iterator[AnyCall]) -> None:
    """
    Call what *walk* still has to give, in order; a failure ends only its own delivery.
    """
    event, folded = receipt.event, route.folded
    try:
        while True:
            try:
                for call in walk:
                    if (result := call(event)) is not None:
                        folded[route.position(walk)].settle(result)
                return
            except BaseException as error:
                _fail(receipt, route, route.position(walk), error)
    except BaseException:
        _break_off(receipt, route, _from_last(route, walk))
        raise


def fail_first(
    receipt: Receipt, route: Route, walk: Iterator[AnyCall], error: BaseException
) -> None:
    """
    Give up the delivery whose call *walk* gave last, before the others go on.

    What is no failure of its handler is raised, and ends the publish.
    """
    try:
        _fail(receipt, route, route.position(walk), error)
    except BaseException:
        _break_off(receipt, route, _from_last(route, walk))
        raise


async def adispatch(receipt: Receipt, route: Route, walk: Iterator[AnyCall]) -> None:
    """
    Call and await what *walk* still has to give, one after the other.
    """
    event = receipt.event
    try:
        while True:
            try:
                for call in walk:
                    result = call(event)
                    if type(result) is CoroutineType or isawaitable(result):
                        await result
                return
            except BaseException as error:
                _fail(receipt, route, route.position(walk), error)
    except BaseException:
        _break_off(receipt, route, _from_last(route, walk))
        raise


async def adispatch_concurrently(receipt: Receipt, route: Route, walk: Iterator[AnyCall]) -> None:
    """
    Call all in order, and run what they return at the same time.

    Cancelled, it cancels every handler and waits until each has ended.
    """
    import asyncio  # late: whoever awaits has it loaded already

    tasks: dict[asyncio.Task[None], Any] = {}
    undecided, held = set(range(len(route))), list[Any]()
    try:
        for call in walk:
            position = route.position(walk)
            fail = partial(_fail, receipt, route, position)
            # A weak handler that has been called stays until its task has run it.
            held.append(route.subscriptions[position].handler)
            try:
                result = call(receipt.event)
            except BaseException as error:
                fail(error)
            else:
                if isawaitable(result):
                    decided = partial(undecided.discard, position)
                    passes = _passing(result, route.subscriptions[position])
                    task = asyncio.create_task(_guarded(result, passes, fail, decided))
                    tasks[task] = result
                    continue
            undecided.discard(position)
        await asyncio.gather(*tasks)
    except BaseException:
        await _abandon(tasks)
        _break_off(receipt, route, undecided)
        raise
    order = {each.name: position for position, each in enumerate(route.subscriptions)}
    receipt.failures = tuple(sorted(receipt.failures, key=lambda each: order[each.subscription]))


def _passing(result: Any, subscription: Subscription) -> Callable[[], bool]:
    """
    Return what lets the event pass by if *subscription* is cancelled before *result* begins.
    """
    was_live = subscription.is_live  # not if its only call has ended it

    def passes() -> bool:
        is_over = was_live and not subscription.is_live and isinstance(result, CoroutineType)
        if is_over:
            result.close()
            miss(subscription.counters, unqueued=int(subscription.is_queued))
        return is_over

    return passes


async def _guarded(
    result: Any,
    passes: Callable[[], bool],
    fail: Callable[[BaseException], None],
    decided: Callable[[], None],
) -> None:
    try:
        if not passes():
            await result
    except BaseException as error:
        fail(error)
    decided()


def _fail(receipt: Receipt, route: Route, position: int, error: BaseException) -> None:
    """
    Give up the delivery that *error* ended, or raise what is no failure of its handler.
    """
    is_delayed = "due" in (receipt.options or {})  # what is due later is awaited by nobody
    if concerns_caller(error, is_awaited=not is_delayed or isinstance(error, GeneratorExit)):
        raise error
    name = route.subscriptions[position].name
    route.folded[position].fail(receipt, as_failure(error, name))


async def _abandon(tasks: dict[asyncio.Task[None], Any]) -> None:
    """
    Cancel *tasks*, and wait until each has ended.
    """
    import asyncio  # late: whoever awaits has it loaded already

    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for result in tasks.values():
        if isinstance(result, CoroutineType):
            result.close()  # it may never have been started


def _from_last(route: Route, walk: Iterator[AnyCall]) -> Iterable[int]:
    return range(max(0, route.position(walk)), len(route))


def _break_off(receipt: Receipt, route: Route, positions: Iterable[int]) -> None:
    """
    Free the publisher's key, and count who missed the event: not all handlers have had it.

    A failure that was interrupted while it was buried has been counted already. Where the
    publish has options, they tell who it was.
    """
    free_key(receipt)
    route.publisher.interrupted(receipt)
    failed = [each.subscription for each in receipt.failures]
    among = [route.subscriptions[position] for position in positions]
    missed = [each for each in among if each.name not in failed]
    for each in missed:
        each.counters.missed += 1
        receipt.missed += 1
        receipt.unqueued += each.is_queued
    if receipt.options is not None:
        receipt.options["missed_by"] = missed
