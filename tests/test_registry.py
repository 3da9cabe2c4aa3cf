"""
The subscriptions of a bus: who is in, who matches, in which order.
"""

from __future__ import annotations

import abc
import re
import sys
import threading
import types
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from eventbus import DuplicateNameError, EventBus, Subscription
from eventbus._registry import Registry
from eventbus._subscription import make_subscription


class Happened:
    pass


class Ordered(Happened):
    pass


class Returned(Happened):
    pass


class Exchanged(Ordered, Returned):
    pass


class Costly(abc.ABC):
    @abc.abstractmethod
    def cost(self) -> int: ...


class Priced(abc.ABC):  # noqa: B024 - its hook decides
    """
    Everything that has a price is priced.
    """

    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        return hasattr(other, "price")


class Refunded(Costly):
    price = 3

    def cost(self) -> int:
        return self.price


Costly.register(Exchanged)


def handler(happened: object) -> None: ...


def made(name: str, event_type: Any = object, priority: int = 0) -> Subscription:
    return make_subscription(event_type, handler, {"name": name, "priority": priority})


def filled(*subscriptions: Subscription) -> Registry:
    registry = Registry()
    for each in subscriptions:
        registry.add(each)
    return registry


def names(subscriptions: Iterable[Subscription]) -> list[str]:
    return [each.name for each in subscriptions]


def is_free(lock: Any) -> bool:
    """
    Tell whether another thread could take *lock* now.
    """
    found: list[bool] = []

    def look() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


def test_subscriptions_are_listed_in_order():
    """
    A registry lists its subscriptions in the order in which they came; one that returns is last.
    """
    first, second = made("first"), made("second", priority=9)
    registry = filled(first, second)
    assert ["first", "second"] == names(registry)
    registry.remove(first)
    registry.add(made("first"))
    assert ["second", "first"] == names(registry)


def test_subscriptions_are_found_by_name():
    """
    A registry finds a subscription by its name while it is in.
    """
    first = made("first")
    registry = filled(first)
    assert first is registry.named("first")
    assert registry.named("second") is None
    registry.remove(first)
    assert registry.named("first") is None


def test_a_name_is_taken_once():
    """
    A second subscription of a name is refused, and leaves the first as it was.
    """
    first, second = made("shop.pay", Ordered), made("shop.pay", Returned)
    registry = filled(first)
    with pytest.raises(
        DuplicateNameError, match=r"'shop\.pay' exists: <function handler at .*> for Ordered"
    ):
        registry.add(second)
    registry.remove(second)
    assert [first] == list(registry)
    assert () == registry.matching(Returned)


class Service:
    def handle(self, happened: object) -> None: ...


@pytest.mark.parametrize("is_method", [False, True], ids=["function", "method"])
def test_code_that_is_run_again_is_told_to_cancel_the_one_before(is_method: bool):
    """
    As in a notebook, where another name would leave both of them subscribed.
    """
    made_before = Service.handle if is_method else handler
    again = types.FunctionType(made_before.__code__, vars(sys.modules[__name__]))
    again.__qualname__ = made_before.__qualname__
    first, second = (
        make_subscription(object, types.MethodType(each, Service()) if is_method else each, {})
        for each in (made_before, again)
    )
    registry = filled(first)
    with pytest.raises(DuplicateNameError, match=r"run again, .* cancel the one before") as caught:
        registry.add(second)
    cure = re.search(r"\[each\.cancel\(\) .*?\]", str(caught.value))
    assert cure is not None
    first.retire = registry.remove
    eval(cure[0], {"bus": SimpleNamespace(subscriptions=registry)})
    registry.add(second)
    assert [second] == list(registry)


