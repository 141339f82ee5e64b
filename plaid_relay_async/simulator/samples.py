"""Plausible reports, written from a seed: the same outline is the same report, to the cent."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any, Self, TypeAlias
from uuid import UUID

from attrs import evolve, field, frozen

Json: TypeAlias = dict[str, Any]

USER_FIELDS = ("client_user_id", "first_name", "middle_name", "last_name", "ssn", "phone_number", "email")

_TRANSACTIONS = 20  # in each account, so that a report of one Item has about sixty
_DOLLARS: Json = {"iso_currency_code": "USD", "unofficial_currency_code": None}

# Plaid's official test institutions; any other gets a name made of its id.
_BANKS = {
    "ins_109508": "First Platypus Bank",
    "ins_109509": "First Gingham Credit Union",
    "ins_109510": "Tattersall Federal Credit Union",
    "ins_109511": "Tartan Bank",
    "ins_109512": "Houndstooth Bank",
}


@frozen
class Linked:
    """The bank login that an Item stands for."""

    item_id: str
    institution_id: str


@frozen
class Outline:
    """All that a report follows from.

    Attributes:
        seed: Two reports of the same seed hold the same accounts and amounts.
        report_id: Its `asset_report_id`.
        generated: When it was made; its days count back from there.
        days: The `days_requested`.
        items: The Items in it.
        client_report_id: As its maker named it.
        user: As its maker told, in the order of `USER_FIELDS`.
        investments: Whether an investment account is in it.
        included: How many of the days to show; None is all.
    """

    seed: str = field(repr=False)  # it is made of the report token
    report_id: str
    generated: datetime
    days: int
    items: tuple[Linked, ...]
    client_report_id: str | None
    user: tuple[str | None, ...] = field(repr=False)
    investments: bool
    included: int | None = None

    def including(self, days: int | None) -> Self:
        """The same report, of which only the last days are shown."""
        return evolve(self, included=days)

    def again(self, seed: str, generated: datetime) -> Self:
        """A fresh version of it."""
        return evolve(self, seed=seed, report_id=report_id(seed), generated=generated)


@frozen
class _Kind:
    """A kind of account: names, Plaid's type and subtype, and the range of its balance in cents."""

    name: str
    official_name: str | None
    account_type: str
    subtype: str
    low: int
    high: int
    limit: float | None = None

    @property
    def owes(self) -> bool:
        """Whether its balance is what the holder owes, so that spending raises it."""
        return self.account_type == "credit"


_KINDS = (
    _Kind(
        "Everyday Checking",
        "Everyday Current Account with Cheques",
        "depository",
        "checking",
        40_000,
        900_000,
    ),
    _Kind("Rainy Day Savings", None, "depository", "savings", 100_000, 4_000_000),
    _Kind("Silver Card", "Silver Rewards Card", "credit", "credit card", 10_000, 300_000, limit=5000.0),
)
_BROKERAGE = _Kind("Long View", "Long View Brokerage Account", "investment", "brokerage", 500_000, 9_000_000)


@frozen
class _Shop:
    """Where money goes: what the bank writes, and what Plaid makes of it with insights."""

    description: str
    merchant: str | None
    category: tuple[str, ...]
    category_id: str
    credit_category: tuple[str, str]
    transaction_type: str
    low: int
    high: int


_SHOPS = (
    _Shop("GREEN GROCER 0417 OAKLAND CA", "Green Grocer", ("Shops", "Supermarkets and Groceries"), "19047000",
          ("FOOD_AND_DRINK", "FOOD_AND_DRINK_GROCERIES"), "place", 400, 18_000),
    _Shop("TRAMWAY FARE*8F2K", "Tramway", ("Travel", "Public Transportation Services"), "22014000",
          ("TRANSPORTATION", "TRANSPORTATION_PUBLIC_TRANSIT"), "digital", 200, 900),
    _Shop("CORNER COFFEE 12", "Corner Coffee", ("Food and Drink", "Restaurants", "Coffee Shop"), "13005043",
          ("FOOD_AND_DRINK", "FOOD_AND_DRINK_COFFEE"), "place", 250, 1_500),
    _Shop("ACH CITY POWER AND LIGHT", "City Power", ("Service", "Utilities", "Electric"), "18068005",
          ("RENT_AND_UTILITIES", "RENT_AND_UTILITIES_GAS_AND_ELECTRICITY"), "special", 3_000, 22_000),
    _Shop("PAYROLL DEP MILLWRIGHT CO", None, ("Transfer", "Payroll"), "21009000",
          ("INCOME", "INCOME_WAGES"), "special", -420_000, -120_000),
    _Shop("INTRST PYMNT", None, ("Transfer", "Credit"), "21005000",
          ("INCOME", "INCOME_INTEREST_EARNED"), "special", -1_200, -1),
)  # fmt: skip


