"""
Marks: handlers named where they are defined, subscribed by a bus that includes them.
"""

from __future__ import annotations

import asyncio
import functools
import types
from collections.abc import Callable
from typing import Any

import pytest

import eventbus
from eventbus import DuplicateNameError, EventBus, HandlerSignatureError, Receipt, event
from eventbus._marks import marks_in
from stable_ids import stable

Publish = Callable[[EventBus, object], Receipt]
on: Any = eventbus.on  # what type checkers say of it stands in typing/api.py


@pytest.fixture(params=["publish", "apublish"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """
    Publish in either colour.
    """
    if request.param == "publish":
        return lambda bus, each: bus.publish(each)
    return lambda bus, each: asyncio.run(bus.apublish(each))


@event
class OrderPlaced:
    pass


@event
class OrderCancelled:
    pass


SEEN: list[tuple[str, object]] = []


@pytest.fixture
def seen() -> list[tuple[str, object]]:
    """
    What the marked handlers of this module have seen in this test.
    """
    SEEN.clear()
    return SEEN


@on(OrderPlaced)
def send_invoice(placed: OrderPlaced) -> str:
    SEEN.append(("send_invoice", placed))
    return "sent"


@on(OrderPlaced, name="first")
@on(OrderCancelled, name="second", priority=7)
def twice(happened: OrderPlaced | OrderCancelled) -> None:
    SEEN.append(("twice", happened))


@on
async def infer(happened: OrderPlaced | OrderCancelled) -> None:
    SEEN.append(("infer", happened))


@on(priority=3)
def infer_too(happened: OrderPlaced) -> None:
    SEEN.append(("infer_too", happened))


def unmarked(placed: OrderPlaced) -> None: ...


class Warehouse:
    def __init__(self, name: str = "warehouse") -> None:
        self.name = name
        self.seen: list[str] = []

    @on(OrderPlaced)
    def reserve(self, placed: OrderPlaced) -> None:
        self.seen.append("reserve")

    @on
    async def release(self, cancelled: OrderCancelled) -> None:
        self.seen.append("release")

    @on(OrderPlaced)
    @staticmethod
    def static(placed: OrderPlaced) -> None:
        SEEN.append(("static", placed))

    @staticmethod
    @on(OrderPlaced)
    def inner_static(placed: OrderPlaced) -> None:
        SEEN.append(("inner_static", placed))

    @on(OrderPlaced)
    @classmethod
    def cls_method(cls, placed: OrderPlaced) -> None:
        SEEN.append((cls.__name__, placed))

    @classmethod
    @on(OrderPlaced)
    def inner_cls_method(cls, placed: OrderPlaced) -> None:
        SEEN.append((cls.__name__, placed))

    def booked(self, ledger: str, placed: OrderPlaced) -> None:
        self.seen.append(ledger)

    book = on(OrderPlaced, name="book")(functools.partialmethod(booked, "ledger"))

    @on(OrderPlaced)
    def __private(self, placed: OrderPlaced) -> None:
        self.seen.append("private")

    @property
    def expensive(self) -> object:
        raise AssertionError("properties are not read")

    def helper(self) -> None: ...


METHODS = [
    "Warehouse.reserve",
    "Warehouse.release",
    "Warehouse.static",
    "Warehouse.inner_static",
    "Warehouse.cls_method",
    "Warehouse.inner_cls_method",
    "book",
    "Warehouse.__private",
]


class Outlet(Warehouse):
    def reserve(self, placed: OrderPlaced) -> None:
        self.seen.append("reserve in the outlet")

    @on(OrderCancelled, name="outlet.release")
    def release(self, cancelled: OrderCancelled) -> None:  # type: ignore[override]
        self.seen.append("release in the outlet")

    static = None  # type: ignore[assignment]

    @on(OrderPlaced)
    def own(self, placed: OrderPlaced) -> None:
        self.seen.append("own")


def names(bus: EventBus) -> list[str]:
    return [each.name.removeprefix(f"{__name__}.") for each in bus.subscriptions]


# -- marking -----------------------------------------------------------------------------------


def test_a_marked_function_is_still_itself(seen: list[Any]):
    """
    Marking changes nothing about a function: it can be called and tested by itself.
    """

    def handler(placed: OrderPlaced) -> str:
        return "called"

    assert handler is on(OrderPlaced)(handler)
    assert handler is on(handler)
    assert handler is on(once=True)(handler)
    assert "called" == handler(OrderPlaced())
    assert "sent" == send_invoice(OrderPlaced())


@pytest.mark.parametrize("decorator", [on, EventBus().on], ids=["on", "bus.on"])
@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("OrderPlaced", {}, r"takes an event class, a union of classes or a handler, not 'Order"),
        (OrderPlaced(), {}, r"takes an event class, a union of classes or a handler"),
        (7, {"once": True}, r"takes an event class, a union of classes or a handler, not 7"),
        (unmarked, {"once": True}, r"takes options with an event class or alone.*bus\.subscribe"),
    ],
)
def test_what_is_no_event_class_and_no_handler_is_refused_at_once(
    decorator: Any, target: object, options: Any, message: str
):
    """
    A decorator that could decorate nothing is refused where it is written.
    """
    with pytest.raises(HandlerSignatureError, match=message):
        decorator(target, **options)


