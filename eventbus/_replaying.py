"""
How a durable subscription gets once more what it has had: the verb of the bus.

Law: a replay is no publish and no redrive: nothing is stored, counted, retried or given
up on. The handler is called as ever, with its filter, its hooks, its timeout and its
connection; what it raises ends the replay.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    nullcontext,
)
from datetime import datetime
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, cast

from eventbus._abort import running_loop
from eventbus._attempt import acall_of, call_of, settle
from eventbus._deferred import unheard
from eventbus._delaying import Delaying
from eventbus._envelope import Envelope, here
from eventbus._mode import Durable
from eventbus._receipt import Receipt
from eventbus._subscription import Subscription
from eventbus.errors import RunningLoopError, SubscriptionNotFoundError
from eventbus.instrumentation import Replayed

if TYPE_CHECKING:
    from eventbus._playback import ReplayOptions
    from eventbus.progress import Lease
    from eventbus.store import Store

__all__ = ["Replaying"]


class Replaying(Delaying):
    """
    The part of `eventbus.EventBus` that replays.
    """

    def replay(
        self,
        subscription: Subscription | str,
        /,
        *,
        from_: int | datetime = 0,
        until: int | datetime | None = None,
        on_progress: Callable[[Replayed], object] | None = None,
    ) -> Replayed:
        """
        Call a durable subscription's handler again for what it has had before.

        Its position does not move: what it has not finished comes afterwards, as ever, and
        what stands as a dead letter by a redrive. Envelopes say ``is_replay``. A subscription
        that is not ``replayable`` stays silent. Its ``reset`` hook is called once, before the
        first event.

        Args:
            subscription: The subscription or its name.
            from_: The first offset, or the instant from which on. Default: the beginning.
            until: The last offset, or the instant before which. Default: all it has had.
            on_progress: Told how far the replay has come, as observers are. Without it, a
                bar shows that where stderr is a terminal and rich is installed.

        Returns:
            How far it has come.

        Raises:
            SubscriptionBusyError: It is running: here or in another process.
            SubscriptionNotFoundError: Nothing durable is subscribed by that name.
            ValueError: It would end before it begins, or a time has no time zone.
            TypeError: *from_* or *until* is neither an offset nor a time.
            RunningLoopError: The handler is async and a loop runs in this thread.
            Exception: What the handler has raised, with a note that says at which offset.
        """
        bus = self._stand_in()
        if (found := bus._replayable(subscription)) is None:
            return _silent(subscription)
        if running_loop() is not None and found.needs_loop:
            raise RunningLoopError(
                f"replay() in a thread with a running event loop cannot wait for {found.name}, "
                f"which needs the loop. Use await bus.areplay(...).",
                subscription=found.name,
            )
        from eventbus._playback import PASSED  # late, as all below: for start-up time
        from eventbus.replay import replay_subscription

        loop, clock = bus._furniture.loop_thread, bus._furniture.clock
        target = bus._targets[found]
        call = call_of(found, target, acall_of(found, target, clock), loop)
        lend: Callable[[Any], AbstractContextManager[Any]] = nullcontext
        if _asks(found):
            lend = bus._kept().progress.transaction

        def deliver(envelope: Envelope[Any], lease: Lease) -> object:
            with bus._visit(found, envelope) as receipt:
                if receipt is None:
                    return PASSED
                with lend(lease) as lent, _having(receipt, lent):
                    settle(call(envelope.event), found, loop)
            if receipt.afterwards is not None:
                with unheard(found.name):
                    receipt.afterwards.publish()
            return None

        with bus._shown(found, on_progress) as tell:
            options = bus._replay_options(found, from_, until, tell)
            return replay_subscription(bus._kept(), bus._codec, deliver, found.name, **options)

    async def areplay(
        self,
        subscription: Subscription | str,
        /,
        *,
        from_: int | datetime = 0,
        until: int | datetime | None = None,
        on_progress: Callable[[Replayed], object] | None = None,
    ) -> Replayed:
        """
        Call the handler again, awaiting what can be awaited; see `replay`.
        """
        bus = self._stand_in()
        if (found := bus._replayable(subscription)) is None:
            return _silent(subscription)
        from eventbus._playback import PASSED
        from eventbus.replay import areplay_subscription

        call = acall_of(found, bus._targets[found], bus._furniture.clock)
        lend: Callable[[Any], AbstractAsyncContextManager[Any]] = nullcontext
        if _asks(found):
            lend = bus._kept().progress.atransaction

        async def deliver(envelope: Envelope[Any], lease: Lease) -> object:
            with bus._visit(found, envelope) as receipt:
                if receipt is None:
                    return PASSED
                async with lend(lease) as lent:
                    with _having(receipt, lent):
                        if isawaitable(result := call(envelope.event)):
                            await result
            if receipt.afterwards is not None:
                with unheard(found.name):
                    await receipt.afterwards.apublish()
            return None

        with bus._shown(found, on_progress) as tell:
            options = bus._replay_options(found, from_, until, tell)
            return await areplay_subscription(
                bus._kept(), bus._codec, deliver, found.name, **options
            )

    # -- what the twins share ----------------------------------------------------------------

    def _replayable(self, subscription: Subscription | str) -> Subscription | None:
        """
        Return the subscription; ``None``: it stays silent.
        """
        name = _name_of(subscription)
        found = self._registry.named(name)
        if found is None or not isinstance(found.options.delivery, Durable):
            raise SubscriptionNotFoundError(
                f"nothing is subscribed as {name!r} with delivery=Durable(), and only what is "
                f"has a place in the log to replay from",
                subscription=name,
            )
        return found if found.options.replayable else None

    def _kept(self) -> Store:
        assert self._store is not None  # or there would be no durable subscription
        return self._store

    @contextmanager
    def _shown(
        self, subscription: Subscription, on_progress: Callable[[Replayed], object] | None
    ) -> Generator[Callable[[Replayed], object]]:
        """
        Yield what tells observers, and the caller or a terminal, how far a replay is.
        """
        from eventbus._gauge import gauge

        with gauge(subscription.name) if on_progress is None else nullcontext(on_progress) as show:

            def tell(told: Replayed) -> None:
                self._furniture.notify(told)
                if show is not None:
                    show(told)

            yield tell

    def _replay_options(
        self,
        subscription: Subscription,
        from_: int | datetime,
        until: int | datetime | None,
        tell: Callable[[Replayed], object],
    ) -> ReplayOptions:
        from eventbus._playback import checked

        mode = subscription.options.delivery
        assert isinstance(mode, Durable)  # as `_replayable` has seen
        options: ReplayOptions = {
            "from_": from_,
            "until": until,
            "event_types": subscription.event_types,
            "reset": subscription.options.reset,
            "unreadable": mode.unreadable,
            "progress": tell,
            "clock": self._furniture.clock,
        }
        checked(options)
        begins: Any = from_
        ends: Any = until
        are_alike = isinstance(from_, datetime) is isinstance(until, datetime)
        if until is not None and are_alike and begins > ends:
            raise ValueError(f"there is nothing to replay from {from_} until {until}")
        return options

    @contextmanager
    def _visit(
        self, subscription: Subscription, envelope: Envelope[Any]
    ) -> Generator[Receipt | None]:
        """
        Stand where the handler would be called; ``None``: its filter says no.
        """
        from eventbus._entry import Entry, logged_receipt

        route = self._routes.alone(envelope.event, subscription)
        receipt = logged_receipt(envelope.event, route, Entry(envelope.offset or 0))
        receipt.sealed = envelope
        where = subscription.options.where
        token = here.set(receipt)
        try:
            if where is not None and not where(envelope.event):
                yield None
                return
            yield receipt
        except BaseException:
            if receipt.afterwards is not None:
                receipt.afterwards.drop()
            raise
        finally:
            here.reset(token)
            receipt.finished = True


def _asks(subscription: Subscription) -> bool:
    return subscription.signature.connection_keyword is not None


@contextmanager
def _having(receipt: Receipt, lent: Any) -> Generator[None]:
    """
    Let the handler have the connection that was lent, if it asks for one.
    """
    receipt.connection = getattr(lent, "connection", None)
    try:
        yield
    finally:
        receipt.connection = None


def _name_of(subscription: Subscription | str) -> str:
    if isinstance(given := cast(object, subscription), str):
        return given
    if not isinstance(given, Subscription):
        raise TypeError(
            f"a replay is for a subscription, given as what subscribe() has returned or by its "
            f"name, not for {given!r}"
        )
    return given.name


def _silent(subscription: Subscription | str) -> Replayed:
    return Replayed(subscription=_name_of(subscription), done=0, total=0, offset=0)
