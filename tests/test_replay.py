"""
Replay: which events come again, in which order, and what is left alone.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from eventbus import (
    DecodeError,
    Envelope,
    LeaseLostError,
    SubscriptionBusyError,
    SubscriptionNotFoundError,
    UnknownEventError,
    event,
)
from eventbus.codec import JSONCodec, upcast
from eventbus.event_log import Record
from eventbus.kept_letters import KeptLetter
from eventbus.memory import MemoryStore
from eventbus.progress import Lease, Retry, Step
from eventbus.replay import (
    Keeper,
    Replayed,
    areplay,
    areplay_subscription,
    replay,
    replay_subscription,
)
from eventbus.sqlite import SQLiteStore
from eventbus.store import Store
from eventbus.testing import VirtualClock

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
NAIVE = NOON.replace(tzinfo=None)
WRITER = JSONCodec()


class Fact:
    """
    What the events here have in common.
    """


@event(name="shop.placed", key="order")
class Placed(Fact):
    order: str


@event(name="shop.paid", key="order")
class Paid(Fact):
    order: str


@event(name="shop.noted")
class Noted:
    text: str


@event(name="shop.shipped", version=2)
class Shipped:
    order: str


@upcast(Shipped, from_version=1)
def with_its_order(data: dict[str, Any]) -> dict[str, Any]:
    return {"order": data["id"]}


def stored(happened: Any, minute: int = 0, **facts: Any) -> Record:
    name, version, payload = WRITER.encode(happened)
    plain: dict[str, Any] = {
        "name": name,
        "version": version,
        "payload": payload,
        "id": f"{name}-{minute}-{getattr(happened, 'order', '')}",
        "key": getattr(happened, "order", None),
        "time": NOON + timedelta(minutes=minute),
        "correlation_id": "story",
        "causation_id": "cause",
        "headers": {"tenant": "a"},
    }
    return Record(**{**plain, **facts})


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path):
    opened = MemoryStore() if request.param == "memory" else SQLiteStore(tmp_path / "shop.db")
    yield opened
    opened.close()


@pytest.fixture
def codec() -> JSONCodec:
    codec = JSONCodec()
    codec.know(Placed, Paid, Noted)
    return codec


@pytest.fixture
def log(store: Store) -> Store:
    """
    A store in which five things have happened.
    """
    happened = [Placed("a"), Placed("b"), Noted("n"), Paid("a"), Paid("b")]
    store.log.append([stored(each, minute) for minute, each in enumerate(happened)])
    return store


Verb = Callable[..., Replayed]


def _call(verb: Callable[..., Awaitable[Replayed]]) -> Verb:
    def call(store: Store, codec: Any, deliver: Any, *given: Any, **options: Any) -> Replayed:
        async def adeliver(*delivered: Any) -> None:
            await asyncio.sleep(0)
            deliver(*delivered)

        return asyncio.run(verb(store, codec, adeliver, *given, **options))  # type: ignore[arg-type]

    return call


@pytest.fixture(params=["sync", "async"])
def again(request: pytest.FixtureRequest) -> Verb:
    return replay if request.param == "sync" else _call(areplay)


@pytest.fixture(params=["sync", "async"])
def again_for(request: pytest.FixtureRequest) -> Verb:
    return replay_subscription if request.param == "sync" else _call(areplay_subscription)


# -- what comes again ------------------------------------------------------------------------


def test_a_replay_hands_over_what_is_logged(log: Store, codec: JSONCodec, again: Verb):
    """
    The events come in the order of their offsets, each once.
    """
    found: list[Envelope[Any]] = []
    done = again(log, codec, found.append)
    assert [Placed("a"), Placed("b"), Noted("n"), Paid("a"), Paid("b")] == [
        each.event for each in found
    ]
    assert [1, 2, 3, 4, 5] == [each.offset for each in found]
    assert Replayed(done=5, total=5, offset=5, delivered=5) == done


def test_an_envelope_comes_back_whole(log: Store, codec: JSONCodec):
    """
    All that was known of the event is known again, and that this is a replay.
    """
    found: list[Envelope[Any]] = []
    replay(log, codec, found.append, until=1)
    assert [
        Envelope(
            event=Placed("a"),
            id="shop.placed-0-a",
            time=NOON,
            name="shop.placed",
            key="a",
            correlation_id="story",
            causation_id="cause",
            headers={"tenant": "a"},
            offset=1,
            is_replay=True,
        )
    ] == found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"from_": 2}, [2, 3, 4, 5]),
        ({"from_": 0}, [1, 2, 3, 4, 5]),
        ({"from_": 9}, []),
        ({"until": 3}, [1, 2, 3]),
        ({"until": 99}, [1, 2, 3, 4, 5]),
        ({"from_": 4, "until": 2}, []),
        ({"from_": NOON + timedelta(minutes=2)}, [3, 4, 5]),
        ({"from_": NOON + timedelta(minutes=2, seconds=1)}, [4, 5]),
        ({"until": NOON + timedelta(minutes=2)}, [1, 2]),
        ({"from_": NOON + timedelta(hours=1)}, []),
        ({"key": "a"}, [1, 4]),
        ({"names": ["shop.paid", "shop.noted"]}, [3, 4, 5]),
        ({"names": []}, []),
        ({"event_types": (Paid,)}, [4, 5]),
        ({"event_types": (Fact,), "from_": 2}, [2, 4, 5]),
    ],
)
def test_a_part_of_the_log_can_be_asked_for(
    log: Store, codec: JSONCodec, options: Any, expected: list[int]
):
    """
    By offset or instant, first one included; by name, key or class.
    """
    found: list[int | None] = []
    replay(log, codec, lambda envelope: found.append(envelope.offset), **options)
    assert expected == found


def test_what_lies_beyond_every_log_is_nothing(log: Store, codec: JSONCodec, again: Verb):
    """
    However large the offset is: nothing is delivered, and nothing is an error.
    """
    found = list[Any]()
    assert 0 == again(log, codec, found.append, from_=10**30).delivered
    assert 5 == again(log, codec, found.append, until=10**30).delivered
    assert 5 == len(found)


def test_a_replay_ends_where_the_log_ended_when_it_began(log: Store, codec: JSONCodec, again: Verb):
    """
    What a handler publishes meanwhile is not replayed: the replay has an end.
    """
    found: list[int | None] = []

    def deliver(envelope: Envelope[Any]) -> None:
        found.append(envelope.offset)
        log.log.append([stored(Noted("new"), 100 + len(found))])

    again(log, codec, deliver)
    assert [1, 2, 3, 4, 5] == found


def test_a_reset_comes_once_and_first(log: Store, codec: JSONCodec, again: Verb):
    """
    The hook that empties what is built anew is called before the first event.
    """
    told: list[Any] = []
    again(
        log,
        codec,
        lambda envelope: told.append(envelope.offset),
        reset=lambda: told.append("reset"),
        from_=4,
    )
    assert ["reset", 4, 5] == told


def test_a_reset_comes_also_where_nothing_follows(store: Store, codec: JSONCodec):
    """
    What is built from no event is empty.
    """
    told: list[str] = []
    done = replay(store, codec, print, reset=lambda: told.append("reset"))
    assert ["reset"] == told
    assert Replayed(done=0, total=0, offset=0) == done


def test_what_is_raised_ends_the_replay(log: Store, codec: JSONCodec, again: Verb):
    """
    The error reaches the caller, and says at which offset it was.
    """

    def deliver(envelope: Envelope[Any]) -> None:
        if envelope.offset == 3:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        again(log, codec, deliver)
    assert [
        "while replaying shop.noted at offset 3 of 1 to 5; nothing after it was replayed"
    ] == caught.value.__notes__


def test_an_older_version_comes_as_what_it_was_brought_up_to(store: Store):
    """
    The envelope has the version of the event that is in it, as when it is delivered.
    """
    store.log.append([stored(Shipped("a"), version=1, payload=b'{"id": "a"}')])
    found = list[Any]()
    replay(store, JSONCodec(), lambda each: found.append((each.event, each.version)))
    assert [(Shipped("a"), 2)] == found


# -- what cannot be meant --------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, set, frozenset])
def test_classes_come_in_any_collection(
    log: Store, codec: JSONCodec, kind: Callable[..., Any], again: Verb
):
    """
    A list of them is as good as a tuple.
    """
    found: list[int | None] = []
    options: Any = {"event_types": kind([Paid])}
    done = again(log, codec, lambda envelope: found.append(envelope.offset), **options)
    assert ([4, 5], 0) == (found, done.unreadable)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"unitl": 2}, TypeError, "takes no unitl; it takes from_, until, names, key, event_types"),
        ({"subscription": "mailer"}, TypeError, "takes no subscription; it takes"),
        ({"event_types": Paid}, TypeError, "event_types is a tuple or a list of classes, not <cl"),
        ({"event_types": ["shop.paid"]}, TypeError, r"of classes, not \['shop.paid'\]"),
        ({"names": "shop.paid"}, TypeError, "names is a tuple or a list of names, not 'shop.paid'"),
        ({"names": [Paid]}, TypeError, "of names, not"),
        ({"key": 5}, TypeError, "key is text, as that of an envelope is, not 5"),
        ({"from_": "1"}, TypeError, "from_ is an offset or a datetime, not '1'"),
        ({"from_": 1.5}, TypeError, "from_ is an offset or a datetime, not 1.5"),
        ({"from_": None}, TypeError, "from_ is an offset or a datetime, not None"),
        ({"from_": NOON.date()}, TypeError, r"not datetime.date\(2024, 2, 29\)"),
        ({"from_": NAIVE}, ValueError, "has no time zone"),
        ({"until": True}, TypeError, "until is an offset or a datetime, not True"),
        ({"until": ""}, TypeError, "until is an offset or a datetime, not ''"),
        ({"until": NAIVE}, ValueError, "has no time zone"),
        ({"reset": asyncio.sleep}, TypeError, "reset is a plain callable, not <function sleep"),
        ({"progress": "bar"}, TypeError, "progress is a plain callable, not 'bar'"),
        (
            {"unreadable": "ignore"},
            ValueError,
            "unreadable is one of 'quarantine', 'skip', 'raise'",
        ),
    ],
    ids=lambda given: "" if not isinstance(given, dict) else next(iter(given)),
)
def test_options_that_cannot_be_meant_are_refused(
    log: Store, codec: JSONCodec, options: Any, error: type[Exception], said: str
):
    """
    Before anything is called, and before the lease of a subscription is asked for.
    """
    consumed(log)
    found = list[Any]()
    given = {"reset": lambda: found.append("reset"), **options}
    for again in (replay, _call(areplay)):
        with pytest.raises(error, match=said):
            again(log, codec, found.append, **given)
    for again in (replay_subscription, _call(areplay_subscription)):
        with pytest.raises(error, match=said):
            again(log, codec, lambda *_: found.append(0), "mailer", **given)
    assert ([], 0) == (found, log.letters.count())


def test_what_has_to_be_awaited_is_for_the_twin(log: Store, codec: JSONCodec):
    """
    An async callable is not taken for one that has handled its event.
    """
    found = list[Any]()

    class Later:
        def __await__(self) -> Any:
            yield

    async def deliver(*given: Any) -> None:
        found.append(given)

    at_rest(log)
    for given in (deliver, lambda _: Later()):
        with pytest.raises(TypeError, match=r"does not await .* Use await areplay\(\.\.\.\)"):
            replay(log, codec, given)
    with pytest.raises(TypeError, match="does not await"):
        replay_subscription(log, codec, deliver, "mailer")
    assert [] == found


# -- progress --------------------------------------------------------------------------------


def test_progress_is_told_from_the_beginning_to_the_end(log: Store, codec: JSONCodec):
    """
    A short replay tells of each event, the last time that all is done.
    """
    told: list[Replayed] = []
    replay(log, codec, lambda _: None, progress=told.append, from_=2, names=["shop.paid"])
    assert [(0, 1, 0), (3, 4, 1), (4, 5, 2)] == [
        (each.done, each.offset, each.delivered) for each in told
    ]
    assert {4} == {each.total for each in told}


def test_progress_is_told_about_a_hundred_times(store: Store, codec: JSONCodec):
    """
    A long replay is not slowed down by telling of each event.
    """
    store.log.append([stored(Noted(str(n)), n) for n in range(1_000)])
    told: list[Replayed] = []
    replay(store, codec, lambda _: None, progress=told.append)
    assert 101 == len(told)
    assert told == sorted(told, key=lambda each: each.done)


# -- what cannot be read ---------------------------------------------------------------------


@pytest.fixture
def broken(log: Store) -> Store:
    """
    The same store, and behind it an event nobody knows, a torn one, and a good one.
    """
    log.log.append(
        [
            stored(Noted("x"), 5, name="shop.nobody_declares", id="gone"),
            stored(Paid("a"), 6, payload=b'{"ord', id="torn"),
            stored(Noted("last"), 7),
        ]
    )
    return log


def test_what_cannot_be_read_is_passed_over_and_counted(
    broken: Store, codec: JSONCodec, again: Verb
):
    """
    A callable gets what comes after it, and the store is only read.
    """
    found: list[int | None] = []
    done = again(broken, codec, lambda envelope: found.append(envelope.offset), from_=5)
    assert [5, 8] == found
    assert (2, 2, 0) == (done.delivered, done.unreadable, broken.letters.count())


def test_a_read_only_store_is_replayed(tmp_path: Path, codec: JSONCodec, again: Verb):
    """
    Also where events of somebody else's are among those that are asked for.
    """
    with SQLiteStore(tmp_path / "shop.db") as store:
        unknown = stored(Noted("x"), 1, name="shop.nobody_declares")
        store.log.append([stored(Paid("a")), unknown, stored(Paid("b"), 2)])
    found = list[Any]()
    with SQLiteStore(tmp_path / "shop.db", read_only=True) as store:
        deliver = lambda envelope: found.append(envelope.event)  # noqa: E731 - short
        done = again(store, codec, deliver, event_types=(Paid,))
    assert ([Paid("a"), Paid("b")], 1) == (found, done.unreadable)


def test_a_callable_owns_no_dead_letters(broken: Store, codec: JSONCodec, again: Verb):
    """
    Nobody could ever redrive them; what can be asked for instead is said.
    """
    with pytest.raises(ValueError, match="'skip' counts what cannot be read, 'raise' ends there"):
        again(broken, codec, print, unreadable="quarantine")
    assert 0 == broken.letters.count()


@pytest.fixture
def mailer(broken: Store) -> Store:
    """
    The same store, and a subscription that was told of all of it.
    """
    at_rest(broken, 8)
    return broken


def test_what_cannot_be_read_is_set_aside(mailer: Store, codec: JSONCodec, again_for: Verb):
    """
    A subscription keeps it as a dead letter that says why, and gets what comes after it.
    """
    clock = VirtualClock()
    found: list[int | None] = []
    deliver = lambda envelope, _: found.append(envelope.offset)  # noqa: E731 - short
    done = again_for(mailer, codec, deliver, "mailer", from_=5, clock=clock)
    assert [5, 8] == found
    assert (2, 2) == (done.delivered, done.unreadable)
    first, second = mailer.letters.query()
    assert ("gone", "torn") == (first.record.id, second.record.id)
    assert ("unreadable", "eventbus.errors._codec.UnknownEventError") == (
        first.reason,
        first.error_type,
    )
    (failure,) = json.loads(second.failures)
    assert 0 == failure["number"]
    assert "'shop.paid' version 1 cannot be read" in failure["message"]
    assert clock.time() == datetime.fromisoformat(failure["time"]).timestamp()


def test_what_is_set_aside_already_is_not_set_aside_again(
    mailer: Store, codec: JSONCodec, again_for: Verb
):
    """
    However often it is replayed, there is one letter for each event.
    """
    found = [again_for(mailer, codec, lambda *_: None, "mailer") for _ in range(2)]
    assert [(2, 0), (0, 2)] == [(each.unreadable, each.dead_letters) for each in found]
    assert 2 == mailer.letters.count()


def test_what_cannot_be_read_can_be_skipped(broken: Store, codec: JSONCodec):
    """
    Then nothing is kept of it; it is counted.
    """
    done = replay(broken, codec, lambda _: None, unreadable="skip")
    assert (6, 2, 0) == (done.delivered, done.unreadable, broken.letters.count())


@pytest.mark.parametrize(("from_", "error"), [(6, UnknownEventError), (7, DecodeError)])
def test_what_cannot_be_read_can_end_the_replay(
    broken: Store, codec: JSONCodec, from_: int, error: type[Exception]
):
    """
    Then its error reaches the caller.
    """
    with pytest.raises(error):
        replay(broken, codec, lambda _: None, from_=from_, unreadable="raise")


def test_a_class_that_is_not_asked_for_need_not_be_readable(broken: Store, codec: JSONCodec):
    """
    The payload of an event of another class is not looked at.
    """
    done = replay(broken, codec, lambda _: None, event_types=(Noted,), from_=7)
    assert (1, 0) == (done.delivered, done.unreadable)


def test_a_declared_class_is_known_where_nobody_told_the_codec(log: Store):
    """
    In another process, a class that is declared is found by its name, wanted or not.
    """
    found: list[Any] = []
    deliver = lambda envelope: found.append(envelope.event)  # noqa: E731 - short
    done = replay(log, JSONCodec(), deliver, event_types=(Fact,), from_=3)
    assert ([Paid("a"), Paid("b")], 0) == (found, done.unreadable)
    done = replay(log, JSONCodec(), deliver, event_types=(Noted,), from_=4)
    assert (0, 0) == (done.delivered, done.unreadable)


def test_a_damaged_record_is_not_delivered(
    log: Store, codec: JSONCodec, monkeypatch: pytest.MonkeyPatch
):
    """
    Bytes that are not those that were written are set aside, whatever they decode to.
    """
    at_rest(log)
    record = stored(Paid("a"), 9, is_intact=False, offset=5)
    monkeypatch.setattr(type(log.log), "read", lambda *_, **__: iter([record]))
    done = replay_subscription(log, codec, print, "mailer")
    assert (0, 1) == (done.delivered, done.unreadable)
    (letter,) = log.letters.query()
    assert "eventbus.errors._store.StoreCorruptError" == letter.error_type


# -- a subscription --------------------------------------------------------------------------


def consumed(store: Store, taken: int = 5, **step: Any) -> Lease:
    """
    Let a subscription have taken the five events, and be at rest.
    """
    store.progress.open("mailer", start="origin")
    lease = store.progress.acquire("mailer", owner="app", ttl=30.0, now=0.0)
    assert lease is not None
    store.progress.advance(lease, Step(taken=taken, **step))
    return lease


def at_rest(store: Store, taken: int = 5, **step: Any) -> None:
    """
    Do the same, and let nobody consume it.
    """
    store.progress.release(consumed(store, taken, **step))


def test_a_subscription_gets_again_what_it_has_finished(
    log: Store, codec: JSONCodec, again_for: Verb
):
    """
    What it has not taken yet is left to the delivery that follows: it comes once.
    """
    at_rest(log)
    log.log.append([stored(Noted("not taken"), 50)])
    found: list[int | None] = []
    done = again_for(log, codec, lambda envelope, _: found.append(envelope.offset), "mailer")
    assert [1, 2, 3, 4, 5] == found
    assert ("mailer", 5) == (done.subscription, done.delivered)


def test_a_replay_moves_no_position(log: Store, codec: JSONCodec, again_for: Verb):
    """
    Afterwards the subscription goes on where it was, with what it had pending.
    """
    at_rest(log)
    before = log.progress.position("mailer")
    again_for(log, codec, lambda *_: None, "mailer", from_=3)
    assert before == log.progress.position("mailer")


def test_what_waits_for_its_retry_is_not_replayed(log: Store, codec: JSONCodec, again_for: Verb):
    """
    It is not finished: it will be delivered, as no replay, when it is due.
    """
    lease = consumed(log, waiting=[3], begin=[4])
    log.progress.advance(lease, Step(retry=[Retry(offset=4, due=99.0)]))
    log.progress.release(lease)
    found: list[int | None] = []
    again_for(log, codec, lambda envelope, _: found.append(envelope.offset), "mailer")
    assert [1, 2, 5] == found
    assert [3, 4] == [each.offset for each in log.progress.pending("mailer")]


def test_a_running_subscription_is_not_replayed(log: Store, codec: JSONCodec, again_for: Verb):
    """
    While somebody consumes it, a replay is refused before its reset hook.
    """
    consumed(log)
    clock = VirtualClock(start=0.0)
    told: list[str] = []
    with pytest.raises(SubscriptionBusyError, match="is being consumed by app") as caught:
        again_for(log, codec, print, "mailer", clock=clock, reset=lambda: told.append("reset"))
    assert ("mailer", "app") == (caught.value.subscription, caught.value.owner)
    assert [] == told


def test_nobody_consumes_what_is_being_replayed(log: Store, codec: JSONCodec, again_for: Verb):
    """
    The lease is held during the replay and given back after it, also when it fails.
    """
    at_rest(log)
    clock = VirtualClock()

    def deliver(*_: object) -> None:
        assert log.progress.acquire("mailer", owner="app", ttl=1.0, now=clock.time()) is None
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        again_for(log, codec, deliver, "mailer", clock=clock)
    assert log.progress.acquire("mailer", owner="app", ttl=1.0, now=clock.time()) is not None


def test_a_process_that_is_gone_is_not_waited_for(log: Store, codec: JSONCodec, again_for: Verb):
    """
    Its lease would run for long; that it was killed is known at once.
    """
    child = "from eventbus._owner import owner; print(owner())"
    gone = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, timeout=60, check=True
    )
    at_rest(log)
    log.progress.acquire("mailer", owner=gone.stdout.strip(), ttl=9e9, now=0.0)
    assert 5 == again_for(log, codec, lambda *_: None, "mailer").delivered


def test_a_lease_that_has_run_out_is_taken_over_from_who_does_not_renew_it(
    log: Store, codec: JSONCodec, again_for: Verb
):
    """
    It is watched for as long as a holder who is well would need, and not for longer.
    """
    consumed(log)  # by somebody of whom nothing is known, until the second 30
    clock = VirtualClock(start=1_000.0)
    began = clock.monotonic()
    done = again_for(log, codec, lambda *_: None, "mailer", clock=clock)
    assert (5, True) == (done.delivered, 20.0 < clock.monotonic() - began < 25.0)


def test_a_holder_who_is_well_is_left_alone_when_the_clock_is_set_forward(
    log: Store, codec: JSONCodec, again_for: Verb
):
    """
    By the other clock its lease has run out; it renews it while it is watched.
    """
    lease = consumed(log)

    class Leaping(VirtualClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            self.renew()

        async def asleep(self, seconds: float) -> None:
            await super().asleep(seconds)
            self.renew()

        def renew(self) -> None:
            if self.monotonic() > 10.0:
                log.progress.renew(lease, ttl=30.0, now=self.time())

    clock = Leaping(start=3_600.0)
    with pytest.raises(SubscriptionBusyError, match="is being consumed by app"):
        again_for(log, codec, print, "mailer", clock=clock)


def test_the_lease_is_renewed_however_the_clock_is_set_back(log: Store, codec: JSONCodec):
    """
    By that clock it would last for hours yet, and nobody would know who holds it.
    """
    at_rest(log)
    renewed = list[float]()

    class Back(VirtualClock):
        def time(self) -> float:
            return super().time() - 60.0 * self.monotonic()

    clock, renew = Back(start=9e6), log.progress.renew

    def noting(lease: Lease, *, ttl: float, now: float) -> Lease:
        renewed.append(clock.monotonic())
        return renew(lease, ttl=ttl, now=now)

    class Noting:
        def __getattr__(self, name: str) -> Any:
            return noting if name == "renew" else getattr(log.progress, name)

    progress: Any = Noting()
    with Keeper.of(progress, "mailer", clock=clock) as keeper:
        for _ in range(6):
            clock.advance(10.0)
            keeper.renew()
    assert [20.0, 40.0, 60.0] == renewed


def test_the_lease_is_renewed_during_a_long_replay(log: Store, codec: JSONCodec):
    """
    Many events take longer than one lease; nobody takes over between them.
    """
    at_rest(log)
    clock = VirtualClock()

    def deliver(*_: object) -> None:
        clock.advance(50.0)
        assert log.progress.acquire("mailer", owner="app", ttl=1.0, now=clock.time()) is None

    done = replay_subscription(log, codec, deliver, "mailer", clock=clock)
    assert 5 == done.delivered


def test_a_replay_that_has_lost_its_lease_stops(log: Store, codec: JSONCodec):
    """
    Who took over consumes the subscription alone.
    """
    at_rest(log)
    clock = VirtualClock()
    found: list[int | None] = []

    def deliver(envelope: Envelope[Any], lease: Lease) -> None:
        found.append(envelope.offset)
        clock.advance(61.0)
        log.progress.acquire("mailer", owner="app", ttl=99.0, now=clock.time())

    with pytest.raises(LeaseLostError):
        replay_subscription(log, codec, deliver, "mailer", clock=clock)
    assert [1] == found


def test_a_subscription_nobody_opened_cannot_be_replayed(
    log: Store, codec: JSONCodec, again_for: Verb
):
    """
    A misspelled name is an error, not an empty replay.
    """
    with pytest.raises(SubscriptionNotFoundError, match="'mialer'"):
        again_for(log, codec, print, "mialer")


def test_what_was_given_up_on_is_left_out(log: Store, codec: JSONCodec, again_for: Verb):
    """
    It was not handled: it comes by the redrive of its letter, and nothing comes twice.
    """
    lease = consumed(log, waiting=[3])
    (record,) = log.log.read(after=2, until=3)
    letter = KeptLetter(
        id="letter", subscription="mailer", record=record, first_failure=NOON, last_failure=NOON
    )
    (others,) = log.log.read(after=3, until=4)
    facts: Any = {"first_failure": NOON, "last_failure": NOON}
    log.letters.add(KeptLetter(id="other", subscription="audit", record=others, **facts))
    log.progress.advance(lease, Step(dead=[letter]))
    log.progress.release(lease)
    found: list[int | None] = []

    def again() -> Replayed:
        return again_for(log, codec, lambda envelope, _: found.append(envelope.offset), "mailer")

    done = again()
    assert [1, 2, 4, 5] == found
    assert (4, 1) == (done.delivered, done.dead_letters)
    log.letters.remove("letter")
    assert (5, 0) == ((done := again()).delivered, done.dead_letters)
