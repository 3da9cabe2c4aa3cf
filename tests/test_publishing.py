"""
What a publish takes, what it writes on its envelope, and what a key of its own does.
"""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from eventbus import (
    EventBus,
    HandlerErrors,
    PublishCycleError,
    Queued,
    Receipt,
    current_envelope,
    event,
)
from eventbus.instrumentation import Duplicate, Published, Unhandled
from eventbus.retry import fixed
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


@event
class B:
    n: int = 0


Publish = Callable[..., Receipt]


@pytest.fixture(params=["sync", "async"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """
    Publish from plain code, or from a coroutine in a loop of its own.
    """

    def run(bus: EventBus, happened: object, **options: Any) -> Receipt:
        if request.param == "sync":
            return bus.publish(happened, **options)
        return asyncio.run(bus.apublish(happened, **options))

    return run


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"correlation": "x"}, "no option 'correlation'"),
        ({"idempotency_key": 7}, "idempotency_key of A must be text, not 7"),
        ({"correlation_id": b"x"}, "correlation_id of A must be text, not b'x'"),
        ({"headers": [("a", "b")]}, "headers of A are a mapping"),
        ({"headers": {"a": 1}}, "headers of A map text to text, not 'a' to 1"),
        ({"headers": {1: "a"}}, "headers of A map text to text, not 1 to 'a'"),
    ],
)
def test_options_that_cannot_work_are_refused_before_any_handler_is_called(
    publish: Publish, options: dict[str, Any], complaint: str
) -> None:
    """
    The error says which option it is and what was given, and nothing is counted.
    """
    bus, seen = EventBus(clock=VirtualClock()), []
    bus.subscribe(A, seen.append, name="h")
    with pytest.raises(TypeError, match=complaint):
        publish(bus, A(), **options)
    assert ([], 0) == (seen, bus.stats().published)


@pytest.mark.parametrize("key", [lambda a: "k", ["k", "l"], 7], ids=["callable", "list", "number"])
@pytest.mark.parametrize("is_async", [False, True])
def test_the_key_of_a_batch_is_one_text(is_async: bool, key: Any) -> None:
    """
    Whatever else is given would become a text by chance, and the next batch a duplicate.
    """
    bus, seen = EventBus(), list[A]()
    bus.subscribe(A, seen.append, name="h")
    publish: Any = bus.publish_many
    if is_async:
        publish = lambda *given, **options: asyncio.run(bus.apublish_many(*given, **options))  # noqa: E731
    with pytest.raises(TypeError, match="idempotency_key of a batch is one text for all of it"):
        publish([A(), A()], idempotency_key=key)
    assert ([], 0) == (seen, bus.stats().published)


def test_headers_of_the_publish_are_added_to_those_of_the_bus(publish: Publish) -> None:
    """
    Where both have a header the publisher's counts, and nobody can change them later.
    """
    bus = EventBus(headers=lambda: {"tenant": "acme", "source": "bus"}, clock=VirtualClock())
    given = {"source": "publish"}
    envelope = publish(bus, A(), headers=given).envelope
    given["source"] = "changed"
    assert {"tenant": "acme", "source": "publish"} == dict(envelope.headers)
    assert {"tenant": "acme", "source": "bus"} == dict(publish(bus, A()).envelope.headers)
    with pytest.raises(TypeError):
        envelope.headers["source"] = "x"  # type: ignore[index]


def test_headers_are_none_unless_somebody_gives_some(publish: Publish) -> None:
    """
    Without headers, or with None for them, an envelope has an empty mapping.
    """
    bus = EventBus(clock=VirtualClock())
    assert {} == dict(publish(bus, A()).envelope.headers)
    assert {} == dict(publish(bus, A(), headers=None, correlation_id=None).envelope.headers)


@pytest.mark.parametrize("envelopes", ["eager", "lazy"])
def test_an_event_in_no_log_has_no_place_there(publish: Publish, envelopes: Any) -> None:
    """
    Its envelope has no offset, and it is no replay.
    """
    envelope = publish(EventBus(envelopes=envelopes, clock=VirtualClock()), A()).envelope
    assert (None, False) == (envelope.offset, envelope.is_replay)


