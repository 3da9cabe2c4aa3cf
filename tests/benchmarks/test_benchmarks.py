"""
The harness itself: what it would refuse, what it says of a missing peer, what it prints.

Law: quick, without peers, and without looking at a number that the machine decides.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from . import costs, ladder, ours, rows
from .__main__ import main, surroundings
from .page import renew, table
from .peers import ABARE, ASYNC, BARE, SYNC, Contender, Handler, plain
from .picture import bars
from .rows import Race, Rival, Row, judge, lane_of, prove
from .timing import Effort, Lane, clone, lane, measure, measure_imports

TINY = Effort(span=1e-5, rounds=2, imports=1)

absent = Contender(
    "absent send", "no_such_module_anywhere", "no-such-distribution", lambda _: plain
)


def forgetful(handlers: Sequence[Handler]) -> Any:
    """
    Call all handlers but the last.
    """
    return lambda event: [handler(event) for handler in handlers[:-1]]


@pytest.mark.parametrize("count", [0, 1, 10])
@pytest.mark.parametrize(
    "contender",
    [*SYNC, *ASYNC, ours.PUBLISH, ours.APUBLISH],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_contender_delivers(contender: Contender, count: int) -> None:
    """
    Every contender that is installed calls each handler once with the event itself.
    """
    if not contender.is_installed:
        pytest.skip(f"{contender.distribution} is not installed")
    prove(contender, count, ours.ORDER)


def test_a_contender_that_loses_an_event_is_refused() -> None:
    """
    A contender that leaves a handler out is refused before it is timed.
    """
    contender = Contender("forgetful", "builtins", "", forgetful)
    with pytest.raises(AssertionError, match="forgetful called the handlers"):
        lane_of(contender, 3)


def test_a_missing_peer_keeps_its_row() -> None:
    """
    A peer that is not installed is listed as such, and behind all others.
    """
    race = Race(
        "publish",
        partial(lane_of, ours.PUBLISH, 1),
        (
            Rival(absent.name, partial(lane_of, absent, 1), absent.is_installed),
            Rival(BARE, partial(lane_of, SYNC[0], 1)),
        ),
        (absent.name,),
        0.75,
    )
    found = race.run(TINY)
    assert [BARE, "absent send"] == [row.rival for row in found]
    assert ["", "not installed"] == [row.verdict for row in found]
    assert "not installed" in table(found)
    assert "not installed" == absent.version


def test_the_target_is_set_for_the_fastest_of_the_judged() -> None:
    """
    The target stands beside the fastest rival it speaks of, whoever else is faster.
    """
    times = {"bare": 1.0, "slow": 9.0, "quick": 4.0, "absent": None}
    found = judge("publish", 2.0, times, ("slow", "quick", "absent"), 0.75)
    assert [("quick", 0.75, 0.5, "met")] == [
        (row.rival, row.target, row.ratio, row.verdict) for row in found if row.target
    ]


@pytest.mark.parametrize(
    ("ratio", "target", "verdict"),
    [(1.35, 1.35, "met"), (1.36, 1.35, "missed"), (9.0, None, "")],
)
def test_a_target_is_met_or_missed(ratio: float, target: float | None, verdict: str) -> None:
    """
    A ratio up to the target meets it, a greater one misses it, and none is no verdict.
    """
    assert verdict == Row("publish", "bare", ratio, 1.0, target).verdict


def test_lanes_are_timed_in_turns() -> None:
    """
    Each round runs every lane once, in an order that turns around.
    """
    turns: list[str] = []

    def prepare(name: str, _number: int) -> tuple[Any, list[object]]:
        turns.append(name)
        return plain, [ours.ORDER]

    effort = Effort(span=0.0, rounds=3)
    lanes = [Lane(name, partial(prepare, name)) for name in "abc"]
    times = measure(lanes, effort)
    assert ["a", "b", "c"] == list(times)
    assert "abc" + "cba" + "abc" == "".join(turns)[-9:]


def test_both_colours_are_timed() -> None:
    """
    A lane is timed whether its call returns or has to be awaited.
    """
    lanes = [
        lane("sync", plain, ours.ORDER),
        lane_of(next(each for each in ASYNC if each.name == ABARE), 1),
    ]
    assert all(0 < time < 1 for time in measure(lanes, TINY).values())


def test_a_clone_has_code_of_its_own() -> None:
    """
    Clones of a function share no code object, so that neither trains the other's.
    """
    copies = [plain, clone(plain), clone(plain)]
    assert 3 == len({id(copy.__code__) for copy in copies})
    assert 1 == len({copy.__code__.co_code for copy in copies})


@pytest.mark.parametrize("section", [costs, ladder])
def test_every_feature_and_step_is_timed(section: Any) -> None:
    """
    What features cost and where the time goes is measured to the last line.
    """
    found = list(section.run(TINY))
    assert len(found) > 5
    assert all(row.ratio for row in found)


def test_an_import_is_timed_in_a_fresh_interpreter(tmp_path: Path) -> None:
    """
    A module is imported from the given path, in another process.
    """
    (tmp_path / "briefly.py").write_text("")
    times = measure_imports(["briefly"], path=str(tmp_path), effort=TINY)
    assert 0 < times["briefly"] < 60


def test_the_picture_counts_in_multiples_of_ours() -> None:
    """
    The bars are times as multiples of ours, the fastest first, without the absent ones.
    """
    found = [
        Row("publish", "slow", 2.0, 8.0),
        Row("publish", "bare loop", 2.0, 1.0),
        Row("publish", "absent", 2.0, None),
        Row("apublish", "other", 2.0, 2.0),
    ]
    assert [("bare loop", 0.5), ("eventbus", 1.0), ("slow", 4.0)] == bars(found, "publish")


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The command prints every row and writes the same to the file that was asked for.
    """
    found = [Row("publish", "bare loop", 2e-7, 1e-7, 1.35), Row("publish", "absent", 2e-7, None)]
    monkeypatch.setattr(rows, "run", lambda effort: iter(found))
    monkeypatch.setattr(costs, "run", lambda effort: iter(()))
    monkeypatch.setattr(ladder, "run", lambda effort: iter(()))
    path = tmp_path / "benchmarks.json"
    assert 0 == main(["--quick", "--json", str(path)])
    assert "| publish | bare loop | 200 ns | 100 ns | 2.00  | ≤ 1.35 | missed        |" in (
        capsys.readouterr().out
    )
    assert ["missed", "not installed"] == [
        row["verdict"] for row in json.loads(path.read_text())["rows"]
    ]


def test_a_page_is_renewed_between_its_marks(tmp_path: Path) -> None:
    """
    Only what stands between the marks of this Python is replaced.
    """
    around = {**surroundings(), "python": "3.99.1"}
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- measured on 3.99 -->stale<!-- end of 3.99 -->\nafter\n")
    renew(page, {"Against": [Row("publish", "bare loop", 2e-7, 1e-7, 1.35)]}, around)
    text = page.read_text()
    assert text.startswith("before\n<!-- measured on 3.99 -->\n\nCPython 3.99.1")
    assert text.endswith("<!-- end of 3.99 -->\nafter\n")
    assert "stale" not in text
    assert 2 == text.count("| publish | bare loop | 200 ns |")


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    """
    A page that has no place for this Python is left alone, with an error that names the marks.
    """
    page = tmp_path / "performance.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no block from"):
        renew(page, {}, surroundings())
