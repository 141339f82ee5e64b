"""What happens on an account: transactions, and the balance at the end of each day."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from random import Random

from attrs import frozen

from plaid_relay_async.simulator.outline import USD_FIELDS, Account, Json, Outline, random_identifier

UNITS_PER_DOLLAR = 10_000
"""Money is counted in whole ten-thousandths, so that sums are exact; Plaid's numbers have decimals."""

_UNUSUAL_SHARE = (
    0.05  # of the amounts have more than two digits, as have been seen: money changed abroad, for one
)


@frozen
class _Counterparty:
    """Where money goes, and comes from: what the bank writes, and what Plaid makes of it with insights.

    `low` and `high` bound the amount in cents. An expense that is `rare` comes a tenth as often.
    """

    description: str
    merchant: str | None
    category: tuple[str, ...] | None
    category_id: str | None
    credit_category: tuple[str, str]
    transaction_type: str
    low: int
    high: int
    rare: bool = False


# fmt: off
_COUNTERPARTIES = (
    _Counterparty("GREEN GROCER 0417 OAKLAND CA", "Green Grocer", ("Shops", "Supermarkets and Groceries"), "19047000",
          ("FOOD_AND_DRINK", "FOOD_AND_DRINK_GROCERIES"), "place", 400, 18_000),
    _Counterparty("TRAMWAY FARE*8F2K", "Tramway", ("Travel", "Public Transportation Services"), "22014000",
          ("TRANSPORTATION", "TRANSPORTATION_PUBLIC_TRANSIT"), "digital", 200, 900),
    _Counterparty("CORNER COFFEE 12", "Corner Coffee", ("Food and Drink", "Restaurants", "Coffee Shop"), "13005043",
          ("FOOD_AND_DRINK", "FOOD_AND_DRINK_COFFEE"), "place", 250, 1_500),
    _Counterparty("ACH CITY POWER AND LIGHT", "City Power", ("Service", "Utilities", "Electric"), "18068005",
          ("RENT_AND_UTILITIES", "RENT_AND_UTILITIES_GAS_AND_ELECTRICITY"), "special", 3_000, 22_000),
    _Counterparty("PAYROLL DEP MILLWRIGHT CO", None, ("Transfer", "Payroll"), "21009000",
          ("INCOME", "INCOME_WAGES"), "special", -420_000, -120_000),
    _Counterparty("INTRST PYMNT", None, ("Transfer", "Credit"), "21005000",
          ("INCOME", "INCOME_INTEREST_EARNED"), "special", -1_200, -1),
    _Counterparty("ZELLE FROM A FRIEND", None, ("Transfer", "Third Party"), "21010000",
          ("TRANSFER_IN", "TRANSFER_IN_ACCOUNT_TRANSFER"), "special", -30_000, -500),
    _Counterparty("CHECK", None, ("Transfer", "Check"), "21003000",
          ("TRANSFER_OUT", "TRANSFER_OUT_WITHDRAWAL"), "special", 2_000, 90_000),
    _Counterparty("AUTOPAY HARBOR LENDING", "Harbor Lending", ("Service", "Financial", "Loans and Mortgages"),
          "18020004", ("LOAN_PAYMENTS", "LOAN_PAYMENTS_PERSONAL_LOAN_PAYMENT"), "special", 9_000, 60_000),
    _Counterparty("BIG WHEEL CASINO", "Big Wheel", ("Recreation", "Gambling"), "17018000",
          ("ENTERTAINMENT", "ENTERTAINMENT_CASINOS_AND_GAMBLING"), "place", 1_000, 40_000, rare=True),
    _Counterparty("OVERDRAFT ITEM FEE", None, ("Bank Fees", "Overdraft"), "10001000",
          ("BANK_PENALTIES", "BANK_PENALTIES_OVERDRAFT_FEE"), "special", 2_500, 3_600, rare=True),
    _Counterparty("HARBOR LENDING ADVANCE", "Harbor Lending", ("Transfer", "Credit"), "21005000",
          ("LOAN_DISBURSEMENTS", "LOAN_DISBURSEMENTS_PERSONAL"), "special", -90_000, -20_000, rare=True),
    _Counterparty("POS 000000 REF 7", None, None, None,
          ("OTHER", "OTHER_OTHER"), "unresolved", 100, 9_000),
)
# fmt: on
_CARD_COUNTERPARTIES = tuple(
    shop for shop in _COUNTERPARTIES if shop.low >= 0 and shop.description != "CHECK"
)
_FIELDS_WITHOUT_INSIGHTS = (
    "account_id",
    "amount",
    "date",
    "original_description",
    "pending",
    "transaction_id",
    *USD_FIELDS,
)
_EMPTY_PAYMENT_META: Json = dict.fromkeys(
    ("by_order_of", "payee", "payer", "payment_method", "payment_processor", "ppd_id", "reason",
     "reference_number")
)  # fmt: skip


