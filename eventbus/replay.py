"""
Replay: logged events once more, to a callable or to a subscription.

Law: a replay reads the log and moves nothing, neither an offset nor a retry. To a
subscription goes what it had handled when the replay began; what it had not is delivered
afterwards, as ever, and what it was given up on comes by a redrive. So nothing is left out
at the seam and nothing comes twice, and a replay that was cut short is simply begun anew.

::

    log        1  2  3  4  5  6  7  8  9
    taken                      ▲              3 is a dead letter, 6 waits for its retry
    replayed   ────┘  ╰─────┘  ╰─             7 is the last; is_replay is true
    delivered        3        6     ─────►    afterwards; is_replay is false
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Unpack

import attrs

from eventbus._clock import Clock, SystemClock
from eventbus._envelope import Envelope
from eventbus._owner import owner
from eventbus._playback import Replayed, ReplayOptions, Run, at_once, checked
from eventbus._tenure import Watch
from eventbus.codec import Codec
from eventbus.errors import SubscriptionBusyError
from eventbus.kept_letters import Selection
from eventbus.progress import Lease, Progress
from eventbus.store import Store

__all__ = [
    "Keeper",
    "ReplayOptions",
    "Replayed",
    "areplay",
    "areplay_subscription",
    "replay",
    "replay_subscription",
]

LEASE = 60.0  # seconds; renewed between two events when a third of it has passed
_LOOK = 1.0  # seconds between two looks at a lease that has run out


def replay(
    store: Store,
    codec: Codec,
    deliver: Callable[[Envelope[Any]], object],
    **options: Unpack[ReplayOptions],
) -> Replayed:
    """
    Hand logged events to *deliver*, in the order of their offsets, up to the log's end.

    The end is where the log ended when the replay began. Each envelope says so by
    ``is_replay``, and which offset it has. The store is only read: what cannot be read is
    passed over and counted.

    Args:
        store: What has the log.
        codec: What reads the events.
        deliver: Called with each envelope. What it returns counts for nothing.
        options: See `ReplayOptions`.

    Returns:
        How far it has come.

    Raises:
        Exception: What *deliver* or *reset* raises, with a note that says where.
        DecodeError: An event cannot be read, and ``unreadable="raise"``.
        TypeError: *deliver* is async, which is for `areplay`; or there is no such option,
            or none that takes that.
        ValueError: An option has no such value; ``"quarantine"`` is one of a subscription.

    .. versionadded:: 0.1
    """
    run = Run(store, codec, options)
    for envelope in run:
        try:
            run.count(at_once(deliver(envelope)))
        except BaseException as error:
            run.note(error, envelope)
            raise
    return run.report()


async def areplay(
    store: Store,
    codec: Codec,
    deliver: Callable[[Envelope[Any]], Awaitable[object]],
    **options: Unpack[ReplayOptions],
) -> Replayed:
    """
    Hand logged events to *deliver*, awaiting each; see `replay`.

    .. versionadded:: 0.1
    """
    run = Run(store, codec, options)
    for envelope in run:
        try:
            run.count(await deliver(envelope))
        except BaseException as error:
            run.note(error, envelope)
            raise
    return run.report()


def replay_subscription(
    store: Store,
    codec: Codec,
    deliver: Callable[[Envelope[Any], Lease], object],
    name: str,
    **options: Unpack[ReplayOptions],
) -> Replayed:
    """
    Hand to *deliver* what the subscription *name* has handled; see `replay`.

    It holds the subscription's lease meanwhile: nobody else consumes it. One that has run
    out is watched first, for some 20 seconds: its holder may be well, and the clock set
    forward. What stands as a dead letter is left out: a redrive delivers it.

    Args:
        store: Where its position is.
        codec: What reads the events.
        deliver: Calls its handler. It is given the lease, too, for a
            `eventbus.progress.Progress.transaction` of the handler's own.
        name: The subscription.
        options: See `ReplayOptions`.

    Raises:
        SubscriptionBusyError: It is running, here or in another process.
        SubscriptionNotFoundError: It has no position in this store.
        LeaseLostError: One event took longer than the lease, and somebody took over.

    .. versionadded:: 0.1
    """
    with _held(store, codec, name, options) as (run, keeper):
        for envelope in run:
            try:
                run.count(at_once(deliver(envelope, keeper.lease)))
            except BaseException as error:
                run.note(error, envelope)
                raise
        return run.report()


async def areplay_subscription(
    store: Store,
    codec: Codec,
    deliver: Callable[[Envelope[Any], Lease], Awaitable[object]],
    name: str,
    **options: Unpack[ReplayOptions],
) -> Replayed:
    """
    Hand to *deliver*, awaiting each, what is handled; see `replay_subscription`.

    .. versionadded:: 0.1
    """
    clock = checked(options).get("clock") or SystemClock()
    watch = Watch(name, LEASE, store.progress, clock)
    while watch.is_undecided():  # in the thread of the event loop, which goes on
        await clock.asleep(_LOOK)
    with _held(store, codec, name, options, watch) as (run, keeper):
        for envelope in run:
            try:
                run.count(await deliver(envelope, keeper.lease))
            except BaseException as error:
                run.note(error, envelope)
                raise
        return run.report()


@attrs.define(eq=False)
class Keeper:
    """
    Holds the lease of one subscription, and renews it between two events.

    .. versionadded:: 0.1
    """

    progress: Progress
    lease: Lease
    clock: Clock
    ttl: float
    _renew_at: float = attrs.field(
        init=False,
        default=attrs.Factory(lambda self: self.clock.monotonic() + self.ttl / 3, takes_self=True),
    )

    @classmethod
    @contextmanager
    def of(
        cls,
        progress: Progress,
        name: str,
        *,
        clock: Clock,
        ttl: float = LEASE,
        watch: Watch | None = None,
    ) -> Generator[Keeper]:
        """
        Hold the lease for the length of a ``with`` block.

        Args:
            progress: Where leases are kept.
            name: The subscription.
            clock: What tells the time.
            ttl: How long the lease lasts unless renewed.
            watch: Who has watched the holder of the lease until now. Without one, a holder
                whose lease has run out is watched here, for a third of it and a second.

        Raises:
            SubscriptionBusyError: Somebody else holds it.
        """
        if watch is None:
            watch = Watch(name, ttl, progress, clock)
            while watch.is_undecided():
                clock.sleep(_LOOK)
        lease, holder = None, watch.holder()
        if holder is None or watch.is_gone(holder, clock.monotonic()):
            now = clock.time()
            lease = progress.acquire(name, owner=owner(), ttl=ttl, now=now, instead_of=holder)
        if lease is None:
            raise SubscriptionBusyError(
                f"{name} is being consumed by {_spelled(progress, name)}: stop that first, or try "
                f"again when it has ended",
                subscription=name,
                owner=_spelled(progress, name),
            )
        keeper = cls(progress, lease, clock, ttl)
        try:
            yield keeper
        finally:
            progress.release(keeper.lease)

    def renew(self) -> None:
        """
        Renew the lease, if a third of its time has passed.

        Raises:
            LeaseLostError: Somebody else has it.
        """
        now = self.clock.monotonic()  # for the other clock may be set
        if now >= self._renew_at:
            time = self.clock.time()
            self.lease = self.progress.renew(self.lease, ttl=self.ttl, now=time)
            self._renew_at = now + self.ttl / 3


def _spelled(progress: Progress, name: str) -> str:
    holder = progress.position(name).lease
    return "somebody else" if holder is None else holder.owner


@contextmanager
def _held(
    store: Store, codec: Codec, name: str, options: ReplayOptions, watch: Watch | None = None
) -> Generator[tuple[Run, Keeper]]:
    """
    Hold the lease, and yield the replay of what *name* has handled.
    """
    clock = checked(options).get("clock") or SystemClock()
    with Keeper.of(store.progress, name, clock=clock, watch=watch) as keeper:
        position = store.progress.position(name)
        unfinished = {each.offset for each in store.progress.pending(name)}
        letters = Selection(subscription=name)
        run = Run(
            store,
            codec,
            options,
            subscription=name,
            taken=position.taken,
            without=unfinished,
            dead={each.record.offset for each in store.letters.query(letters)},
            tick=keeper.renew,
        )
        yield run, keeper
