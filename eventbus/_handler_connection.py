"""
The database connection that a handler is given.

Law: whoever lends a connection ends its transaction, and nobody else can: neither by a
method nor by a statement. Then the loan is over, and whoever has kept the connection is
refused. Everything else that `sqlite3` offers works as ever. Imported late: it loads
`sqlite3`.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from typing import Any, Literal, NoReturn
from weakref import ref

from eventbus.errors import StoreError

__all__ = ["HandlerConnection"]

_ENDED = (
    "the handler has ended its transaction by a COMMIT or ROLLBACK of its own{how}. Leave that to "
    "the bus: only then its writes and its progress are stored together."
)


class HandlerConnection(sqlite3.Connection):
    """
    A connection whose transaction is ended by its lender, not by its user.

    ``with connection:`` groups statements, as ever: what they wrote is taken back if the
    block raises. It commits nothing.

    Attributes:
        is_lent: It is in its user's hands.
        is_kept: The user has kept it, though the loan is over.
    """

    is_lent = False
    is_kept = False
    _is_over = False
    _depth = 0
    _is_refused = False

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        own = ref(self)  # or it would keep itself alive

        def authorize(action: int, *_: Any) -> int:
            # Asked once for each statement that is new to the connection.
            connection = own()
            if action != sqlite3.SQLITE_TRANSACTION or connection is None or not connection.is_lent:
                return sqlite3.SQLITE_OK
            connection._is_refused = True
            return sqlite3.SQLITE_DENY

        self._authorize = authorize
        super().set_authorizer(authorize)

    def lend(self) -> None:
        """
        Begin a loan: from now on its transaction is not its user's to end.
        """
        self.is_lent, self._is_refused, self._depth = True, False, 0

    def explain(self, error: BaseException) -> None:
        """
        Raise what is meant, if *error* is what came of trying to end the transaction.
        """
        code = getattr(error, "sqlite_errorcode", None)
        if self._is_refused and code == sqlite3.SQLITE_AUTH:
            raise StoreError(_ENDED.format(how=", or has tried to")) from error

    def check(self) -> None:
        """
        Refuse to go on if the transaction has ended, as some conflicts do it by themselves.
        """
        if not self.in_transaction:
            raise StoreError(_ENDED.format(how=", or by a statement that rolls back"))

    # Whatever executes a statement comes by here.

    def cursor(self, *given: Any, **options: Any) -> Any:
        self._refuse_if_over()
        return super().cursor(*given, **options)

    def execute(self, *given: Any) -> sqlite3.Cursor:
        self._refuse_if_over()
        return super().execute(*given)

    def executemany(self, *given: Any) -> sqlite3.Cursor:
        self._refuse_if_over()
        return super().executemany(*given)

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        """
        Refuse what commits before it begins; each statement can be executed by itself.
        """
        self._refuse_if_over()
        if self.is_lent:
            self._refuse("executescript")
        return super().executescript(script)

    def blobopen(self, *given: Any, **options: Any) -> sqlite3.Blob:
        self._refuse_if_over()
        return super().blobopen(*given, **options)

    def set_authorizer(self, authorizer_callback: Any) -> None:
        """
        Refuse to take the place of what watches over the transaction.
        """
        if self.is_lent:
            self._refuse("set_authorizer")
        super().set_authorizer(authorizer_callback)

    def _refuse_if_over(self) -> None:
        """
        Refuse to go on after the loan.
        """
        if self._is_over:
            raise StoreError(
                "this connection was lent to a handler that has ended, and so has its "
                "transaction. Use it only while the handler runs, and wait there for what that has "
                "started; for later, open a connection of your own."
            )

    def commit(self) -> None:
        """
        Refuse to commit what is committed together with the handler's progress.
        """
        if self.is_lent:
            self._refuse("commit")
        super().commit()

    def rollback(self) -> None:
        """
        Refuse to roll back what is rolled back when the handler raises.
        """
        if self.is_lent:
            self._refuse("rollback")
        super().rollback()

    def close(self) -> None:
        """
        Refuse to close what was lent.
        """
        if self.is_lent or self._is_over:
            self._refuse("close")
        super().close()

    def take_back(self) -> None:
        """
        End the loan, and refuse to go on if its user has ended the transaction.
        """
        self.is_lent = False
        self.check()

    def end(self, *, commit: bool) -> None:
        """
        End the loan, and the transaction, if that has not ended yet.
        """
        self.is_lent, self._is_over = False, True
        # Not as statements: those are kept, and pass unasked when a handler says the same.
        if commit:
            super().commit()
        else:
            super().rollback()

    def renovate(self) -> None:
        """
        Take back what the last user has set, so that the next one finds nothing of it.
        """
        setattr(self, "autocommit", -1)  # noqa: B010 - from Python 3.12 on: what it was before
        self.row_factory, self.text_factory, self.isolation_level = None, str, None
        self.set_progress_handler(None, 0)
        self.set_trace_callback(None)
        if self.is_kept:
            self.set_authorizer(self._authorize)
        self._is_over = self.is_kept = False

    def bar(self) -> None:
        """
        Refuse every statement, also of cursors, for the last user has kept the connection.

        It is not closed: another thread may be in the middle of a statement.
        """
        self.is_kept = True
        self.set_authorizer(_deny)

    def __del__(self) -> None:
        with suppress(sqlite3.Error):  # it may never have been open
            super().close()

    @staticmethod
    def _refuse(verb: str) -> NoReturn:
        raise StoreError(
            f"this connection is lent to the handler: {verb}() is not the handler's to call. It "
            f"is committed when the handler returns, and rolled back when it raises."
        )

    def __enter__(self) -> HandlerConnection:
        if not self.is_lent:
            return super().__enter__()
        self._depth += 1
        self.execute(f"SAVEPOINT eventbus_handler_{self._depth}")
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any, /) -> Literal[False]:
        if not self.is_lent:
            return super().__exit__(kind, error, traceback)
        if kind is not None:
            self.execute(f"ROLLBACK TO eventbus_handler_{self._depth}")
        self.execute(f"RELEASE eventbus_handler_{self._depth}")
        self._depth -= 1
        return False


def _deny(*_: object) -> int:
    return sqlite3.SQLITE_DENY
