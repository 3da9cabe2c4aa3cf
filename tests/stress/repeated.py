"""
The program that is killed while it publishes with keys, and repeats what it is not sure of.

Run as ``python repeated.py FOLDER HOW_MANY``: it publishes that many events, numbered from
the first that is not written down as published, each with its number for a key, and writes
them down.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path

from eventbus import EventBus, event
from eventbus.sqlite import SQLiteStore

LEASE = 0.2  # seconds


@event
class Clicked:
    number: int


async def main() -> None:
    """
    Publish, in both colours.
    """
    folder, many = Path(sys.argv[1]), int(sys.argv[2])
    store, page = SQLiteStore(folder / "store.db"), folder / "published"
    bus = EventBus(store=store, idempotency=store.keys(lease=LEASE))
    first = len(page.read_text().splitlines()) if page.exists() else 0
    threading.Event().wait(LEASE)  # what the process before had only claimed is free again
    with page.open("a", buffering=1) as lines:
        for number in range(first, first + many):
            if number % 2:
                bus.publish(Clicked(number), idempotency_key=str(number))
            else:
                await bus.apublish(Clicked(number), idempotency_key=str(number))
            lines.write(f"{number}\n")


if __name__ == "__main__":
    asyncio.run(main())
