"""
How a bus is made, wired to handlers, looked at, stood in for, redriven and closed.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import types
import weakref
from abc import ABC, ABCMeta
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from eventbus import (
    BusClosedError,
    DeadLetterBusyError,
    DeadLetterNotFoundError,
    DuplicateNameError,
    Envelope,
    EventBus,
    HandlerSignatureError,
    InMemoryDeadLetters,
    NotAnEventError,
    PublishCycleError,
    Queued,
    Receipt,
    RunningLoopError,
    SubscriptionNotFoundError,
    SubscriptionOptionError,
    event,
    fixed,
    on,
)
from eventbus.instrumentation import Published
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


@event
class B:
    n: int = 0


class Odd(ABC):  # noqa: B024 - a virtual base class
    pass


def quiet(**options: Any) -> EventBus:
    return EventBus(clock=VirtualClock(), **options)


def failing(happened: A | B) -> None:
    raise ValueError("no")


@pytest.mark.parametrize("is_abstract", [False, True], ids=["plain", "abstract"])
@pytest.mark.parametrize("is_async", [False, True], ids=["publish", "apublish"])
def test_a_class_made_at_run_time_is_let_go(is_abstract: bool, is_async: bool) -> None:
    """
    When nobody is subscribed to it any more, the bus does not keep an event's class alive.
    """
    bus = EventBus()

    def use() -> weakref.ref[type]:
        kind = (ABCMeta if is_abstract else type)("Local", (), {})
        subscription = bus.subscribe(kind, lambda happened: None, name="local")
        asyncio.run(bus.apublish(kind())) if is_async else bus.publish(kind())
        subscription.cancel()
        return weakref.ref(kind)

    found = use()
    gc.collect()
    assert found() is None
    assert 1 == bus.stats().published


# -- the constructor -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"errors": "ignore"}, "errors is one of 'collect', 'raise', not 'ignore'"),
        ({"fanout": "parallel"}, "fanout is one of 'sequential', 'concurrent', not 'parallel'"),
        ({"envelopes": "never"}, "envelopes is one of 'lazy', 'eager', not 'never'"),
        ({"max_depth": 0}, "max_depth is at least 1, not 0"),
        ({"max_depth": "deep"}, "max_depth is at least 1, not 'deep'"),
    ],
)
def test_a_bus_that_cannot_work_is_not_made(options: dict[str, Any], complaint: str) -> None:
    """
    The error names the option, what it may be, and what was given.
    """
    with pytest.raises(ValueError, match=complaint):
        EventBus(**options)


async def acall() -> None: ...


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"wrap": 3}, r"wrap= is a plain callable, as a decorator is, not 3"),
        ({"headers": {"a": "b"}}, r"headers= is a plain callable, as lambda: \{...\} is, not {'a"),
        ({"headers": acall}, r"headers= is a plain callable, .* not <function acall"),
        ({"observers": 3}, r"observers= is a list of them, not 3"),
        ({"dead_letters": []}, r"dead_letters=\[\] has no 'add'. Give InMemoryDeadLetters\(\)"),
        (
            {"dead_letters": InMemoryDeadLetters},
            r"=InMemoryDeadLetters is a class: make one, as in InMemoryDeadLetters\(\)",
        ),
        ({"idempotency": {}}, r"idempotency={} has no 'claim'. Give InMemoryIdempotencyStore\(\)"),
        ({"store": "app.db"}, r"store='app.db' has no 'log'. Give SQLiteStore\(\"app.db\"\)"),
        ({"codec": "json"}, r"codec='json' has no 'decode'. Give JSONCodec\(\), for example"),
        ({"clock": time}, r"clock=<module 'time' .*> has no 'new_id'. Give VirtualClock\(\)"),
        ({"header": None}, r"^EventBus.__init__\(\) got an unexpected keyword argument 'header'"),
    ],
)
def test_a_part_that_is_none_is_refused(options: dict[str, Any], complaint: str) -> None:
    """
    What could only fail when it is first needed is refused when the bus is made.
    """
    with pytest.raises(TypeError, match=complaint):
        EventBus(**options)


def test_a_bus_shows_its_name_its_subscriptions_and_whether_it_is_closed() -> None:
    """
    The repr says so; each end of a with block closes, also of an async one.
    """
    with quiet(name="shop") as bus:
        bus.subscribe(A, failing)
        assert "<EventBus 'shop': 1 subscriptions>" == repr(bus)
    assert "<EventBus 'shop': 1 subscriptions, closed>" == repr(bus)

    async def main() -> EventBus:
        async with quiet() as other:
            assert not other.is_closed
        return other

    assert asyncio.run(main()).is_closed


def test_a_closed_bus_runs_no_async_handler_any_more() -> None:
    """
    Closed by an earlier handler, the bus fails the async one behind it, and says why.
    """
    bus = quiet()

    async def ahandler(happened: A) -> None: ...

    bus.subscribe(A, lambda happened: bus.close(), name="closes")
    bus.subscribe(A, ahandler, name="behind")
    [failure] = bus.publish(A()).failures
    assert isinstance(failure.exception, BusClosedError)
    assert "closed before behind had handled A" in str(failure.exception)


# -- wrap= -----------------------------------------------------------------------------------


def noting(seen: list[str], name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Return a hook that notes when what it is put around begins and ends.
    """

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        if asyncio.iscoroutinefunction(handler):

            async def ahandle(happened: Any) -> Any:
                seen.append(f"{name} in")
                await handler(happened)
                seen.append(f"{name} out")

            return ahandle

        def handle(happened: Any) -> Any:
            seen.append(f"{name} in")
            handler(happened)
            seen.append(f"{name} out")

        return handle

    return wrap


