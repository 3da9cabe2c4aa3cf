"""
`EventBus.replay`: a handler gets once more what it has had, as it gets everything.
"""

from __future__ import annotations

import asyncio
import io
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from eventbus import (
    Envelope,
    EventBus,
    RunningLoopError,
    SubscriptionBusyError,
    SubscriptionNotFoundError,
    current_envelope,
    event,
)
from eventbus._mode import Durable
from eventbus.kept_letters import KeptLetter
from eventbus.memory import MemoryStore
from eventbus.progress import Step
from eventbus.replay import Replayed
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store

NAIVE = datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)


@event(key="order")
class Placed:
    order: str


@event
class Noted:
    text: str


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "shop.db")


@pytest.fixture
def bus(store: Store) -> Iterator[EventBus]:
    with_store = EventBus(store=store)
    yield with_store
    with_store.close()
    store.close()


Replay = Callable[..., Replayed]


@pytest.fixture(params=["sync", "async"])
def again(request: pytest.FixtureRequest) -> Replay:
    if request.param == "sync":
        return lambda bus, *given, **options: bus.replay(*given, **options)
    return lambda bus, *given, **options: asyncio.run(bus.areplay(*given, **options))


def had(store: Store, name: str = "mailer") -> None:
    """
    Let the subscription have finished whatever is in the log, as another process would.
    """
    lease = store.progress.acquire(name, owner="earlier", ttl=1.0, now=0.0)
    assert lease is not None
    store.progress.advance(lease, Step(taken=store.log.last_offset()))
    store.progress.release(lease)


def test_a_handler_gets_again_what_it_has_had(bus: EventBus, store: Store, again: Replay):
    """
    With its envelope, which says so, as does the context; the position stays.
    """
    found: list[Any] = []

    def mail(placed: Placed, envelope: Envelope) -> None:
        assert envelope is current_envelope()
        found.append((placed.order, envelope.offset, envelope.is_replay))

    mailer = bus.subscribe(Placed, mail, name="mailer", delivery=Durable())
    for order in "abc":
        bus.publish(Placed(order))
        bus.publish(Noted("none of its business"))
    had(store)
    before = store.progress.position("mailer")
    done = again(bus, mailer, from_=3)
    assert [("b", 3, True), ("c", 5, True)] == found
    assert Replayed(subscription="mailer", done=4, total=4, offset=6, delivered=2) == done
    assert before == store.progress.position("mailer")


def test_what_was_not_handled_yet_comes_afterwards(bus: EventBus, store: Store):
    """
    The replay ends where the delivery goes on: nothing twice and nothing left out.
    """
    found: list[Any] = []

    @bus.on(Placed, name="mailer", delivery=Durable())
    def mail(placed: Placed, envelope: Envelope) -> None:
        found.append((placed.order, envelope.is_replay))

    bus.publish(Placed("a"))
    had(store)
    bus.publish(Placed("b"))
    bus.replay("mailer")
    bus.start()
    bus.publish(Placed("c"))
    bus.drain()
    assert [("a", True), ("b", False), ("c", False)] == found


def test_a_replay_and_a_redrive_handle_an_event_once(bus: EventBus, store: Store, again: Replay):
    """
    After a bug was mended: the replay leaves to the redrive what stands as a dead letter.
    """
    sums = dict[str, int]()

    @bus.on(Placed, name="mailer", delivery=Durable(), reset=sums.clear)
    def add_up(placed: Placed) -> None:
        sums[placed.order] = sums.get(placed.order, 0) + 1

    bus.publish_many([Placed("a"), Placed("b")])
    had(store)
    [record] = store.log.read(after=1)
    now = record.time
    store.letters.add(
        KeptLetter(
            id="one", subscription="mailer", record=record, first_failure=now, last_failure=now
        )
    )
    done = again(bus, "mailer")
    assert ({"a": 1}, 1, 1) == (sums, done.delivered, done.dead_letters)
    [receipt] = bus.redrive_all()
    assert (True, {"a": 1, "b": 1}) == (receipt.ok, sums)
    assert (2, 0) == ((done := again(bus, "mailer")).delivered, done.dead_letters)
    assert {"a": 1, "b": 1} == sums


