"""
The books of a durable subscription, alone: what is next, and what has to wait.
"""

from __future__ import annotations

from eventbus._books import Books
from eventbus._entry import Entry, seconds_until
from eventbus.progress import Advance


def pending(offset: int, *, is_recovered: bool = False) -> Entry:
    return Entry(offset, is_pending=True, is_recovered=is_recovered)


def begun(books: Books) -> list[int]:
    """
    Begin all that may be begun now, as a turn does.
    """
    while (entry := books.next()) is not None:
        books.begin.append(entry)
    offsets = [each.offset for each in books.begin]
    books.written(Advance(dict.fromkeys(offsets, 1)))
    return offsets


def test_what_a_gone_process_had_begun_waits_for_what_is_under_way() -> None:
    """
    It is handled alone: it may be what has ended that process.
    """
    books = Books(pending=[pending(1), pending(2, is_recovered=True), pending(3)])
    assert [1] == begun(books)
    books.done(books.in_hand[1])
    assert [2] == begun(books)
    books.done(books.in_hand[2])
    assert [3] == begun(books)


def test_what_is_put_back_is_the_next_one_again() -> None:
    """
    Also if it was about to be handled alone.
    """
    books = Books(pending=[pending(1, is_recovered=True), pending(2)])
    entry = books.next()
    assert entry is not None
    assert books.next() is None
    books.put_back(entry)
    assert entry is books.next()


def test_what_is_not_begun_after_all_keeps_its_order() -> None:
    """
    What the store knows comes first, then what was read.
    """
    books = Books(pending=[pending(1)])
    books.fresh.extend([Entry(2), Entry(3)])
    while (entry := books.next()) is not None:
        books.begin.append(entry)
    books.put_off()
    assert ([1], [2, 3]) == (
        [each.offset for each in books.pendings],
        [each.offset for each in books.fresh],
    )
    assert not books.has_news
    assert [1, 2, 3] == begun(books)


def test_what_has_no_key_sleeps_alone() -> None:
    """
    Nothing waits behind it.
    """
    books = Books()
    books.put_to_sleep(Entry(1))
    assert not books.is_behind(Entry(2))
    assert not books.is_behind(Entry(3, key="K"))
    assert not books.is_empty


def test_an_attempt_of_which_nothing_else_is_known_waits_until_it_is_due() -> None:
    """
    Where no failure tells how long it was to wait at first.
    """
    assert 5.0 == seconds_until(15.0, "", 10.0)
    assert 0.0 == seconds_until(15.0, "", 20.0)
