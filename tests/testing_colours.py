"""
Both colours of publishing and of handlers, for the tests of `eventbus.testing`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable
from typing import Any

import attrs
import pytest

from eventbus import EventBus, Receipt


@attrs.frozen
class Colour:
    """
    A colour to publish in, and one for the handlers.
    """

    publishes_async: bool
    handles_async: bool

    def handler(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """
        Return a sync function in the colour of the handlers.
        """
        if not self.handles_async:
            return function

        @functools.wraps(function)
        async def handle(*arguments: Any) -> Any:
            return function(*arguments)

        return handle

    def publish(self, bus: EventBus, event: object, **options: Any) -> Receipt:
        if self.publishes_async:
            return asyncio.run(bus.apublish(event, **options))
        return bus.publish(event, **options)

    def publish_many(self, bus: EventBus, events: Iterable[object]) -> list[Receipt]:
        if self.publishes_async:
            return asyncio.run(bus.apublish_many(events))
        return bus.publish_many(events)

    def redrive_all(self, bus: EventBus) -> list[Receipt]:
        if self.publishes_async:
            return asyncio.run(bus.aredrive_all())
        return bus.redrive_all()

    def release(self, bus: Any) -> list[Receipt]:
        if self.publishes_async:
            return asyncio.run(bus.faults.arelease())
        released: list[Receipt] = bus.faults.release()
        return released


in_both_colours = pytest.mark.parametrize(
    "colour",
    [
        pytest.param(Colour(False, False), id="publish-def"),
        pytest.param(Colour(False, True), id="publish-async-def"),
        pytest.param(Colour(True, False), id="apublish-def"),
        pytest.param(Colour(True, True), id="apublish-async-def"),
    ],
)
