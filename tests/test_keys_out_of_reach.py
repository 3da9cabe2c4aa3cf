"""
A store of keys that cannot be asked, for a while: events wait for it, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from eventbus import (
    Durable,
    InMemoryIdempotencyStore,
    Queued,
    StoreClosedError,
    StoreLockedError,
    event,
)
from eventbus.idempotency import Claim, HasId
from eventbus.testing import TestBus

MODES: list[Any] = [Durable(), Durable(on_dead_letter="stop"), Queued()]


@event(key="account")
class Paid:
    number: int
    account: str = "A"


class Locked(InMemoryIdempotencyStore):
    """
    Keys that cannot be asked for while there is an error.
    """

    error: Exception | None = None

    def claim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        if self.error is not None:
            raise self.error
        return super().claim(scope, key, source=source, now=now)


def bus_with(keys: Locked, mode: Any, calls: list[int], *, is_async: bool) -> TestBus:
    def handle(paid: Paid) -> None:
        calls.append(paid.number)

    async def ahandle(paid: Paid) -> None:
        await asyncio.sleep(0)
        calls.append(paid.number)

    bus = TestBus(durable=True, idempotency=keys, errors="collect")
    handler: Any = ahandle if is_async else handle
    bus.subscribe(Paid, handler, name="pay", delivery=mode, idempotency_key="number")
    return bus


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("mode", MODES, ids=["durable", "stop", "queued"])
@pytest.mark.parametrize(
    "error", [StoreLockedError("somebody writes"), ConnectionError("no way there")]
)
def test_an_event_waits_for_its_key(
    caplog: pytest.LogCaptureFixture, mode: Any, error: Exception, is_async: bool
) -> None:
    """
    It is handled in its order when the keys can be asked for again; that is logged once.
    """
    keys, calls = Locked(), list[int]()
    bus = bus_with(keys, mode, calls, is_async=is_async)
    keys.error = error
    bus.publish_many([Paid(1), Paid(2)])
    for _ in range(3):
        bus.clock.advance(1.0)
        bus.settle()
    assert [] == calls
    keys.error = None
    bus.clock.advance(1.0)
    bus.settle()
    assert [1, 2] == calls
    assert [] == list(bus.dead_letters)
    ours = [each for each in caplog.records if each.name == "eventbus"]
    warnings = [each for each in ours if each.levelno >= logging.WARNING]
    assert ["pay waits: its idempotency keys cannot be asked for"] == [
        each.getMessage().partition(" (")[0] for each in warnings
    ]


@pytest.mark.parametrize("mode", MODES[:1] + MODES[2:], ids=["durable", "queued"])
def test_that_the_store_of_keys_was_closed_is_final(mode: Any) -> None:
    """
    Nobody opens it again: the event is given up.
    """
    keys, calls = Locked(), list[int]()
    bus = bus_with(keys, mode, calls, is_async=False)
    keys.error = StoreClosedError("closed")
    bus.publish(Paid(1))
    bus.settle()
    assert [(1, 0)] == [(each.event.number, each.attempts) for each in bus.dead_letters]
    assert [] == calls


@pytest.mark.parametrize("mode", MODES[:1] + MODES[2:], ids=["durable", "queued"])
def test_a_store_that_is_locked_for_a_moment_is_not_worth_a_word(
    caplog: pytest.LogCaptureFixture, mode: Any
) -> None:
    """
    Most often a handler of this very loop has a transaction: the event comes when it has ended.
    """
    keys, calls = Locked(), list[int]()
    bus = bus_with(keys, mode, calls, is_async=True)
    keys.error = StoreLockedError("a handler writes")
    bus.publish(Paid(1))
    for _ in range(3):
        bus.settle()
        bus.clock.advance(0.02)
    keys.error = None
    bus.clock.advance(0.1)
    bus.settle()
    assert [1] == calls
    assert [] == caplog.records
