"""
Letters and their stories: the contract, and what is the in-memory store's own.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
from datetime import datetime, timedelta
from typing import Any, cast

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.dead_letters import (
    NOON,
    DeadLettersContract,
    MakeStore,
    OrderPlaced,
    PaymentError,
    ids,
    letter,
    minutes,
    raised,
)
from eventbus import EventBus, _story, dead_letter, idempotency
from eventbus import event as declare
from eventbus.dead_letter import AttemptFailure, DeadLetter, InMemoryDeadLetters, matcher, story
from eventbus.errors import DeadLetterNotFoundError, DeadLettersFullError
from eventbus.memory import MemoryStore


class TestInMemoryDeadLetters(DeadLettersContract):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return InMemoryDeadLetters


@pytest.mark.parametrize("module", [_story, dead_letter, idempotency])
def test_nothing_slow_is_imported_early(module: Any):
    """
    What only a failure needs is imported when there is one.
    """
    imported = {
        name
        for node in ast.parse(inspect.getsource(module)).body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert set() == imported & {"asyncio", "logging", "traceback"}


# -- the story of an attempt


def test_a_story_tells_what_happened():
    """
    An entry has number, error, message, traceback and time of the attempt.
    """
    error = raised(PaymentError("card declined"))
    entry = story(3, error, NOON)
    assert (3, NOON, "card declined") == (entry.number, entry.time, entry.message)
    assert error is entry.exception
    assert f"{PaymentError.__module__}.PaymentError" == entry.error_type
    assert entry.traceback.startswith("Traceback (most recent call last):\n")
    assert "raise exception" in entry.traceback
    assert entry.traceback.endswith("PaymentError: card declined\n")


def test_a_story_tells_of_causes_and_notes():
    """
    The traceback has what the error was raised from, and what was noted on it.
    """
    error = ValueError("bad total")
    error.__cause__ = raised(KeyError("total"))
    error.add_note("while reading order A-1")
    text = story(1, raised(error), NOON).traceback
    assert text.index("KeyError: 'total'") < text.index("ValueError: bad total")
    assert "while reading order A-1" in text


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (ValueError(), "ValueError"),
        (PaymentError(), f"{PaymentError.__module__}.PaymentError"),
        (ExceptionGroup("two", [ValueError()]), "ExceptionGroup"),
    ],
)
def test_error_types_are_qualified(error: Exception, name: str):
    """
    An error type is named with its module, unless Python brings it along.
    """
    assert name == story(1, error, NOON).error_type


@pytest.mark.parametrize("length", [0, 1, 1_999, 2_000])
def test_a_message_is_kept(length: int):
    """
    A message of up to 2,000 characters is kept as it is.
    """
    assert "x" * length == story(1, ValueError("x" * length), NOON).message


@pytest.mark.parametrize("length", [2_001, 12_345, 3_000_000])
def test_a_long_message_is_cut(length: int):
    """
    Of a longer message beginning and end are kept, and it says how long it was.
    """
    message = story(1, ValueError("a" + "x" * (length - 2) + "z"), NOON).message
    assert 2_000 == len(message)
    assert ("a", "z") == (message[0], message[-1])
    assert f"(cut: {length:,} characters in all)" in message


def test_a_long_traceback_is_cut():
    """
    Of a long traceback the outermost and the innermost frames are kept.
    """

    def dive(depth: int) -> None:
        if depth == 0:
            raise ValueError("ground")
        sink(depth - 1)  # two functions in turn: Python folds the frames of one

    def sink(depth: int) -> None:
        dive(depth)

    with pytest.raises(ValueError, match="ground") as caught:
        dive(300)
    text = story(1, caught.value, NOON).traceback
    assert 10_000 == len(text)
    assert text.startswith("Traceback (most recent call last):\n")
    assert "characters in all)" in text
    assert text.endswith("ValueError: ground\n")


def test_an_unprintable_error_has_a_story():
    """
    An error that fails to say what it is does not hide that it happened.
    """

    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise KeyError("no text")

    entry = story(1, raised(UnprintableError()), NOON)
    assert "<not printable: KeyError>" == entry.message
    assert entry.error_type.endswith("UnprintableError")
    assert "raise exception" in entry.traceback


def test_an_error_that_breaks_the_formatting_has_a_story(monkeypatch: pytest.MonkeyPatch):
    """
    Where Python cannot format an error, the frames are told all the same.
    """

    def broken(_: BaseException) -> list[str]:
        raise TypeError("what a strange error")

    monkeypatch.setattr("traceback.format_exception", broken)
    entry = story(1, raised(ValueError("strange")), NOON)
    assert "strange" == entry.message
    assert "raise exception" in entry.traceback


@given(st.integers(min_value=0, max_value=5_000), st.integers(min_value=100, max_value=2_500))
def test_cutting_keeps_to_the_limit(length: int, limit: int):
    """
    A text is kept whole if it fits, and fills the limit if it does not.
    """
    text = "x" * length
    cut = _story._cut(text, limit)
    assert min(length, limit) == len(cut)
    assert (cut == text) == (length <= limit)


# -- the letter


def test_a_letter_speaks_of_its_last_failure():
    """
    Error type, message and traceback of a letter are those of its last attempt.
    """
    kept = letter("a", errors=[PaymentError("first"), KeyError("last")])
    assert ("KeyError", "'last'") == (kept.error_type, kept.message)
    assert kept.failures[-1].traceback == kept.traceback
    assert OrderPlaced("A-1") == kept.event


def test_a_letter_without_attempts_has_no_error():
    """
    What never came to its handler has no error to speak of, and is found by none.
    """
    kept = letter("a", errors=[], reason="dropped")
    assert ("", "", "") == (kept.error_type, kept.message, kept.traceback)
    assert not matcher(error=Exception)(kept)


def test_a_letter_does_not_change():
    """
    Letters and their entries are frozen.
    """
    kept = letter("a")
    for value, name in ((kept, "attempts"), (kept.failures[0], "message")):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            setattr(value, name, "changed")


def test_the_exception_object_is_no_part_of_the_value():
    """
    A letter read back from a store that keeps only texts equals the one written.
    """
    kept = letter("a")
    texts = attrs.evolve(
        kept, failures=tuple(attrs.evolve(each, exception=None) for each in kept.failures)
    )
    assert kept == texts
    assert "exception" not in repr(kept)


# -- by error


def restored(kept: DeadLetter) -> DeadLetter:
    """
    Forget the exception objects, as a file would.
    """
    failures = tuple(attrs.evolve(each, exception=None) for each in kept.failures)
    return attrs.evolve(kept, failures=failures)


def test_an_error_class_finds_its_subclasses():
    """
    While the exception is at hand, a class stands for everything derived from it.
    """
    kept = letter("a", errors=[ValueError(), PaymentError("down")])
    assert [True, True, True, False] == [
        matcher(error=error)(kept)
        for error in (PaymentError, ConnectionError, Exception, ValueError)
    ]


def test_where_only_texts_are_kept_a_class_stands_for_its_name():
    """
    Without the exception a class finds its own name, and cannot know what derives from it.
    """
    kept = restored(letter("a", errors=[PaymentError("down")]))
    assert [True, False] == [
        matcher(error=error)(kept) for error in (PaymentError, ConnectionError)
    ]
    assert matcher(error="PaymentError")(kept)


def test_a_nested_error_class_has_a_simple_name():
    """
    The simple name of a class inside another one is its last part.
    """
    entry = AttemptFailure(
        number=1, error_type="shop.Payment.Error", message="", traceback="", time=NOON
    )
    kept = attrs.evolve(letter("a"), failures=(entry,))
    assert [True, True, False] == [
        matcher(error=name)(kept) for name in ("Error", "shop.Payment.Error", "Payment.Error")
    ]


# -- overflow


def filled(**options: Any) -> InMemoryDeadLetters:
    store = InMemoryDeadLetters(capacity=2, **options)
    store.add(letter("a"))
    store.add(letter("b"))
    return store


def test_the_oldest_letter_makes_room():
    """
    By default a full store drops the letter that arrived first, and counts it.
    """
    store = filled()
    store.add(letter("c"))
    assert ("b c", 1) == (ids(store.query()), store.dropped)


def test_a_new_letter_is_dropped():
    """
    With "drop_newest" a full store keeps what it has, and counts what it did not keep.
    """
    store = filled(overflow="drop_newest")
    store.add(letter("c"))
    assert ("a b", 1) == (ids(store.query()), store.dropped)


def test_a_full_store_can_refuse():
    """
    With "raise" the error names event and subscription, and nothing is dropped.
    """
    store = filled(overflow="raise")
    with pytest.raises(DeadLettersFullError, match=r"OrderPlaced e-c of shop\.charge is not kept"):
        store.add(letter("c"))
    assert ("a b", 0) == (ids(store.query()), store.dropped)
    store.remove("a")
    store.add(letter("c"))
    assert "b c" == ids(store.query())


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_dropping_is_logged_once_a_time(overflow: str, caplog: pytest.LogCaptureFixture):
    """
    A warning is logged when dropping begins, and again only after there was room.
    """
    store = filled(overflow=overflow)
    assert [] == caplog.messages
    for id in "cde":
        store.add(letter(id))
    assert [("eventbus", "WARNING")] == [(each.name, each.levelname) for each in caplog.records]
    assert f"all 2 places for dead letters are taken ({overflow})" in caplog.text
    store.discard()
    for id in "fgh":
        store.add(letter(id))
    assert (2, 4) == (len(caplog.records), store.dropped)


def test_replacing_needs_no_room():
    """
    A letter that is kept can be replaced in a full store without dropping another.
    """
    store = filled()
    store.replace(letter("a", redrives=1))
    assert ("a b", 0, 1) == (ids(store.query()), store.dropped, store.get("a").redrives)


def test_of_all_who_ask_to_redrive_a_letter_one_may():
    """
    Until its time is over; he himself may ask again, and end it.
    """
    store = filled()
    assert store.claim("a", owner="one", ttl=60.0, now=0.0)
    assert not store.claim("a", owner="two", ttl=60.0, now=59.0)
    assert store.claim("b", owner="two", ttl=60.0, now=0.0)
    assert store.claim("a", owner="one", ttl=60.0, now=59.0)
    assert not store.claim("a", owner="two", ttl=60.0, now=118.0)
    assert store.claim("a", owner="two", ttl=60.0, now=119.0)
    assert store.claim("a", owner="two", ttl=0.0, now=120.0)
    assert store.claim("a", owner="one", ttl=60.0, now=120.0)
    with pytest.raises(DeadLetterNotFoundError):
        store.claim("c", owner="one", ttl=60.0, now=0.0)


@pytest.mark.parametrize("gone", ["replace", "remove", "discard", "overflow"])
def test_a_claim_ends_with_what_becomes_of_its_letter(gone: str):
    """
    Replaced, removed, discarded or dropped, and kept once more, it is anybody's.
    """
    store = filled()
    assert store.claim("a", owner="one", ttl=60.0, now=0.0)
    if gone == "replace":
        store.replace(letter("a", redrives=1))
    elif gone == "overflow":
        store.add(letter("c"))
        store.add(letter("a"))
    else:
        store.remove("a") if gone == "remove" else store.discard()
        store.add(letter("a"))
    assert store.claim("a", owner="two", ttl=60.0, now=0.0)


@pytest.mark.parametrize(
    ("name", "value"), [("capacity", 0), ("capacity", -1), ("overflow", "block")]
)
def test_bad_arguments_are_refused(name: str, value: object):
    """
    A store without room, or that does not know what to do without, is refused.
    """
    with pytest.raises(ValueError, match=f"'{name}' must be"):
        InMemoryDeadLetters(**cast(dict[str, Any], {name: value}))


def test_a_letter_replaced_meanwhile_is_not_discarded():
    """
    A letter that a redrive has just replaced is not the one that was to be discarded.
    """
    store = filled()

    class Replacing(type):
        def __instancecheck__(cls, event: object) -> bool:
            store.replace(letter("a", redrives=1))
            return True

    class Anything(metaclass=Replacing):
        pass

    assert 1 == store.discard(event_type=Anything)
    assert "a" == ids(store.query())


# -- against a naive reference


LETTERS = st.lists(
    st.builds(
        lambda event, error, at, subscription: (event, error, at, subscription),
        st.sampled_from([OrderPlaced("A"), OrderPlaced("B"), 7, "text"]),
        st.sampled_from([ValueError("v"), KeyError("k"), PaymentError("p")]),
        st.integers(min_value=0, max_value=5),
        st.sampled_from(["s", "t"]),
    ),
    max_size=12,
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "event_type": st.sampled_from([None, OrderPlaced, int, object]),
        "subscription": st.sampled_from([None, "s", "t"]),
        "error": st.sampled_from([None, "KeyError", LookupError, OSError]),
        "since": st.sampled_from([None, minutes(1), minutes(3)]),
        "until": st.sampled_from([None, minutes(2), minutes(4)]),
    },
)


@settings(max_examples=25)  # each one formats a traceback for every letter
@given(LETTERS, FILTERS, st.integers(min_value=1, max_value=4))
def test_query_page_count_and_discard_agree(
    rows: list[tuple[Any, Any, int, str]], filters: Any, size: int
):
    """
    For any letters and filters, all four speak of exactly the set a naive search finds.
    """
    store = InMemoryDeadLetters()
    expected, rest = list[str](), list[str]()
    for number, (event, error, at, subscription) in enumerate(rows):
        kept = letter(str(number), event, [error], at, subscription=subscription)
        store.add(kept)
        (expected if naively(filters, event, error, at, subscription) else rest).append(kept.id)
    assert expected == [each.id for each in store.query(**filters)]
    assert len(expected) == store.count(**filters)
    paged, page = list[str](), store.query(limit=size, **filters)
    while page and len(paged) <= len(rows):
        paged += [each.id for each in page]
        page = store.query(limit=size, after=page[-1].id, **filters)
    assert expected == paged
    assert len(expected) == store.discard(**filters)
    assert rest == [each.id for each in store]


@pytest.mark.parametrize(
    ("filters", "complaint"),
    [
        ({"event_type": "A"}, "event_type= is a class of events, not 'A'"),
        ({"subscription": letter}, "subscription= is the name of one, not <function letter"),
        (
            {"error": ValueError()},
            r"error= is an exception's class, or its name, not ValueError\(\)",
        ),
        ({"key": 7}, "key= is the key of events, not 7"),
        ({"reason": "drop"}, "reason= is one of 'failed', 'dropped', .*, not 'drop'"),
        ({"since": "noon"}, "since= is a datetime with a time zone, not 'noon'"),
        ({"until": datetime(2026, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - for that
        ({"event": OrderPlaced}, r"no filters: \['event'\]; there are event_type"),
    ],
)
@pytest.mark.parametrize("verb", ["query", "count", "discard", "redrive_all", "aredrive_all"])
@pytest.mark.parametrize("is_stored", [False, True], ids=["memory", "stored"])
def test_a_filter_that_no_letter_could_meet_is_refused(
    filters: Any, complaint: str, verb: str, is_stored: bool
):
    """
    A misspelled reason, or the name of a class, does not pass for one that nothing meets.
    """
    with EventBus(store=MemoryStore() if is_stored else None) as bus:
        asked = bus if "redrive" in verb else bus.dead_letters
        with pytest.raises((TypeError, ValueError), match=complaint):
            asyncio.run(_awaiting(getattr(asked, verb), filters))


@declare(key="account")
class Charged:
    number: int
    account: str


@pytest.mark.parametrize("is_stored", [False, True], ids=["memory", "stored"])
def test_letters_of_one_key_are_found_redriven_and_discarded(is_stored: bool):
    """
    By the key of their events, and those of others are left alone.
    """
    handled, is_well = list[int](), list[bool]()

    def charge(charged: Charged) -> None:
        if not is_well:
            raise ValueError("no")
        handled.append(charged.number)

    with EventBus(store=MemoryStore() if is_stored else None) as bus:
        bus.subscribe(Charged, charge, name="charge")
        for number, account in enumerate(["A-1", "B-2", "A-1", "A-10"]):
            bus.publish(Charged(number, account))
        letters = bus.dead_letters
        assert [0, 2] == [each.event.number for each in letters.query(key="A-1")]
        assert (2, 4, 0) == (
            letters.count(key="A-1"),
            letters.count(key=None),
            letters.count(key=""),
        )
        is_well.append(True)
        assert [True, True] == [each.ok for each in bus.redrive_all(key="A-1")]
        assert [0, 2] == handled
        assert 1 == letters.discard(key="B-2", subscription="charge")
        assert ["A-10"] == [each.envelope.key for each in letters]


async def _awaiting(verb: Any, filters: Any) -> None:
    await verb(**filters)  # which raises, or what it returns does


@pytest.mark.parametrize("verb", ["redrive", "aredrive"])
def test_what_is_no_letter_is_not_redriven(verb: str):
    """
    Neither ``None``, nor the event itself.
    """
    with EventBus() as bus, pytest.raises(TypeError, match=r"the id of one, and not OrderPlaced\("):
        asyncio.run(_awaiting_given(getattr(bus, verb), OrderPlaced()))


async def _awaiting_given(verb: Any, given: Any) -> None:
    await verb(given)


def test_an_unknown_letter_is_named_by_the_error():
    """
    Who catches it finds the id on it, and not in the text alone.
    """
    with pytest.raises(DeadLetterNotFoundError, match="'z-9'") as refused:
        EventBus().redrive("z-9")
    assert "z-9" == refused.value.letter_id


def naively(filters: Any, event: Any, error: Any, at: int, subscription: str) -> bool:
    wanted = filters.get("error")
    if wanted is not None and not (
        type(error).__name__ == wanted if isinstance(wanted, str) else isinstance(error, wanted)
    ):
        return False
    if not isinstance(event, filters.get("event_type") or object):
        return False
    if filters.get("subscription") not in (None, subscription):
        return False
    since, until = filters.get("since") or NOON, filters.get("until") or NOON + timedelta(hours=1)
    return bool(since <= minutes(at) < until)
