"""
Whose turn a key is: the idempotency of one subscription.

Law: asks the store and decides; of no colour. Who has to wait for another holder waits
in the rooms above.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from eventbus._event import text_of
from eventbus._receipt import Receipt, ancestry
from eventbus._verdict import Trial, Verdict
from eventbus.idempotency import Claim, HasId

__all__ = ["Claims"]

T = TypeVar("T")


class Claims(Verdict):
    """
    A verdict that first asks whether the event has been handled.
    """

    def key_of(self, event: object) -> str | None:
        """
        Return the event's idempotency key for this subscription, if it has one.
        """
        read = self.options.idempotency_key
        return None if read is None else text_of(read(event))

    def read_key(self, trial: Trial, event: object) -> None:
        """
        Read the trial's key, once.
        """
        if not trial.is_keyed:
            trial.key = self.key_of(event)
            trial.is_keyed = True

    def ask(self, trial: Trial, claim: Callable[..., T]) -> T:
        """
        Ask for the trial's key by *claim*, which is the store's, of either colour.
        """
        name, now = self.subscription.name, self.furniture.clock.monotonic()
        return claim(name, trial.key, source=self._source(trial.receipt), now=now)

    def contested(self, trial: Trial) -> Claim | None:
        """
        Claim the trial's key; return the claim of another holder that must be waited for.

        Whether the delivery goes on when there is none, `is_free` tells. What has been asked
        already is not asked again.
        """
        asked, trial.asked = trial.asked, None
        if isinstance(asked, Exception):
            raise asked
        if trial.key is None:
            return None
        if asked is None:
            asked = self.ask(trial, self.furniture.idempotency.claim)
        return self._met(trial, asked)

    def _met(self, trial: Trial, claim: Claim) -> Claim | None:
        if claim.state == "pending" and not _is_own(claim, trial.receipt):
            return claim
        if claim.state == "granted" or trial.redriven is not None:
            trial.claim = claim  # a redrive is no duplicate, even where the key is another's
        else:
            self.suppressed(trial, claim)
        return None

    def _source(self, receipt: Receipt) -> HasId:
        return receipt

    def is_free(self, trial: Trial) -> bool:
        """
        Whether the handler may be called: there is no key, or it is held.
        """
        return trial.key is None or trial.claim is not None

    def patience(self, claim: Claim) -> float:
        """
        Return the seconds until the lease of another holder ends.
        """
        return max(0.0, claim.expires - self.furniture.clock.monotonic())


def _is_own(claim: Claim, receipt: Receipt) -> bool:
    """
    Whether the delivery that holds the key is waiting for this one.

    Then a nested publish with the same key would wait for what it is part of.
    """
    return claim.event_id in [each.id for each in ancestry(receipt.parent)]
