"""
Where the flow of control stands: what a context, and every copy of it, says caused an event.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from threading import Event, Thread
from typing import Any

import attrs
import pytest

from eventbus import Envelope, EventBus, current_envelope, event
from eventbus.testing import VirtualClock

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


@event(name="test.ordered", version=3, key="number")
class Ordered:
    number: int = 0


@event
class Paid:
    number: int = 0


@event
class Noticed:
    pass


@pytest.fixture
def bus() -> Iterator[EventBus]:
    with EventBus() as bus:
        yield bus


@pytest.fixture
def causes(bus: EventBus) -> list[tuple[str | None, str]]:
    """
    The causation and the correlation id of each `Paid`, as they come.
    """
    found: list[tuple[str | None, str]] = []

    def take(paid: Paid, envelope: Envelope[Paid]) -> None:
        found.append((envelope.causation_id, envelope.correlation_id))

    bus.subscribe(Paid, take)
    return found


# -- the value


def test_an_envelope_tells_what_is_declared_and_when_it_was_made():
    """
    Name, version and key are the event's, the time is the clock's, in UTC.
    """
    with EventBus(clock=VirtualClock()) as bus:
        envelope = bus.publish(Ordered(7), headers={"tenant": "acme"}).envelope
        assert ("test.ordered", 3, "7") == (envelope.name, envelope.version, envelope.key)
        assert datetime.fromtimestamp(bus.clock.time(), UTC) == envelope.time
        assert timedelta(0) == envelope.time.utcoffset()
        assert {"tenant": "acme"} == envelope.headers
        assert envelope.id == envelope.correlation_id
        assert envelope.causation_id is None


def test_an_envelope_cannot_be_changed(bus: EventBus):
    """
    Neither its facts nor its headers can be written.
    """
    envelope: Any = bus.publish(Ordered(), headers={"tenant": "acme"}).envelope
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        envelope.id = "another"
    with pytest.raises(TypeError):
        envelope.headers["tenant"] = "other"


def test_the_headers_are_those_at_the_time_of_the_publish(bus: EventBus):
    """
    What the publisher does with its mapping afterwards changes nothing.
    """
    headers = {"tenant": "acme"}
    receipt = bus.publish(Ordered(), headers=headers)
    headers["tenant"] = "other"
    assert {"tenant": "acme"} == receipt.envelope.headers


@event
class Listed:
    numbers: list[int] = attrs.field(factory=list)


@pytest.mark.parametrize("headers", [{}, {"tenant": "acme"}])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda envelope: pickle.loads(pickle.dumps(envelope))],
    ids=["copied", "deeply", "pickled"],
)
def test_an_envelope_is_a_value(bus: EventBus, copied: Any, headers: dict[str, str]):
    """
    It can be hashed whatever its event is, copied and pickled; a copy is equal and as fixed.
    """
    envelope = bus.publish(Listed([1, 2]), headers=headers).envelope
    again = copied(envelope)
    assert envelope == again
    assert {envelope: "found"}[again] == "found"
    with pytest.raises(TypeError):
        again.headers["tenant"] = "other"


# -- outside of handlers


def test_outside_of_handlers_there_is_no_envelope(bus: EventBus):
    """
    Before a publish, after it, and after one whose handler failed, nothing is handled.
    """

    def fail(ordered: Ordered) -> None:
        raise ValueError("no")

    bus.subscribe(Ordered, fail)
    assert current_envelope() is None
    assert not bus.publish(Ordered()).ok
    assert current_envelope() is None
    assert bus.publish(Paid()).envelope.causation_id is None


@pytest.mark.parametrize("is_async", [False, True])
def test_an_interruption_leads_back_to_where_the_publish_began(bus: EventBus, is_async: bool):
    """
    After an interrupted nested publish, the outer handler is still the cause.
    """
    seen: list[Envelope[Any] | None] = []

    def stop(paid: Paid) -> None:
        raise KeyboardInterrupt

    def order(ordered: Ordered) -> None:
        with pytest.raises(KeyboardInterrupt):
            bus.publish(Paid())
        seen.append(current_envelope())

    async def aorder(ordered: Ordered) -> None:
        with pytest.raises(KeyboardInterrupt):
            await bus.apublish(Paid())
        seen.append(current_envelope())

    bus.subscribe(Paid, stop)
    bus.subscribe(Ordered, aorder if is_async else order)
    receipt = asyncio.run(bus.apublish(Ordered())) if is_async else bus.publish(Ordered())
    assert [receipt.envelope] == seen
    assert current_envelope() is None


# -- in order


def test_ids_and_times_of_cause_and_effect_are_in_order(bus: EventBus):
    """
    An envelope first asked for by the innermost handler comes after all its causes'.
    """
    receipts = []

    def nest(ordered: Ordered) -> None:
        if ordered.number < 9:
            receipts.append(bus.publish(Ordered(ordered.number + 1)))
        else:
            assert current_envelope() is not None

    bus.subscribe(Ordered, nest)
    receipts.append(bus.publish(Ordered()))
    made = [each.envelope for each in reversed(receipts)]
    assert sorted(each.id for each in made) == [each.id for each in made]
    assert sorted(each.time for each in made) == [each.time for each in made]
    assert [None, *[each.id for each in made[:-1]]] == [each.causation_id for each in made]
    assert {made[0].id} == {each.correlation_id for each in made}


def test_a_long_chain_of_causes_is_made_on_a_short_stack():
    """
    The innermost handler of a deep chain can ask for its envelope with little stack left.
    """
    bus = EventBus(max_depth=100)
    seen: list[Envelope[Any] | None] = []

    def nest(ordered: Ordered) -> None:
        if ordered.number < 80:
            bus.publish(Ordered(ordered.number + 1))
            return
        depth, frame = 0, sys._getframe()
        while frame.f_back is not None:
            depth, frame = depth + 1, frame.f_back
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(depth + 60)
        try:
            seen.append(current_envelope())
        finally:
            sys.setrecursionlimit(limit)

    bus.subscribe(Ordered, nest)
    assert bus.publish(Ordered()).ok
    assert [80] == [each.event.number for each in seen if each is not None]


# -- copies of a context


@pytest.mark.parametrize("is_warm", [False, True], ids=["first-thread", "one-of-many"])
@pytest.mark.parametrize("waits", [False, True], ids=["left-behind", "waited-for"])
def test_a_thread_that_runs_a_copied_context_publishes_for_the_handler(
    bus: EventBus, causes: list[Any], is_warm: bool, waits: bool
):
    """
    Whether or not the publish has returned, and others have been made since.
    """
    go_on, started, seen = Event(), list[Future[None]](), list[Envelope[Any] | None]()

    def later() -> None:
        assert waits or go_on.wait(PATIENCE)
        seen.append(current_envelope())
        bus.publish(Paid())

    def order(ordered: Ordered) -> None:
        started.append(pool.submit(copy_context().run, later))
        if waits:
            started[-1].result(PATIENCE)

    def notice(noticed: Noticed) -> None:
        go_on.set()
        started[-1].result(PATIENCE)

    bus.subscribe(Ordered, order)
    bus.subscribe(Noticed, notice)
    with ThreadPoolExecutor(1) as pool:
        if is_warm:
            pool.submit(str).result(PATIENCE)
        receipt = bus.publish(Ordered())
        bus.publish(Noticed())
    assert [receipt.envelope] == seen
    assert [(receipt.id, receipt.id)] == causes
    assert current_envelope() is None


def test_a_thread_that_turns_up_in_a_nested_publish_changes_no_cause(
    bus: EventBus, causes: list[Any]
):
    """
    The handlers around it go on where they were, and so does the program after them.
    """
    go_on, seen = Event(), list[Any]()
    threads: list[Thread] = []

    def watch(number: int) -> None:
        assert go_on.wait(PATIENCE)
        seen.append((number, current_envelope()))

    def order(ordered: Ordered) -> None:
        if ordered.number < 2:
            receipts[ordered.number + 1] = bus.publish(Ordered(ordered.number + 1))
        else:
            run = copy_context().run
            threads.append(Thread(target=run, args=(watch, ordered.number), daemon=True))
            threads[-1].start()
        here_again = current_envelope()
        assert here_again is not None
        assert ordered == here_again.event
        bus.publish(Paid(ordered.number))

    receipts: dict[int, Any] = {}
    bus.subscribe(Ordered, order)
    for _ in range(2):  # the second time with a thread around from the start
        receipts[0] = bus.publish(Ordered())
        assert [receipts[n].id for n in (2, 1, 0)] == [cause for cause, _ in causes]
        assert bus.publish(Paid()).envelope.causation_id is None
        causes.clear()
    go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [2, 2] == [number for number, _ in seen]
    assert {2} == {envelope.event.number for _, envelope in seen}


def test_threads_that_come_and_go_leave_the_cause_where_it_was(bus: EventBus, causes: list[Any]):
    """
    A thread that ends before the publish does is as if it had never been.
    """

    def order(ordered: Ordered) -> None:
        thread = Thread(target=bus.publish, args=(Paid(1),), daemon=True)
        thread.start()
        thread.join(PATIENCE)
        bus.publish(Paid(2))

    bus.subscribe(Ordered, order)
    first, second = bus.publish(Ordered()), bus.publish(Ordered())
    assert [None, first.id, None, second.id] == [cause for cause, _ in causes]
    assert bus.publish(Noticed()).envelope.causation_id is None


def test_a_context_copied_outside_of_handlers_stays_outside(bus: EventBus, causes: list[Any]):
    """
    Threads that run it have no cause, whatever the thread it came from publishes meanwhile.
    """
    bus.subscribe(Ordered, lambda ordered: None, name="busy")
    bus.publish(Ordered())
    with ThreadPoolExecutor(4) as pool:
        runs = []
        for number in range(200):
            runs.append(pool.submit(copy_context().run, bus.publish, Paid(number)))
            bus.publish(Ordered(number))
        for run in runs:
            run.result(PATIENCE)
    assert 200 == len(causes)
    assert {None} == {cause for cause, _ in causes}


def test_a_sync_handler_may_hand_over_to_a_loop_in_another_thread(bus: EventBus, causes: list[Any]):
    """
    What `asyncio.run_coroutine_threadsafe` publishes was caused by the handler's event.
    """
    receipts: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        handed_over: list[Future[Any]] = []

        def order(ordered: Ordered) -> None:
            child = bus.apublish(Paid(ordered.number))
            handed_over.append(asyncio.run_coroutine_threadsafe(child, loop))

        def work() -> None:
            receipts.extend(bus.publish(Ordered(number)) for number in range(20))

        bus.subscribe(Ordered, order)
        await asyncio.to_thread(work)
        for each in handed_over:
            await asyncio.wrap_future(each)

    asyncio.run(main())
    assert [receipt.id for receipt in receipts] == [cause for cause, _ in causes]


def test_endpoints_that_run_in_threads_of_a_loop_keep_apart(bus: EventBus, causes: list[Any]):
    """
    Each of many requests, sync code in a copy of its task's context, causes its own events.
    """
    roots: list[str] = []
    bus.publish(Noticed())  # the program has published before the server starts

    def order(ordered: Ordered, envelope: Envelope[Ordered]) -> None:
        assert envelope.causation_id is None
        roots.append(envelope.id)
        bus.publish(Paid(ordered.number))

    async def serve() -> None:
        await asyncio.gather(
            *(asyncio.to_thread(bus.publish, Ordered(number)) for number in range(50))
        )

    bus.subscribe(Ordered, order)
    asyncio.run(serve())
    assert sorted(roots) == sorted(str(cause) for cause, _ in causes)


@pytest.mark.parametrize("is_async", [False, True], ids=["def", "async-def"])
def test_a_task_still_sees_the_envelope_after_its_handler_has_returned(
    bus: EventBus, causes: list[Any], is_async: bool
):
    """
    And what it publishes then was caused by that event, whatever was published since.
    """
    tasks: list[asyncio.Task[None]] = []
    seen: list[Envelope[Any] | None] = []

    async def main() -> None:
        go_on = asyncio.Event()

        async def later() -> None:
            await go_on.wait()
            seen.append(current_envelope())
            await bus.apublish(Paid())
            bus.publish(Paid())

        def order(ordered: Ordered) -> None:
            tasks.append(asyncio.create_task(later()))

        async def aorder(ordered: Ordered) -> None:
            order(ordered)

        bus.subscribe(Ordered, aorder if is_async else order)
        receipt = await bus.apublish(Ordered())
        await bus.apublish(Noticed())
        go_on.set()
        await asyncio.gather(*tasks)
        assert [receipt.envelope] == seen
        assert [receipt.id] * 2 == [cause for cause, _ in causes]

    asyncio.run(main())


def test_a_handler_may_run_a_loop_of_its_own(bus: EventBus, causes: list[Any]):
    """
    What is published in ``asyncio.run``, called by a sync handler, was caused by its event.
    """

    async def pay() -> None:
        await bus.apublish(Paid(1))
        bus.publish(Paid(2))
        await asyncio.to_thread(bus.publish, Paid(3))

    bus.subscribe(Ordered, lambda ordered: asyncio.run(pay()), name="own loop")
    receipt = bus.publish(Ordered())
    assert receipt.ok
    assert [receipt.id] * 3 == [cause for cause, _ in causes]


def test_a_copy_that_is_run_by_hand_shows_what_stood_there(bus: EventBus, causes: list[Any]):
    """
    Later, in the same thread, and inside the handler of another event as well.
    """
    kept: list[Context] = []
    bus.subscribe(Ordered, lambda ordered: kept.append(copy_context()), name="keep")
    bus.subscribe(Noticed, lambda noticed: kept[0].run(bus.publish, Paid()), name="run")
    receipt = bus.publish(Ordered())
    assert receipt.envelope == kept[0].run(current_envelope)
    kept[0].run(bus.publish, Paid())
    bus.publish(Noticed())
    assert [receipt.id, receipt.id] == [cause for cause, _ in causes]


def test_a_publish_in_a_copied_context_leaves_nothing_behind(bus: EventBus, causes: list[Any]):
    """
    Not even if a thread has turned up meanwhile: the next event has no cause.
    """
    started: list[Thread] = []

    def order(ordered: Ordered) -> None:
        started.append(Thread(target=go_on.wait, args=(PATIENCE,), daemon=True))
        started[-1].start()

    go_on = Event()
    bus.subscribe(Ordered, order)
    copy_context().run(bus.publish, Ordered())
    assert current_envelope() is None
    bus.publish(Paid())
    assert [None] == [cause for cause, _ in causes]
    go_on.set()
    started[-1].join(PATIENCE)