def test_what_is_no_subscription_is_not_replayed(bus: EventBus, again: Replay):
    """
    A handler is none, and nobody has been called.
    """
    with pytest.raises(TypeError, match="by its name, not for <class 'list'>"):
        again(bus, list)


@pytest.mark.parametrize(
    ("from_", "until"),
    [(5, 2), (datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC))],
)
def test_a_replay_that_would_end_before_it_begins_is_refused(
    bus: EventBus, store: Store, again: Replay, from_: Any, until: Any
):
    """
    What the reset hook would throw away is still there; one of nothing begins, and resets.
    """
    resets = list[int]()
    bus.subscribe(
        Placed,
        print,
        name="mailer",
        delivery=Durable(),
        reset=lambda: resets.append(1),
    )
    had(store)
    with pytest.raises(ValueError, match="there is nothing to replay from"):
        again(bus, "mailer", from_=from_, until=until)
    assert [] == resets
    assert 0 == again(bus, "mailer", from_=5, until=5).total
    assert [1] == resets


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({"from_": "1"}, "TypeError: from_ is an offset or a datetime, not '1'"),
        ({"from_": 1.5}, "TypeError: from_ is an offset or a datetime, not 1.5"),
        ({"from_": date(2026, 1, 1), "until": 5}, "TypeError: from_ is an offset or a datetime"),
        ({"from_": 1, "until": "5"}, "TypeError: until is an offset or a datetime, not '5'"),
        ({"from_": NAIVE}, "ValueError: .* has no time zone"),
        ({"from_": NAIVE.replace(tzinfo=UTC), "until": NAIVE}, "ValueError: .* has no time zone"),
    ],
)
def test_a_replay_begins_and_ends_at_offsets_or_times(
    bus: EventBus, store: Store, again: Replay, given: Any, refused: str
):
    """
    What is neither is refused, and nothing was reset.
    """
    resets = list[int]()
    reset = lambda: resets.append(1)  # noqa: E731 - short
    bus.subscribe(Placed, print, name="mailer", delivery=Durable(), reset=reset)
    had(store)
    with pytest.raises((TypeError, ValueError)) as caught:
        again(bus, "mailer", **given)
    assert re.match(refused, f"{caught.type.__name__}: {caught.value}")
    assert [] == resets


def test_a_running_subscription_is_not_replayed(bus: EventBus, again: Replay):
    """
    A bus that was started consumes it, and has to be stopped before.
    """
    bus.subscribe(Placed, lambda placed: None, name="mailer", delivery=Durable())
    bus.publish(Placed("a"))
    bus.start()
    bus.drain()
    with pytest.raises(SubscriptionBusyError, match="mailer is being consumed by"):
        again(bus, "mailer")


def test_filter_and_hooks_are_asked_as_ever(bus: EventBus, store: Store, again: Replay):
    """
    A replay calls the handler as a delivery does.
    """
    found: list[str] = []

    def wrap(handler: Any) -> Any:
        def wrapped(placed: Any) -> None:
            found.append("wrap")
            handler(placed)

        return wrapped

    bus.subscribe(
        Placed,
        lambda placed: found.append(placed.order),
        name="mailer",
        delivery=Durable(),
        where=lambda placed: placed.order != "a",
        wrap=wrap,
    )
    bus.publish(Placed("a"))
    bus.publish(Placed("b"))
    had(store)
    done = again(bus, "mailer")
    assert (["wrap", "b"], 1) == (found, done.delivered)


