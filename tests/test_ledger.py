"""
The ledger runs as its reader runs it, and its table is right in the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from strict_python import STRICT

ROOT = Path(__file__).resolve().parent.parent
FIRST_DAY = """\
A day at the bank
  account/1: 120.00 withdrawn
  account/1: 19.50 withdrawn
  account/2: refused, account/2 has 80.00, and 90.50 was asked for
  account/2: teller 1 pays out 50.00
  account/2: teller 2 was too late, and looks again
  account/2: refused, account/2 has 29.50, and 50.50 was asked for

The audit, version 1 of the table
  ✗ account/1  Ada    table   360.50  stream   360.00
  ✗ account/2  Leo    table    30.00  stream    29.50
"""
MENDED = """
The bug is mended: version 2, built anew from the first event on
  ✓ account/1  Ada    table   360.00  stream   360.00
  ✓ account/2  Leo    table    29.50  stream    29.50

7 events, and every balance is right
"""


def run(*given: object) -> str:
    done = subprocess.run(
        [sys.executable, *STRICT, *map(str, given)],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=100,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def test_the_ledger_finds_its_bug_and_mends_it() -> None:
    """
    Decisions are refused where they must be, and the rebuilt table agrees with the streams.
    """
    assert FIRST_DAY + MENDED == run(ROOT / "examples" / "ledger.py")


def test_the_ledger_lives_in_its_file(tmp_path: Path) -> None:
    """
    A second run finds what the first one has left, and so does the command line.
    """
    file = tmp_path / "ledger.db"
    assert FIRST_DAY + MENDED == run(ROOT / "examples" / "ledger.py", "--store", file)
    assert MENDED == run(ROOT / "examples" / "ledger.py", "--store", file)
    assert "no damage found\n" == run("-m", "eventbus", file, "check")
    assert "balances  idle" in run("-m", "eventbus", file, "subscriptions")
