"""
Publishes that wait for the end of a block: which of them, how long, and what cannot wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator, Sequence
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from eventbus import Durable, Receipt, _deferred, event
from eventbus._deferred import Deferred
from eventbus.codec import Encoded, JSONCodec
from eventbus.errors import ConcurrencyError, EncodeError, RunningLoopError
from eventbus.memory import MemoryStore
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


def test_each_event_of_a_block_with_versions_is_looked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    When it is published, and once behind it: however many there are already.
    """
    looked = list[Receipt]()
    is_stored_then = _deferred._is_stored_then

    def look(receipt: Receipt) -> bool:
        looked.append(receipt)
        return is_stored_then(receipt)

    monkeypatch.setattr(_deferred, "_is_stored_then", look)
    bus = TestBus(durable=True)
    with bus.deferred():
        for number in range(100):
            bus.publish(Placed(number), expected_version=number)
    assert 199 == len(looked)
    assert bus._store is not None
    assert 100 == bus._store.log.stream_version("K")


def test_a_cancelled_publish_does_not_count_in_its_block() -> None:
    """
    The version that was its own is that of the next one.
    """
    bus = TestBus(durable=True)
    with bus.deferred():
        bus.publish(Placed(1), expected_version=0)
        cancelled = bus.publish(Placed(2), expected_version=0)
        bus.publish(Placed(3), expected_version=0)
        assert cancelled.cancel()
        bus.publish(Placed(4), expected_version=2)
        with pytest.raises(ValueError, match="Give 3"):
            bus.publish(Placed(5), expected_version=4)
    assert bus._store is not None
    assert 3 == bus._store.log.stream_version("K")


@pytest.mark.parametrize("key", ["another", None])
def test_a_block_has_one_stream_where_it_has_versions(key: str | None) -> None:
    """
    Another stream is refused where it is published, also behind what is not logged.
    """
    bus = TestBus(durable=True)
    passed = list[object]()

    def publish_all() -> None:
        with bus.deferred():
            bus.publish(Measured(0))
            bus.publish(Placed(1), expected_version=0)
            bus.publish(Placed(2, key or "K"), expected_version=None if key is None else 0)
            passed.append(1)

    with pytest.raises(TypeError if key is None else ValueError, match="all events"):
        publish_all()
    assert [] == passed
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


def test_a_block_in_another_one_is_refused_at_its_own_end() -> None:
    """
    That is before the outer one ends, and whatever the application commits by then.
    """
    bus = TestBus(durable=True)
    with bus.deferred():
        outer = bus.publish(Placed(1), idempotency_key="outer")
        with pytest.raises(TypeError, match="to all events, or to none"), bus.deferred():
            inner = bus.publish(Placed(2), expected_version=0, idempotency_key="inner")
        assert (True, False) == (outer.is_scheduled, inner.is_scheduled)
    assert bus._store is not None
    assert [outer.id] == [each.id for each in bus._store.log.read()]
    assert not bus.publish(Placed(3), idempotency_key="inner").duplicate


# -- what could not be stored later ----------------------------------------------------------------


@event
class Billed:
    total: Decimal


Waits = Callable[[TestBus, object, Callable[[], object]], Receipt]


def in_a_block(bus: TestBus, happened: object, commit: Callable[[], object]) -> Receipt:
    with bus.deferred():
        receipt = bus.publish(happened, idempotency_key="click")
        commit()
    return receipt


def with_a_delay(bus: TestBus, happened: object, commit: Callable[[], object]) -> Receipt:
    receipt = bus.publish(happened, idempotency_key="click", delay=5)
    commit()
    return receipt


def with_a_delay_in_a_block(
    bus: TestBus, happened: object, commit: Callable[[], object]
) -> Receipt:
    with bus.deferred():
        return with_a_delay(bus, happened, commit)


waits = pytest.mark.parametrize("wait", [in_a_block, with_a_delay, with_a_delay_in_a_block])


@waits
def test_what_cannot_be_encoded_is_refused_where_it_is_published(wait: Waits) -> None:
    """
    Nothing is committed and nothing waits, and its key is free.
    """
    bus, commits = TestBus(durable=True), list[int]()
    wrong: Any = 1.5
    with pytest.raises(EncodeError, match=r"Billed\.total"):
        wait(bus, Billed(wrong), lambda: commits.append(1))
    assert ([], 0) == (commits, bus.stats().scheduled)
    assert not wait(bus, Billed(Decimal("1.5")), lambda: commits.append(2)).duplicate
    assert [2] == commits
    bus.clock.advance(5)


