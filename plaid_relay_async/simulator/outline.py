"""What a report follows from: all that `samples` needs to write it, small enough to keep for each report."""

import hashlib
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import Any, Self, TypeAlias
from uuid import UUID

from attrs import evolve, field, frozen

Json: TypeAlias = dict[str, Any]

USER_FIELDS = ("client_user_id", "first_name", "middle_name", "last_name", "ssn", "phone_number", "email")

REPORT_PARTS = ("owners", "transactions", "investments")
"""What an Item may lack in a report, which then has a warning."""

MAX_TRANSACTIONS = 15_000
"""In one report, since 2024-11-14; more make its generation fail: https://plaid.com/docs/changelog/"""

USD_FIELDS: Json = {"iso_currency_code": "USD", "unofficial_currency_code": None}

_TRANSACTIONS_PER_ACCOUNT = (
    20  # transactions of an account, unless told: a report of one Item has about sixty
)


@frozen
class BankLogin:
    """The bank login that an Item stands for.

    Attributes:
        item_id: Of the Item; the ids of its accounts follow from it.
        institution_id: Of the bank.
        seed: What else stays the same in each report of it: its owners, and the numbers of its accounts.
        lacks: Each of the `PARTS` that can't be had, with the error code that says why.
    """

    item_id: str
    institution_id: str
    seed: str = field(repr=False)
    lacks: tuple[tuple[str, str], ...] = ()

    def without_parts(self, parts: Mapping[str | None, str]) -> Self:
        """The same, without these parts too; what is under None is not of a part."""
        lacks = dict(self.lacks) | {part: code for part, code in parts.items() if part is not None}
        return evolve(self, lacks=tuple(lacks.items()))

    def has_part(self, part: str) -> bool:
        """Whether a report can have this part of it."""
        return part not in dict(self.lacks)


@frozen
class AccountKind:
    """A kind of account: names, Plaid's type and subtype, and the range of its balance in cents."""

    name: str
    official_name: str | None
    account_type: str
    subtype: str
    min_balance: int
    max_balance: int
    limit: int | None = None
    currency: tuple[str | None, str | None] = ("USD", None)

    @property
    def balance_is_debt(self) -> bool:
        """Whether its balance is what the holder owes, so that spending raises it."""
        return self.account_type == "credit"

    @property
    def lists_transactions(self) -> bool:
        """Whether transactions are listed for it: those of the other kinds are not, or are investments."""
        return self.account_type in {"depository", "credit"}

    def currency_fields(self) -> Json:
        """The two fields of its currency, of which Plaid sets one."""
        return dict(zip(USD_FIELDS, self.currency, strict=True))


# fmt: off
_BANKING = (
    AccountKind("Everyday Checking", "Everyday Current Account with Cheques", "depository", "checking",
         40_000, 900_000),
    AccountKind("Rainy Day Savings", None, "depository", "savings", 100_000, 4_000_000),
    AccountKind("Silver Card", "Silver Rewards Card", "credit", "credit card", 10_000, 300_000, limit=500_000),
    AccountKind("Student Loan", "Federal Student Loan", "loan", "student", 300_000, 6_000_000),
)
_INVESTING = (
    AccountKind("Coin Purse", None, "investment", "non-custodial wallet", 10_000, 900_000, currency=(None, "BTC")),
    AccountKind("Long View", "Long View Brokerage Account", "investment", "brokerage", 500_000, 9_000_000),
)
# fmt: on


@frozen
class Account:
    """One account of a report, before anything that happened on it is told."""

    account_id: str
    item: BankLogin
    kind: AccountKind
    seed: str = field(repr=False)
    transactions: int


@frozen
class Outline:
    """All that a report follows from.

    Attributes:
        seed: Two reports of the same seed hold the same amounts.
        report_id: Its `asset_report_id`.
        generated: When it was made; its days count back from there.
        days: The `days_requested`.
        items: The Items in it.
        client_report_id: As its maker named it.
        user: As its maker told, in the order of `USER_FIELDS`.
        investments: Whether investment accounts are in it.
        transactions: How many there are, shared out among its accounts; None is twenty each.
        excluded: The `account_id` of each account that was filtered out.
        included: How many of the days to show; None is all.
        fast: Whether it holds balances and owners alone.
    """

    seed: str = field(repr=False)
    report_id: str
    generated: datetime
    days: int
    items: tuple[BankLogin, ...]
    client_report_id: str | None = None
    user: tuple[str | None, ...] = field(default=(None,) * len(USER_FIELDS), repr=False)
    investments: bool = False
    transactions: int | None = None
    excluded: frozenset[str] = frozenset()
    included: int | None = None
    fast: bool = False

    def with_days_to_include(self, days: int | None) -> Self:
        """The same report, of which only the last days are shown."""
        return evolve(self, included=days)

    @property
    def days_shown(self) -> int:
        """How many of the days to show."""
        return self.days if self.included is None else min(self.days, self.included)

    @property
    def record_count(self) -> int:
        """How many records it holds, more or less, so that a big one can be told beforehand."""
        return 0 if self.fast else self.transaction_count() + self.days * len(self.accounts())

    def transaction_count(self) -> int:
        """How many transactions it holds."""
        return sum(account.transactions for account in self.accounts())

    def accounts(self) -> list[Account]:
        """Those that were not filtered out, in order."""
        kinds = (*_BANKING, *_INVESTING) if self.investments else _BANKING
        shares = self._transaction_counts([(item, kind) for item in self.items for kind in kinds])
        there = (
            Account(_account_id(item, kind), item, kind, f"{self.seed}:{number}", shares.get((item, kind), 0))
            for number, (item, kind) in enumerate((item, kind) for item in self.items for kind in kinds)
        )
        return [account for account in there if account.account_id not in self.excluded]

    def _transaction_counts(
        self, accounts: Collection[tuple[BankLogin, AccountKind]]
    ) -> Mapping[tuple[BankLogin, AccountKind], int]:
        """How many transactions each account gets; those of a filtered one go to no other."""
        spending = [
            (item, kind)
            for item, kind in accounts
            if kind.lists_transactions and item.has_part("transactions")
        ]
        if not spending or not self.days or self.fast:
            return {}
        total = _TRANSACTIONS_PER_ACCOUNT * len(spending) if self.transactions is None else self.transactions
        each, more = divmod(total, len(spending))
        return {account: each + (place < more) for place, account in enumerate(spending)}

    def iso_date(self, days_ago: int) -> str:
        """The date so many days before it was made."""
        return (self.generated - timedelta(days=days_ago)).date().isoformat()


def report_id_from_seed(seed: str) -> str:
    """A report's id, which follows from its seed."""
    return str(UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=4))


def random_identifier(draw: Random) -> str:
    """Letters and digits, as Plaid's ids of accounts and transactions are."""
    return "".join(draw.choices("abcdefghijkmnopqrstvwxyzABDEGJKLMNPQRVXZ13456789", k=37))


def format_timestamp(moment: datetime) -> str:
    """A moment as Plaid writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _account_id(item: BankLogin, kind: AccountKind) -> str:
    """The same in each report of the Item, so that a filter holds for the next report too."""
    return random_identifier(Random(f"{item.item_id}:{kind.name}"))
