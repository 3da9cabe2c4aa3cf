"""
All durable subscriptions of one bus, and the threads that keep them going.

Law: one thread takes the turns of all consumers, sleeps while there is nothing to do, and
ends with the bus or with whoever forgot it. Turns call filters and upcasters, which take
their time: so another thread renews the leases, and does nothing else. Where a test takes
the turns itself there is no thread.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from eventbus._consumer import Consumer
from eventbus._fork import renewed
from eventbus._logger import logger
from eventbus._subscription import Subscription
from eventbus.event_log import EventLog

__all__ = ["Consumers"]

# Seconds between two looks whether another process has written something.
_POLL = 0.1
# Seconds between two turns while there is something to do: what comes meanwhile shares
# their commits. What comes after a time of rest is not held up.
_GATHER = 0.002
# Seconds between two looks whether a lease is to be renewed, at most.
_RENEW = 1.0
# Seconds that a turn under way gets to end: longer than a store waits for its file.
_PATIENCE = 10.0


class Consumers:
    """
    The consumers of one bus.

    Args:
        log: What they read.
        name: The name of the thread that takes the turns.
        is_manned: Whether there are to be threads.
    """

    def __init__(self, log: EventLog, name: str, *, is_manned: bool) -> None:
        self._log = log
        self._name = name
        self._is_manned = is_manned
        self._by_subscription: dict[Subscription, Consumer] = {}
        self._bell = renewed(threading.Event())
        self._turning = renewed(threading.Lock())
        self._lock = renewed(threading.Lock())
        self._thread: threading.Thread | None = None
        self._over = renewed(threading.Event())
        self._keeper: threading.Thread | None = None
        self._end_listening: Callable[[], None] = _nothing
        self._changes = -1
        self.is_started = False
        self.is_over = False

    def items(self) -> list[tuple[Subscription, Consumer]]:
        """
        Return who consumes what.
        """
        return list(self._by_subscription.items())

    def left(self) -> dict[str, int]:
        """
        Return how many events of the log each subscription has before it, but for none.
        """
        lags = dict[str, int]()
        for subscription, consumer in self.items():
            with suppress(Exception):  # the store cannot be reached, or was closed before
                lags[subscription.name] = consumer.place().lag
        return {name: lag for name, lag in lags.items() if lag}

    def get(self, subscription: Subscription) -> Consumer | None:
        """
        Return who consumes a subscription.
        """
        return self._by_subscription.get(subscription)

    def add(self, subscription: Subscription, consumer: Consumer) -> None:
        """
        Consume one more subscription, at once if the bus was started.
        """
        with self._lock:
            self._by_subscription[subscription] = consumer
        if self.is_started:
            self.start()

    def retire(self, subscription: Subscription) -> None:
        """
        Let a subscription finish what it has in hand; its place stays in the store.
        """
        consumer = self._by_subscription.get(subscription)
        if consumer is None:
            return
        if not self.is_started:
            with self._lock:
                self._by_subscription.pop(subscription, None)
            return
        consumer.stop_handing_out()
        consumer.is_retiring = True
        self.wake()

    def wake(self) -> None:
        """
        Have turns taken soon.
        """
        bell = self._bell
        if not bell.is_set():
            bell.set()

    def start(self) -> None:
        """
        Begin to consume; again is fine.
        """
        with self._lock:
            self.is_started = not self.is_over
            if self.is_over or not self._by_subscription:
                return
            for consumer in self._by_subscription.values():
                consumer.is_started = True
            if self._end_listening is _nothing:
                told = weakref.WeakMethod(self._appended)
                self._end_listening = self._log.on_append(lambda: _call(told))
            if self._thread is None and self._is_manned:
                self._thread = threading.Thread(
                    target=_pump, args=(weakref.ref(self), self._bell), name=self._name, daemon=True
                )
                self._thread.start()
                self._keeper = threading.Thread(
                    target=_keep,
                    args=(weakref.ref(self), self._over),
                    name=f"{self._name}-leases",
                    daemon=True,
                )
                self._keeper.start()
        self.wake()

    def keep_leases(self) -> float:
        """
        Renew the leases that are to be; return how many seconds later to look again.
        """
        consumers = list(self._by_subscription.values())
        for consumer in consumers:
            consumer.keep_lease()
        return min([_RENEW, *[each.mode.lease / 6 for each in consumers]])

    def _appended(self) -> None:
        for consumer in list(self._by_subscription.values()):
            consumer.has_more = True
        self.wake()

    def turn(self) -> bool:
        """
        Take one turn of each; ``False`` if there was nothing to do.
        """
        if not self.is_started or not self._turning.acquire(blocking=False):
            return False
        try:
            if not self._bell.is_set():  # else there is something to do without looking
                self._look()
            # All of them: each turn counts, and not only the first that finds something.
            did = sum(each.turn() for each in list(self._by_subscription.values())) > 0
            for subscription, consumer in list(self._by_subscription.items()):
                if consumer.state == "closed":
                    with self._lock:
                        self._by_subscription.pop(subscription, None)
            return did
        finally:
            self._turning.release()

    def look(self) -> None:
        """
        Have everything read on, whoever may have written something.

        It waits for no turn: one under way may itself wait for a handler of this thread.
        """
        if self.is_started:
            self._appended()
            self.look_again()

    def look_again(self, name: str | None = None) -> None:
        """
        Have it seen soon that letters are gone, of one subscription or perhaps of any.
        """
        for subscription, consumer in self.items():
            if name is None or name == subscription.name:
                consumer.look_again()
        self.wake()

    def _look(self) -> None:
        """
        See whether somebody else has written something.
        """
        try:
            changes = self._log.changes()
        except Exception:
            return  # a turn will meet the same, and say so
        if changes != self._changes:
            self._changes = changes
            for consumer in list(self._by_subscription.values()):
                consumer.has_more = True

    def crash(self, store: Any) -> None:
        """
        Forget what a killed process would forget, and begin anew.
        """
        with self._turning:
            self._end_listening()
            self._end_listening, self._changes = _nothing, -1
            for consumer in list(self._by_subscription.values()):
                consumer.crash()
            crash = getattr(store, "crash", None)
            if crash is not None:
                crash()
        if self.is_started:
            self.start()

    def reraise(self) -> None:
        """
        Raise what has stopped a subscription, if something did since this was asked last.
        """
        for consumer in list(self._by_subscription.values()):
            consumer.reraise()

    def stop_handing_out(self) -> None:
        """
        Let what is in hand be the last.
        """
        for consumer in list(self._by_subscription.values()):
            consumer.stop_handing_out()
        self.wake()

    def close(self) -> None:
        """
        Write down what is known, and give the leases back.
        """
        with self._lock:
            self.is_over, thread, keeper = True, self._thread, self._keeper
        self._end_listening()
        self._bell.set()
        if thread is not None and keeper is not None:
            thread.join(_PATIENCE)
            self._over.set()
            keeper.join(_PATIENCE)
            if thread.is_alive():
                logger().warning(
                    "%s is still at work: a filter or the store takes its time. What it knows is "
                    "not written down, and its leases end by themselves",
                    self._name,
                )
                return
        for consumer in list(self._by_subscription.values()):
            consumer.close()


def _pump(find: Callable[[], Consumers | None], bell: threading.Event) -> None:
    """
    Take turns until the bus is closed or gone.
    """
    pause = threading.Event()  # which nobody ends
    while (consumers := find()) is not None and not consumers.is_over:
        try:
            did = consumers.turn()
        except Exception:
            logger().exception("a turn of the durable subscriptions failed; they go on")
            did = False
        del consumers
        if did:
            pause.wait(_GATHER)
        elif bell.wait(_POLL):
            bell.clear()


def _keep(find: Callable[[], Consumers | None], over: threading.Event) -> None:
    """
    Renew leases until the bus is closed or gone.
    """
    seconds = 0.0
    while not over.wait(seconds) and (consumers := find()) is not None:
        seconds = consumers.keep_leases()
        del consumers


def _call(find: Callable[[], Callable[[], None] | None]) -> None:
    if (method := find()) is not None:
        method()


def _nothing() -> None: ...
