"""
Every Python block in the README and the documentation runs, page by page.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if "```python" in page.read_text(encoding="utf-8")
)
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


def test_the_readme_is_among_the_pages() -> None:
    """
    The check looks at the README and at more than one page of the documentation.
    """
    assert ROOT / "README.md" in PAGES
    assert len(PAGES) > 5
