"""
The logger: what an application has hung on it harms no delivery.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from eventbus import EventBus, Queued, event
from eventbus._logger import logger


@event
class Read:
    number: int = 0


class SlipError(LookupError):
    """
    What a filter raises that reads something which is not there.
    """


def slip(record: logging.LogRecord) -> bool:
    raise SlipError("request_id")


@pytest.fixture
def slips() -> Iterator[None]:
    log = logging.getLogger("eventbus")
    log.addFilter(slip)
    yield
    log.removeFilter(slip)


def fail(read: Read) -> None:
    raise ValueError("broken")


@pytest.mark.parametrize("colour", ["publish", "apublish"])
@pytest.mark.usefixtures("slips")
def test_a_filter_that_raises_harms_no_neighbour(colour: str):
    """
    A failure that cannot be logged ends its own delivery, and no other one.
    """
    handled: list[Read] = []
    bus = EventBus()
    bus.subscribe(Read, fail)
    bus.subscribe(Read, handled.append, name="neighbour")
    receipt = bus.publish(Read()) if colour == "publish" else asyncio.run(bus.apublish(Read()))
    assert [Read()] == handled
    assert (1, ["broken"]) == (
        receipt.delivered,
        [str(each.exception) for each in receipt.failures],
    )
    assert 1 == len(bus.dead_letters)


@pytest.mark.usefixtures("slips")
def test_a_filter_that_raises_costs_no_worker():
    """
    A queued failure that cannot be logged is one failure: the numbers add up.
    """
    with EventBus() as bus:
        bus.subscribe(Read, fail, name="reader", delivery=Queued())
        bus.publish(Read())
        assert bus.drain(20).ok
        counted = bus.stats().subscriptions["reader"]
    assert (1, 0, 1, 1) == (
        counted.published,
        counted.delivered,
        counted.failed,
        counted.dead_lettered,
    )
    assert ["failed"] == [each.reason for each in bus.dead_letters]


@pytest.mark.usefixtures("slips")
def test_what_could_not_be_logged_is_shown(capsys: pytest.CaptureFixture[str]):
    """
    What could not be logged is on stderr, with the reason.
    """
    logger().warning("%s is %s", "the printer", "on fire")
    shown = capsys.readouterr().err.splitlines()
    assert "WARNING the printer is on fire" == shown[1]
    assert "test_logger.SlipError: request_id" == shown[-1].removeprefix("tests.")


@pytest.mark.usefixtures("slips")
def test_nothing_is_shown_where_nobody_wants_to_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """
    Nothing is shown with ``logging.raiseExceptions`` off, and nowhere where there is no stderr.
    """
    with monkeypatch.context() as patch:
        patch.setattr(logging, "raiseExceptions", False)
        logger().error("unseen")
    assert "" == capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", None)
        logger().error("unseen")


@pytest.mark.parametrize("verb", ["info", "warning", "error", "exception"])
def test_a_line_names_the_place_that_logs_it(verb: str, caplog: pytest.LogCaptureFixture):
    """
    A line in the log names the file and the function that wrote it.
    """
    caplog.set_level("INFO", "eventbus")
    log: Any = logger()
    getattr(log, verb)("seen")
    (record,) = caplog.records
    level = "ERROR" if verb == "exception" else verb.upper()
    assert (__file__, "test_a_line_names_the_place_that_logs_it", level) == (
        record.pathname,
        record.funcName,
        record.levelname,
    )
