"""
A small shop: orders flow through stock, payment, invoice and notification.

    python -m pip install . && python examples/shop.py

It needs nothing but ``eventbus``. The orders stand in ``orders.jsonl``, one to a line:

- each is taken through four handlers that know nothing of each other;
- the bank fails twice for one of them, and the payment is retried;
- one is sent twice, and taken once;
- the mails are written in the background, and nobody waits for them;
- one cannot be served by any number of retries: it is kept as a dead letter, and redriven once
  the cause is out of the way.

The report at the end is made of what the bus has counted and of what an observer has seen.

    python examples/shop.py --store shop.db

keeps the same shop in a file: orders, stock, payments, invoices and mails. End it at any moment,
with Ctrl-C or ``kill -9``, and start it again: it goes on, and every order is paid once.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import sqlite3
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from eventbus import (
    ConcurrencyError,
    Durable,
    EventBus,
    Queued,
    Receipt,
    event,
    exponential,
    on,
)
from eventbus.instrumentation import (
    Delivered,
    Failed,
    Occurrence,
    Published,
    Replayed,
    Retried,
)
from eventbus.sqlite import SQLiteStore

ORDERS = Path(__file__).with_name("orders.jsonl")

# ------------------------------------------------------- the events: facts, in the past tense

# They are stored under these names, and can be renamed here at any time.


@event(name="shop.order_placed", key="order_id")
class OrderPlaced:
    order_id: str
    customer: str
    article: str
    quantity: int
    price: Decimal

    @property
    def total(self) -> Decimal:
        return self.quantity * self.price


@event(name="shop.stock_reserved", key="order_id")
class StockReserved:
    order_id: str
    customer: str
    amount: Decimal


@event(name="shop.payment_received", key="order_id")
class PaymentReceived:
    order_id: str
    customer: str
    amount: Decimal


@event(name="shop.invoice_issued", key="order_id")
class InvoiceIssued:
    order_id: str
    customer: str
    number: int
    amount: Decimal


# ---------------------------------------------- the world outside: a warehouse, a bank, the mail

warehouse = {"tea": 40, "kettle": 3, "cup": 24}
outages = {"A-1002": 2}  # how often the bank still fails for an order: by count, not by chance
takings: dict[str, Decimal] = {}
invoices: list[InvoiceIssued] = []
mails: list[str] = []


def collect(order_id: str, amount: Decimal) -> None:
    if outages.get(order_id):
        outages[order_id] -= 1
        raise ConnectionError("the bank does not answer")
    takings[order_id] = takings.get(order_id, Decimal()) + amount


# ------------------------------------------------ the handlers: each knows its event, no other

bus = EventBus(name="shop", timings=True)


@bus.on(OrderPlaced, name="stock")
def reserve_stock(placed: OrderPlaced) -> None:
    if placed.article not in warehouse:
        raise LookupError(f"the warehouse has no {placed.article!r}")
    warehouse[placed.article] -= placed.quantity
    bus.publish(StockReserved(placed.order_id, placed.customer, placed.total))


# What is tried again, when and how often is said here and not in the function; and that no
# order is charged twice, whatever is published or redriven twice.
@bus.on(
    StockReserved,
    name="payment",
    retry=exponential(attempts=4, initial=0.05, jitter="none", on=ConnectionError),
    idempotency_key="order_id",
)
def charge(reserved: StockReserved) -> None:
    collect(reserved.order_id, reserved.amount)
    bus.publish(PaymentReceived(reserved.order_id, reserved.customer, reserved.amount))


# Where no class is given, the annotation says which events are meant.
@bus.on(name="invoice")
def issue_invoice(paid: PaymentReceived) -> None:
    invoice = InvoiceIssued(paid.order_id, paid.customer, len(invoices) + 1, paid.amount)
    invoices.append(invoice)
    bus.publish(invoice)


# Of two kinds of event, before the other handlers of either, and queued: `publish` hands the
# event over and goes on. There is no event loop in this program, so this async handler runs on
# one of the bus's own. The events have a key, the order's id, so that the mails of one order
# are written in their order.
@bus.on(name="notification", priority=10, delivery=Queued(capacity=100), timeout=1.0)
async def notify(happened: OrderPlaced | InvoiceIssued) -> None:
    match happened:
        case OrderPlaced():
            mails.append(f"{happened.customer}: we have your order {happened.order_id}")
        case InvoiceIssued():
            mails.append(f"{happened.customer}: invoice {happened.number}, {happened.amount} €")


# --------------------------------------------------------------------------- the shop is open


def read_orders(path: Path) -> Iterator[OrderPlaced]:
    for line in path.read_text(encoding="utf-8").splitlines():
        yield OrderPlaced(**json.loads(line, parse_float=Decimal))


def main() -> int:
    trail = Trail()
    bus.observe(trail)
    with bus:
        heading("Orders come in")
        for order in read_orders(ORDERS):
            # One event for each order: one that is sent again finds its key taken.
            say(bus.publish(order, idempotency_key=order.order_id))

        heading("What could not be done")
        for letter in bus.dead_letters:
            print(f"  {letter.event.order_id} by {letter.subscription!r}, after", end=" ")
            print(f"{plural(letter.attempts, 'attempt')}: {letter.error_type}: {letter.message}")

        heading("A samovar is bought, and the order redriven")
        warehouse["samovar"] = 1
        for receipt in bus.redrive_all(event_type=OrderPlaced, error=LookupError):
            say(receipt)

        heading("Before the shop closes")
        print(f"  queued notifications: {bus.drain(timeout=10.0)}")

        report(trail)
    return 0 if len(takings) == 4 and not len(bus.dead_letters) else 1


def say(receipt: Receipt) -> None:
    order: OrderPlaced = receipt.event
    if receipt.duplicate:
        outcome = "a duplicate: no handler called"
    elif receipt.ok:
        outcome = f"✓ {plural(receipt.delivered, 'handler')}"
        outcome += f", {receipt.queued} queued" * (receipt.queued > 0)
    else:
        outcome = ", ".join(f"✗ {each.subscription}" for each in receipt.failures)
    ordered = f"{order.customer:<6} {order.quantity} x {order.article:<8}"
    print(f"  {order.order_id}  {ordered} {order.total:>7} €   {outcome}")


# -------------------------------------------------- the observer: remembers, to draw it later


class Trail:
    def __init__(self) -> None:
        self._stories: dict[str, list[Any]] = {}

    def __call__(self, occurrence: Occurrence) -> None:
        if isinstance(occurrence, Replayed):  # it tells of no event
            return
        envelope = occurrence.envelope
        self._stories.setdefault(envelope.id, []).append(occurrence)
        if isinstance(occurrence, Published) and envelope.causation_id is not None:
            # What a handler published is part of the story of that handler's own event.
            self._stories[envelope.causation_id].append(occurrence)

    def tree_of(self, key: str) -> Node:
        """
        Draw what the first event with this key led to.
        """
        first = next(story[0].envelope for story in self._stories.values() if is_of(key, story))
        return self._draw(first.id, first.name)

    def _draw(self, event_id: str, name: str) -> Node:
        # Inline handlers run one after the other: whatever was noted since one of them ended
        # belongs to the one that ends next. What is queued ends in between, or long after.
        handlers: list[Node] = []
        queued: list[Node] = []
        inside: list[Node] = []
        for each in self._stories[event_id]:
            match each:
                case Published(envelope=envelope) if envelope.id != event_id:
                    inside.append(self._draw(envelope.id, envelope.name))
                case Retried():
                    facts = f"{type(each.exception).__name__}, again in {each.delay * 1e3:.0f} ms"
                    inside.append(Node(f"✗ attempt {each.attempt}", facts))
                case Delivered(subscription="notification"):
                    facts = f"{plural(each.attempt, 'attempt'):<10} {each.duration * 1e3:8.2f} ms"
                    queued.append(Node(f"✓ {each.subscription}, queued", facts))
                case Delivered():
                    facts = f"{plural(each.attempt, 'attempt'):<10} {each.duration * 1e3:8.2f} ms"
                    handlers.append(Node(f"✓ {each.subscription}", facts, tuple(inside)))
                    inside = []
                case Failed():
                    facts = f"{plural(each.attempts, 'attempt'):<10} {each.exception!r}"
                    handlers.append(Node(f"✗ {each.subscription}", facts, tuple(inside)))
                    inside = []
        return Node(name, "", (*handlers, *queued))


def is_of(key: str, story: list[Occurrence]) -> bool:
    return isinstance(story[0], Published) and story[0].envelope.key == key


@dataclass(frozen=True)
class Node:
    label: str
    facts: str
    inside: tuple[Node, ...] = ()

    def lines(self, first: str = "", below: str = "") -> Iterator[str]:
        head = f"{first}{self.label} "
        yield f"{head:·<46} {self.facts}" if self.facts else head.rstrip()
        for node in self.inside:
            is_last = node is self.inside[-1]
            knee, trunk = ("╰─ ", "   ") if is_last else ("├─ ", "│  ")
            yield from node.lines(below + knee, below + trunk)


# ------------------------------------------------------------------------------- the report


def report(trail: Trail) -> None:
    heading("Where order A-1002 led")
    print(*(f"  {line}" for line in trail.tree_of("A-1002").lines()), sep="\n")
    print("  Times are of the last attempt, with all that was published in it.")

    heading("What the bus counted")
    stats = bus.stats()
    columns = ("delivered", "failed", "retried", "duplicate", "dead_lettered")
    print(" " * 15, *(f"{column.replace('_', '-'):>13}" for column in columns), f"{'longest':>13}")
    for name, counted in stats.subscriptions.items():
        numbers = [f"{getattr(counted, column):>13}" for column in columns]
        longest = counted.time.max * 1e3 if counted.time else 0.0
        print(f"  {name:<13}", *numbers, f"{longest:10.1f} ms")
    left = plural(len(bus.dead_letters), "dead letter")
    turned_away = f"{plural(stats.duplicate, 'duplicate')} turned away"
    print(f"  {plural(stats.published, 'event')} published, {turned_away}, {left} left")

    heading("What the world saw of it")
    print(f"  {len(takings)} orders paid, {sum(takings.values())} € in all")
    # Queued events keep the order of their key, here the order's id, and no other.
    by_customer = sorted(mails, key=lambda mail: mail.partition(":")[0])
    print(*(f"  ✉ {mail}" for mail in by_customer), sep="\n")


# ---------------------------------------------------- the same shop in a file: it can be killed

TABLES = """
    CREATE TABLE IF NOT EXISTS stock (article TEXT PRIMARY KEY, left INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS payments (order_id TEXT NOT NULL, amount TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS invoices (number INTEGER PRIMARY KEY, order_id TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS mails (text TEXT NOT NULL);
"""


class StoredShop:
    """
    Handles the same events from a log in the file, also those that an earlier run has left.

    Each handler asks for a connection to the file. What it writes there, what it publishes and
    that its event is done with are committed together, so that nothing is ever done twice.
    """

    def __init__(self, path: str) -> None:
        self.bus = EventBus(store=SQLiteStore(path), name="stored shop")
        self.bus.include(self)

    @on(OrderPlaced, name="stock", delivery=Durable())
    def reserve_stock(self, placed: OrderPlaced, db: sqlite3.Connection) -> None:
        taken = "UPDATE stock SET left = left - ? WHERE article = ?"
        if not db.execute(taken, (placed.quantity, placed.article)).rowcount:
            raise LookupError(f"the warehouse has no {placed.article!r}")
        self.bus.publish(StockReserved(placed.order_id, placed.customer, placed.total))

    # The attempts are counted in the file as well, and the keys are kept there: an order whose
    # letter is redriven once more, because that was cut short, is not charged once more.
    @on(
        StockReserved,
        name="payment",
        delivery=Durable(),
        retry=exponential(attempts=4, initial=0.05, jitter="none", on=ConnectionError),
        idempotency_key="order_id",
    )
    def charge(self, reserved: StockReserved, db: sqlite3.Connection) -> None:
        collect(reserved.order_id, reserved.amount)
        paid = (reserved.order_id, str(reserved.amount))
        db.execute("INSERT INTO payments VALUES (?, ?)", paid)
        self.bus.publish(PaymentReceived(reserved.order_id, reserved.customer, reserved.amount))

    @on(PaymentReceived, name="invoice", delivery=Durable())
    def issue_invoice(self, paid: PaymentReceived, db: sqlite3.Connection) -> None:
        number = db.execute("INSERT INTO invoices (order_id) VALUES (?)", [paid.order_id]).lastrowid
        assert number is not None
        self.bus.publish(InvoiceIssued(paid.order_id, paid.customer, number, paid.amount))

    @on(OrderPlaced | InvoiceIssued, name="notification", delivery=Durable())
    def notify(self, happened: OrderPlaced | InvoiceIssued, db: sqlite3.Connection) -> None:
        what = "invoice" if isinstance(happened, InvoiceIssued) else "we have your order"
        text = f"{happened.customer}: {what} {happened.order_id}"
        db.execute("INSERT INTO mails VALUES (?)", [text])


def main_on(path: str, pace: float) -> int:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript(TABLES)
        db.executemany("INSERT OR IGNORE INTO stock VALUES (?, ?)", warehouse.items())
        shop = StoredShop(path)
        with shop.bus as bus:
            heading(f"Orders come in, {len(bus.dead_letters)} could not be done before")
            for order in read_orders(ORDERS):
                print(f"  {order.order_id}  {take(bus, order)}", flush=True)
                time.sleep(pace)
            print(f"  by then: {bus.drain(timeout=60.0)}")

            heading("A samovar is bought, and what could not be done redriven")
            db.execute("INSERT OR IGNORE INTO stock VALUES ('samovar', 1)")
            for receipt in bus.redrive_all():
                outcome = "✓" if receipt.ok else "✗"
                print(f"  {receipt.envelope.key}  {outcome} {receipt.envelope.name}, redriven")
            print(f"  by then: {bus.drain(timeout=60.0)}")

        heading(f"What the world saw of it, as it stands in {path}")
        paid = db.execute("SELECT order_id, amount FROM payments ORDER BY order_id").fetchall()
        print(*(f"  {order_id} paid: {amount:>7} €" for order_id, amount in paid), sep="\n")
        (written,) = db.execute("SELECT count(*) FROM mails").fetchone()
        print(f"  {plural(written, 'mail')} written")
    return 0 if len({order_id for order_id, _ in paid}) == len(paid) == 4 else 1


def take(bus: EventBus, order: OrderPlaced) -> str:
    try:
        # The first event of its stream, or none: that is decided by the commit itself.
        bus.publish(order, expected_version=0)
    except ConcurrencyError:
        return "stands in the file already"
    return "stored, and to be handled whatever happens now"


def heading(text: str) -> None:
    print(f"\n{text}\n{'─' * len(text)}")


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


class OneLine(logging.Formatter):
    """
    Leaves out the traceback, which the dead letter has as well.
    """

    def formatException(self, ei: object) -> str:  # noqa: N802 - so logging calls it
        return ""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A small shop.")
    parser.add_argument("--store", metavar="FILE", help="keep the shop in this SQLite file")
    parser.add_argument(
        "--pace", type=float, default=0.0, help="with --store: seconds between two orders"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = parse()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # the boxes, wherever the output goes
    log = logging.StreamHandler(sys.stdout)
    log.setFormatter(OneLine("  log: %(message)s"))
    logging.getLogger("eventbus").addHandler(log)
    sys.exit(main() if options.store is None else main_on(options.store, options.pace))
