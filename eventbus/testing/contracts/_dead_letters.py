"""
What every `DeadLetters` does, ours or yours.

Law: only the protocol is used here, and nothing of a letter but what survives any store:
not its exception object. An implementation passes the suite by a subclass whose fixture
*make_store* returns what makes an empty store with room for a few dozen letters::

    class TestMyDeadLetters(DeadLettersContract):
        @pytest.fixture
        def make_store(self, tmp_path):
            return partial(MyDeadLetters, tmp_path / "letters.db")
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread
from typing import Any

import attrs
import pytest

from eventbus.dead_letter import DeadLetter, DeadLetters
from eventbus.errors import DeadLetterNotFoundError
from eventbus.testing.contracts._letters import (
    MIXED,
    NOON,
    OrderCancelled,
    OrderPlaced,
    PaymentError,
    each_selection,
    ids,
    letter,
    minutes,
)

__all__ = ["DeadLettersContract"]

MakeStore = Callable[[], DeadLetters]


class DeadLettersContract:
    """
    What every `eventbus.dead_letter.DeadLetters` does.

    Fixture to be given: ``make_store``, a callable that makes an empty store.

    .. versionadded:: 0.1
    """

    @pytest.fixture
    def make_store(self) -> MakeStore:  # pragma: no cover - overridden
        raise NotImplementedError("a subclass says how its store is made")

    @pytest.fixture
    def store(self, make_store: MakeStore) -> DeadLetters:
        return make_store()

    @pytest.fixture
    def mixed(self, store: DeadLetters) -> DeadLetters:
        for each in MIXED:
            store.add(each)
        return store

    # -- one letter

    def test_a_letter_comes_back_whole(self, store: DeadLetters) -> None:
        """
        A letter has every fact it was added with.
        """
        kept = letter(
            "a",
            OrderCancelled("Ä-1"),
            [PaymentError("first"), KeyError("last")],
            idempotency_key="",
            redrives=2,
        )
        store.add(kept)
        assert kept == store.get("a")
        assert (kept,) == store.query()
        assert [kept] == list(store)

    def test_an_empty_store_is_empty(self, store: DeadLetters) -> None:
        """
        Before the first letter there is nothing to count, find or discard.
        """
        assert (0, 0, 0) == (len(store), store.count(), store.discard())
        assert () == store.query()
        assert [] == list(store)

    def test_the_unknown_is_named(self, store: DeadLetters) -> None:
        """
        Whoever asks for a letter that is not there is told which one.
        """
        store.add(letter("a"))
        for ask in (
            lambda: store.get("z-9"),
            lambda: store.remove("z-9"),
            lambda: store.replace(letter("z-9")),
            lambda: store.query(after="z-9"),
        ):
            with pytest.raises(DeadLetterNotFoundError, match="'z-9'") as refused:
                ask()
            assert "z-9" == refused.value.letter_id
        assert 1 == len(store)

    def test_a_letter_is_added_once(self, store: DeadLetters) -> None:
        """
        A second letter of the same id is refused, and the first one stays.
        """
        store.add(letter("a"))
        with pytest.raises(ValueError, match="'a'"):
            store.add(letter("a", OrderCancelled()))
        assert OrderPlaced() == store.get("a").event

    def test_a_removed_letter_is_gone(self, mixed: DeadLetters) -> None:
        """
        Removing hands the letter over and leaves the others as they were.
        """
        assert "c" == mixed.remove("c").id
        assert "a b d e f g" == ids(mixed.query())
        with pytest.raises(DeadLetterNotFoundError):
            mixed.remove("c")

    def test_a_replaced_letter_keeps_its_place(self, mixed: DeadLetters) -> None:
        """
        After a failed redrive the letter tells both stories, where it always was.
        """
        first = mixed.get("b")
        again = letter("b", first.event, [PaymentError("down"), KeyError("again")], at=9)
        mixed.replace(attrs.evolve(again, redrives=1, first_failure=first.first_failure))
        assert "a b c d e f g" == ids(mixed.query())
        found = mixed.get("b")
        assert (1, 2, "KeyError") == (found.redrives, found.attempts, found.error_type)
        assert first.first_failure == found.first_failure
        assert ["down", "'again'"] == [each.message for each in found.failures]
        assert "b" == ids(mixed.query(since=minutes(9)))

    # -- many

    @each_selection
    def test_a_query_finds_what_matches(
        self, mixed: DeadLetters, filters: dict[str, Any], expected: str
    ) -> None:
        """
        A letter is found if it meets every condition, and letters come as they arrived.
        """
        assert expected == ids(mixed.query(**filters))

    @each_selection
    def test_totals_agree(self, mixed: DeadLetters, filters: dict[str, Any], expected: str) -> None:
        """
        Counting counts what a query finds.
        """
        assert len(expected.split()) == mixed.count(**filters)

    @each_selection
    def test_discarding_takes_what_matches(
        self, mixed: DeadLetters, filters: dict[str, Any], expected: str
    ) -> None:
        """
        What a query finds is discarded and counted; everything else stays, in order.
        """
        rest = [each.id for each in MIXED if each.id not in expected.split()]
        assert len(expected.split()) == mixed.discard(**filters)
        assert " ".join(rest) == ids(mixed.query())
        assert len(rest) == len(mixed)

    @each_selection
    @pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
    def test_pages_add_up(
        self, mixed: DeadLetters, filters: dict[str, Any], expected: str, size: int
    ) -> None:
        """
        Page by page, each letter comes once and none is left out.
        """
        found: list[DeadLetter] = []
        page = mixed.query(limit=size, **filters)
        while page:
            assert len(page) <= size
            found += page
            assert len(found) <= len(MIXED)
            page = mixed.query(limit=size, after=page[-1].id, **filters)
        assert expected == ids(found)

    def test_a_page_can_follow_any_letter(self, mixed: DeadLetters) -> None:
        """
        A page begins after the letter given, whether or not that one matches.
        """
        assert "e f" == ids(mixed.query(after="d", limit=2))
        assert "d e" == ids(mixed.query(after="b", subscription="shop.notify"))
        assert () == mixed.query(after="g")

    def test_letters_that_arrive_do_not_disturb_the_pages(self, mixed: DeadLetters) -> None:
        """
        A letter that arrives between two pages comes on a later one.
        """
        assert "a b c d e" == ids(mixed.query(limit=5))
        mixed.add(letter("0"))
        assert "f g 0" == ids(mixed.query(limit=5, after="e"))

    @pytest.mark.parametrize("limit", [0, -1])
    def test_an_empty_page_is_refused(self, mixed: DeadLetters, limit: int) -> None:
        """
        A page without room for a letter would never end.
        """
        with pytest.raises(ValueError, match="limit"):
            mixed.query(limit=limit)

    @pytest.mark.parametrize("name", ["since", "until"])
    def test_a_time_without_a_zone_is_refused(self, store: DeadLetters, name: str) -> None:
        """
        A naive time could mean anything, so it is refused, and with it the discarding.
        """
        filters: Any = {name: NOON.replace(tzinfo=None)}
        for ask in (store.query, store.count, store.discard):
            with pytest.raises(ValueError, match="time zone"):
                ask(**filters)

    def test_a_misspelt_filter_is_refused(self, mixed: DeadLetters) -> None:
        """
        A filter nobody knows does not count as none: nothing is discarded.
        """
        filters: Any = {"events_type": OrderPlaced}
        for ask in (mixed.query, mixed.count, mixed.discard):
            with pytest.raises(TypeError, match="events_type"):
                ask(**filters)
        assert 7 == len(mixed)

    def test_what_was_found_does_not_change(self, mixed: DeadLetters) -> None:
        """
        A query and an iteration are snapshots: letters may go while one looks at them.
        """
        found = mixed.query()
        for each in mixed:
            mixed.remove(each.id)
        assert "a b c d e f g" == ids(found)
        assert 0 == len(mixed)

    # -- threads

    def test_threads_may_come_and_go(self, make_store: MakeStore) -> None:
        """
        Letters added, looked for, replaced and discarded by many at once add up.
        """
        store, errors, discarded = make_store(), list[BaseException](), list[int]()
        first = letter("first")

        def work(name: str) -> None:
            try:
                for turn in range(30):
                    each = attrs.evolve(first, id=f"{name}{turn}", subscription=name)
                    store.add(each)
                    store.replace(attrs.evolve(each, redrives=1))
                    assert store.count() >= store.count(subscription=name)
                    if turn % 3 == 0:
                        discarded.append(store.discard(subscription=name))
            except BaseException as error:  # pragma: no cover - only where the test fails
                errors.append(error)

        threads = [Thread(target=work, args=(name,), daemon=True) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [] == errors
        assert 4 * 30 == len(store) + sum(discarded)
        assert 4 * 2 == len(store)
