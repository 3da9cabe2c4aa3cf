"""
How code that publishes and handles events is tested: from the simplest case up.

    python -m pip install . pytest
    python -m pytest examples/unit_testing

``shop_app.py`` is the application. Nothing in it was prepared for these tests, and no test
waits, mocks a bus, or leaves anything behind for the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
import shop_app
from shop_app import Loyalty, OrderPlaced, PaymentReceived, RewardEarned, charge, send_receipt

from eventbus import HandlerErrors
from eventbus.testing import TestBus, record


@pytest.fixture(autouse=True)
def empty_world() -> None:
    """
    Empty the bank and the mailbox, which are the application's own: no bus puts them back.
    """
    shop_app.collected.clear()
    shop_app.mails.clear()


# 1. A handler is a function: subscribing has not changed it, and a test calls it.


def test_a_receipt_names_order_and_amount() -> None:
    send_receipt(PaymentReceived("A-1", Decimal(42)))

    assert shop_app.mails == ["42 received for A-1"]


# 2. Code that is given its bus gets the one from the fixture `test_bus`: the real bus, which
#    also records, and whose clock stands still until something sleeps on it.


@pytest.fixture
def loyalty(test_bus: TestBus) -> Loyalty:
    loyalty = Loyalty(test_bus)
    test_bus.include(loyalty)
    return loyalty


def test_a_hundred_points_earn_a_reward(test_bus: TestBus, loyalty: Loyalty) -> None:
    test_bus.publish(PaymentReceived("A-1", Decimal(60)))
    test_bus.assert_not_published(RewardEarned)

    test_bus.publish(PaymentReceived("A-2", Decimal(60)))
    test_bus.assert_published(RewardEarned, points=120)


def test_a_failed_assertion_says_what_happened_instead(test_bus: TestBus, loyalty: Loyalty) -> None:
    test_bus.publish(PaymentReceived("A-1", Decimal(100)))

    with pytest.raises(AssertionError) as failed:
        test_bus.assert_published(RewardEarned, points=120)
    assert "points=100" in str(failed.value)


# 3. A bus that belongs to a module is stood in for, as long as `record` says: same handlers,
#    recorded. Whoever else uses the module's bus meanwhile notices nothing.


@pytest.fixture
def shop() -> Iterator[TestBus]:
    with record(shop_app.bus) as recorded:
        yield recorded


def test_an_order_is_paid_and_a_receipt_sent(shop: TestBus) -> None:
    shop_app.place_order("A-1", Decimal(42))

    shop.assert_published(PaymentReceived, order_id="A-1", amount=Decimal(42))
    shop.assert_delivered(send_receipt, times=1)
    assert shop_app.mails == ["42 received for A-1"]


def test_an_order_of_nothing_is_refused(shop: TestBus) -> None:
    with pytest.raises(ValueError, match="an order of 0 is none"):
        shop_app.place_order("A-1", Decimal(0))

    shop.assert_nothing_published()


# 4. To test a function that publishes, and not those that react, let nobody react, or only some.


def test_placing_an_order_publishes_it() -> None:
    with record(shop_app.bus, deliver=False) as shop:
        shop_app.place_order("A-1", Decimal(42))

    shop.assert_published(OrderPlaced, times=1, where=lambda placed: placed.total > 40)
    assert shop_app.collected == []


def test_charging_needs_no_receipt_to_be_sent() -> None:
    with record(shop_app.bus, only=[charge]) as shop:
        shop_app.place_order("A-1", Decimal(42))

    shop.assert_published(PaymentReceived)
    shop.assert_not_delivered(send_receipt)


# 5. On a bad day the bank does not answer. The waits between the attempts take no time: they
#    move the clock, and the clock can be asked.


def test_a_bank_that_fails_twice_is_asked_three_times(shop: TestBus) -> None:
    began = shop.clock.monotonic()
    shop.faults.fail(charge, with_=ConnectionError, times=2)

    shop_app.place_order("A-1", Decimal(42))

    assert [("A-1", Decimal(42))] == shop_app.collected
    assert shop.clock.monotonic() - began == 60.0 + 120.0


def test_a_payment_given_up_on_is_kept_and_can_be_made_later(shop: TestBus) -> None:
    shop.faults.down(charge)
    with pytest.raises(HandlerErrors):  # on a test bus a failure reaches the test
        shop_app.place_order("A-1", Decimal(42))
    shop.assert_dead_lettered(charge)
    assert shop_app.collected == []

    shop.faults.up(charge)
    shop.redrive_all()

    assert [("A-1", Decimal(42))] == shop_app.collected
    assert len(shop.dead_letters) == 0


# 6. The same order may come twice: because a customer clicks twice, or because whatever is
#    between her and the shop delivers at least once, and not exactly.


def test_an_order_that_comes_twice_is_charged_once(shop: TestBus) -> None:
    shop.faults.duplicate(OrderPlaced, times=2)

    shop_app.place_order("A-1", Decimal(42))

    shop.assert_delivered(charge, times=1)


def test_the_key_of_an_order_is_forgotten_after_a_day(shop: TestBus) -> None:
    shop_app.place_order("A-1", Decimal(42))
    shop.clock.advance(hours=23)
    shop_app.place_order("A-1", Decimal(42))
    assert len(shop_app.collected) == 1

    shop.clock.advance(hours=2)
    shop_app.place_order("A-1", Decimal(42))
    assert len(shop_app.collected) == 2


# 7. Which handlers would do something else the second time? Ask for all of them at once.


def test_earning_points_is_not_idempotent(test_bus: TestBus, loyalty: Loyalty) -> None:
    with pytest.raises(AssertionError, match=r"Loyalty\.earn"), test_bus.faults.check_idempotent():
        test_bus.publish(PaymentReceived("A-1", Decimal(60)))
