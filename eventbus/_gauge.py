"""
A bar on the terminal that shows how far a replay has come.

Law: it shows, and decides nothing. Where nobody looks, or rich is not installed, it does
nothing at all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TextIO

from eventbus._playback import Replayed

__all__ = ["gauge"]


@contextmanager
def gauge(
    title: str, *, stream: TextIO | None = None
) -> Generator[Callable[[Replayed], None] | None]:
    """
    Yield what shows the progress of a replay on a terminal, or ``None`` where it cannot.

    Args:
        title: What is replayed.
        stream: Where to; stderr unless given.
    """
    shown: TextIO = stream or sys.stderr
    if not shown.isatty():
        yield None
        return
    try:
        from rich.console import Console  # late: an extra, and slow to import
        from rich.progress import Progress
    except ImportError:
        yield None
        return
    with Progress(console=Console(file=shown), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def show(told: Replayed) -> None:
            bar.update(task, total=told.total, completed=told.done)

        yield show
