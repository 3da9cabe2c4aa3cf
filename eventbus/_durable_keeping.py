"""
One logged event to its handler: what a worker performs, and what the consumer is told.

Law: as `_keeping`, whose workers and policies it shares. What becomes of an event is told
to the consumer, which writes it down; a handler that asks for a connection writes it down
itself, in the transaction that it is lent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, cast

from eventbus._commitment import Loan
from eventbus._consumer import Consumer
from eventbus._deferred import unheard
from eventbus._entry import Entry, LoggedReceipt
from eventbus._envelope import here
from eventbus._event import text_of
from eventbus._furniture import Furniture
from eventbus._job import Job, Later, Worker
from eventbus._keeping import QueuedDelivery
from eventbus._logger import logger
from eventbus._receipt import KnownId
from eventbus._route import Folded
from eventbus._stored_letters import failures_to_json
from eventbus._subscription import Subscription
from eventbus._verdict import Trial
from eventbus.dead_letter import DeadLetter, Reason
from eventbus.idempotency import Claim
from eventbus.instrumentation import DeadLettered
from eventbus.kept_letters import HELD, KeptLetter
from eventbus.progress import Handled
from eventbus.retry import Attempt

if TYPE_CHECKING:
    from eventbus._receipt import Receipt

__all__ = ["DurableDelivery"]

AnyCall = Callable[[Any], Any]

# Seconds until a handler is called again whose writes the store did not take.
_PAUSE = 0.1


class DurableDelivery(QueuedDelivery):
    """
    A durable subscription, folded: what its workers do.

    Args:
        subscription: The subscription.
        furniture: What to work with.
        target: Called with the event: the handler inside its ``wrap`` hooks.
        consumer: What is told.
    """

    def __init__(
        self,
        subscription: Subscription,
        furniture: Furniture,
        target: Callable[[Any], Any],
        consumer: Consumer,
    ) -> None:
        super().__init__(subscription, furniture, target, consumer.queue)
        self.consumer = consumer
        if subscription.signature.connection_keyword is not None:
            self._call = self._transacted(self._call)
            self._acall = self._atransacted(self._acall)

    def fold(self) -> Folded:
        """
        Begin to keep the queue. No publish calls what is returned: events come by the log.
        """
        self.queue.keeper = self
        self.consumer.delivery = self
        return Folded(self.deliver, self.adeliver, self._settle, self.fail)

    # -- a handler that asks for a connection: the twins ---------------------------------------

    def _transacted(self, call: AnyCall) -> AnyCall:
        def transacted(event: Any) -> None:
            receipt = here.get()
            with (
                self._loan_to(receipt) as loan,
                self.consumer.transaction(is_redrive=loan.is_redrive) as transaction,
                loan.lent(transaction),
            ):
                if (result := call(event)) is not None:
                    self._settle(result)
            if loan.is_redrive:
                self.consumer.look_again()  # the letter is gone by the same transaction
            if (afterwards := receipt.afterwards) is not None:
                with unheard(self.name):
                    afterwards.publish()

        return transacted

    def _atransacted(self, call: AnyCall) -> AnyCall:
        async def transacted(event: Any) -> None:
            receipt = here.get()
            with self._loan_to(receipt) as loan:
                async with self.consumer.atransaction(is_redrive=loan.is_redrive) as transaction:
                    with loan.lent(transaction):
                        if isawaitable(result := call(event)):
                            await result
            if loan.is_redrive:
                self.consumer.look_again()  # the letter is gone by the same transaction
            if (afterwards := receipt.afterwards) is not None:
                with unheard(self.name):
                    await afterwards.apublish()

        return transacted

    def _loan_to(self, receipt: Receipt) -> Loan:
        return Loan(receipt, self._remember, self.furniture.clock.monotonic)

    # -- what comes before a call, and after it ------------------------------------------------

    def _admitted(self, job: Job, worker: Worker) -> Trial | Later | None:
        entry, consumer = _entry(job.receipt), self.consumer
        if not (consumer.hands_out and consumer.knows(entry)):
            consumer.back(entry)
            return None
        if consumer.holds_back(entry):
            consumer.hold(entry, self.held_letter(job.receipt))
            return None
        if not entry.is_begun:
            return self._begin(job, entry)
        assert job.trial is not None  # every job from the log has one
        job.trial.number = entry.number
        admitted = super()._admitted(job, worker)
        if isinstance(admitted, Later):
            entry.is_asleep = True
            consumer.asleep(entry)
        elif admitted is None:
            if not entry.is_over:
                consumer.done(entry)
        else:
            if entry.is_asleep:
                entry.is_asleep = False
                consumer.awake(entry)
            self._look_back(admitted)
            entry.trial, entry.is_unstored = admitted, False
        return admitted

    def _is_to_ask(self, job: Job) -> bool:
        entry, consumer = _entry(job.receipt), self.consumer
        is_next = entry.is_begun and consumer.hands_out and not consumer.holds_back(entry)
        return is_next and super()._is_to_ask(job)

    def contested(self, trial: Trial) -> Claim | None:
        """
        Claim the trial's key, also from the very delivery that was begun before a crash.
        """
        if trial.redriven is not None and trial.receipt.options is not None:
            trial.receipt.options["trial"] = trial  # whose key its transaction completes
        return super().contested(trial)

    def _is_left(self, trial: Trial) -> bool:
        return True  # whoever had begun it before has lost the subscription

    def _source(self, receipt: Receipt) -> KnownId:
        return KnownId(receipt.id)  # for whoever begins it anew, when its receipt is gone

    def _begin(self, job: Job, entry: Entry) -> Later:
        """
        Have the next attempt begun when it is due; the store counts it before the call.
        """
        trial = job.trial
        assert trial is not None
        if (seconds := self.consumer.wait_for(entry)) > 0:
            return Later(trial, seconds)
        return Later(trial, math.inf, partial(self.consumer.ask, entry))

    def _next_delay(self, attempt: Attempt, receipt: Receipt) -> float | None:
        is_gone = (receipt.options or {}).get("is_gone")
        return None if is_gone else super()._next_delay(attempt, receipt)

    def _look_back(self, trial: Trial) -> None:
        """
        Count from the first attempt, though it was made by another process.
        """
        if trial.stories:
            clock = self.furniture.clock
            elapsed = clock.time() - trial.stories[0].time.timestamp()
            trial.began = min(trial.began, clock.monotonic() - max(0.0, elapsed))

    def _went_well(self, trial: Trial | None, began: float, worker: Worker) -> None:
        assert trial is not None
        super()._went_well(trial, began, worker)
        entry = _entry(trial.receipt)
        if entry.is_stored:
            return self.consumer.finished(entry)
        self._remember(trial.receipt, began)
        self.consumer.done(entry)

    def _remember(self, receipt: Receipt, began: float) -> None:
        """
        Note when the handler has ended, and how long it took, for who keeps a history.
        """
        if self.consumer.mode.history and isinstance(receipt, LoggedReceipt):
            entry, clock = receipt.entry, self.furniture.clock
            entry.handled = Handled(
                offset=entry.offset,
                attempts=entry.number,
                time=clock.time(),
                seconds=clock.monotonic() - began,
            )

    def _went_wrong(
        self, trial: Trial | None, failure: BaseException, job: Job, worker: Worker
    ) -> Later | None:
        if trial is not None and _entry(job.receipt).is_unstored:
            # It is the store that failed, and no attempt of the handler.
            logger().warning(
                "%s could not be committed, and is called again: %s", self.name, failure
            )
            return Later(trial, _PAUSE)
        later = super()._went_wrong(trial, failure, job, worker)
        if later is not None:
            story = failures_to_json(later.trial.stories)
            self.consumer.retry(_entry(job.receipt), later.delay, story)
        return later

    # -- what is given up on -------------------------------------------------------------------

    def _keep(self, trial: Trial) -> DeadLetter | None:
        receipt = trial.receipt
        if not isinstance(receipt, LoggedReceipt):  # a redrive, whose letter is kept already
            is_gone = (receipt.options or {}).get("is_gone")
            return None if is_gone else super()._keep(trial)
        letter = self._kept(trial, _reason(receipt))
        self.consumer.dead(receipt.entry, letter)
        self.counters.dead_lettered += 1
        return cast(DeadLetter, letter)  # of which its caller wants what both have

    def _kept(self, trial: Trial, reason: str) -> KeptLetter:
        record, stories = _entry(trial.receipt).record, trial.stories
        assert record is not None
        now = self.furniture.now()
        return KeptLetter(
            id=self.furniture.clock.new_id(),
            subscription=self.name,
            record=record,
            reason=reason,
            attempts=trial.total,
            failures=failures_to_json(stories),
            error_type=stories[-1].error_type if stories else "",
            first_failure=stories[0].time if stories else now,
            last_failure=stories[-1].time if stories else now,
            idempotency_key=trial.key,
            holds_key=self.consumer.mode.on_dead_letter == "hold_key" and record.key is not None,
        )

    def held_letter(self, receipt: Receipt) -> KeptLetter:
        """
        Return the letter of an event that waits behind another letter.
        """
        return self._kept(Trial(receipt, number=0, is_queued=True), HELD)

    def kept(self, receipt: LoggedReceipt, letter: KeptLetter) -> None:
        """
        Count one that was kept so, and tell whoever observes.
        """
        self.counters.failed += 1
        self._tell(receipt, letter)

    def _tell(self, receipt: Receipt, letter: KeptLetter) -> None:
        """
        Count a letter whose event never came to its handler, and tell whoever observes.
        """
        self.counters.dead_lettered += 1
        if self.furniture.observers:
            self.furniture.notify(
                DeadLettered(
                    envelope=receipt.envelope,
                    subscription=self.name,
                    letter_id=letter.id,
                    reason=letter.reason,
                )
            )

    def uncount(self, number: int) -> None:
        """
        Count those no more that came its way and went back to the log.
        """
        self.counters.routed -= number

    def refuse(self, receipt: Receipt, error: Exception) -> None:
        """
        Give up an event that never came to its handler.
        """
        token = here.set(receipt)  # what is seen of it is seen as in its handler
        try:
            self.bury(Trial(receipt, number=0, is_queued=True), error)
        finally:
            here.reset(token)

    def unreadable(self, receipt: LoggedReceipt, error: Exception) -> None:
        """
        Give an event up that cannot be read.
        """
        receipt.options = {"reason": "unreadable"}
        self._count(receipt)
        self.refuse(receipt, error)

    def write_off(self, job: Job, reason: Reason, *, is_in_hand: bool = False) -> None:
        """
        Leave what is not handled in the log: it is not lost with the queue.
        """
        assert job.trial is not None  # every job from the log has one
        self.let_go(job.trial)

    # -- what the reader asks ------------------------------------------------------------------

    def is_met(self, receipt: LoggedReceipt) -> bool:
        """
        Whether the filter lets the event pass; one that raises gives the event up.
        """
        self._count(receipt)
        where = self.options.where
        if where is None:
            return True
        try:
            is_met = bool(where(receipt.event))
        except Exception as error:
            self.refuse(receipt, error)
            return False
        self.counters.missed += not is_met
        return is_met

    def _count(self, receipt: LoggedReceipt) -> None:
        self.counters.routed += not receipt.entry.is_counted
        receipt.entry.is_counted = True

    def order_of(self, receipt: LoggedReceipt) -> str | None:
        """
        Return what orders the event; what raises gives the event up.
        """
        read = self.options.ordered_by
        if read is None:
            record = receipt.entry.record
            return None if record is None else record.key
        try:
            return text_of(read(receipt.event))
        except Exception as error:
            self.refuse(receipt, error)
            return None


def _entry(receipt: Receipt) -> Entry:
    assert isinstance(receipt, LoggedReceipt)
    return receipt.entry


def _reason(receipt: Receipt) -> str:
    return str((receipt.options or {}).get("reason", "failed"))
