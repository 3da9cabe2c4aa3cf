"""
The books of a durable subscription, alone: what is next, and what has to wait.
"""

from __future__ import annotations

from eventbus._books import Books
from eventbus._entry import Entry, seconds_until
from eventbus.kept_letters import KeptLetter
from eventbus.progress import Advance
from eventbus.testing.contracts._records import NOON, record


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


def test_what_was_to_be_handled_alone_keeps_nobody_waiting_behind_its_key() -> None:
    """
    While the first of its key sleeps, others go on; then it is handled, alone.
    """
    books = Books(pending=[pending(1), pending(2, is_recovered=True), pending(3)])
    first, second = books.next(), books.next()
    assert first is not None
    assert second is not None
    first.key = second.key = "K"
    books.put_to_sleep(first)
    assert books.is_behind(second)
    assert [3] == begun(books)
    books.done(books.in_hand[3])
    books.done(first)
    assert [2] == begun(books)


def test_what_is_taken_back_waits_in_the_order_of_the_log() -> None:
    """
    Before what comes after it, in whatever order it is given back.
    """
    books = Books(pending=[pending(1), pending(2)])
    assert [1, 2] == begun(books)
    books.pendings.append(pending(3))
    for offset in (2, 1):
        books.take_back(books.in_hand[offset])
    assert [1, 2, 3] == [each.offset for each in books.pendings]


def keyed(offset: int) -> Entry:
    """
    Return an entry of the key "K" that the store knows.
    """
    entry = pending(offset)
    entry.key, entry.record = "K", record(key="K")
    return entry


def letter(offset: int) -> KeptLetter:
    return KeptLetter(
        id=str(offset),
        subscription="a",
        record=record(offset=offset, key="K"),
        first_failure=NOON,
        last_failure=NOON,
        holds_key=True,
    )


def test_what_is_held_behind_no_letter_waits_for_what_comes_after_it() -> None:
    """
    Its key stays closed as long as later events of it are in hand; then all go on in order.
    """
    entries = [keyed(1), keyed(2), keyed(3)]
    books = Books(pending=entries, dead_keys=["K"])
    assert [1, 2, 3] == begun(books)
    for entry in entries[:2]:
        books.hold(entry, letter(entry.offset))
    books.written(Advance({}))
    assert ({"K"}, {"K"}) == (books.dead_keys, books.keys_in_hand())
    books.hold(entries[2], letter(3))
    books.written(Advance({}))
    assert (set(), set()) == (books.dead_keys, books.keys_in_hand())
    assert [1, 2, 3] == begun(books)


def test_what_was_to_be_held_later_goes_on_behind_what_is_held_no_more() -> None:
    """
    Though the store has not heard of it when the key is free.
    """
    first, later = keyed(1), [keyed(2), keyed(3)]
    for entry in later:
        entry.is_pending = False
    books = Books(pending=[first], dead_keys=["K"])
    for entry in [books.next(), *later]:
        assert entry is not None
        books.hold(entry, letter(entry.offset))
    assert ["1"] == [each.id for each in books.step().hold]
    books.written(Advance({}))
    assert (set(), ()) == (books.dead_keys, books.step().hold)
    assert [1, 2, 3] == begun(books)


def test_a_key_stays_closed_for_a_letter_that_is_on_its_way() -> None:
    """
    Though those that held it before are gone.
    """
    first, second = keyed(1), keyed(2)
    second.is_pending = False
    books = Books(pending=[first], dead_keys=["K"])
    assert first is books.next()
    books.hold(first, letter(1))
    books.dead(second, letter(2))
    books.written(Advance({}))
    assert {"K"} == books.dead_keys
    assert ["2"] == [each.id for each in books.step().dead]


def test_what_is_taken_back_from_its_sleep_is_not_kept_waiting_by_itself() -> None:
    """
    Nor is what waited behind it, which comes after it again.
    """
    first, second = keyed(1), keyed(2)
    books = Books(pending=[first, second])
    assert first is books.next()
    books.put_to_sleep(first)
    assert second is books.next()
    assert books.is_behind(second)
    books.take_back(first)
    assert [first, second] == [books.next(), books.next()]
    assert not books.is_behind(first)


def test_what_was_asleep_and_is_put_off_keeps_the_order_of_the_log() -> None:
    """
    It waits again, behind what comes before it.
    """
    entries = [pending(1), pending(2)]
    books = Books(pending=entries)
    assert entries == [books.next(), books.next()]
    books.put_to_sleep(entries[1])
    books.put_back(entries[0])
    books.ask(entries[1])
    books.put_off()
    assert [1, 2] == begun(books)


def test_what_was_chosen_before_a_retry_is_heard_comes_after_what_is_held() -> None:
    """
    In one turn an entry may be chosen, and the one in hand of its key fail: it waits, too.
    """
    books = Books(0, [Entry(number, key="k", is_pending=True) for number in (1, 2)])
    books.fresh.extend([Entry(3, key="k"), Entry(4, key="other"), Entry(5)])
    first, held = books.next(), books.next()
    assert first is not None
    assert held is not None
    books.begin += [first, held]
    books.written(Advance({1: 1, 2: 1}))
    while (entry := books.next()) is not None:
        books.begin.append(entry)
    first.due, first.is_begun = 1.0, False
    books.retry(first, [held])
    assert [4, 5] == begun(books)
    books.ask(first)
    assert [1] == begun(books)
    books.done(first)
    assert [2, 3] == begun(books)


def test_what_waits_behind_a_key_stays_there_while_the_first_is_tried_again() -> None:
    """
    As often as it fails; once it is over, they go on in order, and what comes then after them.
    """
    entries = [Entry(number, key="K", is_pending=True) for number in range(1, 6)]
    first, *others = entries
    books = Books(pending=entries[:4])
    assert first is books.next()
    books.put_to_sleep(first)
    assert [] == [each for each in others[:3] if not books.is_behind(books.next() or first)]
    for _ in range(3):
        books.ask(first)
        assert ([1], 3) == (begun(books), books.aside)
        first.due = 1.0
        books.retry(first, ())
    assert books.is_behind(others[3])
    assert not books.waits
    books.done(first)
    assert books.waits
    assert [2, 3, 4, 5] == begun(books)


def test_those_that_were_begun_too_early_come_before_those_that_wait_already() -> None:
    """
    The second of a key fails, after what was behind the first had begun to go on.
    """
    entries = [Entry(number, key="K", is_pending=True) for number in range(1, 6)]
    books = Books(pending=entries)
    books.put_to_sleep(books.next() or Entry(0))
    while (entry := books.next()) is not None:
        assert books.is_behind(entry)
    books.done(entries[0])
    books.begin += [books.next() or Entry(0) for _ in range(3)]
    books.written(Advance({2: 1, 3: 1, 4: 1}))
    entries[1].due = 1.0
    books.retry(entries[1], entries[2:4])
    assert books.next() is None
    books.ask(entries[1])
    assert [2] == begun(books)
    books.done(entries[1])
    assert [3, 4, 5] == begun(books)


def test_keys_go_on_in_turns() -> None:
    """
    A long line of one key does not keep those of another one waiting.
    """
    entries = [Entry(number, key="AB"[number % 2], is_pending=True) for number in range(6)]
    books = Books()
    for each in entries[:2]:
        books.put_to_sleep(each)
    assert all(map(books.is_behind, entries[2:]))
    books.done(entries[1])
    books.done(entries[0])
    assert [3, 2, 5, 4] == begun(books)
    assert books.is_empty is False
