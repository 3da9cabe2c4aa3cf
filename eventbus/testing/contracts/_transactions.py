"""
What every `Progress.transaction` does, ours or yours.

Law: a handler's own writes, its progress, its key and what it publishes are one: the tests
write some of each, and look for all or none.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from eventbus.errors import (
    ConcurrencyError,
    DeadLetterNotFoundError,
    StoreError,
    SubscriptionNotFoundError,
)
from eventbus.kept_letters import KeptLetter
from eventbus.progress import Lease, Progress, Step, Transaction
from eventbus.store import Store
from eventbus.testing.contracts._records import NOON, offsets, record

__all__ = ["TTL", "TransactionContract", "letter"]

TTL = 10.0


def letter(store: Store, offset: int, **facts: Any) -> KeptLetter:
    """
    Make a letter for the record at *offset*.
    """
    (found,) = store.log.read(after=offset - 1, limit=1)
    plain: dict[str, Any] = {
        "id": f"letter-{offset}",
        "subscription": "a",
        "record": found,
        "attempts": 1,
        "error_type": "ValueError",
        "first_failure": NOON,
        "last_failure": NOON,
    }
    return KeptLetter(**{**plain, **facts})


class OutageError(Exception):
    pass


class TransactionContract:
    @pytest.fixture
    def store(self) -> Store:  # pragma: no cover - overridden
        raise NotImplementedError("a subclass says how its store is made")

    @pytest.fixture
    def progress(self, store: Store) -> Progress:
        """
        Ten records, of the keys "odd" and "even", and one subscription.
        """
        keys = ["odd" if number % 2 else "even" for number in range(1, 11)]
        store.log.append([record(key=key) for key in keys])
        store.progress.open("a", start="origin")
        return store.progress

    @pytest.fixture
    def lease(self, progress: Progress) -> Lease:
        lease = progress.acquire("a", owner="me", ttl=TTL, now=0.0)
        assert lease is not None
        return lease

    def write(self, store: Store, transaction: Transaction) -> None:
        """
        Do what a handler may do: write, publish, claim and complete a key, and be done.
        """
        transaction.connection.execute("INSERT INTO mine VALUES ('written')")
        store.log.append([record(id="published")], connection=transaction.connection)
        claim = transaction.idempotency.claim("scope", "key", source=record(), now=1.0)
        assert "granted" == claim.state
        assert transaction.idempotency.renew(claim, now=2.0)
        assert transaction.idempotency.complete(claim, now=3.0)
        transaction.advance(Step(done=[1]))

    def found(self, store: Store, lease: Lease) -> tuple[int, int, int, str]:
        with store.progress.transaction(lease) as transaction:
            rows = len(transaction.connection.execute("SELECT * FROM mine").fetchall())
            claim = transaction.idempotency.claim("scope", "key", source=record(), now=4.0)
            assert (claim.state == "granted") == transaction.idempotency.release(claim)
            assert transaction.idempotency.add_waiter(claim, pytest.fail) in (False, None)
        published = store.log.get("published") is not None
        return rows, int(published), store.progress.position("a").pending, claim.state

    @pytest.fixture
    def begun(self, progress: Progress, lease: Lease) -> Lease:
        with progress.transaction(lease) as transaction:
            transaction.connection.execute("CREATE TABLE mine (what TEXT)")
        progress.advance(lease, Step(taken=1, begin=[1]))
        return lease

    def test_everything_is_committed_together(self, store: Store, begun: Lease) -> None:
        """
        After the block all is there: the writes, the event, the key and the progress.
        """
        heard: list[int] = []
        store.log.on_append(lambda: heard.append(store.log.last_offset()))
        with store.progress.transaction(begun) as transaction:
            self.write(store, transaction)
            assert store.log.get("published") is None
            assert 1 == store.progress.position("a").pending
        assert (1, 1, 0, "done") == self.found(store, begun)
        assert [11] == heard[:1]

    def test_everything_is_rolled_back_together(self, store: Store, begun: Lease) -> None:
        """
        When the block raises nothing is there, and the exception passes through.
        """
        with (
            pytest.raises(OutageError),
            store.progress.transaction(begun) as transaction,
        ):
            self.write(store, transaction)
            raise OutageError
        assert (0, 0, 1, "granted") == self.found(store, begun)
        assert 10 == store.log.last_offset()

    def test_a_refused_step_rolls_back_the_rest(self, store: Store, begun: Lease) -> None:
        """
        A letter whose id is taken keeps the handler's writes out, too.
        """
        store.letters.add(letter(store, 9, id="taken"))
        store.progress.advance(begun, Step(taken=2, begin=[2]))
        with (
            pytest.raises(ValueError, match="'taken'"),
            store.progress.transaction(begun) as transaction,
        ):
            self.write(store, transaction)
            transaction.advance(Step(dead=[letter(store, 2, id="taken")]))
        assert (0, 0, 2, "granted") == self.found(store, begun)

    def test_steps_of_a_transaction_add_up(self, store: Store, begun: Lease) -> None:
        """
        A later step sees what an earlier one did, and both count at the end.
        """
        with store.progress.transaction(begun) as transaction:
            advance = transaction.advance(Step(taken=3, begin=[2, 3]))
            assert {2: 1, 3: 1} == dict(advance.attempts)
            assert {2: 2} == dict(transaction.advance(Step(begin=[2], done=[3])).attempts)
        assert [1, 2] == [each.offset for each in store.progress.pending("a")]
        assert [1, 2] == [each.attempts for each in store.progress.pending("a")]

    def test_a_letter_goes_with_the_transaction(self, store: Store, begun: Lease) -> None:
        """
        It is gone when the writes are there, and there when they were rolled back.
        """
        store.letters.add(letter(store, 9))
        with (
            pytest.raises(OutageError),
            store.progress.transaction(begun) as transaction,
        ):
            transaction.advance(Step(gone=["letter-9"]))
            self.write(store, transaction)
            raise OutageError
        assert (1, (0, 0, 1, "granted")) == (store.letters.count(), self.found(store, begun))
        with store.progress.transaction(begun) as transaction:
            transaction.advance(Step(gone=["letter-9"]))
            self.write(store, transaction)
        assert (0, (1, 1, 0, "done")) == (store.letters.count(), self.found(store, begun))

    def test_a_letter_goes_once(self, store: Store, begun: Lease) -> None:
        """
        One that has gone already, in this very transaction even, rolls back the rest.
        """
        store.letters.add(letter(store, 9))
        with (
            pytest.raises(DeadLetterNotFoundError, match="letter-9"),
            store.progress.transaction(begun) as transaction,
        ):
            self.write(store, transaction)
            transaction.advance(Step(gone=["letter-9"]))
            transaction.advance(Step(gone=["letter-9"]))
        assert (1, (0, 0, 1, "granted")) == (store.letters.count(), self.found(store, begun))

    def test_an_async_transaction_is_one_as_well(self, store: Store, begun: Lease) -> None:
        """
        It commits all at its end, and nothing where its block raises.
        """

        async def main() -> None:
            with pytest.raises(OutageError):
                async with store.progress.atransaction(begun) as transaction:
                    self.write(store, transaction)
                    raise OutageError
            assert 1 == store.progress.position("a").pending
            async with store.progress.atransaction(begun) as transaction:
                self.write(store, transaction)

        asyncio.run(main())
        assert (1, 1, 0, "done") == self.found(store, begun)

    def test_transactions_of_one_loop_take_turns(self, store: Store, begun: Lease) -> None:
        """
        Each may await in its block: the others wait for it, and the loop for none.
        """
        inside = list[int]()

        async def borrow(number: int) -> None:
            async with store.progress.atransaction(begun) as transaction:
                inside.append(number)
                for _ in range(3):
                    await asyncio.sleep(0)
                transaction.connection.execute("INSERT INTO mine VALUES ('written')")
                assert [number] == inside
                inside.clear()

        async def main() -> None:
            await asyncio.gather(*map(borrow, range(3)))

        asyncio.run(main())
        assert 3 == self.found(store, begun)[0]

    @pytest.mark.parametrize("verb", ["commit", "rollback", "close"])
    def test_the_handler_does_not_end_the_transaction(
        self, store: Store, begun: Lease, verb: str
    ) -> None:
        """
        Whoever was lent the connection is refused to commit, to roll back and to close it.
        """
        with store.progress.transaction(begun) as transaction:
            transaction.connection.execute("INSERT INTO mine VALUES ('written')")
            with pytest.raises(StoreError, match=verb):
                getattr(transaction.connection, verb)()
            transaction.advance(Step(done=[1]))
        assert (1, 0, 0, "granted") == self.found(store, begun)

    def test_ending_it_in_sql_is_refused_as_well(self, store: Store, begun: Lease) -> None:
        """
        A statement that commits is found out, and the progress is not stored.
        """
        with (
            pytest.raises(StoreError, match="COMMIT"),
            store.progress.transaction(begun) as transaction,
        ):
            transaction.advance(Step(done=[1]))
            transaction.connection.execute("ROLLBACK")
        assert (0, 0, 1, "granted") == self.found(store, begun)

    def test_statements_can_be_grouped(self, store: Store, begun: Lease) -> None:
        """
        ``with connection:`` takes back what its block wrote, and nothing else.
        """
        with store.progress.transaction(begun) as transaction:
            connection = transaction.connection
            with connection:
                connection.execute("INSERT INTO mine VALUES ('kept')")
                with pytest.raises(OutageError), connection:
                    connection.execute("INSERT INTO mine VALUES ('taken back')")
                    raise OutageError
        assert 1 == self.found(store, begun)[0]

    def test_a_transaction_meets_the_streams_version(self, store: Store, begun: Lease) -> None:
        """
        What is published in it is checked as ever: versions, ids and batches.
        """
        with store.progress.transaction(begun) as transaction:
            connection = transaction.connection
            pair = [record(key="new"), record(key="new")]
            store.log.append(pair, expected_version=0, connection=connection)
            store.log.append([record(key="new")], expected_version=2, connection=connection)
            store.log.append([], connection=connection)
        assert [11, 12, 13] == offsets(store.log.read(after=10))
        assert 3 == store.log.stream_version("new")

    def test_what_is_refused_leaves_the_log_as_it_was(self, store: Store, begun: Lease) -> None:
        """
        A version that is not met keeps out the whole transaction.
        """
        with (
            pytest.raises(ConcurrencyError),
            store.progress.transaction(begun) as transaction,
        ):
            self.write(store, transaction)
            pair = [record(key="new"), record(key="new")]
            store.log.append(pair, connection=transaction.connection)
            late = [record(key="new")]
            store.log.append(late, expected_version=1, connection=transaction.connection)
        assert (0, 0, 1, "granted") == self.found(store, begun)
        assert (10, 0) == (store.log.last_offset(), store.log.stream_version("new"))

    def test_a_redrive_needs_no_lease(self, store: Store, begun: Lease) -> None:
        """
        Its letter goes with what its handler writes, whoever consumes the subscription.
        """
        for offset in (1, 2):
            store.letters.add(letter(store, offset))
        with store.progress.transaction("a") as transaction:
            transaction.advance(Step(gone=["letter-1"]))
            transaction.connection.execute("INSERT INTO mine VALUES ('redriven')")
        with pytest.raises(OutageError), store.progress.transaction("a") as transaction:
            transaction.advance(Step(gone=["letter-2"]))
            raise OutageError
        with (
            pytest.raises(DeadLetterNotFoundError),
            store.progress.transaction("a") as transaction,
        ):
            transaction.advance(Step(gone=["letter-1"]))
        assert ["letter-2"] == [each.id for each in store.letters.query()]
        assert (1, 0, 1, "granted") == self.found(store, begun)
        with pytest.raises(SubscriptionNotFoundError):
            store.progress.transaction("nobody").__enter__()

    def test_what_is_held_behind_a_letter_is_not_pruned(self, store: Store, begun: Lease) -> None:
        """
        It is not finished, though its delivery is: it waits for its turn in the log.
        """
        store.progress.advance(begun, Step(done=[1], taken=10))
        store.letters.add(letter(store, 3, holds_key=True))
        assert 2 == store.log.prune(before=9)
        store.letters.remove("letter-3")
        assert 6 == store.log.prune(before=9)
