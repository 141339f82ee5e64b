"""Lending insights, computed from transactions and balances: risk and affordability.

Plaid doesn't publish which categories are essential, and when an expense is an outlier: both are our choice.
All sums are over the transactions that the report shows.
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
_OUTLIER_FACTOR = 4  # an outlier is an expense above this multiple of the mean
_TOP_COUNT = 3  # Plaid's schema: "Up to 3 top categories"; the same for merchants and providers


@frozen
class ReportPeriod:
    """The period that a report shows, both dates included, and the income in it."""

    since: date
    until: date
    income: int

    @property
    def months(self) -> int:
        """The number of calendar months that the period overlaps."""
        return (self.until.year - self.since.year) * 12 + self.until.month - self.since.month + 1


def lending_insights(outline: Outline, entries: Entries, histories: Iterable[Entries]) -> Json:
    """Return Plaid's AccountInsights of one account, or of all accounts of a report.

    Args:
        outline: the report's outline.
        entries: the transactions of the accounts.
        histories: for each account its balance at the end of each day, newest first.
    """
    period = ReportPeriod(
        date.fromisoformat(outline.iso_date(max(outline.days_shown - 1, 0))),
        date.fromisoformat(outline.iso_date(0)),
        -sum(_units(entry) for entry in entries if entry["amount"] < 0),
    )
    return {"affordability": _affordability(period, entries), "risk": _risk(period, entries, histories)}


def _units(entry: Json) -> int:
    return to_units(entry["amount"])


def _total(entries: Entries) -> int:
    """Return the sum without its sign; the entries are all income or all expenses."""
    return abs(sum(map(_units, entries)))


def _amount_fields(units: int | None) -> Json:
    return {"amount": None if units is None else units / UNITS_PER_DOLLAR, **USD_FIELDS}


def _monthly_average(period: ReportPeriod, units: int) -> Json:
    return {"amount": round(units / UNITS_PER_DOLLAR / period.months, 2), **USD_FIELDS}


def _in_categories(entries: Entries, *names: str) -> Entries:
    """Return the entries of some categories, primary or detailed."""
    return [entry for entry in entries if {*names} & {*entry["credit_category"].values()}]


def _percentage_of_income(period: ReportPeriod, units: int) -> float | None:
    return round(100 * units / period.income, 2) if period.income else None


# Risk


def _risk(period: ReportPeriod, entries: Entries, histories: Iterable[Entries]) -> Json:
    penalties = _in_categories(entries, "BANK_PENALTIES")
    gambling = _in_categories(entries, "ENTERTAINMENT_CASINOS_AND_GAMBLING")
    disbursed = _in_categories(entries, "LOAN_DISBURSEMENTS")
    paid = _in_categories(entries, "LOAN_PAYMENTS")
    return {
        "bank_penalties": _indicator(period, penalties) | _category_details(period, penalties),
        "gambling": _indicator(period, gambling) | {"top_merchants": _top_merchants(gambling)},
        "loan_disbursements": _indicator(period, disbursed)
        | _category_details(period, disbursed)
        | {"top_providers": _top_merchants(disbursed)},
        "loan_payments": _indicator(period, paid)
        | _category_details(period, paid)
        | {"top_providers": _top_merchants(paid)},
        "negative_balance": _negative_balance(period, histories),
    }


def _indicator(period: ReportPeriod, entries: Entries) -> Json:
    """Return the fields that four of the five risk indicators share."""
    total = _total(entries)
    latest = max((date.fromisoformat(entry["date"]) for entry in entries), default=None)
    return {
        **_amount_fields(total),
        "days_since_last_occurrence": None if latest is None else (period.until - latest).days,
        "monthly_average": _monthly_average(period, total),
        "monthly_summaries": _monthly_summaries(period, entries),
        "percentage_of_income": _percentage_of_income(period, total),
        "transactions_count": len(entries),
    }


def _category_details(period: ReportPeriod, entries: Entries) -> Json:
    return {"category_details": _categories(period, entries)}


def _categories(period: ReportPeriod, entries: Entries) -> list[Json]:
    """Return Plaid's CategoryExpenses, the largest amount first."""
    grouped = defaultdict(list)
    for entry in entries:
        grouped[entry["credit_category"]["detailed"]].append(entry)
    categories = [
        {
            **_amount_fields(_total(group)),
            "id": name,
            "monthly_average": _monthly_average(period, _total(group)),
            "transactions_count": len(group),
        }
        for name, group in grouped.items()
    ]
    return sorted(categories, key=lambda category: -category["amount"])


