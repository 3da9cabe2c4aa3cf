"""
What type checkers say: of the library itself, and of the code of its users.

``typing/api.py`` marks each line that has to be rejected with ignore comments, one
for each checker, that name the errors. Here it is checked without them: each error
is to appear where it is expected, and no other anywhere.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent
API = ROOT / "tests" / "typing" / "api.py"
EXPECTED = re.compile(r"  # (?P<whose>type|pyright): ignore\[(?P<codes>[^]]+)\]")
MARKS = {"mypy": "type", "basedpyright": "pyright"}

# They check for Python 3.11, whichever Python runs them: once is enough, and takes a while.
pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="checked where 3.11 runs")
both_checkers = pytest.mark.parametrize("checker", MARKS)


@attrs.frozen
class Complaint:
    """
    What a checker says of a line.
    """

    file: str
    line: int
    code: str
    message: str


def run(*command: str) -> str:
    """
    Run a checker on what the project's own configuration says of it, and return its report.
    """
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy(paths: Sequence[str]) -> Iterator[Complaint]:
    for line in run("mypy", "--output=json", *paths).splitlines():
        if line.startswith("{"):
            said: dict[str, Any] = json.loads(line)
            if said["severity"] == "error":
                yield Complaint(said["file"], said["line"], said["code"], said["message"])


def basedpyright(paths: Sequence[str]) -> Iterator[Complaint]:
    report = run("basedpyright", "--outputjson", "--pythonpath", sys.executable, *paths)
    for said in json.loads(report)["generalDiagnostics"]:
        line = said["range"]["start"]["line"] + 1
        yield Complaint(said["file"], line, said.get("rule", ""), said["message"])


@functools.cache
def complaints_of(checker: str) -> tuple[list[Complaint], list[Complaint]]:
    """
    Return what *checker* says of the library, and of ``api.py`` without its ignore comments.
    """
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare_api.py"
        bare.write_text(EXPECTED.sub("", API.read_text(encoding="utf-8")), encoding="utf-8")
        check = mypy if checker == "mypy" else basedpyright
        said = list(check(["eventbus", str(bare)]))
        # By its name: mypy's cache knows a file by what is in it, and reports its first path.
        theirs = [each for each in said if each.file.endswith(bare.name)]
        return [each for each in said if each not in theirs], theirs


def expected_by(whose: str) -> set[tuple[int, str]]:
    """
    Return line and code of each error that ``api.py`` expects.
    """
    return {
        (number, code.strip())
        for number, line in enumerate(API.read_text(encoding="utf-8").splitlines(), start=1)
        for mark in EXPECTED.finditer(line)
        if mark["whose"] == whose
        for code in mark["codes"].split(",")
    }


@both_checkers
def test_the_library_is_clean(checker: str):
    """
    The library passes the checker in its strict mode.
    """
    ours, _ = complaints_of(checker)
    assert [] == ours


@both_checkers
def test_user_code_is_judged_as_expected(checker: str):
    """
    The checker accepts what a user may write, and rejects what is marked, for that reason.
    """
    _, theirs = complaints_of(checker)
    assert expected_by(MARKS[checker]) == {(each.line, each.code) for each in theirs}


def test_both_checkers_reject_the_same():
    """
    There is no mistake in ``api.py`` that only one checker finds.
    """
    lines = [{number for number, _ in expected_by(whose)} for whose in MARKS.values()]
    assert lines[0] == lines[1]
    assert len(lines[0]) > 40
