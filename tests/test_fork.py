"""
Forks while other threads publish, subscribe and close: the child goes on as if it were alone.

A child that hangs is ended by an alarm, and fails its test.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import Durable, EventBus, InMemoryDeadLetters, InMemoryIdempotencyStore, Queued, event
from eventbus._alarms import Alarms
from eventbus._clock import SystemClock
from eventbus._consumers import Consumers
from eventbus._following import Follower
from eventbus._fork import _after_fork, _things, renewed
from eventbus._gate import Gate
from eventbus._loop_thread import LoopThread
from eventbus._registry import Registry
from eventbus._tenure import Tenure
from eventbus.errors import StoreError
from eventbus.event_log import Listeners
from eventbus.memory import InMemoryEventLog, MemoryStore
from eventbus.sqlite import SQLiteStore

PATIENCE = 20  # seconds, after which a child is ended

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")


@event
class Placed:
    number: int


@event
class Paid:
    number: int


def hold(lock: Any) -> None:
    """
    Let a thread hold it that is gone, as in a forked child all are but one.
    """
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()


@contextmanager
def held(*locks: Any) -> Iterator[None]:
    """
    Let another thread hold them for the block.
    """
    are_held, is_over = threading.Event(), threading.Event()

    def keep() -> None:
        with ExitStack() as stack:
            for lock in locks:
                stack.enter_context(lock)
            are_held.set()
            assert is_over.wait(PATIENCE)

    thread = threading.Thread(target=keep)
    thread.start()
    assert are_held.wait(PATIENCE)
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def forked(do: Callable[[], object]) -> int:
    """
    Do something in a forked child; return how that has ended: 0 if it raised nothing.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12: forking with threads
        child = os.fork()
    if not child:  # pragma: no cover - runs in the child, which ends at once
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(PATIENCE)
            do()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# -- what is registered


def test_what_is_registered_begins_anew():
    """
    A lock that another thread has held is nobody's, and what is gone is asked no more.
    """
    lock = renewed(threading.Lock())
    hold(lock)
    _after_fork()
    assert not lock.locked()
    place = id(lock)
    del lock
    assert place not in _things


def test_what_is_registered_need_not_be_hashable():
    """
    A subclass that is compared by its values, as attrs makes it, is renewed as well.
    """

    @attrs.define
    class Kept(InMemoryIdempotencyStore):
        pass

    store = Kept()
    hold(store._lock)
    _after_fork()
    assert not store._lock.locked()


def tenure() -> Tenure:
    return Tenure("one", 30.0, MemoryStore(), SystemClock())


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: LoopThread("loop"), "_lock"),
        (EventBus, "_lock"),
        (Registry, "lock"),
        (InMemoryIdempotencyStore, "_lock"),
        (InMemoryDeadLetters, "_lock"),
        (InMemoryEventLog, "_lock"),
        (Listeners, "_lock"),
        (MemoryStore, "_lock"),
        (lambda: Gate("here", 1.0), "_guard"),
        (lambda: Alarms(SystemClock(), "alarms"), "_agenda.changed"),
        (lambda: Consumers(InMemoryEventLog(), "durable", is_manned=False), "_lock"),
        (lambda: Consumers(InMemoryEventLog(), "durable", is_manned=False), "_turning"),
        (lambda: Consumers(InMemoryEventLog(), "durable", is_manned=False), "_bell._cond"),
        (lambda: Consumers(InMemoryEventLog(), "durable", is_manned=False), "_over._cond"),
        (lambda: Follower("one", InMemoryEventLog(), suppress), "_changed"),
        (tenure, "_lock"),
    ],
)
def test_who_waits_in_a_child_waits_for_none_of_its_parents_threads(
    make: Callable[[], Any], where: str
):
    """
    Each lock that a publish, a subscribe or a close takes is free after a fork.
    """
    owner = make()
    hold(attrgetter(where)(owner))
    _after_fork()
    lock = attrgetter(where)(owner)
    assert lock.acquire(blocking=False)
    lock.release()


def test_what_is_done_is_known_in_a_child_and_what_is_pending_is_free_there():
    """
    A key whose event the parent is still handling is the parent's affair alone.
    """
    store = InMemoryIdempotencyStore()
    source: Any = threading.current_thread()
    done, pending = (store.claim("one", key, source=source, now=0.0) for key in ("a", "b"))
    store.complete(done, now=0.0)
    _after_fork()
    assert "done" == store.claim("one", "a", source=source, now=1.0).state
    again: Any = store.claim("one", "b", source=source, now=1.0)
    assert "granted" == again.state
    assert not store.release(pending)
    assert store.complete(again, now=1.0)


