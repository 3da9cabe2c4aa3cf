"""
What the deliveries of one bus work with: its clock, its stores, its observers.

Law: furniture is put in when a bus is made, and the test bus differs from a real
one in nothing else. Nothing here decides what happens to an event.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

import attrs

from eventbus._clock import Clock
from eventbus._logger import logger
from eventbus._loop_thread import LoopThread
from eventbus._subscription import Subscription
from eventbus.dead_letter import DeadLetters
from eventbus.idempotency import IdempotencyStore
from eventbus.instrumentation import Observer, Occurrence
from eventbus.retry import RetryPolicy

__all__ = ["Furniture"]

# How deep observers may publish inside of observers: more than any chain of them that
# ends by itself is likely to be, and few enough where two of them double each other.
_DEEPEST = 6
_depth: ContextVar[int] = ContextVar("eventbus_telling", default=0)


def _check(observer: object) -> None:
    if not callable(observer) or inspect.iscoroutinefunction(observer):
        raise TypeError(
            f"an observer is a plain callable that takes an occurrence, not {observer!r}; "
            f"it is told where things happen, and nobody there awaits it"
        )


def _check_all(_furniture: object, _field: object, observers: tuple[object, ...]) -> None:
    for observer in observers:
        _check(observer)


@attrs.define(eq=False, repr=False, kw_only=True)
class Furniture:
    """
    What the deliveries of one bus work with.

    Attributes:
        clock: Where time, sleep and ids come from.
        idempotency: Who has claimed which key.
        dead_letters: Where deliveries go that were given up on.
        loop_thread: Runs async handlers for `publish`.
        observers: Who is told.
        retry: The policy of subscriptions that have none of their own.
        timings: Measure the time spent in handlers.
        logs_failures: Log each terminal failure; off where publish raises them.
        logs_queued: Log those of queued deliveries too, which no publish can raise.
    """

    clock: Clock
    idempotency: IdempotencyStore
    dead_letters: DeadLetters
    loop_thread: LoopThread
    observers: tuple[Observer, ...] = attrs.field(default=(), validator=_check_all)
    retry: RetryPolicy | None = None
    timings: bool = False
    logs_failures: bool = True
    logs_queued: bool = True
    _tickets: WeakKeyDictionary[Subscription, list[bool]] = attrs.field(factory=WeakKeyDictionary)
    _muted: list[object] = attrs.field(factory=list)
    _lock: threading.Lock = attrs.field(factory=threading.Lock)

    def ticket(self, subscription: Subscription) -> list[bool]:
        """
        Return what holds one entry until the first event of *subscription* takes it.

        It is the same one however often the subscription is folded anew.
        """
        return self._tickets.setdefault(subscription, [True])

    def admit(self, observer: Observer) -> Callable[[], None]:
        """
        Tell *observer*, too, until the returned function is called; then once less.
        """
        _check(observer)
        told = [observer]
        with self._lock:
            self.observers += (observer,)

        def dismiss() -> None:
            with self._lock:
                rest = list(self.observers)
                while told:
                    rest.remove(told.pop())
                self.observers = tuple(rest)

        return dismiss

    def notify(self, occurrence: Occurrence) -> None:
        """
        Tell every observer; log the first exception of each and go on.

        Observers that publish are told of that as well, up to a depth.
        """
        depth = _depth.get()
        if depth == _DEEPEST:
            return self._fall_silent(occurrence)
        token = _depth.set(depth + 1)
        try:
            for observer in self.observers:
                try:
                    observer(occurrence)
                except Exception:
                    self._note(observer, occurrence)
        finally:
            _depth.reset(token)

    def _fall_silent(self, occurrence: Occurrence) -> None:
        if self._mute(self):
            logger().error(
                "observers publish what they are then told of, %d deep, last %s: deeper ones are "
                "not told, here and from now on, and that is not logged again",
                _DEEPEST,
                type(occurrence).__name__,
            )

    def _note(self, observer: Observer, occurrence: Occurrence) -> None:
        if self._mute(observer):
            logger().exception(
                "observer %r raised on %s; it stays attached, and further exceptions of it are "
                "not logged",
                observer,
                type(occurrence).__name__,
            )

    def _mute(self, observer: object) -> bool:
        """
        Note that *observer* has raised; ``False`` when that is known.
        """
        with self._lock:
            is_new = not any(each is observer for each in self._muted)
            if is_new:
                self._muted.append(observer)
        return is_new

    def now(self) -> datetime:
        """
        Return the time, in UTC.
        """
        return datetime.fromtimestamp(self.clock.time(), UTC)
