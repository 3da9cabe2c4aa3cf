"""
A process that is killed at random moments, and started again: nothing is lost.

Bounded in the number of kills, and by ``PATIENCE`` in time. The short form runs by default,
the long one with ``-m long``. The moments come from a seed, which a failure shows and
``STRESS_SEED`` sets.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from eventbus.sqlite import SQLiteStore
from stress import killed, repeated
from stress.killed import FAST, KEYED, ONCE, SLOW

PROGRAM, REPEATS = Path(killed.__file__), Path(repeated.__file__)
PATIENCE = 120.0  # seconds that one life may take, at most
EVENTS = 2_000  # more than one life can publish


def begin(folder: Path, *given: object, program: Path = PROGRAM) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(program), str(folder), *map(str, given)])


def lines(folder: Path, name: str) -> list[list[str]]:
    path = folder / name
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def live_and_die(
    process: subprocess.Popen[bytes], folder: Path, dice: random.Random, most: float = 0.08
) -> None:
    """
    Kill a program that has just begun, some time after its first publish.
    """
    before, until = len(lines(folder, "published")), time.monotonic() + PATIENCE
    try:
        while len(lines(folder, "published")) == before and process.poll() is None:
            assert time.monotonic() < until
            os.sched_yield()
        if process.poll() is None:
            dying = time.monotonic() + dice.uniform(0.0, most)
            while time.monotonic() < dying:
                os.sched_yield()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def begun(folder: Path) -> dict[str, set[int]]:
    """
    Return which deliveries were begun and are not finished, as the store knows it.
    """
    with closing(SQLiteStore(folder / "store.db")) as store:
        assert () == store.check()
        return {
            position.name: {
                each.offset for each in store.progress.pending(position.name) if each.attempts
            }
            for position in store.progress.positions()
        }


def survives(
    folder: Path, kills: int, seed: int, *, events: int = EVENTS, most: float = 0.08
) -> None:
    dice, in_flight = random.Random(seed), {name: Counter[int]() for name in (FAST, SLOW, KEYED)}
    for _ in range(kills):
        numbers = [int(words[0]) for words in lines(folder, "published")]
        # One publish may have been stored, and its return cut off.
        program = begin(folder, max(numbers, default=0) + 2, events)
        live_and_die(program, folder, dice, most)
        for name, offsets in begun(folder).items():
            if name in in_flight:
                in_flight[name].update(offsets)
    finishing = begin(folder, 0, 0, "wait")
    assert 0 == finishing.wait(kills * PATIENCE)  # something is left of each life
    check_handled(folder, in_flight)
    check_once(folder)


def check_handled(folder: Path, in_flight: dict[str, Counter[int]]) -> None:
    published = {int(words[0]) for words in lines(folder, "published")}
    for name, flights in in_flight.items():
        calls = [(int(number), key, int(offset)) for number, key, offset in lines(folder, name)]
        assert set() == published - {number for number, _, _ in calls}, name
        times = Counter(offset for _, _, offset in calls)
        excess = {each: count for each, count in times.items() if count > 1 + flights[each]}
        assert {} == excess, f"{name} handled what was not in flight"
        for key in {key for _, key, _ in calls}:
            firsts = list(dict.fromkeys(offset for _, its_key, offset in calls if its_key == key))
            assert sorted(firsts) == firsts, f"{name} handled {key} out of order"


def check_once(folder: Path) -> None:
    with closing(SQLiteStore(folder / "store.db")) as store:
        assert () == store.check()
        assert [0, 0, 0, 0] == [each.lag for each in store.progress.positions()]
        stored = [each.name for each in store.log.read()]
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        numbers = [number for (number,) in connection.execute("SELECT number FROM once")]
    assert stored.count("Counted") == len(numbers) == len(set(numbers)), ONCE
    assert stored.count("Echoed") == sum(number % 5 == 0 for number in numbers)


def test_a_killed_process_loses_nothing(tmp_path: Path, seed: int) -> None:
    """
    Every event whose publish returned is handled, twice only if it was in flight.
    """
    survives(tmp_path, 4, seed)


def test_another_process_takes_over_from_a_killed_one(tmp_path: Path, seed: int) -> None:
    """
    It publishes beside it, stands by, and goes on where the other one was.
    """
    in_flight = {name: Counter[int]() for name in (FAST, SLOW, KEYED)}
    killed_one = begin(tmp_path, 1, EVENTS)
    until = time.monotonic() + PATIENCE
    while not lines(tmp_path, SLOW):
        assert time.monotonic() < until
        os.sched_yield()
    other = begin(tmp_path, 1_000_000, 50, "wait")
    while not any(int(words[0]) >= 1_000_000 for words in lines(tmp_path, "published")):
        assert time.monotonic() < until
        os.sched_yield()
    killed_one.send_signal(signal.SIGKILL)
    killed_one.wait()
    # Of what it had in flight nobody can tell any more: the other one may have gone on.
    for name, flights in in_flight.items():
        flights.update({int(words[2]): 1 for words in lines(tmp_path, name)})
    assert 0 == other.wait(PATIENCE)
    check_handled(tmp_path, in_flight)
    check_once(tmp_path)


def repeats(folder: Path, kills: int, seed: int) -> None:
    """
    Kill who publishes with keys again and again; each life repeats what it is not sure of.
    """
    dice = random.Random(seed)
    for _ in range(kills):
        live_and_die(begin(folder, EVENTS, program=REPEATS), folder, dice)
    assert 0 == begin(folder, 1, program=REPEATS).wait(PATIENCE)
    numbers = [int(number) for (number,) in lines(folder, "published")]
    with closing(SQLiteStore(folder / "store.db")) as store:
        assert () == store.check()
        stored = [json.loads(each.payload)["number"] for each in store.log.read()]
    assert numbers == stored


def test_what_a_killed_process_repeats_with_its_key_is_stored_once(
    tmp_path: Path, seed: int
) -> None:
    """
    Wherever it was killed: key and event are one commit, or there is neither.
    """
    repeats(tmp_path, 6, seed)


@pytest.mark.long
def test_what_is_repeated_again_and_again_is_stored_once(tmp_path: Path, seed: int) -> None:
    """
    Two hundred kills change nothing about it.
    """
    repeats(tmp_path, 200, seed)


@pytest.mark.long
def test_a_process_killed_again_and_again_loses_nothing(tmp_path: Path, seed: int) -> None:
    """
    Three hundred kills change nothing about it, while events come, are handled and drained.
    """
    survives(tmp_path, 300, seed, events=40, most=0.3)
