"""
``python -m eventbus``: what it shows of a store, what it mends, and how it refuses.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest

from eventbus import (
    DeadLetterNotFoundError,
    Durable,
    EventBus,
    EventBusError,
    Failure,
    SubscriptionBusyError,
    SubscriptionNotFoundError,
    event,
)
from eventbus._cli import main
from eventbus._cli._arguments import parse
from eventbus._cli._output import at
from eventbus.event_log import Record
from eventbus.kept_letters import KeptLetter, Selection
from eventbus.progress import Handled, Retry, Step
from eventbus.replay import Replayed
from eventbus.sqlite import SQLiteStore
from strict_python import STRICT

NOON = datetime(2024, 2, 29, 12, tzinfo=UTC)
ROOT = Path(__file__).resolve().parent.parent
STORY = json.dumps(
    [
        {
            "number": 1,
            "error_type": "ConnectionError",
            "message": "the bank\nis closed",
            "traceback": "Traceback\n  ConnectionError: the bank\x1b[31m",
            "time": "2024-02-29T12:00:05+00:00",
        }
    ]
)


def record(id: str, name: str, **facts: Any) -> Record:
    plain: dict[str, Any] = {
        "time": NOON,
        "correlation_id": "e1",
        "payload": b'{"order_id": "A-1"}',
        "key": "A-1",
    }
    return Record(id=id, name=name, **{**plain, **facts})


def letter(id: str, of: Record, **facts: Any) -> KeptLetter:
    plain: dict[str, Any] = {
        "subscription": "payment",
        "attempts": 1,
        "failures": STORY,
        "error_type": "ConnectionError",
        "first_failure": NOON,
        "last_failure": NOON + timedelta(seconds=5),
    }
    return KeptLetter(id=id, record=of, **{**plain, **facts})


@pytest.fixture
def path(tmp_path: Path) -> str:
    """
    A file as an application leaves it behind: events, a subscription at work, a letter.
    """
    path = str(tmp_path / "shop.db")
    with SQLiteStore(path) as store:
        later = NOON + timedelta(milliseconds=12)
        store.log.append(
            [
                record("e1", "shop.placed", headers={"tenant": "a"}),
                record("e2", "shop.reserved", causation_id="e1", time=later),
                record("e3", "shop.paid", causation_id="e2", time=later, payload=b"\xff\x00"),
                record("e4", "shop.placed", correlation_id="e4", key="A-2", payload=b"plain"),
                record("e5", "shop.noted", causation_id="gone", key=None, payload=b'"\x1b[2J"'),
            ]
        )
        lease = store.progress.acquire(opened(store, "payment"), owner="app", ttl=60, now=0.0)
        assert lease is not None
        store.progress.advance(lease, Step(taken=4, waiting=[1, 2, 3, 4], begin=[2]))
        first, second = store.log.read(until=2)
        store.progress.advance(lease, Step(done=[3], dead=[letter("l1", first)]))
        store.progress.advance(lease, Step(retry=[Retry(offset=2, due=99.5, story=STORY)]))
        opened(store, "mailer")
        dropped = {"reason": "dropped", "failures": "[]", "error_type": "", "attempts": 0}
        store.letters.add(letter("l2", second, subscription="mailer", **dropped))
    return path


def opened(store: SQLiteStore, name: str) -> str:
    return store.progress.open(name, start="origin").name


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def objects(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in lines(capsys)]


# -- log tail --------------------------------------------------------------------------------


def test_the_tail_shows_the_latest_events(path: str, capsys: pytest.CaptureFixture[str]):
    """
    The newest comes last, in columns; what a terminal would obey is escaped.
    """
    assert 0 == main([path, "log", "tail", "-n", "3"])
    assert [
        "OFFSET  TIME                           NAME         KEY  PAYLOAD",
        '3       2024-02-29T12:00:00.012+00:00  shop.paid    A-1  {"base64": "/wA="}',
        "4       2024-02-29T12:00:00.000+00:00  shop.placed  A-2  plain",
        '5       2024-02-29T12:00:00.000+00:00  shop.noted   -    "\\x1b[2J"',
    ] == lines(capsys)


def test_the_tail_can_be_filtered(path: str, capsys: pytest.CaptureFixture[str]):
    """
    By names and by key; in JSON, everything of an event is there.
    """
    names = ["--type", "shop.placed", "--type", "shop.noted"]
    assert 0 == main([path, "log", "tail", "--json", *names, "--key", "A-1"])
    assert [
        {
            "offset": 1,
            "time": "2024-02-29T12:00:00.000+00:00",
            "name": "shop.placed",
            "version": 1,
            "key": "A-1",
            "id": "e1",
            "correlation_id": "e1",
            "causation_id": None,
            "headers": {"tenant": "a"},
            "payload": {"order_id": "A-1"},
        }
    ] == objects(capsys)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_followed_log_shows_what_comes(
    path: str, capsys: pytest.CaptureFixture[str], as_json: bool
):
    """
    Each new event once, whoever appends it, until the user has seen enough.
    """
    naps = [0]

    def sleep(_: float) -> None:
        naps[0] += 1
        if naps[0] == 4:
            raise KeyboardInterrupt
        if naps[0] != 2:
            with SQLiteStore(path) as store:
                store.log.append([record(f"new{naps[0]}", "shop.placed")])

    options = ["--json"] if as_json else []
    assert 0 == main([path, "log", "tail", "-n", "1", "-f", *options], sleep=sleep)
    shown = lines(capsys)
    found = (
        [json.loads(line)["offset"] for line in shown]
        if as_json
        else [int(line.split()[0]) for line in shown[1:]]
    )
    assert [5, 6, 7] == found


def test_what_comes_keeps_the_columns_of_the_table(path: str, capsys: pytest.CaptureFixture[str]):
    """
    A column that is too narrow for it is wider from then on.
    """
    names, naps = ["a", "a.much.longer.name", "b"], list[int]()

    def sleep(_: float) -> None:
        if len(naps) == len(names):
            raise KeyboardInterrupt
        with SQLiteStore(path) as store:
            store.log.append([record(f"new{len(naps)}", names[len(naps)], key=f"key{len(naps)}")])
        naps.append(1)

    main([path, "log", "tail", "-n", "1", "-f"], sleep=sleep)
    heads, _, *come = lines(capsys)
    columns = [line.index(f"key{number}") for number, line in enumerate(come)]
    wide = heads.index("NAME") + len("a.much.longer.name  ")
    assert [heads.index("KEY"), wide, wide] == columns


def test_an_interrupted_command_says_so(path: str, monkeypatch: pytest.MonkeyPatch):
    """
    The exit code is the shell's own for an interrupt.
    """

    def interrupt(_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(SQLiteStore, "check", interrupt)
    assert 130 == main([path, "check"])


# -- subscriptions, stats, check -------------------------------------------------------------


def test_subscriptions_are_shown_with_their_lag(path: str, capsys: pytest.CaptureFixture[str]):
    """
    Offset, lag, pending and dead of each; who consumes it, and whether he is heard of.
    """
    with SQLiteStore(path) as store:
        store.progress.acquire(opened(store, "live"), owner="app", ttl=60, now=time.time())
        gone = store.progress.acquire(opened(store, "gone"), owner="app", ttl=9, now=0.0)
        assert gone is not None
    assert 0 == main([path, "subscriptions", "--json"])
    found = {each.pop("name"): each for each in objects(capsys)}
    assert {"payment": "abandoned", "mailer": "idle", "live": "running", "gone": "abandoned"} == {
        name: each["state"] for name, each in found.items()
    }
    assert {
        "state": "abandoned",
        "offset": 1,
        "taken": 4,
        "lag": 3,
        "pending": 2,
        "dead": 1,
        "held_keys": 0,
        "owner": "app",
        "lease_ends": "1970-01-01T00:01:00.000+00:00",
    } == found["payment"]
    assert 0 == main([path, "subscriptions"])
    assert "NAME     STATE      OFFSET  LAG  PENDING  DEAD  HELD KEYS  OWNER" == lines(capsys)[0]


def test_stats_tell_what_is_in_the_file(path: str, capsys: pytest.CaptureFixture[str]):
    """
    Sizes, the ends of the log, and what is left to do; counts by name where asked for.
    """
    assert 0 == main([path, "stats", "--types", "--json"])
    (found,) = objects(capsys)
    assert found.pop("bytes") > 0
    assert {
        "file": path,
        "wal_bytes": 0,
        "first_offset": 1,
        "last_offset": 5,
        "first_time": "2024-02-29T12:00:00.000+00:00",
        "last_time": "2024-02-29T12:00:00.000+00:00",
        "subscriptions": 2,
        "greatest_lag": 5,
        "pending": 2,
        "dead_letters": 2,
        "events": {"shop.placed": 2, "shop.reserved": 1, "shop.paid": 1, "shop.noted": 1},
    } == found


def test_stats_of_an_empty_store_are_all_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    Where nothing has happened, nothing is said to have.
    """
    SQLiteStore(path := str(tmp_path / "empty.db")).close()
    assert 0 == main([path, "stats"])
    shown = lines(capsys)
    assert "first offset   -" in shown
    assert "greatest lag   0" in shown


