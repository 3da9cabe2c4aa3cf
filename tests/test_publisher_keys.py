"""
The keys of publishers: since when they count as used, and when they are free again.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from eventbus import (
    ConcurrencyError,
    Durable,
    EventBus,
    InMemoryIdempotencyStore,
    Receipt,
    StoreError,
    StoreFullError,
    StoreLockedError,
    event,
    fixed,
)
from eventbus.idempotency import Claim, HasId
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.testing import TestBus
from queue_by_hand import until

both = pytest.mark.parametrize("is_async", [False, True], ids=["publish", "apublish"])

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


@event(key="key")
class Placed:
    number: int
    key: str = "K"


@event
class Paid:
    number: int


class Blind:
    """
    A store of keys that has only what the protocol asks for.
    """

    def __init__(self) -> None:
        self._keys = InMemoryIdempotencyStore()
        self.used = list[str]()

    def claim(self, scope: str, key: str, *, source: HasId, now: float) -> Claim:
        return self._keys.claim(scope, key, source=source, now=now)

    def renew(self, claim: Any, *, now: float) -> bool:
        return self._keys.renew(claim, now=now)

    def complete(self, claim: Any, *, now: float) -> bool:
        self.used.append(claim.name[1])
        return self._keys.complete(claim, now=now)

    def release(self, claim: Any) -> bool:
        return self._keys.release(claim)

    def add_waiter(self, claim: Any, callback: Callable[[], object]) -> bool | None:
        return self._keys.add_waiter(claim, callback)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "shop.db"
    with closing(sqlite3.connect(found)) as connection:
        connection.execute("CREATE TABLE done (number INTEGER)")
        connection.commit()
    return found


@pytest.fixture(params=[False, True], ids=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], TestBus]]:
    """
    What makes a bus of another process on the same store.
    """
    shared, made = MemoryStore(), list[TestBus]()

    def another() -> TestBus:
        store = SQLiteStore(tmp_path / "keys.db") if request.param else shared
        made.append(TestBus(store=store, idempotency=store.idempotency, errors="collect"))
        return made[-1]

    yield another
    for bus in made:
        bus.close()


def publish(bus: EventBus, happened: object, *, is_async: bool, **options: Any) -> Receipt:
    if is_async:
        return asyncio.run(bus.apublish(happened, **options))
    return bus.publish(happened, **options)


def end(bus: TestBus, block: Any, *, is_async: bool) -> None:
    """
    End a block well, in either colour.
    """

    async def aend() -> None:
        await block.__aexit__(None)

    asyncio.run(aend()) if is_async else block.__exit__(None)


# -- what waits --------------------------------------------------------------------------------


@both
def test_what_waits_for_the_end_of_a_block_has_used_no_key(
    make: Callable[[], TestBus], is_async: bool
) -> None:
    """
    A process that dies in the block has published nothing: the repetition is accepted.
    """
    dying, other = make(), make()
    block = dying.deferred()
    with block:
        dead = publish(dying, Placed(1), is_async=is_async, idempotency_key="click")
        again = publish(other, Placed(1), is_async=is_async, idempotency_key="click")
        assert (True, False) == (dead.is_scheduled, again.duplicate)
    # Had it not died, it would be the duplicate now.
    assert (True, again.id, 0) == (dead.duplicate, dead.duplicate_of, dead.delivered)
    assert ["click"] == [each.key for each in dying.duplicates]
    assert dying._store is not None
    assert [again.id] == [each.id for each in dying._store.log.read()]


@both
def test_what_is_due_later_has_used_no_key(make: Callable[[], TestBus], is_async: bool) -> None:
    """
    A process that dies before has published nothing; of several, the first one due counts.
    """
    dying, other = make(), make()
    dead = publish(dying, Placed(1), is_async=is_async, idempotency_key="click", delay=60)
    again = publish(other, Placed(1), is_async=is_async, idempotency_key="click")
    assert (True, False) == (dead.is_scheduled, again.duplicate)
    dying.clock.advance(60)
    assert (False, True, again.id) == (dead.is_scheduled, dead.duplicate, dead.duplicate_of)
    assert dying._store is not None
    assert [again.id] == [each.id for each in dying._store.log.read()]


def test_what_is_due_later_in_a_loop_is_found_out_as_well() -> None:
    """
    There a task publishes it, on a bus whose store knows only how to claim.
    """
    keys = Blind()

    async def main() -> tuple[Receipt, Receipt]:
        other = EventBus(idempotency=keys)
        async with EventBus(idempotency=keys) as bus:
            late = await bus.apublish(Placed(1), delay=0.01, idempotency_key="click")
            first = await other.apublish(Placed(1), idempotency_key="click")
            async with asyncio.timeout(PATIENCE):
                while not late.finished:  # noqa: ASYNC110 - nothing tells of a duplicate
                    await asyncio.sleep(0)
        return first, late

    first, late = asyncio.run(main())
    assert (True, first.id) == (late.duplicate, late.duplicate_of)
    assert ["click"] == keys.used


@both
@pytest.mark.parametrize("is_blind", [False, True])
def test_a_key_used_before_is_known_at_once_where_the_store_can_tell(
    is_blind: bool, is_async: bool
) -> None:
    """
    Else it is found out at the end of the block.
    """
    bus = TestBus(idempotency=Blind() if is_blind else InMemoryIdempotencyStore())
    first = publish(bus, Placed(1), is_async=is_async, idempotency_key="click")
    with bus.deferred():
        again = publish(bus, Placed(1), is_async=is_async, idempotency_key="click")
        assert (not is_blind, is_blind) == (again.duplicate, again.is_scheduled)
    assert (True, first.id, False) == (again.duplicate, again.duplicate_of, again.is_scheduled)


@both
def test_a_key_is_known_to_its_own_block_at_once(is_async: bool) -> None:
    """
    And to the blocks in it: what shares its fate is its duplicate.
    """
    bus = TestBus()
    with bus.deferred():
        first = publish(bus, Placed(1), is_async=is_async, idempotency_key="click")
        with bus.deferred():
            again = publish(bus, Placed(1), is_async=is_async, idempotency_key="click")
        late = publish(bus, Placed(1), is_async=is_async, idempotency_key="click", delay=5)
    assert [(True, first.id)] * 2 == [(it.duplicate, it.duplicate_of) for it in (again, late)]
    assert (1, True) == (bus.stats().published, first.ok)


@both
def test_a_block_that_may_yet_be_dropped_turns_nobody_else_away(is_async: bool) -> None:
    """
    It is dropped; what was published beside it was not its duplicate.
    """
    bus = TestBus()
    block = bus.deferred()

    def fail() -> None:
        with block:
            bus.publish(Placed(1), idempotency_key="click")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not publish(bus, Placed(1), is_async=is_async, idempotency_key="click").duplicate


def test_a_key_that_becomes_another_publishes_at_the_end_of_its_block_is_turned_away() -> None:
    """
    What is due later turns away everybody in its process, also who was before it in a block.
    """
    bus = TestBus()
    with bus.deferred():
        receipt = bus.publish(Placed(1), idempotency_key="click")
        outside = bus.publish(Placed(2), idempotency_key="other", delay=5)
        later = bus.publish(Placed(3), idempotency_key="later", delay=5)
    assert [False, False, False] == [each.duplicate for each in (receipt, outside, later)]
    assert bus.publish(Placed(2), idempotency_key="other").duplicate
    block = bus.deferred()
    with block:
        assert bus.publish(Placed(3), idempotency_key="later", delay=1).duplicate
    bus.clock.advance(5)
    assert bus.publish(Placed(3), idempotency_key="later").duplicate


@both
def test_what_the_end_of_the_bus_gives_up_has_used_no_key(is_async: bool) -> None:
    """
    It will not be published, and the next process may.
    """
    keys = InMemoryIdempotencyStore()
    bus, other = TestBus(idempotency=keys), TestBus(idempotency=keys)
    publish(bus, Placed(1), is_async=is_async, idempotency_key="click", delay=60)
    bus.close()
    assert not publish(other, Placed(1), is_async=is_async, idempotency_key="click").duplicate


def test_asking_for_a_key_waits_for_nobody_who_writes(path: Path) -> None:
    """
    A block may stand around a transaction of the application on the same file.
    """
    bus = EventBus(store=SQLiteStore(path, busy_timeout=0.01))
    with closing(sqlite3.connect(path)) as connection, bus.deferred(), connection:
        connection.execute("INSERT INTO done VALUES (1)")
        receipt = bus.publish(Placed(1), idempotency_key="click")
        assert not receipt.duplicate
    assert bus.publish(Placed(1), idempotency_key="click").duplicate
    bus.close()


# -- what cannot be published ---------------------------------------------------------------------


@both
def test_a_batch_that_cannot_be_stored_has_used_no_key(
    monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    """
    Neither those of its events that are not logged; what of it was scheduled is not, either.
    """
    bus = TestBus(durable=True)
    assert bus._store is not None

    @event(logged=False)
    class Measured:
        number: int

    def full(*given: object, **options: object) -> None:
        raise StoreFullError("no space left on device")

    batch = [Measured(1), Placed(2)]

    def publish_batch() -> list[Receipt]:
        if is_async:
            return asyncio.run(_apublish_many(bus, batch, idempotency_key="batch"))
        return bus.publish_many(batch, idempotency_key="batch")

    with monkeypatch.context() as patch:
        patch.setattr(bus._store.log, "append", full)
        patch.setattr(bus._store.log, "aappend", full)
        with pytest.raises(StoreFullError):
            publish_batch()
    receipts = publish_batch()
    assert [False, False] == [each.duplicate for each in receipts]


async def _apublish_many(bus: EventBus, batch: list[object], **options: Any) -> list[Receipt]:
    return await bus.apublish_many(batch, **options)


def test_a_batch_of_which_one_cannot_be_scheduled_is_not_scheduled() -> None:
    """
    None of them is published when it would be due, and no key is left.
    """

    class Locked(InMemoryIdempotencyStore):
        def look(self, scope: str, key: str, *, now: float) -> Claim | None:
            if key == "batch#1" and is_locked:
                raise StoreLockedError("somebody else was writing for all of busy_timeout")
            return super().look(scope, key, now=now)

    is_locked = [True]
    bus = TestBus(durable=True, idempotency=Locked())
    with pytest.raises(StoreLockedError):
        bus.publish_many([Placed(1), Placed(2)], delay=5, idempotency_key="batch")
    assert 0 == bus.stats().scheduled
    is_locked.clear()
    receipts = bus.publish_many([Placed(1), Placed(2)], delay=5, idempotency_key="batch")
    assert [True, True] == [each.is_scheduled for each in receipts]
    bus.close()


# -- in a transaction that a handler is lent ----------------------------------------------------


@pytest.fixture(params=[False, True], ids=["memory", "sqlite"])
def lending(request: pytest.FixtureRequest, path: Path) -> Iterator[TestBus]:
    store = SQLiteStore(path, busy_timeout=0.05) if request.param else MemoryStore()
    bus = TestBus(store=store, idempotency=store.idempotency, errors="collect")
    yield bus
    bus.close()


Body = Callable[[], object]


def subscribe(bus: TestBus, body: Body, *, fails: int = 0, handles_async: bool) -> list[int]:
    """
    Subscribe a handler that asks for a connection; return the numbers of its attempts.
    """
    attempts = list[int]()

    def write(placed: Placed, connection: sqlite3.Connection) -> None:
        attempts.append(len(attempts) + 1)
        body()
        if len(attempts) <= fails:
            raise ValueError("no")

    async def awrite(placed: Placed, connection: sqlite3.Connection) -> None:
        write(placed, connection)

    handler = awrite if handles_async else write
    retry = fixed(attempts=2, delay=0)
    bus.subscribe(Placed, handler, name="write", delivery=Durable(), retry=retry)
    return attempts


def run(bus: TestBus, *, is_async: bool) -> None:
    """
    Publish what the handler gets, and let it.
    """

    async def main() -> None:
        await bus.apublish(Placed(1))
        await bus.asettle()

    if is_async:
        return asyncio.run(main())
    bus.publish(Placed(1))
    bus.settle()


@both
def test_a_key_is_used_in_the_transaction_of_the_handler(lending: TestBus, is_async: bool) -> None:
    """
    It waits for nobody, is known to the rest of the handler, and is used when that commits.
    """
    receipts, seen = list[Receipt](), list[Paid]()

    def body() -> None:
        for number in (1, 2):
            receipts.append(lending.publish(Paid(number), idempotency_key="click"))
        lending.publish(Paid(9))

    lending.subscribe(Paid, seen.append, name="inline")
    attempts = subscribe(lending, body, handles_async=is_async)
    run(lending, is_async=is_async)
    assert ([1], [Paid(1), Paid(9)]) == (attempts, seen)
    assert [False, True] == [each.duplicate for each in receipts]
    assert lending.publish(Paid(3), idempotency_key="click").duplicate
    assert [] == list(lending.dead_letters)


@both
def test_a_key_is_free_when_the_transaction_of_the_handler_is_undone(
    lending: TestBus, is_async: bool
) -> None:
    """
    The next attempt publishes with it; once given up on, everybody may.
    """
    receipts, seen = list[Receipt](), list[Paid]()
    lending.subscribe(Paid, seen.append, name="inline")
    attempts = subscribe(
        lending,
        lambda: receipts.append(lending.publish(Paid(1), idempotency_key="click")),
        fails=1,
        handles_async=is_async,
    )
    run(lending, is_async=is_async)
    assert ([1, 2], [Paid(1)]) == (attempts, seen)
    assert [False, False] == [each.duplicate for each in receipts]
    assert lending.publish(Paid(2), idempotency_key="click").duplicate


@both
def test_a_key_is_free_when_the_handler_is_given_up_on(lending: TestBus, is_async: bool) -> None:
    """
    Its event never was.
    """
    attempts = subscribe(
        lending,
        lambda: lending.publish(Paid(1), idempotency_key="click"),
        fails=2,
        handles_async=is_async,
    )
    run(lending, is_async=is_async)
    assert [1, 2] == attempts
    assert not lending.publish(Paid(2), idempotency_key="click").duplicate


@both
def test_a_key_of_a_block_in_the_handler_is_asked_for_in_its_transaction(
    lending: TestBus, is_async: bool
) -> None:
    """
    When the block ends, which is before the commit.
    """
    seen = list[Paid]()
    lending.subscribe(Paid, seen.append, name="inline")

    def body() -> None:
        with lending.deferred():
            lending.publish(Paid(1), idempotency_key="click")

    attempts = subscribe(lending, body, fails=1, handles_async=is_async)
    run(lending, is_async=is_async)
    assert ([1, 2], [Paid(1)]) == (attempts, seen)
    assert lending.publish(Paid(2), idempotency_key="click").duplicate


def test_a_failure_after_the_commit_frees_the_key(lending: TestBus) -> None:
    """
    The lent connection has gone back by then.
    """

    def fail(paid: Paid) -> None:
        if paid.number == 1:
            raise ValueError("no")

    lending.subscribe(Paid, fail, name="inline")
    subscribe(
        lending, lambda: lending.publish(Paid(1), idempotency_key="click"), handles_async=False
    )
    run(lending, is_async=False)
    assert ["inline"] == [each.subscription for each in lending.dead_letters]
    assert not lending.publish(Paid(2), idempotency_key="click").duplicate


def test_a_key_in_another_store_is_used_after_the_commit(path: Path) -> None:
    """
    That store knows nothing of the transaction: a process that dies in it has used no key.
    """
    keys, used = Blind(), list[list[str]]()
    bus = TestBus(store=SQLiteStore(path), idempotency=keys, errors="collect")

    def body() -> None:
        bus.publish(Paid(1), idempotency_key="click")
        used.append(list(keys.used))

    subscribe(bus, body, fails=1, handles_async=False)
    run(bus, is_async=False)
    assert ([[], []], ["click"]) == (used, keys.used)
    bus.close()


@both
def test_what_is_due_later_waits_for_the_commit_it_depends_on(
    lending: TestBus, is_async: bool
) -> None:
    """
    Rolled back, nothing becomes due; committed, it is scheduled once.
    """
    seen, receipts = list[Paid](), list[Receipt]()
    lending.subscribe(Paid, seen.append, name="inline")
    attempts = subscribe(
        lending,
        lambda: receipts.append(lending.publish(Paid(1), delay=5, idempotency_key="click")),
        fails=1,
        handles_async=is_async,
    )
    run(lending, is_async=is_async)
    assert ([1, 2], 1) == (attempts, lending.stats().scheduled)
    assert [False, True] == [each.is_scheduled for each in receipts]
    assert lending.publish(Paid(2), idempotency_key="click").duplicate
    lending.clock.advance(5)
    assert [Paid(1)] == seen


@both
def test_what_is_due_later_waits_for_its_block_and_then_for_the_commit(
    lending: TestBus, is_async: bool
) -> None:
    """
    The same where a block of the handler's stands around it.
    """
    seen = list[Paid]()
    lending.subscribe(Paid, seen.append, name="inline")

    def body() -> None:
        with lending.deferred():
            lending.publish(Paid(1), delay=5)
        assert 0 == lending.stats().scheduled

    attempts = subscribe(lending, body, fails=1, handles_async=is_async)
    run(lending, is_async=is_async)
    assert ([1, 2], 1) == (attempts, lending.stats().scheduled)
    lending.clock.advance(5)
    assert [Paid(1)] == seen


def test_a_duplicate_of_what_is_due_later_is_no_part_of_the_transaction(lending: TestBus) -> None:
    """
    The handler is told at once, and goes on.
    """
    first = lending.publish(Paid(1), delay=5, idempotency_key="click")
    receipts = list[Receipt]()
    subscribe(
        lending,
        partial(_publish_twice, lending, receipts),
        handles_async=False,
    )
    run(lending, is_async=False)
    assert [first.id] * 2 == [each.duplicate_of for each in receipts]


def _publish_twice(bus: TestBus, receipts: list[Receipt]) -> None:
    receipts.append(bus.publish(Paid(2), delay=1, idempotency_key="click"))
    receipts.append(bus.publish(Paid(3), idempotency_key="click"))


# -- one commit for the key and its event ----------------------------------------------------------


CLICK = "publish Placed", "click"


def state_of(bus: EventBus) -> str | None:
    """
    Return what somebody who asks for the key now would be told.
    """
    keys: Any = bus._furniture.idempotency
    claim = keys.look(*CLICK, now=bus._furniture.clock.monotonic())
    return None if claim is None else str(claim.state)


@both
@pytest.mark.parametrize("how", ["alone", "deferred", "delayed"])
def test_a_key_is_used_by_the_commit_that_stores_its_event(
    path: Path, how: str, is_async: bool
) -> None:
    """
    Nobody ever sees the event without its key, so no process can die in between.
    """
    store = SQLiteStore(path)
    bus, seen = TestBus(store=store, idempotency=store.keys(ttl=60.0)), list[str | None]()
    store.log.on_append(lambda: seen.append(state_of(bus)))
    if how == "deferred":
        with bus.deferred() as block:
            publish(bus, Placed(1), is_async=is_async)
            publish(bus, Placed(2), is_async=is_async, idempotency_key="click")
        assert block.is_over
    else:
        delay = 5 if how == "delayed" else None
        publish(bus, Placed(1), is_async=is_async, idempotency_key="click", delay=delay)
        bus.clock.advance(5)
    assert ["done"] == seen
    bus.close()


def test_the_keys_of_a_batch_are_used_with_it(path: Path) -> None:
    """
    All of them by the one commit.
    """
    store = SQLiteStore(path)
    bus, seen = TestBus(store=store), list[int]()
    count = "SELECT count(*) FROM eventbus_keys WHERE is_done"
    store.log.on_append(lambda: seen.append(store._database.query(count)[0][0]))
    bus.publish_many([Placed(1), Placed(2)], idempotency_key="click")
    assert [2] == seen
    bus.close()


@pytest.mark.parametrize("is_elsewhere", [False, True], ids=["memory", "another file"])
def test_keys_that_are_elsewhere_are_used_after_the_commit(
    tmp_path: Path, is_elsewhere: bool
) -> None:
    """
    Two files have no commit in common.
    """
    other = SQLiteStore(tmp_path / "other.db")
    keys = other.idempotency if is_elsewhere else InMemoryIdempotencyStore()
    bus, seen = TestBus(durable=True, idempotency=keys), list[str | None]()
    assert bus._store is not None
    bus._store.log.on_append(lambda: seen.append(state_of(bus)))
    bus.publish(Placed(1), idempotency_key="click")
    assert (["pending"], "done") == (seen, state_of(bus))
    bus.close()
    other.close()


@both
def test_a_publish_whose_key_became_anothers_stores_nothing(path: Path, is_async: bool) -> None:
    """
    It stood still for longer than the lease, and somebody else has published meanwhile.
    """
    other = TestBus(store=SQLiteStore(path))

    def late(placed: Placed) -> str:
        if placed.number == 1:
            other.clock.advance(400)
            other.publish(Placed(2), idempotency_key="click")
        return "K"

    @event(name="Placed", key=late)
    class Late:
        number: int

    bus, receipts = TestBus(store=SQLiteStore(path)), list[Receipt]()
    with pytest.raises(StoreError, match="its idempotency key is another's by now"):
        receipts.append(publish(bus, Late(1), is_async=is_async, idempotency_key="click"))
    assert bus._store is not None
    assert ([], 1) == (receipts, bus._store.log.last_offset())
    assert publish(bus, Late(3), is_async=is_async, idempotency_key="click").duplicate
    for each in (bus, other):
        each.close()


def test_of_publishes_that_share_a_commit_each_keeps_or_frees_its_own_key(path: Path) -> None:
    """
    One of them cannot be stored; its key is free, and the others' are used.
    """
    store, beside = SQLiteStore(path), SQLiteStore(path)
    bus = TestBus(store=store, idempotency=beside.idempotency)

    async def main() -> list[Any]:
        with store._writer._lock:  # all that come now wait for the next commit
            publishes = [
                asyncio.ensure_future(
                    bus.apublish(Placed(each), idempotency_key=str(each), expected_version=version)
                )
                for each, version in ((1, None), (2, 77), (3, None))
            ]
            while len(store._writer._queue) < len(publishes):  # noqa: ASYNC110
                await asyncio.sleep(0)
        return await asyncio.gather(*publishes, return_exceptions=True)

    one, two, three = asyncio.run(main())
    assert isinstance(two, ConcurrencyError)
    assert [1, 2] == [each.envelope.offset for each in (one, three)]
    again = [bus.publish(Placed(9), idempotency_key=str(each)).duplicate for each in (1, 2, 3)]
    assert [True, False, True] == again
    bus.close()
    beside.close()


class Held:
    """
    A log whose appends wait until they are let go on.
    """

    def __init__(self, bus: TestBus, failure: Exception | None) -> None:
        assert bus._store is not None
        self._log: Any = bus._store.log
        self._append = self._log.aappend
        self._failure = failure
        self.begun, self.gate, self.over = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def aappend(self, *given: Any, **options: Any) -> list[int]:
        self.begun.set()
        await self.gate.wait()
        try:
            if self._failure is not None:
                raise self._failure
            offsets: list[int] = await self._append(*given, **options)
            return offsets
        finally:
            self.over.set()


@pytest.fixture(params=["memory", "sqlite", "apart"])
def keyed(request: pytest.FixtureRequest, path: Path) -> Iterator[TestBus]:
    """
    A bus whose keys are with its log, or apart from it.
    """
    store = MemoryStore() if request.param == "memory" else SQLiteStore(path)
    is_apart = request.param == "apart"
    bus = TestBus(
        store=store, idempotency=InMemoryIdempotencyStore() if is_apart else store.idempotency
    )
    yield bus
    bus.close()


@pytest.mark.parametrize("failure", [None, StoreFullError("no space left on device")])
def test_the_key_of_a_cancelled_publish_follows_its_event(
    keyed: TestBus, monkeypatch: pytest.MonkeyPatch, failure: Exception | None
) -> None:
    """
    The append goes on. Stored, the key is used; otherwise it is free, and not held for a lease.
    """

    async def main() -> None:
        held = Held(keyed, failure)
        with monkeypatch.context() as patch:
            patch.setattr(held._log, "aappend", held.aappend)
            publishing = asyncio.ensure_future(keyed.apublish(Placed(1), idempotency_key="click"))
            await held.begun.wait()
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
            assert "pending" == state_of(keyed)
            held.gate.set()
            await held.over.wait()
            while keyed._log is not None and keyed._log._under_way:  # noqa: ASYNC110
                await asyncio.sleep(0)
        expected = None if failure else "done"
        await until(lambda: expected == state_of(keyed))  # it is freed after what was asked before

    asyncio.run(main())


def test_the_key_of_a_publish_that_ended_with_its_loop_is_held_for_a_lease(
    keyed: TestBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Nobody knows whether its event is stored.
    """

    async def main() -> None:
        held = Held(keyed, None)
        monkeypatch.setattr(held._log, "aappend", held.aappend)
        publishing = asyncio.ensure_future(keyed.apublish(Placed(1), idempotency_key="click"))
        await held.begun.wait()
        publishing.cancel()

    asyncio.run(main())
    assert "pending" == state_of(keyed)


# -- what a key is unique in -----------------------------------------------------------------------


def declared(*, logged: bool) -> Any:
    """
    Declare the class anew, as another module or program does that has it under another path.
    """

    @event(name="shop.paid", logged=logged)
    class Declared:
        number: int

    Declared.__module__ = f"module_{id(Declared)}"
    return Declared


@pytest.mark.parametrize("logged", [True, False])
def test_a_key_is_unique_in_the_declared_name_of_what_is_logged(path: Path, logged: bool) -> None:
    """
    There a name stands for one class; elsewhere two classes may have it.
    """
    duplicates = list[bool]()
    for _ in range(2):
        with TestBus(store=SQLiteStore(path)) as bus:
            receipt = bus.publish(declared(logged=logged)(1), idempotency_key="click")
            duplicates.append(receipt.duplicate)
    assert [False, logged] == duplicates
