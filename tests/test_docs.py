"""
What the README and the documentation say can be done: code, links, commands, reference.

Every Python block runs, page by page; every link and every command line of ours leads
somewhere; the reference leaves no public name out.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

import eventbus
from eventbus._cli._arguments import parse
from eventbus.testing import TestBus

ROOT = Path(__file__).resolve().parent.parent
TEXTS = sorted((ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")))
PAGES = [page for page in TEXTS if "```python" in page.read_text(encoding="utf-8")]
SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_python_block_of_a_page_runs(
    page: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    The blocks of one page run in order, in one namespace and one folder, as a reader types them.
    """
    monkeypatch.chdir(tmp_path)  # the files that they make
    with caplog.at_level(logging.CRITICAL, logger="eventbus"):
        examples = list(SYBIL.parse(page).examples())
        for example in examples:
            example.evaluate()
    assert examples


def test_the_tutorial_can_be_run_after_each_step(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    Its file grows block by block, and is run each time, in the same folder.
    """
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "tutorial.md"
    with caplog.at_level(logging.CRITICAL, logger="eventbus"):
        for length in range(1, 1 + len(list(SYBIL.parse(page).examples()))):
            for example in list(SYBIL.parse(page).examples())[:length]:
                example.evaluate()


def test_the_readme_is_among_the_pages() -> None:
    """
    The check looks at the README and at more than one page of the documentation.
    """
    assert ROOT / "README.md" in PAGES
    assert len(PAGES) > 5


# -- what is written is there ----------------------------------------------------------------

LINK = re.compile(r"\]\(([^()\s]+)\)")
COMMAND = re.compile(r"python -m eventbus(?: [^`|&>\n]+)?")


def prose_of(page: Path) -> str:
    """
    Return the text of a page without its blocks of code.
    """
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors_of(page: Path) -> set[str]:
    """
    Return what can stand after a # in a link to a page: headings as a browser names them.
    """
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", prose_of(page), re.MULTILINE))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    """
    A link to another page, or to a place in one, names a file and a heading that exist.
    """
    dead = []
    for link in LINK.findall(prose_of(page)):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            dead.append(link)
    assert [] == dead


def commands() -> list[str]:
    """
    Return every command line of ours that a page shows, without what a shell does with it.
    """
    found = {each for page in TEXTS for each in COMMAND.findall(page.read_text(encoding="utf-8"))}
    return sorted(each for each in found if len(each.split()) > 4 and "..." not in each)


@pytest.mark.parametrize("command", commands())
def test_every_command_that_is_shown_can_be_given(command: str) -> None:
    """
    The arguments of each ``python -m eventbus`` on a page are understood as they stand.
    """
    assert parse(shlex.split(command)[3:]).store


# -- the reference is complete ---------------------------------------------------------------

REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
ROOMS = sorted(
    f"eventbus.{room.name}"
    for room in pkgutil.iter_modules(eventbus.__path__)
    if not room.name.startswith("_")
)


def listed_in_reference() -> set[str]:
    """
    Return the simple names that have a directive of their own.
    """
    named = re.findall(r"^ *\.\. (?:auto\w+|py:data):: ([\w.]+)", REFERENCE, re.MULTILINE)
    return {each.rpartition(".")[2] for each in named}


@pytest.mark.parametrize("room", [*ROOMS, "eventbus.testing.contracts"])
def test_the_reference_has_every_public_name(room: str) -> None:
    """
    A name is in the reference by itself, or as a class or function of a room that is whole.
    """
    module = importlib.import_module(room)
    whole = f".. automodule:: {room}\n   :members:" in REFERENCE
    missing = set(module.__all__) - listed_in_reference()
    if whole:
        missing = {each for each in missing if not hasattr(getattr(module, each), "__qualname__")}
    assert set() == missing


def test_the_reference_has_every_name_of_the_front_door() -> None:
    """
    What is imported from `eventbus` itself is described in one section or another.
    """
    elsewhere = {name for room in ROOMS for name in importlib.import_module(room).__all__}
    assert set() == set(eventbus.__all__) - listed_in_reference() - elsewhere


@pytest.mark.parametrize(
    ("made", "ours"),
    [
        (eventbus.EventBus, {"stood_in_by"}),
        (TestBus, {"adopt", "leave_out", "relieve", "arelieve"}),
    ],
)
def test_the_reference_has_every_verb_of_a_bus(made: type, ours: set[str]) -> None:
    """
    Each public method and property has its place, but for those that are between our rooms.
    """
    verbs = {name for name in dir(made) if not name.startswith("_")}
    assert {"stood_in_by"} | ours == verbs - listed_in_reference()
