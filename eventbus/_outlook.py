"""
What becomes of events that a durable subscription has yet to take from the log.

Law: only reads, and asks the store only what this process cannot know.
"""

from __future__ import annotations

from contextlib import suppress

import attrs

from eventbus._consumer import Consumer
from eventbus._event import declaration_of
from eventbus._holder import holder_of
from eventbus._insight import Explanation
from eventbus.kept_letters import Selection
from eventbus.store import Store

__all__ = ["looked_ahead"]


def looked_ahead(told: Explanation, event: object, consumer: Consumer, store: Store) -> Explanation:
    """
    Return an explanation with what becomes of the event once it is in the log.

    Args:
        told: Says that the subscription is to get it.
        event: What would be published, or its class.
        consumer: Consumes the subscription in this process, or will.
        store: Where its dead letters are kept.
    """
    condition, refusal = "", _stop(consumer, store)
    if refusal is None and consumer.mode.on_dead_letter == "hold_key":
        condition, refusal = _hold(consumer, store, event)
    if refusal is not None:
        return attrs.evolve(told, called=False, reason=refusal)
    if consumer.awaits_start:
        condition += ", once the bus is started"
    elif consumer.state == "standby":
        condition += ", by the process that consumes it"
    return attrs.evolve(told, reason=told.reason + condition)


def _stop(consumer: Consumer, store: Store) -> str | None:
    if consumer.why is not None:
        return f"it has stopped: {consumer.why}"
    if consumer.mode.on_dead_letter != "stop" or consumer.state == "consuming":
        return None
    found = store.letters.query(Selection(subscription=consumer.name), limit=1)
    return f"it has stopped behind dead letter {found[0].id}" if found else None


def _hold(consumer: Consumer, store: Store, event: object) -> tuple[str, str | None]:
    if isinstance(event, type):
        return ", unless its key is held behind a dead letter", None
    key = None
    with suppress(Exception):  # the event goes on without a key
        key = declaration_of(type(event)).key_of(event)
    if key is None or not consumer.may_hold(key):
        return "", None
    letter = holder_of(store.letters, consumer.name, key)
    return "", None if letter is None else f"key {key!r} is held behind dead letter {letter.id}"
