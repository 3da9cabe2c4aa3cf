"""
Publishes that wait for the end of a block: which of them, how long, and what cannot wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Sequence
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from eventbus import Receipt, event
from eventbus._deferred import Deferred
from eventbus.errors import ConcurrencyError
from eventbus.testing import TestBus

both = pytest.mark.parametrize("is_async", [False, True], ids=["publish", "apublish"])

Published = tuple[object, dict[str, Any]]


@event(key="key")
class Placed:
    number: int
    key: str = "K"


@event(logged=False)
class Measured:
    number: int


def noting(bus: TestBus) -> list[int]:
    """
    Subscribe a handler inline, and return what it notes down.
    """
    seen = list[int]()
    bus.subscribe(Placed, lambda placed: seen.append(placed.number), name="note")
    return seen


def publish(bus: TestBus, happened: object, *, is_async: bool, **options: Any) -> Receipt:
    if is_async:
        return asyncio.run(bus.apublish(happened, **options))
    return bus.publish(happened, **options)


def in_block(
    bus: TestBus,
    publishes: Sequence[Published],
    then: Callable[[list[Receipt]], object] = lambda _: None,
    *,
    is_async: bool,
) -> list[Receipt]:
    """
    Publish it all in one block, and call *then* before its end.
    """

    async def amain() -> list[Receipt]:
        async with bus.deferred():
            receipts = [await bus.apublish(each, **options) for each, options in publishes]
            then(receipts)
        return receipts

    def main() -> list[Receipt]:
        with bus.deferred():
            receipts = [bus.publish(each, **options) for each, options in publishes]
            then(receipts)
        return receipts

    return asyncio.run(amain()) if is_async else main()


# -- how long a block takes publishes in --------------------------------------------------------


@both
def test_what_a_block_has_begun_publishes_at_once_when_the_block_is_over(is_async: bool) -> None:
    """
    A task or a thread that was begun in the block has its context, and outlives it.
    """
    bus = TestBus()
    seen, contexts = noting(bus), list[Any]()
    in_block(bus, [(Placed(1), {})], lambda _: contexts.append(copy_context()), is_async=is_async)
    [context] = contexts
    receipt = context.run(publish, bus, Placed(2), is_async=is_async)
    assert (False, 1) == (receipt.is_scheduled, receipt.delivered)
    assert [1, 2] == seen


def test_what_an_inner_block_has_begun_waits_for_the_outer_one() -> None:
    """
    The outer one stands around it as well, and may still be dropped.
    """
    bus = TestBus()
    seen = noting(bus)
    with bus.deferred():
        with bus.deferred():
            context = copy_context()
        assert context.run(bus.publish, Placed(1)).is_scheduled
        assert [] == seen
    assert [1] == seen


def test_an_inner_block_that_outlives_the_outer_one_publishes_itself() -> None:
    """
    That of a task which the outer block has begun.
    """
    bus = TestBus()
    seen, inner = noting(bus), bus.deferred()
    with bus.deferred():
        context = copy_context()
    context.run(inner.__enter__)
    context.run(bus.publish, Placed(1))
    assert [] == seen
    context.run(inner.__exit__, None)
    assert [1] == seen


def test_an_inner_block_that_ends_last_publishes_itself() -> None:
    """
    It was entered in time to leave its events to the outer one, and ended too late for that.
    """
    bus = TestBus()
    seen, inner = noting(bus), bus.deferred()
    with bus.deferred():
        context = copy_context()
        context.run(inner.__enter__)
        context.run(bus.publish, Placed(1))
    context.run(inner.__exit__, None)
    assert [1] == seen


def test_what_a_closed_generator_has_published_is_dropped_and_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    Nobody hears of what ends it, so the log says how many; what follows is published.
    """
    bus = TestBus()
    seen = noting(bus)

    def steps() -> Generator[None]:
        with bus.deferred():
            bus.publish(Placed(1))
            yield

    begun = steps()
    next(begun)
    with bus.deferred(), caplog.at_level(logging.WARNING, "eventbus"):
        bus.publish(Placed(2))
        begun.close()
        bus.publish(Placed(3))
        assert [] == seen
    assert [2, 3] == seen
    assert 1 == sum("1 publishes are dropped" in each for each in caplog.messages)
    bus.publish(Placed(4))
    assert [2, 3, 4] == seen


def test_a_generator_closed_after_it_has_published_nothing_is_not_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """
    There is nothing to tell.
    """
    bus = TestBus()

    def steps() -> Generator[None]:
        with bus.deferred():
            yield

    begun = steps()
    next(begun)
    begun.close()
    assert [] == caplog.messages


