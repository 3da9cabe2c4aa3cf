"""
Run the benchmarks: ``python -m tests.benchmarks`` from the project's root.

Law: arguments in, table out. What is measured stands in `rows`, how in `timing`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from . import costs, durable, growth, ladder, latency, queued, rows
from .page import PEERS, described, renew, table
from .peers import ASYNC, SYNC, version_of
from .rows import Row
from .timing import FULL, QUICK

_EPILOG = "Needs the extra `bench` for the peers and the picture: pip install -e '.[bench]'"


def versions() -> dict[str, str]:
    """
    Return the version of everything that takes part, or that it is not installed.
    """
    found = {name: version_of(name) for name in ("eventbus", "attrs")}
    lines = (line for rivals in queued.LINES.values() for line in rivals)
    for each in (*SYNC, *ASYNC, rows.STAMINA, *lines):
        if each.distribution:
            found[each.distribution] = each.version
    return {**found, **durable.versions()}


def surroundings() -> dict[str, Any]:
    """
    Return what a reader needs to know to judge the numbers.
    """
    return {
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan"),
        "versions": versions(),
    }


def report(found: Sequence[Row], around: dict[str, Any]) -> dict[str, Any]:
    """
    Return everything measured, ready for JSON; times in seconds.
    """
    lines = [{**attrs.asdict(row), "ratio": row.ratio, "verdict": row.verdict} for row in found]
    return {**around, "rows": lines}


def sections(options: argparse.Namespace) -> Iterator[tuple[str, Iterator[Row]]]:
    """
    Yield what was asked for: the title of each table and its rows as they come.
    """
    effort = QUICK if options.quick else FULL
    if options.million:
        effort = attrs.evolve(effort, stored=(*effort.stored, 1_000_000))
    yield PEERS, rows.run(effort)
    yield "Queued: the time of one event, until the last one is handled", queued.run(effort)
    yield "Latency under load: queued, at half of each one's own rate", latency.run(effort)
    yield "Durable: stored in an SQLite file, delivered from it, read again", durable.run(effort)
    yield "Durable, on files that hold ever more events", growth.run(effort)
    yield "Where the time of one publish goes, step by step", ladder.run(effort)
    yield "What costs what: one publish with it, against a plain one", costs.run(effort)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """
    Read the command line.
    """
    parser = argparse.ArgumentParser("python -m tests.benchmarks", epilog=_EPILOG)
    parser.add_argument("--quick", action="store_true", help="a smoke test: numbers mean nothing")
    parser.add_argument(
        "--million", action="store_true", help="with a million stored events, too: takes minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="renew the block of this Python in a page"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the picture")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the picture")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Measure, print, and write the files that were asked for.
    """
    options = parse(arguments)
    around = surroundings()
    print(described(around))
    found: dict[str, list[Row]] = {}
    for title, section in sections(options):
        found[title] = list(section)
        print(f"\n{title}\n\n{table(found[title])}", flush=True)
    everything = [row for section in found.values() for row in section]
    if options.json:
        options.json.write_text(json.dumps(report(everything, around), indent=2) + "\n")
    if options.page:
        renew(options.page, found, around)
    for path in filter(None, (options.svg, options.png)):
        from .picture import draw  # matplotlib starts slowly, and only a picture needs it

        draw(everything, around, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
