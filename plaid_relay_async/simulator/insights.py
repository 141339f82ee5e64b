"""What Plaid makes of transactions and balances for a lender: risk and affordability, of an account or all.

Which categories count as essential, and what makes an expense an outlier, is not published: both are ours.
Every sum is of the transactions that the report shows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from itertools import groupby
from typing import TypeAlias

from attrs import frozen

from plaid_relay_async.simulator.activity import UNITS_PER_DOLLAR, to_units
from plaid_relay_async.simulator.outline import USD_FIELDS, Json, Outline

Entries: TypeAlias = Sequence[Json]

_ESSENTIAL = frozenset({"FOOD_AND_DRINK", "RENT_AND_UTILITIES", "TRANSPORTATION", "LOAN_PAYMENTS"})
_OUTLIER_FACTOR = 4  # the mean expense
_TOP_COUNT = 3  # "Up to 3 top categories", and merchants, and providers


@frozen
class ReportPeriod:
    """The time that a report shows, and what came in during it."""

    since: date
    until: date
    income: int

    @property
    def months(self) -> int:
        """The calendar months that it touches."""
        return (self.until.year - self.since.year) * 12 + self.until.month - self.since.month + 1


def insights(outline: Outline, entries: Entries, histories: Iterable[Entries]) -> Json:
    """Plaid's AccountInsights.

    Args:
        outline: Of the report.
        entries: The transactions, of one account or of all.
        histories: The balances day by day of each of those accounts, newest first.
    """
    window = ReportPeriod(
        date.fromisoformat(outline.iso_date(max(outline.days_shown - 1, 0))),
        date.fromisoformat(outline.iso_date(0)),
        -sum(_units(entry) for entry in entries if entry["amount"] < 0),
    )
    return {"affordability": _affordability(window, entries), "risk": _risk(window, entries, histories)}


def _units(entry: Json) -> int:
    return to_units(entry["amount"])


def _total(entries: Entries) -> int:
    """Of amounts without their sign: a sum is of what came in, or of what went out."""
    return abs(sum(map(_units, entries)))


def _amount_fields(units: int | None) -> Json:
    return {"amount": None if units is None else units / UNITS_PER_DOLLAR, **USD_FIELDS}


def _monthly_average(window: ReportPeriod, units: int) -> Json:
    return {"amount": round(units / UNITS_PER_DOLLAR / window.months, 2), **USD_FIELDS}


def _in_categories(entries: Entries, *names: str) -> Entries:
    """Those of a category, primary or detailed."""
    return [entry for entry in entries if {*names} & {*entry["credit_category"].values()}]


def _percentage_of_income(window: ReportPeriod, units: int) -> float | None:
    return round(100 * units / window.income, 2) if window.income else None


# Risk


def _risk(window: ReportPeriod, entries: Entries, histories: Iterable[Entries]) -> Json:
    penalties = _in_categories(entries, "BANK_PENALTIES")
    gambling = _in_categories(entries, "ENTERTAINMENT_CASINOS_AND_GAMBLING")
    disbursed = _in_categories(entries, "LOAN_DISBURSEMENTS")
    paid = _in_categories(entries, "LOAN_PAYMENTS")
    return {
        "bank_penalties": _indicator(window, penalties) | _category_details(window, penalties),
        "gambling": _indicator(window, gambling) | {"top_merchants": _top_merchants(gambling)},
        "loan_disbursements": _indicator(window, disbursed)
        | _category_details(window, disbursed)
        | {"top_providers": _top_merchants(disbursed)},
        "loan_payments": _indicator(window, paid)
        | _category_details(window, paid)
        | {"top_providers": _top_merchants(paid)},
        "negative_balance": _negative_balance(window, histories),
    }


def _indicator(window: ReportPeriod, entries: Entries) -> Json:
    """What the four indicators have in common."""
    total = _total(entries)
    latest = max((date.fromisoformat(entry["date"]) for entry in entries), default=None)
    return {
        **_amount_fields(total),
        "days_since_last_occurrence": None if latest is None else (window.until - latest).days,
        "monthly_average": _monthly_average(window, total),
        "monthly_summaries": _monthly_summaries(window, entries),
        "percentage_of_income": _percentage_of_income(window, total),
        "transactions_count": len(entries),
    }


def _category_details(window: ReportPeriod, entries: Entries) -> Json:
    return {"category_details": _categories(window, entries)}


def _categories(window: ReportPeriod, entries: Entries) -> list[Json]:
    """Plaid's CategoryExpenses, the dearest first."""
    grouped = defaultdict(list)
    for entry in entries:
        grouped[entry["credit_category"]["detailed"]].append(entry)
    told = [
        {
            **_amount_fields(_total(group)),
            "id": name,
            "monthly_average": _monthly_average(window, _total(group)),
            "transactions_count": len(group),
        }
        for name, group in grouped.items()
    ]
    return sorted(told, key=lambda category: -category["amount"])


