"""
Claims, fences and leases: the contract, and what is the in-memory store's own.
"""

from __future__ import annotations

import gc
import random
import sys
from functools import partial
from threading import Event, Thread, current_thread
from typing import Any, cast

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contracts.idempotency_store import (
    LEASE,
    SOURCE,
    TTL,
    IdempotencyStoreContract,
    MakeStore,
    Source,
    together,
)
from eventbus._held import Held
from eventbus.idempotency import Claim, InMemoryIdempotencyStore


class TestInMemoryIdempotencyStore(IdempotencyStoreContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return InMemoryIdempotencyStore


class Blind:
    """
    A store that can claim, and no more than that.
    """


def test_a_store_that_cannot_look_without_a_claim_keeps_its_contract() -> None:
    """
    The contract says that it leaves this one out, instead of failing.
    """
    with pytest.raises(pytest.skip.Exception, match="need not"):
        IdempotencyStoreContract().test_a_look_claims_nothing(cast(Any, Blind()))


@pytest.fixture
def store() -> InMemoryIdempotencyStore:
    return InMemoryIdempotencyStore(ttl=TTL, lease=LEASE)


def claim(store: InMemoryIdempotencyStore, key: object, now: float = 0.0) -> Any:
    return store.claim("scope", str(key), source=SOURCE, now=now)


def complete(store: InMemoryIdempotencyStore, key: object, now: float = 0.0) -> None:
    assert store.complete(claim(store, key, now), now=now)


# -- making one


def test_defaults():
    """
    Without arguments a success counts for a day and a lease runs five minutes.
    """
    store = InMemoryIdempotencyStore()
    assert (86_400.0, 300.0, 100_000) == (store.ttl, store.lease, store.capacity)
    assert 0 == len(store)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttl", 0),
        ("ttl", -1.0),
        ("ttl", float("nan")),
        ("lease", 0.0),
        ("lease", -1.0),
        ("lease", float("nan")),
        ("capacity", 0),
        ("capacity", -5),
    ],
)
def test_bad_arguments_are_refused(name: str, value: float):
    """
    No time at all and no room at all are refused, by an error that names the argument.
    """
    with pytest.raises(ValueError, match=f"'{name}' must be"):
        InMemoryIdempotencyStore(**cast(dict[str, Any], {name: value}))


def test_an_endless_ttl_is_fine():
    """
    A success may count until the process ends.
    """
    store = InMemoryIdempotencyStore(ttl=float("inf"))
    complete(store, "a")
    assert "done" == claim(store, "a", now=1e12).state


# -- the source


class Reluctant:
    """
    A source that counts how often its id was asked for.
    """

    asked = 0

    @property
    def id(self) -> str:
        self.asked += 1
        return "reluctant"


def test_the_id_is_asked_for_late(store: InMemoryIdempotencyStore):
    """
    An id is not made for a key, only for a duplicate that wants to know it.
    """
    source = Reluctant()
    store.complete(store.claim("scope", "key", source=source, now=0.0), now=0.0)
    duplicate = store.claim("scope", "key", source=SOURCE, now=1.0)
    assert 0 == source.asked
    assert "reluctant" == duplicate.event_id
    assert 1 == source.asked


def test_a_source_is_not_kept_alive(store: InMemoryIdempotencyStore):
    """
    An event can go while its key is remembered; its id is then not known any more.
    """
    source = Source("short-lived")
    complete_claim = store.claim("scope", "key", source=source, now=0.0)
    store.complete(complete_claim, now=0.0)
    duplicate = store.claim("scope", "key", source=SOURCE, now=1.0)
    assert "short-lived" == duplicate.event_id
    del source
    gc.collect()
    assert duplicate.event_id is None
    assert complete_claim.event_id is None


@attrs.frozen(weakref_slot=False)
class KnownId:
    id: str


def test_a_source_without_weak_references_is_kept(store: InMemoryIdempotencyStore):
    """
    What cannot be referred to weakly, as a bare id, is known as long as its key.
    """
    complete_claim = store.claim("scope", "key", source=KnownId("known"), now=0.0)
    store.complete(complete_claim, now=0.0)
    duplicate = store.claim("scope", "key", source=SOURCE, now=1.0)
    gc.collect()
    assert ["known", "known"] == [duplicate.event_id, duplicate.event_id]


# -- forgetting


