"""
What every `Progress` does with keys that are held behind a letter, ours or yours.

Law: a key goes on as a whole or not at all, whoever does what to its letters meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from eventbus.kept_letters import HELD
from eventbus.progress import Lease, Progress, Step
from eventbus.store import Store
from eventbus.testing.contracts._leases import LeaseContract
from eventbus.testing.contracts._transactions import letter

__all__ = ["HeldContract"]


class HeldContract(LeaseContract):
    @pytest.fixture
    def held(self, store: Store, progress: Progress, lease: Lease) -> Lease:
        """
        Of ten records all are looked at, and what waits behind 1 and 2 is held.
        """
        progress.advance(lease, Step(taken=10, waiting=range(1, 11)))
        dead = [letter(store, offset, holds_key=True) for offset in (1, 2)]
        held = [letter(store, offset, reason=HELD, holds_key=True) for offset in range(3, 11)]
        progress.advance(lease, Step(dead=dead, hold=held))
        assert (10, 0) == (store.letters.count(), progress.position("a").pending)
        return lease

    def test_a_key_is_taken_up_once_its_letter_is_gone(
        self, store: Store, progress: Progress, held: Lease
    ) -> None:
        """
        What was held waits again, in the order of the log; a key that is stuck stays so.
        """
        assert {"odd", "even"} == store.letters.stuck_keys("a")
        assert {} == progress.take_up(held, ["odd", "even"], now=1.0)
        store.letters.remove("letter-1")
        assert {"even"} == store.letters.stuck_keys("a")
        assert {"odd": [3, 5, 7, 9]} == progress.take_up(held, ["odd", "even"], now=1.0)
        assert [3, 5, 7, 9] == [each.offset for each in progress.pending("a")]
        assert {0} == {each.attempts for each in progress.pending("a")}
        assert {"even"} == store.letters.held_keys("a")
        assert 2 == progress.position("a").offset

    def test_a_key_without_letters_is_free(
        self, store: Store, progress: Progress, held: Lease
    ) -> None:
        """
        There is nothing to take up, and it is said so; of other keys nothing is touched.
        """
        assert {"none": []} == progress.take_up(held, ["none"], now=1.0)
        assert {} == progress.take_up(held, [], now=1.0)
        assert (10, 0) == (store.letters.count(), progress.position("a").pending)

    def test_another_subscriptions_letters_are_not_taken_up(
        self, store: Store, progress: Progress, held: Lease
    ) -> None:
        """
        Keys are held for one subscription at a time; what holds none is not taken up either.
        """
        own = {"id": "other", "reason": HELD}
        store.letters.add(letter(store, 1, subscription="b", holds_key=True, **own))
        store.letters.add(letter(store, 1, id="plain", reason=HELD))
        assert frozenset() == store.letters.stuck_keys("b")
        store.letters.remove("letter-1")
        assert ["odd"] == list(progress.take_up(held, ["odd"], now=1.0))
        assert {"b", "a"} == {store.letters.get(id).subscription for id in ("other", "plain")}

    @pytest.mark.parametrize("edited", [b"edited", b""])
    def test_a_key_of_which_a_letter_was_edited_is_stuck(
        self, store: Store, progress: Progress, held: Lease, edited: bytes
    ) -> None:
        """
        The log, from which it would be delivered, has the original.
        """
        store.letters.remove("letter-1")
        store.letters.edit("letter-5", edited)
        assert {"odd", "even"} == store.letters.stuck_keys("a")
        assert {} == progress.take_up(held, ["odd"], now=1.0)
        store.letters.edit("letter-5", None)
        assert {"even"} == store.letters.stuck_keys("a")
        assert ["odd"] == list(progress.take_up(held, ["odd"], now=1.0))

    def test_what_is_being_redriven_is_not_taken_up(
        self, store: Store, progress: Progress, held: Lease
    ) -> None:
        """
        Nor is what comes before it or after it, until the claim is over.
        """
        store.letters.remove("letter-1")
        assert store.letters.claim("letter-5", owner="elsewhere", ttl=5.0, now=1.0)
        assert {"even"} == store.letters.stuck_keys("a")
        assert {} == progress.take_up(held, ["odd"], now=5.9)
        assert (9, 0) == (store.letters.count(), progress.position("a").pending)
        assert ["odd"] == list(progress.take_up(held, ["odd"], now=6.0))

    def test_what_becomes_of_letters_shows_as_changes(
        self, store: Store, progress: Progress, held: Lease
    ) -> None:
        """
        So whoever waits for letters to go need not ask for them while nothing is written.
        """
        last = letter(store, 9)
        acts: list[Callable[[], object]] = [
            lambda: store.letters.claim("letter-9", owner="me", ttl=5.0, now=1.0),
            lambda: store.letters.edit("letter-9", b"edited"),
            lambda: store.letters.replace(last),
            lambda: store.letters.remove("letter-9"),
            lambda: store.letters.add(last),
            store.letters.discard,
        ]
        for act in acts:
            before = store.log.changes()
            assert before == store.log.changes()
            act()
            assert before != store.log.changes()