@pytest.mark.parametrize("handles", ["def", "async def"])
@pytest.mark.parametrize("publishes", ["publish", "apublish"])
def test_hooks_of_the_bus_stand_outside_those_of_the_subscription(
    handles: str, publishes: str
) -> None:
    """
    Both run in each attempt, so that what they open is closed before the next one.
    """
    seen: list[str] = []

    def handle(happened: A, envelope: Envelope[A]) -> None:
        assert happened is envelope.event
        seen.append("handler")
        if seen.count("handler") == 1:
            raise ValueError("again")

    async def ahandle(happened: A, envelope: Envelope[A]) -> None:
        handle(happened, envelope)

    with quiet(wrap=noting(seen, "bus")) as bus:
        handler = handle if handles == "def" else ahandle
        own = noting(seen, "own")
        bus.subscribe(A, handler, wrap=own, retry=fixed(attempts=2, delay=1))
        if publishes == "publish":
            assert bus.publish(A()).ok
        else:
            assert asyncio.run(bus.apublish(A())).ok
    first = ["bus in", "own in", "handler"]
    assert [*first, *first, "own out", "bus out"] == seen


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((A,), r"takes an event class and a handler, .* only <class .*A'>.* @bus\.on\("),
        ((failing,), r"takes an event class and a handler, .* only <function failing"),
        ((failing, A), r"the event class first, and then the handler <function failing .*>: bus"),
        ((failing, A | B), r"the event class first, and then the handler <function failing"),
    ],
)
def test_subscribing_takes_a_class_and_a_handler(given: tuple[Any, ...], message: str) -> None:
    """
    One of them alone, or the two swapped, are refused by an error that shows how it is written.
    """
    bus: Any = quiet()
    with pytest.raises(HandlerSignatureError, match=message):
        bus.subscribe(*given)
    assert () == bus.subscriptions


def test_a_class_may_be_a_handler() -> None:
    """
    Behind an event class, a class is what is called with the event.
    """

    class Note:
        def __init__(self, happened: A) -> None:
            made.append(happened)

    made: list[A] = []
    bus = quiet()
    bus.subscribe(A, Note)
    bus.publish(A())
    assert [A()] == made


def test_a_hook_is_asked_once_for_each_subscription() -> None:
    """
    When it is made: neither publishing nor observers that come and go put it around anew.
    """
    asked: list[str] = []

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        asked.append(handler.__name__)
        return handler

    def one(happened: A) -> None: ...
    async def two(happened: A) -> None: ...

    with quiet(wrap=wrap) as bus:
        bus.subscribe(A, one)
        bus.subscribe(A, two, wrap=wrap, retry=fixed(attempts=2, delay=1))
        assert ["one", "two", "two"] == asked
        for _ in range(2):
            assert 2 == bus.publish(A()).delivered
            bus.observe(lambda occurrence: None)
        assert 2 == asyncio.run(bus.apublish(A())).delivered
    assert 3 == len(asked)


