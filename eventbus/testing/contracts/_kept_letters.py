"""
What every `KeptLetters` does, ours or yours.

Law: only the protocol is used here. An implementation passes the suite by a subclass whose
fixture *letters* returns what keeps letters, and has none yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Barrier, Thread
from typing import Any

import attrs
import pytest

from eventbus.errors import DeadLetterNotFoundError
from eventbus.kept_letters import KeptLetter, KeptLetters, Selection
from eventbus.testing.contracts._records import NOON, minutes, record

__all__ = ["KeptLettersContract"]


def letter(id: str, at: float = 0, **facts: Any) -> KeptLetter:
    plain: dict[str, Any] = {
        "id": id,
        "subscription": "shop.charge",
        "record": record(offset=7, key="A-1"),
        "attempts": 1,
        "error_type": "ValueError",
        "first_failure": NOON,
        "last_failure": minutes(at),
    }
    return KeptLetter(**{**plain, **facts})


def ids(letters: Iterable[KeptLetter]) -> str:
    return " ".join(each.id for each in letters)


# Letters that differ in everything one can ask for, in order of arrival.
MIXED = (
    letter("d", 5),
    letter("c", 1, record=record(offset=8, name="other", key="A-2"), error_type="shop.PayError"),
    letter("b", 2, subscription="shop.notify", holds_key=True),
    letter("a", 3, reason="held", error_type="", holds_key=True),
)
SELECTIONS: list[tuple[Selection, str]] = [
    (Selection(), "d c b a"),
    (Selection(subscription="shop.charge"), "d c a"),
    (Selection(subscription="shop"), ""),
    (Selection(names=["other"]), "c"),
    (Selection(names=("other", "shop.order_placed")), "d c b a"),
    (Selection(names=()), ""),
    (Selection(key="A-2"), "c"),
    (Selection(key="'"), ""),
    (Selection(error="ValueError"), "d b"),
    (Selection(error="shop.PayError"), "c"),
    (Selection(error="PayError"), "c"),
    (Selection(error="Error"), ""),
    (Selection(error=""), ""),
    (Selection(reason="held"), "a"),
    (Selection(since=minutes(2)), "d b a"),
    (Selection(before=minutes(2)), "c"),
    (Selection(since=minutes(2), before=minutes(5)), "b a"),
    (Selection(holds_key=True), "b a"),
    (Selection(holds_key=False, subscription="shop.charge"), "d c"),
]

each_selection = pytest.mark.parametrize(("selection", "expected"), SELECTIONS)


class KeptLettersContract:
    """
    What every `eventbus.kept_letters.KeptLetters` does.

    Fixture to be given: ``letters``, none of them kept yet.

    .. versionadded:: 0.1
    """

    @pytest.fixture
    def letters(self) -> KeptLetters:  # pragma: no cover - overridden
        raise NotImplementedError("a subclass says how its letters are kept")

    @pytest.fixture
    def mixed(self, letters: KeptLetters) -> KeptLetters:
        for each in MIXED:
            letters.add(each)
        return letters

    def test_a_letter_comes_back_whole(self, letters: KeptLetters) -> None:
        """
        A letter has every fact that it was added with, those of its record included.
        """
        whole = letter(
            "a",
            record=record(
                offset=3,
                version=2,
                key=None,
                correlation_id="root",
                causation_id="cause",
                headers={"tenant": "Ü"},
                payload=b"\0\xff",
            ),
            reason="undecodable",
            attempts=5,
            failures='[{"message": "Ü"}]',
            idempotency_key="",
            redrives=2,
            edited=b"",
            holds_key=True,
        )
        letters.add(whole)
        assert whole == letters.get("a")
        assert [whole] == letters.query()

    def test_a_letter_is_added_once(self, letters: KeptLetters) -> None:
        """
        A second letter of the same id is refused, and the first one stays.
        """
        first = letter("a")
        letters.add(first)
        with pytest.raises(ValueError, match="'a'"):
            letters.add(letter("a", 9))
        assert [first] == letters.query()

    def test_the_unknown_is_named(self, mixed: KeptLetters) -> None:
        """
        Whoever asks for a letter that is not there is told which one.
        """
        asks: list[Callable[[], object]] = [
            lambda: mixed.get("z"),
            lambda: mixed.remove("z"),
            lambda: mixed.replace(letter("z")),
            lambda: mixed.edit("z", b""),
            lambda: mixed.claim("z", owner="me", ttl=1.0, now=0.0),
        ]
        for ask in asks:
            with pytest.raises(DeadLetterNotFoundError, match="'z'") as refused:
                ask()
            assert "z" == refused.value.letter_id
        assert 4 == mixed.count()

    @each_selection
    def test_what_is_meant_is_found_and_counted(
        self, mixed: KeptLetters, selection: Selection, expected: str
    ) -> None:
        """
        A letter is meant if it meets every condition, and letters come as they arrived.
        """
        assert expected == ids(mixed.query(selection))
        assert len(expected.split()) == mixed.count(selection)
        assert expected == ids(each for each in MIXED if selection.matches(each))

    @each_selection
    def test_what_is_meant_is_discarded(
        self, mixed: KeptLetters, selection: Selection, expected: str
    ) -> None:
        """
        What is meant goes and is counted; the rest stays, in order.
        """
        rest = [each.id for each in MIXED if each.id not in expected.split()]
        assert len(expected.split()) == mixed.discard(selection)
        assert " ".join(rest) == ids(mixed.query())

    def test_letters_come_in_pages(self, mixed: KeptLetters) -> None:
        """
        A page begins after the letter given, whether or not that one is meant.
        """
        assert "d c" == ids(mixed.query(limit=2))
        assert "b a" == ids(mixed.query(limit=2, after=mixed.get("c").place))
        of_charge, place = Selection(subscription="shop.charge"), mixed.get("b").place
        assert "a" == ids(mixed.query(of_charge, after=place))
        assert "" == ids(mixed.query(after=mixed.get("a").place))
        with pytest.raises(ValueError, match="limit"):
            mixed.query(limit=0)

    def test_a_page_may_follow_a_letter_that_is_gone(self, mixed: KeptLetters) -> None:
        """
        Letters keep their places, whatever becomes of them and of the others.
        """
        _, second = mixed.query(limit=2)
        assert second.place == mixed.edit("c", b"edited").place
        mixed.replace(attrs.evolve(second, place=99))
        assert second.place == mixed.get("c").place == mixed.remove("c").place
        mixed.add(letter("e"))
        assert "b a e" == ids(mixed.query(limit=3, after=second.place))
        mixed.remove("d")
        assert "b a e" == ids(mixed.query(after=second.place))

    def test_a_replaced_letter_keeps_its_place(self, mixed: KeptLetters) -> None:
        """
        After a failed redrive the letter tells both stories, where it always was.
        """
        again = attrs.evolve(mixed.get("c"), attempts=2, redrives=1, error_type="KeyError")
        mixed.replace(again)
        assert again == mixed.get("c")
        assert "d c b a" == ids(mixed.query())

    def test_the_original_stays_beside_the_edited(self, mixed: KeptLetters) -> None:
        """
        An edited payload is the one to deliver; the record is as it was stored.
        """
        original = mixed.get("c").payload
        edited = mixed.edit("c", b"edited")
        assert edited == mixed.get("c")
        assert (b"edited", original) == (edited.payload, edited.record.payload)
        assert original == mixed.edit("c", None).payload

    def test_a_removed_letter_is_gone(self, mixed: KeptLetters) -> None:
        """
        Removing hands the letter over and leaves the others as they were.
        """
        assert MIXED[1] == mixed.remove("c")
        assert "d b a" == ids(mixed.query())

    def test_one_redrives_at_a_time(self, mixed: KeptLetters) -> None:
        """
        Until its claim ends, or the letter is replaced, one owner has the right to it.
        """

        def claim(owner: str, now: float) -> bool:
            return mixed.claim("c", owner=owner, ttl=10.0, now=now)

        assert claim("me", 0.0)
        assert not claim("you", 9.0)
        assert claim("me", 9.0)
        assert not claim("you", 18.0)
        assert claim("you", 19.0)
        assert not claim("me", 20.0)
        mixed.replace(mixed.get("c"))
        assert claim("me", 20.0)
        assert mixed.claim("d", owner="you", ttl=10.0, now=20.0)

    def test_held_keys_are_those_of_letters_that_hold(self, mixed: KeptLetters) -> None:
        """
        A key is held as long as one letter of the subscription holds it.
        """
        mixed.add(letter("e", holds_key=True, record=record(offset=9)))
        assert {"A-1"} == mixed.held_keys("shop.charge")
        assert {"A-1"} == mixed.held_keys("shop.notify")
        assert frozenset() == mixed.held_keys("shop.other")
        mixed.remove("a")
        assert frozenset() == mixed.held_keys("shop.charge")

    def test_a_key_is_stuck_behind_what_must_be_redriven(self, mixed: KeptLetters) -> None:
        """
        A letter that failed or was edited, and holds its key; not one that is merely held.
        """
        assert frozenset() == mixed.stuck_keys("shop.charge")
        assert {"A-1"} == mixed.stuck_keys("shop.notify")
        for id, facts in (("e", {}), ("f", {"holds_key": True}), ("g", {"holds_key": True})):
            mixed.add(letter(id, record=record(offset=9, key=id), **facts))
        assert {"f", "g"} == mixed.stuck_keys("shop.charge")
        mixed.edit("a", b"")
        mixed.remove("f")
        assert {"A-1", "g"} == mixed.stuck_keys("shop.charge")
        assert "b a g" == ids(each for each in mixed.query() if each.is_stuck)

    def test_a_time_without_a_zone_is_refused(self, mixed: KeptLetters) -> None:
        """
        A naive time could mean anything, so nothing is discarded by one.
        """
        naive = NOON.replace(tzinfo=None)
        with pytest.raises(ValueError, match="time zone"):
            mixed.discard(Selection(since=naive))
        with pytest.raises(ValueError, match="time zone"):
            mixed.discard(Selection(before=naive))
        assert 4 == mixed.count()

    def test_of_many_threads_one_claims(self, letters: KeptLetters) -> None:
        """
        However many ask for a letter at once, exactly one gets it.
        """
        for turn in range(10):
            letters.add(letter(str(turn)))
            barrier, granted = Barrier(5, timeout=30), list[bool]()

            def ask(
                owner: str,
                turn: int = turn,
                barrier: Barrier = barrier,
                granted: list[bool] = granted,
            ) -> None:
                barrier.wait()
                granted.append(letters.claim(str(turn), owner=owner, ttl=10.0, now=0.0))

            threads = [Thread(target=ask, args=(name,), daemon=True) for name in "abcde"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert [False] * 4 + [True] == sorted(granted)
