"""
The threads of offloaded handlers: bounded, each subscription's own, and waited for by nobody.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from eventbus import EventBus, HandlerTimeoutError, event
from eventbus._offload import _LIMIT, Offload

PATIENCE = 20.0  # seconds, after which a test fails instead of hanging


@event
class A:
    n: int = 0


def test_what_is_too_much_waits_for_a_thread() -> None:
    """
    No more calls run at once than there may be threads, and each is made in the end.
    """
    offload, go, begun = Offload("test"), threading.Event(), threading.Semaphore(0)
    ended = threading.Semaphore(0)

    def call() -> None:
        begun.release()
        go.wait(PATIENCE)
        ended.release()

    for _ in range(_LIMIT + 5):
        offload.submit(call)
    for _ in range(_LIMIT):
        assert begun.acquire(timeout=PATIENCE)
    assert not begun.acquire(blocking=False)
    go.set()
    for _ in range(_LIMIT + 5):
        assert ended.acquire(timeout=PATIENCE)


def test_its_threads_are_daemons_and_end() -> None:
    """
    They keep no process alive, and none lives on without a call.
    """
    offload, found = Offload("test"), list[threading.Thread]()
    for _ in range(3):
        is_done = threading.Event()

        def call(is_done: threading.Event = is_done) -> None:
            found.append(threading.current_thread())
            is_done.set()

        offload.submit(call)
        assert is_done.wait(PATIENCE)
    for thread in found:
        thread.join(PATIENCE)
        assert ("test", True, False) == (thread.name, thread.daemon, thread.is_alive())


def test_a_thread_that_cannot_be_had_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Whoever asks is told, and the next ones are called as ever.
    """
    offload, is_done = Offload("test"), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", lambda _: 1 / 0)
        for _ in range(_LIMIT + 1):
            with pytest.raises(ZeroDivisionError):
                offload.submit(is_done.set)
    offload.submit(is_done.set)
    assert is_done.wait(PATIENCE)


def test_a_forked_process_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    Those that its parent had at work take no places in it.
    """
    offload, go, is_done = Offload("test"), threading.Event(), threading.Event()
    for _ in range(_LIMIT):
        offload.submit(lambda: go.wait(PATIENCE))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    offload.submit(is_done.set)
    assert is_done.wait(PATIENCE)
    go.set()


def test_handlers_that_hang_harm_no_other_subscription() -> None:
    """
    However many calls of one are stuck, another one's handler is called.
    """
    go, seen = threading.Event(), list[A]()
    with EventBus() as bus:
        bus.subscribe(A, lambda _: go.wait(PATIENCE), name="stuck", offload=True, timeout=0.01)
        for _ in range(2):
            [failure] = bus.publish(A()).failures
            assert isinstance(failure.exception, HandlerTimeoutError)
        for number in range(_LIMIT + 2):
            asyncio.run(bus.apublish(A(number)))
        bus.subscribe(A, seen.append, name="quick", offload=True, timeout=PATIENCE)
        assert ["stuck"] == [each.subscription for each in bus.publish(A(7)).failures]
        go.set()
    assert [A(7)] == seen


@pytest.mark.parametrize("options", [{}, {"timeout": PATIENCE}], ids=["unlimited", "limited"])
def test_what_was_cancelled_before_it_was_begun_is_not_called(options: dict[str, Any]) -> None:
    """
    A publish that is cancelled while its call waits for a thread does not wait for it.
    """
    go, is_over, seen = threading.Event(), threading.Event(), list[A]()

    async def main(bus: EventBus) -> None:
        publishing = asyncio.create_task(bus.apublish(A()))
        for _ in range(3):
            await asyncio.sleep(0)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing

    with EventBus() as bus:
        threads = bus.subscribe(A, seen.append, name="h", offload=True, **options).threads
        assert threads is not None
        for _ in range(_LIMIT):
            threads.submit(lambda: go.wait(PATIENCE))
        asyncio.run(main(bus))
        threads.submit(is_over.set)
        go.set()
        assert is_over.wait(PATIENCE)
    assert [] == seen


def test_what_was_given_up_before_it_was_begun_is_not_called() -> None:
    """
    A call whose time ran out while it waited for a thread comes no more.
    """
    go, is_over, seen = threading.Event(), threading.Event(), list[A]()
    with EventBus() as bus:
        threads = bus.subscribe(A, seen.append, name="h", offload=True, timeout=0.01).threads
        assert threads is not None
        for _ in range(_LIMIT):
            threads.submit(lambda: go.wait(PATIENCE))
        [failure] = bus.publish(A()).failures
        assert isinstance(failure.exception, HandlerTimeoutError)
        threads.submit(is_over.set)
        go.set()
        assert is_over.wait(PATIENCE)
    assert [] == seen


ENDS = """
import threading
from eventbus import EventBus

bus = EventBus()
bus.subscribe(int, lambda _: threading.Event().wait(), name="stuck", offload=True, timeout=0.01)
print(bus.publish(1).ok, bus.close().ok)
"""


def test_a_process_ends_whose_offloaded_handler_does_not() -> None:
    """
    Nobody waits at exit for a thread that was given up.
    """
    child = subprocess.run(
        [sys.executable, "-c", ENDS],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (0, "False True") == (child.returncode, child.stdout.strip()), child.stderr
