"""
The recorder: an observer that keeps what happens, for a test to ask about.

Law: it listens and keeps. It judges nothing, and nothing that it keeps is taken
from anywhere but the occurrences every observer is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import attrs

from eventbus._envelope import Envelope
from eventbus._subscription import AnyHandler, Subscription
from eventbus.instrumentation import (
    Delivered,
    Duplicate,
    Failed,
    Occurrence,
    Published,
    Retried,
    Unhandled,
)

__all__ = ["Outcome", "RecordedDelivery", "Recorder"]


@attrs.frozen(kw_only=True)
class RecordedDelivery:
    """
    One event that one handler took, successfully.

    Attributes:
        event: The event.
        subscription: The subscription's name.
        attempt: Which attempt succeeded. Starts at 1.
        envelope: The event with the facts about it.

    .. versionadded:: 0.1
    """

    event: Any
    subscription: str
    attempt: int
    envelope: Envelope[Any] = attrs.field(repr=False)
    _get_handler: Callable[[], AnyHandler | None] = attrs.field(
        alias="get_handler", repr=False, eq=False
    )

    @property
    def handler(self) -> AnyHandler | None:
        """
        The handler; ``None`` when it was held weakly and is gone.
        """
        return self._get_handler()


# What one subscription has done about one event.
Outcome: TypeAlias = RecordedDelivery | Failed | Duplicate


@attrs.define(eq=False)
class Recorder:
    """
    Keeps what happens on a bus, in the order in which it happens.

    Attributes:
        subscription_of: Returns the subscription of a name.
        is_deaf: Asked before each occurrence whether to let it pass unrecorded.
        outcomes: Deliveries, failures and duplicates, one after the other.
    """

    subscription_of: Callable[[str], Subscription]
    is_deaf: Callable[[], bool]
    envelopes: list[Envelope[Any]] = attrs.field(init=False, factory=list)
    delivered: list[RecordedDelivery] = attrs.field(init=False, factory=list)
    failures: list[Failed] = attrs.field(init=False, factory=list)
    retries: list[Retried] = attrs.field(init=False, factory=list)
    duplicates: list[Duplicate] = attrs.field(init=False, factory=list)
    outcomes: list[Outcome] = attrs.field(init=False, factory=list)
    unhandled: list[Envelope[Any]] = attrs.field(init=False, factory=list)

    def __call__(self, occurrence: Occurrence, /) -> None:
        """
        Keep *occurrence*.
        """
        if self.is_deaf():
            return
        match occurrence:
            case Published(envelope=envelope):
                self.envelopes.append(envelope)
            case Delivered():
                self.delivered.append(taken := self._delivery(occurrence))
                self.outcomes.append(taken)
            case Failed():
                self.failures.append(occurrence)
                self.outcomes.append(occurrence)
            case Retried():
                self.retries.append(occurrence)
            case Duplicate():
                self.duplicates.append(occurrence)
                self.outcomes.append(occurrence)
            case Unhandled(envelope=envelope):
                self.unhandled.append(envelope)
            case _:
                pass  # a dead letter, which the store has

    def _delivery(self, delivered: Delivered) -> RecordedDelivery:
        return RecordedDelivery(
            event=delivered.envelope.event,
            subscription=delivered.subscription,
            attempt=delivered.attempt,
            envelope=delivered.envelope,
            get_handler=self.subscription_of(delivered.subscription).get_handler,
        )

    def depths(self) -> Iterator[tuple[Envelope[Any], int]]:
        """
        Yield each event published, and how many of the others led to it.
        """
        depths: dict[str | None, int] = {}
        for envelope in tuple(self.envelopes):
            depths[envelope.id] = depth = depths.get(envelope.causation_id, -1) + 1
            yield envelope, depth

    def clear(self) -> None:
        """
        Forget everything.
        """
        for kept in (
            self.envelopes,
            self.delivered,
            self.failures,
            self.retries,
            self.duplicates,
            self.outcomes,
            self.unhandled,
        ):
            kept.clear()