def test_what_a_hook_returns_may_take_the_envelope() -> None:
    """
    The handler need not, and the hook sees the handler's name, not the bus's wrapping.
    """
    seen: list[Any] = []

    def wrap(handler: Callable[..., Any]) -> Callable[..., Any]:
        def handle(happened: A, envelope: Envelope[A]) -> None:
            seen.append((handler.__name__, envelope.event))
            handler(happened)

        return handle

    def plain(happened: A) -> None: ...

    def with_envelope(happened: A, *, envelope: Envelope[A]) -> None: ...

    bus = quiet()
    bus.subscribe(A, plain, wrap=wrap)
    bus.subscribe(A, with_envelope, wrap=wrap)
    assert bus.publish(A(1)).ok
    assert [("plain", A(1)), ("with_envelope", A(1))] == seen


def test_a_hook_that_makes_an_async_handler_sync_is_refused() -> None:
    """
    What it opens would close too early: nothing is subscribed, and the name stays free.
    """

    def forgetful(handler: Callable[..., Any]) -> Callable[..., Any]:
        def handle(happened: Any) -> Any:
            return handler(happened)

        return handle

    async def ahandle(happened: A) -> None: ...

    bus = quiet()
    with pytest.raises(HandlerSignatureError, match=r"ahandle is async, but wrap= returned"):
        bus.subscribe(A, ahandle, wrap=forgetful)
    with pytest.raises(HandlerSignatureError):
        bus.subscribe(A, failing, wrap=lambda handler: None)  # type: ignore[arg-type, return-value]
    assert () == bus.subscriptions
    assert bus.subscribe(A, ahandle).is_active


# -- subscribing -----------------------------------------------------------------------------


def test_the_decorator_subscribes_in_each_of_its_forms() -> None:
    """
    With a class, with options, with both and bare; the function comes back unchanged.
    """
    bus = quiet()

    def one(happened: A) -> None: ...
    def two(happened: A) -> None: ...
    def three(happened: A | B) -> None: ...
    def four(happened: B) -> None: ...

    assert one is bus.on(A)(one)
    assert two is bus.on(priority=1)(two)
    assert three is bus.on(A, name="three")(three)
    assert four is bus.on(four)
    assert [(A,), (A,), (A,), (B,)] == [each.event_types for each in bus.subscriptions]


def test_include_takes_modules_instances_and_functions_in() -> None:
    """
    Every mark becomes a subscription, of what it is bound to.
    """
    seen: list[Any] = []

    class Shop:
        @on(A)
        @on(B, name="b")
        def note(self, happened: A | B) -> None:
            seen.append((self, happened))

    @on
    def plain(happened: B) -> None:
        seen.append(happened)

    module = types.ModuleType("shop")
    plain.__module__ = "shop"
    module.plain = plain  # type: ignore[attr-defined]
    bus, shop = quiet(), Shop()
    assert 3 == len(bus.include(shop, module))
    bus.publish(A())
    bus.publish(B())
    assert [(shop, A()), (shop, B()), B()] == seen


def test_include_is_all_or_nothing() -> None:
    """
    If one handler cannot be subscribed, those before it are cancelled again.
    """

    @on(A)
    def fine(happened: A) -> None: ...

    @on(A, name="taken")
    def refused(happened: A) -> None: ...

    bus = quiet()
    bus.subscribe(A, failing, name="taken")
    with pytest.raises(DuplicateNameError):
        bus.include(fine, refused)
    with pytest.raises(ValueError, match="no handler marked"):
        bus.include(fine, object())
    assert ["taken"] == [each.name for each in bus.subscriptions]
    assert 1 == len(bus.include(fine))


# -- seeing ----------------------------------------------------------------------------------


