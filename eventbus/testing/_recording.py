"""
A bus that records what happens on it.

Law: the real bus with a recorder among its observers, and with a roster of who was
ever subscribed. It delivers nothing differently, and hands out copies of its records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict, Unpack

from eventbus._clock import Clock
from eventbus._envelope import Envelope
from eventbus._insight import Explanation
from eventbus._route import Folded
from eventbus._subscription import Subscription
from eventbus.codec import Codec
from eventbus.dead_letter import DeadLetters
from eventbus.idempotency import IdempotencyStore
from eventbus.instrumentation import Duplicate, Failed, Observer, Retried
from eventbus.retry import RetryPolicy
from eventbus.store import Store
from eventbus.testing._idempotence import is_rehearsing
from eventbus.testing._recorder import RecordedDelivery, Recorder
from eventbus.testing._roster import Roster
from eventbus.testing._settling import SettlingBus

__all__ = ["PASSED_BY", "BusOptions", "RecordingBus"]

PASSED_BY = "nothing is delivered while recording with deliver=False"


class BusOptions(TypedDict, total=False):
    """
    What a test bus takes as `eventbus.EventBus` does.
    """

    fanout: Literal["sequential", "concurrent"]
    retry: RetryPolicy | Callable[..., float | None] | None
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None
    headers: Callable[[], Mapping[str, str]] | None
    observers: Iterable[Observer]
    idempotency: IdempotencyStore | None
    dead_letters: DeadLetters | None
    store: Store | None
    codec: Codec | None
    timings: bool
    envelopes: Literal["lazy", "eager"]
    max_depth: int
    name: str


class RecordingBus(SettlingBus):
    """
    The part of `TestBus` that records.
    """

    _delivers = True

    def __init__(
        self, *, errors: Literal["raise", "collect"], clock: Clock, **options: Unpack[BusOptions]
    ) -> None:
        self._roster = Roster()
        self._recorder = Recorder(self._roster.named, is_deaf=is_rehearsing)
        options["observers"] = (self._recorder, *options.get("observers", ()))
        super().__init__(errors=errors, clock=clock, **options)

    def _take_in(self, subscription: Subscription) -> Subscription:
        self._roster.remember(super()._take_in(subscription))
        return subscription

    def _fold(self, subscription: Subscription) -> Folded:
        # Before any delivery: another thread may publish before `_take_in` has returned.
        self._roster.remember(subscription)
        return super()._fold(subscription)

    def explain(self, event: object, /) -> tuple[Explanation, ...]:
        """
        Say, subscription by subscription, whether *event* would reach it, and why.

        Those that a recording leaves out come last.
        """
        if (stand_in := self._stand_in()) is not self:
            return stand_in.explain(event)
        told = [
            each if self._delivers or not each.called else _refused(each.subscription, PASSED_BY)
            for each in super().explain(event)
        ]
        return (*told, *(_refused(name, why) for name, why in self._roster.left_out()))

    @property
    def published(self) -> list[Any]:
        """
        The events published, in order; those published by handlers among them.
        """
        return [each.event for each in self._recorder.envelopes]

    @property
    def envelopes(self) -> list[Envelope[Any]]:
        """
        The envelopes of the events published, in order.
        """
        return list(self._recorder.envelopes)

    @property
    def delivered(self) -> list[RecordedDelivery]:
        """
        Who took which event, in the order in which the handlers succeeded.
        """
        return list(self._recorder.delivered)

    @property
    def failures(self) -> list[Failed]:
        """
        The deliveries given up on, in order.
        """
        return list(self._recorder.failures)

    @property
    def retries(self) -> list[Retried]:
        """
        The attempts that failed and were followed by another, in order.
        """
        return list(self._recorder.retries)

    @property
    def duplicates(self) -> list[Duplicate]:
        """
        What an idempotency key turned away, in order.
        """
        return list(self._recorder.duplicates)

    @property
    def unhandled(self) -> list[Any]:
        """
        The events for which no handler was called, in order.
        """
        return [each.event for each in self._recorder.unhandled]

    def clear(self) -> None:
        """
        Forget what was recorded, and discard the dead letters.

        Subscriptions, idempotency keys, faults and the clock stay as they are.
        """
        self._recorder.clear()
        self._furniture.dead_letters.discard()


def _refused(name: str, why: str) -> Explanation:
    return Explanation(subscription=name, called=False, reason=why)
