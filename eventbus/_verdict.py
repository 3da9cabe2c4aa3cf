"""
What follows an attempt: success, another attempt, a duplicate, a dead letter.

Law: plain code on values, of no colour: nothing here calls a handler or waits.
Each terminal failure passes through `Verdict.bury`, and only once.
"""

from __future__ import annotations

import sys
from typing import Any

import attrs

from eventbus._abort import running_loop
from eventbus._beside import beside
from eventbus._furniture import Furniture
from eventbus._logger import logger
from eventbus._receipt import Failure, Receipt, ancestry, free_key
from eventbus._subscription import Subscription
from eventbus.dead_letter import AttemptFailure, DeadLetter, DeadLetters, story
from eventbus.errors import DeadLetterNotFoundError, GiveUp, PublishCycleError, RetryAfter
from eventbus.idempotency import Claim
from eventbus.instrumentation import DeadLettered, Delivered, Duplicate, Failed, Retried
from eventbus.retry import Attempt, checked_delay, no_retry

__all__ = ["Trial", "Verdict", "cycle_at_limit", "log_failure"]


@attrs.define(eq=False)
class Trial:
    """
    The attempts of one delivery so far.

    Attributes:
        receipt: The publish it belongs to.
        key: The idempotency key, if any.
        is_keyed: It has been read.
        asked: What came of asking for it, until that is looked at.
        claim: What holds the key.
        began: When the first attempt began, on the monotonic clock.
        called: When the attempt under way began, where that is measured.
        number: The attempt under way, from 1; 0 when it never came to a call.
        stories: What became of the attempts before.
        is_queued: The publish is over: its receipt is not written on any more.
        is_admitted: A queued one holds its key, if it has one.
        is_returned: A worker has ended that may have claimed the key for it.
    """

    receipt: Receipt
    key: str | None = None
    claim: Claim | None = None
    began: float = 0.0
    called: float | None = None
    number: int = 1
    stories: tuple[AttemptFailure, ...] = ()
    is_queued: bool = False
    is_admitted: bool = False
    is_returned: bool = False
    is_keyed: bool = False
    asked: Claim | Exception | None = None

    @property
    def redriven(self) -> DeadLetter | None:
        """
        The dead letter this delivery redrives.
        """
        return (self.receipt.options or {}).get("redriven")

    @property
    def total(self) -> int:
        """
        How often the handler has been called for this event, redrives included.
        """
        redriven = self.redriven
        return self.number + (redriven.attempts if redriven is not None else 0)

    def tell(self, error: Exception, furniture: Furniture) -> None:
        """
        Add the failed attempt to the story; the envelope's time comes before it.
        """
        self.receipt.envelope  # noqa: B018 - made now, if it was not yet
        self.stories += (story(self.total, error, furniture.now()),)


