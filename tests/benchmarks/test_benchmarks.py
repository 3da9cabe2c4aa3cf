"""
The harness itself: what it would refuse, what it says of a missing peer, what it prints.

Law: quick, without peers, and without looking at a number that the machine decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from . import costs, durable, growth, ladder, latency, ours, queued, rows
from .__main__ import main, surroundings
from .page import renew, table
from .peers import ABARE, ASYNC, BARE, SYNC, Contender, Handler, plain
from .picture import bars, draw
from .queued import Line
from .rows import Race, Rival, Row, judge, lane_of, prove
from .timing import Effort, Lane, clone, lane, measure, measure_imports

TINY = Effort(span=1e-5, rounds=2, imports=1, heats=1, events=50, seconds=0.005, stored=(10, 1_010))

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


@pytest.mark.parametrize(
    "line",
    [
        *(queued.OURS, queued.AOURS, durable.OURS, *durable.LINES),
        *(line for lines in queued.LINES.values() for line in lines),
    ],
    ids=lambda line: f"{line.name}, {'async' if line.is_async else 'threads'}",
)
def test_every_queue_has_handled_all_when_its_time_ends(line: Line) -> None:
    """
    Every contender with a queue handles each event once, in order, before its time is taken.
    """
    if not line.is_installed:
        pytest.skip(f"{line.distribution} is not installed")
    queued.prove_line(line)


def test_a_queue_that_does_not_wait_is_refused() -> None:
    """
    A contender whose wait ends before its events are handled is refused before it is timed.
    """

    @contextmanager
    def hasty(handler: Handler) -> Iterator[queued.Opened]:
        yield lambda event: None, lambda: None

    with pytest.raises(AssertionError, match="hasty handled"):
        queued.measure_lines([Line("hasty", "builtins", "", hasty)], TINY)


def test_queues_are_raced_in_both_colours() -> None:
    """
    The rows of the two targets come first, then those with a publisher held up.
    """
    found = list(queued.run(TINY))
    assert {queued.ASYNCIO: 0.6, queued.THREADS: 0.4} == {
        row.race: row.target for row in found if row.target
    }
    assert {"asyncio.Queue, one worker", "queue.Queue, one worker"} == {
        row.rival for row in found if row.target or row.race not in queued.LINES
    }
    assert all(row.ours for row in found)


def test_what_is_durable_is_raced_to_the_last_line() -> None:
    """
    Publishing, the full cycle, replay and many publishers are timed, each with its target.
    """
    found = list(durable.run(TINY))
    raced = [0.35 for rival in ("litequeue", "eventsourcing") if find_spec(rival) is not None]
    assert [1.8, 5.0, *raced, 0.1, 0.1] == [row.target for row in found if row.target]
    assert all(row.ours and (row.theirs or row.verdict == "not installed") for row in found)


def test_files_that_grow_are_compared_with_the_least() -> None:
    """
    Opening, publishing, delivering and draining are compared for each number of stored events.
    """
    found = list(growth.run(TINY))
    assert ["s", "s", "s", "B"] == [row.unit for row in found]
    assert {"10 events stored"} == {row.rival for row in found}
    assert all("1,010 events stored" in row.race and row.ours for row in found[:-1])
    assert "MB" in table(found)


def test_a_million_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """
    A million stored events are measured with, where the command line says so.
    """
    seen: list[Effort] = []

    def run(effort: Effort) -> Iterator[Row]:
        seen.append(effort)
        yield Row("open", "few", 1.0, 1.0)

    for section in (rows, durable, growth, ladder, latency, queued, costs):
        monkeypatch.setattr(section, "run", run)
    for arguments in ([], ["--million"]):
        assert 0 == main(arguments)
    assert {10_000, 100_000} == set(seen[0].stored)
    assert 1_000_000 in seen[-1].stored


def test_latency_is_measured_in_both_colours() -> None:
    """
    Each contender has a median and a 99th percentile, the latter never below the former.
    """
    found = list(latency.run(TINY))
    assert {"p50", "p99"} == {row.race.rpartition(" ")[2] for row in found}
    assert {row.rival for row in found} == {
        line.name for lines in latency.RIVALS.values() for line in lines
    }
    assert all(row.ours for row in found)


@pytest.mark.parametrize(("share", "value"), [(0.5, 2.0), (0.99, 4.0)])
def test_a_percentile_is_one_of_the_values(share: float, value: float) -> None:
    """
    A percentile is the least of the values that so great a share does not exceed.
    """
    assert value == latency.percentile([1.0, 2.0, 3.0, 4.0], share)


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


def test_a_picture_is_drawn_of_what_is_there(tmp_path: Path) -> None:
    """
    The picture is drawn from any rows, a race without any being one bar.
    """
    pytest.importorskip("matplotlib")
    path = tmp_path / "benchmarks.svg"
    draw([Row(queued.THREADS, "queue.Queue, one worker", 2.0, 5.0)], surroundings(), path)
    assert b"<svg" in path.read_bytes()


def test_the_command_prints_a_table_and_writes_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """
    The command prints every row and writes the same to the file that was asked for.
    """
    found = [Row("publish", "bare loop", 2e-7, 1e-7, 1.35), Row("publish", "absent", 2e-7, None)]
    monkeypatch.setattr(rows, "run", lambda effort: iter(found))
    monkeypatch.setattr(costs, "run", lambda effort: iter(()))
    for section in (durable, growth, ladder, latency, queued):
        monkeypatch.setattr(section, "run", lambda effort: iter(()))
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
