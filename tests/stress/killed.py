"""
The program that is killed: it publishes, handles, and writes down what it has done.

Run as ``python killed.py FOLDER FIRST HOW_MANY [wait]``: it publishes that many events,
numbered from FIRST, while it handles what there is; then it closes, if asked so only when
all is handled. Each line it writes to a file
is one `os.write`, which a killed process has made or has not.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from pathlib import Path

from eventbus import Envelope, EventBus, event
from eventbus._mode import Durable
from eventbus.sqlite import SQLiteStore

KEYS = 7
POLLS = 1_200  # a minute of them
FAST, SLOW, KEYED, ONCE = "fast", "slow", "keyed", "once"


@event(key="key")
class Counted:
    number: int
    key: str


@event
class Echoed:
    number: int


class Page:
    """
    A file to which whole lines are added.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def add(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def subscribe(bus: EventBus, folder: Path) -> None:
    """
    Subscribe the handlers whose every call is written down.
    """
    pages = {name: Page(folder / name) for name in (FAST, SLOW, KEYED)}
    pause = threading.Event()

    @bus.on(Counted, delivery=Durable(start="origin", lease=3.0), name=FAST)
    def fast(counted: Counted, envelope: Envelope) -> None:
        pages[FAST].add(counted.number, counted.key, envelope.offset)

    @bus.on(Counted, delivery=Durable(start="origin", lease=3.0), name=SLOW)
    def slow(counted: Counted, envelope: Envelope) -> None:
        pages[SLOW].add(counted.number, counted.key, envelope.offset)
        pause.wait(0.002)

    @bus.on(Counted, delivery=Durable(start="origin", workers=3, lease=3.0), name=KEYED)
    async def keyed(counted: Counted, envelope: Envelope) -> None:
        pages[KEYED].add(counted.number, counted.key, envelope.offset)

    @bus.on(Counted, delivery=Durable(start="origin", lease=3.0), name=ONCE)
    def once(counted: Counted, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO once (number) VALUES (?)", (counted.number,))
        if counted.number % 5 == 0:
            bus.publish(Echoed(counted.number))


def wait_until_all_is_handled(store: SQLiteStore) -> None:
    """
    Wait until nothing is left to do, whoever does it, for as long as it becomes less.
    """
    pause, left, polls = threading.Event(), -1, 0
    while polls < POLLS:
        before, left = left, sum(each.lag for each in store.progress.positions())
        if not left:
            return
        polls = 0 if left != before else polls + 1
        pause.wait(0.05)
    raise TimeoutError(f"not all was handled: {store.progress.positions()}")


def main() -> None:
    """
    Publish and handle.
    """
    folder, first, many = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    store = SQLiteStore(folder / "store.db")
    with sqlite3.connect(folder / "store.db") as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS once (number INTEGER)")
    connection.close()
    bus = EventBus(store=store)
    subscribe(bus, folder)
    published = Page(folder / "published")
    with bus:
        for number in range(first, first + many):
            bus.publish(Counted(number, f"k{number % KEYS}"))
            published.add(number)
        if "wait" in sys.argv:
            wait_until_all_is_handled(store)


if __name__ == "__main__":
    main()
