"""
The public verbs, where no other room's tests pass.
"""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys

import pytest

from eventbus import EventBus, _bus, event
from eventbus.testing import VirtualClock


@event
class A:
    n: int = 0


def test_plain_code_needs_no_asyncio():
    """
    A program that publishes to sync handlers never imports asyncio.
    """
    code = (
        "import sys; before = set(sys.modules); "
        "from eventbus import EventBus; seen = []; bus = EventBus(); "
        "bus.subscribe(int, seen.append, name='h'); bus.publish(1); bus.publish(2); "
        "print(seen, 'asyncio' in set(sys.modules) - before)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "[1, 2] False" == child.stdout.strip()


def test_asyncio_may_be_imported_between_two_publishes():
    """
    A task that a handler starts in the first loop of a program knows its cause.
    """
    code = (
        "from eventbus import EventBus, current_envelope; bus = EventBus(); seen = []; "
        "bus.subscribe(int, seen.append, name='h'); bus.publish(1); bus.publish(2)\n"
        "import asyncio\n"
        "async def later(): return current_envelope().event\n"
        "bus.subscribe(str, lambda it: seen.append(asyncio.create_task(later())), name='t')\n"
        "async def main():\n"
        "    bus.publish('three')\n"
        "    seen[-1] = await seen[-1]\n"
        "asyncio.run(main()); print(seen)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "[1, 2, 'three']" == child.stdout.strip()


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_an_interrupted_batch_frees_the_keys_of_what_failed(colour: str):
    """
    A batch that ends early frees the key of the event whose handler failed before.
    """
    bus = EventBus(clock=VirtualClock())

    def handler(happened: A) -> None:
        if happened.n == 1:
            raise ValueError("fails")
        raise KeyboardInterrupt

    bus.subscribe(A, handler, name="h")

    def publish_both() -> None:
        if colour == "sync":
            bus.publish_many([A(1), A(2)], idempotency_key="k")
        else:
            asyncio.run(bus.apublish_many([A(1), A(2)], idempotency_key="k"))

    with pytest.raises(KeyboardInterrupt):
        publish_both()
    assert not bus.publish(A(1), idempotency_key="k#0").duplicate


@pytest.mark.parametrize("threads", [0, 1], ids=["alone", "beside a thread"])
def test_what_a_plain_handler_returns_to_publish_is_awaited(
    threads: int, monkeypatch: pytest.MonkeyPatch
):
    """
    On the bus's own loop thread, whether the program has other threads or not.
    """
    monkeypatch.setattr(_bus, "other_threads", lambda: threads)
    seen: list[int] = []

    async def later(n: int) -> None:
        seen.append(n)

    def publish_some() -> None:
        with EventBus(clock=VirtualClock()) as bus:
            bus.subscribe(A, lambda happened: later(happened.n), name="h")
            # The first makes the route, the second looks around, the third goes the fast way.
            assert all(bus.publish(A(n)).ok for n in range(3))

    contextvars.Context().run(publish_some)
    assert [0, 1, 2] == seen


def test_a_handler_may_return_what_cannot_be_awaited():
    """
    A value that is no awaitable is ignored, in both colours.
    """
    bus = EventBus(clock=VirtualClock())
    bus.subscribe(A, lambda happened: 42, name="h")
    assert bus.publish(A()).ok
    assert asyncio.run(bus.apublish(A())).ok


async def _async_observer(occurrence: object) -> None: ...


@pytest.mark.parametrize("observer", [3, _async_observer])
def test_what_cannot_observe_is_refused_at_once(observer: object):
    """
    An observer that cannot be called, or would have to be awaited, is a TypeError.
    """
    with pytest.raises(TypeError, match="plain callable"):
        EventBus(observers=[observer])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="plain callable"):
        EventBus().observe(observer)  # type: ignore[arg-type]


def test_what_a_plain_handler_returns_to_apublish_is_awaited():
    """
    Also what is no coroutine; what cannot be awaited is let go.
    """

    @event
    class Asked:
        pass

    async def main() -> None:
        bus, answered = EventBus(), asyncio.get_running_loop().create_future()
        bus.subscribe(Asked, lambda asked: answered, name="awaitable")
        bus.subscribe(Asked, lambda asked: 7, name="number")
        asyncio.get_running_loop().call_soon(answered.set_result, None)
        receipt = await bus.apublish(Asked())
        assert (2, True) == (receipt.delivered, answered.done())

    asyncio.run(main())