def test_an_observer_is_told_until_it_is_stopped() -> None:
    """
    Attached while the bus is at work, it hears of the next event; stopping twice is fine.
    """
    bus, early, late = quiet(), [], []
    bus.publish(A(1))
    stop = bus.observe(early.append)
    bus.observe(late.append)
    bus.publish(A(2))
    stop()
    stop()
    bus.publish(A(3))
    assert [2] == [each.envelope.event.n for each in early if isinstance(each, Published)]
    assert [2, 3] == [each.envelope.event.n for each in late if isinstance(each, Published)]


def test_statistics_count_each_outcome_and_the_time_it_took() -> None:
    """
    With timings, count, sum and maximum of all attempts are measured.
    """
    bus = quiet(timings=True)
    clock = bus.clock

    @bus.on(A, name="h", where=lambda happened: happened.n > 0, idempotency_key="n")
    def handle(happened: A) -> None:
        clock.sleep(happened.n)
        if happened.n == 3:
            raise ValueError("three")

    for n in (0, 1, 2, 2, 3):
        bus.publish(A(n))
    bus.publish(B())
    stats = bus.stats()
    counted = stats.subscriptions["h"]
    assert (6, 2, 0) == (stats.published, stats.unhandled, stats.duplicate)
    assert (5, 2, 1, 1, 1, 1) == (
        counted.published,
        counted.delivered,
        counted.failed,
        counted.duplicate,
        counted.missed,
        counted.dead_lettered,
    )
    assert counted.time is not None
    assert (3, 6.0, 3.0) == (counted.time.count, counted.time.total, counted.time.max)
    assert quiet().stats().subscriptions == {}


def test_an_explanation_says_for_each_subscription_why() -> None:
    """
    Who would be called, who would not, by which rule; nothing is called or claimed.
    """

    def broken(happened: Any) -> Any:
        raise LookupError("no answer")

    bus, seen = quiet(), []
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "wanted": {"where": lambda happened: True},
        "unwanted": {"where": lambda happened: False},
        "broken filter": {"where": broken},
        "key": {"idempotency_key": "n"},
        "no key": {"idempotency_key": lambda happened: None},
        "broken key": {"idempotency_key": broken},
    }
    for name, options in ways.items():
        bus.subscribe(A, seen.append, name=name, **options)
    bus.subscribe(B | Odd, seen.append, name="other")
    assert [
        "✓ plain: subscribed to A",
        "✓ wanted: subscribed to A",
        "✗ unwanted: its filter (where=) says no",
        "✗ broken filter: its filter (where=) raises LookupError('no answer'), "
        "which fails the delivery",
        "✓ key: subscribed to A, and key '7' is free",
        "✓ no key: subscribed to A",
        "✗ broken key: its idempotency key raises LookupError('no answer'), "
        "which fails the delivery",
        "✗ other: subscribed to B | Odd, which A is not",
    ] == [str(each) for each in bus.explain(A(7))]
    assert [] == seen
    with pytest.raises(NotAnEventError):
        bus.explain(None)


# -- redriving -------------------------------------------------------------------------------


def test_a_letter_of_a_handler_that_is_gone_cannot_be_redriven() -> None:
    """
    The error names the subscription; once something is subscribed by that name, it works.
    """
    bus, seen = quiet(), []
    subscription = bus.subscribe(A, failing, name="h")
    bus.publish(A(7))
    subscription.cancel()
    [letter] = bus.dead_letters
    with pytest.raises(SubscriptionNotFoundError, match="belongs to 'h'") as caught:
        bus.redrive(letter)
    with pytest.raises(SubscriptionNotFoundError):
        asyncio.run(bus.aredrive_all())
    assert "h" == caught.value.subscription
    bus.subscribe(A, seen.append, name="h")
    assert bus.redrive(letter).ok
    assert ([A(7)], 0) == (seen, len(bus.dead_letters))


