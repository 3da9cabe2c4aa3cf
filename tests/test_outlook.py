"""
What `explain` says of durable subscriptions: who consumes them, and what holds them up.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import pytest

from eventbus import DecodeError, Durable, EventBus, NotAnEventError, event
from eventbus._holder import holder_of
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import TestBus, record

RULE = "subscribed to Placed, from the log"
HOLD = Durable(start="origin", on_dead_letter="hold_key")
STOP = Durable(start="origin", on_dead_letter="stop")


@event(key="key", name="outlook.placed")
class Placed:
    number: int
    key: str | None = "K"


@event(name="outlook.odd", key=lambda odd: 1 // odd.number)
class Odd:
    number: int


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "shop.db")
    with closing(made):
        yield made


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


def ignore(placed: object) -> None: ...


class Shop:
    """
    A bus on a store, whose handler fails on some numbers.
    """

    def __init__(self, store: Store, mode: Durable, **options: Any) -> None:
        self.bus = TestBus(store=store, errors="collect")
        self.fails = {1}
        self.bus.subscribe(Placed, self.note, name="shop", delivery=mode, **options)

    def note(self, placed: Placed) -> None:
        if placed.number in self.fails:
            raise ValueError(f"no {placed.number}")

    def place(self, *numbers: int) -> None:
        self.bus.publish_many([Placed(each) for each in numbers])
        self.bus.settle()

    def told(self, happened: object = Placed(9)) -> tuple[bool, str]:
        return told_by(self.bus, happened)


def told_by(bus: EventBus, happened: object) -> tuple[bool, str]:
    [each] = bus.explain(happened)
    return each.called, each.reason


# -- who consumes -------------------------------------------------------------------------------


@pytest.mark.parametrize("happened", [Placed(1), Placed], ids=["event", "class"])
def test_a_bus_that_was_not_started_consumes_nothing(store: Store, happened: object) -> None:
    """
    Nothing is handled before it is started, and explain says so; until it is closed.
    """
    bus = EventBus(store=store)
    bus.subscribe(Placed, ignore, name="shop", delivery=Durable())
    assert (True, f"{RULE}, once the bus is started") == told_by(bus, happened)
    with bus:
        assert (True, RULE) == told_by(bus, happened)
    assert (False, "the bus is closed") == told_by(bus, happened)


def test_what_another_process_consumes_is_handled_there(store: Store) -> None:
    """
    This one waits to take over.
    """
    shop = Shop(store, Durable())
    assert (True, RULE) == shop.told()  # a test takes turns where it likes
    name = store.progress.open("shop", start="now").name
    now = shop.bus.clock.time()
    assert store.progress.acquire(name, owner="another", ttl=60.0, now=now) is not None
    shop.bus.settle()
    assert (True, f"{RULE}, by the process that consumes it") == shop.told()


# -- what holds it up ---------------------------------------------------------------------------


def test_who_has_stopped_behind_a_letter_says_behind_which(store: Store) -> None:
    """
    It calls its handler no more until the letter is gone, whoever is to consume it.
    """
    shop = Shop(store, STOP)
    shop.place(1)
    [letter] = shop.bus.dead_letters
    expected = (False, f"it has stopped behind dead letter {letter.id}")
    assert [expected, expected] == [shop.told(), shop.told(Placed)]
    anew = EventBus(store=store)
    anew.subscribe(Placed, ignore, name="shop", delivery=STOP)
    assert expected == told_by(anew, Placed(9))
    shop.bus.dead_letters.discard()
    assert (True, RULE) == shop.told()


def test_who_has_stopped_at_what_cannot_be_read_says_why(store: Store) -> None:
    """
    The error that has stopped it is the reason.
    """
    TestBus(store=store).publish(Placed(2))
    [record] = store.log.read()
    store.log.append([attrs.evolve(record, id="damaged", offset=0, payload=b"?")])
    shop = Shop(store, Durable(start="origin", unreadable="raise"))
    with pytest.raises(DecodeError) as caught:
        shop.bus.settle()
    assert (False, f"it has stopped: {caught.value}") == shop.told()


def test_a_held_key_is_told_with_its_letter(store: Store) -> None:
    """
    Events of other keys, or of none, are handled; of a class it depends on the key.
    """
    shop = Shop(store, HOLD)
    shop.place(1, 2)
    first = next(iter(shop.bus.dead_letters))
    expected = (False, f"key 'K' is held behind dead letter {first.id}")
    assert expected == shop.told()
    assert [(True, RULE)] * 2 == [shop.told(Placed(9, key)) for key in ("L", None)]
    assert (True, f"{RULE}, unless its key is held behind a dead letter") == shop.told(Placed)
    anew = EventBus(store=store)
    anew.subscribe(Placed, ignore, name="shop", delivery=HOLD)
    assert expected == told_by(anew, Placed(9))
    assert (True, f"{RULE}, once the bus is started") == told_by(anew, Placed(9, "L"))
    shop.fails.clear()
    shop.bus.redrive(first)
    shop.bus.clock.advance(2)
    shop.bus.settle()
    assert (True, RULE) == shop.told()


def test_the_letter_that_holds_a_key_is_the_one_that_does_not_go_on_by_itself(
    store: Store,
) -> None:
    """
    Others of the key may have come before it, and wait behind it.
    """
    shop = Shop(store, HOLD)
    shop.place(1, 2, 3)
    shop.fails = {2}
    shop.bus.redrive(next(iter(shop.bus.dead_letters)))
    shop.bus.clock.advance(2)
    shop.bus.settle()
    by_number = {each.event.number: each for each in shop.bus.dead_letters}
    assert [2, 3] == sorted(by_number)
    assert (False, f"key 'K' is held behind dead letter {by_number[2].id}") == shop.told()
    shop.bus.dead_letters.remove(by_number[2].id)
    assert holder_of(store.letters, "shop", "K") is None
    store.letters.edit(by_number[3].id, b"{}")
    edited = holder_of(store.letters, "shop", "K")
    assert edited is not None
    assert by_number[3].id == edited.id


def test_an_event_whose_key_cannot_be_read_has_none(store: Store) -> None:
    """
    It is published without one, and so nothing holds it.
    """
    bus = TestBus(store=store)
    bus.subscribe(Odd, ignore, name="odd", delivery=HOLD)
    assert (True, "subscribed to Odd, from the log") == told_by(bus, Odd(0))


# -- how it is asked ----------------------------------------------------------------------------


def test_the_store_is_asked_no_more_than_is_needed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Who consumes knows which keys are free, and that he has not stopped.
    """
    asked = list[str]()

    def counted(name: str) -> Any:
        answer = getattr(store.letters, name)

        def ask(*given: Any, **options: Any) -> Any:
            asked.append(name)
            return answer(*given, **options)

        return ask

    shop = Shop(store, HOLD)
    shop.place(1, 2)
    shop.bus.subscribe(Placed, ignore, name="filtered", delivery=HOLD, where=lambda placed: False)
    shop.bus.subscribe(Placed, ignore, name="plain", delivery=Durable())
    shop.bus.settle()
    for name in ("query", "count", "get", "held_keys", "stuck_keys"):
        monkeypatch.setattr(store.letters, name, counted(name))
    shop.bus.explain(Placed(3, "L"))
    shop.bus.explain(Placed(3, None))
    shop.bus.explain(Placed)
    assert [] == asked
    shop.bus.explain(Placed(3))
    assert ["query"] == asked


def test_a_recording_explains_what_it_would_deliver() -> None:
    """
    Where another bus stands in, it is that one's subscriptions that are looked at.
    """
    with EventBus(store=MemoryStore()) as bus:
        bus.subscribe(Placed, ignore, name="shop", delivery=STOP)
        with record(bus, deliver=False):
            assert not told_by(bus, Placed(1))[0]
            with pytest.raises(NotAnEventError):
                bus.explain(None)
