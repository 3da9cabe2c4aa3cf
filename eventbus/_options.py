"""
What a subscription may ask for: its options, and whether they can work.

Law: each option is checked here, once, against the handler's signature and the
event types; a refusal names the cure. Nothing here knows a bus or an event.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, Generic, NoReturn, TypedDict, TypeVar

import attrs

from eventbus._mode import Durable, Inline, Mode, Queued
from eventbus._signature import HandlerSignature, read_signature
from eventbus.errors import HandlerSignatureError, SubscriptionOptionError
from eventbus.retry import RetryPolicy, as_policy

__all__ = ["AnyHandler", "Options", "SubscriptionOptions", "check_options", "refuse_option"]

E = TypeVar("E")
AnyHandler = Callable[..., object]


class SubscriptionOptions(TypedDict, Generic[E], total=False):
    """
    What `EventBus.on`, `EventBus.subscribe` and `on` take as keywords.

    .. versionadded:: 0.1
    """

    name: str
    """Unique on the bus. Default: the handler's module and qualified name."""
    priority: int
    """Higher runs earlier; equal ones run in the order of subscription. Default 0."""
    where: Callable[[E], bool]
    """Consumer-side filter: the handler is called only where it returns true."""
    once: bool
    """Cancel the subscription when its first event has reached the handler."""
    weak: bool
    """Do not keep the handler alive: the subscription ends with it."""
    retry: RetryPolicy | Callable[..., float | None] | None
    """What follows a failed attempt. Default: the bus's, which by default gives up."""
    timeout: float | None
    """Seconds each attempt may take; async or offloaded handlers only."""
    idempotency_key: str | Callable[[E], object] | None
    """Attribute name or callable: one run for each key. ``None`` from it: no key."""
    offload: bool
    """`apublish` runs the sync handler in a thread instead of the loop."""
    delivery: Mode
    """`Inline` in the publish, which is the default; `Queued` behind it, or `Durable`."""
    max_rate: float | None
    """Calls of the handler per second, at most, evenly spaced; queued delivery only."""
    replayable: bool
    """Whether a replay calls the handler; off for what must not happen twice. Default True."""
    reset: Callable[[], object] | None
    """Called once before the first event of a replay; durable delivery only."""
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] | None
    """Takes the handler when it is subscribed, returns what is called in its place."""


@attrs.frozen(kw_only=True)
class Options:
    """
    The options of a subscription, checked.
    """

    priority: int = 0
    where: Callable[[Any], object] | None = None
    once: bool = False
    weak: bool = False
    retry: RetryPolicy | None = None
    timeout: float | None = None
    idempotency_key: Callable[[Any], object] | None = None
    offload: bool = False
    delivery: Mode = attrs.field(factory=Inline)
    ordered_by: Callable[[Any], object] | None = None
    max_rate: float | None = None
    replayable: bool = True
    reset: Callable[[], object] | None = None
    wrap: Callable[[AnyHandler], AnyHandler] | None = None


_KNOWN = frozenset(SubscriptionOptions.__annotations__)


def check_options(
    options: Mapping[str, Any],
    signature: HandlerSignature,
    event_types: tuple[type, ...],
    name: str,
) -> Options:
    """
    Return *options*, the keywords of `SubscriptionOptions`, as they will be used.

    Raises:
        SubscriptionOptionError: One cannot work for a handler of that signature.
    """
    _check_flags(options, name)
    priority = options.get("priority", 0)
    if not isinstance(priority, int):
        refuse_option("priority", name, f"priority must be an integer, not {priority!r}")
    offload = options.get("offload", False)
    if offload and signature.is_async:
        refuse_option(
            "offload",
            name,
            "offload=True moves a sync handler to a thread; this one is async. Drop it.",
        )
    if signature.connection_keyword is not None:
        _check_connection(options, signature.connection_keyword, name)
    return Options(
        priority=priority,
        where=_check_question("where", options.get("where"), name),
        once=options.get("once", False),
        weak=options.get("weak", False),
        retry=_check_retry(options.get("retry"), name),
        timeout=_check_timeout(options.get("timeout"), signature, offload, name),
        idempotency_key=_reader_of(
            "idempotency_key", options.get("idempotency_key"), event_types, name
        ),
        offload=offload,
        delivery=(mode := _check_mode(options.get("delivery", Inline()), name)),
        ordered_by=_reader_of("ordered_by", getattr(mode, "ordered_by", None), event_types, name),
        max_rate=_check_rate(options, name),
        replayable=options.get("replayable", True),
        reset=_check_reset(options, name),
        wrap=_check_wrap(options.get("wrap"), name),
    )


def _check_connection(options: Mapping[str, Any], keyword: str, name: str) -> None:
    if not isinstance(options.get("delivery"), Durable):
        refuse_option(
            "delivery",
            name,
            f"{keyword} takes the connection whose transaction carries the handler's progress; "
            f"only a durable subscription keeps any. Add delivery=Durable(), or bind your own "
            f"connection with functools.partial.",
        )
    if options.get("offload", False):
        refuse_option(
            "offload",
            name,
            f"offload=True would use the connection that {keyword} takes in another thread. Drop "
            f"it: a durable handler that is not async has a thread already.",
        )


