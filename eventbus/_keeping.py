"""
One queued event to its handler: what a worker performs, and what becomes of the rest.

Law: as `_delivery`, with which it shares the policies, but it never waits: what is due
later goes back to the queue. `perform` and `aperform` are twins.

The publish is over by then: its receipt is not written on. What becomes of the event
is in the stats, the dead letters and the log, and observers are told.
"""

from __future__ import annotations

import math
from functools import partial
from inspect import isawaitable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import attrs

from eventbus._abort import as_failure, concerns_caller, is_cancellation
from eventbus._begun import Begun, waiting
from eventbus._beside import beside
from eventbus._delivery import Delivery
from eventbus._envelope import here
from eventbus._furniture import Furniture
from eventbus._intake import Intake
from eventbus._job import Job, Later, QueuedReceipt, Worker
from eventbus._logger import logger
from eventbus._receipt import Receipt, free_key
from eventbus._route import Folded, miss
from eventbus._subscription import Subscription
from eventbus._verdict import Trial
from eventbus._write_off import write_off
from eventbus.dead_letter import Reason
from eventbus.errors import (
    BusClosedError,
    HandlerAbortedError,
    StoreClosedError,
    StoreError,
    StoreLockedError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from eventbus.idempotency import Claim

__all__ = ["QueuedDelivery"]

# Seconds until a store of keys is asked again that could not answer, or was locked; and
# after how many of them it is worth a word that it is.
_PAUSE, _MOMENT, _LONG = 0.1, 0.02, 0.5
_OUT_OF_REACH = (StoreError, OSError)

# Bound once: to look it up on each coroutine takes longer than to call it.
_steps_of: Any = vars(CoroutineType)["__await__"]


class QueuedDelivery(Delivery):
    """
    A queued subscription, folded: what a dispatch calls, and what its workers do.

    Args:
        subscription: The subscription.
        furniture: What to work with.
        target: Called with the event: the handler inside its ``wrap`` hooks.
        queue: Where its events wait.
    """

    def __init__(
        self,
        subscription: Subscription,
        furniture: Furniture,
        target: Callable[[Any], Any],
        queue: Intake,
    ) -> None:
        super().__init__(subscription, furniture, target)
        self.queue = queue
        self._asks = (
            self.options.idempotency_key is not None
            or self.options.weak
            or self.policy is not None
            or furniture.timings
        )
        self._is_lent = not queue.limit
        self._worth_a_word_at: float | None = None  # that its keys cannot be asked for

    def fold(self) -> Folded:
        """
        Return what a dispatch calls for this subscription: the way into the queue.
        """
        self.queue.keeper = self
        folded, declared = super().fold(), self.queue.is_ordered
        is_bare = folded.call == self.queue.put and not declared
        return attrs.evolve(folded, post=self.queue.post if is_bare else None, buries=True)

    def _policed(self) -> tuple[Any, Any]:
        return self.queue.put, self.queue.aput

    # -- one job: the twins ------------------------------------------------------------------

    def perform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job in this thread; return what is still to do about it.
        """
        trial, began = None, 0.0
        receipt: Any = job
        if type(receipt) is not QueuedReceipt:
            receipt = job.receipt
            if receipt.sealed is None:
                receipt.since = job.since  # an envelope made from here on tells of the publish
        here.set(receipt)
        # Observers may have come since this was folded.
        if self._asks or job.trial is not None or self.furniture.observers:
            admitted = self._admitted(job, worker)
            if not isinstance(admitted, Trial):
                return admitted
            trial, began = admitted, self.furniture.clock.monotonic()
            trial.called = began
        try:
            call = self._call  # fetched first: an attribute that is called is found more slowly
            if (result := call(job.event)) is not None:
                self._settle(result)
        except BaseException as error:
            if self._is_for_others(error, trial, worker):
                raise
            failure = error
        else:
            if trial is not None:
                self._went_well(trial, began, worker)
            return None
        return self._went_wrong(trial, failure, job, worker)

    async def aperform(self, job: Job, worker: Worker) -> Later | None:
        """
        Handle a job in this task; return what is still to do about it.
        """
        rest = self.begin(job, worker)
        return rest if rest is None or isinstance(rest, Later) else await rest

    def begin(
        self, job: Job, worker: Worker, *, is_asked: bool = False
    ) -> Coroutine[Any, Any, Later | None] | Later | None:
        """
        Begin with what `aperform` does; return the rest of it, or what it would return.

        A handler that comes to its end without a wait is spared a coroutine around it.
        """
        trial, began = None, 0.0
        receipt: Any = job
        if type(receipt) is not QueuedReceipt:
            receipt = job.receipt
            if receipt.sealed is None:
                receipt.since = job.since  # an envelope made from here on tells of the publish
        here.set(receipt)
        if self._asks or job.trial is not None or self.furniture.observers:
            if not is_asked and self._is_to_ask(job):
                return self._ask_first(job, worker)
            admitted = self._admitted(job, worker)
            if not isinstance(admitted, Trial):
                return admitted
            trial, began = admitted, self.furniture.clock.monotonic()
            trial.called = began
        try:
            acall = self._acall
            result = acall(job.event)
            if type(result) is not CoroutineType:
                result = waiting(result) if isawaitable(result) else None
            if result is not None:
                # A loop that takes one step at most: it is told of the end without an exception.
                steps: Any = _steps_of(result)
                for waits_for in steps:
                    return self._awaited(Begun(steps, waits_for), trial, began, job, worker)
        except BaseException as error:
            if self._is_for_others(error, trial, worker):
                raise
            failure = error
        else:
            if trial is not None:
                self._went_well(trial, began, worker)
            return None
        return self._went_wrong(trial, failure, job, worker)

    async def _ask_first(self, job: Job, worker: Worker) -> Later | None:
        """
        Ask for the job's key while the loop goes on, and do as `aperform` then.
        """
        trial = job.trial or Trial(job.receipt, is_queued=True, is_returned=job.returns > 0)
        try:
            self.read_key(trial, job.event)
            trial.asked = await self._aasked(trial)
        except Exception as error:
            trial.asked = error
        rest = self.begin(job._replace(trial=trial), worker, is_asked=True)
        if trial.asked is not None:  # it is not its turn any more
            self._unasked(trial, trial.asked)
        return rest if rest is None or isinstance(rest, Later) else await rest

    async def _awaited(
        self, rest: Begun, trial: Trial | None, began: float, job: Job, worker: Worker
    ) -> Later | None:
        """
        Await the rest of what a handler returned.
        """
        try:
            await rest
        except BaseException as error:
            if is_cancellation(error):
                rest.uncancel()
            if rest.is_left or self._is_for_others(error, trial, worker):
                raise
            failure = error
        else:
            if trial is not None:
                self._went_well(trial, began, worker)
            return None
        return self._went_wrong(trial, failure, job, worker)

    # -- what the twins share ----------------------------------------------------------------

    def _is_to_ask(self, job: Job) -> bool:
        """
        Whether the job's key is asked for next, where the store of keys can be awaited.
        """
        return (
            self.options.idempotency_key is not None
            and not (job.trial is not None and job.trial.is_admitted)
            and beside(self.furniture.idempotency, "claim", "aclaim") is not None
        )

    def _met(self, trial: Trial, claim: Claim) -> Claim | None:
        holder, receipt = super()._met(trial, claim), trial.receipt
        if holder is None or holder.event_id != receipt.id or not self._is_left(trial):
            return holder
        # Whoever has claimed it for this delivery has lost the right to handle it. At the moment
        # its lease ends, the key is free: that moment is now.
        store = self.furniture.idempotency
        source = self._source(receipt)
        mine = store.claim(self.name, str(trial.key), source=source, now=holder.expires)
        if mine.state != "granted":
            return holder
        store.renew(mine, now=self.furniture.clock.monotonic())
        trial.claim = mine
        return None

    def _is_left(self, trial: Trial) -> bool:
        """
        Whether nobody else is at this delivery, though its key may be claimed for it.
        """
        return trial.is_returned

    def _unasked(self, trial: Trial, asked: Claim | Exception) -> None:
        """
        Free a key that was asked for in vain.
        """
        trial.asked = None
        if not isinstance(asked, Exception) and asked.state == "granted":
            trial.claim = asked
            self.let_go(trial)
            trial.claim = None

    def _admitted(self, job: Job, worker: Worker) -> Trial | Later | None:
        """
        Return the trial to go on with; or what is to be done instead of a call.
        """
        trial = job.trial or Trial(job.receipt, is_queued=True, is_returned=job.returns > 0)
        if self.options.weak and self.subscription.handler is None:
            self.counters.missed += 1
            return None
        if trial.is_admitted:
            return trial
        # Where its outcome is not known in the end, it is handed out again with its key.
        self.queue.amend(worker, job._replace(trial=trial))
        try:
            if trial.asked is None:
                self.read_key(trial, job.event)
            claim = self.contested(trial)
        except Exception as error:
            is_out_of_reach = trial.is_keyed and isinstance(error, _OUT_OF_REACH)
            if is_out_of_reach and not isinstance(error, StoreClosedError):
                return self._asks_again(trial, error)
            trial.number = 0
            if self.queue.seize(worker):
                self.bury(trial, error)
            return None
        self._worth_a_word_at = None
        if claim is not None:
            wake = partial(self.furniture.idempotency.add_waiter, claim)
            return Later(trial, self.patience(claim), wake)
        trial.is_admitted, trial.began = True, self.furniture.clock.monotonic()
        return trial if self.is_free(trial) else None

    def _asks_again(self, trial: Trial, error: Exception) -> Later:
        """
        Ask for the key later: that the store of keys cannot say is no failure of the handler.
        """
        # Most often it is locked by a handler of this very event loop, and not for long.
        is_locked, now = isinstance(error, StoreLockedError), self.furniture.clock.monotonic()
        if self._worth_a_word_at is None:
            self._worth_a_word_at = now + (_LONG if is_locked else 0.0)
        if now >= self._worth_a_word_at:  # once, until it answers again
            self._worth_a_word_at = math.inf
            text = "%s waits: its idempotency keys cannot be asked for (%s)"
            logger().warning(text, self.name, error)
        return Later(trial, _MOMENT if is_locked else _PAUSE)

    def _went_well(self, trial: Trial, began: float, worker: Worker) -> None:
        if self.queue.seize(worker):
            self.succeeded(trial, self.furniture.clock.monotonic() - began)
        else:
            self.complete(trial)

    def _went_wrong(
        self, trial: Trial | None, failure: BaseException, job: Job, worker: Worker
    ) -> Later | None:
        trial = trial or Trial(job.receipt, is_queued=True, is_admitted=True)
        if not self.queue.seize(worker):
            self.let_go(trial)
            return None
        error = as_failure(failure, self.name)
        delay = self.judge(trial, error)
        return None if delay is None else Later(trial, delay)

    def _is_for_others(self, error: BaseException, trial: Trial | None, worker: Worker) -> bool:
        """
        Whether it is not the handler's: the process is interrupted, the worker's task cancelled.

        Its job is then handed out again; if it was given up, its key is let go of. Where
        somebody else lends his own thread, as a test does, all that ends one is his.
        """
        is_for_others = concerns_caller(error, is_awaited=self._is_lent)
        if is_for_others and trial is not None and worker.abandoned is worker.job:
            self.let_go(trial)
        return is_for_others

    def lose(self, job: Job) -> None:
        """
        Give up what several workers have ended with: each was an attempt, and has failed.
        """
        trial = job.trial or Trial(job.receipt, is_queued=True)
        trial.number += job.returns
        error = HandlerAbortedError(
            f"each of the {job.returns + 1} workers that {self.name} had for it ended with it: "
            f"cancelled or killed from outside of the handler",
            subscription=self.name,
        )
        self.bury(trial, error)

    # -- what never comes to a call ----------------------------------------------------------

    def refuse(self, receipt: Receipt, error: Exception) -> None:
        """
        Let the publish know that its event was not accepted.
        """
        if isinstance(error, BusClosedError) and not self.subscription.is_live:
            return miss(self.counters, unqueued=1)  # cancelled while this publish came to it
        receipt.unqueued += 1
        self.bury(Trial(receipt, number=0), error)

    def write_off(self, job: Job, reason: Reason, *, is_in_hand: bool = False) -> None:
        """
        Keep what will not be handled as a dead letter, and tell the observers.

        Letters of failures are not pushed out by it: it is kept if there is room.
        """
        trial = job.trial or Trial(job.receipt, is_queued=True)
        if not is_in_hand:  # else its worker frees the key, when the handler is done
            trial.number -= 1
            self.let_go(trial)
        free_key(job.receipt)
        write_off(self.furniture, self.name, trial, reason)