def test_an_open_store_has_its_log_counted(path: str, capsys: pytest.CaptureFixture[str]):
    """
    What is not yet in the main file is told separately; reading goes on beside a writer.
    """
    with SQLiteStore(path) as store:
        store.log.append([record("more", "shop.placed")])
        assert 0 == main([path, "stats", "--json"])
        (found,) = objects(capsys)
        assert found["wal_bytes"] > 0
        assert 6 == found["last_offset"]


def test_a_sound_file_is_said_to_be_so(path: str, capsys: pytest.CaptureFixture[str]):
    """
    A check that finds nothing is no silence.
    """
    assert (0, 0) == (main([path, "check"]), main([path, "check", "--json"]))
    assert ["no damage found", '{"ok": true, "found": []}'] == lines(capsys)


def test_damage_is_found_and_told(path: str, capsys: pytest.CaptureFixture[str]):
    """
    The exit code says so, too, and so do the rows that show the event.
    """
    connection = sqlite3.connect(path)
    connection.execute("UPDATE eventbus_events SET payload = 'x' WHERE id = 'e2'")
    connection.commit()
    connection.close()
    assert (1, 1) == (main([path, "check"]), main([path, "check", "--json"]))
    said = "record 2: its payload is not what was written"
    assert [said, json.dumps({"ok": False, "found": [said]})] == lines(capsys)
    assert 0 == main([path, "log", "tail", "--json", "--type", "shop.reserved"])
    assert [False] == [each["is_intact"] for each in objects(capsys)]


