"""
What every `Progress` does, ours or yours.

Law: only the protocols are used here, and time is a number. An implementation passes the
suite by a subclass whose fixture *store* returns an empty `eventbus.store.Store`.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest

from eventbus.errors import (
    DeadLetterNotFoundError,
    LeaseLostError,
    SubscriptionNotFoundError,
)
from eventbus.progress import Handled, Lease, Pending, Position, Progress, Retry, Start, Step
from eventbus.store import Store
from eventbus.testing.contracts._held import HeldContract
from eventbus.testing.contracts._records import minutes, offsets, record, records
from eventbus.testing.contracts._transactions import TTL, letter

__all__ = ["ProgressContract"]


class ProgressContract(HeldContract):
    """
    What every `eventbus.progress.Progress` does.

    Fixture to be given: ``store``, an empty `eventbus.store.Store` that it is part of.

    .. versionadded:: 0.1
    """

    # -- positions

    @pytest.mark.parametrize(
        ("start", "after"),
        [("origin", 0), ("now", 10), (3, 3), (0, 0), (minutes(4), 4), (minutes(99), 10)],
    )
    def test_a_new_subscription_starts_somewhere(
        self, store: Store, start: Start, after: int
    ) -> None:
        """
        It begins with the first event, the next one, after an offset, or at an instant.
        """
        store.log.append([record(time=minutes(number)) for number in range(10)])
        position = store.progress.open("b", start=start)
        expected = Position(
            name="b", offset=after, taken=after, pending=0, lag=10 - after, dead=0, lease=None
        )
        assert expected == position
        assert list(range(after + 1, 11)) == offsets(store.log.read(after=position.taken))

    def test_a_place_once_taken_is_kept(self, progress: Progress, lease: Lease) -> None:
        """
        Opening again returns where the subscription stands, whatever start is given.
        """
        progress.advance(lease, Step(taken=4))
        assert 4 == progress.open("a", start="now").taken
        assert 4 == progress.open("a", start=1).taken

    def test_positions_come_by_name(self, progress: Progress) -> None:
        """
        All subscriptions are listed, whether or not anybody consumes them.
        """
        progress.open("c")
        progress.open("b '; --")
        assert ["a", "b '; --", "c"] == [each.name for each in progress.positions()]
        assert progress.positions()[0] == progress.position("a")

    def test_unknown_subscriptions_are_named(self, progress: Progress) -> None:
        """
        Whoever asks for a subscription that was never opened is told which one.
        """
        asks: list[Callable[[], object]] = [
            lambda: progress.position("z"),
            lambda: progress.pending("z"),
            lambda: progress.forget("z"),
            lambda: progress.acquire("z", owner="me", ttl=TTL, now=0.0),
        ]
        for ask in asks:
            with pytest.raises(SubscriptionNotFoundError, match="'z'"):
                ask()

    def test_a_subscription_can_be_forgotten(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        Its place and its lease are gone; its letters stay, and it can begin anew.
        """
        progress.advance(lease, Step(taken=5, begin=[2, 3]))
        progress.advance(lease, Step(dead=[letter(store, 2)]))
        progress.forget("a")
        assert [] == progress.positions()
        again = progress.open("a", start="origin")
        assert (0, 0, 1) == (again.taken, again.pending, again.dead)
        newer = progress.acquire("a", owner="you", ttl=TTL, now=0.0)
        assert newer is not None
        with pytest.raises(LeaseLostError):
            progress.advance(lease, Step(taken=9))

    # -- steps

    def test_what_is_taken_and_not_pending_is_finished(
        self, progress: Progress, lease: Lease
    ) -> None:
        """
        A subscription passes over what is none of its business.
        """
        progress.advance(lease, Step(taken=7))
        position = progress.position("a")
        assert (7, 7, 0, 3) == (position.offset, position.taken, position.pending, position.lag)

    def test_an_unfinished_event_holds_the_offset(self, progress: Progress, lease: Lease) -> None:
        """
        The offset never passes an unfinished event, in whatever order the others end.
        """
        progress.advance(lease, Step(taken=6, waiting=[2, 3, 5]))
        for done, offset in (([3], 1), ([], 1), ([2], 4), ([5], 6)):
            progress.advance(lease, Step(done=done))
            assert offset == progress.position("a").offset
        assert (0, 4) == (progress.position("a").pending, progress.position("a").lag)

    def test_nothing_taken_is_given_back(self, progress: Progress, lease: Lease) -> None:
        """
        A smaller offset does not move a subscription back.
        """
        progress.advance(lease, Step(taken=6))
        progress.advance(lease, Step(taken=2))
        assert 6 == progress.position("a").taken

    def test_attempts_are_counted_before_the_call(self, progress: Progress, lease: Lease) -> None:
        """
        Each beginning counts, also after one that never came to an end.
        """
        advance = progress.advance(lease, Step(taken=3, waiting=[1, 2], begin=[1, 3]))
        assert {1: 1, 3: 1} == dict(advance.attempts)
        assert [(1, 1), (2, 0), (3, 1)] == attempts(progress)
        assert {1: 2, 2: 1} == dict(progress.advance(lease, Step(begin=[1, 2])).attempts)
        assert [(1, 2), (2, 1), (3, 1)] == attempts(progress)

    def test_what_waits_already_goes_on_waiting(self, progress: Progress, lease: Lease) -> None:
        """
        Taking a delivery again leaves its attempts as they are.
        """
        progress.advance(lease, Step(taken=1, begin=[1]))
        progress.advance(lease, Step(waiting=[1]))
        assert [(1, 1)] == attempts(progress)

    def test_a_retry_is_remembered(self, progress: Progress, lease: Lease) -> None:
        """
        A failed delivery stays pending, with its attempts, its story and when it is due.
        """
        progress.advance(lease, Step(taken=2, begin=[1, 2]))
        retry = Retry(offset=1, due=12.5, story='[{"message": "Ü"}]')
        progress.advance(lease, Step(retry=[retry], done=[2]))
        waiting = Pending(offset=1, attempts=1, due=12.5, story=retry.story)
        assert [waiting] == progress.pending("a")
        assert {1: 2} == dict(progress.advance(lease, Step(begin=[1])).attempts)
        assert [attrs.evolve(waiting, attempts=2, due=None)] == progress.pending("a")

    def test_what_is_finished_stays_finished(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        A result for a delivery that is not pending is passed over.
        """
        progress.advance(lease, Step(taken=2, begin=[1]))
        progress.advance(lease, Step(done=[1]))
        late = Step(done=[1, 2], retry=[Retry(offset=1, due=0.0)], dead=[letter(store, 2)])
        progress.advance(lease, late)
        assert [] == progress.pending("a")
        assert 0 == store.letters.count()

    def test_pending_deliveries_come_in_pages(self, progress: Progress, lease: Lease) -> None:
        """
        They come in the order of their offsets, as many as asked for.
        """
        progress.advance(lease, Step(taken=9, waiting=[9, 2, 5, 7]))
        assert [2, 5, 7, 9] == [each.offset for each in progress.pending("a")]
        assert [5, 7] == [each.offset for each in progress.pending("a", after=2, limit=2)]
        with pytest.raises(ValueError, match="limit"):
            progress.pending("a", limit=0)

    def test_subscriptions_do_not_meet(self, progress: Progress, lease: Lease) -> None:
        """
        What one subscription does changes nothing about another.
        """
        before = progress.open("b", start="origin")
        progress.advance(lease, Step(taken=3, begin=[1, 2]))
        progress.advance(lease, Step(done=[1]))
        assert before == progress.position("b")
        assert [] == progress.pending("b")

    # -- dead letters

    def test_a_dead_letter_finishes_its_delivery(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        The letter is kept, and the offset passes on.
        """
        progress.advance(lease, Step(taken=3, begin=[1, 2, 3]))
        first = letter(store, 1)
        progress.advance(lease, Step(dead=[first], done=[2]))
        assert [first] == store.letters.query()
        position = progress.position("a")
        assert (2, 1, 1) == (position.offset, position.pending, position.dead)

    def test_a_step_is_all_or_nothing(self, store: Store, progress: Progress, lease: Lease) -> None:
        """
        A letter whose id is taken keeps the whole step out.
        """
        progress.advance(lease, Step(taken=3, begin=[1, 2, 3]))
        store.letters.add(letter(store, 9, id="taken"))
        before = progress.position("a"), progress.pending("a")
        dead = [letter(store, 1), letter(store, 2, id="taken")]
        with pytest.raises(ValueError, match="'taken'"):
            progress.advance(lease, Step(done=[3], dead=dead, taken=9, begin=[9]))
        assert before == (progress.position("a"), progress.pending("a"))
        assert 1 == store.letters.count()

    def test_later_events_of_a_held_key_are_held(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        Letters of a held key are kept uncalled, in order; those of other keys stay pending.
        """
        progress.advance(lease, Step(taken=10, begin=[1], waiting=[3, 4, 5]))
        dead = letter(store, 1, holds_key=True)
        held = [letter(store, offset, reason="held", holds_key=True) for offset in (3, 4, 5)]
        advance = progress.advance(lease, Step(dead=[dead], hold=held))
        assert {3, 5} == advance.held
        assert [1, 3, 5] == [each.record.offset for each in store.letters.query()]
        assert [4] == [each.offset for each in progress.pending("a")]
        assert {"odd"} == store.letters.held_keys("a")

    def test_a_key_that_is_free_again_holds_nothing(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        An event that was to wait behind a letter that is gone by now stays pending.
        """
        progress.advance(lease, Step(taken=3, begin=[1], waiting=[3]))
        first = letter(store, 1, holds_key=True)
        progress.advance(lease, Step(dead=[first]))
        store.letters.remove(first.id)
        advance = progress.advance(lease, Step(hold=[letter(store, 3, holds_key=True)]))
        assert frozenset() == advance.held
        assert [3] == [each.offset for each in progress.pending("a")]
        assert 0 == store.letters.count()

    def test_another_subscriptions_letter_holds_nothing(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        Keys are held for one subscription at a time.
        """
        store.letters.add(letter(store, 1, subscription="b", holds_key=True))
        progress.advance(lease, Step(taken=3, waiting=[3]))
        hold = [letter(store, 3, holds_key=True)]
        assert frozenset() == progress.advance(lease, Step(hold=hold)).held

    # -- pruning and beginning again

    def test_a_letter_gives_way_to_its_delivery(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        In one step it goes and its record waits again; its key holds nobody any more.
        """
        store.letters.add(letter(store, 3, holds_key=True))
        progress.advance(lease, Step(taken=5, waiting=[5]))
        hold = [letter(store, 5, holds_key=True)]
        advance = progress.advance(lease, Step(gone=["letter-3"], hold=hold, waiting=[3]))
        assert frozenset() == advance.held
        assert [3, 5] == [each.offset for each in progress.pending("a")]
        assert (0, frozenset()) == (store.letters.count(), store.letters.held_keys("a"))

    def test_an_attempt_that_was_never_made_does_not_count(
        self, progress: Progress, lease: Lease
    ) -> None:
        """
        Whatever was begun waits again, with its story; there are never less than none.
        """
        progress.advance(lease, Step(taken=3, begin=[1, 2]))
        progress.advance(lease, Step(retry=[Retry(offset=1, due=9.0, story="no")]))
        progress.advance(lease, Step(begin=[1]))
        progress.advance(lease, Step(untried=[1, 2, 3], waiting=[3]))
        progress.advance(lease, Step(untried=[2]))
        assert [(1, 1, None, "no"), (2, 0, None, ""), (3, 0, None, "")] == [
            attrs.astuple(each) for each in progress.pending("a")
        ]
        advance = progress.advance(lease, Step(untried=[1], begin=[1, 2]))
        assert {1: 1, 2: 1} == dict(advance.attempts)

    def test_what_was_handled_is_remembered(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        Of each record the latest, by subscription, until the record is pruned.
        """
        progress.open("b", start="origin")
        other = progress.acquire("b", owner="me", ttl=TTL, now=0.0)
        assert other is not None
        third = Handled(offset=3, attempts=1, time=100.0, seconds=0.5)
        again, seventh = attrs.evolve(third, attempts=2), attrs.evolve(third, offset=7)
        progress.advance(other, Step(taken=10, handled=[third]))
        progress.advance(lease, Step(taken=10, handled=[seventh, third]))
        progress.advance(lease, Step(handled=[again]))
        assert [("a", again), ("b", third)] == list(progress.handled(3).items())
        assert ({"a": seventh}, {}) == (progress.handled(7), progress.handled(8))
        store.log.prune(before=4)
        assert ({}, {"a": seventh}) == (progress.handled(3), progress.handled(7))
        progress.forget("a")
        progress.open("a")
        assert {} == progress.handled(7)

    @pytest.mark.parametrize("gone", [["letter-3", "letter-4"], ["letter-3", "letter-8"]])
    def test_all_letters_give_way_or_none(
        self, store: Store, progress: Progress, lease: Lease, gone: list[str]
    ) -> None:
        """
        One that is not there, or another subscription's, leaves all as it was.
        """
        store.letters.add(letter(store, 3))
        store.letters.add(letter(store, 8, subscription="b"))
        with pytest.raises(DeadLetterNotFoundError, match=gone[1]):
            progress.advance(lease, Step(gone=gone, taken=5, waiting=[3]))
        assert 2 == store.letters.count()
        assert (0, []) == (progress.position("a").taken, progress.pending("a"))

    def test_what_is_not_finished_is_not_pruned(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        Nothing goes that any subscription has still to finish, nor anything after it.
        """
        progress.advance(lease, Step(taken=8, waiting=[5, 7]))
        other = progress.open("b", start=6)
        assert 4 == store.log.prune(before=10)
        assert [5, 6, 7, 8, 9, 10] == offsets(store.log.read())
        assert 4 == progress.position("b").lag
        progress.advance(lease, Step(done=[5, 7]))
        assert 2 == store.log.prune(before=10)
        progress.forget(other.name)
        assert 2 == store.log.prune(before=10)
        assert [9, 10] == offsets(store.log.read())

    def test_a_subscription_begins_again(
        self, store: Store, progress: Progress, lease: Lease
    ) -> None:
        """
        After a reset it reads on after that offset, with nothing pending.
        """
        progress.advance(lease, Step(taken=8, begin=[5, 7]))
        progress.advance(lease, Step(dead=[letter(store, 7)]))
        progress.reset(lease, to=2)
        position = progress.position("a")
        assert (2, 2, 0, 8, 1) == (
            position.offset,
            position.taken,
            position.pending,
            position.lag,
            position.dead,
        )
        assert {5: 1} == dict(progress.advance(lease, Step(taken=5, begin=[5])).attempts)

    def test_a_log_that_was_pruned_leaves_no_lag(self, store: Store, progress: Progress) -> None:
        """
        What is gone is nobody's to finish.
        """
        store.log.append(records(2))
        progress.forget("a")
        store.log.prune(before=12)
        assert 1 == progress.open("a", start="origin").lag


def attempts(progress: Progress) -> list[tuple[int, int]]:
    return [(each.offset, each.attempts) for each in progress.pending("a")]
