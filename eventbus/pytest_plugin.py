"""
The pytest plugin: the test bus as a fixture.

Law: pytest imports this module in every run of everybody who has the library
installed. So nothing happens here, and nothing is imported, until a test asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from eventbus.testing import TestBus

__all__ = ["durable_test_bus", "test_bus"]


@pytest.fixture
def test_bus() -> Iterator[TestBus]:
    """
    A fresh `eventbus.testing.TestBus`, closed after the test.
    """
    from eventbus.testing import TestBus  # late: only for those who use it

    with TestBus() as bus:
        yield bus


@pytest.fixture
def durable_test_bus() -> Iterator[TestBus]:
    """
    Provide a fresh `eventbus.testing.TestBus` with a store, for durable subscriptions.
    """
    from eventbus.testing import TestBus  # late: only for those who use it

    with TestBus(durable=True) as bus:
        yield bus