# -- trace -----------------------------------------------------------------------------------

TREE = """\
shop.placed  A-1  #1  +0.000 s
├─ ✗ payment: dead letter, 1 attempt  l1
│     1: ConnectionError: the bank\\nis closed
╰─ shop.reserved  A-1  #2  +0.012 s
   ├─ ✗ mailer: dropped by its full queue  l2
   ├─ … payment: not finished, 1 attempt  due 1970-01-01T00:01:39.500+00:00
   │     1: ConnectionError: the bank\\nis closed
   ╰─ shop.paid  A-1  #3  +0.012 s
shop.noted  #5  +0.000 s
"""


@pytest.mark.parametrize("id", ["e1", "e3"])
def test_a_trace_draws_what_led_to_what(path: str, capsys: pytest.CaptureFixture[str], id: str):
    """
    By the correlation id or that of any event in it, with what became of deliveries.
    """
    assert 0 == main([path, "trace", id])
    assert TREE == capsys.readouterr().out


def test_a_trace_in_json_has_each_events_parent(path: str, capsys: pytest.CaptureFixture[str]):
    """
    One object for each event, behind that of its cause; what has none there is a root.
    """
    assert 0 == main([path, "trace", "e1", "--json"])
    parents = {each["id"]: each["parent"] for each in objects(capsys)}
    assert [("e1", None), ("e2", "e1"), ("e3", "e2")] == list(parents.items())[:3]
    assert {None} == {*list(parents.values())[3:]}


def test_a_trace_may_be_longer_than_the_stack_is_deep(
    path: str, capsys: pytest.CaptureFixture[str]
):
    """
    It is drawn as deep as a terminal is wide, and written as JSON as far as it goes.
    """
    with SQLiteStore(path) as store:
        chain = [
            record(f"c{each}", "tick", causation_id=f"c{each - 1}", correlation_id="chain")
            for each in range(3000)
        ]
        store.log.append(chain)
    assert 0 == main([path, "trace", "chain"])
    drawn = lines(capsys)
    assert 3000 == len(drawn)
    assert drawn[40].startswith("   " * 39 + "╰─ ")
    assert drawn[41].startswith("⋯ 41 deep: ")
    assert drawn[-1].startswith("⋯ 2999 deep: ")
    assert 0 == main([path, "trace", "c7", "--json"])
    assert ["c2998", "c2999"] == [each["id"] for each in objects(capsys)][-2:]


def test_a_trace_in_json_tells_of_deliveries(path: str, capsys: pytest.CaptureFixture[str]):
    """
    What is not finished stands with its event.
    """
    assert 0 == main([path, "trace", "e4", "--json"])
    (root,) = objects(capsys)
    assert ("e4", None, 0.0) == (root["id"], root["parent"], root["seconds"])
    (delivery,) = root["deliveries"]
    assert ("payment", "pending", 0, None) == (
        delivery["subscription"],
        delivery["state"],
        delivery["attempts"],
        delivery["due"],
    )


def test_a_waiting_delivery_is_traced(path: str, capsys: pytest.CaptureFixture[str]):
    """
    What is not begun yet has no time at which it is due.
    """
    assert 0 == main([path, "trace", "e4"])
    assert "╰─ … payment: not finished, 0 attempts" == lines(capsys)[1]


def test_a_trace_tells_what_was_handled_and_how_long_that_took(
    path: str, capsys: pytest.CaptureFixture[str]
):
    """
    Of the subscriptions that keep a history.
    """
    with SQLiteStore(path) as store:
        lease = store.progress.acquire("mailer", owner="me", ttl=9.0, now=0.0)
        assert lease is not None
        handled = Handled(offset=4, attempts=2, time=1.5, seconds=0.0125)
        store.progress.advance(lease, Step(handled=[handled]))
    assert (0, 0) == (main([path, "trace", "e4"]), main([path, "trace", "e4", "--json"]))
    told = capsys.readouterr().out.splitlines()
    assert "╰─ ✓ mailer: handled, 2 attempts  in 0.013 s" == told[2]
    assert {
        "subscription": "mailer",
        "state": "handled",
        "attempts": 2,
        "time": "1970-01-01T00:00:01.500+00:00",
        "seconds": 0.0125,
        "failures": [],
    } == json.loads(told[3])["deliveries"][1]


def test_a_trace_of_nothing_is_a_problem(path: str, capsys: pytest.CaptureFixture[str]):
    """
    An id that nothing has is said, on one line.
    """
    assert 1 == main([path, "trace", "nobody's"])
    said = 'eventbus: nothing in the log has the correlation id or the id "nobody\'s"\n'
    assert ("", said) == capsys.readouterr()


# -- dead letters ----------------------------------------------------------------------------


def test_dead_letters_are_listed(path: str, capsys: pytest.CaptureFixture[str]):
    """
    In columns for people, whole for programs, the oldest first.
    """
    assert 0 == main([path, "dead", "list"])
    assert [
        "ID  LAST FAILURE                   SUBSCRIPTION  REASON   NAME           KEY  ATTEMPTS  "
        "ERROR            MESSAGE",
        "l1  2024-02-29T12:00:05.000+00:00  payment       failed   shop.placed    A-1  1         "
        "ConnectionError  the bank\\nis closed",
        "l2  2024-02-29T12:00:05.000+00:00  mailer        dropped  shop.reserved  A-1  0"
        "                          dropped by its full queue",
    ] == lines(capsys)