def _top_merchants(entries: Entries) -> list[str]:
    named = Counter(entry["merchant_name"] for entry in entries if entry["merchant_name"])
    return [name for name, _ in named.most_common(_TOP_COUNT)]


def _monthly_summaries(window: ReportPeriod, entries: Entries) -> list[Json]:
    """One for each month with a transaction, the oldest first."""
    oldest_first = sorted(entries, key=lambda entry: str(entry["date"]))
    return [
        {
            "end_date": min(_month_end(month), window.until).isoformat(),
            "start_date": max(date.fromisoformat(f"{month}-01"), window.since).isoformat(),
            "total_amount": _amount_fields(_total(list(group))),
        }
        for month, group in groupby(oldest_first, key=lambda entry: str(entry["date"])[:7])
    ]


def _month_end(month: str) -> date:
    first = date.fromisoformat(f"{month}-01")
    return (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def _negative_balance(window: ReportPeriod, histories: Iterable[Entries]) -> Json:
    spells = [spell for history in histories for spell in _negative_periods(history)]
    latest = max((date.fromisoformat(spell[0]["date"]) for spell in spells), default=None)
    return {
        "days_since_last_occurrence": None if latest is None else (window.until - latest).days,
        "days_with_negative_balance": sum(map(len, spells)),
        "minimum_balance": _lowest_balance([balance for spell in spells for balance in spell]),
        "occurrences": [
            {
                "end_date": spell[0]["date"],
                "minimum_balance": _lowest_balance(spell),
                "start_date": spell[-1]["date"],
            }
            for spell in spells
        ],
    }


def _negative_periods(history: Entries) -> list[Entries]:
    """The stretches of days, newest first, with a balance below zero."""
    grouped = groupby(history, key=lambda balance: balance["current"] < 0)
    return [list(days) for negative, days in grouped if negative]


def _lowest_balance(balances: Entries) -> Json:
    return _amount_fields(min((to_units(balance["current"]) for balance in balances), default=None))


# Affordability


def _affordability(window: ReportPeriod, entries: Entries) -> Json:
    incoming = [entry for entry in entries if entry["amount"] < 0]
    spent = [entry for entry in entries if entry["amount"] >= 0]
    transfers_in = _in_categories(incoming, "TRANSFER_IN")
    # Flat, with no average of its own: so Plaid's schemas have it, whatever their descriptions say.
    income = {
        "income_excluding_transfers": _amount_fields(_total(incoming) - _total(transfers_in)),
        "total_income": _amount_fields(_total(incoming)),
        "transfers_in": _amount_fields(_total(transfers_in)),
    }
    return {"expenditure": _expenditure(window, incoming, spent), "income": income}


def _expenditure(window: ReportPeriod, incoming: Entries, spent: Entries) -> Json:
    transfers, other = _in_categories(spent, "TRANSFER_OUT"), _in_categories(spent, "OTHER")
    essential = _in_categories(spent, *_ESSENTIAL)
    counted = {id(entry) for entry in (*transfers, *other, *essential)}
    rest = [entry for entry in spent if id(entry) not in counted]
    return {
        "cash_flow": _amount_fields(_total(incoming) - _total(spent)),
        "essential_expenditure": _expenditure_summary(window, essential),
        "non_essential_expenditure": _expenditure_summary(window, rest),
        "other": _expenditure_summary(window, other),
        "outlier_transactions": _outliers(window, spent),
        "total_expenditure": _expenditure_summary(window, spent),
        "transfers_out": _expenditure_summary(window, transfers),
    }


def _expenditure_summary(window: ReportPeriod, entries: Entries) -> Json:
    total = _total(entries)
    return {
        **_amount_fields(total),
        "monthly_average": _monthly_average(window, total),
        "percentage_of_income": _percentage_of_income(window, total),
        "top_categories": _categories(window, entries)[:_TOP_COUNT],
        "transactions_count": len(entries),
    }


def _outliers(window: ReportPeriod, spent: Entries) -> Json:
    unusual = _OUTLIER_FACTOR * _total(spent) / max(len(spent), 1)
    outliers = [entry for entry in spent if _units(entry) > unusual]
    return {
        "top_categories": _categories(window, outliers)[:_TOP_COUNT],
        "total_amount": _amount_fields(_total(outliers)),
        "transactions_count": len(outliers),
    }
