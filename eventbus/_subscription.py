"""
A handler bound to event types with its policies.

Law: everything about a subscription is decided when it is made: its name, its
event types, how its handler is held. Nothing here knows a bus or calls a handler.
"""

from __future__ import annotations

import _thread
import functools
import types
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol, is_typeddict

import attrs

from eventbus._mode import Durable, Queued
from eventbus._offload import Offload
from eventbus._options import AnyHandler, Options, check_options, refuse_option
from eventbus._signature import HandlerSignature, event_types_of, name_of, read_signature
from eventbus.errors import HandlerSignatureError

__all__ = ["AnyHandler", "Counters", "Subscription", "make_subscription", "spelled"]


@attrs.define(eq=False)
class Counters:
    """
    What is counted for one subscription, apart from its successes.

    Successes are not counted but inferred, from how often its routes were taken
    and what is counted here: a plain delivery costs no counting.
    """

    routed: int = 0
    missed: int = 0
    failed: int = 0
    retried: int = 0
    duplicate: int = 0
    dead_lettered: int = 0
    calls: int = 0
    seconds: float = 0.0
    slowest: float = 0.0

    def took(self, duration: float) -> None:
        """
        Count a call of the handler that took *duration* seconds.
        """
        self.calls += 1
        self.seconds += duration
        self.slowest = max(self.slowest, duration)


class Pausable(Protocol):
    """
    What a subscription knows of its queue.
    """

    @property
    def is_paused(self) -> bool:
        """
        Whether it hands out nothing.
        """
        ...

    def pause(self) -> None:
        """
        Hand out nothing more.
        """
        ...

    def resume(self) -> None:
        """
        Hand out again.
        """
        ...


