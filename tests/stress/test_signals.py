"""
Processes that are interrupted, that forget to close their bus, and that fork.

Each runs ``child.py`` in a process of its own. Bounded in count, and by ``PATIENCE`` in
time. The short form runs by default, the long one with ``-m long``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from stress.books import PATIENCE

CHILD = Path(__file__).parent / "child.py"

rounds = pytest.mark.parametrize("rounds", [1, pytest.param(30, marks=pytest.mark.long)])
posix = pytest.mark.skipif(os.name != "posix", reason="other signals, and no fork")

pytestmark = posix


def start(program: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", str(CHILD), program]
    # Measured, a forked child may wait for what another thread of its parent had locked then.
    measured = program != "forks"
    env = {name: it for name, it in os.environ.items() if measured or not name.startswith("COV")}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd(), env=env
    )


def outcome(
    program: str, sent: signal.Signals | None = None
) -> tuple[int, list[dict[str, Any]], str]:
    """
    Run a program, send it a signal once it is at work; return its exit code and its words.
    """
    with start(program) as process:
        assert process.stdout is not None
        limit = threading.Timer(PATIENCE, process.send_signal, [signal.SIGABRT])
        limit.start()
        first = process.stdout.readline()
        if sent is not None and first:
            process.send_signal(sent)
        out, errors = process.communicate()
        limit.cancel()
    said = [json.loads(line) for line in [first, *out.splitlines()] if line.strip()]
    return process.returncode, said, errors


def misfits(said: dict[str, Any], *, within: int = 0) -> list[str]:
    """
    Name what does not add up.

    Args:
        within: A publish that is interrupted may count as one, or as none.
    """
    found = []
    for name, counted in said["counted"].items():
        places = ("delivered", "failed", "missed", "undelivered")
        pairs = {
            "published": (said["accepted"], counted["published"]),
            "sum": (counted["published"], sum(counted[each] for each in places)),
            "delivered": (counted["handled"], counted["delivered"]),
            "failed": (counted["handler_failed"], counted["failed"]),
            "left": (counted["left"], counted["undelivered"]),
        }
        found += [
            f"{name}: {what} {one} and {other}, of {counted}"
            for what, (one, other) in pairs.items()
            if abs(one - other) > within
        ]
    return found


ENDS = {signal.SIGINT: (-signal.SIGINT, "KeyboardInterrupt"), signal.SIGTERM: (143, "SystemExit")}


@pytest.mark.parametrize(
    ("program", "sent", "rounds"),
    [
        ("waits", signal.SIGTERM, 1),
        ("publishes", signal.SIGINT, 1),
        ("awaits", signal.SIGINT, 1),
        *[
            pytest.param(program, sent, 30, marks=pytest.mark.long)
            for program in ("waits", "publishes", "awaits")
            for sent in ENDS
        ],
    ],
)
def test_an_interrupted_process_accounts_for_everything(
    program: str, sent: signal.Signals, rounds: int
):
    """
    A signal in the middle of a run ends the process, after its queues have been worked off.
    """
    for _ in range(rounds):
        returned, said, errors = outcome(program, sent)
        assert [{"running": True}] == said[:1], errors
        assert ENDS[sent] == (returned, said[-1].get("ended_by")), errors
        assert [] == misfits(said[-1], within=program != "waits")
        assert 0 < said[-1]["accepted"]


@rounds
def test_a_bus_nobody_closed_keeps_no_process_alive(rounds: int):
    """
    A process whose bus is never closed ends, and logs for each queue how many events it had.
    """
    for _ in range(rounds):
        returned, said, errors = outcome("forgets")
        assert (0, [{"running": True}]) == (returned, said), errors
        warned = [line for line in errors.splitlines() if "the process ends with" in line]
        assert ["of anever not", "of never not"] == sorted(
            next(each for each in ("of never not", "of anever not") if each in line)
            for line in warned
        )
        assert all("with 15 events" in line for line in warned), warned


@rounds
def test_a_fork_in_the_middle(rounds: int):
    """
    A forked child's queues begin empty and work; the parent's lose and double nothing.
    """
    for _ in range(rounds):
        returned, said, errors = outcome("forks")
        assert 0 == returned, errors
        child, parent, account = said
        numbers = [number for number in range(40) if number % 50 != 49]
        assert ([0, 0], True) == (child["depths"], child["ok"])
        assert {"threads": numbers, "tasks": numbers} == {
            name: sorted(handled) for name, handled in child["handled"].items()
        }
        assert (False, 0) == (parent["child"], parent["exit"]), errors
        assert [] == misfits(account)