UNCALLED: dict[str, Any] = {"failures": "[]", "error_type": "", "attempts": 0}
FATES = {
    "dropped": "dropped by its full queue",
    "undelivered": "not handled before the bus was closed",
    "unreadable": "cannot be read",
    "held": "held behind l1",
    "of a later version": "of a later version",
}


def with_letters(path: str, *reasons: str, **facts: Any) -> None:
    """
    Keep a letter of ``payment`` for each reason, behind one that holds the key.
    """
    with SQLiteStore(path) as store:
        store.letters.replace(attrs.evolve(store.letters.get("l1"), holds_key=True))
        [of] = store.log.read(limit=1, after=2)
        for number, reason in enumerate(reasons):
            given = {**UNCALLED, "holds_key": reason == "held", **facts}
            store.letters.add(letter(f"n{number}", of, reason=reason, **given))


@pytest.mark.parametrize(("reason", "fate"), FATES.items())
def test_a_letter_without_a_failure_says_why_it_is_one(
    path: str, capsys: pytest.CaptureFixture[str], reason: str, fate: str
):
    """
    In the list and in the tree; what is held says what has to go first.
    """
    with_letters(path, reason)
    assert 0 == main([path, "dead", "list"])
    assert lines(capsys)[-1].endswith(f"  {fate}")
    assert 0 == main([path, "trace", "e1"])
    mark = "⏸" if reason == "held" else "✗"
    assert f"      ╰─ {mark} payment: {fate}  n0" in lines(capsys)


def test_what_is_held_names_the_letter_before_it_for_programs(
    path: str, capsys: pytest.CaptureFixture[str]
):
    """
    The list, the letter and the tree have its id; others have none.
    """
    with_letters(path, "held", "held")
    expected = [("l1", "failed", None), ("l2", "dropped", None)]
    expected += [("n0", "held", "l1"), ("n1", "held", "l1")]
    assert 0 == main([path, "dead", "list", "--json"])
    listed = objects(capsys)
    assert expected == [(each["id"], each["reason"], each["behind"]) for each in listed]
    assert [None] * 3 == [each["message"] for each in listed[1:]]
    assert 0 == main([path, "dead", "show", "n0", "--json"])
    assert ["l1"] == [each["behind"] for each in objects(capsys)]
    assert 0 == main([path, "trace", "e1", "--json"])
    traced = [each for event in objects(capsys) for each in event["deliveries"]]
    assert expected == sorted(
        (each["letter_id"], each["reason"], each["behind"])
        for each in traced
        if each["state"] == "dead"
    )


def test_what_is_held_behind_nothing_goes_on(path: str, capsys: pytest.CaptureFixture[str]):
    """
    The letter before it is gone: whoever consumes the subscription takes it up.
    """
    with_letters(path, "held", attempts=1)
    assert 0 == main([path, "dead", "discard", "l1"])
    assert 0 == main([path, "trace", "e1"])
    assert "      ╰─ ⏸ payment: held until its key goes on, 1 attempt  n0" in lines(capsys)
    assert 0 == main([path, "dead", "edit", "n0", "--payload", "{}"])  # it holds the key itself
    capsys.readouterr()
    assert 0 == main([path, "dead", "show", "n0", "--json"])
    assert [None] == [each["behind"] for each in objects(capsys)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["l1", "l2"]),
        (["-n", "1"], ["l1"]),
        (["--after", "l1"], ["l2"]),
        (["--subscription", "mailer"], ["l2"]),
        (["--type", "shop.placed"], ["l1"]),
        (["--key", "A-2"], []),
        (["--error", "ConnectionError"], ["l1"]),
        (["--reason", "dropped"], ["l2"]),
    ],
)
def test_dead_letters_are_selected(
    path: str, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[str]
):
    """
    Options leave those that meet them all.
    """
    assert 0 == main([path, "dead", "list", "--json", *options])
    assert expected == [each["id"] for each in objects(capsys)]


def test_a_dead_letter_is_shown_whole(path: str, capsys: pytest.CaptureFixture[str]):
    """
    Its event, its story and its traceback, with nothing a terminal would obey.
    """
    assert 0 == main([path, "dead", "show", "l1"])
    shown = lines(capsys)
    assert "subscription     payment" in shown
    assert "attempt 1 at 2024-02-29T12:00:05+00:00" in shown
    assert "    ConnectionError: the bank\\x1b[31m" == shown[-1]
    assert 0 == main([path, "dead", "show", "l1", "--json"])
    (found,) = objects(capsys)
    assert {"order_id": "A-1"} == found["event"]["payload"]
    assert [1] == [each["number"] for each in found["failures"]]


def test_an_edited_letter_shows_both_payloads(path: str, capsys: pytest.CaptureFixture[str]):
    """
    What will be delivered, and what was published, which is never changed.
    """
    assert 0 == main([path, "dead", "edit", "l1", "--payload", '{"order_id": "B-2"}', "--json"])
    assert [{"id": "l1", "payload": {"order_id": "B-2"}}] == objects(capsys)
    assert 0 == main([path, "dead", "show", "l1", "--json"])
    (found,) = objects(capsys)
    assert {"order_id": "B-2"} == found["edited_payload"]
    assert {"order_id": "A-1"} == found["event"]["payload"]
    assert 0 == main([path, "dead", "edit", "l1", "--original", "--json"])
    assert [{"id": "l1", "payload": {"order_id": "A-1"}}] == objects(capsys)


