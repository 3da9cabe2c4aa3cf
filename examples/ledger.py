"""
A ledger: accounts that are nothing but their events, and a table that is built from them.

    python -m pip install . && python examples/ledger.py
    python examples/ledger.py --store ledger.db && python -m eventbus ledger.db log tail

It needs nothing but ``eventbus``:

- each account is a stream; a decision is made on its state, and stored only if nobody else was
  quicker;
- a projection keeps the balances in a table that any program can read;
- the projection has a bug, which an audit finds. Mended, and with a new version, it is built anew
  from the first event on, and then takes the old one's place.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import attrs

from eventbus import ConcurrencyError, event, on
from eventbus.codec import JSONCodec
from eventbus.projection import Projection, projection
from eventbus.sourcing import Aggregate
from eventbus.sqlite import SQLiteStore

# ------------------------------------------------------- the events: facts, in the past tense


@event(name="ledger.account_opened", key="account")
class AccountOpened:
    account: str
    owner: str


@event(name="ledger.deposited", key="account")
class Deposited:
    account: str
    amount: Decimal


@event(name="ledger.withdrawn", key="account")
class Withdrawn:
    account: str
    amount: Decimal
    fee: Decimal = Decimal(0)


# ------------------------------------------------------- an account: its state, its decisions


@attrs.frozen
class Account:
    owner: str = ""
    balance: Decimal = Decimal(0)

    def open(self, account: str, owner: str) -> Iterator[AccountOpened]:
        if self.owner:
            raise ValueError(f"{account} is {self.owner}'s already")
        yield AccountOpened(account, owner)

    def withdraw(self, account: str, amount: Decimal) -> Iterator[Withdrawn]:
        fee = Decimal("0.50") if amount < 100 else Decimal(0)
        if amount + fee > self.balance:
            raise ValueError(f"{account} has {self.balance}, and {amount + fee} was asked for")
        yield Withdrawn(account, amount, fee)


def evolve(account: Account, happened: AccountOpened | Deposited | Withdrawn) -> Account:
    match happened:
        case AccountOpened(owner=owner):
            return attrs.evolve(account, owner=owner)
        case Deposited(amount=amount):
            return attrs.evolve(account, balance=account.balance + amount)
        case Withdrawn(amount=amount, fee=fee):
            return attrs.evolve(account, balance=account.balance - amount - fee)


# ------------------------------------------------------- the table: built from the same events

TABLES = "CREATE TABLE balances (account TEXT PRIMARY KEY, owner TEXT, cents INTEGER NOT NULL)"


def cents(amount: Decimal) -> int:
    return int(amount * 100)


@projection(name="balances", tables=TABLES)
class Balances:
    @on
    def opened(self, happened: AccountOpened, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO balances VALUES (?, ?, 0)", (happened.account, happened.owner))

    @on
    def deposited(self, happened: Deposited, db: sqlite3.Connection) -> None:
        self.add(cents(happened.amount), happened.account, db)

    @on
    def withdrawn(self, happened: Withdrawn, db: sqlite3.Connection) -> None:
        self.add(-cents(happened.amount), happened.account, db)  # the bug: and the fee?

    def add(self, amount: int, account: str, db: sqlite3.Connection) -> None:
        db.execute("UPDATE balances SET cents = cents + ? WHERE account = ?", (amount, account))


@projection(name="balances", version=2, tables=TABLES)
class MendedBalances(Balances):
    @on
    def withdrawn(self, happened: Withdrawn, db: sqlite3.Connection) -> None:
        self.add(-cents(happened.amount + happened.fee), happened.account, db)


# ------------------------------------------------------- what happens


class Bank:
    def __init__(self, store: SQLiteStore) -> None:
        self.store, self.codec = store, JSONCodec()
        self.accounts = Aggregate(
            Account, evolve, store=store, codec=self.codec, name="accounts", snapshot_every=50
        )

    def open(self, account: str, owner: str, amount: str) -> None:
        self.accounts.change(account, lambda state: state.open(account, owner))
        self.accounts.change(account, lambda _: [Deposited(account, Decimal(amount))])

    def withdraw(self, account: str, amount: str) -> None:
        try:
            self.accounts.change(account, lambda state: state.withdraw(account, Decimal(amount)))
            print(f"  {account}: {amount} withdrawn")
        except ValueError as error:
            print(f"  {account}: refused, {error}")

    def two_at_once(self, account: str, amount: str) -> None:
        """
        Let two tellers look at the same balance before either of them pays out.
        """
        seen = [self.accounts.load(account), self.accounts.load(account)]
        for teller, stream in enumerate(seen, 1):
            decided = stream.state.withdraw(account, Decimal(amount))
            try:
                self.accounts.append(stream, *decided)
                print(f"  {account}: teller {teller} pays out {amount}")
            except ConcurrencyError:
                print(f"  {account}: teller {teller} was too late, and looks again")
                self.withdraw(account, amount)

    def audit(self, made: type[Balances]) -> bool:
        """
        Bring the table up to date, and compare it with what the streams say.
        """
        Projection(made, store=self.store, codec=self.codec).catch_up()
        with closing(sqlite3.connect(self.store.path)) as connection:
            rows = connection.execute("SELECT * FROM balances ORDER BY account").fetchall()
        is_right = True
        for account, owner, in_table in rows:
            balance = self.accounts.load(account).state.balance
            is_right = is_right and in_table == cents(balance)
            mark = "✓" if in_table == cents(balance) else "✗"
            print(f"  {mark} {account}  {owner:<6} table {in_table / 100:8.2f}  stream {balance:8}")
        return is_right


def main(path: Path) -> None:
    with SQLiteStore(path) as store:
        bank = Bank(store)
        if store.log.last_offset() == 0:
            print("A day at the bank")
            bank.open("account/1", "Ada", "500.00")
            bank.open("account/2", "Leo", "80.00")
            bank.withdraw("account/1", "120.00")
            bank.withdraw("account/1", "19.50")
            bank.withdraw("account/2", "90.00")
            bank.two_at_once("account/2", "50.00")
            print("\nThe audit, version 1 of the table")
            bank.audit(Balances)
        print("\nThe bug is mended: version 2, built anew from the first event on")
        if bank.audit(MendedBalances):
            print(f"\n{store.log.last_offset()} events, and every balance is right")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Accounts that are nothing but their events.")
    parser.add_argument("--store", type=Path, help="keep the ledger in this file")
    given = parser.parse_args().store
    if given is not None:
        main(given)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "ledger.db")
