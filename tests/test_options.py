"""
What a subscription may ask for, and what is refused when it is made.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import attrs
import msgspec
import pydantic
import pytest

from eventbus import Envelope, EventBus, Queued, SubscriptionOptionError, event, exponential
from eventbus._options import Options, SubscriptionOptions
from stable_ids import stable


@event
class OrderPlaced:
    order_id: str
    total: int = 0

    @property
    def customer_id(self) -> str:
        return f"customer of {self.order_id}"

    def receipt(self) -> str:
        return self.order_id


@event
class OrderCancelled:
    order_id: str
    reason: str


@attrs.define
class ByAttrs:
    id: str


@dataclasses.dataclass
class ByDataclass:
    id: str


class ByPydantic(pydantic.BaseModel):
    id: str


class ByMsgspec(msgspec.Struct):
    id: str


class ByNamedTuple(NamedTuple):
    id: str


class Plain:
    def __init__(self) -> None:
        self.id = "7"


@event
class Nothing:
    pass


def handler(placed: OrderPlaced) -> None: ...


async def ahandler(placed: OrderPlaced) -> None: ...


async def ask(placed: OrderPlaced) -> bool:
    return True


class Ask:
    async def __call__(self, placed: OrderPlaced) -> bool:
        return True


def with_envelope(placed: OrderPlaced, envelope: Envelope) -> bool:
    return True


def of_two(placed: OrderPlaced, other: object) -> bool:
    return True


def made(event_type: Any = OrderPlaced, function: Any = handler, **options: Any) -> Options:
    return EventBus().subscribe(event_type, function, **options).options


def test_every_option_is_checked():
    """
    What a user may write and what comes of it have the same names.
    """
    written = set(SubscriptionOptions.__annotations__) - {"name"}
    kept = {field.name for field in attrs.fields(Options)} - {"ordered_by"}  # comes by delivery
    assert written == kept


def test_nothing_asked_for_is_nothing_done():
    """
    Without options a subscription has no filter, no policy and priority 0.
    """
    assert Options() == made()
    assert Options() == made(
        where=None, retry=None, timeout=None, idempotency_key=None, wrap=None, once=False
    )


def test_options_are_kept_as_they_are_used():
    """
    What was asked for can be read from the subscription.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        return function

    def where(placed: OrderPlaced) -> bool:
        return True

    policy = exponential(attempts=3)
    options = made(
        priority=-3,
        where=where,
        once=True,
        weak=True,
        retry=policy,
        offload=True,
        timeout=2,
        wrap=wrap,
    )
    expected = Options(
        priority=-3,
        where=where,
        once=True,
        weak=True,
        retry=policy,
        offload=True,
        timeout=2.0,
        wrap=wrap,
    )
    assert expected == options
    assert isinstance(options.timeout, float)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("prio", 3, r"there is no option 'prio'\. Known are delivery, .*, wrap\."),
        ("name", "", r"name must be text, not ''"),
        ("name", " ", r"name must be text, not ' '"),
        ("name", 7, r"name must be text, not 7"),
        ("priority", "high", r"priority must be an integer, not 'high'"),
        ("priority", 1.5, r"priority must be an integer, not 1\.5"),
        ("once", "yes", r"once is True or False, not 'yes'"),
        ("weak", 1, r"weak is True or False, not 1"),
        ("offload", None, r"offload is True or False, not None"),
        ("where", True, r"where must be callable, not True"),
        ("where", ask, r"an async one cannot answer\. Decide inside the handler"),
        ("where", Ask(), r"an async one cannot answer"),
        ("where", with_envelope, r"there is no envelope yet\. Ask for it in the handler"),
        ("where", of_two, r"where is asked with the event alone, but where=of_two\(.*'other'"),
        ("where", lambda: True, r"where is asked with the event alone, but .* takes no event"),
        ("idempotency_key", 7, r"is an attribute's name or a callable, not 7"),
        ("idempotency_key", "", r"is an attribute's name or a callable, not ''"),
        ("idempotency_key", ask, r"an async one cannot answer"),
        ("idempotency_key", with_envelope, r"there is no envelope yet"),
        (
            "idempotency_key",
            "oder_id",
            r"idempotency_key='oder_id' is no attribute of OrderPlaced; "
            r"it has order_id, total, customer_id\.",
        ),
        ("idempotency_key", "oder.id", r"is no attribute of OrderPlaced"),
        ("idempotency_key", "receipt", r"is no attribute of OrderPlaced"),
        ("retry", 3, r"retry=3 is no retry policy: give exponential\(attempts=5\)"),
        ("retry", ask, r"it is async, and a policy decides without waiting"),
        ("wrap", 3, r"wrap takes the handler once, .* a plain callable does that, 3 does not"),
        ("wrap", ask, r"wrap takes the handler once"),
        ("timeout", 3, r"cannot stop a plain sync handler.*Make it async, or add offload=True"),
        ("timeout", 0, r"timeout is in seconds, above 0, not 0"),
        ("timeout", -1, r"timeout is in seconds, above 0, not -1"),
        ("timeout", math.nan, r"timeout is in seconds, above 0, not nan"),
        ("timeout", True, r"timeout is in seconds, above 0, not True"),
        ("timeout", "3 s", r"timeout is in seconds, above 0, not '3 s'"),
        ("delivery", Queued, r"delivery=Queued is a class: write Queued\(\)"),
        ("delivery", "queued", r"delivery is Inline\(\).* Queued\(.*not 'queued'"),
        ("replayable", 1, r"replayable is True or False, not 1"),
        ("reset", 1, r"reset is a plain callable without arguments, not 1"),
        ("reset", print, r"reset= is for replays\. Add delivery=Durable\(\), or drop it"),
        ("max_rate", 5, r"max_rate=5 would hold up the publisher\. Add delivery=Queued\(\)"),
        ("max_rate", 0, r"max_rate is in calls per second, above 0, not 0"),
        ("max_rate", math.inf, r"max_rate is in calls per second, above 0, not inf"),
        ("max_rate", True, r"max_rate is in calls per second, above 0, not True"),
    ],
)
def test_what_cannot_work_is_refused(option: str, value: object, message: str):
    """
    An option that cannot work is refused, naming subscription, option and cure.
    """
    with pytest.raises(SubscriptionOptionError, match=message) as refusal:
        made(**{option: value})
    assert (f"{__name__}.handler", option) == (refusal.value.subscription, refusal.value.option)
    assert str(refusal.value).startswith(f"{__name__}.handler: ")