@waits
def test_what_waits_is_encoded_once(wait: Waits) -> None:
    """
    What it was made into then is what is stored.
    """
    codec = Counting()
    bus = TestBus(store=MemoryStore(), codec=codec)
    receipt = wait(bus, Placed(1), lambda: None)
    bus.clock.advance(5)
    assert bus._store is not None
    assert [receipt.id] == [each.id for each in bus._store.log.read()]
    assert 1 == codec.encoded
    # What is not logged need not be fit for it.
    assert wait(bus, Measured(2), lambda: None).ok
    bus.clock.advance(5)
    assert 1 == codec.encoded


def test_a_batch_that_waits_is_refused_as_a_whole() -> None:
    """
    One of its events cannot be encoded: none of them waits, in a block or for its moment.
    """
    bus = TestBus(durable=True)
    wrong: Any = 1.5
    with bus.deferred(), pytest.raises(EncodeError):
        bus.publish_many([Placed(1), Billed(wrong)])
    with pytest.raises(EncodeError):
        bus.publish_many([Placed(1), Billed(wrong)], delay=5)
    assert 0 == bus.stats().scheduled
    assert bus._store is not None
    assert 0 == bus._store.log.last_offset()


class Counting(JSONCodec):
    """
    A codec that counts.
    """

    encoded = 0

    def encode(self, event: Any) -> Encoded:
        self.encoded += 1
        return super().encode(event)


# -- an end that is broken off ---------------------------------------------------------------------


class Stop(BaseException):
    """
    An interruption that neither pytest nor asyncio treats in a way of its own.
    """


@pytest.mark.parametrize("has_log", [False, True], ids=["in memory", "logged"])
@both
def test_what_a_block_whose_end_is_broken_off_has_left_is_kept(
    is_async: bool, has_log: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """
    Its dead letters are there for those who would have got it, its keys are free again.
    """
    bus = TestBus(durable=has_log, errors="collect")
    seen = list[int]()

    def handle(placed: Placed) -> None:
        if placed.number == 1:
            raise Stop
        seen.append(placed.number)

    bus.subscribe(Placed, handle, name="note")
    bus.subscribe(Placed, handle, name="never", where=lambda placed: placed.number > 9)
    bus.subscribe(Placed, handle, name="odd", where=lambda placed: placed.key.missing)
    if has_log:
        bus.subscribe(Placed, lambda placed: None, name="log", delivery=Durable())
    receipts = list[Receipt]()
    with pytest.raises(Stop):
        in_block(
            bus,
            [(Placed(number), {"idempotency_key": str(number)}) for number in (1, 2, 3)],
            receipts.extend,
            is_async=is_async,
        )
    assert [] == seen
    assert [("note", 2), ("odd", 2), ("note", 3), ("odd", 3)] == [
        (each.subscription, each.event.number) for each in bus.dead_letters
    ]
    assert {"undelivered"} == {each.reason for each in bus.dead_letters}
    assert [0, 0, 0] == [each.delivered for each in receipts]
    assert "2 publishes are not delivered now" in caplog.text
    again = publish(bus, Placed(2), is_async=is_async, idempotency_key="2")
    assert not again.duplicate


@both
def test_a_block_broken_off_by_its_last_event_has_left_nothing(
    is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """
    No letter, and no line that speaks of a rest.
    """
    bus = TestBus(errors="collect")

    def handle(placed: Placed) -> None:
        if placed.number == 2:
            raise Stop

    bus.subscribe(Placed, handle, name="note")
    with pytest.raises(Stop):
        in_block(bus, [(Placed(1), {}), (Placed(2), {})], list, is_async=is_async)
    assert [] == list(bus.dead_letters)
    assert "broken off" not in caplog.text


def test_async_handlers_are_refused_in_a_block_that_cannot_await_them() -> None:
    """
    A block that was entered by a plain ``with`` refuses them at once, or at least at its end.
    """
    bus = TestBus()
    refused = pytest.raises(RunningLoopError, match=r"`async with bus.deferred\(\):`")

    async def handle(placed: Placed | Measured) -> None: ...

    async def subscribe_late() -> None:
        with bus.deferred():
            await bus.apublish(Measured(1))
            bus.subscribe(Measured, handle, name="late")

    async def main() -> None:
        bus.subscribe(Placed, handle, name="note")
        with bus.deferred(), refused:
            await bus.apublish(Placed(1))
        async with bus.deferred():
            with bus.deferred():
                await bus.apublish(Placed(2))
        with refused:
            await subscribe_late()

    asyncio.run(main())
    assert [Placed(2)] == [each.event for each in bus.delivered]
