"""
A stream of sensor readings: an alarm that may not wait, and an archive that may lag behind.

    python -m pip install '.[rich]' && python examples/iot_stream.py

Readings come faster than the archive can write them:

- the threshold is watched inline: when ``publish`` returns, the alarm has been given;
- the archive is queued, and slow. Its queue takes a thousand readings and then gives up the
  oldest ones. So the sensors never wait for it, and every reading that is lost is counted.

While it runs, it reports rates, depth and drops: as a table where rich is installed and there is
a terminal, else line by line. It ends by itself, or with Ctrl-C: the archive is then given a
moment for what is still in the queue, and the last report accounts for every reading.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from eventbus import EventBus, InMemoryDeadLetters, Queued, SubscriptionStats, event

SENSORS = [f"hall-{number}" for number in range(1, 9)]
LIMIT = 27.0  # °C
WRITING = 0.001  # seconds that the archive takes for one reading, at least
EVERY = 0.5  # seconds between two reports


@event(key="sensor")
class ReadingTaken:
    sensor: str
    celsius: float


@event(key="sensor")
class LimitExceeded:
    sensor: str
    celsius: float


# ---------------------------------------------------------------------------- the handlers


def make_bus(alarms: list[str]) -> EventBus:
    # What is dropped is kept as a dead letter while there is room: here the first hundred.
    bus = EventBus(name="hall", dead_letters=InMemoryDeadLetters(capacity=100))
    is_hot = dict.fromkeys(SENSORS, False)

    @bus.on(name="threshold")
    def watch(taken: ReadingTaken) -> None:
        was_hot, is_hot[taken.sensor] = is_hot[taken.sensor], taken.celsius > LIMIT
        if is_hot[taken.sensor] and not was_hot:
            bus.publish(LimitExceeded(taken.sensor, taken.celsius))

    @bus.on(name="alarm")
    def alarm(exceeded: LimitExceeded) -> None:
        alarms.append(exceeded.sensor)

    # Two workers, and still the readings of one sensor are written in order: they have a key.
    @bus.on(
        name="archive",
        delivery=Queued(capacity=1_000, overflow="drop_oldest", workers=2),
    )
    def archive(taken: ReadingTaken) -> None:
        time.sleep(WRITING)  # a disk, a network

    return bus


def readings(chance: random.Random) -> Iterator[ReadingTaken]:
    """
    Let each sensor's temperature wander, and come back.
    """
    celsius = dict.fromkeys(SENSORS, 24.0)
    while True:
        for sensor in SENSORS:
            now = celsius[sensor]
            celsius[sensor] = now + chance.gauss((24.0 - now) / 500, 0.2)
            yield ReadingTaken(sensor, round(celsius[sensor], 2))


# ------------------------------------------------------------------------------- the stream


def stream(
    bus: EventBus, rate: float, seconds: float, over: threading.Event, show: Callable[[], None]
) -> None:
    """
    Publish *rate* readings a second for so many *seconds*, or until it is *over*.
    """
    began = time.monotonic()
    report_at = began + EVERY
    for number, reading in enumerate(readings(random.Random(7))):
        now = time.monotonic()
        if now >= report_at:
            show()
            report_at += EVERY
        if now - began >= seconds or over.is_set():
            return
        if (early := began + number / rate - now) > 0:
            over.wait(early)
        bus.publish(reading)


@contextmanager
def told_by_signal() -> Iterator[threading.Event]:
    """
    Set an event at Ctrl-C or SIGTERM; a second one ends the program as usual.
    """
    over = threading.Event()
    before: dict[int, Any] = {}

    def tell(number: int, _frame: object) -> None:
        over.set()
        signal.signal(number, before[number])

    for each in (signal.SIGINT, signal.SIGTERM):
        before[each] = signal.signal(each, tell)
    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    alarms: list[str] = []
    bus = make_bus(alarms)
    with told_by_signal() as over:
        with reporting(bus, plain=options.plain) as show:
            stream(bus, options.rate, options.seconds, over, show)
        left = bus.close(timeout=options.grace)
    print("\nstopped" if over.is_set() else "\ndone", f"and closed: {left}")
    return report(bus.stats().subscriptions["archive"], alarms, len(bus.dead_letters))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A stream of sensor readings.")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long (5)")
    parser.add_argument("--rate", type=float, default=4_000.0, help="readings per second (4000)")
    parser.add_argument("--grace", type=float, default=0.2, help="seconds to close in (0.2)")
    parser.add_argument("--plain", action="store_true", help="lines, also where rich is installed")
    return parser.parse_args(arguments)


# ------------------------------------------------------------------------------- the reports

HEAD = ("published/s", "archived/s", "depth", "lag", "dropped")


class Gauge:
    """
    What has changed on the archive's subscription since it was last looked at.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._before, self._at = self._look()

    def _look(self) -> tuple[SubscriptionStats, float]:
        return self._bus.stats().subscriptions["archive"], time.monotonic()

    def read(self) -> tuple[str, ...]:
        """
        Return the values under `HEAD`.
        """
        now, at = self._look()
        passed = max(at - self._at, 1e-3)
        published = (now.published - self._before.published) / passed
        archived = (now.delivered - self._before.delivered) / passed
        self._before, self._at = now, at
        rates = f"{published:,.0f}", f"{archived:,.0f}"
        return *rates, f"{now.depth:,}", f"{now.lag * 1e3:,.0f} ms", f"{now.dropped:,}"


@contextmanager
def reporting(bus: EventBus, *, plain: bool) -> Iterator[Callable[[], None]]:
    """
    Give out what shows the present state, in the way that suits the terminal.
    """
    gauge = Gauge(bus)
    if plain or find_spec("rich") is None or not (console := make_console()).is_terminal:
        print(*(f"{name:>12}" for name in HEAD))
        yield lambda: print(*(f"{value:>12}" for value in gauge.read()), flush=True)
        return
    with import_module("rich.live").Live(console=console, auto_refresh=False) as live:
        yield lambda: live.update(table(gauge.read()), refresh=True)


def make_console() -> Any:
    return import_module("rich.console").Console()


def table(values: Sequence[str]) -> Any:
    drawn = import_module("rich.table").Table(title="archive, queued with drop_oldest")
    for name in HEAD:
        drawn.add_column(name, justify="right", min_width=12)
    drawn.add_row(*values)
    return drawn


def report(counted: SubscriptionStats, alarms: list[str], letters: int) -> int:
    """
    Account for every reading; return 0 if the numbers add up.
    """
    parts = {
        "archived": counted.delivered,
        "dropped": counted.dropped,
        "left": counted.undelivered,
    }
    for name, number in parts.items():
        print(f"  {name:<10}{number:>9,}")
    adds_up = sum(parts.values()) == counted.published
    print(f"  {'published':<10}{counted.published:>9,}  {'✓ adds up' if adds_up else '✗'}")
    print(f"  {letters} of those not archived are kept as dead letters, {len(alarms)} alarms given")
    return 0 if adds_up else 1


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    logging.basicConfig(stream=sys.stdout, format="log: %(message)s")
    sys.exit(main())
