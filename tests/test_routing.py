"""
Routes: what is called for an event, in which order, and what has been counted.

A state machine at the end holds a bus, in either colour, against a naive reference.
"""

from __future__ import annotations

import abc
import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from eventbus import BusClosedError, EventBus, Receipt, Subscription
from eventbus._registry import Registry
from eventbus._route import Folded, Route
from eventbus._routing import Router
from eventbus._subscription import make_subscription

Publish = Callable[[EventBus, object], Receipt]


@pytest.fixture(params=["publish", "apublish"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """
    Publish in either colour.
    """
    if request.param == "publish":
        return lambda bus, each: bus.publish(each)
    return lambda bus, each: asyncio.run(bus.apublish(each))


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


Costly.register(Ordered)


class Log(list[str]):
    """
    A bus's handlers that write down their names.
    """

    def __init__(self, bus: EventBus) -> None:
        super().__init__()
        self.bus = bus

    def add(
        self,
        name: str,
        event_type: Any = Happened,
        then: Callable[[], object] = lambda: None,
        **options: Any,
    ) -> Subscription:
        def handler(happened: object) -> None:
            self.append(name)
            then()

        return self.bus.subscribe(event_type, handler, name=name, **options)


@pytest.fixture
def log() -> Log:
    """
    A new bus, and what its handlers have written down.
    """
    return Log(EventBus())


# -- order and membership ------------------------------------------------------------------------


def test_handlers_run_by_priority_then_by_subscription(log: Log, publish: Publish):
    """
    Handlers run in descending priority; equal ones in the order of subscription.
    """
    for name, priority in [("a", 0), ("b", 5), ("c", -5), ("d", 5), ("e", 0)]:
        log.add(name, priority=priority)
    assert 5 == publish(log.bus, Happened()).delivered
    assert ["b", "d", "a", "e", "c"] == log


def test_each_handler_runs_once_for_an_event(log: Log, publish: Publish):
    """
    An event reaches the handlers of its class, its bases, ABCs and ``object``, each once.
    """
    log.add("happened")
    log.add("costly", Costly)
    log.add("object", object)
    log.add("either", Ordered | Returned)
    log.add("exchanged", Exchanged)
    log.add("other", int)
    assert 5 == publish(log.bus, Exchanged()).delivered
    assert ["happened", "costly", "object", "either", "exchanged"] == log


# -- what changes meanwhile ------------------------------------------------------------------------


def test_an_event_is_seen_by_those_subscribed_before_it(log: Log, publish: Publish):
    """
    What a handler cancels is called no more for this event; what it adds not before the next.
    """
    b: list[Subscription] = []

    def change() -> None:
        if b:
            b.pop().cancel()
            log.add("c")

    log.add("a", then=change)
    b.append(log.add("b"))
    first, second = publish(log.bus, Happened()), publish(log.bus, Happened())
    assert ["a", "a", "c"] == log
    assert (1, 2) == (first.delivered, second.delivered)


def test_a_handler_may_cancel_itself(log: Log, publish: Publish):
    """
    A handler that ends its own subscription is called to its end, and then no more.
    """
    own: list[Subscription] = []

    def cancel_own() -> None:
        own[0].cancel()

    own.append(log.add("own", then=cancel_own))
    log.add("other")
    assert [2, 1] == [publish(log.bus, Happened()).delivered for _ in range(2)]
    assert ["own", "other", "other"] == log


def test_cancelling_in_another_thread_reaches_a_publish_under_way(log: Log):
    """
    A handler whose subscription another thread has cancelled is not called any more.
    """
    arrived, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        arrived.set()
        assert go_on.wait(timeout=30)

    log.add("first", then=wait)
    second = log.add("second")
    publisher = threading.Thread(target=log.bus.publish, args=(Happened(),))
    publisher.start()
    assert arrived.wait(timeout=30)
    second.cancel()
    go_on.set()
    publisher.join()
    assert ["first"] == log


def test_a_subscription_for_one_class_leaves_other_routes_alone(log: Log):
    """
    Only routes a subscription may belong to are compiled anew; an ABC may belong to all.
    """
    routes = log.bus._routes
    log.add("ordered", Ordered)

    def kept(change: Callable[[], object]) -> list[str]:
        before = {each: routes[each] for each in (Ordered, Returned, int)}
        change()
        return [each.__name__ for each, route in before.items() if routes.table.get(each) is route]

    returned, costly = [list[Subscription]() for _ in range(2)]
    assert ["Ordered", "int"] == kept(lambda: returned.append(log.add("returned", Returned)))
    assert ["Ordered", "int"] == kept(returned[0].cancel)
    assert [] == kept(lambda: costly.append(log.add("costly", Costly)))
    assert ["Returned", "int"] == kept(costly[0].cancel)


def test_what_is_subscribed_while_a_route_is_compiled_is_on_the_next(log: Log, publish: Publish):
    """
    A route that was overtaken by a change while it was compiled is not kept.
    """
    late: list[Subscription] = []

    class Asking(abc.ABC):  # noqa: B024 - its hook decides
        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            if not late:
                late.append(log.add("late"))
            return True

    log.add("asking", Asking)
    publish(log.bus, Happened())
    log.clear()
    publish(log.bus, Happened())
    assert ["asking", "late"] == log


def test_a_bus_closed_while_a_route_is_compiled_refuses_it(log: Log, publish: Publish):
    """
    A publish that is overtaken by ``close`` before it has a route is refused.
    """

    class Asking(abc.ABC):  # noqa: B024 - its hook decides
        @classmethod
        def __subclasshook__(cls, other: type) -> bool:
            log.bus.close()
            return True

    log.add("asking", Asking)
    with pytest.raises(BusClosedError, match=r"EventBus 'eventbus' is closed and takes no Happen"):
        publish(log.bus, Happened())
    assert [] == log


def test_a_closed_bus_knows_no_routes(log: Log, publish: Publish):
    """
    After ``close`` every publish is refused, also of an event that has been published before.
    """
    log.add("happened")
    publish(log.bus, Happened())
    log.bus.close()
    for _ in range(2):
        with pytest.raises(BusClosedError, match=r"Publish before close\(\), or make a new bus"):
            publish(log.bus, Happened())
    assert ["happened"] == log


# -- the router by itself --------------------------------------------------------------------------


@attrs.define
class Folding:
    """
    Stands for a bus: folds subscriptions, and does something on the side the first time.
    """

    aside: Callable[[], object] | None = None
    made: list[str] = attrs.field(factory=list)
    call: Callable[[object], None] | None = None

    def __call__(self, subscription: Subscription) -> Folded:
        self.made.append(subscription.name)
        if self.aside is not None:
            aside, self.aside = self.aside, None
            aside()
        call = self.call or (lambda it: None)
        return Folded(call, call, lambda it: None, lambda *_: None)

    raises = False

    def seal(self, receipt: Receipt, declaration: object) -> Any:
        raise AssertionError("nothing is published here")

    def descend(self, receipt: Receipt, parent: Receipt) -> None:
        raise AssertionError("nothing is published here")

    def conclude(self, receipt: Receipt) -> Any:
        raise AssertionError("nothing is published here")


def router_of(fold: Folding, *subscriptions: Subscription) -> Router:
    registry = Registry()
    for each in subscriptions:
        registry.add(each)
    return Router(registry, publisher=fold, fold=fold, is_plain=True)


def subscribed(name: str, event_type: Any = Happened) -> Subscription:
    return make_subscription(event_type, lambda it: None, {"name": name})


def test_a_subscription_is_folded_once():
    """
    All routes of a subscription call the same thing, until everything is dropped.
    """
    fold = Folding()
    router = router_of(fold, subscribed("mine"))
    first = router[Ordered].folded[0]
    assert first is router[Returned].folded[0]
    assert first is router.alone(Happened(), router[Ordered].subscriptions[0]).folded[0]
    assert ["mine"] == fold.made
    router.reset(is_plain=False)
    assert {} == router.table
    assert first is not router[Ordered].folded[0]
    assert not router[Ordered].plain


def test_threads_that_fold_at_once_agree():
    """
    Where two threads fold a subscription at once, both go on with the first result.
    """
    fold, mine = Folding(), subscribed("mine")
    router = router_of(fold, mine)
    fold.aside = lambda: router.folded(mine)
    assert router.folded(mine) is router.folded(mine)
    assert ["mine", "mine"] == fold.made


def test_threads_that_compile_at_once_agree():
    """
    Where two threads compile a route at once, both go on with the first one.
    """
    found: list[Route] = []
    fold = Folding(aside=lambda: found.append(router[Happened]))
    router = router_of(fold, subscribed("mine"))
    assert router[Happened] is found[0]


def test_what_was_folded_before_a_reset_is_not_used_after_it():
    """
    A subscription being folded while everything is dropped is folded again.
    """
    fold = Folding(aside=lambda: router.reset(is_plain=False))
    router = router_of(fold, subscribed("mine"))
    assert not router[Happened].plain
    assert ["mine", "mine"] == fold.made


def test_nothing_is_kept_of_a_subscription_cancelled_while_it_is_folded():
    """
    A subscription cancelled while it is folded is on no route, and is not remembered.
    """
    mine = subscribed("mine")
    fold = Folding(aside=lambda: router._registry.remove(mine))
    router = router_of(fold, mine)
    assert () == router[Happened].subscriptions
    assert {} == router._folded


def test_a_route_knows_its_place():
    """
    A route tells where an iterator over its calls stands, and how many it has.
    """
    route = router_of(Folding(), subscribed("a"), subscribed("b"))[Happened]
    assert (2, "Happened") == (len(route), route.name)
    walk = iter(route.calls)
    places = [route.position(walk) for _ in walk]
    assert [0, 1] == places
    assert 1 == route.position(walk)


@pytest.mark.parametrize("colour", ["calls", "acalls"])
def test_a_route_tells_its_calls_apart(colour: str):
    """
    After a call come those behind it, whichever it was and whatever stands there now.
    """
    fold = Folding(call=[].append)
    route = router_of(fold, subscribed("a"), subscribed("b"), subscribed("c"))[Happened]
    calls = getattr(route, colour)
    first, second, third = calls
    assert 3 == len({id(first), id(second), id(third)})
    assert [first, second, third] == list(route.after(calls, None))
    assert [second, third] == list(route.after(calls, first))
    assert [] == list(route.after(calls, third))
    route.drop_out(route.subscriptions[1])
    assert [third] == list(route.after(calls, second))
    assert [third] == list(route.after(calls, calls[1]))


def test_a_handler_subscribed_twice_fails_where_it_fails(publish: Publish):
    """
    Of two subscriptions of one handler, the one whose call raised has failed.
    """
    bus, calls = EventBus(), list[object]()

    def second_time_unlucky(it: Happened) -> None:
        calls.append(it)
        if len(calls) == 2:
            raise ValueError

    for name in ("first", "second", "third"):
        bus.subscribe(Happened, second_time_unlucky, name=name)
    receipt = publish(bus, Happened())
    assert ["second"] == [each.subscription for each in receipt.failures]
    assert (3, 2) == (len(calls), receipt.delivered)


# -- what is counted -------------------------------------------------------------------------------


def counted(bus: EventBus) -> dict[str, tuple[int, int, int, int]]:
    """
    Return published, delivered, failed and missed of each subscription.
    """
    return {
        name: (each.published, each.delivered, each.failed, each.missed)
        for name, each in bus.stats().subscriptions.items()
    }


def test_counts_add_up_across_routes(log: Log, publish: Publish):
    """
    What has been counted on a route stays counted when it is dropped, and by subclasses, too.
    """
    for step in range(4):
        log.add(f"step {step}")
        publish(log.bus, Happened())
        publish(log.bus, Ordered())
    assert {
        "step 0": (8, 8, 0, 0),
        "step 1": (6, 6, 0, 0),
        "step 2": (4, 4, 0, 0),
        "step 3": (2, 2, 0, 0),
    } == counted(log.bus)
    assert (8, 0) == (log.bus.stats().published, log.bus.stats().unhandled)


def test_an_event_that_nobody_handles_is_counted(log: Log, publish: Publish):
    """
    An event is unhandled where nobody is subscribed, or everybody has passed it by.
    """
    assert publish(log.bus, Happened()).unhandled
    first = log.add("first", where=lambda it: False)
    assert publish(log.bus, Happened()).unhandled
    log.add("second", then=first.cancel, priority=1)
    assert not publish(log.bus, Happened()).unhandled
    stats = log.bus.stats()
    assert (3, 2) == (stats.published, stats.unhandled)
    assert {"second": (1, 1, 0, 0)} == counted(log.bus)


def test_a_missed_event_is_counted_where_it_was_missed(log: Log, publish: Publish):
    """
    A subscription that is filtered out has been passed by, and the others have not.
    """
    log.add("first", where=lambda it: isinstance(it, Ordered))
    log.add("second")
    publish(log.bus, Happened())
    publish(log.bus, Ordered())
    assert {"first": (2, 1, 0, 1), "second": (2, 2, 0, 0)} == counted(log.bus)
    assert 0 == log.bus.stats().unhandled


def test_an_interrupted_publish_is_counted_as_missed(log: Log, publish: Publish):
    """
    Where a publish is interrupted, that handler and those behind it have missed the event.
    """

    def interrupt() -> None:
        raise KeyboardInterrupt

    log.add("first")
    log.add("second", then=interrupt)
    log.add("third")
    with pytest.raises(KeyboardInterrupt):
        publish(log.bus, Happened())
    assert {"first": (1, 1, 0, 0), "second": (1, 0, 0, 1), "third": (1, 0, 0, 1)} == counted(
        log.bus
    )


def test_counting_keeps_no_dropped_routes(log: Log, publish: Publish):
    """
    A bus on which subscriptions come and go, and that nobody asks for its counts, does not grow.
    """
    routes = log.bus._routes
    log.add("stays")
    for _ in range(20):
        log.add("comes and goes", once=True)
        publish(log.bus, Happened())
    gc.collect()
    assert len(routes._ledger) <= 1
    assert len(routes._alive) <= 1
    assert len(routes._folded) == 1
    assert {"stays": (20, 20, 0, 0)} == counted(log.bus)
    assert 20 == log.bus.stats().published


def test_a_dropped_route_is_freed(log: Log, publish: Publish):
    """
    A route lives as long as it is looked up or walked, and no longer.
    """
    log.add("first")
    publish(log.bus, Happened())
    route = weakref.ref(log.bus._routes[Happened])
    log.add("second")
    assert route() is None


def test_many_routes_of_many_subscriptions():
    """
    10,000 subscriptions to 1,000 classes make 1,000 routes of ten calls.
    """
    types = [type(f"Type{number}", (), {}) for number in range(1_000)]
    template = subscribed("template")
    subscriptions = [
        attrs.evolve(template, name=str(number), event_types=(types[number % 1_000],))
        for number in range(10_000)
    ]
    fold = Folding()
    router = router_of(fold, *subscriptions)
    assert [10] * 1_000 == [len(router[each].calls) for each in types]
    assert 10_000 == len(fold.made)


# -- a bus against a naive reference ---------------------------------------------------------------

RANDOM = settings(max_examples=30, stateful_step_count=40)
TYPES: list[type] = [object, Happened, Ordered, Returned, Exchanged, Costly]
EVENTS: list[type] = [Happened, Ordered, Returned, Exchanged]


@attrs.define(eq=False)
class Model:
    """
    A subscription as the reference knows it.
    """

    name: str
    event_types: tuple[type, ...]
    priority: int
    once: bool
    wants: str
    does: str
    number: int
    is_active: bool = True
    published: int = 0
    delivered: int = 0
    failed: int = 0
    missed: int = 0
    subscription: Subscription | None = None

    @property
    def counts(self) -> tuple[int, int, int, int]:
        return self.published, self.delivered, self.failed, self.missed


@attrs.define
class Reference:
    """
    A bus as one would write it without a thought for speed: a list, sorted for each event.
    """

    subscriptions: list[Model] = attrs.field(factory=list)
    published: int = 0
    unhandled: int = 0

    @property
    def active(self) -> list[Model]:
        return [each for each in self.subscriptions if each.is_active]

    def publish(self, event_type: type, grow: Callable[[Model], None]) -> list[str]:
        """
        Return the names of the handlers that are called; *grow* adds a subscription.
        """
        matching = [each for each in self.active if issubclass(event_type, each.event_types)]
        called: list[str] = []
        for each in sorted(matching, key=lambda it: (-it.priority, it.number)):
            each.published += 1
            if not each.is_active or each.wants not in ("all", event_type.__name__):
                each.missed += 1
                continue
            each.is_active = not each.once
            called.append(each.name)
            if each.does == "cancel latest" and self.active:
                self.active[-1].is_active = False
            elif each.does == "subscribe":
                grow(each)
            if each.does == "fail":
                each.failed += 1
            else:
                each.delivered += 1
        self.published += 1
        self.unhandled += not called
        return called


class RoutingMachine(RuleBasedStateMachine):
    """
    Subscribes, cancels and publishes at random, on a bus and on the reference alike.
    """

    known = Bundle("known")
    is_async = False

    def __init__(self) -> None:
        super().__init__()
        self.bus = EventBus()
        self.reference = Reference()
        self.called: list[str] = []
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        self.runner.close()
        self.bus.close()

    def model(self, **facts: Any) -> Model:
        number = len(self.reference.subscriptions)
        made = Model(name=f"s{number}", number=number, **facts)
        self.reference.subscriptions.append(made)
        return made

    def child(self, parent: Model) -> Model:
        """
        Note in the reference what a handler that subscribes will subscribe.
        """
        return self.model(
            event_types=parent.event_types,
            priority=1 - parent.priority,
            once=True,
            wants="all",
            does="nothing",
        )

    def subscribe(self, model: Model) -> None:
        wants = model.wants
        model.subscription = self.bus.subscribe(
            model.event_types[0] | model.event_types[-1],
            self.handler_of(model),
            name=model.name,
            priority=model.priority,
            once=model.once,
            where=None if wants == "all" else lambda it: type(it).__name__ == wants,
        )

    def handler_of(self, model: Model) -> Callable[[Any], Any]:
        def handler(happened: object) -> None:
            self.called.append(model.name)
            if model.does == "cancel latest" and self.bus.subscriptions:
                self.bus.subscriptions[-1].cancel()
            elif model.does == "subscribe":
                self.subscribe(self.grown.pop(0))
            elif model.does == "fail":
                raise ValueError(model.name)

        async def ahandler(happened: object) -> None:
            handler(happened)

        return ahandler if self.is_async else handler

    @initialize()
    def quieten(self) -> None:
        logging.getLogger("eventbus").disabled = True

    @rule(
        target=known,
        event_types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=2),
        priority=st.integers(-1, 1),
        once=st.booleans(),
        wants=st.sampled_from(["all", "all", *(each.__name__ for each in EVENTS)]),
        does=st.sampled_from(["nothing", "cancel latest", "subscribe", "fail"]),
    )
    def subscribe_one(self, event_types: list[type], **facts: Any) -> Model:
        model = self.model(event_types=tuple(event_types), **facts)
        self.subscribe(model)
        return model

    @rule(model=consumes(known))
    def cancel(self, model: Model) -> None:
        assert model.subscription is not None
        for _ in range(2):
            model.subscription.cancel()
        model.is_active = False

    @rule(target=known, event_type=st.sampled_from(EVENTS))
    def publish(self, event_type: type) -> Any:
        self.called, self.grown = [], list[Model]()
        expected = self.reference.publish(event_type, lambda it: self.grown.append(self.child(it)))
        grown = list(self.grown)
        if self.is_async:
            receipt = self.runner.run(self.bus.apublish(event_type()))
        else:
            receipt = self.bus.publish(event_type())
        assert expected == self.called
        assert (not expected) is receipt.unhandled
        failing = [each.name for each in self.reference.subscriptions if each.does == "fail"]
        failed = [name for name in expected if name in failing]
        assert failed == [each.subscription for each in receipt.failures]
        assert len(expected) - len(failed) == receipt.delivered
        return multiple(*grown)

    @invariant()
    def lists_and_counts_agree(self) -> None:
        active = self.reference.active
        assert [each.name for each in active] == [each.name for each in self.bus.subscriptions]
        assert {each.name: each.counts for each in active} == counted(self.bus)
        stats = self.bus.stats()
        assert (self.reference.published, self.reference.unhandled) == (
            stats.published,
            stats.unhandled,
        )


class AsyncRoutingMachine(RoutingMachine):
    """
    The same with async handlers and ``apublish``.
    """

    is_async = True


@pytest.fixture
def quiet() -> Iterator[None]:
    """
    Let failures of handlers go unlogged.
    """
    yield
    logging.getLogger("eventbus").disabled = False


@pytest.mark.usefixtures("quiet")
class TestRouting(RoutingMachine.TestCase):
    """
    A bus with sync handlers does what the reference does.
    """

    settings = RANDOM


@pytest.mark.usefixtures("quiet")
class TestAsyncRouting(AsyncRoutingMachine.TestCase):
    """
    A bus with async handlers does what the reference does.
    """

    settings = RANDOM
