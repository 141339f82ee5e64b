"""Outlines of reports: the few values from which `samples` generates a report's content.

An outline is stored instead of the content, because it is small: the same outline always leads to the same
content.
"""

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
"""The parts of an Item that may be missing from a report, which then has a warning."""

MAX_TRANSACTIONS = 15_000
"""Plaid's limit for one report since 2024-11-14; with more, generation fails. https://plaid.com/docs/changelog/"""

USD_FIELDS: Json = {"iso_currency_code": "USD", "unofficial_currency_code": None}

_TRANSACTIONS_PER_ACCOUNT = 20  # by default; a report of one Item then has sixty


@frozen
class BankLogin:
    """The bank login that an Item represents.

    Attributes:
        item_id: the Item's ID; the IDs of its accounts are derived from it.
        institution_id: the bank's ID.
        seed: seed of the other values that are the same in each of its reports: the owners and the account
            numbers.
        unavailable_parts: the `REPORT_PARTS` that are missing, each with its error code.
    """

    item_id: str
    institution_id: str
    seed: str = field(repr=False)
    unavailable_parts: tuple[tuple[str, str], ...] = ()

    def without_parts(self, parts: Mapping[str | None, str]) -> Self:
        """Return the login without further parts.

        Args:
            parts: error codes by part; the one under None is not about a part, and is ignored.
        """
        unavailable_parts = dict(self.unavailable_parts) | {
            part: code for part, code in parts.items() if part is not None
        }
        return evolve(self, unavailable_parts=tuple(unavailable_parts.items()))

    def has_part(self, part: str) -> bool:
        """Return whether a report can contain this part."""
        return part not in dict(self.unavailable_parts)


@frozen
class AccountKind:
    """A kind of account: names, Plaid's type and subtype, and the range of the balance and the limit.

    The balance and the limit are in cents.
    """

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
        """Whether the balance is a debt, so that spending raises it."""
        return self.account_type == "credit"

    @property
    def lists_transactions(self) -> bool:
        """Whether a report lists transactions of the account, apart from investment transactions."""
        return self.account_type in {"depository", "credit"}

    def currency_fields(self) -> Json:
        """Return the two currency fields, of which one is null."""
        return dict(zip(USD_FIELDS, self.currency, strict=True))


# fmt: off
_BANKING = (
    AccountKind("Everyday Checking", "Everyday Current Account with Cheques", "depository", "checking",
                40_000, 900_000),
    AccountKind("Rainy Day Savings", None, "depository", "savings", 100_000, 4_000_000),
    AccountKind("Silver Card", "Silver Rewards Card", "credit", "credit card",
                10_000, 300_000, limit=500_000),
    AccountKind("Student Loan", "Federal Student Loan", "loan", "student", 300_000, 6_000_000),
)
_INVESTING = (
    AccountKind("Coin Purse", None, "investment", "non-custodial wallet",
                10_000, 900_000, currency=(None, "BTC")),
    AccountKind("Long View", "Long View Brokerage Account", "investment", "brokerage", 500_000, 9_000_000),
)
# fmt: on


@frozen
class Account:
    """An account of a report, with the number of its transactions and without their content."""

    account_id: str
    item: BankLogin
    kind: AccountKind
    seed: str = field(repr=False)
    transactions: int


@frozen
class Outline:
    """The values that determine the content of a report.

    Attributes:
        seed: two reports with the same seed have the same amounts.
        report_id: the `asset_report_id`.
        generated_at: the time of generation; the report's days end there.
        days: the `days_requested`.
        items: the bank logins in the report.
        client_report_id: the lender's own ID for the report.
        user: the values of `USER_FIELDS`, in that order.
        investments: whether the report has investment accounts.
        transactions: number of transactions, distributed over the accounts; None is twenty per account.
        excluded_accounts: the `account_id` of each account that was filtered out.
        days_to_include: the number of days to show; None is all.
        fast: whether this is the fast version, which has only balances and owners.
    """

    seed: str = field(repr=False)
    report_id: str
    generated_at: datetime
    days: int
    items: tuple[BankLogin, ...]
    client_report_id: str | None = None
    user: tuple[str | None, ...] = field(default=(None,) * len(USER_FIELDS), repr=False)
    investments: bool = False
    transactions: int | None = None
    excluded_accounts: frozenset[str] = frozenset()
    days_to_include: int | None = None
    fast: bool = False

    def with_days_to_include(self, days: int | None) -> Self:
        """Return the outline of the same report with only its last `days` days; None is all."""
        return evolve(self, days_to_include=days)

    @property
    def days_shown(self) -> int:
        """The number of days to show."""
        return self.days if self.days_to_include is None else min(self.days, self.days_to_include)

    @property
    def record_count(self) -> int:
        """The approximate number of records in the report, an estimate of the time to generate it."""
        return 0 if self.fast else self.transaction_count() + self.days * len(self.accounts())

    def transaction_count(self) -> int:
        """Return the number of transactions."""
        return sum(account.transactions for account in self.accounts())

    def accounts(self) -> list[Account]:
        """Return the accounts that were not filtered out, in order."""
        kinds = (*_BANKING, *_INVESTING) if self.investments else _BANKING
        counts = self._transaction_counts([(item, kind) for item in self.items for kind in kinds])
        accounts = (
            Account(_account_id(item, kind), item, kind, f"{self.seed}:{number}", counts.get((item, kind), 0))
            for number, (item, kind) in enumerate((item, kind) for item in self.items for kind in kinds)
        )
        return [account for account in accounts if account.account_id not in self.excluded_accounts]

    def _transaction_counts(
        self, accounts: Collection[tuple[BankLogin, AccountKind]]
    ) -> Mapping[tuple[BankLogin, AccountKind], int]:
        """Return the number of transactions of each account.

        The accounts that were filtered out count too, so that a filter doesn't change the others.
        """
        spending = [
            (item, kind)
            for item, kind in accounts
            if kind.lists_transactions and item.has_part("transactions")
        ]
        if not spending or not self.days or self.fast:
            return {}
        total = _TRANSACTIONS_PER_ACCOUNT * len(spending) if self.transactions is None else self.transactions
        each, remainder = divmod(total, len(spending))
        return {account: each + (index < remainder) for index, account in enumerate(spending)}

    def iso_date(self, days_ago: int) -> str:
        """Return the date `days_ago` days before the generation, in ISO 8601."""
        return (self.generated_at - timedelta(days=days_ago)).date().isoformat()


def report_id_from_seed(seed: str) -> str:
    """Return the report ID that belongs to a seed: a UUID."""
    return str(UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=4))


def random_identifier(rng: Random) -> str:
    """Return a random ID of letters and digits, like Plaid's IDs of accounts and transactions."""
    return "".join(rng.choices("abcdefghijkmnopqrstvwxyzABDEGJKLMNPQRVXZ13456789", k=37))


def format_timestamp(time: datetime) -> str:
    """Return a UTC time in Plaid's format."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def _account_id(item: BankLogin, kind: AccountKind) -> str:
    """Return the account's ID, which is the same in each report of the Item.

    So a refresh of a filtered report excludes the same accounts.
    """
    return random_identifier(Random(f"{item.item_id}:{kind.name}"))
