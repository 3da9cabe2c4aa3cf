"""
What happened and what would happen: statistics and explanations, as values.

Law: only reads. Asking must not claim a key, use up a ``once`` or call a handler;
a filter is asked, for it is the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from eventbus._beside import beside
from eventbus._event import declaration_of, refuse_no_event, text_of
from eventbus._job import Depth
from eventbus._registry import Registry
from eventbus._routing import Router
from eventbus._subscription import Subscription, spelled
from eventbus.errors import NotAnEventError
from eventbus.idempotency import Claim

__all__ = [
    "DurableStats",
    "Explanation",
    "HandlerTime",
    "Stats",
    "SubscriptionStats",
    "explain",
    "stats_of",
]


@attrs.frozen(kw_only=True)
class HandlerTime:
    """
    Time spent in a handler, over its attempts, those that failed among them.

    Attributes:
        count: How many attempts were measured.
        total: Seconds in all of them.
        max: Seconds in the longest.

    .. versionadded:: 0.1
    """

    count: int
    total: float
    max: float


@attrs.frozen(kw_only=True)
class DurableStats:
    """
    Where a durable subscription stands in the log, whoever consumes it.

    Attributes:
        offset: Everything up to here is finished.
        lag: How many events of the log are not finished, or not looked at.
        pending: How many of them were taken up and are not finished.
        dead: How many dead letters it has.
        state: What this process does: ``idle``: the bus was not started. ``consuming``.
            ``standby``: another process consumes it, and this one waits to take over.
            ``stopped``: at a dead letter, or at an event that cannot be read. ``closed``.
        owner: The process that consumes it, or did last; ``None`` where there is none.

    .. versionadded:: 0.1
    """

    offset: int
    lag: int
    pending: int
    dead: int
    state: str
    owner: str | None


@attrs.frozen(kw_only=True)
class SubscriptionStats:
    """
    What was counted for one subscription.

    Every published event is one of: delivered, failed, duplicate, missed, dropped,
    undelivered; or, in a queue, one of the *depth*, *scheduled* or *in_flight*. While an
    inline handler runs, its event counts as delivered.

    Attributes:
        published: Events that came its way; one redriven came once more.
        delivered: Those whose handler succeeded.
        failed: Those given up on.
        retried: Attempts that failed and were followed by another.
        duplicate: Those an idempotency key kept from running again.
        dead_lettered: Those of the failed ones that were kept as dead letters.
        missed: Those it was passed by with: filtered out, cancelled or interrupted.
        dropped: Those its full queue gave up, by its overflow policy.
        undelivered: Those not handled when the bus was closed.
        depth: Those that wait in its queue now.
        scheduled: Those that wait for their next attempt, or for a key to become free.
        in_flight: Those being handled now, by a queue's workers.
        lag: How long the oldest of those in the queue has been waiting, in seconds.
        time: Time spent in the handler, on a bus with ``timings=True``.
        durable: Where a durable subscription stands in the log; the other numbers count
            what came to its handlers in this process.

    .. versionadded:: 0.1
    """

    published: int
    delivered: int
    failed: int
    retried: int
    duplicate: int
    dead_lettered: int
    missed: int
    dropped: int
    undelivered: int
    depth: int
    scheduled: int
    in_flight: int
    lag: float
    time: HandlerTime | None
    durable: DurableStats | None = None


@attrs.frozen(kw_only=True)
class Stats:
    """
    What was counted on a bus.

    Counting takes no lock: on a free-threaded build of Python, counts of events
    published at the same instant may be lost.

    Attributes:
        published: Events published, publisher's duplicates not among them.
        unhandled: Those for which no handler was called.
        duplicate: Events the publisher's own idempotency key turned away.
        scheduled: Publishes that are due later.
        subscriptions: By name; those that have ended are among them while their queues
            still have something of theirs.

    .. versionadded:: 0.1
    """

    published: int
    unhandled: int
    duplicate: int
    scheduled: int
    subscriptions: Mapping[str, SubscriptionStats]


def stats_of(
    registry: Registry,
    router: Router,
    *,
    duplicates: int,
    timed: bool,
    scheduled: int,
    depths: Mapping[Subscription, Depth],
    places: Mapping[Subscription, DurableStats],
) -> Stats:
    """
    Count what has happened so far.
    """
    ending = [each for each in depths if not each.is_live and registry.named(each.name) is None]
    published, unhandled, routed = router.totals(ending)
    return Stats(
        published=published,
        unhandled=unhandled,
        duplicate=duplicates,
        scheduled=scheduled,
        subscriptions={
            each.name: attrs.evolve(
                _count(each, routed.get(each, 0), timed, depths.get(each, _NO_QUEUE)),
                durable=places.get(each),
            )
            for each in (*registry, *ending)
        },
    )


def _count(subscription: Subscription, routed: int, timed: bool, queue: Depth) -> SubscriptionStats:
    counted = subscription.counters
    elsewhere = counted.missed + counted.failed + counted.duplicate
    elsewhere += queue.pending + queue.dropped + queue.undelivered
    return SubscriptionStats(
        published=routed,
        delivered=routed - elsewhere,
        failed=counted.failed,
        retried=counted.retried,
        duplicate=counted.duplicate,
        dead_lettered=counted.dead_lettered,
        missed=counted.missed,
        dropped=queue.dropped,
        undelivered=queue.undelivered,
        depth=queue.waiting,
        scheduled=queue.scheduled,
        in_flight=queue.in_flight,
        lag=queue.lag,
        time=HandlerTime(count=counted.calls, total=counted.seconds, max=counted.slowest)
        if timed
        else None,
    )


_NO_QUEUE = Depth()


@attrs.frozen(kw_only=True)
class Explanation:
    """
    Whether one subscription's handler would be called for an event, and why.

    Attributes:
        subscription: Its name.
        called: Whether the handler would be called.
        reason: The rule that decides, in words.

    .. versionadded:: 0.1
    """

    subscription: str
    called: bool
    reason: str

    def __str__(self) -> str:
        return f"{'✓' if self.called else '✗'} {self.subscription}: {self.reason}"


# Returns what a claim of that scope and key would meet; `None` where the key is free.
Look = Callable[[str, str], Claim | None]


def explain(
    event: object,
    registry: Registry,
    *,
    is_closed: bool = False,
    keys: object = None,
    now: float = 0.0,
) -> tuple[Explanation, ...]:
    """
    Say of each subscription whether it would be called: callees in order, then the rest.

    Args:
        event: What would be published; or its class, and what filters and keys say of such
            an event is left open.
        registry: Where the subscriptions are.
        is_closed: The bus of the registry takes no more events.
        keys: The store of keys, asked if it can tell without a claim.
        now: What the monotonic clock shows.

    Raises:
        NotAnEventError: It can be no event.
    """
    look = beside(keys, "claim", "look")
    look = None if look is None else partial(look, now=now)
    asked = _Asked(event, *_read(event), is_closed=is_closed, look=look)
    matching = registry.matching(asked.event_type)
    met = set(matching)
    return (
        *(_explain_match(asked, each) for each in matching),
        *(_explain_other(asked.event_type, each) for each in registry if each not in met),
    )


@attrs.frozen
class _Asked:
    """
    What would be published, and what is known of the bus.
    """

    event: Any
    event_type: type
    is_open: bool  # only its class is known
    is_closed: bool
    look: Look | None


def _read(event: object) -> tuple[type, bool]:
    """
    Return the class that an event is of, and whether it was all that is given.
    """
    is_open = issubclass(type(event), type)
    event_type: Any = event if is_open else type(event)
    try:
        refuse_no_event(event_type)
    except NotAnEventError:
        raise NotAnEventError(
            f"{event!r} can be no event. Give explain() one that might be published, or the "
            f"class of such events."
        ) from None
    return event_type, is_open


def _explain_match(asked: _Asked, subscription: Subscription) -> Explanation:
    rule = f"subscribed to {spelled(subscription.event_types)}"
    rule += ", from the log" if subscription.is_durable else ""
    rule += ", in its queue" if subscription.is_queued else ""
    rule += ", once it is resumed" if subscription.is_paused else ""
    condition, refusal = "", None
    if asked.is_closed:
        refusal = "the bus is closed"
    elif subscription.handler is None:
        refusal = "its handler was held weakly and is gone"
    elif subscription.is_durable and not declaration_of(asked.event_type).logged:
        refusal = "it takes its events from the log, and this one is declared with logged=False"
    elif asked.is_open:
        condition = _left_open(subscription)
    else:
        condition, refusal = _met(asked, subscription)
    return Explanation(
        subscription=subscription.name, called=refusal is None, reason=refusal or rule + condition
    )


def _left_open(subscription: Subscription) -> str:
    """
    Return on what conditions events of a class reach a subscription.
    """
    options = subscription.options
    text = "" if options.where is None else ", if its filter (where=) lets it pass"
    return text + ("" if options.idempotency_key is None else ", unless its key has been handled")


def _met(asked: _Asked, subscription: Subscription) -> tuple[str, str | None]:
    """
    Return on what condition filter and key let an event pass, and why they do not, if so.
    """
    options = subscription.options
    if options.where is not None and (refusal := _refused(options.where, asked.event)) is not None:
        return "", refusal
    if options.idempotency_key is None:
        return "", None
    return _keyed(asked, subscription.name, options.idempotency_key)


def _refused(where: Callable[[object], object], event: object) -> str | None:
    try:
        return None if where(event) else "its filter (where=) says no"
    except Exception as error:
        return f"its filter (where=) raises {error!r}, which fails the delivery"


def _keyed(asked: _Asked, name: str, read: Callable[[object], object]) -> tuple[str, str | None]:
    try:
        if (key := text_of(read(asked.event))) is None:
            return "", None
        if asked.look is None:
            return f", unless key {key!r} has been handled", None
        claim = asked.look(name, key)
    except Exception as error:
        return "", f"its idempotency key raises {error!r}, which fails the delivery"
    if claim is None:
        return f", and key {key!r} is free", None
    if claim.state == "done":
        return "", f"key {key!r} has been handled"
    return f", unless another delivery of key {key!r}, under way, succeeds", None


def _explain_other(event_type: type, subscription: Subscription) -> Explanation:
    types, name = subscription.event_types, event_type.__qualname__
    reason = f"subscribed to {spelled(types)}, which {name} is not"
    if any(each.__qualname__ == name for each in types):
        reason = _told_apart(types, event_type)
    return Explanation(subscription=subscription.name, called=False, reason=reason)


def _told_apart(types: tuple[type, ...], event_type: type) -> str:
    """
    Write with their modules what would be spelled alike, and whence that comes.
    """
    name, module = event_type.__qualname__, event_type.__module__
    modules = [each.__module__ for each in types if each.__qualname__ == name]
    shown = " | ".join(
        f"{each.__module__}.{name}" if each.__qualname__ == name else each.__qualname__
        for each in types
    )
    why = (
        "Was the code that makes it run again since?"
        if module in modules
        else "Is one file imported under two names?"
    )
    return (
        f"subscribed to {shown}, which this {module}.{name} is not: two classes of one name. {why}"
    )
