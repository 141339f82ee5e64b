"""The activity on an account: transactions, and the balance at the end of each day."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from random import Random

from attrs import frozen

from plaid_relay_async.simulator.outline import USD_FIELDS, Account, Json, Outline, random_identifier

UNITS_PER_DOLLAR = 10_000
"""Amounts are summed as integers, in ten-thousandths of a dollar, so that sums are exact."""

_UNUSUAL_SHARE = 0.05  # share of the amounts with more than two decimals, as after a currency conversion


@frozen
class _Counterparty:
    """A party that an account pays or is paid by: the bank's description, and what Plaid derives from it.

    `min_cents` and `max_cents` bound the amount; a negative amount is income. A `rare` party occurs a tenth
    as often as the others.
    """

    description: str
    merchant: str | None
    category: tuple[str, ...] | None
    category_id: str | None
    credit_category: tuple[str, str]
    transaction_type: str
    min_cents: int
    max_cents: int
    rare: bool = False


# fmt: off
_COUNTERPARTIES = (
    _Counterparty("GREEN GROCER 0417 OAKLAND CA", "Green Grocer", ("Shops", "Supermarkets and Groceries"),
          "19047000", ("FOOD_AND_DRINK", "FOOD_AND_DRINK_GROCERIES"), "place", 400, 18_000),
    _Counterparty("TRAMWAY FARE*8F2K", "Tramway", ("Travel", "Public Transportation Services"), "22014000",
          ("TRANSPORTATION", "TRANSPORTATION_PUBLIC_TRANSIT"), "digital", 200, 900),
    _Counterparty("CORNER COFFEE 12", "Corner Coffee", ("Food and Drink", "Restaurants", "Coffee Shop"),
          "13005043", ("FOOD_AND_DRINK", "FOOD_AND_DRINK_COFFEE"), "place", 250, 1_500),
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
    party for party in _COUNTERPARTIES if party.min_cents >= 0 and party.description != "CHECK"
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
    """Yield the transactions of an account, with insights and newest first, as Plaid lists them."""
    rng = Random(f"{account.seed}:transactions")
    days = [outline.iso_date(age) for age in range(outline.days)]
    parties = _CARD_COUNTERPARTIES if account.kind.balance_is_debt else _COUNTERPARTIES
    weights = list(accumulate(1 if party.rare else 10 for party in parties))
    for age in sorted(rng.randrange(outline.days) for _ in range(account.transactions)):
        [party] = rng.choices(parties, cum_weights=weights)
        yield _transaction(rng, account.account_id, party, days[age], pending=age == 0)


def without_insights(transaction: Json) -> Json:
    """Return a transaction without the fields that need insights."""
    return {name: transaction[name] for name in _FIELDS_WITHOUT_INSIGHTS}


def _transaction(rng: Random, account_id: str, party: _Counterparty, day: str, *, pending: bool) -> Json:
    units = rng.randrange(party.min_cents, party.max_cents) * 100  # from cents to ten-thousandths
    if rng.random() < _UNUSUAL_SHARE:
        units += rng.randrange(1, 100)
    primary, detailed = party.credit_category
    check = f"{rng.randrange(100, 9_999)}" if party.description == "CHECK" else None
    entry = {
        "account_id": account_id,
        # Only a few banks report which of the holders a card belongs to.
        "account_owner": "ALBERTA" if rng.random() < _UNUSUAL_SHARE else None,
        "amount": units / UNITS_PER_DOLLAR,
        "category": party.category and list(party.category),
        "category_id": party.category_id,
        "check_number": check,
        "credit_category": {"detailed": detailed, "primary": primary},
        "date": day,
        "date_transacted": day if party.transaction_type == "place" else None,
        "location": _location(rng, party),
        "merchant_name": party.merchant,
        "name": party.merchant or party.description.title(),
        # Null where the bank sends no description.
        "original_description": None
        if party.category is None and rng.random() < _UNUSUAL_SHARE
        else party.description,
        "payment_meta": _payment_meta(rng, party),
        "pending": pending,
        "pending_transaction_id": None if pending or rng.random() < 0.8 else random_identifier(rng),
        "transaction_id": random_identifier(rng),
        "transaction_type": party.transaction_type,
        **USD_FIELDS,
    }
    if primary == "INCOME":
        entry["income_source_id"] = f"{detailed.lower()}-{account_id[:8]}"
    return entry


def _location(rng: Random, party: _Counterparty) -> Json:
    in_person = party.transaction_type == "place"
    return {
        "address": f"{rng.randrange(1, 400)} Broadway" if in_person else None,
        "city": "Oakland" if in_person else None,
        "country": "US" if in_person else None,
        "lat": round(37.8 + rng.random() / 100, 6) if in_person else None,
        "lon": round(-122.3 + rng.random() / 100, 6) if in_person else None,
        "postal_code": "94607" if in_person else None,
        "region": "CA" if in_person else None,
        "store_number": str(rng.randrange(1000)) if in_person else None,
    }


def _payment_meta(rng: Random, party: _Counterparty) -> Json:
    """Return the details of a transfer between banks; for other transactions all of them are null."""
    if party.transaction_type != "special":
        return dict(_EMPTY_PAYMENT_META)
    details = {
        "payee" if party.min_cents >= 0 else "payer": party.merchant or party.description.title(),
        "payment_method": "ACH",
        "payment_processor": "Zelle" if party.description.startswith("ZELLE") else None,
        "ppd_id": f"{rng.randrange(10**9):09}",
        "reason": party.category[-1] if party.category else None,
        "reference_number": f"{rng.randrange(10**6):06}",
        "by_order_of": "Millwright Co" if party.description.startswith("PAYROLL") else None,
    }
    return _EMPTY_PAYMENT_META | details


def balance_history(
    account: Account, outline: Outline, units: int, entries: Sequence[Json]
) -> Iterable[Json]:
    """Yield the balance at the end of each day, newest first.

    It starts from today's balance and reverses the transactions day by day.

    Args:
        account: the account.
        outline: the outline of the report.
        units: today's balance, in ten-thousandths of a dollar.
        entries: all transactions of the account.
    """
    spent: dict[str, int] = {}
    for entry in entries:
        spent[entry["date"]] = spent.get(entry["date"], 0) + to_units(entry["amount"])
    currencies = account.kind.currency_fields()
    for age in range(outline.days):
        day = outline.iso_date(age)
        yield {"current": units / UNITS_PER_DOLLAR, "date": day, **currencies}
        units += -spent.get(day, 0) if account.kind.balance_is_debt else spent.get(day, 0)


def to_units(amount: float) -> int:
    """Convert an amount of money in dollars to an integer, in ten-thousandths."""
    return round(amount * UNITS_PER_DOLLAR)
