"""
The picture for README and docs: one event, plain, queued or durable, as a multiple of ours.

Law: draws what was measured, nothing else; readable on a light page and on a dark one. The only
file that needs matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import Any

from . import durable, queued
from .rows import Row

# One grey with a contrast of 4.3 : 1 both on white and on #0d1117, so that the ground stays clear.
_INK = "#757a82"
_OURS, _BARE, _PEER = "#e8710a", "#757a82", "#4c8ed0"
_PANELS = (
    ("publish, 1 plain handler", "publish, 1 handler"),
    ("publish, 10 plain handlers", "publish, 10 handlers"),
    ("apublish, 1 plain async handler", "apublish, 1 async handler"),
    ("apublish, 10 plain async handlers", "apublish, 10 async handlers"),
    (queued.THREADS, "queued, threads"),
    (queued.ASYNCIO, "queued, asyncio"),
    (f"{queued.THREADS}: from publish to handler, p99", "p99 under load, threads"),
    (f"{queued.ASYNCIO}: from publish to handler, p99", "p99 under load, asyncio"),
    (durable.CYCLE, "durable: stored, handled, done"),
    (durable.REPLAY, "durable: read again"),
)


def bars(found: Iterable[Row], race: str) -> list[tuple[str, float]]:
    """
    Return the contenders of a race with their time as a multiple of ours, the fastest first.
    """
    rows = [row for row in found if row.race == race and row.ratio]
    named = {row.rival: 1 / row.ratio for row in rows if row.ratio}
    return sorted({"eventbus": 1.0, **named}.items(), key=lambda bar: bar[1])


def _panel(
    axes: Any, title: str, contenders: Sequence[tuple[str, float]], limits: tuple[float, float]
) -> None:
    names = [name for name, _ in contenders]
    colours = [
        _OURS if n == "eventbus" else _BARE if n.startswith("bare") else _PEER for n in names
    ]
    drawn = axes.barh(names, [value for _, value in contenders], color=colours, height=0.7)
    labels = [
        f" {value:{'.2g' if value < 10 else '.0f'}} \N{MULTIPLICATION SIGN}"
        for _, value in contenders
    ]
    axes.bar_label(drawn, labels=labels, color=_INK, fontsize=9)
    axes.set_title(title, color=_INK, fontsize=10, loc="left", fontweight="bold")
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0, labelcolor=_INK, labelsize=9)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw(found: Sequence[Row], around: dict[str, Any], path: Path) -> None:
    """
    Write the picture to *path*, in the format its suffix says.
    """
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "eventbus"  # the same numbers make the same file
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, grid = pyplot.subplots(5, 2, figsize=(9.5, 11.5), height_ratios=(10, 6, 4, 4, 3))
    panels = [(title, bars(found, race)) for race, title in _PANELS]
    values = [value for _, contenders in panels for _, value in contenders]
    limits = (min(values) * 0.6, max(values) * 3)  # the same in all panels; labels need room
    for axes, (title, contenders) in zip(grid.flat, panels, strict=True):
        _panel(axes, title, contenders, limits)
    figure.suptitle(
        "Time of one event, eventbus = 1 (logarithmic; shorter is faster)",
        color=_INK,
        fontsize=12,
        x=0.02,
        ha="left",
    )
    figure.text(0.02, 0.01, _caption(around), color=_INK, fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 1, 0.99), w_pad=3, h_pad=2)
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, transparent=True, dpi=150, metadata=metadata)
    pyplot.close(figure)


def _caption(around: dict[str, Any]) -> str:
    versions = around["versions"].items()
    named = ", ".join(f"{name} {version}" for name, version in versions if version[:1].isdigit())
    return fill(f"{around['implementation']} {around['python']}: {named}", 150)
