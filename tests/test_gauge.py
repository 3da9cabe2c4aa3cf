"""
The bar that shows how far a replay is: where it can be seen, and nowhere else.
"""

from __future__ import annotations

import io
import sys

import pytest

from eventbus._gauge import gauge
from eventbus.replay import Replayed


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_far_a_replay_is():
    """
    With rich installed, a bar is drawn.
    """
    with gauge("mailer", stream=(terminal := Terminal())) as show:
        assert show is not None
        show(Replayed(subscription="mailer", done=5, total=10, offset=5))
    assert "mailer" in terminal.getvalue()


def test_without_a_terminal_nothing_is_shown():
    """
    A log file is not filled with bars.
    """
    with gauge("mailer", stream=io.StringIO()) as show:
        assert show is None


def test_without_rich_nothing_is_shown(monkeypatch: pytest.MonkeyPatch):
    """
    The bar is an extra.
    """
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with gauge("mailer") as show:
        assert show is None
    assert "" == terminal.getvalue()
