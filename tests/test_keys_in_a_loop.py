"""
Publishers' keys where a loop runs: while somebody else writes to the file, the loop goes on.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest

from contracts.idempotency_store import SOURCE
from eventbus import (
    Durable,
    EventBus,
    Inline,
    Queued,
    Receipt,
    StoreError,
    StoreLockedError,
    event,
    fixed,
)
from eventbus.errors import DeadLetterNotFoundError, StoreClosedError
from eventbus.sqlite import SQLiteStore
from eventbus.testing import TestBus

T = TypeVar("T")
PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


@event
class Paid:
    number: int


@event(logged=False)
class Seen:
    number: int


@pytest.fixture(params=["lazy", "eager"])
def bus(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EventBus]:
    # Whoever waits for the file in the loop itself gives up quickly.
    store = SQLiteStore(tmp_path / "shop.db", busy_timeout=1.0)
    made = EventBus(store=store, envelopes=request.param)
    yield made
    made.close(timeout=PATIENCE)


@asynccontextmanager
async def locked(bus: EventBus) -> AsyncIterator[None]:
    """
    Have somebody else write until the block has ended.
    """
    assert bus._store is not None
    path: Any = bus._store
    with closing(sqlite3.connect(path.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


async def a_while() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def beside_a_writer(bus: EventBus, do: Callable[[], Awaitable[T]]) -> T:
    """
    Begin while somebody else writes, and go on when he has ended.
    """
    async with locked(bus):
        task = asyncio.ensure_future(do())
        await a_while()
        assert not task.done()
    return await asyncio.wait_for(task, PATIENCE)


@pytest.mark.parametrize("happened", [Paid(1), Seen(1)])
def test_a_publish_with_a_key_waits_while_the_loop_goes_on(bus: EventBus, happened: object) -> None:
    """
    The first one is published, and the second is its duplicate.
    """

    async def publish_twice() -> list[Receipt]:
        publish: Any = lambda: bus.apublish(happened, idempotency_key="k")  # noqa: E731
        return [await beside_a_writer(bus, publish), await beside_a_writer(bus, publish)]

    first, again = asyncio.run(publish_twice())
    assert (False, True) == (first.duplicate, again.duplicate)
    assert first.id == again.duplicate_of == again.id


def test_a_batch_and_a_block_wait_in_the_same_way(bus: EventBus) -> None:
    """
    Of a batch and of a block that come twice, one is published.
    """

    async def batch() -> list[Receipt]:
        return await bus.apublish_many([Paid(1), Paid(2)], idempotency_key="k")

    async def block() -> list[Receipt]:
        async with bus.deferred():
            return [bus.publish(Paid(3), idempotency_key="b"), bus.publish(Paid(4))]

    async def publish_twice() -> list[list[bool]]:
        receipts = [await beside_a_writer(bus, each) for each in (batch, batch, block, block)]
        return [[each.duplicate for each in those] for those in receipts]

    assert [[False] * 2, [True] * 2, [False] * 2, [True, False]] == asyncio.run(publish_twice())


@pytest.mark.parametrize("happened", [Paid(1), Seen(1)])
def test_a_cancelled_publish_has_used_no_key(bus: EventBus, happened: object) -> None:
    """
    Though it is cancelled while its key is being written down: the next one is published.
    """

    async def cancel_first() -> Receipt:
        async with locked(bus):
            task = asyncio.create_task(bus.apublish(happened, idempotency_key="k"))
            await a_while()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await bus.apublish(happened, idempotency_key="k")

    assert not asyncio.run(cancel_first()).duplicate


def test_of_a_batch_whose_keys_cannot_all_be_asked_for_none_is_held(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It raises, and may be published again.
    """
    assert bus._store is not None
    keys: Any = bus._furniture.idempotency
    aclaim = keys.aclaim

    async def claim(scope: str, key: str, **given: Any) -> Any:
        if key == "k#1":
            raise StoreLockedError("somebody writes")
        return await aclaim(scope, key, **given)

    async def publish_twice() -> list[Receipt]:
        with monkeypatch.context() as patches:
            patches.setattr(type(keys), "aclaim", staticmethod(claim))
            with pytest.raises(StoreLockedError):
                await bus.apublish_many([Paid(1), Paid(2)], idempotency_key="k")
        return await bus.apublish_many([Paid(1), Paid(2)], idempotency_key="k")

    assert [False] * 2 == [each.duplicate for each in asyncio.run(publish_twice())]