class Verdict:
    """
    Decides for one subscription, and sees to it that everybody learns of it.
    """

    def __init__(self, subscription: Subscription, furniture: Furniture) -> None:
        self.subscription = subscription
        self.furniture = furniture
        self.name = subscription.name
        self.counters = subscription.counters
        self.options = subscription.options
        policy = furniture.retry if self.options.retry is None else self.options.retry
        self.policy = None if policy is no_retry else policy

    def judge(self, trial: Trial, error: Exception) -> float | None:
        """
        Decide what follows a failed attempt, and note it down.

        The key is held on to until the next attempt has begun.

        Returns:
            Seconds to wait before the next attempt, or ``None``: that was the last.
        """
        furniture, now = self.furniture, self.furniture.clock.monotonic()
        if furniture.timings and trial.called is not None:
            self.counters.took(now - trial.called)
        delay = self._next_delay(Attempt(trial.number, error, now - trial.began), trial.receipt)
        if delay is None:
            self.bury(trial, error)
            return None
        trial.tell(error, furniture)
        if trial.claim is not None:
            try:
                furniture.idempotency.renew(trial.claim, now=now + delay)
            except Exception:
                self.unkept(trial.key, "renewed")
        self.counters.retried += 1
        if furniture.observers:
            furniture.notify(
                Retried(
                    envelope=trial.receipt.envelope,
                    subscription=self.subscription.name,
                    attempt=trial.total,
                    exception=error,
                    delay=delay,
                )
            )
        trial.number += 1
        return delay

    def _next_delay(self, attempt: Attempt, receipt: Receipt) -> float | None:
        error, policy = attempt.exception, self.policy
        if policy is None or isinstance(error, GiveUp) or cycle_of(receipt, error) is not None:
            return None
        if isinstance(error, RetryAfter):
            most, limit = getattr(policy, "attempts", None), getattr(policy, "max_elapsed", None)
            is_spent = most is not None and attempt.number >= most
            is_late = limit is not None and attempt.elapsed + error.seconds > limit
            if most is not None or limit is not None:
                return None if is_spent or is_late else float(error.seconds)
        try:
            delay = checked_delay(policy, attempt)
            return error.seconds if delay is not None and isinstance(error, RetryAfter) else delay
        except Exception as broken:
            error.add_note(f"its retry policy {policy!r} raised {broken!r}, which ends the retries")
            return None

    def succeeded(self, trial: Trial, duration: float) -> None:
        """
        Note a success: the key is recorded, the observers are told.
        """
        furniture = self.furniture
        self.complete(trial)
        if furniture.timings:
            self.counters.took(duration)
        if furniture.observers:
            furniture.notify(
                Delivered(
                    envelope=trial.receipt.envelope,
                    subscription=self.subscription.name,
                    attempt=trial.total,
                    duration=duration,
                )
            )

    def complete(self, trial: Trial) -> None:
        """
        Record the key. A store that fails is logged, and hides nothing.
        """
        furniture = self.furniture
        if trial.claim is not None:
            try:
                complete = self._in_time("complete")
                complete(trial.claim, now=furniture.clock.monotonic())
            except Exception:
                self.unkept(trial.key, "recorded")
            trial.claim = None

    def fail(self, receipt: Receipt, error: Exception) -> None:
        """
        Give up a delivery that has no policies after its only attempt.
        """
        self.bury(Trial(receipt), error)

    def bury(self, trial: Trial, error: Exception) -> None:
        """
        Give a delivery up: receipt, dead letter, log and observers learn of it.

        Raises:
            PublishCycleError: The failure is a publish cycle's, which no handler
                on the way out may hide.
        """
        receipt, furniture, name = trial.receipt, self.furniture, self.subscription.name
        self.let_go(trial)
        if not trial.is_queued and (cycle := cycle_of(receipt, error)) is not None:
            raise cycle from (None if cycle is error else error)
        trial.tell(error, furniture)
        if trial.is_queued:
            free_key(receipt)  # the publish is over, and has not
        else:
            receipt.failures += (Failure(name, error, trial.total),)
        self.counters.failed += 1
        letter = self._keep(trial)
        if furniture.logs_queued if trial.is_queued else furniture.logs_failures:
            log_failure(receipt, Failure(name, error, trial.total))
        if not furniture.observers:
            return
        envelope = receipt.envelope
        furniture.notify(
            Failed(envelope=envelope, subscription=name, attempts=trial.total, exception=error)
        )
        if letter is not None:
            furniture.notify(
                DeadLettered(
                    envelope=envelope, subscription=name, letter_id=letter.id, reason=letter.reason
                )
            )

    def let_go(self, trial: Trial) -> None:
        """
        Free the key. A store that fails is logged, and hides nothing; the lease ends.
        """
        if trial.claim is None:
            return
        try:
            self._in_time("release")(trial.claim)
        except Exception:
            self.unkept(trial.key, "released")

    def _in_time(self, verb: str) -> Any:
        """
        Return what does that to a key: where a loop runs, without a wait, if the store can.
        """
        store = self.furniture.idempotency
        later = beside(store, verb, f"{verb}_later")
        return getattr(store, verb) if later is None or running_loop() is None else later

    def unkept(self, key: str | None, what: str) -> None:
        """
        Log that the store of keys failed: the outcome of the handler stands all the same.
        """
        logger().exception(
            "key %r of %s could not be %s; its lease ends by itself",
            key,
            self.subscription.name,
            what,
        )

    def _keep(self, trial: Trial) -> DeadLetter | None:
        """
        Keep the dead letter. A store that fails is logged, and hides nothing.
        """
        furniture, redriven = self.furniture, trial.redriven
        try:
            if redriven is not None:
                letter = _again(redriven, trial)
                is_kept = _replace(furniture.dead_letters, letter)
            else:
                letter = _letter(trial, self.subscription.name, furniture.clock.new_id())
                is_kept = furniture.dead_letters.add(letter)
        except Exception:
            logger().exception(
                "the dead letter of %s for event %s could not be kept",
                self.subscription.name,
                trial.receipt.id,
            )
            return None
        self.counters.dead_lettered += is_kept and redriven is None
        return letter if is_kept else None

    def suppressed(self, trial: Trial, claim: Claim) -> None:
        """
        Note a duplicate: another delivery of its key has succeeded, or is under way.
        """
        receipt = trial.receipt
        if not trial.is_queued:
            receipt.duplicate = True
            receipt.duplicate_of = receipt.duplicate_of or claim.event_id
            receipt.missed += 1
        self.counters.duplicate += 1
        if self.furniture.observers:
            self.furniture.notify(
                Duplicate(
                    envelope=receipt.envelope,
                    subscription=self.subscription.name,
                    key=trial.key or "",
                    first_id=claim.event_id,
                )
            )


