"""
The pytest plugin: the fixtures with a test bus, and nothing for those who do not ask for it.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """
    A pytest that knows our plugin and no other, installed or not.
    """
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTEST_PLUGINS", "eventbus.pytest_plugin")
    return pytester


def test_pytest_finds_the_plugin_by_itself() -> None:
    """
    The entry point names the plugin's module.
    """
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert {"eventbus": "eventbus.pytest_plugin"} == project["entry-points"]["pytest11"]


def test_each_test_gets_a_fresh_bus(inner: pytest.Pytester) -> None:
    """
    The fixture is a test bus of the test's own.
    """
    inner.makepyfile(
        """
        from eventbus.testing import TestBus

        def test_one(test_bus):
            assert type(test_bus) is TestBus
            test_bus.publish("one")
            test_bus.assert_published(str, times=1)

        def test_two(test_bus):
            test_bus.assert_nothing_published()
        """
    )
    inner.runpytest_inprocess("-W", "error").assert_outcomes(passed=2)


def test_a_bus_with_a_store_has_a_fixture_of_its_own(inner: pytest.Pytester) -> None:
    """
    It takes durable subscriptions, and is fresh and closed as the other one.
    """
    inner.makepyfile(
        """
        from eventbus import Durable, event
        from eventbus.testing import TestBus

        buses, seen = [], []

        @event
        class Placed:
            number: int

        def test_one(durable_test_bus):
            assert type(durable_test_bus) is TestBus
            durable_test_bus.subscribe(Placed, seen.append, name="seen", delivery=Durable())
            durable_test_bus.publish(Placed(1))
            durable_test_bus.settle()
            assert seen == [Placed(1)]
            buses.append(durable_test_bus)

        def test_two(durable_test_bus):
            assert buses[0].is_closed
            assert durable_test_bus.subscriptions == ()
        """
    )
    inner.runpytest_inprocess("-W", "error").assert_outcomes(passed=2)


def test_the_bus_is_closed_after_the_test(inner: pytest.Pytester) -> None:
    """
    When the next test begins, the bus of the last one takes no events.
    """
    inner.makepyfile(
        """
        buses = []

        def test_one(test_bus):
            buses.append(test_bus)
            assert not test_bus.is_closed

        def test_two():
            assert buses[0].is_closed
        """
    )
    inner.runpytest_inprocess("-W", "error").assert_outcomes(passed=2)


def test_async_tests_may_use_it(inner: pytest.Pytester) -> None:
    """
    The fixture needs no plugin for async tests, and hinders none.
    """
    inner.makepyfile(
        """
        import asyncio

        def test_it(test_bus):
            async def publish():
                await test_bus.apublish("one")
            asyncio.run(publish())
            test_bus.assert_published(str)
        """
    )
    inner.runpytest_inprocess("-W", "error").assert_outcomes(passed=1)


def test_an_idempotence_check_is_reported_when_the_test_is_over(inner: pytest.Pytester) -> None:
    """
    A check that the test began and did not end ends with the bus, as an error.
    """
    inner.makepyfile(
        """
        import itertools

        def test_it(test_bus):
            numbers = itertools.count()
            test_bus.subscribe(str, lambda text: next(numbers), name="count")
            test_bus.faults.check_idempotent()
            test_bus.publish("one")
        """
    )
    result = inner.runpytest_inprocess("-W", "error")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["E       AssertionError: 1 handler is not idempotent: *"])


def test_the_fixture_is_listed_with_what_it_is(inner: pytest.Pytester) -> None:
    """
    ``pytest --fixtures`` shows the fixture and its docstring.
    """
    result = inner.runpytest_inprocess("--fixtures")
    result.stdout.fnmatch_lines(["test_bus*", "*A fresh `eventbus.testing.TestBus`, closed after*"])
    result.stdout.fnmatch_lines(
        ["durable_test_bus*", "*Provide*TestBus` with a store, for durable*"]
    )


def test_those_who_do_not_ask_pay_nothing(inner: pytest.Pytester) -> None:
    """
    Loading the plugin imports nothing of the testing room.
    """
    inner.makepyfile(
        """
        import sys

        def test_it():
            assert "eventbus.pytest_plugin" in sys.modules
            assert [] == [name for name in sys.modules if name.startswith("eventbus.testing")]
        """
    )
    inner.runpytest_subprocess("-W", "error").assert_outcomes(passed=1)


def test_importing_the_plugin_needs_nothing_but_pytest() -> None:
    """
    The module itself imports pytest, and of ours only what its package imports.
    """
    code = (
        "import eventbus, sys; before = set(sys.modules);"
        "import pytest; before |= set(sys.modules);"
        "import eventbus.pytest_plugin; print(set(sys.modules) - before)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "{'eventbus.pytest_plugin'}" == ran.stdout.strip()
