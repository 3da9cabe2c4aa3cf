"""
What is committed together with what a handler writes through the connection it is lent.

Law: says what belongs to the handler's transaction, and notes what came of it; it opens
no transaction and calls no handler. The commit is the only moment at which a delivery is
over: whatever ends before it, the process included, leaves it as it was.
"""

from __future__ import annotations

from typing import Any, Protocol

import attrs

from eventbus._entry import LoggedReceipt
from eventbus._receipt import Receipt
from eventbus._verdict import Trial
from eventbus.errors import DeadLetterNotFoundError, LeaseLostError, StoreError
from eventbus.idempotency import Claim
from eventbus.progress import Step, Transaction

__all__ = ["Commitment", "commitment_of"]


class Commitment(Protocol):
    """
    What is part of one handler's transaction besides its own writes.
    """

    def begin(self, transaction: Transaction) -> None:
        """
        Write what may refuse the call, before it is made.
        """
        ...

    def end(self, transaction: Transaction, now: float) -> None:
        """
        Write what holds once the handler has returned.
        """
        ...

    def is_kept(self) -> None:
        """
        Learn that all of it was committed.
        """
        ...

    def is_lost(self, error: BaseException) -> None:
        """
        Learn that none of it was, and that this is not the handler's fault.
        """
        ...


def commitment_of(receipt: Receipt) -> Commitment:
    """
    Return what belongs to the transaction of this delivery: from the log, or a redrive.
    """
    return _Advance(receipt) if isinstance(receipt, LoggedReceipt) else _Redrive(receipt)


@attrs.define
class _Key:
    """
    The idempotency key of a delivery: used when its handler's transaction commits.
    """

    trial: Trial | None = None
    _claim: Claim | None = None

    def complete(self, trial: Trial | None, transaction: Transaction, now: float) -> None:
        if trial is not None and trial.claim is not None:
            transaction.idempotency.complete(trial.claim, now=now)
            self.trial, self._claim, trial.claim = trial, trial.claim, None

    def is_lost(self, error: BaseException) -> None:
        # What interrupts a commit does not say what came of it, and a key that is used must
        # not be freed: then its lease ends by itself.
        if self.trial is not None and isinstance(error, Exception):
            self.trial.claim = self._claim


@attrs.frozen
class _Advance:
    """
    A delivery from the log: it is finished, and its idempotency key is used.
    """

    receipt: LoggedReceipt
    key: _Key = attrs.field(init=False, factory=_Key)

    def begin(self, transaction: Transaction) -> None: ...

    def end(self, transaction: Transaction, now: float) -> None:
        entry = self.receipt.entry
        handled = () if entry.handled is None else (entry.handled,)
        transaction.advance(Step(done=(entry.offset,), handled=handled))
        self.key.complete(entry.trial, transaction, now)

    def is_kept(self) -> None:
        self.receipt.entry.is_stored = True

    def is_lost(self, error: BaseException) -> None:
        self.key.is_lost(error)
        self.receipt.entry.is_unstored = isinstance(error, StoreError | LeaseLostError)


@attrs.frozen
class _Redrive:
    """
    A redrive: its letter is no more, and its idempotency key is used.
    """

    receipt: Receipt
    key: _Key = attrs.field(init=False, factory=_Key)

    def begin(self, transaction: Transaction) -> None:
        # First: what somebody else has redriven meanwhile is not handled once more.
        transaction.advance(Step(gone=(self._options["redriven"].id,)))

    def end(self, transaction: Transaction, now: float) -> None:
        self.key.complete(self._options.get("trial"), transaction, now)

    def is_kept(self) -> None:
        self._options["is_at_rest"] = True

    def is_lost(self, error: BaseException) -> None:
        self.key.is_lost(error)
        if isinstance(error, DeadLetterNotFoundError):
            self._options["is_gone"] = True

    @property
    def _options(self) -> dict[str, Any]:
        options = self.receipt.options
        assert options is not None  # every redrive has some
        return options