def report_id(seed: str) -> str:
    """A report's id, which follows from its seed."""
    return str(UUID(bytes=hashlib.sha256(seed.encode()).digest()[:16], version=4))


def report(outline: Outline, *, insights: bool) -> Json:
    """The report as Plaid's AssetReport."""
    return {
        "asset_report_id": outline.report_id,
        "client_report_id": outline.client_report_id,
        "date_generated": _instant(outline.generated),
        "days_requested": outline.days,
        "items": [_item(outline, linked, insights=insights) for linked in outline.items],
        "user": dict(zip(USER_FIELDS, outline.user, strict=True)),
    }


def _item(outline: Outline, linked: Linked, *, insights: bool) -> Json:
    draw = Random(f"{outline.seed}:{linked.item_id}")
    kinds = (*_KINDS, _BROKERAGE) if outline.investments else _KINDS
    return {
        "accounts": [_account(draw, outline, kind, insights=insights) for kind in kinds],
        "date_last_updated": _instant(outline.generated - timedelta(seconds=draw.randrange(3600))),
        "institution_id": linked.institution_id,
        "institution_name": _BANKS.get(linked.institution_id, f"Bank {linked.institution_id[4:]}"),
        "item_id": linked.item_id,
    }


def _account(draw: Random, outline: Outline, kind: _Kind, *, insights: bool) -> Json:
    account_id = _identifier(draw)
    cents = draw.randrange(kind.low, kind.high)
    transactions = list(_transactions(draw, outline, account_id))
    history = list(_history(outline, kind, cents, transactions))
    shown = outline.days if outline.included is None else min(outline.days, outline.included)
    since = _day(outline, shown)
    account: Json = {
        "account_id": account_id,
        "balances": _balances(outline, kind, cents),
        "days_available": outline.days,
        "historical_balances": [balance for balance in history if balance["date"] > since],
        "mask": f"{draw.randrange(10_000):04}",
        "name": kind.name,
        "official_name": kind.official_name,
        "owners": [_owner(draw)],
        "ownership_type": None,
        "subtype": kind.subtype,
        "transactions": [
            entry if insights else _plain(entry) for entry in transactions if entry["date"] > since
        ],
        "type": kind.account_type,
    }
    if kind is _BROKERAGE:
        account["investments"] = _investments(draw, outline, account_id)
    return account


def _balances(outline: Outline, kind: _Kind, cents: int) -> Json:
    current = cents / 100
    available = None if kind.account_type == "investment" else current
    if kind.limit is not None:
        available = round(kind.limit - current, 2)
    return {
        "available": available,
        "current": current,
        "last_updated_datetime": _instant(outline.generated),
        "limit": kind.limit,
        "margin_loan_amount": None,
        **_DOLLARS,
    }


def _transactions(draw: Random, outline: Outline, account_id: str) -> Iterable[Json]:
    """With insights, and newest first, as Plaid lists them."""
    ages = sorted(draw.randrange(outline.days) for _ in range(_TRANSACTIONS if outline.days else 0))
    for age in ages:
        yield _transaction(draw, account_id, _day(outline, age), pending=age == 0)


def _transaction(draw: Random, account_id: str, day: str, *, pending: bool) -> Json:
    shop = draw.choice(_SHOPS)
    amount = draw.randrange(shop.low, shop.high) / 100
    if draw.random() < 0.05:
        # Amounts are decimals of which more than two digits have been seen, such as money changed abroad.
        amount = round(amount + draw.randrange(1, 100) / 10_000, 4)
    primary, detailed = shop.credit_category
    return {
        "account_id": account_id,
        "account_owner": None,
        "amount": amount,
        "category": list(shop.category),
        "category_id": shop.category_id,
        "check_number": None,
        "credit_category": {"detailed": detailed, "primary": primary},
        "date": day,
        "date_transacted": day if shop.transaction_type == "place" else None,
        "location": _location(draw, shop),
        "merchant_name": shop.merchant,
        "name": shop.merchant or shop.description.title(),
        "original_description": shop.description,
        "payment_meta": dict.fromkeys(
            ("by_order_of", "payee", "payer", "payment_method", "payment_processor", "ppd_id", "reason",
             "reference_number")
        ),
        "pending": pending,
        "pending_transaction_id": None,
        "transaction_id": _identifier(draw),
        "transaction_type": shop.transaction_type,
        **_DOLLARS,
    }  # fmt: skip


def _plain(transaction: Json) -> Json:
    """A transaction without insights."""
    kept = ("account_id", "amount", "date", "original_description", "pending", "transaction_id", *_DOLLARS)
    return {name: transaction[name] for name in kept}