def test_a_payload_is_read_from_stdin(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """
    A long one need not be quoted for the shell.
    """
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"order_id": "B-2"}\n'))
    assert 0 == main([path, "dead", "edit", "l1", "--payload", "-", "--json"])
    assert [{"id": "l1", "payload": {"order_id": "B-2"}}] == objects(capsys)


@pytest.mark.parametrize("payload", ["5", "null", "[1]", '"x"'])
def test_a_payload_without_fields_is_refused(
    path: str, capsys: pytest.CaptureFixture[str], payload: str
):
    """
    No event could be made of it; nothing is changed.
    """
    assert 2 == main([path, "dead", "edit", "l1", "--payload", payload])
    said = "eventbus: --payload is no JSON object: give all of the event's fields, {...}"
    assert said in capsys.readouterr().err
    with SQLiteStore(path, read_only=True) as store:
        assert store.letters.get("l1").edited is None


def test_what_is_stored_without_fields_is_edited_without_them(
    path: str, capsys: pytest.CaptureFixture[str]
):
    """
    A class with a hook of its own may be stored as a text, or a number.
    """
    with SQLiteStore(path) as store:
        texts = [each for each in store.log.read() if each.name == "shop.noted"]
        store.letters.add(letter("l3", texts[0]))
    assert 0 == main([path, "dead", "edit", "l3", "--payload", '"x"', "--json"])
    assert [{"id": "l3", "payload": "x"}] == objects(capsys)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"{order_id: 1}", "is no JSON"),
        (b"", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"order_id": "\xff"}', "is no text in UTF-8"),
    ],
    ids=["bare name", "nothing", "nested", "bytes"],
)
def test_a_payload_that_is_no_json_is_refused(
    path: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    payload: bytes,
    said: str,
):
    """
    It could never be read; nothing is changed.
    """
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(payload), encoding="utf-8"))
    assert 2 == main([path, "dead", "edit", "l1", "--payload", "-"])
    assert f"eventbus: --payload {said}" in capsys.readouterr().err
    with SQLiteStore(path, read_only=True) as store:
        assert store.letters.get("l1").edited is None


def test_dead_letters_are_discarded(path: str, capsys: pytest.CaptureFixture[str]):
    """
    By id, by what they have in common, or all of them; they are counted.
    """
    assert 0 == main([path, "dead", "discard", "--subscription", "mailer"])
    assert 0 == main([path, "dead", "discard", "l1", "--json"])
    assert 0 == main([path, "dead", "discard", "--all"])
    assert ["discarded  1", '{"discarded": 1}', "discarded  0"] == lines(capsys)


def test_a_letter_that_was_discarded_meanwhile_is_not_counted(
    path: str, capsys: pytest.CaptureFixture[str]
):
    """
    Named twice, it is discarded once.
    """
    assert 0 == main([path, "dead", "discard", "l1", "l1"])
    assert ["discarded  1"] == lines(capsys)


def test_nothing_is_discarded_by_mistake(path: str, capsys: pytest.CaptureFixture[str]):
    """
    Without a word about which letters, none is meant.
    """
    assert 2 == main([path, "dead", "discard"])
    assert "say which letters" in capsys.readouterr().err
    assert 1 == main([path, "dead", "discard", "l9"])
    assert "there is no dead letter 'l9'" in capsys.readouterr().err
    with SQLiteStore(path, read_only=True) as store:
        assert 2 == store.letters.count()


# -- the application -------------------------------------------------------------------------


@attrs.define
class App:
    """
    Stands for an application's bus, as far as the command line knows one.
    """

    _store: Any
    told: list[Any] = attrs.field(factory=list)
    broken: tuple[str, ...] = ()
    unreadable: int = 0

    def _stand_in(self) -> App:
        return self

    def _redrive_each(self, ids: list[str]) -> Iterator[tuple[str, Any]]:
        for id in ids:
            self.told.append(id)
            if id == "l2":
                yield id, SubscriptionNotFoundError("mailer is not subscribed here")
            else:
                failures = [Failure("payment", ValueError("no"), 1)] if id in self.broken else []
                yield id, attrs.make_class("Receipt", ["failures"])(failures)

    def replay(self, name: str, **options: Any) -> Replayed:
        self.told.append((name, options))
        return Replayed(
            subscription=name, done=3, total=3, offset=3, delivered=2, unreadable=self.unreadable
        )

    def close(self) -> None:
        self.told.append("closed")


async def amake() -> None:
    """
    Stand for a function that makes a bus in a loop.
    """


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, path: str) -> App:
    module = ModuleType("shop_app")
    module.bus = app = App(SimpleNamespace(path=path))  # type: ignore[attr-defined]
    module.make = lambda: app  # type: ignore[attr-defined]
    module.amake = amake  # type: ignore[attr-defined]
    module.holder = ModuleType("holder")  # type: ignore[attr-defined]
    module.holder.bus = app  # type: ignore[attr-defined]
    module.number = int  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop_app", module)
    return app


def test_letters_are_redriven_by_the_application(
    path: str, capsys: pytest.CaptureFixture[str], app: App
):
    """
    Its own bus delivers them, the oldest first, and is closed when all is done.
    """
    asked = [path, "dead", "redrive", "--subscription", "payment", "--app", "shop_app:bus"]
    assert 0 == main([*asked, "--json"])
    assert [
        {
            "id": "l1",
            "subscription": "payment",
            "name": "shop.placed",
            "key": "A-1",
            "outcome": "delivered",
            "error": None,
        }
    ] == objects(capsys)
    assert ["l1", "closed"] == app.told