def test_forgetting_frees_a_success(store: InMemoryIdempotencyStore):
    """
    A forgotten key is free, and nothing is left to forget.
    """
    complete(store, "a")
    complete(store, "b")
    assert store.forget("scope", "a")
    assert not store.forget("scope", "a")
    assert 1 == len(store)
    assert ["granted", "done"] == [claim(store, key).state for key in "ab"]


def test_forgetting_fences_a_holder_off(store: InMemoryIdempotencyStore):
    """
    Whoever held a forgotten key learns that it is not theirs any more; waiters are called.
    """
    calls: list[bool] = []
    held = claim(store, "a")
    store.add_waiter(claim(store, "a"), lambda: calls.append(True))
    assert store.forget("scope", "a")
    assert [True] == calls
    assert not store.renew(held, now=1.0)
    assert not store.complete(held, now=1.0)
    assert not store.release(held)
    assert 0 == len(store)


def test_clearing_forgets_everything(store: InMemoryIdempotencyStore):
    """
    After `clear` the store is as good as new.
    """
    calls: list[bool] = []
    complete(store, "a")
    held = claim(store, "b")
    store.add_waiter(claim(store, "b"), lambda: calls.append(True))
    store.clear()
    assert 0 == len(store)
    assert [True] == calls
    assert not store.complete(held, now=1.0)
    assert ["granted", "granted"] == [claim(store, key).state for key in "ab"]


# -- waiting