def _location(draw: Random, shop: _Shop) -> Json:
    at = shop.transaction_type == "place"
    return {
        "address": None,
        "city": "Oakland" if at else None,
        "country": "US" if at else None,
        "lat": round(37.8 + draw.random() / 100, 6) if at else None,
        "lon": round(-122.3 + draw.random() / 100, 6) if at else None,
        "postal_code": None,
        "region": "CA" if at else None,
        "store_number": str(draw.randrange(1000)) if at else None,
    }


def _history(outline: Outline, kind: _Kind, cents: int, transactions: Sequence[Json]) -> Iterable[Json]:
    """The balance at the end of each day, newest first: today's, with what happened later undone."""
    moved: dict[str, float] = {}
    for entry in transactions:
        moved[entry["date"]] = moved.get(entry["date"], 0.0) + entry["amount"]
    balance = cents / 100
    for age in range(outline.days):
        day = _day(outline, age)
        yield {"current": round(balance, 4), "date": day, **_DOLLARS}
        balance += -moved.get(day, 0.0) if kind.owes else moved.get(day, 0.0)


def _owner(draw: Random) -> Json:
    first, last = (
        draw.choice(("Alberta", "Rowan", "Mina", "Jo")),
        draw.choice(("Charleson", "Okafor", "Lind")),
    )
    email = f"{first}.{last}@example.com".lower()
    street, code = f"{draw.randrange(1, 9999)} Grandrose Road", f"{draw.randrange(10_000, 99_999)}"
    address = {"city": "Malakoff", "country": "US", "postal_code": code, "region": "NY", "street": street}
    return {
        "addresses": [{"data": address, "primary": True}],
        "emails": [{"data": email, "primary": True, "type": "primary"}],
        "names": [f"{first} {last}"],
        "phone_numbers": [{"data": f"1555{draw.randrange(10**7):07}", "primary": True, "type": "home"}],
    }


def _investments(draw: Random, outline: Outline, account_id: str) -> Json:
    security_id = _identifier(draw)
    quantity, price = round(draw.uniform(1, 900), 4), round(draw.uniform(5, 90), 3)
    held: Json = {"account_id": account_id, "security_id": security_id, "quantity": quantity, **_DOLLARS}
    day = _day(outline, 1)
    holding = {
        **held,
        "cost_basis": None,
        "institution_price": price,
        "institution_price_as_of": day,
        "institution_value": round(quantity * price, 4),
        "ticker_symbol": "MAPL",
        "vested_quantity": None,
        "vested_value": None,
    }
    bought = {
        **held,
        "amount": round(quantity * price, 2),
        "date": day,
        "fees": None,
        "investment_transaction_id": _identifier(draw),
        "name": "BUY Maple Index Fund",
        "price": price,
        "subtype": "buy",
        "type": "buy",
        "vested_quantity": 0.0,
        "vested_value": 0.0,
    }
    security = {
        "name": "Maple Index Fund",
        "security_id": security_id,
        "ticker_symbol": "MAPL",
        "type": "mutual fund",
    }
    return {"holdings": [holding], "securities": [security], "transactions": [bought]}


def _identifier(draw: Random) -> str:
    """Letters and digits, as Plaid's ids of accounts and transactions are."""
    return "".join(draw.choices("abcdefghijkmnopqrstvwxyzABDEGJKLMNPQRVXZ13456789", k=37))


def _day(outline: Outline, age: int) -> str:
    return (outline.generated - timedelta(days=age)).date().isoformat()


def _instant(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def pdf(outline: Outline) -> bytes:
    """The report as a PDF of one page: an account a line, with its balance."""
    lines = [f"Asset Report {outline.report_id}", f"Generated {_instant(outline.generated)}", ""]
    for item in report(outline, insights=False)["items"]:
        lines.append(item["institution_name"])
        lines += [
            f"    {account['name']}  ...{account['mask']}  USD {account['balances']['current']:,.2f}"
            for account in item["accounts"]
        ]
    return _typeset(lines)


def _typeset(lines: Iterable[str]) -> bytes:
    shown = "".join(f"({_escaped(line)}) Tj T*\n" for line in lines)
    stream = f"BT /F1 11 Tf 16 TL 56 786 Td\n{shown}ET".encode("latin-1", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Font << /F1 5 0 R >> >>",
    ]
    return _bound(objects)


def _escaped(line: str) -> str:
    return line.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _bound(objects: Iterable[bytes]) -> bytes:
    """A PDF file of these objects, with the table that says where each begins (ISO 32000-1, 7.5)."""
    file = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")
    table = [b"0000000000 65535 f \n"]
    for number, content in enumerate(objects, 1):
        table.append(b"%010d 00000 n \n" % len(file))
        file += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    start = len(file)
    file += b"xref\n0 %d\n%s" % (len(table), b"".join(table))
    file += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(table), start)
    return bytes(file)
