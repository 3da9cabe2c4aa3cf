"""
What never came to a call: its dead letter, and who is told.

Law: a letter of this kind pushes out none that tells of a failure: it is kept if there
is room. A store or an observer that fails hides nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from eventbus._beside import beside
from eventbus._furniture import Furniture
from eventbus._logger import logger
from eventbus._receipt import Receipt
from eventbus._subscription import Subscription
from eventbus._verdict import Trial
from eventbus.dead_letter import DeadLetter, DeadLetters, Reason
from eventbus.instrumentation import DeadLettered, Dropped, Undelivered

__all__ = ["gathering", "give_up", "keep_all", "write_off"]

_Gathered = tuple[Furniture, list[DeadLetter]]
_here = threading.local()  # what is gathered in this thread, and for which bus


@contextmanager
def gathering(furniture: Furniture) -> Generator[list[DeadLetter]]:
    """
    Gather the letters of what this thread writes off in the block, for `keep_all`.

    Where thousands are given up at once, each would else be a commit of its own. A store that
    keeps but one at a time has them at once, as ever.
    """
    letters, around = list[DeadLetter](), getattr(_here, "gathered", None)
    if beside(furniture.dead_letters, "add", "add_all") is not None:
        _here.gathered = (furniture, letters)
    try:
        yield letters
    finally:
        _here.gathered = around


def keep_all(furniture: Furniture, letters: list[DeadLetter]) -> None:
    """
    Keep the letters that were gathered, and tell the observers. A store that fails is logged.
    """
    if not letters:
        return
    store: Any = furniture.dead_letters
    try:
        kept = store.add_all(letters)
    except Exception:
        names = ", ".join(sorted({each.subscription for each in letters}))
        logger().exception("%d dead letters of %s could not be kept", len(letters), names)
        return
    for each in kept if furniture.observers else ():
        furniture.notify(
            DeadLettered(
                envelope=each.envelope,
                subscription=each.subscription,
                letter_id=each.id,
                reason=each.reason,
            )
        )


def write_off(furniture: Furniture, subscription: str, trial: Trial, reason: Reason) -> None:
    """
    Keep what will not be handled as a dead letter, if there is room, and tell the observers.
    """
    letter = _kept(furniture, subscription, trial, reason)
    if not furniture.observers:
        return
    envelope = trial.receipt.envelope
    occurrence = Dropped if reason == "dropped" else Undelivered
    furniture.notify(occurrence(envelope=envelope, subscription=subscription))
    if letter is not None:
        furniture.notify(
            DeadLettered(
                envelope=envelope, subscription=subscription, letter_id=letter.id, reason=reason
            )
        )


def give_up(furniture: Furniture, subscriptions: Iterable[Subscription], receipt: Receipt) -> None:
    """
    Keep an event that is not published any more for those *subscriptions* that would get it.

    Where it is in the log, durable ones still do.
    """
    is_logged = receipt.envelope.offset is not None
    for each in subscriptions:
        if _passes(each, receipt.event) and not (is_logged and each.is_durable):
            trial = Trial(receipt, number=0, is_queued=True)
            write_off(furniture, each.name, trial, "undelivered")


def _passes(subscription: Subscription, event: object) -> bool:
    where = subscription.options.where
    try:
        return where is None or bool(where(event))
    except Exception:
        return True  # a redrive asks again


def _kept(
    furniture: Furniture, subscription: str, trial: Trial, reason: Reason
) -> DeadLetter | None:
    try:
        # First: where thousands are dropped, writing letters would take longer than handling.
        if not _has_room(furniture.dead_letters):
            return None
        letter = _letter(furniture, subscription, trial, reason)
        gathered: _Gathered | None = getattr(_here, "gathered", None)
        # Not what an observer has another bus write off meanwhile.
        if gathered is not None and gathered[0] is furniture:
            gathered[1].append(letter)
            return None  # observers are told of it when it is kept
        return letter if furniture.dead_letters.add(letter) else None
    except Exception:
        logger().exception(
            "the dead letter of %s for event %s could not be kept", subscription, trial.receipt.id
        )
        return None


def _letter(furniture: Furniture, subscription: str, trial: Trial, reason: Reason) -> DeadLetter:
    now, stories = furniture.now(), trial.stories
    return DeadLetter(
        id=furniture.clock.new_id(),
        envelope=trial.receipt.envelope,
        subscription=subscription,
        reason=reason,
        attempts=trial.number,
        failures=stories,
        first_failure=stories[0].time if stories else now,
        last_failure=now,
        idempotency_key=trial.key,
    )


def _has_room(letters: DeadLetters) -> bool:
    capacity: int | None = getattr(letters, "capacity", None)
    return capacity is None or len(letters) < capacity