@pytest.mark.parametrize(
    ("event_type", "expected"),
    [
        (Happened, ["happened", "object"]),
        (Ordered, ["ordered", "happened", "object", "either"]),
        (Returned, ["happened", "object", "either"]),
        (Exchanged, ["ordered", "happened", "object", "costly", "either"]),
        (Refunded, ["object", "costly", "priced"]),
        (int, ["object"]),
    ],
)
def test_a_class_matches_its_bases_each_handler_once(event_type: type, expected: list[str]):
    """
    Base classes, ABCs, virtual or asked by a hook, unions and ``object`` match, each once.
    """
    registry = filled(
        made("happened", Happened, priority=1),
        made("object"),
        made("costly", Costly),
        made("priced", Priced),
        made("either", Ordered | Returned, priority=-1),
        made("ordered", Ordered, priority=2),
    )
    assert expected == names(registry.matching(event_type))


def test_a_removed_subscription_matches_no_more():
    """
    What is removed is inactive and matches nothing; removing it again does nothing.
    """
    first, second = made("first", Happened | Costly), made("second", Happened)
    registry = filled(first, second)
    for _ in range(2):
        registry.remove(first)
        assert not first.is_active
        assert [second] == list(registry)
        assert (second,) == registry.matching(Exchanged)


def test_each_change_is_told():
    """
    Each coming and going makes another version and is told under the lock.
    """
    registry, told, versions = Registry(), list[tuple[str, bool, bool]](), {0}

    def on_change(subscription: Subscription) -> None:
        told.append((subscription.name, subscription.is_active, is_free(registry.lock)))
        versions.add(registry.version)

    registry.on_change = on_change
    first = made("first")
    registry.add(first)
    registry.remove(first)
    registry.remove(first)
    assert [("first", True, False), ("first", False, False)] == told
    assert 3 == len(versions)
    registry.changed()
    assert registry.version not in versions
    assert 2 == len(told)


def test_users_code_runs_outside_the_lock():
    """
    Hooks of abstract base classes, and a handler that is shown, are not asked under the lock.
    """
    registry, seen = Registry(), list[tuple[str, bool]]()

    class Curious(abc.ABC):  # noqa: B024 - its hook decides
        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            seen.append(("hook", is_free(registry.lock)))
            return True

    class Shown:
        def __call__(self, happened: object) -> None: ...

        def __repr__(self) -> str:
            seen.append(("repr", is_free(registry.lock)))
            return "shown"

    registry.add(make_subscription(Curious, Shown(), {"name": "shown"}))
    assert ["shown"] == names(registry.matching(Happened))
    with pytest.raises(DuplicateNameError):
        registry.add(made("shown"))
    assert [("hook", True), ("repr", True)] == seen


def test_a_change_may_come_in_the_middle_of_another():
    """
    A subscription may go while its registry takes another in, in the same thread.
    """
    registry, weak = Registry(), made("weak", Happened)
    registry.add(weak)
    registry.on_change = lambda changed: registry.remove(weak)
    registry.add(made("strong", Happened))
    assert ["strong"] == names(registry.matching(Happened))


@pytest.mark.parametrize("by", ["once", "cancel"])
def test_many_threads_may_change_one_bus(by: str):
    """
    What several threads subscribe and cancel at once is all there, and all gone.
    """
    bus = EventBus()

    def come_and_go(number: int) -> None:
        for count in range(50):
            mine = bus.subscribe(Happened, handler, name=f"{number}/{count}", once=by == "once")
            if by == "once":
                bus.publish(Happened())
            else:
                mine.cancel()
        bus.subscribe(Returned, handler, name=f"{number} stays")

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f"{number} stays" for number in range(4)} == {each.name for each in bus.subscriptions}
    assert 4 == len({each.sequence for each in bus.subscriptions})


def test_a_large_registry_finds_the_few():
    """
    Of 10,000 subscriptions to 1,000 classes, a class finds its own ten.
    """
    types = [type(f"Type{number}", (), {}) for number in range(1_000)]
    template = made("template")
    registry = Registry()
    for number in range(10_000):
        event_types = (types[number % 1_000],)
        registry.add(attrs.evolve(template, name=str(number), event_types=event_types))
    for number, event_type in enumerate(types):
        expected = [str(number + 1_000 * step) for step in range(10)]
        assert expected == names(registry.matching(event_type))
