"""
What is committed together with what a handler writes through the connection it is lent.

Law: says what belongs to the handler's transaction, and notes what came of it; it opens
no transaction and calls no handler. The commit is the only moment at which a delivery is
over: whatever ends before it, the process included, leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import attrs

from eventbus._entry import LoggedReceipt
from eventbus._receipt import Receipt
from eventbus._verdict import Trial
from eventbus.errors import DeadLetterNotFoundError, LeaseLostError, StoreError
from eventbus.idempotency import Claim
from eventbus.progress import Step, Transaction

__all__ = ["Commitment", "Loan"]


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


class Loan:
    """
    What goes around the transaction that a handler is lent, and inside of it.

    Around it, as a context: what comes of it is noted. Inside of it `lent`: the handler has
    the connection, and what belongs to the transaction is written before and after it.

    Args:
        receipt: The delivery: from the log, or a redrive.
        remember: Given the delivery and when it began, notes that its handler has ended.
        now: Tells the time.
    """

    def __init__(
        self,
        receipt: Receipt,
        remember: Callable[[Receipt, float], None],
        now: Callable[[], float],
    ) -> None:
        self.is_redrive = not isinstance(receipt, LoggedReceipt)
        self._receipt = receipt
        self._remember = remember
        self._now = now
        self._part: Commitment = (
            _Advance(receipt) if isinstance(receipt, LoggedReceipt) else _Redrive(receipt)
        )
        self._is_the_handlers = False

    @contextmanager
    def lent(self, transaction: Transaction) -> Generator[None]:
        """
        Let the handler have the connection in the block.
        """
        receipt, part, began = self._receipt, self._part, self._now()
        part.begin(transaction)
        receipt.connection = connection = transaction.connection
        try:
            yield
            if (check := getattr(connection, "check", None)) is not None:
                check()  # whoever has ended the transaction has failed
        except BaseException:
            self._is_the_handlers = True
            raise
        finally:
            receipt.connection = connection = None  # what is dropped has no more to do with it
        self._remember(receipt, began)
        part.end(transaction, self._now())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            return self._part.is_kept()
        if not self._is_the_handlers:
            self._part.is_lost(error)
        if self._receipt.afterwards is not None:
            self._receipt.afterwards.drop()


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
