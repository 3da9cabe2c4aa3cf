"""
How a durable subscription reads and chooses: what an attempt costs, and how long a turn is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from eventbus import Durable, event, fixed
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import TestBus

ORIGIN = Durable(start="origin")
DELAY = 10.0


@event(key="key", name="filling.placed")
class Placed:
    number: int
    key: str = "K"


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "shop.db")
    with closing(made):
        yield made


@pytest.fixture
def reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """
    Return a list that the offset of each record is appended to that is read from the log.
    """
    offsets: list[int] = []
    read: Callable[..., Iterator[Any]] = store.log.read

    def counted(*given: Any, **options: Any) -> Iterator[Any]:
        for record in read(*given, **options):
            offsets.append(record.offset)
            yield record

    monkeypatch.setattr(store.log, "read", counted)
    return offsets


class Shop:
    """
    A test bus whose handler fails on purpose.
    """

    def __init__(self, store: Store) -> None:
        self.bus = TestBus(store=store)
        self.numbers: list[int] = []
        self.fails: set[int] = set()

    def handle(self, **options: Any) -> None:
        self.bus.subscribe(
            Placed,
            self.note,
            name="shop",
            delivery=ORIGIN,
            retry=fixed(attempts=99, delay=DELAY),
            **options,
        )

    def note(self, placed: Placed) -> None:
        self.numbers.append(placed.number)
        if placed.number in self.fails:
            raise ValueError(f"no {placed.number}")

    def wait(self) -> None:
        self.bus.clock.advance(DELAY)
        self.bus.settle()


def test_an_attempt_reads_nothing_of_what_waits_behind_it(store: Store, reads: list[int]) -> None:
    """
    However many wait: they are read once more when they may go on.
    """
    shop = Shop(store)
    shop.handle()
    shop.fails.add(1)
    shop.bus.publish_many([Placed(number) for number in range(1, 701)])
    shop.bus.settle()
    reads.clear()
    for _ in range(5):
        shop.wait()
    assert ([1] * 6, []) == (shop.numbers, reads)
    shop.fails.clear()
    shop.wait()
    assert [*range(2, 701)] == shop.numbers[7:]
    assert [*range(2, 701)] == reads


def test_what_fails_later_takes_few_back_with_it(store: Store, reads: list[int]) -> None:
    """
    Those that were about to be handled, and not all that wait.
    """
    shop = Shop(store)
    shop.handle()
    shop.fails.update((1, 2, 3))
    shop.bus.publish_many([Placed(number) for number in range(1, 701)])
    shop.bus.settle()
    for number in (1, 2):
        reads.clear()
        shop.fails.remove(number)
        shop.wait()
        assert len(reads) <= 300
        reads.clear()
        shop.wait()
        assert [] == reads
    shop.fails.clear()
    shop.wait()
    assert [*range(1, 701)] == list(dict.fromkeys(shop.numbers))
    assert shop.bus.drain().ok


def test_what_waits_is_read_once_after_a_restart(store: Store, reads: list[int]) -> None:
    """
    To learn its key; and once more when it may go on.
    """
    shop = Shop(store)
    shop.handle()
    shop.fails.add(1)
    shop.bus.publish_many([Placed(number) for number in range(1, 301)])
    shop.bus.settle()
    shop.bus.restart()
    reads.clear()
    shop.bus.settle()
    assert [*range(1, 301)] == reads
    shop.wait()
    assert (300, [1, 1]) == (len(reads), shop.numbers)
    shop.fails.clear()
    shop.wait()
    assert [1, 1, *range(1, 301)] == shop.numbers


@pytest.mark.parametrize("is_restarted", [False, True], ids=["reading on", "reading again"])
def test_a_slow_filter_keeps_the_others_waiting_for_one_call_at_most(
    store: Store, *, is_restarted: bool
) -> None:
    """
    A turn that takes long is ended by the next one, after the others had theirs.
    """
    shop, calls, is_slow = Shop(store), list[str](), not is_restarted

    def passes(placed: Placed) -> bool:
        calls.append("filter")
        shop.bus.clock.advance(1.0 if is_slow else 0.0)
        return True

    shop.handle(where=passes)
    shop.bus.subscribe(Placed, lambda placed: calls.append("other"), name="z", delivery=ORIGIN)
    if is_restarted:
        shop.fails.add(0)
        shop.bus.publish_many([Placed(number) for number in range(5)])
        shop.bus.settle()
        is_slow = True
        shop.bus.restart()
        calls.clear()
        shop.bus.publish(Placed(5, "other"))
    else:
        shop.bus.publish_many([Placed(number) for number in range(5)])
    shop.bus.settle()
    assert "other" in calls[:2]
    shop.fails.clear()
    shop.wait()
    assert {*range(5)} <= set(shop.numbers)