def test_a_class_method_is_marked_and_not_subscribed():
    """
    A bus subscribes no unbound class method, by a bare decorator either.
    """
    with pytest.raises(HandlerSignatureError, match="must be callable, not <classmethod"):
        EventBus().on(Warehouse.__dict__["cls_method"])


class Slotted:
    __slots__ = ()

    def __call__(self, placed: OrderPlaced) -> None: ...


@pytest.mark.parametrize(
    "handler", [print, [].append, Warehouse().reserve, Slotted(), Slotted], ids=stable
)
def test_what_cannot_be_marked_is_refused(handler: Any):
    """
    What takes no attributes, or would mark all its instances, is refused with the cure.
    """
    with pytest.raises(HandlerSignatureError, match=r"cannot be marked\. .* bus\.subscribe\("):
        on(OrderPlaced)(handler)


# -- including functions -------------------------------------------------------------------------


def test_a_marked_function_is_included(publish: Publish, seen: list[Any]):
    """
    Including a marked function subscribes it, with its options.
    """
    bus = EventBus()
    (subscription,) = bus.include(infer_too)
    assert ((OrderPlaced,), 3) == (subscription.event_types, subscription.options.priority)
    assert (subscription,) == bus.subscriptions
    assert 1 == publish(bus, OrderPlaced()).delivered
    assert [("infer_too", OrderPlaced())] == seen


def test_each_mark_is_a_subscription(publish: Publish, seen: list[Any]):
    """
    A function marked twice is subscribed twice, the inner mark first.
    """
    bus = EventBus()
    second, first = bus.include(twice)
    assert ("second", 7, "first", 0) == (
        second.name,
        second.options.priority,
        first.name,
        first.options.priority,
    )
    publish(bus, OrderPlaced())
    publish(bus, OrderCancelled())
    assert [("twice", OrderPlaced()), ("twice", OrderCancelled())] == seen


def test_a_mark_may_be_included_by_many_buses(publish: Publish, seen: list[Any]):
    """
    Marks belong to no bus.
    """
    for bus in (EventBus(), EventBus()):
        bus.include(send_invoice)
        publish(bus, OrderPlaced())
    assert 2 == len(seen)


# -- including modules ---------------------------------------------------------------------------


class Lazy:
    """
    Stands for the lazy objects of web frameworks, which must not be woken outside a request.
    """

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("woken outside a request")


def module_of(**members: object) -> types.ModuleType:
    module = types.ModuleType(__name__)
    vars(module).update(members)
    return module