def test_a_redrive_that_fails_is_a_problem(path: str, capsys: pytest.CaptureFixture[str], app: App):
    """
    Each outcome is told, and one that is bad makes the exit code bad.
    """
    app.broken = ("l1",)
    assert 1 == main([path, "dead", "redrive", "--all", "--app", "shop_app:holder.bus", "--json"])
    assert ["ValueError: no", "SubscriptionNotFoundError: mailer is not subscribed here"] == [
        each["error"] for each in objects(capsys)
    ]
    assert ["l1", "l2", "closed"] == app.told


APPLICATION = """
from eventbus import Durable, Envelope, EventBus, event
from eventbus.sqlite import SQLiteStore

@event(name="shop.placed", key="order")
class Placed:
    order: str

def bus():
    bus = EventBus(store=SQLiteStore("shop.db"))

    @bus.on(Placed, name="mailer", delivery=Durable(start="origin"))
    def mail(placed: Placed, envelope: Envelope) -> None:
        with open("mails.txt", "a") as mails:
            print(placed.order, envelope.is_replay, file=mails)

    return bus

if __name__ == "__main__":
    with bus() as running:
        running.publish(Placed("A-1"))
        running.publish(Placed("A-2"))
        running.drain()
"""


@pytest.mark.skipif(not hasattr(EventBus, "replay"), reason="the bus has no such verb")
def test_a_real_application_is_replayed(tmp_path: Path):
    """
    From the folder in which it stands, by the name of its module.
    """
    (tmp_path / "shop_module.py").write_text(APPLICATION, encoding="utf-8")
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(
        [sys.executable, "shop_module.py"],
        cwd=tmp_path,
        env=os.environ | env,
        timeout=60,
        check=True,
    )
    asked = ["shop.db", "replay", "mailer", "--app", "shop_module:bus", "--from", "2", "--json"]
    done = run(*asked, cwd=tmp_path, env=env)
    assert (0, "") == (done.returncode, done.stderr)
    assert 1 == json.loads(done.stdout)["delivered"]
    mails = (tmp_path / "mails.txt").read_text(encoding="utf-8")
    assert ["A-1 False", "A-2 False", "A-2 True"] == mails.splitlines()


def test_a_replay_is_done_by_the_application(
    path: str, capsys: pytest.CaptureFixture[str], app: App
):
    """
    From an offset or an instant on; what came of it is shown.
    """
    asked = [path, "replay", "payment", "--app", "shop_app:make"]
    assert 0 == main([*asked, "--from", "2", "--until", "2024-02-29T12:00Z", "--json"])
    assert [
        {
            "subscription": "payment",
            "done": 3,
            "total": 3,
            "offset": 3,
            "delivered": 2,
            "unreadable": 0,
            "dead_letters": 0,
        }
    ] == objects(capsys)
    options = {"from_": 2, "until": NOON}
    assert [("payment", options), "closed"] == app.told
    app.unreadable = 1
    assert 1 == main(asked)


def test_a_replay_that_is_refused_is_a_problem(
    path: str, capsys: pytest.CaptureFixture[str], app: App, monkeypatch: pytest.MonkeyPatch
):
    """
    One line says why, and the application is closed all the same.
    """

    def refuse(self: App, name: str, **_: Any) -> Any:
        raise SubscriptionBusyError(f"{name} is being\nconsumed", subscription=name)

    monkeypatch.setattr(App, "replay", refuse)
    assert 1 == main([path, "replay", "payment", "--app", "shop_app:bus"])
    assert "eventbus: payment is being consumed\n" == capsys.readouterr().err
    assert ["closed"] == app.told


def test_a_handler_that_raises_is_one_line(
    path: str, capsys: pytest.CaptureFixture[str], app: App, monkeypatch: pytest.MonkeyPatch
):
    """
    With where it was, without a traceback, and with nothing in it that a terminal would obey.
    """
    log = logging.getLogger("eventbus")
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [])

    def fail(self: App, name: str, **_: Any) -> Any:
        log.error("%s failed", name)
        error = ValueError("no\x1b[31m\nmore")
        error.add_note("at offset 2")
        raise error

    monkeypatch.setattr(App, "replay", fail)
    assert 1 == main([path, "replay", "payment", "--app", "shop_app:bus"])
    assert "eventbus: ValueError: no\\x1b[31m more; at offset 2\n" == capsys.readouterr().err


def test_a_time_no_date_can_be_of_is_shown_as_it_is():
    """
    A retry may be due when no calendar goes so far.
    """
    assert "1e+12 s" == at(1e12)
    assert "2024-02-29T12:00:00.000+00:00" == at(NOON.timestamp()) == at(NOON)
    assert at(None) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shop_app", "--app is MODULE:BUS, such as shop.app:bus, not 'shop_app'"),
        ("shop_app:", "--app is MODULE:BUS"),
        ("no_such_module:bus", "--app no_such_module:bus: ModuleNotFoundError: No module named"),
        ("shop_app:nothing", "--app shop_app:nothing: AttributeError"),
        ("shop_app:number", "--app shop_app:number is int, and no bus"),
        ("shop_app:amake", "--app shop_app:amake is an async function: name a plain one"),
    ],
)
def test_an_application_that_is_none_is_refused(
    path: str, capsys: pytest.CaptureFixture[str], app: App, text: str, said: str
):
    """
    The error says what is wrong with ``--app``; no traceback is shown.
    """
    assert 2 == main([path, "replay", "payment", "--app", text])
    error = capsys.readouterr().err
    assert error.startswith(f"eventbus: {said}")
    assert 1 == len(error.splitlines())


