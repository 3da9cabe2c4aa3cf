"""
What the stress tests share: a seed, and silence.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stress.books import new_seed, quiet


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """
    Return what a test's dice are thrown with; a failure shows it.
    """
    number = new_seed()
    request.node.add_report_section("setup", "seed", f"STRESS_SEED={number}")
    return number


@pytest.fixture
def silence() -> Iterator[None]:
    """
    Log nothing: failures are part of the plan, and come by the thousand.
    """
    with quiet():
        yield