def test_a_waiter_that_raises_harms_nobody(
    store: InMemoryIdempotencyStore, caplog: pytest.LogCaptureFixture
):
    """
    The holder gets its answer, the other waiters their call, and the log the error.
    """
    calls: list[str] = []
    held = claim(store, "a")
    store.add_waiter(claim(store, "a"), lambda: 1 // 0)
    store.add_waiter(claim(store, "a"), lambda: calls.append("next"))
    assert store.complete(held, now=1.0)
    assert ["next"] == calls
    assert ["eventbus"] == [record.name for record in caplog.records]
    assert "ZeroDivisionError" in caplog.text


# -- room


def test_the_oldest_successes_go_first():
    """
    Beyond capacity a key is forgotten in the order of the successes, not of the claims.
    """
    store = InMemoryIdempotencyStore(capacity=3)
    claims = {key: claim(store, key) for key in "abc"}
    for key in "cab":
        store.complete(claims[key], now=1.0)
    claim(store, "d", now=2.0)
    assert 3 == len(store)
    assert ["done", "done", "pending"] == [claim(store, key, now=2.0).state for key in "abd"]
    assert "granted" == claim(store, "c", now=2.0).state


def test_pending_keys_are_never_forgotten():
    """
    However many are at work, each keeps its key; the excess goes once it may.
    """
    store = InMemoryIdempotencyStore(capacity=2)
    claims = [claim(store, key) for key in range(10)]
    assert 10 == len(store)
    assert ["pending"] * 10 == [claim(store, key).state for key in range(10)]
    for each in claims:
        assert store.complete(each, now=1.0)
    claim(store, "one more", now=2.0)
    assert 2 == len(store)
    assert "done" == claim(store, 9, now=2.0).state


def test_a_large_store_makes_room_in_steps():
    """
    A full store forgets a sixty-fourth of its capacity in one go, and never holds more.
    """
    store = InMemoryIdempotencyStore(capacity=640)
    sizes = set()
    for key in range(2_000):
        complete(store, key)
        sizes.add(len(store))
    assert 640 == max(sizes)
    assert "done" == claim(store, 2_000 - 630).state


def test_what_has_expired_is_swept_out():
    """
    Long before the capacity is reached, keys that are free again make room.
    """
    store = InMemoryIdempotencyStore(ttl=10.0, capacity=6_400)
    for key in range(5_000):
        complete(store, key, now=key / 10)
    assert len(store) <= 100 + 100 + 1


def test_crashed_holders_are_swept_out():
    """
    Keys that nobody completes or asks for again do not fill the store for ever.
    """
    store = InMemoryIdempotencyStore(lease=10.0, capacity=64)
    crashed, sizes = list[Any](), list[int]()
    for key in range(1_000):
        crashed.append(claim(store, f"crashed {key}", now=key))
        sizes.append(len(store))
    assert max(sizes) <= 64 + 1
    assert not store.complete(crashed[0], now=1_000.0)
    complete(store, "alive", now=1_000.0)
    assert "done" == claim(store, "alive", now=1_000.0).state


def test_who_waits_for_a_crashed_holder_hears_of_the_sweep():
    """
    Sweeping a crashed holder out settles it: its waiters are called.
    """
    calls: list[bool] = []
    store = InMemoryIdempotencyStore(lease=10.0, capacity=1)
    claim(store, "crashed")
    store.add_waiter(claim(store, "crashed"), lambda: calls.append(True))
    for key in range(10):
        claim(store, key, now=10.0)
    assert [True] == calls


@pytest.mark.parametrize("free", ["release", "forget", "expire"])
def test_freed_successes_leave_nothing_behind(free: str):
    """
    A key that is completed and freed over and over takes no more room each time.
    """
    store = InMemoryIdempotencyStore(ttl=1.0)
    complete(store, "other")
    sizes = set()
    for turn in range(1_000):
        held = claim(store, "a", now=float(turn))
        assert store.complete(held, now=float(turn))
        if free == "release":
            assert store.release(held)
        elif free == "forget":
            assert store.forget("scope", "a")
        sizes.add(len(store._finished))
    assert max(sizes) <= 2 * 2 + 64 + 1
    assert "granted" == claim(store, "other", now=1_001.0).state


def test_freed_successes_do_not_disturb_eviction():
    """
    What was completed and freed does not count when the oldest success is looked for.
    """
    store = InMemoryIdempotencyStore(capacity=3)
    for key in "abc":
        complete(store, key)
    store.forget("scope", "a")
    complete(store, "a")
    claim(store, "d")
    assert ["done", "done"] == [claim(store, key).state for key in "ca"]
    assert 3 == len(store)


# -- races, made to happen


class Moment(float):
    """
    A time that lets something happen between being compared and the next step.
    """

    meanwhile: Any = None

    def __lt__(self, other: float) -> bool:
        answer = float.__lt__(self, other)
        self.meanwhile()
        return answer


def test_a_success_at_the_last_instant_wins(store: InMemoryIdempotencyStore):
    """
    Who completes after the takeover has seen the lapsed lease, but before it acts, wins.
    """
    held = claim(store, "a")
    now = Moment(LEASE)
    answers: list[bool] = []
    now.meanwhile = lambda: answers.append(store.complete(held, now=LEASE))
    late = claim(store, "a", now=now)
    assert [True] == answers
    assert ("done", LEASE + TTL) == (late.state, late.expires)


def test_a_key_freed_at_the_last_instant_is_granted(store: InMemoryIdempotencyStore):
    """
    Who meets a holder that lets go before it can be looked at is granted the key.
    """
    held = claim(store, "a")

    class Releasing:
        """
        The store's lock, taken a moment too late.
        """

        def __enter__(self) -> None:
            store._lock = lock
            store.release(held)
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    lock = store._lock
    store._lock = cast(Any, Releasing())
    assert "granted" == claim(store, "a").state


class Watched(Held):
    """
    A held key that lets its holder complete just after it was seen to be pending.
    """

    __slots__ = ()

    holder: Thread
    looked = Event()

    def __getattribute__(self, name: str) -> Any:
        answer = super().__getattribute__(name)
        if name == "waiters" and current_thread() is self.holder:
            self.looked.set()
        if name == "open" and not self.looked.is_set():
            self.holder.start()
            assert self.looked.wait(30)
        return answer


def test_a_waiter_that_comes_at_the_last_instant_is_called(store: InMemoryIdempotencyStore):
    """
    Who was promised a call, while the holder was completing, gets it.
    """
    calls: list[bool] = []
    held = claim(store, "a")
    waiting = claim(store, "a")
    held.__class__ = Watched
    Watched.holder = Thread(target=partial(store.complete, held, now=1.0), daemon=True)
    assert store.add_waiter(waiting, partial(calls.append, True))
    Watched.holder.join(30)
    assert [True] == calls


def test_threads_that_do_everything_at_once():
    """
    Under claims, completions, releases and evictions by many, a key has one holder.
    """
    store = InMemoryIdempotencyStore(capacity=4)
    holders = [[0] for _ in range(6)]
    overlaps: list[int] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        together(
            *(partial(hammer, store, random.Random(seed), holders, overlaps) for seed in "abcd")
        )
    finally:
        sys.setswitchinterval(before)
    assert [] == overlaps
    assert len(store) <= 6


def hammer(
    store: InMemoryIdempotencyStore,
    dice: random.Random,
    holders: list[list[int]],
    overlaps: list[int],
) -> None:
    for _ in range(1_500):
        key = dice.randrange(len(holders))
        held = claim(store, key)
        if held.state != "granted":
            continue
        inside = holders[key].pop()  # IndexError: another is inside
        if inside:
            overlaps.append(key)
        holders[key].append(inside)
        settle = store.release(held) if dice.random() < 0.5 else store.complete(held, now=0.0)
        if not settle:
            overlaps.append(key)


# -- against a naive reference


@attrs.define
class Record:
    """
    What the reference knows of a key: whose it is, whether done, until when.
    """

    owner: int
    is_done: bool
    ends: float


class StoreMachine(RuleBasedStateMachine):
    """
    Several owners claim, renew, complete and release while time passes.
    """

    ttl, lease = 5.0, 3.0
    names = st.sampled_from([("a", "x"), ("a", ""), ("b", "x")])
    picks = st.integers(min_value=0, max_value=10_000)

    def __init__(self) -> None:
        super().__init__()
        self.store = InMemoryIdempotencyStore(ttl=self.ttl, lease=self.lease)
        self.now = 0.0
        self.records: dict[tuple[str, str], Record] = {}
        self.granted: list[tuple[tuple[str, str], Any]] = []
        self.refused: list[Any] = []
        self.waiting: list[tuple[int, list[int]]] = []
        self.settled: set[int] = set()

    def current(self, owner: int) -> Record | None:
        record = self.records.get(self.granted[owner][0])
        return record if record is not None and record.owner == owner else None

    @rule(name=names)
    def claim(self, name: tuple[str, str]) -> None:
        answer: Claim = self.store.claim(*name, source=SOURCE, now=self.now)
        record = self.records.get(name)
        if record is not None and self.now < record.ends:
            assert ("done" if record.is_done else "pending") == answer.state
            assert record.ends == answer.expires
            self.refused.append(answer)
            self.wait(answer, record)
            return
        assert "granted" == answer.state
        assert self.now + self.lease == answer.expires
        if record is not None:
            self.settled.add(record.owner)
        self.records[name] = Record(len(self.granted), False, answer.expires)
        self.granted.append((name, answer))

    def wait(self, answer: Claim, record: Record) -> None:
        calls: list[int] = []
        promised = self.store.add_waiter(answer, lambda: calls.append(1))
        assert promised is not record.is_done
        if promised:
            self.waiting.append((record.owner, calls))

    @precondition(lambda self: self.granted)
    @rule(pick=picks)
    def renew(self, pick: int) -> None:
        owner = pick % len(self.granted)
        record = self.current(owner)
        expected = record is not None and not record.is_done
        assert expected is self.store.renew(self.granted[owner][1], now=self.now)
        if record is not None and expected:
            record.ends = self.now + self.lease

    @precondition(lambda self: self.granted)
    @rule(pick=picks)
    def complete(self, pick: int) -> None:
        owner = pick % len(self.granted)
        record = self.current(owner)
        expected = record is not None
        assert expected is self.store.complete(self.granted[owner][1], now=self.now)
        if record is not None:
            record.is_done, record.ends = True, self.now + self.ttl
            self.settled.add(owner)

    @precondition(lambda self: self.granted)
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        owner = pick % len(self.granted)
        expected = self.current(owner) is not None
        assert expected is self.store.release(self.granted[owner][1])
        if expected:
            del self.records[self.granted[owner][0]]
            self.settled.add(owner)

    @precondition(lambda self: self.refused)
    @rule(pick=picks)
    def misuse(self, pick: int) -> None:
        refused = self.refused[pick % len(self.refused)]
        assert not self.store.renew(refused, now=self.now)
        assert not self.store.complete(refused, now=self.now)
        assert not self.store.release(refused)

    @rule(name=names)
    def forget(self, name: tuple[str, str]) -> None:
        record = self.records.pop(name, None)
        assert (record is not None) is self.store.forget(*name)
        if record is not None:
            self.settled.add(record.owner)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 3.0, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def waiters_are_called_once_settled(self) -> None:
        for owner, calls in self.waiting:
            assert len(calls) == (owner in self.settled)

    @invariant()
    def keeps_what_the_reference_keeps(self) -> None:
        assert len(self.records) == len(self.store)


TestStoreAgainstReference = StoreMachine.TestCase
TestStoreAgainstReference.settings = settings(max_examples=60, stateful_step_count=40)
