"""
Handle all events of a store, and say how much memory that took.

Law: runs in a process of its own, ``python -m tests.benchmarks.draining FILE``; what it found
is one JSON value on its standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from eventbus import Durable, EventBus
from eventbus.sqlite import SQLiteStore

from .ours import ORDER, OrderPlaced

_STATUS = Path("/proc/self/status")


def peak() -> int:
    """
    Return the most memory that this process has had, in bytes.
    """
    if _STATUS.exists():
        # What `resource` says counts the process that started this one, too.
        lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    import resource  # not everywhere

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main(path: str) -> None:
    """
    Drain the file from its first event on, once everything that is needed is loaded.
    """
    handled = 0

    def count(placed: OrderPlaced) -> None:
        nonlocal handled
        handled += 1

    with EventBus(store=SQLiteStore(path)) as bus:
        bus.subscribe(OrderPlaced, count, name="warming up", delivery=Durable())
        bus.start()
        bus.publish(ORDER)
        bus.drain()
        before, handled = peak(), 0
        bus.subscribe(OrderPlaced, count, name="draining", delivery=Durable(start="origin"))
        assert bus.drain().ok
        grown = peak() - before
    sys.stdout.write(json.dumps({"handled": handled, "grown": grown}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
