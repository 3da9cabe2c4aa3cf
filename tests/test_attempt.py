"""
One attempt: where a handler runs, what it sees there, how long it may take, what wraps it.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import pytest

from eventbus import (
    BusClosedError,
    Envelope,
    EventBus,
    HandlerTimeoutError,
    RunningLoopError,
    current_envelope,
    event,
    fixed,
)
from eventbus.testing import VirtualClock
from testing_colours import Colour, in_both_colours

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


@event
class Ordered:
    number: int = 0


@event
class Paid:
    number: int = 0


def returning(handler: Callable[[Any], None]) -> Callable[[Any], Awaitable[None]]:
    """
    Return a handler that looks sync and returns an awaitable.
    """

    async def late(ordered: Any) -> None:
        handler(ordered)

    def handle(ordered: Any) -> Awaitable[None]:
        return late(ordered)

    return handle


# -- where it runs, and what it sees there

WAYS: dict[str, tuple[bool, Any, dict[str, Any]]] = {
    "publish def": (False, None, {}),
    "publish async def": (False, Colour(False, True).handler, {}),
    "publish returning": (False, returning, {}),
    "publish offloaded": (False, None, {"offload": True}),
    "publish offloaded, limited": (False, None, {"offload": True, "timeout": PATIENCE}),
    "apublish def": (True, None, {}),
    "apublish async def": (True, Colour(False, True).handler, {}),
    "apublish returning": (True, returning, {}),
    "apublish offloaded": (True, None, {"offload": True}),
    "apublish offloaded, limited": (True, None, {"offload": True, "timeout": PATIENCE}),
}
RUNS_ELSEWHERE = {
    "publish async def",
    "publish returning",
    "publish offloaded, limited",
    "apublish offloaded",
    "apublish offloaded, limited",
}


@pytest.mark.parametrize("policy", [{}, {"retry": fixed(attempts=2, delay=0.0)}])
@pytest.mark.parametrize("way", WAYS)
def test_a_handler_sees_the_context_of_its_publisher(way: str, policy: dict[str, Any]):
    """
    Its variables, its envelope and its cause, in whatever thread it runs.
    """
    is_async, dye, options = WAYS[way]
    seen: list[Any] = []

    def handle(ordered: Ordered) -> None:
        seen.append((tenant.get(), current_envelope(), threading.current_thread()))
        seen.append(bus.publish(Paid()).envelope.causation_id)
        if policy and len(seen) == 2:
            raise ValueError("once more")

    with EventBus() as bus:
        bus.subscribe(Ordered, dye(handle) if dye else handle, name="handle", **options, **policy)
        token = tenant.set("acme")
        try:
            receipt = Colour(is_async, False).publish(bus, Ordered())
        finally:
            tenant.reset(token)
    assert receipt.ok
    assert (4 if policy else 2) == len(seen)
    for context, cause in zip(seen[::2], seen[1::2], strict=True):
        assert ("acme", receipt.envelope) == context[:2]
        assert receipt.id == cause
        assert (way in RUNS_ELSEWHERE) == (context[2] is not threading.current_thread())


def test_plain_handlers_of_a_loop_run_while_others_are_offloaded():
    """
    An offloaded handler waits in its thread for what only the loop can do meanwhile.
    """
    go_on = threading.Event()

    def wait(ordered: Ordered) -> None:
        assert go_on.wait(PATIENCE)

    async def live() -> None:
        bus = EventBus()
        bus.subscribe(Ordered, wait, offload=True)
        publish = asyncio.create_task(bus.apublish(Ordered()))
        await asyncio.sleep(0)
        go_on.set()
        assert (await publish).ok

    asyncio.run(live())


# -- how long it may take


@in_both_colours
def test_a_timeout_of_its_own_is_an_error_like_any_other(colour: Colour):
    """
    A handler that raises `TimeoutError` in time has failed by itself, and is retried for it.
    """
    own = TimeoutError("the other side took too long")

    def fail(ordered: Ordered) -> None:
        raise own

    options: dict[str, Any] = {} if colour.handles_async else {"offload": True}
    with EventBus(clock=VirtualClock()) as bus:
        policy = fixed(attempts=2, delay=1.0)
        bus.subscribe(Ordered, colour.handler(fail), timeout=5.0, retry=policy, **options)
        [failure] = colour.publish(bus, Ordered()).failures
    assert failure.exception is own
    assert 2 == failure.attempts
    assert "fail" == traceback.extract_tb(own.__traceback__)[-1].name


@pytest.mark.parametrize("options", [{"offload": True}, {"offload": True, "timeout": PATIENCE}])
@in_both_colours
def test_what_stops_an_iteration_is_a_failure(colour: Colour, options: dict[str, Any]):
    """
    A handler that lets `StopIteration` out fails by it, in a thread and in a coroutine too.
    """

    def stop(ordered: Ordered) -> None:
        next(iter(()))

    with EventBus() as bus:
        if colour.handles_async:
            options = {}
        bus.subscribe(Ordered, colour.handler(stop), name="stop", **options)
        bus.subscribe(Ordered, lambda ordered: None, name="neighbour")
        receipt = colour.publish(bus, Ordered())
    assert ["stop"] == [each.subscription for each in receipt.failures]
    assert 1 == receipt.delivered


@pytest.mark.parametrize("is_async", [False, True], ids=["publish", "apublish"])
def test_an_attempt_that_takes_too_long_says_whose_and_how_long(is_async: bool):
    """
    Each attempt has the whole time; the error names handler and limit, and is retried.
    """
    attempts: list[float] = []

    async def linger(ordered: Ordered) -> None:
        attempts.append(bus.clock.monotonic())
        await bus.clock.asleep(3.0 if len(attempts) < 3 else 1.0)

    with EventBus(clock=VirtualClock()) as bus:
        policy = fixed(attempts=3, delay=10.0, on=TimeoutError)
        bus.subscribe(Ordered, linger, name="linger", timeout=2.0, retry=policy)
        assert Colour(is_async, True).publish(bus, Ordered()).ok
        assert [0.0, 12.0, 24.0] == attempts
        bus.subscribe(Paid, lambda paid: linger(Ordered()), name="plain")
        attempts.clear()
        policy = fixed(attempts=2, delay=10.0)
        bus.subscribe(Paid, lambda paid: None, name="quick", offload=True, timeout=2.0)
        assert Colour(is_async, True).publish(bus, Paid()).ok


@pytest.mark.parametrize("is_async", [False, True], ids=["publish", "apublish"])
def test_a_thread_that_takes_too_long_is_left_alone(is_async: bool):
    """
    An offloaded handler past its limit has failed; it runs to its end, which changes nothing.
    """
    go_on, ended = threading.Event(), threading.Event()

    def linger(ordered: Ordered) -> None:
        assert go_on.wait(PATIENCE)
        ended.set()

    def publish() -> None:
        receipt = Colour(False, False).publish(bus, Ordered())
        check(receipt)

    async def apublish() -> None:
        check(await bus.apublish(Ordered()))
        go_on.set()

    def check(receipt: Any) -> None:
        [failure] = receipt.failures
        assert isinstance(failure.exception, HandlerTimeoutError)
        assert ("linger", 0.01) == (failure.exception.subscription, failure.exception.limit)
        assert "linger ran longer than its timeout of 0.01 s on Ordered" == str(failure.exception)
        assert not ended.is_set()

    with EventBus() as bus:
        bus.subscribe(Ordered, linger, name="linger", offload=True, timeout=0.01)
        asyncio.run(apublish()) if is_async else publish()
        go_on.set()
        assert ended.wait(PATIENCE)


def test_a_weak_handler_is_held_until_its_thread_has_called_it():
    """
    An offloaded handler whose object dies on the way to the thread is called all the same.
    """
    called: list[int] = []

    class Shelf:
        def take(self, ordered: Ordered) -> None:
            called.append(ordered.number)

    shelves = [Shelf()]

    async def live() -> None:
        bus = EventBus()
        bus.subscribe(Ordered, shelves[0].take, weak=True, offload=True)
        publish = asyncio.create_task(bus.apublish(Ordered(7)))
        asyncio.get_running_loop().call_soon(shelves.clear)
        assert 1 == (await publish).delivered
        assert () == bus.subscriptions

    asyncio.run(live())
    assert [7] == called


# -- what cannot be waited for


@pytest.mark.parametrize("kind", ["coroutine", "future"])
def test_an_awaitable_that_comes_as_a_surprise_is_not_waited_for(kind: str):
    """
    With a loop running, `publish` fails that handler; a coroutine is closed, a future left.
    """

    async def never() -> None:
        raise AssertionError("has begun")

    async def live() -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        bus = EventBus()
        bus.subscribe(
            Ordered, lambda ordered: never() if kind == "coroutine" else future, name="surprise"
        )
        [failure] = bus.publish(Ordered()).failures
        assert isinstance(failure.exception, RunningLoopError)
        assert "surprise" == failure.exception.subscription
        assert not future.done()

    asyncio.run(live())


# -- a bus that is closed meanwhile


def test_closing_fails_what_runs_on_the_loop_thread_and_nothing_else():
    """
    The async handlers fail with the reason and are kept as dead letters; sync ones go on.
    """
    begun, called = threading.Event(), list[str]()
    bus = EventBus()

    async def wait(ordered: Ordered) -> None:
        begun.set()
        await asyncio.Event().wait()

    async def never(ordered: Ordered) -> None:
        called.append("never")

    bus.subscribe(Ordered, wait, name="wait")
    bus.subscribe(Ordered, lambda ordered: called.append("sync"), name="sync")
    bus.subscribe(Ordered, never, name="never")
    with ThreadPoolExecutor(1) as pool:
        publish = pool.submit(bus.publish, Ordered())
        assert begun.wait(PATIENCE)
        bus.close(0.01)
        receipt = publish.result(PATIENCE)
    assert ["sync"] == called
    assert ["wait", "never"] == [each.subscription for each in receipt.failures]
    assert [BusClosedError] * 2 == [type(each.exception) for each in receipt.failures]
    assert 2 == len(bus.dead_letters)


# -- what wraps it


def with_envelope(ordered: Ordered, envelope: Envelope[Ordered]) -> None: ...


class Holder:
    async def method(self, ordered: Ordered) -> None: ...


HOLDER = Holder()


@pytest.mark.parametrize("handler", [with_envelope, HOLDER.method], ids=["envelope", "weak"])
def test_a_hook_sees_the_name_of_what_it_wraps(handler: Any):
    """
    Also where something of ours stands between hook and handler.
    """
    names: list[str] = []

    def hook(call: Callable[..., Any]) -> Callable[..., Any]:
        names.append(f"{call.__module__}.{call.__qualname__}")
        return call

    is_weak = handler != with_envelope
    with EventBus(wrap=hook) as bus:
        bus.subscribe(Ordered, handler, weak=is_weak)
        assert bus.publish(Ordered()).ok
    assert [f"{__name__}.{handler.__qualname__}"] == names


def test_a_hook_does_not_keep_a_weak_handler_alive():
    """
    A hook's wrapper, made with `functools.wraps`, holds only what stands in for the handler.
    """

    def hook(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        async def wrapped(ordered: Ordered) -> None:
            await call(ordered)

        return wrapped

    holder = Holder()
    with EventBus() as bus:
        subscription = bus.subscribe(Ordered, holder.method, weak=True, wrap=hook)
        assert 1 == bus.publish(Ordered()).delivered
        del holder
        gc.collect()
        assert bus.publish(Ordered()).unhandled
        assert not subscription.is_active
