"""
From what is logged to what is being published: without a gap, and nothing twice.

Writers of several connections go on all the while. Bounded in the number of events, and by
``PATIENCE`` in time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventbus import Durable, Envelope, EventBus, event
from eventbus.sqlite import SQLiteStore

PATIENCE = 120.0  # seconds
LIVE = 1_000  # events that are published meanwhile
WRITERS = 4


@event(name="seam.counted")
class Counted:
    writer: int
    number: int


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """
    Return a file with 300 events in its log.
    """
    path = tmp_path / "seam.db"
    with EventBus(store=SQLiteStore(path)) as bus:
        bus.publish_many([Counted(-1, number) for number in range(300)])
    return path


@contextmanager
def written_meanwhile(path: Path) -> Iterator[threading.Event]:
    """
    Publish `LIVE` events from `WRITERS` threads, each with a bus of its own.

    Yields:
        What is set when half of them are published.
    """
    half_way = threading.Event()

    def write(writer: int) -> None:
        with EventBus(store=SQLiteStore(path)) as bus:
            for number in range(LIVE // WRITERS):
                bus.publish(Counted(writer, number))
                if number == LIVE // WRITERS // 2:
                    half_way.set()

    with ThreadPoolExecutor(WRITERS) as pool:
        writers = [pool.submit(write, writer) for writer in range(WRITERS)]
        yield half_way
        for each in writers:
            each.result(PATIENCE)


@pytest.mark.parametrize(("start", "first"), [("origin", 1), (120, 121)], ids=["origin", "offset"])
def test_catching_up_meets_the_live_events_without_a_seam(
    path: Path, start: Any, first: int
) -> None:
    """
    A subscription made while others publish gets each event once, in the order of the log.
    """
    seen: list[int | None] = []
    with EventBus(store=SQLiteStore(path)) as bus:
        bus.start()
        with written_meanwhile(path) as half_way:
            assert half_way.wait(PATIENCE)

            @bus.on(Counted, name="late", delivery=Durable(start=start))
            def late(counted: Counted, envelope: Envelope) -> None:
                seen.append(envelope.offset)

        assert bus.drain(PATIENCE).ok
    assert list(range(first, 300 + LIVE + 1)) == seen


def test_a_replay_meets_the_live_events_without_a_seam(path: Path) -> None:
    """
    Replayed from an offset while others publish, it gets each later event once, in order.
    """
    seen: list[tuple[int | None, bool]] = []

    def take(counted: Counted, envelope: Envelope) -> None:
        seen.append((envelope.offset, envelope.is_replay))

    with EventBus(store=SQLiteStore(path)) as bus:
        bus.subscribe(Counted, take, name="again", delivery=Durable(start="origin"))
        assert bus.drain(PATIENCE).ok
    seen.clear()
    bus = EventBus(store=SQLiteStore(path))
    bus.subscribe(Counted, take, name="again", delivery=Durable(start="origin"))
    with written_meanwhile(path) as half_way:
        assert half_way.wait(PATIENCE)
        bus.replay("again", from_=121)
        bus.start()
    assert bus.drain(PATIENCE).ok
    bus.close()
    assert list(range(121, 300 + LIVE + 1)) == [offset for offset, _ in seen]
    assert [(offset, offset <= 300) for offset, _ in seen] == seen
