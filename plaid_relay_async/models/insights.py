"""What Plaid makes of a report's transactions: risk and affordability.

All of it is optional. A percentage of the income is 100 for the whole of it, and -1 where there is none.
`days_since_last_occurrence` is 0 for today. https://plaid.com/docs/api/products/assets/ tells of each.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from attrs import field, frozen

from plaid_relay_async.models.fields import unknown_fields


@frozen(kw_only=True)
class AmountWithCurrency:
    """An amount, in the currency that one of the two codes names."""

    amount: Decimal | None = None
    iso_currency_code: str | None = None
    unofficial_currency_code: str | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class MonthlyAverage(AmountWithCurrency):
    """An amount, a month on average."""


@frozen(kw_only=True)
class CategoryExpenses(AmountWithCurrency):
    """What was spent on one category: its `id` in Plaid's taxonomy for credit, and the sum."""

    id: str | None = None
    transactions_count: int | None = None
    monthly_average: MonthlyAverage | None = None


@frozen(kw_only=True)
class MonthlySummary:
    """What a month came to, from its first day to its last."""

    start_date: date | None = None
    end_date: date | None = None
    total_amount: AmountWithCurrency | None = None
    additional_properties: dict[str, Any] = unknown_fields()


# ------------------------------------------------------------------------------------------------- risk


@frozen(kw_only=True)
class _Indicators(AmountWithCurrency):
    monthly_average: MonthlyAverage | None = None
    transactions_count: int | None = None
    monthly_summaries: tuple[MonthlySummary | None, ...] | None = field(default=None, repr=False)
    days_since_last_occurrence: int | None = None
    percentage_of_income: Decimal | None = None


@frozen(kw_only=True)
class BankPenaltiesIndicators(_Indicators):
    """Fees for overdrafts, late payments and the like."""

    category_details: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class GamblingIndicators(_Indicators):
    """What was spent on gambling, and where: `top_merchants`."""

    top_merchants: tuple[str, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class LoanDisbursementsIndicators(_Indicators):
    """Loans that were paid out, and by whom: `top_providers`."""

    category_details: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)
    top_providers: tuple[str, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class LoanPaymentsIndicators(_Indicators):
    """Loans that were paid back, and to whom: `top_providers`."""

    category_details: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)
    top_providers: tuple[str, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class NegativeBalanceOccurrence:
    """A time at which the balance was below zero, its first and its last day included."""

    start_date: date | None = None
    end_date: date | None = None
    minimum_balance: AmountWithCurrency | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class NegativeBalanceInsights:
    """When and how far the balance was below zero."""

    days_since_last_occurrence: int | None = None
    days_with_negative_balance: int | None = None
    minimum_balance: AmountWithCurrency | None = None
    occurrences: tuple[NegativeBalanceOccurrence | None, ...] | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class RiskIndicators:
    """What may foretell that a loan isn't paid back."""

    bank_penalties: BankPenaltiesIndicators | None = None
    gambling: GamblingIndicators | None = None
    loan_disbursements: LoanDisbursementsIndicators | None = None
    loan_payments: LoanPaymentsIndicators | None = None
    negative_balance: NegativeBalanceInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()


# ---------------------------------------------------------------------------------------- affordability


@frozen(kw_only=True)
class OutlierTransactionsInsights:
    """Transactions far above the usual."""

    transactions_count: int | None = None
    total_amount: AmountWithCurrency | None = None
    top_categories: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class ExpenditureSummary(AmountWithCurrency):
    """What was spent, and on what most."""

    monthly_average: MonthlyAverage | None = None
    transactions_count: int | None = None
    percentage_of_income: Decimal | None = None
    top_categories: tuple[CategoryExpenses | None, ...] | None = field(default=None, repr=False)


@frozen(kw_only=True)
class ExpenditureInsights:
    """What was spent: `cash_flow` is what came in less what went out."""

    cash_flow: AmountWithCurrency | None = None
    total_expenditure: ExpenditureSummary | None = None
    essential_expenditure: ExpenditureSummary | None = None
    non_essential_expenditure: ExpenditureSummary | None = None
    other: ExpenditureSummary | None = None
    transfers_out: ExpenditureSummary | None = None
    outlier_transactions: OutlierTransactionsInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class IncomeInsights:
    """What came in."""

    total_income: AmountWithCurrency | None = None
    income_excluding_transfers: AmountWithCurrency | None = None
    transfers_in: AmountWithCurrency | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class AffordabilityInsights:
    """What a person earns and spends."""

    expenditure: ExpenditureInsights | None = None
    income: IncomeInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()


@frozen(kw_only=True)
class AccountInsights:
    """Insights into an account, or into all of a report's."""

    risk: RiskIndicators | None = None
    affordability: AffordabilityInsights | None = None
    additional_properties: dict[str, Any] = unknown_fields()