def test_a_modules_own_handlers_are_included(publish: Publish, seen: list[Any]):
    """
    Including a module subscribes its marked functions, in the order of their definition.
    """
    bus = EventBus()
    bus.include(module_of(infer=infer, unmarked=unmarked, send_invoice=send_invoice, on=on))
    assert ["infer", "send_invoice"] == names(bus)
    assert 2 == publish(bus, OrderPlaced()).delivered


def test_what_a_module_has_only_imported_is_left_out():
    """
    A marked function belongs to the module that defines it, and is included with that one.
    """
    module = module_of(send_invoice=send_invoice, infer=infer)
    module.__name__ = "elsewhere"
    with pytest.raises(ValueError, match="<module 'elsewhere'> has no handler marked with @on"):
        EventBus().include(module)


def test_decorated_handlers_belong_to_their_module_as_well():
    """
    What a decorator of another kind has made of a function is not included twice, either.
    """
    cached = on(OrderPlaced)(functools.lru_cache(unmarked))
    here = module_of(cached=cached)
    elsewhere = module_of(cached=cached)
    elsewhere.__name__ = "elsewhere"
    assert 1 == len(EventBus().include(here))
    with pytest.raises(ValueError, match="has no handler marked"):
        EventBus().include(elsewhere)


def test_a_handler_of_two_names_is_included_once():
    """
    A second name for the same function in its module is no second subscription.
    """
    bus = EventBus()
    bus.include(module_of(send_invoice=send_invoice, send_bill=send_invoice))
    assert ["send_invoice"] == names(bus)


def test_a_module_may_hold_other_callables():
    """
    Marked partials and callable objects of a module are included, too.
    """

    class Handler:
        def __call__(self, placed: OrderPlaced) -> None: ...

    partial = on(OrderPlaced, name="partial")(functools.partial(unmarked))
    instance = on(OrderPlaced, name="instance")(Handler())
    bus = EventBus()
    bus.include(module_of(partial=partial, instance=instance))
    assert ["partial", "instance"] == names(bus)


def test_lazy_objects_of_a_module_sleep_on():
    """
    Looking for marks does not wake what computes its attributes.
    """
    bus = EventBus()
    bus.include(module_of(lazy=Lazy(), send_invoice=send_invoice))
    assert ["send_invoice"] == names(bus)


# -- including instances -------------------------------------------------------------------------


def test_an_instances_methods_are_included(publish: Publish, seen: list[Any]):
    """
    Including an instance subscribes its marked methods, bound, in the order of definition.
    """
    bus, warehouse = EventBus(), Warehouse()
    bus.include(warehouse)
    assert METHODS == names(bus)
    assert 7 == publish(bus, OrderPlaced()).delivered
    assert 1 == publish(bus, OrderCancelled()).delivered
    assert ["reserve", "ledger", "private", "release"] == warehouse.seen
    assert ["static", "inner_static", "Warehouse", "Warehouse"] == [name for name, _ in seen]


def test_marks_are_inherited(publish: Publish, seen: list[Any]):
    """
    A subclass has its base's marks: its overrides are called, unless they have marks of their own.
    """
    bus, outlet = EventBus(), Outlet()
    bus.include(outlet)
    expected = [
        "Outlet.reserve",  # overridden without a mark: the base's counts
        "outlet.release",  # overridden with a mark of its own
        *METHODS[3:],  # static is set to None: it is a handler no more
        "Outlet.own",
    ]
    assert expected == names(bus)
    publish(bus, OrderPlaced())
    publish(bus, OrderCancelled())
    assert [
        "reserve in the outlet",
        "ledger",
        "private",
        "own",
        "release in the outlet",
    ] == outlet.seen
    assert ["inner_static", "Outlet", "Outlet"] == [name for name, _ in seen]


