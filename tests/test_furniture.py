"""
Observers that come, go and raise; tickets; the time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from eventbus import EventBus, event, fixed
from eventbus.instrumentation import (
    DeadLettered,
    Delivered,
    Failed,
    Occurrence,
    Published,
    Retried,
    Unhandled,
)
from eventbus.testing import VirtualClock
from testing_colours import Colour, in_both_colours


@event
class Ordered:
    number: int = 0


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus(clock=VirtualClock()) as bus:
        yield bus


class Broken:
    """
    An observer that is equal to every other, cannot be hashed, and raises.
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.told: list[Occurrence] = []

    def __eq__(self, other: object) -> bool:
        return True

    def __call__(self, occurrence: Occurrence) -> None:
        self.told.append(occurrence)
        raise ValueError("broken")


@in_both_colours
def test_each_occurrence_is_told_once_with_its_numbers(bus: EventBus, colour: Colour):
    """
    From the publish to the dead letter, in the order in which it happened.
    """
    told: list[Any] = []
    bus.observe(told.append)

    def fail(ordered: Ordered) -> None:
        bus.clock.sleep(2.0)
        if ordered.number == 0:
            raise ValueError("no")

    policy = fixed(attempts=2, delay=5.0)
    bus.subscribe(Ordered, colour.handler(fail), name="fail", retry=policy)
    receipt = colour.publish(bus, Ordered())
    assert [Published, Retried, Failed, DeadLettered] == [type(each) for each in told]
    assert {receipt.envelope} == {each.envelope for each in told}
    published, retried, failed, letter = told
    assert ("fail",) == published.subscriptions
    assert (1, 5.0, "no") == (retried.attempt, retried.delay, str(retried.exception))
    assert (2, receipt.failures[0].exception) == (failed.attempts, failed.exception)
    assert [letter.letter_id] == [each.id for each in bus.dead_letters]

    told.clear()
    colour.publish(bus, Ordered(1))
    assert [Published, Delivered] == [type(each) for each in told]
    assert ("fail", 1, 2.0) == (told[1].subscription, told[1].attempt, told[1].duration)

    told.clear()
    bus.subscriptions[0].cancel()
    colour.publish(bus, Ordered())
    assert [Published, Unhandled] == [type(each) for each in told]


def test_observers_that_raise_are_logged_once_each(bus: EventBus, caplog: pytest.LogCaptureFixture):
    """
    Whatever they are equal to, and while all are told all the time.
    """
    first, second, sound = Broken(), Broken(), list[Occurrence]()
    for observer in (first, second, sound.append):
        bus.observe(observer)
    with caplog.at_level(logging.ERROR, logger="eventbus"):
        for _ in range(3):
            assert bus.publish(Ordered()).ok
    assert 2 == len(caplog.records)
    assert all(each.exc_info and "raised on Published" in each.message for each in caplog.records)
    assert first.told == second.told == sound
    assert 6 == len(sound)


def test_an_observer_that_was_added_twice_is_told_twice_until_stopped(bus: EventBus):
    """
    Each stop takes one of them away, once, however often it is called.
    """
    told: list[Occurrence] = []
    stop_one, stop_other = bus.observe(told.append), bus.observe(told.append)
    bus.publish(Ordered())
    assert 4 == len(told)
    stop_one()
    stop_one()
    bus.publish(Ordered())
    assert 6 == len(told)
    stop_other()
    bus.publish(Ordered())
    assert 6 == len(told)


def test_observers_added_and_stopped_by_many_threads_are_all_gone_in_the_end(bus: EventBus):
    """
    None is lost on the way in, and none is left behind.
    """
    told: list[Occurrence] = []
    barrier = threading.Barrier(8, timeout=20)
    stops: list[Any] = []

    def come() -> None:
        barrier.wait()
        stops.extend(bus.observe(told.append) for _ in range(20))

    def go() -> None:
        barrier.wait()
        for _ in range(20):
            stops.pop()()

    for act in (come, go):
        threads = [threading.Thread(target=act, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        told.clear()
        bus.publish(Ordered())
        assert (2 * 160 if act is come else 0) == len(told)


@in_both_colours
def test_once_stays_once_while_observers_come_and_go(bus: EventBus, colour: Colour):
    """
    What a subscription is folded into is made anew, and its one event is still the only one.
    """
    called: list[int] = []

    def take(ordered: Ordered) -> None:
        called.append(ordered.number)
        bus.observe(lambda occurrence: None)

    def observe_and_take(ordered: Ordered) -> bool:
        if ordered.number == 0:  # while that event is on its way to the handler
            bus.observe(lambda occurrence: None)
            bus.publish(Ordered(1)) if not colour.handles_async else None
        return True

    bus.subscribe(Ordered, colour.handler(take), once=True, where=observe_and_take, name="once")
    colour.publish(bus, Ordered(0))
    colour.publish(bus, Ordered(2))
    assert [0 if colour.handles_async else 1] == called


def test_times_are_those_of_the_clock_in_utc(bus: EventBus):
    """
    An envelope's time is the wall clock's, which a test can set back.
    """
    clock = bus.clock
    assert isinstance(clock, VirtualClock)
    first = bus.publish(Ordered()).envelope
    clock.jump(-3_600.0)
    second = bus.publish(Ordered()).envelope
    assert datetime.fromtimestamp(clock.time(), UTC) == second.time
    assert 3_600.0 == (first.time - second.time).total_seconds()
    assert first.id < second.id


@pytest.mark.parametrize("observers", [1, 2])
def test_observers_that_publish_for_ever_fall_silent(
    bus: EventBus, observers: int, caplog: pytest.LogCaptureFixture
):
    """
    However many of them answer each other, the publish ends, and it is logged once.
    """
    told: list[Occurrence] = []

    def answer(occurrence: Occurrence) -> None:
        told.append(occurrence)
        if isinstance(occurrence, Unhandled):
            bus.publish(Ordered())

    for _ in range(observers):
        bus.observe(partial(answer))
    with caplog.at_level(logging.ERROR, logger="eventbus"):
        bus.publish(Ordered())
        bus.publish(Ordered())
    assert 10 < len(told) < 1_000
    assert 1 == len(caplog.records)
    assert "observers publish" in caplog.text