@attrs.define(eq=False, kw_only=True, repr=False)
class Subscription:
    """
    A handler bound to event types with its policies, by a name unique on its bus.

    Usable in a ``with`` block, whose end cancels it.

    Attributes:
        name: Unique on the bus.
        event_types: The classes whose events, and whose subclasses' events, reach it.
        options: Its policies.
        signature: What was read from the handler.

    .. versionadded:: 0.1
    """

    name: str
    event_types: tuple[type, ...]
    options: Options
    signature: HandlerSignature
    get_handler: Callable[[], AnyHandler | None]
    counters: Counters = attrs.field(factory=Counters)
    is_live: bool = True
    sequence: int = 0
    retire: Callable[[Subscription], None] | None = None
    meant_here: Callable[[Subscription], Subscription | None] | None = None
    queue: Pausable | None = None
    threads: Offload | None = None

    @property
    def handler(self) -> AnyHandler | None:
        """
        The handler; ``None`` when it was held weakly and is gone.
        """
        return self.get_handler()

    @property
    def is_queued(self) -> bool:
        """
        Whether a publish leaves its events in a queue.
        """
        return isinstance(self.options.delivery, Queued)

    @property
    def is_durable(self) -> bool:
        """
        Whether its events come from the log.
        """
        return isinstance(self.options.delivery, Durable)

    def _meant(self) -> Subscription | None:
        """
        Return what is meant in this context.

        Where another bus stands in for its own, that is what stands for it there, if any does.
        """
        return self if self.meant_here is None else self.meant_here(self)

    @property
    def is_active(self) -> bool:
        """
        Until it is cancelled, by `cancel` or with a handler held weakly.
        """
        meant = self._meant()
        return meant is not None and meant.is_live

    @property
    def is_paused(self) -> bool:
        """
        Whether its queue hands out nothing, until `resume`.
        """
        meant = self._meant()
        return meant is not None and meant.queue is not None and meant.queue.is_paused

    def pause(self) -> None:
        """
        Handle nothing more from its queue, which fills; what is being handled goes on.

        Raises:
            SubscriptionOptionError: It has no queue: an inline handler runs in the publish.
        """
        if (meant := self._meant()) is not None:
            meant._own_queue("pause").pause()

    def resume(self) -> None:
        """
        Go on where `pause` has stopped.

        Raises:
            SubscriptionOptionError: It has no queue.
        """
        if (meant := self._meant()) is not None:
            meant._own_queue("resume").resume()

    def _own_queue(self, verb: str) -> Pausable:
        if self.queue is None:
            refuse_option(
                "delivery",
                self.name,
                f"{verb}() is for queued subscriptions, and its handler runs in the publish. "
                f"Subscribe it with delivery=Queued(), or cancel() it.",
            )
        return self.queue

    @property
    def needs_loop(self) -> bool:
        """
        Whether a delivery has to run on an event loop: async, or offloaded with a limit.
        """
        return self.signature.is_async or (
            self.options.offload and self.options.timeout is not None
        )

    def cancel(self) -> None:
        """
        End the subscription. A second call does nothing.

        No publish begun after this returned reaches the handler, and none under way
        that has not come to it yet.
        """
        if (meant := self._meant()) is not None:
            meant.end()

    def end(self) -> None:
        """
        End this very subscription, whichever bus stands in for its own here.
        """
        if self.retire is not None:
            self.retire(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __repr__(self) -> str:
        state = "" if self.is_active else ", cancelled"
        return f"<Subscription {self.name!r} to {spelled(self.event_types)}{state}>"


def spelled(event_types: tuple[type, ...]) -> str:
    """
    Write event types as a message shows them: ``OrderPlaced | OrderCancelled``.
    """
    return " | ".join(each.__qualname__ for each in event_types)


def make_subscription(
    given: object, handler: AnyHandler, options: Mapping[str, Any]
) -> Subscription:
    """
    Check everything that can be known now and return the subscription.

    Args:
        given: A class, a union of classes, or ``None`` to take the annotation's.
        handler: The user's callable.
        options: The keywords of `SubscriptionOptions`.

    Raises:
        HandlerSignatureError: The handler cannot be called with such an event.
        SubscriptionOptionError: An option cannot work for this handler.
    """
    name = options.get("name")
    if name is not None and not (isinstance(name, str) and name.strip()):
        shown = name_of(handler) if callable(handler) else repr(handler)
        refuse_option("name", shown, f"name must be text, not {name!r}")
    name = name or (name_of(handler) if callable(handler) else repr(handler))
    signature = read_signature(handler, name)
    event_types = _event_types(given, signature, name)
    subscription = Subscription(
        name=name,
        event_types=event_types,
        options=check_options(options, signature, event_types, name),
        signature=signature,
        get_handler=lambda: handler,
    )
    if subscription.options.offload:
        subscription.threads = Offload(name)
    if subscription.options.weak:
        subscription.get_handler = _weakly(handler, subscription)
    return subscription


# -- event types -----------------------------------------------------------------------------


def _event_types(given: object, signature: HandlerSignature, name: str) -> tuple[type, ...]:
    if given is None:
        event_types = _inferred(signature, name)
    else:
        found = event_types_of(given)
        if found is None:
            raise HandlerSignatureError(
                f"{name}: {given!r} is no event class. Give a class, or a union of classes; "
                f"object stands for every event.",
                subscription=name,
            )
        event_types = found
    for event_type in event_types:
        if getattr(event_type, "_is_protocol", False) or is_typeddict(event_type):
            raise HandlerSignatureError(
                f"{name}: {event_type.__qualname__} is a Protocol or a TypedDict. Events are "
                f"matched by their classes: take a class, an abstract base class or object.",
                subscription=name,
            )
        if signature.event_types and not _accepts(signature.event_types, event_type):
            raise HandlerSignatureError(
                f"{name} is subscribed to {event_type.__qualname__} but annotated to take "
                f"{spelled(signature.event_types)}. Change one of them; a base class of the "
                f"event will do.",
                subscription=name,
            )
    return event_types


def _inferred(signature: HandlerSignature, name: str) -> tuple[type, ...]:
    if signature.event_types:
        return signature.event_types
    why = (
        f"{name}: its first parameter is annotated {signature.annotation}, which is no event "
        f"class, or none that is known where the handler is written. Import it at run time"
        if signature.annotation
        else f"{name}: its first parameter has no annotation to take the event from. Annotate it"
    )
    raise HandlerSignatureError(
        f"{why}, or give the class: @bus.on(OrderPlaced); object stands for every event.",
        subscription=name,
    )


def _accepts(annotated: tuple[type, ...], event_type: type) -> bool:
    try:
        return issubclass(event_type, annotated)
    except TypeError:  # a Protocol that is not checkable at run time says nothing
        return True


# -- weak references -------------------------------------------------------------------------


def _weakly(handler: AnyHandler, subscription: Subscription) -> Callable[[], AnyHandler | None]:
    """
    Return what still finds *handler* while it lives; its end cancels *subscription*.
    """
    if _is_held_by_nobody(handler):
        refuse_option(
            "weak",
            subscription.name,
            f"weak=True would lose {handler!r} at once: nothing else holds a lambda, a partial, a "
            f"closure or a builtin's method. Drop weak=True, or subscribe a method or a module's "
            f"function.",
        )
    found = weakref.ref(subscription)

    def end(_: object) -> None:
        if (mine := found()) is None:
            return
        if mine.queue is None:
            return mine.end()
        # The garbage collector may run while this very thread holds the queue's lock.
        with suppress(RuntimeError):  # no thread can be had: the next publish ends it
            _thread.start_new_thread(mine.end, ())

    try:
        if isinstance(handler, types.MethodType):
            return weakref.WeakMethod(handler, end)
        return weakref.ref(handler, end)
    except TypeError:
        held = getattr(handler, "__self__", handler)
        refuse_option(
            "weak",
            subscription.name,
            f"{type(held).__qualname__} cannot be referenced weakly. Drop weak=True, or give it "
            f"a __weakref__ slot.",
        )


def _is_held_by_nobody(handler: AnyHandler) -> bool:
    if isinstance(handler, types.BuiltinMethodType):  # print is held by its module
        return not isinstance(handler.__self__, types.ModuleType)
    if not isinstance(handler, types.FunctionType):
        return isinstance(handler, functools.partial)
    is_closure = handler.__closure__ is not None and "<locals>" in handler.__qualname__
    return is_closure or handler.__name__ == "<lambda>"