def _letter(trial: Trial, subscription: str, letter_id: str) -> DeadLetter:
    return DeadLetter(
        id=letter_id,
        envelope=trial.receipt.envelope,
        subscription=subscription,
        reason="failed",
        attempts=trial.total,
        failures=trial.stories,
        first_failure=trial.stories[0].time,
        last_failure=trial.stories[-1].time,
        idempotency_key=trial.key,
    )


def _again(redriven: DeadLetter, trial: Trial) -> DeadLetter:
    return attrs.evolve(
        redriven,
        reason="failed",  # whatever it was kept for at first
        attempts=trial.total,
        failures=redriven.failures + trial.stories,
        last_failure=trial.stories[-1].time,
        redrives=redriven.redrives + 1,
    )


def _replace(letters: DeadLetters, letter: DeadLetter) -> bool:
    try:
        letters.replace(letter)
    except DeadLetterNotFoundError:  # an overflow dropped it while it was redriven
        return letters.add(letter)
    return True


def log_failure(receipt: Receipt, failure: Failure) -> None:
    """
    Log a terminal failure, with its traceback.
    """
    envelope = receipt.envelope
    logger().error(
        "%s failed on %s %s after %d attempt%s: %r",
        failure.subscription,
        envelope.name,
        envelope.id,
        failure.attempts,
        "" if failure.attempts == 1 else "s",
        failure.exception,
        exc_info=failure.exception,
        extra={
            "subscription": failure.subscription,
            "event_name": envelope.name,
            "event_id": envelope.id,
            "attempts": failure.attempts,
        },
    )


def cycle_of(receipt: Receipt, error: Exception) -> PublishCycleError | None:
    """
    Return the error that says which events publish each other, if that is what failed.

    Args:
        receipt: The innermost publish.
        error: What ended its handler. A `RecursionError` is a cycle's if an event's
            class comes twice in the chain, and the handler itself is not deep in calls
            of its own: then it is a failure like any other.
    """
    if isinstance(error, PublishCycleError) or not isinstance(error, RecursionError):
        return error if isinstance(error, PublishCycleError) else None
    depth, traceback = 0, error.__traceback__
    while traceback is not None:
        depth, traceback = depth + 1, traceback.tb_next
    classes: list[type] = [type(each.event) for each in ancestry(receipt)]
    is_cycle = len(set(classes)) < len(classes) and depth < sys.getrecursionlimit() // 2
    return cycle_at_limit(receipt) if is_cycle else None


def cycle_at_limit(receipt: Receipt) -> PublishCycleError:
    """
    Return the error that shows the chain of publishes down to *receipt*.
    """
    chain: list[str] = [each.route.name for each in ancestry(receipt)][::-1]
    shown: list[Any] = chain if len(chain) <= 12 else [*chain[:8], "…", *chain[-3:]]
    return PublishCycleError(
        f"handlers publish each other's events, {len(chain)} deep: {' → '.join(shown)}. "
        f"Break the cycle; if it ends by itself, raise EventBus(max_depth=...).",
        chain=chain,
    )