@pytest.mark.parametrize("answer", [None, {"a": "b"}])
def test_a_bus_that_has_no_headers_to_add_says_none(publish: Publish, answer: Any) -> None:
    """
    The headers function may answer with nothing, and the event goes on without.
    """
    bus = EventBus(headers=lambda: answer, clock=VirtualClock())
    assert (answer or {}) == dict(publish(bus, A()).envelope.headers)


def test_what_the_headers_function_raises_the_publisher_gets(publish: Publish) -> None:
    """
    No handler has been called then, and a wrong answer of it is the publisher's, too.
    """

    def broken() -> Any:
        raise LookupError("no tenant")

    seen: list[A] = []
    for headers, error in ((broken, LookupError), (lambda: ["a"], TypeError)):
        bus = EventBus(headers=headers, clock=VirtualClock())  # type: ignore[arg-type]
        bus.subscribe(A, seen.append, name="h")
        with pytest.raises(error):
            publish(bus, A())
    assert [] == seen


def test_a_correlation_id_is_passed_on_to_what_the_handlers_publish(publish: Publish) -> None:
    """
    Given once, it is shared by all that follows, unless a nested publish gives its own.
    """
    bus, nested = EventBus(clock=VirtualClock()), []

    @bus.on(A)
    def handle(happened: A) -> None:
        nested.append(bus.publish(B()))
        nested.append(bus.publish(B(), correlation_id="own"))

    receipt = publish(bus, A(), correlation_id="order 7")
    assert "order 7" == receipt.envelope.correlation_id
    assert ["order 7", "own"] == [each.envelope.correlation_id for each in nested]
    assert 2 * [receipt.id] == [each.envelope.causation_id for each in nested]


def test_a_key_that_raises_is_logged_and_the_event_goes_on(
    publish: Publish, caplog: pytest.LogCaptureFixture
) -> None:
    """
    An event class's key= that fails leaves the envelope without a key.
    """

    def broken(happened: Any) -> str:
        raise LookupError("no key")

    @event(key=broken)
    class Keyed:
        n: int = 0

    bus, seen = EventBus(clock=VirtualClock()), []
    bus.subscribe(Keyed, seen.append, name="h")
    receipt = publish(bus, Keyed())
    assert receipt.envelope.key is None
    assert [Keyed()] == seen
    [record] = caplog.records
    assert "the key= of Keyed raised" in record.getMessage()


def test_an_eager_envelope_has_the_time_of_the_publish(publish: Publish) -> None:
    """
    Lazy ones have the time of the question: an hour later, it shows, and says so.
    """
    times = {}
    for envelopes in ("eager", "lazy"):
        clock = VirtualClock()
        bus = EventBus(envelopes=envelopes, clock=clock)  # type: ignore[arg-type]
        receipt = publish(bus, A())
        clock.advance(3600)
        times[envelopes] = (receipt.envelope.time.timestamp(), receipt.envelope.is_late)
        assert receipt.envelope is receipt.envelope
    assert 3600.0 == times["lazy"][0] - times["eager"][0]
    assert [False, True] == [times["eager"][1], times["lazy"][1]]


def test_two_who_ask_at_once_get_the_same_envelope() -> None:
    """
    Whoever comes second, while the first is making the envelope, gets the first one's.
    """
    asked: list[Any] = []

    @event(key=lambda happened: asked.pop().envelope.id if asked else None)
    class Asks:
        n: int = 0

    bus = EventBus(clock=VirtualClock())
    receipt = bus.publish(Asks())
    asked.append(receipt)
    envelope = receipt.envelope
    assert [] == asked
    assert envelope is receipt.envelope
    assert envelope.key is None


