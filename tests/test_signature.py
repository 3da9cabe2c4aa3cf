"""
What is read from a handler: its events, its colour, its wish for an envelope.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import functools
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, Optional, TypeVar, Union
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest
from typing_extensions import TypeAliasType

import eventbus
from eventbus import Envelope, EventBus, HandlerSignatureError, event
from eventbus._signature import HandlerSignature, event_types_of, name_of, read_signature
from eventbus.testing import TestBus
from stable_ids import stable

if TYPE_CHECKING:
    from elsewhere import Stranger  # type: ignore[import-not-found]

    from eventbus import Envelope as Metadata

T = TypeVar("T")
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


@event
class OrderPlaced:
    order_id: str


@event
class OrderCancelled:
    order_id: str


@event
class Changed(Generic[T]):
    new: T


class Auditable(abc.ABC):
    @abc.abstractmethod
    def actor(self) -> str: ...


Bound = TypeVar("Bound", bound=OrderPlaced)
Either = TypeVar("Either", OrderPlaced, OrderCancelled)
OrderEvent = TypeAliasType("OrderEvent", OrderPlaced | OrderCancelled)
Wrapped = TypeAliasType("Wrapped", Changed[T], type_params=(T,))
BOTH = (OrderPlaced, OrderCancelled)
PLAIN = HandlerSignature(event_types=(OrderPlaced,), annotation="OrderPlaced")


def read(handler: Callable[..., object]) -> HandlerSignature:
    return read_signature(handler, "shop.handler")


# -- event types -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (OrderPlaced, (OrderPlaced,)),
        (Auditable, (Auditable,)),
        (object, (object,)),
        (int, (int,)),
        (OrderPlaced | OrderCancelled, BOTH),
        (Union[OrderPlaced, OrderCancelled], BOTH),  # noqa: UP007 - one of two spellings
        (OrderPlaced | (OrderCancelled | OrderPlaced), BOTH),
        (OrderPlaced | None, (OrderPlaced,)),
        (Optional[OrderPlaced], (OrderPlaced,)),  # noqa: UP045 - one of two spellings
        (Changed[int], (Changed,)),
        (Changed[int] | Changed[str] | OrderPlaced, (Changed, OrderPlaced)),
        (list, (list,)),
        (list[int], None),
        (Sequence[OrderPlaced], None),
        (tuple[OrderPlaced, ...], None),
        (OrderPlaced | list[OrderPlaced], None),
        (Annotated[OrderPlaced, "a note"], (OrderPlaced,)),
        (Annotated[OrderPlaced | OrderCancelled, "a note"], BOTH),
        (Annotated[OrderPlaced, "a note"] | OrderCancelled, BOTH),
        (Bound, (OrderPlaced,)),
        (typing.NewType("LargeOrder", OrderPlaced), (OrderPlaced,)),
        (Either, BOTH),
        (OrderEvent, BOTH),
        (Wrapped, (Changed,)),
        (Wrapped[int], (Changed,)),
        (T, None),
        (Any, None),
        (OrderPlaced | Any, None),
        (None, None),
        (type(None), None),
        (Optional[None], None),  # noqa: UP045 - what a generated annotation may come to
        (type, None),
        (type[OrderPlaced], None),
        ("OrderPlaced", None),
        (Union["OrderPlaced", None], None),
        (OrderPlaced("A-1"), None),
        (typing.Literal["a"], None),
    ],
    ids=stable,
)
def test_annotations_stand_for_classes(annotation: object, expected: tuple[type, ...] | None):
    """
    A class is itself, a union its members, an alias its class; what names no class is none.
    """
    assert expected == event_types_of(annotation)


def typed(placed: OrderPlaced) -> None: ...


def quoted(placed: "OrderPlaced") -> None: ...  # noqa: UP037 - text within text


def either(happened: OrderPlaced | OrderCancelled) -> None: ...


def generic(changed: Changed[int]) -> None: ...


def positional(placed: OrderPlaced, /) -> None: ...


def defaulted(placed: OrderPlaced, gently: bool = True, *, twice: bool = False) -> None: ...


def starred(placed: OrderPlaced, *rest: object, **options: object) -> None: ...


def silent(placed) -> None: ...  # type: ignore[no-untyped-def]


def anything(happened: Any) -> None: ...


def anyhow(*happened: OrderPlaced) -> None: ...


def stranger(happened: Stranger) -> None: ...


def half_a_stranger(happened: OrderPlaced | Stranger) -> None: ...


def with_objects(annotation: object) -> Callable[[Any], None]:
    """
    Return a handler whose annotation is no text.
    """

    def handler(happened):  # type: ignore[no-untyped-def]
        pass

    handler.__annotations__["happened"] = annotation
    return handler


class Service:
    @event
    class Opened:
        by: str

    def method(self, placed: OrderPlaced) -> None: ...

    async def amethod(self, placed: OrderPlaced) -> None: ...

    def enveloped(self, placed: OrderPlaced, envelope: Envelope[Any]) -> None: ...

    async def aenveloped(self, placed: OrderPlaced, envelope: Envelope[Any]) -> None: ...

    def own(self, opened: Opened) -> None: ...

    @classmethod
    def clsmethod(cls, opened: Opened) -> None: ...

    @staticmethod
    def static(placed: OrderPlaced) -> None: ...

    def booked(self, ledger: list[str], placed: OrderPlaced) -> None: ...

    partly = functools.partialmethod(booked, [])

    @contextlib.contextmanager
    def entered(self, placed: OrderPlaced) -> Iterator[None]:
        yield

    def __call__(self, placed: OrderPlaced) -> None: ...


class AsyncService:
    async def __call__(self, placed: OrderPlaced) -> None: ...


class Invoice:
    def __init__(self, placed: OrderPlaced) -> None: ...


class Receiver(NamedTuple):
    placed: OrderPlaced


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (typed, (OrderPlaced,)),
        (quoted, (OrderPlaced,)),
        (either, BOTH),
        (generic, (Changed,)),
        (positional, (OrderPlaced,)),
        (defaulted, (OrderPlaced,)),
        (starred, (OrderPlaced,)),
        (Service().method, (OrderPlaced,)),
        (Service().amethod, (OrderPlaced,)),
        (Service().own, (Service.Opened,)),
        (Service.clsmethod, (Service.Opened,)),
        (Service().static, (OrderPlaced,)),
        (Service().partly, (OrderPlaced,)),
        (Service(), (OrderPlaced,)),
        (AsyncService(), (OrderPlaced,)),
        (Invoice, (OrderPlaced,)),
        (functools.partial(defaulted, gently=False), (OrderPlaced,)),
        (functools.partial(functools.partial(Service().booked, []), placed=None), ()),
        (functools.lru_cache(typed), (OrderPlaced,)),
        (staticmethod(typed), (OrderPlaced,)),
        (create_autospec(typed), ()),  # it has no module to look the text up in
        (with_objects(OrderPlaced), (OrderPlaced,)),
        (with_objects(Changed["Stranger"]), (Changed,)),
        (silent, ()),
        (anything, ()),
        (anyhow, ()),
        (stranger, ()),
        (half_a_stranger, ()),
        (print, ()),
        ([].append, ()),
        ({}.update, ()),
        (Mock(), ()),
        (AsyncMock(), ()),
        (lambda placed: None, ()),
    ],
    ids=stable,
)
def test_the_first_parameter_says_the_event(
    handler: Callable[..., object], expected: tuple[type, ...]
):
    """
    Of any callable, the annotation of the first parameter says which events it takes.
    """
    if isinstance(handler, functools.partial) and "placed" in handler.keywords:
        with pytest.raises(HandlerSignatureError, match="takes no event"):
            read(handler)
    else:
        assert expected == read(handler).event_types


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (typed, "OrderPlaced"),
        (stranger, "Stranger"),
        (anything, "Any"),
        (with_objects(OrderPlaced), f"{__name__}.OrderPlaced"),
        (with_objects(int | None), "int | None"),
        (silent, ""),
        (lambda placed: None, ""),
    ],
)
def test_an_annotation_is_kept_as_it_is_written(handler: Callable[..., object], expected: str):
    """
    What the annotation says is kept for messages, also where it names nothing known.
    """
    assert expected == read(handler).annotation


def test_classes_of_a_function_are_found():
    """
    Annotations may name events that are declared in the function around the handler.
    """

    @event
    class Local:
        pass

    def outer() -> Callable[..., object]:
        @event
        class Inner:
            pass

        def handler(happened: Local | Inner) -> None: ...

        assert (Local, Inner) == read(handler).event_types
        return handler

    class Holder:
        def method(self, happened: Local) -> None: ...

    assert (Local,) == read(Holder().method).event_types
    assert () == read(outer()).event_types  # Inner is out of sight


def test_the_nearest_class_of_a_name_is_meant():
    """
    A class of the function around the handler hides one of the module by the same name.
    """

    @event
    class OrderPlaced:
        pass

    def handler(placed: OrderPlaced) -> None: ...

    assert (OrderPlaced,) == read(handler).event_types


def test_a_callers_classes_are_not_meant():
    """
    A class that merely goes by that name where the handler is subscribed is not taken for it.
    """

    @event
    class Stranger:
        pass

    assert () == read(stranger).event_types


# -- decorated handlers ------------------------------------------------------------------------


def transparent(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    return call


def injecting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(happened: Any) -> Any:
        return function("ledger", happened)

    return call


def renaming(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(happened):  # type: ignore[no-untyped-def]
        return function(happened)

    del call.__annotations__
    return call


def to_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


def book(ledger: str, placed: OrderPlaced) -> None: ...


def enveloped(placed: OrderPlaced, envelope: Envelope[OrderPlaced]) -> None: ...


@pytest.mark.parametrize(
    ("decorate", "function", "expected"),
    [
        (
            transparent,
            typed,
            PLAIN,
        ),
        (
            transparent,
            enveloped,
            HandlerSignature(
                event_types=(OrderPlaced,), annotation="OrderPlaced", takes_envelope=True
            ),
        ),
        (injecting, book, HandlerSignature()),
        (renaming, typed, PLAIN),
        (renaming, book, HandlerSignature()),
        (
            to_async,
            typed,
            HandlerSignature(event_types=(OrderPlaced,), annotation="OrderPlaced", is_async=True),
        ),
        (
            functools.partial,
            transparent(typed),
            PLAIN,
        ),
    ],
    ids=lambda it: getattr(it, "__name__", ""),
)
def test_decorators_are_looked_through(
    decorate: Decorator, function: Callable[..., Any], expected: HandlerSignature
):
    """
    A decorator that takes anything takes what it passes on; any other is read for itself.
    """
    assert expected == read(decorate(function))


def test_a_replacement_is_read_for_itself():
    """
    Not looked through, what takes anything takes an event and no envelope.
    """
    assert HandlerSignature() == read_signature(transparent(enveloped), "shop", wrapped=False)


def test_a_decorator_of_a_method_is_looked_through():
    """
    A decorated method is read as the method it wraps, without ``self``.
    """

    class Decorated:
        @transparent
        def method(self, placed: OrderPlaced, envelope: Envelope) -> None: ...

    found = read(Decorated().method)
    assert ((OrderPlaced,), True) == (found.event_types, found.takes_envelope)


# -- colour ------------------------------------------------------------------------------------


async def coroutine(placed: OrderPlaced) -> None: ...


def returns_awaitable(placed: OrderPlaced) -> Awaitable[None]:
    return coroutine(placed)


def returns_coroutine(placed: OrderPlaced) -> Coroutine[Any, Any, None]:
    return coroutine(placed)


def returns_coroutine_type(placed: OrderPlaced) -> CoroutineType:  # type: ignore[type-arg]
    return coroutine(placed)


def returns_task(placed: OrderPlaced) -> asyncio.Task[None]:
    return asyncio.ensure_future(coroutine(placed))


def may_return_awaitable(placed: OrderPlaced) -> Awaitable[None] | None: ...


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (coroutine, True),
        (Service().amethod, True),
        (AsyncService(), True),
        (functools.partial(coroutine), True),
        (functools.partial(AsyncService()), True),
        (AsyncMock(), True),
        (AsyncMock(spec=typed), True),
        (Mock(spec=coroutine), True),
        (create_autospec(Service, instance=True).amethod, True),
        (create_autospec(Service, instance=True).method, False),
        (create_autospec(Service).method, False),
        (Mock(spec=typed), False),
        (MagicMock(spec=typed), False),
        (MagicMock(spec=Service().method), False),
        (create_autospec(typed), False),
        (returns_awaitable, True),
        (returns_coroutine, True),
        (returns_coroutine_type, True),
        (returns_task, True),
        (typed, False),
        (Service(), False),
        (AsyncService, False),
        (Mock(), False),
        (print, False),
        ({}.update, False),
        (may_return_awaitable, False),
    ],
    ids=stable,
)
def test_the_colour_is_read_where_it_shows(handler: Callable[..., object], expected: bool):
    """
    What is known to return an awaitable is async; the others may still return one.
    """
    if handler is AsyncService:
        with pytest.raises(HandlerSignatureError, match="takes no event"):
            read(handler)
    else:
        assert expected is read(handler).is_async


@pytest.mark.parametrize(
    "mock",
    [
        create_autospec(typed),
        create_autospec(coroutine),
        create_autospec(Service, instance=True).method,
        create_autospec(Service).method,
        create_autospec(Service, instance=True).amethod,
        create_autospec(Service, instance=True).enveloped,
        create_autospec(Service, instance=True).aenveloped,
        Mock(spec=typed),
        MagicMock(spec=typed),
        Mock(spec=coroutine),
        AsyncMock(spec=typed),
        Mock(spec=Service().method),
    ],
    ids=stable,
)
@pytest.mark.parametrize("make", [EventBus, TestBus], ids=stable)
def test_a_mock_with_a_specification_is_a_handler(mock: Any, make: Callable[[], EventBus]) -> None:
    """
    What pretends to be a function is subscribed and called as the mock it is.
    """
    mock.reset_mock()
    with make() as bus:
        bus.subscribe(OrderPlaced, mock, name="mock")
        assert bus.publish(OrderPlaced("A-1")).ok
    assert 1 == mock.call_count
    assert OrderPlaced("A-1") == mock.call_args.args[0]


# -- the envelope ------------------------------------------------------------------------------


def second(placed: OrderPlaced, envelope: Envelope[OrderPlaced]) -> None: ...


def bare(placed: OrderPlaced, envelope: Envelope) -> None: ...


def optional(placed: OrderPlaced, envelope: Envelope[Any] | None = None) -> None: ...


def annotated(placed: OrderPlaced, envelope: Annotated[Envelope, "a note"]) -> None: ...


def qualified(placed: OrderPlaced, envelope: eventbus.Envelope[Any]) -> None: ...


def of_a_stranger(placed: Stranger, envelope: Envelope[Stranger]) -> None: ...


def unknown_module(placed: OrderPlaced, envelope: elsewhere.Envelope | None) -> None: ...  # type: ignore[name-defined] # noqa: F821


def keyword(placed: OrderPlaced, *, envelope: Envelope) -> None: ...


def third_by_keyword(placed: OrderPlaced, twice: bool = False, *, told: Envelope) -> None: ...


def other(placed: OrderPlaced, envelope: str = "C6") -> None: ...


def unknown(placed: OrderPlaced, envelope: Metadata = None) -> None: ...  # type: ignore[assignment]


def takes_ledger(placed: OrderPlaced, ledger: list[str], envelope: Envelope) -> None: ...


@pytest.mark.parametrize(
    ("handler", "takes", "keyword"),
    [
        (second, True, None),
        (bare, True, None),
        (optional, True, None),
        (annotated, True, None),
        (qualified, True, None),
        (of_a_stranger, True, None),
        (unknown_module, True, None),
        (keyword, True, "envelope"),
        (third_by_keyword, True, "told"),
        (functools.partial(takes_ledger, ledger=[]), True, "envelope"),
        (functools.partial(second, envelope=None), False, None),
        (typed, False, None),
        (other, False, None),
        (unknown, False, None),
        (starred, False, None),
    ],
    ids=stable,
)
def test_an_envelope_is_asked_for_by_annotation(
    handler: Callable[..., object], takes: bool, keyword: str | None
):
    """
    A second or a keyword-only parameter annotated `Envelope` asks for it, unless it is bound.
    """
    found = read(handler)
    assert (takes, keyword) == (found.takes_envelope, found.envelope_keyword)


@pytest.mark.parametrize("handler", [second, optional, keyword, third_by_keyword])
def test_who_asks_for_an_envelope_gets_it(handler: Callable[..., object]):
    """
    On a bus, each way of asking for the envelope is answered with the one of the event.
    """
    spy = create_autospec(handler)
    bus = EventBus()
    bus.subscribe(OrderPlaced, spy)
    receipt = bus.publish(OrderPlaced("A-1"))
    assert receipt.ok, receipt.failures
    (arguments, keywords) = spy.call_args
    assert receipt.envelope in (*arguments, *keywords.values())


# -- refusals ----------------------------------------------------------------------------------


def none() -> None: ...


def only_keyword(*, placed: OrderPlaced) -> None: ...


def two(placed: OrderPlaced, ledger: list[str]) -> None: ...


def needs_keyword(placed: OrderPlaced, *, ledger: list[str]) -> None: ...


def anything_and_a_keyword(*placed: OrderPlaced, ledger: list[str]) -> None: ...


def third(placed: OrderPlaced, twice: bool = False, envelope: Envelope | None = None) -> None: ...


def first(envelope: Envelope[OrderPlaced]) -> None: ...


def swapped(envelope: Envelope, placed: OrderPlaced) -> None: ...


def generator(placed: OrderPlaced) -> Iterator[None]:
    yield


async def agenerator(placed: OrderPlaced) -> AsyncIterator[None]:
    yield


class Generating:
    def __call__(self, placed: OrderPlaced) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (None, r"a handler must be callable, not None"),
        ("typed", r"a handler must be callable, not 'typed'"),
        (Service.__dict__["clsmethod"], r"a handler must be callable, not <classmethod"),
        (none, r"shop\.handler\(\).* takes no event.*Give it a positional parameter"),
        (only_keyword, r"takes no event"),
        (two, r"needs 'ledger', which nobody would give it.*functools\.partial"),
        (needs_keyword, r"needs 'ledger'"),
        (anything_and_a_keyword, r"needs 'ledger'.*functools\.partial"),
        (Service.method, r"a method without its instance: subscribe it bound, .*bus\.include"),
        (Service.own, r"a method without its instance"),
        (third, r"put the Envelope second, right after the event"),
        (first, r"the event comes first, and the Envelope second"),
        (swapped, r"the event comes first, and the Envelope second: \(event, envelope\)"),
        (generator, r"is a generator function.*Write it without yield"),
        (agenerator, r"is a generator function"),
        (functools.partial(generator), r"is a generator function"),
        (contextlib.contextmanager(generator), r"makes a context manager.*never run"),
        (contextlib.asynccontextmanager(agenerator), r"makes a context manager"),
        (Service().entered, r"makes a context manager"),
        (Generating(), r"is a generator function"),
    ],
    ids=stable,
)
def test_what_cannot_be_called_with_an_event_is_refused(handler: Any, message: str):
    """
    A handler that cannot be called with an event, or to no effect, is refused with the cure.
    """
    with pytest.raises(HandlerSignatureError, match=message) as refusal:
        read(handler)
    assert "shop.handler" == refusal.value.subscription


# -- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (typed, f"{__name__}.typed"),
        (Service().method, f"{__name__}.Service.method"),
        (Service.clsmethod, f"{__name__}.Service.clsmethod"),
        (Service().static, f"{__name__}.Service.static"),
        (Service().partly, f"{__name__}.Service.booked"),
        (Service(), f"{__name__}.Service"),
        (Service, f"{__name__}.Service"),
        (functools.partial(functools.partial(typed)), f"{__name__}.typed"),
        (transparent(typed), f"{__name__}.typed"),
        (print, "builtins.print"),
        ([].append, "list.append"),
        (Mock(), "unittest.mock.Mock"),
        (create_autospec(typed), "typed"),
        (Mock(spec=typed), "unittest.mock.Mock"),
    ],
    ids=stable,
)
def test_a_handler_has_a_default_name(handler: Callable[..., object], expected: str):
    """
    By default a subscription is named by the handler's module and qualified name.
    """
    assert expected == name_of(handler)