@event(name="shop.placed", key="order_id")
class Placed:
    order_id: str


@pytest.fixture
def real(path: str, monkeypatch: pytest.MonkeyPatch) -> EventBus:
    """
    An application that keeps orders in order, and fails on all it is told to.
    """
    module = ModuleType("real_app")
    module.bus = bus = EventBus(store=SQLiteStore(path), errors="collect")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "real_app", module)
    return bus


def test_a_held_key_is_redriven_in_order(
    path: str, capsys: pytest.CaptureFixture[str], real: EventBus
):
    """
    What waits behind a letter that fails again is not delivered before it.
    """
    called = list[str]()

    def ship(placed: Placed) -> None:
        called.append(placed.order_id)
        raise ValueError("no")

    real.subscribe(Placed, ship, name="held", delivery=Durable(on_dead_letter="hold_key"))
    real.subscribe(Placed, ship, name="free", delivery=Durable())
    with SQLiteStore(path) as store:
        (first,) = store.log.read(until=1)
        for id in ("h1", "h2"):
            store.letters.add(letter(id, first, subscription="held", holds_key=True))
        store.letters.add(letter("h3", first, subscription="free"))
    asked = [path, "dead", "redrive", "h1", "h2", "h3", "--app", "real_app:bus", "--json"]
    assert 1 == main(asked)
    assert ["failed", "held", "failed"] == [each["outcome"] for each in objects(capsys)]
    assert 2 == len(called)


def test_what_cannot_be_redriven_says_why_and_the_others_go_on(real: EventBus):
    """
    One that is not there, and one that nobody is subscribed for here.
    """
    real.subscribe(Placed, lambda placed: None, name="payment", delivery=Durable())
    real._codec.know(Placed)
    came = dict(real._redrive_each(["none", "l2", "l1"]))
    real.close()
    assert ["none", "l2", "l1"] == list(came)
    assert isinstance(came["none"], DeadLetterNotFoundError)
    assert isinstance(came["l2"], EventBusError)
    assert not isinstance(came["l1"], EventBusError)


def test_a_letter_that_is_gone_meanwhile_is_no_problem(
    path: str, capsys: pytest.CaptureFixture[str], real: EventBus
):
    """
    Somebody else, the running application perhaps, was quicker: what waits behind it goes on.
    """
    with SQLiteStore(path) as store:
        (first,) = store.log.read(until=1)
        for id in ("h1", "h2", "h3"):
            store.letters.add(letter(id, first, subscription="held", holds_key=True))

        def ship(placed: Placed) -> None:
            if store.letters.count(Selection(subscription="held")) == 3:
                store.letters.remove("h2")

        real.subscribe(Placed, ship, name="held", delivery=Durable(on_dead_letter="hold_key"))
        asked = [path, "dead", "redrive", "h1", "h2", "h3", "--app", "real_app:bus", "--json"]
        assert 0 == main(asked)
        assert ["delivered", "gone", "delivered"] == [each["outcome"] for each in objects(capsys)]
        assert 0 == store.letters.count(Selection(subscription="held"))


@pytest.mark.parametrize("place", ["other.db", None])
def test_an_application_of_another_file_is_refused(
    path: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    place: str | None,
):
    """
    Letters of one store are not redriven into another one, nor events of another one replayed.
    """
    other = None if place is None else SQLiteStore(tmp_path / place)
    module = ModuleType("other_app")
    module.bus = bus = EventBus(store=other)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "other_app", module)
    bus.subscribe(Placed, lambda placed: None, name="payment")
    for command in (["dead", "redrive", "--all"], ["replay", "payment"]):
        assert 2 == main([path, *command, "--app", "other_app:bus"])
        said = f"keeps its events in {tmp_path / place if place else 'no file'}, not in {path}"
        assert said in capsys.readouterr().err
    assert bus.is_closed


