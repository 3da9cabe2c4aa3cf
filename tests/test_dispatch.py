"""
One event to all its handlers: order, isolation, interruption; one after the other and at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from eventbus import (
    DeadLetter,
    EventBus,
    HandlerErrors,
    InMemoryDeadLetters,
    Receipt,
    event,
    fixed,
)
from testing_colours import Colour, in_both_colours

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


@event
class Ordered:
    number: int = 0


class Stop(BaseException):
    """
    An interruption that neither pytest nor asyncio treats in a way of its own.
    """


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, PATIENCE))


def missed(bus: EventBus) -> dict[str, int]:
    stats = bus.stats().subscriptions
    for each in stats.values():
        assert each.published == each.delivered + each.failed + each.duplicate + each.missed
    return {name: each.missed for name, each in stats.items()}


# -- one after the other


@in_both_colours
def test_an_interruption_ends_the_publish_where_it_is(colour: Colour):
    """
    Who ran before has it, the others missed it, and the bus goes on with the next event.
    """
    called: list[str] = []

    def stop(ordered: Ordered) -> None:
        if ordered.number == 0:
            raise Stop

    def noting(name: str) -> Callable[[Ordered], None]:
        return lambda ordered: called.append(f"{name} {ordered.number}")

    with EventBus() as bus:
        bus.subscribe(Ordered, colour.handler(noting("before")), name="before")
        bus.subscribe(Ordered, colour.handler(stop), name="stop")
        bus.subscribe(Ordered, colour.handler(noting("after")), name="after")
        with pytest.raises(Stop):
            colour.publish(bus, Ordered(0))
        assert ["before 0"] == called
        assert {"before": 0, "stop": 1, "after": 1} == missed(bus)
        assert 3 == colour.publish(bus, Ordered(1)).delivered
        assert ["before 0", "before 1", "after 1"] == called
        assert 0 == len(bus.dead_letters)


@in_both_colours
def test_an_interruption_after_a_failure_ends_the_publish_too(colour: Colour):
    """
    The failure before it stays buried, counted once, with its dead letter.
    """

    def fail(ordered: Ordered) -> None:
        raise ValueError(ordered)

    def stop(ordered: Ordered) -> None:
        raise Stop

    with EventBus() as bus:
        for name, handler in {"fail": fail, "stop": stop, "after": fail}.items():
            bus.subscribe(Ordered, colour.handler(handler), name=name)
        with pytest.raises(Stop):
            colour.publish(bus, Ordered())
        assert {"fail": 0, "stop": 1, "after": 1} == missed(bus)
        assert ["fail"] == [each.subscription for each in bus.dead_letters]


@in_both_colours
@pytest.mark.parametrize("errors", ["collect", "raise"])
def test_a_failure_that_cannot_be_raised_any_more_is_logged(
    errors: Any, colour: Colour, caplog: pytest.LogCaptureFixture
):
    """
    An interruption hides no failure: those before it are logged once, raised or collected.
    """

    def fail(ordered: Ordered) -> None:
        raise ValueError(ordered)

    def stop(ordered: Ordered) -> None:
        if ordered.number == 2:
            raise Stop

    with EventBus(errors=errors) as bus:
        bus.subscribe(Ordered, colour.handler(fail), name="fail")
        bus.subscribe(Ordered, colour.handler(stop), name="stop")
        with pytest.raises(Stop):
            colour.publish(bus, Ordered(2))
        with pytest.raises(Stop):
            colour.publish_many(bus, [Ordered(1), Ordered(2), Ordered(3)])
    logged = [each.exc_info[1] for each in caplog.records if each.exc_info]
    assert [1, 2, 2] == sorted(each.args[0].number for each in logged if each is not None)


@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
@in_both_colours
def test_an_interrupted_publish_frees_its_key(colour: Colour, fanout: Any):
    """
    Not all handlers had the event: published again with its key, it is no duplicate.
    """

    def stop(ordered: Ordered) -> None:
        if ordered.number == 0:
            raise Stop

    with EventBus(fanout=fanout) as bus:
        bus.subscribe(Ordered, colour.handler(stop))
        with pytest.raises(Stop):
            colour.publish(bus, Ordered(0), idempotency_key="k")
        assert not colour.publish(bus, Ordered(1), idempotency_key="k").duplicate
        assert colour.publish(bus, Ordered(1), idempotency_key="k").duplicate


class Interrupting(InMemoryDeadLetters):
    """
    Interrupts whoever buries a failure.
    """

    def add(self, letter: DeadLetter) -> bool:
        raise Stop


@pytest.mark.parametrize("options", [{}, {"idempotency_key": "k"}], ids=["plain", "key"])
@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
@in_both_colours
def test_an_interruption_while_a_failure_is_buried_is_counted_once(
    colour: Colour, fanout: Any, options: dict[str, Any]
):
    """
    Who failed has failed, and has not missed the event as well; the others behind have.
    """

    def fail(ordered: Ordered) -> None:
        raise ValueError(ordered)

    with EventBus(fanout=fanout, dead_letters=Interrupting()) as bus:
        bus.subscribe(Ordered, lambda ordered: None, name="before")
        bus.subscribe(Ordered, colour.handler(fail), name="fail")
        bus.subscribe(Ordered, fail, name="after")
        with pytest.raises(Stop):
            colour.publish(bus, Ordered(), **options)
        counted = bus.stats().subscriptions
        assert {"before": 1, "fail": 0, "after": 0} == {n: c.delivered for n, c in counted.items()}
        assert 1 == counted["after"].failed + counted["after"].missed
        assert 1 == counted["fail"].failed + counted["fail"].missed
        if fanout == "sequential" or not colour.publishes_async:
            assert {"before": 0, "fail": 0, "after": 1} == missed(bus)


# -- at once


def concurrent(*handlers: Callable[[Ordered], object], **options: Any) -> EventBus:
    bus = EventBus(fanout="concurrent", **options)
    for handler in handlers:
        bus.subscribe(Ordered, handler, name=handler.__name__)
    return bus


def test_async_handlers_run_at_the_same_time():
    """
    Each waits until the others have begun, which ends only if all have.
    """
    begun: list[str] = []

    async def live() -> None:
        all_begun = asyncio.Barrier(3)

        async def first(ordered: Ordered) -> None:
            begun.append("first")
            await all_begun.wait()

        def sync(ordered: Ordered) -> None:
            begun.append("sync")

        async def second(ordered: Ordered) -> None:
            begun.append("second")
            await all_begun.wait()

        async def third(ordered: Ordered) -> None:
            begun.append("third")
            await all_begun.wait()

        receipt = await concurrent(first, sync, second, third).apublish(Ordered())
        assert 4 == receipt.delivered

    run(live())
    assert ["sync", "first", "second", "third"] == begun


def test_failures_come_in_the_order_of_the_handlers():
    """
    Whoever failed first, and whether it is sync or not.
    """

    async def live() -> None:
        third_failed = asyncio.Event()

        async def first(ordered: Ordered) -> None:
            await third_failed.wait()
            raise ValueError("first")

        def second(ordered: Ordered) -> None:
            raise ValueError("second")

        async def third(ordered: Ordered) -> None:
            third_failed.set()
            raise ValueError("third")

        receipt = await concurrent(first, second, third).apublish(Ordered())
        assert ["first", "second", "third"] == [each.subscription for each in receipt.failures]
        third_failed.clear()
        with pytest.raises(HandlerErrors) as raised:
            await concurrent(first, second, third, errors="raise").apublish(Ordered())
        assert ["first", "second", "third"] == [str(each) for each in raised.value.exceptions]

    run(live())


@pytest.mark.parametrize("steps", range(4))
def test_cancelled_at_once_nothing_is_left_running(steps: int):
    """
    However far the handlers have come, some not begun: each ends before the publish does.
    """
    ended: list[str] = []

    async def live() -> None:
        async def first(ordered: Ordered) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("first")

        async def second(ordered: Ordered) -> None:
            await asyncio.Event().wait()

        def third(ordered: Ordered) -> None:
            ended.append("third")

        bus, before = concurrent(first, second, third), asyncio.all_tasks()
        publish = asyncio.create_task(bus.apublish(Ordered()))
        for _ in range(steps):
            await asyncio.sleep(0)
        publish.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publish
        assert before == asyncio.all_tasks()
        if steps == 0:
            assert 0 == bus.stats().published
        else:
            assert {"first": 1, "second": 1, "third": 0} == missed(bus)

    run(live())
    assert [[], ["third"], ["third", "first"], ["third", "first"]][steps] == ended


def test_cancelled_at_once_what_a_handler_promised_is_cancelled():
    """
    A future that is awaited for a handler ends with the publish.
    """

    async def live() -> None:
        promised: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def promise(ordered: Ordered) -> asyncio.Future[None]:
            return promised

        bus = concurrent(promise)
        publish = asyncio.create_task(bus.apublish(Ordered()))
        for _ in range(3):
            await asyncio.sleep(0)
        publish.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publish
        assert promised.cancelled()
        assert {"promise": 1} == missed(bus)

    run(live())


def test_a_handler_that_has_ended_before_the_interruption_has_it():
    """
    Of handlers run at once, the interruption of one takes only those that were not done.
    """
    cleaned: list[bool] = []

    async def live() -> None:
        async def done(ordered: Ordered) -> None: ...

        async def failed(ordered: Ordered) -> None:
            raise ValueError("failed")

        async def stop(ordered: Ordered) -> None:
            await asyncio.sleep(0)
            raise Stop

        async def waiting(ordered: Ordered) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(True)

        bus, before = concurrent(done, failed, stop, waiting), asyncio.all_tasks()
        with pytest.raises(Stop):
            await bus.apublish(Ordered())
        assert [True] == cleaned
        assert before == asyncio.all_tasks()
        assert {"done": 0, "failed": 0, "stop": 1, "waiting": 1} == missed(bus)
        assert 1 == bus.stats().subscriptions["failed"].failed

    run(live())


def test_an_interruption_on_the_way_leaves_no_coroutine_behind():
    """
    What was to run at once, and what comes after, is never begun, and says so in the counts.
    """
    begun: list[str] = []

    async def live() -> None:
        async def first(ordered: Ordered) -> None:
            begun.append("first")

        def stop(ordered: Ordered) -> None:
            raise Stop

        async def last(ordered: Ordered) -> None:
            begun.append("last")

        bus = concurrent(first, stop, last)
        with pytest.raises(Stop):
            await bus.apublish(Ordered())
        assert {"first": 1, "stop": 1, "last": 1} == missed(bus)

    run(live())
    assert [] == begun


def test_without_awaitables_nothing_is_started():
    """
    Sync handlers alone need no task, and their interruption waits for none.
    """

    async def live() -> None:
        def only(ordered: Ordered) -> None:
            assert before == asyncio.all_tasks()
            if ordered.number:
                raise Stop

        bus, before = concurrent(only), asyncio.all_tasks()
        receipt: Receipt = await bus.apublish(Ordered(0))
        assert 1 == receipt.delivered
        with pytest.raises(Stop):
            await bus.apublish(Ordered(1))

    run(live())


class Shelf:
    """
    An object whose method is a handler, and which notes what it was called with.
    """

    def __init__(self, taken: list[int]) -> None:
        self.taken = taken

    async def take(self, ordered: Ordered) -> None:
        self.taken.append(ordered.number)


@pytest.mark.parametrize("comes_first", ["weak", "drop"])
@pytest.mark.parametrize(
    "options",
    [{}, {"retry": fixed(attempts=2, delay=0.0)}, {"idempotency_key": "number"}],
    ids=["plain", "retry", "key"],
)
def test_a_weak_handler_is_held_from_its_turn_on(comes_first: str, options: dict[str, Any]):
    """
    Whose object dies before its turn has missed the event; whose dies later is still called.
    """
    taken: list[int] = []
    shelves = [Shelf(taken)]

    async def live() -> None:
        bus = EventBus(fanout="concurrent")
        priority = 1 if comes_first == "weak" else -1
        bus.subscribe(
            Ordered, shelves[0].take, name="weak", weak=True, priority=priority, **options
        )
        bus.subscribe(Ordered, lambda ordered: shelves.clear(), name="drop")
        receipt = await bus.apublish(Ordered(1))
        assert (1 + len(taken), True) == (receipt.delivered, receipt.ok)
        assert ["drop"] == [each.name for each in bus.subscriptions]
        assert 1 == (await bus.apublish(Ordered(2))).delivered

    run(live())
    assert ([1] if comes_first == "weak" else []) == taken


@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
@pytest.mark.parametrize(
    "options",
    [{}, {"retry": fixed(attempts=2, delay=0.0)}, {"idempotency_key": "number"}, {"timeout": 5.0}],
    ids=["plain", "retry", "key", "timeout"],
)
def test_who_is_cancelled_before_its_turn_is_not_called(fanout: Any, options: dict[str, Any]):
    """
    An earlier handler of the same event cancels a later one, which then misses the event.
    """
    taken: list[int] = []

    async def live() -> None:
        bus = EventBus(fanout=fanout)

        async def cancel(ordered: Ordered) -> None:
            later.cancel()

        async def take(ordered: Ordered) -> None:
            taken.append(ordered.number)

        bus.subscribe(Ordered, cancel, name="cancel")
        later = bus.subscribe(Ordered, take, name="take", **options)
        receipt = await bus.apublish(Ordered(1))
        assert (1, True, False) == (receipt.delivered, receipt.ok, receipt.unhandled)
        assert 1 == later.counters.missed

    run(live())
    assert [] == taken


def test_who_ends_by_its_only_call_takes_it():
    """
    At once with others, a ``once`` subscription is over before its handler begins.
    """
    taken: list[int] = []

    async def live() -> None:
        bus = EventBus(fanout="concurrent")

        async def take(ordered: Ordered) -> None:
            taken.append(ordered.number)

        bus.subscribe(Ordered, take, once=True)
        assert 1 == (await bus.apublish(Ordered(1))).delivered
        assert (await bus.apublish(Ordered(2))).unhandled

    run(live())
    assert [1] == taken


@pytest.mark.parametrize("options", [{}, {"idempotency_key": "k"}], ids=["plain", "key"])
@pytest.mark.parametrize("fanout", ["sequential", "concurrent"])
def test_what_a_sync_handler_returns_is_part_of_it(fanout: Any, options: dict[str, Any]):
    """
    A future, or any other awaitable, that fails in the end fails that delivery alone.
    """

    async def live() -> None:
        future, promised = asyncio.get_running_loop().create_future(), asyncio.Event()

        def promise(ordered: Ordered) -> asyncio.Future[None]:
            promised.set()
            return future

        async def fulfil(ordered: Ordered) -> None: ...

        bus = EventBus(fanout=fanout)
        bus.subscribe(Ordered, promise, name="promise")
        bus.subscribe(Ordered, fulfil, name="fulfil")
        publish = asyncio.create_task(bus.apublish(Ordered(), **options))
        await promised.wait()
        assert not publish.done()
        future.set_exception(ValueError("broken"))
        receipt = await publish
        assert ["promise"] == [each.subscription for each in receipt.failures]
        assert 1 == receipt.delivered

    run(live())