def _top_merchants(entries: Entries) -> list[str]:
    named = Counter(entry["merchant_name"] for entry in entries if entry["merchant_name"])
    return [name for name, _ in named.most_common(_TOP_COUNT)]


def _monthly_summaries(period: ReportPeriod, entries: Entries) -> list[Json]:
    """Return a summary for each month with a transaction, the oldest first."""
    oldest_first = sorted(entries, key=lambda entry: str(entry["date"]))
    return [
        {
            "end_date": min(_month_end(month), period.until).isoformat(),
            "start_date": max(date.fromisoformat(f"{month}-01"), period.since).isoformat(),
            "total_amount": _amount_fields(_total(list(group))),
        }
        for month, group in groupby(oldest_first, key=lambda entry: str(entry["date"])[:7])
    ]


def _month_end(month: str) -> date:
    first = date.fromisoformat(f"{month}-01")
    return (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)


def _negative_balance(period: ReportPeriod, histories: Iterable[Entries]) -> Json:
    occurrences = [occurrence for history in histories for occurrence in _negative_periods(history)]
    latest = max((date.fromisoformat(occurrence[0]["date"]) for occurrence in occurrences), default=None)
    return {
        "days_since_last_occurrence": None if latest is None else (period.until - latest).days,
        "days_with_negative_balance": sum(map(len, occurrences)),
        "minimum_balance": _lowest_balance([balance for occurrence in occurrences for balance in occurrence]),
        "occurrences": [
            {
                "end_date": occurrence[0]["date"],
                "minimum_balance": _lowest_balance(occurrence),
                "start_date": occurrence[-1]["date"],
            }
            for occurrence in occurrences
        ],
    }


def _negative_periods(history: Entries) -> list[Entries]:
    """Return the runs of consecutive days with a balance below zero, newest first."""
    grouped = groupby(history, key=lambda balance: balance["current"] < 0)
    return [list(days) for negative, days in grouped if negative]


def _lowest_balance(balances: Entries) -> Json:
    return _amount_fields(min((to_units(balance["current"]) for balance in balances), default=None))


# Affordability


def _affordability(period: ReportPeriod, entries: Entries) -> Json:
    incoming = [entry for entry in entries if entry["amount"] < 0]
    spent = [entry for entry in entries if entry["amount"] >= 0]
    transfers_in = _in_categories(incoming, "TRANSFER_IN")
    # Plain amounts, without a monthly average: Plaid's schemas have none, although descriptions mention it.
    income = {
        "income_excluding_transfers": _amount_fields(_total(incoming) - _total(transfers_in)),
        "total_income": _amount_fields(_total(incoming)),
        "transfers_in": _amount_fields(_total(transfers_in)),
    }
    return {"expenditure": _expenditure(period, incoming, spent), "income": income}


def _expenditure(period: ReportPeriod, incoming: Entries, spent: Entries) -> Json:
    transfers, other = _in_categories(spent, "TRANSFER_OUT"), _in_categories(spent, "OTHER")
    essential = _in_categories(spent, *_ESSENTIAL)
    counted = {id(entry) for entry in (*transfers, *other, *essential)}
    rest = [entry for entry in spent if id(entry) not in counted]
    return {
        "cash_flow": _amount_fields(_total(incoming) - _total(spent)),
        "essential_expenditure": _expenditure_summary(period, essential),
        "non_essential_expenditure": _expenditure_summary(period, rest),
        "other": _expenditure_summary(period, other),
        "outlier_transactions": _outliers(period, spent),
        "total_expenditure": _expenditure_summary(period, spent),
        "transfers_out": _expenditure_summary(period, transfers),
    }


def _expenditure_summary(period: ReportPeriod, entries: Entries) -> Json:
    total = _total(entries)
    return {
        **_amount_fields(total),
        "monthly_average": _monthly_average(period, total),
        "percentage_of_income": _percentage_of_income(period, total),
        "top_categories": _categories(period, entries)[:_TOP_COUNT],
        "transactions_count": len(entries),
    }


def _outliers(period: ReportPeriod, spent: Entries) -> Json:
    unusual = _OUTLIER_FACTOR * _total(spent) / max(len(spent), 1)
    outliers = [entry for entry in spent if _units(entry) > unusual]
    return {
        "top_categories": _categories(period, outliers)[:_TOP_COUNT],
        "total_amount": _amount_fields(_total(outliers)),
        "transactions_count": len(outliers),
    }