# -- what is refused -------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    A misspelled path is an error, also for commands that write.
    """
    missing = str(tmp_path / "shpo.db")
    for command in (["check"], ["dead", "discard", "--all"]):
        assert 2 == main([missing, *command])
        assert f"eventbus: there is no file {missing}\n" == capsys.readouterr().err
    assert [] == os.listdir(tmp_path)


def test_a_file_that_is_no_store_is_not_made_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """
    A command that writes was meant for another file: nothing is made in this one.
    """
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE theirs (id)")
    for command in (["dead", "discard", "--all"], ["dead", "edit", "l1", "--original"]):
        assert 1 == main([str(other), *command])
        assert "holds no events yet" in capsys.readouterr().err
    with closing(sqlite3.connect(other)) as connection:
        assert [("theirs",)] == connection.execute("SELECT name FROM sqlite_master").fetchall()


def test_a_file_that_is_no_store_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """
    The error is one line, whatever the file is.
    """
    other = tmp_path / "notes.txt"
    other.write_text("no database at all " * 100, encoding="utf-8")
    assert 1 == main([str(other), "check"])
    error = capsys.readouterr().err
    assert error.startswith(f"eventbus: {other}: the file is no SQLite database")
    assert 1 == len(error.splitlines())


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["x.db"],
        ["x.db", "log"],
        ["x.db", "dead"],
        ["x.db", "nothing"],
        ["x.db", "log", "tail", "-n", "0"],
        ["x.db", "log", "tail", "-n", "many"],
        ["x.db", "replay", "mailer"],
        ["x.db", "replay", "mailer", "--app", "a:b", "--from", "yesterday"],
        ["x.db", "replay", "mailer", "--app", "a:b", "--from", "2024-02-29T12:00"],
        ["x.db", "dead", "edit", "l1"],
        ["x.db", "trace"],
        ["x.db", "trace", os.fsdecode(b"\xff")],
        ["x.db", "log", "tail", "-n", str(2**63)],
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    given: list[str], capsys: pytest.CaptureFixture[str]
):
    """
    With the usage, and exit code 2.
    """
    with pytest.raises(SystemExit) as caught:
        main(given)
    assert 2 == caught.value.code
    assert "usage: python -m eventbus" in capsys.readouterr().err


def test_what_a_shell_has_not_decoded_is_decoded_here():
    """
    Where the locale knows no characters but ASCII, others come as they are in UTF-8.
    """
    raw = "é".encode().decode("ascii", "surrogateescape")
    assert "é" == parse(["x.db", "trace", raw]).id
    assert 2**63 - 1 == parse(["x.db", "replay", "a", "--app", "b:c", "--from", "9" * 40]).from_


@pytest.mark.parametrize(
    ("text", "said", "proposed"),
    [
        ("2026-01-01", "has no time zone: ", "2026-01-01T00:00Z"),
        ("2026-01-01T12:00", "has no time zone: ", "2026-01-01T12:00Z"),
        ("2026-01-01Z", "is neither an offset nor an instant such as ", "2026-01-31T12:00Z"),
    ],
)
def test_what_is_no_instant_is_told_how_to_be_one(
    text: str, said: str, proposed: str, capsys: pytest.CaptureFixture[str]
):
    """
    What the message proposes is understood.
    """
    asked = ["x.db", "replay", "mailer", "--app", "a:b", "--from"]
    with pytest.raises(SystemExit):
        main([*asked, text])
    assert f"{text!r} {said}{proposed}" in capsys.readouterr().err
    assert parse([*asked, proposed]).from_.tzinfo is not None


def test_reading_commands_cannot_write(path: str, monkeypatch: pytest.MonkeyPatch):
    """
    They open the file read-only, whatever they are.
    """
    modes: list[bool] = []
    init = SQLiteStore.__init__

    def watched(self: Any, *given: Any, read_only: bool = False, **options: Any) -> None:
        modes.append(read_only)
        init(self, *given, read_only=read_only, **options)

    monkeypatch.setattr(SQLiteStore, "__init__", watched)
    for command in ("log tail", "subscriptions", "dead list", "dead show l1", "stats", "check"):
        main([path, *command.split()])
    main([path, "dead", "discard", "l1"])
    assert [True] * 6 + [True, False] == modes


def test_a_story_that_is_none_is_passed_over(path: str, capsys: pytest.CaptureFixture[str]):
    """
    Whatever another program has written there, the letter is shown.
    """
    with SQLiteStore(path) as store:
        (first,) = store.log.read(until=1)
        store.letters.add(letter("odd", first, failures="no json"))
        store.letters.add(letter("odder", first, failures="7"))
        store.letters.add(letter("bare", first, failures='[{"message": "x"}, 3]'))
    for id in ("odd", "odder", "bare"):
        assert 0 == main([path, "dead", "show", id])
    assert "  x" == lines(capsys)[-1]


# -- as it is run ----------------------------------------------------------------------------


def run(*given: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *STRICT, "-m", "eventbus", *given],
        cwd=options.pop("cwd", ROOT),
        env={**os.environ, "PYTHONIOENCODING": "utf-8"} | options.pop("env", {}),
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,
    )


def test_it_runs_as_a_module(path: str):
    """
    ``python -m eventbus`` is the command, and its exit code the command's.
    """
    done = run(path, "trace", "e1")
    assert (0, TREE, "") == (done.returncode, done.stdout, done.stderr)
    assert 2 == run("nothing.db", "check").returncode


def test_to_import_the_command_is_not_to_run_it():
    """
    Whoever walks through all modules runs nothing.
    """
    assert importlib.import_module("eventbus.__main__").main is main


def test_what_stands_for_stdout_may_be_any_stream(path: str, monkeypatch: pytest.MonkeyPatch):
    """
    Called from Python, it writes to where that prints.
    """
    monkeypatch.setattr(sys, "stdout", stream := io.StringIO())
    assert 0 == main([path, "check"])
    assert "no damage found\n" == stream.getvalue()


def test_a_terminal_that_knows_few_characters_is_no_error(path: str):
    """
    What it cannot show is escaped.
    """
    done = run(path, "trace", "e1", env={"PYTHONIOENCODING": "ascii"})
    assert (0, "") == (done.returncode, done.stderr)
    assert "\\u2570\\u2500 shop.reserved" in done.stdout


def test_a_reader_that_has_read_enough_is_no_error(path: str):
    """
    Piped into what ends early, it ends quietly.
    """
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "eventbus", path, "log", "tail"],
            cwd=ROOT,
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (0, b"") == (done.returncode, done.stderr)
