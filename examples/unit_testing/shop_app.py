"""
An application to be tested: its events, its handlers, and a bus of the module's own.

Nothing in here knows of a test. How it is tested is shown in ``test_shop_app.py``.
"""

from __future__ import annotations

from decimal import Decimal

import attrs

from eventbus import EventBus, Receipt, event, exponential, on

bus = EventBus(name="shop")

# The world outside: what the bank has been asked for, and whom a mail was sent.
collected: list[tuple[str, Decimal]] = []
mails: list[str] = []


@event(key="order_id")
class OrderPlaced:
    order_id: str
    total: Decimal


@event(key="order_id")
class PaymentReceived:
    order_id: str
    amount: Decimal


@event
class RewardEarned:
    points: int


def place_order(order_id: str, total: Decimal) -> Receipt:
    if total <= 0:
        raise ValueError(f"an order of {total} is none")
    return bus.publish(OrderPlaced(order_id, total))


# A minute, two, four, eight between the attempts; and never twice for one order.
@bus.on(
    retry=exponential(attempts=5, initial=60.0, maximum=3600.0, jitter="none", on=ConnectionError),
    idempotency_key="order_id",
)
def charge(placed: OrderPlaced) -> None:
    collected.append((placed.order_id, placed.total))
    bus.publish(PaymentReceived(placed.order_id, placed.total))


@bus.on
def send_receipt(paid: PaymentReceived) -> None:
    mails.append(f"{paid.amount} received for {paid.order_id}")


@attrs.define
class Loyalty:
    """
    A part of the application that is given its bus: ``bus.include(Loyalty(bus))``.
    """

    bus: EventBus
    points: int = 0

    @on
    def earn(self, paid: PaymentReceived) -> None:
        self.points += int(paid.amount)
        if self.points >= 100:
            self.bus.publish(RewardEarned(self.points))
            self.points = 0