def test_a_key_that_was_just_lapsing_is_free_in_a_child():
    """
    What a thread of the parent was about to take out is not left in the child for ever.
    """
    store = InMemoryIdempotencyStore(lease=1.0)
    source: Any = threading.current_thread()
    held: Any = store.claim("one", "a", source=source, now=0.0)
    assert held.has_expired(2.0)
    _after_fork()
    assert "granted" == store.claim("one", "a", source=source, now=2.0).state


# -- real forks


class Buses:
    """
    A bus, most of whose locks are held by threads while it is forked.
    """

    def __init__(self) -> None:
        self.seen: list[object] = []
        self.go, self.is_in = threading.Event(), threading.Event()
        self.bus = bus = EventBus(idempotency=InMemoryIdempotencyStore())
        bus.subscribe(Placed, self.wait, name="async")
        bus.subscribe(Paid, self.seen.append, name="keyed", idempotency_key=lambda it: "a")
        bus.subscribe(Paid, self.queued, name="queued", delivery=Queued())
        self.publishing = threading.Thread(target=bus.publish, args=(Placed(1),))
        self.publishing.start()
        assert self.is_in.wait(PATIENCE)
        self.keys: Any = bus._furniture.idempotency
        self.keys.claim("keyed", "a", source=self, now=bus.clock.monotonic())

    async def wait(self, placed: Placed) -> None:
        self.is_in.set()
        if placed.number == 1:
            self.go.wait(PATIENCE)
        self.seen.append(placed)

    async def queued(self, paid: Paid) -> None:
        self.seen.append(paid)

    def fails(self, placed: Placed) -> None:
        raise ValueError(placed)

    def go_on(self) -> None:
        """
        Publish, subscribe and close, in the child.
        """
        bus = self.bus
        assert not bus._furniture.loop_thread.is_busy
        assert not bus.publish(Placed(2)).failures
        assert not bus.publish(Paid(3)).failures
        bus.subscribe(Placed, self.fails, name="fails")
        assert 1 == len(bus.publish(Placed(4)).failures)
        assert bus.drain(PATIENCE).ok
        assert [Placed(2), Paid(3), Paid(3), Placed(4)] == self.seen
        assert 1 == len(bus.dead_letters)
        assert bus.close().ok


@forks
def test_a_child_publishes_subscribes_and_closes_whatever_its_parent_was_at():
    """
    No lock, no publish under way and no key in use of the parent's threads hold it up.
    """
    made = Buses()
    bus, furniture = made.bus, made.bus._furniture
    letters: Any = furniture.dead_letters
    locks = (furniture.loop_thread._lock, made.keys._lock, letters._lock, bus._lock)
    with held(*locks, bus._registry.lock, bus._alarms._agenda.changed):
        assert 0 == forked(made.go_on)
    made.go.set()
    made.publishing.join(PATIENCE)
    assert [Placed(1)] == made.seen
    bus.close()


@forks
def test_a_child_of_a_bus_with_a_store_in_memory_publishes_and_closes():
    """
    What keeps durable subscriptions going does not hold it up.
    """
    store = MemoryStore()
    with EventBus(store=store) as bus:
        bus.subscribe(Placed, lambda _: None, name="one", delivery=Durable())
        consumers: Any = bus._consumers

        def go_on() -> None:
            assert 1 == bus.publish(Placed(1)).envelope.offset
            bus.close(0.0)

        with held(store._lock, consumers._lock, consumers._bell._cond, bus._lock):
            code = forked(go_on)
    assert 0 == code


@forks
def test_a_child_of_a_bus_with_a_file_is_refused_and_does_not_hang(tmp_path: Path):
    """
    While a thread of the parent writes, a publish of the child's is refused, and it can close.
    """
    store = SQLiteStore(tmp_path / "events.db")
    with EventBus(store=store) as bus:
        bus.subscribe(Placed, lambda _: None, name="one", delivery=Durable())

        def go_on() -> None:
            with pytest.raises(StoreError, match="was opened before this process was forked"):
                bus.publish(Placed(1))
            bus.close(0.0)
            store.close()

        writer, log = store._writer, store._log
        with held(writer._lock, writer._starting, writer._wake._cond, log._watching):
            code = forked(go_on)
    assert 0 == code
    store.close()
