"""
One event to one subscription: claim, call, retry, bury.

Law: a subscription is folded once, and what it did not ask for is not in the fold.
Here and in `_dispatch`, and nowhere else, is code of two colours: a twin only calls
and waits; what follows is decided in `_verdict`.

The order of the layers is fixed, from the outside in::

    weak → filter → once → idempotency → retry → timeout → wrap → handler

A filter that raises is not retried. A retry does not ask the filter again, nor for
the key. Each attempt has the whole timeout. What ``wrap`` adds runs in each attempt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

from eventbus._abort import as_failure, concerns_caller, running_loop
from eventbus._attempt import acall_of, call_of, settle
from eventbus._beside import beside
from eventbus._claims import Claims
from eventbus._envelope import here
from eventbus._event import text_of
from eventbus._furniture import Furniture
from eventbus._receipt import Receipt
from eventbus._route import Folded, miss
from eventbus._subscription import Subscription
from eventbus._verdict import Trial
from eventbus.dead_letter import DeadLetter
from eventbus.errors import RunningLoopError
from eventbus.idempotency import Claim

if TYPE_CHECKING:
    import asyncio

__all__ = ["Delivery"]

AnyCall = Callable[[Any], Any]

# Seconds between two questions after a claim, where the store cannot call back.
# Short against any handler worth an idempotency key, long against a query.
_POLL = 0.02
# For these reasons letters are kept of events that may not have come to the filter, or past it.
_BEFORE_A_CALL = ("failed", "undelivered")


class Delivery(Claims):
    """
    One subscription, folded: what a dispatch calls, and what follows.

    Args:
        subscription: The subscription.
        furniture: What to work with.
        target: Called with the event: the handler inside its ``wrap`` hooks.
    """

    def __init__(self, subscription: Subscription, furniture: Furniture, target: AnyCall) -> None:
        super().__init__(subscription, furniture)
        self._acall = acall_of(subscription, target, furniture.clock)
        self._call = call_of(subscription, target, self._acall, furniture.loop_thread)

    def fold(self) -> Folded:
        """
        Return what a dispatch calls for this subscription.
        """
        options, (call, acall) = self.options, self._policed()
        is_bare = call is self._call and options.where is None
        if options.once:
            ticket = self.furniture.ticket(self.subscription)
            call, acall = self._once(call, ticket), self._once(acall, ticket)
        if options.where is not None:
            call, acall = self._filtered(call), self._filtered(acall)
        if options.weak:
            call, acall = self._while_alive(call), self._while_alive(acall)
        return Folded(call, acall, self._settle, self.fail, buries=not is_bare)

    def _policed(self) -> tuple[AnyCall, AnyCall]:
        """
        Return the handler under its policies, no longer than it takes to keep them.
        """
        furniture = self.furniture
        if furniture.observers or furniture.timings:
            return self.deliver, self.adeliver
        if self.options.idempotency_key is not None:
            return self._claiming(), self.adeliver
        if self.policy is not None:
            return self._retrying(), self.adeliver
        return self._call, self._acall

    def _settle(self, result: object) -> None:
        settle(result, self.subscription, self.furniture.loop_thread)

    def _once(self, call: AnyCall, ticket: list[bool]) -> AnyCall:
        unqueued = int(self.subscription.is_queued)

        def once(event: Any) -> Any:
            try:
                ticket.pop()  # of any number of threads one gets it
            except IndexError:
                return miss(self.counters, unqueued=unqueued)
            if not unqueued:
                self.subscription.end()
                return call(event)
            result = call(event)  # first: a cancelled one's queue takes no more
            self.subscription.end()
            return result

        return once

    def _filtered(self, call: AnyCall, *, is_redrive: bool = False) -> AnyCall:
        where, counters = self.options.where, self.counters
        unqueued = int(self.subscription.is_queued and not is_redrive)
        assert where is not None

        def filtered(event: Any) -> Any:
            try:
                wanted = where(event)
            except Exception as error:
                return self.refuse(here.get(), error)
            return call(event) if wanted else miss(counters, unqueued=unqueued)

        return filtered

    def _while_alive(self, call: AnyCall) -> AnyCall:
        unqueued = int(self.subscription.is_queued)

        def alive(event: Any) -> Any:
            handler = self.subscription.handler  # held until the call has returned
            if handler is None:
                self.subscription.end()
                return miss(self.counters, unqueued=unqueued)
            return call(event)

        return alive

    def refuse(self, receipt: Receipt, error: Exception) -> None:
        """
        Give up a delivery that never came to its handler: its filter raised.
        """
        self.bury(Trial(receipt, number=0), error)

    # -- the short ways, for `publish` where nobody measures or watches -----------------------

    def _retrying(self) -> AnyCall:
        call, settle, monotonic = self._call, self._settle, self.furniture.clock.monotonic

        def retrying(event: Any) -> None:
            began = monotonic()
            try:
                if (result := call(event)) is not None:
                    settle(result)
                return
            except BaseException as error:
                if concerns_caller(error):
                    raise
                failure = as_failure(error, self.name)
            # Out here, for else what the next attempt raises would seem to come of it.
            self._perform(Trial(here.get(), began=began), event, failure)

        return retrying

    def _claiming(self) -> AnyCall:
        call, settle, monotonic = self._call, self._settle, self.furniture.clock.monotonic
        read, store, name = self.options.idempotency_key, self.furniture.idempotency, self.name
        assert read is not None

        def claiming(event: Any) -> None:
            receipt, began = here.get(), monotonic()
            try:
                key = read(event)
                if type(key) is not str:
                    key = text_of(key)
                claim = None if key is None else store.claim(name, key, source=receipt, now=began)
            except Exception as error:
                return self.bury(Trial(receipt, number=0), error)
            if claim is None:
                return self._perform(Trial(receipt), event)
            if claim.state != "granted":
                return self.deliver(event)
            try:
                if (result := call(event)) is not None:
                    settle(result)
            except BaseException as error:
                if concerns_caller(error):
                    self.let_go(Trial(receipt, key, claim))
                    raise
                failure = as_failure(error, name)
            else:
                try:
                    store.complete(claim, now=monotonic())
                except Exception:
                    self.unkept(key, "recorded")
                return
            self._perform(Trial(receipt, key, claim, began), event, failure)

        return claiming

    # -- one event to this subscription: the twins ----------------------------------------

    def again(self, letter: DeadLetter) -> tuple[AnyCall, AnyCall]:
        """
        Return what a redrive of *letter* calls: its filter is in the way until it says yes.
        """
        may_be_filtered = letter.attempts == 0 and letter.reason in _BEFORE_A_CALL
        if self.options.where is None or not may_be_filtered:
            return self.deliver, self.adeliver
        return (
            self._filtered(self.deliver, is_redrive=True),
            self._filtered(self.adeliver, is_redrive=True),
        )

    def deliver(self, event: Any) -> None:
        """
        Claim, call, retry and bury, waiting in the calling thread.
        """
        trial = Trial(here.get())
        if self._claimed(trial, event):
            self._perform(trial, event)

    def _perform(self, trial: Trial, event: Any, error: Exception | None = None) -> None:
        """
        Call until an attempt succeeds or was the last; *error* ended one made already.
        """
        clock = self.furniture.clock
        try:
            if error is None:
                trial.began = clock.monotonic()
                delay = self._attempt(trial, event)
            else:
                delay = self.judge(trial, error)
            while delay is not None:
                clock.sleep(delay)
                delay = self._attempt(trial, event)
        except BaseException:
            self.let_go(trial)
            raise

    def _attempt(self, trial: Trial, event: Any) -> float | None:
        """
        Call once; return the seconds until the next attempt, if there is to be one.
        """
        clock = self.furniture.clock
        began = trial.called = clock.monotonic()
        try:
            if (result := self._call(event)) is not None:
                self._settle(result)
        except BaseException as error:
            if concerns_caller(error):
                raise
            failure = as_failure(error, self.name)
        else:
            self.succeeded(trial, clock.monotonic() - began)
            return None
        # Out here, for else what comes next would seem to come of it.
        return self.judge(trial, failure)

    async def adeliver(self, event: Any) -> None:
        """
        Claim, call, retry and bury, suspending the calling task.
        """
        trial = Trial(here.get())
        _held = self.subscription.handler  # a weak one stays until its delivery has ended
        if await self._aclaimed(trial, event):
            await self._aperform(trial, event)

    async def _aperform(self, trial: Trial, event: Any) -> None:
        """
        Call until an attempt succeeds or was the last.
        """
        clock = self.furniture.clock
        try:
            trial.began = clock.monotonic()
            delay = await self._aattempt(trial, event)
            while delay is not None:
                await clock.asleep(delay)
                delay = await self._aattempt(trial, event)
        except BaseException:
            self.let_go(trial)
            raise

    async def _aattempt(self, trial: Trial, event: Any) -> float | None:
        """
        Call once; return the seconds until the next attempt, if there is to be one.
        """
        clock = self.furniture.clock
        began = trial.called = clock.monotonic()
        try:
            if isawaitable(result := self._acall(event)):
                await result
        except BaseException as error:
            if concerns_caller(error):
                raise
            failure = as_failure(error, self.name)
        else:
            self.succeeded(trial, clock.monotonic() - began)
            return None
        return self.judge(trial, failure)

    def _claimed(self, trial: Trial, event: Any) -> bool:
        """
        Hold the event's key, if it has one; ``False`` if the delivery ends here.
        """
        try:
            self.read_key(trial, event)
            while (claim := self.contested(trial)) is not None:
                self._turn(claim)
        except Exception as error:
            trial.number = 0
            self.bury(trial, error)
            return False
        return self.is_free(trial)

    def _turn(self, claim: Claim) -> None:
        """
        Wait until it is worth while to claim again.
        """
        if running_loop() is not None:
            raise RunningLoopError(
                f"{self.subscription.name} is at work on another event with the same idempotency "
                f"key, and publish() in a thread with a running event loop cannot wait for its "
                f"outcome. Use await bus.apublish(...).",
                subscription=self.subscription.name,
            )
        settled = threading.Event()
        called_back = self.furniture.idempotency.add_waiter(claim, settled.set)
        if called_back:
            settled.wait(self.patience(claim))
        elif called_back is None:
            self.furniture.clock.sleep(_POLL)

    async def _aclaimed(self, trial: Trial, event: Any) -> bool:
        """
        Hold the event's key, if it has one; ``False`` if the delivery ends here.
        """
        try:
            self.read_key(trial, event)
            trial.asked = await self._aasked(trial)
            while (claim := self.contested(trial)) is not None:
                await self._aturn(claim)
                trial.asked = await self._aasked(trial)
        except Exception as error:
            trial.number = 0
            self.bury(trial, error)
            return False
        return self.is_free(trial)

    async def _aasked(self, trial: Trial) -> Claim | None:
        """
        Ask for the trial's key while the loop goes on, if its store can do that.
        """
        aclaim = beside(self.furniture.idempotency, "claim", "aclaim")
        return None if aclaim is None or trial.key is None else await self.ask(trial, aclaim)

    async def _aturn(self, claim: Claim) -> None:
        """
        Wait until it is worth while to claim again.
        """
        import asyncio  # late: whoever awaits has it loaded already

        settled, loop = asyncio.Event(), asyncio.get_running_loop()
        wake = partial(_set_from_any_thread, loop, settled)
        called_back = self.furniture.idempotency.add_waiter(claim, wake)
        if called_back:
            # The clock that measures the lease may be virtual; this bound is real.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.patience(claim)):
                    await settled.wait()
        elif called_back is None:
            await self.furniture.clock.asleep(_POLL)


def _set_from_any_thread(loop: asyncio.AbstractEventLoop, settled: asyncio.Event) -> None:
    try:
        loop.call_soon_threadsafe(settled.set)
    except RuntimeError:  # the loop has been closed: nobody waits any more
        return
