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

PARTS = ("owners", "transactions", "investments")
"""What an Item may lack in a report, which then has a warning."""

MOST_TRANSACTIONS = 15_000
"""In one report, since 2024-11-14; more make its generation fail: https://plaid.com/docs/changelog/"""

DOLLARS: Json = {"iso_currency_code": "USD", "unofficial_currency_code": None}

_EACH = 20  # transactions of an account, unless told: a report of one Item has about sixty


@frozen
class Linked:
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

    def lacking(self, parts: Mapping[str | None, str]) -> Self:
        """The same, without these parts too; what is under None is not of a part."""
        lacks = dict(self.lacks) | {part: code for part, code in parts.items() if part is not None}
        return evolve(self, lacks=tuple(lacks.items()))

    def has(self, part: str) -> bool:
        """Whether a report can have this part of it."""
        return part not in dict(self.lacks)


@frozen
class Kind:
    """A kind of account: names, Plaid's type and subtype, and the range of its balance in cents."""

    name: str
    official_name: str | None
    account_type: str
    subtype: str
    low: int
    high: int
    limit: int | None = None
    currency: tuple[str | None, str | None] = ("USD", None)

    @property
    def owes(self) -> bool:
        """Whether its balance is what the holder owes, so that spending raises it."""
        return self.account_type == "credit"

    @property
    def spends(self) -> bool:
        """Whether transactions are listed for it: those of the other kinds are not, or are investments."""
        return self.account_type in {"depository", "credit"}

    def currencies(self) -> Json:
        """The two fields of its currency, of which Plaid sets one."""
        return dict(zip(DOLLARS, self.currency, strict=True))


# fmt: off
_BANKING = (
    Kind("Everyday Checking", "Everyday Current Account with Cheques", "depository", "checking",
         40_000, 900_000),
    Kind("Rainy Day Savings", None, "depository", "savings", 100_000, 4_000_000),
    Kind("Silver Card", "Silver Rewards Card", "credit", "credit card", 10_000, 300_000, limit=500_000),
    Kind("Student Loan", "Federal Student Loan", "loan", "student", 300_000, 6_000_000),
)
_INVESTING = (
    Kind("Coin Purse", None, "investment", "non-custodial wallet", 10_000, 900_000, currency=(None, "BTC")),
    Kind("Long View", "Long View Brokerage Account", "investment", "brokerage", 500_000, 9_000_000),
)
# fmt: on


@frozen
class Account:
    """One account of a report, before anything that happened on it is told."""

    account_id: str
    item: Linked
    kind: Kind
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
    items: tuple[Linked, ...]
    client_report_id: str | None = None
    user: tuple[str | None, ...] = field(default=(None,) * len(USER_FIELDS), repr=False)
    investments: bool = False
    transactions: int | None = None
    excluded: frozenset[str] = frozenset()
    included: int | None = None
    fast: bool = False

    def including(self, days: int | None) -> Self:
        """The same report, of which only the last days are shown."""
        return evolve(self, included=days)

    @property
    def shown(self) -> int:
        """How many of the days to show."""
        return self.days if self.included is None else min(self.days, self.included)

    @property
    def size(self) -> int:
        """How many records it holds, more or less, so that a big one can be told beforehand."""
        return 0 if self.fast else self.count() + self.days * len(self.accounts())

    def count(self) -> int:
        """How many transactions it holds."""
        return sum(account.transactions for account in self.accounts())

    def accounts(self) -> list[Account]:
        """Those that were not filtered out, in order."""
        kinds = (*_BANKING, *_INVESTING) if self.investments else _BANKING
        shares = self._shares([(item, kind) for item in self.items for kind in kinds])
        there = (
            Account(_account_id(item, kind), item, kind, f"{self.seed}:{number}", shares.get((item, kind), 0))
            for number, (item, kind) in enumerate((item, kind) for item in self.items for kind in kinds)
        )
        return [account for account in there if account.account_id not in self.excluded]

    def _shares(self, accounts: Collection[tuple[Linked, Kind]]) -> Mapping[tuple[Linked, Kind], int]:
        """How many transactions each account gets; those of a filtered one go to no other."""
        spending = [(item, kind) for item, kind in accounts if kind.spends and item.has("transactions")]
        if not spending or not self.days or self.fast:
            return {}
        total = _EACH * len(spending) if self.transactions is None else self.transactions
        each, more = divmod(total, len(spending))
        return {account: each + (place < more) for place, account in enumerate(spending)}

    def day(self, age: int) -> str:
        """The date so many days before it was made."""
        return (self.generated - timedelta(days=age)).date().isoformat()


def report_id(seed: str) -> str:
    """A report's id, which follows from its seed."""
    return str(UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=4))


def identifier(draw: Random) -> str:
    """Letters and digits, as Plaid's ids of accounts and transactions are."""
    return "".join(draw.choices("abcdefghijkmnopqrstvwxyzABDEGJKLMNPQRVXZ13456789", k=37))


def instant(moment: datetime) -> str:
    """A moment as Plaid writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _account_id(item: Linked, kind: Kind) -> str:
    """The same in each report of the Item, so that a filter holds for the next report too."""
    return identifier(Random(f"{item.item_id}:{kind.name}"))