def test_observers_learn_of_a_publishers_duplicate(publish: Publish) -> None:
    """
    They are told key and first event; nobody handled nothing, so it is not unhandled.
    """
    told: list[Any] = []
    bus = EventBus(observers=[told.append], clock=VirtualClock())
    first = publish(bus, A(), idempotency_key="k")
    second = publish(bus, A(), idempotency_key="k")
    assert [Published, Unhandled, Duplicate] == [type(each) for each in told]
    assert (None, "k", first.id) == (told[2].subscription, told[2].key, told[2].first_id)
    assert (True, True, False) == (second.ok, second.duplicate, second.unhandled)
    assert first.id == second.id == second.duplicate_of
    assert (1, 1) == (bus.stats().published, bus.stats().duplicate)


def test_observers_are_told_who_is_going_to_be_called(publish: Publish) -> None:
    """
    The names come in the order of the calls, with the envelope the handlers see.
    """
    told: list[Any] = []
    bus, seen = EventBus(observers=[told.append], clock=VirtualClock()), []
    bus.subscribe(A, lambda happened: seen.append(current_envelope()), name="low")
    bus.subscribe(A, lambda happened: None, name="high", priority=1)
    publish(bus, A())
    assert ("high", "low") == told[0].subscriptions
    assert told[0].envelope is seen[0]


@pytest.mark.parametrize("errors", ["collect", "raise"])
def test_a_publishers_key_is_free_after_a_failure(publish: Publish, errors: Any) -> None:
    """
    When a handler failed, the next event of that key is no duplicate; after success it is.
    """
    bus, calls = EventBus(errors=errors, clock=VirtualClock()), []

    @bus.on(A)
    def handle(happened: A) -> None:
        calls.append(happened.n)
        if happened.n == 1:
            raise ValueError("the first fails")

    if errors == "raise":
        with pytest.raises(HandlerErrors, match="1 handler of A failed"):
            publish(bus, A(1), idempotency_key="k")
    else:
        assert not publish(bus, A(1), idempotency_key="k").ok
    assert not publish(bus, A(2), idempotency_key="k").duplicate
    assert publish(bus, A(3), idempotency_key="k").duplicate
    assert [1, 2] == calls


@pytest.mark.parametrize(
    "options",
    [
        {"retry": fixed(attempts=2, delay=0)},
        {"idempotency_key": "n"},
        {"where": lambda happened: 1 / happened.n > 0},
        {"where": lambda happened: 1 / happened.n > 0, "delivery": Queued()},
    ],
    ids=["retry", "idempotency", "filter", "filter of a queue"],
)
def test_a_raising_bus_raises_each_time(publish: Publish, options: Any) -> None:
    """
    With ``errors="raise"`` each publish raises what a subscription's policies gave up on.
    """
    bus = EventBus(errors="raise", clock=VirtualClock())
    bus.subscribe(A, lambda happened: 1 / happened.n, name="handle", **options)
    for _ in range(3):
        with pytest.raises(HandlerErrors, match="1 handler of A failed: handle"):
            publish(bus, A(0))


def test_a_raising_bus_raises_the_failures_of_a_batch_after_all_of_it() -> None:
    """
    publish_many delivers each event, then raises one group with every failure.
    """
    bus, calls = EventBus(errors="raise", clock=VirtualClock()), []

    @bus.on(A)
    def handle(happened: A) -> None:
        calls.append(happened.n)
        if happened.n != 2:
            raise ValueError(happened.n)

    with pytest.raises(HandlerErrors, match=r"2 handlers of 3 events failed: .*handle \(A\)"):
        bus.publish_many([A(1), A(2), A(3)])
    with pytest.raises(HandlerErrors, match="1 handler of 2 events failed"):
        asyncio.run(bus.apublish_many([A(1), A(2)]))
    assert [1, 2, 3, 1, 2] == calls
    assert [1, 1] == [each.delivered for each in bus.publish_many([A(2), A(2)])]


