"""
The database connection that a handler is given.

Law: whoever lends a connection ends its transaction. Everything else that `sqlite3`
offers works as ever. Imported late: it loads `sqlite3`.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Literal, NoReturn

from eventbus.errors import StoreError

__all__ = ["HandlerConnection"]


class HandlerConnection(sqlite3.Connection):
    """
    A connection whose transaction is ended by its lender, not by its user.

    ``with connection:`` groups statements, as ever: what they wrote is taken back if the
    block raises. It commits nothing.
    """

    is_lent = False
    _depth = 0

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

    def take_back(self) -> None:
        """
        End the loan, and refuse to go on if its user has ended the transaction.
        """
        self.is_lent = False
        if not self.in_transaction:
            raise StoreError(
                "the handler has ended its transaction by a COMMIT or ROLLBACK of its own. Leave "
                "that to the bus: only then its writes and its progress are stored together."
            )

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