@pytest.mark.parametrize("is_async", [False, True], ids=["redrive", "aredrive"])
@pytest.mark.parametrize("queue", [None, Queued()], ids=["inline", "queued"])
def test_a_redrive_asks_the_filter_that_has_raised(is_async: bool, queue: Any) -> None:
    """
    What its filter has never let pass comes past it only if it does so now.
    """
    bus, seen = EventBus(), list[A]()
    options = {} if queue is None else {"delivery": queue}

    def redrive_all() -> list[Receipt]:
        return asyncio.run(bus.aredrive_all()) if is_async else bus.redrive_all()

    with bus.subscribe(A, seen.append, name="a", where=lambda a: a.absent, **options):
        bus.publish_many([A(1), A(2)])
        assert [False, False] == [each.ok for each in redrive_all()]
        assert [0, 0] == [each.attempts for each in bus.dead_letters]
    bus.subscribe(A, seen.append, name="a", where=lambda a: a.n == 2, **options)
    assert [(True, 0), (True, 1)] == [(each.ok, each.delivered) for each in redrive_all()]
    assert ([A(2)], 0) == (seen, len(bus.dead_letters))
    counted = bus.stats().subscriptions["a"]
    assert (2, 1, 1) == (counted.published, counted.delivered, counted.missed)
    bus.close()


def test_a_letter_is_not_redriven_to_a_handler_of_other_events() -> None:
    """
    Whoever has its subscription's name by now, and takes no such events, does not get it.
    """
    bus = EventBus()

    def fail(a: A) -> None:
        raise ValueError

    with bus.subscribe(A, fail, name="mail"):
        bus.publish(A())
    (letter,) = bus.dead_letters
    no_mail = pytest.raises(SubscriptionNotFoundError, match=r"subscribed to B here.*event is of A")
    with bus.subscribe(B, lambda b: None, name="mail"), no_mail:
        bus.redrive(letter)
    with bus.subscribe(object, lambda anything: None, name="mail"):
        assert bus.redrive(letter).ok


def test_a_letter_that_is_gone_cannot_be_redriven() -> None:
    """
    Neither by its id nor by itself, once it has been discarded.
    """
    bus = quiet()
    bus.subscribe(A, failing, name="h")
    bus.publish(A())
    [letter] = bus.dead_letters
    bus.dead_letters.discard()
    for gone in (letter, letter.id):
        with pytest.raises(DeadLetterNotFoundError):
            bus.redrive(gone)


@pytest.mark.parametrize("is_async", [False, True])
def test_of_two_who_redrive_a_letter_one_calls_its_handler(is_async: bool) -> None:
    """
    The other one is told, or passes it by where it redrives many.
    """
    bus, broken, receipts = quiet(), [True], list[Receipt]()

    @bus.on(A)
    async def handle(happened: A) -> None:
        if broken:
            raise ValueError("broken")
        with pytest.raises(DeadLetterBusyError, match="is being redriven"):
            await bus.aredrive(letter)
        receipts.extend(await bus.aredrive_all())

    bus.publish(A())
    broken.clear()
    [letter] = bus.dead_letters
    assert (asyncio.run(bus.aredrive(letter)) if is_async else bus.redrive(letter)).ok
    assert ([], 0) == (receipts, len(bus.dead_letters))
    bus.close()


@pytest.mark.parametrize("is_async", [False, True])
def test_a_redrive_of_a_queued_subscription_is_not_queued(is_async: bool) -> None:
    """
    Its receipt says what came of it.
    """
    broken = [True]
    with quiet() as bus:

        @bus.on(A, name="h", delivery=Queued())
        def handle(happened: A) -> None:
            if broken:
                raise ValueError("broken")

        bus.publish(A())
        bus.drain()
        [letter] = bus.dead_letters
        broken.clear()
        receipt = asyncio.run(bus.aredrive(letter)) if is_async else bus.redrive(letter)
    assert (1, 0, False) == (receipt.delivered, receipt.queued, receipt.unhandled)


def test_a_letter_discarded_during_its_redrive_does_no_harm() -> None:
    """
    The redrive has succeeded all the same.
    """
    bus, broken = quiet(), [True]

    @bus.on(A)
    def handle(happened: A) -> None:
        if broken:
            raise ValueError("broken")
        bus.dead_letters.discard()

    bus.publish(A())
    broken.clear()
    assert [True] == [each.ok for each in bus.redrive_all()]


