"""
What happened and what would happen: statistics and explanations, as values.

Law: only reads. Asking must not claim a key, use up a ``once`` or call a handler;
a filter is asked, for it is the question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from eventbus._event import refuse_no_event
from eventbus._registry import Registry
from eventbus._routing import Router
from eventbus._subscription import Subscription, spelled

__all__ = ["Explanation", "HandlerTime", "Stats", "SubscriptionStats", "explain", "stats_of"]


@attrs.frozen(kw_only=True)
class HandlerTime:
    """
    Time spent in a handler, over its successful attempts.

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
class SubscriptionStats:
    """
    What was counted for one subscription.

    Every published event is, in the end, one of: delivered, failed, duplicate, missed.
    While an event is being delivered it counts as delivered.

    Attributes:
        published: Events that came its way; one redriven came once more.
        delivered: Those whose handler succeeded.
        failed: Those given up on.
        retried: Attempts that failed and were followed by another.
        duplicate: Those an idempotency key kept from running again.
        dead_lettered: Those kept as dead letters.
        missed: Those it was passed by with: filtered out, cancelled or interrupted.
        time: Time spent in the handler, on a bus with ``timings=True``.

    .. versionadded:: 0.1
    """

    published: int
    delivered: int
    failed: int
    retried: int
    duplicate: int
    dead_lettered: int
    missed: int
    time: HandlerTime | None


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
        subscriptions: By name.

    .. versionadded:: 0.1
    """

    published: int
    unhandled: int
    duplicate: int
    subscriptions: Mapping[str, SubscriptionStats]


def stats_of(registry: Registry, router: Router, *, duplicates: int, timed: bool) -> Stats:
    """
    Count what has happened so far.
    """
    published, unhandled, routed = router.totals()
    return Stats(
        published=published,
        unhandled=unhandled,
        duplicate=duplicates,
        subscriptions={each.name: _count(each, routed.get(each, 0), timed) for each in registry},
    )


def _count(subscription: Subscription, routed: int, timed: bool) -> SubscriptionStats:
    counted = subscription.counters
    return SubscriptionStats(
        published=routed,
        delivered=routed - counted.missed - counted.failed - counted.duplicate,
        failed=counted.failed,
        retried=counted.retried,
        duplicate=counted.duplicate,
        dead_lettered=counted.dead_lettered,
        missed=counted.missed,
        time=HandlerTime(count=counted.calls, total=counted.seconds, max=counted.slowest)
        if timed
        else None,
    )


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


def explain(event: object, registry: Registry) -> tuple[Explanation, ...]:
    """
    Say of each subscription whether it would be called: callees in order, then the rest.

    Raises:
        NotAnEventError: Publishing it would be refused.
    """
    refuse_no_event(type(event))
    matching = registry.matching(type(event))
    met = set(matching)
    return (
        *(_explain_match(event, each) for each in matching),
        *(_explain_other(event, each) for each in registry if each not in met),
    )


def _explain_match(event: object, subscription: Subscription) -> Explanation:
    options = subscription.options
    rule = f"subscribed to {spelled(subscription.event_types)}"
    refusal = None
    if subscription.handler is None:
        refusal = "its handler was held weakly and is gone"
    elif options.where is not None:
        refusal = _asked(options.where, event)
    if refusal is None and options.idempotency_key is not None:
        try:
            key = options.idempotency_key(event)
        except Exception as error:
            refusal = f"its idempotency key raises {error!r}, which fails the delivery"
        else:
            rule += "" if key is None else f", unless key {str(key)!r} has been handled"
    return Explanation(
        subscription=subscription.name, called=refusal is None, reason=refusal or rule
    )


def _asked(where: Callable[[object], object], event: object) -> str | None:
    try:
        return None if where(event) else "its filter (where=) says no"
    except Exception as error:
        return f"its filter (where=) raises {error!r}, which fails the delivery"


def _explain_other(event: object, subscription: Subscription) -> Explanation:
    return Explanation(
        subscription=subscription.name,
        called=False,
        reason=f"subscribed to {spelled(subscription.event_types)}, "
        f"which {type(event).__qualname__} is not",
    )
