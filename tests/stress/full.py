"""
A bus on a disk that is full for a while: ``python full.py FOLDER``, on a small disk.

It says on stdout, in JSON, what was published, refused and handled.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path

from eventbus import Durable, EventBus, StoreFullError, event
from eventbus.sqlite import SQLiteStore

PATIENCE = 60.0  # seconds
FILLER = 400_000  # bytes that somebody else has on the disk, and takes away


@event(name="stress.sent")
class Sent:
    number: int
    text: str = "x" * 20_000


def main(folder: Path) -> None:
    logging.getLogger("eventbus").setLevel(logging.CRITICAL)
    (folder / "filler").write_bytes(b"x" * FILLER)
    bus = EventBus(store=SQLiteStore(folder / "shop.db"))
    inline: list[int] = []
    durable: list[int] = []
    bus.subscribe(Sent, lambda sent: inline.append(sent.number), name="inline")
    bus.subscribe(Sent, lambda sent: durable.append(sent.number), name="d", delivery=Durable())
    published: list[int] = []
    refused: list[int] = []

    def publish(number: int) -> None:
        try:
            bus.publish(Sent(number))
        except StoreFullError:
            refused.append(number)
        else:
            published.append(number)

    with bus:
        number = 0
        while len(refused) < 5:
            number += 1
            publish(number)
        time.sleep(0.3)  # in which the consumer meets the full disk as well
        (folder / "filler").unlink()
        for more in range(1, 6):
            publish(number + more)
        is_drained = bus.drain(PATIENCE).ok
    with SQLiteStore(folder / "shop.db") as store:
        damage, lag = store.check(), store.progress.position("d").lag
    print(  # noqa: T201 - how it answers
        json.dumps(
            {
                "published": published,
                "refused": refused,
                "inline": inline,
                "durable": sorted(durable),
                "drained": is_drained,
                "damage": damage,
                "lag": lag,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