def test_an_async_handler_is_replayed_in_both_colours(bus: EventBus, store: Store, again: Replay):
    """
    Awaited where there is a loop, and run to its end where there is none.
    """
    found: list[str] = []

    @bus.on(Placed, name="mailer", delivery=Durable())
    async def mail(placed: Placed) -> None:
        await asyncio.sleep(0)
        found.append(placed.order)

    bus.publish(Placed("a"))
    had(store)
    again(bus, "mailer")
    assert ["a"] == found


def test_a_loop_is_not_blocked_for_an_async_handler(bus: EventBus):
    """
    In a running loop the twin is to be awaited.
    """

    async def mail(placed: Placed) -> None: ...

    bus.subscribe(Placed, mail, name="mailer", delivery=Durable())

    async def main() -> None:
        bus.replay("mailer")

    with pytest.raises(RunningLoopError, match=r"await bus\.areplay"):
        asyncio.run(main())


def test_what_the_handler_raises_ends_the_replay(bus: EventBus, store: Store, again: Replay):
    """
    It is not retried and leaves no letter: who replays sees it, and where it was.
    """
    found: list[str] = []

    @bus.on(Placed, name="mailer", delivery=Durable(), retry=lambda attempt: 0.0)
    def mail(placed: Placed) -> None:
        found.append(placed.order)
        if placed.order == "b":
            raise ValueError("no")

    for order in "abc":
        bus.publish(Placed(order))
    had(store)
    with pytest.raises(ValueError, match="no") as caught:
        again(bus, "mailer")
    assert ["a", "b"] == found
    assert "at offset 2 of 1 to 3" in caught.value.__notes__[0]
    assert (0, 0) == (store.letters.count(), len(bus.dead_letters))


