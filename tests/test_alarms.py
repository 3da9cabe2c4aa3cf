"""
Alarms: in time, in order, cancelled, and of no thread longer than they are needed.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from eventbus import _alarms
from eventbus._alarms import Alarms
from eventbus._clock import SystemClock
from eventbus.testing import VirtualClock
from queue_by_hand import PATIENCE, met

names = count()


@pytest.fixture
def alarms() -> Iterator[Alarms]:
    made = Alarms(SystemClock(), f"test_alarms-{next(names)}")
    yield made
    made.close()


def threads_of(alarms: Alarms) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == alarms._name]


def test_rings_in_order(alarms: Alarms):
    """
    Alarms ring in the order in which they are due, those of one moment as they were set.
    """
    rung, over = list[str](), threading.Event()
    soon = SystemClock().monotonic() + 0.3  # all of them are set by then
    alarms.at(soon + 0.02, over.set)
    alarms.at(soon + 0.01, lambda: rung.append("later"))
    alarms.at(soon, lambda: rung.append("first"))
    alarms.at(soon, lambda: rung.append("second"))
    met(over)
    assert ["first", "second", "later"] == rung


def test_one_thread_a_daemon(alarms: Alarms):
    """
    There is no thread until something is due, and then one daemon.
    """
    assert [] == threads_of(alarms)
    alarms.after(60.0, print)
    alarms.after(30.0, print)
    assert [True] == [each.daemon for each in threads_of(alarms)]


def test_cancelled(alarms: Alarms):
    """
    What is cancelled does not ring.
    """
    rung, over = list[str](), threading.Event()
    cancel = alarms.after(0.3, lambda: rung.append("cancelled"))
    cancel()
    cancel()
    alarms.after(0.31, over.set)
    met(over)
    assert [] == rung


def test_the_cancelled_take_no_room(alarms: Alarms):
    """
    Of many alarms that are cancelled, few are still kept.
    """
    cancels = [alarms.after(60.0, print) for _ in range(1_000)]
    for cancel in cancels:
        cancel()
    assert 130 >= len(alarms._agenda.heap)


def test_what_raises_stops_no_other(alarms: Alarms, caplog: pytest.LogCaptureFixture):
    """
    An alarm that raises is logged, and the next one rings.
    """

    def broken() -> None:
        raise ValueError("broken")

    over = threading.Event()
    alarms.after(0.0, broken)
    alarms.after(0.005, over.set)
    met(over)
    assert ["what was due raised; the other alarms go on"] == caplog.messages


def test_the_thread_ends(monkeypatch: pytest.MonkeyPatch):
    """
    With nothing due for a while the thread ends; the next alarm starts another.
    """
    monkeypatch.setattr(_alarms, "_LINGER", 0.001)
    alarms = Alarms(SystemClock(), f"test_alarms-{next(names)}")
    for _ in range(2):
        rung = threading.Event()
        alarms.after(0.0, rung.set)
        met(rung)
        for thread in threads_of(alarms):
            thread.join(PATIENCE)
        assert [] == threads_of(alarms)
    alarms.close()


def test_woken_for_nothing(alarms: Alarms):
    """
    A thread that is woken with nothing due goes on waiting.
    """
    first, second = threading.Event(), threading.Event()
    alarms.after(0.0, first.set)
    met(first)
    with alarms._agenda.changed:
        alarms._agenda.changed.notify()
    alarms.after(0.005, second.set)
    met(second)


def test_closed(alarms: Alarms):
    """
    After the end nothing rings, and there is no thread; ending twice is ending once.
    """
    rung: list[str] = []
    alarms.after(0.01, lambda: rung.append("late"))
    alarms.close()
    alarms.close()
    alarms.after(0.0, lambda: rung.append("too late"))()
    assert [] == threads_of(alarms)
    assert [] == rung


def test_closed_by_what_rings(alarms: Alarms):
    """
    An alarm may close the alarms it belongs to.
    """
    over = threading.Event()

    def close() -> None:
        alarms.close()
        over.set()

    alarms.after(0.0, close)
    met(over)


def test_no_thread_to_be_had(
    alarms: Alarms, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """
    Where no thread can be started, that is logged, and the next alarm tries again.
    """

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    first, second = threading.Event(), threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        alarms.after(0.0, first.set)
    assert [f"{alarms._name} has no thread; the next alarm tries again"] == caplog.messages
    alarms.after(0.0, second.set)
    met(first)
    met(second)


def test_on_a_clock_that_keeps_alarms():
    """
    On a virtual clock what is due rings in the thread that moves the clock.
    """
    clock, rung = VirtualClock(), list[Any]()
    alarms = Alarms(clock, "virtual")
    alarms.after(5.0, lambda: rung.append(threading.current_thread()))
    alarms.after(6.0, rung.clear)()
    clock.advance(10.0)
    assert [threading.current_thread()] == rung
    assert [] == threads_of(alarms)
    alarms.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("verb", ["at", "close"])
def test_a_forked_process_has_none(alarms: Alarms, verb: str):
    """
    A forked process begins with no alarms, even where the parent was just looking at its own.
    """
    rung = threading.Event()
    alarms.after(60.0, rung.set)
    with alarms._agenda.changed:
        child = os.fork()
        if not child:  # pragma: no cover - runs in the child, which ends at once
            mine = threading.Event()
            if verb == "at":
                alarms.after(0.0, mine.set)
            else:
                alarms.close()
                mine.set()
            os._exit(0 if mine.wait(PATIENCE) and not rung.is_set() else 1)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_what_was_cancelled_is_let_go(alarms: Alarms):
    """
    Cancelling lets go of what would have been called.
    """

    class Owner:
        def ring(self) -> None: ...

    owner = Owner()
    cancel, found = alarms.after(60.0, owner.ring), weakref.ref(owner)
    cancel()
    del owner
    gc.collect()
    assert None is found()