def test_a_redrive_of_an_async_handler_does_not_block_a_loop() -> None:
    """
    With a loop running redrive is refused, and aredrive works; so does either elsewhere.
    """
    broken, seen = [True], []

    async def ahandle(happened: A) -> None:
        if broken:
            raise ValueError("broken")
        seen.append(happened)

    async def main() -> list[Receipt]:
        with pytest.raises(RunningLoopError, match="apublish"):
            bus.redrive_all()
        return await bus.aredrive_all(subscription="h")

    with quiet() as bus:
        bus.subscribe(A, ahandle, name="h")
        bus.publish_many([A(1), A(2)])
        [first, second] = bus.dead_letters
        assert not bus.redrive(first).ok
        broken.clear()
        assert [True, True] == [each.ok for each in asyncio.run(main())]
    assert [A(1), A(2)] == seen
    assert 1 == second.attempts


def test_a_closed_bus_redrives_nothing() -> None:
    """
    Its dead letters can still be read.
    """
    with quiet() as bus:
        bus.subscribe(A, failing, name="h")
        bus.publish(A())
    with pytest.raises(BusClosedError):
        bus.redrive_all()
    assert 1 == len(bus.dead_letters)


def test_redrives_inside_each_other_are_as_deep_as_publishes() -> None:
    """
    A handler that redrives its like without end is a cycle, and no letter is lost in it.
    """
    bus, broken, redriven = quiet(max_depth=4), [True], list[int]()

    @bus.on(A, name="h")
    def handle(happened: A) -> None:
        if broken:
            raise ValueError("broken")
        redriven.append(happened.n)
        bus.redrive(letters[happened.n + 1])

    bus.publish_many([A(n) for n in range(9)])
    letters = list(bus.dead_letters)
    broken.clear()
    with pytest.raises(PublishCycleError, match="A → A → A → A → A"):
        bus.redrive(letters[0])
    assert [0, 1, 2, 3] == redriven
    assert letters == list(bus.dead_letters)


def test_a_redrive_is_part_of_what_it_is_called_in() -> None:
    """
    A handler may redrive; what is redriven keeps its own envelope and its own cause.
    """
    bus, broken, seen = quiet(), [True], []

    @bus.on(A)
    def handle(happened: A) -> None:
        if broken:
            raise ValueError("broken")
        seen.append(bus.publish(B(1)).envelope)

    first = bus.publish(A())
    broken.clear()

    @bus.on(B, where=lambda happened: happened.n == 0)
    def redrives(happened: B) -> None:
        assert [True] == [each.ok for each in bus.redrive_all()]

    assert bus.publish(B(0)).ok
    assert [first.id] == [each.causation_id for each in seen]


# -- standing in -----------------------------------------------------------------------------


def test_another_bus_stands_in_for_all_that_is_asked_in_its_context() -> None:
    """
    Publishing, subscribing, observing, seeing, redriving and closing go to the other one.
    """
    bus, other, seen, told = quiet(name="real"), quiet(name="other"), [], []
    bus.subscribe(A, lambda happened: seen.append("real"), name="real")

    async def in_a_loop() -> None:
        await bus.apublish(A())
        await bus.apublish_many([A()])

    with bus.stood_in_by(other):
        bus.on(A, name="other")(lambda happened: seen.append("other"))
        stop = bus.observe(told.append)
        bus.publish(A())
        bus.publish_many([A()])
        asyncio.run(in_a_loop())
        bus.subscribe(B, failing, name="fails")
        bus.publish(B())
        assert other.dead_letters is bus.dead_letters
        assert [False] == [each.ok for each in bus.redrive_all()]
        assert 5 == bus.stats().published
        assert other.clock is bus.clock
        assert ["other", "fails"] == [each.name for each in bus.subscriptions]
        assert ["other"] == [each.subscription for each in bus.explain(A()) if each.called]
        stop()
        bus.close()
        assert bus.is_closed
    assert 5 == sum(isinstance(each, Published) for each in told)
    assert 4 * ["other"] == seen
    assert (True, False) == (other.is_closed, bus.is_closed)
    assert 0 == bus.stats().published
    bus.publish(A())
    assert "real" == seen[-1]