def test_a_handler_with_a_connection_writes_in_a_transaction(
    bus: EventBus, store: Store, again: Replay
):
    """
    What it has written is there when it returns, and gone when it raises.
    """
    counts: list[int] = []

    @bus.on(Placed, name="mailer", delivery=Durable())
    def mail(placed: Placed, db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS mails (text)")
        counts.extend(db.execute("SELECT count(*) FROM mails").fetchone())
        db.execute("INSERT INTO mails VALUES (?)", (placed.order,))
        if placed.order == "b" and len(counts) == 2:
            raise ValueError("no")

    for order in "abc":
        bus.publish(Placed(order))
    had(store)
    with pytest.raises(ValueError, match="no"):
        again(bus, "mailer")
    again(bus, "mailer", from_=2)
    assert [0, 1, 1, 2] == counts


def test_what_such_a_handler_publishes_reaches_everybody_after_its_commit(
    bus: EventBus, store: Store, again: Replay, caplog: pytest.LogCaptureFixture
):
    """
    And nobody if it raises. What fails then is no failure of the handler any more.
    """
    heard = list[tuple[str, int]]()
    is_there, fails = list[bool](), list[bool]()

    @bus.on(Placed, name="mailer", delivery=Durable())
    def mail(placed: Placed, db: sqlite3.Connection) -> None:
        bus.publish(Noted(placed.order))
        heard.append(("handled", store.log.last_offset()))
        if placed.order == "b" and not is_there:
            raise ValueError("no")

    @bus.on(Noted, name="inline")
    def hear(noted: Noted) -> None:
        heard.append((noted.text, store.log.last_offset()))
        if fails:
            raise KeyError(noted.text)

    bus.publish_many([Placed("a"), Placed("b")])
    had(store)
    with pytest.raises(ValueError, match="no"):
        again(bus, "mailer")
    assert [("handled", 2), ("a", 3), ("handled", 3)] == heard
    heard.clear()
    is_there.append(True)
    fails.append(True)
    done = again(bus, "mailer", from_=2)
    assert ([("handled", 3), ("b", 4)], 1) == (heard, done.delivered)
    assert ["inline"] == [each.subscription for each in bus.dead_letters]
    assert "" == "".join(each for each in caplog.messages if "in its transaction" in each)


def test_a_bus_that_raises_logs_what_comes_after_the_commit(
    store: Store, again: Replay, caplog: pytest.LogCaptureFixture
):
    """
    The replay goes on: the handler has done its part.
    """
    bus, found = EventBus(store=store, errors="raise"), list[str]()

    @bus.on(Placed, name="mailer", delivery=Durable())
    def mail(placed: Placed, db: sqlite3.Connection) -> None:
        bus.publish(Noted(placed.order))

    @bus.on(Noted, name="inline")
    def hear(noted: Noted) -> None:
        found.append(noted.text)
        raise KeyError(noted.text)

    bus.publish_many([Placed("a"), Placed("b")])
    had(store)
    assert 2 == again(bus, "mailer").delivered
    assert ["a", "b"] == found
    assert 2 == sum("what mailer has published, in its" in each for each in caplog.messages)
    bus.close()


def test_observers_are_told_how_far_it_is(bus: EventBus, store: Store):
    """
    And so is whoever has asked.
    """
    bus.subscribe(Placed, lambda placed: None, name="mailer", delivery=Durable())
    bus.publish(Placed("a"))
    had(store)
    seen: list[Any] = []
    told: list[Any] = []
    bus.observe(seen.append)
    bus.replay("mailer", on_progress=told.append)
    assert [0, 1] == [each.done for each in seen]
    assert seen == told


def test_a_terminal_shows_how_far_it_is(
    bus: EventBus, store: Store, monkeypatch: pytest.MonkeyPatch
):
    """
    Where nobody else asks, and one is there.
    """

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    bus.subscribe(Placed, lambda placed: None, name="mailer", delivery=Durable())
    bus.publish(Placed("a"))
    had(store)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    bus.replay("mailer", on_progress=lambda told: None)
    assert "" == terminal.getvalue()
    bus.replay("mailer")
    assert "mailer" in terminal.getvalue()


def test_what_must_not_happen_twice_stays_silent(bus: EventBus, store: Store, again: Replay):
    """
    A subscription that is not replayable is passed over, its reset hook included.
    """
    found: list[Any] = []
    mailer = bus.subscribe(
        Placed,
        found.append,
        name="mailer",
        delivery=Durable(),
        replayable=False,
        reset=lambda: found.append("reset"),
    )
    bus.publish(Placed("a"))
    had(store)
    silent = Replayed(subscription="mailer", done=0, total=0, offset=0)
    assert [silent, silent] == [again(bus, "mailer"), again(bus, mailer)]
    assert [] == found


def test_the_reset_hook_comes_first(bus: EventBus, store: Store, again: Replay):
    """
    Once, before the first event.
    """
    found: list[Any] = []
    bus.subscribe(
        Placed,
        found.append,
        name="mailer",
        delivery=Durable(),
        reset=lambda: found.append("reset"),
    )
    bus.publish(Placed("a"))
    had(store)
    again(bus, "mailer")
    assert ["reset", Placed("a")] == found


@pytest.mark.parametrize("name", ["nobody", "inline"])
def test_only_what_is_durable_can_be_replayed(bus: EventBus, again: Replay, name: str):
    """
    Nothing else has a place in the log.
    """
    bus.subscribe(Placed, lambda placed: None, name="inline")
    with pytest.raises(SubscriptionNotFoundError, match=f"nothing is subscribed as '{name}'"):
        again(bus, name)


def test_what_a_replayed_handler_publishes_is_its_effect(bus: EventBus, store: Store):
    """
    It is published and stored as ever; ``is_replay`` is there for those who must not.
    """

    @bus.on(Placed, name="mailer", delivery=Durable())
    def mail(placed: Placed) -> None:
        bus.publish(Noted(placed.order))

    receipt = bus.publish(Placed("a"))
    had(store)
    bus.replay("mailer")
    effect = list(store.log.read())[-1]
    assert (receipt.id, receipt.id) == (effect.causation_id, effect.correlation_id)
