"""
`record`: a test bus in the place of an application's bus, for one block of code.

Law: only chooses which handlers come along. The application's bus is not touched;
that it is stood in for is known in one context, and ends there with the block.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Literal

from eventbus._bus import EventBus
from eventbus._clock import VirtualClock
from eventbus.testing._bus import TestBus
from eventbus.testing._roster import HandlerOrName, Roster, several

__all__ = ["record"]


@contextmanager
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
) -> Generator[TestBus]:
    """
    Let a test bus stand in for *bus*, with the same handlers, until the block ends.

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

    .. versionadded:: 0.1
    """
    subscriptions = bus.subscriptions
    known = Roster(subscriptions)
    wanted = None if only is None else known.names(several(only))
    unwanted = known.names(several(without))
    stand_in = TestBus.like(bus, errors=errors, clock=clock, threads=threads, delivers=deliver)
    for subscription in subscriptions:
        if wanted is not None and subscription.name not in wanted:
            stand_in.leave_out(subscription, "left out of this recording, by only=")
        elif subscription.name in unwanted:
            stand_in.leave_out(subscription, "left out of this recording, by without=")
        else:
            stand_in.adopt(subscription)
    with stand_in, bus.stood_in_by(stand_in):
        yield stand_in
