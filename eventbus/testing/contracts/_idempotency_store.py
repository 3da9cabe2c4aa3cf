"""
What every `IdempotencyStore` does, ours or yours.

Law: only the protocol is used here, and time is a number. An implementation passes the
suite by a subclass whose fixture *make_store* returns what makes an empty store::

    class TestMyStore(IdempotencyStoreContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return partial(MyStore, tmp_path / "keys.db")
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eventbus.idempotency import Claim, IdempotencyStore
from eventbus.testing.contracts._together import (
    EPSILON,
    LEASE,
    SOURCE,
    TTL,
    MakeStore,
    Source,
    TogetherContract,
)

__all__ = ["IdempotencyStoreContract"]


class IdempotencyStoreContract(TogetherContract):
    """
    What every `eventbus.idempotency.IdempotencyStore` does.

    Fixture to be given: ``make_store``, a callable that takes *ttl* and *lease*,
    in seconds, and makes an empty store.

    .. versionadded:: 0.1
    """

    # -- claim

    def test_a_free_key_is_granted(self, store: IdempotencyStore) -> None:
        """
        The first who asks for a key gets it, for the length of a lease.
        """
        claim = self.claim(store, now=5.0)
        assert "granted" == claim.state
        assert 5.0 + LEASE == claim.expires

    def test_a_held_key_is_pending(self, store: IdempotencyStore) -> None:
        """
        Whoever asks while another is at it learns who holds the key, and for how long.
        """
        first, second = Source("first"), Source("second")
        store.claim("scope", "key", source=first, now=0.0)
        claim = store.claim("scope", "key", source=second, now=1.0)
        assert "pending" == claim.state
        assert LEASE == claim.expires
        assert "first" == claim.event_id

    def test_a_completed_key_is_done(self, store: IdempotencyStore) -> None:
        """
        Whoever asks after a success learns whose it was, and for how long it counts.
        """
        first, second = Source("first"), Source("second")
        assert store.complete(store.claim("scope", "key", source=first, now=0.0), now=2.0)
        claim = store.claim("scope", "key", source=second, now=3.0)
        assert "done" == claim.state
        assert 2.0 + TTL == claim.expires
        assert "first" == claim.event_id

    def test_a_look_claims_nothing(self, store: IdempotencyStore) -> None:
        """
        Who only looks, where that can be done, sees what a claim would meet, and takes nothing.
        """
        look = getattr(store, "look", None)
        if look is None:
            pytest.skip("this store cannot tell without a claim, and need not")
        assert look("scope", "key", now=0.0) is None
        claim = store.claim("scope", "key", source=SOURCE, now=0.0)
        assert "granted" == claim.state
        assert ("pending", LEASE) == self.seen(look("scope", "key", now=1.0))
        assert look("other", "key", now=1.0) is None
        assert look("scope", "key", now=LEASE) is None
        assert store.complete(claim, now=2.0)
        assert ("done", 2.0 + TTL) == self.seen(look("scope", "key", now=3.0))
        assert look("scope", "key", now=2.0 + TTL) is None

    @staticmethod
    def seen(claim: Claim) -> tuple[str, float]:
        """
        Return what a look has shown.
        """
        return claim.state, claim.expires

    def test_a_granted_claim_knows_its_own_event(self, store: IdempotencyStore) -> None:
        """
        The id behind a granted claim is that of the event it was granted for.
        """
        source = Source("mine")
        assert "mine" == store.claim("scope", "key", source=source, now=0.0).event_id

    def test_scopes_do_not_collide(self, store: IdempotencyStore) -> None:
        """
        Equal keys of different scopes are different keys, however they are split.
        """
        names = [("a", "b"), ("b", "a"), ("ab", ""), ("", "ab"), ("a", ""), ("", "a"), ("", "")]
        claims = [store.claim(scope, key, source=SOURCE, now=0.0) for scope, key in names]
        assert ["granted"] * len(names) == [claim.state for claim in claims]

    def test_the_empty_key_is_a_key(self, store: IdempotencyStore) -> None:
        """
        The empty text is held, completed and met like any other key.
        """
        assert store.complete(self.claim(store, now=0.0, key=""), now=0.0)
        assert "done" == self.claim(store, now=1.0, key="").state
        assert "granted" == self.claim(store, now=1.0, key=" ").state

    def test_keys_are_told_apart_exactly(self, store: IdempotencyStore) -> None:
        """
        Case, accents, form and length matter: a key is text, not a word.
        """
        keys = ["é", "e\N{COMBINING ACUTE ACCENT}", "e", "E", "e ", "e\0", "\N{OWL}", "x" * 5_000]
        assert ["granted"] * 8 == [self.claim(store, now=0.0, key=key).state for key in keys]
        assert ["pending"] * 8 == [self.claim(store, now=0.0, key=key).state for key in keys]

    # -- the ends of ttl and lease

    @pytest.mark.parametrize(
        ("after", "state"), [(TTL - EPSILON, "done"), (TTL, "granted"), (TTL + EPSILON, "granted")]
    )
    def test_a_success_counts_for_one_ttl(
        self, store: IdempotencyStore, after: float, state: str
    ) -> None:
        """
        Just before the ttl ends a duplicate is met; from its end on the key is free.
        """
        assert store.complete(self.claim(store, now=0.0), now=7.0)
        assert state == self.claim(store, now=7.0 + after).state

    @pytest.mark.parametrize(
        ("after", "state"),
        [(LEASE - EPSILON, "pending"), (LEASE, "granted"), (LEASE + EPSILON, "granted")],
    )
    def test_a_crashed_holder_blocks_for_one_lease(
        self, store: IdempotencyStore, after: float, state: str
    ) -> None:
        """
        Just before the lease ends the key is held; from its end on it can be claimed.
        """
        self.claim(store, now=7.0)
        assert state == self.claim(store, now=7.0 + after).state

    def test_a_renewed_lease_runs_anew(self, store: IdempotencyStore) -> None:
        """
        A holder that renews keeps its key for another lease, as often as it likes.
        """
        claim = self.claim(store, now=0.0)
        for now in (9.0, 18.0, 27.0):
            assert store.renew(claim, now=now)
            assert now + LEASE == self.claim(store, now=now).expires
        assert "pending" == self.claim(store, now=27.0 + LEASE - EPSILON).state
        assert "granted" == self.claim(store, now=27.0 + LEASE).state

    def test_a_retried_delivery_keeps_its_key_beyond_the_ttl(self, make_store: MakeStore) -> None:
        """
        The ttl begins with the success: however long that takes, the key is held.
        """
        store = make_store(ttl=1.0, lease=LEASE)
        claim = self.claim(store, now=0.0)
        assert store.renew(claim, now=9.0)
        assert "pending" == self.claim(store, now=15.0).state
        assert store.complete(claim, now=15.0)
        assert "done" == self.claim(store, now=15.9).state

    def test_a_lapsed_lease_can_be_renewed(self, store: IdempotencyStore) -> None:
        """
        Late is not too late, as long as nobody has taken the key over.
        """
        claim = self.claim(store, now=0.0)
        assert store.renew(claim, now=LEASE + 5.0)
        assert "pending" == self.claim(store, now=LEASE + 6.0).state

    def test_a_lapsed_lease_can_be_completed(self, store: IdempotencyStore) -> None:
        """
        A success after the lease counts, as long as nobody has taken the key over.
        """
        claim = self.claim(store, now=0.0)
        assert store.complete(claim, now=LEASE + 5.0)
        assert "done" == self.claim(store, now=LEASE + 6.0).state

    # -- release

    def test_a_released_key_is_free(self, store: IdempotencyStore) -> None:
        """
        After a failure the next one who asks is granted the key.
        """
        assert store.release(self.claim(store, now=0.0))
        assert "granted" == self.claim(store, now=0.0).state

    def test_a_completed_key_can_be_released(self, store: IdempotencyStore) -> None:
        """
        Its holder can take a success back.
        """
        claim = self.claim(store, now=0.0)
        assert store.complete(claim, now=0.0)
        assert store.release(claim)
        assert "granted" == self.claim(store, now=1.0).state

    def test_what_is_released_is_over(self, store: IdempotencyStore) -> None:
        """
        A released claim owns nothing any more, even while nobody else has the key.
        """
        claim = self.claim(store, now=0.0)
        assert store.release(claim)
        assert not store.renew(claim, now=1.0)
        assert not store.complete(claim, now=1.0)
        assert not store.release(claim)
        assert "granted" == self.claim(store, now=1.0).state

    def test_a_completed_claim_has_no_lease(self, store: IdempotencyStore) -> None:
        """
        Renewing after success is refused and leaves the ttl as it is.
        """
        claim = self.claim(store, now=0.0)
        assert store.complete(claim, now=0.0)
        assert not store.renew(claim, now=1.0)
        assert TTL == self.claim(store, now=2.0).expires

    def test_completing_again_is_no_error(self, store: IdempotencyStore) -> None:
        """
        A claim that has completed may say so again.
        """
        claim = self.claim(store, now=0.0)
        assert store.complete(claim, now=0.0)
        assert store.complete(claim, now=1.0)
        assert "done" == self.claim(store, now=2.0).state

    # -- fencing

    def overtaken(self, store: IdempotencyStore) -> tuple[Claim, Claim]:
        late, newer = self.claim(store, now=0.0), self.claim(store, now=LEASE)
        assert ("granted", "granted") == (late.state, newer.state)
        return late, newer

    def test_a_late_finisher_is_fenced_off(self, store: IdempotencyStore) -> None:
        """
        Whose key was taken over can do nothing to the newer holder's.
        """
        late, _ = self.overtaken(store)
        assert not store.renew(late, now=LEASE + 1.0)
        assert not store.complete(late, now=LEASE + 1.0)
        assert not store.release(late)
        claim = self.claim(store, now=LEASE + 2.0)
        assert ("pending", 2 * LEASE) == (claim.state, claim.expires)

    def test_a_late_finisher_leaves_a_success_alone(self, store: IdempotencyStore) -> None:
        """
        Whose key was taken over and completed can neither free nor prolong it.
        """
        late, newer = self.overtaken(store)
        assert store.complete(newer, now=LEASE + 1.0)
        assert not store.renew(late, now=LEASE + 2.0)
        assert not store.complete(late, now=LEASE + 2.0)
        assert not store.release(late)
        claim = self.claim(store, now=LEASE + 3.0)
        assert ("done", LEASE + 1.0 + TTL) == (claim.state, claim.expires)

    def test_the_newer_holder_is_not_disturbed(self, store: IdempotencyStore) -> None:
        """
        After the late one has tried everything, the newer holder owns its key.
        """
        late, newer = self.overtaken(store)
        store.complete(late, now=LEASE + 1.0)
        store.release(late)
        assert store.renew(newer, now=LEASE + 2.0)
        assert store.complete(newer, now=LEASE + 3.0)
        assert store.release(newer)

    def test_an_outlived_success_is_fenced_off(self, store: IdempotencyStore) -> None:
        """
        Once its ttl has ended and the key is held again, a success cannot be taken back.
        """
        old = self.claim(store, now=0.0)
        assert store.complete(old, now=0.0)
        assert "granted" == self.claim(store, now=TTL).state
        assert not store.release(old)
        assert "pending" == self.claim(store, now=TTL + 1.0).state

    @pytest.mark.parametrize("completed", [False, True])
    def test_who_was_refused_owns_nothing(self, store: IdempotencyStore, completed: bool) -> None:
        """
        A claim that met another holder cannot renew, complete or release.
        """
        held = self.claim(store, now=0.0)
        if completed:
            assert store.complete(held, now=0.0)
        refused = self.claim(store, now=1.0)
        assert not store.renew(refused, now=2.0)
        assert not store.complete(refused, now=2.0)
        assert not store.release(refused)
        assert store.release(held)

    # -- waiting

    @pytest.mark.parametrize("settle", ["complete", "release", "take over"])
    def test_a_waiter_is_called_once_when_settled(
        self, store: IdempotencyStore, settle: str
    ) -> None:
        """
        Who waits for a pending holder hears of it when that one is settled, and only once.
        """
        calls: list[str] = []
        held = self.claim(store, now=0.0)
        self.wait(store, self.claim(store, now=1.0), lambda: calls.append("a"))
        self.wait(store, self.claim(store, now=1.0), lambda: calls.append("b"))
        assert [] == calls
        if settle == "complete":
            assert store.complete(held, now=2.0)
        elif settle == "release":
            assert store.release(held)
        else:
            assert "granted" == self.claim(store, now=LEASE).state
        assert ["a", "b"] == calls
        store.release(held)
        self.claim(store, now=1_000.0)
        assert ["a", "b"] == calls

    def test_a_waiter_may_use_the_store(self, store: IdempotencyStore) -> None:
        """
        No lock is held while a waiter is called: it can claim the key at once.
        """
        states: list[str] = []
        held = self.claim(store, now=0.0)
        waiting = self.claim(store, now=1.0)
        self.wait(store, waiting, lambda: states.append(self.claim(store, now=2.0).state))
        assert store.release(held)
        assert ["granted"] == states

    @pytest.mark.parametrize("settle", ["complete", "release", "take over"])
    def test_nobody_waits_for_what_is_settled(self, store: IdempotencyStore, settle: str) -> None:
        """
        A waiter that comes too late is told so, and not called.
        """
        held = self.claim(store, now=0.0)
        waiting = self.claim(store, now=1.0)
        if settle == "complete":
            store.complete(held, now=2.0)
        elif settle == "release":
            store.release(held)
        else:
            self.claim(store, now=LEASE)
        assert store.add_waiter(waiting, pytest.fail) in (False, None)
        store.release(held)

    @pytest.mark.parametrize("state", ["granted", "done"])
    def test_only_the_pending_is_waited_for(self, store: IdempotencyStore, state: str) -> None:
        """
        There is nothing to wait for in a key of one's own, or in a success.
        """
        claim = held = self.claim(store, now=0.0)
        if state == "done":
            store.complete(held, now=0.0)
            claim = self.claim(store, now=1.0)
        assert state == claim.state
        assert store.add_waiter(claim, pytest.fail) in (False, None)
        store.release(held)

    @staticmethod
    def wait(store: IdempotencyStore, claim: Claim, callback: Callable[[], object]) -> None:
        assert "pending" == claim.state
        answer = store.add_waiter(claim, callback)
        if answer is None:
            pytest.skip("this store cannot call back")
        assert answer is True