def _check_question(option: str, ask: Any, name: str) -> Callable[[Any], object] | None:
    """
    Check a callable that is asked about an event before the handler is called.
    """
    if ask is None:
        return None
    if not callable(ask):
        refuse_option(option, name, f"{option} must be callable, not {ask!r}")
    try:
        signature = read_signature(ask, f"{option}={getattr(ask, '__qualname__', ask)}")
    except HandlerSignatureError as error:
        refuse_option(option, name, f"{option} is asked with the event alone, but {error}")
    if signature.takes_envelope:
        refuse_option(
            option,
            name,
            f"{option} is asked with the event alone; there is no envelope yet. "
            f"Ask for it in the handler.",
        )
    if signature.is_async:
        refuse_option(
            option,
            name,
            f"{option} is asked before anything is awaited; an async one cannot answer. "
            f"Decide inside the handler instead.",
        )
    return ask  # type: ignore[no-any-return]


def _check_flags(options: Mapping[str, Any], name: str) -> None:
    for option in sorted(set(options) - _KNOWN):
        known = ", ".join(sorted(_KNOWN))
        refuse_option(option, name, f"there is no option {option!r}. Known are {known}.")
    for option in ("once", "weak", "offload", "replayable"):
        if not isinstance(options.get(option, False), bool):
            refuse_option(option, name, f"{option} is True or False, not {options[option]!r}")
    for option in ("once", "weak"):
        if options.get(option, False) and isinstance(options.get("delivery"), Durable):
            refuse_option(
                option,
                name,
                f"{option}=True ends a subscription by itself, and a durable one keeps its place "
                f"for good. Drop {option}=True, or subscribe with delivery=Queued().",
            )


def _check_mode(mode: Any, name: str) -> Mode:
    if isinstance(mode, type) and issubclass(mode, Mode):
        refuse_option(
            "delivery", name, f"delivery={mode.__name__} is a class: write {mode.__name__}()"
        )
    if not isinstance(mode, Mode):
        refuse_option(
            "delivery", name, f"delivery is Inline(), Queued(...) or Durable(...), not {mode!r}"
        )
    return mode


def _check_rate(options: Mapping[str, Any], name: str) -> float | None:
    rate = options.get("max_rate")
    if rate is None:
        return None
    if not _is_number(rate) or not 0 < rate < math.inf:
        refuse_option("max_rate", name, f"max_rate is in calls per second, above 0, not {rate!r}")
    if not isinstance(options.get("delivery"), Queued | Durable):
        refuse_option(
            "max_rate",
            name,
            f"max_rate={rate!r} would hold up the publisher. Add delivery=Queued(), so that "
            f"events wait in a queue of this subscription.",
        )
    return float(rate)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_reset(options: Mapping[str, Any], name: str) -> Callable[[], object] | None:
    reset = options.get("reset")
    if reset is not None and (not callable(reset) or inspect.iscoroutinefunction(reset)):
        refuse_option("reset", name, f"reset is a plain callable without arguments, not {reset!r}")
    if reset is not None and not isinstance(options.get("delivery"), Durable):
        refuse_option("reset", name, "reset= is for replays. Add delivery=Durable(), or drop it.")
    return reset


def _check_wrap(wrap: Any, name: str) -> Any:
    if wrap is not None and (not callable(wrap) or inspect.iscoroutinefunction(wrap)):
        refuse_option(
            "wrap",
            name,
            f"wrap takes the handler once, when it is subscribed, and returns what is called in "
            f"its place: a plain callable does that, {wrap!r} does not.",
        )
    return wrap


def _check_retry(retry: Any, name: str) -> RetryPolicy | None:
    try:
        return None if retry is None else as_policy(retry)
    except TypeError as error:
        raise SubscriptionOptionError(
            f"{name}: retry={error}", subscription=name, option="retry"
        ) from error


def _check_timeout(
    timeout: Any, signature: HandlerSignature, offload: bool, name: str
) -> float | None:
    if timeout is None:
        return None
    if not _is_number(timeout) or not timeout > 0:
        refuse_option("timeout", name, f"timeout is in seconds, above 0, not {timeout!r}")
    if not (signature.is_async or offload):
        refuse_option(
            "timeout",
            name,
            f"timeout={timeout!r} cannot stop a plain sync handler, which runs in the "
            f"publisher's thread. Make it async, or add offload=True to run it in a thread.",
        )
    return float(timeout)


def _reader_of(
    option: str, key: Any, event_types: tuple[type, ...], name: str
) -> Callable[[Any], object] | None:
    """
    Return what reads a key from an event: *key*, or what gets the attribute so called.
    """
    if key is None or callable(key):
        return _check_question(option, key, name)
    if not isinstance(key, str) or not key:
        refuse_option(option, name, f"{option} is an attribute's name or a callable, not {key!r}")
    for event_type in event_types:
        known = _attributes(event_type)
        if known is not None and key.partition(".")[0] not in known:
            refuse_option(
                option,
                name,
                f"{option}={key!r} is no attribute of {event_type.__qualname__}; it has "
                f"{', '.join(each for each in known if not each.startswith('_')) or 'none'}.",
            )
    return attrgetter(key)


def _attributes(event_type: type) -> list[str] | None:
    """
    Return the names of an event's attributes; ``None`` where that is not known.

    Methods are left out: they would be the same, and so no key, for every event.
    """
    for declared in (
        "__attrs_attrs__",
        "__dataclass_fields__",
        "model_fields",
        "__struct_fields__",
        "_fields",
    ):
        fields = getattr(event_type, declared, None)
        if fields is not None:
            break
    else:
        return None
    names = [getattr(each, "name", each) for each in fields]
    others = [name for name in dir(event_type) if name not in names]
    return names + [
        name for name in others if not callable(inspect.getattr_static(event_type, name))
    ]


def refuse_option(option: str, name: str, why: str) -> NoReturn:
    """
    Refuse an option of the subscription *name*, and say why.
    """
    raise SubscriptionOptionError(f"{name}: {why}", subscription=name, option=option)