def test_a_block_can_be_entered_again_also_inside_itself() -> None:
    """
    Each time it begins with nothing.
    """
    bus = TestBus()
    seen, block = noting(bus), bus.deferred()
    with block:
        bus.publish(Placed(1))
        with block:
            bus.publish(Placed(2))
        assert [] == seen
    with block:
        bus.publish(Placed(3))
        assert [1, 2] == seen
    assert [1, 2, 3] == seen


def test_a_block_that_has_ended_takes_nothing_in() -> None:
    """
    Whoever comes in that moment learns of it, and publishes by himself.
    """
    block, bus = Deferred(lambda _: None, _publish_nothing), TestBus()
    assert [] == block.take_all()
    receipt = bus.publish(Placed(1))
    assert not block.add(receipt)
    assert not receipt.is_scheduled


async def _publish_nothing(_: Deferred) -> None: ...


# -- what is due later ----------------------------------------------------------------------------


@both
def test_what_is_due_later_is_scheduled_when_the_block_ends_well(is_async: bool) -> None:
    """
    It goes the way of the block like everything else, at the time that was given.
    """
    bus = TestBus()
    seen = noting(bus)
    [receipt] = in_block(
        bus,
        [(Placed(1), {"delay": 5.0})],
        lambda _: bus.clock.advance(2),
        is_async=is_async,
    )
    assert (True, 1) == (receipt.is_scheduled, bus.stats().scheduled)
    bus.clock.advance(3)
    assert [1] == seen


@both
def test_what_is_due_later_is_dropped_with_its_block(is_async: bool) -> None:
    """
    It never was, and nothing becomes due.
    """
    bus = TestBus()
    seen, told = noting(bus), list[Receipt]()

    def fail(receipts: list[Receipt]) -> None:
        told.extend(receipts)
        raise KeyError

    with pytest.raises(KeyError):
        in_block(bus, [(Placed(1), {"delay": 5.0})], fail, is_async=is_async)
    assert (False, 0) == (told[0].is_scheduled, bus.stats().scheduled)
    bus.clock.advance(5)
    assert [] == seen


@both
@pytest.mark.parametrize(
    "when", [{"delay": 1.0}, {"delay": 0.0}, {"at": datetime.now(UTC) - timedelta(1)}]
)
@pytest.mark.parametrize("option", [{"connection": object()}, {"expected_version": 0}])
def test_what_is_about_the_log_now_is_refused_for_what_is_due_later(
    when: dict[str, Any], option: dict[str, Any], is_async: bool
) -> None:
    """
    Also where the time given has passed, as it may have done by chance.
    """
    bus = TestBus(durable=True)
    with pytest.raises(TypeError, match=r"= is about what is stored now.*deferred\(\)"):
        publish(bus, Placed(1), is_async=is_async, **when, **option)
    publish(bus, Placed(1), is_async=is_async, **when, **dict.fromkeys(option))
    assert bus._store is not None
    assert 1 == bus.stats().scheduled + bus._store.log.last_offset()
    bus.close()


# -- the version of a stream ----------------------------------------------------------------------


@both
def test_each_event_of_a_block_may_count_those_before_it(is_async: bool) -> None:
    """
    As it would where each is published by itself; what is not logged does not count.
    """
    bus = TestBus(durable=True)
    events = [
        (Measured(0), {}),
        (Placed(1), {"expected_version": 0}),
        (Placed(2), {"expected_version": 1}),
        (Measured(0), {}),
        (Placed(3), {"expected_version": 2}),
    ]
    in_block(bus, events, is_async=is_async)
    assert bus._store is not None
    assert 3 == bus._store.log.stream_version("K")
    with pytest.raises(ConcurrencyError):
        in_block(bus, events, is_async=is_async)
    assert 3 == bus._store.log.stream_version("K")


@both
def test_a_version_that_cannot_be_is_refused_where_it_is_asked_for(is_async: bool) -> None:
    """
    The message says which one could be; nothing of the block is stored.
    """
    bus = TestBus(durable=True)
    events = [(Placed(1), {"expected_version": 0}), (Placed(2), {"expected_version": 77})]
    passed = list[object]()
    with pytest.raises(ValueError, match=r"=77 in bus.deferred\(\) cannot be.*Give 1"):
        in_block(bus, events, passed.append, is_async=is_async)
    assert [] == passed
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


def test_a_batch_in_a_block_asks_once() -> None:
    """
    Its version is that before its first event; what follows counts all of it.
    """
    bus = TestBus(durable=True)
    with bus.deferred():
        bus.publish_many([Placed(1), Placed(2)], expected_version=0)
        bus.publish(Placed(3), expected_version=2)
    assert bus._store is not None
    assert 3 == bus._store.log.stream_version("K")
