"""
What waits behind one of its key, alone: which keys are closed, and in which order they go on.
"""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from eventbus._behind import Behind, merged
from eventbus._entry import Entry

OFFSETS = st.lists(st.integers(0, 30), unique=True, max_size=12)


def entry(offset: int, key: str | None = "K") -> Entry:
    return Entry(offset, key=key)


def taken(behind: Behind) -> list[int]:
    """
    Take out all that may go on.
    """
    offsets: list[int] = []
    while (line := behind.next_line) is not None:
        offsets.append(line.popleft().offset)
        behind.move_on()
    return offsets


@given(ours=OFFSETS, theirs=OFFSETS)
def test_lines_are_merged_in_the_order_of_the_log(ours: list[int], theirs: list[int]) -> None:
    """
    Whether they come before, after or in between; what is in both is in it twice.
    """
    line = deque(map(entry, sorted(ours)))
    found = merged(line, [*map(entry, sorted(theirs))])
    assert sorted([*ours, *theirs]) == [each.offset for each in found]


def test_a_key_is_closed_for_all_but_the_first() -> None:
    """
    What has no key, or another one, is in nobody's way.
    """
    behind = Behind()
    behind.close(entry(1))
    assert [False, True] == [behind.is_in_the_way_of(entry(each)) for each in (1, 2)]
    assert not behind.is_in_the_way_of(entry(2, "other"))
    assert not behind.is_in_the_way_of(entry(2, None))


def test_what_has_no_key_closes_none() -> None:
    """
    And opens none.
    """
    behind = Behind()
    behind.close(entry(1, None))
    behind.open(entry(1, None))
    assert (True, None) == (behind.is_empty, behind.next_line)


def test_only_the_one_a_key_is_closed_for_opens_it() -> None:
    """
    Others of its key that are over meanwhile do not.
    """
    behind = Behind()
    behind.close(entry(1))
    behind.add("K", [entry(3)])
    behind.open(entry(2))
    assert (1, None) == (len(behind), behind.next_line)
    behind.open(entry(1))
    assert [3] == taken(behind)
    assert behind.is_empty


def test_an_open_line_is_in_the_way_of_what_comes_after_its_head() -> None:
    """
    Until all of it has gone on.
    """
    behind = Behind()
    behind.close(entry(1))
    behind.add("K", [entry(3)])
    behind.open(entry(1))
    assert [False, True] == [behind.is_in_the_way_of(entry(each)) for each in (2, 4)]
    assert [3] == taken(behind)
    assert not behind.is_in_the_way_of(entry(4))


def test_a_key_that_is_closed_again_goes_on_later() -> None:
    """
    The next one of it fails as well: what is left of the line waits for that one.
    """
    behind = Behind()
    behind.close(entry(1))
    behind.add("K", [entry(2), entry(3)])
    behind.open(entry(1))
    line = behind.next_line
    assert line is not None
    second = line.popleft()
    behind.move_on()
    behind.close(second)
    assert behind.next_line is None
    behind.open(second)
    assert [3] == taken(behind)


def test_nothing_is_added_where_there_is_nothing_to_add() -> None:
    """
    A line is never empty.
    """
    behind = Behind()
    behind.close(entry(1))
    behind.add("K", [])
    behind.open(entry(1))
    assert (True, None) == (behind.is_empty, behind.next_line)