def test_a_task_that_outlives_its_publish_starts_at_depth_one() -> None:
    """
    A chain of tasks, each started by the handler before, is no cycle however long it is.
    """
    bus, running, envelopes = EventBus(max_depth=3, clock=VirtualClock()), [], []

    @bus.on(A)
    async def handle(happened: A) -> None:
        envelopes.append(current_envelope())
        if happened.n < 10:
            running.append(asyncio.ensure_future(bus.apublish(A(happened.n + 1))))

    async def main() -> None:
        await bus.apublish(A(0))
        for task in running:
            assert (await task).ok

    asyncio.run(main())
    assert list(range(11)) == [each.event.n for each in envelopes]
    assert [None, *(each.id for each in envelopes[:-1])] == [e.causation_id for e in envelopes]
    assert 1 == len({each.correlation_id for each in envelopes})


def test_a_publish_that_is_over_lets_its_own_cause_go() -> None:
    """
    What outlives its publish keeps its direct cause, but not the whole chain before it.
    """
    bus, kept, tasks = EventBus(clock=VirtualClock()), [], []

    class Chained:
        def __init__(self, n: int) -> None:
            self.n = n

    @bus.on(Chained)
    async def handle(happened: Chained) -> None:
        kept.append(weakref.ref(happened))
        if happened.n < 3:
            tasks.append(asyncio.ensure_future(bus.apublish(Chained(happened.n + 1))))

    async def main() -> Any:
        await bus.apublish(Chained(0))
        for task in tasks:
            await task
        last = tasks[-1].result()
        tasks.clear()
        return last

    last = asyncio.run(main())
    gc.collect()
    assert 3 == last.event.n
    assert kept[0]() is None


def test_a_chain_of_tasks_nobody_asked_for_envelopes_still_knows_its_causes() -> None:
    """
    Each is written down when its publish is over and the next begins, and may be read last.
    """
    bus, tasks = EventBus(clock=VirtualClock()), []

    @bus.on(A)
    async def handle(happened: A) -> None:
        if happened.n < 4:
            tasks.append(asyncio.ensure_future(bus.apublish(A(happened.n + 1))))

    async def main() -> list[Receipt]:
        receipts = [await bus.apublish(A(0))]
        for task in tasks:
            receipts.append(await task)
        return receipts

    envelopes = [each.envelope for each in reversed(asyncio.run(main()))]
    assert [4, 3, 2, 1, 0] == [each.event.n for each in envelopes]
    ids = [each.id for each in envelopes]
    assert [*ids[1:], None] == [each.causation_id for each in envelopes]
    assert 5 * [ids[-1]] == [each.correlation_id for each in envelopes]


def test_depth_is_counted_along_publishes_that_are_under_way() -> None:
    """
    The limit stops a nested publish at its depth, not at what earlier ones had reached.
    """
    bus, deepest = EventBus(max_depth=4, clock=VirtualClock()), []

    @bus.on(A)
    def handle(happened: A) -> None:
        deepest.append(happened.n)
        if happened.n < 3:
            bus.publish(A(happened.n + 1))

    assert bus.publish(A(0)).ok
    assert bus.publish(A(0)).ok
    assert [0, 1, 2, 3, 0, 1, 2, 3] == deepest
    bus.subscribe(B, lambda happened: bus.publish(A(0)) and None, name="one more")
    with pytest.raises(PublishCycleError, match="B → A → A → A → A"):
        bus.publish(B())


def test_the_depth_of_a_handler_whose_publish_ended_in_between_is_counted_anew() -> None:
    """
    A publish nested in a task counts from the task's own, once its starter has returned.
    """
    bus, deepest = EventBus(max_depth=4, clock=VirtualClock()), []
    tasks: list[asyncio.Future[Any]] = []

    @bus.on(A)
    async def start(happened: A) -> None:
        if happened.n < 2:
            await bus.apublish(A(happened.n + 1))
        else:
            tasks.append(asyncio.ensure_future(bus.apublish(B(0))))
            await asyncio.sleep(0)  # the task has begun: four deep would be a cycle

    @bus.on(B)
    async def go_on(happened: B) -> None:
        deepest.append(happened.n)
        await finished.wait()
        if happened.n < 2:
            await bus.apublish(B(happened.n + 1))

    finished = asyncio.Event()

    async def main() -> None:
        await bus.apublish(A(0))
        finished.set()
        assert (await tasks[0]).ok

    asyncio.run(main())
    assert [0, 1, 2] == deepest