def generate_transactions(account: Account, outline: Outline) -> Iterator[Json]:
    """With insights, and newest first, as Plaid lists them."""
    draw = Random(f"{account.seed}:transactions")
    days = [outline.iso_date(age) for age in range(outline.days)]
    shops = _CARD_COUNTERPARTIES if account.kind.balance_is_debt else _COUNTERPARTIES
    weights = list(accumulate(1 if shop.rare else 10 for shop in shops))
    for age in sorted(draw.randrange(outline.days) for _ in range(account.transactions)):
        [shop] = draw.choices(shops, cum_weights=weights)
        yield _transaction(draw, account.account_id, shop, days[age], pending=age == 0)


def without_insights(transaction: Json) -> Json:
    """A transaction without insights."""
    return {name: transaction[name] for name in _FIELDS_WITHOUT_INSIGHTS}


def _transaction(draw: Random, account_id: str, shop: _Counterparty, day: str, *, pending: bool) -> Json:
    units = draw.randrange(shop.low, shop.high) * 100
    if draw.random() < _UNUSUAL_SHARE:
        units += draw.randrange(1, 100)
    primary, detailed = shop.credit_category
    check = f"{draw.randrange(100, 9_999)}" if shop.description == "CHECK" else None
    entry = {
        "account_id": account_id,
        # Told by the few banks that give each holder a card.
        "account_owner": "ALBERTA" if draw.random() < _UNUSUAL_SHARE else None,
        "amount": units / UNITS_PER_DOLLAR,
        "category": shop.category and list(shop.category),
        "category_id": shop.category_id,
        "check_number": check,
        "credit_category": {"detailed": detailed, "primary": primary},
        "date": day,
        "date_transacted": day if shop.transaction_type == "place" else None,
        "location": _location(draw, shop),
        "merchant_name": shop.merchant,
        "name": shop.merchant or shop.description.title(),
        # Null where the bank tells none.
        "original_description": None
        if shop.category is None and draw.random() < _UNUSUAL_SHARE
        else shop.description,
        "payment_meta": _payment_meta(draw, shop),
        "pending": pending,
        "pending_transaction_id": None if pending or draw.random() < 0.8 else random_identifier(draw),
        "transaction_id": random_identifier(draw),
        "transaction_type": shop.transaction_type,
        **USD_FIELDS,
    }
    if primary == "INCOME":
        entry["income_source_id"] = f"{detailed.lower()}-{account_id[:8]}"
    return entry


def _location(draw: Random, shop: _Counterparty) -> Json:
    at = shop.transaction_type == "place"
    return {
        "address": f"{draw.randrange(1, 400)} Broadway" if at else None,
        "city": "Oakland" if at else None,
        "country": "US" if at else None,
        "lat": round(37.8 + draw.random() / 100, 6) if at else None,
        "lon": round(-122.3 + draw.random() / 100, 6) if at else None,
        "postal_code": "94607" if at else None,
        "region": "CA" if at else None,
        "store_number": str(draw.randrange(1000)) if at else None,
    }


def _payment_meta(draw: Random, shop: _Counterparty) -> Json:
    """All null but for a transfer between banks."""
    if shop.transaction_type != "special":
        return dict(_EMPTY_PAYMENT_META)
    told = {
        "payee" if shop.low >= 0 else "payer": shop.merchant or shop.description.title(),
        "payment_method": "ACH",
        "payment_processor": "Zelle" if shop.description.startswith("ZELLE") else None,
        "ppd_id": f"{draw.randrange(10**9):09}",
        "reason": shop.category[-1] if shop.category else None,
        "reference_number": f"{draw.randrange(10**6):06}",
        "by_order_of": "Millwright Co" if shop.description.startswith("PAYROLL") else None,
    }
    return _EMPTY_PAYMENT_META | told


def balance_history(
    account: Account, outline: Outline, units: int, entries: Sequence[Json]
) -> Iterable[Json]:
    """The balance at the end of each day, newest first: today's, with what happened later undone."""
    moved: dict[str, int] = {}
    for entry in entries:
        moved[entry["date"]] = moved.get(entry["date"], 0) + to_units(entry["amount"])
    currencies = account.kind.currency_fields()
    for age in range(outline.days):
        day = outline.iso_date(age)
        yield {"current": units / UNITS_PER_DOLLAR, "date": day, **currencies}
        units += -moved.get(day, 0) if account.kind.balance_is_debt else moved.get(day, 0)


def to_units(amount: float) -> int:
    """An amount of money, counted exactly."""
    return round(amount * UNITS_PER_DOLLAR)