def test_a_bound_method_is_included_by_itself(publish: Publish):
    """
    A single marked method is included bound to its instance.
    """
    bus, warehouse = EventBus(), Warehouse()
    bus.include(warehouse.reserve)
    publish(bus, OrderPlaced())
    assert (["Warehouse.reserve"], ["reserve"]) == (names(bus), warehouse.seen)


def test_an_instance_may_be_called_and_have_methods():
    """
    The marked ``__call__`` of an instance is one of its methods.
    """

    class Both:
        @on(OrderPlaced, name="call")
        def __call__(self, placed: OrderPlaced) -> None: ...

        @on(OrderPlaced, name="method")
        def method(self, placed: OrderPlaced) -> None: ...

    bus = EventBus()
    bus.include(Both())
    assert ["call", "method"] == names(bus)


# -- all or nothing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("holder", "message"),
    [
        (unmarked, r"with @on\. Mark it where it is defined, or subscribe it: bus\.subscribe\("),
        (Warehouse().helper, r"with @on\. Mark it where it is defined, or subscribe it"),
        ("shop.handlers", r"'shop\.handlers' has no .* It is text: import the module"),
        ([Warehouse()], r"has no .* Include each by itself: bus\.include\(\*holders\)\."),
        (7, "7 has no handler marked with @on.$"),
        (types, r"<module 'types'.* with @on\. What it only imports is included with the module"),
        (Warehouse, r"Warehouse'> has no handler .* It is a class: include an instance of it\."),
    ],
    ids=stable,
)
def test_what_has_no_marks_is_refused(holder: object, message: str):
    """
    Including something without a marked handler is a mistake, and refused with the cure.
    """
    with pytest.raises(ValueError, match=message):
        EventBus().include(holder)
    with pytest.raises(ValueError, match=message):
        list(marks_in(holder))


@pytest.mark.parametrize(
    ("holders", "error"),
    [
        ((send_invoice, Warehouse(), unmarked), ValueError),
        ((send_invoice, Warehouse(), Warehouse()), DuplicateNameError),
        ((send_invoice, on(OrderPlaced)(lambda: None)), HandlerSignatureError),
    ],
)
def test_all_is_included_or_nothing(
    holders: tuple[object, ...], error: type[Exception], publish: Publish
):
    """
    If one handler cannot be subscribed, those before it are cancelled.
    """
    bus = EventBus()
    kept = bus.subscribe(OrderPlaced, unmarked)
    with pytest.raises(error):
        bus.include(*holders)
    assert (kept,) == bus.subscriptions
    assert 1 == publish(bus, OrderPlaced()).delivered


def test_what_is_included_twice_is_told_so():
    """
    The error speaks of the same handler, function or method, and not of another one.
    """
    bus, warehouse = EventBus(), Warehouse()
    for holder in (send_invoice, warehouse):
        bus.include(holder)
        with pytest.raises(DuplicateNameError, match=r"this very handler: .* included, or run"):
            bus.include(holder)


@pytest.mark.parametrize("mark", [on, EventBus().on])
def test_several_events_are_given_as_a_union(mark: Any):
    """
    Two classes side by side are refused by an error that shows how it is written.
    """
    with pytest.raises(HandlerSignatureError, match=r"2 are given.*OrderPlaced \| OrderPaid"):
        mark(OrderPlaced, OrderPlaced)


@pytest.mark.parametrize("mark", [on, EventBus().on])
def test_a_handler_beside_the_class_is_for_subscribe(mark: Any):
    """
    Where the handler is not decorated but given, the error shows the verb that takes it.
    """
    with pytest.raises(HandlerSignatureError, match=r"on\(\) decorates .*: bus\.subscribe\(Order"):
        mark(OrderPlaced, unmarked)


def test_including_returns_what_it_made():
    """
    The subscriptions of all holders come back in one tuple, to be cancelled together.
    """
    bus = EventBus()
    made = bus.include(send_invoice, Warehouse())
    assert made == bus.subscriptions
    for each in made:
        each.cancel()
    assert () == bus.subscriptions
    assert () == bus.include()
