"""
The whole durable engine against a naive reference, with crashes as moves.

Each call of a handler asks the reference whether it may be made; whenever the bus has
settled, nothing may be left that could have been done.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from eventbus import (
    ConcurrencyError,
    DeadLetterBusyError,
    Durable,
    Envelope,
    StoreError,
    event,
    fixed,
)
from eventbus.kept_letters import KeptLetter, Selection
from eventbus.memory import MemoryStore
from eventbus.sqlite import SQLiteStore
from eventbus.testing import TestBus, VirtualClock

ATTEMPTS, DELAY = 3, 10.0
LOOK = 1.5  # seconds in which a consumer has looked whether a letter is gone
KEYS = st.sampled_from([None, "a", "a", "b"])
STATES = Literal["open", "handled", "dead", "discarded"]


@event(key="key")
class Placed:
    number: int
    key: str | None


@event
class Paid:
    number: int


class Killed(BaseException):
    """
    What ends the process in the midst of a handler.
    """


class WrongError(BaseException):
    """
    What a call raises that must not be made: no bus takes it for the handler's failure.
    """


@attrs.define
class Item:
    """
    One delivery, as the reference knows it.
    """

    offset: int
    key: str | None
    attempts: int = 0
    due: float = 0.0
    state: STATES = "open"
    is_recent: bool = False  # called since the bus has settled last


@attrs.define(eq=False)
class Reader:
    """
    One subscription, as the reference knows it.
    """

    name: str
    mode: Durable
    writes: bool
    items: dict[int, Item] = attrs.field(factory=dict[int, Item])
    is_paused: bool = False
    is_stopped: bool = False
    written: list[int] = attrs.field(factory=list[int])  # in a database that is gone

    @property
    def holds(self) -> bool:
        return self.mode.on_dead_letter == "hold_key"

    def open(self) -> list[Item]:
        return [each for each in self.items.values() if each.state == "open"]

    def dead(self) -> list[Item]:
        return [each for each in self.items.values() if each.state == "dead"]

    def is_held(self, item: Item) -> bool:
        keys = [each.key for each in self.dead()] if self.holds else []
        return item.key is not None and item.key in keys

    def is_first(self, item: Item) -> bool:
        earlier = [each for each in self.open() if each.offset < item.offset]
        return item.key is None or item.key not in [each.key for each in earlier]


class DurableModel(RuleBasedStateMachine):
    """
    Moves of publishers, handlers, operators and of a machine that dies.
    """

    store: Any
    bus: TestBus

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()
        self.readers = dict[str, Reader]()
        self.log = list[tuple[int, Any]]()
        self.failures = dict[tuple[str, int], int]()
        self.used = set[str]()
        self.outages = 0
        self.until: dict[str, int] = {}  # calls from now to one that does something else
        self.redriven: int | None = None

    def open_store(self) -> Any:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        opened = self.open_store()
        if not hasattr(self, "store") or opened is not self.store:
            self.expose(opened)
        self.store = opened
        self.bus = TestBus(store=self.store, clock=self.clock, errors="collect")
        for reader in self.readers.values():
            self.subscribe(reader)

    def expose(self, store: Any) -> None:
        """
        Let the store fail when an outage says so.
        """
        advance = store.progress.advance

        def failing(*given: Any) -> Any:
            if self.outages:
                self.outages -= 1
                raise StoreError("outage")
            return advance(*given)

        store.progress.advance = failing

    def subscribe(self, reader: Reader) -> None:
        def read(placed: Placed, envelope: Envelope) -> None:
            self.called(reader, placed, envelope)

        def write(placed: Placed, envelope: Envelope, db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS done (name TEXT, number INTEGER)")
            db.execute("INSERT INTO done VALUES (?, ?)", (reader.name, placed.number))
            self.called(reader, placed, envelope)

        self.bus.subscribe(
            Placed,
            write if reader.writes else read,
            name=reader.name,
            delivery=reader.mode,
            where=None if reader.writes else lambda placed: placed.number % 5 != 4,
            retry=fixed(delay=DELAY, attempts=ATTEMPTS),
        )

    # -- what a handler does -----------------------------------------------------------------

    def called(self, reader: Reader, placed: Placed, envelope: Envelope) -> None:
        offset = envelope.offset
        assert offset is not None
        item = reader.items[offset]
        item.is_recent = True
        is_redriven = self.redriven == offset and item.state in ("open", "dead")
        if not is_redriven:
            try:
                self.check_call(reader, item)
            except AssertionError as error:
                raise WrongError(error) from error
            item.attempts += 1
        for what in list(self.until):
            self.until[what] -= 1
        if self.until.get("kill") == 0:
            raise Killed
        if self.until.get("pause") == 0:
            self.pause(reader)
        if self.failures.get((reader.name, placed.number), 0):
            self.failures[reader.name, placed.number] -= 1
            if not is_redriven:
                self.failed(reader, item)
            raise ValueError(f"no {placed.number}")
        item.state = "handled"

    def check_call(self, reader: Reader, item: Item) -> None:
        assert "open" == item.state
        assert (False, False) == (reader.is_paused, reader.is_stopped)
        assert item.due <= self.clock.time() + 0.01
        assert reader.is_first(item)
        assert not reader.is_held(item)
        [pending] = self.store.progress.pending(reader.name, after=item.offset - 1, limit=1)
        assert (item.offset, item.attempts + 1) == (pending.offset, pending.attempts)

    def failed(self, reader: Reader, item: Item) -> None:
        item.due = self.clock.time() + DELAY
        if item.attempts >= ATTEMPTS:
            item.state = "dead"
            reader.is_stopped |= reader.mode.on_dead_letter == "stop"

    # -- moves of publishers -------------------------------------------------------------------

    def placed(self, key: str | None) -> Placed:
        return Placed(len(self.log) + 1, key)

    def logged(self, events: list[Any], offsets: list[int | None]) -> None:
        for happened, offset in zip(events, offsets, strict=True):
            assert offset == len(self.log) + 1
            self.log.append((offset, happened))
            for reader in self.readers.values():
                self.add(reader, offset, happened)

    def add(self, reader: Reader, offset: int, happened: Any) -> None:
        if isinstance(happened, Placed) and (reader.writes or happened.number % 5 != 4):
            reader.items[offset] = Item(offset, happened.key)

    @rule(key=KEYS, idempotency_key=st.sampled_from([None, None, "x", "y"]))
    def publish(self, key: str | None, idempotency_key: str | None) -> None:
        placed = self.placed(key)
        receipt = self.bus.publish(placed, idempotency_key=idempotency_key)
        assert (idempotency_key in self.used) == receipt.duplicate
        if not receipt.duplicate:
            self.logged([placed], [receipt.envelope.offset])
        self.used |= {idempotency_key} - {None}  # type: ignore[arg-type]

    @rule(keys=st.lists(KEYS, min_size=1, max_size=9), paid=st.booleans())
    def publish_many(self, keys: list[str | None], paid: bool) -> None:
        events: list[Any] = [Placed(len(self.log) + 1 + n, key) for n, key in enumerate(keys)]
        if paid:
            events.append(Paid(1))
        receipts = self.bus.publish_many(events)
        self.logged(events, [each.envelope.offset for each in receipts])

    @rule(key=st.sampled_from(["a", "b"]), off_by=st.sampled_from([0, 0, 1, -1]))
    def publish_at(self, key: str, off_by: int) -> None:
        version = sum(isinstance(each, Placed) and each.key == key for _, each in self.log)
        placed = self.placed(key)
        try:
            receipt = self.bus.publish(placed, expected_version=max(0, version + off_by))
        except ConcurrencyError:
            assert max(0, version + off_by) != version
        else:
            self.logged([placed], [receipt.envelope.offset])

    # -- moves of subscribers ------------------------------------------------------------------

    @precondition(lambda self: len(self.readers) < 3)
    @rule(
        start=st.sampled_from(["now", "origin", "offset", "instant"]),
        dead=st.sampled_from(["continue", "hold_key", "stop"]),
        workers=st.sampled_from([1, 4]),
        writes=st.booleans(),
    )
    def new_reader(self, start: str, dead: Any, workers: int, writes: bool) -> None:
        last = len(self.log)
        begin: Any = {
            "now": "now",
            "origin": "origin",
            "offset": last // 2,
            "instant": datetime.fromtimestamp(self.clock.time(), UTC),
        }[start]
        mode = Durable(start=begin, on_dead_letter=dead, workers=workers)
        reader = self.readers[f"r{len(self.readers)}"] = Reader(
            f"r{len(self.readers)}", mode, writes
        )
        times = {record.offset: record.time for record in self.store.log.read()}
        for offset, happened in self.log:
            is_from = {
                "now": False,
                "origin": True,
                "offset": offset > last // 2,
                "instant": start == "instant" and times[offset] >= begin,
            }[start]
            if is_from:
                self.add(reader, offset, happened)
        self.subscribe(reader)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def pause_or_resume(self, data: st.DataObject) -> None:
        reader = self.readers[data.draw(st.sampled_from(sorted(self.readers)))]
        self.come_to_rest()
        if reader.is_paused or reader.is_stopped:
            self.subscription(reader).resume()
            reader.is_paused = reader.is_stopped = False
        else:
            self.pause(reader)

    def pause(self, reader: Reader) -> None:
        self.subscription(reader).pause()
        reader.is_paused = True

    def subscription(self, reader: Reader) -> Any:
        return next(each for each in self.bus.subscriptions if each.name == reader.name)

    @precondition(lambda self: self.readers and self.log)
    @rule(data=st.data(), times=st.sampled_from([1, 2, 3, 3, 7]))
    def let_fail(self, data: st.DataObject, times: int) -> None:
        name = data.draw(st.sampled_from(sorted(self.readers)))
        number = data.draw(st.integers(max(1, len(self.log) - 5), len(self.log) + 5))
        self.failures[name, number] = times

    # -- moves of time -------------------------------------------------------------------------

    @rule()
    def settle(self) -> None:
        self.advance(0.0)

    @rule(seconds=st.sampled_from([1.0, 10.0, 35.0]))
    def wait(self, seconds: float) -> None:
        self.advance(seconds)

    def come_to_rest(self) -> None:
        """
        Settle, also if that is the end of the process: a resume is for who is consuming.
        """
        self.advance(0.0)
        self.advance(0.0)

    def advance(self, seconds: float, *, is_consumed: bool = True) -> None:
        try:
            self.bus.settle()
            if seconds:
                self.clock.advance(seconds=seconds)
                self.bus.settle()
        except Killed:
            self.until.clear()
            self.restart()
        else:
            if is_consumed:
                self.check_settled()

    @rule(calls=st.integers(1, 4), what=st.sampled_from(["kill", "kill", "pause"]))
    def later(self, calls: int, what: str) -> None:
        self.until[what] = calls

    @rule()
    def restart(self) -> None:
        self.bus.restart()
        self.take_over(was_killed=True)

    @rule()
    def close(self) -> None:
        self.until.pop("kill", None)
        self.bus.close(timeout=0.0)
        self.begin()
        for reader in self.readers.values():
            reader.is_paused = False
        self.take_over(was_killed=False)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def steal(self, data: st.DataObject) -> None:
        """
        Let another process take a lease over, and die.
        """
        name = data.draw(st.sampled_from(sorted(self.readers)))
        progress, now = self.store.progress, self.clock.time()
        holder = progress.position(name).lease
        assert progress.acquire(name, owner="other", ttl=5.0, now=now, instead_of=holder)
        self.take_over(self.readers[name], was_killed=True)
        for _ in range(4):  # it is heard of no more; perhaps this process ends as well
            self.advance(20.0, is_consumed=False)
        self.advance(0.0)

    @rule(times=st.integers(1, 3))
    def outage(self, times: int) -> None:
        self.outages = times
        with suppress(Killed):
            self.bus.settle()
            self.outages = 0
            return self.advance(6.0)
        self.outages = 0
        self.until.clear()
        self.restart()

    def take_over(self, *readers: Reader, was_killed: bool) -> None:
        """
        Compare with what is stored, and go on from that; all, unless some are given.
        """
        for reader in readers or self.readers.values():
            reader.is_stopped = reader.mode.on_dead_letter == "stop" and bool(self.letters(reader))
            pending = {each.offset: each for each in self.store.progress.pending(reader.name)}
            taken = self.store.progress.position(reader.name).taken
            letters = {each.record.offset: each for each in self.letters(reader)}
            self.begin_held_anew(reader)
            for item in reader.items.values():
                if item.offset in pending or item.offset > taken:
                    self.reopen(reader, item, pending.get(item.offset), was_killed=was_killed)
                elif item.offset in letters:
                    is_held = letters[item.offset].reason == "held"
                    assert ("open" if is_held else "dead") == item.state
                else:
                    assert item.state in ("handled", "discarded")

    def reopen(self, reader: Reader, item: Item, pending: Any, *, was_killed: bool) -> None:
        if item.state != "open":
            assert was_killed
            assert item.is_recent
            assert not (reader.writes and item.state == "handled")
        attempts = 0 if pending is None else pending.attempts
        assert item.attempts <= attempts <= item.attempts + was_killed
        item.state, item.attempts = "open", attempts
        item.due = 0.0 if pending is None or pending.due is None else pending.due

    # -- moves of operators --------------------------------------------------------------------

    def letters(self, reader: Reader) -> list[KeptLetter]:
        found: list[KeptLetter] = self.store.letters.query(Selection(subscription=reader.name))
        return found

    @precondition(lambda self: any(map(self.letters, self.readers.values())))
    @rule(data=st.data(), discards=st.booleans())
    def redrive(self, data: st.DataObject, discards: bool) -> None:
        reader = data.draw(st.sampled_from([e for e in self.readers.values() if self.letters(e)]))
        letter = data.draw(st.sampled_from(self.letters(reader)))
        item = reader.items[letter.record.offset]
        if discards:
            self.store.letters.remove(letter.id)
            item.state = "discarded"
            self.after_letters(reader)
            return
        if self.waits_behind(reader, letter):
            with pytest.raises(DeadLetterBusyError, match="waits behind"):
                self.bus.redrive(letter.id)
            return
        self.redriven = item.offset
        try:
            receipt = self.bus.redrive(letter.id)
        except Killed:
            self.until.clear()
            self.redriven = None
            self.restart()
            return
        self.redriven = None
        item.state = "handled" if receipt.ok else "dead"
        self.after_letters(reader)

    def waits_behind(self, reader: Reader, letter: KeptLetter) -> bool:
        keyed = [each for each in self.letters(reader) if each.record.key == letter.record.key]
        is_first = keyed[0].record.offset == letter.record.offset
        return reader.holds and letter.record.key is not None and not is_first

    def after_letters(self, reader: Reader) -> None:
        if not self.letters(reader):
            reader.is_stopped = False
        self.advance(LOOK)

    # -- what must be so -----------------------------------------------------------------------

    def check_settled(self) -> None:
        for reader in self.readers.values():
            self.begin_held_anew(reader)
            for item in reader.items.values():
                item.is_recent = False
            if reader.is_paused or reader.is_stopped:
                continue
            for item in reader.open():
                is_waiting = item.due > self.clock.time() or not reader.is_first(item)
                assert is_waiting or reader.is_held(item)
            self.check_letters(reader)
            self.check_effects(reader)

    def check_letters(self, reader: Reader) -> None:
        letters = {each.record.offset: each.reason for each in self.letters(reader)}
        expected = {each.offset: "failed" for each in reader.dead()}
        expected |= {each.offset: "held" for each in reader.open() if reader.is_held(each)}
        assert expected == letters

    def begin_held_anew(self, reader: Reader) -> None:
        """
        Count no attempts of what is held: it waits uncalled, and begins anew.
        """
        for letter in self.letters(reader):
            if letter.reason == "held":
                reader.items[letter.record.offset].attempts = 0

    def check_effects(self, reader: Reader) -> None:
        lease = self.store.progress.position(reader.name).lease
        if lease is None or not reader.writes:
            return
        with self.store.progress.transaction(lease) as transaction:
            db = transaction.connection
            db.execute("CREATE TABLE IF NOT EXISTS done (name TEXT, number INTEGER)")
            rows = db.execute("SELECT number FROM done WHERE name = ?", (reader.name,)).fetchall()
        handled = [each.offset for each in reader.items.values() if each.state == "handled"]
        assert handled == sorted([*reader.written, *(number for (number,) in rows)])

    @invariant()
    def nothing_is_passed(self) -> None:
        for reader in self.readers.values():
            position = self.store.progress.position(reader.name)
            letters = {each.record.offset for each in self.letters(reader)}
            left = [each.offset for each in reader.open() if each.offset not in letters]
            assert position.offset < min(left, default=position.offset + 1)
            assert len(left) <= position.lag
            assert len(letters) == position.dead

    def teardown(self) -> None:
        try:
            self.until.clear()
            self.failures.clear()
            self.come_to_rest()
            for reader in self.readers.values():
                self.subscription(reader).resume()
                reader.is_paused = reader.is_stopped = False
            self.advance(100.0)
            for reader in self.readers.values():
                position = self.store.progress.position(reader.name)
                assert (len(self.log), 0) == (position.offset, position.lag)
            assert () == self.store.check()
        finally:
            self.bus.close(timeout=0.0)


class MemoryModel(DurableModel):
    def open_store(self) -> MemoryStore:
        if not hasattr(self, "store"):
            return MemoryStore()
        store: MemoryStore = self.store
        store.crash()  # as `close` left it, and open again, but for the handlers' own tables
        for reader in self.readers.values():
            handled = [each for each in reader.items.values() if each.state == "handled"]
            reader.written = [each.offset for each in handled]
        return store


class SQLiteModel(DurableModel):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    def open_store(self) -> SQLiteStore:
        return SQLiteStore(self.folder / "model.db", clock=self.clock)

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.folder)


class LongMemoryModel(MemoryModel):
    pass


class LongSQLiteModel(SQLiteModel):
    pass


MemoryModel.TestCase.settings = settings(max_examples=30, stateful_step_count=35)
SQLiteModel.TestCase.settings = settings(max_examples=12, stateful_step_count=30)
LongMemoryModel.TestCase.settings = settings(max_examples=3000, stateful_step_count=50)
LongSQLiteModel.TestCase.settings = settings(max_examples=500, stateful_step_count=50)


@pytest.fixture(autouse=True)
def silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "eventbus")


class TestInMemory(MemoryModel.TestCase):
    pass


class TestInSQLite(SQLiteModel.TestCase):
    pass


@pytest.mark.long
class TestInMemoryForLong(LongMemoryModel.TestCase):
    pass


@pytest.mark.long
class TestInSQLiteForLong(LongSQLiteModel.TestCase):
    pass
