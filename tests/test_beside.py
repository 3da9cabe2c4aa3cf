"""
What a store can do besides counts only where it was meant for the same store.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from eventbus import Durable, EventBus, Inline, Queued, event
from eventbus._beside import beside
from eventbus.sqlite import SQLiteStore
from eventbus.sqlite._keys import SQLiteIdempotencyStore

PATIENCE = 20.0  # seconds, real ones: what takes longer has failed


@event
class Paid:
    order: str


class Plain:
    def claim(self) -> str:
        return "plain"


class Both(Plain):
    def claim(self) -> str:
        return "both"

    async def aclaim(self) -> str:
        return "both"


class Changed(Both):
    def claim(self) -> str:
        return "changed"


class ChangedInBoth(Both):
    def claim(self) -> str:
        return "changed"

    async def aclaim(self) -> str:
        return "changed"


class Before:
    def __init__(self, inner: object) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class BeforeAndChanged(Before):
    def claim(self) -> str:
        return "before"


def patched() -> Both:
    made: Any = Both()
    made.claim = lambda: "patched"
    return made


@pytest.mark.parametrize(
    ("store", "found"),
    [
        (Plain(), None),
        (Both(), "both"),
        (Changed(), None),
        (ChangedInBoth(), "changed"),
        (Before(Both()), "both"),
        (Before(Plain()), None),
        (BeforeAndChanged(Both()), None),
        (patched(), None),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_further_way_is_one_of_the_same_class(store: object, found: str | None) -> None:
    """
    Whoever has changed the one that all have, and not the other, has not meant that.
    """
    aclaim = beside(store, "claim", "aclaim")
    assert found == (None if aclaim is None else asyncio.run(aclaim()))


class PerTenant:
    """
    The keys of each tenant for themselves, in one store; the rest is handed on.
    """

    def __init__(self, inner: SQLiteIdempotencyStore) -> None:
        self.inner, self.tenant = inner, ""

    def claim(self, scope: str, key: str, *, source: Any, now: float) -> Any:
        return self.inner.claim(scope, f"{self.tenant}/{key}", source=source, now=now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


@pytest.mark.parametrize(
    "mode", [Inline(), Queued(), Durable()], ids=["inline", "queued", "durable"]
)
def test_a_store_before_another_one_is_asked_itself(tmp_path: Path, mode: Any) -> None:
    """
    By subscriptions and by publishers, in a loop as well: no tenant's key is another's.
    """
    handled = list[tuple[str, str]]()

    async def handle(paid: Paid) -> None:
        handled.append((keys.tenant, paid.order))

    async def publish() -> list[bool]:
        duplicates = list[bool]()
        async with bus:
            for keys.tenant in ("a", "b", "b"):
                for order in ("7", "8"):
                    receipt = await bus.apublish(Paid(order), idempotency_key=order)
                    duplicates.append(receipt.duplicate)
                assert (await bus.adrain(PATIENCE)).ok
        return duplicates

    with SQLiteStore(tmp_path / "shop.db") as store:
        keys = PerTenant(store.idempotency)
        bus = EventBus(store=store, idempotency=keys)
        bus.subscribe(Paid, handle, name="pay", delivery=mode, idempotency_key="order")
        assert [False, False, False, False, True, True] == asyncio.run(publish())
    assert [("a", "7"), ("a", "8"), ("b", "7"), ("b", "8")] == handled
