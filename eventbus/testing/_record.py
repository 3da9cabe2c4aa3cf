"""
`record`: a test bus in the place of an application's bus, for one block of code.

Law: only chooses which handlers come along. The application's bus is not touched;
that it is stood in for is known in one context, and ends there with the block.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterable
from contextlib import AsyncExitStack, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar, cast

from eventbus._bus import EventBus
from eventbus._clock import VirtualClock
from eventbus.testing._bus import TestBus
from eventbus.testing._roster import HandlerOrName, Roster, several

__all__ = ["Recording", "record"]


P = ParamSpec("P")
R = TypeVar("R")


class Recording:
    """
    What `record` opens, for ``with`` and ``async with``.

    It decorates functions, too: each call, of either colour, is then a recording of its own.

    .. versionadded:: 0.1
    """

    def __init__(self, bus: EventBus, make: Callable[[], TestBus]) -> None:
        self._bus = bus
        self._make = make
        self._open: list[ExitStack] = []
        self._aopen: list[AsyncExitStack] = []

    def __enter__(self) -> TestBus:
        with ExitStack() as block:
            stand_in = block.enter_context(self._make())
            block.enter_context(_stood_in(self._bus, stand_in))
            self._open.append(block.pop_all())
        return stand_in

    def __exit__(self, *raised: Any) -> None:
        __tracebackhide__ = True
        self._open.pop().__exit__(*raised)

    async def __aenter__(self) -> TestBus:
        async with AsyncExitStack() as block:
            stand_in = await block.enter_async_context(self._make())
            block.enter_context(_stood_in(self._bus, stand_in))
            self._aopen.append(block.pop_all())
        return stand_in

    async def __aexit__(self, *raised: Any) -> None:
        __tracebackhide__ = True
        await self._aopen.pop().__aexit__(*raised)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """
        Return *function* with a recording around each call.
        """

        @functools.wraps(function)
        def call(*given: P.args, **named: P.kwargs) -> R:
            with Recording(self._bus, self._make):
                return function(*given, **named)

        @functools.wraps(function)
        async def acall(*given: P.args, **named: P.kwargs) -> Any:
            async with Recording(self._bus, self._make):
                return await cast("Any", function(*given, **named))

        return cast("Callable[P, R]", acall) if inspect.iscoroutinefunction(function) else call


@contextmanager
def _stood_in(bus: EventBus, stand_in: TestBus) -> Generator[None]:
    """
    Let *stand_in* do what *bus* is asked to do; say so if that could not be known.
    """
    block = bus.stood_in_by(stand_in)
    block.__enter__()
    try:
        yield
    finally:
        try:
            block.__exit__(None, None, None)
        except ValueError:  # a variable is reset in the context in which it was set
            raise RuntimeError(
                f"record() of {bus.name} ends in another task or thread than it began in, and "
                f"what the test has published may have gone to the bus itself. Enter it in the "
                f"test, or decorate the test with it: async fixtures may have tasks of their own."
            ) from None


def record(
    bus: EventBus,
    /,
    *,
    deliver: bool = True,
    only: Iterable[HandlerOrName] | HandlerOrName | None = None,
    without: Iterable[HandlerOrName] | HandlerOrName = (),
    errors: Literal["raise", "collect"] | None = None,
    clock: VirtualClock | None = None,
    threads: bool = False,
) -> Recording:
    """
    Let a test bus stand in for *bus*, with the same handlers, until the block ends.

    For ``with``, and in an async test for ``async with``: its end awaits what async handlers
    have left to do.

    What this block publishes, subscribes or redrives on *bus*, and the code it calls,
    goes to the test bus: with copies of the subscriptions there are now, counters and
    stores of its own, and a virtual clock. Other threads and tasks go on with *bus*;
    those that the block starts with its own context (tasks, `asyncio.to_thread`) do not.
    Nothing of it is left on *bus* afterwards, whatever the block raised. The records can
    be read after the block.

    Args:
        bus: The application's bus. Its settings are kept, its observers are not told.
        deliver: ``False`` records what is published, and calls no handler at all.
        only: The handlers to call, and no others.
        without: Handlers to leave out.
        errors: See `TestBus`; a bus with ``errors="raise"`` goes on to raise.
        clock: See `TestBus`; for two buses recorded on one clock.
        threads: See `TestBus`.

    Raises:
        SubscriptionNotFoundError: One of *only* or *without* is not subscribed.
        TypeError: *bus* is none, or *deliver* is neither true nor false.
        RuntimeError: The block ends in another task or thread than it began in.

    .. versionadded:: 0.1
    """
    _check_bus(bus)
    if deliver not in (True, False):
        raise TypeError(f"deliver= is True or False, not {deliver!r}; only= names handlers to call")
    like = partial(TestBus.like, errors=errors, clock=clock, threads=threads, delivers=deliver)
    return Recording(bus, partial(_stand_in, bus, like, only=only, without=without))


def _check_bus(bus: object) -> None:
    if not isinstance(bus, EventBus):
        raise TypeError(f"record() takes the bus itself, the application's EventBus, not {bus!r}")


def _stand_in(
    bus: EventBus,
    like: Callable[[EventBus], TestBus],
    *,
    only: Iterable[HandlerOrName] | HandlerOrName | None,
    without: Iterable[HandlerOrName] | HandlerOrName,
) -> TestBus:
    """
    Return a bus with the handlers that *bus* has now, apart from those left out.
    """
    subscriptions = bus.subscriptions
    known = Roster(subscriptions)
    wanted = None if only is None else known.names(several(only))
    unwanted = known.names(several(without))
    stand_in = like(bus)
    for subscription in subscriptions:
        if wanted is not None and subscription.name not in wanted:
            stand_in.leave_out(subscription, "left out of this recording, by only=")
        elif subscription.name in unwanted:
            stand_in.leave_out(subscription, "left out of this recording, by without=")
        else:
            stand_in.adopt(subscription)
    return stand_in