def test_other_contexts_go_on_with_the_bus_itself() -> None:
    """
    A thread that knows of no stand-in publishes on the real bus meanwhile.
    """
    bus, other, seen = quiet(), quiet(), []
    bus.subscribe(A, lambda happened: seen.append("real"), name="h")
    other.subscribe(A, lambda happened: seen.append("other"), name="h")
    with ThreadPoolExecutor(1) as pool, bus.stood_in_by(other):
        pool.submit(bus.publish, A()).result(10)
        bus.publish(A())
    assert ["real", "other"] == seen


# -- threads and loops -----------------------------------------------------------------------


def test_a_loop_is_recognised_whichever_way_the_first_publish_came() -> None:
    """
    A sync handler may be published to in a loop, plainly and with options.
    """
    bus, seen = quiet(), []
    bus.subscribe(A, seen.append, name="h")

    async def main() -> None:
        bus.publish(A(1))
        bus.publish(A(2), correlation_id="x")
        bus.publish_many([A(3)])

    asyncio.run(main())
    worker = threading.Thread(target=bus.publish, args=(A(4),), kwargs={"correlation_id": "y"})
    worker.start()
    worker.join(10)
    assert [1, 2, 3, 4] == [each.n for each in seen]


@pytest.mark.parametrize("is_limited", [False, True], ids=["unlimited", "limited"])
def test_an_offloaded_handler_that_is_cancelled_is_waited_for_unless_limited(
    is_limited: bool,
) -> None:
    """
    A thread cannot be stopped: without a timeout nothing is left running behind.
    """
    begun, go, seen = threading.Event(), threading.Event(), []

    def handle(happened: A) -> None:
        begun.set()
        assert go.wait(10)
        seen.append(happened)

    bus = quiet()
    options: dict[str, Any] = {"timeout": 60.0} if is_limited else {}
    bus.subscribe(A, handle, name="h", offload=True, **options)

    async def main() -> None:
        task = asyncio.ensure_future(bus.apublish(A()))
        assert await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        if not is_limited:
            assert [A()] == seen

    asyncio.run(main())


def test_an_offloaded_handler_may_return_something_to_wait_for() -> None:
    """
    It is awaited in the loop; and a TimeoutError of the handler's own stays its own.
    """
    bus, seen = quiet(), []

    async def work(happened: A) -> None:
        seen.append(happened)
        raise TimeoutError("the handler's own")

    bus.subscribe(A, lambda happened: work(happened) or None, name="h", offload=True, timeout=60.0)
    [failure] = asyncio.run(bus.apublish(A())).failures
    assert ("the handler's own", TimeoutError) == (str(failure.exception), type(failure.exception))
    assert [A()] == seen


def test_an_option_of_a_subscription_that_cannot_work_leaves_nothing_behind() -> None:
    """
    A refused subscription is not on the bus, and is told apart by its option.
    """
    bus = quiet(dead_letters=InMemoryDeadLetters())
    with pytest.raises(SubscriptionOptionError) as caught:
        bus.subscribe(A, failing, name="h", timeout=1.0)
    assert ("timeout", ()) == (caught.value.option, bus.subscriptions)


def test_a_weak_handler_that_is_gone_is_explained_and_its_letter_waits() -> None:
    """
    While something else still holds the subscription, the explanation says it is gone.
    """

    def plain(happened: A) -> None: ...

    bus = quiet()
    subscription = bus.subscribe(A, plain, name="h")
    subscription.get_handler = lambda: None
    assert ["✗ h: its handler was held weakly and is gone"] == [
        str(each) for each in bus.explain(A())
    ]


def test_a_subscription_that_ends_while_its_route_is_compiled_is_not_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """
    Cancelled between the look-up and the folding, it has no target left, and needs none.
    """
    seen: list[A] = []
    with EventBus() as bus:
        subscription = bus.subscribe(A, seen.append, name="ends")
        bus.subscribe(A, lambda happened: None, name="stays")
        matching = bus._registry.matching

        def end_meanwhile(event_type: type) -> Any:
            found = matching(event_type)
            subscription.cancel()
            return found

        monkeypatch.setattr(bus._registry, "matching", end_meanwhile)
        assert 1 == bus.publish(A()).delivered
        assert [] == seen
        assert ["stays"] == list(bus.stats().subscriptions)