def test_what_orders_a_queue_is_checked():
    """
    An attribute that events of the class have not is refused where it can be known.
    """
    with pytest.raises(
        SubscriptionOptionError, match=r"ordered_by='oder_id' is no attribute"
    ) as no:
        made(delivery=Queued(ordered_by="oder_id"))
    assert "ordered_by" == no.value.option
    options = made(delivery=Queued(ordered_by="order_id"), max_rate=5)
    assert "A-1" == options.ordered_by(OrderPlaced("A-1"))
    assert (5.0, float) == (options.max_rate, type(options.max_rate))


def test_a_refusal_goes_by_the_given_name():
    """
    A subscription with a name of its own is called by it when an option is refused.
    """
    with pytest.raises(SubscriptionOptionError, match=r"^shop\.pay: once is") as refusal:
        made(name="shop.pay", once=7)
    assert "shop.pay" == refusal.value.subscription


def test_an_async_handler_is_not_offloaded():
    """
    A thread is for sync handlers: an async one that asks for it is refused.
    """
    with pytest.raises(SubscriptionOptionError, match=r"this one is async\. Drop it"):
        made(function=ahandler, offload=True)


@pytest.mark.parametrize(("function", "options"), [(ahandler, {}), (handler, {"offload": True})])
@pytest.mark.parametrize("timeout", [0.5, 3, math.inf])
def test_what_can_be_stopped_may_have_a_timeout(
    function: Any, options: dict[str, Any], timeout: float
):
    """
    Async handlers and sync ones in a thread of their own take a timeout.
    """
    assert timeout == made(function=function, timeout=timeout, **options).timeout


@pytest.mark.parametrize(
    ("where", "wanted"),
    [
        (lambda placed: placed.total > 3, True),
        (lambda placed, limit=50: placed.total > limit, False),
        (functools.partial(lambda limit, placed: placed.total > limit, 3), True),
        (bool, True),
        (OrderPlaced.receipt, True),
    ],
)
def test_any_plain_callable_is_a_filter(where: Callable[..., bool], wanted: bool):
    """
    Functions, partials, builtins and unbound methods of the event may be asked.
    """
    found = made(where=where).where
    assert found is not None
    assert wanted is bool(found(OrderPlaced("A-1", 42)))


@pytest.mark.parametrize(
    ("event_type", "each", "key", "expected"),
    [
        (OrderPlaced, OrderPlaced("A-1"), "order_id", "A-1"),
        (OrderPlaced, OrderPlaced("A-1"), "customer_id", "customer of A-1"),
        (OrderPlaced, OrderPlaced("A-1"), "order_id.__class__", str),
        (OrderPlaced, OrderPlaced("A-1", 7), lambda placed: placed.total, 7),
        (OrderPlaced | OrderCancelled, OrderCancelled("A-1", "late"), "order_id", "A-1"),
        (ByAttrs, ByAttrs("7"), "id", "7"),
        (ByDataclass, ByDataclass("7"), "id", "7"),
        (ByPydantic, ByPydantic(id="7"), "id", "7"),
        (ByMsgspec, ByMsgspec("7"), "id", "7"),
        (ByNamedTuple, ByNamedTuple("7"), "id", "7"),
        (Plain, Plain(), "id", "7"),
    ],
    ids=stable,
)
def test_a_key_is_read_from_the_event(event_type: Any, each: object, key: Any, expected: object):
    """
    The idempotency key is an attribute of the event, also of an attribute, or what is computed.
    """
    reader = made(event_type, lambda it: None, idempotency_key=key).idempotency_key
    assert reader is not None
    assert expected == reader(each)


@pytest.mark.parametrize(
    "event_type", [ByAttrs, ByDataclass, ByPydantic, ByMsgspec, ByNamedTuple], ids=stable
)
def test_a_key_that_is_no_attribute_is_refused(event_type: type):
    """
    Where an event's class tells its attributes, the key has to be one of them.
    """
    with pytest.raises(
        SubscriptionOptionError, match=rf"no attribute of {event_type.__name__}; it has id"
    ):
        made(event_type, lambda it: None, idempotency_key="key")


def test_a_key_has_to_be_an_attribute_of_each_event():
    """
    In a union, every event needs the attribute; one that has none says so.
    """
    with pytest.raises(SubscriptionOptionError, match="no attribute of OrderPlaced"):
        made(OrderCancelled | OrderPlaced, lambda it: None, idempotency_key="reason")
    with pytest.raises(SubscriptionOptionError, match=r"no attribute of Nothing; it has none\."):
        made(Nothing, lambda it: None, idempotency_key="id")


def test_a_key_of_a_class_without_declared_fields_is_trusted():
    """
    Where a class does not tell its attributes, any name is taken.
    """
    assert made(Plain, lambda it: None, idempotency_key="whatever").idempotency_key is not None
