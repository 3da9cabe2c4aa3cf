"""
Log and progress against a naive reference, with crashes as moves.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from eventbus.errors import ConcurrencyError, DuplicateEventError, LeaseLostError
from eventbus.event_log import Record
from eventbus.kept_letters import KeptLetter
from eventbus.memory import MemoryStore
from eventbus.progress import Lease, Retry, Step
from eventbus.sqlite import SQLiteStore
from eventbus.testing.contracts._records import NOON, record

KEYS = st.sampled_from([None, "a", "b"])
NAMES = st.sampled_from(["sub-1", "sub-2"])


class OutageError(Exception):
    pass


@attrs.define
class Account:
    """
    What the reference knows of one subscription.
    """

    taken: int
    pending: dict[int, list[Any]] = attrs.field(factory=dict)  # attempts, due, story
    lease: Lease | None = None

    def offset(self) -> int:
        return min([self.taken, *(each - 1 for each in self.pending)])


class StoreModel(RuleBasedStateMachine):
    """
    Moves of publishers and of two subscriptions, done to a store and to plain containers.
    """

    leases = Bundle("leases")
    store: Any

    def __init__(self) -> None:
        super().__init__()
        self.log = list[Record]()
        self.versions = dict[str, int]()
        self.accounts = dict[str, Account]()
        self.letters = dict[str, KeptLetter]()
        self.ids = 0
        self.now = 0.0

    def reopen(self) -> None:
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        self.reopen()

    # -- the log

    def keep(self, records: list[Record]) -> None:
        for each in records:
            self.log.append(attrs.evolve(each, offset=self.last() + 1))
            if each.key is not None:
                self.versions[each.key] = self.versions.get(each.key, 0) + 1

    def last(self) -> int:
        return self.log[-1].offset if self.log else 0

    def new(self, keys: list[str | None]) -> list[Record]:
        self.ids += len(keys)
        first = self.ids - len(keys)
        return [record(id=f"e-{first + place}", key=key) for place, key in enumerate(keys)]

    @rule(keys=st.lists(KEYS, max_size=4))
    def append(self, keys: list[str | None]) -> None:
        made = self.new(keys)
        offsets = self.store.log.append(made)
        self.keep(made)
        assert [each.offset for each in self.log][len(self.log) - len(made) :] == offsets

    @rule(key=KEYS, expected=st.integers(0, 3))
    def append_expecting(self, key: str | None, expected: int) -> None:
        made = self.new([key])
        try:
            self.store.log.append(made, expected_version=expected)
        except ConcurrencyError:
            assert key is not None
            assert expected != self.versions.get(key, 0)
        except ValueError:
            assert key is None
        else:
            assert key is not None
            assert expected == self.versions.get(key, 0)
            self.keep(made)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def append_again(self, data: st.DataObject) -> None:
        again = data.draw(st.sampled_from(self.log))
        with pytest.raises(DuplicateEventError):
            self.store.log.append([*self.new(["a"]), again])

    @rule(before=st.integers(0, 30))
    def prune(self, before: int) -> None:
        floor = min([account.offset() for account in self.accounts.values()], default=before)
        limit = min(before - 1, floor, self.last() - 1)
        kept = [each for each in self.log if each.offset > limit]
        assert len(self.log) - len(kept) == self.store.log.prune(before=before)
        self.log = kept

    # -- subscriptions

    @rule(name=NAMES, start=st.sampled_from(["now", "origin", 2]))
    def open(self, name: str, start: Any) -> None:
        self.store.progress.open(name, start=start)
        taken = {"now": self.last(), "origin": 0}.get(start, start)
        self.accounts.setdefault(name, Account(taken))

    @precondition(lambda self: self.accounts)
    @rule(target=leases, data=st.data(), passed=st.sampled_from([0.0, 4.0, 10.0]))
    def acquire(self, data: st.DataObject, passed: float) -> Lease | None:
        name = data.draw(st.sampled_from(sorted(self.accounts)))
        account = self.accounts[name]
        self.now += passed
        lease = self.store.progress.acquire(name, owner="me", ttl=10.0, now=self.now)
        is_free = account.lease is None or self.now >= account.lease.expires
        assert is_free == (lease is not None)
        account.lease = account.lease if lease is None else lease
        return lease

    def owned(self, lease: Lease | None) -> Account | None:
        """
        Return the account that *lease* still owns.
        """
        account = None if lease is None else self.accounts.get(lease.subscription)
        owns = account is not None and account.lease is not None and lease is not None
        return account if owns and account.lease.token == lease.token else None

    @rule(lease=leases)
    def release(self, lease: Lease | None) -> None:
        if lease is not None:
            account = self.owned(lease)
            assert self.store.progress.release(lease) == (account is not None)
            if account is not None:
                account.lease = None

    @rule(lease=leases, data=st.data(), ending=st.sampled_from(["step", "commit", "roll back"]))
    def advance(self, lease: Lease | None, data: st.DataObject, ending: str) -> None:
        if lease is None:
            return
        account = self.owned(lease)
        step = self.draw_step(lease.subscription, data)
        try:
            if ending == "step":
                advance = self.store.progress.advance(lease, step)
            else:
                with self.store.progress.transaction(lease) as transaction:
                    made = self.new(["a"])
                    self.store.log.append(made, connection=transaction.connection)
                    advance = transaction.advance(step)
                    if ending == "roll back":
                        raise OutageError
                self.keep(made)
        except LeaseLostError:
            assert account is None
        except OutageError:
            pass
        else:
            assert account is not None
            attempts, held = self.apply(account, step)
            assert attempts == dict(advance.attempts)
            assert held == advance.held

    def draw_step(self, name: str, data: st.DataObject) -> Step:
        account = self.accounts[name]
        pending = sorted(account.pending)
        some: st.SearchStrategy[list[int]] = st.just([])
        if pending:
            some = st.lists(st.sampled_from(pending), unique=True, max_size=3)
        done, untried, retried, dead, held = (data.draw(some) for _ in range(5))
        taken = min(self.last(), account.taken + data.draw(st.integers(0, 3)))
        new = [each.offset for each in self.log if account.taken < each.offset <= taken]
        choose = st.lists(st.sampled_from(new), unique=True) if new else st.just([])
        again = data.draw(some)
        own = [each.id for each in self.letters.values() if each.subscription == name]
        gone: st.SearchStrategy[list[str]] = st.just([])
        if own:
            gone = st.lists(st.sampled_from(own), unique=True, max_size=2)
        return Step(
            gone=data.draw(gone),
            done=done,
            untried=untried,
            retry=[Retry(offset=each, due=self.now + each, story=f"s{each}") for each in retried],
            dead=[self.letter(name, each, data.draw(st.booleans())) for each in dead],
            hold=[self.letter(name, each, True) for each in held],
            taken=taken,
            waiting=data.draw(choose),
            begin={*data.draw(choose), *again},
        )

    def letter(self, name: str, offset: int, holds: bool) -> KeptLetter:
        self.ids += 1
        return KeptLetter(
            id=f"letter-{self.ids}",
            subscription=name,
            record=next(each for each in self.log if each.offset == offset),
            first_failure=NOON,
            last_failure=NOON,
            holds_key=holds,
        )

    def apply(self, account: Account, step: Step) -> tuple[dict[int, int], set[int]]:
        for id in step.gone:
            del self.letters[id]
        for offset in step.done:
            account.pending.pop(offset, None)
        for offset in step.untried:
            if account.pending.get(offset, [0])[0]:
                account.pending[offset][0] -= 1
        for retry in step.retry:
            if retry.offset in account.pending:
                account.pending[retry.offset][1:] = [retry.due, retry.story]
        for letter in step.dead:
            if account.pending.pop(letter.record.offset, None):
                self.letters[letter.id] = letter
        held = set[int]()
        for letter in step.hold:
            holders = [
                each
                for each in self.letters.values()
                if each.holds_key
                and each.subscription == letter.subscription
                and each.record.key == letter.record.key is not None
            ]
            if holders and account.pending.pop(letter.record.offset, None):
                self.letters[letter.id] = letter
                held.add(letter.record.offset)
        account.taken = max(account.taken, step.taken or 0)
        for offset in step.waiting:
            account.pending.setdefault(offset, [0, None, ""])
        for offset in step.begin:
            delivery = account.pending.setdefault(offset, [0, None, ""])
            delivery[0] += 1
            delivery[1] = None
        return {offset: account.pending[offset][0] for offset in step.begin}, held

    @precondition(lambda self: self.letters)
    @rule(data=st.data())
    def redrive(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.letters)))
        assert self.letters.pop(id) == self.store.letters.remove(id)

    @rule()
    def crash(self) -> None:
        self.reopen()

    # -- what must be so

    @invariant()
    def the_log_is_the_same(self) -> None:
        assert self.log == list(self.store.log.read())
        for key in ("a", "b"):
            assert self.versions.get(key, 0) == self.store.log.stream_version(key)
            own = [each for each in self.log if each.key == key]
            assert own == list(self.store.log.read(key=key))

    @invariant()
    def the_positions_are_the_same(self) -> None:
        found = self.store.progress.positions()
        assert sorted(self.accounts) == [each.name for each in found]
        for position in found:
            account = self.accounts[position.name]
            assert (account.offset(), account.taken) == (position.offset, position.taken)
            assert account.lease == position.lease
            ahead = [each for each in self.log if each.offset > account.taken]
            assert len(ahead) + len(account.pending) == position.lag
            pending = self.store.progress.pending(position.name)
            assert account.pending == {
                each.offset: [each.attempts, each.due, each.story] for each in pending
            }

    @invariant()
    def the_letters_are_the_same(self) -> None:
        assert list(self.letters.values()) == self.store.letters.query()

    def teardown(self) -> None:
        self.store.close()


class MemoryModel(StoreModel):
    def reopen(self) -> None:
        if not hasattr(self, "store"):
            self.store = MemoryStore()
            return
        self.store.crash()
        for account in self.accounts.values():
            account.lease = None


class SQLiteModel(StoreModel):
    """
    A crash is what a disk would show after it: a copy of the files as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.lives = 0

    def reopen(self) -> None:
        old, new = (self.folder / f"{life}.db" for life in (self.lives, self.lives + 1))
        self.lives += 1
        if hasattr(self, "store"):
            for suffix in ("", "-wal"):
                if (path := Path(f"{old}{suffix}")).exists():
                    shutil.copy(path, f"{new}{suffix}")
            self.store.close()
        self.store = SQLiteStore(new)

    def teardown(self) -> None:
        try:
            assert () == self.store.check()
        finally:
            super().teardown()
            shutil.rmtree(self.folder)


MemoryModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
SQLiteModel.TestCase.settings = settings(max_examples=25, stateful_step_count=25)


class TestMemoryStore(MemoryModel.TestCase):
    pass


class TestSQLiteStore(SQLiteModel.TestCase):
    pass