def test_a_failing_handler_frees_the_key_without_a_wait(bus: EventBus) -> None:
    """
    The loop goes on though somebody else writes, and the next publish finds the key free.
    """

    async def fail(seen: Seen) -> None:
        called.set()
        await beside.wait()
        raise ValueError("no")

    async def publish_twice() -> list[bool]:
        task = asyncio.create_task(bus.apublish(Seen(1), idempotency_key="k"))
        await called.wait()
        async with locked(bus):
            beside.set()
            first = await task
        again = await bus.apublish(Seen(1), idempotency_key="k")
        return [first.ok, again.duplicate]

    called, beside = asyncio.Event(), asyncio.Event()
    bus.subscribe(Seen, fail, name="fail", retry=fixed(attempts=1, delay=0.0))
    assert [False, False] == asyncio.run(publish_twice())


def test_a_key_used_at_once_is_free_where_that_cannot_be_written(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    What is not logged is not published then, and may be published again.
    """
    keys: Any = bus._furniture.idempotency

    async def refuse(*given: object, **options: object) -> None:
        raise StoreLockedError("somebody writes")

    async def publish_twice() -> Receipt:
        with monkeypatch.context() as patches:
            patches.setattr(type(keys), "acomplete", refuse)
            with pytest.raises(StoreLockedError):
                await bus.apublish(Seen(1), idempotency_key="k")
        return await bus.apublish(Seen(1), idempotency_key="k")

    assert not asyncio.run(publish_twice()).duplicate


def test_what_cannot_be_claimed_is_not_given_back_later(tmp_path: Path) -> None:
    """
    A claim that the store refuses leaves no work behind: neither a key nor a letter is held.
    """
    store = SQLiteStore(tmp_path / "shop.db")
    letter = store.letters.aclaim("gone", owner="me", ttl=1.0, now=0.0)
    with pytest.raises(DeadLetterNotFoundError):
        asyncio.run(letter)
    store.close()
    key = store.idempotency.aclaim("scope", "key", source=SOURCE, now=0.0)
    with pytest.raises(StoreClosedError):
        asyncio.run(key)


def test_a_key_in_an_open_transaction_waits_for_nobody(bus: EventBus) -> None:
    """
    It is claimed, used and freed by that transaction.
    """
    assert bus._store is not None
    store: Any = bus._store

    async def publish_twice() -> list[bool]:
        with closing(sqlite3.connect(store.path, isolation_level=None)) as own:
            own.execute("BEGIN IMMEDIATE")
            given: dict[str, Any] = {"connection": own, "idempotency_key": "k"}
            first = await bus.apublish(Paid(1), **given)
            again = await bus.apublish(Paid(1), **given)
            own.execute("ROLLBACK")
            own.execute("BEGIN IMMEDIATE")
            keys = store.idempotency.on(own)
            claim = await keys.aclaim("s", "k", source=first, now=0.0)
            assert await keys.acomplete(claim, now=0.0)
            keys.complete_later(claim, now=0.0)
            keys.release_later(claim)
            claim = await keys.aclaim("s", "k", source=first, now=0.0)
            own.execute("ROLLBACK")
            return [first.duplicate, again.duplicate, claim.state != "granted"]

    assert [False, True, False] == asyncio.run(publish_twice())


def test_what_is_due_in_a_loop_has_its_key_asked_for_there(tmp_path: Path) -> None:
    """
    Of two that are due, one is published.
    """
    calls = list[int]()
    bus = TestBus(store=SQLiteStore(tmp_path / "shop.db"))
    bus.subscribe(Paid, lambda paid: calls.append(paid.number), name="note")

    async def publish() -> None:
        async with bus:
            await bus.apublish(Paid(1), idempotency_key="k", delay=1.0)
            await bus.apublish(Paid(2), idempotency_key="k")
            bus.clock.advance(2.0)
            await bus.asettle()

    asyncio.run(publish())
    assert [1] == calls


class Meanwhile:
    """
    A key that is read once; then somebody else writes, until that is over.
    """

    def __init__(self, bus: EventBus) -> None:
        store: Any = bus._store
        self.reads, self.calls = list[int](), list[int]()
        self.is_read = asyncio.Event()
        self.other = sqlite3.connect(store.path, isolation_level=None)

    def key_of(self, paid: Paid) -> str:
        self.reads.append(paid.number)
        if not self.is_read.is_set():
            self.other.execute("BEGIN IMMEDIATE")
            self.is_read.set()
        return "k"

    async def handle(self, paid: Paid) -> None:
        self.calls.append(paid.number)

    async def until_it_is_asked_for(self) -> None:
        await self.is_read.wait()
        await a_while()

    def is_over(self) -> None:
        self.other.execute("ROLLBACK")
        self.other.close()


every_delivery = pytest.mark.parametrize(
    "delivery", [Inline(), Queued(), Durable()], ids=["inline", "queued", "durable"]
)


@every_delivery
def test_a_handler_with_a_key_waits_while_the_loop_goes_on(
    bus: EventBus, delivery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its key is read once, and asked for beside the loop; another event of it is a duplicate.
    """
    keys: Any = bus._furniture.idempotency

    async def publish_both() -> Meanwhile:
        meanwhile = Meanwhile(bus)
        bus.subscribe(
            Paid, meanwhile.handle, name="pay", delivery=delivery, idempotency_key=meanwhile.key_of
        )
        async with bus:
            task = asyncio.create_task(bus.apublish(Paid(1)))
            await meanwhile.until_it_is_asked_for()
            assert [] == meanwhile.calls
            meanwhile.is_over()
            await asyncio.wait_for(task, PATIENCE)
            await bus.apublish(Paid(2))
            assert (await bus.adrain(PATIENCE)).ok
        return meanwhile

    def refuse(*given: object, **options: object) -> None:
        raise AssertionError("it has stopped the loop")

    monkeypatch.setattr(type(keys), "claim", refuse)
    meanwhile = asyncio.run(publish_both())
    assert ([1, 2], [1]) == (meanwhile.reads, meanwhile.calls)
    assert 1 == bus.stats().subscriptions["pay"].duplicate


@every_delivery
def test_a_handler_with_a_key_waits_for_its_holder(bus: EventBus, delivery: Any) -> None:
    """
    While another publish is at work on it, and takes the key over when that has failed.
    """
    calls, first = list[str](), asyncio.Event()

    async def handle(paid: Paid) -> None:
        calls.append(f"begin {paid.number}")
        if paid.number == 1:
            first.set()
            await a_while()
            raise ValueError("no")
        calls.append(f"end {paid.number}")

    async def publish_both() -> None:
        async with bus:
            task = asyncio.create_task(bus.apublish(Paid(1)))
            await first.wait()
            await bus.apublish(Paid(2))
            await task
            assert (await bus.adrain(PATIENCE)).ok

    mode = delivery if isinstance(delivery, Inline) else attrs.evolve(delivery, workers=2)
    bus.subscribe(Paid, handle, name="pay", delivery=mode, idempotency_key=lambda _: "k")
    asyncio.run(publish_both())
    assert ["begin 1", "begin 2", "end 2"] == calls


@pytest.mark.parametrize("delivery", [Queued(), Durable()], ids=["queued", "durable"])
def test_a_key_that_cannot_be_asked_for_is_asked_for_again(
    bus: EventBus, delivery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    That the file is out of reach for a moment is no failure of the handler.
    """
    keys: Any = bus._furniture.idempotency
    aclaim, outages, calls = keys.aclaim, [StoreError("outage")], list[int]()

    async def ask(*given: Any, **options: Any) -> Any:
        if outages:
            raise outages.pop()
        return await aclaim(*given, **options)

    async def handle(paid: Paid) -> None:
        calls.append(paid.number)

    async def publish() -> None:
        async with bus:
            await bus.apublish(Paid(1))
            assert (await bus.adrain(PATIENCE)).ok
            assert [] == list(bus.dead_letters)

    monkeypatch.setattr(type(keys), "aclaim", staticmethod(ask))
    bus.subscribe(Paid, handle, name="pay", delivery=delivery, idempotency_key=lambda _: "k")
    asyncio.run(publish())
    assert [1] == calls


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("error", [ValueError("no key"), ConnectionError("no key")], ids=repr)
@pytest.mark.parametrize("delivery", [Queued(), Durable()], ids=["queued", "durable"])
def test_a_key_that_cannot_be_read_is_read_once(
    bus: EventBus, delivery: Any, error: Exception, is_async: bool
) -> None:
    """
    Its event is a dead letter, and its handler is not called; whatever its key has raised.
    """
    reads = list[int]()

    def key_of(paid: Paid) -> str:
        reads.append(paid.number)
        raise error

    async def ahandle(paid: Paid) -> None:
        raise AssertionError

    def handle(paid: Paid) -> None:
        raise AssertionError

    async def publish() -> None:
        async with bus:
            await bus.apublish(Paid(1))
            await bus.adrain(PATIENCE)
            [letter] = bus.dead_letters
            assert ("no key", 0) == (letter.failures[-1].message, letter.attempts)

    handler: Any = ahandle if is_async else handle
    bus.subscribe(Paid, handler, name="pay", delivery=delivery, idempotency_key=key_of)
    asyncio.run(publish())
    assert [1] == reads


@pytest.mark.parametrize("fails", [False, True], ids=["granted", "out of reach"])
def test_a_key_is_free_again_whose_handler_is_not_called_any_more(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """
    Its owner goes while the key is being claimed: the next holder gets it.
    """
    keys: Any = bus._furniture.idempotency
    aclaim, calls = keys.aclaim, list[int]()

    async def ask(*given: Any, **options: Any) -> Any:
        claim = await aclaim(*given, **options)
        if fails:
            keys.release_later(claim)
            raise StoreError("outage")
        return claim

    class Owner:
        async def handle(self, paid: Paid) -> None:
            calls.append(paid.number)

    async def publish() -> None:
        meanwhile, owner = Meanwhile(bus), Owner()
        mode, key = Queued(), meanwhile.key_of
        bus.subscribe(Paid, owner.handle, name="pay", delivery=mode, weak=True, idempotency_key=key)
        async with bus:
            await bus.apublish(Paid(1))
            await meanwhile.until_it_is_asked_for()
            del owner
            gc.collect()
            meanwhile.is_over()
            await bus.adrain(PATIENCE)
            claim = await aclaim("pay", "k", source=SOURCE, now=time.monotonic())
            assert "granted" == claim.state

    monkeypatch.setattr(type(keys), "aclaim", staticmethod(ask))
    asyncio.run(publish())
    assert [] == calls


def test_an_event_does_not_wait_for_its_own_key_when_its_loop_has_ended(bus: EventBus) -> None:
    """
    The loop is closed, with nothing cancelled, while the key is being claimed on it.
    """
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # that a task of it is left behind is meant

    async def leave() -> Meanwhile:
        meanwhile = Meanwhile(bus)
        bus.subscribe(
            Paid,
            meanwhile.handle,
            name="pay",
            delivery=Queued(),
            idempotency_key=meanwhile.key_of,
        )
        bus.start()
        await bus.apublish(Paid(1))
        await meanwhile.until_it_is_asked_for()
        return meanwhile

    with closing(loop):
        meanwhile = loop.run_until_complete(leave())
    meanwhile.is_over()
    assert bus.drain(PATIENCE).ok
    assert [1] == meanwhile.calls


@pytest.mark.parametrize("of", ["keys", "letters"])
def test_a_wait_that_is_cancelled_is_over_though_the_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """
    Nobody is left to free what was asked for: the claim ends by itself.
    """

    def refuse(*given: object, **options: object) -> None:
        raise StoreClosedError("closed")

    async def cancel() -> None:
        asking: Any = (
            store.idempotency.aclaim("scope", "key", source=SOURCE, now=0.0)
            if of == "keys"
            else store.letters.aclaim("id", owner="me", ttl=1.0, now=0.0)
        )
        with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(asking)
            await a_while()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            other.execute("ROLLBACK")

    with SQLiteStore(tmp_path / "shop.db") as store, monkeypatch.context() as patches:
        patches.setattr("eventbus.sqlite._writer.Writer.post", refuse)
        asyncio.run(cancel())


def test_a_durable_handler_has_its_key_recorded_without_a_wait(bus: EventBus) -> None:
    """
    Though somebody else writes when it returns: another event of its key is a duplicate.
    """
    calls = list[int]()

    async def handle(paid: Paid) -> None:
        calls.append(paid.number)
        called.set()
        await beside.wait()

    async def publish_both() -> None:
        async with bus:
            await bus.apublish(Paid(1))
            await called.wait()
            async with locked(bus):
                beside.set()
                await a_while()
            await bus.apublish(Paid(2))
            assert (await bus.adrain(PATIENCE)).ok

    called, beside = asyncio.Event(), asyncio.Event()
    bus.subscribe(Paid, handle, name="pay", delivery=Durable(), idempotency_key=lambda _: "k")
    asyncio.run(publish_both())
    assert [1] == calls


def test_what_nobody_waits_for_is_logged(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """
    A key that cannot be freed says so, though whoever wanted it is gone.
    """
    caplog.set_level(logging.ERROR, "eventbus")
    store: Any = bus._store
    keys = store.idempotency
    claim = keys.claim("s", "k", source=bus.publish(Paid(1)), now=0.0)
    monkeypatch.setattr("eventbus.sqlite._keys._RELEASE", "DELETE FROM nothing WHERE ?, ?, ?")
    keys.release_later(claim)
    store.close()
    assert ["key 'k' of s is not released"] == [each.getMessage() for each in caplog.records]
    with pytest.raises(StoreClosedError):
        keys.release_later(claim)
