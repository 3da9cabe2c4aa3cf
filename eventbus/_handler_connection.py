"""
The database connection that a handler is given.

Law: whoever lends a connection ends its transaction, and nobody else can: neither by a
method nor by a statement. Everything else that `sqlite3` offers works as ever. Imported
late: it loads `sqlite3`.
"""

from __future__ import annotations

import sqlite3
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
    """

    is_lent = False
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

        self.set_authorizer(authorize)

    def lend(self) -> None:
        """
        Begin a loan: from now on its transaction is not its user's to end.
        """
        self.is_lent, self._is_refused = True, False

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
        if self.is_lent:
            self._refuse("close")
        super().close()

    def executescript(self, script: str, /) -> sqlite3.Cursor:
        """
        Refuse what commits before it begins; each statement can be executed by itself.
        """
        if self.is_lent:
            self._refuse("executescript")
        return super().executescript(script)

    def take_back(self) -> None:
        """
        End the loan, and refuse to go on if its user has ended the transaction.
        """
        self.is_lent = False
        self.check()

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
